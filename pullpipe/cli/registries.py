"""What the user, and the machine, say of registries: where they are, and with whose credentials."""

from __future__ import annotations

import argparse
import os
from typing import NamedTuple

from pullpipe.reference import Reference
from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.hosts import Endpoint, origin
from pullpipe.registry.tokens import TokenCache
from store import Digest


class Access(NamedTuple):
    """To one image's registry."""

    endpoints: list[Endpoint]  # mirrors first, the registry itself last
    keyring: Keyring
    tokens: TokenCache


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """For whatever speaks to a registry."""
    parser.add_argument("--creds", metavar="USER:PASSWORD", help="authenticate with these")
    parser.add_argument("--plain-http", action="store_true", help="speak HTTP without TLS to the registry")
    parser.add_argument("--unix-socket", metavar="PATH", default="", help="the registry listens on this socket")
    parser.add_argument(
        "--retries", metavar="N", type=int, default=5, help="attempts in vain before giving up (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=30, help="without a byte (default: %(default)s)"
    )


def access_to(reference: Reference, arguments: argparse.Namespace) -> Access:
    """What there is for this image. Raises `BadConfiguration`, or `Blocked`."""
    given = Credentials.parse(arguments.creds) if arguments.creds else None
    return Access(
        [origin(reference, plain_http=arguments.plain_http, unix_socket=arguments.unix_socket)],
        Keyring(given=given, registry=reference.registry),
        TokenCache(),
    )


def resolved_now(reference: Reference, access: Access) -> Digest | None:
    """What the tag names now, if one cheap request can tell."""
    from pullpipe.registry.head import head

    endpoint = next(endpoint for endpoint in access.endpoints if endpoint.tags)
    proxied = any(name.lower().endswith("_proxy") for name in os.environ if name.lower() != "no_proxy")
    if proxied and not endpoint.socket:
        return None
    assert reference.tag is not None
    return head(endpoint, reference.tag, access.tokens.get(endpoint.registry, endpoint.repository, authenticated=False))
