"""Pulling from a registry, for the commands that do. Importing this takes aiohttp's 0.2 s, so they do it late."""

from __future__ import annotations

import argparse
import os
import sys

from pullpipe.cli.common import pull_options, reporting, run_until_signal
from pullpipe.cli.registries import Access
from pullpipe.errors import TransferError
from pullpipe.pipe.pull import Pulled, pull
from pullpipe.platforms import Platform
from pullpipe.reference import Reference
from pullpipe.registry.client import Network, RegistryClient
from pullpipe.registry.proxies import Proxies
from store import ImageRecord, Store


def network(access: Access, arguments: argparse.Namespace) -> Network:
    """How to speak to registries, as the user wants it."""
    return Network(access.keyring, access.tokens, Proxies.of(os.environ), arguments.retries, arguments.timeout)


def pull_from_registry(
    store: Store,
    reference: Reference,
    arguments: argparse.Namespace,
    platform: Platform,
    access: Access,
    present: ImageRecord | None,
) -> ImageRecord:
    """Pulls the image; with the policy `newer`, what is present serves when the registry does not."""
    options = pull_options(arguments, platform)
    with reporting(arguments) as progress:

        async def work() -> Pulled:
            speaking = network(access, arguments)
            async with RegistryClient(reference, access.endpoints, speaking, progress.note) as client:
                return await pull(client, reference.wanted, str(reference), store, options, progress)

        try:
            pulled = run_until_signal(work())
        except TransferError as error:
            if present is None or arguments.policy != "newer":
                raise
            print(f"pullpipe: warning: {error}; using the image that is here", file=sys.stderr)
            return present
        progress.note(f"pulled {reference}" if pulled.fetched else f"{reference} is up to date")
    return pulled.record
