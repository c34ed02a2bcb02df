"""One passage through a pair: its output, the true gradients there, and what the author's backward returns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .harmless import Refused
from .inputs import Inputs
from .names import canonical, derivative_of, is_constant, plain
from .pairs import Pair
from .returned import Matching, Returned
from .source import signature
from .trace import Arrays, NoDerivative, Trace, local_values, named_in, reported
from .truth import Forward
from .verdict import Row, row

TOLERANCE = 1e-9  # of a gradient's largest entry; more only where rounding alone carries a right one further


@dataclass
class Passed:
    """What forward leaves: its cache, with the arrays there and their bits, and what was `written` over."""

    cache: Any
    written: list[str]
    bits: list[tuple[Any, bytes]]


@dataclass(eq=False)
class Run:
    """A pair at some inputs: its output y, a random dy (1 if `unit`), the true gradients, and what came back.

    `noise` is how far rounding may carry an entry of a right gradient; it is infinite where forward has a kink. `trace`
    is None where forward can't be recorded; where `why_differences` says why, the truth is by differences. `passes` is
    how often forward ran for it.
    """

    pair: Pair
    inputs: Inputs
    y: Array
    dy: Array
    truth: Arrays
    noise: Arrays
    trace: Trace | None
    why_differences: str
    passes: int
    author: Returned

    @classmethod
    def of(cls, pair: Pair, inputs: Inputs, rng: np.random.Generator, unit: bool = False, why: str = "") -> Run:
        """Run a pair, by differences where that is asked for by saying why; `Unjudgeable` where forward is at fault."""
        forward = Forward(pair, inputs)
        y = forward.output(inputs)
        if not np.array_equal(y, forward.output(inputs)):
            raise Unjudgeable("forward gives another result when it is called again: fix its seed inside it")
        dy = np.ones(y.shape) if unit else np.asarray(rng.normal(size=y.shape) + 0.3)
        trace = None
        try:
            if why:
                raise NoDerivative(why)
            truth, noise, trace = forward.exact(inputs, dy, rng)
        except NoDerivative as reason:
            why = str(reason)
            truth, noise = forward.by_differences(inputs, dy)
        run = cls(pair, inputs, y, dy, truth, noise, trace, why, forward.passes, Returned())
        run.author = run.back(pair.source)
        return run

    def passed(self) -> Passed:
        """What forward leaves for a backward pass."""
        handed = copy.deepcopy(self.inputs)
        _, cache = self.pair.forward(*handed.values())
        judged = [name for name in self.truth if not is_constant(name, self.inputs[name])]
        written = [name for name in judged if handed[name].tobytes() != self.inputs[name].tobytes()]
        bits = [(array, array.tobytes()) for _, array in named_in(cache)]
        return Passed(cache, [f"forward overwrites its input {name} in place" for name in written], bits)

    def back(self, backward: Callable[..., Any], factor: float = 1.0, passed: Passed | None = None) -> Returned:
        """What a backward pass returns for `factor * dy` right after forward, or after what has been `passed`."""
        dy = factor * self.dy
        handed = dy.copy() if dy.ndim else np.float64(dy)
        try:
            passed = passed or self.passed()
            returned = copy.deepcopy(self.pair.call(backward, handed, passed.cache))
        except Refused:
            raise
        except Exception as error:
            return Returned(failure=f"backward raised {reported(error)}")
        out = Matching(returned, self.inputs, self.truth).matched()
        out.faults = [*passed.written]
        if handed.tobytes() != dy.tobytes():
            out.faults.append("backward overwrites dy in place")
        if any(array.tobytes() != bits for array, bits in passed.bits):
            out.faults.append("backward overwrites an array of the cache in place")
        return out

    def call_twice(self) -> None:
        """See whether a second backward pass after the same forward pass returns something else."""
        passed, left = self.passed(), self.pair.calls.places if self.pair.calls else ()
        first, again = (self.back(self.pair.source, passed=passed) for _ in range(2))
        if again.failure is None and any(  # a cache may be used up
            again.gradients[name].tobytes() != g.tobytes() for name, g in first.gradients.items() if name not in left
        ):
            self.author.faults.append("a second backward after the same forward returns something else")

    # Right and wrong

    @cached_property
    def unguarded(self) -> Arrays:
        """The gradients without the small numbers that logarithms are guarded by, if there are such."""
        return self.trace.unguarded(self.dy) if self.trace else {}

    def vanishing(self, name: str) -> float:
        """The size that a gradient is measured by where it is 0 itself, else 0."""
        if np.any(np.abs(self.truth[name]) > 1e-12):
            return 0.0
        return 1e-3 * float(np.max(np.abs(self.dy), initial=0))

    def wrong(self, name: str, gradient: Array) -> Array:
        """Where a gradient is not the true one."""
        return _wrong(gradient, self.truth[name], self.noise[name], self.vanishing(name))

    def right(self, name: str, gradient: Array | None = None) -> bool:
        """Whether a gradient, by default the author's own, is the true one, or is but for guards in logarithms."""
        gradient = self.author.gradients.get(name) if gradient is None else gradient
        if gradient is None or not np.any(self.wrong(name, gradient)):
            return gradient is not None
        return name in self.unguarded and not np.any(_wrong(gradient, self.unguarded[name], self.noise[name]))

    def steps(self, backward: Callable[..., Any], passed: Passed | None = None) -> list[Row]:
        """The intermediates of a backward pass in its order: those of a returned dict, and its own variables."""
        trace, rows = self.trace, list[tuple[int, Row]]()
        if trace is None:
            return []
        with local_values(backward) as seen:
            others = self.back(backward, passed=passed).others
        arrays = {n: np.array(v) for n, v in seen.items() if isinstance(v, np.ndarray | np.floating | float)} | others
        gradients, shares = trace.flow(trace.y.node, self.dy)
        known = {plain(n): t.node for n, t in trace.named.items() if t.node in gradients and t.node is not trace.y.node}
        roles = {canonical(name): name for name in known if canonical(name)}
        inputs, taken = {plain(name) for name in self.inputs}, signature(backward)
        for key, value in arrays.items():
            targets = [name for name in derivative_of(key)[:-1] if name not in inputs]
            target = next((name for t in targets for name in (t, roles.get(canonical(t))) if name in known), None)
            if target is None or (key in taken and value.tobytes() in self.dy.tobytes()):  # dy by another name
                continue
            node = known[target]
            parts = [(trace.label(consumer), part) for consumer, parent, part in shares if parent is node]
            size = 1e-3 * max([float(np.max(np.abs(part), initial=0)) for _, part in parts], default=0.0)
            gradient = value.reshape(node.shape) if value.size == gradients[node].size else value
            # Authors call the whole gradient or the share through one consumer by the value's name.
            tries = [("", gradients[node], size)]
            tries += [(f"the part through {c}", part, 0.0) for c, part in parts if len(parts) > 1]
            fits = [(note, truth) for note, truth, size in tries if not np.any(_wrong(gradient, truth, size=size))]
            note, truth = (fits or [("", gradients[node])])[0]
            if gradient.shape != truth.shape:
                note = f"shape {gradient.shape}, expected {truth.shape}"
            rows.append((trace.order.index(node), row(key, "intermediate", gradient, truth, ok=bool(fits), note=note)))
        return [step for _, step in sorted(rows, key=lambda pair: -pair[0])]


def _wrong(gradient: Array, truth: Array, noise: Any = 0.0, size: float = 0.0) -> Array:
    """Where a gradient is not the true one, up to rounding; `size` is that of terms that cancel in it."""
    if gradient.shape != truth.shape:
        return np.asarray(True)
    size = max(float(np.max(np.abs(truth), initial=0)), size)
    return np.asarray(~(np.abs(gradient - truth) <= TOLERANCE * size + noise) & (noise != np.inf))
