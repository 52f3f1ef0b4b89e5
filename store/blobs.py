"""Blobs by digest, in the layout of an OCI image layout's `blobs/` (image-spec, image-layout.md).

A blob under `blobs/` is whole and proven. One that is still arriving lies under `ingest/`, as an `Ingest`: an
append-only file that its reader may follow while it grows, that survives a broken pull, and that becomes the blob by a
rename.
"""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from store.digest import Digest
from store.errors import UNREADABLE, Corrupt, InUse, InvalidDigest, NotInStore
from store.listing import entries, in_the_way, listed, status_of
from store.locks import Lock, exists, is_at
from store.removal import each_of

_numbers = itertools.count()


class Partial(NamedTuple):
    """What has arrived of a blob."""

    digest: Digest  # of the whole
    size: int  # bytes that are here
    touched: float  # when the last of them came, in seconds since 1970


class Blobs:
    """The blobs of the store at `root`."""

    def __init__(self, root: str) -> None:
        self._directory = os.path.join(root, "blobs")
        self._ingest = os.path.join(root, "ingest")

    def path(self, digest: Digest) -> str:
        """Where the blob is, or would be."""
        return os.path.join(self._directory, digest.algorithm, digest.hex)

    def size(self, digest: Digest) -> int | None:
        """The blob's size in bytes; None when it is not here."""
        status = status_of(self.path(digest), tree=False)
        return status.st_size if status else None

    def made(self, digest: Digest) -> float:
        """When the blob came, in seconds since 1970; 0 when it is not here."""
        status = status_of(self.path(digest), tree=False)
        return status.st_mtime if status else 0.0

    def __contains__(self, digest: Digest) -> bool:
        return self.size(digest) is not None

    def __iter__(self) -> Iterator[Digest]:
        return iter(listed(self._directory, trees=False).digests)

    def strays(self) -> list[str]:
        """The paths of what is neither a blob nor on its way to be one."""
        arriving = [entry for entry in entries(self._ingest) if not (_is_incoming(entry) or _partial(entry))]
        return [*listed(self._directory, trees=False).strays, *(entry.path for entry in arriving)]

    def read(self, digest: Digest, *, verify: bool = True) -> bytes:
        """A small document, checked against its digest.

        Raises `NotInStore` when it is not here, and `Corrupt` when its bytes are not what its name says.
        """
        try:
            with open(self.path(digest), "rb") as file:
                data = file.read()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotInStore(f"blob {digest} is not in the store; pull the image again") from error
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise Corrupt(
                f"blob {digest} cannot be read ({error.strerror}); `pullpipe repair` fetches it again"
            ) from error
        if verify and not digest.matches(data):
            raise Corrupt(f"blob {digest} is damaged in the store; `pullpipe repair` fetches it again")
        return data

    def remove(self, digest: Digest) -> int:
        """Removes the blob and returns the bytes that it had; 0 when it was not here."""
        size = self.size(digest)
        if size is None:
            return 0
        os.unlink(self.path(digest))
        return size

    def clean(self) -> None:
        """Removes the documents of processes that were killed; partial blobs stay, for the next pull to continue.

        Goes on past what cannot be removed, as `trees.clean`.
        """
        each_of(partial(_clean, path) for path in self.leftovers())

    def leftovers(self) -> list[str]:
        """The paths of what `clean` would remove."""
        return [e.path for e in entries(self._ingest) if _is_incoming(e) and not Lock(e.path).is_held()]

    def partials(self) -> Iterator[Partial]:
        """Blobs of which only a part is here, and which nobody is fetching now."""
        for entry in entries(self._ingest):
            digest, lock = _partial(entry), Lock(entry.path)
            if digest is None:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
                free = lock.try_acquire()
            except FileNotFoundError:
                continue
            lock.release()
            if free:
                yield Partial(digest, status.st_size, status.st_mtime)

    def arrived(self, digest: Digest) -> int:
        """Bytes of the blob that are here, whether it is whole or not."""
        for path in (self.path(digest), os.path.join(self._ingest, f"{digest.algorithm}-{digest.hex}")):
            if status := status_of(path, tree=False):
                return status.st_size
        return 0

    def forget(self, digest: Digest) -> None:
        """Removes what has arrived of the blob, unless somebody goes on with it."""
        lock = Lock(os.path.join(self._ingest, f"{digest.algorithm}-{digest.hex}"))
        if exists(lock.path) and lock.try_acquire():
            lock.release(remove=True)

    def ingest(self, digest: Digest, size: int) -> Ingest:
        """Opens the partial blob, or a new one, and locks it.

        `size` in bytes is what the descriptor promises: a partial that is longer cannot be this blob and starts anew.
        Raises `InUse` when another process has it open.
        """
        path = os.path.join(self._ingest, f"{digest.algorithm}-{digest.hex}")
        return Ingest(path, self.path(digest), size)

    def document(self, digest: Digest, data: bytes) -> Ingest:
        """A small document, complete: an ingest of its own, so that nobody has to wait for anybody.

        The caller has checked that `data` has this digest.
        """
        ingest = self.incoming()
        try:
            with open(ingest.fileno(), "wb", closefd=False) as file:
                file.write(data)
        except BaseException:
            ingest.close()
            raise
        self.name(ingest, digest)
        return ingest

    def incoming(self) -> Ingest:
        """A new blob whose digest only its last byte will tell; then `name` it.

        It is nobody else's, so closing it removes it, unless it was published; `clean` does so after a crash.
        """
        while True:
            path = os.path.join(self._ingest, f"incoming.{os.getpid()}.{next(_numbers)}")
            try:
                return Ingest(path, "", 0, lasting=False)
            except InUse:
                continue  # somebody's `clean` took it for garbage before it was locked

    def name(self, ingest: Ingest, digest: Digest) -> None:
        """Says which blob it has turned out to be; the caller has proven that."""
        ingest.final = self.path(digest)


def _clean(path: str) -> None:
    lock = Lock(path)
    if lock.try_acquire():
        lock.release(remove=True)


def _is_incoming(entry: os.DirEntry[str]) -> bool:
    """Whether it is of a blob whose digest nobody knows yet, which has no worth without the process that makes it."""
    return entry.name.startswith("incoming.") and entry.is_file(follow_symlinks=False)


def _partial(entry: os.DirEntry[str]) -> Digest | None:
    """Which blob it is a part of, if it is one."""
    if not entry.is_file(follow_symlinks=False):
        return None
    try:
        return Digest.parse(entry.name.replace("-", ":", 1))
    except InvalidDigest:
        return None


class Ingest:
    """A blob that is arriving: a file that only grows, locked while this object is open."""

    def __init__(self, path: str, final: str, size: int, *, lasting: bool = True) -> None:
        self.path = path
        self._lasting = lasting  # whether somebody may go on with what has arrived, when it is closed
        self.final = final  # where the blob will stand
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except IsADirectoryError as error:
            raise in_the_way(path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_at(fd, path):
                raise BlockingIOError
            self.present = os.fstat(fd).st_size
            if self.present > size:
                os.ftruncate(fd, 0)
                self.present = 0
        except BlockingIOError as error:
            os.close(fd)
            raise InUse(f"{os.path.basename(path)} is being fetched by another process; try again") from error
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    @property
    def parent(self) -> str:
        """The directory that the blob's name will stand in."""
        return os.path.dirname(self.final)

    def fileno(self) -> int:
        """The open file, for whoever follows it."""
        return self._fd

    def commit(self) -> None:
        """Gives the blob its name. The caller has proven size and digest, and flushed the file if that is due."""
        with suppress(FileExistsError):
            os.mkdir(self.parent, 0o700)
        try:
            os.rename(self.path, self.final)
        except IsADirectoryError as error:
            raise in_the_way(self.final) from error

    def discard(self) -> None:
        """Forgets what has arrived: the bytes are not this blob's."""
        if is_at(self._fd, self.path):
            os.unlink(self.path)

    def close(self) -> None:
        """Gives the lock back. What has arrived stays for the next attempt, unless that is nothing or nobody's."""
        if self._fd >= 0:
            if not self._lasting or os.fstat(self._fd).st_size == 0:
                self.discard()
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Ingest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
