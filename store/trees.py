"""Directory trees by digest: unpacked layers, and what is made of them.

    <kind>/<algorithm>/<hex>/fs/             the tree
    <kind>/<algorithm>/<hex>/layer.json …    what was recorded when it was made
    <kind>/<algorithm>/<hex>/fs.digest       the digest of the tree, where it may not be possible to make it again

A tree is written under `staging/` and published by one rename, so one that is visible is whole, and never changes. One
that the disk has damaged is replaced as a whole, by one exchange.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Generic, Protocol, TypeVar

from store import durable
from store.compare import differences, tree_digest
from store.digest import Digest
from store.errors import UNREADABLE, Corrupt, NotInStore
from store.listing import in_the_way, listed, status_of
from store.locks import DirectoryLock, Lock, exists, is_at
from store.removal import REMOVED, Doomed, each_of, remove_tree
from store.sizes import disk_usage


class Info(Protocol):
    """What is recorded of a tree."""

    def to_json(self) -> bytes:
        """The document on disk."""


_I = TypeVar("_I", bound=Info)
_numbers = itertools.count()
_SEAL = "fs.digest"


class Trees(Generic[_I]):
    """The trees of one kind, in the store at `root`.

    `parse` reads a record; it raises `ValueError`, `KeyError` or `TypeError` for what is none.
    """

    def __init__(self, root: str, kind: str, document: str, parse: Callable[[bytes], _I]) -> None:
        self._kind = kind
        self._document = document
        self._directory = os.path.join(root, kind)
        self._staging = os.path.join(root, "staging")
        self._parse = parse

    def files(self, digest: Digest) -> str:
        """The directory with the tree."""
        return os.path.join(self._path(digest), "fs")

    def _path(self, digest: Digest) -> str:
        return os.path.join(self._directory, digest.algorithm, digest.hex)

    def __contains__(self, digest: Digest) -> bool:
        return status_of(self._path(digest), tree=True) is not None

    def __iter__(self) -> Iterator[Digest]:
        return iter(listed(self._directory, trees=True).digests)

    def strays(self) -> list[str]:
        """The paths of what is no tree."""
        return listed(self._directory, trees=True).strays

    def info(self, digest: Digest) -> _I:
        """What was recorded of the tree. Raises `NotInStore` or `Corrupt`."""
        path = os.path.join(self._path(digest), self._document)
        try:
            with open(path, "rb") as file:
                return self._parse(file.read())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotInStore(f"{path} is not in the store; pull the image again") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Corrupt(f"{path} is damaged; `pullpipe repair` makes it anew") from error
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise Corrupt(f"{path} cannot be read ({error.strerror}); `pullpipe repair` makes it anew") from error

    def disk_usage(self, digest: Digest) -> int:
        """Bytes on disk of the tree and its record, which each of its files is looked at for."""
        return disk_usage(self._path(digest))

    def problem(self, digest: Digest) -> str:
        """What is wrong with the tree as far as its outside tells; empty when that is nothing."""
        if digest not in self:
            return "it is not there"
        if os.path.islink(self.files(digest)) or not os.path.isdir(self.files(digest)):
            return "its directory fs is not there"
        try:
            self.info(digest)
        except NotInStore:
            return f"its {self._document} is not there"
        except Corrupt:
            return f"its {self._document} is damaged"
        return ""

    def difference(self, digest: Digest, made: str, info: _I) -> str:
        """How the tree differs from the one at `made`, or its record from `info`; empty when not at all.

        A tree that is removed meanwhile is nobody's any more, and does not differ. Raises `OSError`.
        """
        with pinned([self.files(digest)]) as in_place:
            try:
                if self.info(digest) != info:
                    return f"its {self._document} differs" if in_place() else ""
                lines = differences(self.files(digest), made)
                first, more = next(lines, ""), sum(1 for _ in lines)
            except (FileNotFoundError, NotInStore):
                if in_place():
                    raise
                return ""
            except OSError as error:
                if error.errno not in UNREADABLE:
                    raise
                return f"it cannot be read: {error.strerror}"
            return (f"{first} (and {more} more)" if more else first) if in_place() else ""

    def broken_seal(self, digest: Digest) -> str | None:
        """What the digest tells that was taken of the tree: how it is not as it was; empty when it is. None when there
        is no such digest, or the tree is removed meanwhile. Raises `OSError`."""
        try:
            with open(os.path.join(self._path(digest), _SEAL), encoding="ascii", errors="replace") as file:
                sealed = file.read().strip()
            return (
                "" if sealed == str(tree_digest(self.files(digest))) else "its files are not those that were unpacked"
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return f"it cannot be read: {error.strerror}"

    def pinned(self, digests: Iterable[Digest]) -> AbstractContextManager[Callable[[], bool]]:
        """Tells, of trees that are relied on without a lock, whether all are there that were at the start."""
        return pinned([self._path(digest) for digest in digests])

    def lock(self, digest: Digest) -> Lock:
        """The lock of whoever makes this tree, so that it is made once. Release it with `remove=True`."""
        return Lock(self._staged(digest) + ".lock")

    def _staged(self, digest: Digest) -> str:
        return os.path.join(self._staging, f"{self._kind}-{digest.algorithm}-{digest.hex}")

    def stage(self, digest: Digest) -> Staging[_I]:
        """An empty directory to make this tree in. The caller holds the tree's lock.

        What an earlier owner of the lock left when it died is removed first.
        """
        path = self._staged(digest)
        remove_tree(path)
        return Staging(path, self._path(digest), self._document, None)

    def stage_alone(self, digest: Digest, *, replace: bool = False) -> Staging[_I]:
        """The same without the tree's lock: whoever else makes it does so elsewhere, and the first to publish wins.

        With `replace` it takes the place of the tree that is there, which must be nobody's at that moment.
        """
        path = f"{self._staged(digest)}.{os.getpid()}.{next(_numbers)}"
        lock = Lock(path + ".lock")
        lock.acquire()
        remove_tree(path)
        return Staging(path, self._path(digest), self._document, lock, replace=replace)

    def take_away(self, digest: Digest) -> Doomed:
        """Takes the tree out of sight in one step. The caller holds `use.lock`, and removes the files without it."""
        return Doomed(self._path(digest), f"{self._staged(digest)}.{os.getpid()}.{next(_numbers)}")


class Staging(Generic[_I]):
    """A tree in the making."""

    def __init__(self, path: str, final: str, document: str, lock: Lock | None, *, replace: bool = False) -> None:
        self.path = path
        self.files = os.path.join(path, "fs")
        self._final = final
        self._document = document
        self._lock = lock
        self._replace = replace
        os.mkdir(path, 0o700)
        os.mkdir(self.files)
        os.chmod(self.files, 0o755)  # whatever the umask is: it is, or stands for, the root of an image

    @property
    def parent(self) -> str:
        """The directory that the tree's name will stand in."""
        return os.path.dirname(self._final)

    def describe(self, info: _I) -> None:
        """Writes the record: the tree is complete, and proven to be what its digest says."""
        # Not flushed by itself: publishing flushes the whole file system once, before the rename.
        durable.write_file(os.path.join(self.path, self._document), info.to_json(), durable=False)

    def seal(self) -> None:
        """Notes the digest of the complete tree, for `Trees.broken_seal`. It reads all of it."""
        data = f"{tree_digest(self.files)}\n".encode()
        durable.write_file(os.path.join(self.path, _SEAL), data, durable=False)

    def commit(self) -> None:
        """Gives the tree its name, unless somebody did so meanwhile. The caller has flushed it if that is due."""
        with suppress(FileExistsError):
            os.mkdir(self.parent, 0o700)
        if self._replace and exists(self._final):
            durable.exchange(self.path, self._final)
            return
        try:
            os.rename(self.path, self._final)
        except NotADirectoryError as error:
            raise in_the_way(self._final) from error
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def discard(self) -> None:
        """Removes the tree in the making, if it has not been published, or else what it has replaced."""
        remove_tree(self.path)
        if self._lock is not None:
            self._lock.release(remove=True)


def clean(root: str) -> None:
    """Removes from `staging/` what a crash or kill left there: everything whose lock nobody holds.

    It goes on past what cannot be removed, and raises the first such `OSError` in the end.
    """
    staging = os.path.join(root, "staging")
    each_of(partial(_clean, os.path.join(staging, name)) for name in os.listdir(staging))


def _clean(path: str) -> None:
    with _unowned(path) as free:
        if free and not path.endswith(".lock"):
            remove_tree(path)


@contextmanager
def _unowned(path: str) -> Iterator[bool]:
    """Whether nobody is at what stands at this path in `staging/`; nobody begins with it within the block."""
    removed = path.endswith(REMOVED)
    lock = DirectoryLock(path) if removed else Lock(path.removesuffix(".lock") + ".lock")
    try:
        free = lock.try_acquire()
    except FileNotFoundError:  # what was being removed is gone
        free = False
    try:
        yield free
    finally:
        lock.release(remove=not removed)


@contextmanager
def scratch(root: str) -> Iterator[str]:
    """See `Store.scratch`."""
    path = os.path.join(root, "staging", f"scratch.{os.getpid()}.{next(_numbers)}")
    lock = Lock(path + ".lock")
    lock.acquire()
    try:
        remove_tree(path)
        os.mkdir(path, 0o700)
        try:
            yield path
        finally:
            os.rmdir(path)  # never what might still be mounted there
    finally:
        lock.release(remove=True)


@contextmanager
def pinned(directories: Sequence[str]) -> Iterator[Callable[[], bool]]:
    """Tells, of trees that are being read without a lock, whether none has been removed or replaced since the start."""
    open_ones: dict[str, int] = {}
    try:
        for path in directories:
            with suppress(FileNotFoundError, NotADirectoryError):
                open_ones[path] = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        yield lambda: all(path in open_ones and is_at(open_ones[path], path) for path in directories)
    finally:
        for fd in open_ones.values():
            os.close(fd)


def leftovers(root: str) -> list[str]:
    """The paths of what `clean` would remove, but for locks."""
    staging = os.path.join(root, "staging")
    found = []
    for name in sorted(os.listdir(staging)):
        path = os.path.join(staging, name)
        with _unowned(path) as free:
            if free and not name.endswith(".lock"):
                found.append(path)
    return found
