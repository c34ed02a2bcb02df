"""Recognising batch norm by what it computes, however it is spelled.

The part of a graph between a node and an `x` of its shape is cut out and evaluated on random numbers. It is batch norm
where its values are those of the formula, with gamma, beta and eps found among the values that it reads. It is looked
through analytic operations only, so values that agree at random points are one function. `stop_gradient` is evaluated
as a derivative sees it, as a constant: it keeps the value that it has at other inputs. Functions that agree then have
the same derivatives, of every order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from ...engine.graph import compute
from ...engine.node import Array, Node
from ...engine.operations import broadcasts, count, reduced_axes
from ..arguments import kept_shape

_LAST = frozenset("add subtract multiply divide negative".split())
_ROOTS = frozenset("sqrt rsqrt power log".split())
_SAME = frozenset("copy astype stop_gradient".split())
_MEANS = frozenset("sum mean var".split())
_ELEMENTWISE = _LAST | _ROOTS | _SAME | {"square", "exp", "broadcast_to"}
_MIXING = _MEANS | {"matmul", "einsum"}
_ANALYTIC = _ELEMENTWISE | _MIXING | {"reshape", "transpose", "getitem"}
_OTHERS = frozenset("abs max min maximum minimum relu tanh sigmoid prod".split())  # looked through for a reason only
_MOST = 64  # How many nodes are looked at below one.
# Of several reasons, the first of these. Inside what is batch norm partly there may be one.
MATCHED, WHOLLY, PARTLY, UNCENTRED, UNLIKE = range(5)

Values = dict[Node, Any]
Formula = Callable[[Array], Any] | Any  # of x, or what it always is


class Match(NamedTuple):
    """The arguments of a batch norm, nodes or constants; None for the mean and the variance of the batch."""

    x: Node
    gamma: Any
    beta: Any
    eps: Any
    mean: Any
    var: Any
    axes: tuple[int, ...]
    stop: tuple[str, ...]
    rank: int = MATCHED


class Miss(NamedTuple):
    """Why a node that looks like batch norm is none."""

    reason: str
    rank: int = WHOLLY


NOTHING = Miss("", UNLIKE)


class Recogniser:
    """What the nodes of a graph are, as batch norms; `nodes` has inputs before consumers."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.order = {node: i for i, node in enumerate(nodes)}
        self.same: dict[Node, Node] = {}  # each node's first twin: the same operation on the same inputs
        self.args: dict[Node, list[Any]] = {}  # as they are evaluated, of what is looked through
        self.varies: dict[Node, set[int]] = {}  # the axes along which a node may vary, counted from the last
        self.analytic = set[Node]()
        known: dict[Any, Node] = {}
        for node in nodes:
            args = [self.same[arg] if isinstance(arg, Node) else arg for arg in node.args]
            self.same[node] = known.setdefault(_key(node, args), node)
            self.varies[node] = _long(node.shape)
            if node.own_op in _ELEMENTWISE:
                self.varies[node] &= set().union(*[self.varying(arg) for arg in args])
            rounds = node.own_op == "astype" and node.dtype != node.inputs[0].dtype
            if (
                node.own_op in _ANALYTIC | _OTHERS
                and not rounds
                and all(0 not in parent.shape for parent in node.inputs)
            ):
                if _is_even(node, args):  # an even power of abs(x) is that of x
                    args = [self.args[a][0] if isinstance(a, Node) and a.own_op == "abs" else a for a in args]
                self.args[node] = [_constant(arg, node.dtype) for arg in args]
                # The root of a square is abs(x).
                bent = _is_root(node) and isinstance(args[0], Node) and _is_even(args[0], args[0].args)
                self.analytic.update([] if bent or node.own_op in _OTHERS else [node])

    def varying(self, arg: Any) -> set[int]:
        """The axes along which an argument may vary, counted from the last."""
        return self.varies[arg] if isinstance(arg, Node) else _long(np.shape(arg))

    def search(self, outputs: Sequence[Node]) -> list[tuple[Node, Region]]:
        """The nodes below `outputs` that are batch norms or almost are, each with its region, inputs first.

        Consumers are looked at first: so the longest spelling is found, and what only it reads is not looked at again.
        """
        live, settled, found = set(outputs), set[Node](), dict[Node, Region]()
        for node in reversed(self.order):
            region = self.find(node) if node in live and node not in settled else None
            if region:
                found[node], inside = region, region.inside(node)
                if isinstance(region.verdict, Match) and (asked := [node for node in outputs if node in inside]):
                    region.verdict = Miss(f"{label(asked[0])} inside it is itself asked for")
                settled |= inside if isinstance(region.verdict, Miss) and region.verdict.rank != PARTLY else set()
            if node in live:
                live.update(region.ends if region and isinstance(region.verdict, Match) else node.inputs)
        return [(n, r) for n, r in found.items() if r.verdict.rank != PARTLY or not r.inside(n) & found.keys()][::-1]

    def find(self, node: Node) -> Region | None:
        """The region below `node` that is a batch norm, or almost is one."""
        y, wide = self.same[node], self.varies[node]
        if y not in self.analytic or node.own_op not in _LAST or 0 in node.shape:
            return None
        if 1 not in node.shape and node.op != "divide" and [self.varying(arg) for arg in node.args] == [wide, wide]:
            return None  # a sum or product of two tensors, of which neither is a parameter
        for opened in (self.analytic, self.args.keys()):
            below, seen = [y], {y}
            for found in below:
                fresh = [a for a in _nodes(self.args[found]) if a not in seen] if found in opened else []
                below += dict.fromkeys(fresh if len(below) < _MOST else [])
                seen.update(below)
            if 1 not in node.shape and not any(self._scales(found, wide) for found in below):
                return None
            candidates = [x for x in below[1:] if x.shape == y.shape and self.varies[x] == wide]
            regions = [Region(self, y, x, seen & opened) for x in candidates]
            # What the first round found is not looked at again.
            regions = [region for region in regions if opened is self.analytic or region.args.keys() - self.analytic]
            best = min(self._judged(regions), key=attrgetter("verdict.rank"), default=None)
            if best and best.verdict.rank != UNLIKE:
                return best
        return None

    def _judged(self, regions: Sequence[Region]) -> list[Region]:
        """The one that is batch norm, or else all of them with the reasons why they are none."""
        # The nearest x first; other tensors of its shape beside it are a sign that it is not the one.
        promising = [region for region in regions if region.is_promising()]
        promising.sort(key=lambda region: len(region.others) > 0)
        with np.errstate(all="ignore"):
            for region in promising:
                region.judge()
                if isinstance(region.verdict, Match):
                    return [region]
            for region in promising:
                region.explain()
        return promising

    def _scales(self, node: Node, wide: set[int]) -> bool:
        """Whether it may be the root of a statistic, or divide by one."""
        if node not in self.args or not (_is_root(node) or node.own_op == "divide"):
            return False
        base = self.args[node][node.own_op == "divide"]
        summands = self.args.get(base, []) if isinstance(base, Node) and base.own_op in ("add", "subtract") else []
        return any(isinstance(arg, Node) and self.varies[arg] < wide for arg in (base, *summands))


class Region:
    """The nodes between `y` and `x`, to be evaluated on values of `x` and of the other nodes that they read."""

    def __init__(self, graph: Recogniser, y: Node, x: Node, opened: Collection[Node]) -> None:
        self.graph, self.y, self.x = graph, y, x
        self.verdict: Match | Miss = NOTHING
        inner, cut, stack = set[Node](), set[Node](), [y]
        for node in stack:
            if node in opened and node is not x:
                inner.add(node)
                stack += [arg for arg in _nodes(graph.args[node]) if arg not in inner]
            elif node is not x:
                cut.add(node)
        self.args = {node: graph.args[node] for node in sorted(inner, key=graph.order.__getitem__)}
        self.cut = sorted(cut, key=graph.order.__getitem__)
        self.moving = self._after(x)
        self.others = [node for node in self.cut if node.shape == y.shape]
        self.stopped = any(node.own_op == "stop_gradient" for node in self.args)
        self.alike = self._alike()
        self.shape = self._small(y.shape)
        self.axes: tuple[int, ...] = ()
        self.rng = np.random.default_rng(0)
        self.points = cache(self._points)

    @property
    def ends(self) -> set[Node]:
        """The nodes that a batch norm reads as they come."""
        return {self.x, *_nodes(self.verdict[:6] if isinstance(self.verdict, Match) else ())}

    def inside(self, node: Node) -> set[Node]:
        """The nodes between `node`, or its equal `y`, and the ends, all of these left out."""
        found, stack, inner = set[Node](), [node], self.args.keys() - self.ends
        while stack:
            fresh = [arg for arg in stack.pop().inputs if arg not in found and self.graph.same[arg] in inner]
            found.update(fresh)
            stack += fresh
        return found

    def is_promising(self) -> bool:
        """Whether there is one root to divide by, and its like over `x` if elements of `x` are mixed."""
        moving = self._after(self.x, *self.others)
        mixing = any(node.own_op in _MIXING for node in self.args if node in moving)
        roots = [node for node in self.args if _is_root(node) and (node in moving or not mixing)]
        divisors = moving.intersection(_nodes([args[1] for node, args in self.args.items() if node.own_op == "divide"]))
        return len(roots) in (1, 2) or (mixing and not roots and len(divisors) == 1)

    def _after(self, *start: Node) -> set[Node]:
        """What depends on these nodes."""
        found = set(start)
        for node, args in self.args.items():
            found.update([node] if found.intersection(_nodes(args)) else [])
        return found

    def _alike(self) -> set[int]:
        """The axes, from the last, along which all places are alike to what computes here: two stand for all."""
        ndim = len(self.y.shape)
        alike = set(range(-ndim, 0))
        for node, args in self.args.items():
            if node.own_op in _MEANS and len(node.inputs[0].shape) == ndim:
                axes = reduced_axes(node.params["axis"], ndim)
                alike -= {axis - ndim for axis in axes}
                even = node.params["keepdims"] or axes == tuple(range(len(axes)))
            else:
                even = node.own_op in _ELEMENTWISE - {"broadcast_to"} and not any(map(np.ndim, _constants(args)))
            if not even:
                return set()
        return alike if all(broadcasts(node.shape, self.y.shape) for node in (*self.args, *self.cut)) else set()

    def _small(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([min(n, 2) if k - len(shape) in self.alike else n for k, n in enumerate(shape)])

    # --- Evaluation ----------------------------------------------------------------------------------------

    def draw(self, spread: float = 1.0, offset: float = 1.0) -> Array:
        """Random numbers for x."""
        return spread * (self.rng.normal(size=self.shape) + offset)

    def draw_others(self, positive: Collection[Node]) -> Values:
        """Random numbers for the other nodes that are read, of which some have to be positive."""
        drawn = {node: self.rng.uniform(0.5, 2, self._small(node.shape)) for node in self.cut}
        return {n: v if n in positive else v * self.rng.choice([-1, 1], v.shape) for n, v in drawn.items()}

    def run(self, x: Array, others: Values, kept: Values | None = None) -> Values:
        """The value of every node; what `stop_gradient` cuts off is taken from `kept`."""
        values = {**others, self.x: x}
        for node, args in self.args.items():
            given = [values[arg] if isinstance(arg, Node) else arg for arg in args]
            if node.own_op in _SAME:
                values[node] = kept[node] if kept and node.own_op == "stop_gradient" else given[0]
            else:
                values[node] = compute(node, given)
        return values

    def avg(self, values: Array, axes: tuple[int, ...] | None = None) -> Any:
        """The mean over the averaged axes, or over others."""
        return np.mean(values, axis=self.axes if axes is None else axes, keepdims=True)

    def var(self, values: Array) -> Any:
        """The variance over the averaged axes."""
        return self.about(self.avg, values)

    def about(self, centre: Formula, x: Array, axes: tuple[int, ...] | None = None) -> Any:
        """The mean of squared deviations from something."""
        return self.avg((x - _at(centre, x)) ** 2, axes)

    def _points(self, spread: float) -> list[tuple[Array, Array]]:
        """Three values of `x` and of `y`, all else being equal."""
        drawn = [self.draw(spread * k) for k in (0.5, 1, 2)]
        return [(x, self.run(x, self.drawn)[self.y]) for x in drawn]

    def fit(self, formula: Formula, spread: float = 1.0) -> tuple[Array, Array] | None:
        """gamma and beta, where y = gamma * formula(x) + beta with the same two for every x."""
        (a, p), (b, q), (c, r) = [(formula(x), y) for x, y in self.points(spread)]
        gamma = (p - q) / (a - b)
        beta = p - gamma * a
        return (gamma, beta) if _close(r, gamma * c + beta, 1e-6) else None

    # --- The arguments -------------------------------------------------------------------------------------

    def laid(self, value: Any) -> Any:
        """A value of the kept axes' shape, or with 1s for the others, along `x`; None if it doesn't fit."""
        full = kept_shape(self.shape, self.axes, True)
        value = np.reshape(value, full) if np.shape(value) == kept_shape(self.shape, self.axes) else value
        fitting = [shape for shape in (full, self.shape) if broadcasts(np.shape(value), shape)]
        return np.broadcast_to(value, fitting[0]) if fitting else None

    def named(self, parameter: Array, neutral: float, scale: float = 0.0) -> list[Any]:
        """The sources that have this value, to rounding of `scale`; None where it is the neutral one."""
        whole, sources = np.broadcast_to(parameter, self.shape), [(None, neutral), *self.sources]
        return [source for source, laid in sources if _close(np.broadcast_to(laid, self.shape), whole, 1e-6, scale)]

    def summands(self) -> Iterator[tuple[Node, Any, Any, Any]]:
        """The sums: of each what is added to what, and its value."""
        sums = [node for node in self.args if node.own_op in ("add", "subtract")]
        for node, i in product(sums, (0, 1)):
            e, other = self.args[node][i], self.args[node][1 - i]
            if not isinstance(e, Node):
                found = [(sign * node.args[i], sign * e) for sign in (1, -1)]
            else:
                negated = self.args[e] if e.own_op == "negative" and e in self.args else []
                found = [(source, self.values[source]) for source in (e, *negated) if e not in self.moving]
            laid = [(node, other, source, self.laid(value)) for source, value in found]
            yield from [summand for summand in laid if summand[3] is not None]

    def taken(self, source: Any, values: Values, neutral: float = 0) -> Any:
        """The value of a source along `x`; a neutral one in the place of None."""
        source = neutral if source is None else source
        return self.laid(values[source] if isinstance(source, Node) else _constant(source))

    # --- Verdicts ------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """Find out what `y` is as a function of `x`."""
        self.drawn = self.draw_others(self.cut)
        self.values = self.run(self.draw(), self.drawn)
        x, y = self.values[self.x], self.values[self.y]
        self.scale = float(np.max(np.abs(y)))
        bumped = x.copy()
        bumped.flat[0] += 0.5
        moved = self.run(bumped, self.drawn)[self.y] != y
        self.averaged = [k for k in range(x.ndim) if np.moveaxis(moved, k, 0)[1:].any()]
        for candidate in self._training() if self.averaged else self._given():
            self.verdict = min(self.verdict, self._confirmed(*candidate), key=attrgetter("rank"))
            if isinstance(self.verdict, Match):
                break
        for node in self.inside(self.y) if isinstance(self.verdict, Match) else ():
            if self.graph.same[node] not in self.graph.analytic:
                self.verdict = Miss(f"it is batch norm at some inputs only, because of {node.op}")

    def _over(self, axes: Sequence[int]) -> None:
        """Take statistics over these axes, and those of length 1 but the last."""
        short = [k for k, n in enumerate(self.shape[:-1]) if n == 1]
        self.axes = tuple(sorted({*axes, *short}))
        constants = [pair for node, args in self.args.items() for pair in zip(node.args, args, strict=True)]
        nodes = sorted(self.values.keys() - self.moving, key=self.graph.order.__getitem__)
        known = [pair for pair in constants if isinstance(pair[1], np.ndarray)] + [
            (node, self.values[node]) for node in nodes
        ]
        self.sources = [(source, laid) for source, value in known if (laid := self.laid(value)) is not None]

    def _training(self) -> Iterator[tuple[Any, ...]]:
        self._over(self.averaged)
        for total, _, eps, e in self.summands():
            if total in self.moving and (found := self.fit(_normal(self.avg, self.var, e), _root(e))):
                yield self.named(found[0], 1), self.named(found[1], 0, self.scale), eps

    def _given(self) -> Iterator[tuple[Any, ...]]:
        """A batch norm with statistics that are given: a line in `x`, element by element."""
        if (line := self.fit(lambda x: x)) is None:
            return
        slope, start = line
        if not slope.any():
            averaging = [node for node in self.args if node.own_op in _MEANS and node in self.moving]
            if averaging and all(count(n.inputs[0].shape, n.params["axis"]) == 1 for n in averaging):
                self.verdict = Miss("there is one value per feature, whose variance is 0")
            return
        flat = [k for k, n in enumerate(self.shape) if n > 1 and _close(slope, np.roll(slope, 1, k), 1e-6)]
        self._over([k for k in flat if _close(start, np.roll(start, 1, k), 1e-6, self.scale)])
        for total, v, eps, e in self.summands() if self.axes else ():
            later = self._after(total)
            var = self.taken(v, self.values) if isinstance(v, Node | np.ndarray) and total not in self.moving else None
            if var is not None and (gammas := self.named(slope * np.sqrt(var + e), 1)):
                for mean, centre in self.sources:
                    betas = self.named(start + slope * centre, 0, self.scale)
                    if betas and not (isinstance(mean, Node) and mean in later):
                        yield gammas, betas, eps, mean, v

    def _confirmed(self, gammas: Any, betas: Any, eps: Any, mean: Any = None, var: Any = None) -> Match | Miss:
        """The match of these arguments that holds at all inputs, and for the derivative."""
        if not gammas or not betas:
            reason = "the scale and the shift are not those of batch norm: (x - mean) * rsqrt * gamma + beta"
            return Miss(reason, PARTLY)
        full = kept_shape(self.shape, self.axes, True)
        fit = [[s for s in found if s is None or self.taken(s, self.values).shape == full] for found in (gammas, betas)]
        if not all(fit) or self.taken(eps, self.values).shape != full:
            return Miss(f"gamma, beta or eps vary along the averaged axes {self.axes}", PARTLY)
        dtype = np.result_type(self.x.dtype, *[found[0].dtype for found in fit if found[0] is not None])
        if dtype != self.y.dtype:
            return Miss(f"the fused node would have dtype {dtype}, and it has {self.y.dtype}", PARTLY)
        for source, what in ((mean, "mean"), (var, "variance")):
            if isinstance(source, Node) and source.requires_grad:
                return Miss(f"the {what} is not computed from {label(self.x)}, and requires a gradient")
        stops = [(), ("mean",), ("var",), ("mean", "var")] if self.stopped and mean is None else [()]
        numbers = [abs(arg) for args in self.args.values() for arg in _constants(args) if not np.ndim(arg)]
        large, small = 3 * max([1, *numbers]), _root(self.taken(eps, self.values))
        for stop, gamma, beta in product(stops, *fit):
            match = Match(self.x, gamma, beta, eps, mean, var, self.axes, stop)
            if all(self._holds(match, *point) for point in ((1, 1), (small, -1), (large, 1), (large, -1))):
                near, far = (self.run(self.values[self.x] + offset, self.drawn) for offset in (1e3, 1e5))
                if any(np.max(abs(far[n])) > 1e3 * np.max(abs(near[n])) for n in self.args if n in self.moving):
                    return Miss("the variance is taken in one pass, mean(x ** 2) - mean(x) ** 2, which cancels digits")
                return match
        for node in self.args if self.stopped else ():
            if node.own_op == "stop_gradient" and self.args[node] == [self.x]:
                return Miss(f"stop_gradient cuts {label(node)} off, and not its statistics")
        cut = Miss("stop_gradient cuts one use of the mean or of the variance and not the other")
        return cut if self.stopped else NOTHING

    def _holds(self, match: Match, spread: float, offset: float) -> bool:
        """Whether `y` is this batch norm at random inputs of this size."""
        positive = set(_nodes([match.eps, match.var]))
        for node in reversed(self.args):
            positive.update(_nodes(self.args[node]) if node in positive else [])
        values = kept = self.run(self.draw(spread, offset), self.draw_others(positive))
        if self.stopped:
            values = self.run(self.draw(spread, offset), self.draw_others(positive), kept)
        mean, var = self._statistics(match, values, kept[self.x])
        normal = (values[self.x] - mean) / np.sqrt(var + self.taken(match.eps, values))
        return _close(
            values[self.y], normal * self.taken(match.gamma, values, 1) + self.taken(match.beta, values), 1e-11
        )

    def _statistics(self, match: Match, values: Values, old: Array) -> tuple[Any, Any]:
        """The mean and the variance, given or of the batch; those that are stopped stay the old ones."""
        if match.mean is not None:
            return self.taken(match.mean, values), self.taken(match.var, values)
        mean = self.avg(old if "mean" in match.stop else values[self.x])
        return mean, self.var(old) if "var" in match.stop else self.about(mean, values[self.x])

    def explain(self) -> None:
        """Find the reason why it is no batch norm, once it is known that it is none."""
        near = self.verdict.rank == UNLIKE if self.averaged else self.others
        if near and count(self.shape, self.axes) > 1:
            eps = [0.0, *[e for *_, e in self.summands()]]
            reasons = [*map(self._unequal, eps), *(map(self._in_part, eps) if self._lines(1.0) else ())]
            self.verdict = min(*reasons, self.verdict, key=attrgetter("rank"))

    def _lines(self, spread: float) -> list[tuple[Array, Any, Any]]:
        """Three values of `x`, the slope of `y` in `x` and its mean, if along the averaged axes it is a line."""
        avg, points = self.avg, self.points(spread)
        lines = [(x, avg(y * (x - avg(x))) / self.var(x), avg(y)) for x, y in points]
        straight = [level + slope * (x - avg(x)) for x, slope, level in lines]
        close = [_close(y, line, 1e-9, self.scale) for (_, y), line in zip(points, straight, strict=True)]
        return lines if all(close) else []

    def _in_part(self, e: Any) -> Miss:
        """Which half of (x - centre) / scale isn't that of batch norm, and what stands in its place, if eps is `e`."""
        avg, var, n, name = self.avg, self.var, count(self.shape, self.axes), label(self.x)
        if not (lines := self._lines(_root(e))):
            return NOTHING
        # The slope is gamma / sqrt(weight * var + e): its square at two points has the weight.
        (v, p), (w, q) = [(var(x), slope**2) for x, slope, _ in lines[:2]]
        weight = float((e * (q - p) / (p * v - q * w)).flat[0])
        unbiased = abs(weight * (n - 1) / n - 1) < 1e-6
        kind = f"unbiased, the sum of squares over {n - 1}" if unbiased else f"weighted by {weight:.6g}"
        squares: dict[str, Formula] = {
            "": var,
            "what is under the root is not a mean of squared deviations from the mean": lambda x: avg(x * x),
        }
        if weight > 1e-6:
            reason = f"the variance is {kind}, where batch norm takes the mean of squares over {n}"
            squares[reason] = lambda x: weight * var(x)
        centres: dict[str, Formula] = {"": avg, "no mean is subtracted from what is divided": 0.0}
        for o in [self.drawn[other] for other in self.others]:
            squares[f"the variance is taken about something else than the mean of {name}"] = partial(self.about, o)
            squares[f"the variance is that of another tensor than {name}, which is normalised"] = var(o)
            centres[f"the mean is that of another tensor than {name}"] = avg(o)
        scales = {reason: partial(_deviation, square, e) for reason, square in squares.items()} | {
            "eps is added outside the root, to the standard deviation": lambda x: np.sqrt(var(x)) + e,
            "it divides by variance + eps, without the square root": lambda x: var(x) + e,
            "it multiplies by the standard deviation": lambda x: 1 / np.sqrt(var(x) + e),
            "the scale is the mean absolute deviation": lambda x: avg(abs(x - avg(x))) + e,
        }

        def first(table: dict[str, Formula], parameter: Callable[..., Any], neutral: float, scale: float) -> str | None:
            """The first of a table with which a parameter is the same at all points, and named."""
            for reason, formula in table.items():
                found = [parameter(_at(formula, x), x, slope, level) for x, slope, level in lines]
                if all(_close(k, found[0], 1e-6, scale) for k in found) and self.named(found[0], neutral, scale):
                    return reason
            return None

        scale = first(scales, lambda value, x, slope, level: slope * value, 1, 0)
        centre = first(centres, lambda value, x, slope, level: level + slope * (value - avg(x)), 0, self.scale)
        if scale is not None and centre is not None and (scale or centre or not np.any(e)):
            both = ", and ".join([reason for reason in (centre, scale) if reason])
            return Miss(both or "no eps is added to the variance", UNCENTRED if centre[:2] == "no" else WHOLLY)
        if centre == "" and not (_close(lines[0][1], lines[1][1], 1e-6) and not any(map(_is_root, self.args))):
            return Miss("it is centred, and not divided by sqrt(var + eps)", PARTLY)
        if scale == "":
            return Miss(f"it is divided by sqrt(var + eps), and not centred on the mean of {name}", PARTLY)
        return NOTHING

    def _unequal(self, e: Any) -> Miss:
        """Whether it is batch norm over other axes than those of one mean, if eps is `e`."""
        ndim = len(self.shape)
        reduced = [n for n in self.args if n.own_op in _MEANS and len(n.inputs[0].shape) == ndim]
        axes = {reduced_axes(node.params["axis"], ndim) for node in reduced}
        near: dict[str, Formula] = {}
        for a, b, c in set(product(axes, repeat=3)) - {(a, a, a) for a in axes}:
            reason = f"unequal axes: the mean is taken over {a}, the variance over {b} about {c}"
            near[reason] = _normal(partial(self.avg, axes=a), partial(self.about, partial(self.avg, axes=c), axes=b), e)
        for a in axes:
            if a and a[-1] >= len(a) and broadcasts(np.mean(self.values[self.x], a).shape, self.shape):
                reason = "the statistics are laid along other axes than those that they belong to: keepdims is missing"
                near[reason] = _normal(partial(np.mean, axis=a), partial(np.var, axis=a), e)
        for reason, formula in near.items():
            fit = self.fit(formula, _root(e))
            if fit and self.named(fit[0], 1) and self.named(fit[1], 0, self.scale):
                return Miss(reason)
        return NOTHING

    def roles(self, nodes: Collection[Node]) -> dict[Node, str]:
        """What these nodes stand for; of several that follow each other the first."""
        values, match, found = self.values, self.verdict, dict[Node, str]()
        if isinstance(match, Match):
            x = values[self.x]
            mean, var = self._statistics(match, values, x)
            scale = 1 / np.sqrt(var + self.taken(match.eps, values))
            known = {"mean": mean, "var": var, "1/σ": scale, "centred": x - mean, "x̂": (x - mean) * scale}
            for node in sorted(nodes, key=self.graph.order.__getitem__):
                laid = self.laid(values[self.graph.same[node]])
                names = [name for name, value in known.items() if laid is not None and _close(laid, value, 1e-9)]
                if names and names[0] not in [found.get(parent) for parent in node.inputs]:
                    found[node] = names[0]
        return found


def _at(formula: Formula, x: Array) -> Any:
    return formula(x) if callable(formula) else formula


def _deviation(square: Formula, e: Any, x: Array) -> Any:
    return np.sqrt(_at(square, x) + e)


def _normal(centre: Formula, square: Formula, e: Any) -> Formula:
    """(x - centre) / sqrt(square + e)."""
    return lambda x: (x - _at(centre, x)) / _deviation(square, e, x)


def label(node: Node) -> str:
    """A node's name in a message."""
    return repr(node.name) if node.name else f"{node.op or 'a leaf'} of shape {node.shape}"


def _nodes(args: Iterable[Any]) -> list[Node]:
    return [arg for arg in args if isinstance(arg, Node)]


def _constants(args: Iterable[Any]) -> list[Any]:
    return [arg for arg in args if not isinstance(arg, Node)]


def _constant(given: Any, dtype: np.dtype[Any] | None = None) -> Any:
    """An argument as it is evaluated, in double precision: 1 / n as narrow as the result with all its digits."""
    if isinstance(given, Node):
        return given
    if np.ndim(given):
        return np.asarray(given, float)
    value = float(given)
    if isinstance(given, np.floating) and given.dtype == dtype and 1e-9 < abs(value) <= 1:
        share = 1 / round(1 / value)
        return share if abs(value / share - 1) <= np.finfo(given.dtype).eps else value
    return value


def _root(e: Any) -> float:
    """Of what size x is for its variance to be like eps, or above one that is negative."""
    return float(np.sqrt(np.mean(np.abs(e)))) * (10 if np.min(e) < 0 else 1) or 1.0


def _long(shape: tuple[int, ...]) -> set[int]:
    return {k - len(shape) for k, n in enumerate(shape) if n != 1}


def _close(a: Any, b: Any, slack: float, scale: float = 0.0) -> bool:
    """Whether two arrays agree to `slack` of the largest entry, or of `scale` if that is larger."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(np.max(np.abs(a - b), initial=0) <= slack * max(np.max(np.abs(b)), scale))


def _is_root(node: Node) -> bool:
    """Whether it is a root, or a power or a logarithm that may be a part of one."""
    if node.own_op == "power" and not isinstance(node.args[1], Node) and not np.ndim(node.args[1]):
        return float(node.args[1]) % 1 != 0 or float(node.args[1]) < 0
    return node.own_op in _ROOTS


def _is_even(node: Node, args: Sequence[Any]) -> bool:
    """Whether it is an even power."""
    if node.own_op == "power" and not isinstance(args[1], Node) and not np.ndim(args[1]):
        return float(args[1]) % 2 == 0
    return node.own_op == "square" or (node.own_op == "multiply" and args[0] is args[1])


def _key(node: Node, args: Sequence[Any]) -> Any:
    """What nodes of one value share. All but our own operations are themselves alone, and where an index has arrays."""
    params = repr(node.params)
    if node.own_op is None or "array" in params:
        return node
    known = [
        arg if isinstance(arg, Node) else (type(arg), id(arg) if isinstance(arg, np.ndarray) else arg) for arg in args
    ]
    return node.own_op, params, *known
