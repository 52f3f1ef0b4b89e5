"""What a pull or a push reports, and its faces: bars (tqdm), plain lines, JSON lines, or nothing.

All write to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

    from pullpipe.oci import Descriptor
    from pullpipe.trace import Span, Trace
    from store import Digest

_INTERVAL = 0.1  # seconds between two reports on one layer


def counted(count: int, things: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {things.removesuffix('s') if count == 1 else things}"


class Words(NamedTuple):
    """What the faces call it."""

    bar: str
    here: str
    to_do: str
    finished: str
    stored: str


PULL = Words("pull", "already here", "to pull", "pulled and unpacked", "pulled")
MAKE = Words("make", "already here", "to unpack", "made", "unpacked")
PUSH = Words("push", "already there", "to push", "pushed", "pushed")


class Progress:
    """Hears how a pull goes on; this one keeps it to itself. Layers are named by their blob's descriptor.

    If there is a `trace`, it hears which stages worked when.
    """

    trace: Trace | None = None

    def plan(self, layers: Sequence[Descriptor], missing: Sequence[Descriptor], what: str = "layers") -> None:
        """The image's layers, and those of them that have to be fetched or unpacked. Each plan adds to the ones before.

        `what` is another word for them, when they are blobs that are only fetched.
        """

    def plan_check(self, blobs: Sequence[Descriptor]) -> None:
        """Blobs of the store that are to be read, and unpacked again if they are layers'. Each plan adds as above."""

    def waiting(self, layer: Descriptor) -> None:
        """Another process is making this layer."""

    def started(self, layer: Descriptor) -> None:
        """The layer is in flight from here on."""

    def fetched(self, layer: Descriptor, count: int) -> None:
        """So many bytes of its blob are here."""

    def sent(self, blob: Descriptor, count: int) -> None:
        """So many bytes of it are on their way to the registry, or there."""
        self.fetched(blob, count)

    def unpacked(self, layer: Descriptor, count: int) -> None:
        """So many bytes of its tar stream are unpacked."""

    def worked(self, layer: Descriptor | None, spans: Sequence[Span]) -> None:
        """Stages of the layer, or of the pull as a whole, have been at work."""
        if self.trace is not None:
            self.trace.add("pull" if layer is None else f"layer {layer.digest.short}", spans)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of the pull as a whole is at work."""
        from pullpipe.trace import Span

        begun = time.monotonic()
        try:
            yield
        finally:
            ended = time.monotonic()
            self.worked(None, [Span(name, begun, ended, ended - begun)])

    def finished(self, layer: Descriptor) -> None:
        """Both its digests are proven."""

    def stored(self, blob: Descriptor) -> None:
        """Its digest is proven; it is not to be unpacked."""
        self.finished(blob)

    def checked(self, blob: Descriptor) -> None:
        """It has been read."""
        self.finished(blob)

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def close(self) -> None:
        """The pull has ended, well or not."""


class Plain(Progress):
    """A line for each layer, for logs."""

    def __init__(self, file: TextIO, words: Words = PULL) -> None:
        self._file = file
        self._words = words

    def plan(self, layers: Sequence[Descriptor], missing: Sequence[Descriptor], what: str = "layers") -> None:
        have = len(layers) - len(missing)
        size = human_size(sum(layer.size for layer in missing))
        words = self._words
        self.note(f"{counted(len(layers), what)}, {have} {words.here}, {len(missing)} {words.to_do} ({size})")

    def plan_check(self, blobs: Sequence[Descriptor]) -> None:
        self.note(f"blobs to check: {len(blobs)} ({human_size(sum(blob.size for blob in blobs))})")

    def waiting(self, layer: Descriptor) -> None:
        self.note(f"{layer.digest.short}: another process is pulling it, waiting")

    def finished(self, layer: Descriptor) -> None:
        self.note(f"{layer.digest.short}: {self._words.finished}, {human_size(layer.size)}")

    def stored(self, blob: Descriptor) -> None:
        self.note(f"{blob.digest.short}: {self._words.stored}, {human_size(blob.size)}")

    def checked(self, blob: Descriptor) -> None:
        self.note(f"{blob.digest.short}: checked, {human_size(blob.size)}")

    def note(self, text: str) -> None:
        print(text, file=self._file, flush=True)


class JsonLines(Progress):
    """One JSON object a line: {"event": …, "layer": digest, …}; sizes in bytes, times in seconds."""

    def __init__(self, file: TextIO, words: Words = PULL) -> None:
        self._file = file
        self._last: dict[tuple[str, str], float] = {}
        self._stages: dict[str, dict[str, float]] = {}

    def plan(self, layers: Sequence[Descriptor], missing: Sequence[Descriptor], what: str = "layers") -> None:
        wanted = {layer.digest for layer in missing}
        described = [
            {"digest": str(layer.digest), "size": layer.size, "missing": layer.digest in wanted} for layer in layers
        ]
        self._write("plan", layers=described)

    def plan_check(self, blobs: Sequence[Descriptor]) -> None:
        self._write("check", blobs=[{"digest": str(blob.digest), "size": blob.size} for blob in blobs])

    def waiting(self, layer: Descriptor) -> None:
        self._write("waiting", layer=str(layer.digest))

    def started(self, layer: Descriptor) -> None:
        self._write("started", layer=str(layer.digest), size=layer.size)

    def fetched(self, layer: Descriptor, count: int) -> None:
        self._count("fetched", layer, count)

    def sent(self, blob: Descriptor, count: int) -> None:
        self._count("sent", blob, count)

    def unpacked(self, layer: Descriptor, count: int) -> None:
        self._count("unpacked", layer, count)

    def worked(self, layer: Descriptor | None, spans: Sequence[Span]) -> None:
        super().worked(layer, spans)
        if layer is None:
            for span in spans:
                self._write("stage", stage=span.stage, seconds=round(span.busy, 6))
            return
        stages = self._stages.setdefault(str(layer.digest), {})
        for span in spans:
            stages[span.stage] = round(stages.get(span.stage, 0.0) + span.busy, 6)

    def finished(self, layer: Descriptor) -> None:
        self._write("finished", layer=str(layer.digest), stages=self._stages.pop(str(layer.digest), {}))

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def _count(self, event: str, layer: Descriptor, count: int) -> None:
        key, now = (event, layer.digest.hex), time.monotonic()
        if now - self._last.get(key, 0.0) >= _INTERVAL or count == layer.size:
            self._last[key] = now
            self._write(event, layer=str(layer.digest), bytes=count)

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=self._file, flush=True)


class Bars(Progress):
    """A bar for the whole pull, and one for each layer in flight."""

    def __init__(self, file: TextIO, words: Words = PULL) -> None:
        self._file = file
        self._words = words
        self._total: tqdm[Any] | None = None
        self._bars: dict[Digest, tqdm[Any]] = {}

    def plan(self, layers: Sequence[Descriptor], missing: Sequence[Descriptor], what: str = "layers") -> None:
        size = sum(layer.size for layer in missing)
        if self._total is not None:
            self._total.total = (self._total.total or 0) + size
        elif missing:
            self._total = self._bar(self._words.bar, size)

    def plan_check(self, blobs: Sequence[Descriptor]) -> None:
        self._total = self._bar("check", sum(blob.size for blob in blobs))

    def waiting(self, layer: Descriptor) -> None:
        self.note(f"{layer.digest.short}: another process is pulling it, waiting")

    def started(self, layer: Descriptor) -> None:
        self._bars[layer.digest] = self._bar(layer.digest.short, layer.size)

    def fetched(self, layer: Descriptor, count: int) -> None:
        bar = self._bars.get(layer.digest)
        if bar is not None and self._total is not None:
            step = count - bar.n
            bar.update(step)
            self._total.update(step)

    def unpacked(self, layer: Descriptor, count: int) -> None:
        if layer.digest in self._bars:
            self._bars[layer.digest].set_postfix_str(f"unpacked {human_size(count)}", refresh=False)

    def finished(self, layer: Descriptor) -> None:
        bar = self._bars.pop(layer.digest, None)
        if bar is not None:
            bar.close()

    def note(self, text: str) -> None:
        from tqdm import tqdm

        tqdm.write(text, file=self._file)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
        if self._total is not None:
            self._total.close()

    def _bar(self, name: str, size: int) -> tqdm[Any]:
        from tqdm import tqdm  # here, because a pull without bars should not pay for it

        return tqdm(
            desc=name,
            total=size,
            unit="B",
            unit_scale=True,
            file=self._file,
            leave=False,
            mininterval=_INTERVAL,
            dynamic_ncols=True,
            delay=0,
        )


FACES = ("auto", "bar", "plain", "json", "none")


def face(name: str, words: Words = PULL) -> Progress:
    """The face of this name; `auto` is bars on a terminal and plain lines elsewhere."""
    if name == "auto":
        name = "bar" if sys.stderr.isatty() else "plain"
    faces = {"bar": Bars, "plain": Plain, "json": JsonLines}
    return faces[name](sys.stderr, words) if name in faces else Progress()


def human_size(count: float) -> str:
    """`1.5 MB`: powers of 1000, as Docker's listings."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
