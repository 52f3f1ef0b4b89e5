"""Damage of all kinds, done to images in a store, as disks, power cuts and people do it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.cli.rig import digest_of, document
from tests.cli.store_checker import chain_id
from tests.conftest import PROJECT
from tests.support.images import (
    Device,
    Dir,
    Fifo,
    File,
    Hardlink,
    Image,
    Layer,
    Opaque,
    Symlink,
    Whiteout,
    write_layout,
)
from tests.support.registry import Registry


def image(name: str) -> Image:
    """Three layers, unlike any other image's; the last is a variant, and the stack has a tree of its own."""
    lower = Layer(
        [
            File("name", name.encode()),
            Dir("bin"),
            File("bin/tool", b"tool" * 1000, mode=0o4755, uid=1000, gid=7, mtime_ns=1_234_567_890_123_456_789),
            Hardlink("bin/again", "bin/tool"),
            File("bin/alone", b"alone"),
            Symlink("sh", "bin/tool", uid=3),
            Device("device", 1, 3),
            Fifo("fifo"),
            Dir("usr", mode=0o710, uid=5, mtime_ns=10**9),
            Dir("usr/share"),
            File("gone"),
            Dir("etc"),
            File("etc/old"),
            File("etc/described", b"x", xattrs={"user.one": b"1"}),
        ]
    )
    upper = Layer([File("usr/share/file", name.encode()), Whiteout("gone"), Opaque("etc"), File("etc/new")], "zstd")
    variant = Layer([Hardlink("linked", "bin/tool"), File("more", name.encode() * 100)])
    return Image([lower, upper, variant], {"Cmd": [name]})


class Target(NamedTuple):
    """An image in a store, and the layout that it came from."""

    root: Path
    layout: Path
    reference: str

    def tree(self, kind: str, number: int = 0) -> Path:
        """The directory of a layer; or of the variant, or of the stack."""
        diff_ids = document(self.layout, self.manifest["config"]["digest"])["rootfs"]["diff_ids"]
        return self.root / kind / (diff_ids[number] if kind == "layers" else chain_id(diff_ids)).replace(":", "/")

    @property
    def manifest(self) -> dict[str, Any]:
        return document(self.layout, digest_of(self.layout, self.reference))

    @property
    def fs(self) -> Path:
        """The lowest layer's tree."""
        return self.tree("layers") / "fs"

    def digest(self, what: int | str) -> str:
        """That of a layer's blob by its number, of the config, of the manifest."""
        if what == "manifest":
            return digest_of(self.layout, self.reference)
        return str((self.manifest["config"] if what == "config" else self.manifest["layers"][what])["digest"])

    def blob(self, what: int | str) -> Path:
        """Its file in the store."""
        return self.root / "blobs" / self.digest(what).replace(":", "/")


class Damage(NamedTuple):
    """What was done, and what should be said of it."""

    do: Callable[[Target], object]
    kind: str  # blob, layer, variant, stack
    problem: str  # a part of what is said
    quick: bool = False  # whether it is found without --deep
    fetched: bool = False  # whether only the registry helps


def flip(path: Path, at: int = -1) -> None:
    """One bit of a file becomes another; its size and times stay."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    with path.open("r+b") as file:  # the same file: others may be links to it
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def edit(path: Path, **fields: Any) -> None:
    """Other values in a JSON document."""
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


def in_place(path: Path, *steps: Callable[[Path], object]) -> None:
    """Changes what is in a directory, and gives that its times back."""
    status = path.parent.stat()
    for step in steps:
        step(path)
    os.utime(path.parent, ns=(status.st_atime_ns, status.st_mtime_ns))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _copy_of_itself(path: Path) -> None:
    """The same file, without its other names."""
    shutil.copy2(path, path.with_name("copy"))
    os.chown(path.with_name("copy"), path.stat().st_uid, path.stat().st_gid)
    os.chmod(path.with_name("copy"), path.stat().st_mode & 0o7777)
    path.with_name("copy").rename(path)


def _file(path: Path) -> None:
    """In the place of the directory, as file system checkers leave it."""
    shutil.rmtree(path)
    path.touch()


DAMAGES: dict[str, Damage] = {
    # Trees.
    "flipped": Damage(lambda at: flip(at.fs / "bin/tool"), "layer", "bin/again: its content differs (and 1 more)"),
    "zeroed": Damage(lambda at: os.truncate(at.fs / "bin/alone", 0), "layer", "has 0 bytes instead of 5", quick=True),
    "lost-file": Damage(
        lambda at: in_place(at.fs / "bin/alone", Path.unlink), "layer", "bin/alone: it is missing", quick=True
    ),
    "lost-link": Damage(lambda at: in_place(at.fs / "bin/again", Path.unlink), "layer", "bin/again: it is missing"),
    "lost-whiteout": Damage(
        lambda at: in_place(at.tree("layers", 1) / "fs/gone", Path.unlink), "layer", "gone: it is missing"
    ),
    "extra": Damage(lambda at: in_place(at.fs / "extra", Path.touch), "layer", "extra: the layer does not have it"),
    "mode": Damage(lambda at: os.chmod(at.fs / "bin/tool", 0o755), "layer", "mode is 0755 instead of 4755"),
    "owner": Damage(lambda at: os.lchown(at.fs / "sh", 0, 0), "layer", "sh: its owner is 0:0 instead of 3:0"),
    "time": Damage(lambda at: os.utime(at.fs / "usr", (2, 2)), "layer", "usr: its time is 2 instead of 1"),
    "attribute": Damage(
        lambda at: os.removexattr(at.fs / "etc/described", "user.one"), "layer", "its extended attributes differ"
    ),
    "opaque": Damage(
        lambda at: os.removexattr(at.tree("layers", 1) / "fs/etc", "trusted.overlay.opaque"),
        "layer",
        "etc: its extended attributes differ",
    ),
    "root-of-layer": Damage(lambda at: os.chmod(at.fs, 0o700), "layer", "its root: its mode is 0700"),
    "target": Damage(
        lambda at: in_place(at.fs / "sh", Path.unlink, lambda path: path.symlink_to("bin/evil")),
        "layer",
        "sh: ",
    ),
    "device": Damage(
        lambda at: in_place(at.fs / "device", Path.unlink, lambda path: os.mknod(path, 0o20600, os.makedev(1, 1))),
        "layer",
        "its device number differs",
    ),
    "parted": Damage(
        lambda at: in_place(at.fs / "bin/again", _copy_of_itself), "layer", "hard links differ", quick=True
    ),
    "lost-record": Damage(
        lambda at: (at.tree("layers") / "layer.json").unlink(), "layer", "layer.json is not there", quick=True
    ),
    "cut-record": Damage(
        lambda at: _cut(at.tree("layers") / "layer.json"), "layer", "layer.json is damaged", quick=True
    ),
    "other-record": Damage(
        lambda at: edit(at.tree("layers") / "layer.json", implied=["x"]), "layer", "layer.json differs"
    ),
    "wrong-record": Damage(
        lambda at: edit(at.tree("layers") / "layer.json", diff_id=f"sha256:{'0' * 64}"),
        "layer",
        "another layer's",
        quick=True,
    ),
    "lost-tree": Damage(lambda at: shutil.rmtree(at.tree("layers", 1)), "layer", "it is not there", quick=True),
    "lost-fs": Damage(lambda at: shutil.rmtree(at.fs), "layer", "its directory fs is not there", quick=True),
    "variant-flipped": Damage(lambda at: flip(at.tree("variants") / "fs/more"), "variant", "more: its content differs"),
    "variant-zeroed": Damage(
        lambda at: os.truncate(at.tree("variants") / "fs/linked", 0), "variant", "bytes instead of 4000", quick=True
    ),
    "variant-lost": Damage(lambda at: shutil.rmtree(at.tree("variants")), "variant", "it is not there", quick=True),
    "variant-record": Damage(
        lambda at: (at.tree("variants") / "layer.json").unlink(), "variant", "layer.json is not there", quick=True
    ),
    "stack-mode": Damage(
        lambda at: os.chmod(at.tree("stacks") / "fs/usr", 0o777), "stack", "usr: its mode is 0777 instead of 0710"
    ),
    "stack-lost": Damage(lambda at: shutil.rmtree(at.tree("stacks")), "stack", "it is not there", quick=True),
    "stack-record": Damage(
        lambda at: _cut(at.tree("stacks") / "stack.json"), "stack", "stack.json is damaged", quick=True
    ),
    "stack-order": Damage(
        lambda at: edit(
            at.tree("stacks") / "stack.json",
            lower=json.loads((at.tree("stacks") / "stack.json").read_bytes())["lower"][::-1],
        ),
        "stack",
        "stack.json differs",
    ),
    "stack-layers": Damage(
        lambda at: edit(at.tree("stacks") / "stack.json", layers=[]), "stack", "contradicts itself", quick=True
    ),
    "layer-file": Damage(lambda at: _file(at.tree("layers", 1)), "layer", "it is not there", quick=True),
    "variant-file": Damage(lambda at: _file(at.tree("variants")), "variant", "it is not there", quick=True),
    "stack-file": Damage(lambda at: _file(at.tree("stacks")), "stack", "it is not there", quick=True),
    # Blobs.
    "blob-flipped": Damage(lambda at: flip(at.blob(0), 5), "blob", "another digest", fetched=True),
    "blob-cut": Damage(lambda at: _cut(at.blob(1)), "blob", "bytes instead of", quick=True, fetched=True),
    "manifest-lost": Damage(lambda at: at.blob("manifest").unlink(), "blob", "not there", quick=True, fetched=True),
    "manifest-flipped": Damage(lambda at: flip(at.blob("manifest")), "blob", "digest", quick=True, fetched=True),
    "config-lost": Damage(lambda at: at.blob("config").unlink(), "blob", "not there", quick=True, fetched=True),
    "config-flipped": Damage(lambda at: flip(at.blob("config")), "blob", "digest", quick=True, fetched=True),
}


class Damaged(NamedTuple):
    """A store with one image for each damage, in which nothing is as it should be; and what it was before."""

    good: Path
    bad: Path
    layout: Path
    references: dict[str, str]  # by the names of the damages

    def target(self, name: str) -> Target:
        return Target(self.bad, self.layout, self.references[name])


def make_damaged(directory: Path, registry: Registry) -> Damaged:
    """In a new directory; the registry has the images."""
    references = {name: f"{registry.host}/damaged/{name}:1" for name in DAMAGES}
    made = Damaged(directory / "good", directory / "bad", directory / "layout", references)
    write_layout(made.layout, {reference: image(name) for name, reference in references.items()})
    done = pullpipe(made.good, "load", "-q", made.layout)
    assert done.returncode == 0, done.stderr
    for name, damage in DAMAGES.items():
        if damage.fetched:
            registry.push(made.layout, references[name], to=f"damaged/{name}:1")
    subprocess.run(["cp", "-a", made.good, made.bad], check=True)
    for name, damage in DAMAGES.items():
        damage.do(made.target(name))
    return made


def pullpipe(root: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """The command on a store that several tests look at."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(root), *map(str, args)]
    return subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
