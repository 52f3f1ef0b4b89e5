"""Which place to ask, when to ask again, and when to give up: failover, backoff with jitter, Retry-After."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, Protocol, TypeVar

from pullpipe.errors import NotFound, PullpipeError, TransferError, Unreachable, what_and_remedy

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be another when asked again
_FIRST = 0.5  # seconds at most before the second round; doubled for each further one
_LONGEST = 30.0
_UNHEARD = 2  # rounds for somebody who has never answered
_PATIENCE = 300.0  # seconds: who asks for a longer wait is not waited for


class Place(Protocol):
    """Something that can be asked."""

    @property
    def name(self) -> str: ...

    @property
    def authoritative(self) -> bool: ...


_P = TypeVar("_P", bound=Place)


class Retries:
    """How often to try again, and what all tours of one pull have learned.

    `limit` is how many rounds in vain are followed by another one. `note` hears why it goes on elsewhere, or later.
    """

    def __init__(self, limit: int, note: Callable[[str], None]) -> None:
        self.limit = limit
        self.failing: set[Place] = set()  # to be asked last
        self.heard = False  # Whether anybody has answered; if not, the name may be wrong, or this machine offline.
        self._note = note
        self._told: dict[Place, set[tuple[str, int]]] = {}
        self._lacking: set[Place] = set()  # of which it has been told that they do not have everything

    def rounds(self, error: PullpipeError) -> int:
        """How many further rounds the error is worth."""
        unheard = isinstance(error, Unreachable) and not self.heard
        return min(self.limit, _UNHEARD) if unheard else self.limit

    def answered(self, place: Place) -> None:
        """It gives what it was asked for: should it fail again, that is news."""
        self.heard = True
        self._told.pop(place, None)

    def tell(self, place: Place, error: PullpipeError, then: str, number: int = 0) -> None:
        """Notes what went wrong at the place, and what is done about it, unless another tour has told the same.

        `number` is that of the round, if there is to be another one. That a place lacks something is told but once.
        """
        what, told = _parts(error)[0], self._told.setdefault(place, set())
        if (what, number) in told or (isinstance(error, NotFound) and place in self._lacking):
            return
        told.add((what, number))
        if isinstance(error, NotFound):
            self._lacking.add(place)
        self._note(f"{what}; {then}")


class Tour(Generic[_P]):
    """The places to ask for one thing, one after the other, and after a while from the first on again."""

    def __init__(self, places: Iterable[_P], retries: Retries) -> None:
        self._places = sorted(places, key=lambda place: place in retries.failing)
        self._retries = retries
        self._at = 0
        self._rounds = 0
        self._troubles: dict[_P, PullpipeError] = {}

    @property
    def place(self) -> _P:
        """Whom to ask now."""
        return self._places[self._at]

    @property
    def others(self) -> bool:
        """Whether there is somebody else to ask at once."""
        return self._at + 1 < len(self._places)

    def progress(self) -> None:
        """Something has been had that need not be had again: rounds up to here were not in vain."""
        self._rounds = 0

    async def failed(self, error: PullpipeError) -> None:
        """On to the next place, perhaps after a wait; raises when no further attempt makes sense."""
        place = self.place
        self._troubles[place] = error
        self._retries.heard |= not isinstance(error, Unreachable)
        if not isinstance(error, NotFound):
            self._retries.failing.add(place)
        if isinstance(error, TransferError) and error.transient and _wait(error) <= _PATIENCE:
            self._at += 1
        else:
            del self._places[self._at]
            if isinstance(error, NotFound) and place.authoritative:
                self._places, self._at = self._places[self._at :], 0  # what mirrors suffer from does not matter then
        if not self._places:
            raise self._told(error)
        if self._at < len(self._places):
            self._retries.tell(place, error, f"asking {self.place.name}")
            return
        await self._pause(place, error)
        self._at = 0

    async def _pause(self, place: _P, error: PullpipeError) -> None:
        limit = self._retries.rounds(error)
        if self._rounds >= limit:
            raise self._told(error)
        self._rounds += 1
        # Jitter over the whole span: clients that failed together shall not come back together.
        seconds = random.uniform(0.1, min(_FIRST * 2 ** (self._rounds - 1), _LONGEST))
        if 0 < (wait := _wait(error)) <= _PATIENCE:
            seconds = max(seconds, wait + random.random())
        then = f"trying again in {seconds:.1f} s ({self._rounds} of {limit})"
        self._retries.tell(place, error, then, self._rounds)
        await asyncio.sleep(seconds)

    def _told(self, last: PullpipeError) -> PullpipeError:
        """What went wrong, at the place that has the last word; how often; and what the others said."""
        [*_, error] = [last, *(error for place, error in self._troubles.items() if place.authoritative)]
        what, remedy = _parts(error)
        asides = [f"tried {self._rounds + 1} times"] if self._rounds else []
        asides += [_parts(other)[0] for other in self._troubles.values() if other is not error]
        told = what + (f" ({'; '.join(asides)})" if asides else "") + remedy
        return error if told == str(error) else type(error)(told)


def _parts(error: PullpipeError) -> tuple[str, str]:
    """What happened, and the remedy; when it was asked for a longer wait than we grant, that has happened, too."""
    what, remedy = what_and_remedy(error)
    wait = _wait(error)
    return (f"{what} and asks to wait {_span(wait)}" if wait > _PATIENCE else what), remedy


def _wait(error: PullpipeError) -> float:
    """Seconds that it was asked for."""
    return (error.wait or 0.0) if isinstance(error, TransferError) else 0.0


def _span(seconds: float) -> str:
    """For people: `6 min`, `2 h`, `3 days`."""
    for unit, length in (("days", 86400), ("h", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} min"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the other side asks to wait (RFC 9110, 10.2.3): a number of them, or a date."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max((date - datetime.now(UTC)).total_seconds(), 0.0)
