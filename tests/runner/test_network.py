"""Networks of a container's own, by pasta and slirp4netns; with root, and as a user.

All of it happens in a network namespace that is made for it: what the containers see as the machine is not this one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import PROJECT, require
from tests.runner.rig import BASE, error, host_python, line, out
from tests.support.images import Image, write_layout
from tests.support.network import OTHER, OTHER6, OWN, World, world
from tests.support.processes import PATIENCE, Watched, descendants
from tests.support.users import User, somewhere

pytestmark = pytest.mark.needs_root

PROGRAMS = ("pasta", "slirp4netns")
NAME_SERVERS = {"pasta": "169.254.1.1", "slirp4netns": "10.0.2.3"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def machine() -> Iterator[World]:
    for tool in ("ip", "nsenter", "pasta", "slirp4netns", "busybox"):
        require(tool)
    with world() as made:
        yield made


class Caller:
    """Root, or a user, who runs containers on that machine."""

    def __init__(self, machine: World, command: Callable[..., list[str]]) -> None:
        self._machine = machine
        self._command = command

    def command(self, *words: str, before: tuple[str, ...] = ()) -> list[str]:
        """The command line of `pullpipe WORDS`."""
        return self._command(sys.executable, "-m", "pullpipe", *words, before=(*self._machine.enter, *before))

    def run(self, *words: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """`pullpipe run --rm WORDS`, until it has ended."""
        command = self.command("run", "--rm", *words, before=before)
        return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)

    @contextmanager
    def running(self, *words: str, pass_fds: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """`pullpipe run --rm WORDS`, until the end of the block."""
        command = self.command("run", "--rm", *words)
        with subprocess.Popen(
            command,
            cwd=PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture(scope="module")
def root(machine: World, shell_root: Path) -> Caller:
    def command(*words: str, before: tuple[str, ...]) -> list[str]:
        return [*before, require("env"), f"PULLPIPE_ROOT={shell_root}", *words]

    return Caller(machine, command)


@pytest.fixture(scope="module")
def user(machine: World, shell_root: Path) -> Iterator[Caller]:
    for tool in ("unshare", "setpriv", "newuidmap"):
        require(tool)
    with somewhere(User("alice", 30001, [(3_000_000, 65536)])) as [alice], alice.at_a_new_home() as alice:
        layout = alice.home / "layout"
        write_layout(layout, {"t": Image(list(BASE))})
        loaded = alice.pullpipe("load", "--quiet", "--durability=none", "-t", "test", layout)
        assert loaded.returncode == 0, loaded.stderr
        yield Caller(machine, alice.command)


@pytest.fixture(params=["root", "user"])
def caller(request: pytest.FixtureRequest) -> Caller:
    """Either of them."""
    made: Caller = request.getfixturevalue(request.param)
    return made


def heard(*sockets: socket.socket, wait: float = PATIENCE) -> list[socket.socket]:
    """Those that something has come to."""
    return select.select(sockets, [], [], wait)[0]


def taken(server: socket.socket) -> socket.socket:
    """The connection that comes next."""
    assert heard(server), "nobody connects"
    return server.accept()[0]


# Out.


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_network(program: str, caller: Caller, machine: World) -> None:
    """An interface, a way out, and a way to the machine's name server, which nobody else may listen for."""
    script = f"ls /sys/class/net; grep nameserver /etc/resolv.conf; nc {OTHER} 4000"
    with (
        machine.listening(OTHER, 4000) as server,
        caller.running("-i", f"--network={program}", "test", "sh", "-c", script) as run,
    ):
        with taken(server) as connection:
            connection.sendall(b"from out there\n")
        assert [line(run) for _ in range(4)] == ["eth0", "lo", f"nameserver {NAME_SERVERS[program]}", "from out there"]
        assert run.wait(PATIENCE) == 0


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_name_server(program: str, root: Caller, machine: World, tmp_path: Path) -> None:
    """What is sent to it comes to that of the machine, although that listens on loopback; to its port alone."""
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch example.org\n")
    script = f'mount --bind {tmp_path}/resolv.conf /etc/resolv.conf && exec "$@"'
    before = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")
    code = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.sendto(b"no", ({NAME_SERVERS[program]!r}, 4000))
    s.sendto(b"question" * 8, ({NAME_SERVERS[program]!r}, 53))
    s.settimeout({PATIENCE})
    print(s.recv(100).decode())
"""
    words = (f"--network={program}", *host_python(), "test", "python", "-S", "-c", code)
    command = root.command("run", "--rm", *words, before=before)
    with machine.receiving("127.0.0.1", 53) as server, machine.receiving("127.0.0.1", 4000) as secret:
        with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as run:
            assert heard(server)
            question, asker = server.recvfrom(100)
            assert question == b"question" * 8
            server.sendto(b"answer" * 8, asker)
            assert line(run) == "answer" * 8
        assert not heard(secret, wait=0)
    assert out(root.run(f"--network={program}", "test", "cat", "/etc/resolv.conf", before=before)).split("\n") == (
        ["search example.org", f"nameserver {NAME_SERVERS[program]}"]
    )
    asked = root.run(f"--network={program}", "--dns=192.0.2.7", "test", "cat", "/etc/resolv.conf", before=before)
    assert out(asked).split("\n") == ["search example.org", "nameserver 192.0.2.7"]


def test_its_own_settings(caller: Caller) -> None:
    name = "net/ipv4/ip_unprivileged_port_start"
    shown = caller.run("--network=private", f"--sysctl={name.replace('/', '.')}=80", "test", "cat", f"/proc/sys/{name}")
    assert out(shown) == "80"


def test_its_own_loopback(user: Caller, machine: World) -> None:
    """What the machine has for itself alone is not there, whatever the name; what the container has is."""
    script = f"nc 127.0.0.1 4000 < /dev/null || echo no; nc {OWN} 4000 < /dev/null || echo no; "
    script += "nc -l -p 4000 -e echo hello & until nc 127.0.0.1 4000 < /dev/null; do :; done"
    with machine.listening("127.0.0.1", 4000) as loopback:
        done = user.run("--network=private", "test", "sh", "-c", script)
        assert out(done) == "no\nno\nhello"
        assert not heard(loopback, wait=0)


FRAMES = r"""
import socket, struct, sys

def checksum(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16: total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)

def frame(target, protocol, data, at):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    source, target = own[family], socket.inet_pton(family, target)
    data = data[:at] + checksum(source + target + struct.pack("!HH", protocol, len(data)) + data) + data[at + 2:]
    if family == socket.AF_INET6:
        return router + mac + struct.pack("!HIHBB", 0x86DD, 6 << 28, len(data), protocol, 64) + source + target + data
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), 1, 0, 64, protocol, 0) + source + target
    return router + mac + b"\x08\0" + header[:10] + checksum(header) + header[12:] + data

def datagram(target, text):
    return frame(target, 17, struct.pack("!HHHH", next(ports), 4000, 8 + len(text), 0) + text, 6)

def connection(target):
    return frame(target, 6, struct.pack("!HHIIBBHHH", next(ports), 4000, 1, 0, 0x50, 2, 65535, 0, 0), 16)

ports = iter(range(5000, 6000))

raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
mac = raw.getsockname()[4]
own = {}
for target in sys.argv[1], sys.argv[2]:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try: s.connect((target, 4000))
        except OSError: continue
        own[family] = socket.inet_pton(family, s.getsockname()[0])
        s.send(b"hello")
router = b"\0" * 6
while router == b"\0" * 6:
    router = bytes.fromhex(open("/proc/net/arp").read().split("\n")[1].split()[3].replace(":", ""))
for target in sys.argv[3:]:
    if ":" in target and socket.AF_INET6 not in own: continue
    for past_the_queue in 0, 1:
        raw.setsockopt(263, 20, past_the_queue)  # SOL_PACKET, PACKET_QDISC_BYPASS
        for one in datagram(target, target.encode()), connection(target):
            try: raw.send(one)
            except OSError: pass  # it was dropped
raw.setsockopt(263, 20, 0)
raw.send(datagram(sys.argv[1], b"end"))
"""

BY_DEVICE = """
import socket, struct, sys
for target in sys.argv[3:]:
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    device = socket.if_nametoindex("eth0")
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        try: s.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, struct.pack("I8x", device))], 0, (target, 4000))
        except OSError: pass
    for kind in socket.SOCK_DGRAM, socket.SOCK_STREAM:
        with socket.socket(family, kind) as s:
            try:
                s.setsockopt(socket.SOL_SOCKET, 25, b"eth0")  # SO_BINDTODEVICE
                s.settimeout(0.2)
                s.connect((target, 4000))
                s.send(b"x")
            except OSError: pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b"end", (sys.argv[1], 4000))
"""

# And what the programs can take for the machine itself: the gateway, and slirp4netns's network.
LOOPBACKS = ["127.0.0.1", "127.1.2.3", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::127.0.0.1"]
LOOPBACKS += ["192.0.2.1", "2001:db8::1", "10.0.2.2", "10.0.2.7"]


@pytest.mark.parametrize(("program", "who"), [("pasta", "root"), ("pasta", "nobody"), ("slirp4netns", "root")])
def test_the_machines_loopback(program: str, who: str, caller: Caller, machine: World) -> None:
    """Frames made by hand, or sent by a device that the way does not lead to: none comes to what listens there.

    Both programs take them for connections to the machine itself. The control is that the same go anywhere else.
    """
    code = FRAMES if who == "root" else BY_DEVICE
    options = (f"--network={program}", "-u", "0" if who == "root" else "65534", *host_python())
    with ExitStack() as stack:
        others = [machine.receiving(OTHER, 4000), machine.listening(OTHER, 4000)]
        others += [machine.receiving(OTHER6, 4000), machine.listening(OTHER6, 4000)]
        loopbacks = [make(at, 4000) for at in ("127.0.0.1", "::1") for make in (machine.receiving, machine.listening)]
        for one in others + loopbacks:
            stack.enter_context(one)
        words = ("test", "python", "-S", "-c", code, OTHER, OTHER6, *LOOPBACKS, OTHER, OTHER6)
        with caller.running(*options, *words) as run:
            said = set()
            while b"end" not in said:
                assert heard(others[0]), "the end does not come"
                said.add(others[0].recv(100))
            for one in others[1:] if program == "pasta" else others[1:2]:
                assert heard(one), one
            assert run.wait(PATIENCE) == 0
            assert not heard(*loopbacks, wait=0)


def test_through_a_runtime(root: Caller) -> None:
    """What it starts is in the network, too."""
    require("runc")
    done = root.run("--network=private", "--runtime=runc", "test", "sh", "-c", "ls /sys/class/net; ip route | wc -l")
    assert out(done).split() == ["eth0", "lo", "2"]


# In.


def test_ports(caller: Caller, machine: World) -> None:
    """What comes to a port of the machine goes to one of the container, by TCP and UDP, to all addresses or to one."""
    code = """
import select, socket
servers = {socket.create_server(("", port)): port for port in (80, 81)}
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 53))
print("up", flush=True)
for _ in range(4):
    server = select.select(list(servers), [], [])[0][0]
    connection, _ = server.accept()
    connection.sendall(b"%d " % servers[server] + connection.recv(100))
    connection.close()
data, sender = udp.recvfrom(100)
udp.sendto(b"udp " + data, sender)
"""
    ports = (
        "-p",
        "127.0.0.1:4001:80",
        "--publish=4002:80/tcp",
        "-p",
        f"{OWN}:4005-4006:80-81",
        f"-p{OTHER}:4003:53/udp",
    )
    with caller.running("--name=ports", *ports, *host_python(), "test", "python", "-S", "-c", code) as run:
        assert line(run) == "up"
        shown = json.loads(subprocess.check_output(caller.command("inspect", "ports"), cwd=PROJECT))["HostConfig"]
        assert shown["NetworkMode"] == "private"
        assert shown["PortBindings"]["81/tcp"] == [{"HostIp": OWN, "HostPort": "4006"}]
        assert [one["HostPort"] for one in shown["PortBindings"]["80/tcp"]] == ["4001", "4002", "4005"]
        assert shown["PortBindings"]["53/udp"] == [{"HostIp": OTHER, "HostPort": "4003"}]
        for address, port, inside in (("127.0.0.1", 4001, 80), (OTHER, 4002, 80), (OWN, 4005, 80), (OWN, 4006, 81)):
            with machine.connected(address, port) as connection:
                connection.sendall(b"hello")
                assert connection.recv(100) == f"{inside} hello".encode()
        with pytest.raises(ConnectionRefusedError):
            machine.connected(OTHER, 4001)
        with machine.receiving(OTHER, 4004) as client:
            client.sendto(b"hello", (OTHER, 4003))
            assert heard(client)
            assert client.recv(100) == b"udp hello"
        assert run.wait(PATIENCE) == 0


def test_a_port_that_is_in_use(user: Caller, machine: World) -> None:
    with machine.listening("127.0.0.1", 4001):
        said = error(user.run("-p", "127.0.0.1:4001:80", "test", "true"), 125)
    assert "127.0.0.1/4001:80" in said
    assert "choose ports that are free" in said


# Its end.


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_is_left(program: str, caller: Caller) -> None:
    """The program ends with the container, and with its runner, however that ends; nothing of ours is open in it."""
    with open("/etc/passwd") as file:
        for ends in ("stdin", "SIGKILL"):
            words = ("-i", f"--network={program}", "test", "sh", "-c", "echo up; cat")
            with caller.running(*words, pass_fds=(file.fileno(),)) as run:
                assert line(run) == "up"
                programs = [pid for pid in descendants(run.pid) if "/usr/bin/" in os.readlink(f"/proc/{pid}/exe")]
                found = [
                    pid
                    for pid in programs
                    if Path(f"/proc/{pid}/comm").read_text().startswith(("passt", "pasta", "slirp"))
                ]
                [pid] = found
                opened = [os.readlink(one.path) for one in os.scandir(f"/proc/{pid}/fd")]
                assert "/etc/passwd" not in opened
                assert not any(path.startswith("/") and "pullpipe" in path for path in opened)
                assert Path(f"/proc/{pid}/environ").read_bytes() == b""
                watched = Watched(pid)
                if ends == "stdin":
                    assert run.stdin is not None
                    run.stdin.close()
                    assert run.wait(PATIENCE) == 0
                else:
                    os.kill(run.pid, signal.SIGKILL)
                assert watched.ended()
                watched.close()


def test_keys_are_for_the_container(user: Caller, machine: World) -> None:
    """Ctrl-C, which goes to all processes of a terminal, does not take the network away."""
    script = f"trap 'nc {OTHER} 4000; exit 7' INT; echo up; while :; do sleep 0.05; done"
    with (
        machine.listening(OTHER, 4000) as server,
        user.running("-i", "--network=private", "test", "sh", "-c", script) as run,
    ):
        assert line(run) == "up"
        os.killpg(run.pid, signal.SIGINT)
        with taken(server) as connection:
            connection.sendall(b"still there\n")
        assert line(run) == "still there"
        assert run.wait(PATIENCE) == 7


# What cannot be.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--network=none -p 1:1", "-p has no meaning with --network none"),
        ("--network=host -p 1:1", "-p has no meaning with --network host"),
        ("--network=slirp4netns -p 1:1", "takes the program pasta; install the package passt"),
        ("--network=private --add-host me:host-gateway", "no way leads to the host-gateway"),
        ("-p 80", "-p 80 is none"),
        ("-p 0:80", "-p 0:80 is none"),
        ("-p 80:65536", "-p 80:65536 is none"),
        ("-p 80:80/sctp", "-p 80:80/sctp is none"),
        ("-p 80-90:80-91", "-p 80-90:80-91 is none"),
        ("-p 90-80:90-80", "-p 90-80:90-80 is none"),
        ("-p 80-:80-", "-p 80-:80- is none"),
        ("-p here:80:80", "here is no address"),
        ("-p 198.18.0.1:80:80", "pasta says: Failed to bind"),
    ],
)
def test_refusals(options: str, said: str, root: Caller) -> None:
    assert said in error(root.run(*options.split(" "), "test", "true"), 125)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--network=private",), "takes the program pasta or slirp4netns; install the package passt"),
        (("--network=pasta",), "takes the program pasta; install the package passt"),
        (("--network=slirp4netns",), "takes the program slirp4netns; install the package slirp4netns"),
        (("-p", "4000:80"), "to publish ports (-p) takes the program pasta; install the package passt"),
    ],
)
def test_without_the_programs(options: tuple[str, ...], said: str, root: Caller) -> None:
    done = root.run(*options, "test", "true", before=(require("env"), "PATH=/nowhere"))
    assert said in error(done, 125)


def test_a_machine_without_a_network(root: Caller) -> None:
    """What pasta says of it, and what to do."""
    said = error(root.run("--network=private", "test", "true", before=(require("unshare"), "--net")), 125)
    assert "the container's network cannot be made; pasta says: " in said
    assert said.endswith("; use --network host, or none\n")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_machine_without_tap_devices(program: str, root: Caller) -> None:
    """The program's reason, and not what it warns of anyway."""
    script = 'mount -t tmpfs none /dev/net && exec "$@"'
    before = ("unshare", "--mount", "--propagation=private", "sh", "-c", script, "sh")
    said = error(root.run(f"--network={program}", "test", "true", before=before), 125)
    assert "tun" in said.partition(f"{program} says: ")[2]
    assert "WARNING" not in said
