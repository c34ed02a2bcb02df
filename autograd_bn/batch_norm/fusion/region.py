"""A part of a graph as a function: what lies between a node and an `x` of its shape, evaluated on random numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.graph import compute
from ...engine.node import Array, Node
from ...engine.operations import broadcasts, reduced_axes
from ..kernels.layout import kept_shape

if TYPE_CHECKING:
    from .recognise import Recogniser

ROOTS = frozenset("sqrt rsqrt power log".split())
SAME = frozenset("copy astype stop_gradient".split())
MEANS = frozenset("sum mean var".split())
ELEMENTWISE = ROOTS | SAME | frozenset("add subtract multiply divide negative square exp broadcast_to".split())
MIXING = MEANS | {"matmul", "einsum"}

Known = dict[Node, Any]  # the value of each
Formula = Callable[[Array], Any]  # of x


class Region:
    """The nodes between `y` and `x`, evaluated on values of `x` and of the other nodes that they read, the `cut`.

    `values` are those at one random `x`, of which `averaged` are the axes along which an element moves others of `y`;
    where there are none, `line` is each element's slope and start, if it is a line. `axes` are those of the statistics.
    """

    def __init__(self, graph: Recogniser, y: Node, x: Node, args: dict[Node, list[Any]], cut: list[Node]) -> None:
        self.graph, self.y, self.x, self.args, self.cut = graph, y, x, args, cut
        self.others = [node for node in cut if node.shape == y.shape]
        self.moving = graph.after(args, x)
        self.stopped = any(node.own_op == "stop_gradient" for node in args)
        self.alike = self._alike()
        self.shape = self._small(y.shape)
        self.rng = np.random.default_rng(0)
        self.points = cache(self._points)
        self.drawn = self.draw_others(cut)
        self.values = self.run(self.draw(), self.drawn)
        self.size = float(np.max(np.abs(self.values[y])))
        self.averaged = self._averaged()
        self.line = None if self.averaged else self.fit(lambda x: x)
        self.axes = self._axes()
        self.full = kept_shape(self.shape, self.axes, True)
        self.sources = self._sources()
        self.sums = self._sums()

    def _alike(self) -> set[int]:
        """The axes, from the last, along which all places are alike to what computes here: two stand for all."""
        ndim = len(self.y.shape)
        alike = set(range(-ndim, 0))
        for node, args in self.args.items():
            if node.own_op in MEANS and len(node.inputs[0].shape) == ndim:
                axes = reduced_axes(node.params["axis"], ndim)
                alike -= {axis - ndim for axis in axes}
                even = node.params["keepdims"] or axes == tuple(range(len(axes)))
            else:
                even = node.own_op in ELEMENTWISE - {"broadcast_to"} and not any(map(np.ndim, constants(args)))
            if not even:
                return set()
        return alike if all(broadcasts(node.shape, self.y.shape) for node in (*self.args, *self.cut)) else set()

    def _small(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([min(n, 2) if k - len(shape) in self.alike else n for k, n in enumerate(shape)])

    def _averaged(self) -> list[int]:
        bumped = self.values[self.x].copy()
        bumped.flat[0] += 0.5
        moved = self.run(bumped, self.drawn)[self.y] != self.values[self.y]
        return [k for k in range(moved.ndim) if np.moveaxis(moved, k, 0)[1:].any()]

    def _axes(self) -> tuple[int, ...]:
        axes = self.averaged
        if self.line and self.line[0].any():
            flat = [k for k, n in enumerate(self.shape) if n > 1 and self._is_flat(self.line[0], k)]
            axes = [k for k in flat if self._is_flat(self.line[1], k, self.size)]
        short = [k for k, n in enumerate(self.shape[:-1]) if n == 1]  # which are averaged over too
        return tuple(sorted({*axes, *short}))

    def _is_flat(self, values: Array, axis: int, scale: float = 0.0) -> bool:
        return close(values, np.roll(values, 1, axis), 1e-6, scale)

    def _sources(self) -> list[tuple[Any, Any]]:
        """The constant arrays and the nodes that don't depend on `x`, each with its value along `x`."""
        pairs = [pair for node, args in self.args.items() for pair in zip(node.args, args, strict=True)]
        known = [pair for pair in pairs if isinstance(pair[1], np.ndarray)]
        steady = sorted(self.values.keys() - self.moving, key=self.graph.order.__getitem__)
        known += [(node, self.values[node]) for node in steady]
        return [(source, laid) for source, value in known if (laid := self.laid(value)) is not None]

    def _sums(self) -> list[tuple[Node, Any, Any, Any]]:
        """The sums: of each what is added to what, and its value."""
        sums, made = [node for node in self.args if node.own_op in ("add", "subtract")], []
        for node, i in product(sums, (0, 1)):
            e, other = self.args[node][i], self.args[node][1 - i]
            if not isinstance(e, Node):
                sources = [(sign * node.args[i], sign * e) for sign in (1, -1)]
            else:
                negated = self.args[e] if e.own_op == "negative" and e in self.args else []
                sources = [(source, self.values[source]) for source in (e, *negated) if e not in self.moving]
            laid = [(node, other, source, self.laid(value)) for source, value in sources]
            made += [summand for summand in laid if summand[3] is not None]
        return made

    def draw(self, spread: float = 1.0, offset: float = 1.0) -> Array:
        """Random numbers for x."""
        return spread * (self.rng.normal(size=self.shape) + offset)

    def draw_others(self, positive: Collection[Node]) -> Known:
        """Random numbers for the other nodes that are read, of which some have to be positive."""
        drawn = {node: self.rng.uniform(0.5, 2, self._small(node.shape)) for node in self.cut}
        return {n: v if n in positive else v * self.rng.choice([-1, 1], v.shape) for n, v in drawn.items()}

    def run(self, x: Array, others: Known, kept: Known | None = None) -> Known:
        """The value of every node; what `stop_gradient` cuts off is taken from `kept`."""
        values = {**others, self.x: x}
        for node, args in self.args.items():
            operands = [values[arg] if isinstance(arg, Node) else arg for arg in args]
            if node.own_op in SAME:
                values[node] = kept[node] if kept and node.own_op == "stop_gradient" else operands[0]
            else:
                values[node] = compute(node, operands)
        return values

    def _points(self, spread: float) -> list[tuple[Array, Array]]:
        """Three values of `x` and of `y`, all else being equal."""
        drawn = [self.draw(spread * k) for k in (0.5, 1, 2)]
        return [(x, self.run(x, self.drawn)[self.y]) for x in drawn]

    def fit(self, formula: Formula, spread: float = 1.0) -> tuple[Array, Array] | None:
        """gamma and beta, where y = gamma * formula(x) + beta with the same two for every x."""
        (a, p), (b, q), (c, r) = [(formula(x), y) for x, y in self.points(spread)]
        gamma = (p - q) / (a - b)
        beta = p - gamma * a
        return (gamma, beta) if close(r, gamma * c + beta, 1e-6) else None

    def laid(self, value: Any) -> Any:
        """A value of the kept axes' shape, or with 1s for the others, along `x`; None if it doesn't fit."""
        value = np.reshape(value, self.full) if np.shape(value) == kept_shape(self.shape, self.axes) else value
        fitting = [shape for shape in (self.full, self.shape) if broadcasts(np.shape(value), shape)]
        return np.broadcast_to(value, fitting[0]) if fitting else None

    def named(self, parameter: Array, neutral: float, scale: float = 0.0) -> list[Any]:
        """The sources that have this value, to rounding of `scale`; None where it is the neutral one."""
        sources = [(None, neutral), *self.sources]
        return [source for source, value in sources if close(value, parameter, 1e-6, scale)]

    def taken(self, source: Any, values: Known, neutral: float = 0) -> Any:
        """The value of a source along `x`; a neutral one in the place of None."""
        source = neutral if source is None else source
        return self.laid(values[source] if isinstance(source, Node) else constant(source))

    def avg(self, values: Array, axes: tuple[int, ...] | None = None) -> Any:
        """The mean over the averaged axes, or over others."""
        return np.mean(values, axis=self.axes if axes is None else axes, keepdims=True)

    def var(self, values: Array, axes: tuple[int, ...] | None = None, mean_axes: tuple[int, ...] | None = None) -> Any:
        """The variance over the averaged axes, or over others, perhaps about the mean over others again."""
        return self.avg((values - self.avg(values, mean_axes)) ** 2, axes)

    def about(self, centre: Any, values: Array) -> Any:
        """The mean of squared deviations from something."""
        return self.avg((values - centre) ** 2)


def nodes(args: Iterable[Any]) -> list[Node]:
    """Those of the arguments that are nodes."""
    return [arg for arg in args if isinstance(arg, Node)]


def constants(args: Iterable[Any]) -> list[Any]:
    """The other arguments."""
    return [arg for arg in args if not isinstance(arg, Node)]


def constant(value: Any, dtype: np.dtype[Any] | None = None) -> Any:
    """An argument as it is evaluated, in double precision: 1 / n as narrow as the result with all its digits."""
    if isinstance(value, Node):
        return value
    if np.ndim(value):
        return np.asarray(value, float)
    number = float(value)
    if isinstance(value, np.floating) and value.dtype == dtype and 1e-9 < abs(number) <= 1:
        share = 1 / round(1 / number)
        return share if abs(number / share - 1) <= np.finfo(value.dtype).eps else number
    return number


def close(a: Any, b: Any, slack: float, scale: float = 0.0) -> bool:
    """Whether two arrays agree to `slack` of the largest entry of the second, or of `scale` if that is larger."""
    return bool(np.abs(a - b).max() <= slack * max(np.abs(b).max(), scale))


def is_root(node: Node) -> bool:
    """Whether it is a root, or a power or a logarithm that may be a part of one."""
    if node.own_op == "power" and not isinstance(node.args[1], Node) and not np.ndim(node.args[1]):
        return float(node.args[1]) % 1 != 0 or float(node.args[1]) < 0
    return node.own_op in ROOTS
