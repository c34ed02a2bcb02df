"""What people get wrong in the gradient of a normalisation: the factor that it leaves on a term, and the words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...engine.node import Array
from .normalisation import Normalisation
from .verdict import Finding

RTOL = 1e-7  # how well an explanation must reproduce what came back, of its largest entry


@dataclass(frozen=True)
class Mistake:
    """Why a term isn't what it should be. `same` is equal where the same mistake has other words."""

    kind: str
    words: str
    repair: str
    cost: float = 1.0
    same: str = ""

    @property
    def key(self) -> str:
        """What tells one mistake from another."""
        return self.same or self.kind + self.words

    def of(self, labels: Sequence[str]) -> Finding:
        """The mistake as a finding on these gradients."""
        words, repair = (self.words, self.repair) if len(labels) == 1 else self.plural()
        return Finding(self.kind, tuple(labels), f"{listed(labels)} {words}.", f"{repair}.")

    def plural(self) -> tuple[str, str]:
        """The words, which begin with their verb, and the repair of several terms."""
        verb, _, rest = self.words.partition(" ")
        verb = {"is": "are", "has": "have", "does": "do", "carries": "carry"}.get(verb, verb.removesuffix("s"))
        return f"{verb} {rest}", self.repair.replace(" its ", " their ").replace(" it ", " them ")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


SIGN = Mistake("sign", "has the wrong sign", "Flip its sign")


def number(k: float, norm: Normalisation) -> list[Mistake]:
    """What a plain factor `k` on a term says; nothing where it is 1."""
    if abs(k - 1) < 1e-8:
        return []
    if abs(k) < 1e-8:
        return [Mistake("missing", "is missing", "Add it")]
    n, shape = norm.n, norm.x.shape
    # In words and not in figures: the run that tells may have other lengths than the caller's inputs.
    rows = [
        (1, "", "", ""),
        (n, "sum for mean", "is N times too large: a sum over the batch is not divided by N", "1 / N"),
        (1 / n, "mean for sum", "is N times too small: it is divided by N once too often", "N"),
        (n / (n - 1), "N-1", "is divided by N - 1 where N belongs", "(N - 1) / N"),
        ((n - 1) / n, "N-1", "is divided by N where N - 1 belongs", "N / (N - 1)"),
        (2, "factor", "is twice what it should be", "1/2"),
        (0.5, "factor", "is half of what it should be: a factor 2 is missing", "2"),
    ]
    for axes in itertools.chain(*[itertools.combinations(range(len(shape)), size + 1) for size in range(len(shape))]):
        other = math.prod([shape[i] for i in axes])
        if other not in (1, n):
            what = "the size of x" if len(axes) == len(shape) else f"the length of axis {' and '.join(map(str, axes))}"
            words = f"is divided by {what} where N, the number of values in one mean, belongs"
            rows.append((n / other, "wrong count", words, "that length and divide by N"))
    for value, kind, words, by in rows:
        if abs(abs(k) / value - 1) < 1e-8:
            return [SIGN] * (k < 0) + [Mistake(kind, words, f"Multiply it by {by}")] * bool(kind)
    return [Mistake("weight", f"is weighted {k:.8g} times what it should be", f"Divide it by {k:.8g}", 1.2)]


# What is written for sigma = sqrt(var + eps), by forward's spelling: kind, words, repair, and what is written.
_ROOTS: dict[str, list[tuple[str, str, str, Callable[[Array, float, int], Array]]]] = {
    "standard": [
        ("eps missing", "leaves eps out of sqrt(var + eps)", "Put forward's eps back under the root",
         lambda var, eps, n: np.sqrt(var)),
        ("eps outside", "has eps outside the root, forward has it inside", "Use sqrt(var + eps)",
         lambda var, eps, n: np.sqrt(var) + eps),
        ("eps outside", "has eps outside the root, forward has it inside", "Use sqrt(var + eps)",
         lambda var, eps, n: np.sqrt(var) + np.sqrt(eps)),
        ("eps", "has eps**2 where forward has eps", "Use sqrt(var + eps)", lambda var, eps, n: np.sqrt(var + eps**2)),
        ("N-1", "takes the variance over N - 1, forward over N", "Use the variance that forward used (ddof=0)",
         lambda var, eps, n: np.sqrt(var * n / (n - 1) + eps)),
    ],
    "outside": [
        ("eps missing", "leaves eps out of sqrt(var) + eps", "Put forward's eps back",
         lambda var, eps, n: np.sqrt(var)),
        ("eps outside", "has eps inside the root, forward has it outside", "Use sqrt(var) + eps",
         lambda var, eps, n: np.sqrt(var + eps)),
    ],
    "unbiased": [
        ("N-1", "takes the variance over N, forward over N - 1", "Use the variance that forward used (ddof=1)",
         lambda var, eps, n: np.sqrt(var + eps)),
    ],
}  # fmt: skip


class Factors:
    """The factors, one a feature, that gamma, sigma, eps and the mean can put on a term of the gradient."""

    def __init__(self, norm: Normalisation):
        self.norm = norm
        gamma = norm.rows(norm.gamma)
        self.sigma, self.var, mean = (norm.rows(values)[:, 0] for values in (norm.sigma, norm.var, norm.mean))
        bases: list[tuple[str, Array, Sequence[int]]] = [
            ("sigma", self.sigma, range(-4, 7)),
            ("mean", mean, range(-1, 2)),
        ]
        if np.ptp(gamma, axis=1).max() == 0:  # else gamma is no factor of a sum, as in layer norm
            bases += [("gamma", gamma[:, 0], range(-3, 3))]
        self.roots = _ROOTS.get(norm.spelling, [])
        with np.errstate(all="ignore"):
            others = [self.sigma / root(self.var, norm.eps, norm.n) for *_, root in self.roots]
        tables = [bases, *[[*bases, (str(i), root, (-2, -1, 1, 2, 3))] for i, root in enumerate(others)]]
        self.powers: list[dict[str, int]] = []
        logs, signs = [], []
        for table in tables:
            used = [base for base in table if np.all(base[1] != 0) and np.ptp(base[1]) > 1e-9 * np.max(np.abs(base[1]))]
            grid = np.array(list(itertools.product(*[powers for _, _, powers in used])), dtype=int)
            values = np.array([base for _, base, _ in used]).reshape(len(used), norm.features)
            self.powers += [{u[0]: p for u, p in zip(used, row, strict=True) if p} for row in grid.tolist()]
            logs.append(grid @ np.log(np.abs(values)))
            signs.append(1.0 - 2.0 * ((grid % 2) @ (values < 0) % 2))
        self.logs, self.signs = np.concatenate(logs), np.concatenate(signs)

    def explain(self, c: Array, path: str) -> list[Mistake]:
        """Why a term's factors, one a feature, are `c`; nothing where they are 1."""
        scale = float(np.max(np.abs(c)))
        if scale < 1e-9 or np.ptp(c) < 1e-7 * scale:
            return number(float(np.median(c)), self.norm)
        if np.all(c != 0) and self.norm.features > 2:
            rest, signs = np.log(np.abs(c)) - self.logs, self.signs * np.sign(c)
            fits = np.flatnonzero((np.ptp(rest, axis=1) < 1e-7) & (np.ptp(signs, axis=1) == 0))
            found = [(self._named(i, float(np.exp(np.median(rest[i])) * signs[i, 0]), path), i) for i in fits.tolist()]
            if found:
                price = [cost(named) + 0.01 * sum(map(abs, self.powers[i].values())) for named, i in found]
                return found[int(np.argmin(price))][0]
            eps = self._other_eps(c)
            if eps is not None:
                words = f"is computed with eps = {eps:.3g}, and forward has eps = {self.norm.eps:.3g}"
                return [Mistake("eps", words, "Use forward's eps")]
        if np.max(np.abs(c - 1)) < 5e-3:
            words = "is right to a few digits only, as if rounded to a narrower type"
            return [Mistake("precision", words, "Compute in float64", 2.0)]
        words = "is weighted differently in each feature, as if by statistics of other data"
        return [Mistake("statistics", words, "Use the mean and variance that forward used", 3.0)]

    def _other_eps(self, c: Array) -> float | None:
        """The eps with which forward's root would leave the factors `c`, if there is one."""
        for power in (1, 3, 2) if self.norm.spelling == "standard" and np.all(c > 0) else ():
            eps = self.sigma**2 / c ** (2 / power) - self.var
            if np.all(eps > -1e-12) and np.ptp(eps) < 1e-5 * float(np.median(eps)):
                return float(np.median(eps))
        return None

    def _named(self, i: int, k: float, path: str) -> list[Mistake]:
        """The mistakes behind a product of powers and a number."""
        found: list[Mistake] = []
        powers = dict(self.powers[i])
        sigma, mean = powers.pop("sigma", 0), powers.pop("mean", 0)
        if sigma == 1 and mean == -1:
            words = "is divided by the mean where sigma = sqrt(var + eps) belongs"
            found.append(Mistake("mean for sigma", words, "Divide by sqrt(var + eps), not by the mean"))
            sigma = mean = 0
        if sigma == 1 and abs(k * self.norm.n - 1) < 1e-8:
            words = "has 1 / N where 1 / sigma = 1 / sqrt(var + eps) belongs"
            found.append(Mistake("1/N for 1/sigma", words, "Replace 1 / N by 1 / sqrt(var + eps)"))
            sigma, k = 0, 1.0
        if sigma:
            found.append(_sigma(sigma, path))
        if mean:
            words = f"is {'multiplied' if mean > 0 else 'divided'} by the mean"
            found.append(Mistake("mean", words, "Take that factor out"))
        for name, power in powers.items():
            found.append(_gamma(power, path) if name == "gamma" else Mistake(*self.roots[int(name)][:3]))
        return [*number(k, self.norm), *found]


def _sigma(power: int, path: str) -> Mistake:
    """A wrong power of sigma = sqrt(var + eps)."""
    should = {"dgamma": -1, "dbeta": 0, "var": -3}.get(path, -1)
    has = should + power
    words = f"carries sigma**{has} where sigma**{should} belongs (sigma = sqrt(var + eps))"
    if should == -1 and has == -2:
        words = "is divided by var + eps where sqrt(var + eps) belongs"
    if should == -1 and has == 0:
        words = "is not divided by sqrt(var + eps)"
        words += ": it uses x - mean where xhat belongs" if path == "dgamma" else ""
    by = f"sqrt(var + eps){f'**{abs(power)}' if abs(power) > 1 else ''}"
    return Mistake("sigma", words, f"{'Divide' if power > 0 else 'Multiply'} it by {by}", same="sigma")


def _gamma(power: int, path: str) -> Mistake:
    """A wrong power of gamma."""
    same = f"gamma {power}"
    if path in ("dgamma", "dbeta"):
        by = f"{'multiplied' if power > 0 else 'divided'} by gamma{'' if abs(power) == 1 else f'**{abs(power)}'}"
        return Mistake("gamma", f"is {by}, which has no place in it", "Use dy itself there, not dy * gamma", same=same)
    once = "Multiply by gamma once, in dxhat = dy * gamma"
    if power == -1:
        return Mistake("gamma missing", "lacks the factor gamma", "Start from dxhat = dy * gamma", same=same)
    if power > 0:
        return Mistake("gamma squared", f"carries gamma**{power + 1} where gamma belongs", once, same=same)
    return Mistake("gamma inverse", "is divided by gamma where it should be multiplied", once, same=same)


def cost(mistakes: Sequence[Mistake]) -> float:
    """How much a list of mistakes asks to be believed; the same mistake in several places counts once."""
    return sum({mistake.key: mistake.cost for mistake in mistakes}.values()) + 0.01 * len(mistakes)
