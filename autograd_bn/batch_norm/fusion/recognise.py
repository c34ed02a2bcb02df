"""Recognising batch norm by what it computes, however it is spelled.

The part of a graph between a node and an `x` of its shape is cut out and evaluated on random numbers. It is batch norm
where its values are those of the formula, with gamma, beta and eps among the values that it reads. It is looked
through analytic operations only, so values that agree at random points are one function. `stop_gradient` is evaluated
as a derivative sees it, as a constant: it keeps the value that it has at other inputs. Functions that agree then have
the same derivatives, of every order.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array, Node
from ...engine.operations import broadcasts, count, reduced_axes
from .region import ELEMENTWISE, MEANS, MIXING, Formula, Known, Region, close, constant, constants, is_root, nodes

_LAST = frozenset("add subtract multiply divide negative".split())
_ANALYTIC = ELEMENTWISE | MIXING | {"reshape", "transpose", "getitem"}
_OTHERS = frozenset("abs max min maximum minimum relu tanh sigmoid prod".split())  # looked through for a reason only
_MOST = 64  # How many nodes are looked at below one.
# Of several reasons, the first of these. Inside what is batch norm partly there may be one.
MATCHED, WHOLLY, PARTLY, UNCENTRED, UNLIKE = range(5)


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

    @property
    def parameters(self) -> tuple[Any, Any, Any, Any, Any]:
        """What it reads beside `x`."""
        return self.gamma, self.beta, self.eps, self.mean, self.var


class Miss(NamedTuple):
    """Why a node that looks like batch norm is none."""

    reason: str
    rank: int = WHOLLY


class Judged(NamedTuple):
    """A node that is a batch norm or almost is one, the region below it, and which of the two it is."""

    node: Node
    region: Region
    verdict: Match | Miss

    def ends(self) -> set[Node]:
        """What the batch norm reads."""
        return {self.region.x, *nodes(self.verdict.parameters if isinstance(self.verdict, Match) else ())}

    def inside(self) -> set[Node]:
        """The nodes between this one, or its equal, and the ends, all of these left out."""
        region, ends = self.region, self.ends()
        passed, stack = set[Node](), [self.node]
        while stack:
            args = [arg for arg in stack.pop().inputs if arg not in passed]
            fresh = [arg for arg in args if (same := region.graph.same[arg]) in region.args and same not in ends]
            passed.update(fresh)
            stack += fresh
        return passed


NOTHING = Miss("", UNLIKE)


class Recogniser:
    """What the nodes of a graph are, as batch norms; `nodes` has inputs before consumers."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.order = {node: i for i, node in enumerate(nodes)}
        self.same: dict[Node, Node] = {}  # each node's first twin: the same operation on the same inputs
        self.args: dict[Node, list[Any]] = {}  # as they are evaluated, of what is looked through
        self.reads: dict[Node, list[Node]] = {}  # the nodes among them
        self.varies: dict[Node, set[int]] = {}  # the axes along which a node may vary, counted from the last
        self.analytic = set[Node]()
        known: dict[Any, Node] = {}
        for node in nodes:
            args = [self.same[arg] if isinstance(arg, Node) else arg for arg in node.args]
            self.same[node] = known.setdefault(_key(node, args), node)
            self.varies[node] = _long(node.shape)
            if node.own_op in ELEMENTWISE:
                self.varies[node] &= set().union(*[self.varying(arg) for arg in args])
            rounds = node.own_op == "astype" and node.dtype != node.inputs[0].dtype
            empty = any(0 in parent.shape for parent in node.inputs)
            if node.own_op in _ANALYTIC | _OTHERS and not (rounds or empty):
                if _is_even(node, args):  # an even power of abs(x) is that of x
                    args = [self.args[a][0] if isinstance(a, Node) and a.own_op == "abs" else a for a in args]
                self.args[node] = [constant(arg, node.dtype) for arg in args]
                self.reads[node] = [arg for arg in args if isinstance(arg, Node)]
                # The root of a square is abs(x).
                bent = is_root(node) and isinstance(args[0], Node) and _is_even(args[0], args[0].args)
                if not bent and node.own_op not in _OTHERS:
                    self.analytic.add(node)

    def varying(self, arg: Any) -> set[int]:
        """The axes along which an argument may vary, counted from the last."""
        return self.varies[arg] if isinstance(arg, Node) else _long(np.shape(arg))

    def after(self, args: Iterable[Node], *start: Node) -> set[Node]:
        """Those of these nodes, inputs first, that depend on the start."""
        reached = set(start)
        for node in args:
            if not reached.isdisjoint(self.reads[node]):
                reached.add(node)
        return reached

    def search(self, outputs: Sequence[Node]) -> list[Judged]:
        """The nodes below `outputs` that are batch norms or almost are, inputs first.

        Consumers are looked at first: so the longest spelling wins, and what only it reads is not looked at again.
        """
        live, settled, seen = set(outputs), set[Node](), dict[Node, Judged]()
        for node in reversed(self.order):
            judged = self.find(node) if node in live and node not in settled else None
            if judged:
                inside = judged.inside()
                asked = [node for node in outputs if node in inside]
                if isinstance(judged.verdict, Match) and asked:
                    judged = judged._replace(verdict=Miss(f"{label(asked[0])} inside it is itself asked for"))
                seen[node] = judged
                settled |= inside if judged.verdict.rank in (WHOLLY, UNCENTRED) else set()
            if node in live:
                matched = judged and isinstance(judged.verdict, Match)
                live.update(judged.ends() if judged and matched else node.inputs)
        whole = [one for one in seen.values() if one.verdict.rank != PARTLY or not one.inside() & seen.keys()]
        return whole[::-1]

    def find(self, node: Node) -> Judged | None:
        """What the node is, if it is a batch norm or almost is one."""
        y, wide = self.same[node], self.varies[node]
        if y not in self.analytic or node.own_op not in _LAST or 0 in node.shape:
            return None
        if 1 not in node.shape and node.own_op != "divide" and [self.varying(arg) for arg in node.args] == [wide, wide]:
            return None  # a sum or product of two tensors, of which neither is a parameter
        for opened, known in ((self.analytic, set[Node]()), (self.args.keys(), self.analytic)):
            below, seen = [y], {y}
            for inner in below:
                fresh = [a for a in self.reads[inner] if a not in seen] if inner in opened else []
                below += dict.fromkeys(fresh if len(below) < _MOST else [])
                seen.update(below)
            if 1 not in node.shape and not any(self._scales(inner, wide) for inner in below):
                return None
            candidates = [x for x in below[1:] if x.shape == y.shape and self.varies[x] == wide]
            judged = list[Judged]()
            with np.errstate(all="ignore"):
                for region in self._promising(y, candidates, seen & opened, known):
                    judged.append(Judged(node, region, judge(region)))
                    if isinstance(judged[-1].verdict, Match):
                        return judged[-1]
                judged = [one._replace(verdict=explain(one.region, one.verdict)) for one in judged]
            best = min(judged, key=lambda one: one.verdict.rank, default=None)
            if best and best.verdict.rank != UNLIKE:
                return best
        return None

    def _promising(self, y: Node, candidates: Sequence[Node], opened: set[Node], known: set[Node]) -> Iterator[Region]:
        """The regions with one root to divide by, and its like over `x` if elements of `x` are mixed.

        The nearest x first; other tensors of its shape beside it are a sign that it is not the one.
        """
        later = []
        for x in candidates:
            args, cut = self._between(y, x, opened)
            others = [node for node in cut if node.shape == y.shape]
            moving = self.after(args, x, *others)
            mixing = any(node.own_op in MIXING for node in args if node in moving)
            roots = [node for node in args if is_root(node) and (node in moving or not mixing)]
            divisors = moving.intersection(nodes([args[node][1] for node in args if node.own_op == "divide"]))
            one = len(roots) in (1, 2) or (mixing and not roots and len(divisors) == 1)
            if one and others and not args.keys() <= known:
                later.append((x, args, cut))
            elif one and not args.keys() <= known:
                yield Region(self, y, x, args, cut)
        for part in later:
            yield Region(self, y, *part)

    def _between(self, y: Node, x: Node, opened: set[Node]) -> tuple[dict[Node, list[Any]], list[Node]]:
        """The nodes above `x` that `y` is computed by, with their arguments, and what else they read."""
        below, seen = [y], {y, x}
        for node in below:
            fresh = [arg for arg in self.reads[node] if arg not in seen] if node in opened else []
            seen.update(fresh)
            below += fresh
        below.sort(key=self.order.__getitem__)
        return {n: self.args[n] for n in below if n in opened}, [n for n in below if n not in opened]

    def _scales(self, node: Node, wide: set[int]) -> bool:
        """Whether it may be the root of a statistic, or divide by one."""
        if node not in self.args or not (is_root(node) or node.own_op == "divide"):
            return False
        base = self.args[node][node.own_op == "divide"]
        summands = self.args.get(base, []) if isinstance(base, Node) and base.own_op in ("add", "subtract") else []
        return any(isinstance(arg, Node) and self.varies[arg] < wide for arg in (base, *summands))


# --- Verdicts ------------------------------------------------------------------------------------------------


def judge(region: Region) -> Match | Miss:
    """What `y` is as a function of `x`."""
    best = NOTHING
    candidates = _training(region) if region.averaged else _inference(region)
    for candidate in candidates:
        verdict = candidate if isinstance(candidate, Miss) else _confirmed(region, *candidate)
        if isinstance(verdict, Match):
            inside, graph = Judged(region.y, region, verdict).inside(), region.graph
            bent = [str(node.op) for node in inside if graph.same[node] not in graph.analytic]
            return Miss(f"it is batch norm at some inputs only, because of {min(bent)}") if bent else verdict
        best = min(best, verdict, key=lambda verdict: verdict.rank)
    return best


def _training(region: Region) -> Iterator[tuple[Any, ...]]:
    """The parameters and eps with which `y` would be batch norm by the statistics of `x`."""
    for total, _, eps, e in region.sums:
        if total in region.moving and (fitted := region.fit(_normal(region.avg, region.var, e), _spread(e))):
            yield region.named(fitted[0], 1), region.named(fitted[1], 0, region.size), eps


def _inference(region: Region) -> Iterator[Any]:
    """The same by constant statistics: a line in `x`, element by element. Or a `Miss`."""
    if region.line is None:
        return
    slope, start = region.line
    if not slope.any():
        averaging = [node for node in region.args if node.own_op in MEANS and node in region.moving]
        if averaging and all(count(node.inputs[0].shape, node.params["axis"]) == 1 for node in averaging):
            yield Miss("there is one value per feature, whose variance is 0")
        return
    for total, v, eps, e in region.sums if region.axes else ():
        later = region.graph.after(region.args, total)
        steady = isinstance(v, Node | np.ndarray) and total not in region.moving
        var = region.taken(v, region.values) if steady else None
        if var is not None and (gammas := region.named(slope * np.sqrt(var + e), 1)):
            for mean, centre in region.sources:
                betas = region.named(start + slope * centre, 0, region.size)
                if betas and not (isinstance(mean, Node) and mean in later):
                    yield gammas, betas, eps, mean, v


def _confirmed(region: Region, gammas: Any, betas: Any, eps: Any, mean: Any = None, var: Any = None) -> Match | Miss:
    """The match of these arguments that holds at all inputs, and for the derivative."""
    x = region.x
    if not gammas or not betas:
        reason = "the scale and the shift are not those of batch norm: (x - mean) * rsqrt * gamma + beta"
        return Miss(reason, PARTLY)

    def fits(source: Any) -> bool:
        return source is None or region.taken(source, region.values).shape == region.full

    fit = [list(filter(fits, sources)) for sources in (gammas, betas)]
    if not all(fit) or not fits(eps):
        return Miss(f"gamma, beta or eps vary along the averaged axes {region.axes}", PARTLY)
    dtype = np.result_type(x.dtype, *[sources[0].dtype for sources in fit if sources[0] is not None])
    if dtype != region.y.dtype:
        return Miss(f"the fused node would have dtype {dtype}, and it has {region.y.dtype}", PARTLY)
    for source, what in ((mean, "mean"), (var, "variance")):
        if isinstance(source, Node) and source.requires_grad:
            return Miss(f"the {what} is not computed from {label(x)}, and requires a gradient")
    stops = [(), ("mean",), ("var",), ("mean", "var")] if region.stopped and mean is None else [()]
    numbers = [abs(arg) for args in region.args.values() for arg in constants(args) if not np.ndim(arg)]
    large, small = 3 * max([1, *numbers]), _spread(region.taken(eps, region.values))
    for stop, gamma, beta in product(stops, *fit):
        match = Match(x, gamma, beta, eps, mean, var, region.axes, stop)
        if all(_holds(region, match, *point) for point in ((1, 1), (small, -1), (large, 1), (large, -1))):
            near, far = (region.run(region.values[x] + offset, region.drawn) for offset in (1e3, 1e5))
            if any(np.max(abs(far[n])) > 1e3 * np.max(abs(near[n])) for n in region.args if n in region.moving):
                return Miss("the variance is taken in one pass, mean(x ** 2) - mean(x) ** 2, which cancels digits")
            return match
    for node in region.args if region.stopped else ():
        if node.own_op == "stop_gradient" and region.args[node] == [x]:
            return Miss(f"stop_gradient cuts {label(node)} off, and not its statistics")
    cut = Miss("stop_gradient cuts one use of the mean or of the variance and not the other")
    return cut if region.stopped else NOTHING


def _holds(region: Region, match: Match, spread: float, offset: float) -> bool:
    """Whether `y` is this batch norm at random inputs of this size."""
    positive = set(nodes([match.eps, match.var]))
    for node in reversed(region.args):
        positive.update(region.graph.reads[node] if node in positive else [])
    values = kept = region.run(region.draw(spread, offset), region.draw_others(positive))
    if region.stopped:
        values = region.run(region.draw(spread, offset), region.draw_others(positive), kept)
    mean, var = _statistics(region, match, values, kept[region.x])
    normal = (values[region.x] - mean) / np.sqrt(var + region.taken(match.eps, values))
    expected = normal * region.taken(match.gamma, values, 1) + region.taken(match.beta, values)
    return close(values[region.y], expected, 1e-11)


def _statistics(region: Region, match: Match, values: Known, old: Array) -> tuple[Any, Any]:
    """The mean and the variance, constants or of the batch; those that are stopped stay the old ones."""
    x = values[region.x]
    if match.mean is not None:
        return region.taken(match.mean, values), region.taken(match.var, values)
    mean = region.avg(old if "mean" in match.stop else x)
    return mean, region.var(old) if "var" in match.stop else region.about(mean, x)


# --- Reasons -------------------------------------------------------------------------------------------------


def explain(region: Region, verdict: Match | Miss) -> Match | Miss:
    """The best reason why it is no batch norm, once it is known that it is none."""
    near = verdict.rank == UNLIKE if region.averaged else region.others
    if not near or count(region.shape, region.axes) == 1:
        return verdict
    eps = [0.0, *[e for *_, e in region.sums]]
    reasons = [_unequal(region, e) for e in eps]
    if _lines(region, 1.0):
        reasons += [_in_part(region, e) for e in eps]
    return min(*reasons, verdict, key=lambda reason: reason.rank)


def _lines(region: Region, spread: float) -> list[tuple[Array, Any, Any]]:
    """Three values of `x`, the slope of `y` in `x` and its mean, if along the averaged axes it is a line."""
    avg, points = region.avg, region.points(spread)
    lines = [(x, avg(y * (x - avg(x))) / region.var(x), avg(y)) for x, y in points]
    straight = [level + slope * (x - avg(x)) for x, slope, level in lines]
    fits = [close(y, line, 1e-9, region.size) for (_, y), line in zip(points, straight, strict=True)]
    return lines if all(fits) else []


def _in_part(region: Region, e: Any) -> Miss:
    """Which half of (x - centre) / scale isn't that of batch norm, and what stands in its place, if eps is `e`."""
    if not (lines := _lines(region, _spread(e))):
        return NOTHING
    scales, centres = _halves(region, e, lines)
    gammas = ((why, [slope * f(x) for x, slope, _ in lines]) for why, f in scales.items())
    betas = ((why, [level + slope * (f(x) - region.avg(x)) for x, slope, level in lines]) for why, f in centres.items())
    scale, centre = _first(region, gammas, 1, 0), _first(region, betas, 0, region.size)
    if scale is not None and centre is not None and (scale or centre or not np.any(e)):
        both = ", and ".join([reason for reason in (centre, scale) if reason])
        return Miss(both or "no eps is added to the variance", UNCENTRED if centre[:2] == "no" else WHOLLY)
    if centre == "" and not (close(lines[0][1], lines[1][1], 1e-6) and not any(map(is_root, region.args))):
        return Miss("it is centred, and not divided by sqrt(var + eps)", PARTLY)
    if scale == "":
        return Miss(f"it is divided by sqrt(var + eps), and not centred on the mean of {label(region.x)}", PARTLY)
    return NOTHING


def _halves(region: Region, e: Any, lines: Sequence[Any]) -> tuple[dict[str, Formula], dict[str, Formula]]:
    """What scale and what centre there may be, by the reason for a refusal; those of batch norm have none."""
    avg, var, n, name = region.avg, region.var, count(region.shape, region.axes), label(region.x)
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
    centres: dict[str, Formula] = {"": avg, "no mean is subtracted from what is divided": lambda x: 0.0}
    for o in [region.drawn[other] for other in region.others]:
        squares[f"the variance is taken about something else than the mean of {name}"] = partial(region.about, o)
        squares[f"the variance is that of another tensor than {name}, which is normalised"] = partial(_always, var(o))
        centres[f"the mean is that of another tensor than {name}"] = partial(_always, avg(o))
    return {reason: partial(_deviation, square, e) for reason, square in squares.items()} | {
        "eps is added outside the root, to the standard deviation": lambda x: np.sqrt(var(x)) + e,
        "it divides by variance + eps, without the square root": lambda x: var(x) + e,
        "it multiplies by the standard deviation": lambda x: 1 / np.sqrt(var(x) + e),
        "the scale is the mean absolute deviation": lambda x: avg(abs(x - avg(x))) + e,
    }, centres


def _first(region: Region, parameters: Iterable[tuple[str, list[Any]]], neutral: float, size: float) -> str | None:
    """The reason of the first that is the same at all points, and named."""
    for reason, values in parameters:
        if all(close(k, values[0], 1e-6, size) for k in values) and region.named(values[0], neutral, size):
            return reason
    return None


def _unequal(region: Region, e: Any) -> Miss:
    """Whether it is batch norm over other axes than those of one mean, if eps is `e`."""
    ndim = len(region.shape)
    reduced = [node for node in region.args if node.own_op in MEANS and len(node.inputs[0].shape) == ndim]
    axes = {reduced_axes(node.params["axis"], ndim) for node in reduced}
    near: dict[str, Formula] = {}
    for a, b, c in set(product(axes, repeat=3)) - {(a, a, a) for a in axes}:
        reason = f"unequal axes: the mean is taken over {a}, the variance over {b} about {c}"
        near[reason] = _normal(partial(region.avg, axes=a), partial(region.var, axes=b, mean_axes=c), e)
    for a in axes:
        if a and a[-1] >= len(a) and broadcasts(np.mean(region.values[region.x], a).shape, region.shape):
            reason = "the statistics are laid along other axes than those that they belong to: keepdims is missing"
            near[reason] = _normal(partial(np.mean, axis=a), partial(np.var, axis=a), e)
    for reason, formula in near.items():
        fitted = region.fit(formula, _spread(e))
        if fitted and region.named(fitted[0], 1) and region.named(fitted[1], 0, region.size):
            return Miss(reason)
    return NOTHING


def roles(region: Region, match: Match, inside: Collection[Node]) -> dict[Node, str]:
    """What these nodes of a batch norm stand for; of several that follow each other the first."""
    values, x, named = region.values, region.values[region.x], dict[Node, str]()
    mean, var = _statistics(region, match, values, x)
    scale = 1 / np.sqrt(var + region.taken(match.eps, values))
    known = {"mean": mean, "var": var, "1/σ": scale, "centred": x - mean, "x̂": (x - mean) * scale}
    for node in sorted(inside, key=region.graph.order.__getitem__):
        laid = region.laid(values[region.graph.same[node]])
        # Of two rows the squares are the variance: there it is only what has its shape.
        fitting = {n: v for n, v in known.items() if laid is not None and (x.size > 2 * v.size or laid.size == v.size)}
        names = [name for name, value in fitting.items() if close(laid, value, 1e-9)]
        if names and names[0] not in [named.get(parent) for parent in node.inputs]:
            named[node] = names[0]
    return named


def _always(value: Any, _: Array) -> Any:
    return value


def _deviation(square: Formula, e: Any, x: Array) -> Any:
    return np.sqrt(square(x) + e)


def _normal(centre: Formula, square: Formula, e: Any) -> Formula:
    """(x - centre) / sqrt(square + e)."""
    return lambda x: (x - centre(x)) / _deviation(square, e, x)


def label(node: Node) -> str:
    """A node's name in a message."""
    return repr(node.name) if node.name else f"{node.op or 'a leaf'} of shape {node.shape}"


def _spread(e: Any) -> float:
    """Of what size x is for its variance to be like eps, or above one that is negative."""
    return float(np.sqrt(np.mean(np.abs(e)))) * (10 if np.min(e) < 0 else 1) or 1.0


def _long(shape: tuple[int, ...]) -> set[int]:
    return {k - len(shape) for k, n in enumerate(shape) if n != 1}


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
