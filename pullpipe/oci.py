"""Manifests, indexes, configs and descriptors: parsed strictly, immutable (OCI image-spec 1.1, Docker image spec v2.2).

Unknown fields are ignored, as the specs demand; known fields of the wrong type, and documents that could be read in two
ways, are errors (CVE-2021-41190). Nothing here touches a network or a disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from pullpipe.errors import InvalidDocument, NoSuchPlatform
from store.digest import Digest
from store.errors import InvalidDigest

_T = TypeVar("_T")

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_LAYER_PREFIXES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")

# What a registry may send as one document. distribution-spec asks for at least 4 MiB; containerd takes 8.
DOCUMENT_LIMIT = 8 << 20

# What `uname -m` says, as the Go names that images use.
_MACHINES = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
    "i386": ("386", ""),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_DEFAULT_VARIANTS = {"arm": "v7", "arm64": "v8"}


class Platform(NamedTuple):
    """`os/architecture[/variant]` in Go's names: linux/amd64, linux/arm/v7."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Raises `InvalidDocument` for anything but two or three parts."""
        parts = text.split("/")
        if not 2 <= len(parts) <= 3 or not all(parts):
            raise InvalidDocument(f"invalid platform {text!r}: expected OS/ARCH or OS/ARCH/VARIANT, as linux/arm64")
        return cls(*parts)

    @classmethod
    def of_this_machine(cls) -> Platform:
        """What this kernel runs."""
        machine = os.uname().machine
        return cls("linux", *_MACHINES.get(machine, (machine, "")))

    def accepts(self, other: Platform) -> bool:
        """Whether an image for `other` is what was asked for. arm64 and arm64/v8 are one, arm means arm/v7."""
        return self._key() == other._key()

    def _key(self) -> tuple[str, str, str]:
        variant = self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")
        return self.os, self.architecture, variant

    def __str__(self) -> str:
        return "/".join(filter(None, self))


class Descriptor(NamedTuple):
    """A blob by media type, digest and size in bytes (image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = MappingProxyType({})
    urls: tuple[str, ...] = ()  # where it may be had besides

    @classmethod
    def from_json(cls, value: object, what: str) -> Descriptor:
        """`what` names the place in the document for the error."""
        fields = _expect(value, dict, what)
        platform = None
        if fields.get("platform") is not None:
            found = _expect(fields["platform"], dict, f"{what}.platform")
            platform = Platform(
                _text(found, "os", f"{what}.platform"),
                _text(found, "architecture", f"{what}.platform"),
                _text(found, "variant", f"{what}.platform", default=""),
            )
        size = fields.get("size")
        if type(size) is not int or size < 0:
            raise InvalidDocument(f"{what}.size is {size!r}, not a number of bytes")
        annotations = _optional(fields, "annotations", dict, what) or {}
        return cls(
            media_type=_text(fields, "mediaType", what),
            digest=_digest(fields.get("digest"), f"{what}.digest"),
            size=size,
            platform=platform,
            annotations={key: _text(annotations, key, f"{what}.annotations") for key in annotations},
        )


class Manifest(NamedTuple):
    """One image of one platform."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]  # lowest first


class Index(NamedTuple):
    """A choice of manifests, or of further indexes."""

    media_type: str
    manifests: tuple[Descriptor, ...]

    def choose(self, platform: Platform, reference: object) -> Descriptor:
        """The first entry for this platform; failing that, the only image there is when it names no platform.

        Entries of unknown media types and attestations (platform unknown/unknown) are passed over. An index in the
        index counts when it names the platform, or none. Raises `NoSuchPlatform`.
        """
        known = [
            entry
            for entry in self.manifests
            if entry.media_type in MANIFESTS | INDEXES and not (entry.platform and entry.platform.os == "unknown")
        ]
        for entry in known:
            if entry.platform is not None and platform.accepts(entry.platform):
                return entry
        unnamed = [entry for entry in known if entry.platform is None]
        if len(unnamed) == 1:
            return unnamed[0]
        offered = sorted({str(entry.platform) for entry in known if entry.platform})
        there = f"it has {', '.join(offered)}; choose one with --platform" if offered else "it has none at all"
        raise NoSuchPlatform(f"{reference} has no image for {platform}: {there}")


class ImageConfig(NamedTuple):
    """What the image's config says (image-spec, config.md)."""

    platform: Platform
    diff_ids: tuple[Digest, ...]  # lowest first, one for each of the manifest's layers
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    user: str
    created: str  # RFC 3339, or empty

    @classmethod
    def parse(cls, data: bytes, *, layers: int) -> ImageConfig:
        """Raises `InvalidDocument`, also when it does not have a diffID for each of the manifest's `layers`."""
        document = _load(data, "image config")
        rootfs = _expect(document.get("rootfs"), dict, "config.rootfs")
        diff_ids = _optional(rootfs, "diff_ids", list, "config.rootfs") or []
        if len(diff_ids) != layers:
            raise InvalidDocument(
                f"the image is inconsistent: its manifest has {layers} layers and its config {len(diff_ids)}"
            )
        settings = _optional(document, "config", dict, "config") or {}
        return cls(
            platform=Platform(
                _text(document, "os", "config"),
                _text(document, "architecture", "config"),
                _text(document, "variant", "config", default=""),
            ),
            diff_ids=tuple(_digest(value, "config.rootfs.diff_ids") for value in diff_ids),
            env=_texts(settings, "Env"),
            entrypoint=_texts(settings, "Entrypoint"),
            cmd=_texts(settings, "Cmd"),
            working_dir=_text(settings, "WorkingDir", "config.config", default=""),
            user=_text(settings, "User", "config.config", default=""),
            created=_text(document, "created", "config", default=""),
        )


def parse_document(data: bytes, content_type: str = "") -> Manifest | Index:
    """A manifest or an index; `content_type` is what came with it, if anything did.

    Raises `InvalidDocument` for what is neither, what could be both, and what is no image.
    """
    document = _load(data, "manifest")
    stated = _text(document, "mediaType", "manifest", default="")
    arrived = content_type.partition(";")[0].strip()
    known = INDEXES | MANIFESTS | _SCHEMA_1
    if stated and arrived in known and stated != arrived:
        raise InvalidDocument(
            f"the manifest calls itself {stated} and came as {arrived}: refused, one of the two is wrong"
        )
    media_type = stated or (arrived if arrived in known else "") or _guess(document)
    if media_type in _SCHEMA_1 or document.get("schemaVersion") == 1:
        raise InvalidDocument(
            "this image has the old schema 1 manifest, which is not supported; push it again with a current tool"
        )
    if document.get("schemaVersion") != 2:
        raise InvalidDocument(f"the manifest's schemaVersion is {document.get('schemaVersion')!r}, not 2")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidDocument("the manifest is an index and an image at once: refused")
    if media_type in INDEXES:
        entries = _expect(document.get("manifests"), list, "index.manifests")
        return Index(media_type, tuple(Descriptor.from_json(e, f"index.manifests[{n}]") for n, e in enumerate(entries)))
    if media_type in MANIFESTS:
        return _parse_manifest(document, media_type)
    raise InvalidDocument(f"{media_type[:200]!r} is no image manifest")


def _parse_manifest(document: dict[str, Any], media_type: str) -> Manifest:
    config = Descriptor.from_json(document.get("config"), "manifest.config")
    if config.media_type not in _CONFIGS:
        kind = _text(document, "artifactType", "manifest", default="") or config.media_type
        raise InvalidDocument(f"this is an artifact ({kind[:200]}), not a container image: nothing to unpack")
    layers = _expect(document.get("layers"), list, "manifest.layers")
    descriptors = tuple(Descriptor.from_json(e, f"manifest.layers[{n}]") for n, e in enumerate(layers))
    for number, layer in enumerate(descriptors):
        if not layer.media_type.startswith(_LAYER_PREFIXES) or layer.media_type.endswith("+encrypted"):
            raise InvalidDocument(f"layer {number} has the media type {layer.media_type[:200]!r}, which is no layer's")
    return Manifest(media_type, config, descriptors)


def _guess(document: dict[str, Any]) -> str:
    """The media type of an OCI document that states none, by its fields (image-spec, manifest.md)."""
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def _load(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"the {what} is not JSON: {data[:40]!r}…") from error
    return _expect(document, dict, what)


def _expect(value: object, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise InvalidDocument(f"{what} is {type(value).__name__}, where {kind.__name__} must stand")
    return value


def _optional(fields: dict[str, Any], name: str, kind: type[_T], what: str) -> _T | None:
    """What may be left out, or be null, as Go's encoder writes it."""
    value = fields.get(name)
    return None if value is None else _expect(value, kind, f"{what}.{name}")


def _text(fields: dict[str, Any], name: str, what: str, *, default: str | None = None) -> str:
    value = fields.get(name)
    if value is None and default is not None:
        return default
    return _expect(value, str, f"{what}.{name}")


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _optional(fields, name, list, "config.config") or []
    return tuple(_expect(value, str, f"config.config.{name}") for value in values)


def _digest(value: object, what: str) -> Digest:
    try:
        return Digest.parse(_expect(value, str, what))
    except InvalidDigest as error:
        raise InvalidDocument(f"{what}: {error}") from error


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chainID of each layer with all below it (image-spec, config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
