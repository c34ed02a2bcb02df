"""From a wrong gradient of a normalisation to the mistake behind it, path by path."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engine.node import Array
from .mistakes import RTOL, Factors, Mistake, cost, listed, number
from .normalisation import Normalisation
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
    """Mistakes that together reproduce one gradient, by the path (or whole gradient) they sit on.

    `coefficients` says how much of each path the gradient carries, where that is the same in every feature.
    """

    gradient: str
    parts: dict[str, list[Mistake]]
    coefficients: dict[str, float]

    @property
    def cost(self) -> float:
        """How much the explanation asks to be believed."""
        return cost([mistake for mistakes in self.parts.values() for mistake in mistakes])


def explain(factors: Factors, gradient: str, given: Array) -> Explanation | None:
    """The mistakes that turn the true dx, dgamma or dbeta into `given`, if they are factors on its paths.

    dx is the sum of its paths; dgamma and dbeta, which are sums over the batch, are a path each.
    """
    norm = factors.norm
    if gradient == "dx":
        paths, best = norm.paths(), None
        active = [path for path, term in paths.items() if np.any(term)]
        other = _other_terms(norm) if norm.training else {}
        terms = [[(list[Mistake](), paths[path]), *other.get(path, ())] for path in active]
        rows, lost = norm.rows(given), list[Mistake]()
        kept = np.any(rows != 0, axis=0)
        if np.any(kept) and not np.all(kept):
            words = f"is 0 in row {', '.join(map(str, np.flatnonzero(~kept)))} of the batch"
            lost = [Mistake("lost rows", words, "Fill in every row")]
        kept |= not lost
        for chosen in sorted(itertools.product(*terms), key=lambda chosen: sum(len(m) for m, _ in chosen)):
            fixed = sum(len(mistakes) for mistakes, _ in chosen)
            if fixed > 2 or (best is not None and best.cost <= fixed + 1):
                break
            c = _weights([norm.rows(term)[:, kept] for _, term in chosen], rows[:, kept])
            found = None if c is None else _explained(factors, gradient, active, c)
            if found is not None:
                for path, (mistakes, _) in zip(active, chosen, strict=True):
                    found.parts[path] = mistakes + found.parts[path] + lost
                best = found if best is None or found.cost < best.cost - 1e-9 else best
        return best
    parameter = norm.gamma if gradient == "dgamma" else norm.beta
    axes = tuple(i for i, k in enumerate(parameter.shape) if k == 1 and norm.x.shape[i] != 1)
    true = np.sum(norm.dy * norm.xhat if gradient == "dgamma" else norm.dy, axis=axes, keepdims=True)
    if given.size != true.size or not np.all(true):
        return None
    return _explained(factors, gradient, [gradient], given.reshape(1, -1) / true.reshape(1, -1))


def _other_terms(norm: Normalisation) -> dict[str, list[tuple[list[Mistake], Array]]]:
    """What people write in the place of a path's term."""
    direct, xhat = norm.paths()["direct"], norm.xhat
    ones, weight = np.ones_like(norm.x), norm.var_weight()
    repair = "Write it as -xhat * mean(dxhat * xhat) / sigma"
    operands = [
        (xhat, ""),
        (norm.x, "takes x where xhat belongs"),
        (norm.x / norm.sigma, "takes x where x - mean belongs"),
        (norm.y, "takes the output y where xhat belongs"),
        (xhat * xhat, "has xhat squared"),
        (ones, "lacks the factor xhat"),
    ]
    mean = [([Mistake("wrong operand", "sums dxhat * xhat", "Sum dxhat alone")], -norm.average(direct * xhat) * ones)]
    var = []
    for (a, outside), (b, inside) in list(itertools.product(operands, repeat=2))[1:]:
        said = [f"{outside} outside its sum"] * bool(outside) + [f"{inside} inside its sum"] * bool(inside)
        said = [f"{outside}, outside and inside its sum"] if outside == inside else said
        mistakes = [Mistake("wrong operand", words, repair) for words in said]
        var.append((mistakes, -a * norm.average(direct * b) * weight))
    own, ndim = ", ".join(map(str, norm.axes)), norm.x.ndim
    for axes in (tuple(i for i in range(ndim) if i not in norm.axes), tuple(range(ndim))):
        words = f"is averaged over axis {', '.join(map(str, axes))} where forward averages over axis {own}"
        mistakes = [Mistake("wrong axis", words, f"Average over axis {own}, as forward does")]
        for terms, scale in ((direct, ones), (norm.dy, norm.gamma / norm.sigma)) if axes != norm.axes and axes else ():
            mean.append((mistakes, -norm.average(terms, axes) * scale * ones))
            var.append((mistakes, -xhat * norm.average(terms * xhat, axes) * scale * weight))
    unsummed = [Mistake("not summed", "is not summed over the batch", "Sum over the batch")]
    var.append((unsummed, -xhat * direct * xhat / norm.n * weight))
    return {"mean": mean, "var": var}


def _explained(factors: Factors, gradient: str, paths: Sequence[str], c: Array) -> Explanation | None:
    """The mistakes that leave the factors `c` on these paths, a row a path, a column a feature."""
    norm = factors.norm
    parts, coefficients = {}, {}
    for path, weight in zip(paths, c, strict=True):
        same = np.ptp(weight) < 1e-6 * max(float(np.max(np.abs(weight))), 1.0)
        if same:
            coefficients[path] = float(np.median(weight))
        if weight.size != norm.features:
            if not same:
                return None
            parts[path] = number(coefficients[path], norm)
        elif norm.training or path not in ("mean", "var"):
            parts[path] = factors.explain(weight, path)
        else:
            extra = Mistake("training formula", "has no place in inference", "Leave it out")
            parts[path] = [extra] * bool(np.max(np.abs(weight)) > 1e-7)
    return Explanation(gradient, parts, coefficients)


def _weights(basis: list[Array], target: Array) -> Array | None:
    """The weight of each term in each feature, if the terms reproduce the target: (terms, features)."""
    matrix = np.stack(basis, axis=2)  # features, N, terms
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    if matrix.shape[1] < matrix.shape[2] + 1 or np.any(norms == 0):
        return None
    u, s, vt = np.linalg.svd(matrix / norms, full_matrices=False)
    if np.any(s[:, -1] < 1e-5 * s[:, 0]):
        return None
    c = np.einsum("fkt,fk,fnk,fn->ft", vt, 1 / s, u, target) / norms[:, 0, :]
    off = np.max(np.abs(np.einsum("fnt,ft->fn", matrix, c) - target))
    return c.T if off <= RTOL * max(float(np.max(np.abs(target))), 1e-300) else None


def findings_of(norm: Normalisation, explanations: Sequence[Explanation]) -> list[Finding]:
    """Explanations of several gradients as findings, with the same mistake said once."""
    places: dict[str, tuple[Mistake, list[tuple[str, str]]]] = {}
    coefficients: dict[str, float] = {}
    for explanation in explanations:
        coefficients |= explanation.coefficients if explanation.gradient == "dx" else {}
        for path, mistakes in explanation.parts.items():
            for mistake in mistakes:
                places.setdefault(mistake.key, (mistake, []))[1].append((explanation.gradient, path))
    return [_finding(norm, mistake, where, coefficients) for mistake, where in places.values()]


def _finding(
    norm: Normalisation, mistake: Mistake, places: list[tuple[str, str]], coefficients: dict[str, float]
) -> Finding:
    """One mistake and all the places that it sits in."""
    names = {"dgamma": f"d{norm.gamma_name}", "dbeta": f"d{norm.beta_name}"}
    dx, kind = f"d{norm.x_name}", mistake.kind
    paths = [path for gradient, path in places if gradient == "dx"]
    sums = [names[gradient] for gradient, _ in places if gradient != "dx"]
    gradients = ([dx] if paths else []) + sums
    whole = {path for path, term in norm.paths().items() if np.any(term)} == set(paths)
    if kind == "missing" and paths and not sums:
        carried = [f"{abs(coefficients.get(path, 0.0)):.2f} of the {PATH_NAMES[path]}" for path in paths]
        what = f"{dx} carries {' and '.join(carried)}: that {'term is' if len(paths) == 1 else 'part is'} missing."
        repair = f"Add {'; and '.join(_formula(path, norm) for path in paths)}."
        if whole:
            kind, what, repair = "zero", f"{dx} is zero everywhere.", f"It should hold {_formula('direct', norm)}."
        elif norm.training and set(paths) == {"mean", "var"}:
            kind = "inference formula"
            what = (
                f"{dx} carries {' and '.join(carried)}: it treats the mean and the variance as constants, which is the "
                "formula of inference. In training both depend on x."
            )
        return Finding("missing path" if kind == "missing" else kind, tuple(gradients), what, repair)
    if kind == "training formula":
        what = (
            f"{dx} carries the {' and the '.join(PATH_NAMES[path] for path in paths)}, but forward takes the mean and "
            "the variance for constants: this is the formula of training, used in inference."
        )
        return Finding(kind, (dx,), what, f"Leave that out: {dx} is {_formula('direct', norm)}.")
    if whole and len(paths) > 1:
        where = [f"{dx} as a whole", *sums]
    else:
        where = [f"in {dx} the {PATH_NAMES[path]}" for path in paths[:1]]
        where += [f"the {PATH_NAMES[path]}" for path in paths[1:]] + sums
    words, repair = (mistake.words, mistake.repair) if len(where) == 1 else mistake.plural()
    if len(paths) == 1 and paths[0] in coefficients and kind in ("sign", "weight", "factor"):
        words += f" ({dx} carries {coefficients[paths[0]]:.4g} of it)"
    if len(paths) == 1 and not kind.startswith(("gamma", "eps")):
        repair += f": the term is {_formula(paths[0], norm)}"
    what = f"{listed(where)} {words}."
    return Finding(kind, tuple(gradients), what[0].upper() + what[1:] if paths and not whole else what, f"{repair}.")
