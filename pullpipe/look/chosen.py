"""Which image is meant, and which layer of it: `alpine`, `alpine#2`.

No reference has a `#` in it, and to no shell is one within a word a comment, so a layer is named by one word wherever
an image is, without quotes and without an option. 1 is the lowest layer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pullpipe import local
from pullpipe.errors import BadArgument
from pullpipe.local import LocalImage
from store import Store

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


class Chosen(NamedTuple):
    """An image; or one layer of it, by its number."""

    name: str  # or an id
    layer: int | None = None

    @classmethod
    def parse(cls, text: str) -> Chosen:
        """Raises `InvalidReference` or `BadArgument`."""
        name, mark, number = text.partition("#")
        if mark and not _NUMBER.fullmatch(number):
            raise BadArgument(f"{text!r} names no layer; {name}#1 is the lowest one of {name}")
        return cls(local.checked(name), int(number) if mark else None)

    @classmethod
    def image(cls, text: str) -> str:
        """The name, for what is about a whole image. Raises `InvalidReference` or `BadArgument`."""
        chosen = cls.parse(text)
        if chosen.layer is not None:
            raise BadArgument(f"{text} is one layer, and this is about an image; leave #{chosen.layer} away")
        return chosen.name

    def find(self, store: Store) -> LocalImage:
        """The image, which has such a layer. Raises as `local.find` does, and `BadArgument`, with what to do."""
        image = local.find(store, self.name)
        count = len(image.config.diff_ids)
        if self.layer is not None and self.layer > count:
            there = f"its {count} layers are #1 to #{count}" if count > 1 else f"it has {count or 'none'}"
            raise BadArgument(
                f"{self.name} has no layer {self.layer}: {there}; `pullpipe layers {self.name}` lists them"
            )
        return image
