"""`pullpipe serve` and the programs that people use with registries: every one sees the same digests."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import bcrypt
import pytest

from store import Digest, Store
from tests.cli.rig import ok
from tests.conftest import Cli, require
from tests.support.images import File, Image, Layer, write_layout
from tests.support.registry import Registry
from tests.support.served import Served, served

pytestmark = pytest.mark.needs_root

LAYERS = [Layer([File("lower", b"lower" * 1000)]), Layer([File("upper", os.urandom(100_000))], "zstd")]
OTHER = Image([Layer([File("foreign", b"x")])], platform="linux/s390x")
MULTI = [Image(LAYERS), OTHER]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`single`, and `multi`: an index of two platforms."""
    directory = tmp_path_factory.mktemp("served") / "layout"
    write_layout(directory, {"single": Image(LAYERS, {"Cmd": ["/x"]}), "multi": MULTI})
    return directory


def digest_in(layout: Path, tag: str) -> str:
    entries = json.loads((layout / "index.json").read_bytes())["manifests"]
    return next(str(one["digest"]) for one in entries if tag in one["annotations"].values())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("registry") / "root", "--writable") as running:
        yield running
        assert running.end() == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the peers remember nothing of other registries' blobs, nor any login."""
    top = tmp_path_factory.mktemp("home")
    return {**os.environ, "_CONTAINERS_ROOTLESS_UID": "1", "XDG_DATA_HOME": str(top), "XDG_RUNTIME_DIR": str(top)}


def records(root: Path) -> list[tuple[str, str]]:
    """(manifest, what its tag named) of the images in a store."""
    return [(str(record.manifest), str(record.resolved)) for record in Store(str(root)).images]


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestSkopeo:
    @pytest.fixture(autouse=True)
    def skopeo(self) -> None:
        require("skopeo")

    def push(self, registry: Served, layout: Path, tag: str, name: str, env: dict[str, str]) -> str:
        """With all platforms, and no digest changed."""
        command = ("skopeo", "copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false")
        run(*command, f"oci:{layout}:{tag}", f"docker://{registry.address}/{name}", env=env)
        return digest_in(layout, tag)

    @pytest.mark.parametrize("tag", ["single", "multi"])
    def test_push_and_pull(
        self, registry: Served, layout: Path, home: dict[str, str], tmp_path: Path, tag: str
    ) -> None:
        digest = self.push(registry, layout, tag, f"skopeo/{tag}:1", home)
        for reference in (f"skopeo/{tag}:1", f"skopeo/{tag}@{digest}"):
            source = f"docker://{registry.address}/{reference}"
            raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", source)
            assert Digest.parse(digest).matches(raw.encode())
            copy = tmp_path / reference.partition("/")[2].replace(":", "-")
            run("skopeo", "copy", "-q", "--all", "--src-tls-verify=false", source, f"oci:{copy}:it", env=home)
            assert digest_in(copy, "it") == digest

    def test_tags_and_deletion(self, registry: Served, layout: Path, home: dict[str, str]) -> None:
        for number in range(3):
            self.push(registry, layout, "single", f"skopeo/tags:{number}", home)
        listing = run("skopeo", "list-tags", "--tls-verify=false", f"docker://{registry.address}/skopeo/tags")
        assert json.loads(listing)["Tags"] == ["0", "1", "2"]
        run("skopeo", "delete", "--tls-verify=false", f"docker://{registry.address}/skopeo/tags:1")
        assert registry.ask("/v2/skopeo/tags/tags/list").refusal == (404, "NAME_UNKNOWN")  # it deletes the manifest

    def test_sync(self, registry: Served, layout: Path, home: dict[str, str], tmp_path: Path) -> None:
        """A whole repository; and a directory into the registry."""
        for tag in ("single", "multi"):
            self.push(registry, layout, tag, f"skopeo/sync:{tag}", home)
        command = ("skopeo", "sync", "--all", "--src-tls-verify=false", "--dest-tls-verify=false")
        place = f"{registry.address}/skopeo/sync"
        run(*command, "--src", "docker", "--dest", "dir", place, tmp_path, env=home)
        run(*command, "--src", "dir", "--dest", "docker", tmp_path, f"{registry.address}/copied", env=home)
        for tag in ("single", "multi"):
            answer = registry.ask(f"/v2/copied/sync/manifests/{tag}", "HEAD")
            assert answer.headers["Docker-Content-Digest"] == digest_in(layout, tag)

    def test_one_repository_to_another(self, registry: Served, layout: Path, home: dict[str, str]) -> None:
        """The blobs are mounted, or found: none travels."""
        self.push(registry, layout, "single", "skopeo/from:1", home)
        place = f"docker://{registry.address}/skopeo"
        options = ("--src-tls-verify=false", "--dest-tls-verify=false")
        run("skopeo", "copy", "-q", *options, f"{place}/from:1", f"{place}/to:1", env=home)
        answer = registry.ask("/v2/skopeo/to/manifests/1", "HEAD")
        assert answer.headers["Docker-Content-Digest"] == digest_in(layout, "single")


def test_podman_pushes_and_all_pull_the_same(
    registry: Served, layout: Path, podman: Sequence[str], home: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    """By tag and by digest."""
    name = f"{registry.address}/podman/x"
    identifier = run(*podman, "pull", "--quiet", f"oci:{layout}:single")
    digest_file = tmp_path / "digest"
    run(*podman, "push", "--tls-verify=false", "--digestfile", digest_file, identifier, f"{name}:1", env=home)
    digest = digest_file.read_text()
    assert Digest.parse(digest).matches(registry.ask("/v2/podman/x/manifests/1").body)
    run(*podman, "rmi", "--force", identifier)
    for reference in (f"{name}:1", f"{name}@{digest}"):
        assert run(*podman, "pull", "--quiet", "--tls-verify=false", reference, env=home) == identifier
        run(*podman, "rmi", "--force", identifier)
        assert ok(cli, "pull", "--quiet", reference) == digest
        described = json.loads(run("skopeo", "inspect", "--tls-verify=false", f"docker://{reference}", env=home))
        assert described["Digest"] == digest


def test_buildah_commits_to_it_and_builds_from_it(
    registry: Served, home: dict[str, str], cli: Cli, tmp_path: Path
) -> None:
    top = tmp_path / "storage"
    buildah = [require("buildah"), "--root", str(top), "--runroot", str(tmp_path / "run"), "--storage-driver", "vfs"]
    (tmp_path / "hello").write_text("hello")
    try:
        first = run(*buildah, "from", "scratch", env=home)
        run(*buildah, "copy", first, tmp_path / "hello", "/hello", env=home)
        place = f"docker://{registry.address}/buildah/base:1"
        run(*buildah, "commit", "--quiet", "--tls-verify=false", first, place, env=home)
        source = f"{registry.address}/buildah/base:1"
        second = run(*buildah, "from", "--tls-verify=false", "--pull-always", source, env=home)
        run(*buildah, "config", "--cmd", "/hello", second, env=home)
        run(*buildah, "commit", "-q", "--tls-verify=false", second, place.replace("base", "derived"), env=home)
        digest = ok(cli, "pull", "--quiet", source.replace("base", "derived"))
        assert Digest.parse(digest).matches(registry.ask("/v2/buildah/derived/manifests/1").body)
    finally:
        run(*buildah, "rm", "--all", env=home)
        subprocess.run(["umount", top / "vfs"], capture_output=True)
        subprocess.run(["umount", top], capture_output=True)


@pytest.fixture
def pulled(cli: Cli, tmp_path: Path) -> str:
    """The index in the store, under the name that it has in its registry."""
    write_layout(tmp_path / "origin", {"multi": MULTI})
    return ok(cli, "load", "--quiet", "--tag", "registry.example/some/image:1", tmp_path / "origin")


def test_what_was_pulled_is_served_as_it_was(
    pulled: str, store_root: Path, layout: Path, podman: Sequence[str], home: dict[str, str], tmp_path: Path
) -> None:
    """By its whole name and the short one; another pullpipe has the same in the end."""
    digest = digest_in(layout, "multi")
    with served(store_root) as registry:
        for name in ("registry.example/some/image", "some/image"):
            source = f"{registry.address}/{name}:1"
            raw = run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{source}")
            assert Digest.parse(digest).matches(raw.encode())
            identifier = run(*podman, "pull", "--quiet", "--tls-verify=false", source, env=home)
            run(*podman, "rmi", "--force", identifier)
        other = (sys.executable, "-m", "pullpipe", "--root", tmp_path / "other", "pull", "--quiet")
        [(manifest, _)] = records(store_root)
        assert run(*other, f"{registry.address}/some/image:1") == manifest
        assert records(tmp_path / "other") == records(store_root) == [(manifest, digest)]


def test_podman_uses_it_as_a_mirror(
    pulled: str, store_root: Path, podman: Sequence[str], home: dict[str, str], tmp_path: Path
) -> None:
    """The registry that the image's name says is never asked."""
    with served(store_root) as registry:
        configuration = tmp_path / "registries.conf"
        configuration.write_text(
            '[[registry]]\nlocation = "registry.example"\n\n[[registry.mirror]]\n'
            f'location = "{registry.address}/registry.example"\ninsecure = true\n'
        )
        environment = {**home, "CONTAINERS_REGISTRIES_CONF": str(configuration)}
        identifier = run(*podman, "pull", "--quiet", pulled, env=environment)
        names = json.loads(run(*podman, "image", "inspect", identifier))[0]["RepoTags"]
        assert names == ["registry.example/some/image:1"]


def test_tls_and_users(layout: Path, home: dict[str, str], cli: Cli, tmp_path: Path) -> None:
    """skopeo pushes and pullpipe pulls, each with the certificate and a password."""
    cert, key, users = tmp_path / "ca.crt", tmp_path / "server.key", tmp_path / "users"
    command = [require("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-days", "2", "-subj", "/CN=x"]
    run(*command, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert)
    users.write_text(f"ada:{bcrypt.hashpw(b'lovelace', bcrypt.gensalt(4)).decode()}\n")
    options = ("--writable", "--tls-cert", cert, "--tls-key", key, "--users", users)
    context = ssl.create_default_context(cafile=str(cert))
    certificates = tmp_path / "certs"
    certificates.mkdir()
    (certificates / "ca.crt").write_bytes(cert.read_bytes())
    with served(tmp_path / "registry", *options, tls=context) as registry:
        place = f"{registry.address}/secret:1"
        copy = ("skopeo", "copy", "--quiet", "--preserve-digests", "--all", "--dest-cert-dir", certificates)
        run(*copy, "--dest-creds=ada:lovelace", f"oci:{layout}:multi", f"docker://{place}", env=home)
        trusting = {"SSL_CERT_FILE": str(cert)}
        done = cli("pull", "--quiet", "--creds", "ada:lovelace", place, env=trusting)
        assert done.returncode == 0, done.stderr
        [(_, resolved)] = records(tmp_path / "root")
        assert resolved == digest_in(layout, "multi")
        for creds, reason in ((["--creds", "ada:wrong"], "wrong user or password"), ([], "needs authentication")):
            done = cli("pull", "--quiet", *creds, place, env=trusting)
            assert done.returncode == 1
            assert reason in done.stderr
        assert "not trusted" in cli("pull", "--quiet", "--creds", "ada:lovelace", place).stderr
        assert registry.end() == 0


def test_dockers_registry_caches_it(registry: Served, layout: Path, home: dict[str, str], tmp_path: Path) -> None:
    """As a pull-through cache in front; what it has seen it serves without us."""
    require("docker-registry")
    command = ("skopeo", "copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false")
    run(*command, f"oci:{layout}:single", f"docker://{registry.address}/cached:1", env=home)
    with Registry(tmp_path / "cache", upstream=f"http://{registry.address}") as cache:
        digest = digest_in(layout, "single")
        for number in range(2):
            source = f"docker://{cache.host}/cached:1"
            run("skopeo", "copy", "-q", "--src-tls-verify=false", source, f"oci:{tmp_path}/{number}:it", env=home)
            assert digest_in(tmp_path / str(number), "it") == digest


def test_umoci_and_skopeo_read_the_stores_layout(registry: Served, layout: Path, home: dict[str, str]) -> None:
    """What was pushed is an image of the layout on disk, by the name that it was pushed under."""
    command = ("skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false")
    run(*command, f"oci:{layout}:single", f"docker://{registry.address}/on/disk:1", env=home)
    assert "on/disk:1" in run(require("umoci"), "ls", "--layout", registry.root).split()
    raw = run("skopeo", "inspect", "--raw", f"oci:{registry.root}:on/disk:1")
    assert Digest.parse(digest_in(layout, "single")).matches(raw.encode())
