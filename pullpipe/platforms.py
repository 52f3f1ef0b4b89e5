"""Platforms: what an image is for, what this machine runs, and which of several suits best."""

from __future__ import annotations

import functools
import os
import re
from typing import NamedTuple

from pullpipe.errors import InvalidDocument

# The names that images use, which are Go's, for those that kernels and distributions use.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv8l": ("arm", "v8"),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "i386": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "loongarch64": ("loong64", ""),
}
_SYSTEMS = {"macos": "darwin"}
_ALONE = frozenset(
    ("386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", *_ARCHITECTURES)
)
_PART = re.compile(r"[A-Za-z0-9_.-]+")
_DEFAULT_VARIANTS = {"amd64": "v1", "arm": "v7", "arm64": "v8"}
_VARIANT = re.compile(r"v?(\d{1,2})(?:\.(\d{1,2}))?")
_UNSAID = 10_000  # farther than any variant

# What /proc/cpuinfo calls what each level of the x86-64 psABI adds to the one before.
_AMD64_LEVELS = (
    {"cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3"},
    {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
    {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"},
)


class Platform(NamedTuple):
    """`os/architecture[/variant]` in Go's names: linux/amd64, linux/arm/v7. No architecture: it was not said."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def of(cls, system: str, architecture: str, variant: str = "") -> Platform:
        """By whatever names: Linux/x86_64 is linux/amd64, armhf is arm/v7, macos is darwin, arm64/8 is arm64/v8."""
        system, architecture, variant = system.lower(), architecture.lower(), variant.lower()
        architecture, implied = _ARCHITECTURES.get(architecture, (architecture, ""))
        variant = f"v{variant}" if variant[:1].isdigit() else variant
        return cls(_SYSTEMS.get(system, system), architecture, variant or implied)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """OS/ARCH, OS/ARCH/VARIANT, or a known ARCH alone, for Linux. Raises `InvalidDocument`."""
        parts = text.split("/")
        if parts[0].lower() in _ALONE and len(parts) == 1:
            parts.insert(0, "linux")
        if not 2 <= len(parts) <= 3 or not all(map(_PART.fullmatch, parts)):
            raise InvalidDocument(f"invalid platform {text!r}: expected OS/ARCH or OS/ARCH/VARIANT, as linux/arm64")
        return cls.of(*parts)

    @classmethod
    def of_this_machine(cls) -> Platform:
        """What this kernel runs. An amd64 one has no variant, so plain images come before those of higher levels."""
        return cls.of("linux", os.uname().machine)

    def accepts(self, other: Platform) -> bool:
        """Whether an image for `other` will do."""
        return self.distance(other) is not None

    def distance(self, other: Platform) -> int | None:
        """How far an image for `other` is from the wanted one: 0 is the very platform, None will not do.

        A variant runs what is made for lower ones: arm/v7 takes v6 and v5, amd64/v3 takes v2 and v1. No variant means
        arm/v7, arm64/v8 and amd64/v1; but plain amd64 also takes as high a level as this machine's processor has,
        where there is nothing lower. Another architecture never will do, also where the processor could (386 on amd64).
        An image that does not say its architecture, as old ones, is taken on its word that it is for this one.
        """
        if self.os != other.os or other.architecture not in (self.architecture, ""):
            return None
        if not other.architecture:
            return _UNSAID
        wanted, offered = self._level, other._level
        if wanted is None or offered is None:
            return 0 if self.variant == other.variant else None
        if offered <= wanted:
            return wanted - offered
        plain = (self.architecture, self.variant) == ("amd64", "")
        return offered - wanted if plain and offered <= 100 * amd64_level() else None

    @property
    def _level(self) -> int | None:
        """The variant as a number: v8.2 is 802."""
        found = _VARIANT.fullmatch(self.variant or _DEFAULT_VARIANTS.get(self.architecture, ""))
        return 100 * int(found[1]) + int(found[2] or 0) if found else None

    def __str__(self) -> str:
        return "/".join(filter(None, self))


@functools.cache
def amd64_level() -> int:
    """Which level of the x86-64 psABI this machine's processor has, 1 to 4; 0 when it is another architecture's."""
    if Platform.of_this_machine().architecture != "amd64":
        return 0
    flags: set[str] = set()
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:  # to the end of the first processor's flags, not of the file: it may tell of hundreds
            if line.startswith("flags"):
                flags.update(line.split())
                break
    level = 1
    for needed in _AMD64_LEVELS:
        if not needed <= flags:
            break
        level += 1
    return level
