"""Commands to be disturbed, and what each comes to when it is not."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tests.support.tree import Snapshot, difference
from tests.torture.calls import supervised
from tests.torture.rig import Bench, command, contents, copied, good, mounts_below, recorded, removed


class Case(NamedTuple):
    """A command, on a store that is made for it."""

    name: str
    words: list[str]
    before: Path
    known: set[str]  # references in the store before
    after: Snapshot
    records: set[str]  # references in the store after
    changing: list[str]  # the names of the calls that change something
    calls: int  # of those, and of those that read

    def prepare(self, bench: Bench) -> Path:
        """The store in its state before; one that is not there yet is not there."""
        root = bench.stores / "root"
        removed(root)
        if self.before.exists():
            copied(self.before, root)
        removed(saved_place(bench))
        saved_place(bench).mkdir()
        return root

    def check(self, bench: Bench, root: Path) -> None:
        """After whatever befell it: the state before or the one after, and nothing that is visible is wrong."""
        assert mounts_below(root) == []
        if self.name != "repair":
            assert bench.wrong(root) == []
            assert bench.verified(root) == []
        if self.name not in ("rmi", "load", "prune"):  # which go one by one
            assert recorded(root) in (self.known, self.records)

    def again(self, bench: Bench, root: Path, *, deep: bool) -> None:
        """The command once more, as far as it has not done its work: it goes well, and then all is as it should be.

        With `deep`, `verify --deep` says so, too.
        """
        words = self.words
        if self.name == "rmi":
            words = ["rmi", *sorted(recorded(root))]
        elif self.name == "rm" and not list((root / "containers").glob("*/config.json")):
            words = ["rm"]
        if words not in (["rm"], ["rmi"]):
            good(root, *words)
        if not self.name.startswith(("pull", "load", "repair")):
            good(root, "prune", "--containers")  # removes what a command that was killed left to it
        assert bench.wrong(root) == []
        assert not deep or bench.verified(root, deep=True) == []
        assert difference(contents(root), self.after) == []


def saved_place(bench: Bench) -> Path:
    """Where `save` writes to."""
    return bench.stores / "saved"


def all_cases(bench: Bench) -> list[Case]:
    """Each command undisturbed: what it comes to, by which calls."""
    one, two, three = map(bench.reference, ("one", "two", "three"))
    empty, some, used, damaged = (bench.stores / name for name in ("empty", "some", "used", "damaged"))
    for store in (some, used):
        for name in ("one", "three"):
            good(store, *bench.pull(name))
    good(used, "run", "--name=c", one, "sh", "-c", "echo kept >/kept")
    copied(some, damaged)
    for path in (damaged / "layers").glob("*/*/fs/data/sub/deep"):
        path.write_bytes(b"damaged")
    saved = saved_place(bench) / "archive.tar"
    wanted = [
        ("pull", bench.pull("one"), empty),
        ("pull beside others", bench.pull("two"), used),
        ("load", ["load", "--quiet", f"{bench.layout}"], empty),
        ("run", ["run", "--rm", one], some),
        ("run and pull", ["run", "--rm", "--quiet", "--plain-http", two], some),
        ("rmi", ["rmi", one, three], some),
        ("save", ["save", "--quiet", "-o", f"{saved}", one], some),
        ("rm", ["rm", "c"], used),
        ("prune", ["prune", "--all", "--containers"], used),
        ("repair", ["repair"], damaged),
    ]
    return [undisturbed(bench, *one) for one in wanted]


def undisturbed(bench: Bench, name: str, words: list[str], before: Path) -> Case:
    """The case, with what the command comes to, which leaves nothing half done."""
    case = Case(name, words, before, recorded(before), {}, set(), [], 0)
    calls = {}
    for reading in (False, True):
        root = case.prepare(bench)
        done = supervised(command(root, *words), [bench.stores], reading=reading)
        assert done.code == 0, done.said
        calls[reading] = done.calls
    assert [*(root / "staging").iterdir(), *(root / "ingest").iterdir()] == []
    changing = [call.name for call in calls[False]]
    print(f"{name}: {len(changing)} calls that change something, {len(calls[True])} calls in all")
    return case._replace(after=contents(root), records=recorded(root), changing=changing, calls=len(calls[True]))
