"""One application in FastAPI, Starlette, Flask and Django: POST /FRAMEWORK/TASK makes
an order of the name in the body, and then does what its task is, see TASKS.

asgi_application and wsgi_application serve two of them each.  They are told by
headers to end themselves by SIGKILL (X-Kill: at which step) or to give a request up
(X-Cancel: after how many seconds)."""

import asyncio
import contextvars
import json
import os
import signal

import django.conf
import django.core.wsgi
import django.http
import django.urls
import fastapi
import flask
import psycopg
import starlette.applications
import starlette.responses
import starlette.routing

from idempotency_http import asgi, core, wsgi

DATABASE = os.environ["DATABASE"]
HEADERS = [("Location", "/orders/7"), ("X-Part", "one"), ("X-Part", "two, \xfc")]

# The statements of a task after the order, and status, content type and body of
# its answer; None is the order's number as JSON.
TASKS = {
    "order": ([], 201, None, None),
    "refuse": ([], 409, "application/json", b'{"no": "chairs"}'),
    "busy": ([], 503, "text/plain", b"later"),
    "raise": (["SELECT 1 / 0"], 201, None, None),
    "handled": (["SELECT 1 / 0"], 409, "text/plain", b"I know"),
    "swallow": (["SELECT 1 / 0"], 201, None, None),
    "serialize": (["SELECT stumble('40001', 2)"], 201, None, None),
    "deadlock": (["SELECT stumble('40P01', 2)"], 201, None, None),
    "terminate": (["SELECT stumble('57P01', 2)", "SELECT 1"], 201, None, None),
    "mended": (["SELECT stumble('P0001', 1)"], 201, None, None),
    "hopeless": (["SELECT stumble('40001', 1000)"], 201, None, None),
    "slow": (["SELECT pg_sleep(0.5)"], 201, None, None),
    "unknown": (["INSERT INTO orders (name, customer) VALUES ('nobody', 'nobody')"], 201, None, None),
    "picture": ([], 200, "image/png", b"\x89PNG\r\n\0\xff"),
    "nothing": ([], 204, None, b""),
    "large": ([], 200, "text/plain", b"x" * 70000),
    "type": ([], 200, "nonsense", b"?"),
    "digest": ([], 200, "text/plain", b"not kept"),
    "stream": ([], 200, "text/plain", b"a stream"),
    "commit": ([], 201, None, None),
    "limited": ([], 201, None, None),
}
ORDER = "INSERT INTO orders (name) VALUES (%s) RETURNING id"

kill_at = contextvars.ContextVar("kill_at", default=None)


def policy(method, path):
    if method != "POST" or path.endswith("/limited"):
        return None
    return "digest" if path.endswith("/digest") else "web"


def limited(method, path):
    return "web" if path.endswith("/limited") else None


def die_at(step):
    if kill_at.get() == step:
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal:
    """An adapter that can be told to die."""

    async def row(self, db, statement, parameters):
        if statement is core.CLAIM:
            die_at("claim")
        row = await super().row(db, statement, parameters)
        if statement is core.COMPLETE:
            die_at("commit")
        return row

    async def respond(self, request, work):
        answer = await super().respond(request, work)
        die_at("send")
        return answer


class Asgi(Mortal, asgi.Idempotency):
    pass


class Wsgi(Mortal, wsgi.Idempotency):
    pass


def name_of(body):
    try:
        return json.loads(body)["name"]
    except ValueError:
        return body.decode(errors="replace")


def answer_of(task, number):
    """Status, content type and body."""
    _, status, content_type, body = TASKS[task]
    return (status, "application/json", b'{"order": %d}' % number) if body is None else (
        status, content_type, body)


async def perform(db, task, body):
    number, = await (await db.execute(ORDER, [name_of(body)])).fetchone()
    die_at("work")
    if task == "commit":
        await db.commit()
    try:
        for statement in TASKS[task][0]:
            await db.execute(statement)
    except psycopg.errors.DivisionByZero:
        if task == "raise":
            raise
    return answer_of(task, number)


def perform_sync(db, task, body):
    number, = db.execute(ORDER, [name_of(body)]).fetchone()
    die_at("work")
    if task == "commit":
        db.commit()
    try:
        for statement in TASKS[task][0]:
            db.execute(statement)
    except psycopg.errors.DivisionByZero:
        if task == "raise":
            raise
    return answer_of(task, number)


def stream_of(body):
    while True:
        yield body


##
## ASGI
##

async def starlette_order(request):
    task = request.path_params["task"]
    status, content_type, body = await perform(
        request.scope["idempotency.db"], task, await request.body())
    if task == "stream":
        return starlette.responses.StreamingResponse(stream_of(body), status, media_type=content_type)
    response = starlette.responses.Response(body, status, media_type=content_type)
    for header in HEADERS:
        response.headers.append(*header)
    return response


def user_of_scope(scope):
    return dict(scope["headers"]).get(b"x-user", b"").decode()


asgi_pool = asgi.pool(DATABASE, min_size=4, max_size=8)
in_starlette = starlette.applications.Starlette(routes=[
    starlette.routing.Route("/starlette/{task}", starlette_order, methods=["POST"])])
in_starlette = Asgi(in_starlette, asgi_pool, principal=user_of_scope, policy=policy)
in_starlette = Asgi(in_starlette, asgi_pool, principal=user_of_scope, policy=limited, limiter="few")

in_fastapi = fastapi.FastAPI()


async def connection_of(request: fastapi.Request):
    return request.scope["idempotency.db"]


# FastAPI makes the JSON of what the function returns, after its end.
@in_fastapi.post("/fastapi/order", status_code=201)
async def fastapi_order(response: fastapi.Response, order: dict = fastapi.Body(),
                        db=fastapi.Depends(connection_of)):
    for header in HEADERS:
        response.headers.append(*header)
    return json.loads((await perform(db, "order", json.dumps(order)))[2])


in_fastapi.add_route("/fastapi/{task}", starlette_order, methods=["POST"])
in_fastapi.add_middleware(Asgi, pool=asgi_pool, principal=user_of_scope, policy=policy)
in_fastapi.add_middleware(Asgi, pool=asgi_pool, principal=user_of_scope, policy=limited, limiter="few")


async def asgi_application(scope, receive, send):
    headers = dict(scope["headers"])
    kill_at.set(headers.get(b"x-kill", b"").decode())
    app = in_fastapi if scope["path"].startswith("/fastapi/") else in_starlette
    if scope["path"] == "/health":
        app = starlette.responses.Response()
    await asyncio.wait_for(app(scope, receive, send), float(headers.get(b"x-cancel", 60)))


##
## WSGI
##

def user_of_environ(environ):
    return environ.get("HTTP_X_USER")


wsgi_pool = wsgi.pool(DATABASE, min_size=4, max_size=8)
in_flask = flask.Flask(__name__)


@in_flask.post("/flask/<task>")
def flask_order(task):
    status, content_type, body = perform_sync(
        flask.request.environ["idempotency.db"], task, flask.request.get_data())
    if task == "stream":
        return flask.Response(stream_of(body), status, content_type=content_type)
    response = flask.Response(body, status, content_type=content_type)
    response.headers.extend(HEADERS)
    return response


in_flask.wsgi_app = Wsgi(in_flask.wsgi_app, wsgi_pool, principal=user_of_environ, policy=policy)
in_flask.wsgi_app = Wsgi(in_flask.wsgi_app, wsgi_pool, principal=user_of_environ, policy=limited,
                         limiter="few")


def django_order(request, task):
    status, content_type, body = perform_sync(request.META["idempotency.db"], task, request.body)
    if task == "stream":
        return django.http.StreamingHttpResponse(stream_of(body), content_type, status)
    response = django.http.HttpResponse(body, content_type, status)
    for name, value in HEADERS:
        response[name] = value                  # Django has each name once
    return response


urlpatterns = [django.urls.path("django/<task>", django_order)]
django.conf.settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="none")
in_django = django.core.wsgi.get_wsgi_application()
in_django = Wsgi(in_django, wsgi_pool, principal=user_of_environ, policy=policy)
in_django = Wsgi(in_django, wsgi_pool, principal=user_of_environ, policy=limited, limiter="few")


def wsgi_application(environ, start_response):
    kill_at.set(environ.get("HTTP_X_KILL"))
    if environ["PATH_INFO"] == "/health":
        start_response("200 OK", [])
        return []
    app = in_flask if environ["PATH_INFO"].startswith("/flask/") else in_django
    return app(environ, start_response)
