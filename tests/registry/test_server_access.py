"""Users: who gets in, and at what price."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from pullpipe.errors import BadArgument
from pullpipe.registry.server.access import Users
from tests.support.served import Client, Running, running

PASSWORDS = {"ada": "lovelace", "grace": "hopper: ü\N{SNOWMAN}", "long": "x" * 100}


def bcrypt_hash(password: str, prefix: bytes = b"2b") -> str:
    return bcrypt.hashpw(password.encode()[:72], bcrypt.gensalt(4, prefix)).decode()


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As Apache's htpasswd writes it: its own prefix, comments, empty lines."""
    path = tmp_path / "users"
    lines = [f"{user}:{bcrypt_hash(password).replace('$2b$', '$2y$')}" for user, password in PASSWORDS.items()]
    path.write_text("\n# the team\n" + "\n\n".join(lines) + "\n")
    return path


@pytest.fixture
def registry(file: Path, tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": []}))
    with running(tmp_path, users=Users.read(str(file))) as registry:
        yield registry


@pytest.mark.parametrize("user", PASSWORDS)
def test_a_user_gets_in(registry: Running, user: str) -> None:
    """Again and again."""
    known = Client(registry.connect, {"Authorization": basic(user, PASSWORDS[user])})
    for _ in range(2):
        assert known.ask("/v2/").status == 200
        assert known.ask("/v2/a/tags/list").refusal == (404, "NAME_UNKNOWN")


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        basic("ada", "wrong"),
        basic("ada", ""),
        basic("ada", "lovelace "),
        basic("ada", "love\0lace"),
        basic("grace", "lovelace"),
        basic("nobody", "lovelace"),
        basic("", ""),
        "Basic",
        "Basic !!!",
        "Basic /w==",
        "Bearer " + base64.b64encode(b"ada:lovelace").decode(),
    ],
)
@pytest.mark.parametrize("path", ["/v2/", "/v2/a/tags/list", "/v2/_catalog", "/nowhere"])
def test_nobody_else_gets_anything(registry: Running, authorization: str | None, path: str) -> None:
    """Whether something is there or not; also when the right password has just been given."""
    registry.ask("/v2/", Authorization=basic("ada", "lovelace"))
    answer = registry.ask(path, **({} if authorization is None else {"Authorization": authorization}))
    assert answer.refusal == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="pullpipe"'
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


def test_a_password_is_checked_once(registry: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """That takes long, on purpose; a wrong one is checked each time."""
    checked: list[bytes] = []
    check = bcrypt.checkpw

    def counting(password: bytes, hashed: bytes) -> bool:
        checked.append(password)
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counting)
    for password in ("lovelace", "wrong", "lovelace", "wrong", "lovelace"):
        registry.ask("/v2/", Authorization=basic("ada", password))
    assert checked == [b"lovelace", b"wrong", b"wrong"]


def test_a_stranger_costs_as_much_as_a_user(registry: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the time that it takes would tell who is one."""
    checked: list[bytes] = []

    def agreeing(password: bytes, hashed: bytes) -> bool:
        checked.append(password)
        return True

    monkeypatch.setattr(bcrypt, "checkpw", agreeing)
    assert registry.ask("/v2/", Authorization=basic("nobody", "x")).status == 401
    assert checked == [b"x"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ada", "line 2"),
        ("ada:lovelace", "line 2"),
        ("ada:$apr1$x$y", "line 2"),
        pytest.param(":" + bcrypt_hash("x"), "line 2", id="no name"),
        ("", "names no user"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, line: str, reason: str) -> None:
    """The error says where and what to do, and nothing of what stands there."""
    path = tmp_path / "users"
    path.write_text(f"# users\n{line}\n")
    with pytest.raises(BadArgument, match=reason) as error:
        Users.read(str(path))
    assert "htpasswd -nB" in str(error.value)
    assert "lovelace" not in str(error.value)


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcrypt", None)
    with pytest.raises(BadArgument, match="pip install bcrypt"):
        Users.read(str(file))
