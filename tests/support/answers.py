"""HTTP answers as the fault proxy has them, whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Answer(NamedTuple):
    """An HTTP answer, whole. A header is there once."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes = b""

    def header(self, name: str) -> str:
        """Its value, or an empty text."""
        return next((value for key, value in self.headers.items() if key.lower() == name.lower()), "")

    def but(self, headers: Mapping[str, str | None]) -> Answer:
        """With these headers in place of what was there; None takes one away."""
        names = {name.lower() for name in headers}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in names}
        return self._replace(headers=kept | {name: value for name, value in headers.items() if value is not None})


def document(status: int, reason: str, body: object) -> Answer:
    """An answer in JSON."""
    return Answer(status, reason, {"Content-Type": "application/json"}, json.dumps(body).encode())


def error(status: int, reason: str, code: str) -> Answer:
    """An error as the distribution-spec has it."""
    return document(status, reason, {"errors": [{"code": code, "message": code.lower()}]})


def parsed(lines: Iterable[str]) -> dict[str, str]:
    """The headers that stand in these lines."""
    """What comes in several lines of a name is one list (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, _, value in (line.partition(":") for line in lines):
        found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
    return found
