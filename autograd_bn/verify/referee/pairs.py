"""A hand-written pair as two functions on arrays, and which of its gradients agree with differences of its output."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.node import Array
from .held import arrays, is_array, is_float
from .returned import Gradients, Matching
from .source import unwrapped

if TYPE_CHECKING:
    from .calls import Calls


@dataclass(frozen=True)
class Pair:
    """A target as `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`, NumPy in and out.

    `source` is the author's backward, and `call(source, dy, cache)` what it returns, or an edited one in its place.
    `truth(inputs, dy)` are the gradients by the framework's own autodiff through the same forward code; it raises where
    that code leaves the framework. `unit`: backward takes no dy, and is the gradient for dy = 1. `unseen` are arrays
    that forward reads and that aren't judged, each with why. `calls` is how the author's own passes are called.
    """

    forward: Callable[..., Any]
    inputs: tuple[Any, ...]
    names: list[str]
    source: Callable[..., Any]
    call: Callable[[Callable[..., Any], Any, Any], Gradients]
    truth: Callable[[dict[str, Any], Array], dict[str, Array]] | None = None
    unit: bool = False
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    calls: Calls | None = None

    @property
    def passes(self) -> list[Callable[..., Any]]:
        """The author's own functions."""
        return [*getattr(self.forward, "parts", [self.forward]), self.source]


class NoPair(Exception):
    """A function isn't what its name seemed to say."""


class Unseen(ValueError):
    """Nothing shows at some inputs, whatever stands in the backward pass."""


def agreement(pair: Pair) -> dict[str, bool | tuple[int, ...] | None]:
    """For each gradient, whether it agrees with a difference along one step; its shape where that is another.

    None where nobody can tell: it is that of integers, or of what forward can't be moved from. `Unseen` where all are
    0, as those of a hinge that is never reached, or next to it, as those of exp(-x**2) far away.
    """
    rng, inputs = np.random.default_rng(2), dict(zip(pair.names, pair.inputs, strict=True))
    output: Any = lambda at: np.asarray(pair.forward(*copy.deepcopy([*at.values()]))[0], dtype=np.float64)
    y, kept = pair.forward(*copy.deepcopy(pair.inputs))
    # Losses often take dy for 1 and don't read it, which is for the referee to say.
    dy = np.ones(np.shape(y)) if pair.unit or np.size(y) == 1 else np.asarray(rng.normal(size=np.shape(y)))
    floats = [name for name, value in inputs.items() if is_float(value)]
    out = Matching(pair.call(pair.source, dy, kept), inputs, dict.fromkeys(floats, 1.0)).matched()
    agree: dict[str, bool | tuple[int, ...] | None] = dict.fromkeys(out.labels)
    if out.gradients and not any(np.any(np.abs(gradient) > 1e-8) for gradient in out.gradients.values()):
        raise Unseen("every gradient is 0, or next to it")
    for name, gradient in out.gradients.items():
        agree[name] = gradient.shape
        if gradient.shape == inputs[name].shape:
            step = np.asarray(rng.normal(size=gradient.shape) * (float(np.std(inputs[name])) or 1.0))
            along = slope(output, inputs, name, step, dy)
            agree[name] = explains(gradient, step, along, 1e-4, 1e-9) if np.isfinite(along) else None
            if not agree[name] and np.array_equal(output(inputs | {name: inputs[name] + 1e-12 * step}), y):
                step = 100 * step  # forward rounds to a narrower type
                agree[name] = explains(gradient, step, slope(output, inputs, name, step, dy), 1e-3)
    missing = [f for finding in out.findings for f in finding.gradients]
    return agree | dict.fromkeys(missing, False) | dict.fromkeys(out.numbers, ())


def share(pair: Pair) -> float:
    """Which share of a pair's gradients agrees with differences."""
    try:
        with np.errstate(all="ignore"):
            told = agreement(pair)
    except Unseen:
        return 0.0
    return sum(value is True for value in told.values()) / max(len(told), 1)


def arguments_of(pair: Pair, dy: Any, kept: Any) -> list[Any]:
    """What the author's backward is called with; it isn't called."""
    arguments = list[Any]()

    def stop(*values: Any) -> None:
        arguments.extend(values)
        raise NoPair

    with suppress(NoPair):
        pair.call(stop, dy, kept)
    return arguments


def slope(
    output: Callable[[dict[str, Any]], Array], at: dict[str, Any], name: str, step: Array, dy: Array, h: float = 1e-5
) -> float:
    """How fast `sum(y * dy)` changes along a step of one array, by a difference over `h` of it."""
    up, down = (output(at | {name: at[name] + t * step}) for t in (h, -h))
    return float(np.sum((up - down) * dy)) / (2 * h)


def explains(gradient: Array, step: Array, slope: float, rtol: float = 1e-5, atol: float = 0.0) -> bool:
    """Whether a gradient has this slope along a step."""
    terms = gradient * step
    return abs(float(np.sum(terms)) - slope) <= rtol * float(np.sum(np.abs(terms))) + atol


def stirred(value: Array, rng: np.random.Generator) -> Array:
    """Values near by that are neither 0 nor 1 nor equal to each other; what is positive stays so."""
    size = float(np.max(np.abs(value), initial=0)) or 1.0
    signs = np.where(np.arange(value.size).reshape(value.shape) % 2, -1, 1)
    zeros, others = size * signs * rng.uniform(0.15, 0.45, value.shape), value * rng.uniform(0.6, 1.4, value.shape)
    return np.asarray(np.where(value == 0, zeros, others))


def globals_read(function: Any) -> list[str]:
    """The arrays of a file or a closure that a function reads by name: nobody hands them over, so none is judged."""
    with suppress(TypeError, ValueError):
        read = inspect.getclosurevars(unwrapped(function))
        held = {name: arrays(value).values() for name, value in {**read.globals, **read.nonlocals}.items()}
        return [f"{name}, which forward reads from outside" for name, some in held.items() if any(map(is_array, some))]
    return []
