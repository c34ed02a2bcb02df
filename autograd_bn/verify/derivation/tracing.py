"""A forward pass and its backward pass, recorded so that every value says where it comes from."""

from __future__ import annotations

import copy
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial, partialmethod
from traceback import walk_stack, walk_tb
from types import FunctionType, MappingProxyType
from typing import Any

import numpy as np

from ...batch_norm.fusion import expand, fuse
from ...engine import Tensor, as_tensor, operations, primitive
from ...engine.backward import propagate
from ...engine.graph import Values
from ...engine.node import Array, Node, recording, setting, topological_order, watching
from ..referee.author import returned_names
from ..referee.held import inside, is_float
from ..referee.trace import local_values, said

Inputs = dict[str, Any]
PACKAGE = __name__.partition(".")[0]
_TIMES = "_?(next|prev|new|old|tm|t)_|_?(next|prev|new|old|tm|t)$|[0-9]"  # around what a state is called


class Unwritable(ValueError):
    """Why no backward pass is written for a function."""


class Unkept(Unwritable):
    """Why a backward pass can't read from what forward keeps."""


class Call:
    """A call that the graph doesn't hold, of arrays without gradient; `"input"` for one of the function's inputs."""

    def __init__(self, op: str, args: tuple[Any, ...], params: dict[str, Any], value: Array) -> None:
        self.op, self.args, self.params, self.value = op, args, params, value
        self.reads = list[Traced]()
        mapped((args, params), lambda item: self.reads.append(item) if isinstance(item, Traced) else None)


class Traced(np.ndarray[Any, Any]):
    """An array that knows its source, a node or a call, and logs what is computed from it."""

    source: Node | Call | None = None

    def __array_finalize__(self, of: Any) -> None:
        self.log: list[Traced] = getattr(of, "log", [])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Tensor) for value in inputs):
            return NotImplemented
        kwargs.pop("out", None)
        name = ufunc.__name__.replace("absolute", "abs") + f".{method}" * (method != "__call__")
        return self.recorded(name, getattr(ufunc, method)(*_plain(inputs), **_plain(kwargs)), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if any(issubclass(kind, Tensor) for kind in types):
            return NotImplemented
        name = f"{func.__module__}.{func.__name__}".removeprefix("numpy.")
        return self.recorded(name, func(*_plain(args), **_plain(kwargs)), args, kwargs)

    def called(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What a method of arrays gives."""
        made = getattr(np.asarray(self), name)(*_plain(args), **_plain(kwargs))
        return self.recorded(name.strip("_"), made, (self, *args), kwargs)

    def number(self, name: str) -> Any:
        """What forward makes of lengths, but not of data."""
        if not _of_data(self.source):
            return getattr(np.asarray(self), name)()
        what = "branches on" if name == "__bool__" else "makes a number of"
        raise Unwritable(f"forward {what} data{_line(walk_stack(None))}, and what is written is for all data")

    def recorded(self, name: str, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call gave, as an array that knows the call."""
        array = isinstance(made, np.ndarray | np.generic)
        return traced(made, Call(name, tuple(args), kwargs, np.asarray(made)), self.log) if array else made

    def __setitem__(self, index: Any, value: Any) -> None:
        what = f"sets elements of an array that no gradient goes through{_line(walk_stack(None))}"
        raise Unwritable(f"forward {what}: write np.where")

    T: Any = property(lambda self: self.transpose())

    def __repr__(self) -> str:
        return repr(np.asarray(self))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))] if _of_data(self.source) else np.asarray(self))


def _of_data(source: Any) -> bool:
    """Whether a value is computed from the inputs, and not from their lengths alone."""
    return not isinstance(source, Call) or source.op == "input" or any(_of_data(a.source) for a in source.reads)


def _line(frames: Iterable[tuple[Any, int]]) -> str:
    """Where in the author's code this is, of frames from the innermost."""
    modules = ((frame, line, str(frame.f_globals.get("__name__"))) for frame, line in frames)
    own = ((frame, line) for frame, line, module in modules if module.partition(".")[0] not in (PACKAGE, "numpy"))
    return next((f" in line {line} of {frame.f_code.co_name}" for frame, line in own), "")


for _name in "__bool__ __int__ __float__ __index__ item tolist".split():
    setattr(Traced, _name, partialmethod(Traced.number, _name))
MOVING = "__getitem__ astype copy reshape transpose swapaxes ravel flatten squeeze diagonal repeat take"
for _name in f"{MOVING} sum mean max min prod any all argmax argmin argsort cumsum".split():
    setattr(Traced, _name, partialmethod(Traced.called, _name))


class Options(dict[str, Any]):
    """A dict that knows what forward asked it for in vain, and which numbers it took instead."""

    missed, defaults = frozenset[str](), dict[str, float]()

    def __contains__(self, key: Any) -> bool:
        self.missed |= {key} - self.keys()
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The item, else the default."""
        if key not in self and type(default) is float:
            self.defaults = self.defaults | {key: default}
        return super().get(key, default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The item, which is the default where there was none."""
        self[key] = value = self.get(key, default)
        return value

    def __deepcopy__(self, _: Any) -> Any:
        return self  # of which there is one a recording


def traced(value: Any, source: Node | Call, log: list[Traced]) -> Traced:
    """The values as an array that knows its source."""
    value = np.asarray(value)
    array = Traced(value.shape, value.dtype)  # with memory of its own, so that it is the base of its views
    np.copyto(np.asarray(array), value)
    array.source, array.log = source, log
    log.append(array)
    return array


def mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A structure with each of its leaves as a function makes it."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(item, leaf) for item in value])
    if isinstance(value, dict):
        return {key: mapped(item, leaf) for key, item in value.items()}
    return slice(*mapped((value.start, value.stop, value.step), leaf)) if isinstance(value, slice) else leaf(value)


def word(name: str) -> str:
    """What stands in a place, as a name: W for layers[0].W."""
    *_, last = words = re.findall(r"\w+", name)
    return "_".join(words[-2:]) if last.isdigit() else last


def reached(value: Any, text: str, depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The arrays and numbers in a value, each with the code that reads it."""
    if isinstance(value, Tensor | np.ndarray | int | float | str | tuple | list):
        yield text, value
    for key, item in inside(value) if depth else ():
        yield from reached(item, text + step(value, key), depth - 1)


def step(owner: Any, key: Any) -> str:
    """The code that reads an item of a container, or an attribute."""
    return f"[{quoted(key)}]" if isinstance(owner, dict | list | tuple | deque) else f".{key}"


def quoted(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else repr(key)


def _plain(value: Any) -> Any:
    return mapped(value, lambda item: np.asarray(item)[()] if isinstance(item, Traced) else item)


def _but_there(g: Any, index: Any) -> Any:
    return put(g, 0.0, index=index)


@primitive(_but_there, lambda g, index: operations.getitem(g, index))
def put(x: Any, value: Any, /, index: Any) -> Any:
    """A copy of x with x[index] = value."""
    made = np.array(x, float)
    made[index] = value
    return made


def assigned(t: Tensor, index: Any, value: Any) -> Tensor:
    """What a tensor is after `t[index] = value`."""
    made: Any
    if isinstance(value, Tensor) and (index is ... or (isinstance(index, slice) and index == slice(None))):
        made = operations.broadcast_to(value, t.shape)
    else:
        made = put(t, value, index=mapped(index, lambda i: np.array(i) if isinstance(i, range) else i))
    return made if isinstance(made, Tensor) else Tensor(np.asarray(made), made.source)


class _Adding:
    """`np.add`, which adds at an index of a tensor too."""

    __call__: Any = staticmethod(np.add)
    reduce, accumulate, outer = np.add.reduce, np.add.accumulate, np.add.outer

    def at(self, t: Any, index: Any, value: Any) -> None:
        if isinstance(t, Tensor):
            added = value if isinstance(value, Tensor) else as_tensor(np.asarray(value, float))
            spread = operations.broadcast_to(added, np.empty(t.shape)[_plain(index)].shape)
            t[...] = t + operations.scatter(spread, index=index, to=t.shape)
        else:
            np.add.at(t, index, value)


class _Fillable:
    """NumPy, whose arrays of one number are tensors, so that elements can be set, and to which tensors are arrays.

    Where there is a log, those that lengths make know it.
    """

    def __init__(self, log: Any) -> None:
        self._known = log

    def _logged(self, name: str, *args: Any, **kwargs: Any) -> Any:
        made = getattr(np, name)(*args, **kwargs)
        array = traced(made, Call(name, args, kwargs, np.asarray(made)), self._known)
        return array if isinstance(made, np.ndarray) else tuple([array[i] for i in range(len(made))])

    def __getattr__(self, name: str) -> Any:
        if name == "add":
            return _Adding()
        if self._known is not None and name in ("arange", "eye", "tri", "linspace", "tril_indices", "triu_indices"):
            return partial(self._logged, name)
        made = getattr(np, name.replace("empty", "zeros"))
        return partial(_filled, made) if name.partition("_")[0] in ("zeros", "full", "empty") else made

    def asarray(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return value if isinstance(value, Tensor) else np.asarray(value, *args, **kwargs)

    def array(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return value + 0 if isinstance(value, Tensor) else np.array(value, *args, **kwargs)


def _filled(make: Callable[..., Any], like: Any, *args: Any, **kwargs: Any) -> Any:
    made = make(np.empty(like.shape, like.dtype) if isinstance(like, Tensor) else like, *args, **kwargs)
    return as_tensor(made) if made.dtype.kind == "f" else made


def fillable(forward: Callable[..., Any], log: list[Traced] | None = None) -> Callable[..., Any]:
    """A function of the same code that has fillable arrays, as have those of its file that it calls."""
    if inner := getattr(forward, "parted", None):  # what it hands its inputs on to
        return partial(forward, run=fillable(inner, log))
    space = getattr(forward, "__globals__", {})
    if not inspect.isfunction(forward) or np not in (space.get("np"), space.get("numpy")):
        return forward
    there = {name: _Fillable(log) if value is np else value for name, value in space.items()}

    def moved(function: Any) -> Callable[..., Any]:
        made = FunctionType(function.__code__, there, closure=function.__closure__)
        made.__defaults__, made.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
        return made

    there |= {n: moved(f) for n, f in space.items() if inspect.isfunction(f) and f.__globals__ is space}
    return moved(forward)


def _is_output(returned: list[Any], forward: Any, given: Inputs) -> bool:
    """Whether what is returned last is no cache, but the next state of a cell, or made apart from the others."""
    *others, last = returned
    inputs = [getattr(value, "node", None) for value in given.values()]
    if not getattr(last, "requires_grad", False) or last.node in inputs:
        return False
    *stems, name = [re.sub(_TIMES, "", n) for n in (*given, *(returned_names(forward) or [""])[-1:])]
    known = topological_order([t.node for t in others if isinstance(t, Tensor)])
    return name in stems or (last.node not in known and (last.ndim == 0 or others[0].ndim > 0))  # beside a loss kept


class Recording:
    """A function's forward pass on some inputs, and its backward pass for random gradients of its outputs.

    `named` has what the author gave a name, `visits` the nodes of the forward pass in backward order, each with its
    gradient, and `gradients` those of the wanted inputs. `course` is what recordings share in which forward goes the
    same way, `tested` what the branches of its code read, by name, `single` are recordings in which a length is 1,
    which hold what is written and are not read, and one in which an array has one more axis, at -1, and `even` are axes
    that it takes no odd length of.
    """

    tested = frozenset[str]()
    even: Sequence[tuple[str, int]] = ()
    single: Mapping[tuple[str, int], Recording] = MappingProxyType({})

    def __init__(
        self, forward: Callable[..., Any], wanted: list[str], folded: bool, unit: bool, inputs: Inputs, options: Inputs
    ) -> None:
        self.unit = unit  # whether the gradient of the outputs is 1
        self.wanted, self.inputs, self.options, self.log = wanted, inputs, options, list[Traced]()
        self.again = partial(Recording, forward, wanted, folded, unit)
        self.args = {name: self._given(name, copy.deepcopy(value)) for name, value in inputs.items()}
        self.bases: dict[Node, Node] = {}  # what a view is of in which elements were set, with that view
        with recording(True), watching(self._watched), setting(self._assigned):
            try:
                with local_values(forward) as self.named:
                    # Of other objects, since forward may set elements of what it is given.
                    handed = [copy.copy(v) if isinstance(v, Tensor) else v for v in self.args.values()]
                    returned = fillable(forward, self.log)(*handed, **options)
            except Unwritable:
                raise
            except Exception as error:  # the author's own, or an operation that has no rule
                where = _line([*walk_tb(error.__traceback__)][::-1])
                raise Unwritable(f"forward can't be recorded on tensors{where}: {said(error)}") from error
            several = [*returned] if isinstance(returned, tuple | list) and len(returned) > 1 else [returned, None]
            if _is_output(several, forward, self.args):
                several.append(None)
            *self.outputs, self.cache = several
            if any(isinstance(y, Traced) for y in self.outputs):
                raise Unwritable("forward returns signs, comparisons or counts, of which every gradient is 0")
            if not all(isinstance(y, Tensor) and y.requires_grad for y in self.outputs):
                raise Unwritable("forward leaves the tensors that it is given, so that it can't be recorded")
            rng = np.random.default_rng(5)
            drawn = [np.ones(y.shape) if unit else rng.normal(size=y.shape) + 0.3 for y in self.outputs]
            self.upstream = [as_tensor(np.asarray(dy)) for dy in drawn]
            self._differentiate(folded)
        ends = [t.node for t in (*self.outputs, *self.leaves.values())] + [g.node for _, g in self.visits]
        self.finite = all(np.isfinite(t.data).all() for t in (*self.outputs, *self.gradients.values()))
        self.course = [(node.op, len(node.args)) for node in topological_order(ends)]
        read = [array.source for array in self.log if isinstance(array.source, Node)]  # by masks alone
        self.values = Values(topological_order([*ends, *read]))
        # Some are read by what is kept alone.
        self.values |= {t.node: t.data for t in self.args.values() if isinstance(t, Tensor)}

    def changed(self, values: Inputs, owner: str | None = None) -> Recording:
        """The recording with some other inputs and options, or with other items of a dict that is an input."""
        values = values if owner is None else {owner: self.inputs[owner] | values}
        return self.again(*[{n: values.get(n, v) for n, v in own.items()} for own in (self.inputs, self.options)])

    def _assigned(self, t: Tensor, index: Any, value: Any) -> Tensor:
        node = t.node
        while node.primitive and node.primitive.view and isinstance(base := node.args[0], Node):
            self.bases[base], node = node, base
        return assigned(t, index, value)

    def _watched(self, t: Tensor, places: Any = None) -> Traced:
        source = t.node if places is None else Call("places", (t,), {}, places)
        return traced(t.data if places is None else places, source, self.log)

    def _given(self, name: str, value: Any) -> Any:
        if is_float(value):
            return as_tensor(value, requires_grad=True, name=name)
        value = Options(value) if type(value) is dict else value
        return traced(value, Call("input", (name,), {}, value), self.log) if isinstance(value, np.ndarray) else value

    def _differentiate(self, folded: bool) -> None:
        """Record the backward pass; where it is folded, by the fused node's rule for each batch norm."""
        self.leaves = {name: value for name, value in self.args.items() if name in self.wanted}
        ends = [y.node for y in self.outputs]
        spelled = {node: copy.copy(node) for node in topological_order(ends)}
        if any(self.bases.get(part, node) is not node for node in spelled for part in (*node.inputs, *ends)):
            raise Unwritable("forward sets elements of a view of what it reads elsewhere")  # perhaps of none today
        fused = fuse(*self.outputs).fused if folded else ()
        if not folded:
            expand(*self.outputs)
        visits: list[Any] = []
        targets = {leaf.node for leaf in self.leaves.values()}
        gradients = propagate(list(zip(ends, self.upstream, strict=True)), targets, True, visits)
        if folded:  # the forward pass stays as its author spelled it
            expand(*self.outputs)
            for node in fused:
                node.take_over(spelled[node])
        self.visits = [(node, g) for node, g, _ in visits]
        self.gradients = {name: gradients[leaf.node] for name, leaf in self.leaves.items() if leaf.node in gradients}

    def source(self, value: Any) -> Any:
        """The node or call that a value comes from, else the value."""
        if isinstance(value, Tensor):
            return value.node
        place: Any = lambda array: (array.shape, array.strides, array.__array_interface__["data"])
        array: Any = value
        while isinstance(array, np.ndarray):
            if isinstance(array, Traced) and array.source is not None and place(array) == place(value):
                return array.source
            if array.ndim > 1 and array is not value and place(np.asarray(array).swapaxes(-1, -2)) == place(value):
                axes = (*range(array.ndim - 2), array.ndim - 1, array.ndim - 2)  # as a rule turns it
                return Call("transpose", (array, axes), {}, value)
            array = array.base
        return value

    def hold(self, outputs: Sequence[Any], gradients: Mapping[str, Any], tolerance: float = 1e-9) -> None:
        """Refuse what was written where its outputs and gradients are not the recorded ones."""
        zeros = {name: np.zeros(leaf.shape) for name, leaf in self.leaves.items()}  # on which nothing depends
        true = zeros | {name: g.data for name, g in self.gradients.items()}
        held: list[Any] = [(f"d{name}", gradients.get(name), value) for name, value in true.items()]
        held += [("the output", y, t.data) for y, t in zip(outputs, self.outputs, strict=True)]
        for what, value, true in held:
            near = np.max(np.abs(true), initial=1e-3) * tolerance
            if np.shape(value) != np.shape(true) or not np.all(np.abs(value - true) <= near):
                raise Unwritable(f"what was written for {what} is not right at other inputs than those it was read off")
