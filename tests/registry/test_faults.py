"""What `pullpipe pull` does about each thing that goes wrong between it and a real registry.

Either the image comes out right, and nothing of it was fetched that need not be; or one line says why not.
"""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

import pytest

from tests.cli.rig import digest_of, document, file_layer, group_is_gone, layers_of, layout_of, started, until
from tests.cli.store_checker import wrong
from tests.conftest import Cli, require
from tests.pipe.oracle import flattened
from tests.support import faults
from tests.support.faulty_proxy import ELSEWHERE, Access, Fault, FaultProxy, Rule
from tests.support.images import Dir, File, Layer
from tests.support.registry import Authority, Registry
from tests.support.tree import Snapshot

pytestmark = pytest.mark.needs_root

USER, PASSWORD = "somebody", "open sesame"
HEAD, GET = "HEAD", "GET"

Make = Callable[[], Fault]


@dataclass(frozen=True)
class Pushed:
    """An image of three layers in the registry; what it should come to in a store."""

    repository: str
    manifest: str
    config: str
    layers: list[str]  # their blobs' digests, the long one first
    size: int  # of the long one
    trees: Mapping[str, Snapshot]  # by diffID

    @property
    def long(self) -> str:
        return self.layers[0]

    def reference(self, proxy: FaultProxy) -> str:
        return f"{proxy.host}/{self.repository}:1"

    def place(self, name: str) -> str:
        """A pattern for the path of one of its parts."""
        return {"manifest": "/manifests/", "config": self.config, "layer": self.long}[name]


@pytest.fixture(scope="module")
def long_layer() -> Layer:
    """Random, so that it is as long when it is compressed: a part of it reaches the disk before the rest comes."""
    return Layer([Dir("d"), File("d/long", random.Random(1).randbytes(2_500_000))])


@pytest.fixture(scope="module")
def image(registry: Registry, tmp_path_factory: pytest.TempPathFactory, long_layer: Layer) -> Pushed:
    return pushed(registry, tmp_path_factory.mktemp("image"), "faults/image", long_layer)


@pytest.fixture(scope="module")
def other(registry: Registry, tmp_path_factory: pytest.TempPathFactory, long_layer: Layer) -> Pushed:
    """Another image that has the long layer, too."""
    return pushed(registry, tmp_path_factory.mktemp("other"), "faults/other", long_layer, top="other")


def pushed(registry: Registry, directory: Path, repository: str, long: Layer, top: str = "top") -> Pushed:
    middle = Layer([File("middle", random.Random(2).randbytes(100_000), uid=5)], "zstd")
    layers = [long, middle, file_layer(top)]
    layout = layout_of(directory / "layout", *layers)
    registry.push(layout, "image", to=f"{repository}:1")
    digest = digest_of(layout)
    descriptors = layers_of(layout)
    return Pushed(
        repository,
        digest,
        document(layout, digest)["config"]["digest"],
        [one["digest"] for one in descriptors],
        descriptors[0]["size"],
        {layer.diff_id: tree for layer in layers if (tree := flattened([layer.entries])) is not None},
    )


class Pull(Protocol):
    """`pullpipe pull` through the proxy, with few and short retries."""

    def __call__(
        self, proxy: FaultProxy, *options: str, image: Pushed | None = None, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]: ...


@pytest.fixture
def pull(cli: Cli, image: Pushed) -> Pull:
    default = image

    def run(
        proxy: FaultProxy, *options: str, image: Pushed | None = None, env: Mapping[str, str] | None = None
    ) -> CompletedProcess[str]:
        usual = ["--durability=none", "--retries=2", "--timeout=20"]
        usual += [] if proxy.url.startswith("https") else ["--plain-http"]
        return cli("pull", *usual, *options, (image or default).reference(proxy), env=env)

    return run


class Outcome(Protocol):
    def __call__(self, done: CompletedProcess[str], image: Pushed | None = None) -> None: ...


@pytest.fixture
def arrives(store_root: Path, image: Pushed) -> Outcome:
    """The pull has succeeded, and the store holds the image as it should be, and nothing half made."""
    default = image

    def check(done: CompletedProcess[str], image: Pushed | None = None) -> None:
        wanted = image or default
        assert (done.returncode, done.stdout) == (0, f"{wanted.manifest}\n"), done.stderr
        assert "Traceback" not in done.stderr
        assert wrong(store_root, {**default.trees, **wanted.trees}) == []
        for layer in wanted.layers:
            assert (store_root / "blobs" / layer.replace(":", "/")).exists()
        assert list((store_root / "staging").iterdir()) == []

    return check


@pytest.fixture
def breaks(store_root: Path, image: Pushed) -> Callable[[CompletedProcess[str]], str]:
    """The pull has failed with one line, which is returned, after notes of what it tried; nothing is recorded."""

    def check(done: CompletedProcess[str]) -> str:
        assert (done.returncode, done.stdout) == (1, ""), done.stderr
        *notes, line = done.stderr.splitlines()
        assert line.startswith("pullpipe: error: ")
        assert not [note for note in notes if "error" in note or "Traceback" in note]
        assert wrong(store_root, image.trees) == []
        assert '"manifests": []' in (store_root / "index.json").read_text()
        assert list((store_root / "staging").iterdir()) == []
        return line

    return check


Breaks = Callable[[CompletedProcess[str]], str]

# What goes wrong with a connection for a moment, and what is said of it when it lasts.
PASSING: dict[str, tuple[Make, str]] = {
    "closed before any byte": (faults.drop, "the connection to {host} failed"),
    "reset before any byte": (faults.reset, "the connection to {host} failed: connection reset by peer"),
    "reset": (lambda: faults.reset(100), "{host} broke off in the middle"),
    "cut": (lambda: faults.cut(100), "{host} broke off in the middle"),
    "cut between chunks": (lambda: faults.cut(100, "chunked"), "{host} broke off in the middle"),
    "silent": (faults.stall, "{host} did not answer in time"),
    "silent in the headers": (faults.stall_in_headers, "{host} did not answer in time"),
    "silent in the body": (lambda: faults.stall(100), "{host} did not answer in time"),
    "refused": (lambda: faults.refuse(0.2), "cannot connect to {host}: connection refused"),
}
# Answers that say so, as well.
BUSY: dict[str, tuple[Make, str]] = {
    "500": (lambda: faults.refusal(500, "Internal Server Error", "UNKNOWN"), "{host} answered 500"),
    "503": (lambda: faults.answer(503, "Unavailable", {"Retry-After": "0"}), "{host} answered 503"),
    "429": (lambda: faults.refusal(429, "Too Many", "TOOMANYREQUESTS"), "{host} limits the rate of requests"),
    "403 for 429": (lambda: faults.refusal(403, "Forbidden", "TOOMANYREQUESTS"), "{host} limits the rate of requests"),
    "502": (lambda: faults.page(502, "Bad Gateway"), "{host} answered 502 Bad Gateway"),
    "408": (lambda: faults.answer(408, "Request Timeout"), "{host} answered 408 Request Timeout"),
}
BUSY_TOO: list[Make] = [
    lambda: faults.answer(504, "Gateway Timeout"),
    lambda: faults.answer(429, "Slow down", {"Retry-After": "soon"}),
    lambda: faults.refusal_until(503, "Unavailable", -1000),
    lambda: faults.refusal_until(429, "Too Many", 1),
    lambda: faults.answer(429, "Slow down", {"Retry-After": "-1"}),
    lambda: faults.answer(425, "Too Early"),
]
SHORT = ("--timeout=1",)  # for what is silent; the rest may take as long as a busy machine needs


class TestPassing:
    @pytest.mark.parametrize("name", PASSING)
    def test_once(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, name: str) -> None:
        """At the manifest, the config and a layer: each is asked for again, and what was well is not."""
        places = [image.place(name) for name in ("manifest", "config", "layer")]
        rules = [Rule(PASSING[name][0](), place) for place in places]
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy, *(SHORT if "silent" in name else ())))
            assert [rule.struck for rule in rules] == [1, 1, 1]
            assert [len(proxy.of(place, method=GET)) for place in places] == [2, 2, 2]
            if name != "refused":
                assert [len(proxy.of(layer)) for layer in image.layers[1:]] == [1, 1]

    @pytest.mark.parametrize("makes", [[make for make, _ in BUSY.values()], BUSY_TOO], ids=["busy", "busy too"])
    def test_answers(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, makes: list[Make]) -> None:
        """A different one for the tag, the manifest, the config and each layer; all are asked for again."""
        places = ["/manifests/1$", "/manifests/", image.config, *image.layers]
        rules = [Rule(make(), place) for make, place in zip(makes, places, strict=True)]
        rules[0].method = HEAD
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            assert [rule.struck for rule in rules] == [1] * 6
            assert [len(proxy.of(place, method=rule.method)) for place, rule in zip(places, rules, strict=True)] == [
                2
            ] * 6

    @pytest.mark.parametrize("name", [*PASSING, *BUSY])
    def test_for_good(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, name: str) -> None:
        """The line tells what it was, and how often it was tried."""
        make, says = (PASSING | BUSY)[name]
        fault = faults.refuse(60) if name == "refused" else make()
        with FaultProxy(registry, Rule(fault, image.long, times=None)) as proxy:
            line = breaks(pull(proxy, "--retries=1", *(SHORT if "silent" in name else ())))
            assert re.search(says.format(host=re.escape(proxy.host)) + r".*\(tried 2 times\); \S", line), line
            # An HTTP library may repeat at once what got no answer at all, as on a connection that it had kept.
            most = 2 if proxy.of(image.long)[0].status or "silent" in name else 4
            assert len(proxy.of(image.long)) <= most

    @pytest.mark.parametrize("name", ["cut", "500", "silent"])
    def test_no_retries(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, name: str) -> None:
        """With `--retries 0` the first failure is the last."""
        make, says = (PASSING | BUSY)[name]
        with FaultProxy(registry, Rule(make(), image.long, times=None)) as proxy:
            line = breaks(pull(proxy, "--retries=0", *SHORT))
            assert re.search(says.format(host=re.escape(proxy.host)), line)
            assert "tried" not in line
            assert len(proxy.of(image.long)) == 1

    def test_nobody_there(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        """Nobody has ever answered: the name may be wrong, so that is found out soon."""
        with FaultProxy(registry) as proxy:
            pass
        line = breaks(pull(proxy, "--retries=50"))
        assert re.search(rf"cannot connect to {proxy.host}: connection refused \(tried \d times\); is it running", line)

    def test_what_was_well_stays(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, breaks: Breaks, store_root: Path
    ) -> None:
        """After a pull that failed by one layer, the next one does not ask for what had come by then."""
        broken = faults.answer(500, "Broken", {"Retry-After": "1"})  # time enough for the others
        with FaultProxy(registry, Rule(broken, image.long, times=None)) as proxy:
            breaks(pull(proxy, "--retries=1"))
            here = [layer for layer in image.layers if (store_root / "blobs" / layer.replace(":", "/")).exists()]
            assert here
            proxy.rules.clear()
            proxy.exchanges.clear()
            arrives(pull(proxy))
            assert [layer for layer in image.layers if not proxy.of(layer)] == here

    @pytest.mark.parametrize("fault", ["seconds", "date"])
    def test_retry_after(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, fault: str) -> None:
        """Who asks for a second's pause gets it; the dates have no fractions."""
        made = {
            "seconds": faults.refusal(429, "Too Many", "TOOMANYREQUESTS", {"Retry-After": "1"}),
            "date": faults.refusal_until(429, "Too Many", 2),
        }[fault]
        with FaultProxy(registry, Rule(made, image.long)) as proxy:
            arrives(pull(proxy))
            first, second = proxy.of(image.long)
            assert second.when - first.when >= 1

    def test_retry_after_hours(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        """Nobody wants to wait so long without being asked: it gives up at once."""
        fault = faults.refusal(429, "Too Many", "TOOMANYREQUESTS", {"Retry-After": "7200"})
        with FaultProxy(registry, Rule(fault, "/manifests/", times=None)) as proxy:
            assert "limits the rate of requests (toomanyrequests) and asks to wait 2 h; " in breaks(pull(proxy))
            assert len(proxy.of("/manifests/", method=GET)) == 1


DIGEST = "sha256:" + "0" * 64

# An answer that is wrong in itself: where, and what is said.
WRONG: dict[str, tuple[Fault, str, str]] = {
    "401": (faults.refusal(401, "Unauthorized", "UNAUTHORIZED"), "manifest", "does not say how to authenticate"),
    "401 in the middle": (
        faults.refusal(401, "Unauthorized", "UNAUTHORIZED", {"WWW-Authenticate": "Basic realm=x"}),
        "layer",
        "needs authentication .*--creds",
    ),
    "403": (faults.refusal(403, "Forbidden", "DENIED"), "layer", "refuses blob {layer}"),
    "403, a page": (faults.page(403, "Forbidden"), "manifest", "refuses {name}@sha256:"),
    "404": (faults.refusal(404, "Not Found", "BLOB_UNKNOWN"), "layer", "has no blob {layer}"),
    "404 of the config": (faults.refusal(404, "Not Found", "BLOB_UNKNOWN"), "config", "has no blob {config}"),
    "204": (faults.answer(204, "No Content"), "layer", "answered 204 No Content for blob {layer}"),
    "no HTTP": (faults.garbage(), "manifest", "what answers at {host} does not speak HTTP"),
    "a page for the manifest": (faults.page(200, "OK"), "manifest", "{host} sent a web page in place of the manifest"),
    "a page for a layer": (faults.page(200, "OK"), "layer", "has 107 bytes as blob {layer}"),
    "nothing for the manifest": (faults.answer(200, "OK"), "manifest", "does not have the digest sha256:"),
    "a byte of the manifest": (faults.corrupt(100), "manifest", "does not have the digest sha256:"),
    "a manifest without its end": (faults.cut(100, "close"), "manifest", "does not have the digest sha256:"),
    "a compressed manifest": (faults.compressed(), "manifest", "does not have the digest sha256:"),
    "longer": (faults.longer(100), "layer", "as blob {layer}, and the manifest says {size}"),
    "shorter": (faults.shorter(100), "layer", "as blob {layer}, and the manifest says {size}"),
    "a length too long": (faults.headers({"Content-Length": "9999999"}), "layer", "has 9999999 bytes as blob {layer}"),
    "a length too short": (faults.headers({"Content-Length": "10"}), "layer", "{host}"),
    "a compressed layer": (faults.compressed(), "layer", "as blob {layer}, and the manifest says {size}"),
    "a redirect to FTP": (
        faults.redirect("ftp://{storage}{path}"),
        "layer",
        "{host} redirects to what is no place on the web",
    ),
    "a redirect to no URL": (faults.redirect("http://[::x{path}"), "layer", "{host} redirects to what is no URL"),
    "a redirect to nothing": (faults.answer(307, "Temporary"), "layer", "answered 307 Temporary for blob {layer}"),
}


class TestWrongAnswer:
    @pytest.mark.parametrize("name", WRONG)
    def test_is_not_asked_for_again(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, name: str
    ) -> None:
        """It would be the same again: the line tells at once."""
        fault, place, says = WRONG[name]
        with FaultProxy(registry, Rule(fault, image.place(place), times=None)) as proxy:
            line = breaks(pull(proxy))
            values = {"host": proxy.host, "name": f"{proxy.host}/{image.repository}", "size": image.size}
            assert re.search(says.format(layer=image.long, config=image.config, **values), line), line
            assert len(proxy.of(image.place(place), method=GET)) == 1

    @pytest.mark.parametrize(
        ("stated", "says"), [(DIGEST, f"has no .*@{DIGEST}"), ("rubbish", "sent an invalid digest 'rubbish'")]
    )
    def test_a_wrong_digest_for_the_tag(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, stated: str, says: str
    ) -> None:
        fault = faults.headers({"Docker-Content-Digest": stated})
        with FaultProxy(registry, Rule(fault, "/manifests/1$", method=HEAD, times=None)) as proxy:
            assert re.search(says, breaks(pull(proxy)))

    def test_redirects_in_a_circle(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        with FaultProxy(registry, Rule(faults.redirect("{path}"), image.long, times=None)) as proxy:
            assert f"{proxy.host} redirects in a circle" in breaks(pull(proxy))
            assert len(proxy.of(image.long)) <= 20

    @pytest.mark.parametrize(
        "fault",
        [
            faults.shift_range(1),
            faults.headers({"Content-Range": None}),
            faults.headers({"Content-Range": "bytes 1-2/3"}),
            faults.headers({"Content-Range": "all of it"}),
        ],
        ids=lambda fault: str(fault.name),
    )
    def test_another_part(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, arrives: Outcome, fault: Fault
    ) -> None:
        """Bytes that are not said to be those that were asked for are not taken; the next pull goes on rightly."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(fault, image.long)
        with FaultProxy(registry, *rules) as proxy:
            assert f"another part of blob {image.long}" in breaks(pull(proxy))
            arrives(pull(proxy))
            assert proxy.ranges(image.long)[1:] == ["bytes=1000000-"] * 2


# What is unusual and allowed, or no matter: method, fault.
ODD = {"Content-Encoding": "gzip", "Docker-Content-Digest": None, "Content-Type": None}
HARMLESS: dict[str, tuple[str, Fault]] = {
    "connections that end": (GET, faults.hang_up(announced=True)),
    "connections that end unannounced": (GET, faults.hang_up(announced=False)),
    "slower than the timeout": (GET, faults.drip(0.25, 500_000)),
    "headers by and by": (GET, faults.trickle_headers(0.01)),
    "chunks": (GET, faults.framed("chunked")),
    "no length": (GET, faults.framed("close")),
    "headers that are missing, or wrong": (GET, faults.headers(ODD)),
    "another type": (GET, faults.headers({"Content-Type": "application/octet-stream"})),
    "HEAD is not implemented": (HEAD, faults.answer(501, "Not Implemented")),
    "HEAD is forbidden": (HEAD, faults.answer(403, "Forbidden")),
    "HEAD without a digest": (HEAD, faults.headers({"Docker-Content-Digest": None})),
}


class TestHarmless:
    @pytest.mark.parametrize("name", HARMLESS)
    def test_all_the_time(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, name: str) -> None:
        """Whatever is asked for is asked for once."""
        method, fault = HARMLESS[name]
        with FaultProxy(registry, Rule(fault, "/v2/.+", method=method, times=None)) as proxy:
            done = pull(proxy, *(SHORT if "slower" in name else ()))
            arrives(done)
            assert "again" not in done.stderr
            for digest in (image.config, *image.layers):
                assert len(proxy.of(digest)) == 1
            assert proxy.sent(image.long) == image.size

    def test_another_digest_of_a_blob(self, registry: Registry, pull: Pull, arrives: Outcome) -> None:
        """Its bytes are what counts."""
        wrong_digest = faults.headers({"Docker-Content-Digest": DIGEST})
        with FaultProxy(registry, Rule(wrong_digest, "/blobs/", times=None)) as proxy:
            arrives(pull(proxy))

    def test_a_connection_that_ends_before_the_next_request(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome
    ) -> None:
        """A kept connection that has just been closed is no failure that anybody needs to hear of."""
        with FaultProxy(registry, Rule(faults.drop(), "/manifests/sha256|/blobs/")) as proxy:
            arrives(pull(proxy))


BREAKS: dict[str, Callable[[int], Fault]] = {
    "cut": faults.cut,
    "cut between chunks": lambda after: faults.cut(after, "chunked"),
    "cut without a length": lambda after: faults.cut(after, "close"),
    "reset": faults.reset,
    "silent": faults.stall,
}


class TestContinued:
    @pytest.mark.parametrize("name", BREAKS)
    def test_no_byte_comes_twice(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, name: str
    ) -> None:
        """Broken three times, more often than it may fail in vain: each time it goes on where it was."""
        fault = BREAKS[name]
        cuts = [1_000_000, 500_001, 200_000]
        with FaultProxy(registry, *(Rule(fault(cut), image.long) for cut in cuts)) as proxy:
            arrives(pull(proxy, "--retries=1", *(SHORT if name == "silent" else ())))
            assert proxy.ranges(image.long) == ["", "bytes=1000000-", "bytes=1500001-", "bytes=1700001-"]
            assert proxy.sent(image.long) == image.size

    def test_in_the_last_byte(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        with FaultProxy(registry, Rule(faults.cut(image.size - 1), image.long)) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long)[1:] == [f"bytes={image.size - 1}-"]

    def test_little_by_little_is_in_vain(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        """A few bytes each time are no progress: it would never end."""
        with FaultProxy(registry, Rule(faults.cut(10), image.long, times=None)) as proxy:
            assert "(tried 3 times)" in breaks(pull(proxy))
            assert proxy.ranges(image.long) == ["", "bytes=10-", "bytes=20-"]

    @pytest.mark.parametrize("fault", [faults.ignore_range(), faults.refuse_range()], ids=lambda one: str(one.name))
    def test_without_ranges(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, fault: Fault
    ) -> None:
        """All of it is sent again then, and what is here already is passed over."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(fault, image.long, times=None)
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long)[:2] == ["", "bytes=1000000-"]
            assert proxy.sent(image.long) == 1_000_000 + image.size

    def test_at_a_storage_service(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Where it breaks off at the place it was redirected to, the registry is asked again: such URLs expire."""
        rules = (
            Rule(faults.redirect("http://{storage}{path}"), image.long, times=None),
            Rule(faults.reset(1_000_000), image.long, at="storage"),
        )
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            asked = [(one.at, one.headers.get("range", "")) for one in proxy.of(image.long)]
            rest = "bytes=1000000-"
            assert asked == [("registry", ""), ("storage", ""), ("registry", rest), ("storage", rest)]
            assert proxy.sent(image.long) == image.size

    def test_by_several_connections(
        self, registry: Registry, cli: Cli, pull: Pull, store_root: Path, tmp_path: Path
    ) -> None:
        """A large blob from a slow registry comes in windows; one that breaks is continued, and no other is."""
        data = random.Random(3).randbytes(40 << 20)
        layout = layout_of(tmp_path / "large", Layer([File("large", data)], compression=None))
        registry.push(layout, "image", to="faults/large:1")
        [layer] = layers_of(layout)
        rules = (
            Rule(faults.drip(0.02, 1 << 20), layer["digest"]),
            Rule(faults.cut(1_000_000), layer["digest"], skip=1),
            Rule(faults.reset(2_000_000), layer["digest"], skip=2),
        )
        with FaultProxy(registry, *rules) as proxy:
            done = cli("pull", "--durability=none", "--plain-http", f"{proxy.host}/faults/large:1")
            assert done.returncode == 0, done.stderr
            assert proxy.sent(layer["digest"]) == layer["size"]
            assert len(proxy.of(layer["digest"])) > 10
        [tree] = (store_root / "layers" / "sha256").iterdir()
        assert (tree / "fs" / "large").read_bytes() == data


class TestWrongBytes:
    @pytest.mark.parametrize("at", [0, 1_234_567, 2**40])
    def test_once(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, store_root: Path, at: int
    ) -> None:
        """In the archive's header, in the middle, in its last byte: that blob is fetched once more, from its start."""
        with FaultProxy(registry, Rule(faults.corrupt(at), image.long)) as proxy:
            done = pull(proxy)
            arrives(done)
            assert image.long.removeprefix("sha256:")[:12] in done.stderr
            assert proxy.ranges(image.long) == ["", ""]
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers[1:])] == [1, 1, 1]

    def test_once_in_zstd(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        with FaultProxy(registry, Rule(faults.corrupt(50_000), image.layers[1])) as proxy:
            arrives(pull(proxy))
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers)] == [1, 1, 2, 1]

    def test_once_in_the_config(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Which is a blob as the others are."""
        with FaultProxy(registry, Rule(faults.corrupt(100), image.config)) as proxy:
            arrives(pull(proxy))
            assert [len(proxy.of(digest)) for digest in (image.config, *image.layers)] == [2, 1, 1, 1]

    def test_in_what_was_continued(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Nobody knows which part was wrong, so all of it comes again."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(faults.corrupt(5), image.long)
        with FaultProxy(registry, *rules) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == ["", "bytes=1000000-", ""]

    @pytest.mark.parametrize("place", ["layer", "config"])
    def test_twice(
        self,
        registry: Registry,
        image: Pushed,
        pull: Pull,
        arrives: Outcome,
        breaks: Breaks,
        store_root: Path,
        place: str,
    ) -> None:
        """The line names the blob; nothing of it is kept, and the other layers are."""
        digest = image.place(place)
        with FaultProxy(registry, Rule(faults.corrupt(100), digest, times=None)) as proxy:
            done = pull(proxy)
            line = breaks(done)
            assert digest in line
            assert f"(fetched again: from {proxy.host}); " in line
            assert "; fetching it again" in done.stderr
            assert len(proxy.of(digest)) == 2
            assert not [path for path in store_root.rglob(f"*{digest[7:]}*") if path.is_file()]
            proxy.rules.clear()
            arrives(pull(proxy))
            assert proxy.ranges(digest) == ["", "", ""]

    def test_at_the_mirror_and_at_the_registry(
        self, registry: Registry, image: Pushed, cli: Cli, breaks: Breaks
    ) -> None:
        """The line names both."""
        rule = Rule(faults.corrupt(100), image.long)
        with FaultProxy(registry, rule) as mirror, FaultProxy(registry, replace(rule)) as proxy:
            settings = Path(os.environ["XDG_CONFIG_HOME"], "pullpipe", "registries.conf")
            settings.parent.mkdir()
            settings.write_text(
                f'[[registry]]\nlocation = "{proxy.host}"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n'
            )
            line = breaks(cli("pull", "--durability=none", image.reference(proxy)))
            assert f"(fetched again: from {mirror.host}, then from {proxy.host}); " in line


class TestPartial:
    """What a killed pull leaves of a blob."""

    @pytest.fixture
    def left(self, registry: Registry, image: Pushed, store_root: Path, tmp_path: Path) -> Path:
        """The partial blob of a pull that was killed in the middle of the long layer."""
        with FaultProxy(registry, Rule(faults.stall(1_500_000), image.long)) as proxy:
            options = ["--plain-http", "--durability=none"]
            with started(store_root, "pull", *options, image.reference(proxy), stderr=tmp_path / "said") as process:
                until(lambda: [path for path in store_root.glob(f"ingest/*{image.long[7:]}") if path.stat().st_size])
                until(lambda: proxy.of(image.layers[2]))
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                until(lambda: group_is_gone(process))
        [path] = store_root.glob(f"ingest/*{image.long[7:]}")
        assert 0 < path.stat().st_size < image.size
        return path

    def test_is_continued(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path) -> None:
        present = left.stat().st_size
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [f"bytes={present}-"]
            assert proxy.sent(image.long) == image.size - present

    def test_is_continued_for_another_image(
        self, registry: Registry, image: Pushed, other: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        """A blob belongs to no image."""
        present = left.stat().st_size
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy, image=other), other)
            assert proxy.ranges(image.long) == [f"bytes={present}-"]

    @pytest.mark.parametrize("at", [0, 700_000])
    def test_that_was_damaged(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path, at: int
    ) -> None:
        """That is found out in the same run, and costs that blob only."""
        present = left.stat().st_size
        with left.open("r+b") as file:
            file.seek(at)
            file.write(bytes(100))
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [f"bytes={present}-", ""]
            assert all(len(proxy.of(digest)) <= 1 for digest in image.layers[1:])

    def test_that_is_longer_than_the_blob(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        with left.open("r+b") as file:
            file.truncate(image.size + 10)
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [""]

    def test_that_is_as_long_and_wrong(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        """As a file system may leave it that lost power: the length is there and the bytes are not."""
        with left.open("r+b") as file:
            file.truncate(image.size)
        with FaultProxy(registry) as proxy:
            arrives(pull(proxy))
            assert proxy.ranges(image.long) == [""]

    def test_of_a_registry_without_ranges(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, left: Path
    ) -> None:
        with FaultProxy(registry, Rule(faults.ignore_range(), "/blobs/", times=None)) as proxy:
            arrives(pull(proxy))
            assert len(proxy.of(image.long)) == 1


class TestRedirects:
    """The proxy itself fails the test when credentials come to the second host."""

    def test_to_another_host(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """By each of the statuses that there are for that."""
        places = {"/manifests/": 301, image.config: 302, **dict(zip(image.layers, (303, 307, 308), strict=True))}
        rules = [Rule(faults.redirect("http://{storage}{path}", status), path) for path, status in places.items()]
        with FaultProxy(registry, *rules, access=Access((USER, PASSWORD))) as proxy:
            arrives(pull(proxy, "--creds", f"{USER}:{PASSWORD}"))
            assert [len(proxy.of(path, at="storage")) for path in places] == [1] * 5

    @pytest.mark.parametrize("path", ["/manifests/", "/blobs/"])
    def test_with_a_password(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, path: str) -> None:
        """Basic authentication sends it with every request to the registry, and with no other."""
        redirect = Rule(faults.redirect("http://{storage}{path}"), path, method="", times=None)
        with FaultProxy(registry, redirect, access=Access((USER, PASSWORD), scheme="basic")) as proxy:
            arrives(pull(proxy, "--creds", f"{USER}:{PASSWORD}"))
            assert proxy.of(path, at="storage")

    def test_from_tls_to_plain_http(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, tmp_path: Path
    ) -> None:
        require("openssl")
        authority = Authority(tmp_path / "authority")
        redirect = Rule(faults.redirect("http://{storage}{path}"), "/blobs/", times=None)
        access = Access((USER, PASSWORD))
        with FaultProxy(registry, redirect, access=access, tls=authority.server_context()) as proxy:
            done = pull(proxy, "--creds", f"{USER}:{PASSWORD}", env={"SSL_CERT_FILE": str(authority.path)})
            arrives(done)
            assert proxy.of(image.long, at="storage")

    def test_to_another_scheme_of_the_same_host(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, tmp_path: Path
    ) -> None:
        """The token is not sent in the clear; here nobody answers that."""
        require("openssl")
        authority = Authority(tmp_path / "authority")
        redirect = Rule(faults.redirect("http://{registry}{path}"), image.long, times=None)
        context = authority.server_context()
        with FaultProxy(registry, redirect, access=Access((USER, PASSWORD)), tls=context) as proxy:
            breaks(pull(proxy, "--creds", f"{USER}:{PASSWORD}", env={"SSL_CERT_FILE": str(authority.path)}))

    @pytest.mark.parametrize("location", [ELSEWHERE + "{path}", "http://{registry}" + ELSEWHERE + "{path}"])
    def test_within_the_host(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, location: str
    ) -> None:
        """There the token is wanted, and sent."""
        redirect = Rule(faults.redirect(location), "^/v2/.*/blobs/", times=None)
        with FaultProxy(registry, redirect, access=Access()) as proxy:
            arrives(pull(proxy))
            assert len(proxy.of(ELSEWHERE)) == 4

    def test_with_credentials_in_the_url(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome) -> None:
        """Nobody asked us to be somebody else."""
        redirect = Rule(faults.redirect("http://root:toor@{storage}{path}"), image.long)
        with FaultProxy(registry, redirect) as proxy:
            arrives(pull(proxy))

    @pytest.mark.parametrize(
        "fault",
        [faults.answer(403, "Forbidden"), faults.answer(500, "Broken"), faults.stall(), faults.reset(1000)],
        ids=lambda fault: str(fault.name),
    )
    def test_no_secret_in_an_error(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks, fault: Fault
    ) -> None:
        """Neither the password, nor the token, nor the signature that lets anybody fetch the blob for a while."""
        rules = (
            Rule(faults.redirect("http://{storage}{path}?X-Signature=geheim"), image.long, times=None),
            Rule(fault, at="storage", times=None),
        )
        access = Access((USER, PASSWORD))
        with FaultProxy(registry, *rules, access=access) as proxy:
            done = pull(proxy, "--retries=1", *SHORT, "--creds", f"{USER}:{PASSWORD}")
            breaks(done)
            for secret in ("geheim", PASSWORD, *access.tokens):
                assert secret not in done.stderr


class TestTokens:
    @pytest.mark.parametrize("uses", [1, 3])
    def test_that_expire(self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, uses: int) -> None:
        """A new one is had in mid-pull, without a word; by one layer at a time, for no two can have its last use."""
        access = Access((USER, PASSWORD), uses=uses)
        with FaultProxy(registry, access=access) as proxy:
            done = pull(proxy, "--jobs=1", "--creds", f"{USER}:{PASSWORD}")
            arrives(done)
            assert len(access.tokens) == 6 // uses
            assert "again" not in done.stderr

    def test_that_expire_in_the_middle_of_a_blob(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome
    ) -> None:
        """It goes on by a range with the new one."""
        rules = Rule(faults.cut(1_000_000), image.long), Rule(faults.cut(500_000), image.long)
        with FaultProxy(registry, *rules, access=Access(uses=1)) as proxy:
            arrives(pull(proxy, "--jobs=1"))
            ranges = [one.headers.get("range", "") for one in proxy.of(image.long) if one.status != 401]
            assert ranges == ["", "bytes=1000000-", "bytes=1500000-"]

    @pytest.mark.parametrize("name", ["closed before any byte", "silent", "500", "429", "cut"])
    def test_whose_server_fails_once(
        self, registry: Registry, image: Pushed, pull: Pull, arrives: Outcome, name: str
    ) -> None:
        """A request for a token is one as all others are."""
        fault = (PASSING | BUSY)[name][0]() if name != "cut" else faults.cut(10)
        with FaultProxy(registry, Rule(fault, "^/token"), access=Access()) as proxy:
            arrives(pull(proxy, *SHORT))

    def test_that_are_not_taken(self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks) -> None:
        """A registry that refuses the token that it has just had made is not asked for ever."""
        access = Access((USER, PASSWORD), uses=0)
        with FaultProxy(registry, access=access) as proxy:
            done = pull(proxy, "--creds", f"{USER}:{PASSWORD}")
            assert proxy.host in breaks(done)
            assert len(proxy.exchanges) < 10
            assert not [secret for secret in (PASSWORD, *access.tokens) if secret in done.stderr]

    def test_that_a_wrong_password_does_not_give(
        self, registry: Registry, image: Pushed, pull: Pull, breaks: Breaks
    ) -> None:
        with FaultProxy(registry, access=Access((USER, PASSWORD))) as proxy:
            line = breaks(pull(proxy, "--creds", f"{USER}:Hurz"))
            assert USER in line
            assert "Hurz" not in line
