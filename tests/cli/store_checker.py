"""What has to be true of a store at any time, looked up on disk by none of pullpipe's code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.tree import Snapshot, difference, snapshot

REF_NAME = "org.opencontainers.image.ref.name"


def wrong(root: Path, layers: Mapping[str, Snapshot]) -> list[str]:
    """What is not right, one line each; `layers` are the trees of all layers that there may be, by diffID."""
    lines = list(_blobs(root))
    for directory in (root / "layers" / "sha256").iterdir():
        diff_id = f"sha256:{directory.name}"
        if diff_id not in layers:
            lines.append(f"layer {diff_id}: of no image")
            continue
        lines += [f"layer {diff_id}: {line}" for line in difference(layer_tree(root, diff_id), layers[diff_id])]
        lines += _missing(directory / "layer.json")
    for record in json.loads((root / "index.json").read_bytes())["manifests"]:
        name = record["annotations"][REF_NAME]
        try:
            lines += [f"{name}: {line}" for line in _image(root, record)]
        except (KeyError, TypeError) as error:
            lines.append(f"{name}: a document of its is none any more: {error!r}")
    return lines


def layer_tree(root: Path, diff_id: str, kind: str = "layers") -> Snapshot:
    """The directory of a layer, variant or stack; its whiteouts without their times, which are when they were made."""
    nodes = snapshot(_tree(root, kind, diff_id) / "fs")
    return {path: replace(node, mtime_ns=0) if node.device == (0, 0) else node for path, node in nodes.items()}


def _blobs(root: Path) -> Iterator[str]:
    for path in (root / "blobs" / "sha256").iterdir():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != path.name:
            yield f"blob {path.name}: its bytes have the digest {found}"


def _image(root: Path, record: dict[str, Any]) -> Iterator[str]:
    """What a record leads to and is not there. A layer's blob need not be: its tree may have come by another one."""
    manifest = _document(root, record)
    if manifest is None:
        yield "no manifest"
        return
    config = _document(root, manifest["config"])
    if config is None:
        yield "no config"
        return
    diff_ids = config["rootfs"]["diff_ids"]
    for layer in manifest["layers"]:
        path = _blob(root, layer)
        if path.exists() and path.stat().st_size != layer["size"]:
            yield f"{layer['digest']} has {path.stat().st_size} bytes instead of {layer['size']}"
    for diff_id in diff_ids:
        yield from _missing(_tree(root, "layers", diff_id) / "fs")
    stack = _tree(root, "stacks", chain_id(diff_ids))
    yield from _missing(stack / "fs")
    if not list(_missing(stack / "stack.json")):
        for lower in json.loads((stack / "stack.json").read_bytes())["lower"]:
            yield from _missing(root / lower)


def _document(root: Path, descriptor: dict[str, Any]) -> dict[str, Any] | None:
    try:
        document: dict[str, Any] = json.loads(_blob(root, descriptor).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return document


def _blob(root: Path, descriptor: dict[str, Any]) -> Path:
    return root / "blobs" / str(descriptor["digest"]).replace(":", "/")


def _tree(root: Path, kind: str, digest: str) -> Path:
    return root / kind / digest.replace(":", "/")


def chain_id(diff_ids: Sequence[str]) -> str:
    """What a stack of these layers is called (image-spec, config.md, "Layer ChainID")."""
    chain, *rest = diff_ids
    for diff_id in rest:
        chain = "sha256:" + hashlib.sha256(f"{chain} {diff_id}".encode()).hexdigest()
    return chain


def _missing(path: Path) -> list[str]:
    return [] if path.exists() else [f"there is no {path}"]
