"""A network of a container's own, with root or without: a program makes this machine's sockets of what it sends.

That is pasta (Debian's package passt) or slirp4netns. It stays in this machine's network, tied to this process, which
goes into the new one, and the container after it. What is sent to loopback addresses does not reach the program: it
would connect it to services that this machine has for itself alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, NoReturn

from pullpipe import linux
from pullpipe.errors import PullpipeError, RunError
from pullpipe.runner.walls import Network, Port

_INTERFACE = "eth0"
_PASTA, _SLIRP4NETNS = "pasta", "slirp4netns"
# What they say anyway; the first when the machine keeps no log.
_USUAL = ("Failed to send", "WARNING: Support for", "sent tapfd", "received tapfd")
_TUN = os.makedev(10, 200)  # /dev/net/tun


class _Program(NamedTuple):
    """What makes the network."""

    path: str
    options: tuple[str, ...]  # behind which the namespace's path comes
    ready: int  # the descriptor that it writes to when all is set up
    dns: str  # what is sent there, it sends to this machine's name server


@contextmanager
def entered(network: Network, scratch: str) -> Iterator[Network]:
    """Makes the network and enters it, and yields it with the name servers that it has. After the block it is cut off
    from the world, and this process is still in it. `scratch` is a directory for an empty file.

    Raises `RunError`, with what the program says, and `KernelRefused`.
    """
    program = _program(network)
    ready, says_ready = os.pipe()
    given, gives = socket.socketpair()
    said = os.memfd_create("said")
    pid = linux.fork_tied()
    if pid == 0:
        _become(program, given, says_ready, said, os.path.join(scratch, "netns"))
    process = os.pidfd_open(pid)
    try:
        os.close(says_ready)
        given.close()
        linux.unshare(linux.CLONE_NEWNET)
        with open("/proc/self/ns/net", "rb") as namespace:
            socket.send_fds(gives, [b"n"], [namespace.fileno()])
        gives.close()
        if not os.read(ready, 1):
            raise RunError(f"the container's network cannot be made; {_reason(program, said)}")
        _keep_from_loopback(program, pid)
        yield network._replace(servers=network.servers or (program.dns,))
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # it may have been ended and reaped with all the rest
            signal.pidfd_send_signal(process, signal.SIGKILL)
            os.waitpid(pid, 0)
        for descriptor in (process, ready, said):
            os.close(descriptor)


def _program(network: Network) -> _Program:
    wanted = (network.program,) if network.program else (_PASTA, _SLIRP4NETNS)
    if path := shutil.which(_PASTA) if _PASTA in wanted else None:
        return _pasta(path, network.ports)
    if network.ports:
        raise RunError(
            "to publish ports (-p) takes the program pasta; install the package passt, or use --network host"
        )
    if path := shutil.which(_SLIRP4NETNS) if _SLIRP4NETNS in wanted else None:
        return _slirp4netns(path)
    package = network.program if network.program == _SLIRP4NETNS else "passt"
    raise RunError(
        f"a network of the container's own takes the program {' or '.join(wanted)}; "
        f"install the package {package}, or use --network host, or none"
    )


def _pasta(path: str, ports: Sequence[Port]) -> _Program:
    dns = "169.254.1.1"  # nobody's
    options = f"--config-net --ns-ifname {_INTERFACE} --quiet --foreground --runas 0 --pid /dev/stdout".split()
    # No way to what listens on this machine's loopback, and no ports but those that are asked for.
    options += ["--no-map-gw", "-T", "none", "-U", "none"]
    for option, protocol in (("-t", "tcp"), ("-u", "udp")):
        specified = [_specified(port) for port in ports if port.protocol == protocol] or ["none"]
        options += [word for one in specified for word in (option, one)]
    return _Program(path, (*options, "--dns-forward", dns, "--netns-only", "--netns"), 1, dns)


def _specified(port: Port) -> str:
    return f"{port.address}/{port.outside}:{port.inside}" if port.address else f"{port.outside}:{port.inside}"


def _slirp4netns(path: str) -> _Program:
    options = ("--configure", "--mtu=65520", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp")
    return _Program(path, (*options, "--ready-fd=3", "--netns-type=path"), 3, "10.0.2.3")


def _become(program: _Program, given: socket.socket, ready: int, said: int, place: str) -> NoReturn:
    """This process becomes the program, which wants a path of the namespace that stays: a mount that only it sees."""
    try:
        os.setsid()  # keys such as Ctrl-C are for the container
        _, (namespace, *_), _, _ = socket.recv_fds(given, 1, 1)
        linux.unshare(linux.CLONE_NEWNS)
        linux.keep_mounts_here()
        os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        linux.mount(f"/proc/self/fd/{namespace}", place, "", linux.MS_BIND)
        null = os.open("/dev/null", os.O_RDONLY)
        for number, descriptor in ((0, null), (1, said), (2, said), (program.ready, ready)):
            os.dup2(descriptor, number)
        os.set_inheritable(program.ready, True)
        linux.close_range(max(program.ready, 2) + 1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta refuses to start where it is ignored
        last = (place, _INTERFACE) if program.path.endswith(_SLIRP4NETNS) else (place,)
        os.execve(program.path, (program.path, *program.options, *last), {})
    except (PullpipeError, OSError, ValueError) as error:
        with suppress(OSError):
            os.write(2, str(error).encode())
    finally:
        os._exit(1)


def _reason(program: _Program, said: int) -> str:
    """What it said last, without what it says anyway."""
    lines = [line.strip() for line in os.pread(said, 64 << 10, 0).decode(errors="replace").split("\n")]
    last = ", ".join([line for line in lines if line and not line.startswith(_USUAL)][-3:]) or "nothing"
    remedy = "choose ports that are free and yours to open" if "bind" in last else "use --network host, or none"
    return f"{os.path.basename(program.path)} says: {last}; {remedy}"


def _keep_from_loopback(program: _Program, pid: int) -> None:
    """Has the kernel drop what must not come to the program, before it can read it.

    Whoever may make packets, or choose the device that they leave by, can send to a loopback address through it, and
    both programs would make a connection to this machine's own of that.
    """
    if (tap := _tap(pid)) is None:
        raise RunError(f"{program.path} has no way into the container's network; use --network host, or none")
    try:
        linux.filter_tap(tap, _guard(program.dns))
    finally:
        os.close(tap)


def _tap(pid: int) -> int | None:
    """The device that the program reads what the container sends from, open in it and here."""
    for number in map(int, os.listdir(f"/proc/{pid}/fd")):
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.stat(f"/proc/{pid}/fd/{number}").st_rdev == _TUN:
                return linux.descriptor_of(pid, number)
    return None


# Of classic BPF: <linux/bpf_common.h>
_LOAD_WORD, _LOAD_HALF, _LOAD_BYTE = 0x20, 0x28, 0x30
_LOAD_HALF_BEHIND, _SKIP_HEADER = 0x48, 0xB1
_IF_EQUAL, _IF_ANY, _RETURN = 0x15, 0x45, 0x06


def _guard(dns: str) -> bytes:
    """A BPF program for Ethernet frames: of IPv4, IPv6 and ARP, nothing to loopback and unspecified addresses in any of
    their forms, and to the name server's nothing but to its port.
    """
    server = int.from_bytes(socket.inet_aton(dns), "big")
    drop, passes = 18, 19
    program = [  # (what, with which value, where to go on if that is so, and if it is not)
        (_LOAD_HALF, 12),
        (_IF_EQUAL, 0x0806, passes, 2),
        (_IF_EQUAL, 0x86DD, 14, 3),
        (_IF_EQUAL, 0x0800, 4, drop),
        (_LOAD_BYTE, 30),  # of the destination 127.0.0.0/8, 0.0.0.0/8
        (_IF_EQUAL, 127, drop, 6),
        (_IF_EQUAL, 0, drop, 7),
        (_LOAD_WORD, 30),
        (_IF_EQUAL, server, 9, passes),
        (_LOAD_HALF, 20),  # fragments
        (_IF_ANY, 0x3FFF, drop, 11),
        (_SKIP_HEADER, 14),
        (_LOAD_HALF_BEHIND, 16),  # the port
        (_IF_EQUAL, 53, passes, drop),
        (_LOAD_WORD, 38),  # of the destination ::/64: ::, ::1, and IPv4's as ::ffff:0:0/96
        (_IF_EQUAL, 0, 16, passes),
        (_LOAD_WORD, 42),
        (_IF_EQUAL, 0, drop, passes),
        (_RETURN, 0),
        (_RETURN, 0xFFFFFFFF),
    ]
    return b"".join(
        struct.pack("=HBBI", what, *(to - at - 1 for to in places), value)
        if places
        else struct.pack("=HBBI", what, 0, 0, value)
        for at, (what, value, *places) in enumerate(program)
    )
