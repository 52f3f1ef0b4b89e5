"""Who is measured: how each pulls an image or applies a layout's layers, and where the tree is that comes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from benchmarks.images import TAG

Commands = list[list[str]]
_PATIENCE = 10.0  # seconds, for a daemon to come up


@contextmanager
def _no_tree(_place: Path, _reference: str) -> Iterator[None]:
    yield None


class Contender(NamedTuple):
    """A program, or several that do it together. `place` is a directory on the file system of the run."""

    name: str
    programs: tuple[str, ...]  # that it takes
    durability: str  # whether what it made survives a power cut the moment it returns
    pull: Callable[[str, Path], Commands] | None = None  # from a registry: reference, place
    apply: Callable[[Path, Path], Commands] | None = None  # from an OCI layout, place
    run: Callable[[str, Path], list[str]] | None = None  # a command that starts `true` in the image
    tree: Callable[[Path, str], AbstractContextManager[Path | None]] = _no_tree  # place, reference
    service: Callable[[Path], AbstractContextManager[object]] = lambda _: nullcontext()  # what has to run meanwhile

    @property
    def is_here(self) -> bool:
        """Whether it is installed."""
        return all(shutil.which(program) for program in self.programs)

    @property
    def version(self) -> str:
        """As the programs tell it."""
        if not self.programs:
            from pullpipe import __version__

            return __version__
        told = []
        for program in self.programs:
            done = subprocess.run([program, "--version"], capture_output=True, text=True)
            words = (done.stdout or done.stderr).replace("v", " ").split()
            told.append(f"{program} {next((word for word in words if word[0].isdigit()), '?')}")
        return ", ".join(told)


def command(place: Path, *arguments: str) -> list[str]:
    """Pullpipe, with its store at the place."""
    return [sys.executable, "-m", "pullpipe", "--root", str(place / "pullpipe"), *arguments]


@contextmanager
def _pullpipe_tree(place: Path, reference: str) -> Iterator[Path]:
    target = place / "mounted"
    target.mkdir()
    subprocess.run(command(place, "mount", reference, str(target)), check=True, capture_output=True)
    try:
        yield target
    finally:
        subprocess.run(command(place, "umount", str(target)), check=True, capture_output=True)


def pullpipe(durability: str, *options: str, name: str = "pullpipe") -> Contender:
    """This program."""
    flags = ["-q", "--durability", durability, *options]
    return Contender(
        name=name,
        programs=(),
        durability="flushed" if durability == "full" else "not flushed",
        pull=lambda reference, place: [command(place, "pull", *flags, "--plain-http", reference)],
        apply=lambda layout, place: [command(place, "load", *flags, "-t", "localhost/bench:1", str(layout))],
        run=lambda reference, place: command(place, "run", "--rm", reference, "true"),
        tree=_pullpipe_tree,
    )


def _podman(place: Path, *arguments: str) -> list[str]:
    return ["podman", "--root", f"{place}/podman", "--runroot", f"{place}/run", "--storage-driver=overlay", *arguments]


@contextmanager
def _podman_tree(place: Path, reference: str) -> Iterator[Path]:
    done = subprocess.run(_podman(place, "image", "mount", reference), check=True, capture_output=True, text=True)
    try:
        yield Path(done.stdout.strip())
    finally:
        subprocess.run(_podman(place, "image", "umount", reference), check=True, capture_output=True)


# Its usual runtime, crun, refuses machines with both versions of cgroups.
_RUNTIME = (
    ("--runtime=runc", "--cgroup-manager=cgroupfs", "run")
    if os.path.ismount("/sys/fs/cgroup/unified")
    else ("run", "--cgroups=disabled")
)
_PODMAN_RUN = (*_RUNTIME, "--rm", "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
PODMAN = Contender(
    name="podman",
    programs=("podman",),
    durability="not flushed",
    pull=lambda reference, place: [_podman(place, "pull", "-q", "--tls-verify=false", reference)],
    apply=lambda layout, place: [_podman(place, "pull", "-q", f"oci:{layout}:{TAG}")],
    run=lambda reference, place: _podman(place, *_PODMAN_RUN, reference, "true"),
    tree=_podman_tree,
)


@contextmanager
def _umoci_tree(place: Path, _reference: str) -> Iterator[Path]:
    yield place / "bundle" / "rootfs"


def _umoci(layout: str, place: Path) -> list[str]:
    return ["umoci", "--log=error", "unpack", "--image", f"{layout}:{TAG}", f"{place}/bundle"]


UMOCI = Contender(
    name="skopeo + umoci",
    programs=("skopeo", "umoci"),
    durability="not flushed",
    pull=lambda reference, place: [
        ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{reference}", f"oci:{place}/layout:{TAG}"],
        _umoci(f"{place}/layout", place),
    ],
    apply=lambda layout, place: [_umoci(str(layout), place)],
    tree=_umoci_tree,
)


def _ctr(place: Path, *arguments: str) -> list[str]:
    return ["ctr", "--address", f"{place}/containerd.sock", *arguments]


@contextmanager
def _containerd(place: Path) -> Iterator[None]:
    config = place / "containerd.toml"
    config.write_text(
        f'version = 2\nroot = "{place}/containerd"\nstate = "{place}/containerd-state"\n'
        'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
        f'[grpc]\naddress = "{place}/containerd.sock"\n'
    )
    with (place / "containerd.log").open("wb") as log:
        daemon = subprocess.Popen(["containerd", "--config", str(config)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _PATIENCE
        while subprocess.run(_ctr(place, "version"), capture_output=True).returncode:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"containerd does not start: {(place / 'containerd.log').read_text()[-500:]}")
            time.sleep(0.05)
        yield
    finally:
        daemon.terminate()
        daemon.wait()


@contextmanager
def _ctr_tree(place: Path, reference: str) -> Iterator[Path]:
    target = place / "mounted"
    target.mkdir()
    subprocess.run(_ctr(place, "images", "mount", reference, str(target)), check=True, capture_output=True)
    try:
        yield target
    finally:
        subprocess.run(_ctr(place, "images", "unmount", str(target)), check=True, capture_output=True)


CONTAINERD = Contender(
    name="containerd",
    programs=("containerd", "ctr"),
    durability="not flushed",
    pull=lambda reference, place: [_ctr(place, "images", "pull", "--plain-http", reference)],
    run=lambda reference, place: _ctr(place, "run", "--rm", "--net-host", reference, f"b{time.monotonic_ns()}", "true"),
    tree=_ctr_tree,
    service=_containerd,
)


def _by_tar(program: str) -> Callable[[Path, Path], Commands]:
    """Each layer into a directory of its own, one after the other; nobody checks a digest or stacks anything."""

    def commands(layout: Path, place: Path) -> Commands:
        found: Commands = []
        for number, blob in enumerate(layer_blobs(layout)):
            directory = place / f"layer-{number}"
            found += [["mkdir", str(directory)], [program, "-xzpf", str(blob), "-C", str(directory)]]
        return found

    return commands


TAR = Contender("GNU tar", ("tar", "gzip"), "not flushed", apply=_by_tar("tar"))
BSDTAR = Contender("bsdtar", ("bsdtar",), "not flushed", apply=_by_tar("bsdtar"))

ALL = (
    pullpipe("full"),
    pullpipe("none", name="pullpipe, no flush")._replace(run=None),
    CONTAINERD,
    PODMAN,
    UMOCI,
    TAR,
    BSDTAR,
)


def installed(chosen: Sequence[str]) -> list[Contender]:
    """Those of these names, or all, that are installed. Raises `KeyError` for a name that there is not."""
    named = {contender.name: contender for contender in ALL}
    wanted = [named[name] for name in chosen] if chosen else list(ALL)
    return [contender for contender in wanted if contender.is_here]


def layer_blobs(layout: Path) -> list[Path]:
    """The blobs of the layout's layers, the lowest first."""

    def document(digest: str) -> dict[str, list[dict[str, str]]]:
        read: dict[str, list[dict[str, str]]] = json.loads((blobs / digest.removeprefix("sha256:")).read_bytes())
        return read

    blobs = layout / "blobs" / "sha256"
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return [blobs / layer["digest"].removeprefix("sha256:") for layer in document(entry["digest"])["layers"]]
