"""Serves asgi_application or wsgi_application of apps.py, as its argument says, on the
loopback port in PORT.  The parent imports it all and holds the socket; its child
serves, and when that is killed, the next is there at once."""

import os
import socket
import socketserver
import sys
import wsgiref.simple_server

import uvicorn

import apps


class Threads(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


def serve_asgi(listener):
    config = uvicorn.Config(apps.asgi_application, log_level="error", lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def serve_wsgi(listener):
    server = Threads(listener.getsockname(), Quiet, bind_and_activate=False)
    server.socket = listener
    server.server_name, server.server_port = listener.getsockname()
    server.setup_environ()
    server.set_app(apps.wsgi_application)
    server.serve_forever()


def main():
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
    while True:
        child = os.fork()
        if child == 0:
            {"asgi": serve_asgi, "wsgi": serve_wsgi}[sys.argv[1]](listener)
            os._exit(1)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            sys.exit("the server has ended by itself")
        print("killed", flush=True)             # the test counts them


main()
