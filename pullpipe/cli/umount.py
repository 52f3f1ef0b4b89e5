"""`pullpipe umount DIR`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import open_store
from pullpipe.mounts import umount

HELP = "end what `mount` began; what was written into a writable mount stays, listed by ps"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    print(umount(store, arguments.directory))
    return 0
