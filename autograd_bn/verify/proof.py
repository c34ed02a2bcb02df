"""`prove_equal`: two functions and their derivatives, entry by entry, in exact rational arithmetic."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from numbers import Integral, Rational
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.graph import Values, compute
from ..engine.node import Array, Node
from ..engine.operations import Axis, reduced_axes
from .orders import arguments, check_same, check_settings, derivatives, function_names, input_names, place
from .table import PRE


@dataclass(frozen=True)
class Difference:
    """The first entry in which two functions differ: both exact values."""

    quantity: str
    index: tuple[int, ...]
    left: Fraction
    right: Fraction


@dataclass(frozen=True, repr=False)
class Proof:
    """The result of `prove_equal`; true if the functions are equal. `str()` says what was compared or what differs."""

    names: tuple[str, str]
    shapes: dict[str, tuple[int, ...]]
    order: int
    difference: Difference | None

    @property
    def equal(self) -> bool:
        """Whether every entry of every quantity is the same number."""
        return self.difference is None

    def __bool__(self) -> bool:
        return self.equal

    def __str__(self) -> str:
        f, g = self.names
        if self.difference is None:
            entries = sum(math.prod(shape) for shape in self.shapes.values())
            compared = f"{entries} entries of {', '.join(self.shapes)}"
            return f"{f} = {g} at these inputs, exactly, to order {self.order}: {compared}"
        at = self.difference
        width = max(len(f), len(g))
        return (
            f"{f} and {g} differ, first in {place(at.quantity, at.index)}:\n"
            f"  {f:{width}} = {_exact_and_decimal(at.left)}\n"
            f"  {g:{width}} = {_exact_and_decimal(at.right)}\n"
            f"  {'':{width}}   {_decimal(at.right - at.left, 3)} apart"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{PRE}{html.escape(str(self))}</pre>"


def prove_equal(f: Callable[..., Any], g: Callable[..., Any], inputs: Sequence[Any], *, order: int = 1) -> Proof:
    """Compare `f(*inputs)` and `g(*inputs)`, and their derivatives up to `order`, in exact rational arithmetic.

    `inputs` are arrays of rationals (`Fraction`, int), or of floats, which are taken for the exact fractions that they
    are; tensors that don't require a gradient are constants. Compared with == are all entries of the outputs, of their
    gradient weighed by random rationals, of the weighed gradient of that (`order=2`, also by the first weights), and so
    on. Gradients that differ agree at random weights with a probability of about 1e-6 (Schwartz 1980). All of it holds
    at these inputs: x * x and 2 * x - 1 are equal to order 1 at x = 1, so take inputs as general as `rational_batch`'s.

    `ValueError` for a square root that isn't rational (see `rational_batch`), for a division by zero, and for outputs
    of different numbers or shapes; `TypeError` where a function leaves the rationals: an `exp`, a float constant.

    >>> import autograd_bn as ag
    >>> x, gamma, beta, eps = ag.rational_batch((4, 3))
    >>> def fused(x, gamma, beta):
    ...     return ag.batch_norm(x, gamma, beta, eps=eps)
    >>> def composed(x, gamma, beta):
    ...     return ag.batch_norm(x, gamma, beta, eps=eps, form="composed")
    >>> print(ag.prove_equal(fused, composed, (x, gamma, beta)))
    fused = composed at these inputs, exactly, to order 1: 30 entries of output, dx, dgamma, dbeta
    >>> print(ag.prove_equal(lambda x: x * x, lambda x: x * x * x, [[1.0, 0.5]]))
    f and g differ, first in output[1]:
      f = 1/4 = 0.25
      g = 1/8 = 0.125
          -0.125 apart
    """
    check_settings(order, 0, f=f, g=g)
    inputs = arguments(inputs)
    names = input_names(f, inputs)
    constants = [isinstance(value, Tensor) and not value.requires_grad for value in inputs]
    arrays = [
        np.asarray(value) if constant else _exact(value, f"inputs[{i}]")
        for i, (value, constant) in enumerate(zip(inputs, constants, strict=True))
    ]

    def leaves(form: Callable[[Array], Array]) -> list[Tensor]:
        """Fresh ones, which f or g may overwrite."""
        made = zip(arrays, constants, names, strict=True)
        return [ag.tensor(form(array), requires_grad=not constant, name=name) for array, constant, name in made]

    left, right = _exactly(f, leaves, order, "f"), _exactly(g, leaves, order, "g")
    check_same(left, right)
    unequal = ((name, tuple(index)) for name in left for index in np.argwhere(left[name] != right[name]).tolist())
    first = next(unequal, None)
    difference = first and Difference(*first, *[Fraction(side[first[0]].item(first[1])) for side in (left, right)])
    return Proof(function_names(f, g), {name: a.shape for name, a in left.items()}, order, difference)


def _exactly(f: Callable[..., Any], leaves: Callable[..., list[Tensor]], order: int, what: str) -> dict[str, Array]:
    """A function and its weighed gradients of all orders, in rationals only."""
    try:
        with np.errstate(over="ignore"):  # it is looked for below
            try:
                _, orders = derivatives(f, leaves(_whole), order, _weights(), what=what)
            except IndexError:  # an integer constant is an index, which Python's integers can't be
                _, orders = derivatives(f, leaves(np.copy), order, _weights(), what=what)
            _check_whole_numbers([output for outputs in orders for output in outputs.values()])
        values = {name: output.data for outputs in orders for name, output in outputs.items()}
        for element in [element for array in values.values() for element in array.flat]:
            if not isinstance(element, Rational):
                kind = type(element).__name__
                raise TypeError(f"it gave {element} ({kind}); write its constants as integers or Fractions")
    except ZeroDivisionError as error:
        raise ValueError(f"{what} divides by zero at these inputs: it has no value to compare") from error
    except TypeError as error:
        raise TypeError(f"{what} left the rational numbers: {error}") from error
    return values


def _whole(array: Array) -> Array:
    """NumPy's integers, which wrap around, as Python's; whatever else there is as it is."""
    if array.dtype.kind not in "iuO":
        return array
    whole = lambda element: int(element) if isinstance(element, Integral) else element
    return np.asarray(np.frompyfunc(whole, 1, 1)(array), dtype=object)


def _check_whole_numbers(outputs: Sequence[Tensor]) -> None:
    """Raise `TypeError` where NumPy's integers, of constants that f brought along, wrapped around."""
    graph = ag.Graph(*outputs)
    narrow = [node for node in graph.nodes if node.dtype.kind in "iuO" and any(map(_wraps, node.args))]
    values = Values(graph.nodes) if narrow else {}
    for node in narrow:
        args = [values[arg] if isinstance(arg, Node) else arg for arg in node.args]
        exact = compute(node, [_whole(np.asarray(arg)) if _wraps(arg) else arg for arg in args])
        if not np.array_equal(exact, values[node]):
            dtype = next(arg.dtype for arg in args if _wraps(arg))
            raise TypeError(f"{node.op} of {dtype} wrapped around; write whole numbers as Python's")


def _wraps(arg: Any) -> bool:
    return isinstance(arg, Node | np.ndarray | np.integer) and arg.dtype.kind in "iu"


def _weights() -> Callable[[Tensor], Tensor]:
    """Draws random rationals, the same for every function."""
    rng = np.random.default_rng(0)

    def draw(output: Tensor) -> Tensor:
        numerators = rng.integers(1, 10**6, output.shape) * rng.choice([-1, 1], output.shape)
        return ag.tensor(_fractions(numerators, 10**3), requires_grad=True)

    return draw


def rational_batch(shape: Sequence[int], *, axes: Axis = None, seed: int = 0) -> tuple[Array, Array, Array, Array]:
    """Exact inputs `(x, gamma, beta, eps)` for batch norm: object arrays of `Fraction`.

    `x` has this shape; `gamma`, `beta` and `eps` have that of the axes that are kept by statistics over `axes`, as
    in `batch_norm` all but the last by default. `eps` is positive and makes variance + eps the square of a rational for
    each feature, so that every step is exact. No gamma is 0 or 1. `ValueError` for fewer than two values of a feature.

    >>> import autograd_bn as ag
    >>> x, gamma, beta, eps = ag.rational_batch((3, 2))
    >>> ag.sqrt(ag.var(x, 0) + eps)
    array([Fraction(7, 4), Fraction(7, 4)], dtype=object)
    """
    check_settings(1, seed)
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
        raise ValueError(f"shape is {shape!r}, expected a sequence of lengths")
    shape = tuple(shape)
    axes = tuple(range(len(shape) - 1)) if axes is None else reduced_axes(axes, len(shape))
    if math.prod(shape[axis] for axis in axes) < 2:
        raise ValueError(f"shape is {shape}, expected at least two values per feature over axes {axes}")
    rng = np.random.default_rng(seed)
    x = _fractions(rng.integers(-12, 13, shape), 4)
    kept = tuple([n for axis, n in enumerate(shape) if axis not in axes])
    gamma = _fractions(rng.choice([-9, -5, -3, 5, 7, 9], kept), 4)
    beta = _fractions(rng.integers(-8, 9, kept), 3)
    deviation = x - np.mean(x, axis=axes, keepdims=True)
    var = np.asarray(np.mean(deviation * deviation, axis=axes), dtype=object)
    eps = np.asarray(np.frompyfunc(_completing, 1, 1)(var), dtype=object)
    return x, gamma, beta, eps


def _completing(var: Fraction) -> Fraction:
    """A positive number that added to `var` gives the square of a multiple of 1/4."""
    root = Fraction(math.isqrt(math.floor(16 * var)) + 2, 4)
    return root * root - var


def _fractions(numerators: Any, denominator: int) -> Array:
    return np.asarray(np.frompyfunc(lambda n: Fraction(int(n), denominator), 1, 1)(numerators), dtype=object)


def _exact(values: Any, where: str) -> Array:
    array = np.asarray(values)
    if array.dtype.kind not in "fiuO":
        raise TypeError(f"{where} has dtype {array.dtype}, expected rationals or floats")
    try:
        return np.asarray(np.frompyfunc(Fraction, 1, 1)(_whole(array)), dtype=object)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{where} holds what is not a rational number: {error}") from None


def _exact_and_decimal(value: Fraction) -> str:
    """A fraction, or about how many digits it has where it is long, and its decimals."""
    over, under = (int(abs(n).bit_length() * math.log10(2)) + 1 for n in (value.numerator, value.denominator))
    exact = str(value) if over + under <= 60 else f"a fraction of {over} over {under} digits"
    return f"{exact} = {_decimal(value, 20)}"


def _decimal(value: Fraction, digits: int) -> str:
    context = Context(prec=digits)
    return str(context.divide(Decimal(value.numerator), Decimal(value.denominator)).normalize(context))
