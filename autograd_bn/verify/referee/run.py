"""What the referee judges by: a hand-written pair run on copies, and the gradients it should have returned."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine import Tensor, as_tensor
from ...engine.backward import pull
from ...engine.node import Array, Node, recording, topological_order
from ..finite_differences import Differences
from ..gradcheck import Unjudgeable

if TYPE_CHECKING:
    from .matching import Returned

Inputs = dict[str, Any]
Derivative = Callable[[Array], dict[str, Array]]


class Trace:
    """A forward pass recorded on tensors: its output, its inputs, and every name its author gave a value."""

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
                for parent, part in _parts(node, found[node]):
                    found[parent] = found[parent] + part if parent in found else part
                    shares.append((node, parent, part))
        return found, shares

    def gradients(self, dy: Array) -> dict[str, Array]:
        """The gradient of `sum(y * dy)` with respect to each input."""
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


def _parts(node: Node, gradient: Array) -> Iterator[tuple[Node, Array]]:
    """What a node hands on of its own gradient, to each of its inputs."""
    for parent, part in pull(node, gradient):
        yield parent, np.asarray(part)


@dataclass
class Run:
    """One passage through the pair: what went in, what came back, and what should have.

    `noise` is how far rounding may carry an entry of a right gradient; it is infinite where forward has a kink.
    """

    inputs: Inputs
    y: Array
    dy: Array
    truth: dict[str, Array]
    noise: dict[str, Array]
    trace: Trace | None
    why_differences: str | None
    returned: Any = None
    locals: dict[str, Array] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    failure: str | None = None
    back: Returned = None  # type: ignore[assignment]  # what came back, sorted


class Pair:
    """A hand-written `forward` and `backward`, always called on copies of what the caller holds.

    `truth` gives the gradients where forward is not NumPy; `unit` says that backward takes its gradient dy to be 1.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        backward: Callable[..., Any],
        inputs: Any,
        names: Any = None,
        truth: Callable[[Inputs, Array], dict[str, Array]] | None = None,
    ):
        for what, function in (("forward", forward), ("backward", backward)):
            if not callable(function):
                raise TypeError(f"{what} is a {type(function).__name__}, expected a function")
        if not isinstance(inputs, tuple | list):
            raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what forward takes: (x, ...)")
        owner = getattr(forward, "__self__", None)
        if inspect.ismethod(forward) and inspect.ismethod(backward) and backward.__self__ is owner:
            owner = copy.deepcopy(owner)  # both write into it
            forward, backward = forward.__func__.__get__(owner), backward.__func__.__get__(owner)
        self.forward, self.backward, self.truth, self.unit = forward, backward, truth, False
        self.names = _names(forward, len(inputs), names)
        self.inputs = {name: _checked(name, given) for name, given in zip(self.names, inputs, strict=True)}
        self.floats = [n for n, v in self.inputs.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"]
        # Lengths that the code has as numbers of its own can't be others.
        self.written = _numbers(forward) | _numbers(backward) | _whole(list(self.inputs.values()))
        if not self.floats:
            kinds = ", ".join(f"{n}: {getattr(v, 'dtype', type(v).__name__)}" for n, v in self.inputs.items())
            raise TypeError(f"inputs has no array of floats to take a gradient of (got {kinds or 'nothing'})")

    def call_forward(self, inputs: Inputs) -> tuple[Any, Any]:
        """`forward` on these inputs, which it may overwrite: its output and its cache."""
        result = self.forward(*inputs.values())
        if not isinstance(result, tuple | list) or len(result) != 2:
            got = f"{len(result)} values" if isinstance(result, tuple | list) else f"a {type(result).__name__}"
            raise Unjudgeable(f"forward returned {got}, expected a pair (y, cache)")
        return result[0], result[1]

    def output(self, inputs: Inputs) -> Array:
        """The plain output for these inputs, as floats."""
        try:
            with np.errstate(all="ignore"):
                return _output(self.call_forward(copy.deepcopy(inputs))[0])
        except Unjudgeable:
            raise
        except Exception as error:
            raise Unjudgeable(f"forward raised {_reported(error, self.forward)}") from error

    def run(self, inputs: Inputs, rng: np.random.Generator) -> Run:
        """Forward and backward once, with a random cotangent, beside the true gradients."""
        y = self.output(inputs)
        if not np.array_equal(y, self.output(inputs)):
            raise Unjudgeable("forward gives another result when it is called again: fix its seed inside it")
        dy = np.ones(y.shape) if self.unit else np.asarray(rng.normal(size=y.shape) + 0.3)
        derive, trace, why = self._derived(inputs, y)
        if derive and not self._trusted(derive, inputs):
            derive, trace, why = None, None, "the derivative of forward's code disagrees with differences of its output"
        truth, noise = self._exact(derive, inputs, dy, rng) if derive else self._differences(inputs, dy)
        run = Run(inputs, y, dy, truth, noise, trace, why)
        try:
            with local_values(self.backward) as seen:
                run.returned, run.faults = self.call_backward(self.backward, run)
            run.locals = arrays_in(seen)
        except Exception as error:
            run.failure = f"backward raised {_reported(error, self.backward)}"
        return run

    def call_backward(self, backward: Callable[..., Any], run: Run, dy: Array | None = None) -> tuple[Any, list[str]]:
        """What a backward pass returns right after forward, and what the two overwrite."""
        handed, dy = copy.deepcopy(run.inputs), run.dy if dy is None else dy
        handed_dy = dy.copy() if dy.ndim else np.float64(dy)
        with np.errstate(all="ignore"):
            _, cache = self.call_forward(handed)
            moved = [name for name in self.floats if not np.array_equal(handed[name], run.inputs[name])]
            before = [array.copy() for array in _arrays(cache)]
            returned = copy.deepcopy(backward(handed_dy, cache))
        faults = [f"forward overwrites its input {name} in place" for name in moved]
        if not np.array_equal(handed_dy, dy):
            faults.append("backward overwrites dy in place")
        after = list(_arrays(cache))
        if len(after) != len(before) or not all(map(_same, before, after)):
            faults.append("backward overwrites an array of the cache in place")
        return returned, faults

    def ignores_dy(self, run: Run) -> bool:
        """Whether backward returns the same whatever the gradient is that it is handed."""
        if not any(np.any(g) for g in run.truth.values()):
            return False
        try:
            other, _ = self.call_backward(self.backward, run, -2 * run.dy)
        except Exception:
            return False
        before, after = list(_arrays(run.returned)), list(_arrays(other))
        return len(before) == len(after) and bool(before) and all(map(_same, before, after))

    def _derived(self, inputs: Inputs, y: Array) -> tuple[Derivative | None, Trace | None, str | None]:
        """The derivative of the forward pass by automatic differentiation, or why there is none."""
        if self.truth is None:
            trace, why = self._traced(inputs, y)
            return trace.gradients if trace else None, trace, why

        def derive(dy: Array) -> dict[str, Array]:
            assert self.truth is not None
            found = self.truth(copy.deepcopy(inputs), dy.copy())
            return {name: np.asarray(found[name], dtype=np.float64) for name in self.floats}

        try:
            derive(np.ones(y.shape))
        except Exception as error:
            return None, None, f"forward can't be differentiated by its framework ({_reported(error, self.forward)})"
        return derive, None, None

    def _trusted(self, derive: Derivative, inputs: Inputs) -> bool:
        """Whether differences confirm a derivative, here or at inputs near by.

        A forward pass that leaves the tensors half way, by `np.asarray`, is recorded in part only. Where differences
        can't tell, at a kink or a steep place, those near by decide.
        """
        if self._confirmed(derive, inputs):
            return True
        rng = np.random.default_rng(0)
        near = {**inputs, **{n: moved(inputs[n], rng) for n in self.floats}}
        try:
            other, _, _ = self._derived(near, self.output(near))
        except Unjudgeable:
            return False
        return other is not None and self._confirmed(other, near)

    def _traced(self, inputs: Inputs, y: Array) -> tuple[Trace | None, str | None]:
        handed = copy.deepcopy(inputs)
        leaves = {name: as_tensor(handed[name], requires_grad=True, name=name) for name in self.floats}
        try:
            with recording(True), np.errstate(all="ignore"), local_values(self.forward) as seen:
                recorded, cache = self.call_forward({**handed, **leaves})
        except Exception as error:
            return None, f"forward can't be recorded on tensors ({_reported(error, self.forward)})"
        if not isinstance(recorded, Tensor) or not recorded.requires_grad:
            return None, "forward leaves the tensors it is given, so it can't be recorded"
        if not np.allclose(recorded.data, y, rtol=1e-9, atol=1e-12, equal_nan=True):
            return None, "forward gives another result on tensors than on arrays"
        named = {**(cache if isinstance(cache, dict) else getattr(cache, "__dict__", {})), **seen}
        return Trace(recorded, leaves, {str(n): t for n, t in named.items() if isinstance(t, Tensor)}), None

    def _confirmed(self, derive: Derivative, inputs: Inputs) -> bool:
        """Whether a derivative agrees with a difference along a random direction."""
        rng = np.random.default_rng(0)
        shape = self.output(inputs).shape
        for h in (1e-4, 1e-4, 1e-6):
            dy = np.asarray(rng.normal(size=shape))
            truth = derive(dy)
            steps = {n: rng.normal(size=g.shape) * _scale(inputs[n]) for n, g in truth.items()}
            terms = np.concatenate([np.ravel(g * steps[n]) for n, g in truth.items()])
            ends = [{**inputs, **{n: inputs[n] + t * step for n, step in steps.items()}} for t in (h, -h)]
            try:
                up, down = (float(np.sum(self.output(end) * dy)) for end in ends)
            except (Unjudgeable, ValueError):  # it takes no such values, or gives another shape
                return False
            if abs((up - down) / (2 * h) - np.sum(terms)) <= 1e-4 * np.sum(np.abs(terms)):
                return True
        return False

    def _exact(
        self, derive: Derivative, inputs: Inputs, dy: Array, rng: np.random.Generator
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The gradients, and how far they move when the inputs move by their last bits: at a kink they jump."""
        truth = derive(dy)
        sides = {n: rng.uniform(-1.0, 1.0, size=np.shape(inputs[n])) for n in self.floats}
        noise = {n: np.zeros(g.shape) for n, g in truth.items()}
        for t in (1, -1):
            near = dict(inputs)
            for n in self.floats:
                near[n] = inputs[n] * (1 + 4e-15 * t * sides[n]) + 1e-20 * _scale(inputs[n]) * t * sides[n]
            try:
                other = self._derived(near, self.output(near))[0]
            except Unjudgeable:
                continue
            moves = other(dy) if other else truth
            for n, g in truth.items():
                off = np.abs(moves[n] - g)
                jumps = ~(off <= 1e-6 * np.max(np.abs(g), where=np.isfinite(g), initial=0) + 1e-300)
                off = np.where(jumps, np.inf, np.max(20 * off, where=~jumps, initial=0))
                noise[n] = np.maximum(noise[n], off)
        return {n: np.nan_to_num(g) for n, g in truth.items()}, noise

    def _differences(self, inputs: Inputs, dy: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """The gradients by differences of the output, each with its error, which is infinite at a kink."""

        def loss(at: Sequence[Array]) -> list[Array]:
            try:
                return [np.asarray(np.sum(self.output({**inputs, **dict(zip(self.floats, at, strict=True))}) * dy))]
            except Unjudgeable:
                return [np.asarray(np.nan)]

        slopes = Differences(loss, [inputs[name] for name in self.floats], rng=np.random.default_rng(0))
        truth, noise = {}, {}
        for i, name in enumerate(self.floats):
            value, error = slopes.jacobian(i)
            shape = inputs[name].shape
            truth[name], error = np.nan_to_num(value[0].reshape(shape)), error[0].reshape(shape)
            noise[name] = np.nan_to_num(10 * error, nan=np.inf) + 1e-6 * np.max(np.abs(truth[name]), initial=0)
        return truth, noise


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
    if array.dtype.kind != "f":
        raise Unjudgeable(f"forward returned a y of dtype {array.dtype}, expected floats")
    if not np.isfinite(array).all():
        bad = array[~np.isfinite(array)].flat[0]
        raise Unjudgeable(f"forward returned a y with {bad} in it: no gradient can be judged there")
    return array.astype(np.float64)


def _reported(error: Exception, function: Callable[..., Any]) -> str:
    """An exception as one line, with the line of the user's file that it came from."""
    where, step, code = "", error.__traceback__, _code(function)
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
def local_values(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
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


def arrays_in(values: dict[str, Any]) -> dict[str, Array]:
    """Those of a function's variables that hold numbers."""
    kinds = np.ndarray | np.floating | float
    return {name: np.array(value) for name, value in values.items() if isinstance(value, kinds)}


def _arrays(value: Any) -> Iterator[Array]:
    """Every array in a cache or in what backward returned."""
    if isinstance(value, np.ndarray | np.floating):
        yield np.asarray(value)
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)
    elif hasattr(value, "__dict__"):
        yield from _arrays(vars(value))


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def _scale(array: Any) -> float:
    """The size of a step that moves an array noticeably."""
    return float(np.std(array)) or float(np.max(np.abs(array), initial=0)) or 1.0


# --- Other inputs --------------------------------------------------------------------------------------------


def moved(value: Array, rng: np.random.Generator, *, turned: bool = False) -> Array:
    """Values near the caller's, no two of them equal, with other signs if `turned`: a gamma of ones hides mistakes.

    What the caller's values promise is kept: a symmetric matrix, rows that sum to 1.
    """
    factor = rng.uniform(0.5, 1.5, size=value.shape)
    new = np.where(value == 0, (factor - 1) * _scale(value), value * factor)
    if _weights(value):
        new = np.abs(new)
        return np.asarray(new / new.sum(axis=-1, keepdims=True))
    if turned:
        new = new * rng.choice([-1.0, 1.0], size=value.shape)
    if value.ndim == 2 and value.shape[0] == value.shape[1] > 1 and np.array_equal(value, value.T):
        new = (new + new.T) / 2
    return np.asarray(new)


def lengthened(pair: Pair, rng: np.random.Generator) -> Iterator[Inputs]:
    """Inputs in which axes of the same length get different ones, some of which forward may refuse.

    With 5 rows of 5 features `N, D = x.shape` may be swapped without a trace. Labels go with the rows that they
    belong to, since an index reaches into longer arrays without a word.
    """
    arrays = {n: v for n, v in pair.inputs.items() if isinstance(v, np.ndarray)}
    axes: dict[int, list[tuple[str, int]]] = {}
    for name, value in arrays.items():
        for axis, length in enumerate(value.shape):
            axes.setdefault(length, []).append((name, axis))
    choices = [
        (places, [place for i, place in enumerate(places) if chosen >> i & 1])
        for length, places in axes.items()
        if length > 1 and length not in pair.written
        for chosen in range(1, 2 ** min(len(places), 6))
    ]
    for places, taken in choices[:40]:
        first = next((name for name, _ in places if name in pair.floats), "")
        if any(((n, axis) in taken) != ((first, axis) in taken) for n, axis in places if n not in pair.floats):
            continue
        inputs = dict(pair.inputs)
        for name, axis in taken:
            inputs[name] = np.concatenate([inputs[name]] * 2, axis=axis)
        for name in [name for name in pair.floats if inputs[name] is not pair.inputs[name]]:
            if _weights(pair.inputs[name]):
                inputs[name] = inputs[name] / inputs[name].sum(axis=-1, keepdims=True)
            elif np.any(inputs[name] != np.round(inputs[name])):
                inputs[name] = moved(inputs[name], rng)
        yield inputs


def _weights(value: Array) -> bool:
    """Whether the rows of an array sum to 1, as probabilities do."""
    return value.ndim > 0 and bool(np.all(value >= 0)) and np.allclose(value.sum(axis=-1), 1, rtol=1e-6)


def _numbers(function: Any) -> set[int]:
    """The whole numbers that a function finds in its text, its file, its closure and its object."""
    code, owner = _code(function), getattr(function, "__self__", None)
    if code is None:
        return set()
    plain = getattr(function, "__func__", inspect.unwrap(function))
    space = getattr(plain, "__globals__", {})
    cells = [c.cell_contents for c in getattr(plain, "__closure__", None) or () if c != type(c)()]
    values = [*code.co_consts, *[space.get(name) for name in code.co_names], *cells]
    values += vars(owner).values() if hasattr(owner, "__dict__") else []
    return _whole(values)


def _whole(value: Any) -> set[int]:
    if isinstance(value, tuple | list | dict):
        return set().union(*map(_whole, value.values() if isinstance(value, dict) else value))
    return {value} if type(value) is int else set()
