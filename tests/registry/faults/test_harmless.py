"""What is unusual and allowed, or no matter."""

from __future__ import annotations

import pytest

from tests.registry.faults.rig import DIGEST, GET, HEAD, SHORT, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.faulty_proxy import Fault, FaultProxy, Rule
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

# What is unusual and allowed, or no matter: method, fault.
ODD = {"Content-Encoding": "gzip", "Docker-Content-Digest": None, "Content-Type": None}
HARMLESS: dict[str, tuple[str, Fault]] = {
    "connections that end": (GET, faults.hang_up(announced=True)),
    "connections that end unannounced": (GET, faults.hang_up(announced=False)),
    "slower than the timeout": (GET, faults.drip(0.5, 400_000)),
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
