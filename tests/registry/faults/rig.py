"""What the tests of faults share: an image in a registry, what can go wrong for a moment, their fixtures' forms."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from tests.cli.rig import digest_of, document, file_layer, layers_of, layout_of
from tests.pipe.oracle import flattened
from tests.support import faults
from tests.support.faulty_proxy import Fault, FaultProxy
from tests.support.images import File, Layer
from tests.support.registry import Registry
from tests.support.tree import Snapshot

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


class Outcome(Protocol):
    def __call__(self, done: CompletedProcess[str], image: Pushed | None = None) -> None: ...


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
SHORT = ("--timeout=2",)  # for what is silent; the rest may take as long as a busy machine needs
DIGEST = "sha256:" + "0" * 64
