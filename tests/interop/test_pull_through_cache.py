"""A fleet behind Docker's registry as a pull-through cache, or one machine behind another.

Who is asked for what, and what happens when one of them dies.
"""

from __future__ import annotations

import json
import os
import random
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.rig import Log, fails, ok, started, until
from tests.cli.store_checker import wrong
from tests.conftest import Cli, require
from tests.registry.faults.rig import Pushed, pushed
from tests.support import faults
from tests.support.access import Access
from tests.support.faulty_proxy import FaultProxy, Rule
from tests.support.images import File, Layer
from tests.support.registry import Registry
from tests.support.served import served
from tests.support.tokens import TokenServer

pytestmark = pytest.mark.needs_root

LONG = Layer([File("long", random.Random(3).randbytes(2_500_000))])
ON_DISK = 1 << 20  # bytes of a blob that have arrived when a part of it is written
HELD = 16 << 10  # bytes at most that the cache has read and not passed on
USER = ("fleet", "open sesame")
BELIEVED = 'pull-from-mirror = "all"\n'
US = "pullpipe/"  # as our User-Agent begins


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    require("docker-registry")
    require("skopeo")


@pytest.fixture
def image(registry: Registry, tmp_path: Path, request: pytest.FixtureRequest) -> Pushed:
    """Of three layers, in a repository of the test's own."""
    return pushed(registry, tmp_path / "image", f"fleet/{request.node.originalname}", LONG)


@pytest.fixture
def cache(registry: Registry, tmp_path: Path) -> Iterator[Registry]:
    """An empty one, in front of the registry."""
    with Registry(tmp_path / "cache", upstream=registry.url) as running:
        yield running


def mirrored(registry: str, mirror: str, more: str = "") -> None:
    """What the machine's settings say from now on: for images of this registry ask that mirror first."""
    file = Path(os.environ["XDG_CONFIG_HOME"]) / "pullpipe" / "registries.conf"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f'[[registry]]\nlocation = "{registry}"\n[[registry.mirror]]\nlocation = "{mirror}"\n{more}')


def wait_for(cache: Registry, image: Pushed) -> None:
    """Until the cache has the image's blobs: it stores them on its own, after it has passed them on."""
    repository = cache.directory / "storage/docker/registry/v2/repositories" / image.repository
    links = [repository / "_layers" / digest.replace(":", "/") / "link" for digest in (image.config, *image.layers)]
    until(lambda: all(link.exists() and link.read_text() for link in links))


def test_only_the_cache_asks_for_blobs(
    registry: Registry, image: Pushed, cli: Cli, tmp_path: Path, store_root: Path
) -> None:
    """And for manifests; the registry is asked what the tag names. For the next machine no blob comes from there."""
    reference = f"{registry.host}/{image.repository}:1"
    log = Log(registry, image.repository)
    with FaultProxy(registry) as behind, Registry(tmp_path / "cache", upstream=behind.url) as cache:
        mirrored(registry.host, cache.host)
        assert ok(cli, "pull", "--quiet", reference) == image.manifest
        wait_for(cache, image)
        assert log.requests(US) == [("HEAD", "manifests/1")]
        asked = {one.path.rpartition("/")[2] for one in behind.of("/blobs/", method="GET")}
        assert asked == {image.config, *image.layers}
        assert wrong(store_root, image.trees) == []

        behind.exchanges.clear()
        log = Log(registry, image.repository)
        assert ok(cli, "--root", tmp_path / "other", "pull", "--quiet", reference) == image.manifest
        assert log.requests(US) == [("HEAD", "manifests/1")]
        assert behind.of("/blobs/|/manifests/") == []
        assert wrong(tmp_path / "other", image.trees) == []


def test_the_cache_is_killed_in_the_middle_of_a_blob(
    registry: Registry, image: Pushed, tmp_path: Path, store_root: Path
) -> None:
    """The same pull goes on at the registry, from the byte that was reached."""
    stall = Rule(faults.stall(ON_DISK + HELD), image.long, times=None)
    said = tmp_path / "said"
    with (
        FaultProxy(registry) as own,
        FaultProxy(registry, stall) as behind,
        Registry(tmp_path / "cache", upstream=behind.url) as cache,
    ):
        mirrored(own.host, cache.host)
        arriving = store_root / "ingest" / image.long.replace(":", "-")
        with started(store_root, "pull", f"{own.host}/{image.repository}:1", stderr=said) as pulling:
            until(lambda: arriving.exists() and arriving.stat().st_size >= ON_DISK)
            arrived = arriving.stat().st_size
            cache.kill()
            out, _ = pulling.communicate(timeout=60)
        assert (pulling.returncode, out) == (0, f"{image.manifest}\n"), said.read_text()
        [rest] = own.of(image.long)
        assert ON_DISK <= arrived <= rest.start <= ON_DISK + HELD
        assert (rest.headers["range"], rest.sent) == (f"bytes={rest.start}-", image.size - rest.start)
    told = [line for line in said.read_text().splitlines() if cache.host in line]
    assert told
    assert all(line.endswith(f"; asking {own.host}") for line in told)
    assert len(told) == len(set(told))  # what breaks off, and what finds nobody there, may both be told
    assert wrong(store_root, image.trees) == []


@pytest.mark.parametrize("more", ["", BELIEVED])
def test_the_cache_is_dead(
    registry: Registry, cache: Registry, image: Pushed, cli: Cli, store_root: Path, more: str
) -> None:
    """One line tells of it, however many blobs there are."""
    cache.kill()
    mirrored(registry.host, cache.host, more)
    done = cli("pull", f"{registry.host}/{image.repository}:1")
    assert (done.returncode, done.stdout) == (0, f"{image.manifest}\n"), done.stderr
    told = [line for line in done.stderr.splitlines() if cache.host in line]
    assert told == [f"cannot connect to {cache.host}: connection refused; asking {registry.host}"]
    assert wrong(store_root, image.trees) == []


def test_the_cache_says_nothing(registry: Registry, cache: Registry, image: Pushed, cli: Cli) -> None:
    """It is waited for once."""
    with FaultProxy(cache, Rule(faults.stall(), method="", times=None)) as front:
        mirrored(registry.host, front.host)
        done = cli("pull", "--timeout=1", f"{registry.host}/{image.repository}:1")
        assert (done.returncode, done.stdout) == (0, f"{image.manifest}\n"), done.stderr
        told = [line for line in done.stderr.splitlines() if front.host in line]
        assert told == [f"{front.host} did not answer in time; asking {registry.host}"]
        assert len(front.exchanges) == 1


def test_the_cache_lacks_the_image(registry: Registry, image: Pushed, cli: Cli, tmp_path: Path) -> None:
    """As one of another registry does: one line, too."""
    with Registry(tmp_path / "other") as other:
        mirrored(registry.host, other.host)
        done = cli("pull", f"{registry.host}/{image.repository}:1")
        assert (done.returncode, done.stdout) == (0, f"{image.manifest}\n"), done.stderr
        [told] = [line for line in done.stderr.splitlines() if other.host in line]
        assert told.startswith(f"{other.host} has no ")
        assert told.endswith(f"; asking {registry.host}")


def test_a_stale_tag(registry: Registry, image: Pushed, cli: Cli, tmp_path: Path, store_root: Path) -> None:
    """A cache that has lost its registry gives out the old one: which counts only where it is to be believed."""
    reference = f"{registry.host}/{image.repository}:1"
    with FaultProxy(registry) as behind, Registry(tmp_path / "cache", upstream=behind.url) as cache:
        mirrored(registry.host, cache.host, BELIEVED)
        assert ok(cli, "pull", "--quiet", reference) == image.manifest
        wait_for(cache, image)

        new = pushed(registry, tmp_path / "new", image.repository, LONG, top="new")
        behind.rules.append(Rule(faults.drop(), method="", times=None))
        assert ok(cli, "--root", tmp_path / "believing", "pull", "--quiet", reference) == image.manifest
        assert ok(cli, "pull", "--quiet", reference) == image.manifest
        mirrored(registry.host, cache.host)
        assert ok(cli, "pull", "--quiet", reference) == new.manifest
        assert wrong(store_root, {**image.trees, **new.trees}) == []

        behind.rules.clear()
        mirrored(registry.host, cache.host, BELIEVED)
        log = Log(registry, image.repository)
        assert ok(cli, "--root", tmp_path / "believing", "pull", "--quiet", reference) == new.manifest
        assert log.requests(US) == []


def test_the_cache_alone(cli: Cli, tmp_path: Path) -> None:
    """The registry is dead. By digest any mirror will do; by tag, one that is believed."""
    with (
        Registry(tmp_path / "registry") as registry,
        Registry(tmp_path / "cache", upstream=registry.url) as cache,
    ):
        image = pushed(registry, tmp_path / "image", "alone", LONG)
        name = f"{registry.host}/{image.repository}"
        mirrored(registry.host, cache.host, BELIEVED)
        assert ok(cli, "pull", "--quiet", f"{name}:1") == image.manifest
        wait_for(cache, image)
        registry.kill()

        for number, (reference, more) in enumerate([(f"{name}:1", BELIEVED), (f"{name}@{image.manifest}", "")]):
            mirrored(registry.host, cache.host, more)
            root = tmp_path / str(number)
            assert ok(cli, "--root", root, "pull", "--quiet", reference) == image.manifest
            assert wrong(root, image.trees) == []
        line = fails(cli, "--root", tmp_path / "no", "pull", "--retries=0", f"{name}:1")
        assert f"cannot connect to {registry.host}: connection refused" in line


class TestCredentials:
    """The registry's are for the registry, and no cache is told of them."""

    def test_tokens(self, cli: Cli, tmp_path: Path) -> None:
        """The cache gets tokens with its own."""
        with (
            TokenServer(tmp_path / "tokens", dict([USER])) as tokens,
            Registry(tmp_path / "registry", tokens=tokens) as registry,
        ):
            log, _ = self.pull(cli, tmp_path, registry)
            assert set(log.requests(US)) == {("HEAD", "manifests/1")}

    def test_passwords(self, cli: Cli, tmp_path: Path) -> None:
        """Docker's registry 2.8 cannot log in by one: the cache has nothing, and we get it from the registry."""
        with Registry(tmp_path / "registry", dict([USER])) as registry:
            log, image = self.pull(cli, tmp_path, registry)
            assert log.blobs(US) == {image.config, *image.layers}

    def pull(self, cli: Cli, tmp_path: Path, registry: Registry) -> tuple[Log, Pushed]:
        """From a registry that wants to know who asks; what it has logged, and the image."""
        user, password = USER
        image = pushed(registry, tmp_path / "image", "private", LONG)
        log = Log(registry, image.repository)
        with (
            Registry(tmp_path / "cache", upstream=f"http://{user}:{password}@{registry.host}") as cache,
            FaultProxy(cache) as front,
        ):
            mirrored(registry.host, front.host)
            reference = f"{registry.host}/{image.repository}:1"
            assert ok(cli, "pull", "--quiet", "--creds", f"{user}:{password}", reference) == image.manifest
            assert front.exchanges
            assert not [one.path for one in front.exchanges if "authorization" in one.headers]
        assert wrong(tmp_path / "root", image.trees) == []
        return log, image

    def test_of_the_mirror(self, registry: Registry, cache: Registry, image: Pushed, cli: Cli, tmp_path: Path) -> None:
        """A cache that is not open gets those that there are for it, and not the registry's."""
        with FaultProxy(cache, access=Access(("reader", "the mirror's"), scheme="basic")) as front:
            secrets = {registry.host: "somebody:the registry's", front.host: "reader:the mirror's"}
            auths = {host: {"auth": b64encode(text.encode()).decode()} for host, text in secrets.items()}
            (tmp_path / "auth.json").write_text(json.dumps({"auths": auths}))
            mirrored(registry.host, front.host)
            log = Log(registry, image.repository)
            reference = f"{registry.host}/{image.repository}:1"
            assert ok(cli, "pull", "-q", "--authfile", tmp_path / "auth.json", reference) == image.manifest
            sent = {one.headers["authorization"] for one in front.exchanges if "authorization" in one.headers}
            assert sent == {f"Basic {auths[front.host]['auth']}"}
            assert log.requests(US) == [("HEAD", "manifests/1")]


def test_a_neighbour(registry: Registry, image: Pushed, cli: Cli, tmp_path: Path, store_root: Path) -> None:
    """A machine that serves its store: of another image, it gives the layers that it has."""
    name = f"{registry.host}/{image.repository}"
    assert ok(cli, "--root", tmp_path / "neighbour", "pull", "--quiet", f"{name}:1") == image.manifest
    other = pushed(registry, tmp_path / "other", f"{image.repository}/other", LONG, top="other")
    with served(tmp_path / "neighbour") as neighbour:
        mirrored(registry.host, neighbour.address)
        log = Log(registry, image.repository)
        assert ok(cli, "pull", "--quiet", f"{name}:1") == image.manifest
        assert log.requests() == [("HEAD", "manifests/1")]

        log = Log(registry, other.repository)
        assert ok(cli, "--root", tmp_path / "new", "pull", "--quiet", f"{name}/other:1") == other.manifest
        assert log.blobs() == {other.config, *other.layers} - {*image.layers}
    for root in (store_root, tmp_path / "new"):
        assert wrong(root, {**image.trees, **other.trees}) == []
