"""Who else could change the store, or reach into it: nobody, or it is refused.

The store's root is its owner's alone (mode 0700), for layers hold setuid programs, and files that say that they are
root's. On the way to it nobody but root and the owner may be able to put another directory in its place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable
from contextlib import suppress

from store.errors import UnusableRoot
from store.locks import exists
from store.namespace import in_user_namespace

_OVERFLOW = 65534  # as whom a user namespace shows those who are not in it
_LINKS = 40  # symlinks on the way, as the kernel allows


def check(root: str, directories: Iterable[str], files: Iterable[str], trusted: Iterable[int]) -> None:
    """Looks at the root, if it is there, and at those of its directories and files that are.

    `trusted` are ids of users who may put another directory in its place. Raises `UnusableRoot`.
    """
    _check_way(root, {0, os.geteuid(), *trusted})
    try:
        found = os.stat(root)
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UnusableRoot(f"{root} is below a file; name another directory with --root") from error
    if not stat.S_ISDIR(found.st_mode):
        raise UnusableRoot(f"{root} is not a directory; name another one with --root")
    if found.st_uid != os.geteuid():
        remedy = "name one of your own with --root"
        if found.st_uid == 0:
            remedy = f"use sudo, or {remedy}"
        elif os.geteuid() == 0:
            remedy = f"work with it as that user, or {remedy}"
        raise UnusableRoot(f"the store at {root} belongs to user {found.st_uid}; {remedy}")
    for name in directories:
        check_part(os.path.join(root, name), stat.S_IFDIR)
    for name in files:
        check_part(os.path.join(root, name), stat.S_IFREG)


def check_part(path: str, *kinds: int) -> None:
    """Raises `UnusableRoot` when something is there that is not of these kinds, or not its owner's who opens the store:
    a symlink that somebody has prepared would lead what is written to it elsewhere."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_IFMT(found.st_mode) not in kinds or found.st_uid != os.geteuid():
        what = "directory" if kinds == (stat.S_IFDIR,) else "file"
        raise UnusableRoot(f"{path} is not a {what} of the store's owner; name another store with --root")


def check_closed(root: str) -> None:
    """Raises `UnusableRoot` when others may enter the root."""
    mode = stat.S_IMODE(os.stat(root).st_mode)
    if mode & 0o077:
        raise UnusableRoot(
            f"others may enter the store at {root} (mode {mode:04o}), and run the setuid programs in its layers; "
            f"`chmod 700 {root}`"
        )


def _check_way(root: str, trusted: set[int]) -> None:
    """Nobody else may be able to change what the path names: by a directory on the way, or by a symlink."""
    if in_user_namespace():
        trusted.add(_OVERFLOW)
    at, names, links = "/", _names(root), 0
    while names:
        name = names.pop()
        path = os.path.join(at, name)
        above = os.stat(at)
        found = os.lstat(path) if exists(path) else None
        sticky = above.st_mode & stat.S_ISVTX and (found is None or found.st_uid in trusted)
        if above.st_uid not in trusted or (_others_may_write(above, trusted) and not sticky):
            raise UnusableRoot(
                f"others may change {at}, and so put another directory in place of {root}; name another one with --root"
            )
        if found is None:
            return
        if not stat.S_ISLNK(found.st_mode):
            at = path
            continue
        links += 1
        if links > _LINKS:
            raise UnusableRoot(f"the way to {root} has symlinks in a circle; name another directory with --root")
        target = os.readlink(path)
        names += _names(target)
        if target.startswith("/"):
            at = "/"


def _others_may_write(found: os.stat_result, trusted: Collection[int]) -> bool:
    """By its mode, and who is in its group: that of a user, with nobody else in it, is as good as the user."""
    if found.st_mode & stat.S_IWOTH or not found.st_mode & stat.S_IWGRP:
        return bool(found.st_mode & stat.S_IWOTH)
    if in_user_namespace() and found.st_gid == _OVERFLOW:
        return False
    import grp  # as seldom as it is asked, for names may come from far away
    import pwd

    try:
        group = grp.getgrgid(found.st_gid)
    except KeyError:
        return True
    users = set()
    for uid in trusted:
        with suppress(KeyError):
            users.add(pwd.getpwuid(uid).pw_name)
    return not users.issuperset([group.gr_name, *group.gr_mem])


def _names(path: str) -> list[str]:
    """Of its components, the last first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]
