"""Unpacked layers by diffID: one directory each, ready to be a lower directory of overlayfs.

    layers/<algorithm>/<diffID's hex>/fs/          the layer's tree, whiteouts in overlay form
    layers/<algorithm>/<diffID's hex>/layer.json   what was counted and recorded while it was unpacked (`LayerInfo`)

A layer is written under `staging/` and published by one rename, so a layer that is visible is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from store import durable
from store.digest import Digest
from store.errors import Corrupt, InvalidDigest, NotInStore
from store.locks import Lock


class LayerInfo(NamedTuple):
    """What `layer.json` holds."""

    diff_id: Digest
    size: int  # bytes of file content
    entries: int  # tar entries applied, whiteouts included
    whiteouts: int  # names hidden, opaque directories not counted
    opaque_root: bool  # hides every layer below
    implied: tuple[str, ...]  # directories that no entry described, "" the root; bytes as os.fsdecode gives them

    def to_json(self) -> bytes:
        """The document on disk."""
        fields = {**self._asdict(), "diff_id": str(self.diff_id), "implied": list(self.implied)}
        return json.dumps(fields, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LayerInfo:
        """Raises `ValueError`, `KeyError` or `TypeError` when it is not such a document."""
        fields: dict[str, Any] = json.loads(data)
        return cls(
            diff_id=Digest.parse(fields["diff_id"]),
            size=int(fields["size"]),
            entries=int(fields["entries"]),
            whiteouts=int(fields["whiteouts"]),
            opaque_root=bool(fields["opaque_root"]),
            implied=tuple(fields["implied"]),
        )


class Layers:
    """The layers of the store at `root`."""

    def __init__(self, root: str) -> None:
        self._directory = os.path.join(root, "layers")
        self._staging = os.path.join(root, "staging")

    def files(self, diff_id: Digest) -> str:
        """The directory with the layer's tree."""
        return os.path.join(self._path(diff_id), "fs")

    def _path(self, diff_id: Digest) -> str:
        return os.path.join(self._directory, diff_id.algorithm, diff_id.hex)

    def __contains__(self, diff_id: Digest) -> bool:
        return os.path.exists(self._path(diff_id))

    def __iter__(self) -> Iterator[Digest]:
        for algorithm in sorted(os.listdir(self._directory)):
            for name in sorted(os.listdir(os.path.join(self._directory, algorithm))):
                try:
                    yield Digest.parse(f"{algorithm}:{name}")
                except InvalidDigest:
                    continue

    def info(self, diff_id: Digest) -> LayerInfo:
        """Raises `NotInStore` or `Corrupt`."""
        path = os.path.join(self._path(diff_id), "layer.json")
        try:
            with open(path, "rb") as file:
                return LayerInfo.from_json(file.read())
        except FileNotFoundError as error:
            raise NotInStore(f"layer {diff_id} is not in the store; pull the image again") from error
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{path} is damaged; remove the image and pull it again") from error

    def lock(self, diff_id: Digest) -> Lock:
        """The lock of whoever makes this layer, so that it is made once. Release it with `remove=True`."""
        return Lock(os.path.join(self._staging, f"{diff_id.algorithm}-{diff_id.hex}.lock"))

    def stage(self, diff_id: Digest) -> Staging:
        """An empty directory to unpack this layer into. The caller holds the layer's lock.

        What an earlier owner of the lock left when it died is removed first.
        """
        path = os.path.join(self._staging, f"{diff_id.algorithm}-{diff_id.hex}")
        remove_tree(path)
        return Staging(path, self._path(diff_id))

    def clean(self) -> None:
        """Removes from `staging/` what a crash or kill left there: everything whose lock nobody holds."""
        for name in os.listdir(self._staging):
            path = os.path.join(self._staging, name)
            lock = Lock(path.removesuffix(".lock") + ".lock")
            if lock.try_acquire():
                if not name.endswith(".lock"):
                    remove_tree(path)
                lock.release(remove=True)

    def remove(self, diff_id: Digest) -> None:
        """Takes the layer out of sight in one step, and then removes its files. The caller holds `use.lock`."""
        doomed = os.path.join(self._staging, f"removed-{diff_id.algorithm}-{diff_id.hex}")
        lock = Lock(doomed + ".lock")
        lock.acquire()
        remove_tree(doomed)
        os.rename(self._path(diff_id), doomed)
        remove_tree(doomed)
        lock.release(remove=True)


class Staging:
    """A layer in the making."""

    def __init__(self, path: str, final: str) -> None:
        self.path = path
        self.files = os.path.join(path, "fs")
        self._final = final
        os.mkdir(path, 0o700)
        os.mkdir(self.files, 0o755)

    @property
    def parent(self) -> str:
        """The directory that the layer's name will stand in."""
        return os.path.dirname(self._final)

    def describe(self, info: LayerInfo) -> None:
        """Writes `layer.json`: the tree is complete and its diffID proven."""
        # Not flushed by itself: publishing flushes the whole file system once, before the rename.
        durable.write_file(os.path.join(self.path, "layer.json"), info.to_json(), durable=False)

    def commit(self) -> None:
        """Gives the layer its name. The caller has flushed it if it must be durable."""
        os.makedirs(os.path.dirname(self._final), mode=0o700, exist_ok=True)
        os.rename(self.path, self._final)

    def discard(self) -> None:
        """Removes the layer in the making; does nothing when it has been committed."""
        remove_tree(self.path)


def remove_tree(path: str) -> None:
    """Removes the directory at `path` with all that is in it, following no symlink; nothing there is fine."""
    if os.path.lexists(path):
        import shutil  # here, for it takes 2 ms that commands which remove nothing should not pay

        shutil.rmtree(path)
