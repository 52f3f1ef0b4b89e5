"""What a client gets in place of what it asked for: the distribution-spec's errors ("Error Codes")."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import web

from store.digest import Digest
from store.errors import InvalidDigest


class Refused(Exception):
    """A request that is answered by an error."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers

    def response(self) -> web.Response:
        """The answer, in the form of the spec."""
        body = {"errors": [{"code": self.code, "message": self.message}]}
        return web.json_response(body, status=self.status, headers=self.headers)


def unknown_manifest(name: str, reference: str) -> Refused:
    """There is no such tag or digest in the repository."""
    return Refused(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", f"no manifest {reference} in {name}")


def unknown_blob(digest: Digest) -> Refused:
    """There is no such blob."""
    return Refused(HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", f"no blob {digest}")


def parse_digest(text: str) -> Digest:
    """The digest that a client names; only this makes a path of what it sends. Raises `Refused`."""
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise Refused(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", str(error)) from error
