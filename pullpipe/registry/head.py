"""What a tag names now, by one HEAD on a bare socket: to pull an unchanged tag does not take aiohttp's import.

Only the plain case is served here: the registry answers at once, 200, with a digest. For everything else (a name that
does not resolve, a refusal, a redirect, an answer that is odd) there is no answer here, and the client finds out why.
"""

from __future__ import annotations

import socket

from pullpipe import __version__
from pullpipe.oci import INDEXES, MANIFESTS
from pullpipe.reference import Reference
from pullpipe.registry import hosts
from store import Digest, InvalidDigest

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
_TIMEOUT = 5  # seconds
_HEADERS_LIMIT = 64 << 10  # bytes


def head(reference: Reference, *, plain_http: bool) -> Digest | None:
    """The digest behind the tag (OCI distribution-spec 1.1, "Checking if content exists in the registry").

    Of a registry on loopback, which may speak either, plain HTTP is tried.
    """
    scheme, _, host = hosts.candidates(reference.registry, plain_http=plain_http)[-1].partition("://")
    name, port = _address(host, 443 if scheme == "https" else 80)
    request = (
        f"HEAD /v2/{reference.repository}/manifests/{reference.tag} HTTP/1.1\r\nHost: {host}\r\nAccept: {ACCEPT}\r\n"
        f"User-Agent: pullpipe/{__version__}\r\nConnection: close\r\n\r\n"
    )
    try:
        # As bytes: a text would be encoded as an international name, which takes an import of its own.
        with socket.create_connection((name.encode(), port), _TIMEOUT) as connection:  # type: ignore[arg-type]
            if scheme == "http":
                return _ask(connection, request)
            import ssl

            with ssl.create_default_context().wrap_socket(connection, server_hostname=name) as encrypted:
                return _ask(encrypted, request)
    except (OSError, ValueError):  # ssl's errors are both of them
        return None


def _ask(connection: socket.socket, request: str) -> Digest | None:
    connection.sendall(request.encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _HEADERS_LIMIT and (more := connection.recv(_HEADERS_LIMIT)):
        answer += more
    status, *fields = answer.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    headers = [field.partition(":") for field in fields]
    stated = [value.strip() for key, _, value in headers if key.lower() == "docker-content-digest"]
    if status.split(" ")[:2][1:] != ["200"] or not status.startswith("HTTP/1.") or len(stated) != 1:
        return None
    try:
        return Digest.parse(stated[0])
    except InvalidDigest:
        return None


def _address(host: str, port: int) -> tuple[str, int]:
    """Host and port; an IPv6 address stands in brackets."""
    name, colon, number = host.rpartition(":")
    if colon and not number.endswith("]"):
        return name.strip("[]"), int(number)
    return host.strip("[]"), port
