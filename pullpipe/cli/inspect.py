"""`pullpipe inspect NAME`"""

from __future__ import annotations

import argparse
import json
from typing import Any

from pullpipe import local
from pullpipe.cli.common import open_store, print_json
from pullpipe.errors import InvalidReference, NotFound
from pullpipe.reference import Reference
from store import Container, NotInStore, Store

HELP = "show all that is known of an image or a container, as JSON"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="REF|CONTAINER")


def run(arguments: argparse.Namespace) -> int:
    """Of an image: reference, digest, resolved, layers, and the manifest and config as they came."""
    store = open_store(arguments)
    try:
        print_json(_image(store, Reference.parse(arguments.name)))
    except (NotFound, InvalidReference) as no_image:
        try:
            container = store.containers.find(arguments.name)
        except NotInStore:
            raise no_image from None
        print_json(_container(store, container))
    return 0


def _image(store: Store, reference: Reference) -> dict[str, Any]:
    image = local.find(store, reference)
    layers = [
        {
            "digest": str(layer.digest),
            "diff_id": str(diff_id),
            "media_type": layer.media_type,
            "size": layer.size,
            "unpacked_size": store.layers.info(diff_id).size if diff_id in store.layers else None,
            "entries": store.layers.info(diff_id).entries if diff_id in store.layers else None,
            "directory": store.layers.files(diff_id),
        }
        for layer, diff_id in zip(image.manifest.layers, image.config.diff_ids, strict=True)
    ]
    return {
        "reference": image.record.reference,
        "digest": str(image.record.manifest),
        "resolved": str(image.record.resolved),
        "layers": layers,
        "manifest": json.loads(store.blobs.read(image.record.manifest)),
        "config": json.loads(store.blobs.read(image.manifest.config.digest)),
    }


def _container(store: Store, container: Container) -> dict[str, Any]:
    return {
        **json.loads(container.to_json()),
        "running": store.containers.is_running(container),
        "directory": store.containers.path(container),
    }
