"""What people get wrong in a term of a gradient: the factor that it leaves, and the words."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .run import Run
from .verdict import Finding

PATHS = {"direct": "the direct path", "mean": "the path through the mean", "var": "the path through the variance"}
Others = Sequence[tuple[float, Mapping[str, int]]]  # factors in runs with other lengths, each with these
RTOL = 1e-7  # how well an explanation must reproduce what came back, of its largest entry


@dataclass(frozen=True)
class Mistake:
    """Why a term isn't what it should be; `cost` is how much that asks to be believed."""

    kind: str
    words: str
    repair: str
    cost: float = 1.0

    def of(self, labels: Sequence[str], gradients: Sequence[str] = ()) -> Finding:
        """The mistake as a finding on these terms of these gradients, which are the terms where there are none."""
        verb, _, rest = self.words.partition(" ")
        repair = self.repair
        if len(labels) > 1:
            verb = {"is": "are", "has": "have", "carries": "carry"}.get(verb, verb.removesuffix("s"))
            repair = repair.replace(" its ", " their ").replace(" it ", " them ")
        what = f"{listed(labels)} {verb} {rest}."
        what = what if what.startswith("d") else what[0].upper() + what[1:]
        return Finding(self.kind, tuple(gradients or labels), what, f"{repair}.")


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


def close(a: Any, b: Any, rtol: float = RTOL) -> bool:
    """Whether two arrays agree to `rtol` of the largest entry of the second."""
    a, b = np.asarray(a), np.asarray(b)
    limit = rtol * max(float(np.max(np.abs(b), initial=0)), 1e-300)
    return a.shape == b.shape and bool(np.max(np.abs(a - b), initial=0) <= limit)


def lengths(run: Run, **known: int) -> dict[str, int]:
    """The lengths that a sum or a mean in this run may go over, by what to call them."""
    shapes = [(f"{name}.shape[{i}]", k) for name, v in run.inputs.items() for i, k in enumerate(np.shape(v))]
    sizes = [(f"{name}.size", np.size(v)) for name, v in run.inputs.items() if np.ndim(v) > 1]
    return {name: n for name, n in (*known.items(), *shapes, ("y.size", run.y.size), *sizes) if n > 1}


# What a factor says: the kind, the words, and the repair; and so for what a length makes of it.
_PLAIN = [
    (2.0, "factor", "is twice what it should be", "Halve it"),
    (0.5, "factor", "is half of what it should be: a factor 2 is missing", "Multiply it by 2"),
]
_COUNTED: list[Any] = [
    (lambda n: n, "sum for mean", "is {0} times too large: a sum stands where a mean belongs", "Divide it by {0}"),
    (lambda n: 1 / n, "mean for sum", "is {0} times too small: a mean stands where a sum belongs", "Sum there"),
    (lambda n: n / (n - 1), "N-1", "is divided by {0} - 1 where {0} belongs", "Divide it by {0}"),
    (lambda n: (n - 1) / n, "N-1", "is divided by {0} where {0} - 1 belongs", "Divide it by {0} - 1"),
    (lambda n: n / (n + 1), "N+1", "is divided by {0} + 1 where {0} belongs", "Divide it by {0}"),
]


def number(k: float, counts: Mapping[str, int], others: Others = ()) -> list[Mistake]:
    """What a plain factor `k` on a term says; nothing where it is 1.

    A length is told from a constant by `others`, the factor and the lengths in runs with other lengths: what is said
    holds in all of them. Where there are none, both are named.
    """
    if abs(k - 1) < 1e-8:
        return []
    if abs(k) < 1e-8:
        return [MISSING]
    mistakes = _said(k, counts)
    for other, there in others:
        also = _said(other, there)
        mistakes = [mistake for mistake in mistakes if mistake in also] or mistakes[:1]
    first = mistakes[0]
    fixed = not others or ("N" not in counts and all(abs(other - k) < 1e-8 for other, _ in others))  # as a constant
    if first.kind in ("sum for mean", "mean for sum") and fixed:
        size = round(max(abs(k), 1 / abs(k)))
        what = f"{size} is a constant that does not belong there" if abs(k) > 1 else f"a factor {size} is missing"
        first = replace(first, words=f"{first.words}, or {what}")
    return [SIGN, first] if k < 0 and first.kind else [SIGN] if k < 0 else [first]


def _said(k: float, counts: Mapping[str, int]) -> list[Mistake]:
    """Everything that a factor other than 0 may say, the likeliest first; its sign apart."""
    counted = [(f(n), *[text.format(name) for text in texts]) for name, n in counts.items() for f, *texts in _COUNTED]
    first = len(_COUNTED) * ("N" in counts)
    rows = [(1.0, "", "", ""), *counted[:first], *_PLAIN, *counted[first:]]
    for (one, n), (other, m) in itertools.permutations(counts.items(), 2):
        rows.append((n / m, "wrong count", f"is divided by {other} where {one} belongs", f"Divide it by {one}"))
    words = f"is {k:.8g} times what it should be"
    last = Mistake("weight", words, f"Find where the factor {k:.8g} comes from", 1.2)
    return [*[Mistake(*texts) for value, *texts in rows if abs(abs(k) / value - 1) < 1e-8], last]


MISSING = Mistake("missing", "is zero", "Compute it by the chain rule")
SIGN = Mistake("sign", "has the wrong sign", "Flip its sign")


def missing(labels: Sequence[str], ways: Sequence[str], formula: str = "") -> Finding:
    """Paths that gradients lack; `formula` is what they add in terms of the direct path."""
    what = f"In {listed(labels)} {listed(ways)} {'is' if len(ways) == 1 else 'are'} missing."
    if {PATHS["mean"], PATHS["var"]} == set(ways):
        what += " The mean and the variance are taken for constants, which is right in inference alone."
    kind = "missing path" if len(ways) == 1 else "inference formula"
    repair = f"{formula}, where direct is the direct path" if formula else f"what flows back on {listed(ways)}"
    return Finding(kind, tuple(labels), what, f"Add {repair}.")


def factor(gradient: Any, truth: Any) -> float | None:
    """The number of which a gradient is its truth times, if there is one."""
    if gradient.shape != truth.shape or not np.any(truth):
        return None
    k = float(np.sum(gradient * truth) / np.sum(truth * truth))
    return k if close(gradient, k * truth, 1e-9) else None


def alone(run: Run, gradient: Any, truth: Any, others: Others = ()) -> Mistake | None:
    """Why one gradient, or one step, is wrong by itself: a number, a transposition, a mask."""
    if gradient.shape != truth.shape:
        return Mistake("shape", f"has shape {gradient.shape} and should have {truth.shape}", "Sum or reshape it")
    if np.max(np.abs(truth), initial=0) <= 1e-12 * np.max(np.abs(gradient), initial=0):
        return Mistake("not zero", "should be zero, since the output doesn't depend on it", "Return zeros")
    if truth.ndim == 2 and truth.shape[0] == truth.shape[1] and close(gradient, truth.T):
        return Mistake("transposed", "is transposed", "Transpose it")
    k = factor(gradient, truth)
    mistakes = [] if k is None else number(k, lengths(run), others)
    if mistakes:
        sign = ", and has the wrong sign" if mistakes[0] is SIGN and len(mistakes) > 1 else ""
        return replace(mistakes[-1], words=mistakes[-1].words + sign)
    if close(gradient, truth, 1e-3):
        digits = int(-np.log10(np.max(np.abs(gradient - truth)) / np.max(np.abs(truth))))
        words = f"is right to {digits} digits only: a number is off, or rounded to a narrower type on the way"
        return Mistake("precision", words, "Compute in float64, and look for a constant cut short")
    if np.any(truth == 0) and close(np.where(truth == 0, 0, gradient), truth):
        words = "is right where it should not be 0, but is not 0 where forward cuts the gradient off"
        return Mistake("mask missing", words, "Multiply it by the mask of forward's maximum, clip or where")
    return None
