"""One repository of a registry, as a source of images (OCI distribution-spec 1.1, "Pull").

Manifests are verified here, for they are small; blobs pass through unverified, and are proven by whoever unpacks them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from time import monotonic
from typing import NamedTuple, Self

import aiohttp

from pullpipe import __version__
from pullpipe.errors import NotFound, TransferError, Unauthorized, UnexpectedAnswer, Unreachable, VerificationError
from pullpipe.oci import DOCUMENT_LIMIT, Descriptor
from pullpipe.reference import Reference
from pullpipe.registry import hosts
from pullpipe.registry.auth import authorize
from pullpipe.registry.credentials import Credentials
from pullpipe.registry.head import ACCEPT
from pullpipe.transports import BlobStream, Document
from store import Digest, InvalidDigest

_CONNECT_TIMEOUT = 30  # seconds
_READ_TIMEOUT = 60  # seconds without a byte
_BUFFER = 512 << 10  # bytes that may wait in the process; aiohttp's 64 KiB stop and start the socket all the time
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(?:\d+|\*)")
_LARGE = 32 << 20  # bytes of a blob that is worth several requests
_WINDOW = 4 << 20  # bytes of one of them
_CONNECTIONS = 4  # for one blob; what waits for its turn comes to less than so many windows
_FAST = 80e6  # bytes a second from which on more connections would not help


class _Part(NamedTuple):
    """Bytes of a blob, from `start` up to and without `end`."""

    start: int
    end: int
    pieces: AsyncIterator[bytes]


class RegistryClient:
    """The repository of `reference`. An async context manager; closing it ends its connections."""

    def __init__(
        self, reference: Reference, *, plain_http: bool = False, credentials: Credentials | None = None
    ) -> None:
        self._reference = reference
        self._candidates = hosts.candidates(reference.registry, plain_http=plain_http)
        self._credentials = credentials
        self._authorization: str | None = None
        self._authorizing = asyncio.Lock()
        self._base: str | None = None
        self._documents: dict[str, Document] = {}
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_READ_TIMEOUT),
            # Blobs are wanted as they are: whatever a server may call their encoding, the digest is that of the bytes.
            headers={"User-Agent": f"pullpipe/{__version__}", "Accept-Encoding": "identity"},
            auto_decompress=False,
            read_bufsize=_BUFFER,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def resolve(self, wanted: str) -> Digest:
        """What the tag names now, by one HEAD; a digest names itself, and costs no request."""
        if ":" in wanted:
            return Digest.parse(wanted)
        async with self._request("HEAD", f"manifests/{wanted}", {"Accept": ACCEPT}) as response:
            if response.status == 200 and (stated := response.headers.get("Docker-Content-Digest")):
                return self._digest(stated)
        # A registry without HEAD or without the header; or an error, which GET tells with its reason.
        return (await self.document(wanted)).digest

    async def document(self, wanted: str) -> Document:
        """The manifest or index, its digest checked."""
        if wanted not in self._documents:
            self._documents[wanted] = await self._fetch_document(wanted)
        return self._documents[wanted]

    async def _fetch_document(self, wanted: str) -> Document:
        async with self._request("GET", f"manifests/{wanted}", {"Accept": ACCEPT}) as response:
            await self._check(response, f"{self._reference.name}{'@' if ':' in wanted else ':'}{wanted}")
            data = b""
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > DOCUMENT_LIMIT:
                    raise UnexpectedAnswer(f"the manifest of {self._reference} is larger than {DOCUMENT_LIMIT} bytes")
            stated = wanted if ":" in wanted else response.headers.get("Docker-Content-Digest")
            digest = self._digest(stated) if stated else Digest.of(data)
            if not digest.matches(data):
                raise VerificationError(
                    f"the manifest that {self._reference.registry} sent does not have the digest {digest}; "
                    "damaged on the way, or the registry is lying"
                )
            return Document(data, response.headers.get("Content-Type", ""), digest)

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[BlobStream]:
        """The blob's bytes, from `offset` on where the registry can do that."""
        large = descriptor.size - offset >= _LARGE
        async with self._part(descriptor, offset, offset + _WINDOW if large else descriptor.size) as part:
            if part.start != offset or part.end == descriptor.size:
                yield BlobStream(part.start, part.pieces)
            else:
                async with aclosing(self._windows(descriptor, part)) as pieces:
                    yield BlobStream(offset, pieces)

    async def _windows(self, descriptor: Descriptor, first: _Part) -> AsyncGenerator[bytes, None]:
        """The first window's bytes, and then all others in order.

        If the first came slowly, as where each connection is limited, several windows are on their way at a time; what
        arrives before its turn waits in memory. Otherwise one connection does it.
        """
        began = monotonic()
        async for piece in first.pieces:
            yield piece
        if monotonic() - began < (first.end - first.start) / _FAST:
            async with self._part(descriptor, first.end, descriptor.size) as rest:
                self._expect(rest.start == first.end, descriptor)
                async for piece in rest.pieces:
                    yield piece
            return
        starts = iter(range(first.end, descriptor.size, _WINDOW))
        ahead = deque(asyncio.create_task(self._window(descriptor, start)) for start in islice(starts, _CONNECTIONS))
        try:
            while ahead:
                pieces = await ahead[0]
                ahead.popleft()
                ahead.extend(asyncio.create_task(self._window(descriptor, start)) for start in islice(starts, 1))
                for piece in pieces:
                    yield piece
        finally:
            for task in ahead:
                task.cancel()
            await asyncio.gather(*ahead, return_exceptions=True)

    async def _window(self, descriptor: Descriptor, start: int) -> list[bytes]:
        end = min(start + _WINDOW, descriptor.size)
        async with self._part(descriptor, start, end) as part:
            self._expect((part.start, part.end) == (start, end), descriptor)
            return [piece async for piece in part.pieces]

    @asynccontextmanager
    async def _part(self, descriptor: Descriptor, start: int, end: int) -> AsyncIterator[_Part]:
        """These bytes of the blob, or all of it when the registry cannot do that."""
        path = f"blobs/{descriptor.digest}"
        last = end - 1 if end < descriptor.size else ""
        wanted = {"Range": f"bytes={start}-{last}"} if start or last else {}
        async with self._request("GET", path, wanted) as response:
            if response.status != 416:
                yield await self._part_of(response, descriptor, start)
                return
        async with self._request("GET", path, {}) as response:  # no such range there: all of it, then
            yield await self._part_of(response, descriptor, 0)

    async def _part_of(self, response: aiohttp.ClientResponse, descriptor: Descriptor, wanted: int) -> _Part:
        await self._check(response, f"blob {descriptor.digest} of {self._reference.name}")
        pieces = response.content.iter_any()
        if response.status != 206:
            return _Part(0, descriptor.size, pieces)
        stated = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        self._expect(stated is not None and int(stated[1]) == wanted, descriptor)
        assert stated is not None
        return _Part(wanted, int(stated[2]) + 1, pieces)

    def _expect(self, right: bool, descriptor: Descriptor) -> None:
        if not right:
            raise UnexpectedAnswer(
                f"{self._reference.registry} sent another part of blob {descriptor.digest} than it was asked for"
            )

    @asynccontextmanager
    async def _request(self, method: str, path: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to the repository, authorized; and aiohttp's errors as ours, also while the answer is read."""
        try:
            if self._base is None:
                self._base = await self._find_base()
            url = f"{self._base}/v2/{self._reference.repository}/{path}"
            for attempt in (1, 2):
                used = self._authorization
                sent = {**headers, "Authorization": used} if used else headers
                async with self._session.request(method, url, headers=sent) as response:
                    if response.status != 401 or attempt == 2:
                        yield response
                        return
                    await self._authorize(used, ", ".join(response.headers.getall("WWW-Authenticate", [])))
        except (aiohttp.ClientError, TimeoutError) as error:  # not OSError: a full disk is not the registry's fault
            raise self._unreachable(error) from error

    async def _authorize(self, refused: str | None, challenge: str) -> None:
        """Gets a new authorization, unless another request got one while this one waited."""
        async with self._authorizing:
            if self._authorization == refused:
                self._authorization = await authorize(
                    self._session,
                    self._reference.registry,
                    self._reference.repository,
                    challenge,
                    self._credentials,
                )

    async def _find_base(self) -> str:
        """The first URL at which something answers HTTP."""
        *others, last = self._candidates
        for candidate in others:
            try:
                async with self._session.get(f"{candidate}/v2/"):
                    return candidate
            except aiohttp.ClientConnectorCertificateError:
                raise  # it speaks TLS
            except (aiohttp.ClientError, TimeoutError):
                continue
        return last

    async def _check(self, response: aiohttp.ClientResponse, what: str) -> None:
        """Raises what an answer other than success means."""
        if response.status in (200, 206):
            return
        registry, said = self._reference.registry, await _reason(response)
        if response.status == 404:
            raise NotFound(f"{registry} has no {what}{said}; check the name")
        if response.status in (401, 403):
            if self._credentials:
                raise Unauthorized(
                    f"{registry} refuses {what} to {self._credentials.user!r}{said}; check the credentials"
                )
            raise Unauthorized(f"{registry} refuses {what}{said}; authenticate with --creds USER:PASSWORD")
        if response.status == 429:
            raise TransferError(f"{registry} limits the rate of requests{said}; try again later, or authenticate")
        raise UnexpectedAnswer(f"{registry} answered {response.status} {response.reason} for {what}{said}")

    def _digest(self, text: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidDigest as error:
            raise UnexpectedAnswer(f"{self._reference.registry} sent an {error}") from error

    def _unreachable(self, error: Exception) -> TransferError:
        registry = self._reference.registry
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return Unreachable(f"no such host: {registry}; check the name and the network's DNS")
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return Unreachable(f"the certificate of {registry} is not trusted: {error.certificate_error}")
        if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
            return Unreachable(f"{registry} does not speak TLS; if it is meant to be plain HTTP, give --plain-http")
        if isinstance(error, aiohttp.ClientConnectorError):
            code = error.os_error.errno  # asyncio puts words of its own into strerror
            reason = os.strerror(code) if code else str(error.os_error)
            return Unreachable(f"cannot connect to {registry}: {reason.lower()}; is it running there?")
        if isinstance(error, TimeoutError):
            return Unreachable(f"{registry} did not answer in time; try again")
        if isinstance(error, aiohttp.ClientResponseError):
            return UnexpectedAnswer(f"what answers at {registry} does not speak HTTP: no registry; check host and port")
        if isinstance(error, aiohttp.ClientPayloadError):
            return TransferError(f"{registry} broke off in the middle of an answer; try again to continue from there")
        return TransferError(f"the connection to {registry} failed: {error or type(error).__name__}; try again")


async def _reason(response: aiohttp.ClientResponse) -> str:
    """What the registry says of an error, in distribution-spec's form; nothing when it says it in another."""
    try:
        document = json.loads(await response.content.read(64 << 10))
        message = document["errors"][0]["message"]
    except (ValueError, LookupError, TypeError, RecursionError, aiohttp.ClientError):
        return ""
    printable = "".join(character for character in str(message) if character.isprintable())
    return f" ({printable[:200]})" if printable else ""
