"""Which system calls a container may make: a profile of Docker's form, turned into a BPF program by libseccomp.

`seccomp.json` is the profile for whoever says nothing: it allows what Docker's allows. To compile one takes 40 ms, so
programs are kept; to find the kept one takes half a millisecond.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pullpipe.errors import BadConfiguration, KernelRefused
from store import Digest, durable

_FORMAT = 2  # of the kept programs: another one when `seccomp_compiler` makes others of the same profile
_BUILTIN = os.path.join(os.path.dirname(__file__), "seccomp.json")
_PROFILE_LIMIT = 1 << 20  # bytes


def program(profile: str, capabilities: int, kept: str) -> bytes:
    """The BPF program for a container whose root has these capabilities; empty for the profile `unconfined`.

    `profile` is a file's path, or `builtin`. `kept` is the directory of kept programs, ours alone. Raises
    `BadConfiguration` for a profile that cannot be used, `KernelRefused` where libseccomp is missing.
    """
    if profile == "unconfined":
        return b""
    text = _text(profile)
    library, version = _library()
    key = (_FORMAT, version, os.uname().release, os.uname().machine, capabilities)
    path = os.path.join(kept, "seccomp-" + Digest.of(repr(key).encode() + text).hex)
    if (found := _read(path)) is not None:
        return found
    from pullpipe.runner import seccomp_compiler

    with _refusing(profile):
        compiled = seccomp_compiler.compiled(text, capabilities, library)
    _keep(path, compiled)
    return compiled


def section(profile: str, capabilities: int) -> dict[str, Any] | None:
    """The profile as the runtime specification has it, for a container whose root has these capabilities; None for
    `unconfined`. Raises as `program`."""
    if profile == "unconfined":
        return None
    from pullpipe.runner import seccomp_compiler

    with _refusing(profile):
        return seccomp_compiler.resolved(_text(profile), capabilities, _library()[0])


def _text(profile: str) -> bytes:
    try:
        with open(_BUILTIN if profile == "builtin" else profile, "rb") as file:
            text = file.read(_PROFILE_LIMIT + 1)
    except OSError as error:
        raise BadConfiguration(f"the seccomp profile {profile} cannot be read: {error.strerror}") from error
    if len(text) > _PROFILE_LIMIT:
        raise BadConfiguration(f"the seccomp profile {profile} is none that Docker would take: it is larger than 1 MiB")
    return text


@contextmanager
def _refusing(profile: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadConfiguration(f"the seccomp profile {profile} is none that Docker would take: {error}") from error


def _read(path: str) -> bytes | None:
    """A kept program, if there is one and it is whole."""
    try:
        with open(path, "rb") as file:
            digest, found = file.read(32), file.read()
    except OSError:
        return None
    return found if bytes.fromhex(Digest.of(found).hex) == digest else None


def _keep(path: str, compiled: bytes) -> None:
    """For the next time, if that is possible. Two that do so at once may spoil it, and `_read` would tell."""
    with suppress(OSError):
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        durable.write_file(path, bytes.fromhex(Digest.of(compiled).hex) + compiled, durable=False)


def _library() -> tuple[ctypes.CDLL, tuple[int, ...]]:
    """libseccomp and its version."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
        library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
        return library, tuple(library.seccomp_version().contents)
    except (OSError, AttributeError) as error:
        raise KernelRefused(
            "system calls cannot be filtered without libseccomp 2.3 or newer: install it (libseccomp2, libseccomp), "
            "or run without the filter: --security-opt seccomp=unconfined"
        ) from error
