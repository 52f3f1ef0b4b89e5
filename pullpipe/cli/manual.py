"""The reference of all commands, as Markdown and as a man page, made of the parser.

`python -m pullpipe.cli.manual DIR` writes both. Argparse's own layout differs from one Python to the next; not this.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from pullpipe import __version__
from pullpipe.cli import module_of
from pullpipe.cli.whole import every_command, whole_parser

_ENVIRONMENT = {
    "PULLPIPE_ROOT": "The store, unless --root names it.",
    "REGISTRY_AUTH_FILE, DOCKER_CONFIG": "Where credentials are, unless --authfile names them.",
    "CONTAINERS_REGISTRIES_CONF": "Podman's registries.conf, in place of the usual ones.",
    "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY": "Proxies (http, https, socks5), and what goes without.",
    "SOURCE_DATE_EPOCH": "Seconds since 1970: what layer, config, commit, squash, import and export make is as old as "
    "that, and no file in it younger, but for those of an archive that layer add and import take as it is.",
    "XDG_DATA_HOME, XDG_CACHE_HOME, XDG_CONFIG_HOME": "Where a user's store, tokens and settings are.",
}
_HEAD = (
    "Made of the program itself (`make docs`). Every command also takes `--root DIR`, which names the store, "
    "`--log-level debug`, which shows tracebacks, and `--help`. "
    "The fields that `--format json` prints keep their names and meanings."
)
_IMAGES = (
    "An image that is here can be called by its name; by its id, which is its digest, as `images` shows it, or its "
    "config's, or four or more of the first digits of one; and by NAME@DIGEST, where NAME has that digest."
)
_EXIT = {
    "0": "It went well.",
    "1": "It did not; one line on standard error says why, and what to do.",
    "2": "The words of the command line are wrong.",
    "125, 126, 127": "Of run and exec: pullpipe failed; the command cannot be executed; there is no such command.",
    "128+N": "The command, or pullpipe, was ended by signal N.",
}


class Item(NamedTuple):
    """An option or an argument."""

    words: str  # as one writes it: -t, --tag NEW
    text: str


class Command(NamedTuple):
    """One command, or one action of a command that has several."""

    name: str
    text: str
    more: str
    arguments: list[Item]
    options: list[Item]
    json: dict[str, list[Item]]  # the fields that --format json has, by what they are of

    @property
    def synopsis(self) -> str:
        """In one line."""
        return " ".join(
            ["pullpipe", self.name, *["[OPTION…]"] * bool(self.options), *(a.words for a in self.arguments)]
        )


def commands() -> list[Command]:
    """All of them, in the order that help has."""
    return [_command(name, parser) for name, parser in every_command(whole_parser())]


def _command(name: str, parser: argparse.ArgumentParser) -> Command:
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    own = [action for action in actions if action.dest not in ("root", "log_level")]
    return Command(
        name,
        _sentence(parser.description or ""),
        parser.epilog or "",
        [_item(parser, action) for action in own if not action.option_strings],
        [_item(parser, action) for action in own if action.option_strings],
        {
            of: [Item(field, text) for field, text in fields.items()]
            for of, fields in getattr(module_of(name.split()[0]), "JSON", {}).items()
        },
    )


def _item(parser: argparse.ArgumentParser, action: argparse.Action) -> Item:
    choices = "|".join(map(str, action.choices)) if action.choices else ""
    value = action.metavar if isinstance(action.metavar, str) else choices or action.dest.upper()
    if action.option_strings:
        words = ", ".join(action.option_strings) + (f" {value}" if action.nargs != 0 else "")
    else:
        several = action.nargs in ("*", "+", argparse.REMAINDER)
        value += "…" if several else ""
        words = f"[{value}]" if action.nargs in ("*", "?", argparse.REMAINDER) else value
    text = (action.help or "") % {**vars(action), "prog": parser.prog, "choices": choices}
    return Item(words, _sentence(text))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "…")) or not text else f"{text}."


def markdown() -> str:
    """docs/commands.md."""
    lines = [
        "# Commands",
        "",
        _HEAD,
        "",
        _IMAGES,
        "",
        *(f"- [`{each.name}`](#pullpipe-{each.name.replace(' ', '-')}): {each.text}" for each in commands()),
    ]
    for each in commands():
        lines += ["", f"## pullpipe {each.name}", "", each.text, *(["", each.more] if each.more else [])]
        lines += ["", f"    {each.synopsis}"]
        if items := [*each.arguments, *each.options]:
            lines += _rows(items)
        for of, fields in each.json.items():
            lines += ["", f"`--format json` prints {of}:", *_rows(fields)]
    for title, texts in (("Environment", _ENVIRONMENT), ("Exit codes", _EXIT)):
        lines += ["", f"## {title}", "", "| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in texts.items())]
    return "\n".join(lines) + "\n"


def _rows(items: Sequence[Item]) -> list[str]:
    return ["", "| | |", "|---|---|", *(f"| `{_cell(item.words)}` | {_cell(item.text)} |" for item in items)]


def _cell(text: str) -> str:
    return re.sub(r"([|])", r"\\\1", text)


def man() -> str:
    """docs/pullpipe.1, for man(1)."""
    lines = [
        f'.TH PULLPIPE 1 "" "pullpipe {__version__}"',
        ".SH NAME",
        r"pullpipe \- pull container images while unpacking them, stack their layers, run a command in them",
        ".SH SYNOPSIS",
        r".B pullpipe",
        r"[\-\-root DIR] COMMAND [OPTION\[u2026]] [ARGUMENT\[u2026]]",
        ".SH DESCRIPTION",
        "Images are pulled into a store, a directory, whose layers are shared by all images and containers.",
        _roff(_IMAGES),
        "Every command also takes",
        r".BR \-\-root ,",
        "which names the store,",
        r".B \-\-log\-level debug",
        "and",
        r".BR \-\-help .",
        ".SH COMMANDS",
    ]
    for each in commands():
        lines += [f".SS {_roff(each.synopsis)}", _roff(f"{each.text} {each.more}".strip())]
        for item in [*each.arguments, *each.options]:
            lines += [".TP", f".B {_roff(item.words)}", _roff(item.text)]
        for of, fields in each.json.items():
            lines += [".PP", _roff(f"--format json prints {of}:")]
            lines += [line for field in fields for line in (".TP", f".B {_roff(field.words)}", _roff(field.text))]
    for title, texts in (("ENVIRONMENT", _ENVIRONMENT), ("EXIT STATUS", _EXIT)):
        lines.append(f".SH {title}")
        for key, text in texts.items():
            lines += [".TP", f".B {_roff(key)}", _roff(text)]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", r"\e").replace("-", r"\-").replace("…", r"\[u2026]").replace("'", r"\(aq")
    return r"\&" + text if text.startswith(".") else text


if __name__ == "__main__":
    for name, content in (("commands.md", markdown()), ("pullpipe.1", man())):
        with open(os.path.join(sys.argv[1], name), "w", encoding="utf-8") as file:
            file.write(content)
