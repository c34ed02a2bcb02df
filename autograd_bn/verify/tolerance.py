"""How close two results have to be: beside what an entry is judged, and what the inputs' last bits do to it."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

from ..engine.node import Array

# Part of the largest entry by which those of two formulas may differ (constants may have been rounded to the inputs'
# dtype), and by which one that was computed in the dtype may be off.
FORMULA = defaultdict(lambda: 1e-10, float16=4e-4, float32=1e-6)
ROUNDING = defaultdict(lambda: 1e-10, float16=1e-2, float32=1e-5)
_SLACK = 16  # times what moving the inputs by their last bits does
_DRAWS = 4


def largest(a: Any) -> Any:
    """The largest finite entry, in the widest arithmetic: what float64 can't hold is not infinite there."""
    sizes = np.abs(np.asarray(a))
    if sizes.dtype.kind == "O":
        return np.max(sizes, initial=0)
    return np.longdouble(np.max(sizes, initial=0, where=np.isfinite(sizes)))


def sizes(a: Array) -> Array:
    """The largest finite entry of each one's column, as columns may be of unlike scales.

    In three axes or more that of its channel and of its sample too, whichever is least; in one axis that of all.
    """
    if a.ndim < 2:
        return np.full(a.shape, largest(a))
    finite = np.abs(a) if a.dtype.kind == "O" else np.where(np.isfinite(a), np.abs(a), 0).astype(np.longdouble)
    each = [np.max(finite, axis=tuple({*range(a.ndim)} - {k}), keepdims=True, initial=0) for k in range(a.ndim)]
    return np.broadcast_to(reduce(np.minimum, each[-1:] if a.ndim == 2 else each), a.shape)


def apart(a: Array, b: Array) -> Array:
    """The difference of every two entries; infinite where one isn't finite and the other not the same."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = abs(a - b)
    if a.dtype.kind != "O":
        same, both = (a == b) | (np.isnan(a) & np.isnan(b)), np.isfinite(a) & np.isfinite(b)
        difference = np.where(same, 0, np.where(both, difference, np.inf))
    return np.asarray(difference)


def moved_by_last_bits(
    values: dict[str, Array], at: Sequence[Array], again: Callable[[list[Array]], dict[str, Array]], unit: float
) -> dict[str, Array]:
    """How far each entry may move, when the inputs move by their last bits, `unit`: some times what was seen."""
    rng = np.random.default_rng(0)
    most: dict[str, Array] = {name: np.zeros(np.shape(value)) for name, value in values.items()}
    for _ in range(_DRAWS):
        steps = [unit * np.asarray(rng.uniform(-2, 2, a.shape), np.longdouble) for a in at]
        there = again([(a + a * step).astype(a.dtype) for a, step in zip(at, steps, strict=True)])
        for name, value in there.items():
            off = apart(value, values[name])
            most[name] = np.maximum(most[name], _SLACK * np.where(np.isfinite(off), off, 0))
    return most
