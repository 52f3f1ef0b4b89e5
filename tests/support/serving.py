"""A server that answers by a function: for what no real registry can be made to say."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(
    handler: Handler, address: str = "127.0.0.1", *, port: int = 0, tls: ssl.SSLContext | None = None, unix: str = ""
) -> AsyncIterator[str]:
    """Everything is answered by `handler`; yields the server's `address:port`, or the path of its Unix socket."""
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.01)
    await runner.setup()
    try:
        site = web.UnixSite(runner, unix) if unix else web.TCPSite(runner, address, port, ssl_context=tls)
        await site.start()
        yield unix or f"{address}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
