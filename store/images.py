"""Image records: `index.json` of the OCI image layout that the store's root is (image-spec, image-layout.md).

A record says: this reference is this manifest. It is the last thing a pull writes, so a record names only what is
whole. Other programs read it too: `skopeo inspect oci:ROOT:REFERENCE`, `umoci ls --layout ROOT`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from store import durable, locks
from store.digest import Digest
from store.errors import Corrupt, InUse, NotInStore
from store.reserve import Reserve

_REF_NAME = "org.opencontainers.image.ref.name"
_RESOLVED = "dev.pullpipe.resolved"  # what the registry gave for the reference: the index's digest, if it was one
_REPOSITORY = "dev.pullpipe.repository"  # of what was pushed here: where it can be had by its digest


Over: TypeAlias = Digest | Literal["nothing", "anything"]  # a manifest that a reference may name, if it names any


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


class Entry(NamedTuple):
    """Any entry of `index.json`, whoever wrote it."""

    digest: Digest
    name: str  # its reference name; may be empty
    repository: str  # that it was pushed to, without a tag; empty for all others
    record: ImageRecord | None  # of a pull

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Entry:
        return cls(
            Digest.parse(fields["digest"]),
            _reference(fields),
            _repository(fields),
            ImageRecord._from_descriptor(fields) if _is_record(fields) else None,
        )


class Images:
    """The image records of the store at `root`, which may be any OCI image layout if it is only read."""

    def __init__(self, root: str, *, durable: bool) -> None:
        self._path = os.path.join(root, "index.json")
        self._lock = os.path.join(root, "index.lock")
        self._reserve = Reserve(root)
        self._durable = durable

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord._from_descriptor(entry) for entry in self._read()["manifests"] if _is_record(entry))

    def entries(self) -> list[Entry]:
        """All there is: of pulls, of pushes, of other programs."""
        return [Entry._of(entry) for entry in self._read()["manifests"]]

    def salvaged(self) -> tuple[list[Entry], bool]:
        """The entries that can be read, of a damaged document too; and whether it is one."""
        try:
            return self.entries(), False
        except Corrupt:
            return [Entry._of(entry) for entry in self._salvage()], True

    def mend(self) -> None:
        """Writes a damaged document anew, with those entries that can be read."""
        with locks.held(self._lock):
            try:
                self._read()
            except Corrupt:
                self._write(json.loads(EMPTY_INDEX), self._salvage())

    def foreign(self) -> list[Digest]:
        """The digests of all entries but those of pulls: other programs' and pushes'. Not ours to break."""
        return [entry.digest for entry in self.entries() if entry.record is None]

    def get(self, reference: str) -> ImageRecord | None:
        """The record of this reference, written in full."""
        return next((record for record in self if record.reference == reference), None)

    def put(self, record: ImageRecord, over: Over = "anything") -> None:
        """Adds the record, in place of one with the same reference, which may be `over`.

        Raises `InUse` when somebody else has given the reference to another image meanwhile.
        """
        with locks.held(self._lock):
            there = self.get(record.reference)
            if over != "anything" and (there.manifest if there else "nothing") not in (over, record.manifest):
                raise InUse(f"{record.reference} has become another image meanwhile, and is left as it is; do it again")
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
            self._reserve.removing(lambda: self._write(index, kept))

    def push(self, repository: str, tag: str, digest: Digest, media_type: str, size: int) -> None:
        """Has the manifest in the repository, and `tag`, unless that is empty, name it.

        What a tag named before stays there by its digest. Raises `InUse` when a pull's record has that name.
        """
        name = f"{repository}:{tag}"
        with locks.held(self._lock):
            index = self._read()
            entries = index["manifests"]
            descriptor = {"mediaType": media_type, "digest": str(digest), "size": size}
            if not any(_repository(entry) == repository and entry["digest"] == str(digest) for entry in entries):
                entries = [*entries, {**descriptor, "annotations": {_REPOSITORY: repository}}]
            if tag:
                if any(_is_record(entry) and _reference(entry) == name for entry in entries):
                    raise InUse(f"{name} was pulled; push under another name, or `pullpipe rmi {name}` first")
                entries = [entry for entry in entries if _reference(entry) != name]
                entries.append({**descriptor, "annotations": {_REF_NAME: name}})
            self._write(index, entries)

    def untag(self, repository: str, tag: str) -> bool:
        """Takes the tag away, but not the manifest; says whether a push, or another program, had made it."""
        return self._remove_foreign(lambda entry: _reference(entry) == f"{repository}:{tag}")

    def withdraw(self, repository: str, digest: Digest) -> bool:
        """Takes the manifest out of the repository, with its tags; says whether it was there, but for pulls."""
        return self._remove_foreign(
            lambda entry: (
                entry["digest"] == str(digest)
                and repository in (_repository(entry), _reference(entry).rpartition(":")[0])
            )
        )

    def _remove_foreign(self, is_meant: Callable[[dict[str, Any]], bool]) -> bool:
        with locks.held(self._lock):
            index = self._read()
            entries = index["manifests"]
            kept = [entry for entry in entries if _is_record(entry) or not is_meant(entry)]
            if len(kept) < len(entries):
                self._reserve.removing(lambda: self._write(index, kept))
            return len(kept) < len(entries)

    def _read(self) -> dict[str, Any]:
        """The whole document, each entry of it checked."""
        try:
            with open(self._path, "rb") as file:
                index: dict[str, Any] = json.load(file)
            for entry in index["manifests"]:
                Entry._of(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise Corrupt(
                f"{self._path} is damaged ({error}); restore it, or keep what can be read by `pullpipe repair --remove`"
            ) from error
        else:
            return index

    def _salvage(self) -> list[dict[str, Any]]:
        """Whatever stands in the damaged text and is an entry."""
        with open(self._path, encoding="utf-8", errors="replace") as file:
            text = file.read()
        decoder = json.JSONDecoder()
        found = []
        at = text.find("{")
        while at >= 0:
            try:
                entry, end = decoder.raw_decode(text, at)
                Entry._of(entry)
                found.append(entry)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                end = at + 1  # an entry may stand within
            at = text.find("{", end)
        return found

    def _write(self, index: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        """Sorted, so that the text does not depend on the order of the pulls."""
        index = {**index, "manifests": sorted(entries, key=lambda entry: (_reference(entry), _repository(entry)))}
        durable.write_file(self._path, json.dumps(index, indent=1).encode(), durable=self._durable)


EMPTY_INDEX = b"""{
 "schemaVersion": 2,
 "mediaType": "application/vnd.oci.image.index.v1+json",
 "manifests": []
}"""


def _reference(entry: dict[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(_REF_NAME, ""))


def _repository(entry: dict[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(_REPOSITORY, ""))


def _is_record(entry: dict[str, Any]) -> bool:
    """Whether a pull wrote this entry; one of a push, or that another program added to the layout, is kept as it is."""
    return _RESOLVED in (entry.get("annotations") or {})
