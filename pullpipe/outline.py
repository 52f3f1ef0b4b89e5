"""What a manifest or an index of any kind leads to: of images, and of artifacts, signatures and all else.

For whoever keeps documents without using them: the registry that serves them, the garbage collection, and pulls of all
that an index leads to. More lenient than `oci.parse_document`, which is for images that are about to be unpacked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pullpipe.errors import InvalidDocument
from pullpipe.oci import INDEXES, MANIFESTS, OCI_INDEX, OCI_MANIFEST, Descriptor
from store.digest import Digest
from store.errors import InvalidDigest


class Part(NamedTuple):
    """What a document names by a descriptor, of which no more than the digest has been looked at."""

    digest: Digest
    fields: Mapping[str, Any]  # the descriptor's
    what: str  # where it stands in the document

    @property
    def is_document(self) -> bool:
        """Whether it is a manifest or an index, by its media type."""
        return self.fields.get("mediaType") in (*INDEXES, *MANIFESTS)

    def descriptor(self) -> Descriptor:
        """All of it, parsed strictly. Raises `InvalidDocument`."""
        return Descriptor.from_json(self.fields, self.what)


class Outline(NamedTuple):
    """A manifest or an index, as far as its keeper must know it."""

    media_type: str
    size: int  # bytes
    manifests: tuple[Part, ...]  # that it lists, if it is an index; some may be of other kinds
    blobs: tuple[Part, ...]  # its config, first, and layers
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
        config, subject = _one(document, "config"), _one(document, "subject")
        own_type = document.get("artifactType") or (config[0].fields.get("mediaType") if config else "")
        return cls(
            media_type,
            len(data),
            manifests=_several(document, "manifests"),
            blobs=config + _several(document, "layers"),
            subject=subject[0].digest if subject else None,
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


def _one(document: dict[str, Any], name: str) -> tuple[Part, ...]:
    """What may be left out."""
    return (_part(document[name], name),) if document.get(name) is not None else ()


def _several(document: dict[str, Any], name: str) -> tuple[Part, ...]:
    values = document.get(name) or []
    if not isinstance(values, list):
        raise InvalidDocument(f"{name} is {type(values).__name__}, where a list must stand")
    return tuple(_part(value, f"{name}[{number}]") for number, value in enumerate(values))


def _part(value: object, what: str) -> Part:
    fields = _object(value, what)
    try:
        return Part(Digest.parse(str(fields.get("digest"))), fields, what)
    except InvalidDigest as error:
        raise InvalidDocument(f"{what}.digest: {error}") from error
