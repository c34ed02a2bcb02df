"""Derivatives that are right in many spellings and wrong in many ways.

A `Pair` is batch norm by hand in NumPy: `forward(x, gamma, beta) -> y, cache` and `backward(dy, cache) -> dx,
dgamma, dbeta` as courses and papers have them. It is made from text, so that a planted mistake is an edit of the
text, and two of them are two edits. A `WrongRule` is a primitive whose derivative is got wrong.
"""

from __future__ import annotations

import itertools
import linecache
import math
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import autograd_bn as ag

GRADIENTS = ("dx", "dgamma", "dbeta")

FORWARD = """
def forward(x, gamma, beta):
    axis = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    mean = x.mean(axis)
    centred = x - mean
    var = (centred * centred).mean(axis)
    inv = 1 / np.sqrt(var + EPS)
    xhat = centred * inv
    y = gamma * xhat + beta
    return y, (x, gamma, beta, axis, n, mean, centred, var, inv, xhat, y)
"""

BACKWARD = """
def backward(dy, cache):
    x, gamma, beta, axis, n, mean, centred, var, inv, xhat, y = cache
"""

RETURN = """    return dx, dgamma, dbeta
"""

# The three paths of the derivative, each on its own line.
PATHS = """    dbeta = dy.sum(axis)
    dgamma = (dy * xhat).sum(axis)
    direct = dy
    through_mean = dy.mean(axis)
    through_var = xhat * (dy * xhat).mean(axis)
    dx = gamma * inv * (direct - through_mean - through_var)
"""

# The chain rule as Ioffe and Szegedy (2015) write it.
STEPS = """    dbeta = dy.sum(axis)
    dgamma = (dy * xhat).sum(axis)
    dxhat = dy * gamma
    dvar = (dxhat * centred).sum(axis) * -0.5 * inv**3
    dmean = -(dxhat * inv).sum(axis) + dvar * (-2 * centred).mean(axis)
    dx = dxhat * inv + dvar * 2 * centred / n + dmean / n
"""

# One line, with the parameters' gradients put to use.
SHORT = """    dbeta = dy.sum(axis)
    dgamma = (dy * xhat).sum(axis)
    dx = gamma * inv / n * (n * dy - dbeta - xhat * dgamma)
"""

# One elementary operation of the forward pass at a time, as a computation graph is walked.
NODES = """    dbeta = dy.sum(axis)
    dgamma = (dy * xhat).sum(axis)
    dxhat = dy * gamma
    dinv = (dxhat * centred).sum(axis)
    dcentred = dxhat * inv
    dstd = -dinv * inv**2
    dvar = 0.5 * dstd * inv
    dsquare = dvar / n * np.ones(dy.shape)
    dcentred = dcentred + 2 * centred * dsquare
    dmean = -dcentred.sum(axis)
    dx = dcentred + dmean / n * np.ones(dy.shape)
"""

# Centring at the end, which is the path through the mean.
CENTRED = """    dbeta = dy.sum(axis)
    dgamma = (xhat * dy).sum(axis)
    dx = inv * gamma * (dy - xhat * dgamma * 1.0 / n)
    dx = dx - dx.mean(axis)
"""

FORMULAS = {"paths": PATHS, "steps": STEPS, "short": SHORT, "nodes": NODES, "centred": CENTRED}


@dataclass(frozen=True)
class Pair:
    """A hand-written batch norm. `changes` names the gradients that differ from the true ones."""

    name: str
    kind: str  # "right", or the kind of the planted mistake; "kind + kind" of two
    source: str  # the text of both functions; EPS and np are given
    shape: tuple[int, ...]
    eps: float
    edits: tuple[Edit, ...] = ()
    forward: Callable[..., Any] = None  # type: ignore[assignment]
    backward: Callable[..., Any] = None  # type: ignore[assignment]
    changes: frozenset[str] = frozenset()

    def inputs(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, gamma and beta on which no mistake can hide: gamma is not 1 and x is neither centred nor scaled."""
        return _inputs(self.shape, seed)


@dataclass(frozen=True)
class Edit:
    """One mistake: `old` in the text of `formula` becomes `new`. `factor` is what it multiplies a term with."""

    formula: str
    kind: str
    name: str
    old: str
    new: str
    factor: float | None = None


def _inputs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.normal(size=shape) + rng.normal(size=shape[-1])
    return x, rng.uniform(0.5, 2, shape[-1]) * rng.choice([-1, 1], shape[-1]), rng.normal(size=shape[-1])


def true_gradients(x: Any, gamma: Any, dy: Any, eps: float) -> tuple[Any, Any, Any]:
    """The gradients in extended precision."""
    x, gamma, dy = (np.asarray(a, dtype=np.longdouble) for a in (x, gamma, dy))
    axis = tuple(range(x.ndim - 1))
    n = x.size // x.shape[-1]
    centred = x - x.sum(axis) / n
    inv = 1 / np.sqrt((centred * centred).sum(axis) / n + np.longdouble(eps))
    xhat = centred * inv
    dbeta, dgamma = dy.sum(axis), (dy * xhat).sum(axis)
    return gamma * inv * (dy - dbeta / n - xhat * dgamma / n), dgamma, dbeta


def _run(pair: Pair, seed: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    x, gamma, beta = pair.inputs(seed)
    dy = np.random.default_rng([seed, 1]).normal(size=pair.shape)
    with np.errstate(all="ignore"):
        _, cache = pair.forward(x, gamma, beta)
        return pair.backward(dy, cache), true_gradients(x, gamma, dy, pair.eps)


def _build(name: str, kind: str, source: str, shape: tuple[int, ...], eps: float, edits: tuple[Edit, ...] = ()) -> Pair:
    namespace: dict[str, Any] = {"np": np, "EPS": eps}
    file = f"<{name}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    exec(compile(source, file, "exec"), namespace)
    pair = Pair(name, kind, source, shape, eps, edits, namespace["forward"], namespace["backward"])
    got, want = _run(pair, 0)
    changes = {
        gradient
        for gradient, g, w in zip(GRADIENTS, got, want, strict=True)
        if np.shape(g) != w.shape or not np.max(abs(g - w)) <= 1e-11 * np.max(abs(w))
    }
    return Pair(name, kind, source, shape, eps, edits, pair.forward, pair.backward, frozenset(changes))


# --- Right -------------------------------------------------------------------------------------------------

MEANS = ("x.mean(axis)", "x.sum(axis) / n", "np.mean(x, axis=axis, keepdims=True)", "x.reshape(n, -1).mean(0)")
VARIANCES = ("(centred * centred).mean(axis)", "x.var(axis)", "np.sum(centred**2, axis=axis) / n")
INVERSES = ("1 / np.sqrt(var + EPS)", "(var + EPS) ** -0.5")


@cache
def correct() -> tuple[Pair, ...]:
    """Right pairs: formulas, means, variances, inverse roots and shapes in all combinations that are distinct texts."""
    found = []
    shapes = ((6, 4), (3, 2, 2, 3), (5, 5))
    for (label, formula), mean, var, inv in itertools.product(FORMULAS.items(), MEANS, VARIANCES, INVERSES):
        text = FORWARD.replace("x.mean(axis)", mean).replace("(centred * centred).mean(axis)", var)
        text = text.replace("1 / np.sqrt(var + EPS)", inv) + BACKWARD + formula + RETURN
        shape = shapes[len(found) % len(shapes)]
        eps = (1e-5, 1e-2)[len(found) % 2]
        found.append(_build(f"{label}: {mean}; {var}; {inv}; {shape}", "right", text, shape, eps))
    # A batch of two, whose gradient all but vanishes; a batch far from 0.
    found += [
        _build(f"{label}: {shape}", "right", FORWARD + BACKWARD + formula + RETURN, shape, 1e-3)
        for label, formula in FORMULAS.items()
        for shape in ((2, 3), (9, 1), (4, 1, 2))
    ]
    return tuple(found)


# --- Wrong -------------------------------------------------------------------------------------------------

FACTORS = (0.0, -1.0, 2.0, 0.5, 1.1, 0.9, 1.01, 0.99, 1.0001, 0.9999)


def edits() -> Iterator[Edit]:
    """Single mistakes, as edits of one of the formulas."""

    def scaled(formula: str, kind: str, line: str, factors: tuple[float, ...] = FACTORS) -> Iterator[Edit]:
        target, value = line.split(" = ", 1)
        for k in factors:
            yield Edit(formula, kind, f"{target} times {k}", line, f"{target} = {k} * ({value})", k)

    for line, kind in (
        ("direct = dy", "direct path"),
        ("through_mean = dy.mean(axis)", "mean path"),
        ("through_var = xhat * (dy * xhat).mean(axis)", "variance path"),
        ("dx = gamma * inv * (direct - through_mean - through_var)", "dx factor"),
        ("dgamma = (dy * xhat).sum(axis)", "dgamma factor"),
        ("dbeta = dy.sum(axis)", "dbeta factor"),
    ):
        yield from scaled("paths", kind, line)
    yield from scaled("steps", "variance path", "dvar = (dxhat * centred).sum(axis) * -0.5 * inv**3")
    yield from scaled("steps", "mean path", "dmean = -(dxhat * inv).sum(axis) + dvar * (-2 * centred).mean(axis)")
    yield from scaled("steps", "dx factor", "dxhat = dy * gamma", (1.001, -2.0))
    yield from scaled("nodes", "variance path", "dvar = 0.5 * dstd * inv", (3.0, -0.5, 1.0005))
    yield from scaled("nodes", "mean path", "dmean = -dcentred.sum(axis)", (3.0, -0.5, 1.0005))

    paths: list[tuple[str, str, str, str]] = [
        ("sum for mean", "mean path summed", "dy.mean(axis)", "dy.sum(axis)"),
        ("sum for mean", "variance path summed", "(dy * xhat).mean(axis)", "(dy * xhat).sum(axis)"),
        ("mean for sum", "dgamma averaged", "dgamma = (dy * xhat).sum(axis)", "dgamma = (dy * xhat).mean(axis)"),
        ("mean for sum", "dbeta averaged", "dbeta = dy.sum(axis)", "dbeta = dy.mean(axis)"),
        ("n - 1", "mean path over n - 1", "dy.mean(axis)", "dy.sum(axis) / (n - 1)"),
        ("n - 1", "variance path over n - 1", "(dy * xhat).mean(axis)", "(dy * xhat).sum(axis) / (n - 1)"),
        ("n - 1", "inv from the unbiased variance", "gamma * inv *", "gamma / np.sqrt(var * n / (n - 1) + EPS) *"),
        ("gamma missing", "dx without gamma", "gamma * inv *", "inv *"),
        ("gamma missing", "direct path without gamma", "direct = dy", "direct = dy / gamma"),
        ("gamma missing", "mean path without gamma", "dy.mean(axis)", "dy.mean(axis) / gamma"),
        ("gamma missing", "variance path without gamma", "= xhat * (dy", "= xhat / gamma * (dy"),
        ("gamma squared", "dx with gamma squared", "gamma * inv *", "gamma**2 * inv *"),
        ("gamma squared", "mean path with gamma squared", "dy.mean(axis)", "gamma * dy.mean(axis)"),
        ("gamma squared", "variance path with gamma squared", "= xhat * (dy", "= gamma * xhat * (dy"),
        ("gamma squared", "dx over gamma", "gamma * inv *", "1 / gamma * inv *"),
        ("gamma squared", "dgamma with gamma", "dgamma = (dy * xhat)", "dgamma = (dy * gamma * xhat)"),
        ("gamma squared", "dbeta with gamma", "dbeta = dy.sum(axis)", "dbeta = (dy * gamma).sum(axis)"),
        ("gamma squared", "dx with |gamma|", "gamma * inv *", "np.abs(gamma) * inv *"),
        ("eps missing", "dx without eps", "gamma * inv *", "gamma / np.sqrt(var) *"),
        ("eps missing", "variance path without eps", "= xhat * (dy", "= centred / np.sqrt(var) * (dy"),
        ("eps outside", "dx with eps outside the root", "gamma * inv *", "gamma / (np.sqrt(var) + EPS) *"),
        ("eps outside", "variance path, eps outside", "= xhat * (dy", "= centred / (np.sqrt(var) + EPS) * (dy"),
        ("eps outside", "dgamma, eps outside", "(dy * xhat).sum", "(dy * centred / (np.sqrt(var) + EPS)).sum"),
        ("inv power", "dx with inv squared", "gamma * inv *", "gamma * inv**2 *"),
        ("inv power", "dx without inv", "gamma * inv *", "gamma *"),
        ("inv power", "dx over inv", "gamma * inv *", "gamma / inv *"),
        ("inv power", "dx with the variance for inv", "gamma * inv *", "gamma * var *"),
        ("inv power", "dgamma without inv", "(dy * xhat).sum", "(dy * centred).sum"),
        ("inv power", "variance path with centred", "= xhat * (dy", "= centred * (dy"),
        ("inv power", "variance path, centred inside", "(dy * xhat).mean", "(dy * centred).mean"),
        ("wrong operand", "variance path with x", "= xhat * (dy", "= x * (dy"),
        ("wrong operand", "variance path with y", "= xhat * (dy", "= y * (dy"),
        ("wrong operand", "variance path, x inside", "(dy * xhat).mean", "(dy * x).mean"),
        ("wrong operand", "variance path, y inside", "(dy * xhat).mean", "(dy * y).mean"),
        ("wrong operand", "variance path, means apart", "(dy * xhat).mean(axis)", "dy.mean(axis) * xhat"),
        ("wrong operand", "variance path, xhat squared", "= xhat * (dy", "= xhat * xhat * (dy"),
        ("wrong operand", "mean path of xhat", "dy.mean(axis)", "(dy * xhat).mean(axis)"),
        ("wrong operand", "dgamma with x", "(dy * xhat).sum", "(dy * x).sum"),
        ("wrong operand", "dgamma with y", "(dy * xhat).sum", "(dy * y).sum"),
        ("wrong operand", "dgamma without xhat", "(dy * xhat).sum", "dy.sum"),
        ("wrong operand", "dbeta with xhat", "dbeta = dy.sum", "dbeta = (dy * xhat).sum"),
        ("wrong operand", "dgamma with beta", "(dy * xhat).sum", "(dy * (xhat + beta)).sum"),
        ("inference formula", "statistics taken for constants", "(direct - through_mean - through_var)", "direct"),
        ("wrong axis", "mean path over the features", "dy.mean(axis)", "dy.mean(-1)[:, None]"),
        ("wrong axis", "variance path over the features", "(dy * xhat).mean(axis)", "(dy * xhat).mean(-1)[:, None]"),
        ("wrong axis", "mean path over everything", "dy.mean(axis)", "dy.mean()"),
        ("wrong axis", "variance path over everything", "(dy * xhat).mean(axis)", "(dy * xhat).mean()"),
        ("wrong axis", "dgamma over everything", "(dy * xhat).sum(axis)", "(dy * xhat).sum() * np.ones(gamma.shape)"),
        ("wrong axis", "dbeta over everything", "dy.sum(axis)", "dy.sum() * np.ones(gamma.shape)"),
        ("wrong axis", "dbeta over half of the rows", "dbeta = dy.sum(axis)", "dbeta = dy[::2].sum(axis)"),
        ("wrong axis", "dgamma reversed", "(dy * xhat).sum(axis)", "(dy * xhat).sum(axis)[::-1]"),
        ("wrong axis", "dbeta reversed", "dy.sum(axis)", "dy.sum(axis)[::-1]"),
        ("not summed", "dgamma for every row", "dgamma = (dy * xhat).sum(axis)", "dgamma = dy * xhat"),
        ("not summed", "dbeta for every row", "dbeta = dy.sum(axis)", "dbeta = dy"),
        ("not summed", "dgamma of the first row", "(dy * xhat).sum(axis)", "(dy * xhat).reshape(n, -1)[0]"),
        ("not summed", "dbeta of the last row", "dbeta = dy.sum(axis)", "dbeta = dy.reshape(n, -1)[-1]"),
        ("not summed", "mean path not averaged", "dy.mean(axis)", "dy / n"),
        ("not summed", "variance path not averaged", "(dy * xhat).mean(axis)", "(dy * xhat) / n"),
        ("stale statistics", "variance of another batch", "gamma * inv *", "gamma / np.sqrt(0.9 + 0.1 * var + EPS) *"),
        ("stale statistics", "mean of another batch", "= xhat * (dy", "= (x - 0.9 * mean) * inv * (dy"),
        ("stale statistics", "dgamma with another mean", "(dy * xhat).sum", "(dy * (x - 0.9 * mean) * inv).sum"),
        ("stale statistics", "dgamma, another var", "(dy * xhat).sum", "(dy * centred / (0.9 + 0.1 * var)**0.5).sum"),
        ("float32", "float32 dx", "dx = gamma * inv *", "dx = (gamma * inv).astype(np.float32) *"),
        ("float32", "float32 variance path", "(dy * xhat).mean(axis)", "(dy * xhat).mean(axis).astype(np.float32)"),
        ("float32", "float32 mean path", "dy.mean(axis)", "dy.mean(axis).astype(np.float32)"),
        ("float32", "float32 dgamma", "(dy * xhat).sum(axis)", "(dy * xhat).astype(np.float32).sum(axis)"),
        ("float32", "float32 dbeta", "dbeta = dy.sum(axis)", "dbeta = dy.astype(np.float32).sum(axis)"),
        ("float16", "float16 variance path", "(dy * xhat).mean(axis)", "(dy * xhat).astype(np.float16).mean(axis)"),
        ("lost rows", "dx of the first row left 0", "- through_var)", "- through_var) * (np.arange(n) > 0)[:, None]"),
        ("lost rows", "dx of the last row alone", "- through_var)", "- through_var) * np.eye(n)[:, -1:]"),
        ("lost rows", "mean path of all rows but one", "dy.mean(axis)", "dy[1:].sum(axis) / n"),
        ("lost rows", "variance path of all rows but one", "(dy * xhat).mean(axis)", "(dy * xhat)[1:].sum(axis) / n"),
        ("not linear", "|dy| in the mean path", "dy.mean(axis)", "np.abs(dy).mean(axis)"),
        ("not linear", "|dy| in dbeta", "dbeta = dy.sum(axis)", "dbeta = np.abs(dy).sum(axis)"),
        ("not linear", "dy squared in dgamma", "(dy * xhat).sum(axis)", "(dy * dy * xhat).sum(axis)"),
        ("not linear", "dx clipped", "direct = dy", "direct = np.clip(dy, -0.5, 0.5)"),
        ("swapped", "dgamma and dbeta exchanged", "return dx, dgamma, dbeta", "return dx, dbeta, dgamma"),
        ("transposed", "dx transposed", "return dx,", "return dx.T,"),
        ("transposed", "dy transposed", "direct = dy", "direct = dy.T"),
    ]  # fmt: skip
    for kind, name, old, new in paths:
        yield Edit("paths", kind, name, old, new)
    steps: list[tuple[str, str, str, str]] = [
        ("inv power", "dvar with inv squared", "inv**3", "inv**2"),
        ("inv power", "dvar with inv", "inv**3", "inv"),
        ("inv power", "dmean without inv", "-(dxhat * inv).sum", "-dxhat.sum"),
        ("inv power", "dmean with the variance", "-(dxhat * inv).sum", "-(dxhat / (var + EPS)).sum"),
        ("inv power", "direct path without inv", "dx = dxhat * inv", "dx = dxhat"),
        ("inv power", "direct path over n", "dx = dxhat * inv", "dx = dxhat / n"),
        ("gamma missing", "dvar of dy", "dvar = (dxhat * centred)", "dvar = (dy * centred)"),
        ("gamma missing", "dmean of dy", "-(dxhat * inv).sum", "-(dy * inv).sum"),
        ("gamma missing", "direct path of dy", "dx = dxhat * inv", "dx = dy * inv"),
        ("eps missing", "dvar without eps", "inv**3", "var**-1.5"),
        ("eps missing", "dmean without eps", "-(dxhat * inv).sum", "-(dxhat / np.sqrt(var)).sum"),
        ("eps missing", "direct path without eps", "dx = dxhat * inv", "dx = dxhat / np.sqrt(var)"),
        ("eps outside", "dvar, eps outside", "inv**3", "(np.sqrt(var) + EPS) ** -3"),
        ("variance path", "dvar without a half", "* -0.5 *", "* -1 *"),
        ("variance path", "no 2 in the variance path", "dvar * 2 * centred", "dvar * centred"),
        ("sum for mean", "variance path not over n", "dvar * 2 * centred / n", "dvar * 2 * centred"),
        ("sum for mean", "mean path not over n", "dmean / n", "dmean"),
        ("n - 1", "variance path over n - 1 (steps)", "dvar * 2 * centred / n", "dvar * 2 * centred / (n - 1)"),
        ("n - 1", "mean path over n - 1 (steps)", "dmean / n", "dmean / (n - 1)"),
        ("wrong operand", "dvar with x", "(dxhat * centred).sum", "(dxhat * x).sum"),
        ("wrong operand", "dvar with xhat", "(dxhat * centred).sum", "(dxhat * xhat).sum"),
        ("wrong operand", "variance path times x", "dvar * 2 * centred", "dvar * 2 * x"),
        ("wrong operand", "variance path times xhat", "dvar * 2 * centred", "dvar * 2 * xhat"),
        ("wrong operand", "mean over mu for sigma", "-(dxhat * inv).sum", "-(dxhat / mean).sum"),
        ("no change", "the term that sums to 0 left out", " + dvar * (-2 * centred).mean(axis)", ""),
        ("no change", "the term that sums to 0 flipped", "+ dvar * (-2 * centred)", "- dvar * (-2 * centred)"),
        ("no change", "the term that sums to 0 doubled", "(-2 * centred).mean", "(-4 * centred).mean"),
    ]
    for kind, name, old, new in steps:
        yield Edit("steps", kind, name, old, new)


def _applied(chosen: tuple[Edit, ...], shape: tuple[int, ...], eps: float) -> Pair | None:
    """The pair with these mistakes, or None where they overlap."""
    text = FORMULAS[chosen[0].formula] + RETURN
    for edit in chosen:
        if text.count(edit.old) < 1:
            return None
        text = text.replace(edit.old, edit.new, 1)
    for edit in chosen:
        if edit.new not in text:
            return None
    name = " and ".join(edit.name for edit in chosen)
    return _build(
        f"{chosen[0].formula}: {name}",
        " + ".join(edit.kind for edit in chosen),
        FORWARD + BACKWARD + text,
        shape,
        eps,
        chosen,
    )


def _shape(edit: Edit) -> tuple[int, ...]:
    return (5, 5) if edit.kind == "transposed" else (6, 4)


@cache
def mutants() -> tuple[Pair, ...]:
    """Pairs with one mistake each, no two with the same gradients except those that change none."""
    found: dict[Any, Pair] = {}
    for edit in edits():
        pair = _applied((edit,), _shape(edit), 1e-3 if "eps" in edit.kind else 1e-5)
        assert pair is not None, edit
        got, _ = _run(pair, 0)
        found.setdefault((pair.changes and tuple(_print(g) for g in got)) or pair.name, pair)
    return tuple(found.values())


@cache
def pairs(count: int = 100, seed: int = 0) -> tuple[Pair, ...]:
    """Pairs with two mistakes each, drawn at random; each of the two changes a gradient by itself."""
    rng = np.random.default_rng(seed)
    singles = [pair for pair in mutants() if pair.changes and pair.shape == (6, 4)]
    found: dict[str, Pair] = {}
    while len(found) < count:
        i, j = rng.integers(len(singles), size=2)
        (first,), (second,) = singles[i].edits, singles[j].edits
        if first.formula != second.formula or first.old in second.old or second.old in first.old:
            continue
        pair = _applied((first, second), (6, 4), 1e-3)
        if pair is not None and pair.changes:
            found[pair.name] = pair
    return tuple(found.values())


def _print(gradient: Any) -> tuple[Any, ...]:
    """What tells two gradients apart: their values to 10 digits."""
    flat = np.asarray(gradient, dtype=float)
    scale = float(np.max(abs(flat))) or 1.0
    return (flat.shape, round(math.log(scale), 9), *np.round(flat.ravel() / scale, 9).tolist())


# --- Wrong rules of primitives -----------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongRule:
    """A function of tensors in which one primitive's rule is wrong; `changes` says whether its gradient is."""

    name: str
    f: Callable[..., Any]
    inputs: tuple[np.ndarray, ...]
    changes: bool


def _first_lost(d: Any) -> Any:
    d = np.array(d)
    d.reshape(-1)[:1] = 0
    return d


# What becomes of a rule's result, or of the gradient that it gets.
_AFTER: dict[str, Callable[[Any], Any]] = {
    "times 1.0001": lambda d: d * 1.0001,
    "dropped": lambda d: d * 0,
    "reversed": lambda d: np.asarray(d)[..., ::-1] if np.ndim(d) else d,
    "without its first entry": _first_lost,
    "in float32": lambda d: np.asarray(d).astype(np.float32),
}
_BEFORE: dict[str, Callable[[Any], Any]] = {
    "of g squared": lambda g: g * g,
    "of |g|": np.abs,
    "of g reversed": lambda g: np.asarray(g)[..., ::-1] if np.ndim(g) else g,
}

# Rules as they are got wrong by hand: (operation, input, rule on g and what the true rule reads).
_BY_HAND: list[tuple[str, int, str, Callable[..., Any]]] = [
    ("subtract", 1, "sign forgotten", lambda g: g),
    ("multiply", 0, "other factor forgotten", lambda g, b: g),
    ("divide", 0, "multiplied", lambda g, b: g * b),
    ("divide", 1, "not squared", lambda g, b, out: -g * out),
    ("divide", 1, "sign forgotten", lambda g, b, out: g * out / b),
    ("power", 0, "exponent not lowered", lambda g, a, b: g * b * a**b),
    ("power", 0, "exponent forgotten", lambda g, a, b: g * a ** (b - 1)),
    ("power", 1, "logarithm forgotten", lambda g, a, b, out: g * out),
    ("exp", 0, "as of x", lambda g, out: g * np.log(out)),
    ("log", 0, "multiplied", lambda g, x: g * x),
    ("sqrt", 0, "half forgotten", lambda g, out: g / out),
    ("sqrt", 0, "of x for the root", lambda g, out: g / (2 * out * out)),
    ("rsqrt", 0, "squared for cubed", lambda g, out: g * out * out / -2),
    ("rsqrt", 0, "sign forgotten", lambda g, out: g * out**3 / 2),
    ("square", 0, "2 forgotten", lambda g, x: g * x),
    ("abs", 0, "sign forgotten", lambda g, x: g),
    ("tanh", 0, "not squared", lambda g, out: g * (1 - out)),
    ("tanh", 0, "1 forgotten", lambda g, out: -g * out * out),
    ("sigmoid", 0, "as tanh", lambda g, out: g * (1 - out * out)),
    ("sigmoid", 0, "1 - out forgotten", lambda g, out: g * out),
    ("relu", 0, "everywhere 1", lambda g, out: g),
    ("softmax", 0, "diagonal only", lambda g, out, axis: g * out * (1 - out)),
    ("softmax", 0, "diagonal without its sum", lambda g, out, axis: g * out),
    ("log_softmax", 0, "sum forgotten", lambda g, out, axis: g),
    ("log_softmax", 0, "exp forgotten", lambda g, out, axis: g - out * np.sum(g, axis, keepdims=True)),
]


@cache
def wrong_rules() -> tuple[WrongRule, ...]:
    """Wrong rules of every primitive, each the only one in its function."""
    from tests.test_primitive import SAMPLES, drawn

    found = []
    for name, (sample, *_) in SAMPLES.items():
        if name in ("stop_gradient", "allreduce"):
            continue
        inputs = tuple(drawn(sample, 3))
        positions = sorted({place for place, node in _edges(sample.f, inputs, name)})
        for position in positions:
            wrappers = [
                *[(kind, _changed_after(change)) for kind, change in _AFTER.items()],
                *[(kind, _changed_before(change)) for kind, change in _BEFORE.items()],
                *[(kind, _replaced(rule)) for op, at, kind, rule in _BY_HAND if (op, at) == (name, position)],
            ]
            for kind, wrapper in wrappers:
                f = _with_rule(sample.f, name, position, wrapper)
                changes = any(_differs(sample.f, f, inputs, seed) for seed in range(4))
                found.append(WrongRule(f"{name}, input {position}: {kind}", f, inputs, changes))
    return tuple(found)


Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def _changed_after(change: Callable[[Any], Any]) -> Wrapper:
    """Change a rule's result: of a joint rule, the first gradient."""

    def wrapper(rule: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(g: Any, *read: Any, **about: Any) -> Any:
            result = rule(g, *read, **about)
            return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

        return wrong

    return wrapper


def _changed_before(change: Callable[[Any], Any]) -> Wrapper:
    return lambda rule: lambda g, *read, **about: rule(change(g), *read, **about)


def _replaced(wrong: Callable[..., Any]) -> Wrapper:
    return lambda rule: lambda g, *read, **about: wrong(g, *read, *about.values())


def _edges(f: Callable[..., Any], inputs: tuple[np.ndarray, ...], op: str) -> Iterator[tuple[int, Any]]:
    for node in ag.Graph(f(*[ag.tensor(a, requires_grad=True) for a in inputs])).nodes:
        if node.op == op:
            yield from ((position, node) for position in node.wanted)


def _with_rule(f: Callable[..., Any], op: str, position: int, wrapper: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(*tensors: Any) -> Any:
        out = f(*tensors)
        for node in ag.Graph(out).nodes:
            if node.op == op:
                theirs, node.primitive = node.primitive, object.__new__(type(node.primitive))
                vars(node.primitive).update(vars(theirs))
                at = 0 if len(node.primitive.rules) == 1 else position
                rules = node.primitive.rules = list(node.primitive.rules)
                rules[at] = copy(rules[at])
                rules[at].function = wrapper(rules[at].function)
        return out

    return wrong


def _differs(f: Callable[..., Any], wrong: Callable[..., Any], inputs: tuple[np.ndarray, ...], seed: int) -> bool:
    rng = np.random.default_rng(seed)
    leaves = [ag.tensor(a, requires_grad=True) for a in inputs]
    outputs = [h(*leaves) for h in (f, wrong)]
    weights = rng.normal(size=outputs[0].shape) * (-1) ** seed
    return any(
        np.max(np.abs(a - b)) > 1e-12 * np.max(np.abs(a))
        for a, b in zip(*[ag.grad(out, leaves, [weights]) for out in outputs], strict=True)
    )
