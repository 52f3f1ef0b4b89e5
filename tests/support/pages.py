"""Pages that show commands and what they print: run as they stand, in one shell, and compared.

Of a page, the blocks marked `console` are read: `$ ` begins a command, `> ` goes on with it, and the rest is what it
prints, to standard output or standard error. There, `…` stands for any text, alone on a line for any lines; runs of
spaces are as one, and beside `…` as none. A command has to succeed, unless the next one is `echo $?`. Before a block,
`<!-- needs: WHAT -->` says what not every machine has.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_BLOCK = re.compile(r"(?:^<!-- needs: (\w+) -->\n)?^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SECONDS = 300.0

# Mounts, processes, and ports of the machine are out of reach, and what is left of them ends with the shell.
_APART = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")


class Step(NamedTuple):
    """A command, and what stands below it."""

    section: str
    needs: str
    command: str
    shown: str


class Outcome(NamedTuple):
    """What became of it."""

    code: int
    printed: str


def steps(page: str) -> list[Step]:
    """All commands of the page, in its order."""
    found: list[Step] = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE):
        heading = section.partition("\n")[0]
        for needs, text in _BLOCK.findall(section):
            lines: list[str] = text.splitlines()
            assert lines[0].startswith("$ "), f"no command begins the block under {heading}"
            for line in lines:
                if line.startswith("$ "):
                    found.append(Step(heading, needs, line[2:], ""))
                elif line.startswith("> "):
                    found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line[2:]}")
                else:
                    found[-1] = found[-1]._replace(shown=f"{found[-1].shown}{line}\n")
    return found


def run(
    page: Sequence[Step], scratch: Path, probes: Mapping[str, str], environment: Mapping[str, str]
) -> list[Outcome | str]:
    """Runs all of them by one bash, as root in a new directory in memory; or says why one was left out.

    `probes` has the command that fails where there is not what a step needs.
    """
    where = scratch / "here"
    where.mkdir()
    lines = ["ip link set lo up", f"mount -t tmpfs tmpfs {where}", f"cd {where}", "code=0"]
    lines.append("export PULLPIPE_ROOT=$PWD/store")  # whatever the page does, not the machine's
    for number, step in enumerate(page):
        file = shlex.quote(str(scratch / str(number)))
        (scratch / str(number)).write_text(step.command + "\n")
        lines.append(f"(exit $code); . {file} </dev/null >{file}.out 2>&1; code=$?; echo $code >{file}.code")
        if step.needs:
            lines[-1] = f"{{ {probes[step.needs]}; }} >{file}.left 2>&1 </dev/null && {{ {lines[-1]}; }}"
    (scratch / "script").write_text("\n".join(lines))
    command = [*_APART, "bash", "--noprofile", "--norc", str(scratch / "script")]
    subprocess.run(command, env=environment, check=True, timeout=_SECONDS)
    return [_outcome(scratch, number) for number, _ in enumerate(page)]


def _outcome(scratch: Path, number: int) -> Outcome | str:
    code = scratch / f"{number}.code"
    if not code.exists():
        return (scratch / f"{number}.left").read_text()
    return Outcome(int(code.read_text()), (scratch / f"{number}.out").read_text(errors="backslashreplace"))


def fits(shown: str, printed: str) -> bool:
    """Whether this is what the page shows."""
    pattern = "".join(
        r"(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, re.split(" ?… ?", line))) + r"\n"
        for line in _lines(shown)
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in _lines(printed))) is not None


def _lines(text: str) -> list[str]:
    return [re.sub(r" +", " ", line).strip() for line in text.splitlines()]
