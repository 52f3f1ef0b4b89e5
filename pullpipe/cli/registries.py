"""What the user, and the machine, say of registries: where they are, and with whose credentials."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pullpipe.environment import hosts, token_cache
from pullpipe.errors import BadArgument, BadConfiguration, InvalidReference, Unauthorized
from pullpipe.reference import Reference
from pullpipe.registry.credentials import Credentials, Keyring, auth_files, plain_key
from pullpipe.registry.helpers import Helper
from pullpipe.registry.hosts import Endpoint
from pullpipe.registry.tokens import TokenCache
from store import Digest

OF_ONE_REGISTRY = {"creds": None, "plain_http": False, "unix_socket": ""}  # options about one, as they are left out


class Access(NamedTuple):
    """To one image's registry."""

    endpoints: list[Endpoint]  # mirrors first, the registry itself last
    keyring: Keyring
    tokens: TokenCache


def access_to(reference: Reference, arguments: argparse.Namespace) -> Access:
    """What there is for this image. Raises `BadConfiguration`, or `Blocked`."""
    known = hosts()
    endpoints = known.endpoints(reference, plain_http=arguments.plain_http, unix_socket=arguments.unix_socket)
    helpers = [] if arguments.authfile else known.credential_helpers
    return Access(endpoints, keyring(arguments, endpoints[-1].registry, helpers), token_cache())


def only_registry(references: Iterable[Reference], arguments: argparse.Namespace) -> str:
    """The registry of these images that `OF_ONE_REGISTRY` are about, if one is given: nobody else's may see them.

    Raises `BadArgument` when they are of several.
    """
    if all(getattr(arguments, name) == unset for name, unset in OF_ONE_REGISTRY.items()):
        return ""
    registries = sorted({reference.registry for reference in references})
    if len(registries) > 1:
        options = ", ".join("--" + name.replace("_", "-") for name in OF_ONE_REGISTRY)
        raise BadArgument(f"{options} are about one registry, and the images are of {', '.join(registries)}: name some")
    return "".join(registries)


def keyring(arguments: argparse.Namespace, registry: str, helpers: Sequence[Helper]) -> Keyring:
    """The credentials that there are: --creds for the registry that answers, in auth files, and with the helpers.

    A password that --creds leaves out is asked for, once. Raises `Unauthorized` and `BadConfiguration`.
    """
    if arguments.authfile and not os.path.exists(arguments.authfile):
        raise BadConfiguration(f"there is no file {arguments.authfile}; `pullpipe login --authfile` makes it")
    files = [arguments.authfile] if arguments.authfile else auth_files(os.environ)
    if arguments.creds is None:
        return Keyring(files, helpers=helpers)
    if arguments.creds and ":" not in arguments.creds:
        arguments.creds += f":{ask_password(arguments.creds, registry, 'give --creds USER:PASSWORD')}"
    return Keyring(files, helpers=helpers, given=Credentials.parse(arguments.creds), registry=registry)


def registry_of(text: str) -> str:
    """A registry's name as references and auth files have it; Docker Hub has several. Raises `BadArgument`."""
    registry = plain_key(text)
    try:
        if registry and Reference.parse(f"{registry}/name").registry == registry:
            return registry
    except InvalidReference:
        pass
    raise BadArgument(f"{text!r} is no registry; give its HOST or HOST:PORT")


def whole_registry(registry: str, *, plain_http: bool = False) -> Endpoint:
    """The place that the settings have for all of a registry's images: pulls look for credentials by its name.

    Raises `Blocked`, `BadConfiguration`.
    """
    return hosts().endpoints(Reference(registry, "", None, None), plain_http=plain_http)[-1]


def ask_password(user: str, registry: str, otherwise: str) -> str:
    """Asks for it on the terminal; `otherwise` tells what to do where there is none. Raises `Unauthorized`."""
    if not sys.stdin.isatty():
        raise Unauthorized(f"there is no terminal to ask for the password of {user!r} on; {otherwise}")
    from getpass import getpass

    try:
        return getpass(f"password of {user} at {registry}: ")
    except EOFError:
        raise Unauthorized(f"no password was given for {user!r}; {otherwise}") from None


def resolved_now(reference: Reference, access: Access, timeout: float) -> Digest | None:
    """What the tag names now, if one cheap request can tell, within `timeout` seconds."""
    from pullpipe.registry.head import head

    endpoint = next(endpoint for endpoint in access.endpoints if endpoint.tags)
    proxied = any(name.lower().endswith("_proxy") for name in os.environ if name.lower() != "no_proxy")
    if proxied and not endpoint.socket:
        return None
    assert reference.tag is not None
    place = endpoint.registry, endpoint.repository
    token = access.tokens.get(*place, owner=access.keyring.owner(*place))
    return head(endpoint, reference.tag, f"Bearer {token}" if token else None, timeout)
