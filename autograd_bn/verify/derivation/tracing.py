"""A forward pass and its backward pass, recorded so that every value says where it comes from."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np

from ...batch_norm.fusion import expand, fuse
from ...engine import Tensor, as_tensor, operations, primitive
from ...engine.backward import propagate
from ...engine.graph import Values
from ...engine.node import Array, Node, recording, setting, topological_order, watching
from ..referee.held import is_float
from ..referee.inputs import moved
from ..referee.trace import local_values

Inputs = dict[str, Any]
Places = Sequence[tuple[str, int]]


class Unwritable(ValueError):
    """Why no backward pass is written for a function."""


class Call:
    """A call that the graph doesn't hold, of arrays without gradient; `"input"` for one of the function's inputs."""

    def __init__(self, op: str, args: tuple[Any, ...], params: dict[str, Any], value: Array) -> None:
        self.op, self.args, self.params, self.value = op, args, params, value


class Traced(np.ndarray[Any, Any]):
    """An array that knows its source, a node or a call, and logs what is computed from it."""

    source: Node | Call | None = None
    log: list[Traced]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Tensor) for value in inputs):
            return NotImplemented
        kwargs.pop("out", None)
        kept = {key: value for key, value in kwargs.items() if value is not None and value is not False}
        name = ufunc.__name__ if method == "__call__" else _REDUCTIONS.get(ufunc, f"{ufunc.__name__}.{method}")
        return _recorded(name, getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs)), inputs, kept)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(issubclass(kind, Tensor) for kind in types):
            return NotImplemented
        name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
        return _recorded(name, func(*_plain(args), **_plain(kwargs)), args, kwargs)

    def __setitem__(self, index: Any, value: Any) -> None:
        np.asarray(self)[_plain(index)] = _plain(value)
        self.source = None

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> bool:
        frame = sys._getframe(1)
        where = f"in line {frame.f_lineno} of {frame.f_code.co_name}"
        raise Unwritable(f"forward branches on data {where}, and what is written takes one way")


_REDUCTIONS = {np.add: "sum", np.maximum: "max", np.minimum: "min", np.logical_or: "any", np.logical_and: "all"}


def _method(name: str) -> Callable[..., Any]:
    def method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        made = getattr(np.asarray(self), name)(*_plain(args), **_plain(kwargs))
        return _recorded(name.strip("_"), made, (self, *args), kwargs)

    return method


for _name in "__getitem__ astype copy reshape transpose swapaxes ravel sum mean max min any all argmax argmin".split():
    setattr(Traced, _name, _method(_name))


def _recorded(name: str, made: Any, args: Any, kwargs: Any) -> Any:
    """What a call gave, as an array that knows the call."""
    if not isinstance(made, np.ndarray | np.generic):
        return made
    return traced(made, Call(name, tuple(args), kwargs, np.asarray(made)), _log((*args, *kwargs.values())))


def traced(value: Any, source: Node | Call, log: list[Traced]) -> Traced:
    """The values as an array that knows its source."""
    value = np.asarray(value)
    array = Traced(value.shape, value.dtype)  # with memory of its own, so that it is the base of its views
    np.copyto(np.asarray(array), value)
    array.source, array.log = source, log
    log.append(array)
    return array


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*map(_plain, (value.start, value.stop, value.step)))
    return np.asarray(value)[()] if isinstance(value, Traced) else value


def _log(values: Any) -> list[Traced]:
    """The log of the first traced array among these."""
    if isinstance(values, tuple | list):
        return next((log for log in map(_log, values) if log), [])
    return values.log if isinstance(values, Traced) and values.source else []


def _cleared(g: Any, index: Any) -> Any:
    return put(g, 0.0, index=index)


@primitive(_cleared, lambda g, index: operations.getitem(g, index))
def put(x: Any, value: Any, /, index: Any) -> Any:
    """A copy of x with x[index] = value."""
    made = np.array(x, float)
    made[index] = value
    return made


def assigned(t: Tensor, index: Any, value: Any) -> Tensor:
    """What a tensor is after `t[index] = value`."""
    made: Any = put(t, value, index=index)
    return made if isinstance(made, Tensor) else Tensor(np.asarray(made), made.source)


class _Fillable:
    """NumPy, whose arrays of zeros are tensors, so that their elements can be set."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def zeros(self, *args: Any, **kwargs: Any) -> Any:
        made = np.zeros(*args, **kwargs)
        return as_tensor(made) if made.dtype.kind == "f" else made

    def zeros_like(self, array: Any, **kwargs: Any) -> Any:
        return self.zeros(np.shape(array), **{"dtype": np.asarray(array).dtype, **kwargs})

    empty, empty_like = zeros, zeros_like


def fillable(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same code that has fillable arrays; one that doesn't say `np` as it is."""
    space = getattr(forward, "__globals__", {})
    numpy = {name: _Fillable() for name in ("np", "numpy") if space.get(name) is np}
    if not (numpy and inspect.isfunction(forward)):
        return forward
    made = FunctionType(forward.__code__, {**space, **numpy}, closure=forward.__closure__)
    made.__defaults__, made.__kwdefaults__ = forward.__defaults__, forward.__kwdefaults__
    return made


class Recording:
    """A function's forward pass on some inputs, and its backward pass for random gradients of its outputs.

    `named` has what the author gave a name, `visits` the nodes of the forward pass in backward order, each with its
    gradient, and `gradients` those of the wanted inputs.
    """

    def __init__(
        self, forward: Callable[..., Any], wanted: Sequence[str], folded: bool, inputs: Inputs, options: Inputs
    ) -> None:
        self.wanted, self.inputs, self.options, self.log = wanted, inputs, options, list[Traced]()
        self.given = {name: self._given(name, copy.deepcopy(value)) for name, value in inputs.items()}
        with recording(True), watching(lambda t: traced(t.data, t.node, self.log)), setting(assigned):
            try:
                with local_values(forward) as self.named:
                    returned = fillable(forward)(*self.given.values(), **options)
            except Unwritable:
                raise
            except Exception as error:  # the author's own, or an operation that has no rule
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise Unwritable(f"forward can't be recorded on tensors: {why}") from error
            several = isinstance(returned, tuple | list) and len(returned) > 1
            self.outputs = [*returned][:-1] if several else [returned]
            if not all(isinstance(y, Tensor) and y.requires_grad for y in self.outputs):
                raise Unwritable("forward leaves the tensors that it is given, so that it can't be recorded")
            rng = np.random.default_rng(5)
            self.upstream = [as_tensor(np.asarray(rng.normal(size=y.shape) + 0.3)) for y in self.outputs]
            self._differentiate(folded)
        ends = [t.node for t in (*self.outputs, *self.leaves.values())] + [g.node for _, g in self.visits]
        self.values = Values(topological_order(ends))

    def _given(self, name: str, value: Any) -> Any:
        if is_float(value):
            return as_tensor(value, requires_grad=True, name=name)
        return traced(value, Call("input", (name,), {}, value), self.log) if isinstance(value, np.ndarray) else value

    def _differentiate(self, folded: bool) -> None:
        """Record the backward pass; where it is folded, by the fused node's rule for each batch norm."""
        self.leaves = {name: value for name, value in self.given.items() if name in self.wanted}
        ends = [y.node for y in self.outputs]
        spelled = {node: copy.copy(node) for node in topological_order(ends)}
        fused = fuse(*self.outputs).fused if folded else ()
        if not folded:
            expand(*self.outputs)
        visits: list[Any] = []
        targets = {leaf.node for leaf in self.leaves.values()}
        found = propagate(list(zip(ends, self.upstream, strict=True)), targets, True, visits)
        if folded:  # the forward pass stays as its author spelled it
            expand(*self.outputs)
            for node in fused:
                node.become(spelled[node])
        self.visits = [(node, g) for node, g, _ in visits]
        self.gradients = {name: found[leaf.node] for name, leaf in self.leaves.items() if leaf.node in found}

    def source(self, value: Any) -> Any:
        """The node or call that a value comes from, else the value."""
        if isinstance(value, Tensor):
            return value.node
        array: Any = value
        while isinstance(array, np.ndarray):
            if isinstance(array, Traced) and array.source is not None and array.shape == value.shape:
                return array.source
            array = array.base
        if isinstance(value, np.ndarray) and value.size > 1 and value.dtype.kind in "iub":  # an index is copied
            for known in self.log:
                if known.source is not None and known.dtype == value.dtype and np.array_equal(known, value):
                    return known.source
        return value

    @property
    def finite(self) -> bool:
        """Whether outputs and gradients are finite."""
        return all(np.isfinite(t.data).all() for t in (*self.outputs, *self.gradients.values()))

    @property
    def signature(self) -> list[Any]:
        """What two recordings of one course share."""
        return [(node.op, len(node.args)) for node in self.values.nodes]


def recordings(recorded: Callable[[Inputs, Inputs], Recording], inputs: Inputs, options: Inputs) -> list[Recording]:
    """Recordings near the inputs and at them; of those near, in the second each length is another where that is taken.

    So is each number among the inputs.
    """
    rng = np.random.default_rng(7)

    def record(inputs: Inputs, options: Inputs) -> Recording:
        for share in (1, 0.05):  # a probability stays one
            near = {n: np.asarray(v + share * (moved(v, rng) - v)) if is_float(v) else v for n, v in inputs.items()}
            run = recorded(near, options)
            if run.finite:
                break
        return run

    first, second, at = record(inputs, options), record(inputs, options), recorded(inputs, options)
    if not first.signature == second.signature == at.signature:
        raise Unwritable("forward takes another way at other inputs, and what is written takes one way")

    factors = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43]  # each taken once, so that no two lengths follow one

    def accepted(places: Places, other: Places = (), total: Places = (), numbers: Inputs | None = None) -> bool:
        """Whether forward takes longer axes or other numbers in the same course; the second recording then has them.

        `other` get a length of their own, and `total` that of both together.
        """
        nonlocal second, factors
        grown: Inputs = {n: (numbers or {}).get(n, v) for n, v in second.inputs.items()}
        changed = {n: (numbers or {}).get(n, v) for n, v in second.options.items()}
        taken, lengths = [], {n for value in (*grown.values(), *inputs.values()) for n in np.shape(value)}
        for group in (places, other):
            free = (k for k in factors if k not in taken)
            taken.append(next(k for k in free if not lengths & {k * np.shape(grown[n])[axis] for n, axis in group}))
            for name, axis in group:
                grown[name] = np.concatenate([grown[name]] * taken[-1], axis=axis)
        whole = sum(grown[group[0][0]].shape[group[0][1]] for group in (places, other) if group)
        for name, axis in total:
            grown[name] = np.take(grown[name], np.arange(whole) % grown[name].shape[axis], axis=axis)
        try:
            run = record(grown, changed)
        except Exception:  # whatever the author's code raises
            return False
        if run.signature != first.signature:
            return False
        second, factors = run, [k for k in factors if k not in (taken if other else taken[:1])]
        return True

    stuck: dict[int, list[tuple[str, int]]] = {}
    for length, places in _places(inputs).items():
        while places:
            group = next((g for g in _groups(places, inputs) if accepted(g)), None)
            if group is None:
                stuck.setdefault(length, []).append(places[0])
            places = [place for place in places if place not in (group or places[:1])]
    # Those of weights for what is joined, D + H.
    if any(accepted(*groups) for length in stuck for groups in _joined(length, stuck)):
        stuck = {}
    # Lengths that only grow together, as those of 4 * H and H.
    together = (c for count in range(2, len(stuck) + 1) for c in itertools.combinations(stuck, count))
    _ = next((c for c in together if accepted([place for length in c for place in stuck[length]])), None)
    for i, (name, value) in enumerate({**inputs, **options}.items()):
        if type(value) is float:  # each by another factor, so that none follows another
            accepted([], numbers={name: value * (i + 7) / (i + 10)})
    runs = [first, second, at]
    turned = {n: moved(v, rng, turned=True) if is_float(v) else v for n, v in inputs.items()}
    with contextlib.suppress(Exception):  # of other signs, where forward takes them, so that masks show
        run = recorded(turned, options)
        if run.finite and run.signature == first.signature:
            runs.append(run)
    return runs


def _joined(length: int, stuck: Mapping[int, Places]) -> Iterator[tuple[Places, Places, Places]]:
    """Two groups of axes, the multiples of a length with one of them, and those as long as both together."""
    for n, (head, *same) in stuck.items():
        more = [place for m in stuck if m % n == 0 and m not in (n, length - n, length) for place in stuck[m]]
        for total in (stuck[length], *[[place] for place in stuck[length]]):
            rest = [*same, *more, *[place for place in stuck[length] if place not in total and length % n == 0]]
            if length - n in stuck and length != 2 * n:
                yield [head, *rest], stuck[length - n], total
            if length == 2 * n:
                for chosen in itertools.chain(*[itertools.combinations(rest, k) for k in range(1, 1 + len(rest))]):
                    yield [head, *[place for place in rest if place not in chosen]], chosen, total


def _places(inputs: Inputs) -> dict[int, list[tuple[str, int]]]:
    """The axes of arrays, by their lengths."""
    places: dict[int, list[tuple[str, int]]] = {}
    for name, value in inputs.items():
        for axis, length in enumerate(value.shape if isinstance(value, np.ndarray) else ()):
            if length > 1:
                places.setdefault(length, []).append((name, axis))
    return places


def _groups(places: list[tuple[str, int]], inputs: Inputs) -> Iterator[list[tuple[str, int]]]:
    """Groups of axes with the first of these, the smallest first; labels go with the rows that they belong to."""
    head = [place for place in places if place is places[0] or not is_float(inputs[place[0]])]
    rest = [place for place in places if place not in head][:6]
    for count in range(len(rest) + 1):
        for chosen in itertools.combinations(rest, count):
            yield [*head, *chosen]
    yield places
