"""What several recordings compute, as expressions without what NumPy does by itself and with equal ones once."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import partial, reduce
from typing import Any

import numpy as np

from ...engine import operations
from ...engine.node import Array, Leaf, Node
from .tracing import Call, Recording, Unwritable, mapped

PLACE = operations.__name__.rpartition(".")[0]  # of the engine's own operations
UFUNCS = {name for name, function in vars(np).items() if isinstance(function, np.ufunc)}
ELEMENTWISE = UFUNCS - {"matmul", "vecdot", "matvec", "vecmat"} | {"sigmoid", "relu", "where"}
LINEAR = frozenset("divide matmul sum mean reshape broadcast_to transpose getitem roll".split())
ADDITIVE = frozenset("divide reshape transpose sum scatter".split())  # in what stands first
EXACT = frozenset("max min reshape broadcast_to transpose getitem roll".split())  # which round nothing
BENT = frozenset("maximum minimum abs absolute sign relu where less greater less_equal greater_equal".split())
ALONE = frozenset("upstream input zero places".split())  # which are no others that have their values
CANCELLING = frozenset("add subtract sum sum_to".split())
REDUCTIONS = frozenset("sum mean var max min any all argmax argmin".split())
# What a call may have by place, where a node of the graph has arrays alone.
PLACED = {"getitem": "index", "astype": "dtype", "transpose": "axes", "reshape": "shape", "tile": "reps"}
PLACED |= dict.fromkeys(REDUCTIONS - {"var"}, "axis")
FLIPPED = {"less": "greater", "greater": "less"}
LAYERS = 8  # of spreading, one in the other
MOST = 600  # expressions, above which nobody reads the text
TOO_MANY = f"what is written would have more than {MOST} operations, which nobody reads"


class Expression:
    """An operation on expressions, with its values in each recording; `moving` if it depends on a gradient."""

    def __init__(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> None:
        self.op, self.args, self.params, self.values = op, args, params, values
        self.shapes = tuple([np.shape(value) for value in values])
        self.moving: bool = op == "upstream" or any(e.moving for e in self.parts)
        self.serial = 0
        self.lengths = tuple([tuple([n for n in shape if n > 1]) for shape in self.shapes])
        flat = [np.ravel(value) for value in values]
        made = op not in ("number", "array", "zero", "upstream")
        alike = made and all(len(v) and np.all(v == flat[0][0]) for v in flat)
        # Everywhere the same, as a mask whose case isn't met, or made of that: values say nothing about other inputs.
        self.uniform: bool = alike or any(e.uniform for e in self.parts)
        # It has cases, or is made of what has, of which some may be met nowhere together.
        self.bent: bool = op in BENT or any(e.bent or e.values[0].dtype == bool for e in self.parts)

    @property
    def parts(self) -> list[Expression]:
        """The expressions that it is computed from."""
        inside = list[Expression]()
        mapped((self.args, self.params), lambda e: inside.append(e) if isinstance(e, Expression) else None)
        return inside


class Expressions:
    """The expressions of several recordings of one function, each made once."""

    def __init__(self, recordings: Sequence[Recording], stored: Container[int] | None = None) -> None:
        self.recordings, self.unit = recordings, recordings[0].unit
        self.made: dict[tuple[int, ...], Any] = {}
        self.listed: dict[Any, list[Expression]] = {}  # by shape
        self.count = 0
        self.late = False  # whether all that is made is of the backward pass, also what no dy is in
        self.numbers: dict[Any, Expression] = {}
        self.fixed = set[Expression]()  # which stand as they are
        self.read = set[Expression]()  # by what forward computes but for products
        kept = (*recordings[0].named.values(), *recordings[0].outputs)
        self.named = {id(recordings[0].source(value)) for value in kept} if stored is None else stored
        for i, tensors in enumerate(zip(*[r.upstream for r in recordings], strict=True)):
            key = tuple([id(t.node) for t in tensors])
            values = tuple([t.data for t in tensors])
            self.made[key] = self.of(*values) if self.unit else self._listed(Expression("upstream", (i,), {}, values))
        for name in recordings[0].args:
            sources = [r.source(r.args[name]) for r in recordings]
            if isinstance(sources[0], Node | Call):
                values = tuple([r.inputs[name] for r in recordings])
                self.made[tuple(map(id, sources))] = self._listed(Expression("input", (name,), {}, values))

    def of(self, *values: Any) -> Any:
        """What values, one a recording, have in common: an expression, or a structure of expressions and constants."""
        sources = [r.source(value) for r, value in zip(self.recordings, values, strict=True)]
        a = sources[0]
        if all(isinstance(value, Node | Call) for value in sources):
            key = tuple(map(id, sources))
            if key not in self.made:
                self.made[key] = self._of_sources(sources)
                self.fixed.update([self.made[key]] if key[0] in self.named else [])
            return self.made[key]
        if isinstance(a, tuple | list) and len(set(map(len, sources))) == 1:
            return tuple([self.of(*items) for items in zip(*sources, strict=True)])
        if isinstance(a, slice) and all(isinstance(value, slice) for value in sources):
            return slice(*self.of(*[(value.start, value.stop, value.step) for value in sources]))
        if all(isinstance(value, np.ndarray) and value.ndim for value in sources):
            if a.dtype.kind == "f" and not any(map(np.any, sources)):
                return self._zero(tuple(sources))
            plain = [n for n, v in self.recordings[0].named.items() if type(v) is np.ndarray and v.shape == a.shape]
            return self._listed(Expression("array", tuple(plain), {}, tuple(sources)))
        if isinstance(a, int | float | np.number | np.ndarray) and not isinstance(a, bool):
            return self._listed(Expression("number", (), {}, tuple(map(np.asarray, sources))))
        for other in sources[1:]:
            if type(a) is not type(other) or a != other:
                raise Unwritable(f"forward reads {a!r} at some inputs and {other!r} at others")
        return a

    def known(self, values: Sequence[Any]) -> Any:
        """The expression that has these values, one a recording, if there is one."""
        return self.made.get(tuple([id(r.source(value)) for r, value in zip(self.recordings, values, strict=True)]))

    def _of_sources(self, sources: Sequence[Any]) -> Any:
        a = sources[0]
        if isinstance(a, Leaf):
            return self.of(*[source.data for source in sources])
        for other in sources:
            if a.op != other.op or len(a.args) != len(other.args):
                raise Unwritable(f"forward takes another way at other inputs: {a.op} here, {other.op} there")
        args = self.of(*[source.args for source in sources])
        params = {k: self.of(*[source.params[k] for source in sources]) for k in a.params}
        usual: Any = lambda k, v: v is None or v is False or (k in ("ddof", "offset") and _is(v, 0))
        params = {k: v for k, v in params.items() if not usual(k, v)}
        if isinstance(a, Call):
            if a.op in PLACED and len(args) > 1:
                args, params = args[:1], params | {PLACED[a.op]: args[1] if len(args) == 2 else args[1:]}
            return self.make(a.op, args, params, tuple([source.value for source in sources]))
        own = str(a.primitive.forward.__module__).startswith(PLACE) or a.own_op == "put"
        values = tuple([r.values[source] for r, source in zip(self.recordings, sources, strict=True)])
        return self.make(a.op if own else a.primitive, args, params, values)

    def _listed(self, made: Expression) -> Expression:
        """An expression, or the one that is known for its values; they may differ by axes of length 1."""
        if made.op == "number":
            return self.numbers.setdefault(tuple([(v.dtype.kind, v.item()) for v in made.values]), made)
        op, known = made.op, self.listed.get(made.lengths, []) if made.op not in ALONE else []
        if made.uniform or made.bent:
            known = [e for e in known if e.op == op and e.parts == made.parts]
        # What rounds nothing equals a computed value exactly or is another: a comparison may read it.
        agree = {e: np.array_equal if op in EXACT and e.op not in EXACT else _agree for e in known}
        alike = [e for e in known if all(map(agree[e], map(np.ravel, e.values), map(np.ravel, made.values)))]
        same = next((known for known in alike if known.shapes == made.shapes), None)
        if same is not None:
            return same
        if alike and op in LINEAR and not (op == "transpose" and made.args[0].op != "reshape"):
            same = alike[-1]
            same = same.args[0] if same.op == "reshape" and same not in self.fixed else same
            made.op, made.args, made.params = "reshape", (same,), {}
        self.read.update(made.parts if not made.moving and made.op not in ("multiply", "divide") else ())
        self.count = made.serial = self.count + 1
        self.listed.setdefault(made.lengths, []).extend([made] if op != "places" else [])
        if self.count > MOST:
            raise Unwritable(TOO_MANY)
        return made

    def do(self, op: str, *args: Any, **params: Any) -> Any:
        """A function of NumPy's on expressions and plain numbers."""
        args = tuple([e if isinstance(e, Expression) else self.of(*[e] * len(self.recordings)) for e in args])
        run: Any = lambda k: getattr(np, op)(*[e.values[k] for e in args], **plain(params, k))
        return self.make(op, args, params, tuple(map(run, range(len(self.recordings)))))

    def make(self, op: Any, args: tuple[Any, ...], params: dict[str, Any], values: tuple[Any, ...]) -> Any:
        """The simplest expression for an operation that gave these values."""
        moving = self.late or any(isinstance(e, Expression) and e.moving for e in args)
        if op in CANCELLING and moving:
            size: Any = lambda array: float(np.max(np.abs(array), initial=0))
            before = [max(map(size, own)) for own in zip(*[e.values for e in args], strict=True)]
            left = [size(v) / most if most else np.inf for v, most in zip(values, before, strict=True)]
            if np.median(left) <= 1e-13 and max(left) <= 1e-3:  # where much cancels before, more is left
                return self._zero(values)
        if op in ELEMENTWISE:
            args = self._unspread(args, tuple(map(np.shape, values)))
            inner = tuple(map(self.bare, args))
            if op != "negative" and inner != args:  # what all operands were spread to, the result is
                made = self.do(op, *inner)
                same = all(np.size(v) == np.size(w) for v, w in zip(made.values, values, strict=True))
                return self.make("reshape" if same else "broadcast_to", (made,), {}, values)
            if op != "where" and all(map(_is_number, args)):
                return self.of(*map(getattr(np, op), *[e.values for e in args]))
        if op in ("put", "scatter", "broadcast_to"):
            value = self.bare(args[-1])
            spread = value.op == "broadcast_to" and value not in self.fixed and any(value.args[0].lengths)
            value = value.args[0] if spread else value
            # np.add.at reads beyond what it spreads along several axes of an index, where the array has one.
            args = args if op == "scatter" and np.ndim(values[0]) == 1 and any(value.lengths) else (*args[:-1], value)
        if op in ("reshape", "broadcast_to", "sum_to", "copy") and args[0].shapes == tuple(map(np.shape, values)):
            return args[0]
        factors = args[:1] if op == "divide" else args[:2] if op in (*LINEAR, "negative", "multiply", "scatter") else ()
        if any(e.op == "zero" for e in factors):
            return self._zero(values)
        signs = [self._unsigned(e) for e in args] if op == "matmul" and moving else []
        if any(signs):
            made = self.do(op, *[inner or e for inner, e in zip(signs, args, strict=True)])
            return made if all(signs) else self.do("negative", made)
        number, _ = self._split(args[0]) if op in LINEAR and moving else (None, None)
        if number and op != "divide" and (op in ("reshape", "transpose") or max(number.values) < 0):
            number = number if op in ("reshape", "transpose") else self.of(*[-1] * len(values))
            args = self.do("divide", args[0], number), *args[1:]
            return self._scaled(number, self.make(op, args, params, tuple(map(np.divide, values, number.values))))
        if op in REDUCTIONS and "keepdims" in params:
            rest = {name: value for name, value in params.items() if name != "keepdims"}
            shorter = tuple([np.squeeze(v, plain(params.get("axis"))) for v in values])
            return self.make("reshape", (self.make(op, args, rest, shorter),), {}, values)
        e = Expression(op, args, params, values)
        e.moving = e.moving or moving
        parts = e.parts if self.unit else [e]
        if e.uniform and all(part.op in ("number", "array") for part in parts):  # made of ones
            return self.of(*map(np.asarray, values))
        rule = getattr(self, f"_{op}", None) if isinstance(op, str) else None
        return (rule and rule(e, *args)) or self._listed(e)

    def _zero(self, values: tuple[Any, ...]) -> Expression:
        return self._listed(Expression("zero", (), {}, tuple([np.zeros(np.shape(value)) for value in values])))

    def _unspread(self, args: tuple[Any, ...], shapes: tuple[Any, ...]) -> tuple[Any, ...]:
        """Operands without what broadcasting does by itself."""
        turned = list(args)
        for i, arg in enumerate(turned):
            inner = arg
            for _ in range(LAYERS):
                if not (inner := self._inside(inner)):
                    break
                operands = [*turned[:i], inner, *turned[i + 1 :]]
                if all(_spreads(inner.values[k], arg.values[k], operands, k, shape) for k, shape in enumerate(shapes)):
                    turned[i] = inner
        return tuple(turned)

    def _inside(self, e: Any) -> Any:
        """What an expression is spread from or laid out anew, with its number; else None."""
        if e.op == "array" and all(v.dtype.kind == "f" and not np.ptp(v) for v in e.values):
            return self.of(*[v.flat[0].item() for v in e.values])
        if e in self.fixed:
            return None
        if e.op == "multiply" and _is_number(e.args[0]):
            inner = self._inside(e.args[1])
            return inner and self.do("multiply", e.args[0], inner)
        return e.args[0] if e.op in ("broadcast_to", "reshape") else None

    def bare(self, e: Any) -> Any:
        """An expression before it was spread along leading axes."""
        while (inner := self._inside(e)) and all(map(_leads, inner.shapes, e.shapes)):
            if inner.op == "number" and e.op not in ("reshape", "broadcast_to"):
                break
            e = inner
        return e

    # Products have one constant, which stands first, and sums have terms with a sign.

    def _split(self, e: Any) -> tuple[Any, Any]:
        """The constant that an expression is multiplied by, None for 1, and the rest of it."""
        if e in self.fixed or e.op != "multiply" or not _is_number(e.args[0]) or np.ptp(e.args[0].values):
            return None, e
        return e.args[0], e.args[1]

    def _unsigned(self, e: Any) -> Any:
        """What an expression is the negative of, also where it is transposed, or nothing."""
        inner = e.args[0] if e.op == "transpose" and e not in self.fixed else e
        if inner in self.fixed or not is_negative(inner):
            return None
        rest = self.do("negative", inner)
        return rest if inner is e else self.do("transpose", rest, **e.params)

    def _scaled(self, number: Any, e: Any) -> Any:
        """A number times an expression."""
        own, rest = self._split(e)
        if own and _is(number, -1) and max(own.values) > 0:
            rest = e  # which may have a name
        elif own and np.ptp(number.values):
            number, rest = own, self._scaled(number, rest)
        elif own:
            number = self.do("multiply", number, own)
        values = tuple(map(np.multiply, number.values, rest.values))
        if _is(number, 0) or _is(number, 1):
            return rest if _is(number, 1) else self._zero(values)
        made = Expression("multiply", (number, rest), {}, values)
        made.moving = made.moving or self.late
        return self._listed(made)

    _negative: Any = lambda self, e, a: self._scaled(self.of(*[-1] * len(e.values)), a)
    _subtract: Any = lambda self, e, a, b: self.do("add", a, self.do("multiply", -1, b))
    _rsqrt: Any = lambda self, e, a: self.do("divide", 1, self.do("sqrt", a))

    def _add(self, e: Expression, a: Any, b: Any) -> Any:
        zeros = [(x.op == "zero" or _is(x, 0)) and y.shapes == e.shapes for x, y in ((a, b), (b, a))]
        if any(zeros) or not e.moving:
            return b if zeros[0] else a if zeros[1] else None
        like = dict[Expression, list[Any]]()
        for number, rest in map(self._split, terms(e, lambda t: t in self.fixed or not t.moving)):
            like.setdefault(rest, []).append(number or self.of(*[1] * len(e.values)))
        if any(len(numbers) > 1 for numbers in like.values()):  # 4 * g + g is 5 * g
            add = partial(self.do, "add")
            return reduce(add, [self._scaled(reduce(add, numbers), rest) for rest, numbers in like.items()])
        added = terms(a, lambda t: t in self.fixed or not t.moving)
        for i, term in enumerate(added):
            if made := self._together(term, b):
                return reduce(partial(self.do, "add"), [*added[:i], made, *added[i + 1 :]])
        return None

    def _together(self, a: Any, b: Any) -> Any:
        """The sum of two arrays that were laid, summed, placed or divided alike, or that are cases of one mask."""
        (p, x), (q, y) = self._split(a), self._split(b)
        alike = x.op == y.op and x.op in ADDITIVE and (x.args[1:], x.params) == (y.args[1:], y.params)
        same = alike and (x.op == "divide" or x.args[0].shapes == y.args[0].shapes)  # one quotient broadcasts as both
        if not same or {a, b, x, y} & self.fixed:
            return self._joined(a, b)
        inner = [self.do("multiply", n or 1, t.args[0]) for n, t in ((p, x), (q, y))]
        values = tuple(map(np.add, a.values, b.values))
        return self.make(x.op, (self.do("add", *inner), *x.args[1:]), x.params, values)

    def _joined(self, a: Any, b: Any) -> Any:
        """Two cases of one mask as one: what holds where it is true, and where not."""
        (mask, *ours), (other, *theirs) = self._cases(a), self._cases(b)
        if mask is None or mask is not other:
            return None
        both = zip(ours, theirs, strict=True)
        sides = [self.do("add", *pair) if all(pair) else pair[0] or pair[1] or 0 for pair in both]
        return self.do("where", mask, *sides)

    def _cases(self, e: Any) -> Any:
        """The mask of an expression that is 0 where it is true, or where not, and what it is elsewhere."""
        if e.op == "where" and any(map(_is_zero, e.args[1:])) and e not in self.fixed:
            return (e.args[0], *[None if _is_zero(part) else part for part in e.args[1:]])
        if e.op in ("multiply", "divide") and e not in self.fixed:
            for i in (0, 1) if e.op == "multiply" else (0,):
                mask, *inner = self._cases(e.args[i])
                if mask:
                    return (mask, *[part and self.do(e.op, *e.args[:i], part, *e.args[i + 1 :]) for part in inner])
        return None, None, None

    def _multiply(self, e: Expression, a: Any, b: Any) -> Any:
        if _is_number(a) or _is_number(b):
            return self._scaled(*((a, b) if _is_number(a) else (b, a)))
        (p, a), (q, b) = (self._split(a), self._split(b)) if e.moving else ((None, a), (None, b))
        if p or q:
            return self._scaled(self.do("multiply", p or 1, q or 1), self.do("multiply", a, b))
        for x, y in ((a, b), (b, a)):
            n, inner = x.args if x.op == "multiply" and _is_number(x.args[0]) else (None, x)
            free = inner.op == "divide" and inner.moving and not {x, inner} & self.fixed
            if free and (known := self._quotient(y, inner.args[1])):  # g / total * e, where p is e / total
                return self.do("multiply", n or 1, self.do("multiply", inner.args[0], known))
            known = y in self.fixed or (x.moving and y in self.read)
            if y.op == "divide" and _is(y.args[0], 1) and not known:
                return self.do("divide", x, y.args[1])
        return None

    def _quotient(self, a: Any, b: Any) -> Any:
        """What a quotient is besides: 1, or what forward has for it, however it computed that."""
        if a is b:
            return self.of(*[1] * len(a.values))
        values = tuple(map(np.divide, a.values, b.values))
        listed = [e for own in self.listed.values() for e in own if not (e.moving or e.uniform)]
        known = [e for e in listed if e.shapes == tuple(map(np.shape, values))]
        logs = [e for e in known if e in self.fixed and all(map(_agree, map(np.exp, e.values), values))]
        same = [e for e in known if all(map(_agree, e.values, values))]
        if not same and not logs and b.op == "add" and a in b.args and _is(b.args[0], 1):
            return self.do("subtract", 1, self.do("divide", 1, b))  # e / (1 + e), where 1 / (1 + e) is the logistic
        return same[0] if same else self.do("exp", logs[0]) if logs else None  # of the logarithms, exp

    def _divide(self, e: Expression, a: Any, b: Any) -> Any:
        if b.op == "sum" and _is_tie(b.args[0]) and all(map(_agree, a.values, e.values)):
            return a
        if not e.moving:
            return None
        if _is_number(b):
            return self._scaled(self.do("divide", 1, b), a)
        (p, a), (q, b) = self._split(a), self._split(b)
        return self._scaled(self.do("divide", p or 1, q or 1), self.do("divide", a, b)) if p or q else None

    # Sums and shapes

    def _sum(self, e: Expression, a: Any) -> Any:
        """Of products, what is the same along the axes that are summed stands outside."""
        if a in self.fixed or not a.moving or not (a.op == "divide" or (a.op == "multiply" and _is_number(a.args[0]))):
            return None
        ndim = len(a.shapes[0])
        axes = tuple(np.atleast_1d(plain(e.params.get("axis"))) if e.params else range(ndim))
        x, y = a.args if a.op == "divide" else a.args[::-1]
        lengths = [np.take((1,) * (ndim - len(shape)) + shape, axes) for shape in y.shapes]
        if x.shapes != a.shapes or not all(np.all(own == 1) for own in lengths):
            return None
        return self._laid(self.do(a.op, self.do("sum", x, **{**e.params, "keepdims": True}), y), e)

    def _sum_to(self, e: Expression, a: Any) -> Any:
        to, shape = e.shapes[0], a.shapes[0]
        lead = len(shape) - len(to)
        summed = [i for i, n in enumerate(shape) if i < lead or n != to[i - lead]]
        axes = self.of(*[tuple(summed)] * len(e.values))
        return self._laid(self.do("sum", a, **({"axis": axes} if len(summed) < len(shape) else {})), e)

    _laid: Any = lambda self, a, e: self.make("reshape", (a,), {}, e.values)

    def _reshape(self, e: Expression, a: Any) -> Any:
        if a in self.fixed or a.op not in ("reshape", "multiply") or any(map(_is_number, a.args)):
            return None
        if a.op == "reshape":
            return self._laid(*a.args, e)
        inner = [x.args[0] if x.op == "reshape" else x for x in a.args]  # of what has axes of length 1 besides
        flat = e.moving and a.lengths == e.lengths and {np.ndim(x.values[0]) for x in (e, *inner)} <= {0, 1}
        return self.do("multiply", *inner) if flat else None

    def _transpose(self, e: Expression, a: Any) -> Any:
        """a.T.T as a, (a.T @ b).T as b.T @ a."""
        if a.op == "transpose" and all(map(np.array_equal, a.args[0].values, e.values)):
            return a.args[0]
        if np.ndim(a.values[0]) < 2:
            return a
        if a.op != "matmul" or a in self.fixed or all(x.op != "transpose" for x in a.args):
            return None
        swapped = all(np.array_equal(np.swapaxes(v, -1, -2), w) for v, w in zip(a.values, e.values, strict=True))
        if not swapped or any(len(x.shapes[0]) != len(e.shapes[0]) for x in a.args):
            return None
        return self.do("matmul", *[self.do("transpose", x, **e.params) for x in a.args[::-1]])

    def _getitem(self, e: Expression, a: Any) -> Any:
        """What was done to the places of elements, done to these; elements beside those that were set, as before."""
        index: Any = e.params.get("index")
        if isinstance(index, Expression) and index.args[:1] and getattr(index.args[0], "op", "") == "places":
            whole = self.make("reshape", (a,), {}, tuple(map(np.reshape, a.values, index.args[0].shapes)))
            return self.make(index.op, (whole, *index.args[1:]), index.params, e.values)
        if any(i.values[0].dtype == bool and all(map(np.all, i.values)) for i in e.parts[1:]):
            raise Unwritable("forward picks by a mask that is true of all: pass inputs of which it leaves some out")
        if a.op != "put":
            return None
        picked = tuple([v[plain(e.params["index"], k)] for k, v in enumerate(a.args[0].values)])
        return self.make("getitem", a.args[:1], e.params, picked) if all(map(_agree, picked, e.values)) else None

    def _scatter(self, e: Expression, a: Any) -> Any:
        """Elements that fill an array in their order, and those that were rolled or sorted, back in their places."""
        index: Any = e.params.get("index")
        items = index if isinstance(index, tuple) else (index,)
        if all(_is_number(i) or i is None or (isinstance(i, slice) and i.step is None) for i in items):
            same = all(np.size(v) == np.size(w) for v, w in zip(a.values, e.values, strict=True))
            return self._laid(a, e) if same else None
        if getattr(index, "op", "") == "diagonal" and not index.params and len(index.args[0].shapes[0]) == 2:
            shapes, i = index.args[0].shapes, self.of(*[np.arange(len(places)) for places in index.values])
            laid = tuple(map(np.reshape, e.values, shapes))
            single = None if a.shapes[0] else self.do("multiply", a, self.of(*[np.eye(*shape) for shape in shapes]))
            return self._laid(single or self.make("scatter", (a,), {"index": (i, i)}, laid), e)
        op: Any = getattr(index, "op", "")
        moved: Any = index.args if op else ()
        sorts = op == "take_along_axis" and moved[1].op == "argsort"
        if sorts or (op == "roll" and moved[0].op == "places" and _is_number(moved[1])):
            back = self.do("argsort", moved[1], axis=moved[2]) if sorts else self.do("negative", moved[1])
            spread = tuple([np.broadcast_to(v, shape) for v, shape in zip(a.values, index.shapes, strict=True)])
            laid = tuple([np.reshape(v, shape) for v, shape in zip(e.values, index.shapes, strict=True)])
            a = self.make("broadcast_to", (a,), {}, spread)
            return self._laid(self.make(op, (a, back, *moved[2:]), index.params, laid), e)
        return None

    def _matmul(self, e: Expression, a: Any, b: Any) -> Any:
        """A product with a row or a column, without axes of length 1."""
        if not e.moving or min(np.ndim(a.values[0]), np.ndim(b.values[0])) < 2:
            return None
        if all(shape[-1] == 1 for shape in a.shapes) and "transpose" not in (a.op, b.op):
            return self.do("multiply", a, b)
        vectors = [(x, self._inside(x) if x.shapes[0][axis] == 1 else None) for x, axis in ((a, -2), (b, -1))]
        inner = [v if v and np.ndim(v.values[0]) == 1 and v.lengths == x.lengths else x for x, v in vectors]
        if len(a.shapes[0]) > 2 or len(b.shapes[0]) > 2 or inner == [a, b]:
            return None
        return self._laid(self.do("matmul", *inner), e)

    # Masks

    def _bounded(self, e: Expression, a: Any, b: Any) -> Any:
        """What is compared with a number beyond the one that it was cut off at."""
        outer, beyond = ("maximum", np.less) if e.op == "less" else ("minimum", np.greater)
        numbers = [x for x in a.args if _is_number(x)] if a.op == outer and _is_number(b) else []
        if not numbers or not all(map(beyond, numbers[0].values, b.values)):
            return None
        return self.do(e.op, *[x for x in a.args if x is not numbers[0]], b)

    _less = _greater = _bounded

    def _where(self, e: Expression, mask: Any, a: Any, b: Any) -> Any:
        if a is b or all(map(_is_zero, (a, b))):
            return self.make("broadcast_to", (a,), {}, e.values)
        if a.op == "where" and _is_zero(b) and _is_zero(a.args[2]) and a not in self.fixed:
            return self.do("where", self.do("bitwise_and", mask, a.args[0]), a.args[1], 0)
        spread = [np.broadcast_to(v, shape) for v, shape in zip(b.values, e.shapes, strict=True)]
        if mask in self.read:  # a case of the author's, who says what holds at a tie
            return None
        rule = b.moving or all(map(_agree, [2 * v for v in a.values], b.values))
        if _is_tie(mask) and rule and all(map(_agree, spread, e.values)):
            return self.make("broadcast_to", (b,), {}, e.values)
        if _is(a, 0) and (b.moving or self.late) and mask.op in FLIPPED:
            x, y = mask.args
            if not (_is_number(x) or _is_number(y) or x.serial < y.serial):  # of two arrays, one where they are equal
                return None
            turned = self.do("where", self.do(FLIPPED[mask.op], *mask.args), b, 0)
            return turned if all(map(_agree, turned.values, e.values)) else None  # at a tie they differ
        return None

    _power: Any = lambda self, e, a, b: a if _is(b, 1) else None
    # Or not a number; and a count, by which NumPy divides as by a float.
    _bitwise_or: Any = lambda self, e, a, b: a if b.op == "not_equal" and b.args[0] is b.args[1] else None
    _astype: Any = lambda self, e, a: a if a.values[0].dtype.kind in "iu" or e.moving else None


def terms(e: Any, whole: Callable[[Any], bool]) -> list[Any]:
    """What is added, of sums that do not stand `whole`."""
    return [e] if e.op != "add" or whole(e) else [term for arg in e.args for term in terms(arg, whole)]


def _is_tie(mask: Expression) -> bool:
    """Whether a mask is of floats that are equal, which no rule has to mind where they aren't."""
    return mask.op == "equal" and any(e.values[0].dtype.kind == "f" for e in mask.args)


def _is_number(e: Any) -> bool:
    return isinstance(e, Expression) and e.op == "number"


def _is_zero(e: Any) -> bool:
    return e.op == "zero" or _is(e, 0)


def _is(e: Any, number: float) -> bool:
    return _is_number(e) and all(v == number for v in e.values)


def _leads(shape: tuple[int, ...], spread: tuple[int, ...]) -> bool:
    """Whether a shape was spread along leading axes only, by what broadcasting does by itself."""
    own = shape[next((i for i, n in enumerate(shape) if n > 1), len(shape)) :]
    return own == spread[len(spread) - len(own) :]


def plain(params: Any, k: int = 0) -> Any:
    """An index, axes or other parameters as NumPy takes them, in one of the recordings."""
    number: Any = lambda e: int(e.values[k]) if e.op == "number" else e.values[k]
    return mapped(params, lambda e: number(e) if isinstance(e, Expression) else e)


def _agree(a: Any, b: Any) -> bool:
    a, b = np.ravel(a), np.ravel(b)
    if a.dtype.kind != b.dtype.kind or a.size != b.size:
        return False
    least = 4e-15 * np.max(np.abs(b), initial=0) if a.dtype.kind == "f" and np.isfinite(b).all() else 0
    return np.array_equal(a, b) if a.dtype.kind != "f" else np.allclose(a, b, rtol=1e-11, atol=least)


def _spreads(inner: Array, spread: Array, operands: list[Any], k: int, shape: tuple[int, ...]) -> bool:
    """Whether `inner` among the operands of an elementwise operation gives what `spread` in its place gave."""
    try:
        same = _agree(np.broadcast_to(inner, np.shape(spread)), spread)
        return same and np.broadcast_shapes(*[np.shape(e.values[k]) for e in operands]) == shape
    except ValueError:
        return False


def is_cut(e: Expression, x: Any, limit: Any) -> bool:
    """Whether an expression is x, cut off at this number, and perhaps at another one on the other side."""
    limits = list[Any]()
    while e.op in ("maximum", "minimum") and any(map(_is_number, e.args)):
        number, e = sorted(e.args, key=_is_number, reverse=True)
        limits.append(number)
    return e is x and limit in limits


def is_negative(e: Expression) -> bool:
    """Whether an expression is a product with a negative number."""
    return e.op == "multiply" and _is_number(e.args[0]) and max(e.args[0].values) < 0
