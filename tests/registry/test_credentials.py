"""Credentials from auth files as Docker, podman and skopeo write them, and from credential helpers: real programs."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pullpipe.errors import BadConfiguration, Unauthorized
from pullpipe.registry import helpers
from pullpipe.registry.credentials import Credentials, Keyring, auth_files
from tests.conftest import require
from tests.support.helpers import CredentialHelper
from tests.support.registry import Registry

HOST = "registry.example:5000"
SECRET = "open sesame"
U = {"auth": base64.b64encode(f"u:{SECRET}".encode()).decode()}
V = {"auth": base64.b64encode(b"v:other").decode()}

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Makes an auth file of a document, and returns its path."""

    def make(document: object, name: str = "auth.json") -> str:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    return make


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CredentialHelper:
    """The credential helper `test`, on PATH, empty."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return CredentialHelper(tmp_path / "bin", "test")


def found(path: str, repository: str = "a/b", registry: str = HOST) -> Credentials | None:
    return asyncio.run(Keyring([path]).find(registry, repository))


def refused(*paths: str, registry: str = HOST) -> str:
    """The error of looking for credentials there: one line. Nothing of it has a secret, not even for developers."""
    with pytest.raises(BadConfiguration) as caught:
        asyncio.run(Keyring(paths).find(registry, "a/b"))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert SECRET not in shown
    assert U["auth"] not in shown
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestCredentials:
    def test_parse(self) -> None:
        """At the first colon: passwords may have more of them, and may be empty."""
        assert Credentials.parse("u:p") == Credentials("u", "p")
        assert Credentials.parse("u:p:q:") == Credentials("u", "p:q:")
        assert Credentials.parse("u:") == Credentials("u", "")

    @pytest.mark.parametrize("text", ["", "word", ":secret"])
    def test_parse_what_is_none(self, text: str) -> None:
        """The text is not repeated: what a user types there is a secret."""
        with pytest.raises(Unauthorized, match="USER:PASSWORD") as caught:
            Credentials.parse(text)
        shown = "".join(traceback.format_exception(caught.value))
        assert not text or text not in str(caught.value)
        assert "secret" not in shown

    def test_header(self) -> None:
        """RFC 7617, in UTF-8; what is none in argv goes as it came."""
        scheme, _, encoded = Credentials("Jürgen", "pass:wörd").header().partition(" ")
        assert scheme == "Basic"
        assert base64.b64decode(encoded).decode() == "Jürgen:pass:wörd"
        assert base64.b64decode(Credentials("u", os.fsdecode(b"\xff")).header()[6:]) == b"u:\xff"

    def test_the_secrets_do_not_show(self) -> None:
        """However they are printed, alone or inside of something else."""
        credentials = Credentials("user", SECRET, f"1 {SECRET}", f"2 {SECRET}")
        for shown in (
            str(credentials),
            repr(credentials),
            f"{credentials}",
            repr([credentials]),
            f"{credentials!s:>9}",
        ):
            assert "sesame" not in shown
            assert "user" in shown


class TestEntries:
    @pytest.mark.parametrize(
        ("entry", "credentials"),
        [
            (U, Credentials("u", SECRET)),
            ({"auth": base64.b64encode(b"u:p:q:").decode()}, Credentials("u", "p:q:")),
            ({"auth": base64.b64encode("Jürgen:wörd".encode()).decode()}, Credentials("Jürgen", "wörd")),
            ({"auth": base64.b64encode(b"u:p\0\0").decode()}, Credentials("u", "p")),
            ({"username": "u", "password": SECRET}, Credentials("u", SECRET)),
            ({**V, "username": "u", "password": SECRET}, Credentials("v", "other")),
            ({**U, "email": "u@example.com"}, Credentials("u", SECRET)),
            ({"identitytoken": "i"}, Credentials("<token>", identity_token="i")),
            ({"auth": base64.b64encode(b"0000:").decode(), "identitytoken": "i"}, Credentials("0000", "", "i")),
            ({"registrytoken": "r"}, Credentials("<token>", registry_token="r")),
            ({}, None),
            ({"auth": ""}, None),
            ({"username": "u"}, None),
            (None, None),
        ],
    )
    def test_forms(self, write: Write, entry: Any, credentials: Credentials | None) -> None:
        path = write({"auths": {HOST: entry}})
        assert found(path) == credentials
        assert bool(Keyring([path]).owner(HOST, "a/b")) is (credentials is not None)

    def test_most_specific(self, write: Write) -> None:
        """containers-auth.json(5): from the repository up to the host, by whole names; empty ones are passed over."""
        path = write(
            {
                "auths": {
                    HOST: {"username": "host", "password": "p"},
                    f"{HOST}/a": {"username": "a", "password": "p"},
                    f"{HOST}/a/b": {"username": "a/b", "password": "p"},
                    f"{HOST}/empty": {},
                }
            }
        )
        users = {
            name: credentials.user
            for name in ("a/b", "a/b/c", "a/c", "a", "ab", "c", "empty/x", "")
            if (credentials := found(path, name))
        }
        assert users == {
            "a/b": "a/b",
            "a/b/c": "a/b",
            "a/c": "a",
            "a": "a",
            "ab": "host",
            "c": "host",
            "empty/x": "host",
            "": "host",
        }

    def test_for_another_repository_only(self, write: Write) -> None:
        path = write({"auths": {f"{HOST}/a": U}})
        assert found(path, "b") is None
        assert not Keyring([path]).owner(HOST, "b")
        assert not Keyring([path]).owner(HOST, "")

    @pytest.mark.parametrize("key", [HOST, f"{HOST}/", f"https://{HOST}", f"https://{HOST}/v1/", f"http://{HOST}/v2/"])
    def test_old_keys(self, write: Write, key: str) -> None:
        path = write({"auths": {key: U}})
        assert found(path) == Credentials("u", SECRET)
        assert found(path, registry="registry.example") is None
        assert found(path, registry="registry.example:50000") is None

    def test_new_key_before_the_old(self, write: Write) -> None:
        path = write({"auths": {f"https://{HOST}/v1/": V, HOST: U}})
        assert found(path) == Credentials("u", SECRET)

    @pytest.mark.parametrize(
        "key",
        [
            "docker.io",
            "index.docker.io",
            "registry-1.docker.io",
            "https://index.docker.io/v1/",
            "https://registry-1.docker.io/v2/",
            "docker.io/library",
            "index.docker.io/library/alpine",
        ],
    )
    def test_docker_hub(self, write: Write, key: str) -> None:
        path = write({"auths": {key: U}})
        assert found(path, "library/alpine", "docker.io") == Credentials("u", SECRET)
        assert found(path, "library/alpine", "example.com") is None

    def test_given(self, write: Write) -> None:
        """By hand: for its registry alone, and before any file."""
        given = Credentials("w", "given")
        keyring = Keyring([write({"auths": {HOST: U, "other.example": V}})], given=given, registry=HOST)
        assert asyncio.run(keyring.find(HOST, "a")) == given
        assert asyncio.run(keyring.find("other.example", "a")) == Credentials("v", "other")
        assert [keyring.gives(name) for name in (HOST, "other.example", "")] == [True, False, False]
        assert asyncio.run(Keyring(given=given, registry=HOST).find("other.example", "a")) is None
        assert not Keyring([], registry="").gives("")

    def test_files_in_order(self, write: Write) -> None:
        """The first that has some; the others may be missing."""
        first, second = write({"auths": {HOST: U}}, "first"), write({"auths": {HOST: V, "b": V}}, "second")
        keyring = Keyring(["/nowhere/at/all", "/etc/passwd/none", first, second])
        assert asyncio.run(keyring.find(HOST, "a")) == Credentials("u", SECRET)
        assert asyncio.run(keyring.find("b", "a")) == Credentials("v", "other")
        assert asyncio.run(keyring.find("c", "a")) is None

    def test_read_anew(self, write: Write) -> None:
        """What is changed by another login counts at once."""
        keyring = Keyring([write({"auths": {HOST: U}})])
        assert asyncio.run(keyring.find(HOST, "a")) == Credentials("u", SECRET)
        write({"auths": {HOST: V}})
        assert asyncio.run(keyring.find(HOST, "a")) == Credentials("v", "other")

    @pytest.mark.parametrize("document", ["", " \n", "{}", {"auths": {}}, {"auths": None}, {"HttpHeaders": {"x": "y"}}])
    def test_nothing_there(self, write: Write, document: object) -> None:
        path = write(document)
        assert found(path) is None
        assert not Keyring([path]).owner(HOST, "a")
        assert found("/dev/null") is None


class TestBroken:
    @pytest.mark.parametrize(
        "document",
        [
            f'{{"auths": {{"{HOST}": {{"auth": "{U["auth"]}" }} }} ',
            f"{HOST} = {SECRET}",
            "[" * 100_000,
            [{"auths": {HOST: U}}],
            f'"{SECRET}"',
            {"auths": [U]},
            {"credHelpers": SECRET},
            {"credHelpers": {HOST: [SECRET]}},
            {"credsStore": {"x": SECRET}},
        ],
        ids=lambda value: str(value)[:20],
    )
    def test_file(self, write: Write, document: object) -> None:
        """One line names the file; also when it is only asked whether there are any."""
        path = write(document)
        assert path in refused(path)
        with pytest.raises(BadConfiguration, match=path):
            Keyring([path]).owner(HOST, "a/b")

    def test_not_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "auth.json").write_bytes(b'{"auths": "\xff"}')
        assert "not JSON" in refused(str(tmp_path / "auth.json"))

    def test_cannot_be_read(self, tmp_path: Path) -> None:
        line = refused(str(tmp_path))
        assert str(tmp_path) in line
        assert "--authfile" in line

    @pytest.mark.parametrize(
        "entry",
        [
            {"auth": SECRET},
            {"auth": "b3BlbiBzZXNhbWU="},  # no colon
            {"auth": "OnBhc3N3b3Jk"},  # no user
            {"auth": U["auth"][:-1]},
            {"auth": [SECRET]},
            {"username": 5, "password": SECRET},
            {"identitytoken": [SECRET]},
        ],
    )
    def test_entry(self, write: Write, entry: object) -> None:
        """An error if it is the one that is looked for, and only then."""
        path = write({"auths": {"other.example": V, HOST: entry}})
        line = refused(path)
        assert repr(HOST) in line
        assert path in line
        assert found(path, registry="other.example") == Credentials("v", "other")


class TestHelpers:
    @pytest.mark.parametrize("named", [{"credHelpers": {HOST: "test"}}, {"credsStore": "test"}])
    def test_asked_for_each_time(self, write: Write, helper: CredentialHelper, named: dict[str, Any]) -> None:
        """Before the file's own entries; what it has may change."""
        helper.keep({HOST: ("w", SECRET)})
        keyring = Keyring([write({**named, "auths": {HOST: V}})])
        assert asyncio.run(keyring.find(HOST, "a/b")) == Credentials("w", SECRET)
        helper.keep({HOST: ("w", "renewed")})
        assert asyncio.run(keyring.find(HOST, "a/b")) == Credentials("w", "renewed")
        assert helper.calls == [f"get {HOST}"] * 2

    def test_one_host_before_all(self, write: Write, helper: CredentialHelper, tmp_path: Path) -> None:
        """As with Docker; and an empty name is the file itself."""
        every = CredentialHelper(tmp_path / "bin", "every")
        every.keep({HOST: ("every", "p"), "second.example": ("every", "p"), "third.example": ("every", "p")})
        helper.keep({HOST: ("one", "p")})
        named = {HOST: "test", "third.example": ""}
        path = write({"credHelpers": named, "credsStore": "every", "auths": {"third.example": U}})
        users = [found(path, registry=registry) for registry in (HOST, "second.example", "third.example")]
        assert users == [Credentials("one", "p"), Credentials("every", "p"), Credentials("u", SECRET)]
        assert every.calls == ["get second.example"]

    def test_one_host_alone(self, write: Write, helper: CredentialHelper) -> None:
        """The helper of one is not asked for another."""
        helper.keep({"other.example": ("w", "p")})
        path = write({"credHelpers": {HOST: "test"}})
        assert found(path, registry="other.example") is None
        assert not Keyring([path]).owner("other.example", "a")
        assert helper.calls == []

    def test_it_has_none(self, write: Write, helper: CredentialHelper) -> None:
        """Then the file's own entries, as podman's login writes them beside Docker's settings; then the next file."""
        empty = write({"credsStore": "test", "auths": {HOST: {}}}, "empty")
        assert found(empty) is None
        assert found(write({"credsStore": "test", "auths": {HOST: U}})) == Credentials("u", SECRET)
        keyring = Keyring([empty, write({"auths": {HOST: V}}, "next")])
        assert asyncio.run(keyring.find(HOST, "a")) == Credentials("v", "other")
        assert len(helper.calls) == 3

    @pytest.mark.parametrize("key", ["docker.io", "https://index.docker.io/v1/"])
    def test_docker_hub(self, write: Write, helper: CredentialHelper, key: str) -> None:
        """It is called there as in the file, and otherwise as Docker calls it."""
        helper.keep({key: ("w", "p")})
        assert found(write({"credHelpers": {key: "test"}}), "library/a", "docker.io") == Credentials("w", "p")
        helper.keep({"https://index.docker.io/v1/": ("x", "p")})
        assert found(write({"credsStore": "test"}), "library/a", "docker.io") == Credentials("x", "p")

    def test_of_any_registry(self, write: Write, helper: CredentialHelper) -> None:
        """It is asked when no file has credentials."""
        helper.keep({HOST: ("w", "p"), "other.example": ("x", "p")})
        keyring = Keyring([write({"auths": {HOST: U}})], helpers=[helpers.Helper("test", "registries.conf")])
        assert asyncio.run(keyring.find(HOST, "a")) == Credentials("u", SECRET)
        assert helper.calls == []
        assert asyncio.run(keyring.find("other.example", "a")) == Credentials("x", "p")
        assert asyncio.run(keyring.find("third.example", "a")) is None
        assert keyring.owner("third.example", "a")

    def test_identity_token(self, write: Write, helper: CredentialHelper) -> None:
        helper.keep({HOST: ("<token>", SECRET)})
        assert found(write({"credsStore": "test"})) == Credentials("<token>", identity_token=SECRET)

    def test_nobody(self, write: Write, helper: CredentialHelper) -> None:
        """Some say so by empty words."""
        helper.keep({HOST: ("", "")})
        assert found(write({"credsStore": "test"})) is None

    @pytest.mark.parametrize("named", [{"credHelpers": {HOST: "test"}}, {"credsStore": "test"}])
    def test_owner_asks_nobody(self, write: Write, helper: CredentialHelper, named: dict[str, Any]) -> None:
        assert Keyring([write(named)]).owner(HOST, "a")
        assert helper.calls == []

    @pytest.mark.parametrize(
        "script",
        [
            f"echo '{SECRET}'; exit 1",
            f"echo '{SECRET}'",
            f'echo \'{{"Username": "u", "Secret": ["{SECRET}"]}}\'',
            f'echo \'{{"Username": "u", "Secret": "{SECRET}"\'',
            f"echo '[\"{SECRET}\"]'",
            f"echo '{SECRET}'; kill -9 $$",
            "",
        ],
    )
    def test_failing(self, write: Write, helper: CredentialHelper, script: str) -> None:
        """The error names it and the file, and has nothing of what it printed."""
        helper.write(f"#!/bin/sh\n{script}\n")
        path = write({"credsStore": "test", "auths": {HOST: U}})
        line = refused(path)
        assert "docker-credential-test" in line
        assert HOST in line
        assert path in line

    def test_not_there(self, write: Write) -> None:
        path = write({"credsStore": "no-such-helper"})
        line = refused(path)
        assert "docker-credential-no-such-helper is not installed" in line
        assert path in line

    def test_no_program(self, write: Write, helper: CredentialHelper) -> None:
        helper.write("\x7fELF")
        assert "docker-credential-test" in refused(write({"credsStore": "test"}))

    @pytest.mark.parametrize("name", ["../x", "/bin/sh", "x/../../bin/sh", "x y", "-x", ".", "x\n", "é", "x\0"])
    def test_no_path(self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Nothing but a helper on PATH is run, whatever the file says."""
        for directory in ("docker-credential-x", "docker-credential-.."):
            (tmp_path / directory).mkdir()
        (tmp_path / "x").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (tmp_path / "x").chmod(0o755)
        monkeypatch.chdir(tmp_path)
        assert "no program's name" in refused(write({"credsStore": name}))
        assert not (tmp_path / "ran").exists()

    def test_hanging(self, write: Write, helper: CredentialHelper, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is ended."""
        monkeypatch.setattr(helpers, "_TIMEOUT", 0.3)
        fifo = f"{helper.program}.fifo"
        os.mkfifo(fifo)
        helper.write(f"#!/bin/sh\nexec cat {fifo}\n")
        assert "did not answer within 0.3 s" in refused(write({"credsStore": "test"}))
        with pytest.raises(OSError, match="No such device"):  # nobody reads it any more
            os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)

    def test_that_does_not_read(self, write: Write, helper: CredentialHelper) -> None:
        helper.write('#!/bin/sh\nexec <&-\necho \'{"Username": "u", "Secret": "p"}\'\n')
        assert found(write({"credsStore": "test"})) == Credentials("u", "p")


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        (
            {"HOME": "/h"},
            [
                f"/run/containers/{os.getuid()}/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
            ],
        ),
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"},
            ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"],
        ),
        (
            {"HOME": "/h", "XDG_RUNTIME_DIR": "", "XDG_CONFIG_HOME": "", "DOCKER_CONFIG": "", "REGISTRY_AUTH_FILE": ""},
            [
                f"/run/containers/{os.getuid()}/auth.json",
                "/h/.config/containers/auth.json",
                "/h/.docker/config.json",
            ],
        ),
        ({"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "REGISTRY_AUTH_FILE": "/f"}, ["/f"]),
    ],
)
def test_where_they_are_looked_for(environment: dict[str, str], files: list[str]) -> None:
    assert auth_files(environment) == files


def test_home_of_the_user() -> None:
    """Where the environment does not tell it, the system's list of users does."""
    home = os.path.expanduser(f"~{subprocess.check_output(['id', '-un'], text=True).strip()}")
    assert auth_files({})[-1] == f"{home}/.docker/config.json"


@pytest.mark.parametrize("program", ["skopeo", "podman"])
def test_logins_of_others(tmp_path: Path, program: str) -> None:
    """What they write is found."""
    require("docker-registry")
    with Registry(tmp_path / "registry", {"u": "p:q r"}) as registry:
        path = tmp_path / "auth.json"
        login = ["login", "--authfile", str(path), "-u", "u", "--password-stdin", "--tls-verify=false", registry.host]
        done = subprocess.run([require(program), *login], input="p:q r", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert found(str(path), registry=registry.host) == Credentials("u", "p:q r")


def test_light() -> None:
    """An unchanged tag takes 45 ms: it looks for credentials and tokens, too."""
    program = (
        "import sys\n"
        "from pullpipe.registry.credentials import Keyring\n"
        "from pullpipe.registry.tokens import TokenCache\n"
        "assert not Keyring(['/nowhere']).owner('a', 'b')\n"
        "assert not TokenCache('/nowhere').get('a', 'b', owner='u')\n"
        "print(*sorted({'aiohttp', 'asyncio', 'ssl', 'subprocess', 'http', 'tempfile'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
