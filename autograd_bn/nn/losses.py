"""The losses: each the mean over the batch, as a tensor of one element."""

from typing import Any

import numpy as np

from ..engine import Tensor, exp, mean, sigmoid, softmax, square, subtract
from ..engine.node import Array
from ..engine.operations import is_half, over
from ..engine.primitive import primitive
from .functions import operand


def _cross_entropy_gradient(g: Any, wanted: Any, logits: Any, labels: Array, kept: Array) -> Any:
    if isinstance(g, Tensor):
        one_hot = labels[..., None] == np.arange(logits.shape[-1])
        return (softmax(logits) - one_hot) * over(g, labels.size), None
    each = over(g, labels.size)
    out = kept * each
    out[_chosen(labels)] -= each
    return out, None


@primitive(_cross_entropy_gradient, joint=True)
def _cross_entropy(logits: Any, labels: Any, /) -> Any:
    shifted = logits - np.maximum.reduce(logits, axis=-1, keepdims=True)
    probabilities = np.exp(shifted)
    total = np.add.reduce(probabilities, axis=-1, keepdims=True)
    probabilities /= total
    losses = np.log(total)[..., 0] - shifted[_chosen(labels)]
    wide = np.float32 if is_half(logits) else None
    loss = np.add.reduce(losses, axis=None, dtype=wide) / labels.size
    return logits.dtype.type(loss), probabilities


def _chosen(labels: Array) -> tuple[Array, ...]:
    """The index of each row's own class among logits, whatever their memory order."""
    return *np.indices(labels.shape, sparse=True), labels


def cross_entropy(logits: Any, labels: Any) -> Any:
    """The mean of -log(softmax(logits)[label]): logits (..., classes), labels (...) integers from 0.

    `TypeError` for labels that aren't integers; `ValueError` for shapes that don't match, a label out of
    range, or no rows at all.

    >>> import autograd_bn as ag
    >>> logits = ag.tensor([[0.0, 0.0]], requires_grad=True)
    >>> loss = ag.nn.cross_entropy(logits, [1])
    >>> loss.backward()
    >>> round(loss.item(), 4), logits.grad
    (0.6931, array([[ 0.5, -0.5]]))
    """
    logits = _floating(logits, "logits")
    labels = np.asarray(operand(labels, "labels"))
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels have dtype {labels.dtype}, expected integers: the index of each row's class")
    if not logits.shape or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"labels have shape {labels.shape}, expected one for each row of logits of shape {logits.shape}"
        )
    if labels.size == 0:
        raise ValueError(f"logits have shape {logits.shape}: the mean loss of no rows is undefined")
    classes = logits.shape[-1]
    if np.minimum.reduce(labels, axis=None) < 0 or np.maximum.reduce(labels, axis=None) >= classes:
        wrong = labels[(labels < 0) | (labels >= classes)].flat[0]
        raise ValueError(f"labels have a {wrong}, expected 0 to {classes - 1} for logits of {classes} classes")
    return _cross_entropy(logits, labels)[0]


def mse_loss(prediction: Any, target: Any) -> Any:
    """The mean of (prediction - target) ** 2, of two arrays of one shape. `ValueError` where shapes differ.

    >>> import autograd_bn as ag
    >>> ag.nn.mse_loss(ag.tensor([1.0, 3.0]), [0.0, 0.0]).item()
    5.0
    """
    prediction, target = _matching(prediction, target, "prediction")
    return mean(square(subtract(prediction, target)))


@primitive(lambda g, logits, targets: g * (sigmoid(logits) - targets), lambda g, logits: -g * logits)
def _logistic_loss(logits: Any, targets: Any, /) -> Any:
    return np.maximum(logits, 0) - logits * targets + np.log1p(exp(-np.abs(logits)))


def binary_cross_entropy_with_logits(logits: Any, targets: Any) -> Any:
    """The mean of -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)), for logits x and targets t of one shape.

    Computed as max(x, 0) - x t + log(1 + exp(-abs(x))), which neither overflows nor cancels. `ValueError`
    where shapes differ.

    >>> import autograd_bn as ag
    >>> ag.nn.binary_cross_entropy_with_logits(ag.tensor([1000.0, -1000.0]), [1.0, 1.0]).item()
    500.0
    """
    logits, targets = _matching(logits, targets, "logits")
    return mean(_logistic_loss(logits, targets))


def _floating(values: Any, name: str) -> Any:
    values = operand(values, name)
    if values.dtype.kind != "f":
        raise TypeError(f"{name} has dtype {values.dtype}, expected floating-point numbers")
    return values


def _matching(values: Any, target: Any, name: str) -> tuple[Any, Any]:
    values = _floating(values, name)
    target = operand(target, "the target")
    if values.shape != target.shape:
        raise ValueError(f"{name} has shape {values.shape} and the target {target.shape}, expected one shape for both")
    if target.dtype.kind not in "fiub":
        raise TypeError(f"the target has dtype {target.dtype}, expected real numbers")
    if values.size == 0:
        raise ValueError(f"{name} has shape {values.shape}: the mean loss of no elements is undefined")
    return values, target
