"""The nearest right word to a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

NUMBER = re.compile(r"\d+")


def nearest_words(wrong: str, right: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The n right words that are nearest, nearest first; none where nothing is near.

    A word that differs in its numbers alone is nearest to that with the nearest numbers: letters say nothing there.

    >>> nearest_words("resnet21", ["resnet32", "resnet20", "resnet110"])
    ['resnet20']
    """
    words = list(right)
    numbers = [int(found) for found in NUMBER.findall(wrong)]

    def apart(word: str) -> int:
        return sum(abs(int(a) - b) for a, b in zip(NUMBER.findall(word), numbers, strict=True))

    pattern = NUMBER.sub("0", wrong.lower())
    alike = [w for w in words if NUMBER.sub("0", w.lower()) == pattern]
    if numbers and alike:
        return sorted(alike, key=apart)[:n]
    return difflib.get_close_matches(wrong, words, n=n, cutoff=cutoff)
