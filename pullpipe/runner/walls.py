"""What a container's walls are to be: plain values, decided outside of it. Without a word from the user, Docker's.

`sandbox` builds them from inside.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from pullpipe.runner import capabilities


class Bind(NamedTuple):
    """A file or directory of the host, shown in the container; devices in it do not open."""

    source: str
    target: str  # an absolute path in the container
    read_only: bool = False  # with everything that is mounted below it
    recursive: bool = True  # with what is mounted below it on the host


class Tmpfs(NamedTuple):
    """A new file system in memory; devices in it do not open."""

    target: str
    options: tuple[tuple[str, str], ...] = ()  # of tmpfs(5): size, mode, uid, …
    attributes: int = 0  # `linux.ATTR_…`


class Port(NamedTuple):
    """What comes to a port of the host goes to one of the container."""

    outside: int
    inside: int
    protocol: str = "tcp"  # or udp
    address: str = ""  # of the host; empty: all of them


class Network(NamedTuple):
    """Whose network it is, and how names are found there."""

    kind: Literal["host", "none", "private"] = "host"
    hosts: tuple[tuple[str, str], ...] = ()  # (name, address)
    servers: tuple[str, ...] = ()  # these three stand for the host's, where they are not empty
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    program: str = ""  # what makes a private one: `pasta` or `slirp4netns`; empty: whichever there is
    ports: tuple[Port, ...] = ()  # of a private one


class Rights(NamedTuple):
    """What a process in the container may do: the first one, and those that join it later."""

    capabilities: int = capabilities.DEFAULT  # root's; of no use to others
    demanded: int = 0  # those of them that must be there: it is an error if we have them not to give
    filter: bytes = b""  # a BPF program that says which system calls it may make; empty: all
    no_new_privileges: bool = False
    limits: tuple[tuple[str, int, int], ...] = ()  # (of `linux.LIMITS`, soft, hard); -1 is no limit


class Walls(NamedTuple):
    """All of it."""

    rights: Rights = Rights()
    seccomp: str = "builtin"  # which filter: `builtin`, `unconfined`, or the path of a profile
    mounts: tuple[Bind | Tmpfs, ...] = ()
    devices: tuple[tuple[str, str], ...] = ()  # (on the host, in the container), to be read and written
    read_only: bool = False  # the root; not what is mounted in it
    shm_size: int = 64 << 20  # bytes
    network: Network = Network()
    host_pids: bool = False
    host_ipc: bool = False
    sysctls: tuple[tuple[str, str], ...] = ()  # (name, value) of settings of the container's own namespaces
    init: bool = False  # a process of ours is the first one, and the command its child
