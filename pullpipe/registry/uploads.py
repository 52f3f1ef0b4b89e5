"""One repository to push to (OCI distribution-spec 1.1, "Push"): blobs, and the documents that name them.

An upload that breaks off goes on from the byte that the registry has, if it can tell which that is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Self, TypeVar
from urllib.parse import urlencode

from yarl import URL

from pullpipe.errors import NotFound, TransferError, Unauthorized, UnexpectedAnswer, Unreachable
from pullpipe.oci import Descriptor
from pullpipe.reference import Reference
from pullpipe.registry.auth import Authorizer
from pullpipe.registry.client import Network
from pullpipe.registry.hosts import Endpoint
from pullpipe.registry.http import Http
from pullpipe.registry.repository import Repository
from pullpipe.registry.retry import Retries, Tour
from store import Digest

_T = TypeVar("_T")
_SLICE = 128 << 10  # bytes that are given away at once; the registry has to take so many before the timeout
_STEP = 64 << 10  # bytes that an attempt has to bring to count as progress
_COMMIT = 10e6  # bytes a second, as which a registry may look through a blob that it has received
_RECEIVED = re.compile(r"(?:bytes=)?0-([1-9][0-9]{,17})")  # "0-0" may mean one byte, or none


class _Upload(NamedTuple):
    """One that the registry expects to go on."""

    location: str  # URL
    received: int = 0  # bytes that the registry has


class _Body:
    """A blob's bytes behind the first `skip` of them, as often as they are iterated.

    `limit` is put off with each slice that is taken, and lifted behind the last. What goes wrong while reading is kept
    as `trouble`, for aiohttp makes a broken connection of it.
    """

    def __init__(
        self, read: Callable[[], Iterator[bytes]], skip: int, sent: Callable[[int], None], timeout: float
    ) -> None:
        self.limit = asyncio.timeout(None)
        self.trouble: Exception | None = None
        self._read = read
        self._skip = skip
        self._sent = sent
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            at = 0
            pieces = self._read()
            while piece := await asyncio.to_thread(next, pieces, b""):
                for start in range(max(self._skip - at, 0), len(piece), _SLICE):
                    taken = piece[start : start + _SLICE]
                    self.limit.reschedule(asyncio.get_running_loop().time() + self._timeout)
                    yield taken
                    self._sent(at + start + len(taken))
                at += len(piece)
            self.limit.reschedule(None)
        except Exception as error:
            self.trouble = error
            raise


class UploadClient:
    """The repository of `reference` at that endpoint, to push to. An async context manager; leave it to disconnect.

    `note` hears what is tried again, and why. What the methods raise is a `TransferError`.
    """

    def __init__(self, reference: Reference, endpoint: Endpoint, network: Network, note: Callable[[str], None]) -> None:
        self._reference = reference
        self._http = Http(network.proxies, network.timeout)
        authorizer = Authorizer(self._http, endpoint, network.keyring, network.tokens, "pull,push")
        self._place = Repository(self._http, endpoint, authorizer)
        self._retries = Retries(network.retries, note)
        self._timeout = network.timeout
        self._started: dict[Digest, _Upload] = {}  # uploads that were offered where a mount was asked for

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.__aexit__()

    async def has(self, blob: Digest) -> bool:
        """Whether the blob is there."""
        return await self._persistently(lambda: self._has(blob))

    async def mount(self, blob: Digest, source: str) -> bool:
        """Has the registry take the blob from its repository `source`; False when it does not do that."""
        query = urlencode({"mount": str(blob), "from": source})
        try:
            upload = await self._persistently(lambda: self._start(f"?{query}", expected=(201, 202)))
        except (NotFound, Unauthorized, UnexpectedAnswer):  # then it has to be sent
            return False
        if upload is not None:
            self._started[blob] = upload
        return upload is None

    async def upload(self, blob: Descriptor, read: Callable[[], Iterator[bytes]], sent: Callable[[int], None]) -> None:
        """Sends the blob, which `read` reads from its start; `sent` hears how many bytes are on their way, or there.

        Raises also what `read` raises.
        """
        tour = Tour([self._place], self._retries)
        upload = self._started.pop(blob.digest, None)
        tried = False
        while True:
            try:
                if tried:
                    if await self._has(blob.digest):  # only the answer was lost
                        return
                    reached = upload.received if upload else 0
                    upload = await self._resumed(upload) if upload else None
                    if upload and upload.received - reached >= _STEP:
                        tour.progress()
                tried = True
                upload = upload or await self._start("")
                assert upload is not None
                await self._send(upload, blob, _Body(read, upload.received, sent, self._timeout))
            except TransferError as error:
                if upload and upload.received and not error.transient:
                    upload = None  # what is there does not go with the rest: once more, from the start
                else:
                    await tour.failed(error)
            else:
                self._retries.answered(self._place)
                return

    async def put(self, data: bytes, media_type: str, digest: Digest, tag: str | None = None) -> None:
        """Has the document be there, by the tag, if there is one."""
        await self._persistently(lambda: self._put(data, media_type, digest, tag))

    async def _persistently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        tour = Tour([self._place], self._retries)
        while True:
            try:
                answer = await ask()
            except TransferError as error:
                await tour.failed(error)
            else:
                self._retries.answered(self._place)
                return answer

    async def _has(self, blob: Digest) -> bool:
        what = f"blob {blob} of {self._reference.name}"
        async with self._place.request("HEAD", f"blobs/{blob}", what, expected=(200, 404)) as response:
            return response.status == 200

    async def _start(self, query: str, expected: tuple[int, ...] = (202,)) -> _Upload | None:
        """Begins an upload; None when that was not necessary."""
        what = f"uploads to {self._reference.name}"
        async with self._place.request("POST", f"blobs/uploads/{query}", what, expected=expected) as response:
            return (
                None if response.status == 201 else _Upload(_location(response.url, response.headers.get("Location")))
            )

    async def _resumed(self, upload: _Upload) -> _Upload | None:
        """How far the upload has come; None when the registry does not say."""
        what = f"upload to {self._reference.name}"
        with suppress(NotFound, UnexpectedAnswer):
            async with self._place.request("GET", upload.location, what, expected=(204,)) as response:
                received = _RECEIVED.fullmatch(response.headers.get("Range", ""))
                location = response.headers.get("Location") or upload.location
                return _Upload(_location(response.url, location), int(received[1]) + 1) if received else None
        return None

    async def _send(self, upload: _Upload, blob: Descriptor, body: _Body) -> None:
        """The rest of the blob, and that it is complete."""
        left = blob.size - upload.received
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(left)}
        if upload.received and left:
            headers["Content-Range"] = f"{upload.received}-{blob.size - 1}"
        url = f"{upload.location}{'&' if '?' in upload.location else '?'}{urlencode({'digest': str(blob.digest)})}"
        what = f"blob {blob.digest} for {self._reference.name}"
        try:
            async with (
                body.limit,
                self._place.request(
                    "PUT", url, what, headers=headers, data=body, expected=(201, 204), patience=blob.size / _COMMIT
                ),
            ):
                pass
        except TimeoutError as error:
            raise Unreachable(
                f"{self._place.name} has taken no bytes for {self._timeout:g} s; try again", transient=True
            ) from error
        except TransferError as error:
            raise body.trouble or error from error

    async def _put(self, data: bytes, media_type: str, digest: Digest, tag: str | None) -> None:
        what = f"manifest {tag or digest} for {self._reference.name}"
        headers = {"Content-Type": media_type}
        path = f"manifests/{tag or digest}"
        async with self._place.request(
            "PUT", path, what, headers=headers, data=data, expected=(200, 201, 202)
        ) as response:
            stated = response.headers.get("Docker-Content-Digest") or str(digest)
        if stated != str(digest):
            raise UnexpectedAnswer(
                f"{self._place.name} has made {stated[:200]} of the manifest {digest}; pull it to see what it is"
            )


def _location(asked: URL, stated: str | None) -> str:
    """Where an upload goes on: as URL. Raises `UnexpectedAnswer`."""
    try:
        location = asked.join(URL(stated or "", encoded=True)) if stated else None
    except ValueError:
        location = None
    if location is None or location.scheme not in ("http", "https") or not location.host:
        raise UnexpectedAnswer(f"{asked.host} does not say where an upload is to go on; tell its owner")
    return str(location.with_user(None) if location.user else location)
