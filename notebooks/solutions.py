"""The solutions to the exercises of notebook 06, each to be unfolded when one is stuck."""

import html
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from IPython.display import HTML

from autograd_bn.verify.table import PRE


def fold(function: Callable[..., Any]) -> HTML:
    """A function's source, folded, in a notebook and in what is exported of it."""
    source = html.escape(inspect.getsource(function))
    return HTML(f"<details><summary>Solution: <code>{function.__name__}</code></summary>{PRE}{source}</pre></details>")


def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    var = ((x - mean) ** 2).mean(axis=0)
    xhat = (x - mean) / np.sqrt(var + eps)
    y = gamma * xhat + beta
    return y, (xhat, gamma, var, eps)


def backward(dy, cache):
    xhat, gamma, var, eps = cache
    n = len(dy)
    sigma = np.sqrt(var + eps)
    centred = xhat * sigma
    dgamma = (dy * xhat).sum(axis=0)
    dbeta = dy.sum(axis=0)
    dxhat = dy * gamma
    dvar = -0.5 * (dxhat * centred).sum(axis=0) / sigma**3
    dmean = -(dxhat / sigma).sum(axis=0)
    dx = dxhat / sigma + dvar * 2 * centred / n + dmean / n
    return dx, dgamma, dbeta


def simplified(dy, cache):
    xhat, gamma, var, eps = cache
    average = dy.mean(axis=0)
    weighted = (dy * xhat).mean(axis=0)
    dx = gamma / np.sqrt(var + eps) * (dy - average - xhat * weighted)
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)


def by_hand(dloss, cache):
    inputs, labels, w1, gain, w2, diff, var, inv, raw, hidden, counts, total, probs = cache
    n = len(inputs)
    dlogprobs = np.zeros_like(probs)
    dlogprobs[np.arange(n), labels] = -dloss / n
    dprobs = dlogprobs / probs
    dtotal = -(dprobs * counts).sum(axis=1, keepdims=True) / total**2
    dcounts = dprobs / total + dtotal
    dlogits = dcounts * counts
    dhidden, dw2 = dlogits @ w2.T, hidden.T @ dlogits
    dpre = dhidden * (1 - hidden**2)
    dgain, dbias = (dpre * raw).sum(axis=0), dpre.sum(axis=0)
    draw = dpre * gain
    dinv = (draw * diff).sum(axis=0)
    dvar = -0.5 * (var + 1e-5) ** -1.5 * dinv
    ddiff2 = np.broadcast_to(dvar / (n - 1), diff.shape)
    ddiff = draw * inv + 2 * diff * ddiff2
    dmean = -ddiff.sum(axis=0)
    dbefore = ddiff + dmean / n
    dw1, dinputs = inputs.T @ dbefore, dbefore @ w1.T
    return {name: value for name, value in locals().items() if name.startswith("d") and name not in ("dloss", "diff")}
