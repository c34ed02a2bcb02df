"""`compare`: two functions side by side, with the rounding error of each."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array
from ..engine.tensor import check_differentiable
from .orders import function_names, input_names
from .report import html_table, text_table

# How far apart two right results may be, relative to the largest entry. Beyond it stands the rounding error of
# the first function itself, so that ill-conditioned data do not fail a right formula.
_TOLERANCE = {"float16": 1e-2, "float32": 1e-5}
_DOUBLE_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Row:
    """One compared quantity: the output, or the gradient of one input."""

    name: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    ulp: tuple[float | None, float | None]
    ok: bool


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`; `str()` is a table, and notebooks show it as one."""

    names: tuple[str, str]
    rows: tuple[Row, ...]
    reference: str
    dtype: str
    seed: int

    @property
    def ok(self) -> bool:
        """Whether the functions agree in every row."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def verdict(self) -> str:
        """The result in one line."""
        wrong = [row.name for row in self.rows if not row.ok]
        first, second = self.names
        return f"{first} and {second} " + (f"differ in {', '.join(wrong)}" if wrong else "agree in every row")

    def _table(self) -> tuple[list[str], list[list[str]]]:
        first, second = self.names
        head = ["", "shape", "max difference", "relative", f"ulp {first}", f"ulp {second}", ""]
        return head, [
            [
                row.name,
                " x ".join(map(str, row.shape)) or "scalar",
                f"{row.max_abs:.2e}",
                f"{row.max_rel:.2e}",
                *("-" if ulp is None else f"{ulp:.2f}" if ulp < 1000 else f"{ulp:.2e}" for ulp in row.ulp),
                "equal" if row.ok else "DIFFERS",
            ]
            for row in self.rows
        ]

    def _notes(self) -> str:
        return (
            f"{self.verdict}. Inputs {self.dtype}, random output weights (seed {self.seed}).\n"
            f"ulp: largest error against {self.reference}, in units in the last place of the largest entry."
        )

    def __str__(self) -> str:
        return f"{text_table(*self._table(), right=range(2, 6))}\n\n{self._notes()}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{html_table(*self._table())}<p>{html.escape(self._notes())}</p>"


def compare(
    f: Callable[..., Any], g: Callable[..., Any], inputs: Sequence[Any], *, order: int = 1, seed: int = 0
) -> Comparison:
    """Run two functions of tensors on the same inputs and compare outputs and gradients.

    The gradients are those of the output weighted by random numbers drawn from `seed`; with `order` above 1,
    those of the gradients so weighted, and so on. Each side's error is measured in ulp (units in the last
    place, of the largest entry and in the inputs' dtype) against a run of `f` in wider arithmetic: long
    double where the machine has one wider than the inputs, else float64 for narrower inputs, else exact
    rationals where the functions allow it. The table says which.

    `inputs` are float arrays or tensors, of any shapes. A row is equal if its largest difference is within
    1e-10 (float32: 1e-5, float16: 1e-2) of its largest entry, or within the rounding error of `f`. The result
    has `ok`, `rows` with `name`, `shape`, `max_abs`, `max_rel`, `ulp` and `ok`, and a table as `str`.
    `ValueError` where the outputs' shapes differ or `order` is below 1; `TypeError` for inputs that aren't
    floats or results that aren't tensors.

    >>> import autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> result = ag.compare(lambda x: ag.batch_norm(x, form="composed"), ag.batch_norm, [x])
    >>> result.ok, [row.name for row in result.rows]
    (True, ['output', 'dx'])
    """
    if order < 1:
        raise ValueError(f"order is {order}, expected 1 or more")
    arrays = [np.asarray(given) for given in inputs]
    for i, array in enumerate(arrays):
        try:
            check_differentiable(array)
        except TypeError as error:
            raise TypeError(f"inputs[{i}]: {error}") from None
    names = input_names(f, inputs)
    dtype = np.result_type(*arrays)

    first = _run(f, arrays, names, order, seed, "f")
    second = _run(g, arrays, names, order, seed, "g")
    for name, (a, b) in _paired(first, second):
        if a.shape != b.shape:
            raise ValueError(f"{name} has shape {a.shape} from f and {b.shape} from g: expected the same")
    exact, reference = _reference(f, arrays, names, order, seed, dtype)
    return Comparison(function_names(f, g), tuple(_rows(first, second, exact, dtype)), reference, str(dtype), seed)


def _run(
    f: Callable[..., Any], arrays: list[Array], names: list[str], order: int, seed: int, what: str
) -> dict[str, Array]:
    """The output of `f` and its weighted gradients by name, computed in the arrays' arithmetic."""
    rng = np.random.default_rng(seed)
    leaves = [ag.tensor(array, requires_grad=True, name=name) for array, name in zip(arrays, names, strict=True)]
    output = f(*leaves)
    if not isinstance(output, Tensor):
        raise TypeError(f"{what} returned a {type(output).__name__}, expected a tensor")
    results = {"output": output.data}
    gradients: list[Any] = [output]
    for k in range(1, order + 1):
        weighed = [(t, _weights(rng, t)) for t in gradients]
        used = [(t, w) for t, w in weighed if isinstance(t, Tensor) and t.requires_grad]
        gradients = [None] * len(leaves)
        if used:
            outputs, weights = zip(*used, strict=True)
            gradients = list(ag.grad(outputs, leaves, weights, create_graph=k < order, allow_unused=True))
        gradients = [
            np.zeros(leaf.shape, leaf.dtype) if t is None else t for t, leaf in zip(gradients, leaves, strict=True)
        ]
        power = "" if k == 1 else str(k)
        for name, t in zip(names, gradients, strict=True):
            results[f"d{power}{name}"] = np.asarray(t)
    return results


def _weights(rng: np.random.Generator, t: Any) -> Array:
    """Multiples of 1/8 within -2 to 2: the same numbers in every arithmetic, rationals included."""
    eighths = rng.integers(-16, 17, np.shape(t))
    if t.dtype.kind == "O":
        return np.asarray(eighths.astype(object) * Fraction(1, 8), dtype=object)
    return np.asarray(eighths.astype(t.dtype) / 8)


def _reference(
    f: Callable[..., Any], arrays: list[Array], names: list[str], order: int, seed: int, dtype: np.dtype[Any]
) -> tuple[dict[str, Array] | None, str]:
    if dtype.kind == "O":
        return _run(f, arrays, names, order, seed, "f"), "the first function itself, which is exact"
    for wide, label in ((np.longdouble, "long double"), (np.float64, "float64")):
        if np.finfo(wide).nmant > np.finfo(dtype).nmant:
            bits = np.finfo(wide).nmant
            return _run(f, [a.astype(wide) for a in arrays], names, order, seed, "f"), (
                f"the first function in {label} ({bits} bits)"
            )
    try:
        exact = [np.asarray(np.frompyfunc(Fraction, 1, 1)(array), dtype=object) for array in arrays]
        return _run(f, exact, names, order, seed, "f"), "the first function in exact rationals"
    except (TypeError, ValueError, OverflowError):
        return None, "nothing: this machine has no arithmetic wider than the inputs'"


def _paired(a: dict[str, Array], b: dict[str, Array]) -> Iterator[tuple[str, tuple[Array, Array]]]:
    for name in a:
        yield name, (a[name], b[name])


def _rows(
    first: dict[str, Array], second: dict[str, Array], exact: dict[str, Array] | None, dtype: np.dtype[Any]
) -> Iterator[Row]:
    exactly = dtype.kind == "O"
    tolerance = 0.0 if exactly else _TOLERANCE.get(str(dtype), _DOUBLE_TOLERANCE)
    unit = 0.0 if exactly else float(np.finfo(dtype).eps)
    overall = max((_largest(value) for value in (exact or first).values()), default=0.0)
    for name, (a, b) in _paired(first, second):
        difference = _distance(a, b)
        scale = max(_largest(a), _largest(b)) if exact is None else _largest(exact[name])
        ulp: tuple[float | None, float | None] = (None, None)
        allowed = tolerance * scale + 16 * unit * overall
        if exact is not None:
            errors = _distance(a, exact[name]), _distance(b, exact[name])
            allowed += 16 * errors[0]
            ulp = (_in_ulp(errors[0], scale, dtype), _in_ulp(errors[1], scale, dtype))
        relative = difference / scale if scale else (0.0 if difference == 0 else np.inf)
        yield Row(name, a.shape, difference, relative, ulp, bool(difference <= allowed))


def _distance(a: Array, b: Array) -> float:
    """The largest difference; infinite where one is NaN or infinite and the other isn't the same."""
    if not a.size:
        return 0.0
    if a.dtype.kind == "O":
        return float(np.max(np.abs(a - b)))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(apart), np.inf, apart)))


def _largest(a: Array) -> float:
    if a.dtype.kind == "O":
        return float(np.max(np.abs(a), initial=0))
    return float(np.max(np.abs(a), initial=0, where=np.isfinite(a)))


def _in_ulp(error: float, scale: float, dtype: np.dtype[Any]) -> float:
    if dtype.kind == "O" or error == 0:
        return error
    return error / float(np.spacing(np.asarray(scale, dtype)))
