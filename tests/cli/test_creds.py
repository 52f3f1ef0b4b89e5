"""Pulling with credentials: from --creds and auth files, by passwords and tokens, which never show."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from pullpipe.registry.tokens import TokenCache
from tests.cli.rig import digest_of, fails, group_is_gone, ok, started, until
from tests.conftest import Cli, require
from tests.support.helpers import CredentialHelper
from tests.support.hostile import BASIC, Fault, FaultyRegistry
from tests.support.registry import Registry
from tests.support.tokens import TokenServer

pytestmark = pytest.mark.needs_root

PASSWORD = "open: sesame"
ENCODED = base64.b64encode(f"u:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


@pytest.fixture
def server(keys: Path) -> Iterator[TokenServer]:
    """A token server that knows `u` with PASSWORD."""
    with TokenServer(keys, {"u": PASSWORD}) as running:
        yield running


@pytest.fixture
def private(server: TokenServer, tmp_path: Path, layout: Path) -> Iterator[Registry]:
    """A registry that wants tokens of that server; it has the images `private:1` and `public/a:1`."""
    for tool in ("docker-registry", "skopeo", "openssl"):
        require(tool)
    with Registry(tmp_path / "registry", tokens=server) as running:
        running.push(layout, "image", to="private:1")
        running.push(layout, "image", to="public/a:1")
        server.asked.clear()
        yield running


@pytest.fixture
def tokens() -> TokenCache:
    """Those that the commands keep."""
    return TokenCache(os.path.join(os.environ["XDG_CACHE_HOME"], "pullpipe", "tokens.json"))


def write(path: Path, registry: str, **entry: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"auths": {registry: entry}}))
    return path


class TestWhereTheyAre:
    def test_login_and_pull(self, cli: Cli, private: Registry, layout: Path) -> None:
        reference = f"{private.host}/private:1"
        line = fails(cli, "pull", "-q", "--retries", "0", reference)
        assert f"`pullpipe login {private.host}`" in line
        ok(cli, "login", "-u", "u", "--password-stdin", private.host, stdin=PASSWORD)
        assert ok(cli, "pull", "-q", reference) == digest_of(layout)

    def test_authfile(self, cli: Cli, private: Registry, layout: Path, tmp_path: Path) -> None:
        """It goes before the others; what it names and is not there is an error."""
        reference = f"{private.host}/private:1"
        write(Path(os.environ["XDG_CONFIG_HOME"], "containers", "auth.json"), private.host, auth="eDp5")
        good = write(tmp_path / "auth.json", private.host, auth=ENCODED)
        assert "'x'" in fails(cli, "pull", "-q", "--retries", "0", reference)
        assert ok(cli, "pull", "-q", "--authfile", good, reference) == digest_of(layout)
        assert str(tmp_path / "none") in fails(cli, "pull", "-q", "--authfile", tmp_path / "none", reference)

    @pytest.mark.parametrize(
        ("variable", "path"),
        [
            ("REGISTRY_AUTH_FILE", ""),
            ("XDG_RUNTIME_DIR", "containers/auth.json"),
            ("XDG_CONFIG_HOME", "containers/auth.json"),
            ("DOCKER_CONFIG", "config.json"),
        ],
    )
    def test_files_of_the_others(
        self, cli: Cli, private: Registry, layout: Path, tmp_path: Path, variable: str, path: str
    ) -> None:
        write(tmp_path / "there" / path if path else tmp_path / "there", private.host, auth=ENCODED)
        done = cli("pull", "-q", f"{private.host}/private:1", env={variable: str(tmp_path / "there")})
        assert (done.returncode, done.stdout) == (0, f"{digest_of(layout)}\n"), done.stderr

    def test_helper(
        self, cli: Cli, private: Registry, layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Asked when it is needed, and not for what the kept token opens."""
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        helper = CredentialHelper(tmp_path / "bin", "test")
        helper.keep({private.host: ("u", PASSWORD)})
        Path(os.environ["DOCKER_CONFIG"], "config.json").write_text('{"credsStore": "test"}')
        for _ in range(2):
            assert ok(cli, "pull", "-q", f"{private.host}/private:1") == digest_of(layout)
        assert helper.calls == [f"get {private.host}"]

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_helper_that_hangs(
        self,
        private: Registry,
        store_root: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: signal.Signals,
        code: int,
    ) -> None:
        """Who does not want to wait for it ends it together with the pull."""
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        there = tmp_path / "there"
        CredentialHelper(tmp_path / "bin", "test").write(f"#!/bin/sh\ntouch {there}\nexec sleep 300\n")
        Path(os.environ["DOCKER_CONFIG"], "config.json").write_text('{"credsStore": "test"}')
        with started(store_root, "pull", f"{private.host}/private:1", stderr=tmp_path / "stderr") as process:
            until(there.exists)
            os.kill(process.pid, number)
            assert process.wait(20) == code
            until(lambda: group_is_gone(process))
        assert (tmp_path / "stderr").read_text() == ""

    def test_creds_before_files(self, cli: Cli, private: Registry, tmp_path: Path) -> None:
        path = write(tmp_path / "auth.json", private.host, auth=ENCODED)
        arguments = ("pull", "-q", "--retries", "0", "--authfile", path, f"{private.host}/private:1")
        assert "'w'" in fails(cli, *arguments, "--creds", "w:wrong")


class TestTokens:
    def test_kept(self, cli: Cli, private: Registry, server: TokenServer, store_root: Path) -> None:
        """The next pulls ask for none; whoever gives --creds gets a new one, which is not kept."""
        reference = f"{private.host}/public/a:1"
        for _ in range(2):
            ok(cli, "pull", "-q", reference)
        ok(cli, "--root", f"{store_root}/another", "pull", "-q", reference)
        assert [asked.authorization for asked in server.asked] == [""]
        ok(cli, "pull", "-q", "--creds", f"u:{PASSWORD}", reference)
        ok(cli, "pull", "-q", reference)
        assert [asked.authorization for asked in server.asked] == ["", f"Basic {ENCODED}"]

    def test_of_another_user(self, cli: Cli, private: Registry, layout: Path, store_root: Path, tmp_path: Path) -> None:
        """What one was let in with lets in nobody who has the same cache and other credentials."""
        mine = write(tmp_path / "mine.json", private.host, auth=ENCODED)
        others = write(tmp_path / "others.json", private.host, auth=base64.b64encode(b"v:wrong").decode())
        arguments = ("pull", "-q", "--retries", "0", f"{private.host}/private:1", "--authfile")
        assert ok(cli, *arguments, mine) == digest_of(layout)
        for root in (store_root, store_root / "another"):
            assert "'v'" in fails(cli, "--root", root, *arguments, others)

    @pytest.mark.parametrize("fault", [Fault.BEARER, Fault.BEARER_WITH_CREDENTIALS])
    def test_unchanged_tag(self, cli: Cli, layout: Path, fault: Fault) -> None:
        """With the token of the pull before, it takes one request."""
        with FaultyRegistry(layout, {fault}) as registry:
            if fault is Fault.BEARER_WITH_CREDENTIALS:
                there = Path(os.environ["DOCKER_CONFIG"], "config.json")
                write(there, registry.host, auth=BASIC.removeprefix("Basic "))
            ok(cli, "pull", "-q", f"{registry.host}/a/b:image")
            registry.requests.clear()
            ok(cli, "pull", "-q", f"{registry.host}/a/b:image")
            [request] = registry.requests
        assert request.method == "HEAD"
        assert request.headers["Authorization"].startswith("Bearer ")

    def test_of_another_time(self, cli: Cli, layout: Path, tokens: TokenCache) -> None:
        """Registries say that there is no such image to a token without the right to see it: that may be an old one."""

        class Secretive(FaultyRegistry):
            def _authenticate(self, request: web.Request) -> None:
                if request.headers.get("Authorization") == "Bearer old":
                    raise web.HTTPNotFound
                super()._authenticate(request)

        with Secretive(layout, {Fault.BEARER}) as registry:
            tokens.put(registry.host, "a/b", "old", 300, owner="")
            assert ok(cli, "pull", "-q", f"{registry.host}/a/b:image") == digest_of(layout)
            assert tokens.get(registry.host, "a/b", owner="") not in ("old", None)
            assert "check the name" in fails(cli, "pull", "-q", f"{registry.host}/a/b:none")


class TestSecretsDoNotShow:
    @pytest.mark.parametrize("how", ["creds", "authfile"])
    @pytest.mark.parametrize("password", [PASSWORD, "wrong: word"])
    def test_for_developers(
        self, cli: Cli, private: Registry, server: TokenServer, tmp_path: Path, how: str, password: str
    ) -> None:
        """Neither passwords nor tokens stand in tracebacks or traces."""
        encoded = base64.b64encode(f"u:{password}".encode()).decode()
        path = write(tmp_path / "auth.json", private.host, auth=encoded)
        options = ("--creds", f"u:{password}") if how == "creds" else ("--authfile", path)
        trace = tmp_path / "trace"
        pull = ("pull", "--retries", "0", "--progress", "plain", "--trace", trace, *options)
        done = cli("--log-level", "debug", *pull, f"{private.host}/private:1")
        assert done.returncode == (0 if password == PASSWORD else 1)
        given = [str(asked.answer["token"]) for asked in server.asked if asked.status == 200]
        assert bool(given) is (password == PASSWORD)
        for secret in (password, encoded, *given):
            assert secret not in done.stdout + done.stderr + trace.read_text()

    @pytest.mark.parametrize(
        ("options", "shown"),
        [
            (["--creds", f"u:{PASSWORD}"], ["--creds", f"u:{'*' * 12}"]),
            ([f"--creds=u:{PASSWORD}", "--quiet"], [f"--creds=u:{'*' * 12}", "--quiet"]),
            (["--creds", "ü:öpen"], ["--creds", "ü:*****"]),
            (["--creds", "u:"], ["--creds", "u:"]),
        ],
    )
    def test_in_the_process_list(self, store_root: Path, tmp_path: Path, options: list[str], shown: list[str]) -> None:
        """While a pull waits for its registry, `ps` shows asterisks; all other words stay as they are."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            reference = f"127.0.0.1:{silent.getsockname()[1]}/a:1"
            arguments = ["pull", "--plain-http", *options, reference]
            with started(store_root, *arguments, stderr=tmp_path / "stderr") as process:
                connection, _ = silent.accept()
                with connection:
                    assert connection.recv(1)
                    words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")
        assert words[3:] == ["--root", str(store_root), "pull", "--plain-http", *shown, reference, ""]
