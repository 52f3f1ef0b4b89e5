"""The images that are measured: built here, the same at every call, as OCI layouts with the tag `1`.

Three files of four are words, which compress as text does, the fourth is noise, at gzip's usual level 6.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple, cast

TAG = "1"
_MTIME = 1_700_000_000
_PER_DIRECTORY = 40
_POOL = 16 << 20  # bytes of words that files are cut from
_DEBIAN = "bookworm"


class Layer(NamedTuple):
    """A synthetic layer."""

    seed: int
    files: int
    size: int  # bytes a file, on average


class Profile(NamedTuple):
    """What an image is like."""

    about: str
    layers: tuple[Layer, ...]


PROFILES = {
    "mixed": Profile(
        "7 layers, 30,000 files of all sizes, 1 GB: like a runtime for some language",
        tuple(Layer(number, files, 35_000) for number, files in enumerate((9000, 7000, 6000, 4000, 2500, 1000, 500))),
    ),
    "small-files": Profile(
        "2 layers, 80,000 files of 3 kB: like node_modules", (Layer(20, 50_000, 3_000), Layer(21, 30_000, 3_000))
    ),
    "large-layer": Profile(
        "one layer of 700 MB in 24 files: like a model or a toolchain", (Layer(30, 24, 29_000_000),)
    ),
    "deep": Profile("100 layers of 50 files", tuple(Layer(40 + number, 50, 4_000) for number in range(100))),
    "tiny": Profile("2 layers, 200 files: what a pull costs at least", (Layer(200, 150, 3_000), Layer(201, 50, 3_000))),
}
DEBIAN = "debian"
BUSYBOX = "busybox"


def names() -> dict[str, str]:
    """Each image, and what it is like."""
    return {name: profile.about for name, profile in PROFILES.items()} | {
        DEBIAN: f"Debian {_DEBIAN} as mmdebstrap makes it; wants mmdebstrap, root and a mirror",
        BUSYBOX: "Debian's static busybox, to run; wants busybox-static",
    }


def provide(name: str, cache_directory: Path) -> Path:
    """The layout of this image, from the cache or built into it. Raises `KeyError` for an unknown name."""
    layout = cache_directory / name
    if not (layout / "index.json").exists():
        if name == DEBIAN:
            tree = cache_directory / "debian.tar"
            subprocess.run(["mmdebstrap", "--quiet", "--variant=standard", _DEBIAN, str(tree)], check=True)
            build(layout, [lambda file: shutil.copyfileobj(tree.open("rb"), file)])
            tree.unlink()
        elif name == BUSYBOX:
            build(layout, [_write_busybox])
        else:
            build_synthetic(layout, PROFILES[name].layers)
    return layout


def build_synthetic(layout: Path, layers: tuple[Layer, ...]) -> None:
    """Writes an image of these layers, as many at a time as there are cores."""
    blobs = _start(layout)
    with ProcessPoolExecutor() as pool:
        written = list(pool.map(_write_synthetic, [blobs] * len(layers), layers))
    _finish(layout, written)


def build(layout: Path, layers: list[Callable[[IO[bytes]], None]]) -> None:
    """Writes an image whose layers' tars these functions write."""
    blobs = _start(layout)
    _finish(layout, [_write_layer(blobs, f"layer-{number}", write) for number, write in enumerate(layers)])


class _Written(NamedTuple):
    digest: str
    diff_id: str
    size: int


class _Hashing(io.RawIOBase):
    """Hashes what is written through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        return self._file.write(data)


def _start(layout: Path) -> Path:
    shutil.rmtree(layout, ignore_errors=True)
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    return blobs


def _finish(layout: Path, layers: list[_Written]) -> None:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    media = "application/vnd.oci.image"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": _document(layout, f"{media}.config.v1+json", config),
        "layers": [
            {"mediaType": f"{media}.layer.v1.tar+gzip", "digest": layer.digest, "size": layer.size} for layer in layers
        ],
    }
    entry = _document(layout, f"{media}.manifest.v1+json", manifest)
    entry["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def _document(layout: Path, media_type: str, document: object) -> dict[str, object]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _write_layer(blobs: Path, name: str, write: Callable[[IO[bytes]], None]) -> _Written:
    unnamed = blobs / name
    with unnamed.open("wb") as file:
        blob = _Hashing(file)
        with gzip.GzipFile("", "wb", 6, blob, mtime=0) as compressed:
            tar = _Hashing(cast("IO[bytes]", compressed))
            write(cast("IO[bytes]", tar))
    digest = blob.sha256.hexdigest()
    unnamed.rename(blobs / digest)
    return _Written(f"sha256:{digest}", f"sha256:{tar.sha256.hexdigest()}", (blobs / digest).stat().st_size)


def _write_synthetic(blobs: Path, layer: Layer) -> _Written:
    def write(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for member, data in members(layer):
                archive.addfile(member, io.BytesIO(data))

    return _write_layer(blobs, f"layer-{layer.seed}", write)


def _write_busybox(file: IO[bytes]) -> None:
    program = shutil.which("busybox")
    if program is None:
        raise FileNotFoundError("busybox is not installed (Debian: busybox-static)")
    with tarfile.open(fileobj=file, mode="w|") as archive:
        archive.add(program, "bin/busybox")
        for name in ("sh", "true"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)


def members(layer: Layer) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """The layer's entries: directories of 40 files each."""
    rng = random.Random(layer.seed)
    words = _words()
    for number in range(layer.files):
        directory = f"data/{layer.seed:03}/{number // _PER_DIRECTORY:05}"
        if number % _PER_DIRECTORY == 0:
            member = tarfile.TarInfo(directory)
            member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o755, _MTIME
            yield member, b""
        member = tarfile.TarInfo(f"{directory}/file-{number:06}")
        # Exponential: many small ones, and some that are much larger.
        size = min(int(rng.expovariate(1 / layer.size)), 8 * layer.size)
        member.size, member.mode, member.mtime = size, 0o644, _MTIME
        if number % 4 == 3:
            data = rng.randbytes(size)
        else:
            start = rng.randrange(_POOL)
            data = words[start : start + size]
            data += (words * (size // _POOL + 1))[: size - len(data)] if len(data) < size else b""
        yield member, data


@cache
def _words() -> bytes:
    rng = random.Random(1)
    vocabulary = [rng.randbytes(rng.randrange(2, 6)).hex() for _ in range(2_000)]
    text = " ".join(rng.choices(vocabulary, k=_POOL // 7)).encode()
    return (text * 2)[:_POOL]
