"""Checks of arguments: one error that names the argument, what came and what was expected."""

from collections.abc import Callable
from typing import Any

import numpy as np

Rng = int | np.random.Generator | None


def number(value: Any, name: str, fits: Callable[[Any], Any], expected: str) -> Any:
    """A real number that fits, or a `ValueError`."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not real or not fits(value):
        raise ValueError(f"{name} is {value!r}, expected {expected}")
    return value


def positive(value: Any, name: str) -> int:
    """An integer of at least 1, or a `ValueError`."""
    return int(number(value, name, lambda n: isinstance(n, int | np.integer) and n >= 1, "a positive integer"))


def at_least_zero(value: Any, name: str) -> float:
    """A finite number of at least 0, or a `ValueError`."""
    return number(value, name, lambda v: 0 <= v < np.inf, "a finite number of at least 0")  # type: ignore[no-any-return]


def above_zero(value: Any, name: str) -> Any:
    """A finite number above 0, or a `ValueError`."""
    return number(value, name, lambda v: 0 < v < np.inf, "a finite number above 0")


def pair(value: Any, name: str, least: int) -> tuple[int, int]:
    """Two integers of at least `least`, of which one stands for both, or a `ValueError`."""
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or not all(isinstance(v, int | np.integer) and v >= least for v in both):
        raise ValueError(f"{name} is {value!r}, expected an integer of at least {least}, or two of them")
    return int(both[0]), int(both[1])


def generator(rng: Rng) -> np.random.Generator:
    """The generator, or one made from a seed or from the operating system's; a `TypeError` for all else."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise TypeError(f"rng is {rng!r}, expected a seed, a NumPy generator or None") from None
