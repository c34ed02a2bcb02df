"""The pattern of batch norm among what a graph reads as, and what is wrong with a near miss."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from ...engine.node import Node
from .reading import (
    HALF,
    ONE,
    Factor,
    Mean,
    Poly,
    Product,
    Reader,
    Sum,
    alone,
    difference,
    is_plain,
    lone,
    long_axes,
    needs_gradient,
)


class NearMiss(Exception):
    """The node looks like batch norm and is not, for this reason."""


class Partly(NearMiss):
    """A batch norm with something around it that the fused node has no place for: a node below may do."""


class Match(NamedTuple):
    """The arguments of a batch norm; the mean and the variance are None where they are those of the batch."""

    x: Factor
    gamma: Factor | None
    beta: Factor | None
    mean: Factor | None
    var: Factor | None
    eps: Any
    axes: tuple[int, ...]
    stop: tuple[str, ...]

    @property
    def factors(self) -> list[Factor]:
        """Those that are nodes or arrays."""
        return [given for given in self[:6] if isinstance(given, Factor)]


def find(reader: Reader, node: Node) -> Match | None:
    """What `node` computes, as a batch norm; None where it is something else, `NearMiss` where it almost is one."""
    terms, shape = reader.own[node], node.shape
    rooted = [
        (number, product, factor, power)
        for product, number in terms
        for factor, power in product
        if power < 0 and not is_plain(factor)
    ]
    if len(rooted) == 1:
        _check_centred(*rooted[0][1:])
    if len(rooted) != 2:
        return None
    # scale * x - scale * mean, and perhaps beta; the scale is 1 / root, perhaps times gamma.
    (a, p, root, power), (b, q, other, _) = sorted(rooted, key=lambda found: -found[0])
    common = p & q
    x, mean = lone(p - common), lone(q - common)
    if root != other or a != -b or x is None or mean is None or not _is_whole(reader, x, shape):
        return None
    found = _under_root(root, power)
    if found is None:
        return None
    var, weight, eps = found
    given, axes, stop = _statistics(reader, x, mean, var, weight, shape)
    scale = common - {(root, power)}
    shift = terms - {(p, a), (q, b)}
    gamma, beta = lone(scale), alone(shift)
    if a != 1 or (scale and not is_plain(gamma)) or (shift and not is_plain(beta)):
        raise Partly("the scale and the shift are not those of batch norm: (x - mean) * rsqrt * gamma + beta")
    match = Match(x, gamma, beta, *given, eps, axes, stop)
    along = {axis for factor in match.factors[1:] for axis in factor.along}
    if given[0]:
        match = match._replace(axes=_free_axes(shape, along))
    if not match.axes or any(axis - len(shape) in along for axis in match.axes):
        raise Partly(f"gamma, beta or eps vary along the averaged axes {axes}")
    if isinstance(eps, Factor) and needs_gradient(eps):
        raise NearMiss("eps requires a gradient, and is a constant of batch norm")
    return match


def _is_whole(reader: Reader, x: Factor, shape: tuple[int, ...]) -> bool:
    """Whether `x` is a node of this very shape."""
    if not is_plain(x):
        return False
    source = reader.source(x)
    return isinstance(source, Node) and source.shape == shape and x.along == long_axes(shape)


def _free_axes(shape: tuple[int, ...], along: set[int]) -> tuple[int, ...]:
    """The axes that no parameter is laid along; of those of length 1, as the default has it: features last."""
    free = tuple([i for i in range(len(shape)) if i - len(shape) not in along])
    default = tuple(range(len(shape) - 1))
    return default if all(shape[i] == 1 for i in set(free) ^ set(default)) else free


def _deviation(factor: Factor | None) -> tuple[Factor, Factor] | None:
    """Of a mean of squared deviations: what deviates, and from what."""
    if factor is None or not isinstance(factor.base, Mean) or len(factor.base.inner) != 1:
        return None
    ((inner, power),) = factor.base.inner
    return difference(inner.base.terms) if power == 2 and isinstance(inner.base, Sum) else None


def _under_root(root: Factor, power: Any) -> tuple[Factor, Any, Any] | None:
    """The variance under the root, its coefficient, and eps."""
    terms: Poly = root.base.terms if isinstance(root.base, Sum) else frozenset({(frozenset({(root, 1)}), 1)})
    powers = {inner for product, _ in terms for factor, inner in product if _deviation(factor)}
    if isinstance(root.base, Mean) and powers:
        raise NearMiss("no eps is added to the variance")
    if power == -1 and HALF in powers:
        raise NearMiss("eps is added outside the root, to the standard deviation")
    if power == -1 and 1 in powers:
        raise NearMiss("it divides by variance + eps, without the square root")
    if power != -HALF:
        return None
    for product, number in terms:
        if number < 0 and any(isinstance(factor.base, Mean) and inner == 2 for factor, inner in product):
            raise NearMiss("the variance is taken in one pass, mean(x ** 2) - mean(x) ** 2, which cancels digits")
    single = {product: factor for product, _ in terms if (factor := lone(product))}
    found = [p for p, f in single.items() if isinstance(f.base, Mean)] or list(single)
    if len(found) != 1 or len(terms) != 2:
        return None
    ((rest, number),) = [term for term in terms if term[0] != found[0]]
    eps = number if rest == ONE else lone(rest) if number == 1 else None
    return None if eps is None else (single[found[0]], dict(terms)[found[0]], eps)


def _check_centred(product: Product, root: Factor, power: Any) -> None:
    """`NearMiss` for x / sqrt(var(x) + eps)."""
    found = _under_root(root, power) if power == -HALF else None
    deviation = _deviation(found[0]) if found else None
    if deviation and any(factor == deviation[0] for factor, _ in product):
        raise NearMiss("no mean is subtracted from what is divided by the standard deviation")


def _statistics(
    reader: Reader, x: Factor, mean: Factor, var: Factor, weight: Any, shape: tuple[int, ...]
) -> tuple[tuple[Factor | None, Factor | None], tuple[int, ...], tuple[str, ...]]:
    """The mean and the variance where they are given, the axes and `stop` where they are the batch's."""
    name = called(reader, x)
    deviation = _deviation(var)
    if not isinstance(mean.base, Mean):
        if deviation:
            raise NearMiss(f"the variance is that of a batch, and the mean is not: it is {called(reader, mean)}")
        for factor, what in ((mean, "mean"), (var, "variance")):
            if needs_gradient(factor):
                raise NearMiss(f"the {what} is not computed from {name}, and requires a gradient")
        if weight != 1 or isinstance(var.base, Mean):
            raise NearMiss("the mean is given, and the variance is computed")
        return (mean, var), (), ()
    whole = x._replace(stopped=False)
    if lone(mean.base.inner) != whole:
        raise NearMiss(f"the mean is that of another tensor than {name}, which it is subtracted from")
    if deviation is None:
        raise NearMiss("what is under the root is not a mean of squared deviations from the mean")
    assert isinstance(var.base, Mean)
    deviating, centre = deviation
    if deviating != whole:
        raise NearMiss(f"the variance is that of another tensor than {name}, which is normalised")
    if not isinstance(centre.base, Mean) or lone(centre.base.inner) != whole:
        raise NearMiss(f"the variance is taken about something else than the mean of {name}")
    ndim = len(shape)
    if not mean.base.axes == var.base.axes == centre.base.axes:
        over = [tuple(sorted(axis + ndim for axis in base.axes)) for base in (mean.base, var.base, centre.base)]
        raise NearMiss(f"unequal axes: the mean is taken over {over[0]}, the variance over {over[1]} about {over[2]}")
    if not mean.along == var.along == centre.along == mean.base.kept:
        raise NearMiss("the statistics are laid along other axes than those that they belong to: keepdims is missing")
    n = math.prod([shape[axis] for axis in mean.base.axes])
    if n == 1:
        raise NearMiss("there is one value per feature, whose variance is 0")
    if weight != 1:
        unbiased = abs(weight * (n - 1) / n - 1) < 1e-6
        kind = f"unbiased, the sum of squares over {n - 1}" if unbiased else f"weighted by {float(weight):.6g}"
        raise NearMiss(f"the variance is {kind}, where batch norm takes the mean of squares over {n}")
    if centre.stopped != mean.stopped and not var.stopped:
        raise NearMiss("stop_gradient cuts one use of the mean and not the other")
    if x.stopped and not (mean.stopped and var.stopped):
        raise NearMiss(f"stop_gradient cuts {name} off, and not its statistics")
    long = [i for i, n in enumerate(shape) if i - ndim in mean.base.axes or n == 1]
    stop = [what for what, factor in (("mean", mean), ("var", var)) if factor.stopped and not x.stopped]
    return (None, None), reader.axes.get(mean.base, tuple(long)), tuple(stop)


def sources(reader: Reader, match: Match) -> set[Node]:
    """The nodes that a batch norm reads as they come."""
    return {source for factor in match.factors if isinstance(source := reader.source(factor), Node)}


def inside(reader: Reader, node: Node, match: Match | None = None) -> set[Node]:
    """The nodes between `node` and what it reads as it comes, both left out."""
    ends = sources(reader, match) if match else set()
    found: set[Node] = set()
    stack = [node]
    while stack:
        for parent in stack.pop().inputs:
            if parent in found or reader.same[parent] in ends or reader.seen[parent] == reader.plain(parent):
                continue
            found.add(parent)
            stack.append(parent)
    return found


def called(reader: Reader, factor: Factor) -> str:
    """A factor's name in a message."""
    source = reader.source(factor) if is_plain(factor) else None
    return label(source) if isinstance(source, Node) else "a constant"


def label(node: Node) -> str:
    """A node's name in a message."""
    return repr(node.name) if node.name else f"{node.op or 'a leaf'} of shape {node.shape}"
