"""How an image's layers are unpacked by hand, each into a directory that is named by its number, for overlayfs.

What `tar` alone would do wrong comes from the layers' trees in the store: whiteouts, directories that no entry
describes, and what a layer cannot know alone (`pipe.settle` tells of all that).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from pullpipe.look.shell import quoted
from pullpipe.look.view import Entry, Source, View, sources
from store import Store

SAME = """\
# same FROM TO: TO gets the owner, mode and time of FROM.
same() { chown --reference="$1" "$2" && chmod --reference="$1" "$2" && touch --reference="$1" "$2"; }
# plain TO: those of a directory of which nothing is known.
plain() { chown 0:0 "$1" && chmod 0755 "$1" && touch --date=@0 "$1"; }"""

_TAR = (
    "tar --extract --file {archive} --directory {number} --delay-directory-restore --exclude='.wh.*'{renamed} \\\n"
    "    --same-owner --numeric-owner --preserve-permissions --xattrs --xattrs-include='*' "
    "--xattrs-exclude='*.overlay.*'"
)


class Unpacking:
    """The commands for each layer of an image, and what they come to."""

    def __init__(self, store: Store, image: LocalImage) -> None:
        self._store = store
        self._diff_ids = image.config.diff_ids
        self._layers = sources(store, image)
        self.view = View(image.record.reference, self._layers)

    @property
    def stacked(self) -> list[int]:
        """The numbers of the layers to be stacked, the topmost first. One with an opaque root hides the rest."""
        found = []
        for layer in self._layers[::-1]:
            found.append(layer.number)
            if layer.info.opaque_root:
                break
        return found

    def layer(self, number: int, archive: str) -> Iterator[str]:
        """How to unpack this one, the lower ones being unpacked."""
        layer, lower = self._layers[number - 1], View("", self._layers[: number - 1])
        alone = View("", [layer], whiteouts=True)
        entries = list(alone.walk(alone.root()))
        yield f"mkdir {number}"
        yield from _hidden(number, entries)
        renamed = ""
        if layer.files != self._store.layers.files(self._diff_ids[number - 1]):
            info = self._store.layers.info(self._diff_ids[number - 1])
            moved = _moved((*info.implied, *info.presumed), lower)
            for path, real in moved:
                yield f"# {_shown(path)} is a symlink in a layer below: what this one has there goes to {_shown(real)}."
                renamed += f" \\\n    --transform={quoted(_rule(path, real))}"
            yield from self._brought_up(number, entries, lower)
        yield _TAR.format(archive=archive, number=number, renamed=renamed)
        yield from _described(number, layer, View("", self._layers[:number]))

    def root(self, place: str) -> str:
        """How to give the directory at `place` the attributes of the image's root."""
        root = self.view.root()
        return f"same {root.layer} {place}" if root.described else f"plain {place}"

    def _brought_up(self, number: int, entries: Sequence[Entry], lower: View) -> Iterator[str]:
        """Files of lower layers, that the layer has further names for, are copied as overlayfs would do it."""
        linked = {entry.path for entry in entries if not entry.is_directory and entry.status.st_nlink > 1}
        below = {path: entry for path, entry in lower.among(linked).items() if not entry.is_directory}
        if below:
            yield "# This one has hard links to files of lower layers: copies of those have to be here."
        for path, entry in sorted(below.items()):
            place, copied = quoted(f"{number}/{_parent(path)}"), quoted(f"{number}/{path}")
            yield f"mkdir --parents {place} && cp --archive {quoted(f'{entry.layer}/{path}')} {copied}"


def _hidden(number: int, entries: Sequence[Entry]) -> Iterator[str]:
    """What the layer takes away, and directories that the archive has for nothing else."""
    hidden = [entry for entry in entries if entry.path and (entry.is_whiteout or entry.opaque)]
    if hidden:
        yield (
            "# What it takes away is in the archive as empty files: .wh.NAME hides NAME of the layers below, and\n"
            "# .wh..wh..opq all that is in a directory. overlayfs knows them as a device 0:0 with the name, and by an\n"
            "# attribute of the directory."
        )
    by_tar = {
        parent for entry in entries if entry.described and not entry.is_whiteout for parent in _with_parents(entry.path)
    }
    needed = {entry.path for entry in entries if entry.is_directory and not entry.described} - by_tar
    needed |= {entry.path if entry.opaque else _parent(entry.path) for entry in hidden}
    above = {parent for path in needed for parent in _with_parents(_parent(path))}
    if places := [quoted(f"{number}/{path}") for path in sorted(needed - above) if path]:
        yield f"mkdir --parents {' '.join(places)}"
    for entry in hidden:
        place = quoted(f"{number}/{entry.path}")
        yield f"setfattr --name=trusted.overlay.opaque --value=y {place}" if entry.opaque else f"mknod {place} c 0 0"


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = _parent(path)


def _moved(paths: Sequence[str], lower: View) -> list[tuple[str, str]]:
    """Which of the directories are symlinks in the layers below, and where these lead; longer paths first."""
    found = {}
    known = lower.among(set(paths))
    for path in paths:
        if path and not (path in known and known[path].is_directory):
            with suppress(BadArgument):
                if lower.find(f"/{path}").target:
                    found[path] = lower.find(f"/{path}", follow=True).path
    return sorted(found.items(), reverse=True)


def _rule(path: str, real: str) -> str:
    """Of `tar --transform`, for names of entries and of hard links' targets, and not for symlinks' targets."""
    pattern, target = re.sub(r"[][\\.*^$,]", r"\\\g<0>", path), re.sub(r"[\\&,]", r"\\\g<0>", real)
    return rf"s,^\(\./\)*{pattern}/,{target}/,S"


def _described(number: int, layer: Source, stacked: View) -> Iterator[str]:
    """The directories that tar has made on the way to others, which overlayfs would show in place of the real ones."""
    found = {path: entry for path, entry in stacked.among(set(layer.info.implied)).items() if entry.is_directory}
    if found:
        yield "# Directories without an entry of their own are as a layer below has them."
    for path, entry in sorted(found.items()):
        place = quoted(f"{number}/{path}")
        yield f"same {quoted(f'{entry.layer}/{path}')} {place}" if entry.described else f"plain {place}"


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _shown(path: str) -> str:
    return quoted(f"/{path}")
