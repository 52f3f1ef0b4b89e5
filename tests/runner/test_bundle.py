"""OCI runtimes: bundles made for them, and containers handed over to them. runc runs all of it for real."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pullpipe.runner import capabilities, cgroups, seccomp
from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import BASE, Run, containers, error, line, out, pullpipe, started, status, terminal_of
from tests.support.images import HOST_PLATFORM, Device, Dir, File, Image, Symlink, write_layout
from tests.support.processes import PATIENCE, Watched, descendants, until
from tests.support.users import User, somewhere

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("busybox")]

Runc = Callable[..., subprocess.CompletedProcess[str]]

ACCOUNTS = (
    Dir("etc"),
    File("etc/passwd", b"root:x:0:0::/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n"),
    File("etc/group", b"alice:x:1001:\naudio:x:29:alice\nvideo:x:44:\n"),
)


@pytest.fixture(scope="module", autouse=True)
def _runc() -> None:
    require("runc")


@pytest.fixture
def bundle(cli: Cli, tmp_path: Path) -> Path:
    """Where one is to be; not made yet."""
    return tmp_path / "bundle"


@pytest.fixture
def runc(bundle: Path, tmp_path: Path) -> Iterator[Runc]:
    """`runc run` on it."""
    name = f"pullpipe-test-{os.urandom(8).hex()}"

    def run() -> subprocess.CompletedProcess[str]:
        command = ["runc", "--root", str(tmp_path / "runc"), "run", "--bundle", str(bundle), name]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)

    yield run
    assert cgroups.remove(cgroups.places(name))


@pytest.fixture
def hand_over(shell_root: Path) -> Run:
    """`pullpipe run --rm --runtime runc OPTIONS test ARGUMENTS`"""

    def run(*arguments: str, options: tuple[str, ...] = (), stdin: str = "") -> subprocess.CompletedProcess[str]:
        return pullpipe(shell_root, "run", "--rm", "--runtime", "runc", *options, "test", *arguments, stdin=stdin)

    return run


def config(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    return found


# Bundles.


def test_a_bundle(load: Callable[..., None], cli: Cli, bundle: Path, runc: Runc) -> None:
    """The image's command runs as the image says, behind Docker's walls, and its exit code is runc's."""
    image = {
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ['id; pwd; echo "$A $HOME $PATH"; cat /proc/self/status; ls /sys/class/net; exit 7'],
        "Env": ["A=1 2", "PATH=/bin"],
        "User": "alice",
        "WorkingDir": "/made/for/it",
    }
    load(*ACCOUNTS, config=image)
    assert out(cli("bundle", "--quiet", "test", bundle)) == str(bundle)
    done = runc()
    assert (done.returncode, done.stderr) == (7, "")
    identity, directory, variables, *rest = done.stdout.splitlines()
    assert identity == "uid=1000(alice) gid=1001(alice) groups=29(audio),1001(alice)"
    assert (directory, variables) == ("/made/for/it", "1 2 /home/alice /bin")
    told = status("\n".join(rest))
    assert int(told["CapEff"], 16) == int(told["CapPrm"], 16) == 0
    assert int(told["CapBnd"], 16) == capabilities.DEFAULT
    assert (told["Seccomp"], told["NoNewPrivs"]) == ("2", "0")
    assert rest[-1] == "lo"


def test_root_in_a_bundle(load: Callable[..., None], cli: Cli, bundle: Path, runc: Runc) -> None:
    """Has Docker's capabilities; a command given instead of the image's."""
    load()
    out(cli("bundle", "--quiet", "test", bundle, "cat", "/proc/self/status"))
    assert int(status(out(runc()))["CapEff"], 16) == capabilities.DEFAULT


def test_annotations(load: Callable[..., None], cli: Cli, bundle: Path) -> None:
    """What the image says of itself, by the image specification's rules; a label has the last word."""
    labels = {"org.opencontainers.image.stopSignal": "SIGINT", "mine": "1", "none": None}
    load(
        config={
            "Cmd": ["sh"],
            "StopSignal": "SIGQUIT",
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": labels,
        }
    )
    out(cli("bundle", "--quiet", "test", bundle))
    found = config(bundle)["annotations"]
    prefix = "org.opencontainers.image"
    assert found == {
        f"{prefix}.architecture": HOST_PLATFORM.split("/")[1],
        f"{prefix}.os": "linux",
        f"{prefix}.exposedPorts": "53/udp,80/tcp",
        f"{prefix}.stopSignal": "SIGINT",
        "mine": "1",
    }


def test_accounts_are_looked_up_in_the_image_alone(
    load: Callable[..., None], cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    """A symlink to the machine's file, absolute or not, leads nowhere."""
    (tmp_path / "passwd").write_text("stranger:x:7:7::/:/bin/sh\n")
    for target in (str(tmp_path / "passwd"), f"../../../../../../../../../{tmp_path}/passwd"):
        load(Dir("etc"), Symlink("etc/passwd", target), config={"Cmd": ["sh"], "User": "stranger"})
        why = error(cli("bundle", "--quiet", "test", bundle / target.replace("/", "_")), 1)
        assert "no user 'stranger'" in why


@pytest.mark.parametrize("device", [(1, 3), (10, 200)])
def test_devices_of_the_image_do_not_open(
    device: tuple[int, int], load: Callable[..., None], cli: Cli, bundle: Path, store_root: Path, tmp_path: Path
) -> None:
    """In place of a file with accounts: a watchdog, or a tape, would act as soon as it is opened."""
    load(Dir("etc"), Device("etc/passwd", *device, mode=0o666), config={"Cmd": ["sh"], "User": "1"})
    trace = tmp_path / "trace"
    command = (sys.executable, "-m", "pullpipe", "--root", str(store_root), "bundle", "-q", "test", str(bundle))
    options = ("-f", "-P", "/etc/passwd", "-e", "trace=openat", "-o", str(trace))
    subprocess.run([require("strace"), *options, *command], cwd=PROJECT, check=True)
    opened = [row for row in trace.read_text().splitlines() if "openat(" in row]
    assert opened
    assert all("EACCES" in row for row in opened), opened


def test_a_working_directory_is_made_in_the_image_alone(
    load: Callable[..., None], cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    """Whatever symlinks the image has."""
    load(Symlink("srv", f"/../..{tmp_path}"), config={"Cmd": ["sh"], "WorkingDir": "/srv/made"})
    assert cli("bundle", "--quiet", "test", bundle).returncode == 1
    load(Symlink("srv", str(tmp_path)), Dir(str(tmp_path)[1:]), config={"Cmd": ["sh"], "WorkingDir": "/srv/made"})
    out(cli("bundle", "--quiet", "test", tmp_path / "second"))
    assert not (tmp_path / "made").exists()
    assert (tmp_path / "second" / "rootfs" / str(tmp_path)[1:] / "made").is_dir()


def test_no_bundle(load: Callable[..., None], cli: Cli, bundle: Path) -> None:
    """Not where there is something, not of what is not there, and not without a command."""
    load()
    assert "names no command" in error(cli("bundle", "-q", "test", bundle), 1)
    assert "not in the store" in error(cli("bundle", "-q", "missing", bundle), 1)
    assert not bundle.exists()
    bundle.mkdir()
    (bundle / "mine").touch()
    assert "not empty" in error(cli("bundle", "-q", "test", bundle, "sh"), 1)
    assert [path.name for path in bundle.iterdir()] == ["mine"]


def test_the_seccomp_section() -> None:
    """What the profile says for these capabilities on this machine; no condition is left."""
    plain = seccomp.section("builtin", capabilities.DEFAULT)
    trusted = seccomp.section("builtin", capabilities.ALL)
    assert plain is not None
    assert trusted is not None
    assert plain["defaultAction"] == "SCMP_ACT_ERRNO"
    assert {key for rule in plain["syscalls"] for key in rule} == {"names", "action", "errnoRet", "args"}

    def allowed(section: dict[str, Any]) -> set[str]:
        rules = [rule for rule in section["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")]
        return {name for rule in rules for name in rule["names"]}

    assert {"mount", "bpf", "unshare"} <= allowed(trusted) - allowed(plain)
    assert {"openat", "chroot"} <= allowed(plain)
    assert seccomp.section("unconfined", 0) is None


# Containers handed over.


def test_the_same_container(run: Run, hand_over: Run) -> None:
    """As pullpipe alone would run it."""
    script = "id; pwd; env | sort; cat /proc/self/status | grep -E 'Cap|Seccomp:|NoNew'; tail -n 1 /etc/hosts; hostname"
    options = ("--hostname=h", "-e=A=1", "-w=/made", "--group-add=29")
    for more in ((), ("--user=5:6", "--cap-drop=CHOWN", "--security-opt=no-new-privileges")):
        ours = out(run("sh", "-c", script, options=options + more)).splitlines()
        theirs = out(hand_over("sh", "-c", script, options=options + more)).splitlines()
        if more:  # the capabilities of a user: runc keeps the bounding set alone
            assert "CapEff:\t0000000000000000" in theirs
        assert theirs == ours


def test_proc_handed_over(run: Run, hand_over: Run) -> None:
    """All that is not of processes is masked, or cannot be written to, as in a container of ours."""
    script = "awk '$3 == \"proc\" { print $2, substr($4, 1, 2) }' /proc/mounts | sort; ls -l /proc | grep -c '1,  *3'"
    ours = out(run("sh", "-c", script)).splitlines()
    assert {"/proc rw", "/proc/sys ro", "/proc/kmsg ro"} <= set(ours)
    assert out(hand_over("sh", "-c", script)).splitlines() == ours


def test_settings_handed_over(hand_over: Run) -> None:
    options = ("--network=none", "--sysctl=net.ipv4.ip_forward=1", "--sysctl=kernel.shmmax=65536")
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax"
    assert out(hand_over("sh", "-c", script, options=options)) == "1\n65536"


def test_walls_handed_over(hand_over: Run, tmp_path: Path) -> None:
    """What the specification has a word for is as pullpipe has it."""
    (tmp_path / "file").write_text("of the host\n")
    options = (
        *("--read-only", "--tmpfs=/t:size=1m", "--shm-size=2m", "--network=none", "--ulimit=nofile=99:100"),
        *(f"-v={tmp_path}:/writable", f"-v={tmp_path}:/closed:ro", "--device=/dev/null:/dev/other"),
        f"-v={tmp_path}/file:/made/file:ro",
    )
    script = """
        cat /closed/file /made/file; touch /closed/file /made/file /new || echo closed
        touch /t/new /writable/new /dev/shm/new
        df -k /t /dev/shm | awk '{ print $2 }' | tail -n 2; ls /sys/class/net; ulimit -n; ulimit -Hn
        echo x > /dev/other && stat -c %t:%T /dev/other
    """
    done = hand_over("sh", "-c", script, options=options)
    shown = ["of the host", "of the host", "closed", "1024", "2048", "lo", "99", "100", "1:3", ""]
    assert done.stdout.split("\n") == shown, done.stderr
    assert (tmp_path / "new").exists()


def test_limits_handed_over(hand_over: Run) -> None:
    """By the runtime's own cgroups."""
    script = (
        'show() { cat "/sys/fs/cgroup/$1" 2>/dev/null || cat "/sys/fs/cgroup/$2"; }; '
        "show memory/memory.limit_in_bytes memory.max; show cpu/cpu.cfs_quota_us cpu.max; show pids/pids.max pids.max; "
        "show cpuset/cpuset.cpus cpuset.cpus"
    )
    options = ("--memory=64m", "--cpus=0.5", "--pids-limit=50", "--cpuset-cpus=0")
    found = out(hand_over("sh", "-c", script, options=options)).split("\n")
    assert [value.split()[0] for value in found] == [str(64 << 20), "50000", "50", "0"]


def test_system_calls_are_filtered(hand_over: Run) -> None:
    """And with the filter off, the control, the same call works."""
    assert "not permitted" in hand_over("unshare", "-U", "true").stderr
    out(hand_over("unshare", "-U", "true", options=("--security-opt=seccomp=unconfined",)))


def test_other_devices_do_not_open(hand_over: Run) -> None:
    """Whatever root makes there."""
    script = "for place in / /dev/; do mknod ${place}kmsg c 1 11 && head -c 1 ${place}kmsg && echo open; done; true"
    assert out(hand_over("sh", "-c", script)) == ""


@pytest.mark.parametrize("code", [0, 7, 125])
def test_exit_codes(code: int, hand_over: Run) -> None:
    """The command's own."""
    done = hand_over("sh", "-c", f"exit {code}")
    assert (done.returncode, done.stderr) == (code, "")


def test_a_command_ended_by_a_signal(hand_over: Run) -> None:
    """128+N. The first process of a namespace feels no signal of its own, but any from outside."""
    assert hand_over("sh", "-c", "sh -c 'kill -9 $$'; exit $?").returncode == 137


@pytest.mark.parametrize(
    ("options", "command", "code", "why"),
    [
        ((), "missing", 127, "not found"),
        ((), "/bin/missing", 127, "no such file"),
        ((), "/etc/hosts", 126, "permission denied"),
        (("--user=nobody-there",), "true", 125, "no user 'nobody-there'"),
        (("--init",), "true", 125, "--init cannot be handed over"),
        (("-dt",), "true", 125, "--detach with --tty cannot be handed over"),
        (("--pid=host",), "true", 125, "--pid host cannot be handed over"),
        (("--network=private", "--sysctl=net.ipv4.ip_forward=1"), "true", 125, "private network cannot be handed over"),
        (("--memory=1m",), "true", 125, "6m at least"),
        (("--runtime=no-such-runtime",), "true", 125, "no program 'no-such-runtime'"),
        (("--runtime=",), "true", 125, "no program ''"),
        (("--env=NAME=secret\udcff",), "true", 125, "what begins with 'NAME' is not UTF-8"),
        ((), "\udcff", 125, "is not UTF-8"),
    ],
)
def test_what_does_not_start(options: tuple[str, ...], command: str, code: int, why: str, hand_over: Run) -> None:
    """Is told in a last line, with Docker's codes; the runtime may have had its say before."""
    done = hand_over(command, options=options)
    assert done.returncode == code
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pullpipe: error: ")
    assert why in last


def test_standard_input(hand_over: Run) -> None:
    """With -i only."""
    assert out(hand_over("cat", options=("-i",), stdin="mine")) == "mine"
    assert out(hand_over("cat", stdin="mine")) == ""


def test_the_record(cli: Cli, image: None, store_root: Path) -> None:
    """Is kept without --rm, with what was written."""
    assert cli("run", "--runtime=runc", "test", "sh", "-c", "echo kept > /file; exit 3").returncode == 3
    [container] = containers(cli)
    assert (container["status"], container["exit_code"]) == ("exited (3)", 3)
    assert (store_root / "containers" / str(container["id"]) / "upper/file").read_text() == "kept\n"
    assert not any(os.path.exists(place) for place in cgroups.places(f"pullpipe-{container['id']}"))
    out(cli("rm", str(container["id"])))


def test_a_signal(shell_root: Path) -> None:
    """Reaches the command, which decides."""
    script = "trap 'echo heard; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    with started(shell_root, "--rm", "--runtime=runc", "test", "sh", "-c", script) as run:
        assert line(run) == "up"
        run.terminate()
        assert run.communicate(timeout=PATIENCE) == (b"heard\n", b"")
        assert run.returncode == 9


def test_killing_the_runner(cli: Cli, image: None, store_root: Path) -> None:
    """SIGKILL: runtime and container end with it, and the next command removes what is left of the groups."""
    with started(store_root, "--runtime=runc", "test", "sh", "-c", "sleep 1000 & echo up; sleep 1000") as run:
        assert line(run) == "up"
        watched = [Watched(pid) for pid in descendants(run.pid)]
        assert len(watched) >= 3  # runc, the shell, and who sleeps
        run.kill()
        assert all(process.ended() for process in watched)
        for process in watched:
            process.close()
    [container] = containers(cli)
    assert container["status"] == "killed"
    assert not any(os.path.exists(place) for place in cgroups.places(f"pullpipe-{container['id']}"))
    out(cli("rm", str(container["id"])))


def test_killing_the_runtime(shell_root: Path) -> None:
    """The container ends with it, and that is what pullpipe tells."""
    with started(shell_root, "--rm", "--runtime=runc", "test", "sh", "-c", "echo up; sleep 1000") as run:
        assert line(run) == "up"
        [runtime] = [pid for pid in descendants(run.pid) if Path(f"/proc/{pid}/exe").readlink().name == "runc"]
        os.kill(runtime, signal.SIGKILL)
        assert run.wait(PATIENCE) == 137


def test_a_terminal(shell_root: Path) -> None:
    """Of the container's own, with the size of ours, now and later; keys come through, and modes are restored."""
    script = (
        "tty; stty size; trap 'stty size' WINCH; trap 'echo interrupted; exit 4' INT; echo up; "
        "while :; do sleep 0.05; done"
    )
    shown = terminal_of(shell_root, "--rm", "-it", "--runtime=runc", "test", "sh", "-c", script)
    with contextlib.closing(shown):
        shown.expect("/dev/pts/0\r\n33 77\r\nup\r\n")
        [bundle] = shell_root.glob("containers/*/bundle")
        # Without, runc sets it a moment after the command has begun.
        assert config(bundle)["process"]["consoleSize"] == {"height": 33, "width": 77}
        shown.resize(40, 100)
        shown.expect("40 100\r\n")
        shown.type("\x03")
        shown.expect("interrupted\r\n")
        assert shown.process.wait(PATIENCE) == 4
        assert shown.modes() == shown.before


def test_a_terminal_where_we_have_none(cli: Cli, image: None) -> None:
    """The command has one all the same, as without a runtime."""
    done = cli("run", "--rm", "-t", "--runtime=runc", "test", "sh", "-c", "tty; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "/dev/pts/0\n", "")


def begun(cli: Cli) -> bool:
    """Whether the container `c` has said so."""
    logs = cli("logs", "c")
    assert containers(cli)[0]["exit_code"] is None, logs.stderr
    return "up" in logs.stdout


def test_in_the_background(cli: Cli, image: None) -> None:
    """-d: what it prints is kept, and it is stopped as any other."""
    script = "trap 'echo heard; exit 9' TERM; echo up; while :; do sleep 0.05; done"
    out(cli("run", "-d", "--name=c", "--runtime=runc", "test", "sh", "-c", script))
    until(lambda: begun(cli), "the command to begin")
    out(cli("stop", "c"))
    assert out(cli("logs", "c")) == "up\nheard"
    assert containers(cli)[0]["exit_code"] == 9


def test_nothing_of_ours_goes_where_the_runtime_is(cli: Cli, image: None, tmp_path: Path) -> None:
    """It sees the machine's files: exec and cp would be there, and not in the container."""
    (tmp_path / "file").write_text("of the host")
    out(cli("run", "-d", "--name=c", "--runtime=runc", "test", "sh", "-c", "echo up; sleep 1000"))
    until(lambda: begun(cli), "the command to begin")
    for command, code in (
        (("exec", "c", "true"), 125),
        (("cp", f"{tmp_path}/file", f"c:{tmp_path}/copied"), 1),
        (("cp", f"c:{tmp_path}/file", f"{tmp_path}/copied"), 1),
    ):
        assert "handed over to runc" in error(cli(*command), code)
    assert not (tmp_path / "copied").exists()
    out(cli("rm", "-f", "c"))


def test_without_root() -> None:
    """A user's container and a user's bundle: root inside is that user."""
    require("newuidmap")
    with somewhere(User("alice", 71000, ids=[(200000, 65536)])) as [user], user.at_a_new_home() as alice:
        write_layout(alice.home / "layout", {"t": Image(BASE)})
        out(alice.pullpipe("load", "-q", "-t", "test", alice.home / "layout"))
        script = "head -n 1 /proc/self/uid_map | tr -s ' '; exit 5"
        for network in ("host", "none"):
            words = ("run", "--rm", "--runtime=runc", f"--network={network}", "test", "sh", "-c", script)
            done = alice.pullpipe(*words)
            assert (done.returncode, done.stdout) == (5, " 0 71000 1\n"), done.stderr
        out(alice.pullpipe("bundle", "-q", "test", alice.home / "bundle", "sh"))
        assert (alice.home / "bundle/rootfs/bin/sh").stat().st_uid == 71000


def test_crun(hand_over: Run) -> None:
    """Where cgroups are of one version; on a machine with both it refuses, and that is told."""
    require("crun")
    script = "grep Seccomp: /proc/self/status; cat /sys/fs/cgroup/pids.max; exit 5"
    done = hand_over("sh", "-c", script, options=("--runtime=crun", "--pids-limit=50"))
    if os.path.ismount("/sys/fs/cgroup/unified"):
        assert done.returncode == 125
        assert "crun has not started the command: cgroups in hybrid mode not supported" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (5, "Seccomp:\t2\n50\n"), done.stderr
