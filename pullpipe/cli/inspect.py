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

JSON = {
    "of an image": {
        "reference": "its name in full",
        "digest": "of its manifest",
        "resolved": "what the registry gave for the name: an index's digest, or the manifest's",
        "layers": "the lowest first",
        "layers.digest": "of its blob",
        "layers.diff_id": "of its tar archive",
        "layers.media_type": "of its blob",
        "layers.size": "bytes, compressed",
        "layers.unpacked_size": "bytes of its files; null, as the next one, where the layer's tree is missing",
        "layers.entries": "how many its archive has",
        "layers.directory": "where its tree is",
        "manifest": "as it came",
        "config": "as it came",
    },
    "of a container, by Docker's names": {
        "Id": "in full",
        "Created": "RFC 3339",
        "Name": "without Docker's slash",
        "Image": "the digest of its image's manifest",
        "State.Status": "running, exited, killed, mounted or unmounted",
        "State.Running": "whether it does",
        "State.Pid": "its first process, as the machine sees it; 0 if it does not run",
        "State.ExitCode": "null as long as there is none",
        "State.OOMKilled": "whether the kernel has killed something in it because memory ran out",
        "State.StartedAt": "RFC 3339; empty if not",
        "State.FinishedAt": "RFC 3339; empty if not",
        "Config.Image": "its image's name in full",
        "Config.Hostname": "its host name",
        "Config.User": "who runs it, as it was said; empty is root",
        "Config.Env": "a list of NAME=VALUE",
        "Config.Cmd": "the command, a list of words, with the image's entrypoint",
        "Config.WorkingDir": "where it starts",
        "Config.Labels": "an object",
        "Config.Tty": "whether it has a terminal of its own",
        "Config.OpenStdin": "whether it has standard input",
        "Config.StopSignal": "what `stop` sends",
        "Config.StopTimeout": "seconds until `stop` sends SIGKILL; -1 is never",
        "HostConfig.AutoRemove": "whether it goes when the command has ended",
        "HostConfig.NetworkMode": "host, none or private",
        "HostConfig.PortBindings": 'an object, such as {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}',
        "HostConfig.ReadonlyRootfs": "whether its root is",
        "HostConfig.Memory": "bytes; null, as the other limits, where there is none",
        "HostConfig.MemorySwap": "bytes, memory and swap together; -1 is no limit",
        "HostConfig.MemoryReservation": "bytes",
        "HostConfig.Cpus": "a number, such as 1.5",
        "HostConfig.CpuShares": "a number; 1024 is the usual",
        "HostConfig.CpusetCpus": "a list as text, such as 0-2,4",
        "HostConfig.PidsLimit": "how many processes and threads",
        "Mounts.Type": "bind or tmpfs; Mounts is a list",
        "Mounts.Source": "the path on the machine",
        "Mounts.Destination": "the path in the container",
        "Mounts.RW": "whether it can be written to",
        "LogPath": "where its output is; empty where that is not kept",
        "GraphDriver.Name": "always overlay",
        "GraphDriver.Data.UpperDir": "what it has changed",
        "GraphDriver.Data.WorkDir": "the kernel's own",
        "MountedAt": "the directory of `pullpipe mount`; empty for a container that was run",
    },
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=("json",), help="what it prints anyway")
    parser.add_argument("name", metavar="REF|CONTAINER")


def run(arguments: argparse.Namespace) -> int:
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
            **{shown: settings.limits.get(name) for name, shown in _LIMITS.items()},
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
