"""What files declare, before it is believed."""

from __future__ import annotations

SMALL = 1 << 28  # bytes that any machine has
LARGEST = 4 << 30  # bytes of a file of a known data set, and more than any has
RATIO = 100  # times which data shrink when packed; text and sparse images do by 20 or so


def unbelievable(packed: int, declared: int) -> bool:
    """Whether so many bytes are not to be unpacked from so few: they would take the memory, and are no data."""
    return declared > SMALL and declared > RATIO * packed
