"""What several recordings compute, as expressions without what NumPy does by itself and with equal ones once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...engine import operations
from ...engine.node import Array, Leaf, Node
from .tracing import Call, Recording, Unwritable

PLACE = operations.__name__.rpartition(".")[0]  # of the engine's own operations
ELEMENTWISE = frozenset(
    "add subtract multiply divide power negative exp expm1 log log1p sqrt square abs absolute tanh sigmoid sin cos "
    "relu maximum minimum logaddexp where sign greater greater_equal less less_equal equal not_equal logical_and "
    "logical_or bitwise_and bitwise_or logical_not invert".split()
)
LINEAR = frozenset("divide matmul sum mean reshape broadcast_to transpose getitem".split())
EXACT = frozenset("max min reshape broadcast_to transpose getitem".split())  # which round nothing
BENT = frozenset("maximum minimum abs absolute sign relu".split())
CANCELLING = frozenset("add subtract sum sum_to".split())
REDUCTIONS = frozenset("sum mean var max min any all argmax argmin".split())
FLIPPED = {"less": "greater", "greater": "less"}
MOST = 600  # expressions, above which nobody reads the text


class Expression:
    """An operation on expressions, with its values in each recording; `moving` if it depends on a gradient."""

    def __init__(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> None:
        self.op, self.args, self.params, self.values = op, args, params, values
        self.shapes = tuple([np.shape(value) for value in values])
        self.moving: bool = op == "upstream" or any(e.moving for e in self.parts)
        self.serial = 0
        flat = [np.ravel(value) for value in values]
        # Everywhere the same, as a mask whose case isn't met: the values say nothing about other inputs.
        self.uniform: bool = op not in ("number", "array") and all(len(v) and np.all(v == flat[0][0]) for v in flat)

    @property
    def parts(self) -> list[Expression]:
        """The expressions that it is computed from."""
        return list(_within((self.args, tuple(self.params.values()))))


def _within(value: Any) -> Iterator[Expression]:
    if isinstance(value, Expression):
        yield value
    elif isinstance(value, slice):
        yield from _within((value.start, value.stop, value.step))
    elif isinstance(value, tuple):
        for item in value:
            yield from _within(item)


class Expressions:
    """The expressions of several recordings of one function, each made once."""

    def __init__(self, recordings: Sequence[Recording]) -> None:
        self.recordings = recordings
        self.made: dict[tuple[int, ...], Any] = {}
        self.listed: dict[Any, list[Expression]] = {}  # by shape
        self.count = 0
        self.fixed, self.used = set[Expression](), set[Expression]()  # that stand as they are; that others are made of
        kept = (*recordings[0].named.values(), *recordings[0].outputs)
        self.named = {id(recordings[0].source(value)) for value in kept}
        for i, tensors in enumerate(zip(*[r.upstream for r in recordings], strict=True)):
            key = tuple([id(t.node) for t in tensors])
            self.made[key] = self._new("upstream", (i,), {}, tuple([t.data for t in tensors]))
        for name in recordings[0].given:
            sources = [r.source(r.given[name]) for r in recordings]
            if isinstance(sources[0], Node | Call):
                values = tuple([r.inputs[name] for r in recordings])
                self.made[tuple(map(id, sources))] = self._new("input", (name,), {}, values)

    def of(self, *values: Any) -> Any:
        """What values, one a recording, have in common: an expression, or a structure of expressions and constants."""
        found = [r.source(value) for r, value in zip(self.recordings, values, strict=True)]
        a = found[0]
        if all(isinstance(value, Node | Call) for value in found):
            key = tuple(map(id, found))
            if key not in self.made:
                self.made[key] = self._of_sources(found)
                self.fixed.update([self.made[key]] if key[0] in self.named else [])
            return self.made[key]
        if isinstance(a, tuple | list) and len(set(map(len, found))) == 1:
            return tuple([self.of(*items) for items in zip(*found, strict=True)])
        if isinstance(a, slice) and all(isinstance(value, slice) for value in found):
            return slice(*self.of(*[(value.start, value.stop, value.step) for value in found]))
        if all(isinstance(value, np.ndarray) and value.ndim for value in found):
            if a.dtype.kind == "f" and not any(map(np.any, found)):
                return self._zero(tuple(found))
            return self._new("array", (), {}, tuple(found))
        if isinstance(a, int | float | np.number | np.ndarray) and not isinstance(a, bool):
            return self._new("number", (), {}, tuple(map(np.asarray, found)))
        for other in found[1:]:
            if type(a) is not type(other) or a != other:
                raise Unwritable(f"forward reads {a!r} at some inputs and {other!r} at others")
        return a

    def _of_sources(self, sources: Sequence[Any]) -> Any:
        a = sources[0]
        if isinstance(a, Leaf):
            return self.of(*[source.data for source in sources])
        for other in sources:
            if a.op != other.op or len(a.args) != len(other.args):
                raise Unwritable(f"forward takes another way at other inputs: {a.op} here, {other.op} there")
        args = self.of(*[source.args for source in sources])
        params = {k: self.of(*[source.params[k] for source in sources]) for k in a.params}
        params = {k: v for k, v in params.items() if not (v is None or v is False or (k == "ddof" and _is(v, 0)))}
        if isinstance(a, Call):
            args, params = _as_recorded(a.op, args, params)
            return self.make(a.op, args, params, tuple([source.value for source in sources]))
        own = str(a.primitive.forward.__module__).startswith(PLACE) or a.own_op == "put"
        values = tuple([r.values[source] for r, source in zip(self.recordings, sources, strict=True)])
        return self.make(a.op if own else a.primitive, args, params, values)

    def _new(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> Expression:
        """An expression, or the one that is known for these values; they may differ by axes of length 1."""
        made = Expression(op, args, params, values)
        if op == "number":
            return made
        alike = self.listed.setdefault(tuple([tuple([n for n in shape if n > 1]) for shape in made.shapes]), [])
        strict = op in BENT or made.uniform or any(e.uniform for e in made.parts)
        for known in alike if op not in ("upstream", "input", "zero") else ():
            if strict and (known.op != op or known.parts != made.parts):
                continue
            same = known.shapes == made.shapes
            # What rounds nothing equals a computed value exactly or is another: a comparison may read it.
            exact = op in EXACT and known.op not in EXACT
            agree = np.array_equal if exact else _agree
            if (same or op in LINEAR) and all(map(agree, map(np.ravel, known.values), map(np.ravel, values))):
                if same:
                    return known
                made.op, made.args, made.params = "reshape", (known,), {}
        self.used.update(made.parts)
        self.count += 1
        made.serial = self.count
        alike.append(made)
        if self.count > MOST:
            raise Unwritable(f"what is written would have more than {MOST} operations, which nobody reads")
        return made

    def do(self, op: str, *args: Any) -> Any:
        """An elementwise operation on expressions and plain numbers."""
        args = tuple([e if isinstance(e, Expression) else self.of(*[e] * len(self.recordings)) for e in args])
        return self.make(op, args, {}, _computed(op, args))

    def make(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> Any:
        """The simplest expression for an operation that gave these values."""
        if op in CANCELLING and any(e.moving for e in args) and all(map(_cancels, values, *[e.values for e in args])):
            return self._zero(values)
        if op in ELEMENTWISE:
            args = self._unspread(args, tuple(map(np.shape, values)))
            inner = tuple([bare(arg, self.fixed) for arg in args])
            if op != "negative" and inner != args:  # what all operands were spread to, the result is
                made = self.do(op, *inner)
                same = made.values[0].size == values[0].size
                return self.make("reshape" if same else "broadcast_to", (made,), {}, values)
            if op != "where" and all(map(_is_number, args)):
                return self.of(*_computed(op, args))
        return self._simpler(op, args, params, values) or self._new(op, args, params, values)

    def _zero(self, values: tuple[Any, ...]) -> Expression:
        return self._new("zero", (), {}, tuple([np.zeros(np.shape(value)) for value in values]))

    def _unspread(self, args: tuple[Any, ...], shapes: tuple[Any, ...]) -> tuple[Any, ...]:
        """Operands without what broadcasting does by itself."""
        found = list(args)
        for i, arg in enumerate(found):
            inner = arg
            while inner.op in ("broadcast_to", "reshape", "array") and inner not in self.fixed:
                if inner.op != "array":
                    inner = inner.args[0]
                elif all(v.dtype.kind == "f" and not np.ptp(v) for v in inner.values):
                    inner = self.of(*[v.flat[0].item() for v in inner.values])
                else:
                    break
                operands = [*found[:i], inner, *found[i + 1 :]]
                if all(_spreads(inner.values[k], arg.values[k], operands, k, shape) for k, shape in enumerate(shapes)):
                    found[i] = inner
        return tuple(found)

    # Shorter ways to write an operation: each gives an expression, or None where it knows none.

    def _simpler(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> Any:
        if op == "transpose" and (found := self._turned(args[0], params, values)):
            return found
        if op in ("reshape", "broadcast_to", "copy") and args[0].shapes == tuple(map(np.shape, values)):
            return args[0]
        if op == "reshape" and args[0].op == "reshape" and args[0] not in self.fixed:
            return self.make("reshape", args[0].args, {}, values)
        if op in ("sum", "sum_to") and (found := self._undivided(op, args[0], params, values)):
            return found
        if op == "getitem" and args[0].op == "put" and (found := self._beside(args[0], params, values)):
            return found
        known = isinstance(op, str) and op in RULES
        if known and (found := getattr(self, f"_{op}")(*args, values)):
            return found
        if op in LINEAR and args[0].op == "zero":
            return self._zero(values)
        if op in LINEAR and (inner := self._negated(args[0])):
            return self.do("negative", self.make(op, (inner, *args[1:]), params, tuple([-v for v in values])))
        if op in REDUCTIONS and "keepdims" in params:
            rest = {name: value for name, value in params.items() if name != "keepdims"}
            shorter = tuple([np.squeeze(v, _axes(params)) for v in values])
            return self.make("reshape", (self.make(op, args, rest, shorter),), {}, values)
        return None

    def _negated(self, e: Any) -> Any:
        """Of what is written with a minus sign, the rest."""
        if e in self.fixed or e.op not in ("negative", "multiply"):
            return None
        if e.op == "negative":
            return e.args[0]
        below = _is_number(e.args[0]) and max(e.args[0].values) < 0
        return self.do("multiply", self.do("negative", e.args[0]), e.args[1]) if below else None

    def _beside(self, a: Any, params: dict[str, Any], values: Any) -> Any:
        """Elements of an array in which others were set, as those of the array before."""
        before = a.args[0]
        found = tuple([v[plain_index(params["index"], k)] for k, v in enumerate(before.values)])
        return self.make("getitem", (before,), params, found) if all(map(_agree, found, values)) else None

    def _undivided(self, op: str, a: Any, params: dict[str, Any], values: Any) -> Any:
        """(a / b).sum(axis) as a.sum(axis) / b, where b is the same along the axis."""
        if a.op != "divide" or a in self.fixed or not a.moving or a.args[0].shapes != a.shapes:
            return None
        top, under = a.args
        axes = [*np.atleast_1d(_axes(params))] if op == "sum" and params else []
        stays = "keepdims" in params or axes == [*range(len(axes))]
        sums = tuple([np.asarray(v * u) for v, u in zip(values, under.values, strict=True)]) if stays else ()
        if not stays or any(total.shape != np.shape(v) for total, v in zip(sums, values, strict=True)):
            return None
        return self.do("divide", self.make(op, (top,), params, sums), under)

    def _negative(self, a: Any, values: Any) -> Any:
        return a if a.op == "zero" else self._negated(a)

    def _add(self, a: Any, b: Any, values: Any) -> Any:
        for e, other in ((a, b), (b, a)):
            if e.op == "zero" and other.shapes[0] == np.shape(values[0]):
                return other
        if inner := self._negated(b):
            return self.do("subtract", a, inner)
        return self.do("subtract", b, inner) if (inner := self._negated(a)) else None

    def _subtract(self, a: Any, b: Any, values: Any) -> Any:
        if b.op == "zero" and a.shapes[0] == np.shape(values[0]):
            return a
        return self.do("add", a, inner) if (inner := self._negated(b)) else None

    def _multiply(self, a: Any, b: Any, values: Any) -> Any:
        whole = b.shapes[0] == np.shape(values[0])
        if a.op == "zero" or b.op == "zero":
            return self._zero(values)
        if inner := self._negated(a):
            return self.do("negative", self.do("multiply", inner, b))
        if inner := self._negated(b):
            return self.do("negative", self.do("multiply", a, inner))
        if not _is_number(a) and (_is_number(b) or (b.moving and not a.moving and whole)):
            return self.do("multiply", b, a)  # numbers first, then the gradient
        if a is b:
            return self.do("square", a)
        if a.op == "square" and a.args[0] is b and a not in self.fixed:
            return self.do("power", b, 3)
        if a.op == "divide" and a.args[1].op == "add" and a.args[1].args[1] is b and _is(a.args[1].args[0], 1):
            # a / (1 + e) * e, the derivative of the logistic function 1 / (1 + e)
            return self.do("multiply", a.args[0], self.do("subtract", 1, self.do("divide", 1, a.args[1])))
        return self._times_part(a, b, True) or self._times_part(b, a, False)

    def _times_part(self, e: Any, other: Any, left: bool) -> Any:
        """A product of `other` with c * x, or with 1 / x: numbers stand first, and what is divided is divided once."""
        if e in self.fixed or e.op not in ("multiply", "divide") or not _is_number(e.args[0]):
            return None
        number, x = e.args
        if e.op == "divide":  # but for what the forward pass has
            known = _is_number(other) or (other.moving and e in self.used)
            return self.do("divide", other, x) if _is(number, 1) and not known else None
        if _is_number(other):
            return self.do("multiply", self.do("multiply", other, number), x)
        return self.do("multiply", number, self.do("multiply", *((x, other) if left else (other, x))))

    def _divide(self, a: Any, b: Any, values: Any) -> Any:
        if _is_number(b) and a.moving and np.ptp(b.values) == 0 and len(repr(1 / float(b.values[0]))) < 5:
            return self.do("multiply", 1 / float(b.values[0]), a)
        if b.op == "sum" and b.args[0].op == "equal" and _are_floats(b.args[0]) and all(map(_agree, a.values, values)):
            return a  # no tie at these inputs
        for e in (a, b) if not _is_number(a) else ():
            if e.op == "multiply" and _is_number(e.args[0]) and e not in self.fixed:
                number = float(e.args[0].values[0] if e is a else 1 / e.args[0].values[0])
                if np.ptp(e.args[0].values) == 0 and len(repr(number)) < 6:  # 1 / 3 stays where it is
                    rest = (e.args[1], b) if e is a else (a, e.args[1])
                    return self.do("multiply", number, self.do("divide", *rest))
        return None

    def _power(self, a: Any, b: Any, values: Any) -> Any:
        if a.op == "divide" and _is(a.args[0], 1) and a not in self.fixed:
            return self.do("divide", 1, self.do("power", a.args[1], b))
        return None

    def _rsqrt(self, a: Any, values: Any) -> Any:
        return self.do("divide", 1, self.do("sqrt", a))

    def _sum_to(self, a: Any, values: Any) -> Any:
        to, shape = np.shape(values[0]), a.shapes[0]
        lead = len(shape) - len(to)
        summed = [i for i, n in enumerate(shape) if i < lead or n != to[i - lead]]
        shorter = tuple([np.sum(v, tuple(summed)) for v in a.values])
        axis = tuple([self.of(*[i] * len(values)) for i in summed])
        inner = self.make("sum", (a,), {"axis": axis} if shorter[0].ndim else {}, shorter)
        return inner if inner.shapes[0] == to else self.make("reshape", (inner,), {}, values)

    def _where(self, mask: Any, a: Any, b: Any, values: Any) -> Any:
        if all(e.op == "zero" or _is(e, 0) for e in (a, b)):
            return self._zero(values)
        if mask.op == "equal" and b.moving and _are_floats(mask) and all(map(_agree, b.values, values)):
            return b  # no tie at these inputs
        if _is(a, 0) and b.moving and mask.op in FLIPPED:
            turned = self.do("where", self.do(FLIPPED[mask.op], *mask.args), b, 0)
            return turned if all(map(_agree, turned.values, values)) else None  # at a tie they differ
        return None

    def _turned(self, a: Any, params: dict[str, Any], values: Any) -> Any:
        """(a.T @ b).T as b.T @ a."""
        if a.op != "matmul" or a in self.fixed or a.args[0].op != "transpose" or len(a.args[1].shapes[0]) < 2:
            return None
        left, right = a.args[0].args[0], a.args[1]
        swapped = [*zip(left.values, a.args[0].values, strict=True), *zip(a.values, values, strict=True)]
        if not all(np.array_equal(np.swapaxes(v, -1, -2), w) for v, w in swapped):
            return None
        turned = self.make("transpose", (right,), params, tuple([np.swapaxes(v, -1, -2) for v in right.values]))
        return self.make("matmul", (turned, left), {}, values)

    def _bitwise_or(self, a: Any, b: Any, values: Any) -> Any:
        return a if b.op == "not_equal" and b.args[0] is b.args[1] else None  # or not a number

    def _astype(self, a: Any, values: Any) -> Any:
        return a if a.values[0].dtype.kind in "iu" else None  # a count, by which NumPy divides as by a float


RULES = frozenset("negative add subtract multiply divide power rsqrt sum_to where astype bitwise_or".split())


def _are_floats(mask: Expression) -> bool:
    return any(e.values[0].dtype.kind == "f" for e in mask.args)


def _is_number(e: Any) -> bool:
    return isinstance(e, Expression) and e.op == "number"


def _is(e: Any, number: float) -> bool:
    return _is_number(e) and all(v == number for v in e.values)


def _computed(op: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple([getattr(np, op)(*values) for values in zip(*[e.values for e in args], strict=True)])


def _cancels(result: Any, *operands: Any) -> bool:
    """Whether terms cancel but for rounding."""
    size = max(map(_size, operands))
    return size > 0 and _size(result) <= 1e-13 * size


def _size(value: Any) -> float:
    return float(np.max(np.abs(value), initial=0))


def _leads(shape: tuple[int, ...], spread: tuple[int, ...]) -> bool:
    """Whether a shape was spread along leading axes only."""
    own = shape[next((i for i, n in enumerate(shape) if n > 1), len(shape)) :]
    return len(shape) <= len(spread) and own == spread[len(spread) - len(own) :]


def bare(e: Expression, fixed: set[Expression]) -> Expression:
    """An expression before it was spread along leading axes."""
    while e.op in ("reshape", "broadcast_to") and e not in fixed:
        inner = e.args[0]
        grows = e.op == "reshape" and inner.values[0].size != e.values[0].size
        if grows or not all(map(_leads, inner.shapes, e.shapes)):
            break
        e = inner
    return e


def plain_index(index: Any, k: int) -> Any:
    """An index as NumPy takes it, in one of the recordings."""
    if isinstance(index, tuple):
        return tuple([plain_index(item, k) for item in index])
    if isinstance(index, slice):
        return slice(*[plain_index(item, k) for item in (index.start, index.stop, index.step)])
    if isinstance(index, Expression):
        value = index.values[k]
        return int(value) if index.op == "number" else value
    return index


def _axes(params: dict[str, Any]) -> Any:
    """The axes of a reduction as NumPy takes them."""
    axis = params.get("axis")
    return tuple([int(n.values[0]) for n in axis]) if isinstance(axis, tuple) else axis and int(axis.values[0])


def _agree(a: Any, b: Any) -> bool:
    a, b = np.ravel(a), np.ravel(b)
    if a.dtype.kind != b.dtype.kind or a.size != b.size:
        return False
    return np.array_equal(a, b) if a.dtype.kind != "f" else np.allclose(a, b, rtol=1e-11, atol=0)


def _spreads(inner: Array, spread: Array, operands: list[Any], k: int, shape: tuple[int, ...]) -> bool:
    """Whether `inner` among the operands of an elementwise operation gives what `spread` in its place gave."""
    try:
        same = np.array_equal(np.broadcast_to(inner, np.shape(spread)), spread)
        return same and np.broadcast_shapes(*[np.shape(e.values[k]) for e in operands]) == shape
    except ValueError:
        return False


def _as_recorded(op: str, args: tuple[Any, ...], params: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call as a node of the graph would have them: arrays by place, all else by name."""
    place = {"getitem": "index", "astype": "dtype", "transpose": "axes", "reshape": "shape"}
    place |= dict.fromkeys("sum mean max min any all argmax argmin".split(), "axis")
    if op in place and len(args) > 1:
        return args[:1], params | {place[op]: args[1] if len(args) == 2 else args[1:]}
    return args, params
