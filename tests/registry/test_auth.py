"""Challenges as registries send them, and credentials that do not show."""

from __future__ import annotations

import base64
import traceback

import pytest

from pullpipe.errors import Unauthorized
from pullpipe.registry.auth import Challenge
from pullpipe.registry.credentials import Credentials

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/a:pull"'


@pytest.mark.parametrize(
    ("header", "scheme", "parameters"),
    [
        (
            HUB,
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/a:pull",
            },
        ),
        ('Basic realm="Registry"', "basic", {"realm": "Registry"}),
        ("Basic", "basic", {}),
        ("basic realm=x", "basic", {"realm": "x"}),
        ('BEARER Realm="https://a/t" , SERVICE=b', "bearer", {"realm": "https://a/t", "service": "b"}),
        ('Bearer realm = "https://a/t"', "bearer", {"realm": "https://a/t"}),
        ('Bearer realm="https://a/t",error="invalid_token"', "bearer", {"realm": "https://a/t"}),
        (r'Basic realm="a \"quoted\" \\ word"', "basic", {"realm": r'a "quoted" \ word'}),
        ('Basic realm="commas, too"', "basic", {"realm": "commas, too"}),
        ('Bearer realm="https://a/t",scope="repository:a:pull,push"', "bearer", {"scope": "repository:a:pull,push"}),
        # Several in one header: the strongest, with its own parameters.
        ('Basic realm="x", Bearer realm="https://a/t",service="s"', "bearer", {"realm": "https://a/t"}),
        ('Bearer realm="https://a/t",service="s", Basic realm="x"', "bearer", {"realm": "https://a/t", "service": "s"}),
        ('Negotiate, Basic realm="x"', "basic", {"realm": "x"}),
        ('Digest realm="d", nonce="n", Basic realm="x"', "basic", {"realm": "x"}),
        # A scheme's name in a quoted text is no scheme.
        ('Basic realm="for Bearer tokens"', "basic", {"realm": "for Bearer tokens"}),
        ('Bearer realm="https://a/t",service="Basic service"', "bearer", {"service": "Basic service"}),
    ],
)
def test_challenge(header: str, scheme: str, parameters: dict[str, str]) -> None:
    """RFC 9110, section 11.6.1: schemes and names in any case, values quoted or not, several in one header."""
    challenge = Challenge.parse(header)
    assert challenge is not None
    assert challenge.scheme == scheme
    assert parameters.items() <= challenge.parameters.items()


@pytest.mark.parametrize("header", ["", "Negotiate", 'Digest realm="x", nonce="y"', "NotBasic realm=x", "nonsense,,"])
def test_no_challenge_that_is_understood(header: str) -> None:
    """Also a scheme whose name only ends like one that is."""
    assert Challenge.parse(header) is None


def test_parameters_stay_with_their_challenge() -> None:
    """The realm of one is never taken for another's: the credentials would go there."""
    challenge = Challenge.parse('Bearer service="s", Basic realm="https://elsewhere/"')
    assert challenge == Challenge("bearer", {"service": "s"})


class TestCredentials:
    def test_parse(self) -> None:
        """At the first colon: passwords may have more of them, and may be empty."""
        assert Credentials.parse("u:p") == Credentials("u", "p")
        assert Credentials.parse("u:p:q:") == Credentials("u", "p:q:")
        assert Credentials.parse("u:") == Credentials("u", "")

    @pytest.mark.parametrize("text", ["", "word", ":secret"])
    def test_parse_what_is_none(self, text: str) -> None:
        """The text is not repeated: what a user types there is a secret."""
        with pytest.raises(Unauthorized, match="USER:PASSWORD") as caught:
            Credentials.parse(text)
        shown = "".join(traceback.format_exception(caught.value))
        assert not text or text not in str(caught.value)
        assert "secret" not in shown

    def test_header(self) -> None:
        """RFC 7617, in UTF-8."""
        scheme, _, encoded = Credentials("Jürgen", "pass:wörd").header().partition(" ")
        assert scheme == "Basic"
        assert base64.b64decode(encoded).decode() == "Jürgen:pass:wörd"

    def test_the_password_does_not_show(self) -> None:
        """However they are printed, alone or inside of something else."""
        credentials = Credentials("user", "open sesame")
        for shown in (
            str(credentials),
            repr(credentials),
            f"{credentials}",
            repr([credentials]),
            f"{credentials!s:>9}",
        ):
            assert "sesame" not in shown
            assert "user" in shown
