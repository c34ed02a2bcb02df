"""Recognising batch norm however it is spelled, and rewriting one form into the other in place.

Every node is read as a small polynomial: a sum of products of factors, each a tensor that is taken as it
comes, a mean over some axes, or a bracketed sum, raised to a rational power. In that form `(x - m) / sqrt(v + e)`,
`x * s + (b - m * s)` and every other spelling are one and the same, so there is one pattern to look for.
A tensor whose mean is taken is always read as it comes, which keeps the polynomials down to three terms
and the whole reading linear in the number of nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ..engine import Tensor
from ..engine.graph import Graph, Values
from ..engine.node import Array, Node, recording
from ..engine.operations import broadcast_to, reduced_axes, reshape
from .definition import batch_norm, body, count, kept_shape

MOST_TERMS, MOST_FACTORS, MOST_LEVELS = 3, 4, 4  # of a spelled-out batch norm; a node beyond is taken as it comes


# --- Polynomials -------------------------------------------------------------------------------------------


class Plain(NamedTuple):
    """A value taken as it comes: a node, or the `id` of a constant array."""

    source: Node | int


class Mean(NamedTuple):
    """The mean of a product over `axes`; `kept` are the axes that are left (counted from the last, without 1s)."""

    inner: Product
    axes: frozenset[int]
    kept: tuple[int, ...]
    level: int


class Sum(NamedTuple):
    """A sum in brackets, so that it can be raised to a power."""

    terms: Poly
    level: int


class Factor(NamedTuple):
    """A base, the axes it is laid along (counted from the last) and whether `stop_gradient` cuts it off."""

    base: Plain | Mean | Sum
    along: tuple[int, ...]
    stopped: bool = False


Product = frozenset[tuple[Factor, Any]]
Poly = frozenset[tuple[Product, Any]]
ONE: Product = frozenset()


def constant(number: Any) -> Poly:
    return frozenset({(ONE, number)} if number != 0 else ())


def single(factor: Factor, power: Any = 1) -> Poly:
    return frozenset({(frozenset({(factor, power)}), 1)})


def plus(p: Poly, q: Poly, sign: int = 1) -> Poly:
    terms = dict(p)
    for product, number in q:
        terms[product] = terms.get(product, 0) + sign * number
    return frozenset((product, number) for product, number in terms.items() if number != 0)


def times(p: Poly, q: Poly) -> Poly:
    terms: dict[Product, Any] = {}
    for left, a in p:
        for right, b in q:
            powers = dict(left)
            for factor, power in right:
                powers[factor] = powers.get(factor, 0) + power
            product = frozenset((factor, power) for factor, power in powers.items() if power != 0)
            terms[product] = terms.get(product, 0) + a * b
    return frozenset((product, number) for product, number in terms.items() if number != 0)


def raised(p: Poly, power: Any) -> Poly:
    """P to a power: of one product factor by factor where that holds for every sign, else of a bracket."""
    if len(p) == 1:
        ((product, number),) = p
        whole = power == int(power)
        # (a ** 2) ** 0.5 is |a|, not a.
        if whole or (len(product) <= 1 and number > 0 and all(inner % 2 for _, inner in product)):
            scale = _exact(number) ** int(power) if whole else float(number) ** float(power) if number != 1 else 1
            return frozenset({(frozenset((factor, inner * power) for factor, inner in product), scale)})
    if power == 2 and _is_centred(negated := times(p, constant(-1))):
        p = negated  # (m - x) ** 2
    return single(bracket(p), power)


def bracket(p: Poly) -> Factor:
    return Factor(Sum(p, 1 + level(p)), ())


def level(p: Poly) -> int:
    """How deep means and brackets are nested."""
    return max((f.base.level for product, _ in p for f, _ in product if not isinstance(f.base, Plain)), default=0)


def mapped(p: Poly, change: Callable[[Factor], Factor]) -> Poly:
    """`p` with every factor changed, inside brackets too."""

    def one(factor: Factor) -> Factor:
        if isinstance(factor.base, Sum):
            return Factor(Sum(mapped(factor.base.terms, change), factor.base.level), ())
        return change(factor)

    return frozenset((frozenset((one(f), power) for f, power in product), number) for product, number in p)


def factors(p: Poly) -> Iterator[Factor]:
    """Every factor, those in brackets too."""
    for product, _ in p:
        for factor, _ in product:
            if isinstance(factor.base, Sum):
                yield from factors(factor.base.terms)
            else:
                yield factor


def support(p: Poly) -> set[int]:
    """The axes along which `p` varies."""
    return {axis for factor in factors(p) for axis in factor.along}


def _statistical(p: Poly) -> bool:
    return any(not isinstance(f.base, Plain) for product, _ in p for f, _ in product)


def _exact(number: Any) -> Any:
    return Fraction(number) if isinstance(number, int) else number


def _rounded(p: Poly, dtype: np.dtype[Any]) -> Poly:
    """`p` with coefficients that are 1 but for rounding, such as 3 * (1 / 3), made 1."""
    slack = 4 * np.finfo(dtype).eps if dtype.kind == "f" else 0

    def near(number: Any) -> Any:
        return 1 if abs(number - 1) <= slack else -1 if abs(number + 1) <= slack else number

    return frozenset((product, near(number)) for product, number in p)


def _lone(p: Poly | Product) -> Factor | None:
    """The factor that `p` is, if it is one and no more."""
    if len(p) == 1:
        ((product, number),) = p
        if isinstance(product, Factor):
            return product if number == 1 else None
        return _lone(product) if number == 1 else None
    return None


# --- Reading a graph ---------------------------------------------------------------------------------------


def _long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple([i - len(shape) for i, n in enumerate(shape) if n != 1])


class Reader:
    """The polynomial of every node below some outputs: `own` as computed, `seen` as its consumers read it."""

    def __init__(self, nodes: list[Node]) -> None:
        self.own: dict[Node, Poly] = {}
        self.seen: dict[Node, Poly] = {}
        self.arrays: dict[int, Array] = {}
        self.cuts: dict[Factor, Node] = {}  # a factor that is cut off -> the stop_gradient that does it
        self.axes: dict[Mean, tuple[int, ...]] = {}  # as they were spelled, with axes of length 1
        self.same: dict[Node, Node] = {}  # a node -> the first that computes the same
        known: dict[Any, Node] = {}
        for node in nodes:
            key: Any = node
            if node.op is not None:
                parts = [(type(arg), self.same[arg] if isinstance(arg, Node) else _key(arg)) for arg in node.args]
                key = (node.op, tuple(parts), tuple(node.params.items()))
                try:
                    hash(key)
                except TypeError:  # an index can hold arrays
                    key = node
            self.same[node] = known.setdefault(key, node)
        averaged = {self.same[node.inputs[0]] for node in nodes if node.op in ("mean", "sum", "var")}
        for node in nodes:
            first = self.same[node]
            if first is not node:
                self.own[node], self.seen[node] = self.own[first], self.seen[first]
                continue
            read = _READ.get(node.op or "")
            p = read(self, node) if read else None
            if p is None or len(p) > MOST_TERMS or level(p) > MOST_LEVELS or any(len(t) > MOST_FACTORS for t, _ in p):
                p = self.plain(node)
            self.own[node] = p = _rounded(p, node.dtype)
            keep = node not in averaged or _is_power(p) or _is_centred(p) or self.is_lone(node, p)
            self.seen[node] = p if keep else self.plain(node)

    def is_lone(self, node: Node, p: Poly) -> bool:
        """Whether `p` is one mean, or another node of the same shape."""
        factor = _lone(p)
        return factor is not None and (not _is_plain(factor) or np.shape(self.source(factor)) == node.shape)

    def plain(self, arg: Any) -> Poly:
        """`arg` taken as it comes."""
        if isinstance(arg, Node):
            first = self.same[arg]
            return single(Factor(Plain(first), _long_axes(first.shape)))
        self.arrays[id(arg)] = arg
        return single(Factor(Plain(id(arg)), _long_axes(arg.shape)))

    def read(self, arg: Any) -> Poly:
        if isinstance(arg, Node):
            return self.seen[arg]
        if np.ndim(arg) == 0:
            number = arg.item() if isinstance(arg, np.ndarray | np.generic) else arg
            if math.isfinite(number):
                return constant(number)
        return self.plain(np.asarray(arg))

    def source(self, factor: Factor) -> Any:
        """The node or the array that a plain factor stands for."""
        assert isinstance(factor.base, Plain)
        if factor.stopped:
            return self.cuts[factor]
        source = factor.base.source
        return source if isinstance(source, Node) else self.arrays[source]

    def product(self, a: Any, b: Any, p: Poly, q: Poly) -> Poly | None:
        """P * q, where either stays a single factor if it is a parameter spelled as a sum."""
        if len(p) > 1 and len(q) > 1:
            if p == q:
                return raised(p, 2)
            if support(p) == support(q):
                return None
            return self.product(a, b, self.plain(a), q) if support(p) < support(q) else times(p, self.plain(b))
        if len(p) == len(q) == 1 and p != q and not (_statistical(p) or _statistical(q)) and support(p) and support(q):
            return None
        for x, y, other in ((a, p, q), (b, q, p)):
            spelled_out = len(y) > 1 and isinstance(x, Node) and not _statistical(y)
            if spelled_out and _statistical(other) and support(y) <= support(other):
                return times(self.plain(x), other)
        return times(p, q)


def _key(arg: Any) -> Any:
    return id(arg) if isinstance(arg, np.ndarray) else arg


def _is_plain(factor: Factor | None) -> TypeGuard[Factor]:
    return factor is not None and isinstance(factor.base, Plain)


def _is_power(p: Poly) -> bool:
    return len(p) == 1 and all(len(product) == 1 and power != 1 for product, _ in p for _, power in product)


def _difference(p: Poly) -> tuple[Factor, Factor] | None:
    """Of `a - b`: the two factors."""
    if len(p) != 2:
        return None
    (a, plus_one), (b, minus_one) = sorted(p, key=lambda term: -term[1])
    first, second = _lone(a), _lone(b)
    return (first, second) if (plus_one, minus_one) == (1, -1) and first and second else None


def _is_centred(p: Poly) -> bool:
    """Whether `p` is `x - m` with a mean `m` of `x`."""
    found = _difference(p)
    return found is not None and isinstance(found[1].base, Mean) and _lone(found[1].base.inner) == found[0]


def _add(reader: Reader, node: Node) -> Poly | None:
    a, b = node.args
    sign = -1 if node.op == "subtract" else 1
    p, q = reader.read(a), reader.read(b)
    out = plus(p, q, sign)
    if len(out) > MOST_TERMS and isinstance(a, Node) and isinstance(b, Node):
        # A finished value meets a new one: x = y - m, where y is long itself.
        out = plus(reader.plain(a), q, sign) if support(q) <= support(p) else plus(p, reader.plain(b), sign)
    return out


def _multiply(reader: Reader, node: Node) -> Poly | None:
    a, b = node.args
    return reader.product(a, b, reader.read(a), reader.read(b))


def _divide(reader: Reader, node: Node) -> Poly | None:
    a, b = node.args
    divisor = reader.read(b)
    return reader.product(a, b, reader.read(a), raised(divisor, -1)) if divisor else None


def _power(reader: Reader, node: Node) -> Poly | None:
    exponent = {"square": 2, "sqrt": Fraction(1, 2), "rsqrt": Fraction(-1, 2)}.get(node.op or "")
    p = reader.read(node.args[0])
    if exponent is None:
        given = reader.read(node.args[1])
        if len(given) != 1:
            return None
        ((product, exponent),) = given
        if product:
            return None
        exponent = Fraction(exponent).limit_denominator(2) if 2 * exponent == int(2 * exponent) else exponent
    return raised(p, exponent) if p else None


def _negative(reader: Reader, node: Node) -> Poly:
    return plus(frozenset(), reader.read(node.args[0]), -1)


def _average(reader: Reader, node: Node) -> Poly | None:
    (x,) = node.inputs
    p, axis, keepdims = reader.read(x), node.params["axis"], node.params["keepdims"]
    n = count(x.shape, axes := reduced_axes(axis, len(x.shape)))
    if node.op == "var":
        if n == node.params["ddof"]:
            return None
        centred = p if _is_centred(p) else plus(p, _mean_of(reader, p, x.shape, axes, True) or frozenset(), -1)
        weight = Fraction(n, n - node.params["ddof"])
        mean = _mean_of(reader, single(bracket(centred), 2), x.shape, axes, keepdims)
        return times(mean, constant(weight if weight != 1 else 1)) if mean else None
    mean = _mean_of(reader, p, x.shape, axes, keepdims)
    return times(mean, constant(n)) if mean and node.op == "sum" else mean


def _mean_of(reader: Reader, p: Poly, shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> Poly | None:
    if len(p) != 1:
        return None
    ((product, number),) = p
    if not product:
        return p
    ndim, long = len(shape), _long_axes(shape)
    over = frozenset(axis for axis in long if axis + ndim in axes)
    stopped = all(factor.stopped for factor in factors(p))
    if stopped:
        ((product, _),) = mapped(p, lambda factor: factor._replace(stopped=False))
    inner = _lone(product)
    spelled = tuple(axes)
    if inner and isinstance(inner.base, Mean):  # the mean of a mean, one axis after the other
        first = inner.base
        places = dict(zip(first.kept, inner.along, strict=True))
        over = first.axes | {axis for axis, place in places.items() if place in over}
        kept = tuple([axis for axis in first.kept if axis not in over])
        base = Mean(first.inner, over, kept, first.level)
        along = tuple([places[axis] for axis in kept])
    else:
        kept = along = tuple([axis for axis in long if axis not in over])
        base = Mean(product, over, kept, 1 + level(frozenset({(product, 1)})))
        reader.axes.setdefault(base, spelled)
    if not keepdims:
        left = [i - ndim for i in range(ndim) if i not in axes]
        along = tuple([left.index(axis) - len(left) for axis in along])
    return times(single(Factor(base, along, stopped)), constant(number))


def _relaid(reader: Reader, node: Node) -> Poly | None:
    """A change of shape that only adds or takes away axes of length 1 or repeats along new ones."""
    (x,) = node.inputs
    p = reader.read(x)
    if node.op == "broadcast_to":
        return p
    if node.op == "getitem":
        index = node.params["index"]
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is not None and part is not Ellipsis and part != slice(None) for part in parts):
            return None
    old, new = _long_axes(x.shape), _long_axes(node.shape)
    if [x.shape[i] for i in old] != [node.shape[i] for i in new]:
        return None
    place = dict(zip(old, new, strict=True))
    return mapped(p, lambda factor: factor._replace(along=tuple([place[axis] for axis in factor.along])))


def _copied(reader: Reader, node: Node) -> Poly | None:
    (x,) = node.inputs
    return reader.read(x) if x.dtype == node.dtype else None


def _stopped(reader: Reader, node: Node) -> Poly | None:
    p = reader.read(node.inputs[0])
    alone = _lone(p)
    if alone and isinstance(alone.base, Plain):
        cut = alone._replace(stopped=True)
        reader.cuts.setdefault(cut, node)
        return single(cut)
    for factor in factors(p):
        if isinstance(factor.base, Plain) and _needs_gradient(factor):
            return None
    return mapped(p, lambda f: f if isinstance(f.base, Plain) else f._replace(stopped=True))


def _needs_gradient(factor: Factor) -> bool:
    source = factor.base.source if isinstance(factor.base, Plain) else None
    return isinstance(source, Node) and source.requires_grad and not factor.stopped


_READ: dict[str, Callable[[Reader, Node], Poly | None]] = {
    "add": _add,
    "subtract": _add,
    "multiply": _multiply,
    "divide": _divide,
    "negative": _negative,
    "copy": _copied,
    "astype": _copied,
    "stop_gradient": _stopped,
    **dict.fromkeys(("power", "square", "sqrt", "rsqrt"), _power),
    **dict.fromkeys(("mean", "sum", "var"), _average),
    **dict.fromkeys(("reshape", "getitem", "broadcast_to"), _relaid),
}


# --- The pattern -------------------------------------------------------------------------------------------

HALF = Fraction(1, 2)


class _NearMiss(Exception):
    """The node looks like batch norm and is not, for this reason."""


class _Partly(_NearMiss):
    """A batch norm with something around it that the fused node has no place for: a node below may do."""


@dataclass(frozen=True)
class _Match:
    """The arguments of a batch norm; the mean and the variance are None where they are those of the batch."""

    x: Factor
    gamma: Factor | None
    beta: Factor | None
    mean: Factor | None
    var: Factor | None
    eps: Any
    axes: tuple[int, ...]
    stop: tuple[str, ...]


def _match(reader: Reader, node: Node) -> _Match | None:
    """What `node` computes, as a batch norm; None where it is something else, `_NearMiss` where it almost is one."""
    terms, shape = reader.own[node], node.shape
    roots = [
        (number, product, factor, power)
        for product, number in terms
        for factor, power in product
        if power < 0 and not isinstance(factor.base, Plain)
    ]
    if len(roots) == 1:
        _check_centred(*roots[0][1:])
    if len(roots) != 2:
        return None
    (a, p, root, power), (b, q, other, _) = sorted(roots, key=lambda found: -found[0])
    common = p & q
    x, mean = _lone(p - common), _lone(q - common)
    if root != other or a != -b or x is None or mean is None or not _is_whole(reader, x, shape):
        return None
    found = _variance(root, power)
    if found is None:
        return None
    var, weight, eps = found
    stop: tuple[str, ...] = ()
    given: tuple[Factor | None, Factor | None] = (None, None)
    axes: tuple[int, ...] = ()
    if isinstance(mean.base, Mean) or isinstance(var.base, Mean):
        stop = _check_statistics(reader, x, mean, var, weight, shape)
        assert isinstance(mean.base, Mean)
        axes = reader.axes.get(mean.base, ())
        if not axes:
            axes = tuple([i for i, n in enumerate(shape) if i - len(shape) in mean.base.axes or n == 1])
    else:
        if weight != 1:
            return None
        for factor, what in ((mean, "mean"), (var, "variance")):
            if _needs_gradient(factor):
                raise _NearMiss(f"the {what} is not computed from {_called(reader, x)}, and requires a gradient")
        given = (mean, var)

    scale = frozenset(item for item in common if item != (root, power))
    shift = terms - {(p, a), (q, b)}
    gamma, beta = _lone(scale), _lone(shift)
    if a != 1 or (scale and not _is_plain(gamma)) or (shift and not _is_plain(beta)):
        raise _Partly("the scale and the shift are not those of batch norm: (x - mean) * rsqrt * gamma + beta")
    laid = [factor for factor in (*given, gamma, beta, eps) if isinstance(factor, Factor)]
    if given[0]:
        axes = _free_axes(shape, {axis for factor in laid for axis in factor.along})
    kept = {i - len(shape) for i in range(len(shape)) if i not in axes}
    if not axes or not all(kept.issuperset(factor.along) for factor in laid):
        raise _Partly(f"gamma, beta or eps vary along the averaged axes {axes}")
    if isinstance(eps, Factor):
        if _needs_gradient(eps):
            raise _NearMiss("eps requires a gradient, and is a constant of batch norm")
    elif not eps > 0:
        raise _NearMiss(f"eps is {eps}, expected a positive number")
    return _Match(x, gamma, beta, *given, eps, axes, stop)


def _is_whole(reader: Reader, x: Factor, shape: tuple[int, ...]) -> bool:
    """Whether `x` is a node of this very shape."""
    if not isinstance(x.base, Plain) or not isinstance(x.base.source, Node) or x.stopped:
        return False
    return x.base.source.shape == shape and x.along == _long_axes(shape)


def _free_axes(shape: tuple[int, ...], laid: set[int]) -> tuple[int, ...]:
    """The axes that no parameter is laid along; those of length 1 fall to the default, features last."""
    free = {i for i in range(len(shape)) if i - len(shape) not in laid}
    default = range(len(shape) - 1)
    return tuple(default) if {i for i in free.symmetric_difference(default) if shape[i] != 1} == set() else tuple(free)


def _deviation(factor: Factor | None) -> tuple[Factor, Factor] | None:
    """Of a mean of squared deviations: what deviates, and from what."""
    if factor is None or not isinstance(factor.base, Mean) or len(factor.base.inner) != 1:
        return None
    ((inner, power),) = factor.base.inner
    return _difference(inner.base.terms) if power == 2 and isinstance(inner.base, Sum) else None


def _variance(root: Factor, power: Any) -> tuple[Factor, Any, Any] | None:
    """The variance under the root, its coefficient, and eps."""
    terms = root.base.terms if isinstance(root.base, Sum) else frozenset({(frozenset({(root, 1)}), 1)})
    powers = {inner for product, _ in terms for factor, inner in product if _deviation(factor)}
    if isinstance(root.base, Mean) and powers:
        raise _NearMiss("no eps is added to the variance")
    if power == -1 and HALF in powers:
        raise _NearMiss("eps is added outside the root, to the standard deviation")
    if power == -1 and 1 in powers:
        raise _NearMiss("it divides by variance + eps, without the square root")
    if power != -HALF:
        return None
    squares = [(factor, number) for product, number in terms for factor, inner in product if inner == 2]
    if any(isinstance(factor.base, Mean) and number < 0 for factor, number in squares):
        raise _NearMiss("the variance is taken in one pass, mean(x ** 2) - mean(x) ** 2, which cancels digits")
    loose = [(product, number, _lone(product)) for product, number in terms]
    means = [(p, n, f) for p, n, f in loose if f and isinstance(f.base, Mean)]
    plain = [(p, n, f) for p, n, f in loose if f and isinstance(f.base, Plain)]
    found = means or plain
    if len(found) != 1 or len(terms) != 2:
        return None
    product, weight, var = found[0]
    assert var is not None
    ((rest, number),) = terms - {(product, weight)}
    eps = number if rest == ONE else _lone(rest) if number == 1 else None
    return None if eps is None else (var, weight, eps)


def _check_centred(product: Product, root: Factor, power: Any) -> None:
    """`_NearMiss` for x / sqrt(var(x) + eps)."""
    found = _variance(root, power) if power == -HALF else None
    deviation = _deviation(found[0]) if found else None
    if deviation and any(factor == deviation[0] for factor, _ in product):
        raise _NearMiss("no mean is subtracted from what is divided by the standard deviation")


def _check_statistics(
    reader: Reader, x: Factor, mean: Factor, var: Factor, weight: Any, shape: tuple[int, ...]
) -> tuple[str, ...]:
    """`_NearMiss` unless these are the mean and the biased variance of `x`; which of them the gradient stops at."""
    deviation, name = _deviation(var), _called(reader, x)
    if not isinstance(mean.base, Mean):
        raise _NearMiss(f"the variance is that of a batch, and the mean is not: it is {_called(reader, mean)}")
    if _lone(mean.base.inner) != x:
        raise _NearMiss(f"the mean is that of another tensor than {name}, which it is subtracted from")
    if deviation is None:
        raise _NearMiss("what is under the root is not a mean of squared deviations from the mean")
    assert isinstance(var.base, Mean)
    deviating, centre = deviation
    if deviating != x:
        raise _NearMiss(f"the variance is that of another tensor than {name}, which is normalised")
    if not isinstance(centre.base, Mean) or _lone(centre.base.inner) != x:
        raise _NearMiss(f"the variance is taken about something else than the mean of {name}")
    ndim = len(shape)
    if not mean.base.axes == var.base.axes == centre.base.axes:
        over = [tuple(sorted(axis + ndim for axis in base.axes)) for base in (mean.base, centre.base, var.base)]
        raise _NearMiss(f"unequal axes: the mean is taken over {over[0]}, the variance over {over[2]} about {over[1]}")
    if not mean.along == var.along == centre.along == mean.base.kept:
        raise _NearMiss("the statistics are laid along other axes than those that they belong to: keepdims is missing")
    n = math.prod([shape[axis] for axis in mean.base.axes])
    if n == 1:
        raise _NearMiss("there is one value per feature, whose variance is 0")
    if weight != 1:
        unbiased = abs(weight * (n - 1) / n - 1) < 1e-6
        kind = f"unbiased, the sum of squares over {n - 1}" if unbiased else f"weighted by {float(weight):.6g}"
        raise _NearMiss(f"the variance is {kind}, where batch norm takes the mean of squares over {n}")
    if centre.stopped != mean.stopped and not var.stopped:
        raise _NearMiss("stop_gradient cuts one use of the mean and not the other")
    return tuple([name for name, factor in (("mean", mean), ("var", var)) if factor.stopped])


def _called(reader: Reader, factor: Factor) -> str:
    source = reader.source(factor) if isinstance(factor.base, Plain) else None
    return _named(source) if isinstance(source, Node) else "a constant"


def _named(node: Node) -> str:
    return repr(node.name) if node.name else f"{node.op or 'a leaf'} of shape {node.shape}"


# --- Rewriting ---------------------------------------------------------------------------------------------


class Refusal(NamedTuple):
    """A node that looks like batch norm and was left as it is, and why."""

    node: Node
    reason: str


@dataclass(frozen=True)
class Report:
    """What `fuse` did: the nodes that are fused now, and those that were refused, inputs first."""

    fused: tuple[Node, ...]
    refused: tuple[Refusal, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.fused)} fused, {len(self.refused)} refused"]
        for node in self.fused:
            stop = f", stop={tuple(sorted(node.params['stop']))}" if node.params["stop"] else ""
            lines.append(
                f"  fused    {_named(node)}: batch norm of {_named(node.inputs[0])}, axes={node.params['axes']}{stop}"
            )
        lines += [f"  refused  {_named(node)}: {reason}" for node, reason in self.refused]
        return "\n".join(lines)


def fuse(*outputs: Tensor) -> Report:
    """Rewire every batch norm that is spelled out below `outputs` into one fused node, in place.

    Any spelling is recognised: `rsqrt`, `1 / sqrt`, `** -0.5` or a division by the root; `var` or the mean of
    squared deviations in any form, `sum / n` for `mean`; gamma and beta, or their folded form
    `x * s + (beta - mean * s)`, or neither; reshaped and broadcast parameters; `stop_gradient` on the
    statistics, which becomes `stop`; given statistics that are constants. The last node of the spelling
    becomes the fused node; values keep their bits, and gradients agree to rounding at every order. Other
    consumers of the nodes inside still have them.

    What looks like batch norm and differs is refused, with the reason: eps outside the root, unequal axes,
    statistics of another tensor, an unbiased variance or one in a single pass, a node inside that is itself
    one of `outputs`. The cost is linear in the number of nodes. `RuntimeError`, with nothing changed, where a
    leaf was assigned to since the forward pass.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True, name="x")
    >>> y = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    >>> print(ag.fuse(y))
    1 fused, 0 refused
      fused    batch_norm of shape (2, 2): batch norm of 'x', axes=(0,)
    >>> ag.Graph(y).ops
    Counter({'batch_norm': 1})
    """
    graph = Graph(*outputs)
    reader, values = Reader(graph.nodes), Values(graph.nodes)
    asked = set(graph.outputs)
    live, settled = set(graph.outputs), set[Node]()
    made: list[tuple[Node, Node]] = []
    refused: list[Refusal] = []
    partly: list[tuple[Refusal, set[Node]]] = []
    # Consumers first, so that the longest spelling is found, and what only it read is not looked at again.
    for node in reversed(graph.nodes):
        if node not in live:
            continue
        if node not in settled:
            try:
                match = _match(reader, node)
                if match:
                    inside = _inside(reader, node, match)
                    for inner in inside & asked:
                        raise _NearMiss(f"{_named(inner)} inside it is itself asked for")
                    fused = _fused(reader, values, node, match)
                    made.append((node, fused))
                    live.update(fused.inputs, *(arg.inputs for arg in fused.inputs if arg not in reader.own))
                    continue
            except _Partly as reason:
                partly.append((Refusal(node, str(reason)), _inside(reader, node, None)))
            except _NearMiss as reason:
                refused.append(Refusal(node, str(reason)))
                settled |= _inside(reader, node, None)
        live.update(node.inputs)
    for node, fused in made:
        node.become(fused)
    done = {node for node, _ in made} | {node for node, _ in refused}
    for refusal, inside in reversed(partly):
        if not done & inside:
            refused.append(refusal)
            done.add(refusal.node)
    place = {node: i for i, node in enumerate(graph.nodes)}
    return Report(tuple([node for node, _ in reversed(made)]), tuple(sorted(refused, key=lambda r: place[r.node])))


def _inside(reader: Reader, node: Node, match: _Match | None) -> set[Node]:
    """The nodes between `node` and what it reads as it comes, both left out."""
    given = (match.x, match.gamma, match.beta, match.mean, match.var, match.eps) if match else ()
    ends = {reader.source(factor) for factor in given if isinstance(factor, Factor) if _from_node(reader, factor)}
    found: set[Node] = set()
    stack = [node]
    while stack:
        for parent in stack.pop().inputs:
            first = reader.same[parent]
            if parent not in found and first not in ends and reader.seen[parent] != reader.plain(parent):
                found.add(parent)
                stack.append(parent)
    return found


def _from_node(reader: Reader, factor: Factor) -> bool:
    return isinstance(reader.source(factor), Node)


def _fused(reader: Reader, values: Values, node: Node, match: _Match) -> Node:
    """The fused node that computes `match`, recorded on the same inputs."""
    kept, full = (kept_shape(node.shape, match.axes, keepdims) for keepdims in (False, True))

    def argument(factor: Any) -> Any:
        """As `batch_norm` takes it: of the kept axes' shape, or with 1s for the others."""
        if not isinstance(factor, Factor):
            return factor
        source = reader.source(factor)
        given = Tensor(values[source], source) if isinstance(source, Node) else source
        if factor.along == _long_axes(full) and given.shape in (kept, full):
            return given
        shape = tuple([n if i - len(full) in factor.along else 1 for i, n in enumerate(full)])
        return broadcast_to(reshape(given, shape), full)

    def number(factor: Any) -> Any:
        given = argument(factor)
        return given.data if isinstance(given, Tensor) else given

    with recording(True):
        x = Tensor(values[reader.source(match.x)], reader.source(match.x))
        try:
            y = batch_norm(
                x,
                argument(match.gamma),
                argument(match.beta),
                axes=match.axes,
                eps=number(match.eps),
                mean=number(match.mean),
                var=number(match.var),
                stop=match.stop,
            )
        except (TypeError, ValueError) as error:
            raise _NearMiss(str(error)) from None
    if (y.shape, y.dtype, y.requires_grad) != (node.shape, node.dtype, node.requires_grad):
        raise _Partly(f"the fused node would have shape {y.shape} and dtype {y.dtype}, not {node.shape}, {node.dtype}")
    return y.node  # type: ignore[no-any-return]


def expand(*outputs: Tensor) -> tuple[Node, ...]:
    """Rewire every fused batch norm below `outputs` into its composed form, in place: the inverse of `fuse`.

    Returns the nodes that were fused, each now the last of its composed form, inputs first. Values keep their
    bits, and gradients agree to rounding at every order. `RuntimeError`, with nothing changed, where a leaf
    was assigned to since the forward pass.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([[1.0, 10.0], [3.0, 30.0]], requires_grad=True)
    >>> y = ag.batch_norm(x)
    >>> ag.expand(y)
    (<Node multiply shape=(2, 2) dtype=float64>,)
    """
    graph = Graph(*outputs)
    values = Values(graph.nodes)
    with recording(True):
        made = [(node, body(node, values)) for node in graph.nodes if node.op == "batch_norm"]
    for node, last in made:
        node.become(last)
    return tuple([node for node, _ in made])
