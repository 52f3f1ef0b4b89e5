"""What a tag names now, by one HEAD on a bare socket: to pull an unchanged tag does not take aiohttp's import.

Only the plain case is served here: the registry answers at once, 200, with a digest. For everything else (a name that
does not resolve, a refusal, a redirect, an answer that is odd) there is no answer here, and the client finds out why.
"""

from __future__ import annotations

import socket
from time import monotonic

from pullpipe import __version__
from pullpipe.oci import INDEXES, MANIFESTS
from pullpipe.registry.hosts import Endpoint, is_loopback
from store import Digest, InvalidDigest

ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
_PATIENCE = 5.0  # seconds at most; whoever takes longer is slow enough not to gain by this
_HEADERS_LIMIT = 64 << 10  # bytes


def head(endpoint: Endpoint, tag: str, authorization: str | None, timeout: float) -> Digest | None:
    """The digest behind the tag (OCI distribution-spec 1.1, "Checking if content exists in the registry").

    The answer has to be there within `timeout` seconds, or our own few. Of an endpoint on this machine that may speak
    either, plain HTTP is tried; what may speak TLS elsewhere is not told any secret before it has. Raises
    `BadConfiguration`.
    """
    if len(endpoint.schemes) > 1 and not is_loopback(endpoint.host):
        return None
    scheme = endpoint.schemes[-1]
    deadline = monotonic() + min(timeout, _PATIENCE)
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
        with _connect(endpoint.socket, name, port, deadline) as connection:
            if scheme == "http":
                return _ask(connection, request, deadline)
            from pullpipe.registry.tls import context

            with context(endpoint.tls).wrap_socket(connection, server_hostname=name) as encrypted:
                return _ask(encrypted, request, deadline)
    except (OSError, ValueError):  # ssl's errors are both of them
        return None


def _connect(path: str, name: str, port: int, deadline: float) -> socket.socket:
    if not path:
        # As bytes: a text would be encoded as an international name, which takes an import of its own.
        return socket.create_connection((name.encode(), port), _left(deadline))  # type: ignore[arg-type]
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_left(deadline))
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _left(deadline: float) -> float:
    """Seconds. Raises `TimeoutError` when there are none."""
    if (left := deadline - monotonic()) <= 0:
        raise TimeoutError
    return left


def _ask(connection: socket.socket, request: str, deadline: float) -> Digest | None:
    connection.sendall(request.encode())
    answer = b""
    while b"\r\n\r\n" not in answer and len(answer) < _HEADERS_LIMIT:
        connection.settimeout(_left(deadline))
        if not (more := connection.recv(_HEADERS_LIMIT)):
            break
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
