"""docs/tutorial.md: every command of it, in its order, prints what it shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import PROJECT, leave_out, require
from tests.support.hub import hub
from tests.support.pages import Outcome, Step, fits, run, steps
from tests.support.program import on_path

pytestmark = [pytest.mark.needs_root, pytest.mark.timeout(330)]

PAGE = steps((PROJECT / "docs/tutorial.md").read_text())
SECTIONS = list(dict.fromkeys(step.section for step in PAGE))
PROBES = {"cgroups": "pullpipe run --rm --memory=64m --cpus=0.5 --cpuset-cpus=0 --pids-limit=50 alpine:3.20 true"}

Outcomes = list[tuple[Step, Outcome | str]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Of the whole page."""
    for tool in ("bash", "busybox", "curl", "ip", "setfattr", "tar", "unshare"):
        require(tool)
    directory = tmp_path_factory.mktemp("tutorial")
    images = Path(os.environ.get("PULLPIPE_TEST_IMAGES", PROJECT.parent / "shared" / "images"))
    with hub(directory, images) as settings:
        (directory / "pullpipe").mkdir()
        settings.rename(directory / "pullpipe" / "registries.conf")
        environment = {
            "HOME": str(directory),
            "PATH": on_path(directory / "bin"),
            "XDG_CONFIG_HOME": str(directory),
            "LC_ALL": "C.UTF-8",
        }
        (directory / "steps").mkdir()
        return list(zip(PAGE, run(PAGE, directory / "steps", PROBES, environment), strict=True))


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, outcomes: Outcomes) -> None:
    """Each command of it succeeds, and prints what stands below it."""
    for number, (step, outcome) in enumerate(outcomes):
        if step.section != section:
            continue
        if isinstance(outcome, str):
            leave_out(f"there is not what the page needs here ({step.needs}): {outcome}")
        following = PAGE[number + 1].command if number + 1 < len(PAGE) else ""
        assert outcome.code == 0 or following == "echo $?", f"{step.command}\n{outcome.printed}"
        assert fits(step.shown, outcome.printed), f"$ {step.command}\n{outcome.printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("a  b\n", "a b\n", True),
        ("a b\n", "a c\n", False),
        ("a\n", "a\nb\n", False),
        ("", "a\n", False),
        ("a … c\n", "a b c\n", True),
        ("a … c\n", "a c\n", True),
        ("a … c\n", "a\nc\n", False),
        ("a.c\n", "abc\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nd\n", True),
        ("a\n…\nd\n", "a\nb\n", False),
    ],
)
def test_what_a_page_leaves_open(shown: str, printed: str, expected: bool) -> None:
    """No more than it says."""
    assert fits(shown, printed) is expected
