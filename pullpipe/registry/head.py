"""What a tag names now, by one HEAD on a bare socket: to pull an unchanged tag does not take aiohttp's import.

Only the plain case is served here: the registry answers at once, 200, with a digest. For everything else (a name that
does not resolve, a refusal, a redirect, an answer that is odd) there is no answer here, and the client finds out why.
"""

from __future__ import annotations

import socket

from pullpipe import __version__
from pullpipe.oci import INDEXES, MANIFESTS
from pullpipe.registry.hosts import Endpoint
from store import Digest, InvalidDigest

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
_TIMEOUT = 5  # seconds
_HEADERS_LIMIT = 64 << 10  # bytes


def head(endpoint: Endpoint, tag: str, authorization: str | None) -> Digest | None:
    """The digest behind the tag (OCI distribution-spec 1.1, "Checking if content exists in the registry").

    Of an endpoint that may speak either, plain HTTP is tried. Raises `BadConfiguration`.
    """
    scheme = endpoint.schemes[-1]
    name, port = _address(endpoint.host, 443 if scheme == "https" else 80)
    query = f"?ns={endpoint.namespace}" if endpoint.namespace else ""
    headers = {
        "Host": endpoint.host,
        "Accept": ACCEPT,
        "User-Agent": f"pullpipe/{__version__}",
        "Connection": "close",
        **endpoint.headers,
        **({"Authorization": authorization} if authorization else {}),
    }
    lines = [f"HEAD {endpoint.path}/{endpoint.repository}/manifests/{tag}{query} HTTP/1.1"]
    request = "\r\n".join([*lines, *(f"{key}: {value}" for key, value in headers.items()), "", ""])
    try:
        with _connect(endpoint.socket, name, port) as connection:
            if scheme == "http":
                return _ask(connection, request)
            from pullpipe.registry.tls import context

            with context(endpoint.tls).wrap_socket(connection, server_hostname=name) as encrypted:
                return _ask(encrypted, request)
    except (OSError, ValueError):  # ssl's errors are both of them
        return None


def _connect(path: str, name: str, port: int) -> socket.socket:
    if not path:
        # As bytes: a text would be encoded as an international name, which takes an import of its own.
        return socket.create_connection((name.encode(), port), _TIMEOUT)  # type: ignore[arg-type]
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_TIMEOUT)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


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
