"""A container in the words of the OCI runtime specification: a config.json for runtimes such as runc and crun."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pullpipe import linux
from pullpipe.errors import PullpipeError, RunError
from pullpipe.oci import ImageConfig
from pullpipe.runner import command, sandbox, seccomp
from pullpipe.runner.capabilities import names_of
from pullpipe.runner.command import Command, Identity
from pullpipe.runner.limits import Limits, settings
from pullpipe.runner.walls import Bind, Rights, Tmpfs, Walls
from store import namespace

_VERSION = "1.0.2"
_NO_LIMIT = (1 << 64) - 1
_GUARD = ["nosuid", "nodev", "noexec"]
_ATTRIBUTES = {linux.ATTR_RDONLY: "ro", linux.ATTR_NOSUID: "nosuid", linux.ATTR_NODEV: "nodev"}
_ATTRIBUTES |= {linux.ATTR_NOEXEC: "noexec"}
_ANNOTATION = "org.opencontainers.image"


def document(
    planned: Command,
    identity: Identity,
    walls: Walls,
    *,
    rootfs: str,
    hostname: str = "",
    terminal: tuple[int, int] | None = None,
    files: Sequence[tuple[str, str]] = (),
    limits: Limits | None = None,
    cgroup: str = "",
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The config.json. `files` are (path on the host, path in the container), as `names.write_files` gives them.
    `terminal` has rows and columns, zeros where they are unknown. `cgroup` is a path from the top of cgroup v2; without
    it, the runtime chooses.

    Raises `RunError` for a limit that cannot be kept, and for text that JSON does not have; `BadConfiguration` for a
    seccomp profile that is none.
    """
    process: dict[str, Any] = {
        "terminal": terminal is not None,
        "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.groups)},
        "args": list(planned.argv),
        "env": [f"{name}={value}" for name, value in {"HOME": identity.home, **planned.env}.items()],
        "cwd": os.path.normpath("/" + planned.working_dir),
        "noNewPrivileges": walls.rights.no_new_privileges,
        "capabilities": _capabilities(walls.rights, identity),
        "rlimits": [
            {"type": f"RLIMIT_{name.upper()}", "soft": _number(soft), "hard": _number(hard)}
            for name, soft, hard in walls.rights.limits
        ],
    }
    if terminal and all(terminal):
        process["consoleSize"] = dict(zip(("height", "width"), terminal, strict=True))
    devices = [_device(source, target) for source, target in walls.devices]
    rules = [{"allow": False, "access": "rwm"}, *(_rule(device) for device in devices)]
    isolated: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in _namespaces(walls)],
        "maskedPaths": sandbox.masked_paths(),
        "readonlyPaths": sandbox.readonly_paths(),
        "devices": devices,
        "sysctl": dict(walls.sysctls),
        "resources": {"devices": rules, **(_resources(limits) if limits else {})},
    }
    if cgroup:
        isolated["cgroupsPath"] = cgroup
    if (filtered := seccomp.section(walls.seccomp, walls.rights.capabilities)) is not None:
        isolated["seccomp"] = filtered
    asked_for = sorted(walls.mounts, key=lambda one: one.target.rstrip("/").count("/"))
    whole = {
        "ociVersion": _VERSION,
        "process": process,
        "root": {"path": rootfs, "readonly": walls.read_only},
        **({"hostname": hostname} if hostname else {}),
        "mounts": [*_usual(walls), *(_file(*one) for one in files), *map(_mount, asked_for)],
        "annotations": dict(annotations or {}),
        "linux": isolated,
    }
    _check_text(whole)
    return whole


def _check_text(document: dict[str, Any]) -> None:
    """Bytes that are no UTF-8 would come to the command as others; what is told of the text is no variable's value."""
    try:
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        begin = error.object.rindex('"', 0, error.start) + 1
        name = error.object[begin : error.end].partition("=")[0]
        raise RunError(
            f"what begins with {name!a} is not UTF-8, and a runtime's configuration can hold nothing else; write it so"
        ) from error


def image_annotations(config: ImageConfig, document: bytes) -> dict[str, str]:
    """What the image says of itself, as conversion.md of the image specification has it; `document` is its config.

    Labels have the last word.
    """
    told = json.loads(document)
    settings = told.get("config") or {}
    ports, labels = settings.get("ExposedPorts"), settings.get("Labels")
    found = {
        "os": config.platform.os,
        "architecture": config.platform.architecture,
        "variant": config.platform.variant,
        "os.version": told.get("os.version"),
        "author": told.get("author"),
        "created": config.created,
        "stopSignal": settings.get("StopSignal"),
        "exposedPorts": ",".join(sorted(ports)) if isinstance(ports, dict) else "",
    }
    texts = {f"{_ANNOTATION}.{name}": text for name, text in found.items() if text}
    texts |= labels if isinstance(labels, dict) else {}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def look_inside(rootfs: str, planned: Command) -> Identity:
    """Whom to run it as, by the accounts in that tree; and makes its working directory, where it is missing.

    A process looks that has the tree for its root, so that symlinks lead nowhere else, and devices in it do not open.
    Raises `RunError`.
    """
    reader, writer = os.pipe()
    child = linux.fork()
    if child == 0:
        os.close(reader)
        _look(rootfs, planned, writer)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as file:
        said = file.read()
    os.waitpid(child, 0)
    found = json.loads(said or '{"error": "the process that looks for accounts in the image has been killed"}')
    if "error" in found:
        raise RunError(found["error"])
    return Identity(found["uid"], found["gid"], tuple(found["groups"]), found["home"])


def _look(rootfs: str, planned: Command, writer: int) -> NoReturn:
    try:
        namespace.has("user", 0), namespace.has("group", 0)  # read now: what is /proc in there, the image's author says
        linux.import_nothing_more()
        linux.unshare(linux.CLONE_NEWNS)  # without root, mounts are ours in there only
        tree = linux.clone_tree(rootfs, recursive=True)
        linux.set_attributes(tree, linux.ATTR_NODEV, recursive=True)
        os.fchdir(tree)
        os.chroot(".")
        identity = command.identify(planned.user, planned.groups)
        command.enter_working_directory(planned.working_dir)
        answer: dict[str, Any] = identity._asdict()
    except (PullpipeError, OSError) as error:
        answer = {"error": str(error)}
    try:
        os.write(writer, json.dumps(answer).encode())
    finally:
        os._exit(0)


def _capabilities(rights: Rights, identity: Identity) -> dict[str, list[str]]:
    bounding = names_of(rights.capabilities)
    held = bounding if identity.uid == 0 else []
    return {"bounding": bounding, "effective": held, "permitted": held}


def _number(limit: int) -> int:
    return _NO_LIMIT if limit == -1 else limit


def _namespaces(walls: Walls) -> list[str]:
    private = {"ipc": not walls.host_ipc, "network": walls.network.kind == "none"}
    return ["pid", "uts", "mount", "cgroup", *(name for name, own in private.items() if own)]


def _usual(walls: Walls) -> list[dict[str, Any]]:
    """Docker's."""

    def mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
        return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}

    sys = mount("/sys", "sysfs", *_GUARD, "ro")
    if namespace.in_user_namespace() and walls.network.kind == "host":  # which is not that namespace's to show
        sys = mount("/sys", "bind", "rbind", "rprivate", "rro", *_GUARD, source="/sys")
    shm = mount("/dev/shm", "tmpfs", *_GUARD, "mode=1777", f"size={walls.shm_size}", source="shm")
    of_the_machine = walls.host_ipc and namespace.in_user_namespace()  # whose root may not show the machine's queues
    terminals = ("newinstance", "ptmxmode=0666", "mode=0620", *(["gid=5"] if namespace.has("group", 5) else []))
    return [
        mount("/proc", "proc", *_GUARD),
        mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        mount("/dev/pts", "devpts", "nosuid", "noexec", *terminals),
        *([] if of_the_machine else [mount("/dev/mqueue", "mqueue", *_GUARD)]),
        mount("/dev/shm", "bind", "rbind", *_GUARD, source="/dev/shm") if walls.host_ipc else shm,
        sys,
        mount("/sys/fs/cgroup", "cgroup", *_GUARD, "relatime", "ro"),
    ]


def _file(source: str, target: str) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": ["bind", *_GUARD]}


def _mount(asked: Bind | Tmpfs) -> dict[str, Any]:
    if isinstance(asked, Tmpfs):
        attributes = asked.attributes | linux.ATTR_NODEV
        options = [name for attribute, name in _ATTRIBUTES.items() if attributes & attribute]
        options += [f"{key}={value}" for key, value in asked.options]
        return {"destination": asked.target, "type": "tmpfs", "source": "tmpfs", "options": options}
    recursive = asked.recursive and os.path.isdir(asked.source)
    options = ["rbind", "rprivate", "rnodev"] if recursive else ["bind", "private", "nodev"]
    options += ["rro" if recursive else "ro"] if asked.read_only else []
    return {"destination": asked.target, "type": "bind", "source": asked.source, "options": options}


def _device(source: str, target: str) -> dict[str, Any]:
    status = os.stat(source)
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise RunError(f"{source} is no device")
    return {
        "path": target,
        "type": "c" if stat.S_ISCHR(status.st_mode) else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _rule(device: Mapping[str, Any]) -> dict[str, Any]:
    return {"allow": True, "access": "rw", **{key: device[key] for key in ("type", "major", "minor")}}


def _resources(limits: Limits) -> dict[str, Any]:
    written = {file: value for setting in settings(limits) for file, value in setting.v1}  # which has what is meant
    names = {
        ("memory", "limit"): "memory.limit_in_bytes",
        ("memory", "swap"): "memory.memsw.limit_in_bytes",
        ("memory", "reservation"): "memory.soft_limit_in_bytes",
        ("cpu", "quota"): "cpu.cfs_quota_us",
        ("cpu", "period"): "cpu.cfs_period_us",
        ("cpu", "shares"): "cpu.shares",
        ("pids", "limit"): "pids.max",
    }
    found: dict[str, Any] = {}
    for (resource, name), file in names.items():
        if file in written:
            found.setdefault(resource, {})[name] = int(written[file])
    if limits.cpuset:
        found.setdefault("cpu", {})["cpus"] = limits.cpuset
    return found
