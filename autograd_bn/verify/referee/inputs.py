"""The inputs on which a pair is judged: the caller's, checked, and others on which more can show."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...engine import Tensor
from ...engine.node import Array
from .held import is_array, is_float
from .pairs import Pair
from .source import unwrapped

Inputs = dict[str, Any]


def checked(values: Sequence[Any], known: Sequence[str], names: Any) -> Inputs:
    """A private copy of some inputs, by the caller's names for them, else by those that are known."""
    count = len(values)
    if names is not None and (isinstance(names, str) or len(names) != count or len(set(names)) != count):
        raise ValueError(f"names is {names!r}, expected {count} different names, one an input")
    listed = known if names is None else map(str, names)
    inputs = {name: _checked(name, value) for name, value in zip(listed, values, strict=True)}
    if not any(map(is_float, inputs.values())):
        kinds = ", ".join(f"{n}: {getattr(v, 'dtype', type(v).__name__)}" for n, v in inputs.items())
        raise TypeError(f"inputs has no array of floats to take a gradient of (got {kinds or 'nothing'})")
    return inputs


def _checked(name: str, value: Any) -> Any:
    """A private copy of one input: floats as float64, so that only mistakes show and not rounding."""
    if isinstance(value, Tensor):
        value = value.data
    if isinstance(value, list) and value and not any(map(is_array, value)):
        value = np.asarray(value)
    if isinstance(value, np.ndarray | np.floating):
        if value.dtype.kind == "O":
            raise TypeError(f"inputs: {name} has dtype object, expected floats (or other numbers for a constant)")
        if value.dtype.kind == "f":
            array = np.array(value, dtype=np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"inputs: {name} holds {array[~np.isfinite(array)].flat[0]}, expected finite numbers")
            return array
    return copy.deepcopy(value)


def scale(array: Any) -> float:
    """The size of a step that moves an array noticeably."""
    return float(np.std(array)) or float(np.max(np.abs(array), initial=0)) or 1.0


def moved(value: Array, rng: np.random.Generator, *, turned: bool = False) -> Array:
    """Values near the caller's, no two of them equal, with other signs if `turned`: a gamma of ones hides mistakes.

    What the caller's values promise is kept: a symmetric matrix, rows or columns that sum to 1.
    """
    factor = rng.uniform(0.5, 1.5, size=value.shape)
    new = np.where(value == 0, (factor - 1) * scale(value), value * factor)
    along = _weights(value)
    if along is not None:
        return np.asarray(np.abs(new) / np.abs(new).sum(axis=along, keepdims=True))
    if turned:
        new = new * rng.choice([-1.0, 1.0], size=value.shape)
    if symmetric(value):
        new = (new + new.T) / 2
    return np.asarray(new)


def symmetric(value: Any) -> bool:
    """Whether a value is a symmetric matrix."""
    return is_array(value) and value.ndim == 2 and len(value) > 1 and np.array_equal(value, value.T)


def lengthened(pair: Pair, inputs: Inputs, rng: np.random.Generator) -> Iterator[Inputs]:
    """Inputs in which axes of the same length get different ones, some of which forward may refuse.

    With 5 rows of 5 features `N, D = x.shape` may be swapped without a trace. Labels go with the rows that they
    belong to, since an index reaches into longer arrays without a word. Lengths that the code has as numbers of its
    own can't be others.
    """
    written = named_lengths(pair, inputs)
    axes: dict[int, list[tuple[str, int]]] = {}
    for name, value in inputs.items():
        for axis, length in enumerate(value.shape if isinstance(value, np.ndarray) else ()):
            axes.setdefault(length, []).append((name, axis))
    free = [places for length, places in axes.items() if length > 1 and length not in written]
    some = [(places, chosen) for places in free for chosen in range(1, 2 ** min(len(places), 6))]
    choices = [(places, [place for i, place in enumerate(places) if chosen >> i & 1]) for places, chosen in some]
    for places, taken in choices[:40]:
        first = next((name for name, _ in places if is_float(inputs[name])), "")
        if any(((n, axis) in taken) != ((first, axis) in taken) for n, axis in places if not is_float(inputs[n])):
            continue
        longer = dict(inputs)
        for name, axis in taken:
            longer[name] = np.concatenate([longer[name]] * 2, axis=axis)
        if sum(map(symmetric, longer.values())) < sum(map(symmetric, inputs.values())):
            continue
        changed = [name for name, value in inputs.items() if is_float(value) and longer[name] is not value]
        yield longer | {name: _as_promised(inputs[name], longer[name], rng) for name in changed}


def _as_promised(value: Array, longer: Array, rng: np.random.Generator) -> Array:
    """A longer array that is one-hot, shares of 1 or whole numbers where the caller's is, else one without twins."""
    along = _weights(value)
    if along is not None and np.isin(value, (0, 1)).all():
        return np.where(np.cumsum(longer, axis=along) > 1, 0, longer)
    if along is not None:
        return np.asarray(longer / longer.sum(axis=along, keepdims=True))
    return moved(longer, rng) if np.any(value != np.round(value)) else longer


def named_lengths(pair: Pair, inputs: Inputs) -> set[int]:
    """The lengths that a pair's code may have as numbers of its own."""
    return _numbers(pair.forward) | _numbers(pair.source) | whole_numbers(inputs)


def _weights(value: Array) -> int | None:
    """Along which axis an array sums to 1, as probabilities do; None where it doesn't."""
    if not np.all(value >= 0):
        return None
    axes = [axis for axis in (-1, 0)[: value.ndim] if value.shape[axis] > 1]
    return next((axis for axis in axes if np.allclose(value.sum(axis=axis), 1, rtol=1e-6)), None)


def _numbers(function: Any, known: tuple[Any, ...] = ()) -> set[int]:
    """The whole numbers that a function finds in its text, its file, its closure, its object and its helpers."""
    function = unwrapped(getattr(function, "func", function))
    try:
        read = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # no Python function
        return set()
    owner = getattr(getattr(function, "__self__", None), "__dict__", {})
    numbers = whole_numbers([function.__code__.co_consts, read.globals, read.nonlocals, owner])
    for helper in (*read.globals.values(), *read.nonlocals.values()):
        own = inspect.isfunction(helper) and helper.__code__.co_filename == function.__code__.co_filename
        if own and helper not in known and len(known) < 9:
            numbers |= _numbers(helper, (*known, function, helper))
    return numbers


def whole_numbers(value: Any) -> set[int]:
    """The whole numbers in a value, in what it holds and in code."""
    if isinstance(value, tuple | list | dict):
        return set().union(*map(whole_numbers, value.values() if isinstance(value, dict) else value))
    if inspect.iscode(value):
        return whole_numbers(value.co_consts)
    return {value} if type(value) is int else set()
