"""Names for what a factor says: sign, count, gamma, sigma, eps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engine.node import Array
from .normalisation import Normalisation

RTOL = 1e-7  # how well an explanation must reproduce what came back, of its largest entry


@dataclass(frozen=True)
class Factor:
    """One reason why a term isn't what it should be; `key` is the same for the same mistake elsewhere."""

    kind: str
    key: str
    words: str
    repair: str
    cost: float = 1.0

    @classmethod
    def of(cls, kind: str, words: str, repair: str) -> Factor:
        """A reason that its own words tell from others."""
        return cls(kind, words, words, repair)


def plural(words: str) -> str:
    """A reason, which begins with its verb, said of several terms."""
    verb, _, rest = words.partition(" ")
    return f"{ {'is': 'are', 'has': 'have'}.get(verb, verb.removesuffix('s')) } {rest}"


def number(k: float, norm: Normalisation) -> list[Factor]:
    """What a plain factor `k` on a term says; nothing where it is 1."""
    if abs(k - 1) < 1e-8:
        return []
    if abs(k) < 1e-8:
        return [Factor("missing", "missing", "is missing", "Add it")]
    if abs(k + 1) < 1e-8:
        return [Factor("sign", "sign", "has the wrong sign", "Flip its sign")]
    n = norm.n
    # In words and not in figures: the run that told may have other lengths than the caller's inputs.
    named = [
        (float(n), "sum for mean", "is N times too large: a sum over the batch is not divided by N", "1 / N"),
        (1 / n, "mean for sum", "is N times too small: it is divided by N once too often", "N"),
        (n / (n - 1), "N-1", "is divided by N - 1 where N belongs", "(N - 1) / N"),
        ((n - 1) / n, "N-1", "is divided by N where N - 1 belongs", "N / (N - 1)"),
        (2.0, "factor", "is twice what it should be", "1/2"),
        (0.5, "factor", "is half of what it should be: a factor 2 is missing", "2"),
    ]
    for some in _subsets(norm.x.ndim):
        other = math.prod([norm.x.shape[i] for i in some])
        if other not in (1, n):
            what = "the size of x" if len(some) == norm.x.ndim else f"the length of axis {' and '.join(map(str, some))}"
            words = f"is divided by {what} where N, the number of values in one mean, belongs"
            named.append((n / other, "wrong count", words, "that length and divide by N"))
    for value, kind, words, by in named:
        for sign in (1, -1):
            if abs(k / (sign * value) - 1) < 1e-8:
                found = [Factor(kind, kind + words, words, f"Multiply it by {by}")]
                return found if sign == 1 else [*number(-1.0, norm), *found]
    words = f"is weighted {k:.6g} times what it should be"
    return [Factor("weight", f"weight {k:.8g}", words, f"Divide it by {k:.6g}", 1.2)]


def _subsets(ndim: int) -> list[tuple[int, ...]]:
    return [axes for size in range(1, ndim + 1) for axes in itertools.combinations(range(ndim), size)]


class Dictionary:
    """The factors, one a feature, that gamma, sigma, eps and the mean can put on a term of the gradient."""

    def __init__(self, norm: Normalisation):
        self.norm = norm
        self.n, self.features = norm.n, norm.features
        gamma = norm.rows(norm.gamma)
        self.gamma_per_feature = bool(np.ptp(gamma, axis=1).max() == 0)
        self.sigma, self.var, mean = (norm.rows(values)[:, 0] for values in (norm.sigma, norm.var, norm.mean))
        bases: list[tuple[str, Array, Sequence[int]]] = [
            ("sigma", self.sigma, range(-4, 7)),
            ("mean", mean, range(-1, 2)),
        ]
        if self.gamma_per_feature:
            bases += [("gamma", gamma[:, 0], range(-3, 3)), ("sign of gamma", np.sign(gamma[:, 0]), range(2))]
        tables = [self._powers(bases)]
        for name, base in self._other_roots():
            tables.append(self._powers([*bases, (name, base, (-2, -1, 1, 2, 3))]))
        self.grids = [(names, grid) for names, grid, _, _ in tables]
        self.logs = np.concatenate([logs for _, _, logs, _ in tables])
        self.signs = np.concatenate([signs for _, _, _, signs in tables])

    def _powers(self, bases: list[tuple[str, Array, Sequence[int]]]) -> tuple[list[str], Array, Array, Array]:
        """Every product of powers of the bases that tell features apart: names, powers, logs and signs."""
        bases = [(n, b, powers) for n, b, powers in bases if np.all(b != 0) and np.ptp(b) > 1e-9 * np.max(np.abs(b))]
        grid = np.array(list(itertools.product(*[powers for _, _, powers in bases])), dtype=int)
        values = np.array([base for _, base, _ in bases]).reshape(len(bases), self.features)
        odd = (grid % 2) @ (values < 0) % 2
        return [name for name, _, _ in bases], grid, grid @ np.log(np.abs(values)), 1.0 - 2.0 * odd

    def _parts(self, i: int) -> dict[str, int]:
        """What product `i` is made of."""
        for names, grid in self.grids:
            if i < len(grid):
                return {name: power for name, power in zip(names, grid[i].tolist(), strict=True) if power}
            i -= len(grid)
        raise IndexError(i)

    def _other_roots(self) -> list[tuple[str, Array]]:
        """What is written for sigma, as a ratio of the right one to it."""
        sigma, var, n, eps = self.sigma, self.var, self.n, self.norm.eps
        if self.norm.spelling == "standard":
            return [
                ("no eps", sigma / np.sqrt(var)),
                ("eps outside", sigma / (np.sqrt(var) + eps)),
                ("eps outside", sigma / (np.sqrt(var) + np.sqrt(eps))),
                ("eps squared", sigma / np.sqrt(var + eps**2)),
                ("N-1", sigma / np.sqrt(var * n / (n - 1) + eps)),
            ]
        if self.norm.spelling == "outside":
            return [("no eps", sigma / np.sqrt(var)), ("eps inside", sigma / np.sqrt(var + eps))]
        return [("N", sigma / np.sqrt(var + eps))] if self.norm.spelling == "unbiased" else []

    def explain(self, c: Array, path: str) -> list[Factor]:
        """Why a term's factors, one a feature, are `c`; nothing where they are 1."""
        scale = float(np.max(np.abs(c)))
        if scale < 1e-9:
            return number(0.0, self.norm)
        if np.ptp(c) < 1e-7 * scale:
            return number(float(np.median(c)), self.norm)
        if np.all(c != 0) and self.features > 2:
            rest, signs = np.log(np.abs(c)) - self.logs, self.signs * np.sign(c)
            fits = (np.ptp(rest, axis=1) < 1e-7) & (np.ptp(signs, axis=1) == 0)
            best: tuple[float, list[Factor]] | None = None
            for i in np.flatnonzero(fits).tolist():
                parts = self._parts(i)
                named = self._named(parts, float(np.exp(np.median(rest[i])) * signs[i, 0]), path)
                price = cost(named) + 0.01 * sum(map(abs, parts.values()))
                best = (price, named) if best is None or price < best[0] else best
            if best is not None:
                return best[1]
            eps = self._other_eps(c)
            if eps is not None:
                words = f"is computed with eps = {eps:.3g}, and forward has eps = {self.norm.eps:.3g}"
                return [Factor("eps", "eps", words, "Use forward's eps")]
        if np.max(np.abs(c - 1)) < 5e-3:
            words = "is right to a few digits only, as if rounded to a narrower type"
            return [Factor("precision", "precision", words, "Compute in float64", 2.0)]
        words = "is weighted differently in each feature, as if by statistics of other data"
        return [Factor("statistics", "statistics", words, "Use the mean and variance that forward used", 3.0)]

    def _other_eps(self, c: Array) -> float | None:
        """The eps with which forward's root would leave the factors `c`, if there is one."""
        if self.norm.spelling == "standard" and np.all(c > 0):
            for power in (1, 3, 2):
                eps = self.sigma**2 / c ** (2 / power) - self.var
                if np.all(eps > -1e-12) and np.ptp(eps) < 1e-5 * float(np.median(eps)):
                    return float(np.median(eps))
        return None

    def _named(self, parts: dict[str, int], k: float, path: str) -> list[Factor]:
        found: list[Factor] = []
        parts = dict(parts)
        sigma, mean = parts.pop("sigma", 0), parts.pop("mean", 0)
        if sigma == 1 and mean == -1:
            words = "is divided by the mean where sigma = sqrt(var + eps) belongs"
            found.append(
                Factor("mean for sigma", "mean for sigma", words, "Divide by sqrt(var + eps), not by the mean")
            )
            sigma = mean = 0
        if sigma == 1 and abs(k * self.n - 1) < 1e-8:
            words = "has 1 / N where 1 / sigma = 1 / sqrt(var + eps) belongs"
            found.append(Factor("1/N for 1/sigma", "1/N for 1/sigma", words, "Replace 1 / N by 1 / sqrt(var + eps)"))
            sigma, k = 0, 1.0
        if sigma:
            found.append(self._sigma(sigma, path))
        if mean:
            word = "is multiplied by" if mean > 0 else "is divided by"
            found.append(Factor("mean", f"mean {mean}", f"{word} the mean", "Take that factor out"))
        for name, power in parts.items():
            if name == "sign of gamma":
                found.append(Factor("gamma", name, "has |gamma| in place of gamma", "Use gamma with its sign"))
            elif name == "gamma":
                found.append(gamma_power(power, path))
            else:
                found.append(_eps(name))
        return [*number(k, self.norm), *found]

    def _sigma(self, power: int, path: str) -> Factor:
        """A wrong power of sigma = sqrt(var + eps)."""
        has = {"dgamma": -1, "dbeta": 0, "var": -3}.get(path, -1) + power
        should = has - power
        words = f"carries sigma**{has} where sigma**{should} belongs (sigma = sqrt(var + eps))"
        if path in ("direct", "mean", "dgamma") and has == -2:
            words = "is divided by var + eps where sqrt(var + eps) belongs"
        if path in ("direct", "mean", "dgamma") and has == 0:
            words = "is not divided by sqrt(var + eps)"
            if path == "dgamma":
                words += ": it uses x - mean where xhat belongs"
        by = f"sqrt(var + eps)**{-power}" if abs(power) > 1 else "sqrt(var + eps)"
        repair = f"Multiply it by {by}" if power < 0 or abs(power) > 1 else f"Divide it by {by}"
        return Factor("sigma", "sigma", words, repair)


def gamma_power(power: int, path: str) -> Factor:
    if path in ("dgamma", "dbeta"):
        word = "multiplied" if power > 0 else "divided"
        extra = f"is {word} by gamma{'' if abs(power) == 1 else f'**{abs(power)}'}, which has no place in it"
        return Factor("gamma", f"gamma {power}", extra, "Use dy itself there, not dy * gamma")
    if power == -1:
        return Factor("gamma missing", "gamma -1", "lacks the factor gamma", "Start from dxhat = dy * gamma")
    if power > 0:
        words = f"carries gamma**{power + 1} where gamma belongs"
        return Factor("gamma squared", f"gamma {power}", words, "Multiply by gamma once, in dxhat = dy * gamma")
    words = "is divided by gamma where it should be multiplied"
    return Factor("gamma inverse", f"gamma {power}", words, "Multiply by gamma, in dxhat = dy * gamma")


def _eps(name: str) -> Factor:
    told = {
        "no eps": ("eps missing", "leaves eps out of sqrt(var + eps)", "Put forward's eps back under the root"),
        "eps outside": ("eps outside", "has eps outside the root, forward has it inside", "Use sqrt(var + eps)"),
        "eps inside": ("eps outside", "has eps inside the root, forward has it outside", "Use sqrt(var) + eps"),
        "eps squared": ("eps", "has eps**2 where forward has eps", "Use sqrt(var + eps)"),
        "N-1": ("N-1", "takes the variance over N - 1, forward over N", "Use the variance that forward used (ddof=0)"),
        "N": ("N-1", "takes the variance over N, forward over N - 1", "Use the variance that forward used (ddof=1)"),
    }
    kind, words, repair = told[name]
    return Factor(kind, name, words, repair)


def cost(factors: list[Factor]) -> float:
    """How much a list of reasons asks to be believed."""
    return sum(factor.cost for factor in factors)
