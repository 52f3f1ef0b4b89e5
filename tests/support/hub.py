"""A stand-in for Docker Hub, for pages and scripts that name its images and may not reach it.

It has one image, alpine:3.20 in an index as there: the real one where it lies beside the project, else one that is laid
out like it, of this machine's own busybox.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.images import (
    HOST_PLATFORM,
    INDEX,
    REF_NAME,
    Dir,
    Entry,
    File,
    Image,
    Layer,
    host_shell_layers,
    write_layout,
)
from tests.support.served import running

_NAME = "library/alpine:3.20"
_DIRECTORIES = (
    *("home", "lib", "media/cdrom", "media/floppy", "media/usb", "mnt", "opt"),
    *("run", "sbin", "srv", "usr/bin", "var/log"),
)
_CONFIG = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["/bin/sh"]}


@contextmanager
def hub(directory: Path, images: Path) -> Iterator[Path]:
    """Serves it until the block is left; yields the settings that lead there, a registries.conf.

    It listens on a socket, so that it is there in other network namespaces, too. `images` has the real ones, if any.
    """
    socket, settings = directory / "hub.sock", directory / "registries.conf"
    layout = directory / "hub"
    if (images / "alpine").is_dir() and HOST_PLATFORM == "linux/amd64":
        shutil.copytree(images / "alpine" / "blobs", layout / "blobs", copy_function=shutil.copyfile)
        _in_an_index(layout, json.loads((images / "alpine/index.json").read_bytes())["manifests"])
    else:
        write_layout(layout, {_NAME: [_like_alpine()]})
    settings.write_text(f'[[registry]]\nprefix = "docker.io"\nsocket = "{socket}"\n')
    with running(layout, unix=str(socket)):
        yield settings


def _like_alpine() -> Image:
    more: list[Entry] = [Dir(name) for name in _DIRECTORIES]
    more += [
        File("etc/alpine-release", b"3.20.0\n"),
        File("etc/issue", b"Welcome to Alpine Linux 3.20\n"),
        File("etc/motd", b"Welcome to Alpine!\n"),
    ]
    [shell] = host_shell_layers()
    return Image([Layer([*shell.entries, *more])], _CONFIG)


def _in_an_index(layout: Path, manifests: list[dict[str, object]]) -> None:
    for one in manifests:
        one.pop("annotations", None)
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    digest = hashlib.sha256(index).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(index)
    entry = {"mediaType": INDEX, "digest": f"sha256:{digest}", "size": len(index), "annotations": {REF_NAME: _NAME}}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}))
