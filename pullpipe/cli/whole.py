"""All commands in one parser: for what is made of it, the documentation and the shells' completion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from pullpipe import cli


def whole_parser() -> argparse.ArgumentParser:
    """The command line as a tree of parsers. It imports all commands."""
    parser = argparse.ArgumentParser(prog="pullpipe", description=cli.DESCRIPTION)
    cli.add_global_options(parser, top=True)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name in cli.COMMANDS:
        module = cli.module_of(name)
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        cli.add_global_options(command, top=False)
        module.configure(command)
    return parser


def every_command(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parsers in it that have none below them, by all the words that lead there: `run`, `layer add`."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for one in below:
        for word, inner in one.choices.items():
            yield from every_command(inner, f"{name} {word}".strip())
