"""Reading a graph as algebra, so that every spelling of one formula looks the same.

Every node is read as a small polynomial: a sum of products of factors, each a tensor that is taken as it comes,
a mean over some axes, or a sum in brackets, raised to a rational power. There `(x - m) / sqrt(v + e)`,
`x * s - m * s` and every other spelling are one and the same. A tensor whose mean is taken is always read as it
comes, which keeps the polynomials of a batch norm down to three terms, and the reading linear in the nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from numbers import Real
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ...engine.node import Array, Node
from ...engine.operations import count, reduced_axes

# Of a batch norm in full; what goes beyond is read as it comes.
MOST_TERMS, MOST_FACTORS, MOST_LEVELS = 3, 4, 4
HALF = Fraction(1, 2)


# --- Polynomials -------------------------------------------------------------------------------------------


class Plain(NamedTuple):
    """A value taken as it comes: a node, or the `id` of a constant array."""

    source: Node | int


class Mean(NamedTuple):
    """The mean of a product over `axes`; `kept` are the others. Axes are counted from the last, without 1s."""

    inner: Product
    axes: frozenset[int]
    kept: tuple[int, ...]
    level: int


class Sum(NamedTuple):
    """A sum in brackets, to be raised to a power."""

    terms: Poly
    level: int


class Factor(NamedTuple):
    """A base, the axes of the whole that it is laid along, and whether `stop_gradient` cuts it off."""

    base: Plain | Mean | Sum
    along: tuple[int, ...]
    stopped: bool = False


Product = frozenset[tuple[Factor, Any]]  # factors, each with its power
Poly = frozenset[tuple[Product, Any]]  # products, each with its coefficient
ONE: Product = frozenset()
ZERO: Poly = frozenset()


def constant(number: Any) -> Poly:
    """A number."""
    return frozenset({(ONE, number)}) if number else ZERO


def single(factor: Factor, power: Any = 1) -> Poly:
    """One factor."""
    return frozenset({(frozenset({(factor, power)}), 1)})


def plus(p: Poly, q: Poly, sign: int = 1) -> Poly:
    """p + sign * q."""
    terms = dict(p)
    for product, number in q:
        terms[product] = terms.get(product, 0) + sign * number
    return frozenset((product, number) for product, number in terms.items() if number)


def times(p: Poly, q: Poly) -> Poly:
    """p * q, multiplied out."""
    terms: dict[Product, Any] = {}
    for left, a in p:
        for right, b in q:
            powers = dict(left)
            for factor, power in right:
                powers[factor] = powers.get(factor, 0) + power
            product = frozenset((factor, power) for factor, power in powers.items() if power)
            terms[product] = terms.get(product, 0) + a * b
    return frozenset((product, number) for product, number in terms.items() if number)


def raised(p: Poly, power: Any) -> Poly:
    """p ** power: of a single product factor by factor where that holds for every sign, else of a bracket."""
    if power == 1:
        return p
    if len(p) == 1:
        ((product, number),) = p
        whole = power == int(power)
        # (a ** 2) ** 0.5 is |a|, not a.
        if whole or (len(product) <= 1 and number > 0 and all(inner % 2 for _, inner in product)):
            if number != 1:
                exact = whole and not isinstance(number, float)
                number = Fraction(number) ** int(power) if exact else float(number) ** float(power)
            return frozenset({(frozenset((factor, inner * power) for factor, inner in product), number)})
    if power == 2 and is_centred(negated := plus(ZERO, p, -1)):
        p = negated  # (m - x) ** 2
    return single(Factor(Sum(p, 1 + level(p)), ()), power)


def level(p: Poly) -> int:
    """How deep means and brackets are nested."""
    return max((f.base.level for product, _ in p for f, _ in product if not isinstance(f.base, Plain)), default=0)


def mapped(p: Poly, change: Callable[[Factor], Factor]) -> Poly:
    """`p` with every factor changed, inside brackets too."""

    def one(factor: Factor) -> Factor:
        base = factor.base
        return Factor(Sum(mapped(base.terms, change), base.level), ()) if isinstance(base, Sum) else change(factor)

    return frozenset((frozenset((one(f), power) for f, power in product), number) for product, number in p)


def factors(p: Poly) -> Iterator[Factor]:
    """Every factor, inside brackets too."""
    for product, _ in p:
        for factor, _ in product:
            if isinstance(factor.base, Sum):
                yield from factors(factor.base.terms)
            else:
                yield factor


def support(p: Poly) -> set[int]:
    """The axes along which `p` varies."""
    return {axis for factor in factors(p) for axis in factor.along}


def is_plain(factor: Factor | None) -> TypeGuard[Factor]:
    """Whether it is a value taken as it comes."""
    return factor is not None and isinstance(factor.base, Plain)


def lone(product: Product) -> Factor | None:
    """The factor that a product is, if it is one and no more."""
    if len(product) != 1:
        return None
    ((factor, power),) = product
    return factor if power == 1 else None


def alone(p: Poly) -> Factor | None:
    """The factor that `p` is, if it is one and no more."""
    if len(p) != 1:
        return None
    ((product, number),) = p
    return lone(product) if number == 1 else None


def difference(p: Poly) -> tuple[Factor, Factor] | None:
    """Of `a - b`: the two factors."""
    if len(p) != 2:
        return None
    (a, plus_one), (b, minus_one) = sorted(p, key=lambda term: -term[1])
    first, second = lone(a), lone(b)
    return (first, second) if (plus_one, minus_one) == (1, -1) and first and second else None


def is_centred(p: Poly) -> bool:
    """Whether `p` is `x - m` with a mean `m` of `x`."""
    found = difference(p)
    return found is not None and isinstance(found[1].base, Mean) and lone(found[1].base.inner) == found[0]


def long_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes that are not of length 1, counted from the last."""
    return tuple([i - len(shape) for i, n in enumerate(shape) if n != 1])


def _has_statistics(p: Poly) -> bool:
    return any(not is_plain(f) for product, _ in p for f, _ in product)


def is_power(p: Poly) -> bool:
    """Whether `p` is one factor to a power, times a number."""
    return len(p) == 1 and all(len(product) == 1 and power != 1 for product, _ in p for _, power in product)


def _rounded(p: Poly, dtype: np.dtype[Any]) -> Poly:
    """`p` with 1 for coefficients that differ from it by rounding only, such as 3 * (1 / 3)."""
    slack = 4 * np.finfo(dtype).eps if dtype.kind == "f" else 0

    def near(number: Any) -> Any:
        if isinstance(number, float) and abs(abs(number) - 1) <= slack:
            return round(number)
        return number

    return frozenset((product, near(number)) for product, number in p)


# --- Reading -----------------------------------------------------------------------------------------------


class Reader:
    """The polynomial of each of `nodes`, inputs before consumers: `own` as computed, `seen` as consumers read it."""

    def __init__(self, nodes: list[Node]) -> None:
        self.own: dict[Node, Poly] = {}
        self.seen: dict[Node, Poly] = {}
        self.arrays: dict[int, Array] = {}
        self.cuts: dict[Factor, Node] = {}  # a factor that is cut off -> the stop_gradient that does it
        self.axes: dict[Mean, tuple[int, ...]] = {}  # as they were spelled, those of length 1 among them
        self.same = _first_of_same(nodes)
        self.averaged, self.varied, self.used = (set[Node]() for _ in range(3))  # by mean or sum, by var, by others
        for node in nodes:
            readers = self.averaged if node.op in ("mean", "sum") else self.varied if node.op == "var" else self.used
            readers.update(self.same[parent] for parent in node.inputs)
        for node in nodes:
            first = self.same[node]
            if first is node:
                rule = _RULES.get(node.op or "")
                p = rule(self, node) if rule else None
                long = p and (len(p) > MOST_TERMS or any(len(product) > MOST_FACTORS for product, _ in p))
                p = self.plain(node) if p is None or long or level(p) > MOST_LEVELS else _rounded(p, node.dtype)
                self.own[node] = p
                self.seen[node] = self.plain(node) if self.is_new(node, p) else p
            else:
                self.own[node], self.seen[node] = self.own[first], self.seen[first]

    def is_new(self, node: Node, p: Poly) -> bool:
        """Whether statistics are taken of `node` for its own sake, and not as a part of those of another."""
        if node not in self.averaged and node not in self.varied:
            return False
        if is_centred(p):
            return node in self.averaged
        factor = alone(p)
        if is_plain(factor):  # a copy, or cut off
            return bool(self.source(factor).shape != node.shape)
        return node in self.used or node in self.varied or not (factor or is_power(p))

    def plain(self, arg: Any) -> Poly:
        """A node or an array, taken as it comes."""
        if isinstance(arg, Node):
            arg = self.same[arg]
            return single(Factor(Plain(arg), long_axes(arg.shape)))
        array = np.asarray(arg)
        self.arrays[id(array)] = array
        return single(Factor(Plain(id(array)), long_axes(array.shape)))

    def read(self, arg: Any) -> Poly:
        """An argument of a node."""
        if isinstance(arg, Node):
            return self.seen[arg]
        if np.ndim(arg) == 0:
            number = arg.item() if isinstance(arg, np.ndarray | np.generic) else arg
            if isinstance(number, Real) and math.isfinite(number):
                return constant(number)
        return self.plain(arg)

    def source(self, factor: Factor) -> Any:
        """The node or the array that a plain factor stands for."""
        assert isinstance(factor.base, Plain)
        source = self.cuts[factor] if factor.stopped else factor.base.source
        return source if isinstance(source, Node) else self.arrays[source]

    def product(self, a: Any, b: Any, p: Poly, q: Poly) -> Poly | None:
        """p * q, which `a` and `b` are; a parameter that is itself a sum or a product stays a factor."""
        if len(p) > 1 and len(q) > 1:
            if p == q:
                return raised(p, 2)
            if support(p) < support(q):
                return self.product(a, b, self.plain(a), q)
            return self.product(a, b, p, self.plain(b)) if support(q) < support(p) else None
        if len(p) == 1 == len(q) and p != q and support(p) and support(q):
            return times(p, q) if _has_statistics(p) or _has_statistics(q) else None
        for x, y, other in ((a, p, q), (b, q, p)):
            if len(y) > 1 and not _has_statistics(y) and _has_statistics(other) and support(y) <= support(other):
                return times(self.plain(x), other)
        return times(p, q)


def _first_of_same(nodes: list[Node]) -> dict[Node, Node]:
    """Each node's first twin: the same operation on the same inputs."""
    same: dict[Node, Node] = {}
    known: dict[Any, Node] = {}
    for node in nodes:
        key: Any = node
        if node.op is not None:
            args = [
                same[arg] if isinstance(arg, Node) else (type(arg), id(arg) if isinstance(arg, np.ndarray) else arg)
                for arg in node.args
            ]
            key = (node.op, *args, *((name, _hashable(value)) for name, value in node.params.items()))
            try:
                hash(key)
            except TypeError:  # an index can hold arrays
                key = node
        same[node] = known.setdefault(key, node)
    return same


def _hashable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple([_hashable(item) for item in value])
    return (slice, value.start, value.stop, value.step) if isinstance(value, slice) else value


def needs_gradient(factor: Factor) -> bool:
    """Whether a gradient flows to a value that is taken as it comes."""
    source = factor.base.source if isinstance(factor.base, Plain) else None
    return isinstance(source, Node) and source.requires_grad and not factor.stopped


def _add(reader: Reader, node: Node) -> Poly:
    a, b = node.args
    sign = -1 if node.op == "subtract" else 1
    p, q = reader.read(a), reader.read(b)
    out = plus(p, q, sign)
    if len(out) <= MOST_TERMS:
        return out
    # A batch norm's result meets something new: taken as it comes, the sum stays readable.
    return plus(reader.plain(a), q, sign) if support(q) <= support(p) else plus(p, reader.plain(b), sign)


def _multiply(reader: Reader, node: Node) -> Poly | None:
    a, b = node.args
    return reader.product(a, b, reader.read(a), reader.read(b))


def _divide(reader: Reader, node: Node) -> Poly | None:
    a, b = node.args
    divisor = reader.read(b)
    return reader.product(a, b, reader.read(a), raised(divisor, -1)) if divisor else None


def _power(reader: Reader, node: Node) -> Poly | None:
    p = reader.read(node.args[0])
    power = {"square": 2, "sqrt": HALF, "rsqrt": -HALF}.get(node.op or "")
    if power is None:
        exponent = reader.read(node.args[1])
        power = next((Fraction(n) for product, n in exponent if product == ONE), None) if len(exponent) == 1 else None
    return raised(p, power) if p and power in (-1, -HALF, HALF, 1, 2) else None


def _negative(reader: Reader, node: Node) -> Poly:
    return plus(ZERO, reader.read(node.args[0]), -1)


def _average(reader: Reader, node: Node) -> Poly | None:
    (x,) = node.inputs
    axes, keepdims = reduced_axes(node.params["axis"], len(x.shape)), node.params["keepdims"]
    n, p = count(x.shape, axes), reader.read(x)
    weight: Any = n if node.op == "sum" else 1
    if node.op == "var":
        centred = p if is_centred(p) else plus(p, _mean(reader, p, x.shape, axes, True) or p, -1)
        if not centred or n == node.params["ddof"]:
            return None
        p, weight = raised(centred, 2), Fraction(n, n - node.params["ddof"])
    mean = _mean(reader, p, x.shape, axes, keepdims)
    return mean and times(mean, constant(weight))


def _mean(reader: Reader, p: Poly, shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> Poly | None:
    if len(p) != 1:
        return None
    ((product, number),) = p
    if product == ONE:
        return p
    stopped = all(factor.stopped for factor in factors(p))
    if stopped:
        ((product, _),) = mapped(p, lambda factor: factor._replace(stopped=False))
    ndim, long, inner = len(shape), long_axes(shape), lone(product)
    over = frozenset(axis for axis in long if axis + ndim in axes)
    if inner and isinstance(inner.base, Mean):  # one axis after the other
        first = inner.base
        place = dict(zip(first.kept, inner.along, strict=True))
        over = first.axes | {axis for axis in first.kept if place[axis] in over}
        kept = tuple([axis for axis in first.kept if axis not in over])
        along = tuple([place[axis] for axis in kept])
        mean = first._replace(axes=over, kept=kept)
    else:
        kept = along = tuple([axis for axis in long if axis not in over])
        mean = Mean(product, over, kept, 1 + level(p))
        reader.axes.setdefault(mean, axes)
    if not keepdims:
        left = [i - ndim for i in range(ndim) if i not in axes]
        along = tuple([left.index(axis) - len(left) for axis in along])
    return times(single(Factor(mean, along, stopped)), constant(number))


def _relaid(reader: Reader, node: Node) -> Poly | None:
    """A change of shape that only adds or takes away axes of length 1, or repeats along new ones."""
    (x,) = node.inputs
    p = reader.read(x)
    if node.op == "broadcast_to":
        return p
    if node.op == "getitem":
        index = node.params["index"]
        for part in index if isinstance(index, tuple) else (index,):
            if not (part is None or part is Ellipsis or (isinstance(part, slice) and part == slice(None))):
                return None
    old, new = long_axes(x.shape), long_axes(node.shape)
    if [x.shape[i] for i in old] != [node.shape[i] for i in new]:
        return None
    place = dict(zip(old, new, strict=True))
    return mapped(p, lambda factor: factor._replace(along=tuple([place[axis] for axis in factor.along])))


def _copied(reader: Reader, node: Node) -> Poly | None:
    (x,) = node.inputs
    return reader.read(x) if x.dtype == node.dtype else None


def _stopped(reader: Reader, node: Node) -> Poly | None:
    p = reader.read(node.inputs[0])
    factor = alone(p)
    if is_plain(factor):
        cut = factor._replace(stopped=True)
        reader.cuts.setdefault(cut, node)
        return single(cut)
    if any(needs_gradient(factor) for factor in factors(p)):
        return None
    return mapped(p, lambda factor: factor if is_plain(factor) else factor._replace(stopped=True))


_RULES: dict[str, Callable[[Reader, Node], Poly | None]] = {
    "multiply": _multiply,
    "divide": _divide,
    "negative": _negative,
    "stop_gradient": _stopped,
    **dict.fromkeys(("add", "subtract"), _add),
    **dict.fromkeys(("power", "square", "sqrt", "rsqrt"), _power),
    **dict.fromkeys(("mean", "sum", "var"), _average),
    **dict.fromkeys(("reshape", "getitem", "broadcast_to"), _relaid),
    **dict.fromkeys(("copy", "astype"), _copied),
}
