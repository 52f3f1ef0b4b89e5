"""Authentication: from a 401's challenge to an Authorization header (RFC 9110; distribution-spec's token flow).

Credentials go to the registry, or to the token server that it names over HTTPS (or on this machine), and nowhere else.
They never stand in an error or a log.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from pullpipe.errors import Unauthorized, UnexpectedAnswer
from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.hosts import Endpoint, is_loopback
from pullpipe.registry.http import Http
from pullpipe.registry.tokens import TokenCache

# RFC 9110, 11.6.1: a scheme, or a parameter of the scheme before it; a quoted text may hold anything.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|({_WORD})')
_TOKEN_LIMIT = 1 << 20  # bytes of a token server's answer


class Challenge(NamedTuple):
    """What a registry asks for in WWW-Authenticate."""

    scheme: str  # "basic" or "bearer"
    parameters: dict[str, str]

    @classmethod
    def parse(cls, header: str) -> Challenge | None:
        """The strongest challenge that is understood: bearer before basic; None when there is neither."""
        found: dict[str, Challenge] = {}
        parameters: dict[str, str] = {}
        for name, quoted, bare, scheme in _PART.findall(header):
            if scheme:
                parameters = {}
                found.setdefault(scheme.lower(), cls(scheme.lower(), parameters))
            else:
                parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) or bare
        return found.get("bearer") or found.get("basic")


class Authorizer:
    """The Authorization header for one repository at one endpoint."""

    def __init__(
        self, http: Http, endpoint: Endpoint, keyring: Keyring, tokens: TokenCache, actions: str = "pull"
    ) -> None:
        self._http = http
        self._endpoint = endpoint
        self._keyring = keyring
        self.current: str | None = None
        self.remedy = "authenticate with --creds USER:PASSWORD"
        self._lock = asyncio.Lock()

    def forget_cached(self) -> bool:
        return False

    async def renew(self, refused: str | None, challenge: str) -> None:
        """Gets a new authorization, unless another request got one while this one waited."""
        registry, repository = self._endpoint.registry, self._endpoint.repository
        async with self._lock:
            if self.current == refused:
                credentials = self._keyring.find(registry, repository)
                if credentials:
                    self.remedy = f"check the credentials of {credentials.user!r}"
                self.current = await authorize(self._http, registry, repository, challenge, credentials)


async def authorize(session: Http, registry: str, repository: str, header: str, credentials: Credentials | None) -> str:
    """Answers a challenge with an Authorization header for pulling from the repository.

    Raises `Unauthorized` when it takes credentials and there are none, or they are refused.
    """
    challenge = Challenge.parse(header)
    if challenge is None:
        raise Unauthorized(f"{registry} refuses access to {repository} and does not say how to authenticate")
    if challenge.scheme == "basic":
        if credentials is None:
            raise Unauthorized(f"{registry} needs authentication for {repository}; give --creds USER:PASSWORD")
        return credentials.header()
    return "Bearer " + await _token(session, registry, repository, challenge, credentials)


async def _token(
    session: Http,
    registry: str,
    repository: str,
    challenge: Challenge,
    credentials: Credentials | None,
) -> str:
    realm = urlsplit(challenge.parameters.get("realm", ""))
    if realm.scheme not in ("http", "https") or not realm.netloc:
        raise UnexpectedAnswer(f"{registry} names no token server that can be used")
    if realm.scheme == "http" and credentials is not None and not is_loopback(realm.netloc):
        raise Unauthorized(f"{registry} wants the credentials sent to {realm.netloc} without TLS; refused")
    query = {"scope": challenge.parameters.get("scope") or f"repository:{repository}:pull"}
    if service := challenge.parameters.get("service"):
        query["service"] = service
    headers = {"Authorization": credentials.header()} if credentials else {}
    async with session.request("GET", realm._replace(query=urlencode(query)).geturl(), headers=headers) as response:
        if response.status in (401, 403):
            if credentials is None:
                raise Unauthorized(
                    f"{registry} needs authentication for {repository}, or there is no such image; "
                    "give --creds USER:PASSWORD"
                )
            raise Unauthorized(f"{realm.netloc} does not take the credentials of {credentials.user!r} for {repository}")
        if response.status != 200:
            raise UnexpectedAnswer(f"the token server {realm.netloc} answered {response.status} {response.reason}")
        try:
            answer = await response.json(content_type=None)
            token = answer.get("token") or answer["access_token"]
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UnexpectedAnswer(f"the token server {realm.netloc} gave no token") from error
    if not isinstance(token, str) or len(token) > _TOKEN_LIMIT or not token.isprintable():
        raise UnexpectedAnswer(f"the token server {realm.netloc} gave no usable token")
    return token
