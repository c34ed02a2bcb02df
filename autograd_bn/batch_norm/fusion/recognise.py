"""Recognising batch norm by what it computes, however it is spelled.

The part of a graph between a node and an `x` of its shape is cut out and evaluated on random numbers. It is batch norm
where its values are those of the formula, with gamma, beta and eps found among the values that it reads. It is looked
through analytic operations only, so values that agree at random points are one function. `stop_gradient` is evaluated
as a derivative sees it, as a constant: it keeps the value that it has at other inputs. Functions that agree then have
the same derivatives, of every order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ...engine.graph import compute
from ...engine.node import Array, Node
from ...engine.operations import broadcasts, count, reduced_axes
from ..arguments import kept_shape

_LAST = frozenset("add subtract multiply divide negative".split())
_ROOTS = frozenset("sqrt rsqrt power log".split())
_SAME = frozenset("copy astype stop_gradient".split())
_MIXING = frozenset("sum mean var matmul einsum".split())
_ELEMENTWISE = _LAST | _ROOTS | _SAME | {"square", "exp", "broadcast_to"}
_ANALYTIC = _ELEMENTWISE | _MIXING | {"reshape", "transpose", "getitem"}
_OTHERS = frozenset("abs max min maximum minimum relu tanh sigmoid prod".split())  # looked through for a reason only
# How many nodes are looked at below one, and how far below it a root or a division may be.
_MOST, _NEAR = 64, 12
# Where several reasons are found, the first of these: a node below may be a batch norm where it is partly one.
CENTRED, UNCENTRED, PARTLY = range(3)

Values = dict[Node, Any]
Formula = Callable[[Array], Any]


class Argument(NamedTuple):
    """What `batch_norm` is given: a node or a constant, and the shape that it is broadcast to."""

    source: Any
    shape: tuple[int, ...]

    @property
    def needs_gradient(self) -> bool:
        """Whether a gradient flows to it."""
        return isinstance(self.source, Node) and self.source.requires_grad


class Match(NamedTuple):
    """The arguments of a batch norm; the mean and the variance are None where they are those of the batch."""

    x: Node
    gamma: Argument | None
    beta: Argument | None
    eps: Argument
    mean: Argument | None
    var: Argument | None
    axes: tuple[int, ...]
    stop: tuple[str, ...]


class Miss(NamedTuple):
    """Why a node that looks like batch norm is none."""

    reason: str
    rank: int = CENTRED


class Recogniser:
    """What the nodes of a graph are, as batch norms; `nodes` has inputs before consumers."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.order = {node: i for i, node in enumerate(nodes)}
        self.same = _first_of_same(nodes)
        self.far: dict[Node, float] = {}  # steps down to the nearest root or division
        self.varies: dict[Node, set[int]] = {}  # the axes along which a node may vary, counted from the last
        self.given: dict[Node, list[Any]] = {}  # arguments, of equal nodes the first
        self.args: dict[Node, list[Any]] = {}  # and as they are evaluated, of what is looked through
        self.analytic = set[Node]()
        for node in nodes:
            below = min([self.far[parent] for parent in node.inputs], default=math.inf)
            self.far[node] = 0 if _is_root(node) or node.op == "divide" else below + 1
            self.varies[node] = _long(node.shape)
            if node.op in _ELEMENTWISE:
                self.varies[node] &= set().union(*[self.varying(arg) for arg in node.args])
            if self.same[node] is node:
                self._prepare(node)

    def varying(self, arg: Any) -> set[int]:
        """The axes along which an argument may vary, counted from the last."""
        return self.varies[arg] if isinstance(arg, Node) else _long(np.shape(arg))

    def _prepare(self, node: Node) -> None:
        given = [self.same[arg] if isinstance(arg, Node) else arg for arg in node.args]
        if _is_even(node, given):  # an even power of abs(x) is that of x
            given = [self.same[arg.inputs[0]] if isinstance(arg, Node) and arg.op == "abs" else arg for arg in given]
        self.given[node] = given
        base = given[0] if _is_root(node) else None
        converts = node.op == "astype" and node.dtype != node.inputs[0].dtype
        if isinstance(base, Node) and _is_even(base, self.given[base]):  # and the root of a square is abs(x)
            converts = True
        if node.op in _ANALYTIC | _OTHERS and all(0 not in parent.shape for parent in node.inputs):
            self.args[node] = [_constant(arg, node.dtype) for arg in given]
            self.analytic.update([] if converts or node.op in _OTHERS else [node])

    def search(self, outputs: Sequence[Node]) -> Iterator[tuple[Node, Region]]:
        """The nodes below `outputs` that are batch norms or almost are, each with its region, consumers first.

        So the longest spelling is found, and what only it reads is not looked at again.
        """
        live, settled = set(outputs), set[Node]()
        for node in reversed(self.order):
            region = self.find(node) if node in live and node not in settled else None
            if region:
                inside = region.inside(node)
                if region.match and (asked := [output for output in outputs if output in inside]):
                    region.verdict = Miss(f"{label(asked[0])} inside it is itself asked for")
                yield node, region
                settled |= inside if isinstance(region.verdict, Miss) and region.verdict.rank != PARTLY else set()
            if node in live:
                live.update(region.ends if region and region.match else node.inputs)

    def find(self, node: Node) -> Region | None:
        """The region below `node` that is a batch norm, or almost is one."""
        y, wide = self.same[node], self.varies[node]
        if y not in self.analytic or node.op not in _LAST or self.far[node] > _NEAR or 0 in node.shape:
            return None
        short = 1 in node.shape
        if not short and node.op in ("add", "subtract") and all(self.varying(arg) == wide for arg in node.args):
            return None  # a sum of two tensors, of which neither is a parameter
        for opened in (self.analytic, self.args.keys()):
            below, seen = [y], {y}
            for found in below:
                if len(below) < _MOST and found in opened:
                    fresh = [arg for arg in self.args[found] if isinstance(arg, Node) and arg not in seen]
                    below += dict.fromkeys(fresh)
                    seen.update(fresh)
            if not short and not any(self._scales(found, wide) for found in below):
                return None
            seen &= opened
            regions = [Region(self, y, x, seen) for x in below[1:] if x.shape == y.shape and self.varies[x] == wide]
            # The nearest x first; other tensors of its shape beside it are a sign that it is not the one.
            regions = [region for region in regions if region.is_promising()]
            regions.sort(key=lambda region: len(region.others) > 0)
            missed: list[tuple[int, int, Region]] = []
            with np.errstate(all="ignore"):
                for region in regions:
                    odd = [found.op for found in region.inner if found not in self.analytic]
                    region.verdict = region.judge() if odd or opened is self.analytic else None
                    if region.match and odd:
                        region.verdict = Miss(f"it is batch norm at some inputs only, because of {odd[0]}")
                    if region.match:
                        return region
                for region in regions:  # a reason costs much more than a match
                    region.verdict = region.reason()
                    if isinstance(region.verdict, Miss):
                        missed.append((region.verdict.rank, len(missed), region))
            if missed:
                return min(missed)[2]
        return None

    def _scales(self, node: Node, wide: set[int]) -> bool:
        """Whether it may be the root of a statistic, or divide by one."""
        if node not in self.args or not (_is_root(node) or node.op == "divide"):
            return False
        base = self.args[node][node.op == "divide"]
        summands = self.args.get(base, []) if isinstance(base, Node) and base.op in ("add", "subtract") else []
        return any(isinstance(arg, Node) and self.varies[arg] < wide for arg in (base, *summands))


class Region:
    """The nodes between `y` and `x`, to be evaluated on values of `x` and of the other nodes that they read."""

    def __init__(self, recogniser: Recogniser, y: Node, x: Node, seen: set[Node]) -> None:
        self.y, self.x, self.shape, self.verdict = y, x, y.shape, None
        self.order, self.same = recogniser.order, recogniser.same
        self.whole = self.shape
        inner, cut, stack = {x}, set[Node](), [y]
        while stack:
            node = stack.pop()
            if node in seen and node not in inner:
                inner.add(node)
                stack += [arg for arg in recogniser.args[node] if isinstance(arg, Node)]
            elif node not in inner:
                cut.add(node)
        inner.remove(x)
        self.inner, self.cut = (sorted(nodes, key=self.order.__getitem__) for nodes in (inner, cut))
        self.given, self.args = ({n: of[n] for n in self.inner} for of in (recogniser.given, recogniser.args))
        self.free = self._free()
        self.shape = self._small(self.whole)
        self.moving = self._moving(x)
        self.others = [node for node in self.cut if node.shape == self.whole]
        self.stopped = any(node.op == "stop_gradient" for node in self.inner)
        self.axes: tuple[int, ...] = ()
        self.settled = True
        self.rng = np.random.default_rng(0)
        self.known: dict[float, list[tuple[Array, Array]]] = {}

    verdict: Match | Miss | None

    @property
    def match(self) -> Match | None:
        """The batch norm that it is, if it is one."""
        if not isinstance(self.verdict, Match):
            return None
        shapes = {self.shape: self.whole, self.kept: kept_shape(self.whole, self.axes)}
        shapes[self.full] = kept_shape(self.whole, self.axes, True)
        parts = self.verdict._asdict().items()
        whole: Any = {k: p._replace(shape=shapes.get(p.shape, p.shape)) for k, p in parts if isinstance(p, Argument)}
        return self.verdict._replace(**whole)

    def _free(self) -> set[int]:
        """The axes, from the last, along which all places are alike to what computes here: two stand for all."""
        reduced, ndim = set[int](), len(self.whole)
        for node in [*self.inner, *self.cut]:
            if not all(n in (1, m) for n, m in zip(reversed(node.shape), reversed(self.whole), strict=False)):
                return set()
        for node, args in self.args.items():
            if any(np.ndim(arg) for arg in args if not isinstance(arg, Node)):
                return set()  # numbers of which two places may agree and others not
            if node.op in ("sum", "mean", "var") and len(node.inputs[0].shape) == ndim:
                axes = reduced_axes(node.params["axis"], ndim)
                if not node.params["keepdims"] and axes != tuple(range(len(axes))):
                    return set()
                reduced |= {axis - ndim for axis in axes}
            elif node.op not in _ELEMENTWISE or node.op == "broadcast_to":
                return set()
        return {k for k in range(-ndim, 0) if k not in reduced}

    def _small(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple([min(n, 2) if k - len(shape) in self.free else n for k, n in enumerate(shape)])

    @property
    def ends(self) -> set[Node]:
        """The nodes that a batch norm reads as they come."""
        given = [part.source for part in self.match or () if isinstance(part, Argument)]
        return {self.x, *[source for source in given if isinstance(source, Node)]}

    def is_promising(self) -> bool:
        """Whether there is one root to divide by, and its like over `x` if elements of `x` are mixed."""
        moving = self._moving(self.x, *self.others)
        mixing = any(node.op in _MIXING for node in self.inner if node in moving)
        roots = [node for node in self.inner if _is_root(node) and (node in moving or not mixing)]
        divided = [node for node in self.inner if node.op == "divide" and self.args[node][1] in moving]
        return len(roots) in (1, 2) or (mixing and not roots and len(divided) == 1)

    def inside(self, node: Node) -> set[Node]:
        """The nodes between `node`, or its equal `y`, and the ends, all of these left out."""
        found, stack, inner = set[Node](), [node], self.args.keys() - self.ends
        while stack:
            fresh = [parent for parent in stack.pop().inputs if parent not in found and self.same[parent] in inner]
            found.update(fresh)
            stack += fresh
        return found

    def _moving(self, *changed: Node) -> set[Node]:
        """What depends on these."""
        found = set(changed)
        for node, args in self.args.items():
            if any(arg in found for arg in args if isinstance(arg, Node)):
                found.add(node)
        return found

    # --- Evaluation ----------------------------------------------------------------------------------------

    def draw(self, spread: float = 1.0, offset: float = 1.0) -> Array:
        """Random numbers for x."""
        return spread * (self.rng.normal(size=self.shape) + offset)

    def draw_others(self, positive: set[Node]) -> Values:
        """Random numbers for the other nodes that are read, of which some have to be positive."""
        drawn = {node: self.rng.uniform(0.5, 2, self._small(node.shape)) for node in self.cut}
        return {n: v if n in positive else v * self.rng.choice([-1, 1], v.shape) for n, v in drawn.items()}

    def run(self, x: Array, others: Values, kept: Values | None = None) -> Values:
        """The value of every node; what `stop_gradient` cuts off is taken from `kept`."""
        values = {**others, self.x: x}
        for node, args in self.args.items():
            given = [values[arg] if isinstance(arg, Node) else arg for arg in args]
            if node.op in _SAME:
                values[node] = kept[node] if kept and node.op == "stop_gradient" else given[0]
            else:
                values[node] = compute(node, given)
        return values

    def avg(self, values: Array, axes: tuple[int, ...] | None = None) -> Any:
        """The mean over the averaged axes, or over others."""
        return np.mean(values, axis=self.axes if axes is None else axes, keepdims=True)

    def var(self, values: Array) -> Any:
        """The variance over the averaged axes."""
        return self.avg((values - self.avg(values)) ** 2)

    def points(self, spread: float) -> list[tuple[Array, Array]]:
        """Three values of `x` and of `y`, all else being equal."""
        if spread not in self.known:
            drawn = [self.draw(spread * k) for k in (0.5, 1, 2)]
            self.known[spread] = [(x, self.run(x, self.drawn)[self.y]) for x in drawn]
        return self.known[spread]

    def fit(self, formula: Formula, spread: float = 1.0) -> tuple[Array, Array] | None:
        """gamma and beta, where y = gamma * formula(x) + beta with the same two for every x."""
        (a, p), (b, q), (c, r) = self.points(spread)
        gamma = (p - q) / (formula(a) - formula(b))
        beta = p - gamma * formula(a)
        return (gamma, beta) if _close(r, gamma * formula(c) + beta, 1e-6) else None

    def judge(self) -> Match | Miss | None:
        """What `y` is as a function of `x`."""
        self.drawn = self.draw_others(set(self.cut))
        self.values = self.run(self.draw(), self.drawn)
        x, y = self.values[self.x], self.values[self.y]
        self.scale = float(np.max(np.abs(y)))
        bumped = x.copy()
        bumped.flat[0] += 0.5
        moved = self.run(bumped, self.drawn)[self.y] != y
        averaged = [k for k in range(x.ndim) if np.moveaxis(moved, k, 0)[1:].any()]
        if averaged:
            self._over(averaged)
        found = self._training() if averaged else self._given()
        self.settled = not self.axes or bool(averaged and found) or not (averaged or self.others)
        return found

    def reason(self) -> Match | Miss | None:
        """Why it is no batch norm, once it is known that it is none."""
        return self.verdict if self.settled else self._near_miss() or self.verdict

    def _over(self, axes: Sequence[int]) -> None:
        """Take statistics over these axes, and those of length 1 but the last."""
        short = [k for k, n in enumerate(self.shape[:-1]) if n == 1]
        self.axes = tuple(sorted({*axes, *short}))
        self.full, self.kept = kept_shape(self.shape, self.axes, True), kept_shape(self.shape, self.axes)
        arrays = {
            id(given): (given, value)
            for node, args in self.args.items()
            for given, value in zip(self.given[node], args, strict=True)
            if isinstance(value, np.ndarray)
        }
        nodes = sorted(self.values.keys() - self.moving, key=self.order.__getitem__)
        self.sources = [*arrays.values(), *[(node, self.values[node]) for node in nodes]]
        self.ways = [way for source in self.sources for way in self.laid(*source)]

    # --- The arguments -------------------------------------------------------------------------------------

    def laid(self, source: Any, value: Any) -> Iterator[tuple[Argument, Any]]:
        """The ways to take a value for a parameter, and what it is along `x` then."""
        for shape, full in dict.fromkeys([(self.kept, self.full), (self.full, self.full), (self.shape, self.shape)]):
            if broadcasts(np.shape(value), shape):
                yield Argument(source, shape), np.broadcast_to(value, shape).reshape(full)

    def named(self, parameter: Array, neutral: float, scale: float = 0.0) -> list[Argument | None]:
        """The arguments that have this value, to rounding of `scale`; None where it is the neutral one."""
        whole = np.broadcast_to(parameter, self.shape)
        ways: list[tuple[Argument | None, Any]] = [(None, neutral), *self.ways]
        return [way for way, laid in ways if _close(np.broadcast_to(laid, self.shape), whole, 1e-6, scale)]

    def summands(self, *moving: bool) -> Iterator[tuple[Node, Any, Argument, Any]]:
        """The sums that move with `x`, or do not: of each what is added to what, and the value of that."""
        sums = [node for node in self.inner if node.op in ("add", "subtract") and (node in self.moving) in moving]
        for node, i in itertools.product(sums, (0, 1)):
            given, e = self.given[node][i], self.args[node][i]
            if isinstance(e, Node) and e in self.moving:
                continue
            for sign in (-1, 1) if node.op == "subtract" and i else (1, -1):
                value = sign * (self.values[e] if isinstance(e, Node) else e)
                if isinstance(e, Node):
                    equal = [source for source in self.sources if _close(source[1], value, 1e-9)]
                    ways = [way for source in equal for way in self.laid(*source)]
                else:
                    ways = (
                        list(self.laid(sign * given, value)) if np.shape(e) else [(Argument(sign * given, ()), value)]
                    )
                yield from [(node, self.args[node][1 - i], *way) for way in ways]

    def taken(self, argument: Argument | None, values: Values, neutral: float = 0.0) -> Any:
        """An argument's value along `x`."""
        if argument is None:
            return neutral
        value = values[argument.source] if isinstance(argument.source, Node) else _constant(argument.source)
        return np.broadcast_to(value, argument.shape).reshape(self.full) if argument.shape else value

    # --- Verdicts ------------------------------------------------------------------------------------------

    def _training(self) -> Match | Miss | None:
        for *_, eps, e in self.summands(True):
            if found := self.fit(_normal(self.avg, self.var, e), _root(e)):
                return self._confirmed(self.named(found[0], 1), self.named(found[1], 0, self.scale), eps)
        return None

    def _given(self) -> Match | Miss | None:
        """A batch norm with statistics that are given: a line in `x`, element by element."""
        if (line := self.fit(lambda x: x)) is None:
            return None
        slope, start = line
        if not slope.any():
            averaging = [node for node in self.inner if node.op in _MIXING and node in self.moving]
            single = averaging and all(math.prod(node.shape) == math.prod(node.inputs[0].shape) for node in averaging)
            return Miss("there is one value per feature, whose variance is 0") if single else None
        along = [k for k, n in enumerate(self.shape) if n > 1]
        flat = [k for k in along if _close(slope, np.roll(slope, 1, k), 1e-6)]
        self._over([k for k in flat if _close(start, np.roll(start, 1, k), 1e-6, self.scale)])
        for total, v, eps, e in self.summands(False) if self.axes else ():
            value, later = self.values[v] if isinstance(v, Node) else v, self._moving(total)
            for var, laid in self.laid(v, value) if np.ndim(value) or isinstance(v, Node) else ():
                if gammas := self.named(slope * np.sqrt(laid + e), 1):
                    for mean, centre in self.ways:
                        betas = self.named(start + slope * centre, 0, self.scale)
                        if betas and not (isinstance(mean.source, Node) and mean.source in later):
                            return self._confirmed(gammas, betas, eps, mean, var)
        return None

    def _confirmed(
        self,
        gammas: Sequence[Argument | None],
        betas: Sequence[Argument | None],
        eps: Argument,
        mean: Argument | None = None,
        var: Argument | None = None,
    ) -> Match | Miss | None:
        """The match of these arguments that holds at all inputs, and for the derivative."""
        if not gammas or not betas:
            return Miss(
                "the scale and the shift are not those of batch norm: (x - mean) * rsqrt * gamma + beta", PARTLY
            )
        laid = [[a for a in found if a is None or a.shape in (self.kept, self.full)] for found in (gammas, betas)]
        if not all(laid) or eps.shape not in ((), self.kept, self.full):
            return Miss(f"gamma, beta or eps vary along the averaged axes {self.axes}", PARTLY)
        dtype = np.result_type(self.x.dtype, *[found[0].source.dtype for found in laid if found[0]])
        if dtype != self.y.dtype:
            return Miss(f"the fused node would have dtype {dtype}, and it has {self.y.dtype}", PARTLY)
        if np.any(self.taken(eps, self.values) <= 0):
            return Miss(f"eps is {eps.source}, expected a positive number")
        if eps.needs_gradient:
            return Miss("eps requires a gradient, and is a constant of batch norm")
        for argument, what in ((mean, "mean"), (var, "variance")):
            if argument and argument.needs_gradient:
                return Miss(f"the {what} is not computed from {label(self.x)}, and requires a gradient")
        stops = [(), ("mean",), ("var",), ("mean", "var")] if self.stopped and mean is None else [()]
        matches = [
            Match(self.x, gamma, beta, eps, mean, var, self.axes, stop)
            for stop in stops
            for gamma, beta in itertools.product(*laid)
        ]
        large = 3 * max([abs(arg) for args in self.args.values() for arg in args if isinstance(arg, float)], default=1)
        points = [(1.0, 1.0), (_root(self.taken(eps, self.values)), -1.0), (large, 1.0), (large, -1.0)]
        for match in matches:
            if all(self._holds(match, *point) for point in points):
                near, far = (self.run(self.values[self.x] + offset, self.drawn) for offset in (1e3, 1e5))
                if any(np.max(abs(far[n])) > 1e3 * np.max(abs(near[n])) for n in self.inner if n in self.moving):
                    return Miss("the variance is taken in one pass, mean(x ** 2) - mean(x) ** 2, which cancels digits")
                return match
        return self._cut(matches[0]) if self.stopped else None

    def _point(self, match: Match, spread: float, offset: float) -> tuple[Values, Values]:
        """Values at random inputs, and those that `stop_gradient` keeps, which are of other inputs."""
        positive = {part.source for part in (match.eps, match.var) if part and isinstance(part.source, Node)}
        for node in reversed(self.inner):
            positive.update([arg for arg in self.args[node] if isinstance(arg, Node)] if node in positive else [])
        kept = self.run(self.draw(spread, offset), self.draw_others(positive))
        return self.run(self.draw(spread, offset), self.draw_others(positive), kept) if self.stopped else kept, kept

    def _holds(self, match: Match, spread: float, offset: float) -> bool:
        """Whether `y` is this batch norm at random inputs of this size."""
        values, kept = self._point(match, spread, offset)
        x, old = values[self.x], kept[self.x]
        mean = self.taken(match.mean, values) if match.mean else self.avg(old if "mean" in match.stop else x)
        var = self.taken(match.var, values) if match.var else self.avg((x - mean) ** 2)
        var = self.var(old) if "var" in match.stop else var
        normal = (x - mean) / np.sqrt(var + self.taken(match.eps, values))
        y = normal * self.taken(match.gamma, values, 1.0) + self.taken(match.beta, values)
        return _close(values[self.y], y, 1e-11)

    def _cut(self, match: Match) -> Miss:
        """What `stop_gradient` does, where no `stop` does the same."""
        values, kept = self._point(match, 1.0, 1.0)
        var = self.var(values[self.x]) + self.taken(match.eps, values)
        normal = (kept[self.x] - self.avg(values[self.x])) / np.sqrt(var)
        y = normal * self.taken(match.gamma, values, 1.0) + self.taken(match.beta, values)
        if _close(values[self.y], y, 1e-9):
            (cut,) = [node for node in self.inner if node.op == "stop_gradient" and self.args[node] == [self.x]]
            return Miss(f"stop_gradient cuts {label(cut)} off, and not its statistics")
        return Miss("stop_gradient cuts one use of the mean or of the variance and not the other")

    def _near_miss(self) -> Miss | None:
        """The first of a table of other formulas that `y` is."""
        x, y = self.values[self.x], self.values[self.y]
        for axis in self.axes:
            centred = x - self.avg(x, (axis,))
            slope = self.avg(y * centred, (axis,)) / self.avg(centred**2, (axis,))
            if _close(y - self.avg(y, (axis,)), centred * slope, 1e-9, self.scale):
                break
        else:
            if len(self._axes()) < 2:
                return None  # it is not a line in x along any axis
        if self.fit(_normal(self.avg, self.var, 0)):
            return Miss("no eps is added to the variance")
        found = [
            Miss(reason, rank)
            for *_, e in self.summands(True, False)
            for rank, reason, formula in self._others(e)
            if (fit := self.fit(formula, _root(e))) and self.named(fit[0], 1) and self.named(fit[1], 0, self.scale)
        ]
        return min(found, key=lambda miss: miss.rank, default=None) or self._in_part()

    def _in_part(self) -> Miss | None:
        """The half of batch norm that `y` is: y = slope * (x - centre) + beta, with one of the two as it should be."""
        points = [(x, y, x - self.avg(x), self.avg(y)) for x, y in self.points(1.0)]
        slopes = [self.avg(y * centred) / self.avg(centred**2) for _, y, centred, _ in points]
        if _close(slopes[0], slopes[1], 1e-6):
            return None
        for slope, (_, y, centred, level) in zip(slopes, points, strict=True):
            if not _close(y - level, slope * centred, 1e-9, self.scale):
                return None
        level, *others = [level for *_, level in points]
        if all(_close(other, level, 1e-6, self.scale) for other in others) and self.named(level, 0, self.scale):
            return Miss("it is centred, and not divided by sqrt(var + eps)", PARTLY)
        for *_, e in self.summands(True):
            gamma, *others = [k * np.sqrt(self.var(x) + e) for k, (x, *_) in zip(slopes, points, strict=True)]
            if all(_close(other, gamma, 1e-6) for other in others) and self.named(gamma, 1):
                return Miss(f"it is divided by sqrt(var + eps), and not centred on the mean of {label(self.x)}", PARTLY)
        return None

    def _others(self, e: Any) -> Iterator[tuple[int, str, Formula]]:
        """Formulas that are not batch norm, each with what is wrong with it."""
        avg, var, n, name = self.avg, self.var, count(self.shape, self.axes), label(self.x)
        over = f"where batch norm takes the mean of squares over {n}"
        yield (
            0,
            "eps is added outside the root, to the standard deviation",
            lambda x: (x - avg(x)) / (np.sqrt(var(x)) + e),
        )
        yield 0, "it divides by variance + eps, without the square root", lambda x: (x - avg(x)) / (var(x) + e)
        yield 0, "it multiplies by the standard deviation", lambda x: (x - avg(x)) * np.sqrt(var(x) + e)
        yield 0, "the root is taken twice", _normal(avg, lambda x: np.sqrt(var(x)), e)
        yield 0, "the scale is the mean absolute deviation", lambda x: (x - avg(x)) / (avg(abs(x - avg(x))) + e)
        yield (
            0,
            "what is under the root is not a mean of squared deviations from the mean",
            _normal(avg, lambda x: avg(x * x), e),
        )
        yield 1, "no mean is subtracted from what is divided by the standard deviation", _normal(0, var, e)
        yield 1, "no mean is subtracted, before or under the root", _normal(0, lambda x: avg(x * x), e)
        # 1 / scale ** 2 = (weight * var + e) / gamma ** 2, at two points.
        (v, p), (w, q) = ((self.var(x), self.var(x) / self.avg(y * (x - avg(x)))) for x, y in self.points(_root(e))[:2])
        line = (p * p - q * q) / (v - w)
        weight = float((line * e / (p * p - line * v)).flat[0])
        kind = (
            f"unbiased, the sum of squares over {n - 1}"
            if abs(weight * (n - 1) / n - 1) < 1e-6
            else f"weighted by {weight:.6g}"
        )
        if abs(weight - 1) > 1e-6:
            yield 0, f"the variance is {kind}, {over}", _normal(avg, lambda x: weight * var(x), e)
        for o in [self.drawn[other] for other in self.others]:
            yield (
                0,
                f"the variance is taken about something else than the mean of {name}",
                _normal(avg, partial(self._about, o), e),
            )
            yield 0, f"the variance is that of another tensor than {name}, which is normalised", _normal(avg, var(o), e)
            for square in (var, var(o)):
                yield (
                    0,
                    f"the mean is that of another tensor than {name}, which it is subtracted from",
                    _normal(avg(o), square, e),
                )
        for argument, laid in self.ways:
            it = label(argument.source) if isinstance(argument.source, Node) else "a constant"
            yield 0, f"the variance is that of a batch, and the mean is not: it is {it}", _normal(laid, var, e)
            yield 2, f"the mean is that of the batch, and the variance is not: it is {it}", _normal(avg, laid, e)
        axes = self._axes()
        for a, b, c in set(itertools.product(axes, repeat=3)) - {(a, a, a) for a in axes}:
            square = partial(self._about, partial(avg, axes=c), axes=b)
            what = f"unequal axes: the mean is taken over {a}, the variance over {b} about {c}"
            yield 0, what, _normal(partial(avg, axes=a), square, e)
        for a in axes:
            if a and a[-1] >= len(a) and broadcasts(np.mean(self.values[self.x], a).shape, self.shape):
                what = "the statistics are laid along other axes than those that they belong to: keepdims is missing"
                yield 0, what, _normal(partial(np.mean, axis=a), partial(np.var, axis=a), e)

    def _axes(self) -> set[tuple[int, ...]]:
        """Those that something of the dimensions of `x` is reduced over."""
        ndim = len(self.shape)
        reduced = [n for n in self.inner if n.op in ("mean", "sum", "var") and len(n.inputs[0].shape) == ndim]
        return {reduced_axes(node.params["axis"], ndim) for node in reduced}

    def _about(self, centre: Any, x: Array, axes: tuple[int, ...] | None = None) -> Any:
        """The mean of squared deviations from something."""
        return self.avg((x - (centre(x) if callable(centre) else centre)) ** 2, axes)

    def roles(self, nodes: set[Node]) -> dict[Node, str]:
        """What these nodes stand for; of several that follow each other the first."""
        values, found = self.values, dict[Node, str]()
        if isinstance(match := self.verdict, Match):
            x = values[self.x]
            mean = self.taken(match.mean, values) if match.mean else self.avg(x)
            var = self.taken(match.var, values) if match.var else self.var(x)
            scale = 1 / np.sqrt(var + self.taken(match.eps, values))
            known = {"mean": mean, "var": var, "1/σ": scale, "centred": x - mean, "x̂": (x - mean) * scale}
            for node in sorted(nodes, key=self.order.__getitem__):
                ways = [laid for _, laid in self.laid(node, values[self.same[node]])]
                names = [name for name, value in known.items() if any(_close(laid, value, 1e-9) for laid in ways)]
                if names and names[0] not in [found.get(parent) for parent in node.inputs]:
                    found[node] = names[0]
        return found


def _normal(centre: Any, square: Any, e: Any) -> Formula:
    """(x - centre) / sqrt(square + e), with two functions of x or numbers."""

    def formula(x: Array) -> Any:
        m, v = (part(x) if callable(part) else part for part in (centre, square))
        return (x - m) / np.sqrt(v + e)

    return formula


def label(node: Node) -> str:
    """A node's name in a message."""
    return repr(node.name) if node.name else f"{node.op or 'a leaf'} of shape {node.shape}"


def _constant(given: Any, dtype: np.dtype[Any] | None = None) -> Any:
    """An argument as it is evaluated, in double precision: 1 / n as narrow as the result with all its digits."""
    if isinstance(given, Node):
        return given
    if np.ndim(given):
        return np.asarray(given, float)
    value, narrow = float(given), getattr(given, "dtype", None) == dtype and dtype in (np.float16, np.float32)
    whole = round(1 / value) if narrow and value and math.isfinite(1 / value) else 0
    return 1 / whole if whole and abs(whole * value - 1) <= np.finfo(given.dtype).eps else value


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
    if node.op == "power" and not isinstance(node.args[1], Node) and not np.ndim(node.args[1]):
        return float(node.args[1]) % 1 != 0 or float(node.args[1]) < 0
    return node.op in _ROOTS


def _is_even(node: Node, args: Sequence[Any]) -> bool:
    """Whether it is an even power."""
    if node.op == "power" and not isinstance(args[1], Node) and not np.ndim(args[1]):
        return float(args[1]) % 2 == 0
    return node.op == "square" or (node.op == "multiply" and args[0] is args[1])


def _first_of_same(nodes: Sequence[Node]) -> dict[Node, Node]:
    """Each node's first twin: the same operation on the same inputs."""
    same: dict[Node, Node] = {}
    known: dict[Any, Node] = {}
    for node in nodes:
        params = repr(node.params)
        args = [
            same[a] if isinstance(a, Node) else (type(a), id(a) if isinstance(a, np.ndarray) else a) for a in node.args
        ]
        # An array in an index, and what has no operation, is itself alone.
        key: Any = node if node.op is None or "array" in params else (node.op, params, *args)
        same[node] = known.setdefault(key, node)
    return same
