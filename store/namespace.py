"""Whose root we are, and who else."""

from __future__ import annotations

import os
from functools import cache

_user: int | None = None


def in_user_namespace() -> bool:
    """Whether our root is not the machine's: such a root may not make devices or set `trusted` attributes."""
    return _user is not None or _began_in_one()


@cache
def _began_in_one() -> bool:
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def is_machines_root() -> bool:
    """Whether we are root, and no user namespace's."""
    return os.geteuid() == 0 and not in_user_namespace()


def user() -> int:
    """The id of who started this program; it may have entered a user namespace since, and be root there."""
    return os.getuid() if _user is None else _user


def has(kind: str, number: int) -> bool:
    """Whether there is such an id in our user namespace; `kind` is "user" or "group"."""
    return any(first <= number < first + count for first, count in _ids(kind))


@cache
def _ids(kind: str) -> list[tuple[int, int]]:
    """(first, how many)"""
    with open(f"/proc/self/{kind[0]}id_map", encoding="ascii") as file:
        return [(int(first), int(count)) for first, _, count in map(str.split, file)]


def entered(uid: int) -> None:
    """To be told when this program has entered a user namespace, with its id outside."""
    global _user
    _user = uid
    _ids.cache_clear()
