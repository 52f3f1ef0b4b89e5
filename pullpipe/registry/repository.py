"""One repository at one endpoint: requests that are authorized, answers that are a success."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Container, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import aiohttp
from yarl import URL

from pullpipe.errors import NotFound, TransferError, Unauthorized, UnexpectedAnswer
from pullpipe.registry.auth import Authorizer
from pullpipe.registry.hosts import Endpoint
from pullpipe.registry.http import Http
from pullpipe.registry.retry import TRANSIENT, retry_after

_SUCCESS = (200, 206)
_RATE_LIMIT = ("TOOMANYREQUESTS", "RATE_LIMIT_EXCEEDED")
_ANSWER_LIMIT = 64 << 10  # bytes of an error document


class Repository:
    """The repository that the endpoint names (OCI distribution-spec 1.1)."""

    def __init__(self, http: Http, endpoint: Endpoint, authorizer: Authorizer) -> None:
        self.endpoint = endpoint
        self._http = http
        self._authorizer = authorizer

    @property
    def authoritative(self) -> bool:
        """Whether it is the registry itself, and no mirror of it."""
        return not self.endpoint.mirror

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self.endpoint.registry if self.authoritative else self.endpoint.host

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: object = None,
        expected: Container[int] = _SUCCESS,
        patience: float = 0.0,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request to `path` in the repository, or to a URL that it named; no credentials go to another host's.

        `what` is asked for, in messages. `data` and `patience` are as in `Http.request`. Raises `TransferError` for an
        answer that is not `expected`.
        """
        url, endpoint = await self._where(path)
        known = endpoint is self.endpoint
        renewed = False
        while True:
            used = self._authorizer.current if known else None
            sent = {**(headers or {}), **({"Authorization": used} if used else {})}
            async with self._http.request(
                method, url, headers=sent, data=data, endpoint=endpoint, patience=patience
            ) as response:
                stale = response.status in (403, 404) and self._authorizer.forget_cached(used)
                if not stale and (response.status != 401 or renewed or not known):
                    await self._check(response, what, expected)
                    yield response
                    return
                challenge = ", ".join(response.headers.getall("WWW-Authenticate", []))
            # Only now, with the connection given back: the token may come from the same host.
            if not stale:
                await self._authorizer.renew(used, challenge)
                renewed = True

    async def _where(self, path: str) -> tuple[str, Endpoint]:
        """The URL, and by whose rules to ask for it."""
        base = await self._http.base(self.endpoint)
        if "://" in path:
            return self._at(URL(path, encoded=True), URL(base))
        url = f"{base}{self.endpoint.path}/{self.endpoint.repository}/{path}"
        if self.endpoint.namespace:
            url += f"{'&' if '?' in path else '?'}{urlencode({'ns': self.endpoint.namespace})}"
        return url, self.endpoint

    def _at(self, url: URL, base: URL) -> tuple[str, Endpoint]:
        """A registry behind a proxy that does its TLS may name itself by http; that is not taken at its word."""
        downgraded = url.scheme == "http" and url.explicit_port is None and base.explicit_port is None
        if url.host == base.host and (url.port == base.port or downgraded):
            return f"{base.origin()}{url.raw_path_qs}", self.endpoint
        return str(url), self.endpoint.elsewhere

    async def _check(self, response: aiohttp.ClientResponse, what: str, expected: Container[int]) -> None:
        """Raises what an answer that is not expected means."""
        status = response.status
        if status in expected:
            return
        code, said = await _reason(response)
        wait = retry_after(response.headers)
        if status == 429 or code in _RATE_LIMIT:
            raise TransferError(
                f"{self.name} limits the rate of requests{said}; try again later, or authenticate",
                transient=True,
                wait=wait,
            )
        if status == 404:
            raise NotFound(f"{self.name} has no {what}{said}; check the name")
        if status in (401, 403):
            raise Unauthorized(f"{self.name} refuses {what}{said}; {self._authorizer.remedy}")
        transient = status in TRANSIENT
        remedy = "try again later, or tell its owner" if transient else "ask its owner"
        raise UnexpectedAnswer(
            f"{self.name} answered {status} {response.reason} for {what}{said}; {remedy}",
            transient=transient,
            wait=wait,
        )


class ForeignUrl:
    """Where a layer that must not be pushed lies (image-spec, descriptor.md, "urls"); it gets no credentials."""

    authoritative = False

    def __init__(self, http: Http, url: str) -> None:
        self._http = http
        self._url = url
        self.name = re.split("[/?#]", url)[2]

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        what: str,
        *,
        headers: Mapping[str, str] | None = None,
        expected: Container[int] = _SUCCESS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The URL, whatever the path. Raises `TransferError`."""
        async with self._http.request(method, self._url, headers=headers) as response:
            if response.status not in expected:
                raise UnexpectedAnswer(
                    f"{self.name} answered {response.status} for {what}; ask the image's owner for a URL that works",
                    transient=response.status in TRANSIENT,
                    wait=retry_after(response.headers),
                )
            yield response


async def _reason(response: aiohttp.ClientResponse) -> tuple[str, str]:
    """The code and the words of an error, in distribution-spec's form; nothing when it says it in another."""
    try:
        error = json.loads(await response.content.read(_ANSWER_LIMIT))["errors"][0]
        code, message = str(error.get("code", "")), str(error.get("message", ""))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, aiohttp.ClientError, TimeoutError):
        return "", ""
    printable = "".join(character for character in message if character.isprintable())
    return code, f" ({printable[:200]})" if printable else ""
