"""Debian's `docker-registry`, the real peer that pulls and pushes are tested against.

Images get into it through skopeo, so neither end of a test's transfer is pullpipe's own code.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import tempfile
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

from tests.support.tokens import ISSUER, SERVICE, TokenServer

START_SECONDS = 20.0
STOP_SECONDS = 10.0


class Authority:
    """A certificate authority of its own, made by openssl in `directory`; `path` is its certificate (PEM)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "ca.crt"
        directory.mkdir(parents=True, exist_ok=True)
        self._make("ca", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign")

    def issue(self, name: str = "server", *addresses: str) -> tuple[Path, Path]:
        """A certificate for these (`DNS:localhost`, `IP:127.0.0.1`; without any, for both), and its key."""
        names = ",".join(addresses or ("DNS:localhost", "IP:127.0.0.1"))
        signed = ("-CA", str(self.path), "-CAkey", str(self.directory / "ca.key"))
        # Without, openssl would make an authority of it.
        end = ("-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={names}")
        self._make(name, f"/CN={name}", *signed, *end)
        return self.directory / f"{name}.crt", self.directory / f"{name}.key"

    def server_context(self, clients: ssl.VerifyMode = ssl.CERT_NONE) -> ssl.SSLContext:
        """For a server on loopback that proves itself by this authority; `clients` is whether they have to, too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.issue())
        context.load_verify_locations(self.path)
        context.verify_mode = clients
        return context

    def _make(self, name: str, subject: str, *options: str) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        command += ["-days", "2", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.crt", *options]
        done = subprocess.run(command, cwd=self.directory, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"openssl req: {done.stderr}")


class Registry:
    """One `docker-registry serve` on a free loopback port, alive within its `with` block.

    `directory` receives the configuration, the log and the storage. With `users` (name to password)
    every request needs basic authentication; with `tokens`, a token of that server. With `upstream`, a URL, it is a
    pull-through cache of that registry, as the URL's user if it has one, and takes no pushes. With an `authority` it
    speaks TLS. A `config` (YAML) stands in place of all that; it is to listen on 127.0.0.1:0.
    """

    def __init__(
        self,
        directory: Path,
        users: Mapping[str, str] | None = None,
        *,
        tokens: TokenServer | None = None,
        upstream: str = "",
        authority: Authority | None = None,
        config: str = "",
    ) -> None:
        self.directory = directory
        self.config = config
        self.upstream = upstream
        self.users = dict(users or {})
        self.tokens = tokens
        self.authority = authority
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """`127.0.0.1:PORT`, as it begins a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, or https."""
        return f"{'https' if self.authority else 'http'}://{self.host}"

    @property
    def log(self) -> str:
        """What the registry has logged so far, one line a request among the rest."""
        return (self.directory / "registry.log").read_text(errors="backslashreplace")

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        config.write_text(self.config or json.dumps(self._config()))  # JSON is YAML
        with (self.directory / "registry.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["docker-registry", "serve", str(config)], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def kill(self) -> None:
        """Ends it by SIGKILL, in the middle of whatever it does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def push(
        self,
        layout: Path,
        tag: str,
        *,
        to: str,
        compression: Literal["gzip", "zstd"] | None = None,
        format: Literal["oci", "v2s2"] = "oci",  # noqa: A002 - named as skopeo names it
    ) -> str:
        """Push image `tag` of the OCI layout `layout` to `to` (`name:tag`) and return its full reference.

        Without a compression and as OCI, every byte and digest stays as it is in the layout, indexes
        included. With a compression all layers are inflated and compressed anew. Docker's schema 2 knows no
        zstd, and skopeo compresses by gzip what it finds uncompressed when it converts.
        """
        if (compression, format) == ("zstd", "v2s2"):
            raise ValueError("a schema 2 manifest cannot name a zstd layer")
        source = f"oci:{layout}:{tag}"
        destination = [f"docker://{self.host}/{to}", "--dest-tls-verify=false"]
        for user, password in list((self.tokens.users if self.tokens else self.users).items())[:1]:
            destination.append(f"--dest-creds={user}:{password}")
        with tempfile.TemporaryDirectory(dir=self.directory) as scratch:
            if compression is None and format == "oci":
                _skopeo_copy(scratch, source, *destination, "--preserve-digests")
            elif compression is None:
                _skopeo_copy(scratch, source, *destination, f"--format={format}")
            else:
                # skopeo 1.9.3 compresses only what is not compressed yet.
                plain = f"dir:{scratch}/plain"
                _skopeo_copy(scratch, source, plain, "--dest-decompress")
                compress = f"--dest-compress-format={compression}"
                _skopeo_copy(scratch, plain, *destination, f"--format={format}", compress)
        return f"{self.host}/{to}"

    def _config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info"},  # the level that tells which port the kernel gave
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "storage")},
                "delete": {"enabled": True},
            },
            "http": {"addr": "127.0.0.1:0"},
        }
        if self.upstream:
            url = urlsplit(self.upstream)
            address = url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()
            config["proxy"] = {"remoteurl": address, "username": url.username or "", "password": url.password or ""}
        if self.users:
            htpasswd = self.directory / "htpasswd"
            htpasswd.write_text("".join(f"{user}:{_bcrypt(word)}\n" for user, word in self.users.items()))
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(htpasswd)}}
        if self.tokens:
            bundle = str(self.tokens.certificate)
            token = {"realm": self.tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
            config["auth"] = {"token": token}
        if self.authority:
            certificate, key = self.authority.issue("registry")
            config["http"] = {"addr": "127.0.0.1:0", "tls": {"certificate": str(certificate), "key": str(key)}}
        return config

    def _wait_until_it_answers(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"docker-registry ended with {self._process.returncode}:\n{self.log}")
            if listening := re.search(r"listening on 127\.0\.0\.1:(\d+)", self.log):
                self.port = int(listening[1])
                if self._answers():
                    return
            time.sleep(0.02)
        raise RuntimeError(f"docker-registry did not answer within {START_SECONDS} s:\n{self.log}")

    def _answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=2)
        if self.authority:
            context = ssl.create_default_context(cafile=str(self.authority.path))
            connection = HTTPSConnection("127.0.0.1", self.port, timeout=2, context=context)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _skopeo_copy(scratch: str, *arguments: str) -> None:
    # skopeo remembers, for the whole machine, which blobs hold the same content, and puts a gzip blob it
    # knows where a zstd one was asked for. As root only this variable moves that memory elsewhere.
    environment = {**os.environ, "_CONTAINERS_ROOTLESS_UID": "1", "XDG_DATA_HOME": scratch}
    done = subprocess.run(
        ["skopeo", "copy", "--quiet", "--insecure-policy", "--all", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"skopeo copy {' '.join(arguments)}: {done.stderr}")


def _bcrypt(password: str) -> str:
    import bcrypt  # only the registries with users need it

    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(rounds=4)).decode()
