"""System calls from inside of a container: which ones the default profile refuses, and profiles of the user's own.

They are made by this machine's Python, bound into the container.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT, Cli, require
from tests.runner.rig import Run, error, host_python, out, status

pytestmark = [pytest.mark.needs_root, pytest.mark.usefixtures("busybox")]

# What makes the calls.
PROBE = """
import ctypes, json, sys
libc = ctypes.CDLL(None, use_errno=True)
resolve = ctypes.CDLL("libseccomp.so.2").seccomp_syscall_resolve_name
answers = {}
for name, *arguments in json.loads(sys.argv[1]):
    ctypes.set_errno(0)
    result = libc.syscall(resolve(name.encode()), *[ctypes.c_long(one) for one in arguments])
    answers[name] = 0 if result >= 0 else ctypes.get_errno()
print(json.dumps(answers))
"""

Probe = Callable[..., dict[str, int]]


@pytest.fixture(scope="module")
def library() -> str:
    """libseccomp's path: the container has none, and names are easier to read than numbers."""
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    (found, *_) = [row.split(" => ")[1] for row in listing.split("\n") if "libseccomp.so.2 " in row]
    return found


@pytest.fixture
def probe(run: Run, library: str) -> Probe:
    """A function that makes system calls in a container and returns the error of each."""

    def probe(*calls: tuple[object, ...], options: tuple[str, ...] = ()) -> dict[str, int]:
        binds = (*host_python(), f"-v={library}:/lib/libseccomp.so.2:ro", "-e=LD_LIBRARY_PATH=/lib")
        done = run("python", "-S", "-c", PROBE, json.dumps(calls), options=(*binds, *options))
        answers: dict[str, int] = json.loads(out(done))
        return answers

    return probe


NEWUSER, NEWNS = 0x10000000, 0x00020000
AF_INET, AF_ALG, AF_NFC, AF_VSOCK, AF_XDP = 2, 38, 39, 40, 44
REFUSED: list[tuple[object, ...]] = [
    ("mount", 0, 0, 0, 0, 0),
    ("umount2", 0, 0),
    ("pivot_root", 0, 0),
    ("fsopen", 0, 0),
    ("open_tree", -1, 0, 0),
    ("move_mount", -1, 0, -1, 0, 0),
    ("mount_setattr", -1, 0, 0, 0, 0),
    ("unshare", NEWNS),
    ("setns", -1, 0),
    ("keyctl", 0, 0, 0, 0, 0),
    ("add_key", 0, 0, 0, 0, 0),
    ("request_key", 0, 0, 0, 0),
    ("bpf", 0, 0, 0),
    ("perf_event_open", 0, 0, 0, -1, 0),
    ("userfaultfd", 0),
    ("io_uring_setup", 0, 0),
    ("init_module", 0, 0, 0),
    ("finit_module", -1, 0, 0),
    ("kexec_load", 0, 1, 0, -1),
    ("reboot", 0, 0, 0, 0),
    ("swapon", 0, 0),
    ("acct", 1),
    ("quotactl", 0, 0, 0, 0),
    ("open_by_handle_at", -1, 0, 0),
    ("process_madvise", -1, 0, 0, 0, 0),
    ("pidfd_getfd", -1, 0, 0),
    ("kcmp", 1, 1, 0, 0, 0),
    ("set_mempolicy", 0, 0, 0),
    ("settimeofday", 0, 0),
    ("personality", 0x0040000),  # ADDR_NO_RANDOMIZE
    ("clone", NEWUSER | 17, 0, 0, 0, 0),
    ("vhangup",),
]


def test_what_the_default_refuses(probe: Probe) -> None:
    """EPERM, and by the filter: a root with all capabilities, and without it, hears something else, or gets it."""
    answers = probe(*REFUSED)
    assert {name for name, answer in answers.items() if answer != errno.EPERM} == set()
    harmless = [call for call in REFUSED if call[0] not in ("clone", "vhangup", "reboot")]
    free = probe(*harmless, options=("--security-opt=seccomp=unconfined", "--cap-add=ALL"))
    assert {name for name, answer in free.items() if answer == errno.EPERM} == set()


def test_what_the_default_allows(probe: Probe) -> None:
    """What programs use: the kernel answers, and not the filter."""
    calls = [
        ("getpid",),
        ("ptrace", 0x4206, 99999, 0, 0),
        ("process_vm_readv", 99999, 0, 0, 0, 0, 0),
        ("chroot", 0),
        ("mknodat", -1, 0, 0, 0),
        ("seccomp", 2, 0, 0),
        ("personality", 0xFFFFFFFF),
        ("landlock_create_ruleset", 0, 0, 1),
        ("name_to_handle_at", -1, 0, 0, 0, 0),
        ("memfd_create", 0, 0),
        ("io_setup", 0, 0),
        ("copy_file_range", -1, 0, -1, 0, 0, 0),
        ("rseq", 0, 0, 0, 0),
    ]
    answers = probe(*calls)
    assert {name for name, answer in answers.items() if answer in (errno.EPERM, errno.ENOSYS)} == set()


@pytest.mark.parametrize(
    ("family", "refused"), [(AF_INET, False), (AF_ALG, True), (AF_NFC, False), (AF_VSOCK, True), (AF_XDP, False)]
)
def test_address_families(family: int, refused: bool, probe: Probe) -> None:
    """AF_ALG has been a way to write to the page cache, AF_VSOCK talks to the hypervisor."""
    (answer,) = probe(("socket", family, 2, 0)).values()
    assert (answer == errno.EPERM) == refused
    if refused:
        (free,) = probe(("socket", family, 2, 0), options=("--security-opt=seccomp=unconfined",)).values()
        assert free != errno.EPERM


def test_what_c_libraries_try_first(probe: Probe) -> None:
    """clone3 is as if the kernel did not have it, for its flags cannot be seen: they take clone, whose flags can."""
    assert probe(("clone3", 0, 0)) == {"clone3": errno.ENOSYS}


def test_numbers_that_no_kernel_has(run: Run) -> None:
    """ENOSYS, as without a filter; not EPERM, by which a C library would take the call for forbidden."""
    script = (
        "import ctypes; c = ctypes.CDLL(None, use_errno=True)\n"
        "for n in 600, 9999, 0x3fffffff: print(c.syscall(n), ctypes.get_errno())"
    )
    assert out(run("python", "-S", "-c", script, options=host_python())) == "\n".join([f"-1 {errno.ENOSYS}"] * 3)


@pytest.mark.parametrize(
    ("capability", "call"),
    [
        ("SYS_ADMIN", ("unshare", NEWNS)),
        ("SYS_ADMIN", ("bpf", 0, 0, 0)),
        ("SYS_PTRACE", ("kcmp", 1, 1, 0, 0, 0)),
        ("SYS_NICE", ("set_mempolicy", 0, 0, 0)),
        ("DAC_READ_SEARCH", ("open_by_handle_at", -1, 0, 0)),
        ("SYS_TTY_CONFIG", ("vhangup",)),
    ],
)
def test_capabilities_open_their_calls(capability: str, call: tuple[object, ...], probe: Probe) -> None:
    """Whoever gets the capability gets what it is for."""
    (name,) = probe(call, options=(f"--cap-add={capability}",)).items()
    assert name[1] != errno.EPERM


def test_a_capability_that_is_taken_closes_them(probe: Probe) -> None:
    """chroot goes with CAP_SYS_CHROOT."""
    assert probe(("chroot", 0), options=("--cap-drop=SYS_CHROOT",)) == {"chroot": errno.EPERM}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another machine's way of running others' programs")
def test_calls_of_32_bits_are_filtered_too(run: Run) -> None:
    """By `int 0x80` a program of 64 bits makes them: the same rules, by their other numbers."""
    script = """
import ctypes, mmap
def call(number, argument):
    number, argument = number.to_bytes(4, "little"), argument.to_bytes(4, "little")
    code = b"\\x53\\xb8" + number + b"\\xbb" + argument + b"\\xcd\\x80\\x5b\\xc3"
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(code)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print(call(20, 0) > 0, call(310, 0x10000000), call(21, 0))
"""
    shown = out(run("python", "-S", "-c", script, options=host_python())).split()
    assert shown == ["True", str(-errno.EPERM), str(-errno.EPERM)]  # getpid, unshare, mount
    free = out(run("python", "-S", "-c", script, options=(*host_python(), "--security-opt=seccomp=unconfined")))
    assert free.split()[:2] == ["True", "0"]


@pytest.mark.parametrize("options", [(), ("--security-opt=no-new-privileges",), ("-u", "65534")])
def test_the_filter_is_there(options: tuple[str, ...], run: Run) -> None:
    """For root and others, with new privileges and without; and not with seccomp=unconfined."""
    assert status(out(run("cat", "/proc/self/status", options=options)))["Seccomp"] == "2"
    unconfined = ("--security-opt=seccomp=unconfined", *options)
    assert status(out(run("cat", "/proc/self/status", options=unconfined)))["Seccomp"] == "0"


# Profiles of the user's own.


def profile(**changes: Any) -> dict[str, Any]:
    """One that refuses nothing, with these changes."""
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [], **changes}


def rule(*names: str, action: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"names": list(names), "action": action, **more}


def argument(index: int, value: int, op: str, **more: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": f"SCMP_CMP_{op}", **more}


@pytest.mark.parametrize(
    ("document", "call", "expected"),
    [
        (profile(syscalls=[rule("getpid")]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("getpid", errnoRet=5)]), ("getpid",), 5),
        (profile(syscalls=[{"name": "getpid", "action": "SCMP_ACT_ERRNO"}]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("no_such_call", "getpid")]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("getpid", includes={"caps": ["CAP_CHOWN"]})]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("getpid", includes={"caps": ["CAP_SYS_ADMIN"]})]), ("getpid",), 0),
        (profile(syscalls=[rule("getpid", excludes={"caps": ["CAP_CHOWN"]})]), ("getpid",), 0),
        (profile(syscalls=[rule("getpid", excludes={"caps": ["CAP_SYS_ADMIN"]})]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("getpid", includes={"arches": ["vax"]})]), ("getpid",), 0),
        (profile(syscalls=[rule("getpid", includes={"minKernel": "4.8"})]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("getpid", includes={"minKernel": "99.0"})]), ("getpid",), 0),
        (profile(syscalls=[rule("getpid", includes={}, excludes={}, args=None)]), ("getpid",), errno.EPERM),
        (profile(syscalls=[rule("umask", args=[argument(0, 7, "EQ")])]), ("umask", 7), errno.EPERM),
        (profile(syscalls=[rule("umask", args=[argument(0, 7, "EQ")])]), ("umask", 8), 0),
        (profile(syscalls=[rule("umask", args=[argument(0, 7, "NE")])]), ("umask", 8), errno.EPERM),
        (profile(syscalls=[rule("umask", args=[argument(0, 7, "LE")])]), ("umask", 7), errno.EPERM),
        (profile(syscalls=[rule("umask", args=[argument(0, 7, "GT")])]), ("umask", 7), 0),
        (profile(syscalls=[rule("umask", args=[argument(0, 6, "MASKED_EQ", valueTwo=2)])]), ("umask", 3), errno.EPERM),
        (profile(syscalls=[rule("umask", args=[argument(0, 6, "MASKED_EQ", valueTwo=2)])]), ("umask", 7), 0),
        # Two conditions on one argument are alternatives, as in Docker.
        (
            profile(syscalls=[rule("umask", args=[argument(0, 7, "EQ"), argument(0, 8, "EQ")])]),
            ("umask", 8),
            errno.EPERM,
        ),
        (profile(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"]), ("getpid",), 0),
    ],
)
def test_profiles(
    document: dict[str, Any], call: tuple[object, ...], expected: int, probe: Probe, tmp_path: Path
) -> None:
    """Docker's form: names, actions, conditions and arguments mean what they mean there."""
    (tmp_path / "profile.json").write_text(json.dumps(document))
    assert probe(call, options=(f"--security-opt=seccomp={tmp_path}/profile.json",)) == {call[0]: expected}


def test_a_profile_that_kills(run: Run, tmp_path: Path) -> None:
    """SIGSYS: 128+31."""
    (tmp_path / "p").write_text(
        json.dumps(profile(syscalls=[rule("mkdir", "mkdirat", action="SCMP_ACT_KILL_PROCESS")]))
    )
    assert run("mkdir", "/x", options=(f"--security-opt=seccomp={tmp_path}/p",)).returncode == 128 + 31


PODMANS = Path("/usr/share/containers/seccomp.json")


def test_podmans_profile(run: Run, probe: Probe) -> None:
    """The other one that is widespread: it is taken, and refuses in its own way."""
    if not PODMANS.exists():
        pytest.skip("podman's profile is not installed")
    option = f"--security-opt=seccomp={PODMANS}"
    assert out(run("echo", "ran", options=(option,))) == "ran"
    assert probe(("kexec_load", 0, 0, 0, 0), options=(option,)) != {"kexec_load": 0}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("", "Expecting value"),
        ("[]", "no JSON object"),
        ("{}", "defaultAction"),
        ('{"defaultAction": "SCMP_ACT_PRAY"}', "SCMP_ACT_PRAY"),
        (json.dumps(profile(syscalls=[rule("getpid", action="SCMP_ACT_NOTIFY")])), "SCMP_ACT_NOTIFY"),
        (json.dumps(profile(syscalls=[rule("umask", args=[argument(0, 1, "ABOUT")])])), "ABOUT"),
        (json.dumps(profile(syscalls=[rule("umask", args=[argument(9, 1, "EQ")])])), "umask"),
        (json.dumps(profile(syscalls=[rule("getpid", includes={"moon": "full"})])), "moon"),
        (json.dumps(profile(syscalls="getpid")), "profile"),
        (json.dumps(profile(syscalls=[rule("getpid", includes={"minKernel": "new"})])), "new"),
        (" " * (1 << 20) + "{}", "1 MiB"),
    ],
)
def test_profiles_that_are_none(document: str, said: str, run: Run, tmp_path: Path) -> None:
    """One line with the file's name and what is wrong, and nothing runs."""
    (tmp_path / "profile.json").write_text(document)
    shown = error(run("true", options=(f"--security-opt=seccomp={tmp_path}/profile.json",)), 125)
    assert said in shown
    assert "profile.json" in shown


# The programs that are kept.


def test_programs_are_kept(cli: Cli, image: None, store_root: Path) -> None:
    """Compiled once for each profile and set of capabilities; one that is damaged is made again."""
    for _ in range(2):
        out(cli("run", "--rm", "test", "true"))
    (kept,) = (store_root / "cache").iterdir()
    whole = kept.read_bytes()
    out(cli("run", "--rm", "--cap-drop=CHOWN", "test", "true"))
    assert len(list((store_root / "cache").iterdir())) == 2
    for damaged in (whole[:-8], b"", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        kept.write_bytes(damaged)
        assert status(out(cli("run", "--rm", "test", "cat", "/proc/self/status")))["Seccomp"] == "2"
        assert kept.read_bytes() == whole


def test_without_libseccomp(shell_root: Path, library: str) -> None:
    """No container without its walls: it says what to install, and what to say to run without."""
    script = 'mount --make-rprivate / && mount --bind /dev/null "$0" && exec "$@"'
    run = [sys.executable, "-m", "pullpipe", "--root", str(shell_root), "run", "--rm"]
    for options, expected in (([], 125), (["--security-opt=seccomp=unconfined"], 0)):
        command = [require("unshare"), "-m", "sh", "-c", script, os.path.realpath(library), *run, *options]
        done = subprocess.run([*command, "test", "true"], cwd=PROJECT, capture_output=True, text=True)
        assert done.returncode == expected, done.stderr
        assert not expected or "libseccomp2" in error(done, 125)


# The whole program, call by call.

AUDIT_ARCH_X86_64, AUDIT_ARCH_I386 = 0xC000003E, 0x40000003
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def judge(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """What the kernel would do: the BPF of seccomp(2), of which libseccomp uses these few instructions."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    place = accumulator = 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, place * 8)
        place += 1
        if code == 0x06:
            return int(operand)
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x05:
            place += operand
        else:
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x35: accumulator >= operand}[code]
            place += if_true if holds else if_false


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of another machine")
def test_every_call(cli: Cli, image: None, store_root: Path, library: str) -> None:
    """Both kinds, all numbers: allowed where the profile has the name without a condition, and nowhere else."""
    resolve = ctypes.CDLL(library).seccomp_syscall_resolve_num_arch
    resolve.restype = ctypes.c_char_p
    out(cli("run", "--rm", "test", "true"))
    (kept,) = (store_root / "cache").iterdir()
    program = kept.read_bytes()[32:]
    document = json.loads((PROJECT / "pullpipe/runner/seccomp.json").read_text())
    held = {f"CAP_{name}" for name in ("SYS_CHROOT", "MKNOD", "CHOWN", "NET_RAW")}
    free = {
        name
        for entry in document["syscalls"]
        if entry["action"] == "SCMP_ACT_ALLOW" and "args" not in entry
        for name in entry["names"]
        if set(entry.get("includes", {}).get("caps", ())) <= held
        and "amd64" in entry.get("includes", {}).get("arches", ("amd64",))
    }
    named = {name for entry in document["syscalls"] for name in entry["names"]}
    assert len(free) > 300
    for architecture in (AUDIT_ARCH_X86_64, AUDIT_ARCH_I386):
        names = [(number, (resolve(architecture, number) or b"").decode()) for number in range(700)]
        highest = max(number for number, name in names if name in named)
        for number, name in names:
            if name in ("socket", "personality", "clone", "socketcall", "ipc"):
                continue  # by their arguments
            if number > highest or name == "clone3":
                expected = ERRNO | errno.ENOSYS
            else:
                expected = ALLOW if name in free else ERRNO | errno.EPERM
            assert judge(program, architecture, number) == expected, (hex(architecture), number, name)
    for family in range(64):
        expected = ERRNO | errno.EPERM if family in (AF_ALG, AF_VSOCK) else ALLOW
        assert judge(program, AUDIT_ARCH_X86_64, 41, family) == expected
    for flags in (1 << bit for bit in range(64)):
        expected = ERRNO | errno.EPERM if flags & 0x7E020000 else ALLOW
        assert judge(program, AUDIT_ARCH_X86_64, 56, flags) == expected
    assert judge(program, 0xC00000B7, 0) & 0xFFFF0000 == 0  # another machine's: killed
