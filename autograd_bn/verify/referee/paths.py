"""The paths on which a gradient flows back: direct, and one through each statistic that sums an input up."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...engine.graph import Values
from ...engine.node import Array, Node
from .inputs import Inputs
from .mistakes import MISSING, PATHS, Mistake, Others, close, lengths, missing, number
from .names import canonical
from .run import TOLERANCE, Run
from .trace import Trace
from .verdict import Finding

# Operations that lay a short operand along a longer one.
_SPREADING = {"add", "subtract", "multiply", "divide", "power", "maximum", "minimum", "where", "broadcast_to", "repeat"}
# What is written for the root of the variance; forward has one of them.
_ROOTS: dict[str, Callable[[Array, float, int], Array]] = {
    "sqrt({var} + eps)": lambda var, eps, n: np.sqrt(var + eps),
    "sqrt({var})": lambda var, eps, n: np.sqrt(var),
    "sqrt({var}) + eps": lambda var, eps, n: np.sqrt(var) + eps,
    "sqrt({var} + 2 * eps)": lambda var, eps, n: np.sqrt(var + 2 * eps),
    "sqrt({var} + eps) + eps": lambda var, eps, n: np.sqrt(var + eps) + eps,
    "sqrt({var} + eps**2)": lambda var, eps, n: np.sqrt(var + eps**2),
    "sqrt(N / (N - 1) * {var} + eps)": lambda var, eps, n: np.sqrt(n / (n - 1) * var + eps),
    "sqrt((N - 1) / N * {var} + eps)": lambda var, eps, n: np.sqrt((n - 1) / n * var + eps),
}


class Paths:
    """The gradient of one input of a recorded run as a sum of paths: direct, and one through each statistic.

    A statistic is shorter than what it was computed from, and is read by values of that length again: the mean and the
    variance of any normalisation, the sum in softmax, a norm. `shares` holds each path's part of the gradient.
    """

    def __init__(self, run: Run, name: str) -> None:
        assert run.trace is not None
        self.run, self.name, self.trace = run, name, run.trace
        self.leaf = run.trace.leaves[name].node
        self.dead = self.trace.constants(run.dy)
        self.statistics = {s: self._role(s) for s in _statistics(self.trace, self.leaf, self.dead)}
        flow, _ = self.trace.flow(self.trace.y.node, run.dy, [*self.statistics, *self.dead])
        none = np.zeros(self.leaf.shape)
        self.shares = {"direct": flow.get(self.leaf, none)}
        for s, role in self.statistics.items():
            if s in flow:
                share = self.trace.flow(s, flow[s], self.dead)[0].get(self.leaf, none)
                self.shares[role] = self.shares.get(role, none) + share
        sizes = {path: float(np.max(np.abs(share), initial=0)) for path, share in self.shares.items()}
        self.shares = {path: self.shares[path] for path, size in sizes.items() if size > 1e-12 * max(sizes.values())}

    def _role(self, s: Node) -> str:
        """What to call a statistic: the mean, the variance, else by its author's name or its operation."""
        chain = _chain(s)
        names = [name for name in map(self.trace.label, chain) if name in self.trace.named]
        role = next((known for known in map(canonical, names) if known), names[0] if names else chain[-1].op or "")
        if not names and chain[-1].own_op in ("mean", "sum"):
            squares = [a for a in chain[-1].receivers if a.own_op in ("square", "power", "multiply")]
            centred = any(a.own_op == "subtract" for square in squares for a in square.receivers)
            role = "var" if centred else "sum of squares" if squares else role
        return {"std": "var", "invstd": "var"}.get(role, role)

    @cached_property
    def groups(self) -> Array | None:
        """For each entry of the input, flat, the place of the statistics' entry that it has a part in, if it is one."""
        groups: Array | None = None
        for s in self.statistics:
            seeds = np.ones(s.shape), np.arange(1.0, prod(s.shape) + 1).reshape(s.shape)
            ones, counted = (self.trace.flow(s, seed, self.dead)[0].get(self.leaf) for seed in seeds)
            if ones is None or counted is None:
                continue
            index = (counted / ones).ravel() - 1
            if not np.all(np.abs(index - np.round(index)) < 1e-6) or not (groups is None or close(index, groups, 1e-6)):
                return None
            groups = np.round(index)
        counts = set() if groups is None else {*np.bincount(groups.astype(int)).tolist()}
        return groups.astype(int) if groups is not None and len(counts) == 1 and counts != {1} else None

    def weights(self, gradient: Array) -> dict[str, Array]:
        """How much of each path a gradient carries, a number or one for each feature; empty where it is no such sum."""
        shares = list(self.shares.values())
        c = _solved([share.reshape(1, -1) for share in shares], gradient.reshape(1, -1)) if shares else None
        if c is None and len(shares) == 1 and np.all(shares[0]):
            c = (gradient / shares[0]).reshape(1, -1)
        elif c is None and self.groups is not None and "direct" in self.shares:
            c = _solved(list(map(self._rows, shares)), self._rows(gradient))
        return {} if c is None else dict(zip(self.shares, c, strict=True))

    @cached_property
    def _full(self) -> dict[str, Array]:
        """The values of the input's length that have names, and 1, each as (features, N)."""
        values = {name: t.data for name, t in self.trace.named.items() if t.shape == self.leaf.shape}
        values |= {self.name: self.run.inputs[self.name], "1": np.ones(self.leaf.shape)}
        return {name: self._rows(value) for name, value in values.items()}

    def formula(self, path: str) -> str:
        """A path through a statistic in terms of the direct one, where it is as simple as in batch norm."""
        for name, value in self._full.items() if self.groups is not None else ():
            mean = np.mean(self._rows(self.shares["direct"]) * value, axis=1, keepdims=True)
            if close(-value * mean, self._rows(self.shares[path])):
                return "-mean(direct)" if name == "1" else f"-{name} * mean(direct * {name})"
        return ""

    def _rows(self, values: Array) -> Array:
        """An array of the input's shape as (features, N)."""
        assert self.groups is not None
        return values.ravel()[np.argsort(self.groups, kind="stable")].reshape(int(self.groups.max()) + 1, -1)


def _chain(s: Node) -> list[Node]:
    """A statistic and the values of its length that it was computed from, down to what sums up."""
    alike = [s]
    for node in alike:
        alike += [a for a in node.receivers if prod(a.shape) == prod(s.shape) and a not in alike]
    return alike


def _statistics(trace: Trace, leaf: Node, dead: Sequence[Node]) -> list[Node]:
    """What sums values of `leaf` up and is read by longer ones again."""
    largest, reduced = {leaf: prod(leaf.shape)}, list[Node]()
    for node in trace.order:
        below = [a for a in node.inputs if a in largest]
        if below:
            largest[node] = max(prod(node.shape), *[largest[a] for a in below])
            if node.own_op in _SPREADING and node not in dead:
                reduced += [a for a in below if prod(a.shape) < min(prod(node.shape), largest[a])]
    return [s for s in dict.fromkeys(reduced) if s not in dead]


def _solved(terms: Sequence[Array], target: Array) -> Array | None:
    """The weight of each term in each feature, if the terms reproduce the target: (terms, features)."""
    matrix = np.stack(terms, axis=2)  # features, N, terms
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if matrix.shape[1] < matrix.shape[2] + 1 or np.any(norms == 0):
        return None
    if np.any(np.linalg.cond(matrix / norms) > 1e5):
        return None
    c = np.einsum("ftn,fn->ft", np.linalg.pinv(matrix / norms), target) / norms[:, 0, :]
    return c.T if close(np.einsum("fnt,ft->fn", matrix, c), target) else None


class Factors:
    """The values of a normalisation's graph, one a feature, that people take once too often or leave out of a term."""

    def __init__(self, paths: Paths) -> None:
        assert paths.groups is not None
        trace, values = paths.trace, Values(paths.trace.order)
        self.features = int(paths.groups.max()) + 1
        n = paths.groups.size // self.features
        self.counts, self.eps = lengths(paths.run, N=n), 0.0
        self.bases: dict[str, Array] = {}
        self.roots: dict[str, Array] = {}  # what isn't forward's root, beside it
        for s, role in paths.statistics.items():
            value, chain, name = np.ravel(values[s]), _chain(s), trace.label(s)
            constants = [a for node in chain if node.own_op == "add" for a in node.args if isinstance(a, float)]
            self.eps, own, forms = max([self.eps, *constants]), "", dict[str, Array]()
            if role == "var":
                var = next((known for known, t in trace.named.items() if t.node is chain[-1]), "var")
                forms = {t.format(var=var): f(np.ravel(values[chain[-1]]), self.eps, n) for t, f in _ROOTS.items()}
                own = next((t for t, r in forms.items() if close(value, r, 1e-9) or close(1 / value, r, 1e-9)), "")
            if own:
                ratios = {f"{text} where forward has {own}": forms[own] / root for text, root in forms.items()}
                self.roots |= {text: ratio for text, ratio in ratios.items() if 1e-9 < np.ptp(ratio) < np.inf}
                name = name if name in trace.named else ""
            if own and close(1 / value, forms[own], 1e-9):
                self.bases[name or f"1 / {own}"] = value
            else:
                self.bases[f"1 / {name or own}"] = 1 / value
        self.bases |= {n: t.data.ravel() for n, t in trace.leaves.items() if n != paths.name}
        sized = {name: value for name, value in self.bases.items() if value.size == self.features}
        self.bases = {name: value for name, value in sized.items() if np.all(value) and 1e-9 < np.ptp(value) < np.inf}

    def explain(self, c: Array, others: Others = ()) -> list[Mistake]:
        """Why a term's factors, one a feature, are `c`; nothing where they are 1."""
        if _constant(c):
            return number(float(np.median(c)), self.counts, others)
        every = self.bases | self.roots
        for size in range(1, min(4, c.size - 1)) if np.all(c) and c.size == self.features else ():
            for names in itertools.combinations(every, size):
                powers = _powers(c, [every[name] for name in names])
                if powers and sum(name in self.roots for name in names) < 2:
                    return self._words(dict(zip(names, powers, strict=False)), powers[-1])
        if np.max(np.abs(c - 1)) < 5e-3:
            words = "is right to a few digits only, as if rounded to a narrower type"
            return [Mistake("precision", words, "Compute in float64", 2.0)]
        words = "is weighted differently in each feature, as if by statistics of other data"
        return [Mistake("statistics", words, "Use the statistics that forward used", 3.0)]

    def _words(self, powers: dict[str, float], k: float) -> list[Mistake]:
        """A product of powers and a number as mistakes."""
        mistakes = list[Mistake]()
        for name in [name for name in powers if name in self.roots]:
            other, _, own = name.partition(" where forward has ")
            turned = f"has {own}, as forward, where {other} belongs", f"Put {other} there"
            mistakes.append(Mistake("root", *((f"has {name}", "Use forward's root") if powers[name] > 0 else turned)))
        powers = {name: p for name, p in powers.items() if name in self.bases}
        for name, n in self.counts.items() if powers else ():
            for p in (1, -1):
                if abs(abs(k) * n**p - 1) < 1e-8:
                    k, powers[f"1 / {name}"] = float(np.sign(k)), p
        more, less = (" * ".join([_power(n, s * p) for n, p in powers.items() if s * p > 0]) for s in (1, -1))
        if more and less:
            mistakes.append(Mistake("wrong factor", f"has {more} where {less} belongs", f"Put {less} in its place"))
        elif more:
            mistakes.append(Mistake("extra factor", f"carries the factor {more} too much", "Leave it out"))
        elif less:
            mistakes.append(Mistake("missing factor", f"lacks the factor {less}", f"Multiply it by {less}"))
        return [*number(k, self.counts), *mistakes]


def _power(name: str, p: float) -> str:
    return name if p == 1 else f"{name if name.isidentifier() else f'({name})'}**{p:g}"


def _powers(c: Array, bases: Sequence[Array]) -> list[float]:
    """Whole powers of the bases, and the number with which their product is `c`; nothing where there are none."""
    matrix = np.stack([*[np.log(np.abs(base)) for base in bases], np.ones(c.size)], axis=1)
    solution, _, rank, _ = np.linalg.lstsq(matrix, np.log(np.abs(c)), rcond=1e-9)
    powers = np.round(solution[:-1])
    if rank < len(solution) or not np.all(powers) or np.max(np.abs(powers)) > 6:
        return []
    product = np.prod([base**p for base, p in zip(bases, powers, strict=True)], axis=0)
    k = float(np.median(c / product))
    return [*powers.tolist(), k] if close(k * product, c) else []


def main_paths(run: Run) -> Paths | None:
    """The paths of the first input with statistics of its own, one or more entries to each."""
    every = [Paths(run, name) for name in run.truth] if run.trace is not None else []
    return next((paths for paths in every if paths.groups is not None), None)


def revealing(paths: Paths, rng: np.random.Generator) -> Inputs:
    """Inputs on which every mistake shows: eps of the variance's size, and means unlike each other and 0."""
    assert paths.groups is not None
    factors = Factors(paths)
    told = factors.eps > TOLERANCE  # a smaller one shows nowhere else
    spread = (2 * factors.eps**0.5 if told else 1.0) * rng.uniform(0.6, 1.8, factors.features)
    centre = spread * rng.uniform(1.2, 3, factors.features)
    x = (centre[paths.groups] + spread[paths.groups] * rng.normal(size=paths.groups.size)).reshape(paths.leaf.shape)
    return {**paths.run.inputs, paths.name: x}


class Fit(NamedTuple):
    """A gradient as a sum of paths: each path's weights, and what that says of it."""

    paths: Paths
    weights: dict[str, Array]
    mistakes: dict[str, list[Mistake]]


def _constant(w: Array) -> bool:
    """Whether a path has one weight in all features."""
    return bool(np.ptp(w) <= 1e-7 * max(float(np.max(np.abs(w))), 1e-2))


def _elsewhere(runs: Sequence[Run], name: str) -> dict[str, list[tuple[float, Mapping[str, int]]]]:
    """The weight of each path in runs of other lengths, and the lengths there."""
    weights = dict[str, list[tuple[float, Mapping[str, int]]]]()
    for run in runs:
        gradient, main = run.author.gradients.get(name), main_paths(run)
        if gradient is not None and run.trace is not None and gradient.shape == run.truth[name].shape:
            counts = Factors(main).counts if main else lengths(run)
            for path, w in Paths(run, name).weights(gradient).items():
                weights.setdefault(path, []).extend([(float(np.median(w)), counts)] if _constant(w) else [])
    return weights


def along_paths(
    run: Run, gradients: dict[str, Array], repaired: set[str], longer: Sequence[Run]
) -> tuple[list[Finding], dict[str, dict[str, float]]]:
    """Findings on gradients that are sums of paths with wrong factors, and how much of each path these carry."""
    main = main_paths(run)
    factors, fits = None if main is None else Factors(main), dict[str, Fit]()
    for name, g in gradients.items() if run.trace is not None else ():
        paths, others, mistakes = Paths(run, name), _elsewhere(longer, name), dict[str, list[Mistake]]()
        weights = paths.weights(g) if paths.statistics or factors else {}
        for path, w in weights.items():
            there = others.get(path, ())
            mistakes[path] = factors.explain(w, there) if factors else number(float(w[0]), lengths(run), there)
        cost = sum([mistake.cost for mistake in {*itertools.chain(*mistakes.values())}])
        if 0.5 < cost < 4.0 - (name in repaired) - (len(paths.shares) == 1):
            fits[name] = Fit(paths, weights, mistakes)
    said: Any = lambda w: float(np.median(w)) if np.ptp(w) < 1e-6 else np.nan
    carried = {f"d{name}": {path: said(w) for path, w in fit.weights.items()} for name, fit in fits.items()}
    return _worded(fits), carried


def _worded(fits: dict[str, Fit]) -> list[Finding]:
    """The mistakes on paths as findings, one for all the terms that share it; missing paths come first."""
    places: dict[Mistake, dict[str, list[str]]] = {}
    lacking: dict[tuple[str, ...], tuple[list[str], str]] = {}
    for name, fit in fits.items():
        label = f"d{name}"
        for mistake in dict.fromkeys(itertools.chain(*fit.mistakes.values())):
            ways = [path for path in fit.mistakes if mistake in fit.mistakes[path]]
            words = [PATHS.get(path, f"the path through `{path}`") for path in ways]
            if mistake is MISSING and len(ways) < len(fit.mistakes):
                formulas = [fit.paths.formula(path) for path in ways if path != "direct" and "direct" in fit.weights]
                said = " and ".join(formulas) if len(formulas) == len(ways) and all(formulas) else ""
                lacking.setdefault(tuple(words), ([], said))[0].append(label)
            elif len(ways) == len(fit.mistakes):
                places.setdefault(mistake, {})[label] = [f"{label} as a whole" if len(ways) > 1 else label]
            else:
                places.setdefault(mistake, {})[label] = [f"in {label} {words[0]}", *words[1:]]
    findings = [missing(labels, ways, formula) for ways, (labels, formula) in lacking.items()]
    for mistake, where in places.items():
        findings.append(mistake.of(list(itertools.chain(*where.values())), list(where)))
    return findings
