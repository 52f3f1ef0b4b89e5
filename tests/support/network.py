"""A machine's network for tests, in a network namespace of its own: nothing leaves it, and nothing comes in.

It takes root, and Debian's packages iproute2 and util-linux.
"""

from __future__ import annotations

import ctypes
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000

OWN = "192.0.2.10"  # the machine's address, and where its default route begins
OTHER, OTHER6 = "198.51.100.1", "2001:db8:1::1"  # those of another interface, as if they were somebody else's

_SETUP = f"""
    ip link set lo up
    ip link add outer type veth peer name inner
    ip address add {OWN}/24 dev outer
    ip -6 address add 2001:db8::10/64 dev outer nodad
    ip address add {OTHER}/24 dev inner
    ip -6 address add {OTHER6}/64 dev inner nodad
    ip link set inner up
    ip link set outer up
    ip route add default via 192.0.2.1
    ip -6 route add default via 2001:db8::1
    echo ready
    exec cat
"""


class World:
    """The namespace."""

    def __init__(self, pid: int) -> None:
        self.path = f"/proc/{pid}/ns/net"
        self.enter = ("nsenter", f"--net={self.path}")
        """The beginning of a command line that leads into it."""

    def listening(self, address: str, port: int) -> socket.socket:
        """A socket that takes TCP connections there."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return self._inside(lambda: socket.create_server((address, port), family=family))

    def receiving(self, address: str, port: int) -> socket.socket:
        """A socket that gets UDP datagrams there."""
        bound = self._inside(
            lambda: socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        )
        bound.bind((address, port))
        return bound

    def connected(self, address: str, port: int) -> socket.socket:
        """A TCP connection to there."""
        return self._inside(lambda: socket.create_connection((address, port), timeout=20))

    def _inside(self, make: Callable[[], _T]) -> _T:
        """A socket belongs to the namespace that it was made in; so a thread goes there."""

        def there() -> _T:
            with open(self.path) as file:
                if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return make()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()


@contextmanager
def world() -> Iterator[World]:
    """For the length of the block."""
    command = ["unshare", "--net", "sh", "-ec", _SETUP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise RuntimeError("the network cannot be made; what is wrong stands above")
        yield World(process.pid)
        process.communicate(b"")  # with which it ends
