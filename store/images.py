"""Image records: `index.json` of the OCI image layout that the store's root is (image-spec, image-layout.md).

A record says: this reference is this manifest. It is the last thing a pull writes, so a record names only what is
whole. Other programs read it too: `skopeo inspect oci:ROOT:REFERENCE`, `umoci ls --layout ROOT`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from store import durable, locks
from store.digest import Digest
from store.errors import Corrupt, NotInStore

_REF_NAME = "org.opencontainers.image.ref.name"
_RESOLVED = "dev.pullpipe.resolved"  # what the registry gave for the reference: the index's digest, if it was one


class ImageRecord(NamedTuple):
    """One entry of `index.json`."""

    reference: str  # in full, docker.io/library/alpine:3.20
    manifest: Digest  # of one platform's manifest
    media_type: str  # the manifest's
    size: int  # the manifest's, in bytes
    resolved: Digest  # what the reference named in the registry: an index, or the manifest itself
    os: str
    architecture: str
    variant: str = ""

    def _descriptor(self) -> dict[str, Any]:
        platform = {"os": self.os, "architecture": self.architecture}
        if self.variant:
            platform["variant"] = self.variant
        return {
            "mediaType": self.media_type,
            "digest": str(self.manifest),
            "size": self.size,
            "platform": platform,
            "annotations": {_REF_NAME: self.reference, _RESOLVED: str(self.resolved)},
        }

    @classmethod
    def _from_descriptor(cls, fields: dict[str, Any]) -> ImageRecord:
        annotations, platform = fields["annotations"], fields["platform"]
        return cls(
            reference=annotations[_REF_NAME],
            manifest=Digest.parse(fields["digest"]),
            media_type=fields["mediaType"],
            size=fields["size"],
            resolved=Digest.parse(annotations[_RESOLVED]),
            os=platform["os"],
            architecture=platform["architecture"],
            variant=platform.get("variant", ""),
        )


class Images:
    """The image records of the store at `root`."""

    def __init__(self, root: str, *, durable: bool) -> None:
        self._path = os.path.join(root, "index.json")
        self._lock = os.path.join(root, "index.lock")
        self._durable = durable

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord._from_descriptor(entry) for entry in self._read()["manifests"] if _is_record(entry))

    def foreign(self) -> list[Digest]:
        """The digests that other programs' entries name: theirs to remove, and not ours to break."""
        return [Digest.parse(entry["digest"]) for entry in self._read()["manifests"] if not _is_record(entry)]

    def get(self, reference: str) -> ImageRecord | None:
        """The record of this reference, written in full."""
        return next((record for record in self if record.reference == reference), None)

    def put(self, record: ImageRecord) -> None:
        """Adds the record, in place of one with the same reference."""
        with locks.held(self._lock):
            index = self._read()
            entries = [entry for entry in index["manifests"] if _reference(entry) != record.reference]
            self._write(index, [*entries, record._descriptor()])

    def remove(self, reference: str) -> None:
        """Raises `NotInStore`."""
        with locks.held(self._lock):
            index = self._read()
            entries = index["manifests"]
            kept = [entry for entry in entries if not _is_record(entry) or _reference(entry) != reference]
            if len(kept) == len(entries):
                raise NotInStore(f"no image {reference} in the store; `pullpipe images` lists them")
            self._write(index, kept)

    def _read(self) -> dict[str, Any]:
        """The whole document, each entry of it checked."""
        try:
            with open(self._path, "rb") as file:
                index: dict[str, Any] = json.load(file)
            for entry in index["manifests"]:
                Digest.parse(entry["digest"])
                if _is_record(entry):
                    ImageRecord._from_descriptor(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(f"{self._path} is damaged ({error}); restore it, or remove it and pull again") from error
        else:
            return index

    def _write(self, index: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Sorted by reference, so that the text does not depend on the order of the pulls."""
        index = {**index, "manifests": sorted(entries, key=_reference)}
        durable.write_file(self._path, json.dumps(index, indent=1).encode(), durable=self._durable)


EMPTY_INDEX = b"""{
 "schemaVersion": 2,
 "mediaType": "application/vnd.oci.image.index.v1+json",
 "manifests": []
}"""


def _reference(entry: dict[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(_REF_NAME, ""))


def _is_record(entry: dict[str, Any]) -> bool:
    """Whether a pull wrote this entry; one that another program added to the layout is kept, and not ours to read."""
    return _RESOLVED in (entry.get("annotations") or {})
