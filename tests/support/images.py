"""Small images, written with Python's `tarfile`: an OCI layout or an archive as `docker save` makes it.

The entries of a layer are written in the order given and with the names given, so a test can spell out a
hostile or an unusual archive. The blobs are the same on every run.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform as host
import re
import stat
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import zstandard

Compression = Literal["gzip", "zstd"] | None

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "i686": "386"}
HOST_PLATFORM = f"linux/{_MACHINES.get(host.machine(), host.machine())}"


class Descriptor(TypedDict):
    """An OCI descriptor as it stands in JSON."""

    mediaType: str
    digest: str
    size: int
    annotations: NotRequired[dict[str, str]]
    platform: NotRequired[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What every entry may carry. `mtime_ns` goes to a PAX record where a tar header cannot hold it."""

    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def header(self, path: str | bytes, kind: bytes, mode: int) -> tarfile.TarInfo:
        """The tar header of `path` with these attributes."""
        info = tarfile.TarInfo(_text(path))
        info.type, info.mode, info.uid, info.gid = kind, mode, self.uid, self.gid
        records: dict[str, str] = {}
        seconds, nanoseconds = divmod(abs(self.mtime_ns), 10**9)
        if nanoseconds or self.mtime_ns < 0:
            sign = "-" if self.mtime_ns < 0 else ""
            records["mtime"] = f"{sign}{seconds}.{nanoseconds:09}"
        else:
            info.mtime = seconds
        for name, value in self.xattrs.items():
            records[f"SCHILY.xattr.{name}"] = _text(value)
        info.pax_headers = records
        return info


@dataclass(frozen=True)
class File(Attributes):
    """A regular file."""

    path: str | bytes
    data: bytes = b""
    mode: int = 0o644

    def write(self, archive: tarfile.TarFile) -> None:
        info = self.header(self.path, tarfile.REGTYPE, self.mode)
        info.size = len(self.data)
        archive.addfile(info, io.BytesIO(self.data))


@dataclass(frozen=True)
class Dir(Attributes):
    """A directory."""

    path: str | bytes
    mode: int = 0o755

    def write(self, archive: tarfile.TarFile) -> None:
        archive.addfile(self.header(self.path, tarfile.DIRTYPE, self.mode))


@dataclass(frozen=True)
class Symlink(Attributes):
    """A symbolic link; `target` is kept as it is."""

    path: str | bytes
    target: str | bytes

    def write(self, archive: tarfile.TarFile) -> None:
        info = self.header(self.path, tarfile.SYMTYPE, 0o777)
        info.linkname = _text(self.target)
        archive.addfile(info)


@dataclass(frozen=True)
class Hardlink(Attributes):
    """Another name for `target`, which is a path within the archive. `mode` is what its header claims."""

    path: str | bytes
    target: str | bytes
    mode: int = 0o644

    def write(self, archive: tarfile.TarFile) -> None:
        info = self.header(self.path, tarfile.LNKTYPE, self.mode)
        info.linkname = _text(self.target)
        archive.addfile(info)


@dataclass(frozen=True)
class Device(Attributes):
    """A character or block device."""

    path: str | bytes
    major: int
    minor: int
    kind: Literal["char", "block"] = "char"
    mode: int = 0o600

    def write(self, archive: tarfile.TarFile) -> None:
        kind = tarfile.CHRTYPE if self.kind == "char" else tarfile.BLKTYPE
        info = self.header(self.path, kind, self.mode)
        info.devmajor, info.devminor = self.major, self.minor
        archive.addfile(info)


@dataclass(frozen=True)
class Fifo(Attributes):
    """A named pipe."""

    path: str | bytes
    mode: int = 0o644

    def write(self, archive: tarfile.TarFile) -> None:
        archive.addfile(self.header(self.path, tarfile.FIFOTYPE, self.mode))


@dataclass(frozen=True)
class Whiteout:
    """The mark that hides `path` of the layers below: an empty file `.wh.NAME` beside it."""

    path: str

    def write(self, archive: tarfile.TarFile) -> None:
        parent, slash, name = self.path.rpartition("/")
        File(f"{parent}{slash}.wh.{name}").write(archive)


@dataclass(frozen=True)
class Opaque:
    """The mark that hides all that the layers below have in the directory `path` (`""` is the root)."""

    path: str

    def write(self, archive: tarfile.TarFile) -> None:
        File(f"{self.path}/.wh..wh..opq".lstrip("/")).write(archive)


Entry = File | Dir | Symlink | Hardlink | Device | Fifo | Whiteout | Opaque


@dataclass(frozen=True)
class Layer:
    """A layer made of `entries`. Two compressions of the same entries have the same diffID."""

    entries: Sequence[Entry]
    compression: Compression = "gzip"

    @cached_property
    def tar(self) -> bytes:
        """The uncompressed archive."""
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            for entry in self.entries:
                entry.write(archive)
        return buffer.getvalue()

    @cached_property
    def blob(self) -> bytes:
        """The archive as a registry holds it."""
        if self.compression == "gzip":
            return gzip.compress(self.tar, mtime=0)
        if self.compression == "zstd":
            return zstandard.compress(self.tar)
        return self.tar

    @property
    def diff_id(self) -> str:
        return _digest(self.tar)

    @property
    def media_type(self) -> str:
        return f"{LAYER}+{self.compression}" if self.compression else LAYER


@dataclass(frozen=True)
class Image:
    """An image: its layers, lowest first, and the runtime section of its config (`Cmd`, `Env`, `User`, …)."""

    layers: Sequence[Layer]
    config: Mapping[str, Any] = field(default_factory=dict)
    platform: str = HOST_PLATFORM

    @property
    def platform_fields(self) -> dict[str, str]:
        """`linux/arm/v7` as an index or a config spells it."""
        return dict(zip(("os", "architecture", "variant"), self.platform.split("/"), strict=False))

    @property
    def config_blob(self) -> bytes:
        document = {
            **self.platform_fields,
            "config": dict(self.config),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
            "history": [{"created_by": f"test layer {number}"} for number, _ in enumerate(self.layers)],
        }
        return json.dumps(document).encode()


def write_layout(directory: Path, images: Mapping[str, Image | Sequence[Image]]) -> dict[str, Descriptor]:
    """Write an OCI image layout with these tags and return the descriptor of each, as in `index.json`.

    A sequence of images becomes an index that holds one manifest for each platform.
    """
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    tagged: dict[str, Descriptor] = {}
    for tag, image in images.items():
        if isinstance(image, Image):
            descriptor = _write_image(blobs, image)
        else:
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
            index["manifests"] = [_write_image(blobs, one) for one in image]
            descriptor = _write_blob(blobs, INDEX, json.dumps(index).encode())
        tagged[tag] = {**descriptor, "annotations": {REF_NAME: tag}}
    (directory / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    top = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(tagged.values())}
    (directory / "index.json").write_text(json.dumps(top))
    return tagged


def write_docker_archive(path: Path, image: Image, tag: str) -> None:
    """Write the archive of `image` that `docker save` made before it wrote OCI layouts.

    Layers keep their compression: `docker save` writes them plain, download-frozen-image.sh as it fetched
    them. A layer that comes twice is a symlink to its first copy, as in Docker's archives.
    """
    config = image.config_blob
    config_name = f"{_hex(config)}.json"
    entries: list[Entry] = [File(config_name, config)]
    layer_names: list[str] = []
    written: dict[str, str] = {}
    parent = ""
    for layer in image.layers:
        parent = _hex(f"{parent} {layer.diff_id}".encode())
        name = f"{parent}/layer.tar"
        entries += [Dir(parent), File(f"{parent}/VERSION", b"1.0")]
        if first := written.get(layer.diff_id):
            entries.append(Symlink(name, f"../{first}"))
        else:
            written[layer.diff_id] = name
            entries.append(File(name, layer.blob))
        layer_names.append(name)
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": layer_names}]
    repository, _, label = tag.rpartition(":")
    entries.append(File("manifest.json", json.dumps(manifest).encode()))
    entries.append(File("repositories", json.dumps({repository: {label: parent}}).encode()))
    path.write_bytes(Layer(entries, compression=None).tar)


def host_shell_layers() -> list[Layer]:
    """One layer in which `run` finds a shell and common commands, taken from this machine.

    Busybox with a link for each of its commands where it is installed, else `/bin/sh` and a few programs;
    either with the shared libraries that ldd names.
    """
    entries: list[Entry] = [Dir(name) for name in ("bin", "etc", "proc", "sys", "dev", "root")]
    entries += [
        Dir("tmp", mode=0o1777),
        File("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
        File("etc/group", b"root:x:0:\nnogroup:x:65534:\n"),
    ]
    busybox = Path("/bin/busybox")
    if busybox.exists():
        programs = [busybox]
        applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
        entries += [Symlink(f"bin/{name}", "busybox") for name in applets.stdout.split() if name != "busybox"]
    else:
        names = ("sh", "cat", "chmod", "echo", "env", "false", "id", "ls", "mkdir", "rm", "sleep", "true")
        programs = [Path("/bin", name) for name in names]
    libraries = {library for program in programs for library in _shared_libraries(program)}
    for file in [*programs, *sorted(libraries)]:
        mode = stat.S_IMODE(file.stat().st_mode)
        entries.append(File(str(file).lstrip("/"), file.read_bytes(), mode))
    return [Layer(entries)]


def _shared_libraries(program: Path) -> list[Path]:
    # For a static program ldd fails and names no file.
    listing = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", listing)]


def _write_image(blobs: Path, image: Image) -> Descriptor:
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _write_blob(blobs, CONFIG, image.config_blob),
        "layers": [_write_blob(blobs, layer.media_type, layer.blob) for layer in image.layers],
    }
    descriptor = _write_blob(blobs, MANIFEST, json.dumps(manifest).encode())
    return {**descriptor, "platform": image.platform_fields}


def _write_blob(blobs: Path, media_type: str, data: bytes) -> Descriptor:
    (blobs / _hex(data)).write_bytes(data)
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{_hex(data)}"


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(raw: str | bytes) -> str:
    """What tarfile, which takes text only, writes back as these very bytes."""
    return raw if isinstance(raw, str) else raw.decode("utf-8", "surrogateescape")
