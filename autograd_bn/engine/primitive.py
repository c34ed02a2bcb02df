"""How an operation is declared and recorded: a forward function on arrays, and a rule, its derivative, for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial, wraps
from numbers import Number
from operator import itemgetter
from types import FunctionType
from typing import Any, ParamSpec, TypeVar
from weakref import ref

import numpy as np

from .node import Array, Leaf, Node, clock, mode
from .tensor import Tensor, array_of, checked, exact, holds_tensors, unwritable
from .words import unknown_option

P = ParamSpec("P")
R = TypeVar("R")

OBJECT = np.dtype(object)
FLOAT = np.dtype(float)
NO_PARAMS: dict[str, Any] = {}
# What an operation takes for a constant as it is; anything else becomes an array. A Python number stays one, and weak.
NUMBERS = frozenset([float, int, bool, type(None), *np.sctypeDict.values()]) - {np.object_, np.void}
CONSTANTS = NUMBERS | {np.ndarray}
HOLDERS = (np.ndarray, Tensor, dict, list, tuple)  # of what may change, or of tensors
PACKAGE = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
registry: dict[str, Primitive] = {}  # the package's own, by name; nobody else's primitive gets in


class Rule:
    """The derivative with respect to one array, and what it reads: values that a node saves, and metadata."""

    def __init__(self, function: Callable[..., Any], skip: int, values: Sequence[str], metadata: Sequence[str]) -> None:
        names = function.__code__.co_varnames[skip : function.__code__.co_argcount]
        unknown = [name for name in names if name not in (*values, *metadata)]
        if unknown:
            raise TypeError(f"a rule reads {unknown[0]!r}, which is none of {', '.join((*values, *metadata))}")
        self.function = function
        self.places = [values.index(name) for name in names if name in values]
        # A slice picks a tuple, as do several places.
        picked = self.places if len(self.places) > 1 else [slice(p, p + 1) for p in self.places] or [slice(0)]
        self.pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*picked)
        self.place = self.places[0] if len(self.places) == 1 else None
        self.metadata = [name for name in names if name not in values]

    def about(self, node: Node, position: int) -> dict[str, Any]:
        """The metadata that the rule reads, of the input at `position`."""
        known: dict[str, Any] = {}
        for name in self.metadata:
            if name == "position":
                known[name] = position
            elif name == "shape":
                known[name] = node.args[position].shape
            elif name == "shapes":
                known[name] = tuple([np.shape(arg) for arg in node.args])
            else:
                known[name] = node.params[name]
        return known


class Primitive:
    """An operation: its forward function on arrays, and its rules: one for each array, or one for all of them."""

    def __init__(self, forward: FunctionType, rules: tuple[Any, ...], joint: bool, view: bool) -> None:
        code = forward.__code__
        self.name = forward.__name__.strip("_")
        self.forward = forward
        self.joint = joint
        self.view = view
        self.own = False  # whether it is the package's
        self.variadic = bool(code.co_flags & 0x04)
        self.arrays = code.co_varnames[: code.co_posonlyargcount]
        self.keywords = code.co_varnames[len(self.arrays) : code.co_argcount + code.co_kwonlyargcount]
        positional, last = code.co_varnames[: code.co_argcount], forward.__defaults__ or ()
        defaults = dict(zip(positional[len(positional) - len(last) :], last, strict=True))
        self.absent = [defaults.pop(name) for name in self.arrays if name in defaults]  # stand in for the last arrays
        self.defaults: dict[str, Any] = {**defaults, **(forward.__kwdefaults__ or {})}
        if not self.arrays and not self.variadic:
            raise TypeError(f"{self.name} takes no arrays: put a / behind them, as in def {self.name}(x, /)")
        one = joint or self.variadic
        if len(rules) not in ((0, 1) if one else (0, len(self.arrays))):
            raise TypeError(f"{self.name} has {len(rules)} rules for {1 if one else len(self.arrays)} arrays")
        for rule in rules:
            if rule is not None and not isinstance(rule, FunctionType):
                raise TypeError(f"a rule of {self.name} is a {type(rule).__name__}, expected a Python function or None")
        values = (*self.arrays, "out", *(["kept"] if joint else []))
        try:
            self.rules = [
                rule and Rule(rule, 1 + joint, values, (*self.keywords, "position", "shape", "shapes"))
                for rule in rules
            ]
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}") from None
        if self.variadic and any(rule and rule.places for rule in self.rules):
            raise TypeError(f"{self.name} takes any number of arrays, so that its rule can read no values")
        self.many = len(self.rules) > 1
        self.savers: dict[tuple[int, ...], Callable[[Any], tuple[Any, ...]]] = {}

    def __deepcopy__(self, memo: object) -> Primitive:
        return self  # an operation is known by identity

    def __reduce__(self) -> Any:
        raise TypeError(
            f"what {self.name} computed can't be pickled: pickle t.detach(), which has no history, or t.data"
        )

    def rule(self, position: int) -> Rule:
        """The rule for the array at `position`; `TypeError` where there is none."""
        rule = self.rules[position if self.many else 0]
        if rule is None:
            raise TypeError(f"{self.name} has no derivative with respect to its argument {position + 1}")
        return rule

    def saver(self, wanted: tuple[int, ...]) -> Callable[[Any], tuple[Any, ...]]:
        """Picks what their rules read out of None, each operand, the result and what is kept; the rest is None."""
        read = {place for position in wanted for place in self.rule(position).places}
        places = [place + 1 if place in read else 0 for place in range(len(self.arrays) + 2)]
        self.savers[wanted] = saver = itemgetter(*places) if read else itemgetter(slice(0))
        return saver

    def record(self, args: Sequence[Any], options: dict[str, Any] = NO_PARAMS, rest: Sequence[Any] = ()) -> Any:
        """Compute on tensors and constants, and hang the result into the graph; of arrays alone, only compute.

        The metadata is in `options` by name, or in `rest` by place.
        """
        now, recorded = clock.now, False
        odd: list[Any] = []
        operands: list[Any] = []
        values: list[Any] = []
        wanted: list[int] = []
        for arg in args:
            if type(arg) is Tensor:
                recorded = True
                values.append(arg._value)
                arg = arg.node
                if arg.requires_grad:
                    wanted.append(len(operands))
            else:
                kind = getattr(arg, "dtype", FLOAT).kind
                if type(arg) not in CONSTANTS or kind == "O":
                    arg = array_of(arg, f"an operand of {self.name}")
                    kind = arg.dtype.kind
                if kind not in "fiub":
                    odd.append(arg)
                values.append(arg)
            operands.append(arg)
        rest = self._kept_by_place(rest) if rest else rest
        params = self._kept_by_name(options) if options else options
        if not recorded:
            if values and isinstance(values[0], (int, float, complex)):
                values[0] = np.asarray(values[0])
            out = self.forward(*values, *rest, **params)
            return exact(out, self.name) if getattr(out, "dtype", FLOAT).kind == "O" else out
        for arg in odd:
            checked(arg, None, f"an operand of {self.name}")
        values = values if self.own else [*map(unwritable, values)]
        out, kept = self.forward(*values, *rest, **params), None
        if self.joint or not self.own or getattr(out, "dtype", OBJECT).kind == "O":
            out, kept = self._result(out)
        viewed = self.view and isinstance(operands[0], Node) and np.may_share_memory(out, values[0])
        buffer = operands[0].buffer if viewed else None
        held = not self.view and type(out) is np.ndarray and (out.base is not None or not self.own)
        if held and _borrowed(out, values):
            out = out.copy()  # what overwrites the operand would overwrite the result too
        if mode.recording.get():
            if len(params) < len(self.keywords):
                params = {**self.defaults, **dict(zip(self.keywords, rest)), **params}  # noqa: B905
            positions = tuple(wanted) if self.rules else ()
            saver = self.savers[positions] if positions in self.savers else self.saver(positions)
            saved = saver((None, *values, out, kept))
            node = Node(self, tuple(operands), params, out, positions, saved, now)
            node.buffer = buffer
        else:
            out = np.asarray(out)
            if self.view and buffer is None and out.base is not None:
                out = unwritable(out)  # the memory of a computed tensor, which a derivative may read
            node = Leaf(out)
        result = Tensor(out, node)
        if viewed:
            node.views = operands[0].views = views = operands[0].views or set()
            views.add(ref(result, views.discard))
        return (result, kept) if self.joint else result

    def _kept_by_place(self, rest: Sequence[Any]) -> list[Any]:
        """The metadata that stand behind the arrays, as a node may keep them."""
        if len(rest) > len(self.keywords):
            raise TypeError(f"{self.name} takes {', '.join(self.keywords) or 'no metadata'} after its arrays, no more")
        return [self._kept(value, "metadata") if isinstance(value, HOLDERS) else value for value in rest]

    def _kept_by_name(self, options: dict[str, Any]) -> dict[str, Any]:
        """The metadata that have names, as a node may keep them."""
        for name in options:
            if name not in self.keywords:
                raise TypeError(unknown_option(self.name, options, self.keywords))
        return {n: self._kept(value, n) if isinstance(value, HOLDERS) else value for n, value in options.items()}

    def _result(self, out: Any) -> tuple[Any, Any]:
        """What forward gave, checked where the operation isn't the package's own; and what it keeps for its rule."""
        kept = None
        if self.joint:
            if type(out) is not tuple or len(out) != 2:
                raise TypeError(f"{self.name} is joint and gives a {type(out).__name__}, expected a result and `kept`")
            out, kept = out
        if not self.own:
            if not isinstance(out, (np.ndarray, Number)):
                raise TypeError(f"{self.name} gives a {type(out).__name__}, expected an array of real numbers")
            out = checked(out, None, f"the result of {self.name}")
        if getattr(out, "dtype", OBJECT).kind == "O":  # NumPy hands out the bare element of a 0-d object array
            out = exact(out, self.name)
        return out, kept

    def record_pair(self, a: Any, b: Any) -> Any:
        """`record`, written out for what most of a graph is made of: a tensor with another, or with a number."""
        now = clock.now
        x = a._value if type(a) is Tensor else a
        y = b._value if type(b) is Tensor else b
        if not mode.recording.get() or type(x) not in CONSTANTS or type(y) not in CONSTANTS or (x is a and y is b):
            return self.record((a, b))
        # A scalar is much quicker than an array of it.
        if type(x) is np.ndarray and not x.shape:
            x = x[()]
        if type(y) is np.ndarray and not y.shape:
            y = y[()]
        out = self.forward(x, y)
        if getattr(out, "dtype", OBJECT).kind in "Oc":
            return self.record((a, b))
        wanted: tuple[int, ...] = ()
        if type(a) is Tensor:
            a = a.node
            if a.requires_grad:
                wanted = (0,)
        if type(b) is Tensor:
            b = b.node
            if b.requires_grad:
                wanted = (0, 1) if wanted else (1,)
        saver = self.savers[wanted] if wanted in self.savers else self.saver(wanted)
        saved = saver((None, x, y, out, None))
        return Tensor(out, Node(self, (a, b), NO_PARAMS, out, wanted, saved, now))

    def _kept(self, value: Any, name: str) -> Any:
        """Metadata as a node may keep it: lists and arrays are the caller's to change; `TypeError` for tensors."""
        if type(value) is tuple and NUMBERS.issuperset(map(type, value)):
            return value
        if holds_tensors(value):
            raise TypeError(
                f"{self.name} takes {name} for metadata, which has no derivative, and got a tensor: pass "
                "plain numbers, or t.data to cut it on purpose"
            )
        if type(value) is np.ndarray:
            return value.copy()
        return tuple(value) if type(value) is list else value


def _borrowed(out: Array, values: Sequence[Any]) -> bool:
    """Whether a result lies in the memory of one of the values that it was computed from."""
    if isinstance(out.base, np.ndarray):
        return any(type(value) is np.ndarray and np.may_share_memory(out, value) for value in values)
    return any(out is value for value in values)


def primitive(*rules: Any, joint: bool = False, view: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declare an operation: decorate its forward function on arrays with the rules of its derivative.

    The function's positional-only parameters are its arrays, all others are metadata. There is one rule an
    array: it takes the gradient of the result and returns the gradient of that input, written with NumPy
    operators and the engine's functions, so that it runs on arrays, on tensors and on exact rationals. Its
    further parameters say what else it reads, by name: an array of the forward function, `out`, any of the
    metadata, `shape` (of its own input), `shapes` (of all), `position` (of its own input). The engine sums a
    gradient over broadcast axes and casts it to its input's dtype by itself.

    `None` in the place of a rule: asking for that derivative raises. No rule at all: the operation is a
    constant to the derivative. A function of `*arrays` has a single rule, which serves each of them. `joint`: a
    single rule computes the gradients of all inputs at once: it takes `g` and `wanted`, a flag for each input, and
    gives a tuple with None where none is wanted; the forward function then returns a pair, its result and what it
    keeps for the rule, which reads that as `kept`, and so does a call. `view`: the result may share its input's memory.
    `TypeError` for a declaration that can't work.

    >>> from autograd_bn.engine import primitive
    >>> @primitive(lambda g, x: g * 3 * x * x)
    ... def cube(x, /):
    ...     return x * x * x
    """
    if any(getattr(getattr(rule, "__code__", None), "co_posonlyargcount", 0) for rule in rules):
        raise TypeError("@primitive stands without brackets: write @primitive(rule, ...), or @primitive() for no rule")

    def declare(forward: Callable[P, R]) -> Callable[P, R]:
        if not isinstance(forward, FunctionType):
            raise TypeError(f"@primitive(...) decorates a Python function, got a {type(forward).__name__}")
        op = Primitive(forward, rules, joint, view)
        if forward.__code__.co_filename.startswith(PACKAGE):
            registry.setdefault(op.name, op)
        op.own = registry.get(op.name) is op
        count = None if op.variadic else len(op.arrays)

        def apply(*args: Any, **options: Any) -> Any:
            if len(args) == count or count is None:
                return op.record(args, options)
            if len(args) < count:
                args = (*args, *op.absent[len(op.absent) - (count - len(args)) :])
            return op.record(args[:count], options, args[count:])

        simple = op.own and not (joint or view or op.keywords or None in op.rules)
        pair = simple and len(op.rules) == len(op.arrays) == 2
        written_out: Any = partial(op.record_pair) if pair else apply
        return wraps(forward)(written_out)

    return declare
