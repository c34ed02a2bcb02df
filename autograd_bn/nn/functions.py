"""The operations that layers are made of, each with its derivative. Images are (N, H, W, C), features last."""

from typing import Any

import numpy as np

from ..engine import Tensor, reshape, where
from ..engine.primitive import primitive
from ..engine.tensor import array_of, values_of

Pair = tuple[int, int]


def operand(value: Any, name: str) -> Any:
    """A tensor as it is, all else as an array; `TypeError` for tensors in a list."""
    if value is None or isinstance(value, str):
        raise TypeError(f"{name} is a {type(value).__name__}, expected an array or a tensor")
    return value if isinstance(value, Tensor) else array_of(value, name)


def _rows(x: Any) -> Any:
    return x if x.ndim == 2 else reshape(x, (-1, x.shape[-1]))


def _input_gradient(g: Any, weight: Any) -> Any:
    return g @ weight if g.ndim == 2 else reshape(_rows(g) @ weight, (*g.shape[:-1], weight.shape[1]))


@primitive(_input_gradient, lambda g, x: _rows(g).T @ _rows(x), lambda g: _rows(g))
def linear(x: Any, weight: Any, bias: Any, /) -> Any:
    """`x @ weight.T + bias`: x (..., in), weight (out, in), bias (out,) or None; the result is (..., out).

    >>> from autograd_bn.nn.functions import linear
    >>> linear([[1.0, 2.0]], [[3.0, 4.0]], [0.5])
    array([[11.5]])
    """
    y = _rows(x) @ weight.T  # one product, where NumPy would make one for each leading index
    if bias is not None:
        y = np.add(y, bias, out=y if y.dtype == bias.dtype else None)
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], len(weight))


@primitive(lambda g, shape, stride, padding: fold(g, shape, stride, padding), view=True)
def windows(x: Any, /, size: Pair, stride: Pair, padding: Pair, fill: float = 0.0) -> Any:
    """Every window of `x` (N, H, W, C): shape (N, rows, columns, *size, C), a view unless there is padding.

    >>> from autograd_bn.nn.functions import windows
    >>> windows(np.arange(9.0).reshape(1, 3, 3, 1), (2, 2), (1, 1), (0, 0))[0, 0, 1, :, :, 0]
    array([[1., 2.],
           [4., 5.]])
    """
    if any(padding):
        (n, height, width, channels), (top, left) = x.shape, padding
        padded = np.full((n, height + 2 * top, width + 2 * left, channels), fill, dtype=x.dtype)
        padded[:, top : top + height, left : left + width] = x
        x = padded
    view = np.lib.stride_tricks.sliding_window_view(x, size, axis=(1, 2))
    return view[:, :: stride[0], :: stride[1]].transpose(0, 1, 2, 4, 5, 3)


@primitive(lambda g, shape, stride, padding: windows(g, shape[3:5], stride, padding))
def fold(x: Any, /, to: tuple[int, ...], stride: Pair, padding: Pair) -> Any:
    """Windows added up at their places in zeros of shape `to`: the transpose of `windows`."""
    n, height, width, channels = to
    _, rows, columns, down, across, _ = x.shape
    top, left = padding
    out = np.zeros((n, height + 2 * top, width + 2 * left, channels), dtype=x.dtype)
    for i in range(down):
        for j in range(across):
            last_row, last_column = i + stride[0] * rows, j + stride[1] * columns
            out[:, i : last_row : stride[0], j : last_column : stride[1]] += x[:, :, :, i, j]
    return out[:, top : top + height, left : left + width]


def _max_pool_gradient(g: Any, x: Any, out: Any, shape: Any, size: Pair, stride: Pair, padding: Pair) -> Any:
    n, rows, columns, channels = g.shape
    view = windows(values_of(x), size, stride, padding, -np.inf).reshape(n, rows, columns, size[0] * size[1], channels)
    first = (view == values_of(out)[:, :, :, None]) | (view != view)  # or a NaN
    if any(padding):  # which never wins, not even among -inf
        first &= windows(np.ones(shape, bool), size, stride, padding).reshape(first.shape)
    for i in range(size[0] * size[1] - 1):
        first[:, :, :, i + 1 :] &= ~first[:, :, :, i : i + 1]
    over = where(first, reshape(g, (n, rows, columns, 1, channels)), 0)
    return fold(reshape(over, (n, rows, columns, *size, channels)), shape, stride, padding)


@primitive(_max_pool_gradient)
def max_pool(x: Any, /, size: Pair, stride: Pair, padding: Pair) -> Any:
    """The largest element of every window of `x` (N, H, W, C); the first of several gets the gradient."""
    return np.max(windows(x, size, stride, padding, -np.inf), axis=(3, 4))
