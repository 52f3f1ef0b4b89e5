"""What is in a store, what leads to it, and what of it is wrong, as far as names, sizes and documents tell.

The contents of blobs and trees are for `pipe.replay` to check.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple, TypeAlias

from pullpipe import local
from pullpipe.errors import InvalidDocument, NotFound
from pullpipe.oci import Descriptor, chain_ids
from pullpipe.progress import human_size
from pullpipe.reference import Reference
from store import Corrupt, Digest, NotInStore, Store, StoreError, Trees
from store.sizes import content_size, disk_usage

State: TypeAlias = Literal["damaged", "mended", "unchecked", "orphan", "leftover"]
Key: TypeAlias = tuple[str, Digest]  # a blob's, layer's, variant's or stack's

WRONG_DIGEST = "its bytes have another digest"


class Finding(NamedTuple):
    """Something that the user of the store should know."""

    state: State
    kind: str  # blob, layer, variant, stack, image, container, index, file
    name: str  # a digest, a reference, an id, a path below the store's root
    problem: str
    users: tuple[str, ...] = ()  # the images, and the containers as `container NAME`, that need it
    remedy: str = ""

    def __str__(self) -> str:
        users = f" of {', '.join(self.users)}" if self.users else ""
        return f"{self.state} {self.kind} {self.name}{users}: {self.problem}" + (
            f"; {self.remedy}" if self.remedy else ""
        )


class Survey:
    """A look at the store, for all of it or for these images only. The caller holds the store.

    Raises `NotFound` for an image that is not there, `OSError`, `StoreError`.
    """

    def __init__(self, store: Store, references: Collection[str] = ()) -> None:
        self.store = store
        self.trees: Mapping[str, Trees[Any]] = {
            "layer": store.layers,
            "variant": store.variants,
            "stack": store.stacks,
        }
        self.images: list[local.LocalImage] = []  # those whose documents are there
        self.pulled: set[str] = set()  # the references of all images
        self.users: dict[Key, dict[str, None]] = {}  # what leads to it, in order
        self.blobs: dict[Digest, Descriptor | None] = {}  # all that are led to, and how; None: a manifest or index
        self.needed: set[Digest] = set()  # the blobs without which an image cannot be
        self.problems: dict[Key, str] = {}
        self.others: list[Finding] = []  # of what no digest names
        self._only = frozenset(references)
        self._configs: set[Digest] = set()
        self._sources: dict[Digest, dict[Digest, Descriptor]] = {}
        if self._look_at_root():
            self._look()

    def concerns(self, key: Key) -> bool:
        """Whether we are to look at it."""
        return not self._only or not self._only.isdisjoint(self.users.get(key, ()))

    @property
    def chosen_names(self) -> AbstractSet[str]:
        """The references of the images that we are to look at."""
        return self._only or self.pulled

    @property
    def chosen(self) -> list[local.LocalImage]:
        """Those of them whose documents are there."""
        return [image for image in self.images if image.record.reference in self.chosen_names]

    def sources(self, diff_id: Digest) -> list[Descriptor]:
        """The blobs that the layer may have come from, by all images, in the store or not."""
        return list(self._sources.get(diff_id, {}).values())

    def stored_blobs(self) -> list[Descriptor]:
        """The blobs in the store whose bytes nobody has looked at yet; an orphan's descriptor knows its size alone."""
        blobs = {digest: blob for digest, blob in self.blobs.items() if self.concerns(("blob", digest))}
        if not self._only:
            orphans = [digest for digest in self.store.blobs if digest not in blobs]
            blobs |= {digest: Descriptor("", digest, self.store.blobs.size(digest) or 0) for digest in orphans}
        return [
            blob
            for digest, blob in blobs.items()
            if blob
            and digest in self.store.blobs
            and digest not in self._configs
            and ("blob", digest) not in self.problems
        ]

    def references(self, key: Key) -> list[Reference]:
        """The images that need it, as far as they were pulled."""
        return [Reference.parse(name) for name in self.users.get(key, ()) if name in self.pulled]

    def finding(self, state: State, key: Key, problem: str, remedy: str = "") -> Finding:
        """What to say of it."""
        return Finding(state, key[0], str(key[1]), problem, tuple(self.users.get(key, ())), remedy)

    def findings(self) -> list[Finding]:
        """All that was found."""
        damaged = (self.finding("damaged", key, problem, self.remedy(key)) for key, problem in self.problems.items())
        return [*damaged, *self.others]

    def suspects(self) -> set[Key]:
        """The layers and variants whose files have more or fewer bytes than were unpacked.

        An archive that has a file twice, too, makes such a tree; only unpacking it again can tell.
        """
        return {
            key for key in self.users if key[0] in ("layer", "variant") and self.concerns(key) and self.suspect(key)
        }

    def suspect(self, key: Key) -> str:
        """What makes the layer or variant one; empty when nothing does."""
        trees = self.trees[key[0]]
        if key in self.problems:
            return ""
        try:
            found, recorded = content_size(trees.files(key[1])), trees.info(key[1]).size
        except (FileNotFoundError, NotInStore):
            return ""  # removed meanwhile
        except OSError as error:
            return f"it cannot be read: {error.strerror}"
        return f"its files have {found} bytes, and {recorded} were unpacked" if found != recorded else ""

    def remedy(self, key: Key) -> str:
        """What helps against damage of it."""
        if key not in self.users:
            return "`pullpipe repair` removes it"
        if key[0] != "blob":
            return "`pullpipe repair` makes it anew"
        if self.pulled.isdisjoint(self.users[key]):
            return "push it again"
        return "`pullpipe repair` fetches it again"

    def _look_at_root(self) -> bool:
        """Whether there is all that it takes to look further."""
        root = self.store.root
        for path, problem in self.store.problems():
            self.others.append(Finding("damaged", "file", path, problem, (), "`pullpipe repair` sets it right"))
        return all(os.path.isdir(os.path.join(root, found.name)) for found in self.others if found.name != "oci-layout")

    def _look(self) -> None:
        # First what there is, then what leads to it: what is published in between is led to.
        there: dict[str, list[Digest]] = {"blob": list(self.store.blobs)}
        there |= {kind: list(trees) for kind, trees in self.trees.items()}
        certain = self._look_at_records()
        self._look_at_containers()
        for key in list(self.users):
            if self.concerns(key):
                self._check(key)
        if not self._only:
            damaged = (digest for kind, digest in self.problems if kind == "blob")
            if certain and not any(self.blobs[digest] is None or digest in self._configs for digest in damaged):
                self._look_for_orphans(there)  # else what seems to be one may be what a damaged document leads to
            self._look_for_leftovers()

    def _look_at_records(self) -> bool:
        """Whether all of them can be read."""
        entries, damaged = self.store.images.salvaged()
        if damaged:
            remedy = "`pullpipe repair --remove` keeps those, and forgets the others"
            problem = f"only {len(entries)} of its entries can be read"
            self.others.append(Finding("damaged", "index", "index.json", problem, (), remedy))
        self.pulled = {entry.record.reference for entry in entries if entry.record}
        for reference in sorted(self._only - self.pulled if not damaged else ()):
            raise NotFound(f"{reference} is not in the store; `pullpipe images` lists what is")
        for entry in entries:
            name = entry.name or f"{entry.repository}@{entry.digest}"
            record = entry.record
            for led in local.led_to(self.store, *((record.manifest, record.resolved) if record else (entry.digest,))):
                self._uses(name, "blob", led.digest)
                self.blobs[led.digest] = self._described(led)
                if record is None and not led.here and not (led.part and led.part.fields.get("urls")):
                    self.needed.add(led.digest)
            if record is not None:
                self.needed |= {record.manifest, record.resolved}
                try:
                    config = local.manifest_of(self.store, record).config.digest
                    self.needed.add(config)
                    self._configs.add(config)
                    image = local.load(self.store, record)
                except StoreError:
                    continue  # a blob's trouble, which will be found
                except InvalidDocument as error:
                    remedy = "`pullpipe repair --remove` removes the image"
                    self.others.append(Finding("damaged", "image", name, str(error), (name,), remedy))
                    continue
                self.images.append(image)
                for blob, diff_id in image.layers:
                    self._sources.setdefault(diff_id, {})[blob.digest] = blob
                self._uses(name, "layer", *image.config.diff_ids)
                self._look_at_stack(image.chain_id, name)
        return not damaged

    def _described(self, led: local.Led) -> Descriptor | None:
        try:
            return led.part and led.part.descriptor()
        except InvalidDocument:  # an odd one, which a push was taken with
            return Descriptor("", led.digest, self.store.blobs.size(led.digest) or 0)

    def _look_at_containers(self) -> None:
        containers, damaged = self.store.containers.salvaged()
        for container in containers:
            self._look_at_stack(container.stack, f"container {container.name}")
        for container_id in () if self._only else damaged:
            remedy = f"`pullpipe rm {container_id}` removes the container"
            self.others.append(Finding("damaged", "container", container_id, "its record is damaged", (), remedy))

    def _look_at_stack(self, chain_id: Digest, name: str) -> None:
        self._uses(name, "stack", chain_id)
        if not self.store.stacks.problem(chain_id):
            info = self.store.stacks.info(chain_id)
            self._uses(name, "layer", *info.layers)
            self._uses(name, "variant", *info.variants)

    def _uses(self, name: str, kind: str, *digests: Digest) -> None:
        for digest in digests:
            self.users.setdefault((kind, digest), {})[name] = None

    def _check(self, key: Key) -> None:
        kind, digest = key
        problem = self._wrong_with_blob(digest) if kind == "blob" else self.trees[kind].problem(digest)
        if not problem and kind == "layer" and self.store.layers.info(digest).diff_id != digest:
            problem = "its layer.json is another layer's"
        if not problem and kind == "stack":
            problem = self._wrong_with_stack(digest)
        if problem:
            self.problems[key] = problem

    def _wrong_with_blob(self, digest: Digest) -> str:
        size, blob = self.store.blobs.size(digest), self.blobs[digest]
        if size is None:
            return "it is not there" if digest in self.needed else ""
        if blob is not None and size != blob.size:
            return f"it has {size} bytes instead of {blob.size}"
        if blob is None or digest in self._configs:
            try:
                self.store.blobs.read(digest)
            except Corrupt as error:
                return "it cannot be read" if error.__cause__ else WRONG_DIGEST
        return ""

    def _wrong_with_stack(self, chain_id: Digest) -> str:
        store = self.store
        info = store.stacks.info(chain_id)
        own = os.path.relpath(store.stacks.files(chain_id), store.root)
        below = [store.layers.files(diff_id) for diff_id in info.layers]
        below += [store.variants.files(variant) for variant in info.variants]
        if {*info.lower} - {own} != {os.path.relpath(path, store.root) for path in below}:
            return "its stack.json contradicts itself"
        for image in self.images:
            if image.chain_id == chain_id and not (
                {*info.layers} <= {*image.config.diff_ids} and {*info.variants} <= {*chain_ids(image.config.diff_ids)}
            ):
                return "its stack.json is another stack's"
        return ""

    def _look_for_orphans(self, there: Mapping[str, Collection[Digest]]) -> None:
        leased = self.store.leases.current()
        for kind, digests in there.items():
            for digest in digests:
                key = kind, digest
                if key in self.users or (kind == "blob" and digest in leased):
                    continue
                if kind != "blob" and (problem := self.trees[kind].problem(digest)):
                    self.problems[key] = problem
                    continue
                size = self.store.blobs.size(digest) if kind == "blob" else None
                problem = "nothing leads to it" + (f", {human_size(size)}" if size is not None else "")
                self.others.append(self.finding("orphan", key, problem, "`pullpipe prune` removes it"))

    def _look_for_leftovers(self) -> None:
        left = [(path, "nobody is at it any more", "the next pull removes it") for path in self.store.leftovers()]
        for path in self.store.strays():
            problem = f"the store has not made it, {human_size(disk_usage(path))}"
            left.append((path, problem, "remove it, if nobody needs it"))
        for digest, size, _ in self.store.blobs.partials():
            path = os.path.join(self.store.root, "ingest", f"{digest.algorithm}-{digest.hex}")
            left.append((path, f"{human_size(size)} have arrived", "the next pull of it goes on from there"))
        for path, problem, remedy in left:
            name = os.path.relpath(path, self.store.root)
            self.others.append(Finding("leftover", "file", name, problem, (), remedy))
