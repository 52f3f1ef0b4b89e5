"""What `load` takes: an OCI layout or a Docker archive; a directory, a tar archive (compressed or not), a stream."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from pullpipe.errors import BadArgument, InvalidReference
from pullpipe.pipe.inflate import HEAD, archive_called, compression_of, inflate
from pullpipe.reference import Reference
from pullpipe.transports import Source
from pullpipe.transports.docker_archive import DockerArchiveSource
from pullpipe.transports.files import Archive, Directory, Files
from pullpipe.transports.layout import LayoutSource

_PIECE = 1 << 20
_SUFFIXES = re.compile(r"(\.(tar|tgz|gz|tzst|zst|oci))+$")


class Loadable(NamedTuple):
    """One image that can be loaded."""

    source: Source
    wanted: str  # what to ask the source for
    references: tuple[Reference, ...]  # under what names to keep it


@contextmanager
def opened(path: str, name: str | None, spool: str) -> Iterator[list[Loadable]]:
    """The images at `path`; `-` is standard input.

    `name` is what the user calls the image, when there is one image only. A stream or a compressed archive goes
    through a temporary file in the directory `spool`. Raises `BadArgument`, `PullpipeError` or `OSError`.
    """
    if os.path.isdir(path):
        yield _find(Directory(path), path, os.path.basename(os.path.realpath(path)), name)
        return
    with tempfile.TemporaryFile(dir=spool) as plain:
        if path == "-":
            path = "standard input"
            plain_path, stem = _spool(sys.stdin.buffer, path, plain), ""
        else:
            stem = _SUFFIXES.sub("", os.path.basename(path))
            with open(path, "rb") as file:
                with archive_called(path):
                    compression = compression_of(file.read(HEAD))
                file.seek(0)
                plain_path = path if compression == "none" else _spool(file, path, plain)
        yield _find(Archive(plain_path, path), path, stem, name)


def _spool(file: BinaryIO, path: str, plain: BinaryIO) -> str:
    with archive_called(path):
        for piece in inflate(lambda: file.read(_PIECE)):
            plain.write(piece)
    plain.flush()
    return f"/proc/self/fd/{plain.fileno()}"


def _find(files: Files, path: str, stem: str, name: str | None) -> list[Loadable]:
    if files.find("index.json") is not None:
        layout = LayoutSource(files)
        found = [
            Loadable(layout, str(digest), _references((stated,) if stated else (), stem, name))
            for stated, digest in layout.images()
        ]
    elif files.find("manifest.json") is not None:
        found = [
            Loadable(DockerArchiveSource(files, member), "", _references(member.tags, stem, name))
            for member in DockerArchiveSource.images(files)
        ]
    else:
        raise BadArgument(
            f"{path} is no OCI image layout and no Docker archive: no index.json, no manifest.json; "
            f"`pullpipe import {path} NEW` takes the archive of a root file system"
        )
    if name is not None and len(found) != 1:
        raise BadArgument(f"{len(found)} images are there, and one name cannot serve them all; leave --tag away")
    for image in found:
        for reference in image.references:
            # Such a name is a promise, which `run` relies on. Podman compresses anew and keeps the old name.
            if reference.digest is not None and str(reference.digest) != image.wanted:
                raise BadArgument(
                    f"the image cannot be called {reference}: its digest is {image.wanted or 'not in the archive'}; "
                    "give it another name with --tag"
                )
    return found


def _references(stated: tuple[str, ...], stem: str, name: str | None) -> tuple[Reference, ...]:
    """Under what names to keep an image: the user's, else what it states; a bare tag goes with the file's name."""
    if name is not None:
        return (Reference.parse(name),)
    if not stated and not stem:
        raise BadArgument("the image has no name; give it one with --tag NAME")
    whole = [text if "/" in text or ":" in text or not stem else f"{stem}:{text}" for text in stated] or [stem]
    try:
        return tuple(Reference.parse(text) for text in whole)
    except InvalidReference as error:
        raise BadArgument(f"the image has no name that can be used ({error}); give it one with --tag NAME") from error
