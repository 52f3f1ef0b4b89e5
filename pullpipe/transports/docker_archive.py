"""Docker archives as a source: what `docker save` and moby's download-frozen-image script write.

    manifest.json      [{"Config": "<id>.json", "RepoTags": ["alpine:3.20"], "Layers": ["<id>/layer.tar", …]}]

The form has no manifest as registries know it, so one is made here: its layers are the archive's as they are, and an
uncompressed layer's digest is its diffID, which the config tells.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

from pullpipe.errors import InvalidDocument, NotFound
from pullpipe.oci import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, ImageConfig
from pullpipe.pipe.inflate import HEAD, Compression, compression_of
from pullpipe.transports import Document
from pullpipe.transports.files import Extent, Files
from store import Digest
from store.digest import new_hash


class Member(NamedTuple):
    """One image of the archive."""

    tags: tuple[str, ...]
    config: str  # file names in the archive
    layers: tuple[str, ...]


class DockerArchiveSource:
    """One image of a Docker archive."""

    def __init__(self, files: Files, member: Member) -> None:
        self._files = files
        self._member = member
        self._blobs: dict[Digest, Extent] = {}
        self._document: Document | None = None

    @staticmethod
    def images(files: Files) -> list[Member]:
        """The images that manifest.json lists. Raises `NotFound` and `InvalidDocument`."""
        manifest = files.find("manifest.json")
        if manifest is None:
            raise NotFound("there is no manifest.json: not a Docker archive")
        try:
            entries: list[dict[str, Any]] = json.loads(manifest.document())
            return [_member(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidDocument("manifest.json is not a Docker archive's: the archive is damaged") from error

    async def resolve(self, wanted: str) -> Digest:
        """The digest of the manifest that is made here; `wanted` does not matter, there is one image."""
        return (await self.document(wanted)).digest

    async def document(self, wanted: str) -> Document:
        """The manifest that is made here, or a document by digest."""
        if self._document is None:
            self._document = await asyncio.to_thread(self._make_manifest)
        return self._document

    @asynccontextmanager
    async def blob(self, descriptor: Descriptor, offset: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The blob's bytes from `offset` on."""
        async with aclosing(self._blobs[descriptor.digest].pieces(offset)) as pieces:
            yield pieces

    def has_here(self, blob: Digest) -> bool:
        """Whether the archive has it."""
        return blob in self._blobs

    def doubt(self, blob: Digest) -> list[str]:
        """There is no other place to have it from."""
        return []

    def _make_manifest(self) -> Document:
        config = self._find(self._member.config)
        data = config.document()
        parsed = ImageConfig.parse(data, layers=len(self._member.layers))
        config_digest = Digest.of(data)
        self._blobs[config_digest] = config
        layers = []
        for name, diff_id in zip(self._member.layers, parsed.diff_ids, strict=True):
            extent = self._find(name)
            compression = _compression(extent)
            digest = diff_id if compression == "none" else _digest(extent)
            self._blobs[digest] = extent
            media_type = OCI_LAYER if compression == "none" else f"{OCI_LAYER}+{compression}"
            layers.append({"mediaType": media_type, "digest": str(digest), "size": extent.size})
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": str(config_digest), "size": len(data)},
            "layers": layers,
        }
        document = json.dumps(manifest).encode()
        return Document(document, OCI_MANIFEST, Digest.of(document))

    def _find(self, name: str) -> Extent:
        extent = self._files.find(name)
        if extent is None:
            raise NotFound(f"the archive has no file {name!r}, which its manifest.json names")
        return extent


def _member(entry: dict[str, Any]) -> Member:
    """Raises `TypeError` and its like for what is none."""
    tags, config, layers = entry.get("RepoTags") or [], entry["Config"], entry["Layers"] or []
    if not isinstance(tags, list) or not all(isinstance(name, str) for name in [config, *tags, *layers]):
        raise TypeError("names are texts")
    return Member(tuple(tags), config, tuple(layers))


def _compression(extent: Extent) -> Compression:
    with open(extent.path, "rb") as file:
        file.seek(extent.offset)
        return compression_of(file.read(min(HEAD, extent.size)))


def _digest(extent: Extent) -> Digest:
    """A compressed layer's: only reading it tells."""
    blob_hash = new_hash("sha256")
    left = extent.size
    with open(extent.path, "rb") as file:
        file.seek(extent.offset)
        while left and (piece := file.read(min(left, 1 << 20))):
            blob_hash.update(piece)
            left -= len(piece)
    return Digest("sha256", blob_hash.hexdigest())
