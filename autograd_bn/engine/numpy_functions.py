"""NumPy's functions beyond those of `operations`: with NumPy's names and arguments, spelled with the operations.

They are reached through NumPy, as `np.roll(t, 1)`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, reduce
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import operations as ops
from .node import Array
from .operations import Axis, real, reduced_axes
from .primitive import primitive
from .tensor import Tensor, plain, values_of

# --- Elementwise -------------------------------------------------------------------------------------------


def _of_one(ufunc: np.ufunc, rule: Any) -> Callable[..., Any]:
    """An operation that is a ufunc of NumPy's, of one array."""

    def forward(x: Any, /) -> Any:
        return ufunc(real(x))

    return _named(forward, ufunc, rule)


def _of_two(ufunc: np.ufunc, *rules: Any) -> Callable[..., Any]:
    """An operation that is a ufunc of NumPy's, of two arrays."""

    def forward(a: Any, b: Any, /) -> Any:
        return ufunc(a, b)

    return _named(forward, ufunc, *rules)


def _named(forward: Any, ufunc: np.ufunc, *rules: Any) -> Callable[..., Any]:
    forward.__name__ = forward.__qualname__ = ufunc.__name__
    forward.__doc__ = f"`numpy.{ufunc.__name__}`."
    return primitive(*rules)(forward)


tan = _of_one(np.tan, lambda g, out: g * (1 + out * out))
arcsin = _of_one(np.arcsin, lambda g, x: g / ops.sqrt(1 - x * x))
arccos = _of_one(np.arccos, lambda g, x: -g / ops.sqrt(1 - x * x))
arctan = _of_one(np.arctan, lambda g, x: g / (1 + x * x))
sinh = _of_one(np.sinh, lambda g, x: g * cosh(x))
cosh = _of_one(np.cosh, lambda g, x: g * sinh(x))
arcsinh = _of_one(np.arcsinh, lambda g, x: g / ops.sqrt(x * x + 1))
arccosh = _of_one(np.arccosh, lambda g, x: g / (ops.sqrt(x - 1) * ops.sqrt(x + 1)))
arctanh = _of_one(np.arctanh, lambda g, x: g / (1 - x * x))
log2 = _of_one(np.log2, lambda g, x: g / (x * math.log(2)))
log10 = _of_one(np.log10, lambda g, x: g / (x * math.log(10)))
exp2 = _of_one(np.exp2, lambda g, out: g * (out * math.log(2)))
arctan2 = _of_two(np.arctan2, lambda g, a, b: _turned(g, b, a), lambda g, a, b: -_turned(g, a, b))
logaddexp = _of_two(np.logaddexp, lambda g, a, b: g * ops.sigmoid(a - b), lambda g, a, b: g * ops.sigmoid(b - a))
logaddexp2 = _of_two(
    np.logaddexp2,
    lambda g, a, b: g * ops.sigmoid((a - b) * math.log(2)),
    lambda g, a, b: g * ops.sigmoid((b - a) * math.log(2)),
)
hypot = _of_two(np.hypot, lambda g, a, out: g * _quotient(a, out), lambda g, b, out: g * _quotient(b, out))
deg2rad = _of_one(np.deg2rad, lambda g: deg2rad(g))
rad2deg = _of_one(np.rad2deg, lambda g: rad2deg(g))
fmod = _of_two(np.fmod, lambda g: g, lambda g, a, b: -g * np.trunc(a / b))


@primitive(lambda g, x: g * (2 / math.sqrt(math.pi) * ops.exp(-(x * x))))
def erf(x: Any, /) -> Any:
    """The error function, by its Taylor series about the nearest of some points; from 6 on it rounds to 1.

    >>> import autograd_bn as ag
    >>> ag.erf([0.0, 1.0])
    array([0.        , 0.84270079])
    """
    x = real(x)
    size = np.minimum(np.abs(x), 6)
    nearest = np.rint(np.where(size == size, size, 0) * _STEPS).astype(np.intp)
    distance, out = size - nearest / _STEPS, np.zeros(np.shape(x))
    for term in _erf_terms():
        out *= distance
        out += term[nearest]
    return np.copysign(out, x).astype(x.dtype)


_STEPS = 256  # How many of these points lie between two integers.


@cache
def _erf_terms() -> list[Array]:
    """The Taylor coefficients of erf at these points, last first, by the recurrence of Hermite's polynomials."""
    x = np.arange(6 * _STEPS + 1) / _STEPS
    derivatives = [np.array([*map(math.erf, x)]), 2 / math.sqrt(math.pi) * np.exp(-x * x)]
    for n in range(1, 6):
        derivatives.append(-2 * x * derivatives[n] - 2 * (n - 1) * derivatives[n - 1])
    return [d / math.factorial(n) for n, d in enumerate(derivatives)][::-1]


absolute = fabs = ops.abs


def _turned(g: Any, a: Any, b: Any) -> Any:
    """g * a / (a * a + b * b), whose squares may leave the range."""
    radius = hypot(a, b)
    return g * (a / radius) / radius


def _quotient(a: Any, b: Any) -> Any:
    """a / b, and 0 where b is 0."""
    return ops.flat(values_of(b) == 0, lambda b: a / b, b)


def fmax(a: Any, b: Any) -> Any:
    """The larger of a and b, and the one that is a number where the other is not."""
    return ops.where(np.isnan(values_of(a)), b, ops.where(np.isnan(values_of(b)), a, ops.maximum(a, b)))


def fmin(a: Any, b: Any) -> Any:
    """The smaller of a and b, and the one that is a number where the other is not."""
    return ops.where(np.isnan(values_of(a)), b, ops.where(np.isnan(values_of(b)), a, ops.minimum(a, b)))


def float_power(a: Any, b: Any) -> Any:
    """a ** b in float64 at least."""
    return _wide(a) ** _wide(b)


def _wide(x: Any) -> Any:
    wide = np.result_type(x.dtype if isinstance(x, Tensor) else x, float)
    return ops.astype(x, wide) if isinstance(x, Tensor) else np.asarray(x, wide)


def nan_to_num(x: Any, copy: bool = True, nan: float = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    """x with numbers in the place of what isn't finite, through which no gradient flows."""
    values = np.nan_to_num(values_of(x), nan=nan, posinf=posinf, neginf=neginf)
    return ops.where(np.isfinite(values_of(x)), x, values)


# --- Sums --------------------------------------------------------------------------------------------------


def nansum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The sum of what is a number."""
    return ops.sum(ops.where(np.isnan(values_of(x)), 0, x), axis, keepdims)


def nanmean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The mean of what is a number."""
    total, count = nansum(x, axis, keepdims), np.sum(~np.isnan(values_of(x)), axis, keepdims=keepdims)
    return ops.astype(total / count, total.dtype) if total.dtype.kind == "f" else total / count


def average(x: Any, axis: Axis = None, weights: Any = None, keepdims: bool = False) -> Any:
    """The mean, weighed by `weights` of the shape of x, or of its one axis."""
    if weights is None:
        return ops.mean(x, axis, keepdims)
    x = real(x if isinstance(x, Tensor) else np.asarray(x))
    if np.shape(weights) != np.shape(x):
        if not isinstance(axis, int):
            raise TypeError(f"average needs weights of x's shape {np.shape(x)}, got {np.shape(weights)}, or one axis")
        weights = ops.broadcast_to(_along(weights, axis, np.ndim(x)), np.shape(x))
    return ops.sum(x * weights, axis, keepdims) / ops.sum(weights, axis, keepdims)


def ptp(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """The largest minus the smallest element."""
    return ops.max(x, axis, keepdims) - ops.min(x, axis, keepdims)


def cumprod(x: Any, axis: int | None = None) -> Any:
    """The running product along an axis, by doubling, so that a zero hides no derivative."""
    x = ops.countable(ops.ravel(x) if axis is None or not np.ndim(x) else x)
    axis = ops.place(axis or 0, np.ndim(x))
    length, step, lead = np.shape(x)[axis], 1, (slice(None),) * axis
    while step < length:
        ones = np.ones([step if i == axis else n for i, n in enumerate(np.shape(x))], x.dtype)
        x = x * ops.concatenate([ones, x[(*lead, slice(-step))]], axis)
        step *= 2
    return x


def diff(x: Any, n: int = 1, axis: int = -1, prepend: Any = None, append: Any = None) -> Any:
    """The differences of neighbours along an axis, n times."""
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if n == 0:
        return x
    axis = ops.place(axis, np.ndim(x))
    ends = [prepend, x, append]
    if prepend is not None or append is not None:
        one = tuple([1 if i == axis else k for i, k in enumerate(np.shape(x))])
        ends = [e if e is None or np.ndim(e) else ops.broadcast_to(e, one) for e in ends]
        x = ops.concatenate([e for e in ends if e is not None], axis)
    lead = (slice(None),) * axis
    for _ in range(n):
        x = x[(*lead, slice(1, None))] - x[(*lead, slice(-1))]
    return x


def trapezoid(y: Any, x: Any = None, dx: Any = 1.0, axis: int = -1) -> Any:
    """The integral along an axis by the trapezoidal rule."""
    lead = (slice(None),) * ops.place(axis, np.ndim(y))
    if x is not None:
        dx = diff(x, axis=axis if np.ndim(x) > 1 else -1)
        if np.ndim(dx) == 1 and np.ndim(y) > 1:
            dx = _along(dx, axis, np.ndim(y))
    return ops.sum(dx * (y[(*lead, slice(1, None))] + y[(*lead, slice(-1))]) / 2.0, axis)


def _along(x: Any, axis: int, ndim: int) -> Any:
    """A vector laid along one of `ndim` axes."""
    return ops.reshape(x, [-1 if i == ops.place(axis, ndim) else 1 for i in range(ndim)])


# --- Shape and place ---------------------------------------------------------------------------------------


def _moving(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy's that moves, repeats or drops elements: it is run on their places."""

    def moved(x: Any, *args: Any, **options: Any) -> Any:
        args = tuple([ops.uncut(value, function.__name__) for value in args])
        options = {name: ops.uncut(value, name) for name, value in options.items()}
        places = function(ops.places(x), *args, **options)
        flat = ops.reshape(x, -1)
        return [ops.getitem(flat, place) for place in places] if isinstance(places, list) else ops.getitem(flat, places)

    moved.__name__, moved.__doc__ = function.__name__, f"`numpy.{function.__name__}`."
    return moved


roll, rot90, diagonal = _moving(np.roll), _moving(np.rot90), _moving(np.diagonal)
resize, delete = _moving(np.resize), _moving(np.delete)
take, take_along_axis = _moving(np.take), _moving(np.take_along_axis)


def tile(x: Any, reps: int | Sequence[int]) -> Any:
    """x so many times along each axis, the last for the last one."""
    counts = np.atleast_1d(ops.uncut(reps, "tile")).tolist()
    ndim = max(len(counts), np.ndim(x))
    shape, times = ([1] * (ndim - len(given)) + [*given] for given in (np.shape(x), counts))
    return ops.copied(x, shape, times, each=False)


def fliplr(x: Any) -> Any:
    """x backwards along its second axis."""
    return ops.flip(x, 1)


def flipud(x: Any) -> Any:
    """x backwards along its first axis."""
    return ops.flip(x, 0)


def moveaxis(x: Any, source: int | Sequence[int], destination: int | Sequence[int]) -> Any:
    """x with axes moved to other places."""
    order = np.moveaxis(np.empty(range(np.ndim(x)), bool), source, destination).shape  # lengths tell the axes
    return ops.transpose(x, order)


def matrix_transpose(x: Any) -> Any:
    """x with its last two axes exchanged."""
    return ops.swapaxes(x, -1, -2)


def _growing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NumPy's that gives each of some arrays more axes."""

    def grown(*arrays: Any) -> Any:
        several = tuple([ops.reshaped(function, x) for x in arrays])
        return several if len(several) > 1 else several[0]

    grown.__doc__ = f"`numpy.{function.__name__}`."
    return grown


atleast_1d, atleast_2d, atleast_3d = map(_growing, (np.atleast_1d, np.atleast_2d, np.atleast_3d))


def append(x: Any, values: Any, axis: int | None = None) -> Any:
    """x with values behind it, both as one row by default."""
    return ops.concatenate([x, values], axis)


def column_stack(arrays: Sequence[Any]) -> Any:
    """The arrays joined along their second axis, vectors as columns."""
    return ops.concatenate([ops.reshape(x, (-1, 1)) if np.ndim(x) < 2 else x for x in arrays], 1)


def array_split(x: Any, sections: Any, axis: int = 0) -> list[Any]:
    """x cut along an axis into so many parts, or at these places."""
    axis = ops.place(axis, np.ndim(x))
    lead, cuts = (slice(None),) * axis, sections
    if not np.iterable(sections):
        parts = np.array_split(np.arange(np.shape(x)[axis]), sections)
        cuts = np.cumsum([len(part) for part in parts[:-1]]).tolist()
    return [x[(*lead, slice(a, b))] for a, b in zip((0, *cuts), (*cuts, None), strict=True)]


def split(x: Any, sections: Any, axis: int = 0) -> list[Any]:
    """x cut along an axis into so many equal parts, or at these places."""
    if not np.iterable(sections) and np.shape(x)[axis] % sections:
        raise ValueError(f"split into {sections} parts of an axis of {np.shape(x)[axis]}: they are not equal")
    return array_split(x, sections, axis)


def broadcast_arrays(*arrays: Any) -> tuple[Any, ...]:
    """The arrays in the shape that they broadcast to."""
    shape = np.broadcast_shapes(*map(np.shape, arrays))
    return tuple([ops.broadcast_to(x, shape) for x in arrays])


def meshgrid(*vectors: Any, indexing: str = "xy", sparse: bool = False) -> tuple[Any, ...]:
    """The coordinates of a grid, each laid over all axes."""
    order = [1, 0, *range(2, len(vectors))] if indexing == "xy" and len(vectors) > 1 else [*range(len(vectors))]
    laid = [_along(x, axis, len(vectors)) for x, axis in zip(vectors, order, strict=True)]
    return tuple(laid) if sparse else broadcast_arrays(*laid)


def sort(x: Any, axis: int | None = -1) -> Any:
    """x in order along an axis, equal elements in the order in which they came."""
    x, axis = (ops.ravel(x), 0) if axis is None else (x, axis)
    return take_along_axis(x, np.argsort(plain(x), axis=axis, kind="stable"), axis)


def _lower(x: Any, k: int) -> Any:
    return np.tri(*np.shape(x)[-2:], k=k) > 0  # type: ignore[call-overload]  # of a vector, a square


def tril(x: Any, k: int = 0) -> Any:
    """x with 0 above a diagonal of its last two axes."""
    return ops.where(_lower(x, k), x, 0)


def triu(x: Any, k: int = 0) -> Any:
    """x with 0 below a diagonal of its last two axes."""
    return ops.where(_lower(x, k - 1), 0, x)


def diag(x: Any, k: int = 0) -> Any:
    """The diagonal of a matrix, or a matrix with a vector on its diagonal."""
    if np.ndim(x) not in (1, 2):
        raise ValueError(f"diag takes a vector or a matrix, got {np.ndim(x)} axes: use diagonal(x, axis1=, axis2=)")
    if np.ndim(x) == 2:
        return diagonal(x, offset=k)
    n = np.shape(x)[0] + abs(k)
    rows = np.arange(np.shape(x)[0])
    return ops.scatter(x, (rows + max(-k, 0), rows + max(k, 0)), (n, n))


def diagflat(x: Any, k: int = 0) -> Any:
    """A matrix with the elements of x on its diagonal."""
    return diag(ops.ravel(x), k)


def sinc(x: Any) -> Any:
    """sin(pi x) / (pi x), and 1 at 0."""
    angle = math.pi * x
    small = np.abs(values_of(x)) < 1e-3  # where derivatives of the quotient would cancel
    near = ops.where(small, angle, 0)  # as what is not chosen has a gradient too, 0 times its slope
    square = near * near
    series = 1 - square / 6 * (1 - square / 20)
    return ops.where(small, series, ops.sin(angle) / ops.where(small, 1, angle))


def full_like(x: Any, fill_value: Any) -> Any:
    """An array of the shape and dtype of x, full of one value."""
    value = ops.astype(fill_value, x.dtype) if isinstance(fill_value, Tensor) else np.asarray(fill_value, x.dtype)
    return ops.broadcast_to(value, np.shape(x))


def select(conditions: Sequence[Any], choices: Sequence[Any], default: Any = 0) -> Any:
    """Of each element the first choice whose condition holds."""
    out = default
    for condition, choice in zip(reversed(conditions), reversed(choices), strict=True):
        out = ops.where(condition, choice, out)
    return out


# --- Products ----------------------------------------------------------------------------------------------


def outer(a: Any, b: Any) -> Any:
    """The products of all elements of a with all of b."""
    return ops.reshape(a, (-1, 1)) * ops.reshape(b, (1, -1))


def inner(a: Any, b: Any) -> Any:
    """The sum of products over the last axes."""
    if not np.ndim(a) or not np.ndim(b):
        return a * b
    return tensordot(a, b, (-1, -1))


def vdot(a: Any, b: Any) -> Any:
    """The sum of the products of all elements."""
    return ops.ravel(a) @ ops.ravel(b)


def vecdot(a: Any, b: Any, axis: int = -1) -> Any:
    """The sum of products over an axis of each."""
    row, column = ops.expand_dims(moveaxis(a, axis, -1), -2), ops.expand_dims(moveaxis(b, axis, -1), -1)
    return ops.squeeze(row @ column, (-2, -1))


def dot(a: Any, b: Any) -> Any:
    """a @ b of at most two axes, else the sum of products over the last axis of a and the last but one of b."""
    if not np.ndim(a) or not np.ndim(b):
        return a * b
    if np.ndim(a) < 3 and np.ndim(b) < 3:
        return a @ b
    return tensordot(a, b, (-1, -2 if np.ndim(b) > 1 else -1))


def divmod(a: Any, b: Any) -> tuple[Any, Any]:
    """a // b, a plain array, and a % b."""
    return np.floor_divide(plain(a), plain(b)), ops.remainder(a, b)


def tensordot(a: Any, b: Any, axes: Any = 2) -> Any:
    """The sum of products over some axes of each."""
    if np.iterable(axes):
        left, right = (list(pair) if np.iterable(pair) else [pair] for pair in axes)
    else:
        left, right = [*range(np.ndim(a) - axes, np.ndim(a))], [*range(axes)]
    left, right = ([ops.place(i, np.ndim(x)) for i in axes] for x, axes in ((a, left), (b, right)))
    rows, columns = ([i for i in range(np.ndim(x)) if i not in gone] for x, gone in ((a, left), (b, right)))
    n = math.prod([np.shape(a)[i] for i in left])
    lead, tail = tuple([np.shape(a)[i] for i in rows]), tuple([np.shape(b)[i] for i in columns])
    if [np.shape(a)[i] for i in left] != [np.shape(b)[i] for i in right]:
        raise ValueError(f"tensordot over axes {left} of shape {np.shape(a)} and {right} of {np.shape(b)}: they differ")
    a = ops.reshape(ops.transpose(a, (*rows, *left)), (math.prod(lead), n))
    b = ops.reshape(ops.transpose(b, (*right, *columns)), (n, math.prod(tail)))
    return ops.reshape(a @ b, (*lead, *tail))


def kron(a: Any, b: Any) -> Any:
    """The products of all elements, block by block."""
    ndim = max(np.ndim(a), np.ndim(b))
    one, two = ((1,) * (ndim - np.ndim(x)) + np.shape(x) for x in (a, b))
    a = ops.reshape(a, [n for length in one for n in (length, 1)])
    b = ops.reshape(b, [n for length in two for n in (1, length)])
    return ops.reshape(a * b, [m * n for m, n in zip(one, two, strict=True)])


def cross(a: Any, b: Any, axis: int = -1) -> Any:
    """The cross product of vectors of three along an axis."""
    if np.shape(a)[axis] != 3 or np.shape(b)[axis] != 3:
        raise ValueError(f"cross takes vectors of three, got shapes {np.shape(a)} and {np.shape(b)} along axis {axis}")
    (a0, a1, a2), (b0, b1, b2) = moveaxis(a, axis, 0), moveaxis(b, axis, 0)
    return ops.stack([a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0], axis)


# --- numpy.linalg ------------------------------------------------------------------------------------------


@primitive(lambda g, out: -matrix_transpose(out) @ g @ matrix_transpose(out))
def _inv(x: Any, /) -> Any:
    return np.linalg.inv(x)


@primitive(
    lambda g, a, out: -_solve(matrix_transpose(a), g) @ matrix_transpose(out),
    lambda g, a: _solve(matrix_transpose(a), g),
)
def _solve(a: Any, b: Any, /) -> Any:
    """The solution x of a @ x = b, of matrices b."""
    return np.linalg.solve(a, b)


def _solution(a: Any, b: Any) -> Any:
    """The same, of a vector b too."""
    return ops.squeeze(_solve(a, ops.reshape(b, (-1, 1))), -1) if np.ndim(b) == 1 else _solve(a, b)


@primitive(lambda g, x, out: ops.reshape(g * out, (*np.shape(g), 1, 1)) * matrix_transpose(_inv(x)))
def _det(x: Any, /) -> Any:
    return np.linalg.det(x)


def _slogdet(x: Any) -> tuple[Any, Any]:
    """The sign and the logarithm of the determinant."""
    return np.linalg.slogdet(values_of(x))[0], _logdet(x)


@primitive(lambda g, x: ops.reshape(g, (*np.shape(g), 1, 1)) * matrix_transpose(_inv(x)))
def _logdet(x: Any, /) -> Any:
    return np.linalg.slogdet(x)[1]


def _norm(x: Any, ord: Any = None, axis: Axis = None, keepdims: bool = False) -> Any:
    """A norm: of all elements, of vectors along one axis, or of matrices over two; whose gradient at 0 is 0."""
    x = real(x)
    axes = reduced_axes(axis, x.ndim)
    if ord in (None, "fro") or (ord == 2 and len(axes) == 1):
        squares = ops.sum(ops.square(x), axes, keepdims)
        return ops.flat(values_of(squares) == 0, ops.sqrt, squares)
    size = ops.abs(x)
    if len(axes) == 1 and not isinstance(ord, str):
        if ord == np.inf:
            return ops.max(size, axes, keepdims)
        if ord == -np.inf:
            return ops.min(size, axes, keepdims)
        if ord == 0:
            return np.linalg.norm(values_of(x), 0, axes[0], keepdims)
        empty = (values_of(x) == 0) & (0 < ord < 2)  # where the power has no slope
        total = ops.sum(ops.flat(empty, lambda size: ops.power(size, ord), size), axes, keepdims)
        return ops.flat((values_of(total) == 0) & (ord > 0), lambda total: ops.power(total, 1 / ord), total)
    if len(axes) == 2 and ord in (1, -1, np.inf, -np.inf):
        named: Any = axis or (0, 1)
        rows, columns = [ops.place(i, x.ndim) for i in named]
        summed, other = (rows, columns) if ord in (1, -1) else (columns, rows)
        extreme = ops.max if ord > 0 else ops.min
        result = extreme(ops.sum(size, summed, True), other, True)
        return result if keepdims else ops.squeeze(result, axes)
    raise TypeError(f"np.linalg.norm of a tensor has no rule for ord={ord!r} over axes {axes}: use t.data")


def _matrix_power(x: Any, n: int) -> Any:
    """The matrix times itself, n factors."""
    if n < 0:
        x, n = _inv(x), -n
    out = ops.broadcast_to(np.eye(np.shape(x)[-1], dtype=x.dtype), np.shape(x)) if n == 0 else x
    return reduce(ops.matmul, [x] * (n - 1), out)


def _multi_dot(arrays: Sequence[Any]) -> Any:
    """The product of several matrices."""
    return reduce(ops.matmul, arrays)


linalg = SimpleNamespace(
    inv=_inv, solve=_solution, det=_det, slogdet=_slogdet, norm=_norm, matrix_power=_matrix_power, multi_dot=_multi_dot
)
