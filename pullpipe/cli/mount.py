"""`pullpipe mount REF DIR`"""

from __future__ import annotations

import argparse
import os

from pullpipe import local, stack
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument, NeedsRoot
from pullpipe.reference import Reference

HELP = "show an image's stacked layers at a directory, read-only unless told otherwise"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rw", action="store_true", help="writable, into a layer of its own that `umount` keeps")
    parser.add_argument("reference", metavar="REF")
    parser.add_argument("directory", metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise NeedsRoot(
            "without root a mount can be seen in its own namespace only; `pullpipe unpack` makes a tree that "
            "can be seen, `pullpipe unshare` leads into such a namespace, or use sudo"
        )
    store = open_store(arguments)
    target = os.path.realpath(arguments.directory)
    if not os.path.isdir(target):
        raise BadArgument(f"{arguments.directory} is not a directory; make it first")
    if os.path.ismount(target):
        raise BadArgument(f"something is mounted at {target} already; `pullpipe umount {target}` if it is ours")
    with store.shared():
        image = local.find(store, Reference.parse(arguments.reference))
        container, lock = store.containers.create(
            image=image.record.reference,
            manifest=image.record.manifest,
            stack=image.chain_id,
            target=target,
        )
        try:
            stacked = stack.build(store, container)
            if arguments.rw:
                stack.mount(stacked, target)
            else:
                stack.mount_read_only(stacked, target)
        except BaseException:
            store.containers.remove(container, lock)
            raise
        finally:
            lock.release()
    print(target)
    return 0
