"""From a wrong gradient of a normalisation to the mistake behind it, path by path."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...engine.node import Array
from .mistakes import RTOL, Dictionary, Factor, gamma_power, number, plural
from .normalisation import Normalisation, close
from .verdict import Finding

PATH_NAMES = {"direct": "direct path", "mean": "path through the mean", "var": "path through the variance"}


def _formula(path: str, norm: Normalisation) -> str:
    gamma = "dy * gamma" if norm.gamma_name else "dy"
    sigma = {"outside": "(sqrt(var) + eps)", "centred": "1"}.get(norm.spelling, "sqrt(var + eps)")
    over = "" if norm.spelling == "centred" else f" / {sigma}"
    count = "(N - 1)" if norm.spelling == "unbiased" else "N"
    return {
        "direct": f"dxhat{over}, with dxhat = {gamma}",
        "mean": f"dmean / N, with dmean = -sum(dxhat){over} and dxhat = {gamma}",
        "var": f"dvar * 2 * (x - mean) / {count}, with dvar = -1/2 * sum(dxhat * (x - mean)) * (var + eps)**(-3/2)",
    }[path]


@dataclass
class Explanation:
    """Reasons that together reproduce one gradient: for each path (or whole gradient) its factors."""

    gradient: str
    parts: dict[str, list[Factor]]
    coefficients: dict[str, float] = field(default_factory=dict)

    @property
    def cost(self) -> float:
        """The same reason on several paths counts once."""
        seen = {}
        for factors in self.parts.values():
            for factor in factors:
                seen[factor.key] = factor.cost
        # A whole set of paths that is missing or wrong alike is one decision of the author's.
        return sum(seen.values()) + 0.01 * sum(len(f) for f in self.parts.values())


def _one(kind: str, words: str, repair: str) -> list[Factor]:
    return [Factor(kind, words, words, repair)]


Option = tuple[list[Factor], Array]


def _structures(norm: Normalisation, gamma_per_feature: bool) -> dict[str, list[Option]]:
    """For each path, what people write in its place; the right term stands first."""
    xhat, sigma, average = norm.xhat, norm.sigma, norm.average
    ones = np.ones_like(norm.x)
    paths = norm.paths()
    direct, weighted = paths["direct"], paths["direct"] * xhat
    options: dict[str, list[Option]] = {path: [([], term)] for path, term in paths.items()}
    mean, var, w = options["mean"], options["var"], norm.var_weight()

    def both(kind: str, words: str, repair: str, reduced: Callable[[Array], Array]) -> None:
        """A mistake in the averaging, which either path may have."""
        mean.append((_one(kind, words, repair), -reduced(direct) * ones))
        var.append((_one(kind, words, repair), -xhat * reduced(weighted) * w))

    features = tuple(i for i in range(norm.x.ndim) if i not in norm.axes)
    own = ", ".join(map(str, norm.axes))
    for axes in (features, (*range(norm.x.ndim),)):
        if axes and axes != norm.axes:
            words = f"is averaged over axis {', '.join(map(str, axes))} where forward averages over axis {own}"
            right = f"Average over axis {own}, as forward does"
            both("wrong axis", words, right, lambda values, axes=axes: average(values, axes))  # type: ignore[misc]
            scale = norm.gamma / sigma  # these weights may stay outside the average
            mean.append((_one("wrong axis", words, right), -average(norm.dy, axes) * scale * ones))
            var.append((_one("wrong axis", words, right), -xhat * average(norm.dy * xhat, axes) * scale * w))
    both("not summed", "is not summed over the batch", "Sum over the batch", lambda values: values / norm.n)
    axis = norm.axes[0]
    for row in (0, norm.x.shape[axis] - 1):
        words = f"leaves out row {row} of the batch"
        without = np.arange(norm.x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(norm.x.ndim)]) != row
        both("lost rows", words, "Sum over all rows", lambda values, keep=without: average(values * keep))  # type: ignore[misc]
    if norm.x.ndim == 2 and norm.x.shape[0] == norm.x.shape[1]:
        swapped_dy = (norm.dy * ones).T * norm.gamma / sigma
        options["direct"].append((_one("transposed", "takes dy transposed", "Use dy as it comes"), swapped_dy))
    mean.append(
        (_one("wrong operand", "sums dxhat * xhat where dxhat belongs", "Sum dxhat alone"), -average(weighted) * ones)
    )
    extra = average(weighted) * norm.mean / sigma * ones
    words = "has sum(-2 * x) where sum(-2 * (x - mean)), which is 0, belongs"
    mean.append((_one("wrong operand", words, "Use x - mean"), paths["mean"] + w * extra))
    operands = {
        "xhat": (xhat, ""),
        "x": (norm.x, "takes x where xhat belongs"),
        "x / sigma": (norm.x / sigma, "takes x where x - mean belongs"),
        "y": (norm.y, "takes the output y where xhat belongs"),
        "xhat**2": (xhat * xhat, "has xhat squared"),
        "nothing": (ones, "lacks the factor xhat"),
        "dxhat": (norm.dy * norm.gamma, "has dxhat where xhat belongs"),
    }
    for (outer, (a, out)), (inner, (b, into)) in itertools.product(operands.items(), repeat=2):
        if outer == inner == "xhat" or not norm.training:
            continue
        if outer == inner:
            factors = _one("wrong operand", f"{out}, outside and inside its sum", _OPERAND)
        else:
            factors = _one("wrong operand", f"{out} outside its sum", _OPERAND) if out else []
            factors += _one("wrong operand", f"{into} inside its sum", _OPERAND) if into else []
        var.append((factors, -a * average(direct * b) * w))
    if not gamma_per_feature:
        for power in (-1, 1, -2):  # gamma inside the sums of layer norm is no factor of the whole term
            for path, term in norm.paths(norm.dy * norm.gamma ** (1.0 + power)).items():
                options[path].append(([gamma_power(power, path)], term))
        outside = _one("gamma outside", "is averaged without gamma, which is multiplied in afterwards", _INSIDE)
        for path, term in norm.paths(norm.dy).items():
            if path != "direct":
                options[path].append((outside, term * norm.gamma))
    return options


_INSIDE = "Start from dxhat = dy * gamma: here gamma differs along the axis of the mean"
_OPERAND = "Write it as -xhat * mean(dxhat * xhat) / sigma"


def explain_dx(dictionary: Dictionary, given: Array) -> Explanation | None:
    """The smallest set of reasons that turns the true dx into `given`, if there is one."""
    norm = dictionary.norm
    structures = _structures(norm, dictionary.gamma_per_feature)
    active = [path for path, options in structures.items() if np.any(options[0][1])]
    target = norm.rows(given)
    lost, kept = _lost_rows(target)
    best: Explanation | None = None
    combos = [(_keys(combo), combo) for combo in itertools.product(*[structures[path] for path in active])]
    combos = sorted([c for c in combos if len(c[0]) <= 2], key=lambda c: len(c[0]))
    # Whole terms first: every choice of spellings with all weights right.
    for _, combo in combos if norm.training else []:
        if close(sum(option[1] for option in combo), given, RTOL):
            return Explanation("dx", dict(zip(active, [list(option[0]) for option in combo], strict=True)))
    for keys, combo in combos:
        if best is not None and best.cost <= len(keys) + 1:
            break
        weights = _weights([norm.rows(option[1])[:, kept] for option in combo], target[:, kept])
        if weights is None:
            continue
        parts, coefficients = {}, {}
        for path, option, c in zip(active, combo, weights, strict=True):
            reasons = dictionary.explain(c, path) if norm.training or path == "direct" else _extra(c)
            parts[path] = [*option[0], *reasons, *lost]
            if np.ptp(c) < 1e-6 * max(float(np.max(np.abs(c))), 1.0):
                coefficients[path] = float(np.median(c))
        parts = _idioms(norm, parts, dict(zip(active, weights, strict=True)), coefficients)
        found = Explanation("dx", parts, coefficients)
        if best is None or found.cost < best.cost - 1e-9:
            best = found
    return best


def _keys(combo: tuple[Option, ...]) -> set[str]:
    """The different mistakes in a choice of terms."""
    return {factor.key for factors, _ in combo for factor in factors}


def _extra(c: Array) -> list[Factor]:
    """A path that forward hasn't, since its statistics are constants."""
    if np.max(np.abs(c)) < 1e-7:
        return []
    return _one("training formula", "has no place in inference", "Leave it out")


def _lost_rows(target: Array) -> tuple[list[Factor], Array]:
    """Rows of the batch in which nothing came back, and the others."""
    kept = np.any(target != 0, axis=0)
    if np.all(kept) or not np.any(kept):
        return [], np.ones_like(kept)
    words = f"is 0 in row {', '.join(map(str, np.flatnonzero(~kept)))} of the batch"
    return _one("lost rows", words, "Fill in every row"), kept


def _weights(basis: list[Array], target: Array) -> Array | None:
    """The weight of each term in each feature, if the terms reproduce the target: (terms, features)."""
    size = float(np.max(np.abs(target), initial=0))
    matrix = np.stack(basis, axis=2)  # features, N, terms
    if matrix.shape[1] < matrix.shape[2] + 1:
        return None
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if np.any(norms == 0):
        return None
    u, s, vt = np.linalg.svd(matrix / norms, full_matrices=False)
    if np.any(s[:, -1] < 1e-5 * s[:, 0]):
        return None
    c = np.einsum("fkt,fk,fnk,fn->ft", vt, 1 / s, u, target) / norms[:, 0, :]
    fitted = np.einsum("fnt,ft->fn", matrix, c)
    if np.max(np.abs(fitted - target), initial=0) > RTOL * max(size, 1e-300):
        return None
    return c.T  # type: ignore[no-any-return]


def _idioms(
    norm: Normalisation, parts: dict[str, list[Factor]], weights: dict[str, Array], c: dict[str, float]
) -> dict[str, list[Factor]]:
    """Weights that are one decision of the author's, put as one reason."""
    if abs(c.get("mean", 1)) < 1e-7 and abs(c.get("direct", 1) - (1 - 1 / norm.n)) < 1e-7:
        return {**parts, "direct": [], "mean": _one("not summed", "is not summed over the batch", "Sum over the batch")}
    if "var" in c and abs(c["var"]) > 1e-7 and "mean" not in c and np.all(norm.mean):
        # x - m outside the sum of the variance path, for another mean m, leaves a multiple of the mean path's form.
        paths = norm.paths()
        through = norm.rows(norm.average(paths["direct"] * norm.xhat))[:, 0] * c["var"]
        shift = (weights["mean"] - 1) * norm.rows(paths["mean"])[:, 0] / -through
        share = shift * norm.rows(norm.sigma / norm.mean)[:, 0]
        if np.ptp(share) < 1e-6 * np.max(np.abs(share)):
            words = f"takes x - {1 - np.median(share):.4g} * mean where x - mean belongs"
            other = _one("statistics", words, "Use the mean of this batch")
            return {**parts, "mean": [], "var": [*parts["var"], *other]}
    return parts


def explain_sum(dictionary: Dictionary, name: str, given: Array) -> Explanation | None:
    """The smallest set of reasons for a wrong dgamma or dbeta, which are sums over the batch."""
    norm = dictionary.norm
    parameter = norm.gamma if name == "dgamma" else norm.beta
    axes = tuple(i for i, k in enumerate(parameter.shape) if k == 1 and norm.x.shape[i] != 1)

    def over(values: Array) -> Array:
        return np.sum(values * np.ones_like(norm.x), axis=axes, keepdims=True)  # type: ignore[no-any-return]

    given = given.reshape(parameter.shape) if given.size == parameter.size else given
    if given.shape != parameter.shape:
        return None
    xhat, dy, x = norm.xhat, norm.dy, norm.x
    wrong = "wrong operand"
    if name == "dgamma":
        options = [
            ([], over(dy * xhat)),
            (_one(wrong, "sums dy * x where dy * xhat belongs", "Use xhat, the normalised input"), over(dy * x)),
            (_one(wrong, "sums dy * y where dy * xhat belongs", "Use xhat, before gamma and beta"), over(dy * norm.y)),
            (_one(wrong, "sums dy alone, which is dbeta", "Use sum(dy * xhat)"), over(dy)),
            (_one(wrong, "sums dy * (xhat + beta)", "Use xhat, without beta"), over(dy * (xhat + norm.beta))),
            (_one(wrong, "sums dy**2 * xhat where dy * xhat belongs", "Use dy once"), over(dy * dy * xhat)),
            (_one(wrong, "sums dy * xhat**2 where dy * xhat belongs", "Use xhat once"), over(dy * xhat**2)),
        ]
    else:
        options = [
            ([], over(dy)),
            (_one(wrong, "sums dy * xhat, which is dgamma", "Use sum(dy)"), over(dy * xhat)),
            (_one(wrong, "sums dy * x where dy belongs", "Use sum(dy)"), over(dy * x)),
            (_one(wrong, "sums |dy| where dy belongs", "Use sum(dy)"), over(np.abs(dy))),
        ]
    true = options[0][1]
    if given.ndim and close(given.ravel()[::-1], true.ravel(), RTOL) and true.size > 1:
        return Explanation(name, {name: _one("transposed", "has its features in reverse order", "Keep their order")})
    total = np.full_like(true, true.sum())
    axis = axes[0]
    for rows, words in (
        (slice(1, None), "the first row"),
        (slice(None, -1), "the last row"),
        (slice(None, None, 2), "every second row"),
    ):
        keep = np.zeros([x.shape[axis] if i == axis else 1 for i in range(x.ndim)])
        keep[(slice(None),) * axis + (rows,)] = 1
        options.append(
            (
                _one("lost rows", f"leaves out {words}", "Sum over all rows"),
                over(keep * (dy * xhat if name == "dgamma" else dy)),
            )
        )
    fix = f"Sum over axis {axes[0] if len(axes) == 1 else axes} only"
    options.append((_one("wrong axis", "is summed over all axes, the features too", fix), total))
    best: Explanation | None = None
    dims = tuple(i for i in range(x.ndim) if i not in axes)
    for reasons, term in options:
        with np.errstate(all="ignore"):
            c = np.where(term == 0, np.nan, given / term)
        if not np.isfinite(c).all():
            continue
        flat = np.broadcast_to(c, [x.shape[i] if i in dims else 1 for i in range(x.ndim)]).ravel()
        if flat.size != norm.features:
            factors = number(float(flat[0]), norm) if np.ptp(flat) < 1e-7 * abs(flat).max() else None
            if factors is None:
                continue
        else:
            factors = dictionary.explain(flat, name)
        found = Explanation(name, {name: [*reasons, *factors]})
        if best is None or found.cost < best.cost - 1e-9:
            best = found
    if best is not None and best.cost >= 3:
        first = np.take(dy * xhat if name == "dgamma" else dy, 0, axis=axes[0])
        last = np.take(dy * xhat if name == "dgamma" else dy, -1, axis=axes[0])
        for row, word in ((first, "first"), (last, "last")):
            if row.size == given.size and close(row.ravel(), given.ravel(), RTOL):
                words = f"holds the {word} row's share only: it is not summed over the batch"
                return Explanation(name, {name: _one("not summed", words, fix)})
    return best


def findings_of(norm: Normalisation, explanations: list[Explanation]) -> list[Finding]:
    """Explanations of several gradients as findings, with the same reason said once."""
    reasons: dict[str, tuple[Factor, list[tuple[str, str]]]] = {}
    for explanation in explanations:
        for path, factors in explanation.parts.items():
            for factor in factors:
                reasons.setdefault(factor.key, (factor, []))[1].append((explanation.gradient, path))
    coefficients = {k: v for e in explanations if e.gradient == "dx" for k, v in e.coefficients.items()}
    findings = []
    dx = f"d{norm.x_name}"
    for factor, places in reasons.values():
        paths = [path for gradient, path in places if gradient == "dx"]
        sums = [gradient for gradient, _ in places if gradient != "dx"]
        names = {"dgamma": f"d{norm.gamma_name}", "dbeta": f"d{norm.beta_name}"}
        gradients = ([dx] if paths else []) + [names[g] for g in sums]
        findings.append(_finding(norm, factor, paths, [names[g] for g in sums], tuple(gradients), dx, coefficients))
    return findings


# Mistakes whose repair is best shown as the right term.
_LOCAL = {"sign", "sum for mean", "mean for sum", "N-1", "factor", "weight", "sigma", "wrong operand", "not summed"}


def _finding(
    norm: Normalisation,
    factor: Factor,
    paths: list[str],
    sums: list[str],
    gradients: tuple[str, ...],
    dx: str,
    coefficients: dict[str, float],
) -> Finding:
    active = [path for path, values in norm.paths().items() if np.any(values)]
    kind = factor.kind
    if kind == "missing" and paths and not sums:
        told = [f"{abs(coefficients.get(path, 0.0)):.2f} of the {PATH_NAMES[path]}" for path in paths]
        if set(paths) == set(active):
            return Finding(
                "zero", gradients, f"{dx} is zero everywhere.", f"It should hold {_formula('direct', norm)}."
            )
        if norm.training and set(paths) == set(active) - {"direct"} and len(paths) == 2:
            what = (
                f"{dx} carries {' and '.join(told)}: it treats the mean and the variance as constants, which is the "
                "formula of inference. In training both depend on x."
            )
            return Finding(
                "inference formula", gradients, what, f"Add {_formula('mean', norm)}; and {_formula('var', norm)}."
            )
        what = f"{dx} carries {' and '.join(told)}: that {'term is' if len(paths) == 1 else 'part is'} missing."
        return Finding("missing path", gradients, what, f"Add {'; and '.join(_formula(p, norm) for p in paths)}.")
    if kind == "training formula":
        what = (
            f"{dx} carries the {' and the '.join(PATH_NAMES[path] for path in paths)}, but forward takes the mean and "
            "the variance for constants: this is the formula of training, used in inference."
        )
        return Finding(kind, gradients, what, f"Leave that out: {dx} is {_formula('direct', norm)}.")
    if paths and set(paths) == set(active) and len(active) > 1:
        where = f"{dx} as a whole"
    elif paths:
        names = [PATH_NAMES[path] for path in paths]
        where = f"In {dx} the " + " and the ".join(names)
    else:
        where = ""
    if sums:
        where = f"{where}, and {' and '.join(sums)}," if where else " and ".join(sums)
    words, repair = factor.words, factor.repair
    if len(sums) + ("whole" not in where) * len(paths) > 1:
        words, repair = plural(words), repair.replace(" its ", " their ").replace(" it ", " them ")
    if len(paths) == 1 and paths[0] in coefficients and kind in ("sign", "weight", "factor"):
        words += f" ({dx} carries {coefficients[paths[0]]:.4g} of it)"
    if len(paths) == 1 and kind in _LOCAL:
        repair += f": the term is {_formula(paths[0], norm)}"
    return Finding(kind, gradients, f"{where} {words}.", f"{repair}.")
