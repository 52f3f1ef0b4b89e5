"""`pullpipe repair [REF…]`"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pullpipe.cli.common import add_registry_options, open_store, reporting, run_until_signal
from pullpipe.cli.findings import FIELDS, add_options, reference_of, tell
from pullpipe.cli.registries import OF_ONE_REGISTRY, access_to, only_registry
from pullpipe.progress import Progress
from pullpipe.reference import Reference
from store import Store

if TYPE_CHECKING:
    from pullpipe.pipe.mending import Connect
    from pullpipe.registry.client import RegistryClient

HELP = "mend what `verify --deep` finds: from the blobs, from the registry, or by removal"
JSON = {"a list, of each finding": FIELDS}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-fetch", action="store_true", help="ask no registry")
    parser.add_argument(
        "--remove", action="store_true", help="remove what cannot be mended: blobs, or the images that need it"
    )
    add_registry_options(parser)
    parser.add_argument("--durability", choices=("full", "none"), default="full", help="none leaves out the flushes")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    references = [reference_of(store, text) for text in arguments.references]
    registry = "" if arguments.no_fetch else _only_registry(store, references, arguments)
    from pullpipe.pipe.repair import repair

    with reporting(arguments) as progress:
        connect = None if arguments.no_fetch else _connect(registry, arguments, progress)
        work = repair(store, references, connect, arguments.jobs, progress, remove=arguments.remove)
        findings = run_until_signal(work)
    return tell(findings, arguments)


def _only_registry(store: Store, references: Sequence[str], arguments: argparse.Namespace) -> str:
    names = references or [entry.record.reference for entry in store.images.salvaged()[0] if entry.record]
    return only_registry(map(Reference.parse, names), arguments)


def _connect(registry: str, arguments: argparse.Namespace, progress: Progress) -> Connect:
    others = argparse.Namespace(**{**vars(arguments), **OF_ONE_REGISTRY})

    def connect(reference: Reference) -> RegistryClient:
        from pullpipe.cli.network import network
        from pullpipe.registry.client import RegistryClient

        given = arguments if reference.registry == registry else others
        access = access_to(reference, given)
        return RegistryClient(reference, access.endpoints, network(access, given), progress.note)

    return connect
