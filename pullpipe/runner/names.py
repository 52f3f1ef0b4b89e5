"""The files of a container that tell names: hosts, resolv.conf and hostname, made from the host's."""

from __future__ import annotations

import os

from pullpipe.errors import RunError
from pullpipe.runner.walls import Network

GATEWAY = "host-gateway"  # stands for the host's address
_ALONE = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def write_files(directory: str, hostname: str, network: Network) -> tuple[tuple[str, str], ...]:
    """Writes them there, and returns for each where it is and where it goes.

    Raises `RunError` when an address is asked for that there is not, `OSError`.
    """
    contents = {
        "hosts": _hosts(hostname, network),
        "resolv.conf": _resolv_conf(_host_file("/etc/resolv.conf"), network),
        "hostname": f"{hostname}\n".encode(),
    }
    for name, content in contents.items():
        with open(os.path.join(directory, name), "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(content)
    return tuple((os.path.join(directory, name), f"/etc/{name}") for name in contents)


def _hosts(hostname: str, network: Network) -> bytes:
    """The host's, where the container shares its network; then what the user adds, and the container's own name."""
    hosts = _host_file("/etc/hosts") if network.kind == "host" else _ALONE
    lines = [hosts + (b"" if hosts.endswith(b"\n") or not hosts else b"\n")]
    for name, address in network.hosts:
        if address == GATEWAY and network.kind != "host":
            why = (
                "without a network there is no"
                if network.kind == "none"
                else "from a private network no way leads to the"
            )
            raise RunError(f"{why} {GATEWAY} that could be called {name}; give an address, or use --network host")
        lines.append(f"{'127.0.0.1' if address == GATEWAY else address}\t{name}\n".encode())
    lines.append(f"127.0.0.1\t{hostname}\n".encode())
    return b"".join(lines)


def _resolv_conf(host: bytes, network: Network) -> bytes:
    """The host's, in which what the user says takes the place of what is there of its kind."""
    instead = {
        b"nameserver": [f"nameserver {server}" for server in network.servers],
        # A dot alone: no domain is searched.
        b"search": [f"search {' '.join(network.search)}"] if network.search not in ((), (".",)) else [],
        b"options": [f"options {' '.join(network.options)}"] if network.options else [],
    }
    given = {b"nameserver": network.servers, b"search": network.search, b"options": network.options}
    replaced = {keyword for keyword, values in given.items() if values}
    if not replaced:
        return host
    if b"search" in replaced:
        replaced.add(b"domain")
    kept = [line for line in host.split(b"\n") if line.split()[:1] and line.split()[0] not in replaced]
    return b"".join(line + b"\n" for line in (*kept, *(text.encode() for texts in instead.values() for text in texts)))


def _host_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
