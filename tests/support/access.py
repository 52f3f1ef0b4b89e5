"""Authentication as the fault proxy asks for it, and its token server."""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import parse_qs, urlsplit

from tests.support.answers import Answer, document, error

if TYPE_CHECKING:
    from tests.support.faulty_proxy import Exchange


@dataclass
class Access:
    """The registry wants authentication: a token, or by the scheme "basic" the password itself.

    `/token` gives tokens to `user` (name and password), or to anybody if there is none. Each is good for `uses`
    requests; None is for ever.
    """

    user: tuple[str, str] | None = None
    uses: int | None = None
    scheme: Literal["bearer", "basic"] = "bearer"
    tokens: dict[str, int] = field(default_factory=dict)  # that were given, and how often each was used

    def admits(self, exchange: Exchange) -> bool:
        """Whether the request has what it takes."""
        if self.scheme == "basic":
            return self._is_user(exchange)
        token = exchange.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens or self.tokens[token] == self.uses:
            return False
        self.tokens[token] += 1
        return True

    def refusal(self, exchange: Exchange) -> Answer:
        """401, with a challenge that fits the request."""
        challenge = 'Basic realm="faults"'
        if self.scheme == "bearer":
            challenge = f'Bearer realm="{exchange.proxy.url}/token",service="faults"'
            if name := re.match("/v2/(.+)/(?:manifests|blobs)/", exchange.asked_path):
                challenge += f',scope="repository:{name[1]}:pull"'
        return error(401, "Unauthorized", "UNAUTHORIZED").but({"WWW-Authenticate": challenge})

    def token(self, exchange: Exchange) -> Answer:
        """What `/token` says."""
        if self.user and not self._is_user(exchange):
            return error(401, "Unauthorized", "UNAUTHORIZED")
        if not parse_qs(urlsplit(exchange.path).query).get("scope"):
            return error(400, "Bad Request", "UNSUPPORTED")
        token = secrets.token_urlsafe()
        self.tokens[token] = 0
        return document(200, "OK", {"token": token, "expires_in": 300})

    def _is_user(self, exchange: Exchange) -> bool:
        basic = base64.b64encode(":".join(self.user or ()).encode()).decode()
        return exchange.headers.get("authorization") == f"Basic {basic}"
