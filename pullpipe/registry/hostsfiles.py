"""What registries.conf (Podman's and ours), containerd's hosts.toml and Docker's daemon.json say of an image.

Imported only where there is such a file, since the TOML parser takes its time.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pullpipe.errors import BadConfiguration, Blocked, InvalidReference
from pullpipe.reference import Reference
from pullpipe.registry.hosts import Endpoint, Tls, origin

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
_IS_HOST = r"(?=[^/]*[.:A-Z]|localhost(?:/|$))"  # what an image's name begins with only then is one
_TAIL = r":[\w.-]+|@[\w+.-]+:[0-9a-f]+"
_NAME = re.compile(rf"{_IS_HOST}({_HOST}(?:/[a-z0-9._-]+)+)({_TAIL})?|{_IS_HOST}({_HOST})")
_WILDCARD = re.compile(r"\*(?:\.[A-Za-z0-9-]+)+")
_URL = re.compile(rf"(?:(https?)://)?({_HOST})((?:/[^\s?#@]*)?)")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110

_Kinds = Mapping[str, type]
_PLACE: _Kinds = {"location": str, "insecure": bool}
_MIRROR: _Kinds = {**_PLACE, "pull-from-mirror": str}
_REGISTRY: _Kinds = {**_PLACE, "prefix": str, "blocked": bool, "mirror-by-digest-only": bool, "mirror": list}
_TLS: _Kinds = {"plain-http": bool, "ca": list, "client-cert": str, "client-key": str}
_OURS: _Kinds = {**_TLS, "headers": dict, "socket": str, "connections": int}
_CONTAINERD: _Kinds = {"capabilities": list, "override_path": bool, "header": dict}
_HOSTS_TOML: _Kinds = {**_CONTAINERD, "skip_verify": bool, "ca": list, "client": list}
_WORDS = {
    bool: "true or false",
    int: "a number",
    str: "a text",
    list: "a list (one of tables is written [[…]])",
    dict: "a table",
}


class Rule(NamedTuple):
    """A [[registry]] table: what is said of the images whose names begin with its prefix."""

    file: str
    name: str  # the prefix: HOST, *.HOST or HOST/PATH ...
    tail: str  # ... and :TAG or @DIGEST
    table: Mapping[str, Any]
    mirrors: tuple[Mapping[str, Any], ...]

    @property
    def weight(self) -> tuple[int, bool]:
        """The longest prefix wins."""
        return len(self.name + self.tail), self.name[0] != "*"

    def fits(self, reference: Reference) -> bool:
        """Whether the prefix ends where a part of the image's name does. The asterisk stands for any subdomains."""
        if self.name[0] == "*":
            return re.sub(r":\d+$", "", reference.registry).endswith(self.name[1:])
        if self.tail:
            tails = f":{reference.tag or ''}", f"@{reference.digest or ''}"
            return reference.name == self.name and self.tail in tails
        return f"{reference.name}/".startswith(f"{self.name}/")

    def endpoints(self, reference: Reference) -> list[Endpoint]:
        """Mirrors first. Raises `Blocked` and `BadConfiguration`."""
        if self.table.get("blocked"):
            raise Blocked(
                f"{reference} is blocked: {self.file} says so of {self.name}{self.tail}; "
                "take another one, or change that file"
            )
        places = []
        for mirror in self.mirrors:
            if not (reference.digest and mirror["pull-from-mirror"] == "tag-only"):
                place = self._place(mirror, reference)
                tags = mirror["pull-from-mirror"] != "digest-only"
                places.append(place._replace(mirror=True, tags=tags, namespace=_namespace(place, reference)))
        return [*places, self._place(self.table, reference)]

    def _place(self, table: Mapping[str, Any], reference: Reference) -> Endpoint:
        target = reference
        if location := table.get("location"):
            matched = reference.registry if self.name[0] == "*" else self.name
            whole = _split(self.file, location)[0] + reference.name.removeprefix(matched)
            host, _, path = whole.partition("/")
            try:
                target = (
                    Reference.parse(f"{host}/{path}") if reference.repository else reference._replace(registry=host)
                )
            except InvalidReference as error:
                raise BadConfiguration(
                    f"{self.file}: {self.name} at {location} makes {reference} an {error}; correct the location"
                ) from None
        plain, insecure = table.get("plain-http", False), table.get("insecure", False)
        unix_socket = _path(self.file, "socket", table.get("socket", ""))
        place = origin(target, plain_http=plain, unix_socket=unix_socket)
        certificate, key = table.get("client-cert", ""), table.get("client-key", "")
        return place._replace(
            schemes=("https", "http") if insecure and not plain and not unix_socket else place.schemes,
            tls=_tls(self.file, table.get("ca", []), certificate, key, verify=not insecure),
            headers=_headers(self.file, table.get("headers", {})),
            connections=table.get("connections", place.connections),
        )


def registries_conf(file: str, content: bytes, *, own: bool) -> dict[str, Rule]:
    """The rules in the file, by their prefixes. In our own, no mistake is passed over. Raises `BadConfiguration`."""
    kinds: _Kinds = {"registry": list} if own else {"registry": list, "registries": dict}
    document = _checked(file, _parsed(file, content), kinds, strict=own)
    rules: dict[str, Rule] = {}
    for table in document.get("registry", []) + _version_1(file, document.get("registries", {})):
        rule = _rule(file, table, own=own)
        if own and rule.name + rule.tail in rules:
            raise BadConfiguration(f"{file}: two [[registry]] tables for {rule.name}{rule.tail}; make them one")
        rules.setdefault(rule.name + rule.tail, rule)
    return rules


def credential_helpers(file: str, content: bytes) -> list[str]:
    """The names in Podman's file of those for all registries. Raises `BadConfiguration`."""
    key = "credential-helpers"
    names: list[object] = _checked(file, _parsed(file, content), {key: list}).get(key, [])
    if not all(isinstance(name, str) for name in names):
        raise BadConfiguration(f"{file}: {key} is to be a list of names")
    return [str(name) for name in names]


def hosts_toml(file: str, content: bytes, reference: Reference) -> list[Endpoint]:
    """The hosts in their order, the server last. Raises `Blocked` and `BadConfiguration`."""
    root = _checked(file, _parsed(file, content), {**_HOSTS_TOML, "server": str, "host": dict})
    tables = [(url, _checked(file, table, _HOSTS_TOML)) for url, table in root.get("host", {}).items()]
    places = []
    for url, table in (*tables, (root.get("server", ""), root)):
        can = table.get("capabilities") or ["pull", "resolve"]
        if "pull" in can:
            place = _host(file, url, table, reference)
            namespace = _namespace(place, reference)
            places.append(place._replace(mirror=table is not root, tags="resolve" in can, namespace=namespace))
    if not any(place.tags or reference.digest for place in places):
        needed = "pull" if reference.digest else "pull and resolve"
        raise Blocked(f"{reference} is blocked: {file} names no host for it; give one the capability to {needed}")
    return places


def daemon_json(file: str, content: bytes, reference: Reference) -> list[Endpoint]:
    """The mirrors of Docker Hub in their order, which Docker believes in tags; it last. Raises `BadConfiguration`."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise BadConfiguration(f"{file} is not JSON; correct it, or move it away") from None
    urls = _checked(file, document, {"registry-mirrors": list}).get("registry-mirrors", [])
    mirrors = [_host(file, str(url), {}, reference)._replace(mirror=True) for url in urls]
    return [*mirrors, origin(reference)]


def _host(file: str, url: str, table: Mapping[str, Any], reference: Reference) -> Endpoint:
    place = origin(reference)
    if url:
        if not (found := _URL.fullmatch(url)):
            raise BadConfiguration(
                f"{file}: {_shown(url)!r} is no URL of a host; it is to be http(s)://HOST[:PORT][/PATH]"
            )
        scheme, host, path = found[1] or "https", found[2], found[3].rstrip("/")
        if not table.get("override_path") and not path.endswith("/v2"):
            path += "/v2"
        place = origin(reference._replace(registry=host))._replace(schemes=(scheme,), path=path)
    pair = next(iter(table.get("client", [])), "")
    certificate, key = pair if isinstance(pair, list) and len(pair) == 2 else (pair, "")
    tls = _tls(file, table.get("ca", []), certificate, key, verify=not table.get("skip_verify"))
    return place._replace(tls=tls, headers=_headers(file, table.get("header", {})))


def _rule(file: str, given: object, *, own: bool) -> Rule:
    ours = _OURS if own else {}
    table = _checked(file, given, {**_REGISTRY, **ours}, strict=own)
    mirrors = [_checked(file, mirror, {**_MIRROR, **ours}, strict=own) for mirror in table.get("mirror", [])]
    prefix = table.get("prefix") or table.get("location", "")
    name, tail = (prefix, "") if _WILDCARD.fullmatch(prefix) else _split(file, prefix)
    for place in (table, *mirrors):
        location = place.get("location", "")
        if (location or place is not table) and _split(file, location)[1] not in ("", tail):
            raise BadConfiguration(f"{file}: {location} has another tag or digest than {prefix}; leave it out")
        if place.get("connections", 1) < 1:
            raise BadConfiguration(f"{file}: connections is to be 1 or more")
    for mirror in mirrors:
        serves = "digest-only" if table.get("mirror-by-digest-only") else mirror.get("pull-from-mirror")
        mirror["pull-from-mirror"] = serves or ("digest-only" if own else "all")
        if mirror["pull-from-mirror"] not in ("all", "digest-only", "tag-only"):
            raise BadConfiguration(f"{file}: pull-from-mirror is to be all, digest-only or tag-only")
    return Rule(file, name, tail, table, tuple(mirrors))


def _version_1(file: str, lists: Mapping[str, object]) -> list[Any]:
    """Podman's old format, as tables of the new one: lists of hosts."""
    tables = []
    for name, key in (("block", "blocked"), ("insecure", "insecure")):  # what is both is blocked
        hosts = _checked(file, lists.get(name, {}), {"registries": list}).get("registries", [])
        tables += [{"location": host, key: True} for host in hosts]
    return tables


def _parsed(file: str, content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise BadConfiguration(f"{file} is not TOML: {_shown(str(error))}; correct it, or move it away") from None


def _checked(file: str, table: object, kinds: _Kinds, *, strict: bool = False) -> dict[str, Any]:
    """What the table says that there is a kind for; a text may stand for a list of it alone."""
    if not isinstance(table, dict):
        raise BadConfiguration(f"{file}: {'/'.join(kinds)} are to be in a table")
    found = {}
    for key, value in table.items():
        if kind := kinds.get(key):
            found[key] = [value] if kind is list and isinstance(value, str) else value
            if type(found[key]) is not kind:
                raise BadConfiguration(f"{file}: {key} is to be {_WORDS[kind]}")
        elif strict:
            raise BadConfiguration(f"{file}: there is no key {key!r} here; there are {', '.join(kinds)}")
    return found


def _split(file: str, text: str) -> tuple[str, str]:
    """HOST or HOST/PATH, and :TAG or @DIGEST."""
    if found := _NAME.fullmatch(text.rstrip("/")):
        name = found[1] or found[3]
        return re.sub(r"^index\.docker\.io(?=/|$)", "docker.io", name), found[2] or ""
    form = "it is to be HOST[:PORT][/PATH] without a scheme, a user or spaces"
    raise BadConfiguration(f"{file}: {_shown(text)!r} is no beginning of an image's name; {form}")


def _namespace(place: Endpoint, reference: Reference) -> str:
    return "" if place.registry == origin(reference).registry else reference.registry


def _tls(file: str, ca: Iterable[object], certificate: object, key: object, *, verify: bool) -> Tls:
    authorities = tuple(_path(file, "ca", path) for path in ca)
    return Tls(verify, authorities, _path(file, "a client's certificate", certificate), _path(file, "its key", key))


def _path(file: str, key: str, path: object) -> str:
    """As seen from the file's directory."""
    if not isinstance(path, str):
        raise BadConfiguration(f"{file}: {key} is to be a path")
    return os.path.join(os.path.dirname(file), path) if path else ""


def _headers(file: str, table: Mapping[str, object]) -> Mapping[str, str]:
    headers = {}
    for name, given in table.items():
        values = [value for value in (given if isinstance(given, list) else [given]) if isinstance(value, str)]
        headers[name] = ", ".join(values)
        if not _TOKEN.fullmatch(name) or not values or not headers[name].isprintable():
            raise BadConfiguration(f"{file}: the header {name!r} is to be a name and one line of text")
    return headers


def _shown(text: str) -> str:
    """For a message: without the user and the password that do not belong there."""
    return re.sub(r"\S*@", "…@", text)
