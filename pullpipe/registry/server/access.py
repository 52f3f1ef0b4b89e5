"""Who may use the registry: basic authentication (RFC 7617) against bcrypt hashes, as in Apache's password files.

A password is checked in a thread, for it takes as long as its hash wants it to, and once only: that it was right is
remembered by a digest under a key which lives as long as the process.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from pullpipe.errors import BadArgument
from pullpipe.registry.server.refusals import Refused

_LINE = re.compile(r"([^:]+):(\$2[abxy]\$\d\d\$[./A-Za-z0-9]{53})")
_PASSWORD_LIMIT = 72  # bytes; bcrypt never looked at more, and newer versions of the package refuse more
_WAITING_LIMIT = 32  # passwords that wait to be checked


class Users:
    """The users, by their names, with the bcrypt hashes of their passwords."""

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        self._key = secrets.token_bytes(32)
        self._proven: dict[str, bytes] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="bcrypt")
        self._waiting = 0

    @classmethod
    def read(cls, path: str) -> Users:
        """The lines USER:HASH of a file. Raises `BadArgument` or `OSError`."""
        try:
            import bcrypt  # noqa: F401 - not every registry has users, so the package is not required
        except ImportError as error:
            raise BadArgument("users take the Python package bcrypt: pip install bcrypt") from error
        hashes = {}
        with open(path, encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(map(str.strip, file), 1):
                if not line or line.startswith("#"):
                    continue
                match = _LINE.fullmatch(line)
                if match is None:
                    raise BadArgument(
                        f"line {number} of {path} is not USER:HASH with a bcrypt hash; `htpasswd -nB USER` writes one"
                    )
                hashes[match[1]] = match[2]
        if not hashes:
            raise BadArgument(f"{path} names no user; `htpasswd -nB USER` writes a line for it")
        return cls(hashes)

    async def accepts(self, authorization: str) -> bool:
        """Whether this header is that of a user. Raises `Refused` when too many are asking."""
        user, password = _parse(authorization)
        if not user:
            return False
        digest = hashlib.blake2b(f"{user}:{password}".encode(), key=self._key).digest()
        if hmac.compare_digest(self._proven.get(user, b""), digest):
            return True
        if self._waiting >= _WAITING_LIMIT:
            raise Refused(HTTPStatus.TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many are logging in; try again")
        self._waiting += 1
        try:
            right = await asyncio.get_running_loop().run_in_executor(self._threads, self._check, user, password)
        finally:
            self._waiting -= 1
        if right:
            self._proven[user] = digest
        return right

    def _check(self, user: str, password: str) -> bool:
        import bcrypt

        # Somebody who is not there takes as long, so that nobody learns who is.
        known = self._hashes.get(user)
        hashed = known or next(iter(self._hashes.values()))
        try:
            right = bcrypt.checkpw(password.encode()[:_PASSWORD_LIMIT], hashed.encode())
        except ValueError:  # a NUL in the password, or a hash that only looks like one
            return False
        return right and known is not None


def _parse(authorization: str) -> tuple[str, str]:
    """User and password; empty when the header is none of basic authentication."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return user, password


def only_for(users: Users) -> Middleware:
    """Lets nothing through that is not one of the users' own."""

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        authorization = request.headers.get(hdrs.AUTHORIZATION, "")
        if not authorization or not await users.accepts(authorization):
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "UNAUTHORIZED",
                "wrong user or password" if authorization else "log in first",
                {hdrs.WWW_AUTHENTICATE: 'Basic realm="pullpipe"'},
            )
        return await handler(request)

    return authenticate
