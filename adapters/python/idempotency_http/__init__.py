"""Idempotency-Key for web applications, in the transaction of the handler's own work.

asgi.Idempotency is for FastAPI and Starlette, wsgi.Idempotency for Flask and Django."""
