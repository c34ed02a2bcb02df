"""The operations, each beside its derivative.

A rule computes an input's gradient from `g`, the gradient of the result; see `primitive` for what its other
parameters mean. Rules divide by integers where others would multiply by floats, so that they are exact on
rational numbers. Every function here takes arrays and gives arrays, or takes tensors among them and gives a
recorded tensor.
"""

import builtins
import math
import string
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from .node import Array, mode
from .primitive import primitive
from .tensor import Tensor, values_of
from .words import explained

# What the package exports. Other lists: `words.METHODS`; `derivation.text.FORMS` for code and pages;
# `derivation.expressions.ELEMENTWISE`; exceptions in `drawing.page.formulas`; samples in `tests/test_primitive`.
__all__ = [
    "abs", "add", "broadcast_to", "concatenate", "cos", "cumsum", "divide", "einsum", "exp", "expm1", "log", "log1p",
    "log_softmax", "logsumexp", "matmul", "max", "maximum", "mean", "min", "minimum", "multiply", "negative", "pad",
    "power", "prod", "relu", "repeat", "reshape", "rsqrt", "sigmoid", "sin", "softmax", "sqrt", "square", "stack",
    "stop_gradient", "subtract", "sum", "tanh", "trace", "transpose", "var", "where",
]  # fmt: skip
Axis = int | Sequence[int] | None
_LETTERS = string.ascii_lowercase + string.ascii_uppercase


# --- Elementwise, two inputs -------------------------------------------------------------------------------


@primitive(lambda g: g, lambda g: g)
def add(a: Any, b: Any, /) -> Any:
    """a + b, broadcast."""
    return a + b


@primitive(lambda g: g, lambda g: -g)
def subtract(a: Any, b: Any, /) -> Any:
    """a - b, broadcast."""
    return a - b


@primitive(lambda g, b: g * b, lambda g, a: g * a)
def multiply(a: Any, b: Any, /) -> Any:
    """a * b, broadcast."""
    return a * b


@primitive(lambda g, b: g / b, lambda g, b, out: -g * out / b)
def divide(a: Any, b: Any, /) -> Any:
    """a / b, broadcast."""
    return a / b


def _lowered(a: Any, b: Any) -> Any:
    """b - 1, but where `b` is a constant 0, or both are 0, a number that keeps the power of `a` finite."""
    if isinstance(b, (int, float)):
        return b - 1 if b else 1
    b = b.astype(float) if b.dtype.kind in "iu" else b  # whose b - 1 may wrap
    return where((a == 0) & (b == 0), 1, b - 1)


def _log_of_base(a: Any, b: Any) -> Any:
    """log(a), but 0 where `a` is 0 and its power is not steep."""
    if isinstance(a, (int, float)) and a > 0:
        return math.log(a)
    return log(where((a == 0) & (b >= 0), 1, a))


@primitive(
    lambda g, a, b: g * b * power(a, _lowered(a, b)),
    lambda g, a, b, out: g * out * _log_of_base(a, b),
)
def power(a: Any, b: Any, /) -> Any:
    """a ** b, broadcast. The gradient of `b` needs `a` >= 0. Exact rationals stay exact where `b` is an
    integer or a `Fraction` with denominator 2.
    """
    exact = isinstance(a, Fraction) or isinstance(b, Fraction) or np.result_type(a, b).hasobject
    if exact:
        return np.frompyfunc(_exact_power, 2, 1)(a, b)
    return a * a * a if type(b) is int and b == 3 else a**b  # NumPy's power takes 20 times as long


@primitive(
    lambda g, a, b: where(a < b, 0, where(a == b, g / 2, g)),
    lambda g, a, b: where(b < a, 0, where(a == b, g / 2, g)),
)
def maximum(a: Any, b: Any, /) -> Any:
    """The larger of `a` and `b`, broadcast. Where they are equal each gets half of the gradient."""
    return np.maximum(a, b)


@primitive(
    lambda g, a, b: where(a > b, 0, where(a == b, g / 2, g)),
    lambda g, a, b: where(b > a, 0, where(a == b, g / 2, g)),
)
def minimum(a: Any, b: Any, /) -> Any:
    """The smaller of `a` and `b`, broadcast. Where they are equal each gets half of the gradient."""
    return np.minimum(a, b)


@primitive(None, lambda g, condition: where(condition, g, 0), lambda g, condition: where(condition, 0, g))
def where(condition: Any, a: Any, b: Any, /) -> Any:
    """`a` where `condition` holds, else `b`, broadcast. `condition` is a constant to the derivative."""
    return np.where(condition, a, b)


# --- Elementwise, one input --------------------------------------------------------------------------------


@primitive(lambda g: -g)
def negative(x: Any, /) -> Any:
    """-x."""
    return -x


@primitive(lambda g, out: g * out)
def exp(x: Any, /) -> Any:
    """e to the power `x`."""
    return np.exp(real(x))


@primitive(lambda g, x: g / x)
def log(x: Any, /) -> Any:
    """The natural logarithm."""
    return np.log(real(x))


@primitive(lambda g, out: g / (2 * out))
def sqrt(x: Any, /) -> Any:
    """The square root. On exact rationals it is exact, or raises `ValueError` where the root is irrational."""
    return exact_sqrt(x) if x.dtype == object else np.sqrt(real(x))


@primitive(lambda g, out: g * out * out * out / -2)
def rsqrt(x: Any, /) -> Any:
    """1 / sqrt(x). On exact rationals it is exact, or raises `ValueError` where the root is irrational.

    >>> import autograd_bn as ag
    >>> ag.rsqrt([4.0, 16.0])
    array([0.5 , 0.25])
    """
    return 1 / sqrt(x)


@primitive(lambda g, x: g * (2 * x))
def square(x: Any, /) -> Any:
    """x * x."""
    return x * x


@primitive(lambda g, x: g * np.sign(x))
def abs(x: Any, /) -> Any:
    """The absolute value. Its derivative at 0 is taken as 0."""
    return np.abs(x)


@primitive(lambda g, x: g * cos(x))
def sin(x: Any, /) -> Any:
    """The sine of `x` in radians."""
    return np.sin(real(x))


@primitive(lambda g, x: -g * sin(x))
def cos(x: Any, /) -> Any:
    """The cosine of `x` in radians."""
    return np.cos(real(x))


@primitive(lambda g, x: g / (1 + x))
def log1p(x: Any, /) -> Any:
    """log(1 + x), exact for small `x` too."""
    return np.log1p(real(x))


@primitive(lambda g, out: g * (out + 1))
def expm1(x: Any, /) -> Any:
    """exp(x) - 1, exact for small `x` too."""
    return np.expm1(real(x))


@primitive(lambda g, out: g * (1 - out * out))
def tanh(x: Any, /) -> Any:
    """The hyperbolic tangent."""
    return np.tanh(real(x))


def _logistic_slope(g: Any, out: Any) -> Any:
    slope = 1 - out
    slope *= out  # in place on an array; on a tensor another node
    slope *= g
    return slope


@primitive(_logistic_slope)
def sigmoid(x: Any, /) -> Any:
    """1 / (1 + exp(-x)), without overflow at either end.

    >>> import autograd_bn as ag
    >>> ag.sigmoid([0.0, -1000.0])
    array([0.5, 0. ])
    """
    x = real(x)
    if is_half(x):  # whose exp(12) overflows, though 1 / exp(12) has a place
        return sigmoid(x.astype(np.float32)).astype(np.float16)
    with np.errstate(over="ignore"):  # the inverse of infinity is the right 0
        e = np.exp(-x)
    e += 1
    return np.reciprocal(e, out=e if e.ndim else None)


@primitive(lambda g, out: where(out > 0, g, 0))
def relu(x: Any, /) -> Any:
    """max(x, 0). Its derivative at 0 is taken as 0.

    >>> import autograd_bn as ag
    >>> ag.relu([-1.0, 2.0])
    array([0., 2.])
    """
    return np.maximum(x, 0)


@primitive(lambda g: g)
def _astype(x: Any, /, dtype: Any) -> Any:
    return x.astype(dtype)


def astype(x: Any, dtype: Any) -> Any:
    """`x` converted to `dtype`: to a float type recorded, to any other as a plain array."""
    dtype = np.dtype(dtype)
    return _astype(x, dtype) if dtype.kind == "f" or dtype == x.dtype else x.data.astype(dtype)


@primitive(lambda g: g)
def copy(x: Any, /) -> Any:
    """A copy of `x`."""
    return np.array(x)


@primitive(view=True)
def stop_gradient(x: Any, /) -> Any:
    """`x`, a constant to the derivative: no gradient flows through this node, and a picture shows the cut.

    >>> import autograd_bn as ag
    >>> x = ag.tensor(3.0, requires_grad=True)
    >>> ag.grad(x * ag.stop_gradient(x), [x])
    (array(3.),)
    """
    return x[...]


def is_half(x: Any) -> bool:
    """Whether it is of float16, in whose sums 2048 + 1 is 2048; unpickled, and in either byte order."""
    return getattr(getattr(x, "dtype", None), "char", "") == "e"


def real(x: Any) -> Any:
    """Integers as float64, for functions of real numbers: NumPy would compute small ones in float16."""
    return x.astype(np.float64) if x.dtype.kind in "iub" else x


def exact_sqrt(x: Array) -> Array:
    """The square roots of exact rationals; `ValueError` names the first that is not rational."""
    return np.asarray(np.frompyfunc(_exact_root, 1, 1)(x), dtype=object)


def _exact_root(element: Any) -> Fraction:
    number = Fraction(element)
    if number >= 0:
        root = Fraction(math.isqrt(number.numerator), math.isqrt(number.denominator))
        if root * root == number:
            return root
    raise ValueError(f"the square root of {number} is not rational, so there is no exact answer")


def _exact_power(base: Any, exponent: Any) -> Any:
    half = isinstance(exponent, Fraction) and exponent.denominator == 2
    return _exact_root(base) ** exponent.numerator if half else base**exponent


# --- Sums and other reductions -----------------------------------------------------------------------------


def reduced_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """`axis` of a NumPy reduction as a sorted tuple of non-negative axes."""
    if axis is None or (not ndim and axis in (0, -1)):
        return tuple(range(ndim))
    return tuple(sorted(np.lib.array_utils.normalize_axis_tuple(axis, ndim)))


def place(axis: int, ndim: int) -> int:
    """An axis counted from the front; `AxisError` for one that isn't there."""
    return np.lib.array_utils.normalize_axis_index(axis, ndim)


def uncut(value: Any, name: str) -> Any:
    """A count or an index, as an array if it is a tensor; `TypeError` for one that requires a gradient."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} got a tensor that requires a gradient for a count or an index: pass t.data")
    return value.data if isinstance(value, Tensor) else value


def count(shape: tuple[int, ...], axis: Axis) -> int:
    """How many elements are reduced to one."""
    return math.prod([shape[i] for i in reduced_axes(axis, len(shape))])


def _spread(g: Any, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> Any:
    """The value of a reduction, laid over the shape that was reduced."""
    if not keepdims:
        axes = reduced_axes(axis, len(shape))
        g = reshape(g, tuple([1 if i in axes else n for i, n in enumerate(shape)]))
    return broadcast_to(g, shape)


@primitive(lambda g, shape, axis, keepdims: _spread(g, shape, axis, keepdims))
def sum(x: Any, /, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum over `axis` (all axes by default)."""
    return total(x, axis, keepdims)


def total(x: Any, axis: Axis, keepdims: bool = False) -> Any:
    """The sum of an array, with float16 added in float32: NumPy adds it row by row, and 2048 + 1 is 2048."""
    half = is_half(x)
    out = np.sum(x, axis=axis, keepdims=keepdims, dtype=np.float32 if half else None)
    return out.astype(np.float16) if half else out


def widened(x: Any) -> Any:
    """float16 as float32, for sums inside a formula."""
    return x.astype(np.float32) if is_half(x) else x


def over(g: Any, n: int) -> Any:
    """g / n, in single precision for float16, which has no such counts."""
    return (astype(g, np.float32) if is_half(g) else g) / n


@primitive(lambda g, shape, axis, keepdims: _spread(over(g, count(shape, axis)), shape, axis, keepdims))
def mean(x: Any, /, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean over `axis` (all axes by default)."""
    return np.mean(x, axis=axis, keepdims=keepdims)


@primitive(
    lambda g, x, shape, axis, ddof, keepdims: (
        _spread(g, shape, axis, keepdims) * (2 * over(x - mean(x, axis, True), count(shape, axis) - ddof))
    )
)
def var(x: Any, /, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The variance over `axis` (all axes by default): mean of squared deviations, n - ddof for n."""
    deviation = widened(x - np.mean(x, axis=axis, keepdims=True))
    out = np.mean(deviation * deviation, axis=axis, keepdims=keepdims)
    if ddof:
        n = count(np.shape(x), axis)
        if n <= ddof:
            raise ValueError(f"var over {n} elements needs ddof below {n}, got {ddof}")
        out = out * n / (n - ddof)
    return out.astype(np.float16) if is_half(x) else out


def _share(g: Any, x: Any, out: Any, shape: tuple[int, ...], axis: Axis, keepdims: bool) -> Any:
    """The gradient of an extreme value, in equal parts to all the elements that attain it."""
    extreme = _spread(out, shape, axis, keepdims)
    hit = (x == extreme) | (x != x)
    ties = np.sum(hit, axis=axis, keepdims=keepdims)
    return where(hit, _spread(g / ties.astype(g.dtype), shape, axis, keepdims), 0)


@primitive(_share)
def max(x: Any, /, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest element over `axis` (all axes by default). Ties share the gradient equally."""
    return np.max(x, axis=axis, keepdims=keepdims)


@primitive(_share)
def min(x: Any, /, axis: Axis = None, keepdims: bool = False) -> Any:
    """The smallest element over `axis` (all axes by default). Ties share the gradient equally."""
    return np.min(x, axis=axis, keepdims=keepdims)


@primitive(lambda g, x, shape, axis, keepdims: _spread(g, shape, axis, keepdims) * softmax(x, axis))
def logsumexp(x: Any, /, axis: Axis = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over `axis` (all axes by default), without overflow.

    >>> import autograd_bn as ag
    >>> ag.logsumexp([1000.0, 1000.0])
    array(1000.69314718)
    """
    x = real(x)
    wide = widened(x)
    shift = _finite_max(wide, axis)
    with np.errstate(divide="ignore"):  # where every x is -inf, so is the answer
        out = np.log(np.sum(np.exp(wide - shift), axis=axis, keepdims=True)) + shift
    out = out if keepdims else np.squeeze(out, axis=reduced_axes(axis, np.ndim(x)))
    return out.astype(x.dtype, copy=False)


@primitive(lambda g, out, axis: (g - sum(g * out, axis, True)) * out)
def softmax(x: Any, /, axis: Axis = -1) -> Any:
    """exp(x) / sum(exp(x)) over `axis` (`None`: all axes), without overflow.

    >>> import autograd_bn as ag
    >>> ag.softmax([1.0, 1.0])
    array([0.5, 0.5])
    """
    x = real(x)
    wide = widened(x)
    e = np.exp(wide - _finite_max(wide, axis))
    with np.errstate(invalid="ignore"):  # of nothing but -inf, it is no number
        return (e / np.sum(e, axis=axis, keepdims=True)).astype(x.dtype, copy=False)


@primitive(lambda g, out, axis: g - exp(out) * sum(g, axis, True))
def log_softmax(x: Any, /, axis: Axis = -1) -> Any:
    """log(softmax(x)) over `axis` (`None`: all axes), without overflow or cancellation.

    >>> import autograd_bn as ag
    >>> ag.log_softmax([0.0, -1000.0])
    array([    0., -1000.])
    """
    x = real(x)
    wide = widened(x)
    shifted = wide - _finite_max(wide, axis)
    with np.errstate(divide="ignore", invalid="ignore"):  # of nothing, or of nothing but -inf
        return (shifted - np.log(np.sum(np.exp(shifted), axis=axis, keepdims=True))).astype(x.dtype, copy=False)


@primitive(lambda g, shape, axis: reshape(flip(cumsum(flip(g, axis), axis), axis), shape))
def cumsum(x: Any, /, axis: int | None = None) -> Any:
    """The running sum along `axis` (of all elements in a row by default)."""
    return np.cumsum(x, axis, dtype=np.float32).astype(np.float16) if is_half(x) else np.cumsum(x, axis)


def flip(x: Any, axis: Axis = None) -> Any:
    """x backwards along `axis` (all axes by default)."""
    axes = reduced_axes(axis, np.ndim(x))
    return x[tuple([slice(None, None, -1) if i in axes else slice(None) for i in range(np.ndim(x))])]


def countable(x: Any) -> Any:
    """Small integers as those that NumPy multiplies them in."""
    return multiply(x, np.ones((), np.prod(np.empty(0, x.dtype)).dtype)) if x.dtype.kind in "iub" else x


@explained
def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The product over `axis` (all axes by default), halved again and again, so that a zero hides no derivative."""
    shape = np.shape(x)
    axes = reduced_axes(axis, len(shape))
    kept = [i for i in range(len(shape)) if i not in axes]
    x = countable(reshape(transpose(x, (*axes, *kept)), (count(shape, axes), *[shape[i] for i in kept])))
    while len(x) > 1:
        half, odd = divmod(len(x), 2)
        x = concatenate([x[:half] * x[half:-1], x[-1:]]) if odd else x[:half] * x[half:]
    x = x if len(x) else sum(x, 0, keepdims=True) + 1
    return reshape(x, [1 if i in axes else n for i, n in enumerate(shape) if keepdims or i not in axes])


def _finite_max(x: Any, axis: Axis) -> Any:
    if not x.size:
        return np.zeros((), x.dtype)
    top = np.max(x.real, axis=axis, keepdims=True)
    finite = np.isfinite(top)
    return top if finite.all() else np.where(finite, top, 0)


# --- Shape and place ---------------------------------------------------------------------------------------


@primitive(lambda g, shape: reshape(g, shape), view=True)
def reshape(x: Any, /, shape: int | Sequence[int]) -> Any:
    """`x` in another shape of the same size; one length may be -1."""
    return np.reshape(x, shape)


def _inverse(axes: int | Sequence[int]) -> tuple[int, ...]:
    listed = (axes,) if isinstance(axes, int) else axes
    return tuple(np.argsort([axis % len(listed) for axis in listed]).tolist())


@primitive(lambda g, axes: transpose(g, None if axes is None else _inverse(axes)), view=True)
def transpose(x: Any, /, axes: Sequence[int] | None = None) -> Any:
    """`x` with its axes in the order `axes` (reversed by default)."""
    return np.transpose(x, axes)


@primitive(lambda g, shape: sum_to(g, shape), view=True)
def _broadcast_to(x: Any, /, to: tuple[int, ...]) -> Any:
    return np.broadcast_to(x, to)


@explained
def broadcast_to(x: Any, shape: int | Sequence[int]) -> Any:
    """`x` repeated along new axes and axes of length 1 to `shape`, as broadcasting does."""
    return _broadcast_to(x, (shape,) if isinstance(shape, int) else tuple(shape))


@primitive(lambda g, shape: broadcast_to(g, shape))
def sum_to(x: Any, /, to: tuple[int, ...]) -> Any:
    """`x` summed over the axes that broadcasting from shape `to` would add: the transpose of `broadcast_to`."""
    lead = x.ndim - len(to)
    axes = tuple([i for i in range(x.ndim) if i < lead or to[i - lead] == 1])
    # NumPy adds float16 row by row, and 2048 + 1 is 2048.
    return np.reshape(np.add.reduce(x, axis=axes, dtype=np.float32 if is_half(x) else None), to)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to another."""
    return len(shape) <= len(to) and all(n in (1, k) for n, k in zip(reversed(shape), reversed(to), strict=False))


def _place(shapes: tuple[tuple[int, ...], ...], position: int, axis: int) -> tuple[slice, ...]:
    axis %= len(shapes[position])
    start = 0
    for shape in shapes[:position]:
        start += shape[axis]
    return (slice(None),) * axis + (slice(start, start + shapes[position][axis]),)


@primitive(lambda g, shapes, position, axis: g[_place(shapes, position, axis)])
def _concatenate(*arrays: Any, axis: int) -> Any:
    return np.concatenate(arrays, axis=axis)


@explained
def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """The arrays joined along an axis that they have (`None`: flattened first)."""
    if axis is None:
        return _concatenate(*[reshape(array, -1) for array in arrays], axis=0)
    return _concatenate(*arrays, axis=axis)


@primitive(lambda g, position, out_axis: g[(slice(None),) * out_axis + (position,)])
def _stack(*arrays: Any, out_axis: int) -> Any:
    return np.stack(arrays, axis=out_axis)


@explained
def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """The arrays, all of one shape, joined along a new axis."""
    ndim = np.ndim(arrays[0]) + 1 if len(arrays) else 1
    return _stack(*arrays, out_axis=place(axis, ndim))


@primitive(lambda g, shape, index: scatter(g, index, shape), view=True)
def _getitem(x: Any, /, index: Any) -> Any:
    return np.asarray(x)[index]


def getitem(x: Any, index: Any) -> Any:
    """x[index], with NumPy's basic and advanced indexing."""
    return _getitem(x, tuple(map(_frozen, index)) if isinstance(index, tuple) else _frozen(index))


def _frozen(index: Any) -> Any:
    if isinstance(index, (int, slice, type(None), type(...))):
        return index
    return index.copy() if isinstance(index, np.ndarray) else np.array(index, dtype=None if np.size(index) else int)


@primitive(lambda g, index: _getitem(g, index))
def scatter(x: Any, /, index: Any, to: tuple[int, ...]) -> Any:
    """Zeros of shape `to` with `x` added at `index`: the transpose of indexing."""
    if to and any(isinstance(i, np.ndarray) for i in (index if isinstance(index, tuple) else (index,))):
        lanes = np.broadcast_arrays(*np.indices(to, sparse=True))
        places = np.ravel_multi_index([lane[index] for lane in lanes], to)  # NumPy adds to a line ten times as fast
        flat = np.zeros(math.prod(to), np.float32 if is_half(x) else x.dtype)
        np.add.at(flat, np.ravel(places), np.ravel(x))
        return flat.reshape(to).astype(x.dtype, copy=False)
    out = np.zeros(to, x.dtype)
    out[index] = x[()]  # the number in an array of objects without axes, which would itself become an element
    return out


# --- Products ----------------------------------------------------------------------------------------------


def _matmul_gradient(g: Any, other: Any, shapes: tuple[tuple[int, ...], ...], left: bool) -> Any:
    """The gradient of one factor; a 1-d factor is a row on the left, a column on the right."""
    a, b = shapes
    if len(b) == 1:
        g = reshape(g, (*np.shape(g), 1))
    if len(a) == 1:
        g = reshape(g, (*np.shape(g)[:-1], 1, np.shape(g)[-1]))
    if left:
        other = reshape(other, (-1, 1)) if len(b) == 1 else other
        out = g @ swapaxes(other, -1, -2)
        return reshape(out, np.shape(out)[:-2] + np.shape(out)[-1:]) if len(a) == 1 else out
    other = reshape(other, (1, -1)) if len(a) == 1 else other
    out = swapaxes(other, -1, -2) @ g
    return reshape(out, np.shape(out)[:-1]) if len(b) == 1 else out


@primitive(
    lambda g, b, shapes: _matmul_gradient(g, b, shapes, True),
    lambda g, a, shapes: _matmul_gradient(g, a, shapes, False),
)
def matmul(a: Any, b: Any, /) -> Any:
    """The matrix product, over leading axes broadcast; a 1-d factor is a vector."""
    return a @ b


# --- Spelled with the above --------------------------------------------------------------------------------


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """`x` with two axes exchanged."""
    axes = list(range(np.ndim(x)))
    one, other = place(axis1, len(axes)), place(axis2, len(axes))
    axes[one], axes[other] = axes[other], axes[one]
    return transpose(x, tuple(axes))


def reshaped(function: Any, x: Any, *args: Any) -> Any:
    """`x` in the shape that a function of NumPy's gives an array of its shape."""
    return reshape(x, function(np.empty(np.shape(x), bool), *args).shape)


@explained
def std(x: Any, axis: Axis = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """The standard deviation: the root of `var`."""
    squares = var(x, axis, ddof, keepdims)
    return flat(values_of(squares) == 0, sqrt, squares)  # at 0 the root has no slope, and PyTorch too gives 0


def flat(where_flat: Any, function: Any, x: Any) -> Any:
    """function(x), but 0 with the derivative 0 at some places, where it may have none."""
    return where(where_flat, 0, function(where(where_flat, 1, x))) if np.any(where_flat) else function(x)


@explained
def squeeze(x: Any, axis: Axis = None) -> Any:
    """`x` without the axes of length 1, or without those in `axis`."""
    return reshaped(np.squeeze, x, axis)


def expand_dims(x: Any, axis: int | Sequence[int]) -> Any:
    """`x` with new axes of length 1 at `axis`."""
    return reshaped(np.expand_dims, x, axis)


def ravel(x: Any) -> Any:
    """`x` as one row of elements."""
    return reshape(x, -1)


@primitive(lambda g: g, lambda g, a, b: -g * np.floor(a / b))
def remainder(a: Any, b: Any, /) -> Any:
    """a % b, with the sign of b."""
    return np.remainder(a, b)


def reciprocal(x: Any) -> Any:
    """1 / x."""
    return 1 / x


def clip(x: Any, a_min: Any = None, a_max: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """`x` kept between two bounds."""
    a_min, a_max = min if a_min is None else a_min, max if a_max is None else a_max
    x = x if a_min is None else maximum(x, a_min)
    return x if a_max is None else minimum(x, a_max)


def places(x: Any) -> Any:
    """The places of the elements of `x`, numbered in a row, for what moves these; a watcher sees where they go."""
    numbers, watcher = np.arange(math.prod(np.shape(x))).reshape(np.shape(x)), mode.watcher.get()
    return watcher(x, numbers) if watcher and isinstance(x, Tensor) else numbers


@explained
def repeat(x: Any, repeats: int | Sequence[int], axis: int | None = None) -> Any:
    """Each element of `x` along `axis` (of all in a row by default) so many times."""
    repeats = uncut(repeats, "repeats")
    if isinstance(repeats, Sequence | np.ndarray):
        return getitem(ravel(x), np.repeat(places(x), repeats, axis))
    x, axis = (ravel(x), 0) if axis is None else (x, place(axis, np.ndim(x)))
    return copied(x, np.shape(x), [repeats if i == axis else 1 for i in range(np.ndim(x))], each=True)


def copied(x: Any, shape: Sequence[int], times: Sequence[int], each: bool) -> Any:
    """`x` in a shape, so many times along each axis: each element beside itself, or all of them anew.

    By broadcasting along new axes, whose derivative is a sum, where that of an index adds one by one.
    """
    once, many = list[int](), list[int]()
    for n, k in zip(shape, times, strict=True):
        once += [n] if k == 1 else [n, 1] if each else [1, n]
        many += [n] if k == 1 else [n, k] if each else [k, n]
    return reshape(broadcast_to(reshape(x, once), many), np.multiply(shape, times).tolist())


@explained
def trace(x: Any, offset: int = 0) -> Any:
    """The sum along a diagonal of the first two axes."""
    diagonal = np.diagonal(places(x), offset=offset)
    return sum(getitem(reshape(x, -1), diagonal), -1 if np.ndim(x) > 2 else None)


@primitive(lambda g, shape, widths: g[tuple([slice(a, a + n) for (a, _), n in zip(widths, shape, strict=True)])])
def _pad(x: Any, /, widths: tuple[tuple[int, int], ...], value: Any) -> Any:
    return np.pad(x, widths, constant_values=value)


@explained
def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: Any = 0, **options: Any) -> Any:
    """`x` with a border, so wide on each side of each axis: of `constant_values`, or as NumPy's other modes copy it.

    `ValueError` for modes that compute, as "mean".
    """
    if mode in ("edge", "reflect", "symmetric", "wrap"):
        kind: Any = mode
        if options.get("reflect_type", "even") != "even":
            raise ValueError(f"pad has a rule for reflect_type='even', got {options['reflect_type']!r}")
        return getitem(ravel(x), np.pad(places(x), pad_width, mode=kind, **options))
    if mode != "constant" or options or np.ndim(constant_values):
        raise ValueError(
            f"pad has a rule for one constant, and for the modes edge, reflect, symmetric and wrap, got mode={mode!r}, "
            f"constant_values={constant_values!r}"
        )
    widths = np.broadcast_to(pad_width, (np.ndim(x), 2)).tolist()
    return _pad(x, tuple(map(tuple, widths)), constant_values)


@primitive(
    lambda g, b, terms: _einsum(g, b, (terms[2], terms[1], terms[0])),
    lambda g, a, terms: _einsum(g, a, (terms[2], terms[0], terms[1])),
)
def _einsum(a: Any, b: Any, /, terms: tuple[str, str, str]) -> Any:
    """Two operands; each letter stands in two of the three terms at least, in none of them twice."""
    wide = np.float32 if is_half(a) and is_half(b) else None
    out = np.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", a, b, optimize=True, dtype=wide)
    return out.astype(np.float16) if wide else out


def einsum(subscripts: Any, *operands: Any) -> Any:
    """Einstein's sums of products, as `numpy.einsum`, two operands at a time.

    `ValueError` for subscripts that don't match the operands.

    >>> import autograd_bn as ag
    >>> ag.einsum("ij,j->i", [[1.0, 2.0]], [3.0, 4.0])
    array([11.])
    """
    if not isinstance(subscripts, str):  # operands and lists of axes in turn, and the axes of the result
        parts = (subscripts, *operands)
        operands = parts[: len(parts) // 2 * 2 : 2]
        lists = [_spelled(axes) for axes in (*parts[1::2], *parts[len(parts) // 2 * 2 :])]
        spelled = ",".join(lists[: len(operands)])
        subscripts = f"{spelled}->{lists[-1]}" if len(lists) > len(operands) else spelled
    left, arrow, out = subscripts.replace(" ", "").partition("->")
    shapes = [np.shape(a) for a in operands]
    if "..." in left:
        left, out = _without_ellipsis(left, out, arrow, shapes)
        arrow = "->"
    terms = left.split(",")
    out = out if arrow else "".join(sorted({i for i in left if left.count(i) == 1} - {","}))
    lengths = {(i, n) for term, shape in zip(terms, shapes, strict=False) for i, n in zip(term, shape, strict=False)}
    letters = [i for i, _ in lengths]
    if (
        not all(map(str.isalpha, letters))
        or list(map(len, terms)) != list(map(len, shapes))
        or not set(out) <= set(letters)
        or len(set(letters)) < len(letters)
        or len(set(out)) < len(out)
    ):
        raise ValueError(f"subscripts {subscripts!r} don't spell the axes of operands of shapes {shapes} by letters")
    term, a = "", None
    for k, (other, b) in enumerate(zip(terms, operands, strict=True)):
        later = out + "".join(terms[k + 1 :])
        while twice := next((i for i in other if other.count(i) > 1), None):
            i, j = other.index(twice), other.rindex(twice)
            rest = [axis for axis in range(len(other)) if axis not in (i, j)]
            b = getitem(transpose(b, (i, j, *rest)), (np.arange(np.shape(b)[i]),) * 2)
            other = twice + "".join([other[axis] for axis in rest])
        other, b = _summed(other, b, term + later)
        if k:
            term, a = _summed(term, a, other + later)
            both = "".join([i for i in dict.fromkeys(term + other) if i in later])
            b, other = _einsum(a, b, (term, other, both)), both
        term, a = other, b
    return a if term == out and k else transpose(a, tuple([term.index(i) for i in out]))


def _spelled(axes: Sequence[Any]) -> str:
    """A list of axes by letters."""
    return "".join(["..." if i is ... else _LETTERS[i] for i in axes])


def _without_ellipsis(left: str, out: str, arrow: str, shapes: list[tuple[int, ...]]) -> tuple[str, str]:
    """The terms with letters for the axes that an ellipsis stands for, the last of each the same."""
    terms = left.split(",")
    lengths = [len(shape) - len(term) + 3 for term, shape in zip(terms, shapes, strict=True) if "..." in term]
    free = [i for i in _LETTERS if i not in left + out][: builtins.max(lengths)]
    spelled = [
        term.replace("...", "".join(free[len(free) - (len(shape) - len(term) + 3) :]))
        for term, shape in zip(terms, shapes, strict=True)
    ]
    if not arrow:
        alone = left.replace(".", "")
        out = "..." + "".join(sorted({i for i in alone if alone.count(i) == 1} - {","}))
    if free and "..." not in out:
        raise ValueError(f"subscripts {left!r} have an ellipsis that the result {out!r} has not: write it there too")
    return ",".join(spelled), out.replace("...", "".join(free))


def _summed(term: str, a: Any, kept: str) -> tuple[str, Any]:
    """An operand of `einsum`, summed over the letters that nothing else has."""
    lost = tuple([k for k, i in enumerate(term) if i not in kept])
    return "".join([i for i in term if i in kept]), sum(a, lost) if lost else a
