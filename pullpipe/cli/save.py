"""`pullpipe save REF…`"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pullpipe import local
from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from pullpipe.look.chosen import Chosen
from pullpipe.progress import counted, human_size
from pullpipe.transports import docker_archive_writer, layout_writer
from pullpipe.transports.outputs import tar_archive
from store import Store

HELP = "write images to a Docker archive or an OCI layout; prints what they are called there"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="FILE|DIR", help="instead of standard output")
    parser.add_argument(
        "--format",
        choices=("docker-archive", "oci-archive", "oci-dir"),
        default="docker-archive",
        help="this alone decides, not the output's name; images are added to an oci-dir (default: %(default)s)",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="show nothing but the result")
    parser.add_argument("references", metavar="REF", nargs="+")
    parser.epilog = (
        "`podman load` takes an OCI archive with one image only. A Docker archive has no manifests: what loads it "
        "makes new ones, so images keep their digests in the other formats only."
    )


def run(arguments: argparse.Namespace) -> int:
    wanted = [Chosen.image(text) for text in arguments.references]
    if arguments.output is None and arguments.format == "oci-dir":
        raise BadArgument("an oci-dir is a directory; name it with --output DIR")
    if arguments.output is None and sys.stdout.isatty():
        raise BadArgument("a terminal cannot show an archive; name a file with --output, or redirect standard output")
    store = open_store(arguments)
    found = {image.record.reference: image for image in (local.find(store, name) for name in wanted)}
    images = [image for _, image in sorted(found.items())]
    if not arguments.quiet:
        for image in images:
            layers = f"{counted(len(image.manifest.layers), 'layers')}, {human_size(image.size)}"
            print(f"saving {image.record.reference} ({layers})", file=sys.stderr)
    names = _save(store, images, arguments)
    if arguments.output is not None:
        print(*names, sep="\n")
    return 0


def _save(store: Store, images: Sequence[LocalImage], arguments: argparse.Namespace) -> list[str]:
    """What the images are called there; one of a Docker archive that has no tag goes by its id."""
    if arguments.format == "docker-archive":
        members = docker_archive_writer.plan(images)
        with tar_archive(arguments.output) as archive:
            docker_archive_writer.write_archive(store, members, archive)
        return [name for image, tags in members for name in tags or [str(image.manifest.config.digest)]]
    layout = layout_writer.plan(store, images)
    if arguments.format == "oci-dir":
        layout_writer.write_directory(store, layout, arguments.output)
    else:
        with tar_archive(arguments.output) as archive:
            layout_writer.write_archive(store, layout, archive)
    return layout.names
