"""Numeric derivatives, each with an estimate of its own error."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..engine.node import Array

Index = tuple[int, ...]


class Differences:
    """The derivatives of `f` at the arrays `at`, by central differences, each with an estimate of its error.

    `f` takes a list of arrays like `at` and returns the list of its outputs; they are measured as one vector.
    Differences at h, h/2 and h/4 are extrapolated twice (Richardson 1911). The error is estimated from three
    sides: the last change of the extrapolation, the same for the second differences, which a kink or a jump
    within the step makes large, and the rounding of `f`, measured by third differences at steps where a
    smooth function has none (Hamming 1971). The step of each input is the one where the error is least.
    `smallest` is the smallest step, in units of the input's scale: its standard deviation, or its magnitude
    where it is constant. `magnitude` is that of the largest number which `f` computes with: where `f` doesn't
    move at all, the rounding of that number may hide a derivative.

    >>> slopes = Differences(lambda at: [np.exp(at[0])], [np.array([0.0, 1.0])])
    >>> derivative, error = slopes.jacobian(0)
    >>> bool(np.all(np.abs(derivative - np.diag(np.exp([0.0, 1.0]))) <= error))
    True
    """

    def __init__(
        self,
        f: Callable[[Sequence[Array]], Sequence[Array]],
        at: Sequence[Array],
        *,
        smallest: float = 1e-6,
        magnitude: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self.f, self.at, self.smallest, self.magnitude = f, list(at), smallest, magnitude
        self.rng = rng or np.random.default_rng(0)
        self.ends = np.cumsum([np.size(output) for output in f(self.at)])[:-1]
        self.value = self._moved([], [])
        self.scale = [_scale(array) for array in self.at]
        directions = [self._direction(array) for array in self.at]
        self.noise = [self._rounding(i, direction) for i, direction in enumerate(directions)]
        self.step = [self._best_step(i, direction) for i, direction in enumerate(directions)]

    def along(self, i: int, direction: Array) -> tuple[Array, Array]:
        """The derivative of every output as input `i` moves along `direction`, and its estimated error."""
        h, scale = self.step[i], self.scale[i]
        value, error = self._slope(i, direction, h)
        # Where the estimates don't settle, a kink or a steep place may be nearer than the step.
        size = np.abs(self.at[i][direction != 0])
        least = self.smallest * min(scale, float(np.min(size, where=size > 0, initial=scale)))
        while h / 16 >= least and not np.all(error <= 1e-7 * _largest(value) + 32 * self.noise[i] / h):
            h /= 16
            other, its_error = self._slope(i, direction, h)
            better = its_error < error
            value, error = np.where(better, other, value), np.where(better, its_error, error)
        return value, error

    def jacobian(self, i: int) -> tuple[Array, Array]:
        """The derivatives of all outputs (rows) by the elements of input `i` (columns), and their errors."""
        columns = np.array([self.along(i, unit) for unit in _units(self.at[i])])
        value, error = columns.reshape(self.at[i].size, 2, self.value.size).transpose(1, 2, 0)
        return value, error

    def kink(self) -> tuple[int, Index] | None:
        """An element of an input that has a kink of `f` within the smallest step of it, or None.

        Second differences of a smooth function shrink in proportion to the step, those across a kink do not.
        """
        every = range(len(self.at))
        if not all(self._bends(every, [self._direction(array) for array in self.at]) for _ in range(2)):
            return None
        for i, array in enumerate(self.at):
            for index, unit in zip(np.ndindex(array.shape), _units(array), strict=True):
                if self._bends([i], [unit]):
                    return i, index
        return None

    def _moved(self, which: Sequence[int], by: Sequence[Array]) -> Array:
        at = list(self.at)
        for i, step in zip(which, by, strict=True):
            at[i] = at[i] + step
        with np.errstate(all="ignore"):
            return np.concatenate([np.ravel(output) for output in self.f(at)])

    def _sides(self, i: int, direction: Array, h: float) -> tuple[Array, Array]:
        return self._moved([i], [h * direction]), self._moved([i], [-h * direction])

    def _slope(self, i: int, direction: Array, h: float) -> tuple[Array, Array]:
        return self._extrapolated(i, h, [self._sides(i, direction, t) for t in (h, h / 2, h / 4)])

    def _extrapolated(self, i: int, h: float, sides: Sequence[tuple[Array, Array]]) -> tuple[Array, Array]:
        """The slope and its error, from the values on both sides at h, h/2 and h/4."""
        with np.errstate(all="ignore"):
            value, truncation = _richardson([(up - down) / (2 * h / 2**k) for k, (up, down) in enumerate(sides)])
            middle = 2 * self.value
            _, bend = _richardson([(up - middle + down) / h * 4**k for k, (up, down) in enumerate(sides)])
            flat = np.all([(up == self.value) & (down == self.value) for up, down in sides], axis=0)
            rounding = np.maximum(self.noise[i], flat * 2**-52 * self.magnitude) / h
            error = truncation + np.maximum(bend - 200 * rounding, 0)
            unsettled = ~(error <= 1e-3 * np.abs(value) + 1e-6 * _largest(value) + 100 * rounding)
            return value, np.where(unsettled, np.inf, error + 16 * rounding)

    def _rounding(self, i: int, direction: Array) -> Array:
        """How far rounding may throw each output; of the two sides the calmer one, where a kink stirs the other."""
        tiny = self.scale[i] * self.smallest / 16
        hidden = 2**-52 * max(map(_largest, self.at))  # in numbers of the inputs' size, which cancelled
        sides = []
        for sign in (1, -1):
            third = np.zeros(self.value.shape)
            for t in (tiny, 1.618 * tiny):  # of which one may be a multiple of what f is rounded to
                moved = np.array([self._moved([i], [k * sign * t * direction]) for k in range(1, 9)])
                still = np.ptp(moved, axis=0) <= hidden
                third = np.maximum(third, np.max(np.abs(np.diff(moved, n=3, axis=0)), axis=0) / math.sqrt(20))
                third = np.where(still, np.maximum(third, hidden), third)
            sides.append(np.nan_to_num(third, nan=np.inf))
        calmer, wilder = np.minimum(*sides), np.maximum(*sides)
        noise = np.where(wilder <= 1000 * calmer, wilder, calmer)
        noise = np.maximum(noise, 2**-52 * np.abs(self.value))
        # What is small because larger numbers cancelled in it has their rounding.
        parts = [np.maximum(part, np.median(part)) if part.size else part for part in np.split(noise, self.ends)]
        return np.concatenate(parts)

    def _best_step(self, i: int, direction: Array) -> float:
        halvings = max(5, round(-math.log2(self.smallest)))
        steps = [self.scale[i] * 2.0**-k for k in range(3, halvings + 1)]
        sides = [self._sides(i, direction, h) for h in steps]
        errors = [self._extrapolated(i, h, sides[k : k + 3])[1] for k, h in enumerate(steps[:-2])]
        return steps[int(np.argmin([np.linalg.norm(error) for error in errors]))]

    def _bends(self, which: Sequence[int], directions: Sequence[Array]) -> bool:
        """Whether second differences, divided by the step, don't shrink with it."""

        def moved(t: float) -> Array:
            return self._moved(which, [t * self.scale[i] * d for i, d in zip(which, directions, strict=True)])

        steps = self.smallest / np.array([[1], [2], [4]])
        up, down = (np.array([moved(sign * step) for step in steps[:, 0]]) for sign in (1, -1))
        bends = (up - 2 * self.value + down) / steps
        slope = np.abs(up[0] - down[0]) / (2 * self.smallest)
        noise = np.max([self.noise[i] for i in which], axis=0) / steps[-1]
        excess = np.max(np.abs(bends - bends[0] * steps / self.smallest), axis=0)
        return bool(np.any(~(excess <= 1e-6 * slope + 50 * noise)))

    def _direction(self, array: Array) -> Array:
        """One that moves every element, no two by the same amount."""
        return np.asarray(self.rng.uniform(0.5, 1.5, array.shape) * self.rng.choice([-1, 1], array.shape))


def _richardson(estimates: Sequence[Array]) -> tuple[Array, Array]:
    """Estimates with steps h, h/2 and h/4, extrapolated to 0, and a bound on its error.

    The change of the first extrapolation bounds the error of the second even where the estimates are only of
    first order in h, at a jump of the second derivative.
    """
    first, second, third = estimates
    r1, r2 = (4 * second - first) / 3, (4 * third - second) / 3
    return (16 * r2 - r1) / 15, np.abs(r2 - r1)


def _units(array: Array) -> Array:
    """The unit vectors of an array's space, in the order of `np.ndindex`."""
    return np.eye(array.size).reshape(array.size, *array.shape)


def _scale(array: Array) -> float:
    """The standard deviation; of a constant array its magnitude, but 1 at most while 1 can be told from 0 there."""
    if not array.size:
        return 1.0
    spread, size = float(np.std(array)), _largest(array)
    return spread if spread > 1e-8 * size else min(size, max(1, 1e-8 * size)) or 1.0


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array), initial=0))
