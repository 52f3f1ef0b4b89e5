"""`pullpipe verify [--deep] [REF…]`"""

from __future__ import annotations

import argparse
from collections.abc import Collection

from pullpipe.cli.common import open_store, reporting, run_until_signal
from pullpipe.cli.findings import FIELDS, add_options, reference_of, tell
from pullpipe.verify import Finding, Key, Survey

HELP = "check that the store, or what images lead to, is whole"
JSON = {"a list, of each finding": FIELDS}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read every blob, unpack every layer again, and compare it with what is there; without, names and sizes",
    )
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments, as_root=True)
    references = [reference_of(store, text) for text in arguments.references]
    with store.shared():
        survey = Survey(store, references)
    suspects = () if arguments.deep else survey.suspects()
    findings = survey.findings()
    if arguments.deep or suspects:
        findings = [*_unpack_again(survey, suspects, arguments), *findings]
    damaged = {(finding.kind, finding.name) for finding in findings if finding.state == "damaged"}
    return tell([f for f in findings if f.state != "orphan" or (f.kind, f.name) not in damaged], arguments)


def _unpack_again(survey: Survey, suspects: Collection[Key], arguments: argparse.Namespace) -> list[Finding]:
    from pullpipe.pipe.replay import Replay
    from pullpipe.pipe.unpack import Worker

    with reporting(arguments) as progress, Worker() as worker:
        replay = Replay(survey, worker, arguments.jobs, progress)
        run_until_signal(replay.check(suspects) if suspects else replay.check_all())
    return replay.findings
