"""Platforms: their names, and which of several suits a machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pullpipe.errors import InvalidDocument
from pullpipe.platforms import Platform, amd64_level


@pytest.mark.parametrize(
    "text", ["linux/amd64", "linux/arm/v7", "windows/amd64", "freebsd/riscv64", "linux/arm64/v8.2"]
)
def test_text(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/armv8l", "linux/arm/v8"),
        ("linux/i386", "linux/386"),
        ("linux/i686", "linux/386"),
        ("linux/loongarch64", "linux/loong64"),
        ("macos/arm64", "darwin/arm64"),
        ("Linux/AMD64/V2", "linux/amd64/v2"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/arm64/8", "linux/arm64/v8"),
        ("linux/armhf/v6", "linux/arm/v6"),
        # An architecture alone is for Linux.
        ("arm64", "linux/arm64"),
        ("ARM64", "linux/arm64"),
        ("aarch64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("s390x", "linux/s390x"),
    ],
)
def test_other_names(text: str, usual: str) -> None:
    """What people, kernels and distributions call them."""
    assert str(Platform.parse(text)) == usual


@pytest.mark.parametrize(
    "text",
    ["", "linux", "windows", "z80", "linux/", "/amd64", "linux//v7", "linux/arm/", "a/b/c/d", "linux/am d64", "\x1b/x"],
)
def test_no_platform(text: str) -> None:
    with pytest.raises(InvalidDocument, match="OS/ARCH"):
        Platform.parse(text)


def test_of_this_machine() -> None:
    """Linux, an architecture by Go's name, and no variant on amd64."""
    here = Platform.of_this_machine()
    assert here.os == "linux"
    assert here.architecture not in ("", "x86_64", "aarch64")
    assert here.accepts(here)
    assert here.architecture != "amd64" or here.variant == ""


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64", "linux/arm64/v8.0"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v7", "linux/arm"),
        ("linux/amd64", "linux/amd64/v1"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/riscv64/rva22u64", "linux/riscv64/rva22u64"),
    ],
)
def test_the_same(wanted: str, offered: str) -> None:
    """Two spellings of one platform."""
    assert Platform.parse(wanted).distance(Platform.parse(offered)) == 0


@pytest.mark.parametrize(
    ("wanted", "from_best_to_worst"),
    [
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]),
        ("linux/arm", ["linux/arm/v7", "linux/arm/v6"]),
        ("linux/arm/v8", ["linux/arm/v8", "linux/arm/v7", "linux/arm/v5"]),
        ("linux/arm64/v8.5", ["linux/arm64/v8.5", "linux/arm64/v8.2", "linux/arm64"]),
        ("linux/arm64/v9", ["linux/arm64/v9", "linux/arm64/v8.2", "linux/arm64/v8"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"]),
    ],
)
def test_lower_variants_will_do(wanted: str, from_best_to_worst: list[str]) -> None:
    distances = [Platform.parse(wanted).distance(Platform.parse(text)) for text in from_best_to_worst]
    assert None not in distances
    assert distances == sorted({distance for distance in distances if distance is not None})
    assert distances[0] == 0


@pytest.mark.parametrize(
    ("wanted", "offered"),
    [
        ("linux/arm/v6", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm"),
        ("linux/arm64", "linux/arm64/v8.2"),
        ("linux/amd64/v1", "linux/amd64/v2"),
        ("linux/amd64/v2", "linux/amd64/v3"),
        ("linux/amd64", "linux/amd64/v9"),
        # Another architecture, though the processor may run it, or another system.
        ("linux/amd64", "linux/386"),
        ("linux/arm64", "linux/arm/v7"),
        ("linux/amd64", "windows/amd64"),
        ("linux/riscv64", "linux/riscv64/rva22u64"),
    ],
)
def test_what_will_not_do(wanted: str, offered: str) -> None:
    assert not Platform.parse(wanted).accepts(Platform.parse(offered))


def test_an_architecture_that_is_not_said() -> None:
    """Old images: taken when nothing suits better, by any machine of the same system."""
    unsaid = Platform("linux", "")
    for wanted in (Platform("linux", "s390x"), Platform("linux", "arm", "v7")):
        distance = wanted.distance(unsaid)
        assert distance is not None
        assert distance > (Platform("linux", "arm", "v7").distance(Platform("linux", "arm", "v5")) or 0)
    assert not Platform("windows", "amd64").accepts(unsaid)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="an amd64 machine's matter")
def test_plain_amd64_takes_what_the_processor_can() -> None:
    """Lowest first, for what plain amd64 asks for is the least."""
    flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    assert 1 <= amd64_level() <= 4
    assert (amd64_level() >= 2) == ({"sse4_2", "popcnt", "ssse3"} <= flags)
    assert (amd64_level() >= 3) == ({"avx2", "bmi2", "fma"} <= flags)
    assert (amd64_level() == 4) == ({"avx512f", "avx512vl"} <= flags)
    plain = Platform("linux", "amd64")
    distances = [plain.distance(Platform("linux", "amd64", f"v{level}")) for level in range(1, 5)]
    able, unable = distances[: amd64_level()], distances[amd64_level() :]
    assert able[0] == 0
    assert able == sorted({distance for distance in able if distance is not None})
    assert unable == [None] * (4 - amd64_level())
