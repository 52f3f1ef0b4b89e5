"""Large blobs by several requests: when they are asked for, in which order they arrive, and what goes wrong."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from pullpipe.errors import TransferError
from pullpipe.oci import OCI_LAYER, Descriptor
from pullpipe.reference import Reference
from pullpipe.registry.client import Network, RegistryClient
from pullpipe.registry.hosts import origin
from store import Digest
from tests.support.serving import serving

SIZE = 41_000_000
DATA = random.Random(5).randbytes(SIZE)
BLOB = Descriptor(OCI_LAYER, Digest.of(DATA), SIZE)
PIECE = 1 << 20


@dataclass
class Server:
    """Serves the blob, `delay` seconds before each MiB; tells which parts it was asked for, and how many at once."""

    delay: float = 0.0
    divided: float = math.inf  # so many requests get the part that they ask for, and further ones all of the blob
    fails_from: int = SIZE  # a part that begins there or later breaks off
    breaks_at: int = SIZE  # the first request breaks off at this byte
    parts: list[tuple[int, int]] = field(default_factory=list)
    at_once: int = 0
    most: int = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        divided = len(self.parts) < self.divided
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", "") if divided else "")
        start, end = (int(asked[1]), int(asked[2] or SIZE - 1) + 1) if asked else (0, SIZE)
        self.parts.append((start, end))
        first = len(self.parts) == 1
        response = web.StreamResponse(status=206 if asked else 200)
        if asked:
            response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{SIZE}"
        response.content_length = end - start
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            await response.prepare(request)
            for at in range(start, end, PIECE):
                await asyncio.sleep(self.delay)
                await response.write(DATA[at : min(at + PIECE, end)])
                broken = start >= self.fails_from or (first and at >= self.breaks_at)
                if broken and request.transport:
                    request.transport.abort()
        finally:
            self.at_once -= 1
        return response

    @asynccontextmanager
    async def client(self, retries: int = 0) -> AsyncIterator[RegistryClient]:
        """A client of this server."""
        async with serving(self.answer) as host:
            reference = Reference.parse(f"{host}/a/b:1")
            async with RegistryClient(
                reference, [origin(reference, plain_http=True)], Network(retries=retries)
            ) as client:
                yield client

    def pull(self, offset: int = 0, *, retries: int = 0) -> bytes:
        """The blob's bytes from there on, as a client of this server gets them."""

        async def main() -> bytes:
            async with self.client(retries) as client, client.blob(BLOB, offset) as pieces:
                return b"".join([piece async for piece in pieces])

        return asyncio.run(main())

    def check_each_byte_once(self, start: int) -> None:
        """The parts cover the blob from there on, and no byte twice."""
        for begin, end in sorted(self.parts):
            assert begin == start
            start = end
        assert start == SIZE


@pytest.mark.parametrize("offset", [0, 1, 5_000_000])
def test_a_slow_connection_is_helped_by_others(offset: int) -> None:
    """Four at a time, and each byte is asked for once."""
    server = Server(delay=0.05)
    assert server.pull(offset) == DATA[offset:]
    server.check_each_byte_once(offset)
    assert server.most == 4
    assert len(server.parts) > 8


def test_a_fast_connection_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first window the rest comes in one."""
    monkeypatch.setattr("pullpipe.registry.client._FAST", 1e6)  # a busy machine is hardly slower than that
    server = Server()
    assert server.pull() == DATA
    server.check_each_byte_once(0)
    assert (server.most, len(server.parts)) == (1, 2)


def test_what_is_left_of_a_large_blob_may_be_small() -> None:
    server = Server(delay=0.05)
    assert server.pull(SIZE - 3 * PIECE) == DATA[SIZE - 3 * PIECE :]
    assert len(server.parts) == 1


@pytest.mark.parametrize("offset", [0, 5_000_000])
def test_a_registry_without_ranges(offset: int) -> None:
    """It sends all of it, once."""
    server = Server(divided=0)
    assert server.pull(offset) == DATA[offset:]
    assert server.parts == [(0, SIZE)]


def test_a_slow_registry_without_ranges_that_breaks_off() -> None:
    """Once more all of it; not for each window."""
    server = Server(delay=0.02, divided=0, breaks_at=SIZE // 2)
    assert server.pull(retries=1) == DATA
    assert server.parts == [(0, SIZE)] * 2


def test_a_registry_that_does_no_ranges_any_more() -> None:
    """As when another one goes on in its place: the windows end, and the rest comes at once."""
    server = Server(delay=0.05, divided=2)
    assert server.pull() == DATA
    assert server.parts.count((0, SIZE)) <= 4, "the three that were asked for already, and the one that counts"


def test_a_window_that_breaks_off() -> None:
    """The error comes when its turn does, and no request outlives it."""
    server = Server(delay=0.05, fails_from=SIZE // 2)
    with pytest.raises(TransferError, match="try again"):
        server.pull()
    assert server.at_once == 0


def test_a_reader_that_stops() -> None:
    """No request outlives it."""
    server = Server(delay=0.05)

    async def main() -> None:
        async with server.client() as client:
            async with client.blob(BLOB, 0) as pieces:
                count = 0
                async for piece in pieces:
                    count += len(piece)
                    if count > 6 << 20:
                        break
            assert not [task for task in asyncio.all_tasks() if "RegistryClient" in repr(task.get_coro())]

    asyncio.run(main())
    assert server.most == 4
