"""From an image's name to the places that answer for it: the registry itself, and mirrors of it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from pullpipe.errors import BadConfiguration
from pullpipe.reference import DEFAULT_REGISTRY, Reference
from pullpipe.registry.helpers import Helper

if TYPE_CHECKING:
    from pullpipe.registry.hostsfiles import Rule

_AUTH_FILES = "containers-auth.json"  # what they are called among credential helpers; they are always looked at
_DOCKER_HUB = "registry-1.docker.io"
_HUB_NAMES = (DEFAULT_REGISTRY, "index.docker.io", _DOCKER_HUB)
# What makes a registries.conf worth parsing: Podman's mostly says nothing of registries; ours may have a typing error.
_PODMAN_SPEAKS = re.compile(rb"^[ \t]*(?:\[+[ \t]*[\"']?)?registr(?:y|ies)\b", re.MULTILINE)
_PODMAN_NAMES_HELPERS = re.compile(rb"^[ \t]*[\"']?credential-helpers\b", re.MULTILINE)
_WE_SPEAK = re.compile(rb"^[ \t]*[^\s#]", re.MULTILINE)


class Tls(NamedTuple):
    """How to prove who a host is, and who we are. Paths of PEM files."""

    verify: bool = True
    ca: tuple[str, ...] = ()  # trusted besides the system's
    certificate: str = ""  # the client's own
    key: str = ""  # of that certificate, where it is in another file


class Endpoint(NamedTuple):
    """A place that answers for one repository: a registry, or a mirror of it."""

    registry: str  # whose credentials it takes; "docker.io" for Docker Hub, whose host has another name
    host: str  # host, or host:port
    repository: str  # what the repository is called there; empty for the registry as a whole
    schemes: tuple[str, ...] = ("https",)  # to be tried in this order
    path: str = "/v2"  # where the API begins
    namespace: str = ""  # of a mirror: the registry that it is to speak for, which some need to be told
    tags: bool = True  # whether to believe it what a tag names; blobs and manifests by digest prove themselves
    tls: Tls = Tls()
    headers: Mapping[str, str] = MappingProxyType({})  # for each request
    socket: str = ""  # of a Unix socket to connect to, in place of the host
    connections: int = 16  # at most, at a time
    mirror: bool = False  # of the registry itself, whose word is the last

    @property
    def elsewhere(self) -> Endpoint:
        """For another host that this one sends us to: it is to prove itself as this one, and learns nothing of ours."""
        return Endpoint("", "", "", tls=self.tls._replace(certificate="", key=""))


def origin(reference: Reference, *, plain_http: bool = False, unix_socket: str = "") -> Endpoint:
    """The registry that the reference names.

    It speaks HTTPS, or HTTP when the user says so. A registry on loopback or behind a Unix socket may speak either, as
    with Docker: what never leaves the machine needs no TLS.
    """
    hub = reference.registry in _HUB_NAMES
    host = _DOCKER_HUB if hub else reference.registry
    schemes: tuple[str, ...] = ("https",)
    if plain_http or unix_socket:
        schemes = ("http",)
    elif is_loopback(host):
        schemes = ("https", "http")
    registry = DEFAULT_REGISTRY if hub else reference.registry
    return Endpoint(registry, host, reference.repository, schemes, socket=unix_socket)


class Paths(NamedTuple):
    """Where settings are looked for, the user's before the system's. What does not exist is passed over."""

    own: tuple[str, ...] = ()  # files of pullpipe's own
    podman: tuple[str, ...] = ()  # directories with registries.conf and registries.conf.d
    containerd: tuple[str, ...] = ()  # directories with HOST/hosts.toml
    certificates: tuple[str, ...] = ()  # directories with HOST/*.crt, *.cert and *.key
    docker: tuple[str, ...] = ()  # files of settings of its daemon
    podmans_file: str = ""  # in place of every registries.conf of Podman's; it has to be there

    @classmethod
    def usual(cls, environment: Mapping[str, str], home: str) -> Paths:
        """Those of the user whose home directory is given, and the system's."""
        config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        podman = (f"{home}/.config/containers", "/etc/containers")  # it does not heed XDG_CONFIG_HOME
        return cls(
            own=(f"{config}/pullpipe/registries.conf", "/etc/pullpipe/registries.conf"),
            podman=podman,
            containerd=("/etc/containerd/certs.d",),
            certificates=(*(f"{directory}/certs.d" for directory in podman), "/etc/docker/certs.d"),
            docker=(f"{config}/docker/daemon.json", "/etc/docker/daemon.json"),
            podmans_file=environment.get("CONTAINERS_REGISTRIES_CONF", ""),
        )


class Hosts:
    """The places that answer for an image, by the settings. Of these, the first source that says anything decides:

    pullpipe's own files, Podman's, containerd's, Docker's. A place for which none of them names certificates takes
    those that Podman or Docker have for its host. docs/registries.md describes them.
    """

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def endpoints(self, reference: Reference, *, plain_http: bool = False, unix_socket: str = "") -> list[Endpoint]:
        """Mirrors in their order, the registry itself last; of a whole registry, what is said of all its images counts.

        Plain HTTP and a Unix socket are said of the registry itself, and mean: no mirrors. Raises `Blocked` and
        `BadConfiguration`.
        """
        places = self._configured(reference) or [origin(reference)]
        if plain_http or unix_socket:
            registry = places[-1]
            places = [registry._replace(schemes=("http",), socket=unix_socket or registry.socket)]
        return [place._replace(tls=self._with_certificates(place)) for place in places]

    @property
    def credential_helpers(self) -> list[Helper]:
        """Those that Podman's files name for all registries; the last file that names any decides."""
        for file in reversed(_podmans_files(self._paths.podman, self._paths.podmans_file)):
            content = _read(file)
            if _PODMAN_NAMES_HELPERS.search(content):
                from pullpipe.registry import hostsfiles

                if named := hostsfiles.credential_helpers(file, content):
                    return [Helper(name, file) for name in named if name != _AUTH_FILES]
        return []

    def _configured(self, reference: Reference) -> list[Endpoint]:
        for rules in self._rules:
            if fitting := [rule for rule in rules if rule.fits(reference)]:
                return max(fitting, key=lambda rule: rule.weight).endpoints(reference)
        host, _, port = reference.registry.rpartition(":")
        names = [f"{host}_{port}_"] if port.isdigit() else []
        for directory in self._paths.containerd:
            for name in (*names, reference.registry, "_default"):
                there = os.path.join(directory, name)
                if os.path.isdir(there):  # containerd looks no further, whatever is in it
                    file = os.path.join(there, "hosts.toml")
                    if content := _read(file):
                        from pullpipe.registry import hostsfiles

                        return hostsfiles.hosts_toml(file, content, reference)
                    if (certificates := _certificates(there)) != Tls():
                        return [origin(reference)._replace(tls=certificates)]
                    break
        for file in self._paths.docker if origin(reference).registry == DEFAULT_REGISTRY else ():
            if b"registry-mirrors" in (content := _read(file)):
                from pullpipe.registry import hostsfiles

                return hostsfiles.daemon_json(file, content, reference)
        return []

    @cached_property
    def _rules(self) -> list[list[Rule]]:
        """Of each source, in the order of the sources."""
        own = [_rules([file], own=True) for file in self._paths.own]
        return [*own, _rules(_podmans_files(self._paths.podman, self._paths.podmans_file), own=False)]

    def _with_certificates(self, place: Endpoint) -> Tls:
        if place.tls.ca or place.tls.certificate:
            return place.tls
        for directory in (os.path.join(directory, place.registry) for directory in self._paths.certificates):
            if os.path.isdir(directory):
                return _certificates(directory)._replace(verify=place.tls.verify)
        return place.tls


def _certificates(directory: str) -> Tls:
    """Those in it, by Docker's endings."""
    files = _listing(directory)
    certificate = next((file for file in files if file.endswith(".cert")), "")
    key = certificate.removesuffix(".cert") + ".key" if certificate else ""
    if key and key not in files:
        raise BadConfiguration(f"{certificate} lacks its key {key}; the certificate of an authority is a .crt")
    return Tls(True, tuple(file for file in files if file.endswith(".crt")), certificate, key)


def _rules(files: Iterable[str], *, own: bool) -> list[Rule]:
    """Those of all files together; what is said again replaces what was said before."""
    rules: dict[str, Rule] = {}
    for file in files:
        content = _read(file)
        if (_WE_SPEAK if own else _PODMAN_SPEAKS).search(content):
            from pullpipe.registry import hostsfiles  # with the TOML parser, which takes 9 ms

            rules |= hostsfiles.registries_conf(file, content, own=own)
    return list(rules.values())


def _podmans_files(directories: tuple[str, ...], named: str) -> list[str]:
    """By Podman's rule: the first registries.conf hides all of the directories behind its own; then the drop-ins.

    One that the environment names hides no directory.
    """
    if named and not os.path.exists(named):
        raise BadConfiguration(f"there is no file {named}, which CONTAINERS_REGISTRIES_CONF names; correct or unset it")
    files = [os.path.join(directory, "registries.conf") for directory in directories]
    main = len(files) if named else next((n for n, file in enumerate(files) if os.path.exists(file)), len(files))
    read = [named] if named else files[main : main + 1]
    for directory in reversed(directories[: main + 1]):
        drop_ins = os.path.join(directory, "registries.conf.d")
        read += [file for file in _listing(drop_ins) if file.endswith(".conf")] if os.path.isdir(drop_ins) else []
    return read


def _listing(directory: str) -> list[str]:
    """The paths in a directory, sorted."""
    with _readable(directory):
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory))]


def _read(file: str) -> bytes:
    """A file's content, which is empty where there is no file, or none that we can see."""
    if not os.path.isfile(file):
        return b""
    with _readable(file), open(file, "rb") as opened:
        return opened.read()


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror}"
        raise BadConfiguration(f"{reason}; mend its permissions, or move it away") from error


def is_loopback(host: str) -> bool:
    """Whether the host, with or without a port, is this machine."""
    name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    for family, loopback in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\1")):
        with suppress(OSError):  # no such address
            return socket.inet_pton(family, name).startswith(loopback)
    return False
