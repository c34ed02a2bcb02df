"""Published derivations of the gradient of batch norm, written out as functions and judged by the referee.

Each follows its text to the letter. Where a text writes sigma for the root of variance plus eps, so does the
function. What was lost when a text was copied (signs, hats, minus exponents) is not held against it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np

from autograd_bn import Verdict, check_backward

EPS = 1e-5


@dataclass(frozen=True)
class Derivation:
    """A pair of functions taken from a text: who wrote it, and which of its formulas this is."""

    source: str
    formula: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]

    def judge(self) -> Verdict:
        """The referee's verdict, on inputs of this pair's own kind."""
        rng = np.random.default_rng(2015)
        x, gamma, beta = rng.normal(size=(6, 4)) + rng.normal(size=4), rng.uniform(0.5, 2, size=4), rng.normal(size=4)
        named = {"x": x, "gamma": gamma, "beta": beta, "u": x, "b": beta}
        names = signature(self.forward).parameters
        return check_backward(self.forward, self.backward, tuple([named[name] for name in names]))


# --- Ioffe and Szegedy -------------------------------------------------------------------------------------


def batch_norm(x: Any, gamma: Any, beta: Any) -> Any:
    """Algorithm 1 of Ioffe and Szegedy (2015)."""
    mean = np.mean(x, axis=0)
    var = np.mean((x - mean) ** 2, axis=0)
    xhat = (x - mean) / np.sqrt(var + EPS)
    return gamma * xhat + beta, (x, gamma, mean, var, xhat)


def ioffe_szegedy_arxiv(dy: Any, cache: Any) -> Any:
    """The six equations of section 3, with the sum of -2 (x - mean) in the gradient of the mean."""
    x, gamma, mean, var, xhat = cache
    m = len(x)
    dxhat = dy * gamma
    dvar = np.sum(dxhat * (x - mean) * -0.5 * (var + EPS) ** -1.5, axis=0)
    dmean = np.sum(dxhat * -1 / np.sqrt(var + EPS), axis=0) + dvar * np.sum(-2 * (x - mean), axis=0) / m
    dx = dxhat / np.sqrt(var + EPS) + dvar * 2 * (x - mean) / m + dmean / m
    return {"dx": dx, "dgamma": np.sum(dy * xhat, axis=0), "dbeta": np.sum(dy, axis=0)} | {
        "dxhat": dxhat,
        "dvar": dvar,
        "dmean": dmean,
    }


def ioffe_szegedy_short(dy: Any, cache: Any) -> Any:
    """The same equations without that sum, as the proceedings print them."""
    x, gamma, mean, var, xhat = cache
    m = len(x)
    dxhat = dy * gamma
    dvar = np.sum(dxhat * (x - mean) * -0.5 * (var + EPS) ** -1.5, axis=0)
    dmean = np.sum(dxhat * -1 / np.sqrt(var + EPS), axis=0)
    dx = dxhat / np.sqrt(var + EPS) + dvar * 2 * (x - mean) / m + dmean / m
    return {"dx": dx, "dgamma": np.sum(dy * xhat, axis=0), "dbeta": np.sum(dy, axis=0)} | {
        "dxhat": dxhat,
        "dvar": dvar,
        "dmean": dmean,
    }


# --- "Batch normalization overview": a computational graph view --------------------------------------------


def overview_code_forward(x: Any, gamma: Any) -> Any:
    """The training branch of the post's code; it has no beta, and eps is 1e-8."""
    mean = x.mean(axis=0)
    var = x.var(axis=0)
    rstd = 1.0 / np.sqrt(var + 1e-8)
    normed = (x - mean) * rstd
    return normed * gamma, (rstd, normed, gamma)


def overview_code_backward(grad: Any, cache: Any) -> Any:
    """The post's code for the backward pass."""
    rstd, normed, gamma = cache
    n = np.prod(grad.shape[:-1])
    g_gamma = np.multiply(grad, normed)
    g_gamma = g_gamma.sum(axis=0)
    x_ = grad - normed * g_gamma * 1.0 / n
    x_ = rstd * gamma * x_
    return x_ - x_.mean(axis=0), g_gamma


def overview_formulas_forward(x: Any, gamma: Any) -> Any:
    """The post's graph: m, centred, v, normalised, scaled; without eps, as it is written there."""
    m = np.mean(x, axis=0)
    centred = x - m
    v = np.mean(centred**2, axis=0)
    xhat = centred * v**-0.5
    return gamma * xhat, (gamma, centred, v, xhat)


def overview_formulas_backward(dy: Any, cache: Any) -> Any:
    """The post's chain of deltas, from the output back to x."""
    gamma, centred, v, xhat = cache
    n = len(dy)
    dxhat = gamma * dy
    dv = -0.5 * v**-1.5 * np.sum(dxhat * centred, axis=0)
    dsquare = dv / n
    dcentred = 2 * dsquare * centred + v**-0.5 * dxhat
    dm = -np.sum(dcentred, axis=0)
    return {
        "dx": dcentred + dm / n,
        "dgamma": np.sum(dy * xhat, axis=0),
        "dxhat": dxhat,
        "dv": dv,
        "dcentred": dcentred,
        "dm": dm,
    }


def overview_simplified_backward(dy: Any, cache: Any) -> Any:
    """The post's last line: one formula for the gradient of the centred input, then centring."""
    gamma, _, v, xhat = cache
    n = len(dy)
    dcentred = gamma * v**-0.5 * (dy - np.sum(dy * xhat, axis=0) * xhat / n)
    return dcentred - np.sum(dcentred, axis=0) / n, np.sum(dy * xhat, axis=0)


# --- "Gradient Calculation For Batch Normalization" --------------------------------------------------------


def calculation_first(da: Any, cache: Any) -> Any:
    """The post's first lines for the mean and the variance, and its formula for the input."""
    x, gamma, mean, var, xhat = cache
    m = len(x)
    sigma = np.sqrt(var + EPS)
    dxhat = gamma * da
    dvar = -1 / (2 * sigma**3) * np.sum(dxhat * (x - mean), axis=0)
    dmean = -1 / sigma * np.sum(dxhat, axis=0) - 2 * dvar * np.sum(x - mean, axis=0) / m
    dx = dxhat * (1 / m) + dmean * (1 / m) + dvar * (2 * (x - mean) / m)
    return dx, np.sum(da * xhat, axis=0), np.sum(da, axis=0)


def calculation_last(da: Any, cache: Any) -> Any:
    """The post's last lines, with gamma and the incoming gradient put in."""
    x, gamma, mean, var, xhat = cache
    m = len(x)
    sigma = np.sqrt(var + EPS)
    weighted = np.sum(da * gamma * (x - mean), axis=0)
    dvar = -1 / (2 * sigma**3) * weighted
    dmean = -gamma / mean * np.sum(da, axis=0) + 1 / sigma**3 * weighted * np.sum(x - mean, axis=0) / m
    dx = da * (gamma / m) + dmean * (1 / m) + dvar * (2 * (x - mean) / m)
    return dx, np.sum(da * xhat, axis=0), np.sum(da, axis=0)


# --- The example with a bias, from Ioffe and Szegedy, section 2 --------------------------------------------


def shift_and_centre(u: Any, b: Any) -> Any:
    """x = u + b, then x - E[x]."""
    x = u + b
    return x - np.mean(x, axis=0), None


def ignoring_the_mean(dxhat: Any, cache: Any) -> Any:
    """The gradient that takes E[x] for a constant: the one that the example warns of."""
    return dxhat, np.sum(dxhat, axis=0)


def mean_as_a_sum(dxhat: Any, cache: Any) -> Any:
    """The gradient with E[x] = sum of x_i, as the question quotes it, without 1 / N."""
    du = dxhat - np.sum(dxhat, axis=0)
    return du, np.sum(du, axis=0)


PAPER = "S. Ioffe, C. Szegedy, *Batch Normalization*, 2015"
OVERVIEW = "*Batch normalization overview*, a blog post with code"
CALCULATION = "*Gradient Calculation For Batch Normalization*, a blog post, 6 July 2020"
REVIEW = "C. Lemaire, *Batch Normalization*, a review"
QUESTION = (
    "*An explanation of the example of why batch normalization has to be done with some care*, question and answer"
)

PUBLISHED = (
    Derivation(PAPER, "arXiv 1502.03167, section 3, six equations", batch_norm, ioffe_szegedy_arxiv),
    Derivation(PAPER, "the same without the sum of -2 (x - mean)", batch_norm, ioffe_szegedy_short),
    Derivation(OVERVIEW, "its code", overview_code_forward, overview_code_backward),
    Derivation(OVERVIEW, "its chain of deltas", overview_formulas_forward, overview_formulas_backward),
    Derivation(OVERVIEW, "its simplified formula", overview_formulas_forward, overview_simplified_backward),
    Derivation(CALCULATION, "dx, with the first line of d mean", batch_norm, calculation_first),
    Derivation(CALCULATION, "dx, with the last line of d mean", batch_norm, calculation_last),
    Derivation(REVIEW, "the step of b that ignores E[x]", shift_and_centre, ignoring_the_mean),
    Derivation(QUESTION, "E[x] as a sum, without 1 / N", shift_and_centre, mean_as_a_sum),
)


def table() -> str:
    """What is found in each derivation, as a Markdown table that says each thing once.

    >>> print(table().splitlines()[0])
    | source | formula | what is found |
    """
    lines = ["| source | formula | what is found |", "|---|---|---|"]
    said = set[str]()
    for derivation in PUBLISHED:
        verdict = derivation.judge()
        found = [finding.what for finding in verdict.diagnosis] or verdict.notes[:1]
        news = [text for text in found if text not in said]
        if len(news) < len(found):
            news.insert(0, "As above." if not news else "As above, and more:")
        source = "" if derivation.source in said else derivation.source
        said |= {derivation.source, *found}
        cells = (source, derivation.formula, " ".join(["right." if verdict.ok else "**wrong.**", *news]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
