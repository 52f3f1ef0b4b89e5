"""Tokens that registries gave, kept on disk for the next run until they expire.

The file is a table in JSON. It is read without a lock: it is only ever replaced as a whole.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from store import Digest
from store.durable import write_file
from store.locks import held

_MARGIN = 10  # seconds before its end in which a token counts as expired: it still has to get there
_SIZE_LIMIT = 1 << 20  # bytes of the file


class _Row(NamedTuple):
    registry: str
    repository: str
    owner: str  # a hash of whom it was given to; empty for nobody
    token: str
    expires: float  # seconds since the epoch: the clock that all runs share, over reboots


class TokenCache:
    """The tokens in the file `path`, which only its owner can read; with an empty path, none is kept.

    What cannot be read, is broken, or not ours alone counts as empty, and is left alone. Nothing here raises.
    """

    def __init__(self, path: str = "") -> None:
        self._path = path

    def get(self, registry: str, repository: str, *, owner: str) -> str | None:
        """A token for pulling from the repository that is still good for a while, or None.

        `owner` is what tells whose it is, such as user and secret: it is not kept. It is empty for nobody's.
        """
        with suppress(OSError, ValueError):
            for row in self._read():
                if (row.registry, row.repository) == (registry, repository) and row.owner == _hash(owner, row.token):
                    return row.token
        return None

    def put(self, registry: str, repository: str, token: str, seconds: float, *, owner: str) -> None:
        """Keeps a token that expires in so many seconds. What cannot be written is not kept."""
        new = _Row(registry, repository, _hash(owner, token), token, time.time() + seconds - _MARGIN)

        def is_replaced(row: _Row) -> bool:
            return row[:2] == new[:2] and row.owner == _hash(owner, row.token)

        if seconds > _MARGIN:
            self._change(lambda rows: [*(row for row in rows if not is_replaced(row)), new])

    def forget(self, registry: str, repository: str = "") -> None:
        """Forgets the registry's tokens, or those of one repository."""
        if os.path.lexists(self._path):
            self._change(
                lambda rows: [row for row in rows if row.registry != registry or repository not in ("", row.repository)]
            )

    def _change(self, change: Callable[[list[_Row]], list[_Row]]) -> None:
        """Replaces the file. The lock keeps what others put there meanwhile, and what they forgot away."""
        if not self._path:
            return
        directory = os.path.dirname(self._path)
        with suppress(OSError, ValueError):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            found = os.stat(directory)
            if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return
            with held(f"{self._path}.lock"):
                try:
                    rows = self._read()
                except FileNotFoundError:
                    rows = []
                write_file(self._path, json.dumps(change(rows)).encode(), durable=False)

    def _read(self) -> list[_Row]:
        """Those that have not expired; none when it is no table of tokens. `OSError` means to leave the file alone."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # it may be a pipe that nobody writes to
        with open(os.open(self._path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError("not a file of ours alone")
            data = file.read(_SIZE_LIMIT + 1)
        now = time.time()
        try:
            rows = [_Row(*row) for row in json.loads(data)] if len(data) <= _SIZE_LIMIT else []
            return [row for row in rows if row.expires > now and row.token.isascii() and row.token.isprintable()]
        except (ValueError, TypeError, AttributeError, RecursionError):
            return []


def _hash(owner: str, token: str) -> str:
    """The token is its salt."""
    return Digest.of(f"{token}\0{owner}".encode()).hex if owner else ""
