"""Pulling from a registry, for the commands that do. Importing this takes aiohttp's 0.2 s, so they do it late."""

from __future__ import annotations

import argparse
import sys

from pullpipe.cli.common import pull_options, reporting, run_until_signal
from pullpipe.errors import TransferError
from pullpipe.oci import Platform
from pullpipe.pipe.pull import Pulled, pull
from pullpipe.reference import Reference
from pullpipe.registry.client import RegistryClient
from pullpipe.registry.credentials import Credentials
from store import ImageRecord, Store


def pull_from_registry(
    store: Store, reference: Reference, arguments: argparse.Namespace, platform: Platform, present: ImageRecord | None
) -> ImageRecord:
    """Pulls the image; with the policy `newer`, what is present serves when the registry does not."""
    credentials = Credentials.parse(arguments.creds) if arguments.creds else None
    options = pull_options(arguments, platform)
    with reporting(arguments) as progress:

        async def work() -> Pulled:
            async with RegistryClient(reference, plain_http=arguments.plain_http, credentials=credentials) as client:
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
