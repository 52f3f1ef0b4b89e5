"""One image's registry, and the mirrors of it, as a source (OCI distribution-spec 1.1, "Pull").

What breaks off is continued from the byte that was reached, at the next place or, after a while, at the same one.
Manifests are verified here, for they are small; blobs pass through unverified, and are proven by whoever unpacks them.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from time import monotonic
from typing import NamedTuple, Self, TypeVar

import aiohttp

from pullpipe.errors import TransferError, UnexpectedAnswer, VerificationError
from pullpipe.oci import DOCUMENT_LIMIT, Descriptor
from pullpipe.reference import Reference
from pullpipe.registry.auth import Authorizer
from pullpipe.registry.credentials import Keyring
from pullpipe.registry.head import ACCEPT
from pullpipe.registry.hosts import Endpoint, origin
from pullpipe.registry.http import Http
from pullpipe.registry.proxies import Proxies
from pullpipe.registry.repository import ForeignUrl, Repository
from pullpipe.registry.retry import Retries, Tour
from pullpipe.registry.tokens import TokenCache
from pullpipe.transports import Document
from store import Digest, InvalidDigest

_T = TypeVar("_T")
_Place = Repository | ForeignUrl
_ACCEPT = {"Accept": ACCEPT}
_HEAD = frozenset(range(500)) - {408, 425, 429} | {501}  # answers to a HEAD that need not be waited out
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LARGE = 32 << 20  # bytes of a blob that is worth several requests
_WINDOW = 4 << 20  # bytes of the first one; of the others at most, and a quarter at least
_AHEAD = 0.5  # seconds that one of them takes at the first one's rate: long beside a round trip
_CONNECTIONS = 4  # for one blob; what waits for its turn, and is lost with the process, is less than so many windows
_FAST = 80e6  # bytes a second from which on more connections would not help
_STEP = 64 << 10  # bytes that an attempt has to bring to count as progress; and each timeout, where others can be asked


class Network(NamedTuple):
    """How to speak to registries."""

    keyring: Keyring = Keyring()
    tokens: TokenCache = TokenCache()
    proxies: Proxies = Proxies()
    retries: int = 5  # in vain, one after the other
    timeout: float = 30.0  # seconds without a byte, or with but a few where another place is left to ask


class _Part(NamedTuple):
    """Bytes of a blob, from `start` on."""

    start: int
    pieces: AsyncIterator[bytes]


class _Pace:
    """How fast bytes come."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since = monotonic()
        self._came = 0

    def drips(self, count: int) -> bool:
        """So many more have come; whether these seconds have brought less than a step."""
        self._came += count
        if self._came >= _STEP:
            self._since, self._came = monotonic(), 0
        return monotonic() - self._since > self._seconds


class RegistryClient:
    """The repository of `reference`, at those endpoints. An async context manager; closing it ends its connections.

    Without endpoints it is the registry that the reference names. `note` hears what is tried again, and why.
    """

    def __init__(
        self,
        reference: Reference,
        endpoints: Sequence[Endpoint] = (),
        network: Network = Network(),  # noqa: B008 - it is immutable
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._reference = reference
        self._http = Http(network.proxies, network.timeout)
        self._places = [
            Repository(self._http, endpoint, Authorizer(self._http, endpoint, network.keyring, network.tokens))
            for endpoint in endpoints or [origin(reference)]
        ]
        self._retries = Retries(network.retries, note)
        self._timeout = network.timeout
        self._documents: dict[str, Document] = {}
        self._givers: dict[Digest, dict[_Place, None]] = {}  # of each blob, in their order
        self._undivided: set[Digest] = set()  # blobs of which somebody was asked for a part, and sent all
        self._doubted: dict[Digest, dict[_Place, None]] = {}  # who gave the blob when it was wrong

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.__aexit__()

    async def resolve(self, wanted: str) -> Digest:
        """What the tag names now, by one HEAD; a digest names itself, and costs no request."""
        if ":" in wanted:
            return Digest.parse(wanted)
        return await self._first(lambda place: self._resolve_at(place, wanted), tag=True)

    async def document(self, wanted: str) -> Document:
        """The manifest or index, its digest checked."""
        if wanted not in self._documents:
            tag = ":" not in wanted
            self._documents[wanted] = await self._first(lambda place: self._document_at(place, wanted), tag=tag)
        return self._documents[wanted]

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The blob's bytes, from `offset` on."""
        async with aclosing(self._blob(descriptor, offset)) as pieces:
            yield pieces

    def has_here(self, _blob: Digest) -> bool:
        """It is for the registry to keep."""
        return False

    def doubt(self, blob: Digest) -> list[str]:
        """The blob that came was wrong: other places come first when it is asked for again. Returns who gave it."""
        self._doubted[blob] = self._givers.pop(blob, {})
        return [place.name for place in self._doubted[blob]]

    async def _first(self, ask: Callable[[Repository], Awaitable[_T]], *, tag: bool) -> _T:
        """The answer of the first place that has one."""
        tour = Tour((place for place in self._places if place.endpoint.tags or not tag), self._retries)
        while True:
            try:
                answer = await ask(tour.place)
            except (TransferError, VerificationError) as error:
                await tour.failed(error)
            else:
                self._retries.answered(tour.place)
                return answer

    async def _resolve_at(self, place: Repository, tag: str) -> Digest:
        what = f"{self._reference.name}:{tag}"
        # A registry without HEAD or without the header gets a GET, and so does one that refuses: it then says why.
        async with place.request("HEAD", f"manifests/{tag}", what, headers=_ACCEPT, expected=_HEAD) as response:
            stated = response.headers.get("Docker-Content-Digest")
            if response.status == 200 and stated:
                return _digest(place, stated)
        document = await self._document_at(place, tag)
        self._documents[tag] = self._documents[str(document.digest)] = document
        return document.digest

    async def _document_at(self, place: Repository, wanted: str) -> Document:
        what = f"{self._reference.name}{'@' if ':' in wanted else ':'}{wanted}"
        async with place.request("GET", f"manifests/{wanted}", what, headers=_ACCEPT) as response:
            data = b""
            async for piece in response.content.iter_any():
                data += piece
                if len(data) > DOCUMENT_LIMIT:
                    raise UnexpectedAnswer(f"the manifest of {self._reference} is larger than {DOCUMENT_LIMIT} bytes")
            media_type = response.headers.get("Content-Type", "")
            if media_type.startswith("text/html"):
                raise UnexpectedAnswer(
                    f"{place.name} sent a web page in place of the manifest of {self._reference}; "
                    "check the name, and what stands between here and there"
                )
            stated = wanted if ":" in wanted else response.headers.get("Docker-Content-Digest")
            digest = _digest(place, stated) if stated else Digest.of(data)
            if not digest.matches(data):
                raise VerificationError(
                    f"the manifest that {place.name} sent does not have the digest {digest}; "
                    "damaged on the way, or the registry is lying"
                )
            return Document(data, media_type, digest)

    async def _blob(self, descriptor: Descriptor, at: int) -> AsyncGenerator[bytes, None]:
        """By one connection; by several, if a large blob's first part came slowly, as where each is limited."""
        if descriptor.size - at >= _LARGE:
            start, began = at, monotonic()
            async with aclosing(self._pieces(descriptor, at, at + _WINDOW)) as pieces:
                async for piece in pieces:
                    at += len(piece)
                    yield piece
            rate = (at - start) / (monotonic() - began)
            if rate <= _FAST and descriptor.digest not in self._undivided:
                async with aclosing(self._windows(descriptor, at, rate)) as pieces:
                    async for piece in pieces:
                        at += len(piece)
                        yield piece
        async with aclosing(self._pieces(descriptor, at, descriptor.size)) as pieces:
            async for piece in pieces:
                yield piece

    async def _windows(self, descriptor: Descriptor, at: int, rate: float) -> AsyncGenerator[bytes, None]:
        """The blob's bytes, in order, by several connections; what arrives before its turn waits in memory.

        It ends early where it comes to somebody who sends all of the blob, whatever part is asked for.
        """
        length = int(min(max(rate * _AHEAD, _WINDOW / 4), _WINDOW))
        starts = iter(range(at, descriptor.size, length))
        ahead = deque(self._window(descriptor, start, length) for start in islice(starts, _CONNECTIONS))
        try:
            while ahead:
                arrived, task = ahead[0]
                end = min(at + length, descriptor.size)
                while piece := await arrived.get():
                    at += len(piece)
                    yield piece
                await task  # its error, if it has one
                if at < end:
                    return
                ahead.popleft()
                ahead.extend(self._window(descriptor, start, length) for start in islice(starts, 1))
        finally:
            for _, task in ahead:
                task.cancel()
            await asyncio.gather(*(task for _, task in ahead), return_exceptions=True)

    def _window(
        self, descriptor: Descriptor, start: int, length: int
    ) -> tuple[asyncio.Queue[bytes], asyncio.Task[None]]:
        """Asks for it; its pieces come one by one, and nothing when that was all."""
        arrived: asyncio.Queue[bytes] = asyncio.Queue()

        async def ask() -> None:
            try:
                end = min(start + length, descriptor.size)
                async with aclosing(self._pieces(descriptor, start, end, exact=True)) as pieces:
                    async for piece in pieces:
                        arrived.put_nowait(piece)
            finally:
                arrived.put_nowait(b"")

        return arrived, asyncio.create_task(ask())

    async def _pieces(
        self, descriptor: Descriptor, at: int, end: int, *, exact: bool = False
    ) -> AsyncGenerator[bytes, None]:
        """The bytes from `at` to `end`, however often the connection breaks; they are taken up where it broke.

        A place that does not do ranges sends all: what comes before is passed over, and what comes behind `end` is
        welcome. Not so if they have to be `exact`: then it ends there.
        """
        places: list[_Place] = [*self._places, *(ForeignUrl(self._http, url) for url in descriptor.urls)]
        doubted = self._doubted.get(descriptor.digest, {})
        tour = Tour(sorted(places, key=lambda place: place in doubted), self._retries)
        reached = at
        while at < end and not (exact and descriptor.digest in self._undivided):
            try:
                async with self._part(tour.place, descriptor, at, end) as part:
                    if exact and descriptor.digest in self._undivided:
                        return
                    self._retries.answered(tour.place)
                    self._givers.setdefault(descriptor.digest, {})[tour.place] = None
                    skip = at - part.start
                    pace = _Pace(self._timeout)
                    async for piece in part.pieces:
                        drips = pace.drips(len(piece))
                        if skip:
                            passed, skip = piece[:skip], skip - min(skip, len(piece))
                            piece = piece[len(passed) :]
                        if exact and at + len(piece) >= end:
                            piece = piece[: end - at]
                        at += len(piece)
                        yield piece
                        if exact and at == end:
                            return
                        if drips and tour.others and at < descriptor.size:
                            raise TransferError(
                                f"{tour.place.name} sends blob {descriptor.digest} byte by byte; try again later",
                                transient=True,
                            )
                if at < end:
                    raise TransferError(
                        f"{tour.place.name} ended blob {descriptor.digest} after {at} of {descriptor.size} bytes; "
                        "try again, or ask its owner to push the image anew",
                        transient=True,
                    )
            except TransferError as error:
                if at - reached >= _STEP:
                    tour.progress()
                reached = at
                await tour.failed(error)

    @asynccontextmanager
    async def _part(self, place: _Place, descriptor: Descriptor, start: int, end: int) -> AsyncIterator[_Part]:
        """These bytes of the blob, or all of it when the place cannot do that."""
        path, what = f"blobs/{descriptor.digest}", f"blob {descriptor.digest} of {self._reference.name}"
        last = end - 1 if end < descriptor.size else ""
        wanted = {"Range": f"bytes={start}-{last}"} if start or last else {}
        async with place.request("GET", path, what, headers=wanted, expected=(200, 206, 416)) as response:
            if wanted and response.status != 206:
                self._undivided.add(descriptor.digest)
            if response.status != 416:
                yield _part_of(place, response, descriptor, start)
                return
        async with place.request("GET", path, what) as response:  # no such range there: all of it, then
            yield _part_of(place, response, descriptor, 0)


def _part_of(place: _Place, response: aiohttp.ClientResponse, descriptor: Descriptor, start: int) -> _Part:
    """What the answer holds. Raises `UnexpectedAnswer` when that is not of this blob, or not what was asked for."""
    pieces = _arriving(response.content)
    if response.status == 206:
        stated = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if stated is None or int(stated[1]) != start:
            raise UnexpectedAnswer(
                f"{place.name} sent another part of blob {descriptor.digest} than it was asked for; tell its owner"
            )
        part, size = _Part(start, pieces), stated[3]
    else:
        part, size = _Part(0, pieces), response.headers.get("Content-Length", "*")
    if size not in ("*", str(descriptor.size)):
        raise UnexpectedAnswer(
            f"{place.name} has {size} bytes as blob {descriptor.digest}, and the manifest says {descriptor.size}; "
            "ask its owner to push the image anew"
        )
    return part


def _digest(place: Repository, text: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise UnexpectedAnswer(f"{place.name} sent an {error}") from error


async def _arriving(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """What comes; aiohttp keeps to itself what it still had when the connection broke."""
    try:
        async for piece in content.iter_any():
            yield piece
    except (aiohttp.ClientError, TimeoutError):
        content._exception = None
        if rest := content.read_nowait():
            yield rest
        raise
