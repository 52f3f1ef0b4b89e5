"""Many pulls of random images through random faults into one store, some of them killed: it stays right throughout.

Some come through a mirror, with tokens, from a registry that does not do ranges, or so slowly that windows are opened.

`make test` does a fixed thirty; `make soak` two hundred by a new seed each time. PULLPIPE_SOAK is how many, and
PULLPIPE_SOAK_SEED repeats a run that failed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cli.damages import flip, pullpipe
from tests.cli.rig import digest_of, document, group_is_gone, layers_of, ok, started, until
from tests.cli.store_checker import chain_id, layer_tree, wrong
from tests.conftest import Cli
from tests.pipe.oracle import flattened
from tests.support import faults
from tests.support.access import Access
from tests.support.faulty_proxy import Fault, FaultProxy, Rule
from tests.support.images import Dir, Entry, File, Image, Layer, Opaque, Symlink, Whiteout, write_layout
from tests.support.processes import interrupted_at_start
from tests.support.registry import Registry
from tests.support.tree import Snapshot, difference, snapshot

PULLS = int(os.environ.get("PULLPIPE_SOAK", "30"))
SEED = int(os.environ.get("PULLPIPE_SOAK_SEED") or (4 if PULLS == 30 else random.SystemRandom().randrange(10**9)))
IMAGES = 6
OPTIONS = ("--durability=none", "--retries=3", "--timeout=2")
LARGE = (32 << 20) + 100_000  # bytes of a layer: just enough for windows
PATIENCE = 60.0  # seconds; a pull that takes longer hangs


class Pushed(NamedTuple):
    """An image in the registry, and what it should come to."""

    repository: str
    manifest: str
    digests: list[str]  # of its config's and layers' blobs
    large: str  # the digest of the one that comes in windows, or empty
    diff_ids: list[str]
    tree: Snapshot


def random_layers(rng: random.Random) -> list[Layer]:
    """Layers of which images are made; the second half are those that hide what others have."""
    layers = []
    for number in range(8):
        entries: list[Entry] = [Dir(f"d{number}", mtime_ns=number), Dir("shared", mode=0o750, mtime_ns=77)]
        for name in range(rng.randrange(1, 5)):
            size = rng.choice([0, 10, 5_000, 100_000, 1_500_000 if name == 0 else 40_000])
            entries.append(File(f"d{number}/{name}", rng.randbytes(size), uid=rng.choice([0, 1000])))
        entries.append(Symlink(f"shared/{number}", f"../d{number}/0"))
        layers.append(Layer(entries, rng.choice(["gzip", "zstd", None])))
    again = rng.choice([layer for layer in layers if layer.compression != "zstd"])
    layers.append(Layer(again.entries, "zstd"))  # the same diffID by another blob
    for number in range(4):
        hidden = rng.randrange(8)
        marks: list[Entry] = [Whiteout(f"d{hidden}/0"), Whiteout(f"shared/{hidden}"), Opaque(f"d{hidden}")]
        layers.append(Layer([rng.choice(marks), File(f"upper{number}", rng.randbytes(300))]))
    return layers


def random_images(rng: random.Random) -> dict[str, Image]:
    layers = random_layers(rng)
    images = {f"i{number}": Image(rng.sample(layers, rng.randrange(1, 6))) for number in range(IMAGES)}
    large = Layer([File("large", rng.randbytes(LARGE))], None)
    return {**images, "large": Image([*rng.sample(layers, 2), large])}


def random_fault(rng: random.Random) -> Fault:
    """Mostly what a connection suffers, or bytes; what makes a pull wait for seconds is rare."""
    after = rng.choice([0, 1, 100, 20_000, 1_200_000])
    broken: list[Callable[[], Fault]] = [
        faults.drop,
        faults.reset,
        lambda: faults.reset(after),
        lambda: faults.cut(after),
        lambda: faults.cut(after, "chunked"),
        lambda: faults.cut(after, "close"),
        lambda: rng.choice([faults.stall(), faults.stall_in_headers(), faults.stall(after)]),
        lambda: faults.refuse(rng.uniform(0, 0.5)),
    ]
    damaged: list[Callable[[], Fault]] = [
        lambda: faults.corrupt(after),
        lambda: faults.corrupt(5),  # where gzip keeps a time, which no checksum of its own covers
        lambda: faults.corrupt(10**9),
        lambda: faults.longer(1 + after),
        lambda: faults.shorter(1),
        lambda: faults.headers({"Content-Range": f"bytes {after}-{after}/{after}"}),
        lambda: faults.headers({"Docker-Content-Digest": rng.choice([None, "rubbish", "sha256:" + "0" * 64])}),
    ]
    refused: list[Callable[[], Fault]] = [
        lambda: faults.answer(rng.choice([400, 401, 404, 500, 502, 504]), "Some Reason"),
        lambda: faults.refusal(rng.choice([403, 429]), "No", "TOOMANYREQUESTS", {"Retry-After": "0"}),
        lambda: faults.page(rng.choice([200, 403, 503]), "Page"),
        lambda: faults.redirect("{path}"),
        faults.garbage,
    ]
    odd: list[Callable[[], Fault]] = [
        lambda: faults.redirect("http://{storage}{path}", rng.choice([301, 302, 303, 307, 308])),
        lambda: faults.hang_up(announced=rng.random() < 0.5),
        lambda: faults.drip(0.01, max(after, 5_000)),
        lambda: faults.trickle_headers(0.005),
        lambda: faults.framed(rng.choice(["chunked", "close"])),
        faults.compressed,
        faults.ignore_range,
        faults.refuse_range,
    ]
    return rng.choice(rng.choice([broken, broken, damaged, damaged, refused, odd]))()


def random_rules(rng: random.Random, image: Pushed) -> list[Rule]:
    rules = []
    for _ in range(rng.choice([0, 1, 2, 2, 3, 4])):
        places = [("GET", rng.choice(image.digests))] * 6 + [("GET", "/blobs/"), ("GET", "/manifests/"), ("HEAD", "")]
        method, path = rng.choice(places)
        skip, times = rng.choice([0, 0, 0, 0, 1]), rng.choice([1, 1, 1, 2, 3, None])
        rules.append(Rule(random_fault(rng), path, method=method, skip=skip, times=times))
    # The way as such, for all that suffers nothing else.
    ranged = rng.random() < 0.75
    if image.large:
        rules.append(Rule(faults.drip(0.01, 1 << 19, ranged=ranged), image.large, times=None))
    if not ranged:
        rules.append(Rule(faults.ignore_range(), "/blobs/", times=None))
    return rules


@contextmanager
def overlay(root: Path, diff_ids: Sequence[str], target: Path) -> Iterator[Path]:
    """The image's stack, mounted by what its record says and without pullpipe."""
    stack = root / "stacks" / chain_id(diff_ids).replace(":", "/")
    lower = [root / name for name in json.loads((stack / "stack.json").read_bytes())["lower"]]
    empty = target.parent / "empty"  # at least two directories are wanted
    for directory in (target, empty):
        directory.mkdir(exist_ok=True)
    options = "ro,lowerdir=" + ":".join(map(str, [*lower, empty]))
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, target], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", target], check=True)


class Soak:
    """The store under test, what may be in it, and where that comes from: the registry, and a mirror of it."""

    def __init__(
        self, root: Path, scratch: Path, proxy: FaultProxy, mirror: FaultProxy, layers: dict[str, Snapshot]
    ) -> None:
        self.root = root
        self._scratch = scratch
        self._proxy = proxy
        self._mirror = mirror
        self._layers = layers

    def reference(self, image: Pushed) -> str:
        return f"{self._proxy.host}/{image.repository}:1"

    def use_mirror(self, *, used: bool) -> None:
        """Has the next pulls ask it first, or not at all."""
        settings = Path(os.environ["XDG_CONFIG_HOME"], "pullpipe", "registries.conf")
        settings.parent.mkdir(parents=True, exist_ok=True)
        mirror = f'[[registry.mirror]]\nlocation = "{self._mirror.host}"\n' if used else ""
        settings.write_text(f'[[registry]]\nlocation = "{self._proxy.host}"\n{mirror}')

    def recorded(self) -> set[str]:
        """The references in the store."""
        index = self.root / "index.json"
        entries = json.loads(index.read_bytes())["manifests"] if index.exists() else []
        return {entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries}

    def pull(self, rng: random.Random, images: Sequence[Pushed], number: int | None) -> None:
        """Pulls these at the same time; a signal, if there is one, goes to the first of them in mid-pull."""
        names = [self.reference(image) for image in images]
        outputs = [self._scratch / f"stderr.{count}" for count in range(len(images))]
        with ExitStack() as running:
            pulls = [
                running.enter_context(
                    started(self.root, "pull", *OPTIONS, f"--jobs={rng.randrange(1, 5)}", name, stderr=said)
                )
                for name, said in zip(names, outputs, strict=True)
            ]
            if number is not None:
                first = pulls[0]
                self._wait(first, rng.randrange(1, 6))
                time.sleep(rng.uniform(0, 0.1))  # not to wait for anything: any moment will do
                if first.poll() is None:
                    first.send_signal(number)
            for count, (pull, image, said) in enumerate(zip(pulls, images, outputs, strict=True)):
                out, _ = pull.communicate(timeout=PATIENCE)
                print(f"    {image.repository}: {pull.returncode}")
                self._check_outcome(image, pull.returncode, out, said.read_text(), number if count == 0 else None)
                until(lambda pull=pull: group_is_gone(pull))  # type: ignore[misc]
        self.check()
        if number is None:
            assert list((self.root / "staging").iterdir()) == []  # what was killed before has been removed

    def _wait(self, pull: subprocess.Popen[str], count: int) -> None:
        """Until so many requests have come, or none for a while after the first; or the pull has ended."""

        def reached() -> bool:
            exchanges = [*self._proxy.exchanges, *self._mirror.exchanges]
            quiet = bool(exchanges) and time.monotonic() - max(one.when for one in exchanges) > 0.5
            return quiet or len(exchanges) >= count or pull.poll() is not None

        until(reached)

    def _check_outcome(self, image: Pushed, code: int, out: str, said: str, number: int | None) -> None:
        """The right tree, or one clear line; or the end that the signal makes."""
        if number == signal.SIGINT and interrupted_at_start(said):
            return
        assert "Traceback" not in said, said
        assert "this is a bug" not in said, said
        lines = said.splitlines()
        errors = [line for line in lines if "pullpipe: error: " in line]
        if code == 0:
            assert (out, errors) == (f"{image.manifest}\n", []), said
            assert self.reference(image) in self.recorded()
            self.check_tree(image)
        elif code == 1:
            assert (out, errors) == ("", lines[-1:]), said
        else:
            assert number is not None
            assert code in ({-number, 128 + number}), said
            assert errors == []

    def check_tree(self, image: Pushed) -> None:
        with overlay(self.root, image.diff_ids, self._scratch / "mounted") as mounted:
            assert difference(snapshot(mounted), image.tree) == []

    def check(self) -> None:
        """Whatever has happened, nothing that is visible is wrong, by an independent look and by pullpipe's own."""
        if (self.root / "index.json").exists():
            assert wrong(self.root, self._layers) == []
            assert self.verify() == []

    def verify(self) -> list[str]:
        """The damage that `verify` finds."""
        done = pullpipe(self.root, "verify", "--deep", "--quiet")
        assert done.returncode in (0, 1), done.stderr
        found = [line for line in done.stdout.splitlines() if line.startswith("damaged ")]
        assert bool(found) == (done.returncode == 1)
        return found

    def check_that_damage_is_found(self, rng: random.Random) -> None:
        """Of a random file of a layer, or a random blob: by both, and mended."""
        trees = [path for path in self.root.glob("layers/*/*/fs/**/*") if path.is_file() and not path.is_symlink()]
        path = rng.choice([rng.choice(trees), rng.choice(list(self.root.glob("blobs/*/*")))])
        print(f"damage: {path}")
        if path.stat().st_size:
            flip(path, rng.randrange(path.stat().st_size))
        else:
            path.chmod(0o123)
        assert wrong(self.root, self._layers) != []
        assert self.verify() != []
        done = pullpipe(self.root, "repair", "--plain-http", "--quiet", "--durability=none")
        assert done.returncode == 0, done.stdout
        self.check()


@pytest.fixture(scope="module")
def images(registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> list[Pushed]:
    layout = tmp_path_factory.mktemp("soak") / "layout"
    made = random_images(random.Random(SEED))
    write_layout(layout, made)
    pushed = []
    for tag, image in made.items():
        registry.push(layout, tag, to=f"soak/{tag}:1")
        tree = flattened([layer.entries for layer in image.layers])
        assert tree is not None
        manifest = digest_of(layout, tag)
        config = document(layout, manifest)["config"]["digest"]
        blobs = layers_of(layout, tag)
        digests = [config, *(blob["digest"] for blob in blobs)]
        large = "".join(blob["digest"] for blob in blobs if blob["size"] >= LARGE)
        pushed.append(Pushed(f"soak/{tag}", manifest, digests, large, [layer.diff_id for layer in image.layers], tree))
    return pushed


@pytest.fixture
def layers(cli: Cli, images: list[Pushed], registry: Registry, store_root: Path, tmp_path: Path) -> dict[str, Snapshot]:
    """What each layer's directory should look like: as an undisturbed pull makes it, whose stacks are right."""
    trees = {}
    with FaultProxy(registry) as proxy:
        soak = Soak(tmp_path / "reference", tmp_path, proxy, proxy, {})
        for image in images:
            ok(cli, "pull", "--quiet", "--root", soak.root, "--plain-http", soak.reference(image))
            soak.check_tree(image)
            for diff_id in image.diff_ids:
                trees[diff_id] = layer_tree(soak.root, diff_id)
    return trees


@pytest.mark.needs_root
@pytest.mark.timeout(600 + 10 * PULLS)
def test_soak(
    cli: Cli,
    registry: Registry,
    images: list[Pushed],
    layers: dict[str, Snapshot],
    store_root: Path,
    tmp_path: Path,
) -> None:
    print(f"repeat it by PULLPIPE_SOAK={PULLS} PULLPIPE_SOAK_SEED={SEED}")
    with FaultProxy(registry) as proxy, FaultProxy(registry) as mirror:
        soak = Soak(store_root, tmp_path, proxy, mirror, layers)
        for count in range(PULLS):
            rng = random.Random(f"{SEED} {count}")
            wanted = rng.sample(images, rng.choice([1, 1, 1, 2]))
            present = sorted(soak.recorded() & {soak.reference(image) for image in wanted})
            if present and rng.random() < 0.8:
                ok(cli, "rmi", *present)
                soak.check()
            number = rng.choice([None, None, None, signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            print(f"{count}: {[one.repository for one in wanted]}, {number}")
            proxy.access = rng.choice([None, None, Access(), Access(uses=3)])
            mirrored = rng.random() < 0.3
            soak.use_mirror(used=mirrored)
            for place in (mirror, proxy) if mirrored else (proxy,):
                place.rules = random_rules(rng, wanted[0])
                place.exchanges.clear()
                rules = [(rule.fault.name, rule.method, rule.path, rule.skip, rule.times) for rule in place.rules]
                print(f"    {'mirror' if place is mirror else 'registry'}: {place.access}, {rules}")
            soak.pull(rng, wanted, number)
            assert not [one.path for one in mirror.exchanges if "authorization" in one.headers]
        proxy.rules, proxy.access = [], None
        soak.use_mirror(used=False)
        for image in images:
            ok(cli, "pull", "--quiet", *OPTIONS, soak.reference(image))
            soak.check_tree(image)
        soak.check()
        for count in range(PULLS // 6):
            soak.check_that_damage_is_found(random.Random(f"{SEED} damage {count}"))
        assert list((store_root / "staging").iterdir()) == []
        ok(cli, "rmi", *sorted(soak.recorded()))
        for kind in ("blobs", "layers", "variants", "stacks", "staging"):
            assert [path for path in (store_root / kind).rglob("*") if path.is_file()] == []
