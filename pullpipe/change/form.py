"""JSON documents written as they came: who adds a layer and takes it away again has the same bytes as before."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

_INDENTS = (None, 2, 3, 4, "\t")
_SEPARATORS = ((",", ":"), (", ", ": "), (",", ": "))
# What Go's encoder writes in another way, which most of these documents come from.
_GO = str.maketrans({one: f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"})


def form_of(original: bytes) -> Callable[[Any], bytes]:
    """How to write a changed document so that only the changes differ; compact, if the form is nobody's."""
    document = json.loads(original)
    for indent, separators, plain, end in product(_INDENTS, _SEPARATORS, (True, False), ("", "\n")):
        write = partial(_write, indent, separators, plain, end)
        if write(document) == original:
            return write
    return compact


def compact(document: Any) -> bytes:
    """As Go's encoder writes it."""
    return _write(None, (",", ":"), True, "", document)


def _write(indent: int | str | None, separators: tuple[str, str], as_go: bool, end: str, document: Any) -> bytes:
    text = json.dumps(document, indent=indent, separators=separators, ensure_ascii=not as_go)
    return ((text.translate(_GO) if as_go else text) + end).encode("utf-8", "surrogatepass")
