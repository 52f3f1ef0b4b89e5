"""Repair: what a verification finds is mended, from what the store itself has, else from where the image came.

Nothing is taken away before its replacement is there and proven. What cannot be mended stays as it is, unless it is
asked to be removed: the blob alone, where the store may do without it; else the images that need it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress

from pullpipe import local
from pullpipe.errors import PullpipeError
from pullpipe.pipe.mending import Connect, Mending, not_mended
from pullpipe.pipe.replay import Replay
from pullpipe.pipe.unpack import Worker
from pullpipe.progress import Progress
from pullpipe.verify import Finding, Key, Survey
from store import Digest, NotInStore, Store, StoreError


async def repair(
    store: Store, only: Collection[str], connect: Connect | None, jobs: int, progress: Progress, *, remove: bool
) -> list[Finding]:
    """Repairs the store, or only these images; returns what was mended, what was not, and what cannot be checked.

    Raises `PullpipeError`, `StoreError` or `OSError` for what keeps it from going on.
    """
    findings = [*_mend_root(store), *(_mend_index(store) if remove else ())]
    async with Mending(store, connect, progress) as mending:
        survey, failed = await _mend_blobs(store, only, mending, findings)
        with Worker() as worker:
            replay = Replay(survey, worker, jobs, progress, mending)
            await replay.check_all()
    findings += [*replay.findings, *_mend_rest(survey, failed, {(f.kind, f.name) for f in replay.findings})]
    findings += [finding for finding in survey.others if finding.state == "damaged"]
    local.clean(store, progress.note)
    return _remove(survey, findings) if remove else [_removable(survey, finding) for finding in findings]


def _mend_root(store: Store) -> Iterator[Finding]:
    if before := dict(store.problems()):
        store.mend()
        after = dict(store.problems())
        for path, problem in before.items():
            if path not in after:  # else the survey finds it again
                yield Finding("mended", "file", path, problem, (), "it has been set right")


def _mend_index(store: Store) -> Iterator[Finding]:
    kept, damaged = store.images.salvaged()
    if damaged:
        store.images.mend()
        yield Finding("mended", "index", "index.json", "it was damaged", (), f"{len(kept)} of its entries are kept")


async def _mend_blobs(
    store: Store, only: Collection[str], mending: Mending, findings: list[Finding]
) -> tuple[Survey, dict[Key, str]]:
    """Has the documents and all other blobs whose damage can be seen fetched again; each document may lead to more.

    Returns what there is then, and why the rest could not be mended.
    """
    failed: dict[Key, str] = {}
    while True:
        with store.shared():
            survey = Survey(store, only)
        todo = {key: problem for key, problem in survey.problems.items() if key[0] == "blob" and key not in failed}
        if not todo:
            return survey, failed
        for key, problem in todo.items():
            try:
                how = await mending.replace_blob(survey, key)
            except (PullpipeError, StoreError, OSError) as error:
                failed[key] = not_mended(error)
            else:
                findings.append(survey.finding("mended", key, problem, how))


def _mend_rest(survey: Survey, failed: Mapping[Key, str], told: Collection[tuple[str, str]]) -> Iterator[Finding]:
    """What could not be fetched; and trees that are not whole and that nothing leads to."""
    for key, problem in survey.problems.items():
        kind, digest = key
        if (kind, str(digest)) in told:
            continue
        if kind == "blob":
            yield survey.finding("damaged", key, problem, failed[key])
        elif key not in survey.users:
            with survey.store.exclusive():
                doomed = survey.trees[kind].take_away(digest)
            doomed.remove()
            yield survey.finding("mended", key, problem, "it has been removed")


def _dispensable(survey: Survey, finding: Finding) -> bool:
    """Whether it is a blob that the images can do without, since their layers are there."""
    return finding.kind == "blob" and Digest.parse(finding.name) not in survey.needed


def _removable(survey: Survey, finding: Finding) -> Finding:
    """With what --remove would do about it."""
    images = [user for user in finding.users if user in survey.chosen_names]
    if finding.state != "damaged" or not images or "--remove" in finding.remedy:
        return finding
    what = "it" if _dispensable(survey, finding) else ", ".join(images)
    return finding._replace(remedy=f"{finding.remedy}; `pullpipe repair --remove` removes {what}")


def _remove(survey: Survey, findings: list[Finding]) -> list[Finding]:
    """Removes what is still damaged."""
    store = survey.store
    damaged = [finding for finding in findings if finding.state == "damaged"]
    if not damaged:
        return findings
    needing = {user for finding in damaged if not _dispensable(survey, finding) for user in finding.users}
    removed: set[str] = set()
    why = ""
    try:
        with store.exclusive():
            used = {container.image: container.name for container in store.containers}
            for reference in sorted(needing & survey.chosen_names):
                if reference in used:
                    why = f"`pullpipe rm {used[reference]}` first"
                    continue
                with suppress(NotInStore):
                    store.images.remove(reference)
                removed.add(reference)
            doomed = [
                survey.trees[finding.kind].take_away(Digest.parse(finding.name))
                for finding in damaged  # so that no pull takes them for whole
                if finding.kind in survey.trees
                and removed.issuperset(finding.users)
                and Digest.parse(finding.name) in survey.trees[finding.kind]
            ]
        for tree in doomed:
            tree.remove()
        local.collect(store)
    except StoreError as error:  # of another image, or a container: what they need cannot be known
        why = str(error)
    return [_removed(survey, finding, removed, why) if finding in damaged else finding for finding in findings]


def _removed(survey: Survey, finding: Finding, removed: Collection[str], why: str) -> Finding:
    if _dispensable(survey, finding):
        survey.store.blobs.remove(Digest.parse(finding.name))
        return finding._replace(state="mended", remedy="it has been removed; the layers that were made of it stay")
    left = [user for user in finding.users if user not in removed]
    if not finding.users or left or why:
        return finding._replace(remedy=f"{finding.remedy}; not removed" + (f": {why}" if why else ""))
    return finding._replace(state="mended", remedy=f"removed, with {', '.join(finding.users)}")
