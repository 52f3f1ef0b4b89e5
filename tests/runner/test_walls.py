"""The options of `pullpipe run` that open or close a container's walls: names and meanings are Docker's."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import Run, error, line, out, pullpipe, started, status
from tests.support.images import Entry, File, Symlink
from tests.support.processes import PATIENCE, Watched, descendants, until

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("busybox")]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the host with a file in it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "file").write_text("of the host\n")
    return tmp_path / "shared"


@pytest.fixture
def mounted_below(shared: Path) -> Iterator[Path]:
    """A file system that the host has mounted in that directory."""
    (shared / "below").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "below", str(shared / "below")], check=True)
    (shared / "below" / "deep").write_text("deep\n")
    yield shared / "below"
    subprocess.run(["umount", str(shared / "below")], check=True)


# Bind mounts.


@pytest.mark.parametrize(
    "form", ["-v={}:/data", "-v={}:/data:rw", "-v={}:/data:z,rw", "--mount=type=bind,src={},dst=/data"]
)
def test_a_directory_of_the_host(form: str, run: Run, shared: Path) -> None:
    """Both see what either writes, and what is made there belongs to whoever makes it."""
    script = "cat /data/file; echo inside > /data/new"
    assert out(run("sh", "-c", script, options=(form.format(shared),))) == "of the host"
    assert (shared / "new").read_text() == "inside\n"


READ_ONLY = [
    "-v={}:/data:ro",
    "--mount=type=bind,source={},target=/data,readonly",
    "--mount=type=bind,src={},destination=/data,ro=true",
]


@pytest.mark.parametrize("form", READ_ONLY)
def test_a_read_only_directory(form: str, run: Run, shared: Path, mounted_below: Path) -> None:
    """It is so all the way down: also what the host has mounted below it."""
    script = """
        cat /data/file /data/below/deep
        touch /data/file && echo open
        echo x > /data/below/deep && echo open
        mount -o remount,rw,bind /data && echo open
        true
    """
    assert out(run("sh", "-c", script, options=(form.format(shared),))) == "of the host\ndeep"
    assert (mounted_below / "deep").read_text() == "deep\n"


def test_what_is_mounted_below(run: Run, shared: Path, mounted_below: Path) -> None:
    """It comes along, unless bind-recursive=disabled."""
    assert out(run("ls", "/d/below", options=(f"-v={shared}:/d",))) == "deep"
    flat = f"--mount=type=bind,src={shared},dst=/d,bind-recursive=disabled"
    assert out(run("ls", "/d/below", options=(flat,))) == ""


def test_a_file_of_the_host(run: Run, shared: Path) -> None:
    """Over a file of the image, over one of the container's own, and where there is none."""
    options = tuple(f"-v={shared}/file:{target}" for target in ("/etc/passwd", "/etc/hosts", "/made/for/it"))
    assert out(run("cat", "/etc/passwd", "/etc/hosts", "/made/for/it", options=options)) == "\n".join(
        ["of the host"] * 3
    )


def test_mounts_in_mounts(run: Run, shared: Path) -> None:
    """Whatever their order on the command line, what lies deeper lies on top."""
    options = ("-v", f"{shared}/file:/a/b/c/file", "--tmpfs=/a/b", "-v", f"{shared}:/a")
    script = "ls /a /a/b /a/b/c; cat /a/b/c/file"
    assert out(run("sh", "-c", script, options=options)).split() == (
        ["/a:", "b", "file", "/a/b:", "c", "/a/b/c:", "file", "of", "the", "host"]
    )


def test_relative_sources(cli: Cli, image: None, shared: Path, tmp_path: Path) -> None:
    """From the directory where pullpipe is called, when they begin with a dot."""
    relative = os.path.relpath(shared, PROJECT)
    assert relative.startswith("../")
    assert out(cli("run", "--rm", "-v", f"{relative}:/d", "test", "cat", "/d/file")) == "of the host"


def test_paths_with_commas_and_colons(run: Run, tmp_path: Path) -> None:
    """--mount takes them, as CSV does."""
    odd = tmp_path / "a,b:c"
    odd.mkdir()
    (odd / "file").write_text("odd\n")
    assert out(run("cat", "/x/file", options=("--mount", f'type=bind,"src={odd}",dst=/x'))) == "odd"


def test_mount_targets_through_symlinks_of_the_image(load: Callable[..., None], cli: Cli, shared: Path) -> None:
    """They are followed, as in Docker, inside of the container; what is missing is made."""
    load(Symlink("var/run", "/run/now"), Symlink("up", "../../../../x/y"), Symlink("dangling", "there"))
    options = [f"-v={shared}/file:{target}" for target in ("/var/run/file", "/up/file", "/dangling")]
    assert out(cli("run", "--rm", *options, "test", "cat", "/run/now/file", "/x/y/file", "/there")) == (
        "\n".join(["of the host"] * 3)
    )


def test_mounts_do_not_come_to_the_host(run: Run, shared: Path) -> None:
    """Nor do they come from it: what is mounted in one of both is not seen in the other."""
    script = "mount -t tmpfs x /data && echo mounted; cat /proc/self/mountinfo"
    options = (f"-v={shared}:/data", "--cap-add=SYS_ADMIN")
    shown = out(run("sh", "-c", script, options=options))
    assert shown.startswith("mounted\n")
    assert "shared:" not in shown
    assert "master:" not in shown
    assert str(shared) not in Path("/proc/self/mountinfo").read_text()


# Memory.


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--tmpfs=/t", "1777 0 rw,nosuid,nodev,noexec"),
        ("--tmpfs=/t:size=1m,mode=700,uid=5,exec,suid", "700 5 rw,nodev"),
        ("--tmpfs=/t:ro", "1777 0 ro,nosuid,nodev,noexec"),
        ("--mount=type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=0750", "750 0 rw,nosuid,nodev,noexec"),
        ("--mount=type=tmpfs,dst=/t,readonly", "1777 0 ro,nosuid,nodev,noexec"),
    ],
)
def test_tmpfs(option: str, expected: str, run: Run) -> None:
    """With its options, and never with devices."""
    script = "stat -c '%a %u' /t; grep ' /t tmpfs ' /proc/mounts"
    attributes, mounts = out(run("sh", "-c", script, options=(option,))).split("\n")
    assert f"{attributes} {mounts.split()[3]}".startswith(expected)
    assert ("size=1024k" in mounts) == ("=1m" in option)


def test_a_tmpfs_is_as_large_as_it_may_be(run: Run) -> None:
    """And no larger."""
    done = run("sh", "-c", "head -c 2000000 /dev/zero > /t/x; stat -c %s /t/x", options=("--tmpfs=/t:size=1m",))
    assert done.stdout == "1048576\n"


@pytest.mark.parametrize(
    ("size", "kilobytes"), [("", "65536"), ("1m", "1024"), ("2G", "2097152"), ("1.5 MiB", "1536"), ("4096", "4")]
)
def test_shared_memory(size: str, kilobytes: str, run: Run) -> None:
    """64 MiB, unless --shm-size says otherwise."""
    options = (f"--shm-size={size}",) if size else ()
    assert out(run("sh", "-c", "df -k /dev/shm | tail -1", options=options)).split()[1] == kilobytes


# The root.


def test_a_read_only_root(run: Run, shared: Path) -> None:
    """Nothing of it can be changed; what is mounted in it can, and a working directory is made all the same."""
    options = ("--read-only", "--tmpfs=/tmp", f"-v={shared}:/data", "-w=/made/here", "--cap-add=SYS_ADMIN")
    script = """
        pwd; touch /x /etc/passwd /made/here/x || echo closed
        touch /tmp/x /data/x /dev/shm/x && echo open
    """
    assert out(run("sh", "-c", script, options=options)) == "/made/here\nclosed\nopen"


# Devices.


def test_a_device(run: Run, tmp_path: Path) -> None:
    """Under its own name or another, in a directory of them, for root and for others."""
    (tmp_path / "nodes" / "more").mkdir(parents=True)
    os.mknod(tmp_path / "nodes" / "more" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.chmod(tmp_path / "nodes" / "more" / "zero", 0o666)
    options = (
        "--device=/dev/zero:/dev/nothing",
        "--device=/dev/full:/deep/down:rwm",
        f"--device={tmp_path}/nodes:/dev/n",
    )
    script = (
        "for d in /dev/nothing /dev/n/more/zero; do head -c 2 $d | od -An -tx1; done; echo x > /deep/down || echo full"
    )
    for user in ("0", "65534"):
        assert out(run("sh", "-c", script, options=(*options, f"-u={user}"))).split() == ["00", "00"] * 2 + ["full"]


def test_a_device_in_a_shared_directory_does_not_open(run: Run, tmp_path: Path) -> None:
    """Nor one that root makes there: only --device gives devices, as in Docker."""
    os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    script = "head -c 1 /d/zero && echo open; mknod /d/mine c 1 5; head -c 1 /d/mine && echo open; true"
    assert out(run("sh", "-c", script, options=(f"-v={tmp_path}:/d",))) == ""


# Rights.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cap-drop=ALL"], 0),
        (["--cap-drop=all", "--cap-add=CHOWN", "--cap-add=cap_kill"], 1 << 0 | 1 << 5),
        (["--cap-add=NET_ADMIN"], 0xA80425FB | 1 << 12),
        (["--cap-drop=CAP_CHOWN,MKNOD"], 0xA80425FB & ~(1 << 0 | 1 << 27)),
    ],
)
def test_capabilities(options: list[str], expected: int, run: Run) -> None:
    """Docker's names, and what they come to, in all sets that matter."""
    found = status(out(run("cat", "/proc/self/status", options=tuple(options))))
    assert {int(found[name], 16) | 1 << 18 for name in ("CapPrm", "CapEff", "CapBnd")} == {expected | 1 << 18}
    assert {int(found[name], 16) for name in ("CapInh", "CapAmb")} == {0}


def test_all_capabilities(run: Run) -> None:
    """All that we have, less what is taken away."""
    ours = int(status(Path("/proc/self/status").read_text())["CapPrm"], 16)
    found = status(out(run("cat", "/proc/self/status", options=("--cap-add=ALL", "--cap-drop=SYS_TIME,SYS_CHROOT"))))
    assert int(found["CapEff"], 16) == ours & ~(1 << 25 | 1 << 18)


def test_a_capability_that_pullpipe_has_not(shell_root: Path) -> None:
    """It is named, and nothing runs with less than was asked for."""
    less = [require("setpriv"), "--bounding-set=-sys_time", "--inh-caps=-all"]
    run = [*less, sys.executable, "-m", "pullpipe", "--root", str(shell_root), "run", "--rm"]
    done = subprocess.run([*run, "--cap-add=SYS_TIME", "test", "true"], cwd=PROJECT, capture_output=True, text=True)
    assert "CAP_SYS_TIME" in error(done, 125)
    assert subprocess.run([*run, "--cap-add=ALL", "test", "true"], cwd=PROJECT).returncode == 0


def test_no_new_privileges(load: Callable[..., None], cli: Cli) -> None:
    """With it a setuid program gives nothing; without, as in Docker, it does: that is how su works."""
    load(File("bin/su-cat", Path(shutil.which("cat") or "").read_bytes(), 0o4755), *_libraries("cat"))
    command = ("test", "/bin/su-cat", "/proc/self/status")
    for options, effective, flag in (
        ([], "0", "0"),
        (["--security-opt=no-new-privileges"], "65534", "1"),
        (["--security-opt", "no-new-privileges:true"], "65534", "1"),
        (["--security-opt", "no-new-privileges=false"], "0", "0"),
    ):
        found = status(out(cli("run", "--rm", "-u", "65534", *options, *command)))
        assert (found["Uid"].split()[1], found["NoNewPrivs"]) == (effective, flag)


def _libraries(program: str) -> list[Entry]:
    listing = subprocess.run(["ldd", shutil.which(program) or ""], capture_output=True, text=True).stdout
    paths = [word for word in listing.split() if word.startswith("/")]
    return [File(path.lstrip("/"), Path(path).read_bytes(), 0o755) for path in paths]


def test_limits(run: Run) -> None:
    """Soft and hard, and both from one number."""
    options = ("--ulimit=nofile=100:200", "--ulimit=core=0", "--ulimit=cpu=-1", "--ulimit=stack=1048576")
    script = "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -t; ulimit -Hs"
    assert out(run("sh", "-c", script, options=options)).split() == ["100", "200", "0", "unlimited", "1024"]


@pytest.mark.parametrize("user", ["0", "65534"])
def test_more_groups(user: str, load: Callable[..., None], cli: Cli) -> None:
    """By name or number."""
    load(File("etc/group", b"root:x:0:\nvideo:x:44:\n"))
    done = cli("run", "--rm", "-u", f"{user}:7", "--group-add", "video", "--group-add", "4711", "test", "id", "-G")
    assert sorted(map(int, out(done).split())) == [7, 44, 4711]
    assert "plugdev" in error(cli("run", "--rm", "--group-add", "plugdev", "test", "true"), 125)


# The environment.


def test_env_files(load: Callable[..., None], cli: Cli, tmp_path: Path) -> None:
    """NAME=VALUE as it stands, NAME from our environment, comments; -e is stronger, the image is weaker."""
    load(config={"Env": ["A=image", "B=image", "C=image"]})
    (tmp_path / "env").write_text('# comment\n\n  A="quoted" = #x \nMINE\nNOT_SET\nC=file\r\n')
    (tmp_path / "more").write_text("D=more")
    command = ("--env-file", tmp_path / "env", "--env-file", tmp_path / "more", "-e", "C=option", "test", "env")
    shown = dict(row.split("=", 1) for row in out(cli("run", "--rm", *command, env={"MINE": "mine"})).split("\n"))
    assert {name: shown.get(name) for name in ("A", "B", "C", "D", "MINE", "NOT_SET")} == {
        "A": '"quoted" = #x ',
        "B": "image",
        "C": "option",
        "D": "more",
        "MINE": "mine",
        "NOT_SET": None,
    }


def test_bad_env_files(run: Run, tmp_path: Path) -> None:
    """With the number of the line; not with what may be a secret in it."""
    (tmp_path / "env").write_text("A=1\nspace in name=secret\n")
    said = error(run("true", options=("--env-file", str(tmp_path / "env"))), 125)
    assert "line 2" in said
    assert "secret" not in said
    assert "missing" in error(run("true", options=("--env-file", str(tmp_path / "missing"))), 125)


# Namespaces and names.


def test_no_network(run: Run) -> None:
    """A network of its own with loopback up, and nothing of the host's: neither addresses nor abstract sockets."""
    script = "ls /sys/class/net; ifconfig lo | grep -c 127.0.0.1; ip route; cat /proc/net/unix | wc -l; cat /etc/hosts"
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0pullpipe-test-{os.getpid()}")
        shown = out(run("sh", "-c", script, options=("--network=none", "--hostname=me"))).split("\n")
        assert shown[:3] == ["lo", "1", "1"]
        assert [row.split() for row in shown[3:]] == [
            ["127.0.0.1", "localhost"],
            ["::1", "localhost", "ip6-localhost", "ip6-loopback"],
            ["127.0.0.1", "me"],
        ]


def test_loopback_works(run: Run) -> None:
    """Also without a network: a server and its client in one container."""
    script = "nc -l -p 4711 -e echo hello & until nc 127.0.0.1 4711 < /dev/null; do :; done"
    assert out(run("sh", "-c", script, options=("--network=none",))) == "hello"


def test_hosts(run: Run) -> None:
    """--add-host adds lines; host-gateway is this machine."""
    options = ("--add-host=a:192.0.2.1", "--add-host=b=2001:db8::1", "--add-host=c:[::1]", "--add-host=me:host-gateway")
    lines = out(run("cat", "/etc/hosts", options=options)).split("\n")
    assert [row.split() for row in lines[-5:-1]] == (
        [["192.0.2.1", "a"], ["2001:db8::1", "b"], ["::1", "c"], ["127.0.0.1", "me"]]
    )
    assert "host-gateway" in error(run("true", options=("--network=none", "--add-host=me:host-gateway")), 125)


def test_name_servers(run: Run) -> None:
    """Each replaces what the host has of its kind, and the rest stays."""
    options = (
        "--dns=192.0.2.1",
        "--dns=2001:db8::1",
        "--dns-search=example.org",
        "--dns-option=ndots:2",
        "--dns-opt=rotate",
    )
    assert out(run("cat", "/etc/resolv.conf", options=options)).split("\n")[-4:] == (
        ["nameserver 192.0.2.1", "nameserver 2001:db8::1", "search example.org", "options ndots:2 rotate"]
    )
    host = Path("/etc/resolv.conf").read_text().split("\n")
    servers = [row for row in host if row.startswith("nameserver")]
    shown = out(run("cat", "/etc/resolv.conf", options=("--dns-search=.",))).split("\n")
    assert [row for row in shown if row.startswith("nameserver")] == servers
    assert not any(row.startswith(("search", "domain")) for row in shown)


def test_the_hosts_processes(run: Run) -> None:
    """--pid host shows them; --pid private, the default, does not."""
    script = f"test -d /proc/{os.getpid()} && echo seen; echo $$"
    shown = out(run("sh", "-c", script, options=("--pid=host",))).split("\n")
    assert shown[0] == "seen"
    assert int(shown[1]) > 1
    assert out(run("sh", "-c", script, options=("--pid=private",))) == "1"


def test_nobody_outlives_a_container_with_the_hosts_processes(shell_root: Path) -> None:
    """There the kernel ends nobody with the first process: pullpipe does."""
    script = "(setsid sleep 1000 &) ; (setsid sh -c 'sleep 1000 & exec sleep 1000' &); echo up; read x"
    with started(shell_root, "--rm", "-i", "--pid=host", "test", "sh", "-c", script, stdin=subprocess.PIPE) as run:
        assert line(run) == "up"
        until(lambda: len(descendants(run.pid)) == 4, "all of them to have started")
        watched = [Watched(pid) for pid in descendants(run.pid)]
        assert run.stdin is not None
        run.stdin.close()
        run.wait(PATIENCE)
        assert all(process.ended() for process in watched)
        for process in watched:
            process.close()


def test_shared_memory_of_the_host(run: Run) -> None:
    """--ipc host: /dev/shm and System V's are the host's; by default they are not."""
    name = f"pullpipe-test-{os.getpid()}"
    path = Path("/dev/shm", name)
    path.write_text("of the host\n")
    try:
        script = f"cat /dev/shm/{name}; readlink /proc/self/ns/ipc"
        shown = out(run("sh", "-c", script, options=("--ipc=host",)))
        assert shown == f"of the host\n{os.readlink('/proc/self/ns/ipc')}"
        assert "No such file" in run("sh", "-c", script).stderr
    finally:
        path.unlink()


# What is refused.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("-v name:/x", "named volumes"),
        ("-v /x", "--tmpfs"),
        ("-v /nothing/there:/x", "/nothing/there"),
        ("-v /etc:x", "absolute"),
        ("-v /etc:/", "root"),
        ("-v /etc:/x/..", "root"),
        ("-v /etc:/proc", "/proc"),
        ("-v /etc:/x/../proc/acpi", "/proc"),
        ("-v /etc:/x:shared", "shared"),
        ("-v /etc:/x:ro:rw", "colons"),
        ("-v /etc:/x -v /usr:/x/", "two things"),
        ("-v /etc:/etc/passwd", "a directory cannot"),
        ("-v /etc/passwd:/etc", "a file cannot"),
        ("--mount dst=/x", "type=volume"),
        ("--mount type=bind,dst=/x", "src=PATH"),
        ("--mount type=bind,src=/etc", "absolute"),
        ("--mount type=bind,src=/etc,dst=/x,bind-propagation=shared", "shared"),
        ("--mount type=bind,src=/etc,dst=/x,bind-recursive=writable", "bind-recursive"),
        ("--mount type=bind,src=/etc,dst=/x,readonly=maybe", "maybe"),
        ("--mount type=bind,src=/etc,dst=/x,frobnicate=1", "frobnicate"),
        ("--mount type=tmpfs,dst=/x,src=/etc", "src"),
        ('--mount "', "cannot be read"),
        ("--tmpfs /x:sise=1", "sise"),
        ("--tmpfs /x:size=much", "size=much"),
        ("--tmpfs /x:dev", "dev"),
        ("--device /dev/nothing", "/dev/nothing"),
        ("--device /etc/passwd", "no device"),
        ("--device /dev/null:/x:r", "read and written"),
        ("--device /etc", "no devices"),
        ("--cap-add FLY", "FLY"),
        ("--cap-drop CAP_", "CAP_"),
        ("--security-opt seccomp=/nothing", "/nothing"),
        ("--security-opt apparmor=mine", "apparmor=mine"),
        ("--security-opt no-new-privileges:maybe", "maybe"),
        ("--privileged", "--cap-add"),
        ("--sysctl net.ipv4.ip_forward=1", "--network private"),
        ("--sysctl kernel.shmmax=1 --ipc=host", "without --ipc host"),
        ("--sysctl kernel.core_pattern=x", "whole machine"),
        ("--sysctl net.x", "NAME=VALUE"),
        ("--sysctl net.../../kernel.core_pattern=x", "NAME=VALUE"),
        ("--network=none --sysctl net.ipv4.nothing=1", "no such file"),
        ("--network=none --sysctl net.ipv4.ip_forward=x", "invalid argument"),
        ("-P", "-P is not there: ports"),
        ("--publish-all", "-p PORT:PORT"),
        ("--restart always", "systemd"),
        ("--uts=host", "--hostname"),
        ("--gpus=all", "--device"),
        ("-a stdout", "redirect"),
        ("--ulimit nofile", "nofile"),
        ("--ulimit files=1", "files"),
        ("--ulimit nofile=2:1", "above"),
        ("--ulimit nofile=x", "whole numbers"),
        ("--shm-size 0", "--shm-size"),
        ("--shm-size lots", "lots"),
        ("--ipc host --shm-size 1m", "--ipc host"),
        ("--network bridge", "bridge"),
        ("--pid container:x", "container:x"),
        ("--ipc shareable", "shareable"),
        ("--add-host a", "NAME:ADDRESS"),
        ("--add-host a:b", "NAME:ADDRESS"),
        ("--dns here", "here"),
        ("--init --cap-add SYS_PTRACE", "--init"),
        ("-e =x", "names no variable"),
        ("-e ", "names no variable"),
        ("--hostname a\nb", "letters"),
        (f"--hostname {'x' * 65}", "64"),
        ("--tmpfs /x:uid=99999999999", "tmpfs(5)"),
        ("-t --tmpfs /dev/pts", "leave -t away"),
    ],
)
def test_refusals(options: str, said: str, run: Run) -> None:
    """One line that names what is wrong, 125, and no container."""
    assert said in error(run("true", options=tuple(options.split(" "))), 125)


SETTINGS = {
    "net.ipv4.ip_unprivileged_port_start": "80",
    "kernel.shmmax": "65536",
    "kernel.sem": "1 2 3 4",
    "fs.mqueue.msg_max": "7",
}


def test_settings_of_its_own(shell_root: Path) -> None:
    """Of its own namespaces: the machine's are what they were. They are there again when it is started once more."""
    paths = ["/proc/sys/" + name.replace(".", "/") for name in SETTINGS]
    before = [Path(path).read_text() for path in paths]
    options = [f"--sysctl={name}={value}" for name, value in SETTINGS.items()]
    done = pullpipe(shell_root, "run", "--name=set", "--network=none", *options, "test", "cat", *paths)
    again = pullpipe(shell_root, "start", "-a", "set")
    out(pullpipe(shell_root, "rm", "set"))
    assert [" ".join(row.split()) for row in out(done).splitlines()] == list(SETTINGS.values())
    assert out(again) == out(done)
    assert [Path(path).read_text() for path in paths] == before


def test_what_is_no_text(run: Run) -> None:
    assert "letters" in error(run("true", options=("--hostname", os.fsdecode(b"\xff"))), 125)


def test_a_directory_that_is_gone(shell_root: Path, tmp_path: Path) -> None:
    """Where paths would begin."""
    script = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    program = (sys.executable, "-P", "-m", "pullpipe", "--root", str(shell_root), "run", "--rm")
    for option in ("-v=.:/x", "--mount=type=bind,src=.,dst=/x", "--security-opt=seccomp=x"):
        (tmp_path / "gone").mkdir()
        command = ["sh", "-c", script, "sh", str(tmp_path / "gone"), *program, option, "test", "true"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})
        assert "go to another" in error(done, 125)


def test_a_line_of_its_own_in_hosts(run: Run) -> None:
    """Neither a name nor a search domain can bring a second line into a file."""
    for options in (
        ("--add-host", "a\nb:192.0.2.1"),
        ("--dns-search", "a\nnameserver 192.0.2.1"),
        ("--dns-option", "a b"),
    ):
        error(run("true", options=options), 125)


def test_nothing_is_left_of_a_refused_container(cli: Cli, image: None, store_root: Path) -> None:
    """Neither a record nor a mount, also when the refusal comes from within."""
    for options in (("-v", "/etc:/etc/passwd"), ("--cap-add", "FLY"), ("--tmpfs", "/x:size=much")):
        error(cli("run", "--rm", *options, "test", "true"), 125)
    assert os.listdir(store_root / "containers") == []


# --init.


def test_init_is_the_first_process(run: Run) -> None:
    """The command is its child, with the same rights; nothing of pullpipe's command line is to be read."""
    script = """
        echo $$
        tr '\\0' ' ' < /proc/1/cmdline; echo
        for p in 1 self; do grep -E '^(Uid|CapEff|CapBnd|Seccomp):' /proc/$p/status | tr '\\n\\t' '  '; echo; done
        grep Name /proc/1/status
    """
    pid, shown, *rights, name = out(run("sh", "-c", script, options=("--init", "--hostname=secret-name"))).split("\n")
    assert (pid, shown.split(), name.split()) == ("2", ["init"], ["Name:", "init"])
    assert rights[0] == rights[1]
    assert "CapEff: 00000000a80" in rights[0]
    assert out(run("cat", "/proc/1/cmdline", options=("--init",))).strip("\0") == "init"  # from the first moment on


@pytest.mark.parametrize("user", ["0", "65534"])
def test_init_is_not_to_be_looked_into(user: str, run: Run) -> None:
    """CVE-2019-5736: /proc/1/exe would be the host's Python, open to be written; its memory has pullpipe's secrets."""
    script = """
        for f in exe root cwd; do test -e /proc/1/$f && echo $f; done
        for f in environ maps mem auxv stack; do head -c 1 /proc/1/$f > /dev/null && echo $f; done
        ls /proc/1/fd/* /proc/1/map_files/*
        true
    """
    assert out(run("sh", "-c", script, options=("--init", "-u", user))) == ""


def test_init_reaps(run: Run) -> None:
    """Orphans do not stay as zombies."""
    script = """
        (sh -c 'exit 3' & (sleep 0.05 &) ; exit 0)
        for i in 1 2 3 4 5 6 7 8; do sh -c 'sleep 0 & exit 0'; done
        i=0
        while grep -q '^State:.Z' /proc/[0-9]*/status; do i=$((i+1)); test $i -lt 200 || exit 1; sleep 0.02; done
    """
    assert run("sh", "-c", script, options=("--init",)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_init_passes_signals_on(number: signal.Signals, shell_root: Path) -> None:
    """A command that handles them hears them; one that does not is ended by them, as anywhere else."""
    script = f"trap 'echo heard; exit 9' {number.value}; echo up; while :; do sleep 0.05; done"
    with started(shell_root, "--rm", "--init", "test", "sh", "-c", script) as run:
        assert line(run) == "up"
        run.send_signal(number)
        assert run.communicate(timeout=PATIENCE) == (b"heard\n", b"")
        assert run.returncode == 9
    with started(shell_root, "--rm", "--init", "test", "sh", "-c", "echo up; exec sleep 1000") as run:
        assert line(run) == "up"
        run.send_signal(number)
        assert run.wait(PATIENCE) == 128 + number


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_codes_through_init(code: int, run: Run) -> None:
    """The command's own; and what keeps it from starting is said as without."""
    assert run("sh", "-c", f"sleep 1000 & exit {code}", options=("--init",)).returncode == code
    assert "nothing" in error(run("nothing", options=("--init",)), 127)


def test_streams_through_init(run: Run) -> None:
    """They close when the command closes them: init does not hold them."""
    assert out(run("cat", options=("--init", "-i"), stdin="in and out")) == "in and out"
    with_pipe = "exec > /dev/null; exec sleep 0.3"
    assert out(run("sh", "-c", with_pipe, options=("--init",))) == ""
