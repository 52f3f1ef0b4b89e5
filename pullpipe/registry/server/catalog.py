"""What the registry has, by the names that clients use.

An image that was pulled is kept by its whole reference, docker.io/library/alpine:3.20. Its repository is
`docker.io/library/alpine`, and `library/alpine` too when that is clear: of several registries that have one, the client
says by `?ns=REGISTRY` which it means, as containerd does with a mirror, or docker.io's is meant. What was pushed has
the name that it was pushed under, and that goes first.

index.json is read anew for each question, so the answers are always those of now. All methods block on the disk.
"""

from __future__ import annotations

import json
from collections import deque
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

from pullpipe.errors import InvalidDocument, InvalidReference
from pullpipe.oci import DOCUMENT_LIMIT, OCI_INDEX
from pullpipe.outline import Outline
from pullpipe.reference import DEFAULT_REGISTRY, REPOSITORY, Reference
from pullpipe.registry.server.refusals import Refused, parse_digest, unknown_blob, unknown_manifest
from store.blobs import Blobs
from store.digest import Digest
from store.errors import NotInStore
from store.images import Entry, Images

_OUTLINES = 1024  # of manifests that stay in memory


class Document(NamedTuple):
    """A manifest or an index, to be sent."""

    digest: Digest
    media_type: str
    data: bytes


class _Image(NamedTuple):
    """One entry of index.json, by its names."""

    repository: str  # in full
    short: str  # without the registry it came from; else empty
    tag: str  # may be empty
    documents: tuple[Digest, ...]  # what the tag leads to, best first

    @classmethod
    def of(cls, entry: Entry) -> _Image | None:
        """None for an entry whose name no client could ask for."""
        if entry.record is not None:
            try:
                reference = Reference.parse(entry.name)
            except InvalidReference:
                return None
            tag = "" if reference.digest else reference.tag or ""
            # The tag names an index, most often; of that the store has one platform's manifest, and the index itself.
            documents = (entry.record.resolved, entry.record.manifest)
            return cls(reference.name, reference.repository, tag, documents)
        repository, _, tag = (entry.repository, "", "") if entry.repository else entry.name.rpartition(":")
        return cls(repository, "", tag, (entry.digest,)) if repository else None


class Catalog:
    """The images and blobs of the OCI image layout at `root`, a store's or any other."""

    def __init__(self, root: str) -> None:
        self._images = Images(root, durable=False)
        self._blobs = Blobs(root)
        self._outline = lru_cache(_OUTLINES)(self._read_outline)

    def check(self) -> None:
        """Raises `OSError` or `StoreError` when there is no layout, or a damaged one."""
        self._images.entries()

    def blob(self, digest: Digest) -> str:
        """The blob's path. Raises `Refused`. A layout does not say whose a blob is, so every name reaches each."""
        if digest not in self._blobs:
            raise unknown_blob(digest)
        return self._blobs.path(digest)

    def repositories(self) -> list[str]:
        """All names under which something can be had, sorted."""
        images = self._all()
        whole = {image.repository for image in images}
        # A registry with a port is nothing that a repository's name may begin with.
        names = {name if REPOSITORY.fullmatch(name) else self._short(name, images) for name in whole}
        return sorted(name for name in names if REPOSITORY.fullmatch(name) and _meant(images, name, ""))

    @staticmethod
    def _short(name: str, images: list[_Image]) -> str:
        return next(image.short for image in images if image.repository == name)

    def tags(self, name: str, namespace: str) -> list[str]:
        """The tags of the repository, sorted. Raises `Refused` when there is no such repository."""
        return sorted({image.tag for image in self._find(name, namespace) if image.tag})

    def document(self, name: str, namespace: str, reference: str) -> Document:
        """What the tag or the digest leads to in the repository. Raises `Refused`."""
        images = self._find(name, namespace)
        if ":" in reference:  # no tag has one
            digest = parse_digest(reference)
            wanted: tuple[Digest, ...] = (digest,) if self._has(images, digest) else ()
        else:
            wanted = next((image.documents for image in images if image.tag == reference), ())
        for digest in wanted:
            try:
                data = self._read(digest)
                return Document(digest, Outline.of(data).media_type, data)
            except (InvalidDocument, NotInStore):
                continue
        raise unknown_manifest(name, reference)

    def referrers(self, name: str, namespace: str, subject: Digest, artifact_type: str) -> bytes:
        """An index of the manifests that are about `subject`; with an `artifact_type`, of those of that type."""
        try:
            images = self._find(name, namespace)
        except Refused:
            images = []  # "MUST NOT return 404"
        descriptors = []
        for digest, outline in self._reachable(images).items():
            if outline.subject == subject and artifact_type in ("", outline.artifact_type):
                descriptor = {"mediaType": outline.media_type, "digest": str(digest), "size": outline.size}
                if outline.artifact_type:
                    descriptor["artifactType"] = outline.artifact_type
                if outline.annotations:
                    descriptor["annotations"] = dict(outline.annotations)
                descriptors.append(descriptor)
        return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}).encode()

    def _all(self) -> list[_Image]:
        return [image for entry in self._images.entries() if (image := _Image.of(entry))]

    def _find(self, name: str, namespace: str) -> list[_Image]:
        images = self._all()
        found = _meant(images, name, namespace)
        if not found:
            raise Refused(HTTPStatus.NOT_FOUND, "NAME_UNKNOWN", _why_not(images, name))
        return found

    def _has(self, images: list[_Image], digest: Digest) -> bool:
        return any(digest in image.documents for image in images) or digest in self._reachable(images)

    def _reachable(self, images: list[_Image]) -> dict[Digest, Outline]:
        """All manifests and indexes of a repository: those that it names, and those that its indexes list."""
        found: dict[Digest, Outline] = {}
        left = deque(digest for image in images for digest in image.documents)
        while left:
            digest = left.popleft()
            if digest in found or digest not in self._blobs:
                continue
            try:
                found[digest] = self._outline(digest)
            except (InvalidDocument, NotInStore):
                continue
            left.extend(part.digest for part in found[digest].manifests)
        return found

    def _read(self, digest: Digest) -> bytes:
        if (self._blobs.size(digest) or 0) > DOCUMENT_LIMIT:
            raise InvalidDocument("a layer, most likely: not to be read into memory")
        return self._blobs.read(digest, verify=False)

    def _read_outline(self, digest: Digest) -> Outline:
        return Outline.of(self._read(digest))


def _meant(images: list[_Image], name: str, namespace: str) -> list[_Image]:
    """The images of the one repository that a client means by this; empty when there is none, or no telling."""
    whole = f"{namespace}/{name}" if namespace else name
    found = [image for image in images if image.repository == whole]
    if found or namespace:
        return found
    candidates = {image.repository for image in images if image.short == name}
    hub = f"{DEFAULT_REGISTRY}/{name}"
    meant = hub if hub in candidates else next(iter(candidates)) if len(candidates) == 1 else None
    return [image for image in images if image.repository == meant]


def _why_not(images: list[_Image], name: str) -> str:
    if candidates := sorted({image.repository for image in images if image.short == name}):
        return f"{name} could be {' or '.join(candidates)}: ask for one of these, or say which by ?ns=REGISTRY"
    return f"no image is named {name}:TAG"
