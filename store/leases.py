"""Leases: what no record needs yet, and what one is about to need.

A pull makes its layers one by one, and its record last. What it needs of the store it says at its beginning, and no
sweep removes that as long as it lives.

A push brings its blobs one by one, minutes apart, and its manifest last; of those that are here already it only asks
whether they are. No lock can be held for so long. So whoever tells a client that a blob is here leases it: for a day
from then on, longer than any push takes, no sweep removes it.

    leases/<algorithm>-<hex>    empty; its time of modification is when the lease began
    staging/needed.….lock       a pull's digests, a line each; locked by it
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from store.digest import Digest
from store.errors import InvalidDigest
from store.locks import Lock, exists

_NEEDED = "needed."
_numbers = itertools.count()
LENGTH = 24 * 3600.0  # seconds


class Leases:
    """The leases of the store at `root`."""

    def __init__(self, root: str) -> None:
        self._directory = os.path.join(root, "leases")
        self._staging = os.path.join(root, "staging")

    @contextmanager
    def needed(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Leases blobs and trees, there or not, for the length of the block, or until this process dies. The caller
        holds the store shared when it enters. Raises `OSError` when there is no room to say so."""
        lock = Lock(os.path.join(self._staging, f"{_NEEDED}{os.getpid()}.{next(_numbers)}.lock"))
        lock.acquire()
        try:
            lock.leave("\n".join(map(str, digests)).encode())
            yield
        finally:
            lock.release(remove=True)

    def grant(self, digest: Digest) -> None:
        """Leases the blob, or prolongs its lease. The caller holds the store shared, and has seen the blob."""
        with suppress(FileExistsError):
            os.mkdir(self._directory, 0o700)  # a store that an older program made has none
        path = os.path.join(self._directory, f"{digest.algorithm}-{digest.hex}")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.utime(fd)
        finally:
            os.close(fd)

    def current(self) -> set[Digest]:
        """The blobs and trees that must stay."""
        found = self._needed()
        for path in self._paths():
            with suppress(FileNotFoundError, InvalidDigest):
                if not _is_over(path):
                    found.add(Digest.parse(os.path.basename(path).replace("-", ":", 1)))
        return found

    def _needed(self) -> set[Digest]:
        found: set[Digest] = set()
        for name in os.listdir(self._staging):
            path = os.path.join(self._staging, name)
            if name.startswith(_NEEDED) and Lock(path).is_held():
                # One that is being written ends anywhere. A sweep, which has the store exclusively, meets none such.
                with suppress(FileNotFoundError, InvalidDigest), open(path, encoding="ascii") as file:
                    found.update(map(Digest.parse, file.read().split()))
        return found

    def forget(self) -> None:
        """Removes the leases that are over. The caller holds the store exclusively."""
        for path in self._paths():
            if _is_over(path):
                os.unlink(path)

    def _paths(self) -> list[str]:
        names = os.listdir(self._directory) if exists(self._directory) else ()
        return [os.path.join(self._directory, name) for name in names]


def _is_over(path: str) -> bool:
    return time.time() - os.stat(path).st_mtime >= LENGTH
