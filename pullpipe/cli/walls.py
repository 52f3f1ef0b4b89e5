"""The options of `run` that say what the container's walls let through. Names and meanings are Docker's."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable

from pullpipe import linux
from pullpipe.errors import BadArgument
from pullpipe.runner import capabilities
from pullpipe.runner.names import GATEWAY
from pullpipe.runner.walls import Bind, Network, Port, Rights, Tmpfs, Walls

_SHIFTS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
# What SELinux, macOS and volumes want of a bind mount, and what it does here anyway.
_NO_MATTER = frozenset({"z", "Z", "rprivate", "private", "consistent", "cached", "delegated", "nocopy", "rbind"})
_SWITCHES = {  # of a tmpfs: which attribute, and whether the word takes it away
    "ro": (linux.ATTR_RDONLY, False),
    "rw": (linux.ATTR_RDONLY, True),
    "noexec": (linux.ATTR_NOEXEC, False),
    "exec": (linux.ATTR_NOEXEC, True),
    "nosuid": (linux.ATTR_NOSUID, False),
    "suid": (linux.ATTR_NOSUID, True),
    "nodev": (0, False),  # none of them opens devices
}
# Settings of an IPC namespace, besides fs.mqueue's; sysvipc(7)
_IPC_SETTINGS = {f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni")}
_IPC_SETTINGS.add("kernel.shm_rmid_forced")
_TMPFS = {"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "huge", "mpol"}  # tmpfs(5)


def add_wall_options(parser: argparse.ArgumentParser) -> None:
    """All of them."""

    def several(*names: str, metavar: str, text: str) -> None:
        parser.add_argument(*names, action="append", default=[], metavar=metavar, help=text)

    several("-v", "--volume", metavar="SRC:DST[:ro]", text="show a file or directory of the host in the container")
    several("--mount", metavar="type=bind|tmpfs,…", text="the same, or a tmpfs: src=, dst=, readonly, tmpfs-size=, …")
    several("--tmpfs", metavar="DST[:OPTIONS]", text="a file system in memory there")
    parser.add_argument("--read-only", action="store_true", help="the container's root cannot be written to")
    several("--device", metavar="HOST[:DST]", text="a device, or those of a directory")
    parser.add_argument("--shm-size", metavar="BYTES", help="how large /dev/shm may grow (default: 64m)")
    several("--cap-add", metavar="NAME", text="a capability more for root, or ALL")
    several("--cap-drop", metavar="NAME", text="one less, or ALL")
    several(
        "--security-opt",
        metavar="OPTION",
        text="no-new-privileges, seccomp=unconfined, seccomp=FILE: Docker's profiles",
    )
    several("--ulimit", metavar="NAME=SOFT[:HARD]", text="a limit of setrlimit(2), such as nofile=1024:4096")
    parser.add_argument("--init", action="store_true", help="have a first process that reaps and passes signals on")
    parser.add_argument(
        "--network",
        "--net",
        metavar="host|none|private",
        help="this machine's, only loopback, or one of the container's own, by pasta or slirp4netns: also the name of "
        "either (default: host; with -p private)",
    )
    several(
        "-p",
        "--publish",
        metavar="[ADDRESS:]PORT:PORT[/udp]",
        text="what comes to the first, of this machine, goes to the second, of the container",
    )
    parser.add_argument("--pid", default="private", help="host: see the host's processes")
    parser.add_argument("--ipc", default="private", help="host: share the host's shared memory and message queues")
    several("--sysctl", metavar="NAME=VALUE", text="a setting of the container's own network (net.…) or IPC namespace")
    several("--add-host", metavar="NAME:ADDRESS", text=f"a line of /etc/hosts; {GATEWAY} stands for this machine")
    several("--dns", metavar="ADDRESS", text="a name server, instead of the host's")
    several("--dns-search", metavar="DOMAIN", text="a domain to search, instead of the host's; a dot for none")
    several("--dns-option", "--dns-opt", metavar="OPTION", text="an option of resolv.conf(5), instead of the host's")


def walls_of(arguments: argparse.Namespace) -> Walls:
    """What these options say. Raises `BadArgument`."""
    mounts = [
        *map(_volume, arguments.volume),
        *map(_mount, arguments.mount),
        *map(_tmpfs, arguments.tmpfs),
    ]
    _once(one.target for one in mounts)
    for one in mounts:
        if isinstance(one, Bind) and not os.path.exists(one.source):
            raise BadArgument(
                f"{one.source}, to be mounted at {one.target}, does not exist on this machine; make it first"
            )
    host_ipc = _choice("--ipc", arguments.ipc, "private", "host") == "host"
    if host_ipc and arguments.shm_size:
        raise BadArgument("--shm-size has no meaning with --ipc host, where /dev/shm is the host's; leave one away")
    rights, seccomp = _rights(arguments)
    if arguments.init and rights.capabilities & capabilities.SYS_PTRACE:
        raise BadArgument(
            "--init with CAP_SYS_PTRACE would open this machine's Python to the container; leave one away, "
            "or use an init of the image's"
        )
    network = _network(arguments)
    return Walls(
        rights=rights,
        seccomp=seccomp,
        mounts=tuple(mounts),
        devices=tuple(device for text in arguments.device for device in _devices(text)),
        read_only=arguments.read_only,
        shm_size=size_of("--shm-size", arguments.shm_size or "64m"),
        network=network,
        host_pids=_choice("--pid", arguments.pid, "private", "host") == "host",
        host_ipc=host_ipc,
        sysctls=_sysctls(arguments.sysctl, network, host_ipc=host_ipc),
        init=arguments.init,
    )


# Mounts.


def _volume(text: str) -> Bind:
    source, *rest = text.split(":")
    if not rest:
        raise BadArgument(
            f"-v {text}: volumes without a place on this machine are not there; say SRC:DST, or --tmpfs DST"
        )
    if len(rest) > 2:
        raise BadArgument(f"-v {text} has too many colons; paths with colons can be given with --mount")
    if not source.startswith(("/", "./", "../")) and source not in (".", ".."):
        hint = (
            f"-v ./{source}:{rest[0]} is a directory of that name"
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", source)
            else "give a path"
        )
        raise BadArgument(f"-v {text}: named volumes are not there; {hint}")
    words = rest[1].split(",") if rest[1:] else []
    for word in words:
        if word not in _NO_MATTER | {"ro", "rw"}:
            raise BadArgument(f"-v {text}: {word!r} is no option that can be had here; ro and rw are")
    return Bind(absolute(f"-v {text}", source), _target(f"-v {text}", rest[0]), read_only="ro" in words)


def _mount(text: str) -> Bind | Tmpfs:
    what = f"--mount {text}"
    given: dict[str, str] = {}
    for word in _fields(what, text):
        key, _, value = word.partition("=")
        given[_ALIASES.get(key, key)] = value
    kind = given.pop("type", "volume")
    target = _target(what, given.pop("dst", ""))
    read_only = _switch(what, given.pop("readonly", "false"))
    if kind == "tmpfs":
        options = [(key, given.pop(f"tmpfs-{key}")) for key in ("size", "mode") if f"tmpfs-{key}" in given]
        asked: Bind | Tmpfs = _tmpfs_of(what, target, options, ["ro"] if read_only else [])
    elif kind == "bind":
        source = given.pop("src", "")
        if not source:
            raise BadArgument(f"{what} names no source: src=PATH")
        recursive = given.pop("bind-recursive", "enabled")
        if recursive not in ("enabled", "disabled", "readonly"):
            raise BadArgument(
                f"{what}: bind-recursive is enabled or disabled; what is read-only is so all the way down"
            )
        propagation = given.pop("bind-propagation", "rprivate")
        if propagation not in _NO_MATTER:
            raise BadArgument(
                f"{what}: mounts are never handed on between host and container; leave {propagation} away"
            )
        given.pop("consistency", "")
        asked = Bind(absolute(what, source), target, read_only, recursive != "disabled")
    else:
        raise BadArgument(f"{what}: type={kind} is not there; bind and tmpfs are")
    if given:
        raise BadArgument(f"{what}: {kind} mounts have no {next(iter(given))!r} here")
    return asked


_ALIASES = {"source": "src", "destination": "dst", "target": "dst", "ro": "readonly"}


def _fields(what: str, text: str) -> list[str]:
    """As of a line of CSV: a value with a comma in it stands in quotes."""
    import csv

    try:
        (row,) = csv.reader([text], strict=True)
    except (ValueError, csv.Error) as error:
        raise BadArgument(f"{what} cannot be read: {error}") from error
    return row


def _switch(what: str, value: str) -> bool:
    if value.lower() not in ("", "true", "1", "false", "0"):
        raise BadArgument(f"{what}: readonly is true or false, not {value!r}")
    return value.lower() in ("", "true", "1")


def _tmpfs(text: str) -> Tmpfs:
    target, _, words = text.partition(":")
    pairs = [word.split("=", 1) for word in words.split(",") if "=" in word]
    switches = [word for word in words.split(",") if word and "=" not in word]
    what = f"--tmpfs {text}"
    return _tmpfs_of(what, _target(what, target), [(key, value) for key, value in pairs], switches)


def _tmpfs_of(what: str, target: str, options: list[tuple[str, str]], switches: list[str]) -> Tmpfs:
    attributes = linux.ATTR_NOSUID | linux.ATTR_NOEXEC
    for word in switches:
        if word not in _SWITCHES:
            raise BadArgument(f"{what}: {word!r} is no option that can be had here")
        attribute, away = _SWITCHES[word]
        attributes = attributes & ~attribute if away else attributes | attribute
    for key, value in options:
        if key not in _TMPFS or not value or "," in value:
            raise BadArgument(f"{what}: {key}={value} is no option of a tmpfs; tmpfs(5) lists them")
    return Tmpfs(target, (("mode", "1777"), *options), attributes)


def _target(what: str, path: str) -> str:
    if not path.startswith("/"):
        raise BadArgument(f"{what}: where it goes in the container has to be an absolute path")
    target = os.path.normpath("/" + path.lstrip("/"))
    if target == "/":
        raise BadArgument(f"{what}: the container's root is the image's, and nothing can lie over it")
    if target == "/proc" or target.startswith("/proc/"):
        raise BadArgument(f"{what}: nothing may be mounted in the container's /proc")
    return target


def absolute(what: str, path: str) -> str:
    """The path, from the directory where we are. Raises `BadArgument`, which names what asks for it."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise BadArgument(f"{what}: the directory that this is called from is gone; go to another one") from error


def _once(targets: Iterable[str]) -> None:
    seen: set[str] = set()
    for target in targets:
        if target in seen:
            raise BadArgument(f"two things are to be mounted at {target}; leave one away")
        seen.add(target)


def _devices(text: str) -> list[tuple[str, str]]:
    source, *rest = text.split(":")
    permissions = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    if len(rest) > 1 or not source.startswith("/"):
        raise BadArgument(f"--device {text} is none: HOST[:CONTAINER[:rwm]], both absolute paths")
    if not set("rw") <= set(permissions) <= set("rwm"):
        raise BadArgument(f"--device {text}: a device can be given to be read and written, and not in another way")
    target = _target(f"--device {text}", rest[0] if rest else source)
    if not os.path.isdir(source):
        if not os.path.exists(source):
            raise BadArgument(f"--device {text}: there is no {source} on this machine")
        return [(source, target)]
    found = [os.path.join(top, name) for top, _, names in os.walk(source) for name in names]
    nodes = [path for path in found if not os.path.islink(path) and _is_node(path)]
    if not nodes:
        raise BadArgument(f"--device {text}: there are no devices in {source}")
    return [(path, target + path.removeprefix(source.rstrip("/"))) for path in nodes]


def _is_node(path: str) -> bool:
    import stat

    mode = os.stat(path).st_mode
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


# Rights.


def _rights(arguments: argparse.Namespace) -> tuple[Rights, str]:
    """What processes may do, and which seccomp profile is to be turned into a filter."""
    seccomp, no_new_privileges = "builtin", False
    for text in arguments.security_opt:
        key, *rest = re.split("[=:]", text, maxsplit=1)
        value = rest[0] if rest else ""
        if key == "no-new-privileges" and value in ("", "true", "false"):
            no_new_privileges = value != "false"
        elif key == "seccomp" and value:
            seccomp = value if value in ("builtin", "unconfined") else absolute(f"--security-opt {text}", value)
        elif (key, value) not in (("apparmor", "unconfined"), ("label", "disable")):  # as it is anyway
            raise BadArgument(
                f"--security-opt {text} is not there; no-new-privileges, seccomp=unconfined and seccomp=FILE are"
            )
    added = [name for names in arguments.cap_add for name in names.split(",")]
    dropped = [name for names in arguments.cap_drop for name in names.split(",")]
    chosen = capabilities.chosen(added, dropped)
    demanded = capabilities.mask(*(name for name in added if name.upper() not in ("ALL", "CAP_ALL"))) & chosen
    limits = tuple(map(_limit, arguments.ulimit))
    return Rights(chosen, demanded, b"", no_new_privileges, limits), seccomp


def _limit(text: str) -> tuple[str, int, int]:
    name, _, values = text.partition("=")
    soft, colon, hard = values.partition(":")
    numbers = [soft, hard if colon else soft]
    if name not in linux.LIMITS:
        raise BadArgument(f"--ulimit {text}: there is no limit {name!r}; there are {', '.join(linux.LIMITS)}")
    if not all(number == "-1" or (number.isascii() and number.isdigit() and len(number) < 19) for number in numbers):
        raise BadArgument(f"--ulimit {text} is none: NAME=SOFT[:HARD], whole numbers, or -1 for no limit")
    if int(numbers[1]) != -1 and not 0 <= int(numbers[0]) <= int(numbers[1]):
        raise BadArgument(f"--ulimit {text}: the soft limit is above the hard one")
    return name, int(numbers[0]), int(numbers[1])


# Namespaces and names.


def _network(arguments: argparse.Namespace) -> Network:
    hosts = []
    for text in arguments.add_host:
        name, separator, address = text.partition("=") if "=" in text else text.partition(":")
        address = address.removeprefix("[").removesuffix("]")
        if not separator or not is_plain(name) or (address != GATEWAY and not _is_address(address)):
            raise BadArgument(f"--add-host {text} is none: NAME:ADDRESS, or NAME:{GATEWAY}")
        hosts.append((name, address))
    for server in arguments.dns:
        if not _is_address(server):
            raise BadArgument(f"--dns {server} is no address")
    for word in (*arguments.dns_search, *arguments.dns_option):
        if not is_plain(word):
            raise BadArgument(f"{word!r} cannot stand in a resolv.conf")
    ports = tuple(port for text in arguments.publish for port in _ports(text))
    kind = arguments.network or ("private" if ports else "host")
    kind = _choice("--network", kind, "host", "none", "private", "pasta", "slirp4netns")
    names = (tuple(arguments.dns), tuple(arguments.dns_search), tuple(arguments.dns_option))
    if kind not in ("host", "none"):
        return Network("private", tuple(hosts), *names, "" if kind == "private" else kind, ports)
    if ports:
        raise BadArgument(f"-p has no meaning with --network {kind}; leave one of them away")
    return Network("none" if kind == "none" else "host", tuple(hosts), *names)


def _ports(text: str) -> list[Port]:
    places, _, protocol = text.partition("/")
    rest, _, inside = places.rpartition(":")
    address, _, outside = rest.rpartition(":")
    address = address.removeprefix("[").removesuffix("]")
    ranges = _port_range(outside), _port_range(inside)
    if not ranges[0] or len(ranges[0]) != len(ranges[1]) or protocol not in ("", "tcp", "udp"):
        raise BadArgument(
            f"-p {text} is none: [ADDRESS:]PORT:PORT[/udp], one of this machine and one of the container, or as many"
        )
    if address and not _is_address(address):
        raise BadArgument(f"-p {text}: {address} is no address")
    return [Port(*pair, protocol or "tcp", address) for pair in zip(*ranges, strict=True)]


def _port_range(text: str) -> range:
    """FIRST-LAST, or one port; empty where it is none."""
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    return range(first, last + 1) if first and last < 1 << 16 else range(0)


def _sysctls(texts: Iterable[str], network: Network, *, host_ipc: bool) -> tuple[tuple[str, str], ...]:
    """Of the container's namespaces, as far as these are its own."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not re.fullmatch(r"[a-z]+(\.[A-Za-z0-9_-]+)+", name) or not value:
            raise BadArgument(f"--sysctl {text} is none: NAME=VALUE, such as net.ipv4.ip_forward=1")
        of_ipc = name in _IPC_SETTINGS or name.startswith("fs.mqueue.")
        if not of_ipc and not name.startswith("net."):
            raise BadArgument(f"--sysctl {text}: {name} is of the whole machine; set it there, by sysctl(8)")
        if host_ipc if of_ipc else network.kind == "host":
            instead = "without --ipc host" if of_ipc else "with --network private or none"
            raise BadArgument(f"--sysctl {text}: {name} would be this machine's; a container has its own {instead}")
        found[name] = value
    return tuple(found.items())


def _is_address(text: str) -> bool:
    import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, text.partition("%")[0])
        except (OSError, ValueError):
            continue
        return is_plain(text)
    return False


def is_plain(text: str) -> bool:
    """Whether it is one word wherever it is written to."""
    return bool(text) and text.isprintable() and not any(character.isspace() or character == "#" for character in text)


def _choice(option: str, value: str, *choices: str) -> str:
    if value not in choices:
        raise BadArgument(f"{option} {value} is not there; {' and '.join(choices)} are")
    return value


def size_of(option: str, text: str) -> int:
    """A number of bytes as Docker takes it: 64m, 1.5g, 512kb, 2gib. Raises `BadArgument`."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,12})?) ?([bkmgt]?)i?b?", text.lower())
    number = int(float(match[1]) * (1 << _SHIFTS[match[2]])) if match else 0
    if not number:
        raise BadArgument(f"{option} {text} is no number of bytes, such as 64m or 1.5g")
    return number
