"""What registries.conf and hosts.toml say, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullpipe.errors import BadConfiguration, Blocked, PullpipeError, TransferError
from pullpipe.reference import Reference
from pullpipe.registry.hosts import Endpoint, Hosts, Paths, Tls, origin
from tests.conftest import PROJECT

DIGEST = "@sha256:" + "0" * 64
OTHER = "@sha256:" + "1" * 64


def own(tmp_path: Path, text: str, image: str) -> list[Endpoint]:
    """What pullpipe's own file makes of the image."""
    (tmp_path / "own.conf").write_text(text)
    return Hosts(Paths(own=(f"{tmp_path}/own.conf",))).endpoints(Reference.parse(image))


def podman(tmp_path: Path, text: str, image: str) -> list[Endpoint]:
    """What Podman's file makes of it."""
    (tmp_path / "registries.conf").write_text(text)
    return Hosts(Paths(podman=(str(tmp_path),))).endpoints(Reference.parse(image))


def containerd(tmp_path: Path, text: str, image: str) -> list[Endpoint]:
    """What containerd's file makes of it, of whatever registry it is."""
    (tmp_path / "_default").mkdir(exist_ok=True)
    (tmp_path / "_default" / "hosts.toml").write_text(text)
    return Hosts(Paths(containerd=(str(tmp_path),))).endpoints(Reference.parse(image))


def told(place: Endpoint) -> str:
    """An endpoint in one line."""
    namespace = f"?ns={place.namespace}" if place.namespace else ""
    trust = "" if place.tags else " digests"
    mirror = "mirror " if place.mirror else ""
    return f"{mirror}{'|'.join(place.schemes)}://{place.host}{place.path}/{place.repository}{namespace}{trust}"


def registry(*lines: str) -> str:
    return "\n".join(["[[registry]]", *lines, ""])


def mirror(*lines: str) -> str:
    return "\n".join(["[[registry.mirror]]", *lines, ""])


def to(prefix: str, location: str) -> str:
    return registry(f'prefix = "{prefix}"', f'location = "{location}"')


@pytest.mark.parametrize(
    ("prefix", "location", "image", "place"),
    [
        # A prefix ends where a part of the name does.
        ("a.example", "b.example", "a.example/foo", "b.example/v2/foo"),
        ("a.example", "b.example/x/y", "a.example/foo/bar:1", "b.example/v2/x/y/foo/bar"),
        ("a.example", "b.example", "a.example.org/foo", None),
        ("a.example", "b.example", "aa.example/foo", None),
        ("a.example", "b.example", "a.example:5000/foo", None),
        ("a.example:5000", "b.example", "a.example/foo", None),
        ("a.example:5000", "b.example", "a.example:5000/foo", "b.example/v2/foo"),
        ("a.example/foo", "b.example/x", "a.example/foo/bar", "b.example/v2/x/bar"),
        ("a.example/foo", "b.example/x", "a.example/foo", "b.example/v2/x"),
        ("a.example/foo", "b.example/x", "a.example/foo:1", "b.example/v2/x"),
        ("a.example/foo", "b.example/x", f"a.example/foo{DIGEST}", "b.example/v2/x"),
        ("a.example/foo", "b.example/x", "a.example/foobar", None),
        ("a.example/foo", "b.example/x", "a.example/fo", None),
        ("a.example/foo", "b.example/x", "a.example/foo-bar/foo", None),
        ("a.example/foo", "b.example/x", "b.example/a.example/foo", None),
        ("a.example/foo/", "b.example/x/", "a.example/foo/bar", "b.example/v2/x/bar"),
        # Down to the tag or the digest.
        ("a.example/foo:1", "b.example/x", "a.example/foo:1", "b.example/v2/x"),
        ("a.example/foo:1", "b.example/x:1", "a.example/foo:1", "b.example/v2/x"),
        ("a.example/foo:1", "b.example/x", f"a.example/foo:1{DIGEST}", "b.example/v2/x"),
        ("a.example/foo:1", "b.example/x", "a.example/foo:11", None),
        ("a.example/foo:1", "b.example/x", "a.example/foo", None),
        ("a.example/foo:latest", "b.example/x", "a.example/foo", "b.example/v2/x"),
        ("a.example/foo:1", "b.example/x", "a.example/foo/bar:1", None),
        (f"a.example/foo{DIGEST}", "b.example/x", f"a.example/foo{DIGEST}", "b.example/v2/x"),
        (f"a.example/foo{DIGEST}", "b.example/x", f"a.example/foo:1{DIGEST}", "b.example/v2/x"),
        (f"a.example/foo{DIGEST}", "b.example/x", f"a.example/foo{OTHER}", None),
        (f"a.example/foo{DIGEST}", "b.example/x", "a.example/foo:1", None),
        # Subdomains: any number, any port, and not the domain itself.
        ("*.example", "b.org/x", "a.example/foo", "b.org/v2/x/foo"),
        ("*.example", "b.org", "a.b.example/foo/bar", "b.org/v2/foo/bar"),
        ("*.example", "b.org/x", "a.example:5000/foo", "b.org/v2/x/foo"),
        ("*.a.example", "b.org", "a.example/foo", None),
        ("*.a.example", "b.org", "ba.example/foo", None),
        ("*.a.example", "b.org", "x.a.example.org/foo", None),
        ("*.a.example", "b.org", "b.org/x.a.example/foo", None),
        # Docker Hub, in all its names, and its library.
        ("docker.io", "b.example/hub", "alpine", "b.example/v2/hub/library/alpine"),
        ("index.docker.io", "b.example/hub", "me/app", "b.example/v2/hub/me/app"),
        ("docker.io/library", "b.example", "alpine", "b.example/v2/alpine"),
        ("docker.io/alpine", "b.example", "alpine", None),
        ("a.example", "docker.io", "a.example/foo/bar", "registry-1.docker.io/v2/foo/bar"),
        ("a.example", "docker.io", "a.example/foo", "registry-1.docker.io/v2/library/foo"),
        ("a.example", "index.docker.io/me", "a.example/foo", "registry-1.docker.io/v2/me/foo"),
        ("a.example", "registry-1.docker.io/me", "a.example/foo", "registry-1.docker.io/v2/me/foo"),
        # Addresses.
        ("[2001:db8::1]:5000", "[2001:db8::2]/x", "[2001:db8::1]:5000/foo", "[2001:db8::2]/v2/x/foo"),
        ("192.0.2.1", "b.example:5000", "192.0.2.1/foo", "b.example:5000/v2/foo"),
    ],
)
def test_prefixes_and_locations(tmp_path: Path, prefix: str, location: str, image: str, place: str | None) -> None:
    """The same in both files; what no prefix fits goes where its name says."""
    for source in (own, podman):
        [only] = source(tmp_path, to(prefix, location), image)
        reference = Reference.parse(image)
        assert told(only) == (f"https://{place}" if place else told(origin(reference)))
        hub = "docker.io" if only.host == "registry-1.docker.io" else only.host
        assert only.registry == hub, "whose credentials it takes"


@pytest.mark.parametrize(
    ("image", "host"),
    [
        ("a.example/x", "one.org"),
        ("a.example/foo/x", "two.org"),
        ("a.example/foo/bar", "three.org"),
        ("a.example/foo/bar:1", "four.org"),
        (f"a.example/foo/bar:1{DIGEST}", "five.org"),
        ("b.example/x", "six.org"),
    ],
)
def test_the_longest_prefix_wins(tmp_path: Path, image: str, host: str) -> None:
    """Whatever their order. The domain of one letter is as long as the asterisk, and goes before it."""
    prefixes = {
        "a.example": "one.org",
        "a.example/foo": "two.org",
        "a.example/foo/bar": "three.org/bar",
        "a.example/foo/bar:1": "four.org/bar",
        f"a.example/foo/bar{DIGEST}": "five.org/bar",
        "*.example": "six.org",
    }
    for order in (list(prefixes), list(reversed(prefixes))):
        [place] = own(tmp_path, "".join(to(prefix, prefixes[prefix]) for prefix in order), image)
        assert place.host == host


def test_of_one_prefix_podman_takes_the_first(tmp_path: Path) -> None:
    """In our own file that is a mistake."""
    text = to("a.example", "one.org") + to("a.example", "two.org")
    [place] = podman(tmp_path, text, "a.example/x")
    assert place.host == "one.org"
    with pytest.raises(BadConfiguration, match=r"two \[\[registry\]\] tables for a\.example"):
        own(tmp_path, text, "b.example/x")


def test_mirrors_come_first(tmp_path: Path) -> None:
    """In their order; each is told for whom it is to speak, if it is not of the same registry."""
    text = (
        registry('prefix = "a.example/foo"', 'location = "b.example/x"')
        + mirror('location = "m.example:5000/y/z"')
        + mirror('location = "a.example/copy"', 'pull-from-mirror = "all"')
        + mirror('location = "docker.io/me"', "insecure = true")
    )
    places = own(tmp_path, text, "a.example/foo/bar:1")
    assert [told(place) for place in places] == [
        "mirror https://m.example:5000/v2/y/z/bar?ns=a.example digests",
        "mirror https://a.example/v2/copy/bar",
        "mirror https|http://registry-1.docker.io/v2/me/bar?ns=a.example digests",
        "https://b.example/v2/x/bar",
    ]
    assert [place.registry for place in places] == ["m.example:5000", "a.example", "docker.io", "b.example"]
    assert [place.tls.verify for place in places] == [True, True, False, True]


def test_a_mirror_of_docker_hub(tmp_path: Path) -> None:
    """Also where the location is left out, as it is with ours."""
    text = registry('prefix = "docker.io"') + mirror('location = "m.example/hub"', 'pull-from-mirror = "all"')
    assert [told(place) for place in own(tmp_path, text, "alpine")] == [
        "mirror https://m.example/v2/hub/library/alpine?ns=docker.io",
        "https://registry-1.docker.io/v2/library/alpine",
    ]


def test_a_domain_without_a_location_is_not_rewritten(tmp_path: Path) -> None:
    text = registry('prefix = "*.example"', "insecure = true") + mirror('location = "m.org"')
    for source in (own, podman):
        mirrored, registry_ = source(tmp_path, text, "a.example:5000/foo")
        assert (mirrored.host, mirrored.repository, mirrored.tls.verify) == ("m.org", "foo", True)
        assert (registry_.host, registry_.repository, registry_.tls.verify) == ("a.example:5000", "foo", False)


@pytest.mark.parametrize("by_digest_only", [False, True])
@pytest.mark.parametrize("image", ["a.example/foo:1", f"a.example/foo{DIGEST}"])
@pytest.mark.parametrize("serves", ["", "all", "digest-only", "tag-only"])
def test_what_a_mirror_is_for(tmp_path: Path, serves: str, image: str, by_digest_only: bool) -> None:
    """Unless told, Podman's is believed in all it says, ours only what proves itself. The registry itself always is."""
    text = registry('location = "a.example"', f"mirror-by-digest-only = {str(by_digest_only).lower()}") + mirror(
        'location = "m.example"', f'pull-from-mirror = "{serves}"'
    )
    for source, default in ((own, "digest-only"), (podman, "all")):
        *mirrors, registry_ = source(tmp_path, text, image)
        assert registry_.tags
        effective = "digest-only" if by_digest_only else serves or default
        if effective == "tag-only" and DIGEST in image:
            assert mirrors == []
        else:
            assert [place.tags for place in mirrors] == [effective != "digest-only"]


@pytest.mark.parametrize(
    ("lines", "schemes", "tls"),
    [
        ([], ("https",), Tls()),
        (["insecure = true"], ("https", "http"), Tls(verify=False)),
        (["insecure = false", "plain-http = false"], ("https",), Tls()),
        (["plain-http = true"], ("http",), Tls()),
        (["plain-http = true", "insecure = true"], ("http",), Tls(verify=False)),
        (['socket = "/run/r.sock"'], ("http",), Tls()),
        (['ca = "/ca.crt"'], ("https",), Tls(ca=("/ca.crt",))),
        (['ca = ["/1.crt", "/2.crt"]'], ("https",), Tls(ca=("/1.crt", "/2.crt"))),
        (['client-cert = "/c.pem"'], ("https",), Tls(certificate="/c.pem")),
        (['client-cert = "/c.crt"', 'client-key = "/c.key"'], ("https",), Tls(certificate="/c.crt", key="/c.key")),
    ],
)
def test_how_to_speak_to_it(tmp_path: Path, lines: list[str], schemes: tuple[str, ...], tls: Tls) -> None:
    """The registry, or a mirror; what is said of the one is not said of the other."""
    place, a_mirror = 'location = "a.example"', 'location = "m.example"'
    mirrored, registry_ = own(tmp_path, registry(place, *lines) + mirror(a_mirror), "a.example/x")
    assert (registry_.schemes, registry_.tls) == (schemes, tls)
    assert (mirrored.schemes, mirrored.tls) == (("https",), Tls())
    mirrored, registry_ = own(tmp_path, registry(place) + mirror(a_mirror, *lines), "a.example/x")
    assert (mirrored.schemes, mirrored.tls) == (schemes, tls)
    assert (registry_.schemes, registry_.tls) == (("https",), Tls())


def test_loopback_needs_no_insecure(tmp_path: Path) -> None:
    [place] = podman(tmp_path, to("a.example", "127.0.0.1:5000"), "a.example/x")
    assert told(place) == "https|http://127.0.0.1:5000/v2/x"


def test_paths_are_seen_from_the_file(tmp_path: Path) -> None:
    lines = ['location = "a.example"', 'ca = "ca.crt"', 'client-cert = "../c"', 'client-key = "k"', 'socket = "s"']
    [place] = own(tmp_path, registry(*lines), "a.example/x")
    assert place.tls == Tls(True, (f"{tmp_path}/ca.crt",), f"{tmp_path}/../c", f"{tmp_path}/k")
    assert place.socket == f"{tmp_path}/s"


def test_headers_and_connections(tmp_path: Path) -> None:
    lines = ['location = "a.example"', "connections = 4", 'headers = {Authorization = "Bearer x", X-List = ["1", "2"]}']
    [place] = own(tmp_path, registry(*lines), "a.example/x")
    assert place.headers == {"Authorization": "Bearer x", "X-List": "1, 2"}
    assert place.connections == 4


def test_podman_passes_over_what_it_does_not_know(tmp_path: Path) -> None:
    """Among that are the keys of ours."""
    text = 'short-name-mode = "enforcing"\n[aliases]\nfoo = "a.example/foo"\n' + registry(
        'location = "a.example"', "plain-http = true", 'ca = "/x"', "connections = 1", "socket = 5", "new-key = 1"
    )
    [place] = podman(tmp_path, text, "a.example/foo")
    assert place == Endpoint("a.example", "a.example", "foo")


BLOCKED = [
    ('location = "a.example"', "a.example/foo"),
    ('prefix = "a.example/foo"', f"a.example/foo/bar:1{DIGEST}"),
    ('location = "a.example/foo:1"', "a.example/foo:1"),
    ('prefix = "*.example"', "a.example:5000/foo"),
    ('prefix = "docker.io"', "alpine"),
]


@pytest.mark.parametrize(("line", "image"), BLOCKED)
def test_blocked(tmp_path: Path, line: str, image: str) -> None:
    """No option gets around it. The message names the file."""
    for source in (own, podman):
        with pytest.raises(Blocked, match=r"is blocked: /.*\.conf says so of ") as caught:
            source(tmp_path, registry(line, "blocked = true"), image)
        assert isinstance(caught.value, TransferError)
    for options in ({"plain_http": True}, {"unix_socket": "/s"}):
        with pytest.raises(Blocked):
            Hosts(Paths(own=(f"{tmp_path}/own.conf",))).endpoints(Reference.parse(image), **options)
    assert own(tmp_path, registry(line, "blocked = true"), "other.org/x")


def test_version_1(tmp_path: Path) -> None:
    """Podman's old format: what is said twice is blocked; where to search for names is not ours."""
    text = """
        [registries.search]
        registries = ["search.example"]
        [registries.insecure]
        registries = ["a.example:5000", "b.example"]
        [registries.block]
        registries = ["b.example"]
    """
    [insecure] = podman(tmp_path, text, "a.example:5000/x")
    assert (insecure.schemes, insecure.tls.verify) == (("https", "http"), False)
    [other] = podman(tmp_path, text, "search.example/x")
    assert other == Endpoint("search.example", "search.example", "x")
    with pytest.raises(Blocked):
        podman(tmp_path, text, "b.example/x")


OURS_AND_PODMANS = [
    ("[[registry]]\nlocation = ", "is not TOML: Invalid value (at end of document); correct it"),
    ("[[registry]]\n\nlocation = a.example", "is not TOML: Invalid value (at line 3, column 12); correct it"),
    ("[registry]\nlocation = 'a.example'", "registry is to be a list"),
    ("registry = ['a.example']", "are to be in a table"),
    ("[[registry]]", "'' is no beginning of an image's name"),
    (registry('prefix = ""'), "'' is no beginning of an image's name"),
    (registry("location = 5"), "location is to be a text"),
    (registry('location = "a.example"', 'insecure = "true"'), "insecure is to be true or false"),
    (registry('location = "a.example"', "insecure = 1"), "insecure is to be true or false"),
    (registry('location = "a.example"', 'mirror = "m.example"'), "are to be in a table"),
    (registry('location = "a.example"') + mirror("insecure = true"), "'' is no beginning of an image's name"),
    (
        registry('location = "a.example"') + mirror('location = "m.example"', 'pull-from-mirror = "tags"'),
        "is to be all, ",
    ),
    *(
        (registry(f"{key} = {location!r}"), "is to be HOST[:PORT][/PATH] without a scheme, a user or spaces")
        for location in (
            "https://a.example",
            "http://a.example/x",
            "docker://a.example",
            "a.example/ x",
            " a.example",
            "a.example\\u00a0",
            "a.example:port/x",
            "a.example:123456/x",
            "a.example:1:2",
            "a.example:tag",
            "a.example//x",
            "a.example/X",
            "a.example/x:",
            "a.example/x@sha256",
            "a.example/*",
            "*",
            "*.",
            "*.example/x",
            "*.example:5000",
            "a.*.example",
            "/x",
            "-a.example",
            "mirror",
            "mirror/x",
        )
        for key in ("location", "prefix")
    ),
    (registry('location = "*.example"'), "'*.example' is no beginning"),
    (to("a.example/foo:1", "b.example/x:2"), "b.example/x:2 has another tag or digest than a.example/foo:1"),
    (to("a.example/foo", f"b.example/x{DIGEST}"), "has another tag or digest than a.example/foo; leave it out"),
    (to("a.example/foo:1", f"b.example/x{DIGEST}"), "has another tag or digest"),
]
OURS = [
    (
        registry('location = "a.example"', "block = true"),
        "there is no key 'block' here; there are location, insecure, ",
    ),
    (registry('location = "a.example"', "skip_verify = true"), "there is no key 'skip_verify' here"),
    (registry('location = "a.example"', 'pull-from-mirror = "all"'), "there is no key 'pull-from-mirror' here"),
    (registry('location = "a.example"') + mirror('location = "m.example"', "blocked = true"), "no key 'blocked' here"),
    ("[[registri]]", "there is no key 'registri' here; there are registry"),
    ("unqualified-search-registries = []", "there is no key 'unqualified-search-registries' here"),
    ("[registries.block]\nregistries = ['a.example']", "there is no key 'registries' here"),
    ("nonsense", "is not TOML: Expected '=' after a key in a key/value pair (at end of document)"),
    (registry('location = "a.example"', 'plain-http = "yes"'), "plain-http is to be true or false"),
    (registry('location = "a.example"', "connections = true"), "connections is to be a number"),
    (registry('location = "a.example"', "connections = 0"), "connections is to be 1 or more"),
    (registry('location = "a.example"', "ca = 1"), "ca is to be a list"),
    (registry('location = "a.example"', "headers = 'X: 1'"), "headers is to be a table"),
]
WHEN_USED = [
    (registry('location = "a.example"', "ca = [1]"), "ca is to be a path"),
    (
        registry('location = "a.example"', 'headers = {"X Y" = "1"}'),
        "the header 'X Y' is to be a name and one line of text",
    ),
    (registry('location = "a.example"', "headers = {X = 1}"), "the header 'X' is to be"),
    (registry('location = "a.example"', "headers = {X = []}"), "the header 'X' is to be"),
    (registry('location = "a.example"', 'headers = {X = "1\\r\\nY: 2"}'), "the header 'X' is to be"),
    (to("a.example/foo", "localhost:5000"), "'' is no valid name; correct the location"),
    (
        to("a.example/foo", "b.example"),
        "a.example/foo at b.example makes a.example/foo:latest an invalid image reference",
    ),
]


@pytest.mark.parametrize(("text", "message"), OURS_AND_PODMANS)
def test_mistakes(tmp_path: Path, text: str, message: str) -> None:
    """One line, which names the file, whatever image is asked for."""
    for source, name in ((own, "own.conf"), (podman, "registries.conf")):
        with pytest.raises(BadConfiguration) as caught:
            source(tmp_path, text, "unrelated.org/x")
        assert str(caught.value).startswith(f"{tmp_path}/{name}")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "message"), OURS)
def test_mistakes_in_our_own(tmp_path: Path, text: str, message: str) -> None:
    """What Podman passes over: a typing error in a security setting must not be silent."""
    with pytest.raises(BadConfiguration) as caught:
        own(tmp_path, text, "unrelated.org/x")
    assert message in str(caught.value)
    assert podman(tmp_path, text.replace("nonsense", "").replace("block]", "x]"), "unrelated.org/x")


@pytest.mark.parametrize(("text", "message"), WHEN_USED)
def test_mistakes_that_are_seen_when_the_place_is_used(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        own(tmp_path, text, "a.example/foo")
    assert message in str(caught.value)


def test_not_text(tmp_path: Path) -> None:
    (tmp_path / "own.conf").write_bytes(b"[[registry]]\nlocation = '\xff'")
    with pytest.raises(BadConfiguration, match="is not TOML: 'utf-8' codec can't decode"):
        Hosts(Paths(own=(f"{tmp_path}/own.conf",))).endpoints(Reference.parse("a"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            registry(f"{key} = '{place}'")
            for key in ("location", "prefix")
            for place in ("me:hunter2@a.example", "https://me:hunter/2hunter2@a.example/x")
        ),
        registry('location = "a.example"') + mirror("location = 'https://me:hunter2@m.example'"),
        registry('location = "a.example"', 'headers = {"X Y" = "hunter2"}'),
        registry('location = "a.example"', 'headers = {X = "hunter2\\n"}'),
        '[host."https://me:hunter2@a.example"]\n[host."https://me:hunter2@a.example"]',
        'server = "https://me:hunter2@a.example"',
        '[host."https://me:hunter2@a.example"]',
    ],
)
def test_no_secret_is_in_a_message(tmp_path: Path, text: str) -> None:
    with pytest.raises(PullpipeError) as caught:
        (containerd if "[host" in text or "server" in text else own)(tmp_path, text, "a.example/foo")
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "places"),
    [
        # Hosts in their order, the registry itself behind them, or the server in its place.
        ('[host."https://m.example"]', ["mirror https://m.example/v2/foo?ns=a.example", "https://a.example/v2/foo"]),
        ('server = "https://b.example"', ["https://b.example/v2/foo?ns=a.example"]),
        ('server = "https://a.example"', ["https://a.example/v2/foo"]),
        ('server = "b.example:5000"', ["https://b.example:5000/v2/foo?ns=a.example"]),
        (
            'server = "http://b.example"\n[host."https://2.example"]\n[host."http://1.example:80"]\n[host."3.example"]',
            [
                "mirror https://2.example/v2/foo?ns=a.example",
                "mirror http://1.example:80/v2/foo?ns=a.example",
                "mirror https://3.example/v2/foo?ns=a.example",
                "http://b.example/v2/foo?ns=a.example",
            ],
        ),
        ("", ["https://a.example/v2/foo"]),
        ("# nothing", ["https://a.example/v2/foo"]),
        ("[host]", ["https://a.example/v2/foo"]),
        ('proxy = "http://p"\ndial_timeout = "1s"', ["https://a.example/v2/foo"]),
        # A path goes before the API, or is where it begins.
        ('server = "https://b.example/x/y"', ["https://b.example/x/y/v2/foo?ns=a.example"]),
        ('server = "https://b.example/x/"', ["https://b.example/x/v2/foo?ns=a.example"]),
        ('server = "https://b.example/x/v2"', ["https://b.example/x/v2/foo?ns=a.example"]),
        ('server = "https://b.example/"', ["https://b.example/v2/foo?ns=a.example"]),
        ('server = "https://b.example/v2/x"\noverride_path = true', ["https://b.example/v2/x/foo?ns=a.example"]),
        ('server = "https://b.example"\noverride_path = true', ["https://b.example/foo?ns=a.example"]),
        (
            '[host."http://b/v2/x"]\noverride_path = true',
            ["mirror http://b/v2/x/foo?ns=a.example", "https://a.example/v2/foo"],
        ),
        # Capabilities.
        (
            """
            host."https://1.example".capabilities = ["pull"]
            host."https://2.example".capabilities = ["resolve", "push"]
            host."https://3.example".capabilities = ["pull", "resolve"]
            host."https://4.example".capabilities = []
            """,
            [
                "mirror https://1.example/v2/foo?ns=a.example digests",
                "mirror https://3.example/v2/foo?ns=a.example",
                "mirror https://4.example/v2/foo?ns=a.example",
                "https://a.example/v2/foo",
            ],
        ),
        (
            'server = "https://b.example"\ncapabilities = ["push"]\n[host."https://m.example"]',
            ["mirror https://m.example/v2/foo?ns=a.example"],
        ),
        # A table of headers in between changes no order.
        (
            '[host."https://1.example"]\n[host."https://2.example"]\n[host."https://1.example".header]\nX = "1"',
            [
                "mirror https://1.example/v2/foo?ns=a.example",
                "mirror https://2.example/v2/foo?ns=a.example",
                "https://a.example/v2/foo",
            ],
        ),
        # Docker Hub by name, and hosts without a dot, which here are hosts.
        ('server = "https://docker.io"', ["https://registry-1.docker.io/v2/foo?ns=a.example"]),
        ('server = "https://mirror"', ["https://mirror/v2/foo?ns=a.example"]),
        ('server = "http://[::1]:5000/x"', ["http://[::1]:5000/x/v2/foo?ns=a.example"]),
        ('server = "https://127.0.0.1:5000"', ["https://127.0.0.1:5000/v2/foo?ns=a.example"]),
    ],
)
def test_hosts_toml(tmp_path: Path, text: str, places: list[str]) -> None:
    assert [told(place) for place in containerd(tmp_path, text, "a.example/foo:1")] == places


def test_hosts_toml_of_docker_hub(tmp_path: Path) -> None:
    """The server is the registry itself, by whichever of its names."""
    for server in ("docker.io", "registry-1.docker.io", "index.docker.io"):
        [place] = containerd(tmp_path, f'server = "https://{server}"', "alpine")
        assert told(place) == "https://registry-1.docker.io/v2/library/alpine"
        assert place.registry == "docker.io"


def test_hosts_toml_keeps_what_it_says_of_the_registry_itself(tmp_path: Path) -> None:
    """Without a server these are its own."""
    text = 'ca = "ca.crt"\nskip_verify = true\n[header]\nX = ["1", "2"]\n[host."https://m.example"]\n'
    mirrored, place = containerd(tmp_path, text, "127.0.0.1:5000/foo")
    assert (mirrored.tls, mirrored.headers) == (Tls(), {})
    assert place.tls == Tls(False, (f"{tmp_path}/_default/ca.crt",))
    assert place.headers == {"X": "1, 2"}
    assert place.schemes == ("https", "http"), "as of any registry on loopback"


@pytest.mark.parametrize(
    ("lines", "tls"),
    [
        ("ca = '/1.crt'", Tls(ca=("/1.crt",))),
        ("ca = ['/1.crt', 'sub/2.crt']", Tls(ca=("/1.crt", "HERE/sub/2.crt"))),
        ("client = '/c.pem'", Tls(certificate="/c.pem")),
        ("client = ['c.pem', 'not.pem']", Tls(certificate="HERE/c.pem")),
        ("client = [['/c.cert', 'c.key'], ['/not.cert', '']]", Tls(certificate="/c.cert", key="HERE/c.key")),
        ("client = [['/c.pem', '']]", Tls(certificate="/c.pem")),
        ("skip_verify = true", Tls(verify=False)),
        ("skip_verify = false\nclient = []\nca = []", Tls()),
    ],
)
def test_tls_in_hosts_toml(tmp_path: Path, lines: str, tls: Tls) -> None:
    """Of the clients' certificates, the first. Insecure is only HTTPS that proves nothing."""
    here = f"{tmp_path}/_default"
    mirrored, registry_ = containerd(tmp_path, f'[host."https://m.example"]\n{lines}', "a.example/foo")
    expected = tls._replace(
        ca=tuple(path.replace("HERE", here) for path in tls.ca),
        certificate=tls.certificate.replace("HERE", here),
        key=tls.key.replace("HERE", here),
    )
    assert mirrored.tls == expected
    assert mirrored.schemes == ("https",)
    assert registry_.tls == Tls()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("server = ", "is not TOML: Invalid value"),
        ("server = 5", "server is to be a text"),
        ("[[host]]", "host is to be a table"),
        ("host = {'https://m.example' = 1}", "are to be in a table"),
        ("skip_verify = 'true'", "skip_verify is to be true or false"),
        ("client = [['a']]", "a client's certificate is to be a path"),
        ("client = [['a', 'b', 'c']]", "a client's certificate is to be a path"),
        ("client = [['a', 1]]", "its key is to be a path"),
        ("ca = [1]", "ca is to be a path"),
        ("header = {X = 1}", "the header 'X' is to be a name and one line of text"),
        *(
            (f'server = "{url}"', "is no URL of a host; it is to be http(s)://HOST[:PORT][/PATH]")
            for url in (
                "ftp://a.example",
                "https://",
                "https:///x",
                "https://a b",
                "https://a.example/?x",
                "https://a/#",
            )
        ),
    ],
)
def test_mistakes_in_hosts_toml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        containerd(tmp_path, text, "a.example/foo")
    assert str(caught.value).startswith(f"{tmp_path}/_default/hosts.toml")
    assert message in str(caught.value)


def test_hosts_toml_that_lets_nobody_pull(tmp_path: Path) -> None:
    """Somebody has to be believed in what a tag names."""
    with pytest.raises(Blocked, match=r"hosts\.toml names no host for it; give one the capability to pull and resolve"):
        containerd(tmp_path, 'capabilities = ["push"]', "a.example/foo")
    with pytest.raises(Blocked, match=r"give one the capability to pull$"):
        containerd(tmp_path, 'capabilities = ["push"]', f"a.example/foo{DIGEST}")
    with pytest.raises(Blocked):
        containerd(tmp_path, 'capabilities = ["pull"]', "a.example/foo:1")
    assert containerd(tmp_path, 'capabilities = ["pull"]', f"a.example/foo:1{DIGEST}")


def test_the_example_in_the_documentation(tmp_path: Path) -> None:
    """It is what its comments say."""
    document = (PROJECT / "docs" / "registries.md").read_text()
    example = document.partition("```toml\n")[2].partition("```")[0]
    cache, hub = own(tmp_path, example, "alpine:3")
    assert told(cache) == "mirror https://cache.example.com/v2/hub/library/alpine?ns=docker.io"
    assert cache.tls.ca == (f"{tmp_path}/cache-ca.pem",)
    assert told(hub) == "https://registry-1.docker.io/v2/library/alpine"
    [moved] = own(tmp_path, example, "registry.example.com/team/app:1")
    assert told(moved) == "https://registry.example.org:5000/v2/archive/team/app"
    [local] = own(tmp_path, example, "builds.example.com/app")
    assert (told(local), local.socket) == ("http://builds.example.com/v2/app", "/run/registry.sock")
    for image in ("untrusted.example/x", "a.b.untrusted.example/x"):
        with pytest.raises(Blocked):
            own(tmp_path, example, image)
