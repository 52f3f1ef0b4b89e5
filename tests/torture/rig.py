"""What the tests that torture the store share: how much of it, the images, the states that a store may be in."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tests.cli.store_checker import layer_tree, wrong
from tests.conftest import PROJECT, require
from tests.support.images import Device, Dir, File, Hardlink, Image, Layer, Opaque, Symlink, Whiteout
from tests.support.registry import Registry
from tests.support.tree import Snapshot, difference, snapshot

# How many times what `make test` does; `make torture` has it do more, by a seed of its own each time.
SCALE = int(os.environ.get("PULLPIPE_TORTURE") or "1")
SEED = int(os.environ.get("PULLPIPE_TORTURE_SEED") or (4 if SCALE == 1 else random.SystemRandom().randrange(10**9)))
NAMES = ("one", "two", "three")


def dice(*what: object) -> random.Random:
    """Random numbers for this part of the work, by the seed; says how to have the same again."""
    print(f"{what}: repeat it by PULLPIPE_TORTURE={SCALE} PULLPIPE_TORTURE_SEED={SEED}")
    return random.Random(f"{SEED} {what}")


def images() -> dict[str, Image]:
    """Small ones that share layers and have something of all that a store holds: stacks and variants among it."""
    rng = random.Random(1)  # the same for all seeds
    shell = Layer(
        [
            *(Dir(name) for name in ("bin", "etc", "proc", "sys", "dev", "usr", "usr/lib")),
            Symlink("lib", "usr/lib"),
            File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
            File("bin/busybox", Path("/bin/busybox").read_bytes(), 0o755),
            *(Symlink(f"bin/{name}", "busybox") for name in ("sh", "true", "echo")),
        ]
    )
    data = Layer(
        [
            Dir("data", mode=0o750, uid=1000, gid=1000, mtime_ns=7),
            File("data/large", rng.randbytes(1_300_000), uid=1000),
            File("data/setuid", rng.randbytes(5_000), 0o4755, xattrs={"trusted.some": b"value"}),
            File("data/empty"),
            Hardlink("data/again", "data/large"),
            Device("data/null", 1, 3),
            Dir("data/sub"),
            Dir("data/sub/inner", mode=0o700),
            File("data/sub/deep", rng.randbytes(90_000)),
        ],
        "zstd",
    )
    beside = Layer(
        [File("lib/beside", b"below a symlink of the shell's layer"), File("data/implied", b"its directory is not")]
    )
    hiding = Layer([Whiteout("data/setuid"), Opaque("data/sub"), File("data/sub/new", rng.randbytes(3_000))])
    over = Layer([File("data/sub/inner/new", b"in a directory that is not the hidden one")])
    other = Layer([File("other", rng.randbytes(400_000)), File("data/other", b"again implied")], None)
    command = {"Cmd": ["/bin/true"]}
    return {
        "one": Image([shell, data, beside, hiding, over], command),
        "two": Image([shell, other], command),
        "three": Image([data, other, hiding]),
    }


def command(root: Path, *arguments: str | Path) -> list[str]:
    """The words of a pullpipe command on this store."""
    return [sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, arguments)]


def pullpipe(root: Path, *arguments: str | Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """The command, undisturbed."""
    return subprocess.run(
        command(root, *arguments),
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="backslashreplace",
        timeout=timeout,
    )


def good(root: Path, *arguments: str | Path) -> str:
    """The command, which has to go well; what it prints."""
    done = pullpipe(root, *arguments)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout.strip()


class Bench(NamedTuple):
    """The images, where they can be had, and what should come of them."""

    registry: Registry
    layout: Path
    stores: Path  # where stores may be made: a small disk of memory
    trees: dict[str, dict[str, Snapshot]]  # by kind and digest, as an undisturbed pull makes them

    def reference(self, name: str) -> str:
        """In the registry."""
        return f"{self.registry.host}/torture/{name}:1"

    def pull(self, name: str, *options: str) -> list[str]:
        """The words of the command that pulls it."""
        return ["pull", "--quiet", "--plain-http", *options, self.reference(name)]

    def wrong(self, root: Path) -> list[str]:
        """What must not be, one line each: whatever is visible has to be whole."""
        if not (root / "version").exists():  # its creation has been interrupted: there is nothing in it yet
            return []
        try:
            lines = wrong(root, self.trees["layers"])
        except (ValueError, KeyError) as error:
            return [f"a document that is none: {error}"]
        for kind in ("variants", "stacks"):
            for directory in (root / kind / "sha256").iterdir():
                expected = self.trees[kind].get(directory.name)
                if expected is None:
                    lines.append(f"{kind} {directory.name}: of no image")
                else:
                    lines += [f"{kind} {directory.name}: {line}" for line in difference(plain(directory), expected)]
        for config in (root / "containers").glob("*/config.json"):
            try:
                json.loads(config.read_bytes())["stack"]
            except (ValueError, KeyError) as error:
                lines.append(f"{config}: {error}")
        return lines

    def verified(self, root: Path, *, deep: bool = False) -> list[str]:
        """What `verify` has to say against the store."""
        if not (root / "version").exists():
            return []
        done = pullpipe(root, "verify", "--quiet", *["--deep"] * deep)
        return [] if done.returncode == 0 else [f"verify: {done.stdout}{done.stderr}"]


def recorded(root: Path) -> set[str]:
    """The references that the store has."""
    index = root / "index.json"
    entries = json.loads(index.read_bytes())["manifests"] if index.exists() else []
    return {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries}


def plain(directory: Path) -> Snapshot:
    """A tree without what differs from time to time: when whiteouts were made, and all that is not an image's."""
    nodes = snapshot(directory)
    return {
        path: node
        if (b"/fs/" in b"/" + path + b"/") and node.device != (0, 0)
        else replace(node, mtime_ns=0, size=0 if node.type == "directory" else node.size)
        for path, node in nodes.items()
    }


def contents(root: Path) -> Snapshot:
    """All of a store but its locks and its reserve, which is there when there has been room for it, for comparing two.
    So whatever a dead process left counts as a difference."""
    nodes = plain(root)
    return {path: node for path, node in nodes.items() if b"/" in path or not path.endswith((b".lock", b"reserve"))}


def copied(root: Path, target: Path) -> Path:
    """A copy of a store, in place of what is there."""
    removed(target)
    subprocess.run(["cp", "--archive", root, target], check=True)
    return target


def removed(root: Path) -> None:
    """The store is no more."""
    subprocess.run(["rm", "-rf", root], check=True)


def mounts_below(directory: Path) -> list[str]:
    """The mount points, as we see them."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    points = [
        re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]) for line in table.splitlines()
    ]
    return [point for point in points if point.startswith(f"{directory}/")]


def is_clear(said: str, codes: Sequence[int], code: int) -> bool:
    """Whether a command that failed told so as it should: by its exit code, and one line of error, which is the last;
    or, if it was to do several things, such a line for each that failed, and what `rmi` says of those that did not.

    `repair` may have a count of what it could not mend in its place.
    """
    if code not in codes or any(text in said for text in ("Traceback", "this is a bug", "Exception ignored")):
        return False
    errors = [line for line in said.splitlines() if line.startswith("pullpipe: error: ")]
    told = [line for line in said.splitlines() if not re.match(r"removed \d+ layers? and \d+ blobs? ", line)]
    last = told[-1] if told else ""
    return errors[-1:] == [last] or (not errors and re.match(r"\d+ damaged", last) is not None)


@contextmanager
def mounted(what: str | Path, target: Path, *options: str) -> Iterator[Path]:
    """A file system, for the length of the block."""
    target.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, what, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True, capture_output=True)


class FileSystem(NamedTuple):
    """One to keep a store on."""

    name: str
    program: str  # that makes it
    arguments: tuple[str, ...]
    size: int
    options: str = "defaults"  # to mount it by

    def make(self, path: Path, size: int = 0) -> Path:
        """An empty one in a file, of another size if that is given."""
        require(self.program)
        with path.open("wb") as file:
            file.truncate(size or self.size)
        subprocess.run([self.program, *self.arguments, path], check=True, capture_output=True)
        return path

    def mounted(self, what: str | Path, target: Path) -> AbstractContextManager[Path]:
        """A device or an image file of such a file system, for the length of the block."""
        kind = "loop," if Path(what).is_file() else ""
        return mounted(what, target, "-o", f"{kind}{self.options}")


_LAZY = ("-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0")
EXT4 = FileSystem("ext4", "mkfs.ext4", _LAZY, 96 << 20)
SMALL_EXT4 = FileSystem("small ext4", "mkfs.ext4", (*_LAZY, "-m", "0", "-N", "1024"), 48 << 20)
# Without what it does by itself for programs that do not flush.
STERN_EXT4 = FileSystem("ext4 without favours", "mkfs.ext4", _LAZY, 96 << 20, "noauto_da_alloc,data=writeback")
XFS = FileSystem("xfs", "mkfs.xfs", ("-q",), 320 << 20, "nouuid")
BTRFS = FileSystem("btrfs", "mkfs.btrfs", ("-q",), 160 << 20)


def snapshots(root: Path) -> dict[str, dict[str, Snapshot]]:
    """The trees of a store, as `Bench` has them."""
    return {
        "layers": {
            f"sha256:{one.name}": layer_tree(root, f"sha256:{one.name}")
            for one in (root / "layers" / "sha256").iterdir()
        },
        **{
            kind: {one.name: plain(one) for one in (root / kind / "sha256").iterdir()}
            for kind in ("variants", "stacks")
        },
    }
