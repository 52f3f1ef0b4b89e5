"""A drive in memory that remembers what was written to it, and when it was told to flush: one file, by FUSE.

    python -I -S drive.py PLACE STORAGE LOG CONTROL

PLACE, a file, becomes the drive; its bytes are those of the file STORAGE. A loop device on it hands on every write and
every flush of the file system above, in the order in which a drive gets them. Each is noted in LOG (`NOTE`, and a
write's bytes). CONTROL holds three numbers: how many writes there have been, and from which write on writes and
flushes fail, and from when on reads do (0: never). Prints a line when it is ready, and ends when PLACE is unmounted.
"""

import ctypes
import errno
import mmap
import os
import stat
import struct
import sys

NOTE = struct.Struct("<BQI")  # what, the offset, how many bytes follow
WRITE, FLUSH = 0, 1
NUMBERS = struct.Struct("<QQQ")

# <linux/fuse.h>
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC = 3, 4, 14, 15, 16, 17, 18, 20
_FLUSH, _INIT, _ACCESS, _DESTROY = 25, 26, 34, 38
_WITHOUT_ANSWER = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
_LARGEST = 1 << 20


class Drive:
    """See above."""

    def __init__(self, place: str, storage: str, log: str, control: str) -> None:
        self._storage = os.open(storage, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(control, "r+b") as file:
            self._control = mmap.mmap(file.fileno(), NUMBERS.size)
        self._size = os.fstat(self._storage).st_size
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"drive", os.fsencode(place), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), place)

    def serve(self) -> None:
        """Until it is unmounted."""
        while True:
            try:
                message = os.read(self._fuse, _LARGEST + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, code, unique, *_ = _IN.unpack_from(message)
            if code in _WITHOUT_ANSWER:
                continue
            try:
                answer, failed = self._answer(code, memoryview(message)[_IN.size :]), 0
            except OSError as error:
                answer, failed = b"", error.errno or errno.EIO
            os.writev(self._fuse, [_OUT.pack(_OUT.size + len(answer), -failed, unique), answer])

    def _answer(self, code: int, body: memoryview) -> bytes:
        if code == _INIT:
            major, minor, readahead, _ = struct.unpack_from("=IIII", body)
            flags = 1 | 1 << 5 | 1 << 22  # ASYNC_READ, BIG_WRITES, MAX_PAGES
            return struct.pack(
                "=IIIIHHIIHHI28x", major, min(minor, 31), readahead, flags, 16, 12, _LARGEST, 1, _LARGEST >> 12, 0, 0
            )
        if code in (_GETATTR, _SETATTR):
            attributes = struct.pack(
                "=6Q10I", 1, self._size, self._size >> 9, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0
            )
            return struct.pack("=QII", 0, 0, 0) + attributes
        if code == _OPEN:
            return struct.pack("=QII", 0, 1, 0)  # DIRECT_IO: no cache is in between
        if code == _READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            if self._numbers()[2]:
                raise OSError(errno.EIO, "the drive is broken")
            return os.pread(self._storage, size, offset)
        if code == _WRITE:
            return self._write(body)
        if code == _FSYNC:
            self._fail_if_broken()
            os.write(self._log, NOTE.pack(FLUSH, 0, 0))
            return b""
        if code == _STATFS:
            return struct.pack("=5Q4I24x", self._size >> 12, 0, 0, 0, 0, 4096, 255, 4096, 0)
        if code in (_RELEASE, _FLUSH, _ACCESS, _DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "not of a drive")

    def _write(self, body: memoryview) -> bytes:
        _, offset, size = struct.unpack_from("=QQI", body)
        writes, broken, unreadable = self._numbers()
        NUMBERS.pack_into(self._control, 0, writes + 1, broken, unreadable)
        self._fail_if_broken()
        data = body[40 : 40 + size]
        os.writev(self._log, [NOTE.pack(WRITE, offset, size), data])
        os.pwrite(self._storage, data, offset)
        return struct.pack("=II", size, 0)

    def _fail_if_broken(self) -> None:
        writes, broken, _ = self._numbers()
        if 0 < broken <= writes:
            raise OSError(errno.EIO, "the drive is broken")

    def _numbers(self) -> tuple[int, int, int]:
        writes, broken, unreadable = NUMBERS.unpack_from(self._control)
        return writes, broken, unreadable


if __name__ == "__main__":
    drive = Drive(*sys.argv[1:5])
    print("ready", flush=True)
    drive.serve()
