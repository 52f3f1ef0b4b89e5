"""`pullpipe login` heeds what the machine's settings say of a registry, as a pull does."""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.cli.rig import digest_of, fails, file_layer, layout_of, ok
from tests.conftest import Cli, require
from tests.support.access import Access
from tests.support.faulty_proxy import FaultProxy
from tests.support.helpers import CredentialHelper
from tests.support.registry import Authority, Registry
from tests.support.served import served

USER, PASSWORD = "u", "open sesame"

Login = Callable[[str], CompletedProcess[str]]


@pytest.fixture
def login(cli: Cli, tmp_path: Path) -> Login:
    """With a home of its own."""

    def run(registry: str) -> CompletedProcess[str]:
        return cli("login", "-u", USER, "--password-stdin", registry, stdin=PASSWORD, env={"HOME": str(tmp_path)})

    return run


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require("openssl")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def private(registry: Registry, authority: Authority) -> Iterator[FaultProxy]:
    """A registry with TLS, which wants a client's certificate and a password."""
    context = authority.server_context(ssl.CERT_REQUIRED)
    with FaultProxy(registry, access=Access((USER, PASSWORD), scheme="basic"), tls=context) as proxy:
        yield proxy


def settings(text: str) -> None:
    """In pullpipe's own file."""
    file = Path(os.environ["XDG_CONFIG_HOME"], "pullpipe", "registries.conf")
    file.parent.mkdir()
    file.write_text(text)


def kept() -> list[str]:
    """The registries that there are logins for."""
    file = Path(os.environ["XDG_CONFIG_HOME"], "containers", "auth.json")
    return list(json.loads(file.read_text())["auths"]) if file.exists() else []


def test_certificates_of_podman(login: Login, private: FaultProxy, authority: Authority, tmp_path: Path) -> None:
    done = login(private.host)
    assert (done.returncode, kept()) == (1, [])
    assert f"certificate of {private.host} is not trusted" in done.stderr
    directory = tmp_path / ".config" / "containers" / "certs.d" / private.host
    directory.mkdir(parents=True)
    certificate, key = authority.issue("client")
    for name, path in (("ca.crt", authority.path), ("client.cert", certificate), ("client.key", key)):
        (directory / name).symlink_to(path)
    done = login(private.host)
    assert (done.returncode, done.stdout) == (0, f"logged in to {private.host} as {USER}\n"), done.stderr
    assert kept() == [private.host]


def test_a_registry_that_is_elsewhere(login: Login, private: FaultProxy, authority: Authority) -> None:
    """The login is for the place that pulls will ask; it gets the headers that it is to get."""
    certificate, key = authority.issue("client")
    settings(f"""
        [[registry]]
        prefix = "registry.example"
        location = "{private.host}/archive"
        ca = "{authority.path}"
        client-cert = "{certificate}"
        client-key = "{key}"
        headers = {{ X-Team = "blue" }}
        [[registry]]
        prefix = "registry.example/team"
        blocked = true
    """)
    done = login("registry.example")
    assert (done.returncode, done.stdout) == (0, f"logged in to {private.host} as {USER}\n"), done.stderr
    assert kept() == [private.host]
    assert {exchange.headers["x-team"] for exchange in private.exchanges} == {"blue"}


def test_logout_of_a_registry_that_is_elsewhere(login: Login, cli: Cli, registry: Registry) -> None:
    """By the name that login was given; what there is for that name itself goes, too."""
    settings(f'[[registry]]\nprefix = "registry.example"\nlocation = "{registry.host}"\n')
    assert login("registry.example").returncode == 0
    assert kept() == [registry.host]
    assert ok(cli, "logout", "registry.example") == f"logged out of {registry.host}"
    assert kept() == []
    assert "not logged in to registry.example" in fails(cli, "logout", "registry.example")


def test_logout_of_a_blocked_one(cli: Cli) -> None:
    settings('[[registry]]\nlocation = "registry.example"\nblocked = true\n')
    file = Path(os.environ["XDG_CONFIG_HOME"], "containers", "auth.json")
    file.parent.mkdir()
    file.write_text('{"auths": {"registry.example": {"auth": "eA=="}}}')
    assert ok(cli, "logout", "registry.example") == "logged out of registry.example"
    assert kept() == []


@pytest.mark.needs_root
def test_creds_for_a_registry_that_is_elsewhere(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """Given for an image of the one, they are for the place that answers."""
    layout = layout_of(tmp_path / "layout", file_layer("f"))
    registry.push(layout, "image", to="moved/a:1")
    with FaultProxy(registry, access=Access((USER, PASSWORD), scheme="basic")) as proxy:
        settings(f'[[registry]]\nprefix = "registry.example"\nlocation = "{proxy.host}/moved"\n')
        pulled = ok(cli, "pull", "-q", "--creds", f"{USER}:{PASSWORD}", "registry.example/a:1")
    assert pulled == digest_of(layout)


@pytest.mark.needs_root
def test_podmans_credential_helper(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    """It gives credentials to a pull, unless there is --authfile, and forgets them at logout."""
    layout = layout_of(tmp_path / "layout", file_layer("f"))
    registry.push(layout, "image", to="helped:1")
    home = tmp_path / "home"
    (home / ".config" / "containers").mkdir(parents=True)
    (home / ".config" / "containers" / "registries.conf").write_text('credential-helpers = ["test"]')
    helper = CredentialHelper(tmp_path / "bin", "test")
    env = {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    (tmp_path / "none.json").write_text("{}")
    with FaultProxy(registry, access=Access((USER, PASSWORD), scheme="basic")) as proxy:
        helper.keep({proxy.host: (USER, PASSWORD)})
        pull = ("pull", "-q", "--retries", "0", f"{proxy.host}/helped:1")
        assert cli(*pull, "--authfile", tmp_path / "none.json", env=env).returncode == 1
        done = cli(*pull, env=env)
        assert (done.returncode, done.stdout) == (0, f"{digest_of(layout)}\n"), done.stderr
        done = cli("logout", proxy.host, env=env)
        assert (done.returncode, done.stdout) == (0, f"logged out of {proxy.host}\n"), done.stderr
    assert helper.kept == {}


def test_behind_a_socket(login: Login, tmp_path: Path) -> None:
    import bcrypt

    users, socket = tmp_path / "users", tmp_path / "socket"
    users.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    settings(f'[[registry]]\nlocation = "registry.example"\nsocket = "{socket}"\n')
    with served(tmp_path / "served", "--unix", socket, "--users", users):
        done = login("registry.example")
    assert (done.returncode, done.stdout) == (0, f"logged in to registry.example as {USER}\n"), done.stderr
    assert kept() == ["registry.example"]


def test_blocked(login: Login) -> None:
    settings('[[registry]]\nprefix = "*.example"\nblocked = true\n')
    done = login("registry.example")
    assert (done.returncode, done.stdout, kept()) == (1, "", [])
    assert done.stderr.startswith("pullpipe: error: registry.example is blocked: /")
