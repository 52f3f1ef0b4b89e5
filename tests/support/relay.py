"""A relay in front of a registry, for what is sent to it: it breaks connections while a request's body passes."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

_PIECE = 64 << 10


@dataclass
class Break:
    """What happens to the first `times` requests whose "METHOD PATH" has the pattern in it.

    After so many bytes of their bodies, `cut` ends the connections, and `stall` takes no more of them; `mute` passes
    all of a request on, and cuts when the answer comes.
    """

    pattern: str
    kind: Literal["cut", "stall", "mute"]
    after: int = 0
    times: int = 1


@dataclass
class Passed:
    """A request, and how many bytes of its body were passed on."""

    line: str  # "METHOD PATH"
    headers: dict[str, str]  # by their names in lower case
    count: int = 0


class Relay:
    """To the registry at `address`, in threads, alive within its `with` block; `host` is where it listens."""

    def __init__(self, address: str, *breaks: Break) -> None:
        self.breaks = list(breaks)
        self.passed: list[Passed] = []
        self.released = threading.Event()
        relay = self
        name, _, port = address.rpartition(":")

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((name, int(port))) as there, suppress(OSError):
                    _Connection(relay, self.request, there).run()

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, as it begins a reference."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def of(self, pattern: str) -> list[Passed]:
        """The requests so far whose "METHOD PATH" has the pattern in it."""
        return [one for one in self.passed if re.search(pattern, one.line)]

    def turn(self, line: str) -> Break | None:
        """The break that strikes this request; which is counted."""
        for one in self.breaks:
            if one.times and re.search(one.pattern, line):
                one.times -= 1
                return one
        return None


class _Connection:
    """Of a client, and the one to the registry that goes with it."""

    def __init__(self, relay: Relay, here: socket.socket, there: socket.socket) -> None:
        self._relay = relay
        self._here = here
        self._there = there
        self._muted = False

    def run(self) -> None:
        threading.Thread(target=self._answers, daemon=True).start()
        if self._here.recv(1, socket.MSG_PEEK) == b"\x16":
            return  # TLS, which this does not speak
        with self._here.makefile("rb") as requests:
            while head := self._head(requests.readline):
                self._request(head, requests.read1)
        self._end()

    def _head(self, readline: object) -> bytes:
        assert callable(readline)
        lines = []
        while (line := readline()) not in (b"", b"\r\n"):
            lines.append(line)
        return b"".join(lines)

    def _request(self, head: bytes, read: object) -> None:
        assert callable(read)
        first, *fields = head.decode("latin-1").splitlines()
        line = first.rpartition(" ")[0]
        headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        passed = Passed(line, headers)
        self._relay.passed.append(passed)
        broken = self._relay.turn(line)
        self._muted = broken is not None and broken.kind == "mute"
        self._there.sendall(head + b"\r\n")
        left = int(headers.get("content-length", "0"))
        limit = broken.after if broken and not self._muted else None
        while left and (limit is None or passed.count < limit):
            piece = read(min(left, _PIECE, _PIECE if limit is None else limit - passed.count))
            if not piece:
                break
            self._there.sendall(piece)
            left -= len(piece)
            passed.count += len(piece)
        if broken and broken.kind == "stall":
            self._relay.released.wait()
        if broken and not self._muted:
            self._end()

    def _answers(self) -> None:
        with suppress(OSError):
            while piece := self._there.recv(_PIECE):
                if self._muted:
                    break
                self._here.sendall(piece)
        self._end()

    def _end(self) -> None:
        for end in (self._here, self._there):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
