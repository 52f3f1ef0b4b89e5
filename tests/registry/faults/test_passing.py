"""What goes wrong for a moment is tried again; what lasts is told, with how often it was tried."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.registry.faults.rig import BUSY, GET, HEAD, PASSING, SHORT, Breaks, Make, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.faulty_proxy import FaultProxy, Rule
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root

BUSY_TOO: list[Make] = [
    lambda: faults.answer(504, "Gateway Timeout"),
    lambda: faults.answer(429, "Slow down", {"Retry-After": "soon"}),
    lambda: faults.refusal_until(503, "Unavailable", -1000),
    lambda: faults.refusal_until(429, "Too Many", 1),
    lambda: faults.answer(429, "Slow down", {"Retry-After": "-1"}),
    lambda: faults.answer(425, "Too Early"),
]


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
        broken = faults.answer(500, "Broken", {"Retry-After": "3"})  # time enough for the others
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
