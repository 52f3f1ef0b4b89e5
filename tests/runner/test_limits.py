"""Limits of `pullpipe run`: what the container takes of the machine is kept in them by the kernel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pullpipe.errors import RunError
from pullpipe.runner import cgroups
from pullpipe.runner.cgroups import Hierarchy, hierarchies, planned
from pullpipe.runner.limits import Limits
from tests.conftest import PROJECT, Cli, leave_out
from tests.runner.rig import BASE, Run, containers, error, line, out, pullpipe, started
from tests.support.images import Image, write_layout
from tests.support.users import User, somewhere

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("busybox")]

# Reads files of the container's own groups, as programs do that want to know: where v1 has them, or v2.
SHOW = 'show() { cat "/sys/fs/cgroup/$1" 2>/dev/null || cat "/sys/fs/cgroup/$2"; }; '
SHOW_MEMORY = "show memory/memory.limit_in_bytes memory.max"
EVERYTHING = (
    *("--memory=64m", "--memory-reservation=32m", "--cpus=0.5", "--cpu-shares=512"),
    *("--pids-limit=50", "--cpuset-cpus=0"),
)


@pytest.fixture(autouse=True, scope="module")
def _machine(busybox: None, shell_root: Path) -> None:
    """One that lets root limit something."""
    done = pullpipe(shell_root, "run", "--rm", *EVERYTHING, "test", "true")
    if done.returncode:
        leave_out(f"there are no cgroups to be had here: {done.stderr}")


def groups(short_id: str) -> list[Path]:
    """Those of a container, by the beginning of its id."""
    # Those of others vanish meanwhile, which `rglob` does not outlive.
    tops = ((Path(top), names) for top, names, _ in os.walk("/sys/fs/cgroup"))
    return [top / name for top, names in tops for name in names if name.startswith(f"pullpipe-{short_id}")]


# Memory.


def test_a_command_that_takes_too_much_memory(cli: Cli, image: None) -> None:
    """The kernel kills it, and it is told on stderr and in the record."""
    done = cli("run", "--memory", "16m", "test", "tail", "/dev/zero")
    assert (done.returncode, done.stdout) == (137, "")
    assert done.stderr == (
        "pullpipe: the container ran out of memory, and the kernel killed a process in it; --memory is 16m\n"
    )
    [container] = containers(cli)
    assert (container["exit_code"], container["out_of_memory"]) == (137, True)


def test_a_child_that_takes_too_much_memory(cli: Cli, image: None) -> None:
    """The command hears of it as of any death, and it is told."""
    done = cli("run", "--memory=16m", "test", "sh", "-c", "tail /dev/zero; echo $?")
    assert (done.returncode, done.stdout) == (0, "137\n")
    assert "ran out of memory" in done.stderr
    assert containers(cli)[0]["out_of_memory"] is True


def test_enough_memory(cli: Cli, image: None) -> None:
    """The same with more of it, as the control."""
    done = cli("run", "--memory=16m", "test", "sh", "-c", "head -c 4m /dev/zero | tail -c 4m | wc -c")
    assert (out(done), done.stderr) == (str(4 << 20), "")
    assert containers(cli)[0]["out_of_memory"] is False


def test_memory_to_start_with(run: Run) -> None:
    """The least that there is suffices to start the command in every way."""
    assert out(run("echo", "started", options=("--memory=6m", "--init"))) == "started"


def test_a_part_of_a_megabyte(run: Run) -> None:
    assert out(run("sh", "-c", SHOW + SHOW_MEMORY, options=("--memory=7.5m",))) == str(15 << 19)


# Processes.


def test_a_fork_bomb(run: Run) -> None:
    """It comes to an end at the limit, and the command can still count."""
    bomb = "i=0; while [ $i -lt 60 ]; do sleep 1000 & i=$((i+1)); done 2>/dev/null; true"
    count = 'sh -c "$0" & wait $!; set -- /proc/[0-9]*; echo $#'
    number = int(out(run("sh", "-c", count, bomb, options=("--pids-limit=20",))))
    assert 10 < number <= 20
    assert int(out(run("sh", "-c", count, bomb))) > 60


def test_no_process_more(run: Run, shell_root: Path) -> None:
    """Where none may be made, neither an init's child nor `exec` can be: the error tells which limit that is."""
    assert "--pids-limit" in error(run("true", options=("--pids-limit=1", "--init")), 125)
    out(pullpipe(shell_root, "run", "-d", "--name", "full", "--pids-limit=1", "test", "sleep", "1000"))
    try:
        assert "--pids-limit" in error(pullpipe(shell_root, "exec", "full", "true"), 125)
    finally:
        out(pullpipe(shell_root, "rm", "-f", "full"))


@pytest.mark.parametrize("number", range(1, 6))
@pytest.mark.parametrize("options", [("-i",), ("-d",), ("-d", "--rm")], ids=" ".join)
def test_no_process_of_ours_more(
    cli: Cli, image: None, store_root: Path, number: int, options: tuple[str, ...]
) -> None:
    """Be it the monitor, the container's first process or a thread that copies its streams; five are enough."""
    command = [sys.executable, "-m", "pullpipe", "--root", str(store_root), "run", *options, "test", "true"]
    limit, name = cgroups.plan(Limits(pids=number)), f"test-{os.getpid()}"
    cgroups.make(limit, name)
    places = [cgroups.directory(group, name) for group in limit]
    try:
        done = subprocess.run(
            command,
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            preexec_fn=lambda: cgroups.join(places, 0),
        )
    finally:
        cgroups.remove(places)
    if number < 5:
        assert "--pids-limit" in error(done, 125)
        assert [one["exit_code"] for one in containers(cli)] == ([] if "--rm" in options else [125])
    else:
        out(done)


# Processors.


def test_a_part_of_a_processor(run: Run) -> None:
    """The quota is there, and the kernel makes the command wait."""
    script = SHOW + (
        "show cpu/cpu.cfs_quota_us cpu.max; "
        "until show cpu/cpu.stat cpu.stat | grep -q 'nr_throttled [1-9]'; do :; done; echo throttled"
    )
    quota, said = out(run("sh", "-c", script, options=("--cpus=0.05",))).split("\n")
    assert (quota.split()[0], said) == ("5000", "throttled")


def test_one_processor(run: Run) -> None:
    """Wherever the command asks."""
    last = os.cpu_count() or 1
    shown = out(run("sh", "-c", "grep Cpus_allowed_list /proc/self/status", options=(f"--cpuset-cpus={last - 1}",)))
    assert shown.split() == ["Cpus_allowed_list:", str(last - 1)]


# Groups.


def test_all_limits_at_once(run: Run) -> None:
    """Each is found where programs look for it."""
    script = SHOW + (
        "show memory/memory.limit_in_bytes memory.max; show memory/memory.soft_limit_in_bytes memory.low; "
        "show cpu/cpu.cfs_quota_us cpu.max; show cpu/cpu.shares cpu.weight; show pids/pids.max pids.max; "
        "show cpuset/cpuset.cpus cpuset.cpus"
    )
    values = out(run("sh", "-c", script, options=EVERYTHING)).split("\n")
    assert values in (
        [str(64 << 20), str(32 << 20), "50000", "512", "50", "0"],
        [str(64 << 20), str(32 << 20), "50000 100000", "20", "50", "0"],
    )


@pytest.mark.parametrize("number", [None, "0", "-1"])
def test_no_limit(number: str | None, run: Run) -> None:
    """Without the option, and with what means none, nothing is there: not even the directories of the machine's."""
    options = () if number is None else (f"--pids-limit={number}",)
    assert out(run("ls", "-A", "/sys/fs/cgroup", options=options)) == ""


@pytest.mark.parametrize("options", [(), ("--pids-limit=50", "--memory=64m")])
def test_nothing_tells_of_the_machines_groups(options: tuple[str, ...], run: Run) -> None:
    """The container's own group is the top of what it sees."""
    script = "cut -d: -f3 /proc/self/cgroup | sort -u; grep -E ' cgroup2? ' /proc/self/mountinfo | cut -d' ' -f4"
    assert set(out(run("sh", "-c", script, options=options)).split("\n")) == {"/"}


def test_the_limits_cannot_be_changed_from_inside(run: Run) -> None:
    """Not even by a root that may mount."""
    script = SHOW + (
        "for file in $(find /sys/fs/cgroup -name '*.max' -o -name '*limit_in_bytes' -o -name cgroup.procs); do "
        "echo 1 > $file && echo open; done 2>/dev/null; mkdir /sys/fs/cgroup/more /sys/fs/cgroup/*/more && echo open; "
        "show memory/memory.limit_in_bytes memory.max"
    )
    done = run("sh", "-c", script, options=("--memory=64m", "--pids-limit=50"))
    assert out(done) == str(64 << 20)


def test_each_container_has_its_own(shell_root: Path) -> None:
    """Two at the same time, with what each is given, and until each ends."""
    command = ("test", "sh", "-c", f'{SHOW} echo "$(hostname) $({SHOW_MEMORY})"; read -r word')
    with (
        started(shell_root, "--rm", "-i", "--memory=64m", *command, stdin=subprocess.PIPE) as first,
        started(shell_root, "--rm", "-i", "--memory=32m", *command, stdin=subprocess.PIPE) as second,
    ):
        ids, limits = zip(line(first).split(), line(second).split(), strict=True)
        assert limits == (str(64 << 20), str(32 << 20))
        assert [len(groups(one)) for one in ids] == [1, 1]
        for process in first, second:
            process.communicate(b"\n")
            assert process.returncode == 0
    assert [len(groups(one)) for one in ids] == [0, 0]


@pytest.mark.parametrize(
    ("options", "command", "code"),
    [
        ((), ("no-such-command",), 127),
        (("--user", "nobody-there"), ("true",), 125),
        (("--init",), ("false",), 1),
        (("--pid=host",), ("sh", "-c", "sleep 1000 >/dev/null &"), 0),
        (("--memory=16m",), ("tail", "/dev/zero"), 137),
    ],
)
def test_the_group_goes_with_the_container(
    options: tuple[str, ...], command: tuple[str, ...], code: int, cli: Cli, image: None
) -> None:
    """Also with one that never began, and with what it leaves behind among the machine's processes."""
    assert cli("run", "--pids-limit=50", *options, "test", *command).returncode == code
    [container] = containers(cli)
    assert groups(str(container["id"])) == []


def test_killing_the_runner(cli: Cli, image: None, store_root: Path) -> None:
    """SIGKILL: the container ends with it, and the next command removes the group."""
    with started(store_root, "--pids-limit=50", "test", "sh", "-c", "echo up; sleep 1000") as run:
        assert line(run) == "up"
        [container] = containers(cli)
        [group] = groups(str(container["id"]))
        assert (group / "cgroup.procs").read_text()
        run.kill()
        run.wait()
    [container] = containers(cli)
    assert container["status"] == "killed"
    assert groups(str(container["id"])) == []


# What cannot be.


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--memory=5m",), "6m at least"),
        (("--memory=much",), "no number of bytes"),
        (("--memory=1.g",), "no number of bytes"),
        (("--memory=0.1b",), "no number of bytes"),
        (("--memory-swap=1g",), "say --memory, too"),
        (("--memory=64m", "--memory-swap=32m"), "not less than --memory"),
        (("--memory=64m", "--memory-reservation=65m"), "make it less"),
        (("--cpus=1000000",), "this machine can give"),
        (("--cpus=-1",), "no number of processors"),
        (("--cpus=nan",), "no number of processors"),
        (("--cpu-shares=1",), "from 2 to 262144"),
        (("--cpuset-cpus=99999",), "the processors that we may use are"),
        (("--cpuset-cpus=0-",), "no list of processors"),
        (("--pids-limit=some",), "no whole number"),
    ],
)
def test_limits_that_cannot_be_kept(options: tuple[str, ...], why: str, run: Run) -> None:
    """An error, and nothing runs."""
    assert why in error(run("echo", "runs", options=options), 125)


def test_without_root() -> None:
    """Who may make no groups is told so, and what to do."""
    with somewhere(User("alice", 71000)) as [user], user.at_a_new_home() as alice:
        write_layout(alice.home / "layout", {"t": Image(BASE)})
        out(alice.pullpipe("load", "-q", "-t", "test", alice.home / "layout"))
        why = error(alice.pullpipe("run", "--rm", "--pids-limit=50", "test", "echo", "runs"), 125)
    assert "cgroup" in why
    assert "use sudo" in why


# Machines of other kinds than this one.

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


def test_a_machine_with_both_versions() -> None:
    """Each controller where it is mounted."""
    groups = "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/c\n"
    top = "/sys/fs/cgroup"
    assert hierarchies(HYBRID, groups) == [
        Hierarchy(("cpu", "cpuacct"), f"{top}/cpu,cpuacct", f"{top}/cpu,cpuacct"),
        Hierarchy(("memory",), f"{top}/memory", f"{top}/memory/a/b"),
        Hierarchy(("name=systemd",), f"{top}/systemd", f"{top}/systemd"),
        Hierarchy((), f"{top}/unified", f"{top}/unified/c"),
    ]


@pytest.mark.parametrize(("root", "path"), [("/docker/1", "/docker/1"), ("/", "/"), ("/", "/../..")])
def test_in_a_container(root: str, path: str) -> None:
    """Where a part of the hierarchy is mounted, which is our own; or one of which we are not."""
    mounts = f"41 31 0:38 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    assert hierarchies(mounts, f"0::{path}\n") == [Hierarchy((), "/sys/fs/cgroup", "/sys/fs/cgroup")]


def test_where_a_group_of_v2_goes(tmp_path: Path) -> None:
    """Below the nearest group, from ours upward, that hands the controllers on; else, the nearest that can be told to.
    It has no processes of its own, but for the topmost."""

    def group(path: str, controllers: str, handed_on: str, **more: str) -> None:
        (tmp_path / path).mkdir()
        for name, text in {"controllers": controllers, "subtree_control": handed_on, **more}.items():
            (tmp_path / path / f"cgroup.{name}").write_text(text)

    group("top", "cpuset cpu memory pids", "memory pids", procs="1")
    group("top/user", "memory pids", "pids", procs="", type="domain")
    group("top/user/here", "pids", "", procs="2", type="domain")  # which could hand pids on, were it not for us
    machine = [Hierarchy((), str(tmp_path / "top"), str(tmp_path / "top/user/here"))]

    def parent(limits: Limits) -> str:
        [made] = planned(limits, machine)
        return os.path.relpath(made.parent, tmp_path)

    assert parent(Limits(pids=5)) == "top/user"
    [made] = planned(Limits(pids=5), machine)
    assert cgroups.path(made, "1") == "/user/pullpipe-1"
    assert parent(Limits(pids=5, memory=64 << 20)) == "top"
    assert parent(Limits(cpus=0.5)) == "top"
    assert (tmp_path / "top/cgroup.subtree_control").read_text() == "+cpury pids"  # a file; the kernel takes it as one
    [made] = planned(Limits(memory=64 << 20, memory_swap=-1, cpus=0.5, cpu_shares=1024, cpuset="0"), machine)
    assert [setting.v2 for setting in made.settings] == [
        (("memory.max", str(64 << 20)),),
        (("memory.swap.max", "max"),),
        (("cpu.max", "50000 100000"),),
        (("cpu.weight", "39"),),
        (("cpuset.cpus", "0"),),
    ]
    with pytest.raises(RunError, match="--memory cannot be kept"):
        planned(
            Limits(memory=64 << 20), [Hierarchy((), str(tmp_path / "top/user/here"), str(tmp_path / "top/user/here"))]
        )


@pytest.mark.parametrize(
    ("controllers", "remedy"), [("memory", "Delegate= of user@.service"), (None, "--property Delegate=yes")]
)
def test_a_group_of_v2_without_root(controllers: str | None, remedy: str) -> None:
    """Who has one that lacks a controller is told another remedy than who has none."""
    code = (
        "import sys; from pullpipe.runner.cgroups import Hierarchy, planned; from pullpipe.runner.limits import Limits;"
        "planned(Limits(pids=5), [Hierarchy((), sys.argv[1], sys.argv[1] + '/here')])"
    )
    with somewhere(User("alice", 71000)) as [user], user.at_a_new_home() as alice:
        (alice.home / "cgroup.controllers").write_text("memory pids")
        (alice.home / "here").mkdir()
        if controllers is not None:
            for name, text in {"controllers": controllers, "subtree_control": "", "procs": "", "type": ""}.items():
                (alice.home / "here" / f"cgroup.{name}").write_text(text)
                os.chown(alice.home / "here" / f"cgroup.{name}", alice.uid, alice.uid)
            os.chown(alice.home / "here", alice.uid, alice.uid)
        done = alice.run(sys.executable, "-c", code, alice.home)
    assert remedy in done.stderr


def test_a_machine_without_cgroups() -> None:
    """What is asked for cannot be kept, and that is told."""
    with pytest.raises(RunError, match=re.escape("--pids-limit cannot be kept: the cgroup controller 'pids' is not")):
        planned(Limits(pids=5), [])


def test_groups_are_removed_as_often_as_asked(tmp_path: Path) -> None:
    """Those that are gone already do no harm."""
    assert cgroups.remove([str(tmp_path / "no-such")])
