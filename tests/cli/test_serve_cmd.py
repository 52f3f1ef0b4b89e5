"""`pullpipe serve`: where it listens, how it ends, and what it says when it cannot begin."""

from __future__ import annotations

import base64
import os
import signal
import socket
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Protocol

import bcrypt
import pytest

from pullpipe.cli import main
from store import Digest, Store
from tests.cli.rig import ok
from tests.conftest import Cli, require
from tests.support.served import served

LARGE = os.urandom(8 << 20)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    return make_certificate(tmp_path, "server")


def make_certificate(directory: Path, name: str) -> tuple[Path, Path]:
    certificate, key = directory / f"{name}.crt", directory / f"{name}.key"
    command = [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2"]
    command += ["-subj", "/CN=pullpipe", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    return certificate, key


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_with_0(tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """On Ctrl-C as by SIGTERM; it has said its address, and nothing else."""
    with served(tmp_path / "root") as registry:
        host, _, port = registry.address.rpartition(":")
        assert (host, registry.ask("/v2/").status) == ("127.0.0.1", 200)
        assert registry.end(number) == 0
        assert registry.process.stdout is not None
        assert registry.process.stdout.read() == ""
    assert capfd.readouterr().err == ""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((host, int(port)))


def test_requests_in_flight_are_finished(tmp_path: Path) -> None:
    with served(tmp_path / "root", "--writable") as registry:
        digest = registry.push_blob("a", LARGE)
        connection = registry.connect()
        connection.request("GET", f"/v2/a/blobs/{digest}")
        response = connection.getresponse()  # so far only the headers, and what the sockets hold, have been sent
        registry.process.send_signal(signal.SIGTERM)
        assert response.read() == LARGE
        connection.close()
        assert registry.process.wait(20) == 0


def test_a_client_that_never_reads_does_not_keep_it(tmp_path: Path) -> None:
    with served(tmp_path / "root", "--writable") as registry:
        digest = registry.push_blob("a", LARGE)
        connection = registry.connect()
        connection.request("GET", f"/v2/a/blobs/{digest}")
        connection.getresponse()
        assert registry.end() == 0
        connection.close()


def test_the_address_can_be_ipv6(tmp_path: Path) -> None:
    with served(tmp_path / "root", "--listen", "[::1]:0") as registry:
        assert registry.address.startswith("[::1]:")
        assert registry.ask("/v2/").status == 200


def test_a_unix_socket(tmp_path: Path) -> None:
    """Its owner's alone, writable without users, and gone afterwards."""
    path = tmp_path / "socket"
    with served(tmp_path / "root", "--unix", path, "--writable") as registry:
        assert registry.address == str(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        digest = registry.push_image("a", "1", LARGE)
        assert digest.matches(registry.ask("/v2/a/manifests/1").body)
        assert registry.ask(f"/v2/a/blobs/{Digest.of(LARGE)}").body == LARGE
        assert registry.end() == 0
    assert not path.exists()


def test_the_socket_of_one_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with served(tmp_path / "root", "--unix", path) as killed:
        killed.end(signal.SIGKILL)
    assert path.is_socket()
    with served(tmp_path / "root", "--unix", path) as registry:
        assert registry.ask("/v2/").status == 200


def test_tls(tmp_path: Path, certificate: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
    """Large blobs, too; and who does not speak it, or breaks off, is no reason for many words."""
    cert, key = certificate
    options = ("--tls-cert", cert, "--tls-key", key, "--writable")
    with served(tmp_path / "root", *options, tls=ssl.create_default_context(cafile=str(cert))) as registry:
        digest = registry.push_blob("a", LARGE)
        assert registry.ask(f"/v2/a/blobs/{digest}").body == LARGE
        part = registry.ask(f"/v2/a/blobs/{digest}", Range="bytes=5-9")
        assert (part.status, part.body) == (206, LARGE[5:10])
        host, _, port = registry.address.rpartition(":")
        for words in (b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01", b""):
            with socket.create_connection((host, int(port)), timeout=20) as plain:
                plain.sendall(words)
                plain.shutdown(socket.SHUT_WR)
                assert b"HTTP" not in plain.recv(1 << 16)
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(
                socket.create_connection((host, int(port))), server_hostname="127.0.0.1"
            )
        assert registry.end() == 0
    assert capfd.readouterr().err == ""


def test_users(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    users = tmp_path / "users"
    users.write_text(f"ada:{bcrypt.hashpw(b'lovelace', bcrypt.gensalt(4)).decode()}\n")
    with served(tmp_path / "root", "--writable", "--users", users) as registry:
        assert registry.ask("/v2/").refusal == (401, "UNAUTHORIZED")
        assert registry.ask("/v2/a/blobs/uploads/", "POST").refusal == (401, "UNAUTHORIZED")
        registry.headers["Authorization"] = "Basic " + base64.b64encode(b"ada:lovelace").decode()
        registry.push_image("a", "1", b"x")
        assert registry.end() == 0
    assert capfd.readouterr().err == ""


def test_each_request_is_told_to_who_wants_to_know(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with served(tmp_path / "root", "--log-level", "debug") as registry:
        registry.ask("/v2/_catalog?n=1")
        registry.ask("/v2/%1b[31mred%0a")
        assert registry.end() == 0
    assert capfd.readouterr().err == "pullpipe: GET /v2/_catalog\npullpipe: GET /v2/?[31mred?\n"


def test_passwords_in_the_open_are_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    users = tmp_path / "users"
    users.write_text(f"ada:{bcrypt.hashpw(b'lovelace', bcrypt.gensalt(4)).decode()}\n")
    with served(tmp_path / "root", "--writable", "--users", users, "--listen", "0.0.0.0:0") as registry:
        assert registry.address.startswith("0.0.0.0:")
        assert registry.end() == 0
    [line] = capfd.readouterr().err.splitlines()
    assert "passwords travel unencrypted" in line


def test_several_on_one_store(tmp_path: Path) -> None:
    """What one takes, all have."""
    with served(tmp_path / "root", "--writable") as one, served(tmp_path / "root", "--writable") as other:
        digest = one.push_image("a", "1", LARGE)
        assert digest.matches(other.ask("/v2/a/manifests/1").body)
        other.push_image("a", "2", LARGE)
        assert one.ask("/v2/a/tags/list").json["tags"] == ["1", "2"]


class Refused(Protocol):
    """The command with these arguments, in this process, which is faster; the line that it says instead of serving."""

    def __call__(self, *arguments: str | Path) -> str: ...


@pytest.fixture
def refused(store_root: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    def run(*arguments: str | Path) -> str:
        assert main(["--root", str(store_root), *map(str, arguments)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        [line] = err.splitlines()
        assert line.startswith("pullpipe: error: ")
        return line

    return run


class TestRefused:
    """One line, with the remedy."""

    @pytest.mark.parametrize("place", ["0.0.0.0:0", "[::]:0", "example.org:0"])
    def test_everybody_could_write(self, refused: Refused, place: str) -> None:
        line = refused("serve", "--writable", "--listen", place)
        assert place in line
        assert "--users FILE" in line

    @pytest.mark.parametrize("place", ["5000", ":5000", "x:", "x:y", "x:65536", "::1:5000", ""])
    def test_no_address(self, refused: Refused, place: str) -> None:
        assert "HOST:PORT" in refused("serve", "--listen", place)

    def test_an_address_that_is_in_use(self, refused: Refused) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            place = f"127.0.0.1:{taken.getsockname()[1]}"
            line = refused("serve", "--listen", place)
        assert line == f"pullpipe: error: cannot listen on {place}: address already in use; choose another address"

    @pytest.mark.parametrize("host", ["203.0.113.1", "no..host"])
    def test_an_address_that_is_not_ours(self, refused: Refused, host: str) -> None:
        assert f"cannot listen on {host}:0" in refused("serve", "--listen", f"{host}:0")

    def test_a_socket_that_is_in_use(self, refused: Refused, tmp_path: Path) -> None:
        with served(tmp_path / "other", "--unix", tmp_path / "socket") as registry:
            assert "somebody listens on" in refused("serve", "--unix", tmp_path / "socket")
            assert registry.ask("/v2/").status == 200

    def test_a_path_that_is_no_socket(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert "no socket" in refused("serve", "--unix", tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"
        assert "no such file" in refused("serve", "--unix", tmp_path / "nowhere" / "socket")
        assert "too long" in refused("serve", "--unix", tmp_path / ("x" * 200))

    def test_no_certificate(self, refused: Refused, tmp_path: Path, certificate: tuple[Path, Path]) -> None:
        cert, key = certificate
        (tmp_path / "text").write_text("no certificate")
        _, other_key = make_certificate(tmp_path, "other")
        encrypted = tmp_path / "encrypted"
        command = [
            require("openssl"),
            "rsa",
            "-aes128",
            "-passout",
            "pass:secret",
            "-in",
            str(key),
            "-out",
            str(encrypted),
        ]
        subprocess.run(command, check=True, capture_output=True)

        def pair(cert: Path, key: Path) -> str:
            return refused("serve", "--tls-cert", cert, "--tls-key", key)

        assert f"cannot read {tmp_path}/nowhere: no such file" in pair(tmp_path / "nowhere", key)
        assert f"cannot read {tmp_path}/nowhere: no such file" in pair(cert, tmp_path / "nowhere")
        assert "is not that of the certificate" in pair(cert, other_key)
        for files in ((tmp_path / "text", key), (cert, tmp_path / "text"), (key, cert), (cert, encrypted)):
            assert "PEM" in pair(*files)
        assert "go together" in refused("serve", "--tls-cert", cert)

    def test_no_users(self, refused: Refused, tmp_path: Path) -> None:
        (tmp_path / "users").write_text("ada:lovelace\n")
        line = refused("serve", "--users", tmp_path / "users")
        assert "line 1" in line
        assert "lovelace" not in line
        assert f"{tmp_path}/nowhere" in refused("serve", "--users", tmp_path / "nowhere")

    def test_no_store(self, refused: Refused, store_root: Path) -> None:
        store_root.mkdir()
        (store_root / "something").touch()
        assert "not a pullpipe store" in refused("serve", "--listen", "127.0.0.1:0")

    @pytest.mark.needs_root
    def test_somebody_elses_store(self, refused: Refused, store_root: Path) -> None:
        Store(str(store_root))
        os.chown(store_root, 65534, 65534)
        assert "belongs to user 65534" in refused("serve", "--listen", "127.0.0.1:0")

    def test_one_place_only(self, cli: Cli) -> None:
        done = cli("serve", "--unix", "x", "--listen", "127.0.0.1:0")
        assert done.returncode == 2
        assert "not allowed with" in done.stderr


@pytest.mark.needs_root
def test_it_needs_no_rights(tmp_path: Path) -> None:
    """Not even to take pushes."""
    nothing = (require("setpriv"), "--securebits=+noroot", "--bounding-set=-all", "--inh-caps=-all", "--")
    with served(tmp_path / "root", "--writable", prefix=nothing) as registry:
        assert "CapEff:\t0000000000000000" in Path(f"/proc/{registry.process.pid}/status").read_text()
        digest = registry.push_image("a", "1", LARGE)
        assert digest.matches(registry.ask("/v2/a/manifests/1").body)
        assert registry.end() == 0


@pytest.mark.needs_root
def test_a_sweep_beside_it(cli: Cli, image: str, store_root: Path) -> None:
    """`rmi` in another process takes nothing from a push that is under way."""
    with served(store_root, "--writable") as registry:
        document = registry.manifest("a", LARGE)
        ok(cli, "rmi", image)
        digest, answer = registry.push_manifest("a", "1", document)
        assert answer.status == 201
        assert digest.matches(registry.ask("/v2/a/manifests/1").body)
        assert registry.end() == 0
