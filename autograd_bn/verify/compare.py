"""`compare`: two functions side by side, each with its own errors."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Node, Tensor
from ..engine.node import Array
from ..engine.tensor import check_differentiable
from .orders import check_order, check_same, derivatives, function_names, input_names
from .report import html_table, text_table

# Part of a row's largest entry by which the formulas may differ (constants may have been rounded to the inputs' dtype),
# and by which a result in the inputs' dtype may be off.
_TOLERANCE = defaultdict(lambda: (1e-10, 1e-10), object=(0.0, 0.0), float16=(4e-4, 1e-2), float32=(1e-6, 1e-5))
_SLACK = 16  # times what moving the inputs by their last bits does
_DRAWS = 4


@dataclass(frozen=True)
class Row:
    """One compared quantity: the output, or the gradient of one input.

    `ulp`, `wrong` and `non_finite` (a count of entries) are each side's; without a reference a row may differ where no
    side is wrong. `columns` are the indices on the last axis of entries that are not finite.
    """

    name: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    ulp: tuple[float | None, ...]
    ok: bool
    wrong: tuple[bool, bool]
    non_finite: tuple[int, ...]
    columns: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`; `str()` is a table, and notebooks show it as one. True where every row is equal.

    `functions`, `inputs` (arrays) and `input_names` are what was compared.
    """

    names: tuple[str, str]
    rows: tuple[Row, ...]
    reference: str | None
    dtype: str
    seed: int
    functions: tuple[Callable[..., Any], Callable[..., Any]] = field(compare=False)
    inputs: tuple[Array, ...] = field(compare=False)
    input_names: tuple[str, ...] = field(compare=False)

    @property
    def ok(self) -> bool:
        """Whether the functions agree in every row."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def _table(self) -> tuple[list[str], list[list[str]]]:
        first, second = self.names
        results = {(True, False): f"{first} WRONG", (False, True): f"{second} WRONG", (True, True): "BOTH WRONG"}
        return ["", "shape", "max difference", "relative", f"ulp {first}", f"ulp {second}", ""], [
            [
                row.name,
                " x ".join(map(str, row.shape)) or "scalar",
                f"{row.max_abs:.2e}",
                f"{row.max_rel:.2e}",
                *map(in_ulp, row.ulp),
                "equal" if row.ok else results.get(row.wrong, "DIFFERS"),
            ]
            for row in self.rows
        ]

    def _notes(self) -> Iterator[str]:
        differ = ", ".join([row.name for row in self.rows if not row.ok])
        wrong = [", ".join([row.name for row in self.rows if row.wrong[side]]) for side in (0, 1)]
        blamed = [f"; {name} is wrong in {rows}" for name, rows in zip(self.names, wrong, strict=True) if rows]
        verdict = f"{' and '.join(self.names)} " + (f"differ in {differ}" if differ else "agree in every row")
        yield f"{''.join([verdict, *blamed])}. Inputs {self.dtype}, random output weights (seed {self.seed})."
        for row in self.rows:
            if any(row.non_finite):
                counts = " and ".join(f"{n} of {name}" for n, name in zip(row.non_finite, self.names, strict=True))
                where = f", in columns {', '.join(map(str, row.columns))}" if row.shape else ""
                yield f"{row.name}: entries that are not finite: {counts}{where}."
        formula, _ = _TOLERANCE[self.dtype]
        equal = f"within {formula:g} of the row's largest entry"
        if self.dtype == "object":
            yield "equal: exactly."
        elif self.reference is None:
            yield f"equal: {equal}, or no further apart than rounding explains; no wider arithmetic to measure in."
        else:
            yield f"ulp: largest error against {self.reference}, in gaps between floats at the row's largest entry."
            yield f"equal: in that arithmetic {equal}, and here each side is off by no more than rounding explains."

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table(), right=range(2, 6)), "", *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html_table(*self._table()) + "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())


def compare(
    f: Callable[..., Any], g: Callable[..., Any], inputs: Sequence[Any], *, order: int = 1, seed: int = 0
) -> Comparison:
    """Run two functions of tensors on the same inputs and compare outputs and gradients.

    The gradients are those of the outputs weighted by random numbers drawn from `seed`; with `order` above 1, those of
    the gradients so weighted, and so on. Both functions also run in wider arithmetic: long double, else float64 for
    narrower inputs. There the formulas must agree, to 1e-10 of a row's largest entry (float32: 1e-6, float16: 4e-4),
    and `f` is the reference that each side is held against, to 1e-10 (1e-5, 1e-2). More is rounding, and passes, only
    within 16 times what moving the inputs by their last bits does to the reference, or where that is 0, to the side
    itself, and up to half of the digits between formulas. Non-finite entries must be those of the reference, in place
    and kind. Without wider arithmetic the sides are held against each other.

    `inputs` are float arrays or tensors, or arrays of exact rationals, which must be equal exactly. Running statistics
    stay as they are. `ValueError` where the outputs' numbers or shapes differ or `order` is below 1; `TypeError` for
    inputs that aren't floats or results that aren't tensors.

    >>> import autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> result = ag.compare(lambda x: ag.batch_norm(x, form="composed"), ag.batch_norm, [x])
    >>> result.ok, [row.name for row in result.rows]
    (True, ['output', 'dx'])
    """
    check_order(order)
    arrays = [np.asarray(given) for given in inputs]
    for i, array in enumerate(arrays):
        try:
            check_differentiable(array)
        except TypeError as error:
            raise TypeError(f"inputs[{i}]: {error}") from None
    names = input_names(f, inputs)
    sides = _Run(arrays, f, "f", names, order, seed), _Run(arrays, g, "g", names, order, seed)
    check_same(sides[0].values, sides[1].values)
    wide, reference = _in_wide_arithmetic(sides)
    rows = tuple([_row(name, sides, wide) for name in sides[0].values])
    dtype = str(sides[0].dtype)
    return Comparison(function_names(f, g), rows, reference, dtype, seed, (f, g), tuple(arrays), tuple(names))


def in_ulp(error: float | None) -> str:
    """An error in words."""
    return "unknown" if error is None else f"{error:.2f}" if error < 1000 else f"{error:.1e}"


def weighing(seed: int) -> Callable[[Tensor | Node], Array]:
    """Draws an output's weights: multiples of 1/1024 from 1/2 to 2 with signs, the same in every arithmetic."""
    rng = np.random.default_rng(seed)

    def draw(output: Tensor | Node) -> Array:
        numerators = rng.integers(512, 2049, output.shape) * rng.choice([-1, 1], output.shape)
        one = Fraction(1) if output.dtype.kind == "O" else output.dtype.type(1)
        return np.asarray(numerators.astype(output.dtype) * (one / 1024))

    return draw


class _Run:
    """A function and its weighted gradients, in the arithmetic of the inputs: `values` has each by name."""

    def __init__(self, arrays: Sequence[Array], *settings: Any) -> None:
        f, what, names, order, seed = self.settings = settings
        self.arrays, self.dtype = arrays, np.result_type(*arrays)
        self.moves: dict[float, dict[str, Any]] = {}
        leaves = [ag.tensor(a, requires_grad=True, name=name) for a, name in zip(arrays, names, strict=True)]
        with np.errstate(all="ignore"):
            _, orders = derivatives(f, leaves, order, weighing(seed), what=what)
        self.values = {name: output.data for outputs in orders for name, output in outputs.items()}

    def at(self, arrays: Sequence[Array]) -> _Run:
        """The same elsewhere, or in other arithmetic."""
        return _Run(arrays, *self.settings)

    def moved(self, name: str, dtype: np.dtype[Any]) -> Any:
        """How far a row moves, at most, when the inputs move by their last bits in `dtype`, times `_SLACK`."""
        unit = float(np.finfo(dtype).eps)
        if unit not in self.moves:
            rng = np.random.default_rng(0)
            most = self.moves[unit] = dict.fromkeys(self.values, 0)
            for _ in range(_DRAWS):
                steps = [unit * np.asarray(rng.uniform(-2, 2, a.shape), np.longdouble) for a in self.arrays]
                there = self.at([(a + a * step).astype(a.dtype) for a, step in zip(self.arrays, steps, strict=True)])
                for row, value in there.values.items():
                    most[row] = max(most[row], _SLACK * _largest(_apart(value, self.values[row])))
        return self.moves[unit][name]

    def vanishes(self, name: str) -> bool:
        """Whether a row holds nothing but rounding errors."""
        return bool(_largest(self.values[name]) <= self.moved(name, self.dtype))


def _in_wide_arithmetic(sides: Sequence[_Run]) -> tuple[list[_Run], str | None]:
    """Both functions in arithmetic wider than the inputs', and what to call it; none where there is none."""
    dtype = sides[0].dtype
    for wide, label in ((np.longdouble, "long double"), (np.float64, "float64")):
        if dtype.kind == "f" and np.finfo(wide).nmant > np.finfo(dtype).nmant:
            with suppress(Exception):  # whatever they raise on wide numbers, they don't take them
                runs = [side.at([a.astype(wide) for a in side.arrays]) for side in sides]
                return runs, f"the first function in {label} ({np.finfo(wide).nmant} bits)"
    return [], "the first function itself, which is exact" if dtype.kind == "O" else None


def _row(name: str, sides: Sequence[_Run], wide: Sequence[_Run]) -> Row:
    dtype, values = sides[0].dtype, [side.values[name] for side in sides]
    apart, scale = _most(_apart(*values)), max(map(_largest, values))
    agree, right = _agree(name, wide or sides, dtype), [True, True]
    ulp: tuple[float | None, ...] = (None, None)
    if wide:
        exact = wide[0].values[name]
        scale = _largest(exact)
        unit = np.spacing(np.asarray(min(scale, 0.99 * float(np.finfo(dtype).max))).astype(dtype))
        errors = [_error(value, exact) for value in values]
        ulp = tuple([float(error / unit) for error in errors])
        right = [_is_rounding(error, name, side, wide[0]) for error, side in zip(errors, sides, strict=True)]
    wrong = not right[0], bool(wide) and not (right[1] and agree)
    relative = apart / scale if scale else np.inf if apart else 0
    bad = [~np.isfinite(value.astype(float) if dtype.kind == "O" else value) for value in values]
    columns = np.unique(np.argwhere(bad[0] | bad[1])[:, -1:]).tolist()
    ok, counts = agree and not any(wrong), tuple([int(where.sum()) for where in bad])
    return Row(name, values[0].shape, float(apart), float(relative), ulp, ok, wrong, counts, tuple(columns))


def _agree(name: str, runs: Sequence[_Run], dtype: np.dtype[Any]) -> bool:
    """Whether two formulas agree in a row, but for rounding, which may take half of the digits of `dtype`."""
    a, b = (run.values[name] for run in runs)
    apart, scale = _most(_apart(a, b)), max(_largest(a), _largest(b))
    if dtype.kind == "O" or apart <= _TOLERANCE[str(dtype)][0] * scale:
        return bool(apart == 0 or dtype.kind != "O")
    close = apart <= float(np.sqrt(np.finfo(dtype).eps)) * scale or all(run.vanishes(name) for run in runs)
    return bool(close and apart <= sum(run.moved(name, run.dtype) for run in runs))


def _is_rounding(error: Any, name: str, side: _Run, exact: _Run) -> bool:
    """Whether one side's error may come from rounding in its own arithmetic."""
    small = _TOLERANCE[str(side.dtype)][1] * _largest(exact.values[name]) + float(
        np.finfo(side.dtype).smallest_subnormal
    )
    if error <= small or error <= exact.moved(name, side.dtype):
        return True
    return exact.vanishes(name) and bool(error <= side.moved(name, side.dtype))


def _apart(a: Array, b: Array) -> Array:
    """The difference of every two entries; infinite where one isn't finite and the other not the same."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = abs(a - b)
    if a.dtype.kind != "O":
        same, both = (a == b) | (np.isnan(a) & np.isnan(b)), np.isfinite(a) & np.isfinite(b)
        difference = np.where(same, 0, np.where(both, difference, np.inf))
    return np.asarray(difference)


def _error(value: Array, exact: Array) -> Any:
    """The largest distance from the exact values, where those that overflow in the value's dtype are infinite there."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(value.dtype).astype(exact.dtype)
    finite = np.isfinite(value) & np.isfinite(exact)
    return _most(_apart(value.astype(exact.dtype), np.where(finite, exact, rounded)))


def _most(a: Array) -> Any:
    """The largest entry, in the widest arithmetic: what float64 can't hold is not infinite there."""
    most = np.max(np.abs(a), initial=0)
    return most if a.dtype.kind == "O" else np.longdouble(most)


def _largest(a: Array) -> Any:
    """The largest finite entry."""
    return _most(a if a.dtype.kind == "O" else a[np.isfinite(a)])
