"""What `save` writes to: files that appear whole or not at all, tar archives, standard output."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from pullpipe.errors import BadArgument
from store import durable

_FULL = (errno.ENOSPC, errno.EDQUOT)
_STDOUT = 1


class Tar:
    """A tar archive that is being written to an open file. The same files make the same bytes, whenever and by whom."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name

    def add(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """A regular file of `size` bytes, which is what the pieces come to. Raises `BadArgument`, and what they do."""
        header = tarfile.TarInfo(name)  # root's, from 1970
        header.size = size
        self._write(header.tobuf(tarfile.PAX_FORMAT))
        for piece in pieces:
            self._write(piece)
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def end(self) -> None:
        """Without it, it is no archive."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))

    def _write(self, data: bytes) -> None:
        with writing(self._name):
            write_all(self._fd, data)


@contextmanager
def tar_archive(path: str | None) -> Iterator[Tar]:
    """An archive in place of the file at `path`, or into the pipe or device there; None is standard output."""
    with output(path) as (fd, name):
        archive = Tar(fd, name)
        yield archive
        archive.end()


@contextmanager
def output(path: str | None) -> Iterator[tuple[int, str]]:
    """(descriptor, name) of what takes the place of the file at `path`, or of the pipe or device there, or of standard
    output if that is None. Raises `BadArgument`."""
    if path is None:
        yield _STDOUT, "standard output"
        return
    path = os.path.realpath(path)  # a symlink stays one
    with writing(path):
        mode = os.stat(path).st_mode if os.path.exists(path) else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise BadArgument(f"{path} is a directory, and an archive is a file; name one, or choose --format oci-dir")
    if stat.S_ISREG(mode):
        with replaced(path) as fd:
            yield fd, path
            with writing(path):
                os.fsync(fd)
        durable.sync_directory(os.path.dirname(path))
    else:
        with writing(path):
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield fd, path
        finally:
            os.close(fd)


@contextmanager
def replaced(path: str) -> Iterator[int]:
    """An open file that takes the place of the one at `path` when the block has ended, and is gone when it fails.

    It has no name until it is whole, so nothing is left when the program is killed; but for file systems that cannot
    do that (NFS, FAT, FUSE). To flush it is the caller's matter. Raises `BadArgument` when it cannot be made.
    """
    directory = os.path.dirname(path)
    temporary = os.path.join(directory, f".save.{os.urandom(8).hex()}.tmp")
    with writing(path):
        try:
            fd = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o666)
            nameless = True
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            nameless = False
    try:
        yield fd
        with writing(path):
            if nameless:  # A link cannot replace a file. With a directory given, Python follows the one in /proc.
                os.link(f"/proc/self/fd/{fd}", temporary, src_dir_fd=fd)
            os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        os.close(fd)


@contextmanager
def writing(name: str) -> Iterator[None]:
    """What the system refuses in this block is about `name`. A reader that has gone stays a `BrokenPipeError`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        remedy = "free some space, or name another place" if error.errno in _FULL else "name another place"
        reason = (error.strerror or str(error)).lower()
        raise BadArgument(f"cannot write {name}: {reason}; {remedy} with --output") from error


def write_all(fd: int, data: bytes) -> None:
    """However many system calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
