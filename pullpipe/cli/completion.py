"""`pullpipe completion SHELL`"""

from __future__ import annotations

import argparse
import os
import re
from contextlib import suppress

from pullpipe.cli.common import open_store
from pullpipe.errors import BadArgument, PullpipeError
from store import StoreError

HELP = "print what has a shell complete pullpipe's command line"
SHELLS = ("bash", "zsh", "fish", "tcsh")
_HUB = "docker.io/library/"
_LISTS = ("images", "containers")
_KINDS = {  # by what an argument is called in help
    "REF": "images",
    "IMAGE": "images",
    "CONTAINER": "containers",
    "FILE": "files",
    "TAR": "files",
    "DIR": "directories",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--list", action="append", choices=_LISTS, help=argparse.SUPPRESS)
    parser.add_argument("shell", choices=SHELLS, nargs="?", help="whose form it has")
    parser.epilog = "For bash: `pullpipe completion bash > /etc/bash_completion.d/pullpipe`, or source it."


def run(arguments: argparse.Namespace) -> int:
    if arguments.list:
        with suppress(PullpipeError, StoreError, OSError):  # who has typed half a line wants no message between
            _print_names(arguments)
        return 0
    import shtab

    from pullpipe.cli.whole import every_command, whole_parser

    shell = arguments.shell or os.path.basename(os.environ.get("SHELL", ""))
    if shell not in SHELLS:
        raise BadArgument(f"which shell's? pullpipe completion {'|'.join(SHELLS)}")
    whole = whole_parser()
    for _, parser in every_command(whole):
        for action in parser._actions:
            kinds = kinds_of(action)
            if names := [kind for kind in _LISTS if kind in kinds]:
                action.complete = _names(names, files="files" in kinds)  # type: ignore[attr-defined]
            elif kinds:
                action.complete = shtab.FILE if "files" in kinds else shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(whole, shell, root_prefix="pullpipe"))
    return 0


def kinds_of(action: argparse.Action) -> set[str]:
    """What an argument can be, as far as a shell can tell: images, containers, files, directories."""
    words = action.metavar.split("|") if isinstance(action.metavar, str) else []
    heads = (re.split(r"[\[#:]", word)[0] for word in words)
    return {_KINDS[head] for head in heads if head in _KINDS}


def _names(lists: list[str], *, files: bool) -> dict[str, object]:
    """What has each shell offer names of the store; and files, too, but for tcsh, which takes one or the other."""
    command = f"pullpipe completion {' '.join(f'--list {one}' for one in lists)}"
    name = "_".join(["_pullpipe", *lists, *["files"] * files])
    also = {"bash": 'compgen -f -- "$1"', "zsh": "_files", "fish": "__fish_complete_path (commandline -ct)"}
    rest = {shell: f"; {more}" if files else "" for shell, more in also.items()}
    return {
        "bash": name,
        "zsh": name,
        "fish": f"({command}{rest['fish']})",
        "tcsh": f"`{command}`",
        "preamble": {
            "bash": f'{name}() {{ compgen -W "$({command})" -- "$1"{rest["bash"]}; }}',
            "zsh": f'{name}() {{ compadd -- ${{(f)"$({command})"}}{rest["zsh"]}; }}',
        },
    }


def _print_names(arguments: argparse.Namespace) -> None:
    """What may stand for an image or a container: as short as it can be said."""
    store = open_store(arguments)
    if "containers" in arguments.list:
        print(*sorted(container.name for container in store.containers), sep="\n")
    if "images" in arguments.list:
        print(*sorted(record.reference.removeprefix(_HUB) for record in store.images), sep="\n")
