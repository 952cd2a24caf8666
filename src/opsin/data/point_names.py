"""What the names of points tell: which are mirror images of each other, and which are the eyes of a face."""

from __future__ import annotations

import re
from collections.abc import Sequence

IBUG_68 = 68
"""Points of the iBUG 300-W layout: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67."""

_PAIRS_68 = (
    *((i, 16 - i) for i in range(8)), *((17 + i, 26 - i) for i in range(5)), (31, 35), (32, 34),
    (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46),
    (48, 54), (49, 53), (50, 52), (55, 59), (56, 58), (60, 64), (61, 63), (65, 67),
)  # fmt: skip
_BODY = ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "paw", "tail", "hand", "foot", "neck", "toe")


def swaps_by_name(names: Sequence[str]) -> tuple[int, ...]:
    """Where each point goes when the picture is mirrored, (K,); empty if the names do not tell.

    They tell if some speak of left and right and each of those has its twin. 68 points without such names are taken to be
    in the iBUG 300-W layout.
    """
    words = [name.lower() for name in names]
    place = {word: k for k, word in enumerate(words)}
    twins = [_twin(word) for word in words]
    if any(twin is not None for twin in twins):
        if any(twin is not None and twin not in place for twin in twins):
            return ()
        return tuple(k if twin is None else place[twin] for k, twin in enumerate(twins))
    if len(names) != IBUG_68:
        return ()
    swaps = list(range(IBUG_68))
    for a, b in _PAIRS_68:
        swaps[a], swaps[b] = b, a
    return tuple(swaps)


def eyes(names: Sequence[str]) -> tuple[int, int] | None:
    """The two points whose distance is a face's inter-ocular one: the outer corners of the eyes if there are such, else the
    eyes' middles; None if the names do not tell, or are those of a body."""
    words = [re.sub(r"[^a-z0-9]+", "_", name.lower()) for name in names]
    if any(part in word for word in words for part in _BODY):
        return None
    for pattern in (r"outer", r"middle|center|centre|pupil", r""):
        sides = {}
        for side in ("left", "right"):
            fitting = [k for k, word in enumerate(words) if side in word and "eye" in word and "brow" not in word]
            fitting = [k for k in fitting if re.search(pattern, words[k])]
            if len(fitting) == 1:
                sides[side] = fitting[0]
        if len(sides) == 2:
            return sides["left"], sides["right"]
    return (36, 45) if len(names) == IBUG_68 else None


def _twin(word: str) -> str | None:
    """The name of the same point on the other side; None for a point in the middle."""
    if "left" in word:
        return word.replace("left", "right")
    if "right" in word:
        return word.replace("right", "left")
    found = re.fullmatch(r"([lr])([_\- ].+)", word)
    return None if found is None else ("r" if found[1] == "l" else "l") + found[2]
