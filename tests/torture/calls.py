"""The system calls of a command and all its processes, below some directories, one by one: each may be let through,
be made to fail, or be the moment at which something happens to a process.

The kernel stops every such call until it is decided (seccomp_unotify(2)), whatever library made it. So a run of which
the calls were counted can be repeated with any one of them failing, or with a kill at exactly that point.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import PROJECT
from tests.support.processes import descendants

_LISTEN = Path(__file__).with_name("listen.py")
_X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64

_MAKING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AT_FDCWD = -100


class _Shape(NamedTuple):
    """Where a call's arguments name a file; each a number of an argument. Without any it counts, wherever it is."""

    number: int
    fd: int | None = None  # an open file
    directory: int | None = None  # the directory that the path starts from
    path: int | None = None
    flags: int | None = None  # of open: only what makes or writes counts, unless reading does, too


# Of x86_64. Those that change something, and flock.
CHANGING = {
    "write": _Shape(1, fd=0),
    "pwrite64": _Shape(18, fd=0),
    "writev": _Shape(20, fd=0),
    "pwritev": _Shape(296, fd=0),
    "pwritev2": _Shape(328, fd=0),
    "sendfile": _Shape(40, fd=0),
    "copy_file_range": _Shape(326, fd=2),
    "fallocate": _Shape(285, fd=0),
    "ftruncate": _Shape(77, fd=0),
    "truncate": _Shape(76, path=0),
    "fsync": _Shape(74, fd=0),
    "fdatasync": _Shape(75, fd=0),
    "syncfs": _Shape(306, fd=0),
    "flock": _Shape(73, fd=0),
    "open": _Shape(2, path=0, flags=1),
    "creat": _Shape(85, path=0),
    "openat": _Shape(257, directory=0, path=1, flags=2),
    "openat2": _Shape(437, directory=0, path=1),
    "mkdir": _Shape(83, path=0),
    "mkdirat": _Shape(258, directory=0, path=1),
    "rename": _Shape(82, path=0),
    "renameat": _Shape(264, directory=0, path=1),
    "renameat2": _Shape(316, directory=0, path=1),
    "unlink": _Shape(87, path=0),
    "rmdir": _Shape(84, path=0),
    "unlinkat": _Shape(263, directory=0, path=1),
    "link": _Shape(86, path=1),
    "linkat": _Shape(265, directory=2, path=3),
    "symlink": _Shape(88, path=1),
    "symlinkat": _Shape(266, directory=1, path=2),
    "mknod": _Shape(133, path=0),
    "mknodat": _Shape(259, directory=0, path=1),
    "chmod": _Shape(90, path=0),
    "fchmod": _Shape(91, fd=0),
    "fchmodat": _Shape(268, directory=0, path=1),
    "fchmodat2": _Shape(452, directory=0, path=1),
    "chown": _Shape(92, path=0),
    "fchown": _Shape(93, fd=0),
    "lchown": _Shape(94, path=0),
    "fchownat": _Shape(260, directory=0, path=1),
    "utimensat": _Shape(280, directory=0, path=1),
    "setxattr": _Shape(188, path=0),
    "lsetxattr": _Shape(189, path=0),
    "fsetxattr": _Shape(190, fd=0),
    "removexattr": _Shape(197, path=0),
    "lremovexattr": _Shape(198, path=0),
    "fremovexattr": _Shape(199, fd=0),
    "mount": _Shape(165, path=1),
    "umount2": _Shape(166, path=0),
    "chroot": _Shape(161, path=0),
    "unshare": _Shape(272),
}
READING = {
    "read": _Shape(0, fd=0),
    "pread64": _Shape(17, fd=0),
    "open": _Shape(2, path=0),
    "openat": _Shape(257, directory=0, path=1),
    "getdents64": _Shape(217, fd=0),
    "stat": _Shape(4, path=0),
    "fstat": _Shape(5, fd=0),
    "lstat": _Shape(6, path=0),
    "newfstatat": _Shape(262, directory=0, path=1),
    "statx": _Shape(332, directory=0, path=1),
    "readlink": _Shape(89, path=0),
    "readlinkat": _Shape(267, directory=0, path=1),
    "listxattr": _Shape(194, path=0),
    "llistxattr": _Shape(195, path=0),
    "flistxattr": _Shape(196, fd=0),
    "getxattr": _Shape(191, path=0),
    "lgetxattr": _Shape(192, path=0),
    "fgetxattr": _Shape(193, fd=0),
}


class Call(NamedTuple):
    """One system call, before it is made."""

    number: int  # of all that counted so far, from 1
    name: str
    path: str
    thread: int  # who makes it


class Done(NamedTuple):
    """What a command came to."""

    code: int  # negative: the signal that ended it
    out: str
    said: str  # on standard error
    calls: list[Call]


# What to do about a call: 0 to let it through, or the number of the error that it is to fail with. Hears also which
# process is the command's own, and may do something to it first.
Decide = Callable[[Call, int], int]


def let_through(_call: Call, _command: int) -> int:
    """All of them."""
    return 0


def supervised(
    command: Sequence[str],
    below: Sequence[Path],
    decide: Decide = let_through,
    *,
    reading: bool = False,
    timeout: float = 60,
    env: Mapping[str, str] | None = None,
) -> Done:
    """Runs the command until no process of it is left, and asks `decide` about each of its calls below these places.

    With `reading` also about those that read. Fails when it takes longer than `timeout` seconds, and then shows where
    Python was.
    """
    if platform.machine() != "x86_64":
        pytest.skip("the numbers of the system calls are those of x86_64")
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as said:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            program = _program(CHANGING | READING if reading else CHANGING).hex()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LISTEN), str(theirs.fileno()), program, *command],
                cwd=PROJECT,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=said,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            _, [listener, *_], _, _ = socket.recv_fds(ours, 1, 1)
        supervisor = _Supervisor(listener, process.pid, [os.path.realpath(path) for path in below], decide, reading)
        in_time = supervisor.run(timeout)
        if not in_time:
            for number in (signal.SIGABRT, signal.SIGKILL):  # the first has faulthandler show all stacks
                for pid in (*descendants(process.pid), process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)
                supervisor.run(2)
        process.wait()
        os.close(listener)
        for file in (out, said):
            file.seek(0)
        done = Done(process.returncode, out.read(), said.read(), supervisor.calls)
        assert in_time, f"not done, or processes left, after {timeout} s: {' '.join(command)}\n{done.said}"
        if supervisor.error is not None:
            raise supervisor.error
        return done


class _Supervisor:
    def __init__(self, listener: int, command: int, below: Sequence[str], decide: Decide, reading: bool) -> None:
        self.calls: list[Call] = []
        self.error: BaseException | None = None
        self._listener = listener
        self._command = command
        self._below = tuple(below)
        self._decide = decide
        self._reading = reading
        changing = {shape.number: (name, shape) for name, shape in CHANGING.items()}
        reads = {shape.number: (name, shape) for name, shape in READING.items()} if reading else {}
        self._shapes = {**reads, **changing}

    def run(self, timeout: float) -> bool:
        """Until all processes have ended; False when that takes longer than so many seconds."""
        waiting = select.poll()
        waiting.register(self._listener, select.POLLIN)
        ticking = threading.Event()
        timer = threading.Timer(timeout, ticking.set)
        timer.daemon = True
        timer.start()
        try:
            while not ticking.is_set():
                for _, events in waiting.poll(100):
                    if events & select.POLLIN:
                        self._answer()
                    elif events & select.POLLHUP:
                        return True
            return False
        finally:
            timer.cancel()

    def _answer(self) -> None:
        notification = bytearray(80)  # struct seccomp_notif
        try:
            fcntl.ioctl(self._listener, 0xC0502100, notification)  # SECCOMP_IOCTL_NOTIF_RECV
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # it was killed meanwhile
                return
            raise
        identity, thread, _, number, _, _, *arguments = struct.unpack("=QIIiIQ6Q", notification)
        failing = 0
        try:
            failing = self._judge(thread, number, arguments)
        except BaseException as error:
            self.error = self.error or error
        flags = 0 if failing else 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
        try:
            answer = bytearray(struct.pack("=QqiI", identity, 0, -failing, flags))
            fcntl.ioctl(self._listener, 0xC0182101, answer)  # SECCOMP_IOCTL_NOTIF_SEND
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINPROGRESS):
                raise

    def _judge(self, thread: int, number: int, arguments: Sequence[int]) -> int:
        name, shape = self._shapes[number]
        try:
            path = _path(thread, shape, arguments)
        except (FileNotFoundError, ProcessLookupError):
            return 0  # it has ended, or means no file that there is
        if path and not path.startswith(self._below):
            return 0
        call = Call(len(self.calls) + 1, name, path, thread)
        self.calls.append(call)
        return self._decide(call, self._command)


def _path(thread: int, shape: _Shape, arguments: Sequence[int]) -> str:
    """Which file a call is about, as we see it."""
    if shape.fd is not None:
        return os.readlink(f"/proc/{thread}/fd/{arguments[shape.fd]}")
    if shape.path is None:
        return ""
    address = arguments[shape.path]
    name = _text(thread, address) if address else ""
    if name.startswith("/"):
        return os.path.normpath(os.readlink(f"/proc/{thread}/root").rstrip("/") + name)
    start = (
        _AT_FDCWD
        if shape.directory is None
        else struct.unpack("=i", struct.pack("=Q", arguments[shape.directory])[:4])[0]
    )
    base = os.readlink(f"/proc/{thread}/cwd" if start == _AT_FDCWD else f"/proc/{thread}/fd/{start}")
    return os.path.normpath(os.path.join(base, name))


def _text(thread: int, address: int) -> str:
    with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
        text = b""
        while b"\0" not in text and len(text) < 4096:
            at = address + len(text)
            read = os.pread(memory.fileno(), 4096 - at % 4096, at)  # up to the page's end: the next may not be there
            if not read:
                raise ProcessLookupError  # it was killed meanwhile, and has no memory any more
            text += read
    return os.fsdecode(text.partition(b"\0")[0])


def _program(shapes: Mapping[str, _Shape]) -> bytes:
    """The filter: notify of these, and let everything else through (<linux/bpf_common.h>, <linux/seccomp.h>)."""
    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    notify, allow = 0x7FC00000, 0x7FFF0000
    code = [(load, 0, 0, 4), (equal, 1, 0, _X86_64), (give, 0, 0, allow), (load, 0, 0, 0)]
    for shape in shapes.values():
        if shape.flags is None:
            code += [(equal, 0, 1, shape.number), (give, 0, 0, notify)]
        else:
            code += [
                (equal, 0, 4, shape.number),
                (load, 0, 0, 16 + 8 * shape.flags),
                (any_bit, 0, 1, _MAKING),
                (give, 0, 0, notify),
                (give, 0, 0, allow),
            ]
    code.append((give, 0, 0, allow))
    return b"".join(struct.pack("=HBBI", *line) for line in code)
