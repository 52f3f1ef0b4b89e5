"""What takes how much room in a store, and what of it nothing needs: for `df` and `prune`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import NamedTuple

from pullpipe import local, stack
from pullpipe.reference import DEFAULT_REGISTRY
from store import Container, Digest, ImageRecord, InUse, NotInStore, Store, StoreError
from store.gc import unused
from store.sizes import disk_usage

WEEK = 7 * 24 * 3600.0  # seconds


class Waste(NamedTuple):
    """Something to remove."""

    kind: str  # "container", "image", "layer", "blob", "partial" or "leftover"
    name: str  # a container's name, a reference, a digest, or a file's name
    size: int  # bytes; an image's are those of its layers and blobs, which stand for themselves


class Wanted(NamedTuple):
    """What besides garbage is to be removed."""

    images: bool = False  # those that no container uses
    containers: bool = False  # those that have ended
    age: float | None = (
        None  # seconds at least since the image's pull, the container's start, a partial blob's last byte
    )
    references: tuple[str, ...] = ()  # only images with such names; * ? and […] as in a shell


class ImageUsage(NamedTuple):
    """One image's room, in bytes."""

    reference: str
    blobs: int  # compressed, as far as they are kept
    unpacked: int  # its layers, on disk
    unique: int  # the same, of layers that no other image has


class Total(NamedTuple):
    """Of one kind."""

    entries: int
    size: int  # bytes
    unused: int  # bytes that nothing needs


class Usage(NamedTuple):
    """Of a store."""

    images: list[ImageUsage]
    blobs: Total
    layers: Total
    containers: Total  # unused: of those that have ended
    partials: Total
    leftovers: Total
    strays: Total  # what is not the store's


def measure(store: Store) -> Usage:
    """Looks at every file of the layers and the containers, as nothing else tells the blocks that they take."""
    with store.shared():
        dead = unused(store, local.marks(store, store.images, store.containers))
        blobs = {digest: store.blobs.size(digest) or 0 for digest in store.blobs}
        loaded = list(local.readable(store))
    layers = {diff_id: store.layers.disk_usage(diff_id) for diff_id in store.layers}
    variants = {chain_id: store.variants.disk_usage(chain_id) for chain_id in store.variants}
    upper = {container: disk_usage(store.containers.path(container)) for container in store.containers}
    ended = sum(size for container, size in upper.items() if not is_in_use(store, container))
    partials = [each.size for each in store.blobs.partials()]
    left, strays = ([disk_usage(path) for path in paths] for paths in (store.leftovers(), store.strays()))
    return Usage(
        _images(loaded, blobs, layers),
        Total(len(blobs), sum(blobs.values()), sum(blobs[digest] for digest in dead.blobs)),
        Total(
            len(layers) + len(variants),
            sum(layers.values()) + sum(variants.values()),
            sum(layers.get(diff_id, 0) for diff_id in dead.layers)
            + sum(variants.get(chain_id, 0) for chain_id in dead.variants),
        ),
        Total(len(upper), sum(upper.values()), ended),
        Total(len(partials), sum(partials), sum(partials)),
        Total(len(left), sum(left), sum(left)),
        Total(len(strays), sum(strays), 0),
    )


def _images(
    loaded: Sequence[local.LocalImage], blobs: Mapping[Digest, int], layers: Mapping[Digest, int]
) -> list[ImageUsage]:
    users = Counter(diff_id for image in loaded for diff_id in set(image.config.diff_ids))
    return [
        ImageUsage(
            image.record.reference,
            sum(blobs.get(digest, 0) for digest in {layer.digest for layer in image.manifest.layers}),
            sum(layers.get(diff_id, 0) for diff_id in set(image.config.diff_ids)),
            sum(layers.get(diff_id, 0) for diff_id in set(image.config.diff_ids) if users[diff_id] == 1),
        )
        for image in sorted(loaded, key=lambda image: image.record)
    ]


def waste(store: Store, wanted: Wanted) -> list[Waste]:
    """Garbage, and what is wanted besides: blobs and layers that nothing needs, what a crash left, old partials."""
    with store.shared():
        containers = [container for container in store.containers if _is_wanted(store, container, wanted)]
        used = {container.image for container in store.containers if container not in containers}
        images = [record for record in sorted(store.images) if _is_wanted_image(store, record, wanted, used)]
        dead = unused(
            store,
            local.marks(
                store,
                [record for record in store.images if record not in images],
                [container for container in store.containers if container not in containers],
            ),
        )
    found = [Waste("container", each.name, disk_usage(store.containers.path(each))) for each in containers]
    found += [Waste("image", record.reference, 0) for record in images]
    found += [Waste("layer", str(diff_id), store.layers.disk_usage(diff_id)) for diff_id in dead.layers]
    found += [Waste("layer", str(chain_id), store.variants.disk_usage(chain_id)) for chain_id in dead.variants]
    found += [Waste("blob", str(digest), store.blobs.size(digest) or 0) for digest in dead.blobs]
    age = WEEK if wanted.age is None else wanted.age
    found += [
        Waste("partial", str(each.digest), each.size) for each in store.blobs.partials() if _is_old(each.touched, age)
    ]
    found += [Waste("leftover", os.path.basename(path), disk_usage(path)) for path in store.leftovers()]
    return found


def remove(store: Store, found: Sequence[Waste]) -> tuple[list[Waste], list[StoreError | OSError]]:
    """Removes it, unless somebody has begun to need it since; what a crash left first, so that there is room again.

    Returns what is gone, and why the rest of it is not, where that is not somebody's need.
    """
    failed: list[StoreError | OSError] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            work()
        except (InUse, NotInStore):
            pass
        except (StoreError, OSError) as error:
            failed.append(error)

    attempt(store.clean)
    for each in found:
        if each.kind == "partial":
            attempt(partial(store.blobs.forget, Digest.parse(each.name)))
    ended = {each.name for each in found if each.kind == "container"}
    for container in list(store.containers):
        if container.name in ended:
            attempt(partial(store.containers.remove, container))
    for each in found:
        if each.kind == "image":
            attempt(partial(store.images.remove, each.name))
    attempt(partial(local.collect, store))
    left = _present(store, found)
    return [each for each in found if (each.kind, each.name) not in left], failed


def _present(store: Store, found: Sequence[Waste]) -> set[tuple[str, str]]:
    """What of this is in the store, and more."""
    digests = {"layer": [*store.layers, *store.variants], "blob": list(store.blobs)}
    digests["partial"] = [
        digest
        for digest in (Digest.parse(each.name) for each in found if each.kind == "partial")
        if store.blobs.arrived(digest)
    ]
    return {
        *(("container", container.name) for container in store.containers),
        *(("image", record.reference) for record in store.images),
        *(("leftover", os.path.basename(path)) for path in store.leftovers()),
        *((kind, str(digest)) for kind, some in digests.items() for digest in some),
    }


def _is_wanted(store: Store, container: Container, wanted: Wanted) -> bool:
    return wanted.containers and not is_in_use(store, container) and _is_old(container.created, wanted.age or 0)


def is_in_use(store: Store, container: Container) -> bool:
    """Whether it runs, or can be seen somewhere."""
    return store.containers.is_running(container) or stack.is_mounted(container)


def _is_wanted_image(store: Store, record: ImageRecord, wanted: Wanted, used: Collection[str]) -> bool:
    if not wanted.images or record.reference in used:
        return False
    if wanted.references and not any(_matches(record.reference, pattern) for pattern in wanted.references):
        return False
    return not wanted.age or _is_old(store.blobs.made(record.manifest), wanted.age)


def _matches(reference: str, pattern: str) -> bool:
    """By the whole name, or by the short one that it may have at Docker Hub."""
    hub = f"{DEFAULT_REGISTRY}/"
    names = {reference, reference.removeprefix(hub), reference.removeprefix(f"{hub}library/")}
    return any(fnmatchcase(name, pattern) for name in names)


def _is_old(moment: float, age: float) -> bool:
    return time.time() - moment >= age
