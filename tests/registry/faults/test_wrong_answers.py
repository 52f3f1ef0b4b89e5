"""An answer that is wrong in itself would be the same again: one line tells at once."""

from __future__ import annotations

import re

import pytest

from tests.registry.faults.rig import DIGEST, GET, HEAD, Breaks, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.faulty_proxy import Fault, FaultProxy, Rule
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

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
