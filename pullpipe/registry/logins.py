"""Logging in and out: what `credentials` finds is put into auth files, and taken out of them.

A file keeps all else that it has, is replaced in one step, and is then readable by its owner alone. Everything here
raises `BadConfiguration` when the file, or a helper that it names, cannot be used.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pullpipe.errors import BadConfiguration
from pullpipe.registry.credentials import AuthFile, Credentials, plain_key
from pullpipe.registry.helpers import Helper
from store.durable import write_file
from store.locks import Lock

_T = TypeVar("_T")


def store(path: str, registry: str, credentials: Credentials) -> str:
    """Puts a user's name and password for the registry into the file, or into the helper that it names for that.

    Returns what has them now: the file, or the helper's program.
    """
    with _changing(path) as file:
        if named := file.helper(registry):
            helper, server = named
            _run(helper.store(server, credentials.user, credentials.password))
            entry, key = {}, server  # as Docker: it tells of a login, and no secret is left of an earlier one
        else:
            entry, key = {"auth": credentials.header().removeprefix("Basic ")}, registry
        file.auths.update(dict.fromkeys([*file.keys(registry)] or [key], entry))
        return helper.program if named else path


def erase(path: str, registry: str) -> bool:
    """Takes the registry's credentials out of the file, and out of the helper that it names for that.

    Those for single repositories stay. False when there were none.
    """
    if not os.path.exists(path):
        return False
    with _changing(path) as file:
        erased = _erase_in_helper(file, registry)
        for key in [*file.keys(registry)]:
            del file.auths[key]
            erased = True
        return erased


def erase_all(path: str) -> list[str]:
    """Takes all credentials out of the file, and those that it tells of out of its helpers.

    Returns the registries that they were for.
    """
    if not os.path.exists(path):
        return []
    with _changing(path) as file:
        entries = {plain_key(key).partition("/")[0] for key in file.auths}
        helped = {
            registry for registry in {*entries, *map(plain_key, file.helpers)} if _erase_in_helper(file, registry)
        }
        file.auths.clear()
        return sorted(entries | helped)


def erase_in(helper: Helper, registry: str) -> bool:
    """Has a helper that keeps any registry's credentials forget this one's; False when it had none."""
    return _run(helper.erase(registry))


def _erase_in_helper(file: AuthFile, registry: str) -> bool:
    named = file.helper(registry)
    return named is not None and _run(named[0].erase(named[1]))


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    import asyncio  # which only those pay who have a helper

    return asyncio.run(work)


@contextmanager
def _changing(path: str) -> Iterator[AuthFile]:
    """The file, which is written when the block has changed it. Two that do this at once wait for each other."""
    path = os.path.realpath(path)  # a symlink stays one
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        if os.path.lexists(path) and not stat.S_ISREG(os.stat(path).st_mode):
            raise BadConfiguration(f"{path} is no file; name one by --authfile")
        lock = Lock(f"{path}.lock")
        lock.acquire()
        try:
            file = AuthFile(path)
            before = json.dumps(file.document)
            yield file
            if file.auths:
                file.document["auths"] = file.auths
            if json.dumps(file.document) != before:
                owner = os.stat(path) if os.path.exists(path) else None
                write_file(path, json.dumps(file.document, indent="\t").encode())
                if owner and owner.st_uid != os.geteuid():
                    os.chown(path, owner.st_uid, owner.st_gid)  # root, at work on a user's file
        finally:
            lock.release(remove=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadConfiguration(f"cannot write {path}: {reason}; mend that, or name another by --authfile") from error
