"""Say how much is used of what a network changed; apart from the stages, since all of them may say it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ChangeUse(NamedTuple):
    """The shares that are used of what a network changed.

    shares: 0..1, of small and large changes of light, of small and large ones of colour. raised: how much is added of
    the result's three finest bands of light, finest first; 0 leaves them as they are. specks: whether large changes
    that stand alone are used in full.
    """

    shares: tuple[float, float, float, float]
    raised: tuple[float, float, float] = (0.0, 0.0, 0.0)
    specks: bool = False


ALL = ChangeUse((1.0, 1.0, 1.0, 1.0))


def words_for(shares: Sequence[float]) -> str:
    """Return the four shares of a ChangeUse, 0..1, in words for people."""
    small, large, colour, more = (f"{share:.0%}" for share in shares)
    return f"of small changes {small}, of large {large}; of colour {colour} and {more}"
