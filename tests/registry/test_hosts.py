"""Which places answer for an image: the registry itself, who is spared TLS, and which of the settings decides."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pullpipe.errors import BadConfiguration, Blocked
from pullpipe.reference import Reference
from pullpipe.registry.helpers import Helper
from pullpipe.registry.hosts import Endpoint, Hosts, Paths, Tls, is_loopback, origin

LOOPBACK = ["localhost", "localhost:5000", "127.0.0.1", "127.0.0.1:5000", "127.5.6.7:1", "[::1]", "[::1]:5000"]
ELSEWHERE = [
    "example.org",
    "example.org:5000",
    "localhost.example.org",
    "127.0.0.1.example.org:5000",
    "notlocalhost:5000",
    "10.0.0.1",
    "128.0.0.1:5000",
    "0.0.0.0:5000",
    "[2001:db8::1]:5000",
    "[fe80::1]",
    "docker.io",
]
DIGEST = "@sha256:" + "0" * 64
IMAGE = Reference.parse("a.example/foo:1")

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file below the test's directory, and tells its path."""

    def write(name: str, text: str) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    return write


def at(host: str, *, plain_http: bool = False) -> Endpoint:
    return origin(Reference.parse(f"{host}/a/b"), plain_http=plain_http)


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_may_speak_http(host: str) -> None:
    """TLS is tried first even there."""
    assert is_loopback(host)
    assert at(host).schemes == ("https", "http")


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_there_is_no_way_around_tls(host: str) -> None:
    """No name that only looks like this machine's is taken for it."""
    assert not is_loopback(host)
    assert at(host).schemes == ("https",)


@pytest.mark.parametrize("host", [*LOOPBACK, "example.org:5000"])
def test_plain_http(host: str) -> None:
    """Where the user says so, TLS is not tried at all."""
    assert at(host, plain_http=True).schemes == ("http",)


def test_docker_hub() -> None:
    """docker.io is a web site; its registry has a name of its own, and people know a third."""
    for name in ("docker.io/library/a", "index.docker.io/library/a", "registry-1.docker.io/library/a"):
        place = origin(Reference.parse(name))
        assert (place.registry, place.host, place.repository) == ("docker.io", "registry-1.docker.io", "library/a")


@pytest.mark.parametrize("name", ["alpine", "ghcr.io/a/b:1", f"localhost:5000/a{DIGEST}"])
def test_without_settings_it_is_the_registry_itself(name: str) -> None:
    reference = Reference.parse(name)
    assert Hosts(Paths()).endpoints(reference) == [origin(reference)]


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    """Nor what would have to be a directory and is a file."""
    (tmp_path / "file").touch()
    for missing in (str(tmp_path / "none"), str(tmp_path / "file" / "below")):
        everything = Paths(own=(missing,), podman=(missing,), containerd=(missing,), certificates=(missing,))
        assert Hosts(everything).endpoints(IMAGE) == [origin(IMAGE)]


def test_the_usual_paths() -> None:
    """The user's before the system's; Podman does not heed XDG_CONFIG_HOME."""
    usual = Paths.usual({}, "/home/me")
    assert usual.own == ("/home/me/.config/pullpipe/registries.conf", "/etc/pullpipe/registries.conf")
    assert usual.podman == ("/home/me/.config/containers", "/etc/containers")
    assert usual.containerd == ("/etc/containerd/certs.d",)
    assert usual.docker == ("/home/me/.config/docker/daemon.json", "/etc/docker/daemon.json")
    assert usual.certificates == (
        "/home/me/.config/containers/certs.d",
        "/etc/containers/certs.d",
        "/etc/docker/certs.d",
    )
    elsewhere = Paths.usual({"XDG_CONFIG_HOME": "/settings"}, "/home/me")
    assert elsewhere._replace(own=(), docker=()) == usual._replace(own=(), docker=())
    assert elsewhere.own[0] == "/settings/pullpipe/registries.conf"
    assert elsewhere.docker[0] == "/settings/docker/daemon.json"


def mirrored_by(host: str) -> str:
    return f'[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "{host}"\n'


def mirrors(paths: Paths, reference: Reference = IMAGE) -> list[str]:
    """The hosts before the registry itself."""
    return [place.host for place in Hosts(paths).endpoints(reference)][:-1]


def test_the_first_source_that_says_anything_of_an_image_decides(write: Write, tmp_path: Path) -> None:
    write("user.conf", mirrored_by("user.example"))
    write("system.conf", mirrored_by("system.example"))
    write("podman/registries.conf", mirrored_by("podman.example"))
    write("certs.d/a.example/hosts.toml", '[host."https://containerd.example"]')
    paths = Paths(
        own=(f"{tmp_path}/user.conf", f"{tmp_path}/system.conf"),
        podman=(f"{tmp_path}/podman",),
        containerd=(f"{tmp_path}/certs.d",),
    )
    for file, host in (
        ("user.conf", "user"),
        ("system.conf", "system"),
        ("podman/registries.conf", "podman"),
        ("certs.d/a.example/hosts.toml", "containerd"),
    ):
        assert mirrors(paths) == [f"{host}.example"]
        Path(tmp_path / file).write_text('[[registry]]\nlocation = "another.example"' if file.endswith("conf") else "")
    assert mirrors(paths) == []


def test_a_registry_without_mirrors_is_something_said(write: Write, tmp_path: Path) -> None:
    """So a user does without the mirror that the system's file has."""
    user = write("user.conf", '[[registry]]\nlocation = "a.example"')
    system = write("system.conf", mirrored_by("m.example"))
    assert mirrors(Paths(own=(system,))) == ["m.example"]
    assert mirrors(Paths(own=(user, system))) == []


def test_podmans_drop_ins(write: Write, tmp_path: Path) -> None:
    """In the order of their names, of which only those with .conf count; each says again what it says at all."""
    both = '[[registry]]\nlocation = "b.example"\n[[registry.mirror]]\nlocation = "kept.example"\n'
    write("registries.conf", mirrored_by("main.example") + both)
    paths = Paths(podman=(str(tmp_path),))
    assert mirrors(paths) == ["main.example"]
    write("registries.conf.d/20-b.conf", mirrored_by("b.example"))
    write("registries.conf.d/10-a.conf", mirrored_by("a10.example"))
    write("registries.conf.d/30-c.conf.disabled", "no TOML at all")
    write("registries.conf.d/40.conf/x.conf", mirrored_by("deeper.example"))
    assert mirrors(paths) == ["b.example"]
    assert mirrors(paths, Reference.parse("b.example/x")) == ["kept.example"]
    (tmp_path / "registries.conf").unlink()
    assert mirrors(paths) == ["b.example"]


def test_podmans_user_and_system(write: Write, tmp_path: Path) -> None:
    """The user's main file hides all that is the system's; the user's drop-ins alone come on top of it."""
    paths = Paths(podman=(f"{tmp_path}/user", f"{tmp_path}/system"))
    write("system/registries.conf", mirrored_by("system.example"))
    assert mirrors(paths) == ["system.example"]
    write("system/registries.conf.d/1.conf", mirrored_by("system-drop.example"))
    assert mirrors(paths) == ["system-drop.example"]
    write("user/registries.conf.d/0.conf", mirrored_by("user-drop.example"))
    assert mirrors(paths) == ["user-drop.example"]
    (tmp_path / "user/registries.conf.d/0.conf").unlink()
    write("user/registries.conf", "# nothing of registries")
    assert mirrors(paths) == []
    write("user/registries.conf", mirrored_by("user.example"))
    assert mirrors(paths) == ["user.example"]


def test_podmans_file_of_the_environment(write: Write, tmp_path: Path) -> None:
    """In place of the main files; drop-ins of all come on top of it, the user's last. It has to be there."""
    write("user/registries.conf", mirrored_by("user.example"))
    write("system/registries.conf", mirrored_by("system.example"))
    named = str(tmp_path / "named.conf")
    usual = Paths.usual({"CONTAINERS_REGISTRIES_CONF": named}, "/home/me")
    paths = Paths(podman=(f"{tmp_path}/user", f"{tmp_path}/system"), podmans_file=usual.podmans_file)
    with pytest.raises(BadConfiguration, match=f"{named}, which CONTAINERS_REGISTRIES_CONF names"):
        mirrors(paths)
    write("named.conf", mirrored_by("named.example"))
    assert mirrors(paths) == ["named.example"]
    for drop_in in ("system", "user"):
        write(f"{drop_in}/registries.conf.d/1.conf", mirrored_by(f"{drop_in}-drop.example"))
        assert mirrors(paths) == [f"{drop_in}-drop.example"]


def test_podmans_credential_helpers(write: Write, tmp_path: Path) -> None:
    """The last file that names any decides, also one that says nothing of registries; auth files are no helper."""
    hosts = Hosts(Paths(podman=(str(tmp_path),)))
    main = write("registries.conf", 'credential-helpers = ["containers-auth.json", "one", "two"]\n')
    assert hosts.credential_helpers == [Helper("one", main), Helper("two", main)]
    drop_in = write("registries.conf.d/1.conf", 'credential-helpers = ["three"]\n')
    write("registries.conf.d/2.conf", "# credential-helpers\n")
    assert hosts.credential_helpers == [Helper("three", drop_in)]
    write("registries.conf.d/2.conf", "credential-helpers = [[]]\n")
    with pytest.raises(BadConfiguration, match=r"2\.conf: credential-helpers"):
        print(hosts.credential_helpers)


@pytest.mark.parametrize(
    ("registry", "directories", "found"),
    [
        ("a.example", ["a.example", "_default"], "a.example"),
        ("b.example", ["a.example", "_default"], "_default"),
        ("a.example", ["a.example_5000_"], None),
        ("a.example:5000", ["a.example:5000", "_default"], "a.example:5000"),
        ("a.example:5000", ["a.example:5000", "a.example_5000_"], "a.example_5000_"),
        ("a.example:5000", ["a.example"], None),
        ("[::1]:5000", ["[::1]:5000"], "[::1]:5000"),
        ("[::1]", ["[::1]"], "[::1]"),
        ("docker.io", ["docker.io"], "docker.io"),
    ],
)
def test_containerds_directories(
    write: Write, tmp_path: Path, registry: str, directories: list[str], found: str | None
) -> None:
    """As containerd looks for them."""
    for number, directory in enumerate(directories):
        write(f"{directory}/hosts.toml", f'[host."https://m{number}.example"]')
    expected = [] if found is None else [f"m{directories.index(found)}.example"]
    assert mirrors(Paths(containerd=(str(tmp_path),)), Reference(registry, "foo", "1", None)) == expected


def test_a_directory_of_containerds_without_a_file_says_nothing(write: Write, tmp_path: Path) -> None:
    """Nor is the default looked for then."""
    write("_default/hosts.toml", '[host."https://m.example"]')
    (tmp_path / "a.example").mkdir()
    assert mirrors(Paths(containerd=(str(tmp_path),))) == []


def test_a_directory_of_containerds_with_certificates_alone(write: Write, tmp_path: Path) -> None:
    """They are the registry's; where there is a file, that names them, and they are not looked for."""
    for name in ("ca.crt", "c.cert", "c.key"):
        write(f"a.example/{name}", "")
    paths = Paths(containerd=(str(tmp_path),))
    directory = f"{tmp_path}/a.example"
    tls = Tls(ca=(f"{directory}/ca.crt",), certificate=f"{directory}/c.cert", key=f"{directory}/c.key")
    assert Hosts(paths).endpoints(IMAGE) == [origin(IMAGE)._replace(tls=tls)]
    write("a.example/hosts.toml", '[host."https://m.example"]')
    assert {place.tls for place in Hosts(paths).endpoints(IMAGE)} == {Tls()}


def test_dockers_mirrors(write: Write, tmp_path: Path) -> None:
    """Of the first file that names any, for Docker Hub alone; what the others say goes before."""
    write("1.json", '{"debug": true}')
    write("2.json", '{"registry-mirrors": ["https://m.example/hub/", "http://n.example:5000"], "debug": true}')
    write("3.json", mirrored_by("never.example"))
    paths = Paths(docker=tuple(f"{tmp_path}/{number}.json" for number in (1, 2, 3)))
    hub = Reference.parse("alpine")
    first, second, last = Hosts(paths).endpoints(hub)
    assert (first.host, first.path, first.schemes, first.repository) == (
        "m.example",
        "/hub/v2",
        ("https",),
        "library/alpine",
    )
    assert (second.host, second.schemes, second.path) == ("n.example:5000", ("http",), "/v2")
    assert {(place.mirror, place.tags, place.namespace) for place in (first, second)} == {(True, True, "")}
    assert last == origin(hub)
    assert Hosts(paths).endpoints(IMAGE) == [origin(IMAGE)]
    own = write("own.conf", '[[registry]]\nlocation = "docker.io"\n')
    assert mirrors(paths._replace(own=(own,)), hub) == []


@pytest.mark.parametrize(
    "text", ['{"registry-mirrors": ', '["registry-mirrors"]', '{"registry-mirrors": ["u:secret@h"]}']
)
def test_broken_file_of_dockers(write: Write, tmp_path: Path, text: str) -> None:
    with pytest.raises(BadConfiguration, match=r"daemon\.json") as caught:
        mirrors(Paths(docker=(write("daemon.json", text),)), Reference.parse("alpine"))
    assert "secret" not in str(caught.value)


def test_the_users_options_are_for_the_registry_itself(write: Write) -> None:
    """They mean no mirrors; what else is set of the registry stays."""
    text = '[[registry]]\nlocation = "a.example"\nheaders = {X = "1"}\n[[registry.mirror]]\nlocation = "m.example"\n'
    hosts = Hosts(Paths(own=(write("registries.conf", text),)))
    [plain] = hosts.endpoints(IMAGE, plain_http=True)
    assert (plain.host, plain.schemes, plain.socket, plain.headers) == ("a.example", ("http",), "", {"X": "1"})
    [local] = hosts.endpoints(IMAGE, unix_socket="/run/r.sock")
    assert (local.host, local.schemes, local.socket) == ("a.example", ("http",), "/run/r.sock")
    for options in ({"plain_http": True}, {"plain_http": True, "unix_socket": "/s"}):
        assert Hosts(Paths()).endpoints(IMAGE, **options) == [origin(IMAGE, **options)]


def test_certificates(write: Write, tmp_path: Path) -> None:
    """Of the first directory that has the host's; for mirrors too; Docker Hub's are those of docker.io."""
    for file in ("u/a.example/z.crt", "s/a.example/other.crt", "s/m.example:5000/x.cert", "s/m.example:5000/x.key"):
        write(file, "")
    for file in ("s/docker.io/hub.crt", "s/b.example/b.crt", "s/b.example/a.crt", "s/b.example/README"):
        write(file, "")
    text = '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "m.example:5000/x"\n'
    paths = Paths(own=(write("conf", text),), certificates=(f"{tmp_path}/u", f"{tmp_path}/s"))
    mirror, registry = Hosts(paths).endpoints(IMAGE)
    directory = f"{tmp_path}/s/m.example:5000"
    assert mirror.tls == Tls(certificate=f"{directory}/x.cert", key=f"{directory}/x.key")
    assert registry.tls == Tls(ca=(f"{tmp_path}/u/a.example/z.crt",))
    [hub] = Hosts(paths).endpoints(Reference.parse("alpine"))
    assert hub.tls.ca == (f"{tmp_path}/s/docker.io/hub.crt",)
    [sorted_] = Hosts(paths).endpoints(Reference.parse("b.example/x"))
    assert sorted_.tls.ca == (f"{tmp_path}/s/b.example/a.crt", f"{tmp_path}/s/b.example/b.crt")
    [other_port] = Hosts(paths).endpoints(Reference.parse("b.example:5000/x"))
    assert other_port.tls == Tls()


def test_certificates_from_above_stay(write: Write, tmp_path: Path) -> None:
    """What is only said to be insecure still takes a client's certificate."""
    for name in ("ca.crt", "c.cert", "c.key"):
        write(f"certs/a.example/{name}", "")
    certificates = (f"{tmp_path}/certs",)
    given = write("ca.conf", '[[registry]]\nlocation = "a.example"\nca = "/my.crt"')
    assert Hosts(Paths((given,), certificates=certificates)).endpoints(IMAGE)[0].tls == Tls(ca=("/my.crt",))
    insecure = write("insecure.conf", '[[registry]]\nlocation = "a.example"\ninsecure = true')
    directory = f"{tmp_path}/certs/a.example"
    assert Hosts(Paths((insecure,), certificates=certificates)).endpoints(IMAGE)[0].tls == Tls(
        False, (f"{directory}/ca.crt",), f"{directory}/c.cert", f"{directory}/c.key"
    )


def test_a_certificate_without_its_key(write: Write, tmp_path: Path) -> None:
    """It mostly is an authority's, with the wrong name."""
    write("a.example/ca.cert", "")
    with pytest.raises(BadConfiguration, match=r"a\.example/ca\.cert lacks its key .*ca\.key; .* \.crt"):
        Hosts(Paths(certificates=(str(tmp_path),))).endpoints(IMAGE)


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A directory that nobody may search, for a test that becomes nobody."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)
        os.seteuid(0)


@pytest.mark.needs_root
def test_what_cannot_be_read_is_not_passed_over(nobody: Path) -> None:
    """It may block something."""
    (nobody / "own.conf").touch(0o600)
    (nobody / "file").mkdir()
    (nobody / "file" / "registries.conf").touch(0o600)
    (nobody / "drop-ins" / "registries.conf.d").mkdir(parents=True)
    (nobody / "drop-ins" / "registries.conf.d").chmod(0o700)
    (nobody / "certs" / "a.example").mkdir(parents=True)
    (nobody / "certs" / "a.example").chmod(0o700)
    (nobody / "_default").mkdir()
    (nobody / "_default" / "hosts.toml").touch(0o600)
    os.seteuid(65534)
    for paths, name in (
        (Paths(own=(f"{nobody}/own.conf",)), "own.conf"),
        (Paths(podman=(f"{nobody}/file",)), "file/registries.conf"),
        (Paths(podman=(f"{nobody}/drop-ins",)), "drop-ins/registries.conf.d"),
        (Paths(certificates=(f"{nobody}/certs",)), "certs/a.example"),
        (Paths(containerd=(str(nobody),)), "_default/hosts.toml"),
    ):
        with pytest.raises(BadConfiguration, match=rf"{name} cannot be read: Permission denied; mend its permissions"):
            Hosts(paths).endpoints(IMAGE)


@pytest.mark.needs_root
def test_what_cannot_be_seen_is_not_there(nobody: Path) -> None:
    """Nobody can tell what is in the home directory of somebody else, or in a daemon's settings."""
    secret = nobody / "secret"
    for directory in ("registries.conf.d", "a.example"):
        (secret / directory).mkdir(parents=True)
    for file in ("own.conf", "registries.conf", "registries.conf.d/x.conf", "a.example/hosts.toml", "a.example/c.crt"):
        (secret / file).write_text("no TOML at all")
    secret.chmod(0o700)
    os.seteuid(65534)
    here = (str(secret),)
    paths = Paths(own=(f"{secret}/own.conf",), podman=here, containerd=here, certificates=here)
    assert Hosts(paths).endpoints(IMAGE) == [origin(IMAGE)]


def test_what_is_imported(write: Write, tmp_path: Path) -> None:
    """An unchanged tag is found in 45 ms, and comes by here: no TOML parser without registries, and never aiohttp."""
    aliases = '[aliases]\n"registry" = "docker.io/library/registry"\n'
    write("podman/registries.conf", '# [[registry]]\nunqualified-search-registries = ["x.example"]\n')
    write("podman/registries.conf.d/shortnames.conf", aliases)
    write("own.conf", "# nothing yet\n\n  # [[registry]]\n")
    program = (
        "import sys; from pullpipe.registry.hosts import *\n"
        "paths = Paths((sys.argv[1] + '/own.conf',), (sys.argv[1] + '/podman',), (sys.argv[1],), (sys.argv[1],))\n"
        "Hosts(paths).endpoints(Reference.parse('a.example/foo'))\n"
        "print(*sorted({'tomllib', 'ssl', 'asyncio', 'aiohttp'} & set(sys.modules)))"
    )

    def imported() -> str:
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert imported() == ""
    write("own.conf", mirrored_by("m.example"))
    assert imported() == "tomllib"


@pytest.mark.parametrize(
    "text",
    [
        '[[registry]]\nlocation="a.example"\nblocked=true',
        "[[ registry ]]\nlocation='a.example'\nblocked=true",
        'registry=[{location="a.example",blocked=true}]',
        '  [["registry"]]\n  location="a.example"\n  blocked=true',
        '[registries.block]\nregistries=["a.example"]',
        'registries.block.registries=["a.example"]',
        '[registries]\nblock={registries=["a.example"]}',
    ],
)
def test_however_podmans_is_written_it_is_seen(write: Write, tmp_path: Path, text: str) -> None:
    """The look at the bytes, which spares the parser, takes no file for one that says nothing."""
    write("registries.conf", text)
    with pytest.raises(Blocked):
        Hosts(Paths(podman=(str(tmp_path),))).endpoints(IMAGE)
