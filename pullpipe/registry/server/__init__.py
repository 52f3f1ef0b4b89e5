"""The embedded registry: a store, or any OCI image layout, served to whatever can pull and push images.

Guarantees: it serves no file but the layout's blobs, because only a valid `Digest` becomes a path. It does not verify
the blobs that it serves: whoever pulls must do that anyway, and knows which digest was asked for. What is pushed is
verified, and visible only when it is whole and on disk.

Follows the OCI distribution-spec 1.1, all four of its workflow categories, and the image-spec's image-layout.md.

    catalog     what there is, by the names that clients use
    pull        the endpoints that read
    push        the endpoints that write; `uploads`: blobs on their way in
    access      users and their passwords
    listen      addresses, Unix sockets, TLS
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from ssl import SSLContext

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from pullpipe.registry.server import listen, push
from pullpipe.registry.server.access import Users, only_for
from pullpipe.registry.server.catalog import Catalog
from pullpipe.registry.server.pull import Pull, describe
from pullpipe.registry.server.push import Push
from pullpipe.registry.server.refusals import Refused
from store import Store, StoreError

# Seconds that a response still being sent may take when the server closes (aiohttp's own default is 60).
_SHUTDOWN_TIMEOUT = 1.0
_KEEPALIVE = 75.0  # seconds that a connection may idle, before its first request, too
_BUFFER = 512 << 10  # bytes of an upload that may wait in the process; aiohttp's own 64 KiB slow it down

# aiohttp would print tracebacks of its own when a client goes away in the middle of something.
_logger = logging.getLogger("pullpipe.registry.server")
_logger.addHandler(logging.NullHandler())
_logger.propagate = False


@asynccontextmanager
async def serve(
    layout: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    unix: str = "",
    tls: SSLContext | None = None,
    users: Users | None = None,
    writable: Store | None = None,
    on_request: Callable[[str, str], None] | None = None,
    on_error: Callable[[str], None] | None = None,
) -> AsyncIterator[str]:
    """Serves the OCI image layout at `layout` until the block is left, and yields the address: `host:port`.

    Port 0 takes a free one. `unix` is the path of a socket to listen on instead, which is then the address. With
    `users`, nobody else gets anything. `writable` is the store at `layout`, if pushes are to be taken.

    `on_request` is called on the event loop with the method and the path of each request, before it is answered;
    `on_error` with a line for each that failed by no fault of the client's.

    Raises `OSError` when there is no readable index.json, `StoreError` when that is damaged, `BadArgument` when the
    address cannot be had.
    """
    catalog = Catalog(str(layout))
    await asyncio.to_thread(catalog.check)  # rather here than as a 500 to the first client
    pushes = Push(writable, catalog) if writable else None
    application = web.Application(
        middlewares=[_observe(on_request, on_error), *([only_for(users)] if users else []), _from_no_page]
    )
    application.on_response_prepare.append(describe)
    application.add_routes(Pull(catalog, pushes.lease if pushes else None).routes())
    application.add_routes(pushes.routes() if pushes else _refusing_routes())
    runner = web.AppRunner(
        application,
        access_log=None,
        logger=_logger,
        shutdown_timeout=_SHUTDOWN_TIMEOUT,
        keepalive_timeout=_KEEPALIVE,
        read_bufsize=_BUFFER,
        auto_decompress=False,  # a digest is of the bytes as they came
    )
    await runner.setup()
    try:
        async with listen.listening(runner, host, port, unix, tls) as address:
            yield address
    finally:
        await runner.cleanup()
        if pushes:
            await pushes.close()


def _observe(on_request: Callable[[str, str], None] | None, on_error: Callable[[str], None] | None) -> Middleware:
    """Tells of requests, and turns what goes wrong into the spec's errors."""

    def failed(request: web.Request, error: Exception, status: HTTPStatus, message: str) -> web.Response:
        if on_error is not None:
            on_error(" ".join(f"{request.method} {request.path}: {error or type(error).__name__}".split()))
        return Refused(status, "UNKNOWN", message).response()

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        if on_request is not None:
            on_request(request.method, request.path)
        try:
            return await handler(request)
        except Refused as refused:
            return refused.response()
        except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as error:  # from aiohttp's router
            message = f"{request.method} {request.path} is not part of this registry"
            allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
            return Refused(HTTPStatus(error.status), "UNSUPPORTED", message, allowed).response()
        except web.RequestPayloadError as error:
            return Refused(HTTPStatus.BAD_REQUEST, "BLOB_UPLOAD_INVALID", f"the body is broken: {error}").response()
        except (web.HTTPException, ConnectionError):
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return failed(request, error, HTTPStatus.INSUFFICIENT_STORAGE, "the registry's disk is full")
            return failed(request, error, HTTPStatus.INTERNAL_SERVER_ERROR, "the registry cannot use its disk")
        except StoreError as error:
            return failed(request, error, HTTPStatus.INTERNAL_SERVER_ERROR, "the registry's store is damaged or in use")
        except Exception as error:
            return failed(request, error, HTTPStatus.INTERNAL_SERVER_ERROR, "a bug in the registry")

    return observe


@web.middleware
async def _from_no_page(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses to write for a web page: a browser can reach what listens on loopback, and says so by `Origin`."""
    if request.method not in ("GET", "HEAD") and hdrs.ORIGIN in request.headers:
        raise Refused(HTTPStatus.FORBIDDEN, "DENIED", "web pages may not write here")
    return await handler(request)


def _refusing_routes() -> list[web.RouteDef]:
    """The places that pushes go to; the other ones that they use exist without, and so refuse by themselves."""
    return [web.route("*", path, push.read_only) for path in (push.UPLOADS, push.UPLOAD)]
