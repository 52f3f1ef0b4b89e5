"""Authentication: from a 401's challenge to an Authorization header (RFC 9110; distribution-spec's token flow).

Credentials go to the registry, or to the token server that it names over HTTPS (or on this machine), and nowhere else.
They never stand in an error or a log.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlencode, urlsplit

from pullpipe.errors import Unauthorized, UnexpectedAnswer
from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.hosts import Endpoint, is_loopback
from pullpipe.registry.http import Http
from pullpipe.registry.retry import TRANSIENT, retry_after
from pullpipe.registry.tokens import TokenCache

# RFC 9110, 11.6.1: a scheme, or a parameter of the scheme before it; a quoted text may hold anything.
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PART = re.compile(rf'({_WORD})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))|({_WORD})')
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]+")  # no user before it: that would be sent as credentials
_VISIBLE = re.compile(r"[\x21-\x7e]+")  # what may stand in a header, or in a request's line
_CLIENT = "pullpipe"  # as whom a token server knows us; it needs no registration
_ANSWER_LIMIT = 1 << 20  # bytes of a token server's answer
_LIFE = 60  # seconds that a token is good for unless the server tells (token specification of distribution)
_LONGEST_LIFE = 1 << 31  # seconds; more is nonsense


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


class _Answer(NamedTuple):
    """A token server's."""

    status: int
    wait: float | None  # seconds that it asks for
    body: bytes


class Authorizer:
    """The Authorization header for one place, for one set of actions (`pull`, or `pull,push`) in its repository.

    Without a repository it is for what needs no rights in any. Tokens for pulling are kept in `tokens`, but for those
    that were had for credentials given by hand.
    """

    def __init__(
        self, http: Http, endpoint: Endpoint, keyring: Keyring, tokens: TokenCache, actions: str = "pull"
    ) -> None:
        """Raises `BadConfiguration` when the keyring's files cannot be used."""
        self._http = http
        self._endpoint = endpoint
        self._keyring = keyring
        self._tokens = tokens if actions == "pull" and not keyring.gives(endpoint.registry) else TokenCache()
        self._actions = actions
        self._registry = endpoint.registry
        self._place = endpoint.registry, endpoint.repository
        self._owner = keyring.owner(*self._place)
        self._renewing = asyncio.Lock()
        self._successors: dict[str, str] = {}  # to identity tokens, from token servers that replace them at each use
        kept = self._tokens.get(*self._place, owner=self._owner)
        self._from_disk = f"Bearer {kept}" if kept else None
        self.current: str | None = self._from_disk
        """The header to send now."""
        self._credentials: Credentials | None = None  # that it was had for

    @property
    def remedy(self) -> str:
        """What the user can do where the header does not help."""
        if self._credentials is None:
            return f"`pullpipe login {self._registry}` first, or give --creds USER:PASSWORD"
        again = "" if self._keyring.gives(self._registry) else f", or `pullpipe login {self._registry}` anew"
        return f"check the credentials of {self._credentials.user!r}{again}"

    async def renew(self, refused: str | None, challenge: str) -> None:
        """Answers a 401 to a request that was sent with the header `refused`, by a new one in `current`.

        Several requests may come with the same; one new header is got for all of them. Raises `Unauthorized` when
        credentials are needed or refused, `UnexpectedAnswer` when the registry or its token server makes no sense, and
        `BadConfiguration` when a file or a helper that should have credentials cannot be used.
        """
        async with self._renewing:
            if self.current in (None, refused):
                self.current = await self._authorization(challenge)

    def forget_cached(self, refused: str | None) -> bool:
        """Whether the header `refused` is of an earlier run, for the user may have other rights by now.

        It is forgotten then: the same request once more, without it, leads to a new one.
        """
        if refused is None or refused != self._from_disk:
            return False
        if self.current == refused:
            self.current = None
            self._tokens.forget(*self._place)
        return True

    async def _authorization(self, header: str) -> str:
        challenge = Challenge.parse(header)
        if challenge is None:
            raise Unauthorized(
                f"{self._registry} refuses access{self._for} and does not say how to authenticate; tell its owner"
            )
        credentials = self._credentials = await self._keyring.find(*self._place)
        if credentials and credentials.registry_token:
            if not _VISIBLE.fullmatch(credentials.registry_token):
                raise Unauthorized(f"the token for {self._registry} in the auth file is none; {self.remedy}")
            return f"Bearer {credentials.registry_token}"
        if challenge.scheme == "bearer":
            return f"Bearer {await self._token(challenge, credentials)}"
        if credentials is None:
            raise Unauthorized(f"{self._registry} needs authentication{self._for}; {self.remedy}")
        if credentials.identity_token:
            raise Unauthorized(f"{self._registry} takes no identity token, but a password{self._for}; {self.remedy}")
        return credentials.header()

    async def _token(self, challenge: Challenge, credentials: Credentials | None) -> str:
        """A token of the server that the challenge names; it is kept."""
        realm = _realm(self._registry, challenge, secret=credentials is not None)
        answer = await self._ask(realm, challenge, credentials)
        if credentials and answer.status in (400, 401, 403):  # 400 is OAuth2's word for it: RFC 6749, 5.2
            raise Unauthorized(
                f"{self._registry} does not let {credentials.user!r} in{self._for} "
                f"(its token server {realm.netloc} answered {answer.status}); {self.remedy}"
            )
        if answer.status in (401, 403):
            raise Unauthorized(
                f"{self._registry} needs authentication{self._for}, or there is no such image; {self.remedy}"
            )
        if answer.status != 200:
            raise UnexpectedAnswer(
                f"the token server {realm.netloc} answered {answer.status}; try again later, or tell its owner",
                transient=answer.status in TRANSIENT,
                wait=answer.wait,
            )
        document = _object(answer.body)
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
            raise UnexpectedAnswer(f"the token server {realm.netloc} gave no usable token; tell its owner")
        successor = document.get("refresh_token")
        if credentials and credentials.identity_token and isinstance(successor, str):
            self._successors[credentials.identity_token] = successor
        self._tokens.put(*self._place, token, _life(document), owner=self._owner)
        return token

    async def _ask(self, realm: SplitResult, challenge: Challenge, credentials: Credentials | None) -> _Answer:
        """The token server's, to a GET, or to OAuth2's POST (distribution specifies both)."""
        scopes = self._scopes(challenge)
        service = challenge.parameters.get("service")
        form = {"client_id": _CLIENT, "scope": " ".join(scopes), **({"service": service} if service else {})}
        if credentials and credentials.identity_token:
            identity = self._successors.get(credentials.identity_token, credentials.identity_token)
            return await self._exchange(realm, {**form, "grant_type": "refresh_token", "refresh_token": identity})
        query = urlencode([*([("service", service)] if service else []), *(("scope", scope) for scope in scopes)])
        asked = realm._replace(query="&".join(filter(None, (realm.query, query))))
        answer = await self._exchange(asked, authorization=credentials.header() if credentials else "")
        if answer.status in (404, 405) and credentials:  # a server that knows OAuth2's way only
            user = {"username": credentials.user, "password": credentials.password}
            return await self._exchange(realm, {**form, "grant_type": "password", **user})
        return answer

    async def _exchange(
        self, url: SplitResult, form: dict[str, str] | None = None, *, authorization: str = ""
    ) -> _Answer:
        # A token server on another host is to prove itself as the registry; all else of the registry's is not for it.
        same = url.netloc == self._endpoint.host
        there = self._endpoint if same else self._endpoint.elsewhere
        headers = {"Authorization": authorization} if authorization else {}
        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        data = None if form is None else urlencode(form, errors="surrogateescape").encode()
        method = "GET" if form is None else "POST"
        async with self._http.request(method, url.geturl(), headers=headers, data=data, endpoint=there) as response:
            body = b""
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _ANSWER_LIMIT:
                    raise UnexpectedAnswer(f"the token server {url.netloc} sent more than a token; tell its owner")
            return _Answer(response.status, retry_after(response.headers), body)

    def _scopes(self, challenge: Challenge) -> list[str]:
        """Those that the challenge states; and ours, when it states none, or maybe less than what we will do."""
        stated = challenge.parameters.get("scope", "").split()
        ours = f"repository:{self._endpoint.repository}:{self._actions}"
        if self._endpoint.repository and ours not in stated and (not stated or self._actions != "pull"):
            stated.append(ours)
        return stated

    @property
    def _for(self) -> str:
        return f" for {self._endpoint.repository}" if self._endpoint.repository else ""


def _realm(registry: str, challenge: Challenge, *, secret: bool) -> SplitResult:
    """The token server's URL. Nothing that is secret is sent over the network without TLS."""
    try:
        text = challenge.parameters.get("realm", "")
        realm = urlsplit(text)._replace(fragment="")
        usable = realm.scheme in ("http", "https") and _HOST.fullmatch(realm.netloc) and realm.port != 0
    except ValueError:
        usable = None
    if not usable or not _VISIBLE.fullmatch(text):
        raise UnexpectedAnswer(f"{registry} names no token server that can be used; tell its owner")
    if realm.scheme == "http" and secret and not is_loopback(realm.netloc):
        raise Unauthorized(
            f"{registry} wants the credentials sent to {realm.netloc} without TLS; ask its owner for HTTPS"
        )
    return realm


def _object(data: bytes) -> dict[str, Any]:
    """A JSON object; an empty one when it is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _life(answer: dict[str, Any]) -> float:
    """The seconds that a token is good for, as the token server's answer says."""
    stated = answer.get("expires_in")
    if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 < stated < _LONGEST_LIFE:
        return stated
    return _LIFE


async def check(http: Http, endpoint: Endpoint, credentials: Credentials) -> bool:
    """Whether the registry asks for credentials at all; it takes these then.

    Raises `Unauthorized` when it does not take them, and `TransferError`.
    """
    authorizer = Authorizer(http, endpoint, Keyring(given=credentials, registry=endpoint.registry), TokenCache(), "")
    url = f"{await http.base(endpoint)}{endpoint.path}/"
    async with http.request("GET", url, endpoint=endpoint) as response:
        status, challenge = response.status, ", ".join(response.headers.getall("WWW-Authenticate", []))
    if asked := status == 401:
        await authorizer.renew(None, challenge)
        headers = {"Authorization": authorizer.current or ""}
        async with http.request("GET", url, headers=headers, endpoint=endpoint) as response:
            status = response.status
    if status in (401, 403):
        raise Unauthorized(f"{endpoint.registry} does not let {credentials.user!r} in; {authorizer.remedy}")
    if status != 200:
        raise UnexpectedAnswer(f"{endpoint.registry} answered {status}: no registry; check host and port")
    return asked
