"""`pullpipe login` and `logout`: what they write is read by skopeo, by Docker's helpers, and by the next pull."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pullpipe.registry.credentials import Credentials, Keyring
from pullpipe.registry.tokens import TokenCache
from tests.cli.rig import fails, file_layer, layout_of, ok
from tests.conftest import PROJECT, Cli, require
from tests.support.helpers import CredentialHelper
from tests.support.registry import Registry
from tests.support.tokens import TokenServer

PASSWORD = "open: sesame"
ENCODED = base64.b64encode(f"u:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that lets `u` with PASSWORD in, and nobody else; it has the image `a/b:1`."""
    for tool in ("docker-registry", "skopeo"):
        require(tool)
    directory = tmp_path_factory.mktemp("private")
    with Registry(directory, {"u": PASSWORD}) as running:
        running.push(layout_of(directory / "layout", file_layer("x")), "image", to="a/b:1")
        yield running


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CredentialHelper:
    """The credential helper `test`, on PATH, empty."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return CredentialHelper(tmp_path / "bin", "test")


@pytest.fixture
def authfile(tmp_path: Path) -> Path:
    return tmp_path / "auth.json"


@pytest.fixture
def lasting() -> Path:
    """Where a login goes by default."""
    return Path(os.environ["XDG_CONFIG_HOME"], "containers", "auth.json")


@pytest.fixture
def session() -> Path:
    """Where podman's login goes by default."""
    return Path(os.environ["XDG_RUNTIME_DIR"], "containers", "auth.json")


@pytest.fixture
def docker() -> Path:
    return Path(os.environ["DOCKER_CONFIG"], "config.json")


def login(cli: Cli, registry: str, *options: str | Path, password: str = PASSWORD) -> str:
    return ok(cli, "login", "-u", "u", "--password-stdin", *options, registry, stdin=password)


def write(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def inspected(authfile: Path, registry: Registry) -> bool:
    """Whether skopeo, with this file, may see the image."""
    image = f"docker://{registry.host}/a/b:1"
    command = ["skopeo", "inspect", "--authfile", str(authfile), "--tls-verify=false", image]
    return subprocess.run(command, capture_output=True).returncode == 0


class TestLogin:
    def test_skopeo_takes_over(self, cli: Cli, private: Registry, authfile: Path) -> None:
        write(authfile, {"auths": {}})
        assert not inspected(authfile, private)
        assert login(cli, private.host, "--authfile", authfile) == f"logged in to {private.host} as u"
        assert inspected(authfile, private)

    def test_written(self, cli: Cli, private: Registry, lasting: Path) -> None:
        """Where it outlives the session, for nobody else to read."""
        login(cli, private.host)
        assert read(lasting) == {"auths": {private.host: {"auth": ENCODED}}}
        assert (lasting.stat().st_mode & 0o777, lasting.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert list(lasting.parent.iterdir()) == [lasting]

    def test_all_else_stays(self, cli: Cli, private: Registry, authfile: Path) -> None:
        """Other logins, those for single repositories, and settings that pullpipe does not know; in their order."""
        others = {"z.example": {"auth": "eg=="}, f"{private.host}/a": {"auth": "eA=="}, "b.example": {"email": "e"}}
        settings = {"HttpHeaders": {"X": "y"}, "auths": others, "credHelpers": {"c.example": "x"}, "other": [1, {}]}
        write(authfile, settings)
        authfile.chmod(0o644)
        login(cli, private.host, "--authfile", authfile)
        expected = {**settings, "auths": {**others, private.host: {"auth": ENCODED}}}
        assert json.dumps(read(authfile)) == json.dumps(expected)
        assert authfile.stat().st_mode & 0o777 == 0o600
        ok(cli, "logout", "--authfile", authfile, private.host)
        assert json.dumps(read(authfile)) == json.dumps(settings)

    @pytest.mark.parametrize("where", ["session", "lasting"])
    def test_where_there_is_one(
        self, cli: Cli, private: Registry, session: Path, lasting: Path, docker: Path, where: str
    ) -> None:
        """A login is renewed where it is; Docker's file is Docker's."""
        there, other = (session, lasting) if where == "session" else (lasting, session)
        write(docker, {"auths": {private.host: {"auth": "eA=="}}})
        write(there, {"auths": {private.host: {"auth": "eA=="}}})
        write(other, {"auths": {"x": {}}})
        login(cli, private.host)
        assert read(there)["auths"] == {private.host: {"auth": ENCODED}}
        assert read(other)["auths"] == {"x": {}}
        assert read(docker)["auths"] == {private.host: {"auth": "eA=="}}

    def test_file_of_the_environment(self, cli: Cli, private: Registry, authfile: Path, lasting: Path) -> None:
        arguments = ("login", "-u", "u", "--password-stdin", private.host)
        done = cli(*arguments, stdin=PASSWORD, env={"REGISTRY_AUTH_FILE": str(authfile)})
        assert done.returncode == 0, done.stderr
        assert inspected(authfile, private)
        assert not lasting.exists()

    def test_docker_hub_by_its_old_name(self, authfile: Path) -> None:
        """The entry that Docker made is the one that is renewed: two would contradict each other."""
        from pullpipe.registry import logins

        write(authfile, {"auths": {"https://index.docker.io/v1/": {"auth": "eA=="}}})
        logins.store(str(authfile), "docker.io", Credentials("u", PASSWORD))
        assert read(authfile)["auths"] == {"https://index.docker.io/v1/": {"auth": ENCODED}}
        assert logins.erase(str(authfile), "docker.io")
        assert read(authfile)["auths"] == {}

    def test_symlink(self, cli: Cli, private: Registry, authfile: Path, tmp_path: Path) -> None:
        """It stays one; what it leads to is written."""
        authfile.symlink_to(tmp_path / "dotfiles" / "auth.json")
        login(cli, private.host, "--authfile", authfile)
        assert authfile.is_symlink()
        assert inspected(tmp_path / "dotfiles" / "auth.json", private)

    @pytest.mark.needs_root
    def test_anothers_file(self, cli: Cli, private: Registry, authfile: Path) -> None:
        """Root's login does not take a user's file away."""
        write(authfile, {})
        os.chown(authfile, 1234, 1235)
        login(cli, private.host, "--authfile", authfile)
        assert (authfile.stat().st_uid, authfile.stat().st_gid) == (1234, 1235)

    @pytest.mark.parametrize("end", ["", "\n", "\r\n"])
    def test_password_of_a_line(self, cli: Cli, private: Registry, authfile: Path, end: str) -> None:
        login(cli, private.host, "--authfile", authfile, password=PASSWORD + end)
        assert inspected(authfile, private)

    def test_token_server(self, cli: Cli, tmp_path: Path, authfile: Path) -> None:
        """It is the one who knows."""
        with (
            TokenServer(tmp_path / "tokens", {"u": PASSWORD}) as server,
            Registry(tmp_path / "registry", tokens=server) as registry,
        ):
            login(cli, registry.host, "--authfile", authfile)
            assert read(authfile)["auths"] == {registry.host: {"auth": ENCODED}}
            assert [(asked.authorization, asked.fields.get("scope")) for asked in server.asked] == [
                (f"Basic {ENCODED}", None)
            ]
            done = cli("login", "-u", "u", "--password-stdin", "--authfile", authfile, registry.host, stdin="wrong")
            assert_refused(done, registry.host, "check the credentials", hidden="wrong")
        assert read(authfile)["auths"] == {registry.host: {"auth": ENCODED}}

    def test_nobody_asks(self, cli: Cli, registry: Registry, authfile: Path) -> None:
        """They are kept, with a warning."""
        done = cli("login", "-u", "u", "--password-stdin", "--authfile", authfile, registry.host, stdin=PASSWORD)
        assert (done.returncode, done.stdout) == (0, f"logged in to {registry.host} as u\n")
        assert "lets anybody in" in done.stderr
        assert registry.host in read(authfile)["auths"]

    def test_tokens_are_forgotten(self, cli: Cli, private: Registry, authfile: Path) -> None:
        """Those of this registry, at login and at logout: they tell of who was there before."""
        tokens = TokenCache(os.path.join(os.environ["XDG_CACHE_HOME"], "pullpipe", "tokens.json"))
        for command in ("login", "logout"):
            for registry in (private.host, "other.example"):
                tokens.put(registry, "a/b", "t", 300, owner="u")
            login(cli, private.host) if command == "login" else ok(cli, "logout", private.host)
            assert tokens.get(private.host, "a/b", owner="u") is None
            assert tokens.get("other.example", "a/b", owner="u") == "t"


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, hidden: str = PASSWORD) -> None:
    """One line with these words, and without that one."""
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert hidden not in line
    for word in words:
        assert word in line


class TestNoLogin:
    """Nothing is stored."""

    @pytest.fixture(autouse=True)
    def _nothing_is_stored(self, lasting: Path, session: Path) -> Iterator[None]:
        yield
        assert not lasting.exists()
        assert not session.exists()

    def test_wrong(self, cli: Cli, private: Registry, authfile: Path) -> None:
        done = cli("login", "-u", "u", "--password-stdin", "--authfile", authfile, private.host, stdin="wrong word")
        assert_refused(done, private.host, "'u'", "check", hidden="wrong word")
        assert not authfile.exists()

    def test_wrong_for_developers(self, cli: Cli, private: Registry, authfile: Path) -> None:
        """The traceback shows no secret."""
        arguments = ("--log-level", "debug", "login", "-u", "u", "--password-stdin", "--authfile", authfile)
        done = cli(*arguments, private.host, stdin="wrong word")
        assert "Traceback" in done.stderr
        assert "wrong word" not in done.stderr
        assert base64.b64encode(b"u:wrong word").decode() not in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "stdin", "words"),
        [
            ((), "", ("no terminal", "--username", "--password-stdin")),
            (("-u", "u"), "", ("no terminal", "'u'", "--password-stdin")),
            (("--password-stdin",), PASSWORD, ("--username",)),
            (("-u", "u", "--password-stdin"), "", ("no password", "'u'")),
            (("-u", "u", "--password-stdin"), "\n", ("no password",)),
            (("-u", "u:v", "--password-stdin"), PASSWORD, ("'u:v'",)),
        ],
    )
    def test_not_enough(
        self, cli: Cli, private: Registry, arguments: tuple[str, ...], stdin: str, words: tuple[str, ...]
    ) -> None:
        assert_refused(cli("login", *arguments, private.host, stdin=stdin), *words)

    @pytest.mark.parametrize("registry", ["", "a b", "host/name", "https://", "name", "http://host:port"])
    def test_no_registry(self, cli: Cli, registry: str) -> None:
        done = cli("login", "-u", "u", "--password-stdin", registry, stdin=PASSWORD)
        assert_refused(done, repr(registry), "HOST:PORT")

    def test_nothing_answers(self, cli: Cli) -> None:
        done = cli("login", "-u", "u", "--password-stdin", "127.0.0.1:1", stdin=PASSWORD)
        assert_refused(done, "127.0.0.1:1")

    @pytest.mark.parametrize(
        "words", [("-p", PASSWORD), (f"-p{PASSWORD}",), ("--password", PASSWORD), (f"--password={PASSWORD}",)]
    )
    def test_password_in_the_command_line(self, cli: Cli, private: Registry, words: tuple[str, ...]) -> None:
        """It would be for all to see, and is no registry."""
        assert_refused(cli("login", "-u", "u", *words), "--password-stdin")
        assert_refused(cli("login", "-u", "u", *words, private.host), "--password-stdin")

    @pytest.mark.parametrize("name", ["--passwd", "--passwor", "-P"])
    def test_other_words_for_it(self, cli: Cli, name: str) -> None:
        """What is no option is told of by its name alone, and never taken for another one."""
        done = cli("login", "-u", "u", f"{name}{'=' * (name != '-P')}sesame", "a.example")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.endswith(f": unrecognized arguments: {name}\n")
        assert "sesame" not in done.stderr

    @pytest.mark.parametrize("text", ["nonsense", "[]", '{"auths": 5}'])
    def test_broken_file(self, cli: Cli, private: Registry, authfile: Path, text: str) -> None:
        authfile.write_text(text)
        done = cli("login", "-u", "u", "--password-stdin", "--authfile", authfile, private.host, stdin=PASSWORD)
        assert_refused(done, str(authfile))
        assert authfile.read_text() == text

    def test_no_file(self, cli: Cli, private: Registry, tmp_path: Path) -> None:
        """What is none is not replaced by one."""
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "fifo", tmp_path, Path("/proc/auth.json")):
            done = cli("login", "-u", "u", "--password-stdin", "--authfile", path, private.host, stdin=PASSWORD)
            assert_refused(done, str(path), "--authfile")
        assert (tmp_path / "fifo").is_fifo()


class TestTerminal:
    def test_both_are_asked_for(self, cli: Cli, private: Registry, authfile: Path, store_root: Path) -> None:
        """And the password does not show."""
        command = f"{sys.executable} -m pullpipe login --authfile {authfile} {private.host}"
        shown = on_terminal(command, {"user at": "u", "password of": PASSWORD})
        assert f"logged in to {private.host} as u" in shown
        assert PASSWORD not in shown
        assert inspected(authfile, private)

    def test_end_of_input(self, private: Registry, authfile: Path) -> None:
        command = f"{sys.executable} -m pullpipe login -u u --authfile {authfile} {private.host}"
        assert "no password was given for 'u'" in on_terminal(command, {"password of": "\x04"})

    @pytest.mark.needs_root
    def test_creds_without_a_password(self, private: Registry, store_root: Path) -> None:
        """`pull` asks once, and has nothing to hide in its command line."""
        command = f"{sys.executable} -m pullpipe --root {store_root} pull --creds u {private.host}/a/b:1"
        shown = on_terminal(command, {"password of u at": PASSWORD})
        assert f"pulled {private.host}/a/b:1" in shown
        assert PASSWORD not in shown


def on_terminal(command: str, answers: dict[str, str]) -> str:
    """What the command shows on a terminal of its own, where each question is answered as soon as it is asked."""
    with subprocess.Popen(
        [require("script"), "-qefc", command, "/dev/null"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdin
        assert process.stdout
        shown = b""
        for question, answer in answers.items():
            while question.encode() not in shown.rpartition(b"\n")[2]:
                piece = os.read(process.stdout.fileno(), 4096)
                assert piece, shown
                shown += piece
            while not shown.endswith(b": "):
                shown += os.read(process.stdout.fileno(), 4096)
            process.stdin.write(answer.encode() + b"\n" * (answer != "\x04"))
            process.stdin.flush()
        shown += process.stdout.read()
    return shown.decode()


class TestHelper:
    @pytest.mark.parametrize("by", ["credHelpers", "credsStore"])
    def test_login_and_logout(
        self, cli: Cli, private: Registry, authfile: Path, helper: CredentialHelper, by: str
    ) -> None:
        """The helper has the secret, and no other place; it is asked by the next who needs it."""
        settings = {by: {private.host: "test"} if by == "credHelpers" else "test"}
        write(authfile, {**settings, "auths": {private.host: {"auth": "eA=="}}})
        login(cli, private.host, "--authfile", authfile)
        assert helper.kept == {private.host: ("u", PASSWORD)}
        assert read(authfile) == {**settings, "auths": {private.host: {}}}
        assert asyncio.run(Keyring([str(authfile)]).find(private.host, "a/b")) == Credentials("u", PASSWORD)
        if by == "credHelpers":  # skopeo knows no other
            assert inspected(authfile, private)
        ok(cli, "logout", "--authfile", authfile, private.host)
        assert helper.kept == {}
        assert read(authfile) == {**settings, "auths": {}}
        assert "not logged in" in fails(cli, "logout", "--authfile", authfile, private.host)

    def test_that_fails(self, cli: Cli, private: Registry, authfile: Path, helper: CredentialHelper) -> None:
        """Nothing is stored elsewhere instead."""
        helper.write("#!/bin/sh\ncat\nexit 1\n")
        write(authfile, {"credsStore": "test"})
        done = cli("login", "-u", "u", "--password-stdin", "--authfile", authfile, private.host, stdin=PASSWORD)
        assert_refused(done, "docker-credential-test", str(authfile))
        assert read(authfile) == {"credsStore": "test"}


class TestLogout:
    def test_skopeo_too(self, cli: Cli, private: Registry, authfile: Path) -> None:
        login(cli, private.host, "--authfile", authfile)
        assert ok(cli, "logout", "--authfile", authfile, private.host) == f"logged out of {private.host}"
        assert not inspected(authfile, private)

    def test_of_skopeo(self, cli: Cli, private: Registry, authfile: Path) -> None:
        """What skopeo logged in to is logged out of, and the other way round."""
        options = ["--authfile", str(authfile)]
        command = ["skopeo", "login", *options, "--tls-verify=false", "-u", "u", "--password-stdin", private.host]
        subprocess.run(command, input=PASSWORD, text=True, check=True, capture_output=True)
        ok(cli, "logout", *options, private.host)
        login(cli, private.host, *options)
        subprocess.run(["skopeo", "logout", *options, private.host], check=True, capture_output=True)
        assert "not logged in" in fails(cli, "logout", *options, private.host)

    def test_everywhere(self, cli: Cli, session: Path, lasting: Path) -> None:
        """Otherwise it would still be logged in. Single repositories and other registries stay."""
        for path in (session, lasting):
            write(
                path,
                {"auths": {"a.example": {"auth": "eA=="}, "a.example/b": {}, "https://a.example/v1/": {}, "c": {}}},
            )
        assert ok(cli, "logout", "a.example") == "logged out of a.example"
        assert read(session) == read(lasting) == {"auths": {"a.example/b": {}, "c": {}}}

    def test_docker_hub(self, cli: Cli, lasting: Path) -> None:
        """By any of its names, and by none."""
        for names in ((), ("docker.io",), ("index.docker.io",), ("https://index.docker.io/v1/",)):
            write(lasting, {"auths": {"docker.io": {"auth": "eA=="}}})
            assert ok(cli, "logout", *names) == "logged out of docker.io"
            assert read(lasting) == {"auths": {}}

    def test_not_logged_in(self, cli: Cli, lasting: Path) -> None:
        assert "not logged in to a.example" in fails(cli, "logout", "a.example")
        assert not lasting.parent.exists()

    def test_dockers(self, cli: Cli, docker: Path, lasting: Path) -> None:
        """Its file is left alone, and the error says what to do; when others are removed, it is a warning."""
        write(docker, {"auths": {"a.example": {"auth": "eA=="}}})
        line = fails(cli, "logout", "a.example")
        assert str(docker) in line
        assert "docker logout a.example" in line
        write(lasting, read(docker))
        done = cli("logout", "a.example")
        assert (done.returncode, done.stdout) == (0, "logged out of a.example\n")
        assert "docker logout a.example" in done.stderr
        assert read(docker) == {"auths": {"a.example": {"auth": "eA=="}}}

    def test_all(self, cli: Cli, session: Path, lasting: Path, docker: Path, helper: CredentialHelper) -> None:
        """Also single repositories', and what the file's helpers have; settings stay."""
        helper.keep({"h.example": ("u", "p"), "other.example": ("u", "p")})
        write(session, {"credHelpers": {"h.example": "test", "none.example": "test"}, "x": 1})
        write(lasting, {"auths": {"a.example": {"auth": "eA=="}, "b.example/c": {"auth": "eA=="}}})
        write(docker, {"auths": {"d.example": {"auth": "eA=="}}})
        out = ok(cli, "logout", "--all")
        assert out.splitlines() == [f"logged out of {host}" for host in ("a.example", "b.example", "h.example")]
        assert read(session) == {"credHelpers": {"h.example": "test", "none.example": "test"}, "x": 1}
        assert read(lasting) == {"auths": {}}
        assert read(docker) == {"auths": {"d.example": {"auth": "eA=="}}}
        assert helper.kept == {"other.example": ("u", "p")}
        assert ok(cli, "logout", "--all") == ""

    def test_all_or_one(self, cli: Cli) -> None:
        assert "--all" in fails(cli, "logout", "--all", "a.example")
