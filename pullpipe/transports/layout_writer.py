"""Images of the store as an OCI image layout (image-spec, image-layout.md): an archive of one, or a directory.

Every blob stays as it is, so all digests do. An image is called by its whole reference, in the annotation that skopeo
and podman look at and in the one that containerd and Docker do. A manifest with Docker's media type stays that, too;
skopeo copies it only without a name, and so only when it is alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from pullpipe import local
from pullpipe.errors import BadArgument, NotFound
from pullpipe.local import LocalImage
from pullpipe.oci import OCI_INDEX
from pullpipe.reference import Reference
from pullpipe.transports import CONTAINERD_NAME, REF_NAME
from pullpipe.transports.exports import Export, export
from pullpipe.transports.outputs import Tar, replaced, write_all, writing
from pullpipe.transports.stored import PIECE, proven
from store import Digest, ImageRecord, Store, durable
from store.digest import new_hash

_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
_EMPTY_INDEX = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
_STORE = {"version", "layers", "staging"}  # names that a store has, and a layout does not


class Layout(NamedTuple):
    """What a layout with some images holds."""

    entries: list[dict[str, Any]]  # of its index, in the order of the images
    blobs: dict[Digest, str]  # with a name of an image that needs it

    @property
    def names(self) -> list[str]:
        """What the images are called in it."""
        return [_name(entry) for entry in self.entries]


def plan(store: Store, images: Sequence[LocalImage]) -> Layout:
    """What a layout with these images has to hold. Raises `NotFound` when a blob of it is not in the store."""
    entries: dict[str, dict[str, Any]] = {}
    blobs: dict[Digest, str] = {}
    for image in images:
        found = export(store, image)
        entry = _entry(found, image.record)
        entries[_name(entry)] = entry
        blobs.update(dict.fromkeys([*found.documents, *found.blobs], found.reference))
    for blob, reference in sorted(blobs.items()):
        if blob not in store.blobs:
            raise NotFound(local.not_kept(store, blob, reference))
    return Layout(list(entries.values()), dict(sorted(blobs.items())))


def write_archive(store: Store, layout: Layout, archive: Tar) -> None:
    """Writes the layout's files. Raises `BadArgument`, or `VerificationError` when a blob of the store is damaged."""
    for blob, reference in layout.blobs.items():
        archive.add(_path(blob), store.blobs.size(blob) or 0, proven(store, blob, reference))
    archive.add("oci-layout", len(_LAYOUT), [_LAYOUT])
    index = _json({**_EMPTY_INDEX, "manifests": layout.entries})
    archive.add("index.json", len(index), [index])


def write_directory(store: Store, layout: Layout, path: str) -> None:
    """Adds the images to the layout in the directory at `path`, which is one, or is empty, or not there.

    Images of the same names are replaced. When it fails, the directory is as before. Raises as `write_archive`.
    """
    path = os.path.realpath(path)
    with _changing(path) as made:
        before = _opened(path, made)
        for blob, reference in layout.blobs.items():
            place = os.path.join(path, _path(blob))
            if not _has(place, blob):
                _make_directory(os.path.dirname(place), made)
                _make_file(place, proven(store, blob, reference), made)
        durable.sync_tree(path)
        names = set(layout.names)
        kept = [entry for entry in before["manifests"] if _name(entry) not in names]
        index = _json({**before, "manifests": [*kept, *layout.entries]})
        with replaced(os.path.join(path, "index.json")) as fd, writing(path):
            write_all(fd, index)
            os.fsync(fd)
            made.clear()  # from here on, the index may name them
        durable.sync_directory(path)


def _entry(found: Export, record: ImageRecord) -> dict[str, Any]:
    """The image as an index lists it."""
    entry: dict[str, Any] = {"mediaType": found.media_type, "digest": str(found.digest), "size": found.size}
    if found.digest == record.manifest:
        platform = {"os": record.os, "architecture": record.architecture, "variant": record.variant}
        entry["platform"] = {key: value for key, value in platform.items() if value}
    reference = Reference.parse(record.reference)
    if reference.digest is not None:  # a name with a digest is a claim, which has to be true of what goes by it
        reference = reference._replace(digest=found.digest)
    entry["annotations"] = dict.fromkeys((REF_NAME, CONTAINERD_NAME), str(reference))
    return entry


@contextmanager
def _changing(path: str) -> Iterator[list[str]]:
    """Makes the directory. What is put into the list is removed again when the block fails; other writers wait."""
    made: list[str] = []
    directory = -1
    try:
        _make_directory(path, made)
        with writing(path):
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield made
    except BaseException:
        for place in reversed(made):
            with suppress(OSError):
                os.rmdir(place) if os.path.isdir(place) else os.unlink(place)
        raise
    finally:
        if directory >= 0:
            os.close(directory)


def _opened(path: str, made: list[str]) -> dict[str, Any]:
    """The index of the layout in the directory; an empty one becomes a layout first."""
    with writing(path):
        names = set(os.listdir(path))
    if names >= _STORE:
        raise BadArgument(f"{path} is a store of pullpipe's own; name another directory with --output")
    if not names:
        _make_file(os.path.join(path, "oci-layout"), [_LAYOUT], made)
        _make_file(os.path.join(path, "index.json"), [_json(_EMPTY_INDEX)], made)
    elif not names >= {"oci-layout", "index.json"}:
        raise BadArgument(f"{path} is not empty and no OCI image layout; name a new directory with --output")
    try:
        with writing(path), open(os.path.join(path, "index.json"), "rb") as file:
            index: dict[str, Any] = json.load(file)
        for entry in index["manifests"]:
            _name(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadArgument(f"the index.json in {path} is damaged; name a new directory with --output") from error
    return index


def _make_directory(path: str, made: list[str]) -> None:
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path), made)
    with writing(path):
        os.mkdir(path)
    made.append(path)


def _make_file(path: str, pieces: Iterable[bytes], made: list[str]) -> None:
    if not os.path.lexists(path):
        made.append(path)
    with replaced(path) as fd:
        for piece in pieces:
            with writing(path):
                write_all(fd, piece)


def _has(path: str, blob: Digest) -> bool:
    """Whether the blob is there, every byte of it."""
    blob_hash = new_hash(blob.algorithm)
    try:
        with open(path, "rb", 0) as file:
            while piece := file.read(PIECE):
                blob_hash.update(piece)
    except OSError:
        return False
    return blob_hash.hexdigest() == blob.hex


def _path(blob: Digest) -> str:
    return f"blobs/{blob.algorithm}/{blob.hex}"


def _name(entry: dict[str, Any]) -> str:
    return str((entry.get("annotations") or {}).get(REF_NAME, ""))


def _json(document: object) -> bytes:
    return json.dumps(document, indent=1).encode()
