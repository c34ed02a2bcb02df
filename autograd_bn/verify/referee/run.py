"""What the referee judges by: one passage through a pair, and the gradients that backward should return there."""

from __future__ import annotations

import contextlib
import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...engine import Tensor, as_tensor
from ...engine.backward import pull
from ...engine.node import Array, Node, recording, topological_order
from ..finite_differences import Differences
from ..gradcheck import Unjudgeable
from .held import is_float
from .inputs import Inputs, moved, scale
from .pairs import Pair
from .returned import Gradients as Back, Returned, canonical, derivative_of, is_constant, plain
from .verdict import Row, row

Gradients = dict[str, Array]
Derivative = Callable[[Array], Gradients]
TOLERANCE = 1e-9  # of a gradient's largest entry; more only where rounding alone carries a right one further


class Trace:
    """A forward pass recorded on tensors: its output, its inputs, and every name its author gave a value.

    Called with dy it gives the gradient of `sum(y * dy)` with respect to each input.
    """

    def __init__(self, y: Tensor, leaves: dict[str, Tensor], named: dict[str, Tensor]) -> None:
        self.y, self.leaves, self.named = y, leaves, named
        self.order = topological_order([y.node])

    def flow(
        self, start: Node, gradient: Array, cut: Sequence[Node] = ()
    ) -> tuple[dict[Node, Array], list[tuple[Node, Node, Array]]]:
        """What flows back from a node to all below it, and the share of each edge: (consumer, input, share)."""
        found, shares = {start: gradient}, []
        for node in reversed(self.order):
            if node in found and node not in cut:
                for parent, part in pull(node, found[node]):
                    share = np.asarray(part)
                    found[parent] = found[parent] + share if parent in found else share
                    shares.append((node, parent, share))
        return found, shares

    def __call__(self, dy: Array) -> Gradients:
        found, _ = self.flow(self.y.node, dy)
        return {name: np.array(found.get(leaf.node, np.zeros(leaf.shape))) for name, leaf in self.leaves.items()}

    def constants(self, dy: Array) -> list[Node]:
        """Nodes whose parts of the gradient cancel: constants to authors, as the maximum that softmax takes off."""
        found, edges = self.flow(self.y.node, dy)
        largest: dict[Node, float] = {}
        for consumer, parent, _ in edges:
            largest[parent] = max(largest.get(parent, 0.0), float(np.max(np.abs(found[consumer]), initial=0)))
        leaves = [leaf.node for leaf in self.leaves.values()]
        small = [n for n, size in largest.items() if np.max(np.abs(found[n]), initial=0) < 1e-12 * size]
        return [node for node in small if node not in leaves]

    def label(self, node: Node) -> str:
        """The name that the author gave a node, else its operation."""
        return next((name for name, t in self.named.items() if t.node is node), node.op or node.name or "an input")


class NoDerivative(Exception):
    """Why a forward pass can't be differentiated automatically."""


@dataclass
class Passed:
    """What forward leaves: its cache with the bits of its arrays, and what was `written` over."""

    cache: Any
    written: list[str]
    bits: list[tuple[Any, bytes]]


class Run:
    """A pair at some inputs: its output y, a random dy (1 if `unit`), the true gradients, and what came back.

    `noise` is how far rounding may carry an entry of a right gradient; it is infinite where forward has a kink. `trace`
    is None where forward can't be recorded; where `why_differences` says why, the truth is by differences.
    """

    def __init__(self, pair: Pair, inputs: Inputs, rng: np.random.Generator, unit: bool = False) -> None:
        self.pair, self.inputs = pair, inputs
        self.floats = [name for name, value in inputs.items() if is_float(value)]
        self.y = self._output(inputs)
        if not np.array_equal(self.y, self._output(inputs)):
            raise Unjudgeable("forward gives another result when it is called again: fix its seed inside it")
        self.dy = np.ones(self.y.shape) if unit else np.asarray(rng.normal(size=self.y.shape) + 0.3)
        self.trace: Trace | None = None
        self.why_differences = ""
        try:
            derive = self._derivative(inputs)
            # A forward pass that leaves the tensors half way, by `np.asarray`, is recorded in part only. Where
            # differences can't tell, at a kink or a steep place, those near by decide.
            steps = np.random.default_rng(0)
            near = inputs | {n: moved(inputs[n], steps) for n in self.floats}
            if not (self._confirmed(inputs, derive) or self._confirmed(near)):
                raise NoDerivative("the derivative of forward's code disagrees with differences of its output")
            self.truth, self.noise = self._exact(derive(self.dy), rng)
            self.trace = derive if isinstance(derive, Trace) else None
        except NoDerivative as why:
            self.why_differences = str(why)
            self.truth, self.noise = self._differences()
        self.author = self.back(pair.source)

    def passed(self) -> Passed:
        """What forward leaves for a backward pass."""
        handed = copy.deepcopy(self.inputs)
        _, cache = self.pair.forward(*handed.values())
        judged = [name for name in self.floats if not is_constant(name, self.inputs[name])]
        written = [name for name in judged if handed[name].tobytes() != self.inputs[name].tobytes()]
        bits = [(array, array.tobytes()) for _, array in _held(cache)]
        return Passed(cache, [f"forward overwrites its input {name} in place" for name in written], bits)

    def back(self, backward: Callable[..., Any], factor: float = 1.0, passed: Passed | None = None) -> Returned:
        """What a backward pass returns for `factor * dy` right after forward, or after what has been `passed`."""
        out, dy = Returned(), factor * self.dy
        given = dy.copy() if dy.ndim else np.float64(dy)
        try:
            passed = passed or self.passed()
            returned = copy.deepcopy(self.pair.call(backward, given, passed.cache))
        except Exception as error:
            out.failure = f"backward raised {_reported(error, backward)}"
            return out
        out.sort(returned, self.inputs, self.truth)
        out.faults = [*passed.written]
        if given.tobytes() != dy.tobytes():
            out.faults.append("backward overwrites dy in place")
        if any(array.tobytes() != bits for array, bits in passed.bits):
            out.faults.append("backward overwrites an array of the cache in place")
        return out

    def call_twice(self) -> None:
        """See whether a second backward pass after the same forward pass returns something else."""
        with contextlib.suppress(Exception):  # a cache may be used up
            _, cache = self.pair.forward(*copy.deepcopy(self.inputs).values())
            found = []
            for _ in range(2):
                out, dy = Returned(), self.dy.copy() if self.dy.ndim else np.float64(self.dy)
                back = copy.deepcopy(self.pair.call(self.pair.source, dy, cache))
                out.sort(back._replace(left={}) if isinstance(back, Back) else back, self.inputs, self.truth)
                found.append(out.gradients)
            if any(found[1][n].tobytes() != g.tobytes() for n, g in found[0].items()):
                self.author.faults.append("a second backward after the same forward returns something else")

    # Right and wrong

    def vanishing(self, name: str) -> float:
        """The size that a gradient is measured by where it is 0 itself, else 0."""
        if np.any(np.abs(self.truth[name]) > 1e-12):
            return 0.0
        return 1e-3 * float(np.max(np.abs(self.dy), initial=0))

    def wrong(self, name: str, given: Array) -> Array:
        """Where a gradient is not the true one."""
        return _wrong(given, self.truth[name], self.noise[name], self.vanishing(name))

    def right(self, name: str, given: Array | None = None) -> bool:
        """Whether a gradient, by default the one that the author's backward returned, is the true one."""
        given = self.author.gradients.get(name) if given is None else given
        return given is not None and given.shape == self.truth[name].shape and not np.any(self.wrong(name, given))

    def steps(self, backward: Callable[..., Any], passed: Passed | None = None) -> list[Row]:
        """The intermediates of a backward pass in its order: those of a returned dict, and its own variables."""
        trace, rows = self.trace, list[tuple[int, Row]]()
        if trace is None:
            return []
        with local_values(backward) as seen:
            others = self.back(backward, passed=passed).others
        kinds = np.ndarray | np.floating | float
        arrays = {name: np.array(value) for name, value in seen.items() if isinstance(value, kinds)} | others
        found, shares = trace.flow(trace.y.node, self.dy)
        known = {plain(n): t.node for n, t in trace.named.items() if t.node in found and t.node is not trace.y.node}
        roles = {canonical(name): name for name in known if canonical(name)}
        inputs = {plain(name) for name in self.inputs}
        for key, value in arrays.items():
            targets = [name for name in derivative_of(key)[:-1] if name not in inputs]
            target = next((name for t in targets for name in (t, roles.get(canonical(t))) if name in known), None)
            if target is None:
                continue
            node = known[target]
            parts = [(trace.label(consumer), part) for consumer, parent, part in shares if parent is node]
            size = 1e-3 * max([float(np.max(np.abs(part), initial=0)) for _, part in parts], default=0.0)
            given = value.reshape(node.shape) if value.size == found[node].size else value
            # Authors call the whole gradient or the share through one consumer by the value's name.
            tries = [("", found[node], size), *[(f"the part through {c}", p, 0.0) for c, p in parts if len(parts) > 1]]
            fits = [(note, truth) for note, truth, size in tries if not np.any(_wrong(given, truth, size=size))]
            note, truth = (fits or [("", found[node])])[0]
            if given.shape != truth.shape:
                note = f"shape {given.shape}, expected {truth.shape}"
            rows.append((trace.order.index(node), row(key, "intermediate", given, truth, bool(fits), note)))
        return [step for _, step in sorted(rows, key=lambda pair: -pair[0])]

    # The truth

    def _output(self, inputs: Inputs) -> Array:
        """The plain output for these inputs, as floats."""
        try:
            y = np.asarray(self.pair.forward(*copy.deepcopy(inputs).values())[0])
        except Unjudgeable:
            raise
        except Exception as error:
            raise Unjudgeable(f"forward raised {_reported(error, self.pair.forward)}") from error
        if y.dtype.kind != "f":
            raise Unjudgeable(f"forward returned a y of dtype {y.dtype}, expected floats")
        if not np.isfinite(y).all():
            bad = y[~np.isfinite(y)].flat[0]
            raise Unjudgeable(f"forward returned a y with {bad} in it: no gradient can be judged there")
        return y.astype(np.float64)

    def _derivative(self, inputs: Inputs) -> Derivative:
        """The derivative of the forward pass by automatic differentiation."""
        y, handed, truth = self._output(inputs), copy.deepcopy(inputs), self.pair.truth

        def framework(dy: Array) -> Gradients:
            assert truth is not None
            try:
                found = truth(copy.deepcopy(inputs), dy.copy())
            except Exception as error:
                why = f"forward can't be differentiated by its framework ({_reported(error, self.pair.forward)})"
                raise NoDerivative(why) from None
            return {name: np.asarray(found[name], dtype=np.float64) for name in self.floats}

        if truth is not None:
            return framework
        leaves = {name: as_tensor(handed[name], requires_grad=True, name=name) for name in self.floats}
        try:
            with recording(True), local_values(self.pair.forward) as seen:
                recorded, cache = self.pair.forward(*{**handed, **leaves}.values())
        except Exception as error:
            raise NoDerivative(
                f"forward can't be recorded on tensors ({_reported(error, self.pair.forward)})"
            ) from None
        if not isinstance(recorded, Tensor) or not recorded.requires_grad:
            raise NoDerivative("forward leaves the tensors it is given, so it can't be recorded")
        if not np.allclose(recorded.data, y, rtol=1e-9, atol=1e-12, equal_nan=True):
            raise NoDerivative("forward gives another result on tensors than on arrays")
        named = {name: t for name, t in [*_held(cache), *seen.items()] if name and isinstance(t, Tensor)}
        return Trace(recorded, leaves, named)

    def _confirmed(self, inputs: Inputs, derive: Derivative | None = None) -> bool:
        """Whether the derivative at these inputs agrees with a difference along a random direction."""
        rng = np.random.default_rng(0)
        try:
            derive = derive or self._derivative(inputs)
            for h in (1e-4, 1e-4, 1e-6):
                dy = np.asarray(rng.normal(size=self.y.shape))
                truth = derive(dy)
                steps = {n: rng.normal(size=g.shape) * scale(inputs[n]) for n, g in truth.items()}
                terms = np.concatenate([np.ravel(g * steps[n]) for n, g in truth.items()])
                ends = [inputs | {n: inputs[n] + t * step for n, step in steps.items()} for t in (h, -h)]
                up, down = (float(np.sum(self._output(end) * dy)) for end in ends)
                if abs((up - down) / (2 * h) - np.sum(terms)) <= 1e-4 * np.sum(np.abs(terms)):
                    return True
        except (Unjudgeable, ValueError):  # it takes no such values, or gives another shape
            pass
        return False

    def _exact(self, truth: Gradients, rng: np.random.Generator) -> tuple[Gradients, Gradients]:
        """The gradients, and how far they move when the inputs move by their last bits: at a kink they jump."""
        sides = {n: rng.uniform(-1.0, 1.0, size=np.shape(self.inputs[n])) for n in self.floats}
        noise = {n: np.zeros(g.shape) for n, g in truth.items()}
        for t in (1, -1):
            near = dict(self.inputs)
            for n, side in sides.items():
                near[n] = near[n] * (1 + 4e-15 * t * side) + 1e-20 * scale(near[n]) * t * side
            try:
                moves = self._derivative(near)(self.dy)
            except (Unjudgeable, NoDerivative):
                continue
            for n, g in truth.items():
                off = np.abs(moves[n] - g)
                jumps = ~(off <= 1e-6 * np.max(np.abs(g), where=np.isfinite(g), initial=0) + 1e-300)
                off = np.where(jumps, np.inf, np.max(20 * off, where=~jumps, initial=0))
                noise[n] = np.maximum(noise[n], off)
        return {n: np.nan_to_num(g) for n, g in truth.items()}, noise

    def _differences(self) -> tuple[Gradients, Gradients]:
        """The gradients by differences of the output, each with its error, which is infinite at a kink."""

        def loss(at: Sequence[Array]) -> list[Array]:
            try:
                y = self._output(self.inputs | dict(zip(self.floats, at, strict=True)))
            except Unjudgeable:
                return [np.asarray(np.nan)]
            return [np.asarray(np.sum(y * self.dy))]

        slopes = Differences(loss, [self.inputs[name] for name in self.floats], rng=np.random.default_rng(0))
        truth, noise = {}, {}
        for i, name in enumerate(self.floats):
            shape = self.inputs[name].shape
            value, error = (figures[0].reshape(shape) for figures in slopes.jacobian(i))
            truth[name] = np.nan_to_num(value)
            noise[name] = np.nan_to_num(10 * error, nan=np.inf) + 1e-6 * np.max(np.abs(truth[name]), initial=0)
        return truth, noise


def _wrong(given: Array, truth: Array, noise: Any = 0.0, size: float = 0.0) -> Array:
    """Where a gradient is not the true one, up to rounding; `size` is that of terms that cancel in it."""
    if given.shape != truth.shape:
        return np.ones(given.shape, bool)
    size = max(float(np.max(np.abs(truth), initial=0)), size)
    return np.asarray(~(np.abs(given - truth) <= TOLERANCE * size + noise) & (noise != np.inf))


def _reported(error: Exception, function: Callable[..., Any]) -> str:
    """An exception as one line, with the line of the user's file that it came from."""
    where, step, code = "", error.__traceback__, _code(function)
    while step is not None:
        if code is not None and step.tb_frame.f_code.co_filename == code.co_filename:
            where = f" (line {step.tb_lineno})"
        step = step.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{where}"


def _code(function: Any) -> Any:
    return getattr(inspect.unwrap(getattr(function, "func", function)), "__code__", None)


@contextmanager
def local_values(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The local variables that a function ends with, filled in when it returns."""
    with values_in([function]) as (seen,):
        yield seen


@contextmanager
def values_in(functions: Sequence[Callable[..., Any]]) -> Iterator[list[dict[str, Any]]]:
    """The local variables that each of these functions ends with."""
    seen: list[dict[str, Any]] = [{} for _ in functions]
    codes, before = dict(zip(map(_code, functions), seen, strict=True)), sys.getprofile()

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code in codes:
            codes[frame.f_code].update(frame.f_locals)

    sys.setprofile(watch)
    try:
        yield seen
    finally:
        sys.setprofile(before)


_ARRAYS = np.ndarray, np.floating, Tensor


def _held(cache: Any) -> Iterator[tuple[str, Any]]:
    """Every array and tensor in a cache, with the name it has there."""
    todo, seen = [("", cache)], set()
    while todo:
        name, value = todo.pop()
        if isinstance(value, _ARRAYS):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, tuple | list):
                todo += [(name, item) for item in reversed(value)]
            else:
                kept = value if isinstance(value, dict) else getattr(value, "__dict__", {})
                todo += [(str(key), item) for key, item in kept.items()]
