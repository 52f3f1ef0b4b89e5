"""`pullpipe pull REF`"""

from __future__ import annotations

import argparse

from pullpipe.cli.common import add_pull_options, open_store
from pullpipe.cli.provide import provide
from pullpipe.reference import Reference

HELP = "fetch an image and unpack it while it arrives; prints the digest of its manifest"


def configure(parser: argparse.ArgumentParser) -> None:
    add_pull_options(parser, policy="always")
    parser.add_argument("reference", metavar="REF", help="alpine, ghcr.io/a/b:1, host:5000/c@sha256:…")


def run(arguments: argparse.Namespace) -> int:
    reference = Reference.parse(arguments.reference)
    print(provide(open_store(arguments), reference, arguments).manifest)
    return 0
