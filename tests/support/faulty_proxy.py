"""A proxy in front of a real registry, which breaks what passes through it as `Rule`s say, and records what passed.

A rule names requests, and the fault that their answers suffer; `tests.support.faults` has the faults. The proxy has two
addresses: the registry's, and a second host that blobs may be redirected to, as to a storage service; no credentials
may arrive there.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from fcntl import ioctl
from time import monotonic
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

from tests.support.access import Access
from tests.support.answers import Answer, error, parsed
from tests.support.registry import Registry

T = TypeVar("T")
Place = Literal["registry", "storage"]
Framing = Literal["length", "chunked", "close"]

ELSEWHERE = "/elsewhere"  # a path that begins so is the registry's without it: a place to redirect to
STORAGE_ADDRESS = "127.0.0.2"  # another host than the registry's 127.0.0.1, and still loopback
_PIECE = 64 << 10  # bytes


@dataclass(eq=False)
class Exchange:
    """One request and what became of it; a fault acts on it."""

    method: str
    path: str
    headers: Mapping[str, str]  # by their names in lower case
    at: Place
    when: float  # it came, by the monotonic clock
    reused: bool  # whether its connection had served another one before
    proxy: FaultProxy = field(repr=False)
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)
    fault: str = ""  # the name of what struck it
    status: int = 0  # of what was answered; 0: nothing
    start: int = 0  # where in the blob the answer's body begins
    sent: int = 0  # bytes of the body that were given to the kernel

    @property
    def asks_for_token(self) -> bool:
        """Whether it is for the token server, which the proxy itself is."""
        return self.at == "registry" and self.proxy.access is not None and self.path.startswith("/token")

    @property
    def asked_path(self) -> str:
        """The path at the registry itself."""
        return self.path.removeprefix(ELSEWHERE)

    async def upstream(self, *, ranged: bool = True) -> Answer:
        """What the registry answers to it; with `ranged` false, to the same request without its Range."""
        if self.asks_for_token:
            assert self.proxy.access is not None
            return self.proxy.access.token(self)
        wanted = ("accept", "range") if ranged else ("accept",)
        passed_on = {name: value for name, value in self.headers.items() if name in wanted}
        return await self.proxy.ask(self.method, self.asked_path, passed_on)

    async def send(
        self,
        answer: Answer,
        *,
        upto: int | None = None,
        framing: Framing = "length",
        pause: float = 0,
        piece: int = _PIECE,
    ) -> None:
        """The answer, or no more of its body than the first `upto` bytes; with `pause` seconds after each piece."""
        found = re.match(r"bytes (\d+)-", answer.header("Content-Range"))
        self.start = int(found[1]) if found else 0
        if self.method == "HEAD":
            answer = answer._replace(body=b"")
        elif framing != "length":
            encoding = "chunked" if framing == "chunked" else None
            answer = answer.but({"Content-Length": None, "Transfer-Encoding": encoding})
        elif not answer.header("Content-Length"):
            answer = answer.but({"Content-Length": str(len(answer.body))})
        await self.send_head(answer)
        body = answer.body[:upto]
        for at in range(0, len(body), piece):
            data = body[at : at + piece]
            self.writer.write(b"%x\r\n%b\r\n" % (len(data), data) if framing == "chunked" else data)
            await self.writer.drain()
            self.sent += len(data)
            if pause:
                await asyncio.sleep(pause)
        if framing == "chunked" and self.method != "HEAD" and len(body) == len(answer.body):
            self.writer.write(b"0\r\n\r\n")
        if framing == "close":
            self.writer.close()

    async def send_head(self, answer: Answer, *, pause: float = 0) -> None:
        """Its status line and headers; with a `pause`, that many seconds after each few bytes."""
        self.status = answer.status
        lines = [f"{name}: {value}" for name, value in answer.headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {answer.status} {answer.reason}", *lines, "", ""]).encode("latin-1")
        piece = 32 if pause else len(head)
        for at in range(0, len(head), piece):
            self.writer.write(head[at : at + piece])
            await self.writer.drain()
            if pause:
                await asyncio.sleep(pause)

    async def stall(self) -> None:
        """Says nothing more until the client has enough of it."""
        with suppress(ConnectionError):
            await self.reader.read(1)
        self.writer.close()

    async def reset(self) -> None:
        """Ends the connection by RST, once the client's kernel has all that was sent."""
        connection = self.writer.get_extra_info("socket")
        with suppress(OSError):  # the client has gone
            while _unacknowledged(connection):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)
            # Without lingering, a close sends RST instead of FIN.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class Fault(NamedTuple):
    """What is done instead of passing the registry's answer on."""

    name: str
    strike: Callable[[Exchange], Awaitable[None]]


@dataclass
class Rule:
    """Which requests suffer the fault: those whose method and path match, but for the first `skip` of them.

    Requests that are refused for want of authentication are none of them.
    `times` is how many; None is all. Of several rules for one request the first that has not been used up strikes.
    """

    fault: Fault
    path: str = ""  # a pattern that is looked for in it; "" is any
    _: KW_ONLY
    method: str = "GET"  # "" is any
    at: Place = "registry"
    skip: int = 0
    times: int | None = 1
    struck: int = 0

    def strikes(self, exchange: Exchange) -> bool:
        """Whether it is this one's turn; which is counted."""
        fits = self.at == exchange.at and self.method in ("", exchange.method) and re.search(self.path, exchange.path)
        if not fits or self.struck == self.times:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.struck += 1
        return True


class FaultProxy:
    """The proxy, in a thread of its own, alive within its `with` block.

    `rules` may be changed while it runs. With `tls`, the registry's address speaks TLS; the storage's never does.
    Leaving the block fails when credentials came to the storage.
    """

    def __init__(
        self,
        registry: Registry,
        *rules: Rule,
        access: Access | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.rules = list(rules)
        self.access = access
        self.exchanges: list[Exchange] = []
        self.host = self.storage = ""  # each `address:port`
        self._registry = registry
        self._tls = tls
        self._listening: dict[Place, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self._run(self._open())
        except BaseException:
            self._end_thread()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._run(self._stop())
        finally:
            self._end_thread()
        if kind is None:
            if self._errors:
                raise self._errors[0]
            leaks = [one.path for one in self.of(at="storage") if {"authorization", "cookie"} & one.headers.keys()]
            assert not leaks, f"credentials went to another host: {leaks}"

    @property
    def url(self) -> str:
        """The registry's."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    def of(self, path: str = "", *, method: str = "", at: Place | None = None) -> list[Exchange]:
        """The requests so far whose path matches the pattern, in their order."""
        return [
            one
            for one in self.exchanges
            if re.search(path, one.path) and method in ("", one.method) and at in (None, one.at)
        ]

    def ranges(self, path: str) -> list[str]:
        """The Range header of each GET; "" where there was none."""
        return [one.headers.get("range", "") for one in self.of(path, method="GET")]

    def sent(self, path: str) -> int:
        """Bytes of all answers' bodies together."""
        return sum(one.sent for one in self.of(path))

    def refuse(self, seconds: float) -> None:
        """Closes the registry's port for a while; on the proxy's own loop."""
        if "registry" in self._listening:
            self._close("registry")
            address, _, port = self.host.rpartition(":")
            self._loop.call_later(seconds, self._listen, "registry", address, int(port))

    async def ask(self, method: str, path: str, headers: Mapping[str, str]) -> Answer:
        """What the registry itself says."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._registry.port)
        try:
            # As HTTP/1.0, which has no chunks; the end of the answer is that of the connection.
            lines = [f"{method} {path} HTTP/1.0", f"host: {self._registry.host}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
        first, *fields = head.decode("latin-1").split("\r\n")
        _, status, reason = first.split(" ", 2)
        answer = Answer(int(status), reason, parsed(fields), body)
        return answer.but({"Connection": None})

    def _listen(self, place: Place, address: str, port: int = 0) -> str:
        def accept() -> None:
            with suppress(BlockingIOError):  # it has gone meanwhile
                self._start(self._connected(place, listening.accept()[0]))

        self._listening[place] = listening = socket.create_server((address, port))
        listening.setblocking(False)
        self._loop.add_reader(listening, accept)
        return "{}:{}".format(*listening.getsockname())

    def _close(self, place: Place) -> None:
        listening = self._listening.pop(place, None)
        if listening is not None:
            self._loop.remove_reader(listening)
            listening.close()

    async def _connected(self, place: Place, connection: socket.socket) -> None:
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        tls = self._tls if place == "registry" else None
        # ConnectionError: the client has gone. SSLError: it did not mean to speak TLS, or does not trust us.
        with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
            try:
                await self._serve(place, reader, writer)
            except asyncio.CancelledError:
                transport.abort()  # whatever the client has not taken yet
                raise
            finally:
                writer.close()

    async def _serve(self, place: Place, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reused = False
        while not writer.is_closing():
            first = await reader.readexactly(1)
            if not first.isalpha():
                return  # TLS, to see whether we speak it
            request, *fields = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
            method, path, _ = request.split(" ")
            headers = {name.lower(): value for name, value in parsed(fields).items()}
            exchange = Exchange(method, path, headers, place, monotonic(), reused, self, reader, writer)
            self.exchanges.append(exchange)
            await self._answer(exchange)
            await writer.drain()
            reused = True
            if headers.get("connection", "").lower() == "close":
                return

    async def _answer(self, exchange: Exchange) -> None:
        access = self.access if exchange.at == "registry" and not exchange.asks_for_token else None
        if access and not access.admits(exchange):
            await exchange.send(access.refusal(exchange))
        elif rule := next((rule for rule in self.rules if rule.strikes(exchange)), None):
            exchange.fault = rule.fault.name
            await rule.fault.strike(exchange)
        elif exchange.at == "storage" and "authorization" in exchange.headers:
            await exchange.send(error(400, "Bad Request", "DENIED"))  # as storage services do
        else:
            await exchange.send(await exchange.upstream())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()):
                self._errors.append(error)

        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)

    async def _open(self) -> None:
        self.host = self._listen("registry", "127.0.0.1")
        self.storage = self._listen("storage", STORAGE_ADDRESS)

    async def _stop(self) -> None:
        for place in list(self._listening):
            self._close(place)
        await asyncio.sleep(0)  # so that each task has begun, and ends its connection
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # so that the connections are closed, too

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _unacknowledged(connection: socket.socket) -> int:
    """Bytes that were written, and that the other side's kernel has not confirmed."""
    return struct.unpack("i", ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))[0]  # type: ignore[no-any-return]
