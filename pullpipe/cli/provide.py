"""Having an image in the store, for the commands that need one."""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import platform_of, reporting, require_root
from pullpipe.cli.registries import access_to, resolved_now
from pullpipe.errors import NotFound
from pullpipe.reference import Reference
from store import ImageRecord, Store


def provide(store: Store, reference: Reference, arguments: argparse.Namespace) -> ImageRecord:
    """Has the image in the store by the policy that was asked for, and returns its record.

    An image that is here and need not be asked for costs no network, and no import of what speaks to it.
    """
    platform = platform_of(arguments)
    record = store.images.get(str(reference))
    if record is not None and not platform.accepts(local.platform_of(record)):
        record = None
    if record is not None and local.load_whole(store, record) is None:
        record = None
    if record is not None and (arguments.policy in ("missing", "never") or reference.digest is not None):
        return record
    if arguments.policy == "never":
        raise NotFound(f"{reference} for {platform} is not in the store, and --policy never forbids to pull it")
    require_root("pulling")
    access = access_to(reference, arguments)
    if record is not None and arguments.creds is None and resolved_now(reference, access) == record.resolved:
        with reporting(arguments) as progress:
            progress.note(f"{reference} is up to date")
        return record
    from pullpipe.cli.network import pull_from_registry

    return pull_from_registry(store, reference, arguments, platform, access, record)
