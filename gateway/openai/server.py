"""The HTTP port: uvicorn's protocol and connections, inside the gateway's own event loop and shutdown."""

from __future__ import annotations

import socket
from typing import cast

import structlog
import uvicorn
from uvicorn._types import ASGIApplication

from .app import App

log = structlog.get_logger(__name__)
# Longer than the pools of common clients keep a connection, so that they end it, not we.
KEEP_ALIVE_S = 75


class HttpServer:
    """Listens from `start` on; `drain` lets answers finish, `close` ends them."""

    def __init__(self, app: App, listen: str) -> None:
        self._app, self._listen = app, listen
        self._server = uvicorn.Server(
            uvicorn.Config(
                cast(ASGIApplication, app),
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that was bound."""
        assert self._socket is not None
        return int(self._socket.getsockname()[1])

    async def start(self) -> None:
        """Bind and accept; raises OSError where the address is taken."""
        self._socket = bind(self._listen)
        config = self._server.config
        config.load()
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[self._socket])
        log.info("http_serving", listen=self._listen, port=self.port)

    async def drain(self) -> None:
        """Accept nothing more, end idle connections, wait for the busy ones."""
        assert self._socket is not None
        await self._server.shutdown(sockets=[self._socket])

    async def close(self) -> None:
        """End what still runs; quick after `drain`."""
        await self._app.close()
        self._server.force_exit = True
        await self.drain()


def bind(listen: str) -> socket.socket:
    """A socket bound to host:port ("[::1]:8000" for IPv6); port 0 picks one."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, int(port)), family=family, backlog=2048)
    except (OSError, ValueError, OverflowError) as error:
        raise OSError(f"cannot listen on {listen}: {error}") from error
