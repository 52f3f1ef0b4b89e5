"""`pullpipe inspect NAME`"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from pullpipe import local, stack
from pullpipe.cli.common import open_store, print_json
from pullpipe.local import LocalImage
from pullpipe.runner import logs, state
from pullpipe.runner.settings import Settings
from store import Container, Store

HELP = "show all that is known of an image or a container, as JSON"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="REF|CONTAINER")


def run(arguments: argparse.Namespace) -> int:
    """Of an image: reference, digest, resolved, layers, and the manifest and config as they came. Of a container: much
    of what Docker shows, by Docker's names; ExitCode is null as long as there is none."""
    store = open_store(arguments)
    found = local.container_or_image(store, arguments.name)
    print_json(_image(store, found) if isinstance(found, LocalImage) else _container(store, found))
    return 0


def _image(store: Store, image: LocalImage) -> dict[str, Any]:
    layers = [
        {
            "digest": str(layer.digest),
            "diff_id": str(diff_id),
            "media_type": layer.media_type,
            "size": layer.size,
            "unpacked_size": store.layers.info(diff_id).size if diff_id in store.layers else None,
            "entries": store.layers.info(diff_id).entries if diff_id in store.layers else None,
            "directory": store.layers.files(diff_id),
        }
        for layer, diff_id in image.layers
    ]
    return {
        "reference": image.record.reference,
        "digest": str(image.record.manifest),
        "resolved": str(image.record.resolved),
        "layers": layers,
        "manifest": json.loads(store.blobs.read(image.record.manifest)),
        "config": json.loads(store.blobs.read(image.manifest.config.digest)),
    }


def _container(store: Store, container: Container) -> dict[str, Any]:
    """By Docker's names, where it has such a thing."""
    settings = Settings.of(container)
    running = store.containers.is_running(container)
    found = state.read(store, container) if running else None
    directory = store.containers.path(container)
    status = "running" if running else "exited" if container.exit_code is not None else "killed"
    if container.target:
        status = "mounted" if stack.is_mounted(container) else "unmounted"
    return {
        "Id": container.id,
        "Created": _moment(container.created),
        "Name": container.name,
        "Image": str(container.manifest),
        "State": {
            "Status": status,
            "Running": running,
            "Pid": found.pid if found else 0,
            "ExitCode": container.exit_code,
            "OOMKilled": container.out_of_memory,
            "StartedAt": _moment(found.started if found else container.started),
            "FinishedAt": _moment(0 if running else container.finished),
        },
        "Config": {
            "Image": container.image,
            "Hostname": settings.hostname or container.short_id,
            "User": settings.user,
            "Env": [f"{name}={value}" for name, value in settings.env.items()],
            "Cmd": list(container.command),
            "WorkingDir": settings.working_dir,
            "Labels": settings.labels,
            "Tty": settings.terminal,
            "OpenStdin": settings.interactive,
            "StopSignal": settings.stop_signal,
            "StopTimeout": settings.stop_timeout,
        },
        "HostConfig": {
            "AutoRemove": settings.remove,
            "NetworkMode": settings.network,
            "PortBindings": settings.ports,
            "ReadonlyRootfs": settings.read_only,
            **{_LIMITS[name]: value for name, value in settings.limits.items() if name in _LIMITS},
        },
        "Mounts": list(settings.mounts),
        "LogPath": log if os.path.exists(log := logs.path(store, container)) else "",
        "GraphDriver": {
            "Name": "overlay",
            "Data": {"UpperDir": os.path.join(directory, "upper"), "WorkDir": os.path.join(directory, "work")},
        },
        "MountedAt": container.target,
    }


_LIMITS = {
    "memory": "Memory",
    "memory_swap": "MemorySwap",
    "memory_reservation": "MemoryReservation",
    "cpus": "Cpus",
    "cpu_shares": "CpuShares",
    "cpuset": "CpusetCpus",
    "pids": "PidsLimit",
}


def _moment(seconds: float) -> str:
    """RFC 3339, or nothing for what has not been."""
    return logs.stamp(int(seconds * 10**9)) if seconds else ""
