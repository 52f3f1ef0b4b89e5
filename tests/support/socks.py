"""A real SOCKS proxy: Debian's microsocks, which knows names that nobody else does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.processes import until

_LISTENS = "0A"  # a socket's state in /proc/net/tcp
_OPEN = ("01", "08")  # on our side


def is_connected(port: int) -> bool:
    """Whether a server at this port has a connection open."""
    return any(at == port and state in _OPEN for at, state, _ in _sockets())


def _sockets() -> Iterator[tuple[int, str, str]]:
    """(port, state, inode)"""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        yield int(fields[1].rpartition(":")[2], 16), fields[3], fields[9]


class Socks:
    """On a free loopback port, alive within its `with` block; it finds loopback at `name`. Needs root.

    With `user`, `NAME:PASSWORD`, it serves nobody else.
    """

    def __init__(self, directory: Path, name: str, user: str = "") -> None:
        self._hosts = directory / "hosts"
        self._hosts.write_text(f"127.0.0.1 {name}\n")
        self._options = (
            [word for pair in zip(("-u", "-P"), user.split(":"), strict=True) for word in pair] if user else []
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.host = ""

    def __enter__(self) -> Self:
        inside = f'mount --bind "{self._hosts}" /etc/hosts && exec microsocks -i 127.0.0.1 -p 0 "$@"'
        command = ["unshare", "--mount", "sh", "-c", inside, "microsocks", *self._options]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        until(lambda: self._port() != 0, "microsocks listens")
        self.host = f"127.0.0.1:{self._port()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _port(self) -> int:
        """At which it listens; 0 as long as it does not."""
        assert self._process is not None
        assert self._process.poll() is None, "microsocks has ended"
        descriptors = Path(f"/proc/{self._process.pid}/fd")
        ours = {os.readlink(link) for link in descriptors.iterdir()}
        for port, state, inode in _sockets():
            if state == _LISTENS and f"socket:[{inode}]" in ours:
                return port
        return 0
