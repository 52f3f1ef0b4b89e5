"""What a manifest or an index of any kind leads to: of images, and of artifacts, signatures and all else.

For whoever keeps documents without using them: the registry that serves them, and the garbage collection. More lenient
than `oci.parse_document`, which is for images that are about to be unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pullpipe.errors import InvalidDocument
from pullpipe.oci import INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST
from store.digest import Digest
from store.errors import InvalidDigest


class Outline(NamedTuple):
    """A manifest or an index, as far as its keeper must know it."""

    media_type: str
    size: int  # bytes
    manifests: tuple[Digest, ...]  # that it lists, if it is an index
    blobs: tuple[Digest, ...]  # that it needs beside it
    elsewhere: tuple[Digest, ...]  # blobs that its descriptors give URLs for
    subject: Digest | None  # the manifest that it says something about
    artifact_type: str  # what it is, if it says so
    annotations: Mapping[str, str]

    @classmethod
    def of(cls, data: bytes) -> Outline:
        """Raises `InvalidDocument` for what is neither, for what could be both, and for digests that are none.

        OCI documents may leave `mediaType` out (image-spec, manifest.md and image-index.md); then their form tells.
        """
        document = _object(_parse(data), "the document")
        is_index = "manifests" in document
        if is_index and ("layers" in document or "config" in document):
            raise InvalidDocument("the document is an index and a manifest at once")
        if not is_index and "layers" not in document:
            raise InvalidDocument("the document has no layers and no manifests: neither a manifest nor an index")
        media_type = document.get("mediaType", OCI_INDEX if is_index else OCI_MANIFEST)
        if not isinstance(media_type, str) or media_type not in (INDEXES if is_index else MANIFESTS):
            kind = "an index's" if is_index else "a manifest's"
            raise InvalidDocument(f"the document's mediaType is {str(media_type)[:200]!r}, which is not {kind}")
        config = [_object(document["config"], "config")] if document.get("config") is not None else []
        parts = config + _objects(document, "layers")
        own_type = document.get("artifactType") or (config[0].get("mediaType") if config else "")
        return cls(
            media_type,
            len(data),
            manifests=tuple(_digest(entry) for entry in _objects(document, "manifests")),
            blobs=tuple(_digest(part) for part in parts if not part.get("urls")),
            elsewhere=tuple(_digest(part) for part in parts if part.get("urls")),
            subject=_digest(_object(document["subject"], "subject")) if document.get("subject") is not None else None,
            artifact_type=own_type if isinstance(own_type, str) else "",
            annotations={
                key: value
                for key, value in _object(document.get("annotations") or {}, "annotations").items()
                if isinstance(value, str)
            },
        )


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidDocument("the document is not JSON") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidDocument(f"{what} is {type(value).__name__}, where an object must stand")
    return value


def _objects(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    values = document.get(name) or []
    if not isinstance(values, list):
        raise InvalidDocument(f"{name} is {type(values).__name__}, where a list must stand")
    return [_object(value, f"{name}[{number}]") for number, value in enumerate(values)]


def _digest(descriptor: dict[str, Any]) -> Digest:
    try:
        return Digest.parse(str(descriptor.get("digest")))
    except InvalidDigest as error:
        raise InvalidDocument(str(error)) from error
