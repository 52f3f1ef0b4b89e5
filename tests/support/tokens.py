"""A token server that docker-registry trusts: `Registry(directory, tokens=server)` sends its clients there.

Tokens are JSON Web Tokens as distribution's token specification has them, signed by openssl.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

SERVICE = "tests"
ISSUER = "tests' token server"
_LEEWAY = 60  # seconds that docker-registry grants after a token's end


@dataclass(frozen=True)
class Asked:
    """A request for a token, and what was answered."""

    method: str
    fields: Mapping[str, list[str]]  # the query's, or the form's
    headers: Mapping[str, str]
    status: int
    answer: Mapping[str, Any]

    @property
    def authorization(self) -> str:
        """The header."""
        return self.headers.get("Authorization", "")


class TokenServer:
    """The server, in threads, alive within its `with` block. `directory` has its key and certificate, or receives them.

    `users` (name to password) may do everything; anybody may pull from repositories that begin with `public/`.
    `identities` are the identity tokens that are good, and whose they are. All that is public may be changed while it
    runs.
    """

    def __init__(self, directory: Path, users: Mapping[str, str]) -> None:
        self.users = dict(users)
        self.identities: dict[str, str] = {}
        self.seconds = 300
        """For which a token is good, and at most one more."""
        self.statuses: dict[str, int] = {}
        """What is answered to a method, in place of what should be."""
        self.changes: dict[str, Any] = {}
        """What the answers have in place of what they should have."""
        self.body = b""
        """What is answered in place of all that."""
        self.redirect = ""
        """Where to send everybody, if anywhere."""
        self.asked: list[Asked] = []
        self.certificate = directory / "certificate.pem"
        self._key = directory / "key.pem"
        directory.mkdir(parents=True, exist_ok=True)
        if not self.certificate.exists():
            _openssl(
                *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tests", "-days", "2"),
                *("-keyout", self._key, "-out", self.certificate),
            )
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def realm(self) -> str:
        """Its URL, as a challenge has it."""
        return f"http://{self.host}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(urlsplit(self.path).query)

            def do_POST(self) -> None:
                self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

            def _answer(self, text: str) -> None:
                status, answer = server._answer(self.command, parse_qs(text), dict(self.headers))
                body = server.body or json.dumps(answer).encode()
                self.send_response(status)
                if server.redirect:
                    self.send_header("Location", server.redirect)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(
        self, method: str, fields: Mapping[str, list[str]], headers: Mapping[str, str]
    ) -> tuple[int, dict[str, Any]]:
        user = self._user(fields, headers.get("Authorization", ""))
        status = 307 if self.redirect else self.statuses.get(method, 401 if user is None else 200)
        answer: dict[str, Any] = {}
        if status == 200:
            scopes = [scope for text in fields.get("scope", []) for scope in text.split()]
            name = "access_token" if method == "POST" else "token"
            answer = {name: self._sign(scopes, user or ""), "expires_in": self.seconds, **self.changes}
        self.asked.append(Asked(method, fields, headers, status, answer))
        return status, answer

    def _user(self, fields: Mapping[str, list[str]], authorization: str) -> str | None:
        """Who it is; empty for nobody in particular, None for somebody who is not who they say."""
        match fields.get("grant_type", [""]):
            case ["refresh_token"]:
                return self.identities.get(fields["refresh_token"][0])
            case ["password"]:
                user, password = fields["username"][0], fields["password"][0]
            case _ if authorization:
                text = base64.b64decode(authorization.removeprefix("Basic ")).decode()
                user, _, password = text.partition(":")
            case _:
                return ""
        return user if self.users.get(user) == password else None

    def _sign(self, scopes: list[str], user: str) -> str:
        now = time.time()
        access = []
        for kind, name, actions in (scope.split(":") for scope in scopes):
            if user or (name.startswith("public/") and actions == "pull"):
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
        pem = self.certificate.read_text().split("-----")[2]
        header = {"alg": "RS256", "typ": "JWT", "x5c": ["".join(pem.split())]}
        claims = {
            "iss": ISSUER,
            "sub": user,
            "aud": SERVICE,
            "nbf": int(now) - 600,
            "iat": int(now),
            "exp": math.ceil(now + self.seconds) - _LEEWAY,
            "jti": secrets.token_hex(),
            "access": access,
        }
        text = b".".join(_encoded(json.dumps(part).encode()) for part in (header, claims))
        return (text + b"." + _encoded(_openssl("dgst", "-sha256", "-sign", self._key, data=text))).decode()


def _encoded(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _openssl(*arguments: str | Path, data: bytes = b"") -> bytes:
    done = subprocess.run(["openssl", *arguments], input=data, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr.decode()}")
    return done.stdout
