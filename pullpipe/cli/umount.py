"""`pullpipe umount DIR`"""

from __future__ import annotations

import argparse
import os

from pullpipe import linux, local, stack
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument

HELP = "end what `mount` began; what was written into a writable mount stays, listed by ps"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    target = os.path.realpath(arguments.directory)
    mounted = [
        container for container in store.containers if container.target == target and stack.is_mounted(container)
    ]
    if not mounted:
        raise BadArgument(f"no mount of this store is at {target}; `pullpipe ps` lists them")
    container = mounted[-1]
    linux.umount(target, linux.UMOUNT_NOFOLLOW)
    if os.listdir(os.path.join(store.containers.path(container), "upper")):
        store.containers.update(container._replace(target="", exit_code=0))
    else:
        store.containers.remove(container)
        local.collect(store)
    print(target)
    return 0
