"""What a layer could not know alone, settled once all layers of an image are there.

Layers are unpacked without their parents, so that all unpack at once and one directory serves every image. For nearly
every layer that is the whole truth. What is left is settled here, before the image is recorded, and kept by chainID:

* A directory that no entry of a layer describes ("implied") has the attributes that a layer below gives it, as it would
  have if the layers had been applied in order. Overlayfs takes them from the topmost layer that has the directory; so a
  small tree of directories alone, with the right attributes, lies on top of the stack.
* An implied directory that is a symlink in a layer below (`lib -> usr/lib`, and a layer that has only `lib/x`), and a
  hard link to a file that only a layer below has: such a layer is unpacked a second time, on top of its parents, as a
  variant.
* A whiteout in a directory that no layer below has: overlayfs hides whiteouts only where it merges, so such a layer
  becomes a variant, too, without them.
* An opaque root hides all layers below, which overlayfs does not know: the stack is cut there. A layer that occurs
  twice is stacked once, on top: all that its lower copy says, the upper one says too. An empty layer is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Container, Sequence
from typing import NamedTuple

from pullpipe.errors import LayerError
from pullpipe.oci import chain_ids
from pullpipe.pipe.below import is_opaque, is_whiteout
from store import Digest, LayerInfo, StackInfo, Staging, Store

_OVERLAY = ("trusted.overlay.", "user.overlay.")


class Layer(NamedTuple):
    """A layer of the image, wherever its tree is at the moment."""

    diff_id: Digest
    chain_id: Digest
    files: str  # its tree
    published: str  # where the tree will be, relative to the store's root
    info: LayerInfo
    is_variant: bool = False


# A layer unpacked on top of directories (the topmost first): its tree, and what it turned out to be.
Variant = Callable[[Layer, Sequence[str]], Awaitable[tuple[str, LayerInfo]]]


async def settle(store: Store, layers: Sequence[Layer], directory: str, variant: Variant) -> StackInfo:
    """Settles the layers, the lowest first; `directory` becomes the stack's own tree.

    Raises `LayerError` for a hard link whose target is in no layer, and what `variant` raises.
    """
    stack: list[Layer] = []  # the topmost first
    root: str | None = None  # the topmost tree whose root an entry describes; an opaque one keeps what it was
    for layer in layers:
        settled = layer
        if _needs_parents(layer, [below.files for below in stack]):
            files, info = await variant(layer, [below.files for below in stack])
            published = os.path.relpath(store.variants.files(layer.chain_id), store.root)
            settled = layer._replace(files=files, published=published, info=info, is_variant=True)
        if "" not in settled.info.implied:
            root = settled.files
        if settled.info.opaque_root:
            stack.clear()
        stack = [settled, *(below for below in stack if below.files != settled.files)]
    _write_directories(stack, directory)
    if root is not None:
        _copy_attributes(root, directory)
    else:
        os.utime(directory, (0, 0))
    stack = [layer for layer in stack if layer.info.entries]
    lower = [layer.published for layer in stack]
    if os.listdir(directory):
        lower.insert(0, os.path.relpath(store.stacks.files(layers[-1].chain_id), store.root))
    return StackInfo(
        lower=tuple(lower),
        layers=tuple(layer.diff_id for layer in stack if not layer.is_variant),
        variants=tuple(layer.chain_id for layer in stack if layer.is_variant),
    )


def plan(
    store: Store, diff_ids: Sequence[Digest], staged: dict[Digest, tuple[Staging[LayerInfo], LayerInfo]]
) -> list[Layer]:
    """The image's layers, those in the store and those that are still staged."""
    layers = []
    for diff_id, chain_id in zip(diff_ids, chain_ids(diff_ids), strict=True):
        published = store.layers.files(diff_id)
        if diff_id in staged:
            files, info = staged[diff_id][0].files, staged[diff_id][1]
        else:
            files, info = published, store.layers.info(diff_id)
        layers.append(Layer(diff_id, chain_id, files, os.path.relpath(published, store.root), info))
    return layers


def trusted_below(below: Sequence[str], paths: Sequence[str]) -> list[tuple[str, str, bytes]]:
    """The trusted attributes that files have in the stack below: (path, name, value). The worker cannot see them."""
    attributes = []
    for path in paths:
        for number, _ in _look_up(below, path)[:1]:
            place = os.path.join(below[number], path)
            for name in os.listxattr(place, follow_symlinks=False):
                if name.startswith("trusted.") and not name.startswith(_OVERLAY):
                    attributes.append((path, name, os.getxattr(place, name, follow_symlinks=False)))
    return attributes


def _needs_parents(layer: Layer, below: Sequence[str]) -> bool:
    if layer.info.unresolved:
        if not below:
            raise LayerError(layer.info.unresolved[0], str(layer.diff_id))
        return True
    for path in (*layer.info.implied, *layer.info.presumed):
        found = _look_up(below, path)
        if found and stat.S_ISLNK(found[0][1].st_mode):
            return True
    for path in layer.info.hiding:
        found = _look_up(below, path)
        if not found or not stat.S_ISDIR(found[0][1].st_mode):
            return True  # there is nothing to hide, and overlayfs would list the whiteouts
    return False


def _look_up(stack: Sequence[str], path: str, transparent: Container[int] = ()) -> list[tuple[int, os.stat_result]]:
    """What overlayfs finds at the path: the directories that it merges there, the topmost first, or one other thing.

    As (number in the stack, status). In `transparent` trees the path itself may be opaque without ending the search.
    The trees are ours and do not change; only real directories are walked through.
    """
    merged = list(range(len(stack)))
    found = [(number, os.lstat(tree)) for number, tree in enumerate(stack)]
    so_far = ""
    for name in path.split("/") if path else ():
        so_far = f"{so_far}/{name}"
        found = []
        for number in merged:
            place = stack[number] + so_far
            try:
                status = os.lstat(place)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                return []  # deeper than a path can name: such a directory keeps what it has
            if not stat.S_ISDIR(status.st_mode):
                if not found and not is_whiteout(status):
                    return [(number, status)] if so_far[1:] == path else []
                break
            found.append((number, status))
            if is_opaque(place) and not (number in transparent and so_far[1:] == path):
                break
        merged = [number for number, _ in found]
    return found


def _write_directories(stack: Sequence[Layer], target: str) -> None:
    """Makes below `target` each directory whose topmost appearance is implied and which a layer below describes."""
    trees = [layer.files for layer in stack]
    implied = [set(layer.info.implied) for layer in stack]

    def look_up(path: str) -> list[tuple[int, os.stat_result]]:
        return _look_up(trees, path, {number for number, layer in enumerate(stack) if path in layer.info.emptied})

    wanted = set()
    for path in set().union(*implied) - {""}:
        found = look_up(path)
        if _describing(found, implied, path) not in (None, found[0][0] if found else None):
            wanted.add(path)
    wanted = {parent for path in wanted for parent in _with_parents(path)}
    for path in sorted(wanted):
        os.mkdir(os.path.join(target, path))
    for path in sorted(wanted, reverse=True):  # children first: making them changes their parents' times
        found = look_up(path)
        number = _describing(found, implied, path)
        source = trees[found[0][0] if number is None else number]
        _copy_attributes(os.path.join(source, path), os.path.join(target, path))


def _describing(found: list[tuple[int, os.stat_result]], implied: Sequence[set[str]], path: str) -> int | None:
    """Which of the merged directories an entry described: the topmost such."""
    return next((number for number, _ in found if path not in implied[number]), None)


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _copy_attributes(source: str, target: str) -> None:
    status = os.lstat(source)
    os.chown(target, status.st_uid, status.st_gid)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source):
        if not name.startswith(_OVERLAY):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
