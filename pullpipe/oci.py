"""Manifests, indexes, configs and descriptors: parsed strictly, immutable (OCI image-spec 1.1, Docker image spec v2.2).

Unknown fields are ignored, as the specs demand; known fields of the wrong type, and documents that could be read in two
ways, are errors (CVE-2021-41190). Nothing here touches a network or a disk.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, TypeVar

from pullpipe.errors import InvalidDocument
from pullpipe.platforms import Platform
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
# What old registries and clients called the config of a schema 2 image; Docker and containerd take it, too.
_OLD_DOCKER_CONFIGS = frozenset({"application/octet-stream", "application/json", "text/html", ""})
_SCHEMA_1 = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
_LAYER_PREFIXES = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")

# What a registry may send as one document. distribution-spec asks for at least 4 MiB; containerd takes 8.
DOCUMENT_LIMIT = 8 << 20

# ASCII without blanks; with a host, and without a user's name or password before it.
_URL = re.compile(r"(?=[!-~]+\Z)https?://[^/?#@\\]+(?:[/?#].*)?", re.IGNORECASE)


class Descriptor(NamedTuple):
    """A blob by media type, digest and size in bytes (image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = MappingProxyType({})
    urls: tuple[str, ...] = ()  # where else it can be had, by http or https
    data: bytes | None = None  # the blob itself, size and digest proven, where the descriptor has it in it

    @classmethod
    def from_json(cls, value: object, what: str) -> Descriptor:
        """`what` names the place in the document for the error."""
        fields = _expect(value, dict, what)
        platform = None
        if fields.get("platform") is not None:
            found = _expect(fields["platform"], dict, f"{what}.platform")
            platform = Platform.of(
                _text(found, "os", f"{what}.platform"),
                _text(found, "architecture", f"{what}.platform"),
                _text(found, "variant", f"{what}.platform", default=""),
            )
        size = fields.get("size")
        if type(size) is not int or size < 0:
            raise InvalidDocument(f"{what}.size is {size!r}, not a number of bytes")
        digest = _digest(fields.get("digest"), f"{what}.digest")
        annotations = _optional(fields, "annotations", dict, what) or {}
        urls = _optional(fields, "urls", list, what) or []
        return cls(
            media_type=_text(fields, "mediaType", what),
            digest=digest,
            size=size,
            platform=platform,
            annotations={key: _text(annotations, key, f"{what}.annotations") for key in annotations},
            urls=tuple(url for url in urls if _URL.fullmatch(_expect(url, str, f"{what}.urls"))),
            data=_data(_text(fields, "data", what, default=""), digest, size, f"{what}.data"),
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

    @property
    def images(self) -> tuple[Descriptor, ...]:
        """The entries but for those of unknown media types, and attestations (platform unknown/unknown)."""
        return tuple(
            entry
            for entry in self.manifests
            if entry.media_type in MANIFESTS | INDEXES and not (entry.platform and entry.platform.os == "unknown")
        )


def best(entries: Iterable[Descriptor], platform: Platform) -> Descriptor | None:
    """The entry that suits the platform best; of several that suit it alike, the first, as image-index.md says."""
    suitable = [
        (distance, entry)
        for entry in entries
        if entry.platform is not None and (distance := platform.distance(entry.platform)) is not None
    ]
    return min(suitable, key=lambda item: item[0])[1] if suitable else None


class ImageConfig(NamedTuple):
    """What the image's config says (image-spec, config.md)."""

    platform: Platform  # old images leave it out: for Linux, then, on whatever architecture they were asked for
    diff_ids: tuple[Digest, ...]  # lowest first, one for each of the manifest's layers
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    user: str
    stop_signal: str  # a name or a number, or empty
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
            platform=Platform.of(
                _text(document, "os", "config", default="") or "linux",
                _text(document, "architecture", "config", default=""),
                _text(document, "variant", "config", default=""),
            ),
            diff_ids=tuple(_digest(value, "config.rootfs.diff_ids") for value in diff_ids),
            env=_texts(settings, "Env"),
            entrypoint=_texts(settings, "Entrypoint"),
            cmd=_texts(settings, "Cmd"),
            working_dir=_text(settings, "WorkingDir", "config.config", default=""),
            user=_text(settings, "User", "config.config", default=""),
            stop_signal=_text(settings, "StopSignal", "config.config", default=""),
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
    taken = _CONFIGS | _OLD_DOCKER_CONFIGS if media_type == DOCKER_MANIFEST else _CONFIGS
    if config.media_type not in taken:
        kind = _text(document, "artifactType", "manifest", default="") or config.media_type
        raise InvalidDocument(f"this is an artifact ({kind[:200]}), not a container image: nothing to unpack")
    layers = _list(document, "layers", "manifest")
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
        document = json.loads(data.decode(), parse_constant=_refuse)  # of bytes, it would take UTF-16, too
    except (ValueError, RecursionError) as error:
        raise InvalidDocument(f"the {what} is not JSON: {data[:40]!r}…") from error
    return _expect(document, dict, what)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is none of JSON's values")


def _expect(value: object, kind: type[_T], what: str) -> _T:
    if not isinstance(value, kind):
        raise InvalidDocument(f"{what} is {type(value).__name__}, where {kind.__name__} must stand")
    return value


def _list(fields: dict[str, Any], name: str, what: str) -> list[Any]:
    """What must be there, and may be null when it is empty, as Go's encoder writes it."""
    if name not in fields:
        raise InvalidDocument(f"{what} has no {name}")
    return _optional(fields, name, list, what) or []


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


def _data(text: str, digest: Digest, size: int, what: str) -> bytes | None:
    """A descriptor's `data` (image-spec, descriptor.md): base64 of RFC 4648, and the very blob."""
    if not text:
        return None
    try:
        data = a2b_base64(text, strict_mode=True)
    except ValueError as error:
        raise InvalidDocument(f"{what} is not base64: {error}") from error
    if len(data) != size or not digest.matches(data):
        raise InvalidDocument(f"{what} is not what digest and size beside it say: refused, one of the two is wrong")
    return data


def chain_ids(diff_ids: Sequence[Digest]) -> list[Digest]:
    """The chainID of each layer with all below it (image-spec, config.md, "Layer ChainID")."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(Digest.of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain
