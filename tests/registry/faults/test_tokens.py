"""Tokens that end in the middle of a pull, and token servers that fail."""

from __future__ import annotations

import pytest

from tests.registry.faults.rig import BUSY, PASSING, PASSWORD, SHORT, USER, Breaks, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.access import Access
from tests.support.faulty_proxy import FaultProxy, Rule
from tests.support.registry import Registry

pytestmark = pytest.mark.needs_root


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
