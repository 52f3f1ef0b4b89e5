"""Users' credentials for registries, and where they are kept: given by hand, in auth files, with credential helpers.

The files are those of Docker (config.json) and of podman, skopeo and buildah (containers-auth.json(5)); `logins`
changes them. They never stand in an error or a log. Nothing here imports aiohttp: an unchanged tag is found without.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pullpipe.errors import BadConfiguration, Unauthorized
from pullpipe.reference import DEFAULT_REGISTRY
from pullpipe.registry.helpers import Helper
from store import namespace

_HUB_NAMES = (DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io")
_RUN = "/run/containers"
_HUB_SERVER = "https://index.docker.io/v1/"  # what Docker calls it where it keeps credentials
_TOKEN_USER = "<token>"  # in place of a user's name, when a helper has an identity token


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
        both = f"{self.user}:{self.password}".encode(errors="surrogateescape")  # a word of argv may be no UTF-8
        return "Basic " + base64.b64encode(both).decode()

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …)"


class AuthFile:
    """A file of credentials, read when this is made; what is not there, or empty, has none.

    Raises `BadConfiguration` when it cannot be read or is not such a file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.document = _document(path)
        self.auths = self._table("auths")
        self.helpers = self._table("credHelpers")

    async def find(self, registry: str, repository: str) -> Credentials | None:
        """The credentials for a repository, or with an empty one for the whole registry.

        A helper that is named for the registry is asked first. Docker then looks no further, while podman knows no
        credsStore and takes the file's own: when the helper has none, those count here, too.
        """
        if (named := self.helper(registry)) and (found := await _asked(*named)):
            return found
        return next((self._credentials(key) for key in self.keys(registry, repository) if _told(self.auths[key])), None)

    def sources(self, registry: str, repository: str) -> list[object]:
        """What `find` looks at: the helper, by its name, and the entry, with its secret. No helper is asked."""
        told = [self.auths[key] for key in self.keys(registry, repository) if _told(self.auths[key])]
        return [source for source in (self.helper(registry), *told[:1]) if source]

    def names(self, registry: str) -> bool:
        """Whether it says anything of this registry as a whole."""
        return any(plain_key(key) == registry for key in (*self.auths, *self.helpers))

    def helper(self, registry: str) -> tuple[Helper, str] | None:
        """The helper that keeps this registry's credentials, and what the registry is called there.

        As with Docker, credHelpers goes before credsStore, and an empty name there means the file itself.
        """
        for server, name in self.helpers.items():
            if plain_key(server) == registry:
                return self._helper(name, server)
        return self._helper(self.document.get("credsStore"), _HUB_SERVER if registry == DEFAULT_REGISTRY else registry)

    def keys(self, registry: str, repository: str = "") -> Iterator[str]:
        """The entries for it, most specific first: `host/namespace/name`, `host/namespace`, `host`, `https://host/v1/`."""
        name = f"{registry}/{repository}".rstrip("/")
        while name:
            yield from sorted((key for key in self.auths if plain_key(key) == name), key=lambda key: "://" in key)
            name = name.rpartition("/")[0]

    def _credentials(self, key: str) -> Credentials:
        entry = self.auths[key]
        user, password = entry.get("username", ""), entry.get("password", "")
        identity, token = entry.get("identitytoken", ""), entry.get("registrytoken", "")
        try:
            if auth := entry.get("auth"):
                user, colon, password = (
                    base64.b64decode(auth, validate=True).decode(errors="surrogateescape").partition(":")
                )
                password = password.rstrip("\0") if colon and user else None
        except (ValueError, TypeError):
            password = None
        if not all(isinstance(text, str) for text in (user, password, identity, token)):
            # Not from the cause: a part of the secret may be with it.
            raise BadConfiguration(f"the entry {key!r} of {self.path} is damaged; remove it, and log in anew")
        return Credentials(user or _TOKEN_USER, password, identity, token)

    def _helper(self, name: object, server: str) -> tuple[Helper, str] | None:
        if name is not None and not isinstance(name, str):
            raise self._odd()
        return (Helper(name, self.path), server) if name else None

    def _table(self, name: str) -> dict[str, Any]:
        table = self.document.get(name) or {}
        if not isinstance(table, dict):
            raise self._odd()
        return table

    def _odd(self) -> BadConfiguration:
        return BadConfiguration(f"{self.path} is no file of credentials as Docker's config.json; mend or remove it")


class Keyring:
    """The credentials that there are. `files` are looked through in their order, and then `helpers` asked, which may
    have any registry's; what is `given` goes before them, for `registry` alone.
    """

    def __init__(
        self,
        files: Sequence[str] = (),
        *,
        helpers: Sequence[Helper] = (),
        given: Credentials | None = None,
        registry: str = "",
    ) -> None:
        self._files = tuple(files)
        self._helpers = tuple(helpers)
        self._given = given
        self._registry = registry

    async def find(self, registry: str, repository: str) -> Credentials | None:
        """The credentials for a repository of the registry (`docker.io`, `host:5000`), asked for anew each time.

        Raises `BadConfiguration`.
        """
        if self.gives(registry):
            return self._given
        for path in self._files:
            if found := await AuthFile(path).find(registry, repository):
                return found
        for helper in self._helpers:
            if found := await _asked(helper, registry):
                return found
        return None

    def owner(self, registry: str, repository: str) -> str:
        """What tells whose credentials `find` finds, but for given ones, to be compared and not shown; empty for none.

        Asks no helper, so it takes no time: the user whom one has stands for all whom it may have. Raises
        `BadConfiguration`.
        """
        sources = [source for path in self._files for source in AuthFile(path).sources(registry, repository)]
        sources += self._helpers
        return json.dumps(sources) if sources else ""

    def gives(self, registry: str) -> bool:
        """Whether those for the registry were given by hand: then nothing that comes of them is to be kept."""
        return self._given is not None and registry == self._registry


def auth_files(environment: Mapping[str, str]) -> list[str]:
    """Where credentials are looked for by default, in this order; what belongs to Docker comes last."""
    return [*containers_auth_files(environment), *docker_auth_files(environment)]


def containers_auth_files(environment: Mapping[str, str]) -> list[str]:
    """Those that podman, skopeo, buildah and pullpipe log in to (containers-auth.json(5))."""
    if named := environment.get("REGISTRY_AUTH_FILE"):
        return [named]
    runtime = environment.get("XDG_RUNTIME_DIR")
    config = environment.get("XDG_CONFIG_HOME") or os.path.join(_home(environment), ".config")
    last = f"{config}/containers/auth.json"
    if runtime:
        return [f"{runtime}/containers/auth.json", last]
    if os.path.exists(_RUN) and not os.access(_RUN, os.X_OK):
        return [last]  # it is root's, for their own containers
    return [f"{_RUN}/{namespace.user()}/auth.json", last]


def docker_auth_files(environment: Mapping[str, str]) -> list[str]:
    """Docker's, unless REGISTRY_AUTH_FILE names the only one."""
    if environment.get("REGISTRY_AUTH_FILE"):
        return []
    return [os.path.join(environment.get("DOCKER_CONFIG") or f"{_home(environment)}/.docker", "config.json")]


def plain_key(key: str) -> str:
    """An entry's key as registry, or registry/repository. Docker's old ones are URLs, whose path says nothing."""
    scheme, colon, rest = key.partition("://")
    host, slash, path = (rest if colon else scheme).partition("/")
    if host in _HUB_NAMES:
        host = DEFAULT_REGISTRY
    return host if colon or not path else f"{host}{slash}{path.rstrip('/')}"


def _home(environment: Mapping[str, str]) -> str:
    if home := environment.get("HOME"):
        return home
    import pwd

    return pwd.getpwuid(namespace.user()).pw_dir


def _document(path: str) -> dict[str, Any]:
    """The file's JSON object."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BadConfiguration(
            f"cannot read {path}: {reason}; mend that, or name another file by --authfile"
        ) from error
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise BadConfiguration(f"{path} is not JSON{where}; mend or remove it") from None  # its cause has the text
    if not isinstance(document, dict):
        raise BadConfiguration(f"{path} is not a JSON object, as Docker's config.json is; mend or remove it")
    return document


async def _asked(helper: Helper, server: str) -> Credentials | None:
    """What the helper has."""
    if found := await helper.get(server):
        user, secret = found
        return Credentials(user, identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)
    return None


def _told(entry: object) -> bool:
    """Whether an entry tells anything; Docker leaves empty ones where a helper has the secret."""
    return isinstance(entry, dict) and any(
        entry.get(name) for name in ("auth", "password", "identitytoken", "registrytoken")
    )
