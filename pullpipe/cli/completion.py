"""`pullpipe completion SHELL`"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument

HELP = "print what has a shell complete pullpipe's command line"
SHELLS = ("bash", "zsh", "fish", "tcsh")
_HUB = "docker.io/library/"
_LISTS = ("images", "containers")
_NAMES = {  # by what an argument is called in help
    **dict.fromkeys(("REF", "IMAGE", "REF|CONTAINER"), "images"),
    "CONTAINER": "containers",
}
_PREAMBLES = {
    "bash": '_pullpipe_%s() { compgen -W "$(pullpipe completion --list %s 2>/dev/null)" -- "$1"; }\n',
    "zsh": '_pullpipe_%s() { compadd -- ${(f)"$(pullpipe completion --list %s 2>/dev/null)"}; }\n',
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", choices=_LISTS, help=argparse.SUPPRESS)
    parser.add_argument("shell", choices=SHELLS, nargs="?", help="whose form it has")
    parser.epilog = "For bash: `pullpipe completion bash > /etc/bash_completion.d/pullpipe`, or source it."


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        _print_names(arguments)
        return 0
    import shtab

    from pullpipe.cli.whole import whole_parser

    shell = arguments.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise BadArgument(f"which shell's? pullpipe completion {'|'.join(SHELLS)}")
    parser = whole_parser()
    _describe(parser, {"DIR": shtab.DIRECTORY, "FILE": shtab.FILE})
    preamble = "".join(_PREAMBLES[shell] % (one, one) for one in _LISTS) if shell in _PREAMBLES else ""
    print(shtab.complete(parser, shell, root_prefix="pullpipe", preamble=preamble))
    return 0


def _print_names(arguments: argparse.Namespace) -> None:
    """What may stand for an image or a container: as short as it can be said."""
    store = open_store(arguments)
    if arguments.list == "containers":
        print(*sorted(container.name for container in store.containers), sep="\n")
    else:
        print(*sorted(record.reference.removeprefix(_HUB) for record in store.images), sep="\n")


def _describe(parser: argparse.ArgumentParser, places: Mapping[str, object]) -> None:
    """Says of each argument what completes it: names of the store, or of files."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _describe(below, places)
        elif isinstance(action.metavar, str):
            if name := _NAMES.get(action.metavar):
                action.complete = dict.fromkeys(_PREAMBLES, f"_pullpipe_{name}")  # type: ignore[attr-defined]
            elif found := [place for word, place in places.items() if word in action.metavar.split("|")]:
                action.complete = found[0]  # type: ignore[attr-defined]
