"""The store as a whole: one directory, its version, its locks, and the order in which a pull becomes visible."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any

from store import durable, guard, locks
from store.blobs import Blobs, Ingest
from store.containers import Containers
from store.errors import UnusableRoot
from store.images import EMPTY_INDEX, Images
from store.layers import LayerInfo, StackInfo
from store.leases import Leases
from store.namespace import is_machines_root
from store.removal import each_of
from store.reserve import Reserve
from store.trees import Staging, Trees, clean, leftovers, scratch

FORMAT = 1
_MADE = {"trusted": "by the machine's root", "user": "without the machine's root, in a user namespace"}
_LAYOUT = b'{"imageLayoutVersion": "1.0.0"}'
_FILES = ("oci-layout", "index.json", "version")
_LATER = ("reserve", "cache")  # that come when they are needed
_DIRECTORIES = (
    "blobs",
    "blobs/sha256",
    "ingest",
    "leases",
    "layers",
    "layers/sha256",
    "variants",
    "variants/sha256",
    "stacks",
    "stacks/sha256",
    "containers",
    "staging",
)


class Store:
    """A content-addressed store of blobs, unpacked layers, image records and containers.

    `root` is made, mode 0700, when it is not there. With `durable`, what has been published survives a power cut (see
    `store.durable`). Raises `UnusableRoot` when the directory is something else, another user's, or newer than this
    program, and `OSError` when it cannot be made. Users in `trusted`, by their ids, may put another directory in its
    place without being refused.

    Its trees have overlayfs's `trusted` attributes or, where the machine's root did not make them, `user` ones; of one
    kind for its life.
    """

    def __init__(self, root: str, *, durable: bool = True, trusted: Iterable[int] = ()) -> None:
        self.root = os.path.abspath(root)
        self._durable = durable
        self._attributes = "trusted" if is_machines_root() else "user"
        guard.check(self.root, _DIRECTORIES, _FILES, trusted)
        self._open()
        self.blobs = Blobs(self.root)
        self.leases = Leases(self.root)
        self.reserve = Reserve(self.root)
        self.layers = Trees(self.root, "layers", "layer.json", LayerInfo.from_json)
        self.variants = Trees(self.root, "variants", "layer.json", LayerInfo.from_json)
        self.stacks = Trees(self.root, "stacks", "stack.json", StackInfo.from_json)
        self.images = Images(self.root, durable=durable)
        self.containers = Containers(self.root, durable=durable)

    def _open(self) -> None:
        version = os.path.join(self.root, "version")
        try:
            with open(version, "rb") as file:
                found = file.read(64).strip()
        except FileNotFoundError:
            self._create(version)
        else:
            guard.check_closed(self.root)
            number, _, attributes = found.decode(errors="replace").partition(" ")
            attributes = attributes or "trusted"
            if not (number.isascii() and number.isdigit() and attributes in _MADE):
                raise UnusableRoot(f"{version} is damaged: it should hold the number {FORMAT}")
            if int(number) > FORMAT:
                raise UnusableRoot(
                    f"the store at {self.root} has format {int(number)}, and this pullpipe reads up to {FORMAT}; "
                    "use a newer pullpipe, or another --root"
                )
            if attributes != self._attributes:
                raise UnusableRoot(
                    f"the store at {self.root} was made {_MADE[attributes]}, and its layers cannot be stacked "
                    f"{_MADE[self._attributes]}; name another one with --root"
                )
            if not locks.exists(os.path.join(self.root, "index.json")):
                self._complete()  # somebody removed a damaged one

    def _create(self, version: str) -> None:
        os.makedirs(self.root, mode=0o700, exist_ok=True)
        self._check_new()
        os.chmod(self.root, 0o700)
        self._check_new()  # what others could put into it until now is there by now
        self._complete()

    def _check_new(self) -> None:
        """Raises `UnusableRoot` when there is more in the root than an interrupted creation leaves, or another's."""
        names = os.listdir(self.root)
        if not all(map(_is_ours, names)):
            raise UnusableRoot(
                f"{self.root} is not a pullpipe store and not empty; name an empty or new directory with --root"
            )
        for name in names:
            if name != "lost+found":
                guard.check_part(os.path.join(self.root, name), stat.S_IFREG, stat.S_IFDIR)

    def _complete(self) -> None:
        """Makes what is missing; the version last, for where it stands the rest does."""
        with locks.held(os.path.join(self.root, "create.lock")):
            for name in _DIRECTORIES:
                with suppress(FileExistsError):
                    os.mkdir(os.path.join(self.root, name), 0o700)
            version = f"{FORMAT}\n" if self._attributes == "trusted" else f"{FORMAT} {self._attributes}\n"
            contents = (_LAYOUT, EMPTY_INDEX, version.encode())
            for name, data in zip(_FILES, contents, strict=True):
                if not locks.exists(os.path.join(self.root, name)):
                    durable.write_file(os.path.join(self.root, name), data, durable=self._durable)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For a short block of code that relies on what is in the store: nothing is swept meanwhile."""
        with locks.held(os.path.join(self.root, "use.lock"), shared=True):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """For a block of code that removes what is unused; waits until nobody relies on it."""
        with locks.held(os.path.join(self.root, "use.lock")):
            yield

    def free(self) -> int | None:
        """Bytes that the file system still takes, as far as it knows; a quota may take fewer. None: it has no limit."""
        found = os.statvfs(self.root)
        if found.f_blocks == 0:  # a tmpfs with size=0
            return None
        return found.f_frsize * (found.f_bfree if is_machines_root() else found.f_bavail)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the store's own files and directories: (path below the root, what)."""
        for name in _DIRECTORIES:
            try:
                status = os.lstat(os.path.join(self.root, name))
            except FileNotFoundError:
                if name != "leases":  # which older programs did not make
                    yield name, "it is not there"
                continue
            if stat.S_IMODE(status.st_mode) != 0o700:
                yield name, f"its mode is {stat.S_IMODE(status.st_mode):04o} instead of 0700"
        try:
            with open(os.path.join(self.root, "oci-layout"), "rb") as file:
                if json.load(file)["imageLayoutVersion"] != "1.0.0":
                    yield "oci-layout", "it is of another version"
        except FileNotFoundError:
            yield "oci-layout", "it is not there"
        except (ValueError, KeyError, TypeError, RecursionError):
            yield "oci-layout", "it is damaged"

    def mend(self) -> None:
        """Has the store's own files and directories as they should be, but for the records. Raises `OSError`."""
        with locks.held(os.path.join(self.root, "create.lock")):
            for name, _ in self.problems():
                if name == "oci-layout":
                    durable.write_file(os.path.join(self.root, name), _LAYOUT, durable=self._durable)
            for name in _DIRECTORIES:
                os.makedirs(os.path.join(self.root, name), exist_ok=True)
                os.chmod(os.path.join(self.root, name), 0o700)

    def flush(self) -> None:
        """Has all that was written on disk, which may take seconds; so before others have to wait for a `publish`."""
        if self._durable:
            durable.sync_tree(self.root)

    def strays(self) -> list[str]:
        """The paths of what the store did not make, and which is in nobody's way. It stays."""
        own = [
            os.path.join(self.root, name) for name in os.listdir(self.root) if not (_is_ours(name) or name in _LATER)
        ]
        parts = (self.blobs, self.layers, self.variants, self.stacks, self.containers)
        return sorted([*own, *(path for part in parts for path in part.strays())])

    def leftovers(self) -> list[str]:
        """The paths of what `clean` would remove, but for locks."""
        return [*leftovers(self.root), *self.blobs.leftovers(), *self.containers.leftovers()]

    def clean(self) -> None:
        """Removes what a crash or kill left half made; where there is nothing of the kind, it only looks.

        It goes on past what cannot be removed, and raises the first such `OSError` in the end.
        """
        each_of([partial(clean, self.root), self.blobs.clean, self.containers.clean])

    def scratch(self) -> AbstractContextManager[str]:
        """An empty directory to mount something on, for the length of the block; `clean` removes it after a crash."""
        return scratch(self.root)

    def publish(self, blobs: Sequence[Ingest], trees: Sequence[Staging[Any]], *, flushed: bool = False) -> None:
        """Makes proven blobs and trees visible, in this order.

        One flush for all, unless the caller has done that when they were complete, then the renames, then the
        directories' names. A crash in between leaves some of them visible, each whole, and none of them recorded yet.
        """
        if not blobs and not trees:
            return
        self.reserve.keep()
        if not flushed:
            self.flush()
        arrived: list[Ingest | Staging[Any]] = [*blobs, *trees]
        for item in arrived:
            item.commit()
        if self._durable:
            parents = {item.parent for item in arrived}
            for directory in parents | {os.path.dirname(parent) for parent in parents}:
                durable.sync_directory(directory)


def _is_ours(name: str) -> bool:
    """Whether a creation that was interrupted, or that another process is at, may have made this."""
    return name.removesuffix(".tmp") in {*_DIRECTORIES, *_FILES, "lost+found"} or name.endswith(".lock")
