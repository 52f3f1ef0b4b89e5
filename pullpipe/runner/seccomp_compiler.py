"""Turning a seccomp profile of Docker's form into a BPF program, by libseccomp. `seccomp` keeps the programs."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from pullpipe.runner.capabilities import names_of

# <seccomp.h>
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_NUMBER = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
_REFUSING = ("SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_ERRNO")
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")  # from 1 on
_UNKNOWN = -1  # __NR_SCMP_ERROR
_CTL_OPTIMIZE, _BINARY_TREE = 8, 2  # of 2.5; an older one makes a longer way through the same rules
# Machines as profiles' `arches` call them, by what libseccomp calls them.
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}

# <linux/bpf_common.h>, <linux/seccomp.h>
_LOAD, _JUMP, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_NOT_LESS, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x06
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_X32 = 0x4000003E  # libseccomp's number; the kernel says x86_64, and has this bit in the calls' numbers:
_X32_BIT = 0x40000000


class _Argument(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (("index", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Rule(NamedTuple):
    names: list[str]
    action: str
    number: int  # what an action returns to the caller, where it does
    arguments: list[_Argument]


# The profile: Docker's rules for reading it.


def compiled(text: bytes, capabilities: int, functions: ctypes.CDLL) -> bytes:
    """The BPF program of a profile, for a container whose root has these capabilities; `functions` is libseccomp.

    Raises `ValueError`, `KeyError`, `TypeError`, `AttributeError` or `RecursionError` when it is no such profile.
    """
    profile = json.loads(text)
    if not isinstance(profile, dict):
        raise ValueError("it is no JSON object")
    library = _Library(functions)
    default = profile["defaultAction"]
    refusal = int(profile.get("defaultErrnoRet", errno.EPERM))
    rules = [rule for entry in profile.get("syscalls") or () for rule in _rules(library, entry, names_of(capabilities))]
    names = {name for entry in profile.get("syscalls") or () for name in _names(entry)}
    architectures = _architectures(library, profile)
    filter_ = library.filter(_action(default, refusal), architectures)
    try:
        for rule in rules:
            action = _action(rule.action, rule.number)
            for name in rule.names:
                if action != _action(default, refusal):  # libseccomp takes no rule that changes nothing
                    filter_.add(name, action, rule.arguments)
        exported = filter_.export()
    finally:
        filter_.close()
    return (_unknown_calls(library, architectures, names) if default in _REFUSING else b"") + exported


def resolved(text: bytes, capabilities: int, functions: ctypes.CDLL) -> dict[str, Any]:
    """The profile for such a container on this machine, without conditions, as the runtime specification has it.

    Raises as `compiled` where it comes across what is none.
    """
    profile = json.loads(text)
    library = _Library(functions)
    entries = [entry for entry in profile.get("syscalls") or () if _applies(library, entry, names_of(capabilities))]
    names = {library.architecture(name): name for name in _architecture_names(library, profile)}
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": int(profile.get("defaultErrnoRet", errno.EPERM)),
        "architectures": list(names.values()),
        "syscalls": [
            {"names": _names(entry), **{key: entry[key] for key in ("action", "errnoRet", "args") if entry.get(key)}}
            for entry in entries
        ],
    }


def _action(name: str, number: int) -> int:
    if name not in _ACTIONS:
        raise ValueError(f"there is no action {name!r}")
    return _ACTIONS[name] | (number & 0xFFFF if name in _WITH_NUMBER else 0)


def _names(entry: dict[str, Any]) -> list[str]:
    return [*(entry.get("names") or ()), *filter(None, (entry.get("name"),))]


def _rules(library: _Library, entry: dict[str, Any], capabilities: list[str]) -> list[_Rule]:
    """What an entry comes to here and for these capabilities."""
    if not _applies(library, entry, capabilities):
        return []
    number = entry.get("errnoRet")
    number = errno.EPERM if number is None else int(number)
    arguments = [_argument(one) for one in entry.get("args") or ()]
    # Two conditions on one argument are alternatives: libseccomp takes each in a rule of its own.
    if len({one.index for one in arguments}) < len(arguments):
        return [_Rule(_names(entry), entry["action"], number, [one]) for one in arguments]
    return [_Rule(_names(entry), entry["action"], number, arguments)]


def _applies(library: _Library, entry: dict[str, Any], capabilities: list[str]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    return all(_conditions(library, includes, capabilities)) and not any(_conditions(library, excludes, capabilities))


def _conditions(library: _Library, conditions: dict[str, Any], capabilities: list[str]) -> Iterator[bool]:
    """Of each condition, whether it holds."""
    for key, value in conditions.items():
        if key == "caps":
            yield from (one in capabilities for one in value or ())
        elif key == "arches":
            yield from (library.machine in value for _ in value[:1])
        elif key == "minKernel":
            yield from (_version(os.uname().release) >= _version(value) for _ in value[:1])
        else:
            raise ValueError(f"there is no condition {key!r}")


def _version(text: str) -> tuple[int, ...]:
    match = re.match(r"(\d+)\.(\d+)", text)
    if not match:
        raise ValueError(f"{text!r} is no kernel version")
    return int(match[1]), int(match[2])


def _argument(entry: dict[str, Any]) -> _Argument:
    operator = str(entry["op"]).removeprefix("SCMP_CMP_")
    if operator not in _OPERATORS:
        raise ValueError(f"there is no operator {entry['op']!r}")
    return _Argument(entry["index"], _OPERATORS.index(operator) + 1, entry["value"], entry.get("valueTwo") or 0)


def _architectures(library: _Library, profile: dict[str, Any]) -> list[int]:
    """This machine's, and those whose programs it runs besides, if the profile says so; libseccomp's numbers."""
    found = [library.native, *map(library.architecture, _architecture_names(library, profile))]
    return list(dict.fromkeys(one for one in found if one))


def _architecture_names(library: _Library, profile: dict[str, Any]) -> list[str]:
    """Those of them that the profile names."""
    found = []
    for entry in profile.get("archMap") or ():
        if library.architecture(entry["architecture"]) == library.native:
            found += [entry["architecture"], *(entry.get("subArchitectures") or ())]
    return found + list(profile.get("architectures") or ())


def _unknown_calls(library: _Library, architectures: list[int], names: set[str]) -> bytes:
    """To go before the filter: calls with higher numbers than any that the profile names are answered as by a kernel
    that does not have them. C libraries try a new call and, when there is none, do it in another way."""
    instructions = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture in architectures:
        highest = max((library.number(architecture, name) for name in names), default=_UNKNOWN)
        if highest < 0 or architecture == _X32:
            continue
        instructions += [
            (_JUMP_EQUAL, 0, 5, architecture),
            (_LOAD, 0, 0, _NUMBER),
            (_JUMP_NOT_LESS, 1, 0, _X32_BIT),
            (_JUMP_GREATER, 1, 0, highest),
            (_JUMP, 0, 0, 0),  # to the filter
            (_RETURN, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS),
        ]
    for place, (code, *_) in enumerate(instructions):
        if code == _JUMP:
            instructions[place] = (_JUMP, 0, 0, len(instructions) - place - 1)
    return b"".join(struct.pack("=HBBI", *one) for one in instructions)


# libseccomp.


class _Library:
    """What of libseccomp is needed."""

    def __init__(self, functions: ctypes.CDLL) -> None:
        self.functions = functions
        functions.seccomp_init.restype = ctypes.c_void_p
        functions.seccomp_arch_native.restype = ctypes.c_uint32
        functions.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        self.native = int(functions.seccomp_arch_native())

    @property
    def machine(self) -> str:
        """This machine, as profiles call it."""
        names = ("x86_64", "x86", "aarch64", "arm", "ppc64le", "s390x", "riscv64", "loongarch64")
        native = next((name for name in names if self.architecture(name) == self.native), "")
        return _MACHINES.get(native, native)

    def architecture(self, name: str) -> int:
        """libseccomp's number of it, which is the kernel's but for x32; 0 if it knows it not."""
        return int(self.functions.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode()))

    def number(self, architecture: int, name: str) -> int:
        """A call's number there; negative if there is none."""
        token = ctypes.c_uint32(architecture)
        return int(self.functions.seccomp_syscall_resolve_name_arch(token, name.encode()))

    def filter(self, default: int, architectures: list[int]) -> _Filter:
        return _Filter(self, default, architectures)


class _Filter:
    """A filter in the making."""

    def __init__(self, library: _Library, default: int, architectures: list[int]) -> None:
        self._library = library
        self._functions = library.functions
        self._context = ctypes.c_void_p(self._functions.seccomp_init(ctypes.c_uint32(default)))
        if not self._context:
            raise ValueError("its defaultAction is not taken")
        self._functions.seccomp_attr_set(self._context, _CTL_OPTIMIZE, ctypes.c_uint32(_BINARY_TREE))
        for architecture in architectures:
            if architecture != library.native:
                self._functions.seccomp_arch_add(self._context, ctypes.c_uint32(architecture))

    def add(self, name: str, action: int, arguments: list[_Argument]) -> None:
        """A rule. Names that this libseccomp does not know are left out: `_unknown_calls` answers those."""
        number = self._library.number(self._library.native, name)
        if number == _UNKNOWN:
            return
        array = (_Argument * len(arguments))(*arguments)
        result = self._functions.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(arguments), array
        )
        if result != 0:
            raise ValueError(f"the rule for {name} is not taken: {os.strerror(-result)}")

    def export(self) -> bytes:
        """The BPF program."""
        with open(os.memfd_create("seccomp"), "r+b") as file:
            result = self._functions.seccomp_export_bpf(self._context, file.fileno())
            if result != 0:
                raise ValueError(f"it cannot be compiled: {os.strerror(-result)}")
            file.seek(0)
            return file.read()

    def close(self) -> None:
        self._functions.seccomp_release(self._context)
