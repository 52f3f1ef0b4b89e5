"""What a container's record keeps of how it was started: for other commands in it, and for its end."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pullpipe.errors import RunError
from pullpipe.runner.walls import Bind, Network, Port, Rights, Tmpfs, Walls
from store import Container

_CLASS = "is"
_CLASSES: Mapping[str, Callable[..., Any]] = {one.__name__: one for one in (Walls, Rights, Network, Port, Bind, Tmpfs)}

STOP_SIGNAL = "SIGTERM"
STOP_TIMEOUT = 10  # seconds


class Settings(NamedTuple):
    """The JSON object `settings` of `config.json`. What a record does not have is as here."""

    env: Mapping[str, str] = {}
    working_dir: str = "/"
    user: str = ""
    groups: tuple[str, ...] = ()
    hostname: str = ""
    labels: Mapping[str, str] = {}
    interactive: bool = False
    terminal: bool = False
    runtime: str = ""  # who runs it, if it was handed over
    remove: bool = False  # when the command has ended
    stop_signal: str = STOP_SIGNAL
    stop_timeout: int = STOP_TIMEOUT  # seconds; -1: for ever
    network: str = "host"
    ports: Mapping[str, Any] = {}  # as Docker's inspect shows them
    read_only: bool = False
    limits: Mapping[str, Any] = {}
    mounts: tuple[Mapping[str, Any], ...] = ()  # as Docker's inspect shows them
    walls: Mapping[str, Any] = {}  # as `plain` makes them

    def to_json(self) -> str:
        """For the record."""
        return json.dumps(self._asdict())

    @classmethod
    def of(cls, container: Container) -> Settings:
        """Those of the record."""
        fields = json.loads(container.settings)
        return cls(**{name: value for name, value in fields.items() if name in cls._fields})


def plain(value: object) -> Any:
    """Walls, or a part of them, for JSON; without the filter, which is made anew."""
    if isinstance(value, tuple) and (names := getattr(value, "_fields", None)):
        return {_CLASS: type(value).__name__} | {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return "" if isinstance(value, bytes) else value


def walls_of(value: Any) -> Any:
    """The other way. Raises `ValueError`, `KeyError` or `TypeError` for what `plain` has not made."""
    if isinstance(value, list):
        return tuple(walls_of(one) for one in value)
    if not isinstance(value, dict):
        return value
    fields = {name: walls_of(one) for name, one in value.items() if name not in (_CLASS, "filter")}
    return _CLASSES[value[_CLASS]](**fields)


def signal_number(text: str) -> int:
    """Of SIGTERM, TERM, 15 or SIGRTMIN+3, in any case. Raises `RunError`."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit():
        number = int(name[:4])
    elif match := re.fullmatch(r"RT(MIN|MAX)([+-][0-9]{1,2})?", name):
        number = (signal.SIGRTMIN if match[1] == "MIN" else signal.SIGRTMAX) + int(match[2] or 0)
    else:
        number = getattr(signal, f"SIG{name}", 0) if re.fullmatch("[A-Z0-9]+", name) else 0
    if not 0 < number <= signal.SIGRTMAX:
        raise RunError(f"there is no signal {text!r}; `kill -l` lists them")
    return int(number)


def signal_name(text: str) -> str:
    """The same signal by its name, or by its number if it has none. Raises `RunError`."""
    number = signal_number(text)
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
