"""From a registry's challenge to a header that it takes: with docker-registry, and token servers good and bad."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from pullpipe.errors import BadConfiguration, PullpipeError, Unauthorized, UnexpectedAnswer
from pullpipe.registry.auth import Authorizer, Challenge
from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.head import ACCEPT
from pullpipe.registry.hosts import Endpoint
from pullpipe.registry.http import Http
from pullpipe.registry.proxies import Proxies
from pullpipe.registry.tokens import TokenCache
from tests.conftest import require
from tests.support.helpers import CredentialHelper
from tests.support.images import File, Image, Layer, write_layout
from tests.support.processes import until
from tests.support.registry import Registry
from tests.support.tokens import SERVICE, TokenServer

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull"'


@pytest.mark.parametrize(
    ("header", "scheme", "parameters"),
    [
        (
            HUB,
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/a:pull",
            },
        ),
        ('Basic realm="Registry"', "basic", {"realm": "Registry"}),
        ("Basic", "basic", {}),
        ("basic realm=x", "basic", {"realm": "x"}),
        ('BEARER Realm="https://a/t" , SERVICE=b', "bearer", {"realm": "https://a/t", "service": "b"}),
        ('Bearer realm = "https://a/t"', "bearer", {"realm": "https://a/t"}),
        ('Bearer realm="https://a/t",error="invalid_token"', "bearer", {"realm": "https://a/t"}),
        (r'Basic realm="a \"quoted\" \\ word"', "basic", {"realm": r'a "quoted" \ word'}),
        ('Basic realm="commas, too"', "basic", {"realm": "commas, too"}),
        ('Bearer realm="https://a/t",scope="repository:a:pull,push"', "bearer", {"scope": "repository:a:pull,push"}),
        # Several in one header: the strongest, with its own parameters.
        ('Basic realm="x", Bearer realm="https://a/t",service="s"', "bearer", {"realm": "https://a/t"}),
        ('Bearer realm="https://a/t",service="s", Basic realm="x"', "bearer", {"realm": "https://a/t", "service": "s"}),
        ('Negotiate, Basic realm="x"', "basic", {"realm": "x"}),
        ('Digest realm="d", nonce="n", Basic realm="x"', "basic", {"realm": "x"}),
        # A scheme's name in a quoted text is no scheme.
        ('Basic realm="for Bearer tokens"', "basic", {"realm": "for Bearer tokens"}),
        ('Bearer realm="https://a/t",service="Basic service"', "bearer", {"service": "Basic service"}),
    ],
)
def test_challenge(header: str, scheme: str, parameters: dict[str, str]) -> None:
    """RFC 9110, section 11.6.1: schemes and names in any case, values quoted or not, several in one header."""
    challenge = Challenge.parse(header)
    assert challenge is not None
    assert challenge.scheme == scheme
    assert parameters.items() <= challenge.parameters.items()


@pytest.mark.parametrize("header", ["", "Negotiate", 'Digest realm="x", nonce="y"', "NotBasic realm=x", "nonsense,,"])
def test_no_challenge_that_is_understood(header: str) -> None:
    """Also a scheme whose name only ends like one that is."""
    assert Challenge.parse(header) is None


def test_parameters_stay_with_their_challenge() -> None:
    """The realm of one is never taken for another's: the credentials would go there."""
    challenge = Challenge.parse('Bearer service="s", Basic realm="https://elsewhere/"')
    assert challenge == Challenge("bearer", {"service": "s"})


HOST = "registry.example:5000"
REPOSITORY = "a/b"
PULL = f"repository:{REPOSITORY}:pull"
USER, PASSWORD = "user", "open sesame"
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

Keys = Callable[..., Keyring]
With = Callable[[Authorizer], Awaitable[None]]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all the token servers have their key: to make one takes a while."""
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def server(keys: Path) -> Iterator[TokenServer]:
    """A token server that knows USER."""
    with TokenServer(keys, {USER: PASSWORD}) as running:
        yield running


@pytest.fixture
def tokens(tmp_path: Path) -> TokenCache:
    return TokenCache(str(tmp_path / "cache" / "tokens.json"))


@pytest.fixture
def keyring(tmp_path: Path) -> Keys:
    """Makes a keyring of an auth file that has this entry for HOST."""

    def make(**entry: str) -> Keyring:
        path = tmp_path / "auth.json"
        path.write_text(json.dumps({"auths": {HOST: entry}}))
        return Keyring([str(path)])

    return make


def bearer(server: TokenServer, scope: str = PULL) -> str:
    return f'Bearer realm="{server.realm}",service="{SERVICE}"' + (f',scope="{scope}"' if scope else "")


def work(
    keyring: Keyring,
    do: With,
    *,
    tokens: TokenCache | None = None,
    actions: str = "pull",
    repository: str = REPOSITORY,
) -> Authorizer:
    """Does something with an authorizer for HOST, and returns that."""

    async def main() -> Authorizer:
        async with Http(Proxies(), 30) as http:
            endpoint = Endpoint(HOST, HOST, repository)
            authorizer = Authorizer(http, endpoint, keyring, tokens or TokenCache(), actions)
            await do(authorizer)
            return authorizer

    return asyncio.run(main())


def renewed(challenge: str, keyring: Keyring | None = None, **options: Any) -> Authorizer:
    """Answers one challenge."""

    async def renew(authorizer: Authorizer) -> None:
        await authorizer.renew(authorizer.current, challenge)

    return work(keyring or Keyring(), renew, **options)


def refused(kind: type[PullpipeError], challenge: str, keyring: Keyring, *secrets: str) -> str:
    """The error of answering the challenge: one line, and nothing of it, nor of what caused it, shows a secret."""
    with pytest.raises(kind) as caught:
        renewed(challenge, keyring)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    for secret in (PASSWORD, BASIC.removeprefix("Basic "), *secrets):
        assert secret not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


def given(user: str = USER, password: str = PASSWORD) -> Keyring:
    return Keyring(given=Credentials(user, password), registry=HOST)


class TestBasic:
    def test_password(self, keyring: Keys) -> None:
        authorizer = renewed('Basic realm="x"', keyring(username=USER, password=PASSWORD))
        assert authorizer.current == BASIC
        assert authorizer.remedy == f"check the credentials of '{USER}', or `pullpipe login {HOST}` anew"

    def test_nobody(self) -> None:
        """The error names registry, repository and remedy."""
        line = refused(Unauthorized, 'Basic realm="x"', Keyring())
        for word in (HOST, REPOSITORY, f"`pullpipe login {HOST}`", "--creds USER:PASSWORD"):
            assert word in line

    def test_no_password(self, keyring: Keys) -> None:
        """An identity token is for token servers."""
        line = refused(Unauthorized, "Basic", keyring(identitytoken="a secret"), "a secret")
        assert "identity token" in line
        assert f"`pullpipe login {HOST}`" in line

    @pytest.mark.parametrize("challenge", ["", "Negotiate"])
    def test_no_challenge(self, challenge: str) -> None:
        assert HOST in refused(Unauthorized, challenge, given())


class TestToken:
    def test_anonymous(self, server: TokenServer) -> None:
        authorizer = renewed(bearer(server))
        [asked] = server.asked
        assert authorizer.current == f"Bearer {asked.answer['token']}"
        assert (asked.method, asked.fields, asked.authorization) == (
            "GET",
            {"service": [SERVICE], "scope": [PULL]},
            "",
        )
        assert authorizer.remedy == f"`pullpipe login {HOST}` first, or give --creds USER:PASSWORD"

    def test_password(self, server: TokenServer, keyring: Keys) -> None:
        authorizer = renewed(bearer(server), keyring(username=USER, password=PASSWORD))
        [asked] = server.asked
        assert authorizer.current == f"Bearer {asked.answer['token']}"
        assert (asked.method, asked.fields, asked.authorization) == (
            "GET",
            {"service": [SERVICE], "scope": [PULL]},
            BASIC,
        )
        assert authorizer.remedy == f"check the credentials of '{USER}', or `pullpipe login {HOST}` anew"

    @pytest.mark.parametrize(
        ("stated", "actions", "repository", "asked"),
        [
            (PULL, "pull", REPOSITORY, [PULL]),
            (f"{PULL} repository:c:pull", "pull", REPOSITORY, [PULL, "repository:c:pull"]),
            ("repository:c:pull,push", "pull", REPOSITORY, ["repository:c:pull,push"]),
            ("", "pull", REPOSITORY, [PULL]),
            ("", "pull,push", REPOSITORY, [f"{PULL},push"]),
            (f"{PULL},push", "pull,push", REPOSITORY, [f"{PULL},push"]),
            (PULL, "pull,push", REPOSITORY, [PULL, f"{PULL},push"]),
            ("", "pull", "", []),
            ("registry:catalog:*", "", "", ["registry:catalog:*"]),
        ],
    )
    def test_scopes(self, server: TokenServer, stated: str, actions: str, repository: str, asked: list[str]) -> None:
        """Those of the challenge, each by itself; else ours, and ours also where a challenge asks for less."""
        renewed(bearer(server, stated), actions=actions, repository=repository)
        assert server.asked[0].fields.get("scope", []) == asked

    def test_realm_with_a_query(self, server: TokenServer) -> None:
        renewed(f'Bearer realm="{server.realm}?a=b%20c&d=%26#fragment",scope="{PULL}"')
        assert server.asked[0].fields == {"a": ["b c"], "d": ["&"], "scope": [PULL]}

    def test_access_token(self, server: TokenServer) -> None:
        """Another name for it."""
        server.changes = {"token": None, "access_token": "abc"}
        assert renewed(bearer(server)).current == "Bearer abc"

    @pytest.mark.parametrize("status", [404, 405])
    def test_server_without_get(self, server: TokenServer, keyring: Keys, status: int) -> None:
        """It is asked by POST, as OAuth2 has it."""
        server.statuses = {"GET": status}
        authorizer = renewed(bearer(server), keyring(username=USER, password=PASSWORD))
        first, second = server.asked
        assert (first.method, second.method, second.authorization) == ("GET", "POST", "")
        assert second.fields == {
            "grant_type": ["password"],
            "client_id": ["pullpipe"],
            "service": [SERVICE],
            "scope": [PULL],
            "username": [USER],
            "password": [PASSWORD],
        }
        assert authorizer.current == f"Bearer {second.answer['access_token']}"

    def test_server_without_get_for_nobody(self, server: TokenServer) -> None:
        server.statuses = {"GET": 404}
        assert f"{server.host} answered 404" in refused(UnexpectedAnswer, bearer(server), Keyring())

    def test_needed(self, server: TokenServer) -> None:
        """The error names registry, repository and remedy."""
        server.statuses = {"GET": 401}
        line = refused(Unauthorized, bearer(server), Keyring())
        for word in (HOST, REPOSITORY, f"`pullpipe login {HOST}`", "--creds USER:PASSWORD"):
            assert word in line

    @pytest.mark.parametrize("status", [401, 403])
    def test_wrong(self, server: TokenServer, keyring: Keys, status: int) -> None:
        """Who it was, who said so, for what, and what to do."""
        server.statuses = {"GET": status}
        line = refused(Unauthorized, bearer(server), keyring(username=USER, password=PASSWORD))
        for word in (HOST, server.host, REPOSITORY, f"'{USER}'", str(status), f"`pullpipe login {HOST}`"):
            assert word in line
        assert refused(Unauthorized, bearer(server), given()).endswith(f"; check the credentials of '{USER}'")

    @pytest.mark.parametrize(
        "answer",
        [
            {"token": None},
            {"token": ""},
            {"token": 5},
            {"token": ["x"]},
            {"token": "two words"},
            {"token": "line\nbreak"},
            {"token": "f\u00fcnf"},
            {"token": "x" * (1 << 20)},
        ],
        ids=lambda answer: str(answer)[:30],
    )
    def test_no_token(self, server: TokenServer, answer: dict[str, Any]) -> None:
        server.changes = answer
        assert server.host in refused(UnexpectedAnswer, bearer(server), given())

    @pytest.mark.parametrize("body", [b"sesame", b"[]", b"null", b"[" * 100_000, b"\xff"])
    def test_no_answer(self, server: TokenServer, body: bytes) -> None:
        server.body = body
        line = refused(UnexpectedAnswer, bearer(server), given())
        assert server.host in line
        assert "sesame" not in line

    def test_error_of_the_server(self, server: TokenServer) -> None:
        server.statuses = {"GET": 503}
        assert f"{server.host} answered 503" in refused(UnexpectedAnswer, bearer(server), given())


class TestIdentityToken:
    def test_exchanged(self, server: TokenServer, keyring: Keys) -> None:
        """By OAuth2's POST; it is sent nowhere else."""
        server.identities = {"an+identity/token=": USER}
        authorizer = renewed(bearer(server, f"{PULL} repository:c:pull"), keyring(identitytoken="an+identity/token="))
        [asked] = server.asked
        assert (asked.method, asked.authorization) == ("POST", "")
        assert asked.fields == {
            "grant_type": ["refresh_token"],
            "client_id": ["pullpipe"],
            "service": [SERVICE],
            "scope": [f"{PULL} repository:c:pull"],
            "refresh_token": ["an+identity/token="],
        }
        assert authorizer.current == f"Bearer {asked.answer['access_token']}"

    def test_replaced(self, server: TokenServer, keyring: Keys) -> None:
        """A server that gives a new one with each token takes the old one no more."""
        server.identities = {"first": USER, "second": USER}
        server.changes = {"refresh_token": "second"}

        async def twice(authorizer: Authorizer) -> None:
            for _ in range(2):
                await authorizer.renew(authorizer.current, bearer(server))

        work(keyring(identitytoken="first"), twice)
        assert [asked.fields["refresh_token"] for asked in server.asked] == [["first"], ["second"]]

    @pytest.mark.parametrize("status", [400, 401, 403])
    def test_refused(self, server: TokenServer, keyring: Keys, status: int) -> None:
        server.statuses = {"POST": status}
        line = refused(Unauthorized, bearer(server), keyring(identitytoken="a secret"), "a secret", "a+secret")
        assert f"`pullpipe login {HOST}`" in line


class TestRegistryToken:
    @pytest.mark.parametrize("challenge", ['Basic realm="x"', 'Bearer realm="https://nowhere.invalid/token"'])
    def test_as_it_is(self, keyring: Keys, challenge: str) -> None:
        assert renewed(challenge, keyring(registrytoken="abc.def")).current == "Bearer abc.def"

    def test_none(self, keyring: Keys) -> None:
        line = refused(Unauthorized, "Bearer", keyring(registrytoken="a secret\r\nX: y"), "a secret")
        assert HOST in line


class TestRealm:
    @pytest.mark.parametrize(
        "realm",
        [
            "",
            "nonsense",
            "ftp://127.0.0.1/token",
            "file:///etc/passwd",
            "http://",
            "https:///token",
            "https://user@127.0.0.1/token",
            "https://user:word@127.0.0.1/token",
            "https://a.example@127.0.0.1/token",
            "https://[::1/token",
            "https://127.0.0.1:port/token",
            "https://127.0.0.1:99999/token",
            "https://a b.example/token",
            "https://127.0.0.1/to ken",
            "https://127.0.0.1/t\u00f6ken",
            "https://\x1b[31m.example/token",
        ],
    )
    @pytest.mark.parametrize("keyring", [given(), Keyring()], ids=["credentials", "nobody"])
    def test_unusable(self, realm: str, keyring: Keyring) -> None:
        line = refused(UnexpectedAnswer, f'Bearer realm="{realm}",service="x"', keyring)
        assert HOST in line
        assert "\x1b" not in line

    @pytest.mark.parametrize("entry", [{"username": USER, "password": PASSWORD}, {"identitytoken": PASSWORD}])
    def test_secrets_stay_here_without_tls(self, server: TokenServer, keyring: Keys, entry: dict[str, str]) -> None:
        """0.0.0.0 is this machine too, but no loopback address. Who has no secret may go there."""
        elsewhere = bearer(server).replace("127.0.0.1", "0.0.0.0")
        assert "without TLS" in refused(Unauthorized, elsewhere, keyring(**entry))
        assert server.asked == []
        assert renewed(elsewhere).current

    @pytest.mark.parametrize("entry", [{"username": USER, "password": PASSWORD}, {"identitytoken": PASSWORD}])
    def test_secrets_are_not_redirected(
        self, server: TokenServer, keys: Path, keyring: Keys, entry: dict[str, str]
    ) -> None:
        """Neither in a header nor in a form."""
        with TokenServer(keys, {}) as other:
            server.redirect = other.realm
            with suppress(PullpipeError):
                renewed(bearer(server), keyring(**entry))
            [first] = server.asked
            assert first.authorization == BASIC or first.fields["refresh_token"] == [PASSWORD]
            for asked in other.asked:
                assert (asked.method, asked.authorization) == ("GET", "")
                assert PASSWORD not in str(asked.fields)

    @pytest.mark.parametrize("same", [True, False])
    def test_settings_of_the_registry(self, server: TokenServer, same: bool) -> None:
        """Its own headers are not for a token server elsewhere."""

        async def main() -> None:
            async with Http(Proxies(), 30) as http:
                endpoint = Endpoint(HOST, server.host if same else HOST, REPOSITORY, headers={"X-Key": "secret"})
                await Authorizer(http, endpoint, Keyring(), TokenCache()).renew(None, bearer(server))

        asyncio.run(main())
        assert server.asked[0].headers.get("X-Key") == ("secret" if same else None)


class TestRenewal:
    def test_once_for_many(self, server: TokenServer) -> None:
        """Eight requests are refused with the same token: one new one is had for all."""

        async def many(authorizer: Authorizer) -> None:
            await authorizer.renew(None, bearer(server))
            first = authorizer.current
            await asyncio.gather(*(authorizer.renew(first, bearer(server)) for _ in range(8)))
            assert authorizer.current != first
            await authorizer.renew(first, bearer(server))

        work(Keyring(), many)
        assert len(server.asked) == 2

    def test_after_a_failure(self, server: TokenServer) -> None:
        """The next one tries again."""
        server.statuses = {"GET": 503}

        async def twice(authorizer: Authorizer) -> None:
            with pytest.raises(UnexpectedAnswer):
                await authorizer.renew(None, bearer(server))
            server.statuses = {}
            await authorizer.renew(None, bearer(server))
            assert authorizer.current

        work(Keyring(), twice)

    def test_asks_the_helper_anew(self, server: TokenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its secrets may have changed while a long pull went on. The event loop goes on meanwhile."""
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        helper = CredentialHelper(tmp_path / "bin", "test")
        (tmp_path / "config.json").write_text('{"credsStore": "test"}')

        async def twice(authorizer: Authorizer) -> None:
            for secret in (PASSWORD, "another"):
                server.users = {USER: secret}
                helper.keep({HOST: (USER, secret)})
                await authorizer.renew(authorizer.current, bearer(server))

        work(Keyring([str(tmp_path / "config.json")]), twice)
        assert helper.calls == [f"get {HOST}"] * 2
        assert [asked.status for asked in server.asked] == [200, 200]

    def test_helper_that_fails(self, server: TokenServer, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"credsStore": "no-such"}')
        line = refused(BadConfiguration, bearer(server), Keyring([str(tmp_path / "config.json")]))
        assert "docker-credential-no-such" in line

    def test_broken_file(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("nonsense")
        assert "config.json" in refused(BadConfiguration, "Basic", Keyring([str(tmp_path / "config.json")]))


async def nothing(authorizer: Authorizer) -> None:
    """Leaves it as it is at the start."""


class TestKept:
    def test_next_run(self, server: TokenServer, tokens: TokenCache) -> None:
        """It has the token at once, and asks nobody."""
        first = renewed(bearer(server), tokens=tokens).current
        assert work(Keyring(), nothing, tokens=tokens).current == first
        assert len(server.asked) == 1

    def test_of_a_user(self, server: TokenServer, tokens: TokenCache, keyring: Keys) -> None:
        """It is not for who is logged out; nor is theirs for who has logged in since."""
        anonymous = renewed(bearer(server), tokens=tokens).current
        login = keyring(username=USER, password=PASSWORD)
        assert work(login, nothing, tokens=tokens).current is None
        users = renewed(bearer(server), login, tokens=tokens).current
        assert work(login, nothing, tokens=tokens).current == users
        assert work(Keyring(), nothing, tokens=tokens).current == anonymous != users

    def test_of_that_user_alone(self, server: TokenServer, tokens: TokenCache, keyring: Keys, tmp_path: Path) -> None:
        """Not for another one, nor for who does not know the secret; that is not in the file."""
        renewed(bearer(server), keyring(username=USER, password=PASSWORD), tokens=tokens)
        for entry in ({"username": "v", "password": PASSWORD}, {"username": USER, "password": "another"}):
            assert work(keyring(**entry), nothing, tokens=tokens).current is None
        assert PASSWORD not in (tmp_path / "cache" / "tokens.json").read_text()
        assert work(keyring(username=USER, password=PASSWORD), nothing, tokens=tokens).current

    def test_not_for_given_credentials(self, server: TokenServer, tokens: TokenCache, keyring: Keys) -> None:
        """Neither are their tokens kept, nor others used for them."""
        login = keyring(username=USER, password=PASSWORD)
        kept = renewed(bearer(server), login, tokens=tokens).current
        assert work(given(), nothing, tokens=tokens).current is None
        assert renewed(bearer(server), given(), tokens=tokens).current != kept
        assert work(login, nothing, tokens=tokens).current == kept

    def test_not_for_pushing(self, server: TokenServer, tokens: TokenCache) -> None:
        renewed(bearer(server), tokens=tokens, actions="pull,push")
        assert work(Keyring(), nothing, tokens=tokens).current is None
        renewed(bearer(server), tokens=tokens)
        assert work(Keyring(), nothing, tokens=tokens, actions="pull,push").current is None

    def test_not_passwords_nor_logins(self, tmp_path: Path, tokens: TokenCache, keyring: Keys) -> None:
        """Only what a token server gave is kept."""
        renewed("Basic", keyring(username=USER, password=PASSWORD), tokens=tokens)
        renewed("Bearer", keyring(registrytoken="r"), tokens=tokens)
        assert not (tmp_path / "cache").exists()

    @pytest.mark.parametrize(
        ("stated", "seconds"),
        [
            (300, 300),
            (90.5, 90),
            *((nonsense, 60) for nonsense in (None, "300", True, [300], 0, -5, 1e300, float("inf"), float("nan"))),
        ],
    )
    def test_how_long(
        self,
        server: TokenServer,
        tokens: TokenCache,
        monkeypatch: pytest.MonkeyPatch,
        stated: Any,
        seconds: int,
    ) -> None:
        """As long as the server says, or a minute; ten seconds before, it is not used any more."""
        server.changes = {"expires_in": stated}
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now)
        token = renewed(bearer(server), tokens=tokens).current
        monkeypatch.setattr(time, "time", lambda: now + seconds - 11)
        assert work(Keyring(), nothing, tokens=tokens).current == token
        monkeypatch.setattr(time, "time", lambda: now + seconds - 9)
        assert work(Keyring(), nothing, tokens=tokens).current is None

    def test_refused(self, server: TokenServer, tokens: TokenCache) -> None:
        """A new one takes its place, here and on disk."""
        first = renewed(bearer(server), tokens=tokens).current
        second = renewed(bearer(server), tokens=tokens).current
        assert second != first
        assert work(Keyring(), nothing, tokens=tokens).current == second

    def test_forgotten(self, server: TokenServer, tokens: TokenCache) -> None:
        """Several requests may come back with it; each is worth another try, which has none to begin with."""
        kept = renewed(bearer(server), tokens=tokens).current

        async def forget(authorizer: Authorizer) -> None:
            assert authorizer.current == kept
            assert not authorizer.forget_cached(None)
            assert not authorizer.forget_cached("Bearer another")
            assert authorizer.forget_cached(kept)
            assert authorizer.current is None
            assert work_again(tokens) is None
            assert authorizer.forget_cached(kept)
            await authorizer.renew(kept, bearer(server))  # of a request that was on its way meanwhile
            new = authorizer.current
            assert new not in (None, kept)
            assert authorizer.forget_cached(kept)
            assert authorizer.current == new
            assert not authorizer.forget_cached(new)

        def work_again(tokens: TokenCache) -> str | None:
            return tokens.get(HOST, REPOSITORY, owner="")

        work(Keyring(), forget, tokens=tokens)
        assert work_again(tokens) is not None


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = tmp_path_factory.mktemp("layout")
    write_layout(layout, {"1": Image([Layer([File("x", b"x")])])})
    return layout


class TestRealRegistry:
    @pytest.fixture
    def registry(self, server: TokenServer, tmp_path: Path, layout: Path) -> Iterator[Registry]:
        """One that wants tokens; it has the images `private:1` and `public/a:1`."""
        for tool in ("docker-registry", "skopeo", "openssl"):
            require(tool)
        with Registry(tmp_path / "registry", tokens=server) as running:
            running.push(layout, "1", to="private:1")
            running.push(layout, "1", to="public/a:1")
            server.asked.clear()
            yield running

    def statuses(self, registry: Registry, repository: str, keyring: Keyring, do: With | None = None) -> list[int]:
        """Of requests for the manifest; after each 401 comes a renewal. `do` comes between two good ones."""
        statuses: list[int] = []
        endpoint = Endpoint(registry.host, registry.host, repository, ("http",))
        url = f"http://{registry.host}/v2/{repository}/manifests/1"

        async def ask(http: Http, authorizer: Authorizer) -> None:
            for _ in range(2):
                used = authorizer.current
                headers = {"Accept": ACCEPT, **({"Authorization": used} if used else {})}
                async with http.request("GET", url, headers=headers, endpoint=endpoint) as response:
                    statuses.append(response.status)
                    if response.status != 401:
                        return
                    await authorizer.renew(used, ", ".join(response.headers.getall("WWW-Authenticate")))

        async def main() -> None:
            async with Http(Proxies(), 30) as http:
                authorizer = Authorizer(http, endpoint, keyring, TokenCache())
                await ask(http, authorizer)
                if do:
                    await do(authorizer)
                    await ask(http, authorizer)

        asyncio.run(main())
        return statuses

    def test_anonymous(self, registry: Registry) -> None:
        """It is let in where anybody is, and the registry's word is the last."""
        assert self.statuses(registry, "public/a", Keyring()) == [401, 200]
        assert self.statuses(registry, "private", Keyring()) == [401, 401]

    def test_password(self, registry: Registry) -> None:
        keyring = Keyring(given=Credentials(USER, PASSWORD), registry=registry.host)
        assert self.statuses(registry, "private", keyring) == [401, 200]

    def test_identity_token(self, registry: Registry, server: TokenServer, tmp_path: Path) -> None:
        server.identities = {"i": USER}
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"identitytoken": "i"}}}))
        assert self.statuses(registry, "private", Keyring([str(tmp_path / "auth.json")])) == [401, 200]
        assert [asked.method for asked in server.asked] == ["POST"]

    def test_expired_in_between(self, registry: Registry, server: TokenServer) -> None:
        """A new token takes over."""
        server.seconds = 3  # long enough to be used first
        keyring = Keyring(given=Credentials(USER, PASSWORD), registry=registry.host)

        async def wait(authorizer: Authorizer) -> None:
            def expired() -> bool:
                with closing(HTTPConnection(registry.host)) as connection:
                    connection.request("GET", "/v2/", headers={"Authorization": str(authorizer.current)})
                    return connection.getresponse().status == 401

            assert not expired()
            until(expired, "the token expires")

        assert self.statuses(registry, "private", keyring, wait) == [401, 200, 401, 200]
