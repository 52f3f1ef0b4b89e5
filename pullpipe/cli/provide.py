"""Having an image in the store, for the commands that need one."""

from __future__ import annotations

import argparse

from pullpipe import local
from pullpipe.cli.common import platform_of, reporting
from pullpipe.errors import NotFound
from pullpipe.reference import Reference
from store import ImageRecord, Store


def provide(store: Store, reference: Reference, arguments: argparse.Namespace) -> ImageRecord:
    """Has the image in the store by the policy that was asked for, and returns its record.

    An image that is here and need not be asked for costs no network, and no import of what speaks to it.
    """
    platform = platform_of(arguments)
    all_platforms: bool = getattr(arguments, "all_platforms", False)
    as_here = arguments.policy in ("missing", "never")
    record = local.by_name(store, reference) if as_here else store.images.get(str(reference))
    distance = platform.distance(local.platform_of(record)) if record is not None else None
    if distance is None or record is None or not local.is_complete(store, record, all_platforms=all_platforms):
        record = None
    if record is not None and (as_here or (reference.digest and distance == 0)):
        return record
    if arguments.policy == "never":
        wanted = "all platforms" if all_platforms else platform
        raise NotFound(
            f"{reference} for {wanted} is not in the store, and the policy never forbids to pull it; missing allows it"
        )
    from pullpipe.cli.registries import access_to, resolved_now

    access = access_to(reference, arguments)
    if (
        record is not None
        and distance == 0  # else another entry of the index may suit better
        and arguments.creds is None
        and resolved_now(reference, access, arguments.timeout) == record.resolved
    ):
        with reporting(arguments) as progress:
            local.clean(store, progress.note)
            progress.note(f"{reference} is up to date")
        return record
    from pullpipe.cli.network import pull_from_registry

    return pull_from_registry(store, reference, arguments, platform, access, record)
