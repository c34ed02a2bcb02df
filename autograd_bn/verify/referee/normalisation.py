"""Normalisation recognised by its numbers, and its gradient taken apart into the paths that a mistake can sit on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...batch_norm.arguments import kept_shape
from ...engine.node import Array
from ...engine.operations import count, sum_to
from .run import Inputs, Run


@dataclass
class Normalisation:
    """`y = gamma * (x - mean) / sigma + beta` at the numbers of one run; everything is laid along `x`.

    `spelling` says how sigma comes from the variance: "standard" is sqrt(var + eps), "outside" sqrt(var) + eps,
    "unbiased" takes 1 / (N - 1), "given" has constants for statistics, "centred" has no sigma at all.
    """

    x_name: str
    gamma_name: str | None
    beta_name: str | None
    axes: tuple[int, ...]
    spelling: str
    x: Array
    y: Array
    dy: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    sigma: Array
    eps: float
    true_dx: Array

    @property
    def n(self) -> int:
        """How many values share one mean."""
        return count(self.x.shape, self.axes)

    @property
    def features(self) -> int:
        """How many means there are."""
        return self.x.size // self.n

    @property
    def training(self) -> bool:
        """Whether the statistics are functions of `x`."""
        return self.spelling != "given"

    @property
    def xhat(self) -> Array:
        """The normalised input."""
        return (self.x - self.mean) / self.sigma

    def average(self, values: Array, axes: tuple[int, ...] | None = None) -> Array:
        """The mean over the normalised axes, or over others."""
        return np.mean(values, axis=self.axes if axes is None else axes, keepdims=True)  # type: ignore[no-any-return]

    def rows(self, values: Array) -> Array:
        """An array of `x`'s shape, or one that broadcasts to it, as (features, N)."""
        full = np.broadcast_to(values, self.x.shape)
        return np.moveaxis(full, self.axes, range(-len(self.axes), 0)).reshape(self.features, self.n)

    def paths(self, dxhat: Array | None = None) -> dict[str, Array]:
        """The three terms of dx: direct, through the mean, through the variance."""
        direct = (self.dy * self.gamma if dxhat is None else dxhat) / self.sigma
        through_mean = -self.average(direct) + np.zeros_like(direct)
        through_var = -self.xhat * self.average(direct * self.xhat) * self.var_weight()
        return {"direct": direct, "mean": through_mean, "var": through_var}

    def var_weight(self) -> Any:
        if self.spelling == "centred":
            return 0.0
        if self.spelling == "outside":
            return self.sigma / np.sqrt(self.var)
        return self.n / (self.n - 1) if self.spelling == "unbiased" else 1.0

    def intermediates(self) -> dict[str, Array]:
        """The textbook's intermediate gradients, by the names that people give them."""
        dxhat = self.dy * self.gamma
        centred = self.x - self.mean
        summed = np.sum(dxhat, axis=self.axes, keepdims=True)
        product = np.sum(dxhat * centred, axis=self.axes, keepdims=True)
        weight = self.var_weight()
        found = {"xhat": dxhat}
        if self.training:
            dvar = product * self.sigma**-3 / -2 * weight
            found |= {"var": dvar, "std": product / -(self.sigma**2)}
            found |= {"invstd": product, "mean": -summed / self.sigma}
        return found


ALIASES = {
    "xhat": "xhat xnorm xnormalized xnormalised xn normed normalized normalised hatx xnormal normx",
    "var": "var variance sigma2 sigmasq sigmasquared samplevar batchvar vari v sigsq",
    "mean": "mean mu samplemean batchmean mub avg average m",
    "std": "std sqrtvar sigma sd stddev samplestd",
    "invstd": "ivar invvar invstd rstd istd inversestd invsqrtvar stdinv",
}


def canonical(name: str) -> str | None:
    """The textbook's name for what somebody called `name`."""
    return next((role for role, names in ALIASES.items() if plain(name) in names.split()), None)


def plain(name: str) -> str:
    """A name without underscores and capitals."""
    return name.lower().replace("_", "")


def laid(parameter: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array | None:
    """A parameter so that it broadcasts against `shape`, or None where it can't."""
    kept = kept_shape(shape, axes, keepdims=True)
    if parameter.ndim <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(parameter.shape), reversed(shape), strict=False)
    ):
        return parameter.reshape((1,) * (len(shape) - parameter.ndim) + parameter.shape)
    return parameter.reshape(kept) if parameter.size == math.prod(kept) else None


def recognise(run: Run) -> Normalisation | None:
    """The normalisation that this run computed, if it was one: found from values and true gradients alone."""
    for x_name in run.truth:
        x = run.inputs[x_name]
        if x.shape != run.y.shape or x.ndim == 0 or x.size < 2:
            continue
        for training in (True, False):
            for candidate in _candidates(run, x_name, x):
                found = _training(run, *candidate) if training else _given(run, *candidate)
                if found is not None:
                    return found
    return None


def _axes(ndim: int) -> list[tuple[int, ...]]:
    """The axes a normalisation may run over, the usual ones first."""
    usual = [tuple(range(ndim - 1)), tuple(i for i in range(ndim) if i != 1), (ndim - 1,), tuple(range(1, ndim))]
    every = [c for size in range(ndim, 0, -1) for c in itertools.combinations(range(ndim), size)]
    return [axes for axes in dict.fromkeys([*usual, *every]) if axes]


def _candidates(run: Run, x_name: str, x: Array) -> Iterator[tuple[str, Any, Any, tuple[int, ...], Array, Array]]:
    others: list[str | None] = [name for name in run.truth if name != x_name]
    for axes in _axes(x.ndim):
        if count(x.shape, axes) < 2:
            continue
        for beta_name, gamma_name in itertools.product([*others, None], repeat=2):
            if beta_name is not None and beta_name == gamma_name:
                continue
            beta = np.zeros(1) if beta_name is None else laid(run.inputs[beta_name], x.shape, axes)
            gamma = np.ones(1) if gamma_name is None else laid(run.inputs[gamma_name], x.shape, axes)
            if beta is None or gamma is None or not np.all(gamma):
                continue
            if beta_name is not None and not _is_sum(run.dy, run.truth[beta_name], beta.shape):
                continue
            z = (run.y - beta) / gamma
            if gamma_name is not None and not _is_sum(run.dy * z, run.truth[gamma_name], gamma.shape):
                continue
            yield x_name, gamma_name, beta_name, axes, gamma + np.zeros((1,) * x.ndim), beta + np.zeros((1,) * x.ndim)


def _is_sum(terms: Array, truth: Array, shape: tuple[int, ...]) -> bool:
    return close(np.asarray(sum_to(terms, shape)).reshape(truth.shape), truth, 1e-6)


def _training(
    run: Run, x_name: str, gamma_name: Any, beta_name: Any, axes: tuple[int, ...], gamma: Array, beta: Array
) -> Normalisation | None:
    x, n = run.inputs[x_name], count(run.y.shape, axes)
    z = (run.y - beta) / gamma
    mean = x.mean(axis=axes, keepdims=True)
    var = x.var(axis=axes, keepdims=True)
    if not np.all(var > 0):
        return None
    slope = np.mean(z * (x - mean), axis=axes, keepdims=True) / var
    if not np.all(slope > 0) or not close(slope * (x - mean), z, 1e-8):
        return None
    tries: list[tuple[str, Array, Array]] = [
        ("standard", 1 / slope**2 - var, 1 / slope**2),
        ("unbiased", 1 / slope**2 - var * n / (n - 1), 1 / slope**2),
        ("outside", 1 / slope - np.sqrt(var), 1 / slope**2),
    ]
    if close(slope, np.ones_like(slope), 1e-9):
        tries = [("centred", np.zeros_like(var), np.ones_like(var))]
    for spelling, eps, variance in tries:
        if np.ptp(eps) > 1e-9 * np.max(variance) or np.min(eps) < -1e-9 * np.max(variance):
            continue
        value = max(float(np.median(eps)), 0.0)
        value = 0.0 if value < 1e-14 * np.max(variance) else value
        found = Normalisation(
            x_name,
            gamma_name,
            beta_name,
            axes,
            spelling,
            x,
            run.y,
            run.dy,
            gamma,
            beta,
            mean,
            var,
            1 / slope,
            value,
            run.truth[x_name],
        )
        if close(sum(found.paths().values()), found.true_dx, 1e-6):
            return found
    return None


def _given(
    run: Run, x_name: str, gamma_name: Any, beta_name: Any, axes: tuple[int, ...], gamma: Array, beta: Array
) -> Normalisation | None:
    x = run.inputs[x_name]
    slope = run.truth[x_name] / run.dy / gamma
    mean = x - (run.y - beta) / gamma / np.where(slope == 0, 1, slope)
    if not np.all(slope > 0):
        return None
    first = [np.take(values, [0], axis=axes[0]) for values in (slope, mean)]
    for axis in axes[1:]:
        first = [np.take(values, [0], axis=axis) for values in first]
    if not close(first[0] + np.zeros_like(x), slope, 1e-6) or not close(first[1] + np.zeros_like(x), mean, 1e-6):
        return None
    sigma = 1 / np.median(slope, axis=axes, keepdims=True)
    mean = np.median(mean, axis=axes, keepdims=True)
    if close(sigma, np.ones_like(sigma), 1e-6) or np.size(sigma) < 2:
        return None  # a shift, or a scale: nothing says normalisation
    return Normalisation(
        x_name,
        gamma_name,
        beta_name,
        axes,
        "given",
        x,
        run.y,
        run.dy,
        gamma,
        beta,
        mean,
        sigma**2,
        sigma,
        0.0,
        run.truth[x_name],
    )


def close(a: Any, b: Any, rtol: float) -> bool:
    """Whether two arrays agree to `rtol` of the largest entry of the second."""
    a, b = np.asarray(a), np.asarray(b)
    return a.shape == b.shape and bool(
        np.max(np.abs(a - b), initial=0) <= rtol * max(float(np.max(np.abs(b), initial=0)), 1e-300)
    )


def telling_inputs(norm: Normalisation, inputs: Inputs, rng: np.random.Generator, written: set[int]) -> Inputs:
    """Inputs on which every mistake shows: eps of the variance's size, gamma far from 1, N unlike the features.

    Several features are needed to tell gamma from sigma from a plain number, and several rows to tell the
    paths apart, so short axes are made longer where they may be.
    """
    shape = list(norm.x.shape)
    kept = [i for i in range(len(shape)) if i not in norm.axes]
    free = not written & set(shape)
    if free and norm.training and kept and norm.features < 5:
        shape[kept[-1]] = 5
    grown = math.prod([shape[i] for i in kept])
    n = count(tuple(shape), norm.axes)
    if free and (n < 6 or n > 60 or n in (grown, 2 * grown)):
        for axis in norm.axes[1:]:
            shape[axis] = min(shape[axis], 3)
        rest = math.prod([shape[i] for i in norm.axes[1:]])
        shape[norm.axes[0]] = next(k for k in (7, 11, 13) if k * rest not in (grown, 2 * grown) and k != grown)
    keptdims = kept_shape(tuple(shape), norm.axes, keepdims=True)
    if norm.training:
        sigma = 2 * math.sqrt(norm.eps) if norm.eps > 1e-13 else 1.0
        spread = sigma * rng.uniform(0.6, 1.8, size=keptdims)
        centre = spread * rng.uniform(1.2, 3, size=keptdims)
    else:
        spread, centre = norm.sigma, norm.mean
    told = dict(inputs)
    told[norm.x_name] = centre + spread * rng.normal(size=shape)
    for name in (norm.gamma_name, norm.beta_name):
        if name is not None:
            old = inputs[name].shape
            new = _resized(old, norm.x.shape, tuple(shape), norm.axes)
            told[name] = rng.uniform(0.5, 2, size=new) * rng.choice([-1, 1], size=new)
    return told


def _resized(
    old: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape of a parameter when `x` goes from one shape to another."""
    if old == kept_shape(before, axes):
        return kept_shape(after, axes)
    if old == kept_shape(before, axes, keepdims=True):
        return kept_shape(after, axes, keepdims=True)
    tail = after[len(after) - len(old) :]
    return tuple([1 if k == 1 else new for k, new in zip(old, tail, strict=True)])
