"""What is made of the parser: docs/commands.md, the man page, the shells' completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pullpipe.cli import manual
from pullpipe.cli.completion import kinds_of
from pullpipe.cli.whole import every_command, whole_parser
from tests.cli.rig import answer, file_layer, layout_of, mounted, ok
from tests.conftest import PROJECT, Cli, require


def test_the_documents_are_of_this_program() -> None:
    """`make docs` has been called since an option was changed."""
    assert (PROJECT / "docs" / "commands.md").read_text() == manual.markdown()
    assert (PROJECT / "docs" / "pullpipe.1").read_text() == manual.man()


def test_every_option_is_explained() -> None:
    """Nothing is without a text but what its name says."""
    for command in manual.commands():
        assert command.text
        for item in command.options:
            assert len(item.text) > 3, (command.name, item)


def test_every_command_takes_the_global_options() -> None:
    """Behind it, too, as the documents say; also those that are an action of a command."""
    for name, parser in every_command(whole_parser()):
        assert {"--root", "--log-level", "--help"} <= parser._option_string_actions.keys(), name


def test_the_man_page_is_roff() -> None:
    """groff has no complaint."""
    require("groff")
    command = ["groff", "-man", "-Tutf8", "-P-c", "-P-b", "-P-u", "-ww", f"{PROJECT}/docs/pullpipe.1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "layer add" in done.stdout


def completed(script: Path, root: Path, *words: str) -> set[str]:
    """What bash offers behind these words."""
    program = f"""
source {script}
COMP_WORDS=({" ".join(f"'{word}'" for word in words)})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p pullpipe | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    env = {"PULLPIPE_ROOT": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, env=env, cwd=PROJECT)
    return {line.strip() for line in done.stdout.splitlines()}


@pytest.fixture
def script(cli: Cli, tmp_path: Path) -> Path:
    (tmp_path / "script").write_text(ok(cli, "completion", "bash"))
    return tmp_path / "script"


def test_bash_completes_commands_and_options(script: Path, store_root: Path) -> None:
    assert {"run", "rm", "rmi", "repair"} <= completed(script, store_root, "pullpipe", "r")
    assert completed(script, store_root, "pullpipe", "layer", "") >= {"add", "drop"}
    assert "--all-platforms" in completed(script, store_root, "pullpipe", "pull", "--a")


NOWHERE = {"COMMAND", "DEST", "N", "NAME", "NEW", "PATH", "REGISTRY", "…"}  # what no shell can know


def test_every_argument_is_completed() -> None:
    """Each is something that a shell can look for, or a choice, or known to be neither."""
    for name, parser in every_command(whole_parser()):
        for action in parser._actions:
            if not action.option_strings and not action.choices:
                assert bool(kinds_of(action)) != (action.metavar in NOWHERE), (name, action.metavar)


@pytest.mark.needs_root
def test_bash_completes_every_argument(script: Path, cli: Cli, image: str, store_root: Path, tmp_path: Path) -> None:
    """With images, containers, files, as the command takes them."""
    with mounted(cli, image, tmp_path / "m", "--rw") as target:
        (target / "written").touch()
    [container] = answer(cli, "ps", "--format=json")
    names, files = {"image:1"}, {"store", "tests", "pyproject.toml"}
    containers = {container["name"]}

    def offered(*words: str) -> set[str]:
        return completed(script, store_root, "pullpipe", *words, "") & (names | containers | files)

    for word in ("run", "ls", "cat", "tree", "history", "explain", "push", "rmi"):
        assert offered(word) == names, word
    for word in ("inspect", "export", "diff"):
        assert offered(word) == names | containers, word
    for word in ("commit", "rm", "exec", "logs"):
        assert offered(word) == containers, word
    assert offered("diff", "image:1") == offered("layer", "add") == names
    for words in (["load"], ["import"], ["save", "-o"], ["layer", "add", "image:1"]):
        assert offered(*words) == files, words
    assert offered("cp") == offered("cp", "pyproject.toml") == containers | files
    assert offered("mount", "image:1") == {"store", "tests"}


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        ("zsh", '_pullpipe_images_containers() { compadd -- ${(f)"$('),
        ("fish", '-ka "('),
        ("tcsh", "'n/inspect/`"),
    ],
)
def test_other_shells_ask_for_names(cli: Cli, shell: str, asked: str) -> None:
    assert f"{asked}pullpipe completion --list images --list containers" in ok(cli, "completion", shell)


def test_a_store_that_cannot_be_read_completes_nothing(cli: Cli, store_root: Path) -> None:
    """And puts no message on a line that somebody is typing."""
    store_root.write_text("no store")
    done = cli("completion", "--list", "images")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    store_root.unlink()


@pytest.mark.needs_root
def test_names_of_the_store(cli: Cli, tmp_path: Path) -> None:
    """What the scripts ask for: images as short as they can be said, and containers."""
    ok(cli, "load", "--quiet", "-t", "some:1", layout_of(tmp_path / "layout", file_layer("a")))
    ok(cli, "load", "--quiet", "-t", "localhost/other:1", tmp_path / "layout")
    assert ok(cli, "completion", "--list", "images").split() == ["localhost/other:1", "some:1"]
    assert ok(cli, "completion", "--list", "containers") == ""


def test_no_such_shell(cli: Cli) -> None:
    done = cli("completion", env={"SHELL": "/bin/ed"})
    assert (done.returncode, "which shell's?" in done.stderr) == (1, True)
