"""Numeric derivatives, each with a measure of how far it may be off."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from ..engine.node import Array

Index = tuple[int, ...]


class Differences:
    """The derivatives of `f` at a point, by complex steps where `f` allows them, else by central differences.

    `f` takes the list of arrays `at`, one of them moved, and returns all outputs, of `sizes`, as one vector. Central
    differences at h, h/2 and h/4 are extrapolated twice (Richardson 1911). The error is estimated from three
    sides: what the second extrapolation changes, the same for the second differences, which a kink or a jump
    within the step makes large, and the rounding of `f`, measured by third differences at steps where a
    smooth function has none (Hamming 1971). The step of each input is the one where the error is least.
    `smallest` is the smallest step, in units of the input's scale, which is its standard deviation, or its magnitude
    where it is constant.

    Complex steps (Squire and Trapp 1998) have no truncation. They are taken where `f` accepts complex arrays
    and agrees with the differences.
    """

    def __init__(
        self,
        f: Callable[[Sequence[Array]], Array],
        at: Sequence[Array],
        sizes: Sequence[int],
        smallest: float,
        rng: np.random.Generator,
    ) -> None:
        self.f = f
        self.sizes = sizes
        self.at = list(at)
        self.smallest = smallest
        self.value = f(self.at)
        self.scale = [_scale(array) for array in self.at]
        self.noise: list[Array] = []
        self.step: list[float] = []
        self.complex: list[bool] = []
        for i, array in enumerate(self.at):
            direction = _direction(array, rng)
            self.noise.append(self._rounding(i, direction))
            step, slope, error = self._probe(i, direction)
            self.step.append(step)
            self.complex.append(self._allows_complex(i, direction, slope, error))

    def along(self, i: int, direction: Array) -> tuple[Array, Array]:
        """The derivative of every output as input `i` moves along `direction`, and its estimated error."""
        scale, noise = self.scale[i], self.noise[i]
        if self.complex[i]:
            return self._complex(i, direction), 16 * noise / scale
        h = self.step[i]

        def estimate(h: float) -> tuple[Array, Array]:
            return self._extrapolated(i, h, [self._sides(i, direction, t) for t in (h, h / 2, h / 4)])

        value, error = estimate(h)
        # Where the estimates don't settle, a kink or a steep place may be nearer than the step.
        size = np.abs(self.at[i][direction != 0])
        least = self.smallest * min(scale, float(np.min(size, where=size > 0, initial=scale)))
        while h / 16 >= least and not np.all(error <= 1e-7 * _largest(value) + 32 * noise / h):
            h /= 16
            other, its_error = estimate(h)
            better = its_error < error
            value, error = np.where(better, other, value), np.where(better, its_error, error)
        return value, error

    def kink(self, rng: np.random.Generator) -> tuple[int, Index] | None:
        """An element of an input that has a kink of `f` within the smallest step of it, or None.

        Second differences of a smooth function shrink in proportion to the step, those across a kink do not.
        """
        for _ in range(2):
            if not self._bends(range(len(self.at)), [_direction(array, rng) for array in self.at]):
                return None
        for i, array in enumerate(self.at):
            for index in np.ndindex(array.shape):
                unit = np.zeros(array.shape)
                unit[index] = 1
                if self._bends([i], [unit]):
                    return i, index
        return None

    def _moved(self, i: int, by: Array) -> Array:
        with np.errstate(all="ignore"):
            return self.f([*self.at[:i], self.at[i] + by, *self.at[i + 1 :]])

    def _sides(self, i: int, direction: Array, h: float) -> tuple[Array, Array]:
        return self._moved(i, h * direction), self._moved(i, -h * direction)

    def _extrapolated(self, i: int, h: float, sides: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
        """The slope and its error from the values on both sides at h, h/2 and h/4."""
        with np.errstate(all="ignore"):
            value, truncation = _richardson([(up - down) / (2 * h / 2**k) for k, (up, down) in enumerate(sides)])
            middle = 2 * self.value
            _, bend = _richardson([(up - middle + down) / h * 4**k for k, (up, down) in enumerate(sides)])
            rounding = self.noise[i] / h
            error = truncation + np.maximum(bend - 200 * rounding, 0)
            unsettled = ~(error <= 1e-3 * np.abs(value) + 1e-6 * _largest(value) + 100 * rounding)
            return value, np.where(unsettled, np.inf, error + 16 * rounding)

    def _rounding(self, i: int, direction: Array) -> Array:
        """How far rounding may throw each output; of the two sides the calmer one, where a kink stirs the other."""
        tiny = self.scale[i] * self.smallest / 16
        sides = []
        for t in (tiny, -tiny):
            third = np.diff([self._moved(i, k * t * direction) for k in range(1, 9)], n=3, axis=0)
            sides.append(np.nan_to_num(np.max(np.abs(third), axis=0) / math.sqrt(20), nan=np.inf))
        calmer, wilder = np.minimum(*sides), np.maximum(*sides)
        noise = np.maximum(np.where(wilder <= 1000 * calmer, wilder, calmer), 2**-52 * np.abs(self.value))
        # What is small because larger numbers cancelled in it has their rounding.
        parts = np.split(noise, np.cumsum(self.sizes)[:-1])
        return np.concatenate([np.maximum(part, np.median(part)) if part.size else part for part in parts])

    def _probe(self, i: int, direction: Array) -> tuple[float, Array, Array]:
        """The best first step for input `i`, with the slope that it gives and its error."""
        halvings = max(5, round(-math.log2(self.smallest)))
        steps = [self.scale[i] * 2.0**-k for k in range(3, halvings + 1)]
        sides = [self._sides(i, direction, h) for h in steps]
        found = [self._extrapolated(i, h, sides[k : k + 3]) for k, h in enumerate(steps[:-2])]
        best = int(np.argmin([np.linalg.norm(error) for _, error in found]))
        return steps[best], *found[best]

    def _complex(self, i: int, direction: Array) -> Array:
        h = self.scale[i] * 1e-30
        return np.asarray(self._moved(i, 1j * h * direction).imag / h)

    def _allows_complex(self, i: int, direction: Array, slope: Array, error: Array) -> bool:
        try:
            with warnings.catch_warnings(action="error"):
                value = self._complex(i, direction)
        except Exception:  # whatever f raises on complex numbers, it doesn't take them
            return False
        return bool(np.all(np.abs(value - slope) <= 10 * error + 1e-11 * np.abs(slope)))

    def _bends(self, which: Sequence[int], directions: Sequence[Array]) -> bool:
        """Whether second differences, divided by the step, don't shrink with it."""

        def moved(t: float) -> Array:
            at = list(self.at)
            for i, direction in zip(which, directions, strict=True):
                at[i] = at[i] + t * self.scale[i] * direction
            with np.errstate(all="ignore"):
                return self.f(at)

        h = self.smallest
        steps = (h, h / 2, h / 4)
        sides = [(moved(t), moved(-t)) for t in steps]
        bends = [(up - 2 * self.value + down) / t for (up, down), t in zip(sides, steps, strict=True)]
        slope = np.abs(sides[0][0] - sides[0][1]) / (2 * h)
        noise = np.max([self.noise[i] for i in which], axis=0) / steps[-1]
        excess = np.max([np.abs(bends[k] - bends[0] * steps[k] / h) for k in (1, 2)], axis=0)
        return bool(np.any(~(excess <= 1e-6 * slope + 50 * noise)))


def _richardson(estimates: Sequence[Array]) -> tuple[Array, Array]:
    """Estimates with steps h, h/2 and h/4, extrapolated to 0, and the size of the last correction."""
    first, second, third = estimates
    r1, r2 = (4 * second - first) / 3, (4 * third - second) / 3
    value = (16 * r2 - r1) / 15
    return value, np.abs(value - r2)


def _direction(array: Array, rng: np.random.Generator) -> Array:
    """One that moves every element, no two by the same amount."""
    return np.asarray(rng.uniform(0.5, 1.5, array.shape) * rng.choice([-1, 1], array.shape))


def _scale(array: Array) -> float:
    """The standard deviation; of a constant array its magnitude, but 1 at most while 1 can be told from 0 there."""
    spread, size = float(np.std(array)), float(np.max(np.abs(array), initial=0))
    return spread if spread > 1e-8 * size else min(size, max(1, 1e-8 * size)) or 1.0


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0))
