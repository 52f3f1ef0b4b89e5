"""Blobs that lie elsewhere; what is secret stays with the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import require
from tests.registry.faults.rig import PASSWORD, SHORT, USER, Breaks, Outcome, Pull, Pushed
from tests.support import faults
from tests.support.access import Access
from tests.support.faulty_proxy import ELSEWHERE, Fault, FaultProxy, Rule
from tests.support.registry import Authority, Registry

pytestmark = pytest.mark.needs_root


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
