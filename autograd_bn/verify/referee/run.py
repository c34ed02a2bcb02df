"""What the referee judges by: a hand-written pair run on copies, and the gradients it should have returned."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine import Tensor, as_tensor, grad
from ...engine.backward import propagate, pull
from ...engine.node import Array, Node, recording, topological_order


class Unjudgeable(ValueError):
    """The forward function can't be taken as the truth; the message says why."""


class BackwardFailed(Exception):
    """The backward function gave nothing to judge; the message says why."""


@dataclass
class Trace:
    """A forward pass recorded on tensors: its output, its inputs, and every name its author gave a value."""

    y: Tensor
    leaves: dict[str, Tensor]
    named: dict[str, Tensor]

    def gradients(self, dy: Array) -> dict[str, Array]:
        """The gradient of `sum(y * dy)` with respect to each input."""
        found = grad(self.y, list(self.leaves.values()), [dy], allow_unused=True)
        return {
            name: np.zeros(leaf.shape) if g is None else g
            for (name, leaf), g in zip(self.leaves.items(), found, strict=True)
        }

    def named_gradients(self, dy: Array) -> dict[str, tuple[Array, list[tuple[str, Array]]]]:
        """For each named value: its gradient, and the part of it that comes back from each consumer."""
        nodes = {tensor.node for tensor in self.named.values()}
        everything = {node for node in topological_order([self.y.node]) if node.requires_grad}
        found = propagate([(self.y.node, dy)], everything, create_graph=False)
        parts: dict[Node, list[tuple[str, Array]]] = {node: [] for node in nodes}
        for consumer, parent, part in contributions(self.y.node, found):
            if parent in parts:
                parts[parent].append((self.label(consumer), part))
        return {name: (np.asarray(found[t.node]), parts[t.node]) for name, t in self.named.items() if t.node in found}

    def label(self, node: Node) -> str:
        """The name that the author gave a node, else its operation."""
        return next((name for name, t in self.named.items() if t.node is node), node.op or node.name or "an input")

    def rank(self) -> dict[Node, int]:
        """Where each node stands in the order of the forward pass."""
        return {node: i for i, node in enumerate(topological_order([self.y.node]))}


def contributions(y: Node, gradients: dict[Node, Any]) -> Iterator[tuple[Node, Node, Array]]:
    """What flows back along each edge of the graph: (consumer, input, the consumer's part of its gradient)."""
    for consumer in topological_order([y]):
        if consumer in gradients:
            for parent, part in parts_of(consumer, gradients[consumer]):
                yield consumer, parent, part


def parts_of(node: Node, gradient: Any) -> Iterator[tuple[Node, Array]]:
    """What a node hands on of its own gradient, to each of its inputs."""
    for parent, part in pull(node, gradient):
        yield parent, np.asarray(part)


@dataclass
class Run:
    """One passage through the pair: what went in, what came back, and what should have."""

    inputs: dict[str, Any]
    floats: list[str]
    y: Array
    dy: Array
    truth: dict[str, Array]
    noise: dict[str, float]
    trace: Trace | None
    why_differences: str | None
    returned: Any = None
    locals: dict[str, Array] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    failure: str | None = None


class Pair:
    """A hand-written `forward` and `backward`, always called on copies of what the caller holds."""

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Any, names: Any):
        for what, function in (("forward", forward), ("backward", backward)):
            if not callable(function):
                raise TypeError(f"{what} is a {type(function).__name__}, expected a function")
        if not isinstance(inputs, tuple | list):
            raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what forward takes: (x, ...)")
        self.forward, self.backward = forward, backward
        self.names = _names(forward, len(inputs), names)
        self.inputs = {name: _checked(name, given) for name, given in zip(self.names, inputs, strict=True)}
        self.floats = [n for n, v in self.inputs.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
        if not self.floats:
            kinds = ", ".join(
                f"{n}: {v.dtype if isinstance(v, np.ndarray) else type(v).__name__}" for n, v in self.inputs.items()
            )
            raise TypeError(f"inputs has no array of floats to take a gradient of (got {kinds or 'nothing'})")

    def call_forward(self, inputs: dict[str, Any]) -> tuple[Any, Any]:
        """`forward` on these inputs, which it may overwrite: its output and its cache."""
        result = self.forward(*inputs.values())
        if not isinstance(result, tuple | list) or len(result) != 2:
            got = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
            raise Unjudgeable(f"forward returned {got}, expected a pair (y, cache)")
        return result[0], result[1]

    def output(self, inputs: dict[str, Any]) -> Array:
        """The plain output for these inputs, as floats."""
        y, _ = self.call_forward(copy.deepcopy(inputs))
        return _output(y)

    def run(self, inputs: dict[str, Any], rng: np.random.Generator, dy: Array | None = None) -> Run:
        """Forward and backward once, with a random cotangent unless it is given, beside the true gradients."""
        handed = copy.deepcopy(inputs)
        try:
            with np.errstate(all="ignore"):
                y, cache = self.call_forward(handed)
        except Unjudgeable:
            raise
        except Exception as error:
            raise Unjudgeable(f"forward raised {_told(error, self.forward)}") from error
        y_array = _output(y).copy()
        faults = [
            f"forward overwrites its input {name} in place"
            for name in self.floats
            if not np.array_equal(handed[name], inputs[name])
        ]
        if not np.array_equal(y_array, self.output(inputs)):
            raise Unjudgeable("forward gives another result when it is called again: fix its seed inside it")
        if dy is None:
            dy = np.asarray(rng.normal(size=y_array.shape) + 0.3)
        trace, why = self._traced(inputs, y_array)
        if trace is not None:
            truth = trace.gradients(dy)
            noise = self._noise(inputs, truth, dy, rng)
        else:
            truth = {name: _differences(self.output, inputs, name, dy) for name in self.floats}
            noise = {name: 1e-6 * float(np.max(np.abs(g), initial=0)) for name, g in truth.items()}
        run = Run(inputs, self.floats, y_array, dy, truth, noise, trace, why, faults=faults)
        self._judge(run, cache)
        return run

    def _judge(self, run: Run, cache: Any) -> None:
        handed_dy = run.dy.copy() if run.dy.ndim else np.float64(run.dy)
        before = [array.copy() for array in _arrays(cache)]
        try:
            with np.errstate(all="ignore"), _local_values(self.backward) as seen:
                run.returned = copy.deepcopy(self.backward(handed_dy, cache))
        except Exception as error:
            run.failure = f"backward raised {_told(error, self.backward)}"
            return
        run.locals = {
            name: np.array(value) for name, value in seen.items() if isinstance(value, np.ndarray | np.floating | float)
        }
        if not np.array_equal(handed_dy, run.dy):
            run.faults.append("backward overwrites dy in place")
        after = list(_arrays(cache))
        if len(after) != len(before) or not all(map(_same, before, after)):
            run.faults.append("backward overwrites an array of the cache in place")

    def _traced(self, inputs: dict[str, Any], y: Array) -> tuple[Trace | None, str | None]:
        """The forward pass recorded on tensors, or why that can't be trusted."""
        handed = copy.deepcopy(inputs)
        leaves = {name: as_tensor(handed[name], requires_grad=True, name=name) for name in self.floats}
        try:
            with recording(True), np.errstate(all="ignore"), _local_values(self.forward) as seen:
                recorded, cache = self.call_forward({**handed, **leaves})
        except Exception as error:
            return None, f"forward can't be recorded on tensors ({_told(error, self.forward)})"
        if not isinstance(recorded, Tensor) or not recorded.requires_grad:
            return None, "forward leaves the tensors it is given, so it can't be recorded"
        if not np.allclose(recorded.data, y, rtol=1e-9, atol=1e-12, equal_nan=True):
            return None, "forward gives another result on tensors than on arrays"
        named = {name: t for name, t in {**_named(cache), **seen}.items() if isinstance(t, Tensor)}
        trace = Trace(recorded, leaves, named)
        if not self._confirmed(trace, inputs):
            return None, "the recorded forward pass disagrees with differences of its output"
        return trace, None

    def _confirmed(self, trace: Trace, inputs: dict[str, Any]) -> bool:
        """Whether the recorded gradient agrees with a difference along a random direction.

        A forward pass that leaves the tensors half way, by `np.asarray`, records a part of its graph only.
        """
        rng = np.random.default_rng(0)
        for _ in range(3):
            dy = np.asarray(rng.normal(size=trace.y.shape))
            truth = trace.gradients(dy)
            steps = {n: np.asarray(rng.normal(size=truth[n].shape) * _scale(inputs[n])) for n in self.floats}
            expected = sum(float(np.sum(truth[n] * steps[n])) for n in self.floats)
            size = sum(float(np.sum(np.abs(truth[n] * steps[n]))) for n in self.floats)

            def along(h: float, steps: dict[str, Array] = steps, dy: Array = dy) -> float:
                moved = {**inputs, **{n: inputs[n] + h * steps[n] for n in self.floats}}
                return float(np.sum(self.output(moved) * dy))

            h = 1e-4
            if abs((along(h) - along(-h)) / (2 * h) - expected) <= 1e-4 * size:
                return True
        return False

    def _noise(
        self, inputs: dict[str, Any], truth: dict[str, Array], dy: Array, rng: np.random.Generator
    ) -> dict[str, float]:
        """How far rounding may carry a right gradient: what moves it when the inputs move by their last bits."""
        moved = dict(inputs)
        for name in self.floats:
            moved[name] = inputs[name] * (1 + 4e-16 * rng.choice([-1, 1], size=np.shape(inputs[name])))
        trace, _ = self._traced(moved, self.output(moved))
        if trace is None:
            return dict.fromkeys(truth, 0.0)
        other = trace.gradients(dy)
        return {name: 100 * float(np.max(np.abs(other[name] - g), initial=0)) for name, g in truth.items()}


def _names(forward: Callable[..., Any], count: int, given: Any) -> list[str]:
    """A name for each input: the caller's, else those of forward's parameters."""
    if given is not None:
        if isinstance(given, str) or len(given) != count or len(set(given)) != count:
            raise ValueError(f"names is {given!r}, expected {count} different names, one an input")
        return [str(name) for name in given]
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:count]
    return names + [f"input{i}" for i in range(len(names), count)]


def _checked(name: str, given: Any) -> Any:
    """A private copy of one input: floats as float64, so that only mistakes show and not rounding."""
    if isinstance(given, Tensor):
        given = given.data
    if isinstance(given, list) and given:
        given = np.asarray(given)
    if isinstance(given, np.ndarray | np.floating):
        if given.dtype.kind in "cO":
            raise TypeError(f"inputs: {name} has dtype {given.dtype}, expected floats (or integers for a constant)")
        if given.dtype.kind == "f":
            array = np.array(given, dtype=np.float64)
            if not np.isfinite(array).all():
                raise ValueError(f"inputs: {name} holds {array[~np.isfinite(array)].flat[0]}, expected finite numbers")
            return array
    return copy.deepcopy(given)


def _output(y: Any) -> Array:
    array = np.asarray(y)
    if array.dtype.kind not in "fiu":
        raise Unjudgeable(f"forward returned a y of dtype {array.dtype}, expected floats")
    if array.dtype.kind != "f":
        raise Unjudgeable(f"forward returned integers (dtype {array.dtype}): give it floats")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)].flat[0]
        raise Unjudgeable(f"forward returned a y with {bad} in it: no gradient can be judged there")
    return array.astype(np.float64)


def _told(error: Exception, function: Callable[..., Any]) -> str:
    """An exception as one line, with the line of the user's file that it came from."""
    where, step = "", error.__traceback__
    code = _code(function)
    while step is not None:
        if code is not None and step.tb_frame.f_code.co_filename == code.co_filename:
            where = f" (line {step.tb_lineno})"
        step = step.tb_next
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}{where}"


def _code(function: Any) -> Any:
    function = inspect.unwrap(getattr(function, "func", function))
    if not hasattr(function, "__code__"):
        function = getattr(function, "__func__", type(function).__dict__.get("__call__"))
    return getattr(function, "__code__", None)


@contextmanager
def _local_values(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The local variables that `function` ends with, filled in when it returns."""
    code, seen, before = _code(function), {}, sys.getprofile()

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code is code:
            seen.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def _named(cache: Any) -> dict[str, Any]:
    if isinstance(cache, dict):
        return {str(name): value for name, value in cache.items()}
    return dict(vars(cache)) if hasattr(cache, "__dict__") else {}


def _arrays(cache: Any) -> Iterator[Array]:
    if isinstance(cache, np.ndarray):
        yield cache
    elif isinstance(cache, dict):
        for value in cache.values():
            yield from _arrays(value)
    elif isinstance(cache, tuple | list):
        for value in cache:
            yield from _arrays(value)
    elif hasattr(cache, "__dict__"):
        yield from _arrays(vars(cache))


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def _scale(array: Any) -> float:
    """The size of a step that moves an array noticeably."""
    spread = float(np.std(array))
    return spread or float(np.max(np.abs(array), initial=0)) or 1.0


def _differences(f: Callable[[dict[str, Any]], Array], inputs: dict[str, Any], name: str, dy: Array) -> Array:
    """The gradient by central differences at two steps, with Richardson's extrapolation."""
    h = 2e-3 * _scale(inputs[name])
    out = np.zeros(np.shape(inputs[name]))
    for index in np.ndindex(out.shape):

        def slope(h: float, index: tuple[int, ...] = index) -> float:
            values = []
            for step in (h, -h):
                moved = inputs[name].copy()
                moved[index] += step
                values.append(float(np.sum(f({**inputs, name: moved}) * dy)))
            return (values[0] - values[1]) / (2 * h)

        out[index] = (4 * slope(h / 2) - slope(h)) / 3
    return out
