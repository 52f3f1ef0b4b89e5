"""Options of Docker's `run` that are not there, so that whoever types one reads why, and what to do instead."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from pullpipe.errors import BadArgument

_INSTEAD = {  # with a word behind them: those that take a value
    "-a --attach STREAM": "all streams are passed on, or with -d none; redirect those that you do not want",
    "--blkio-weight N": "input and output are not limited; leave it away",
    "--cgroup-parent GROUP": "the groups are made below pullpipe's own; start that in the group that you mean",
    "--cpu-quota N": "say --cpus, which sets quota and period",
    "--cpu-period N": "say --cpus, which sets quota and period",
    "--detach-keys KEYS": "nothing detaches from a container that is waited for; start it with -d",
    "--gpus GPUS": "no driver's files are brought in; name them with --device and -v",
    "--health-cmd COMMAND": "nobody would run it; have a timer `exec` it",
    "--ip ADDRESS": "a private network has this machine's addresses; leave it away",
    "--link CONTAINER": "there are no networks between containers; say --network host, or -p",
    "--log-driver NAME": "there is one log, a file; leave it away, and read it with `logs`",
    "--log-opt OPTION": "there is one log, a file; leave it away, and read it with `logs`",
    "--oom-score-adj N": "leave it away, or start pullpipe by `choom -n`",
    "--privileged": "it takes all walls away; say what is needed: --cap-add, --device, --security-opt …",
    "-P --publish-all": "ports of this machine are not chosen for you; say -p PORT:PORT for each",
    "--replace": "`pullpipe rm -f` the other one first",
    "--restart POLICY": "no daemon would do it; have systemd start a `run` without -d, with Restart= in its unit",
    "--userns MODE": "without root there always is a user namespace, and with root none; run it as the user you mean",
    "--uts MODE": "a container's host name is its own; say which with --hostname",
    "--volumes-from CONTAINER": "there are no volumes; say the -v of that one again",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """All of them; help shows none."""
    for words in _INSTEAD:
        names = [word for word in words.split() if word.startswith("-")]
        takes = None if words.split() != names else 0
        parser.add_argument(*names, action=_Note, nargs=takes, dest="refused", const=words, help=argparse.SUPPRESS)


class _Note(argparse.Action):
    """Notes it, for `check`: an error of ours has one line, and argparse's the usage besides."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        _values: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        namespace.refused = f"{option} is not there: {_INSTEAD[str(self.const)]}"


def check(arguments: argparse.Namespace) -> None:
    """Raises `BadArgument` if there was one."""
    if arguments.refused:
        raise BadArgument(arguments.refused)
