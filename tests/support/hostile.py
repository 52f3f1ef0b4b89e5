"""A registry that misbehaves on request, to test what pullpipe does about it.

It serves an OCI layout by the pull half of the distribution spec, under every repository name, and each
`Fault` breaks one promise of that spec.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import secrets
import socket
import struct
import threading
from collections.abc import Collection, Coroutine
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

T = TypeVar("T")

# What Fault.BEARER_WITH_CREDENTIALS wants, and how it arrives.
USER, PASSWORD = "user", "open sesame"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
STORAGE_ADDRESS = "127.0.0.2"  # another host than the registry's 127.0.0.1, and still loopback
REF_NAME = "org.opencontainers.image.ref.name"


class Fault(Enum):
    """What the registry does wrong, or, for the tokens and the redirect, merely may do."""

    UNAUTHORIZED_WITHOUT_CHALLENGE = auto()
    """401 to everything, with no WWW-Authenticate."""
    BEARER = auto()
    """A token is needed; its endpoint gives one to anybody."""
    BEARER_WITH_CREDENTIALS = auto()
    """A token is needed; its endpoint gives one to USER with PASSWORD only."""
    EXPIRED_TOKEN = auto()
    """With either of the two above: blobs answer 401 although the token was good for the manifest."""
    NAME_UNKNOWN = auto()
    """404 with the spec's error document."""
    HTML_ERROR = auto()
    """500 with an HTML page, for manifests and blobs."""
    TOO_MANY_REQUESTS = auto()
    """429 with `Retry-After: 1`, for manifests and blobs."""
    UNAVAILABLE = auto()
    """503 with a Retry-After that is a date in the past, for manifests and blobs."""
    NO_HEAD = auto()
    """405 to every HEAD."""
    WRONG_MANIFEST = auto()
    """Manifests differ from their digest by a trailing newline; headers give the true digest."""

    WRONG_BLOB = auto()
    """The right length, the last byte changed."""
    TRUNCATED_BLOB = auto()
    """The whole Content-Length promised, half of it sent, the connection closed."""
    SHORT_BLOB = auto()
    """Half the blob, as a complete answer with half the Content-Length."""
    RESET_BLOB = auto()
    """All promised, 99 % sent, the connection reset."""
    STALLED_BLOB = auto()
    """All promised, half of it sent, then silence."""
    REDIRECTED_BLOB = auto()
    """307 to another host and port, where the other blob faults apply."""
    RANGE_IGNORED = auto()
    """200 and the whole blob to a range request."""
    RANGE_SHIFTED = auto()
    """206 with a Content-Range, and bytes, that begin one byte after what was asked for."""
    RANGE_REFUSED = auto()
    """416 to every range request."""
    GZIP_ENCODED_BLOB = auto()
    """`Content-Encoding: gzip` around the blob."""
    NO_CONTENT_LENGTH = auto()
    """A chunked answer."""


_BEARER = frozenset({Fault.BEARER, Fault.BEARER_WITH_CREDENTIALS})
_RANGE_FAULTS = frozenset({Fault.RANGE_IGNORED, Fault.RANGE_SHIFTED, Fault.RANGE_REFUSED})
# These say how a blob's answer is made; a blob request suffers each one that is on.
_ANSWER_FAULTS = frozenset(
    {
        Fault.WRONG_BLOB,
        Fault.TRUNCATED_BLOB,
        Fault.SHORT_BLOB,
        Fault.RESET_BLOB,
        Fault.STALLED_BLOB,
        Fault.GZIP_ENCODED_BLOB,
        Fault.NO_CONTENT_LENGTH,
    }
)


@dataclass(frozen=True)
class Request:
    """A request as it arrived; `host` is the `address:port` that it arrived at."""

    method: str
    path: str
    headers: CIMultiDictProxy[str]
    host: str


class FaultyRegistry:
    """The registry, in a thread of its own, alive within its `with` block.

    `faults` may be changed while it runs. With `times`, each fault strikes that many requests and is then
    healed. With `only`, faults of blobs strike the blob of that digest alone. `requests` grows with every
    request, whatever became of it.
    """

    def __init__(
        self,
        layout: Path,
        faults: Collection[Fault] = (),
        *,
        times: int | None = None,
        only: str | None = None,
    ) -> None:
        self.layout = layout
        self.faults = set(faults)
        self.times = times
        self.only = only
        self.requests: list[Request] = []
        self.host = self.storage = ""
        self._struck: dict[Fault, int] = {}
        self._tokens: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._wait(self._start())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._runner.cleanup())
        finally:
            self._end_thread()

    def arrived(self, path: str, *, at: str | None = None) -> list[Request]:
        """The requests so far whose path matches the pattern `path`, at `host` or at `storage` if given."""
        return [request for request in self.requests if re.search(path, request.path) and at in (None, request.host)]

    async def _start(self) -> None:
        application = web.Application(middlewares=[self._guard])
        application.router.add_get("/v2/", self._ping)
        application.router.add_get("/v2/{name:.+}/manifests/{reference}", self._manifest)
        application.router.add_get("/v2/{name:.+}/blobs/{digest}", self._blob)
        application.router.add_get("/storage/{digest}", self._stored_blob)
        application.router.add_get("/token", self._token)
        # Handlers that stall are cancelled, not waited for.
        self._runner = web.AppRunner(application, shutdown_timeout=0.01)
        await self._runner.setup()
        for address in ("127.0.0.1", STORAGE_ADDRESS):
            await web.TCPSite(self._runner, address, 0).start()
        self.host, self.storage = (f"{address}:{port}" for address, port in self._runner.addresses)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _strikes(self, fault: Fault) -> bool:
        """Whether `fault` is to happen now; counts it if so."""
        if fault not in self.faults:
            return False
        self._struck[fault] = self._struck.get(fault, 0) + 1
        return self.times is None or self._struck[fault] <= self.times

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        address, port = request.get_extra_info("sockname")
        self.requests.append(Request(request.method, request.path_qs, request.headers, f"{address}:{port}"))
        if request.method == "HEAD" and self._strikes(Fault.NO_HEAD):
            raise web.HTTPMethodNotAllowed("HEAD", ["GET"])
        if not request.path.startswith("/v2/"):
            return await handler(request)  # type: ignore[no-any-return]
        self._authenticate(request)
        if name := request.match_info.get("name"):
            self._fail(name)
        return await handler(request)  # type: ignore[no-any-return]

    def _authenticate(self, request: web.Request) -> None:
        if self._strikes(Fault.UNAUTHORIZED_WITHOUT_CHALLENGE):
            raise web.HTTPUnauthorized(text=_errors("UNAUTHORIZED"), content_type="application/json")
        if not self.faults & _BEARER:
            return
        scope = f"repository:{request.match_info['name']}:pull" if "name" in request.match_info else ""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        good = kind == "Bearer" and token in self._tokens and (not scope or self._tokens[token] == scope)
        if good and "digest" in request.match_info:
            good = not self._strikes(Fault.EXPIRED_TOKEN)
        if not good:
            challenge = f'Bearer realm="http://{self.host}/token",service="faulty"'
            if scope:
                challenge += f',scope="{scope}"'
            raise web.HTTPUnauthorized(
                text=_errors("UNAUTHORIZED"),
                content_type="application/json",
                headers={"WWW-Authenticate": challenge},
            )

    def _fail(self, name: str) -> None:
        if self._strikes(Fault.NAME_UNKNOWN):
            raise _not_found("NAME_UNKNOWN", name)
        if self._strikes(Fault.HTML_ERROR):
            page = "<html><body><h1>500 Internal Server Error</h1></body></html>"
            raise web.HTTPInternalServerError(text=page, content_type="text/html")
        if self._strikes(Fault.TOO_MANY_REQUESTS):
            raise web.HTTPTooManyRequests(text=_errors("TOOMANYREQUESTS"), headers={"Retry-After": "1"})
        if self._strikes(Fault.UNAVAILABLE):
            raise web.HTTPServiceUnavailable(headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})

    async def _ping(self, request: web.Request) -> web.Response:
        return web.json_response({}, headers={"Docker-Distribution-Api-Version": "registry/2.0"})

    async def _token(self, request: web.Request) -> web.Response:
        if Fault.BEARER_WITH_CREDENTIALS in self.faults and request.headers.get("Authorization") != BASIC:
            raise web.HTTPUnauthorized(text=_errors("UNAUTHORIZED"), content_type="application/json")
        token = secrets.token_urlsafe()
        self._tokens[token] = request.query.get("scope", "")
        return web.json_response({"token": token, "expires_in": 300})

    async def _manifest(self, request: web.Request) -> web.Response:
        reference = request.match_info["reference"]
        digest = reference if ":" in reference else self._tagged().get(reference, "")
        path = self._path(digest)
        if not path.is_file():
            raise _not_found("MANIFEST_UNKNOWN", reference)
        body = path.read_bytes()
        document = json.loads(body)
        headers = {"Docker-Content-Digest": digest, "Content-Type": document["mediaType"]}
        if self._strikes(Fault.WRONG_MANIFEST):
            body += b"\n"
        return web.Response(body=body, headers=headers)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        if self._blob_faults(digest, {Fault.REDIRECTED_BLOB}):
            raise web.HTTPTemporaryRedirect(f"http://{self.storage}/storage/{digest}")
        return await self._stored_blob(request)

    async def _stored_blob(self, request: web.Request) -> web.StreamResponse:
        digest = request.match_info["digest"]
        path = self._path(digest)
        if not path.is_file():
            raise _not_found("BLOB_UNKNOWN", digest)
        headers = CIMultiDict({"Docker-Content-Digest": digest, "Content-Type": "application/octet-stream"})
        body = path.read_bytes()
        if request.method == "HEAD":
            headers["Content-Length"] = str(len(body))
            return web.Response(headers=headers)
        ranged = "Range" in request.headers
        faults = self._blob_faults(digest, _ANSWER_FAULTS | _RANGE_FAULTS if ranged else _ANSWER_FAULTS)
        if Fault.WRONG_BLOB in faults:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        return await _answer(request, body, headers, faults)

    def _blob_faults(self, digest: str, candidates: Collection[Fault]) -> set[Fault]:
        if self.only not in (None, digest):
            return set()
        return {fault for fault in candidates if self._strikes(fault)}

    def _tagged(self) -> dict[str, str]:
        index = json.loads((self.layout / "index.json").read_bytes())
        return {one.get("annotations", {}).get(REF_NAME): one["digest"] for one in index["manifests"]}

    def _path(self, digest: str) -> Path:
        algorithm, _, encoded = digest.partition(":")
        return self.layout / "blobs" / algorithm / encoded


async def _answer(
    request: web.Request, body: bytes, headers: CIMultiDict[str], faults: Collection[Fault]
) -> web.StreamResponse:
    """Send `body`, or the range of it that was asked for, with the faults that concern an answer's form."""
    status = 200
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted and Fault.RANGE_IGNORED not in faults:
        total, first = len(body), int(wanted[1])
        if first >= total or Fault.RANGE_REFUSED in faults:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
        last = min(int(wanted[2] or total), total - 1)
        if Fault.RANGE_SHIFTED in faults:
            first, last = first + 1, min(last + 1, total - 1)
        status = 206
        body = body[first : last + 1]
        headers["Content-Range"] = f"bytes {first}-{last}/{total}"
    if Fault.SHORT_BLOB in faults:
        body = body[: len(body) // 2]
    if Fault.GZIP_ENCODED_BLOB in faults:
        body = gzip.compress(body)
        headers["Content-Encoding"] = "gzip"

    response = web.StreamResponse(status=status, headers=headers)
    if Fault.NO_CONTENT_LENGTH in faults:
        response.enable_chunked_encoding()
    else:
        response.content_length = len(body)
    await response.prepare(request)
    if Fault.TRUNCATED_BLOB in faults:
        await response.write(body[: len(body) // 2])
        _transport(request).close()
    elif Fault.RESET_BLOB in faults:
        await response.write(body[: len(body) * 99 // 100])
        connection = _transport(request).get_extra_info("socket")
        # Without lingering, a close sends RST instead of FIN.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _transport(request).abort()
    elif Fault.STALLED_BLOB in faults:
        await response.write(body[: len(body) // 2])
        await asyncio.Event().wait()
    else:
        await response.write(body)
        await response.write_eof()
    return response


def _transport(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    assert isinstance(transport, asyncio.Transport), "the client is gone"
    return transport


def _errors(code: str, detail: str = "") -> str:
    return json.dumps({"errors": [{"code": code, "message": code.lower(), "detail": detail}]})


def _not_found(code: str, detail: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=_errors(code, detail), content_type="application/json")
