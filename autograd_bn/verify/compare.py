"""`compare`: two functions side by side, each with its own errors."""

from __future__ import annotations

import html
import math
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
from .orders import arguments, check_same, check_settings, derivatives, function_names, input_names
from .table import html_table, text_table
from .tolerance import FORMULA, ROUNDING, apart, largest, moved_by_last_bits, sizes


@dataclass(frozen=True)
class Row:
    """One compared quantity: the output, or the gradient of one input.

    `ulp`, `wrong` and `non_finite` (a count of entries) are each side's; without a reference a row may differ where no
    side is wrong. `columns` are the indices on the last axis of entries that are not finite. `unjudged` counts entries
    that differ by much beside themselves, and by nothing beside the largest that they are judged with.
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
    unjudged: int


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`; `str()` is a table, and notebooks show it as one. True where every row is equal.

    `rows` has the output and each gradient; `functions`, `inputs` (arrays) and `input_names` are what was compared.
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
        dtypes = " and ".join(sorted({str(array.dtype) for array in self.inputs}))
        yield f"{''.join([verdict, *blamed])}. Inputs {dtypes}, random output weights (seed {self.seed})."
        for row in self.rows:
            if any(row.non_finite):
                counts = " and ".join(f"{n} of {name}" for n, name in zip(row.non_finite, self.names, strict=True))
                where = f", in columns {', '.join(map(str, row.columns))}" if row.shape else ""
                yield f"{row.name}: entries that are not finite: {counts}{where}."
        for row in self.rows:
            if row.unjudged:
                many = f"{row.unjudged} of {math.prod(row.shape)} entries"
                yield f"{row.name}: {many} differ, but are too small beside the largest one to be judged."
        if self.dtype == "object":
            yield "equal: exactly."
        elif self.reference is None:
            yield "equal: the same numbers, but for rounding; no wider arithmetic to tell the two apart in."
        else:
            yield (
                f"ulp: how far each side is from the right result at most, counted in the gaps between neighbouring "
                f"floats; rounding alone costs 0.5. The right result is that of {self.reference}."
            )
            yield "equal: computed with more digits both give the same numbers, and what is left is rounding."

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
    narrower inputs. There the formulas must agree, to 1e-10 of a column's largest entry (float32: 1e-6, float16: 4e-4),
    or in three axes or more of a channel's or a sample's where that is smaller, and `f` is the reference that each side
    is held against, to 1e-10 of a row's largest entry (1e-5, 1e-2), in the narrowest dtype that either side computed
    the row in. More is rounding, and passes, only within 16 times what moving the inputs by their
    last bits does to the reference, or where that is 0, to the side itself, and up to half of the digits between
    formulas. Non-finite entries must be those of the reference, in place and kind. Without wider arithmetic the sides
    are held against each other.

    `inputs` are float arrays or tensors, or a single one, or arrays of exact rationals, which must be equal exactly.
    Running statistics stay as they are. `ValueError` where the outputs' numbers or shapes differ, there are none, or
    `order` is below 1 or `seed` below 0; `TypeError` for inputs that aren't floats or results that aren't tensors.

    >>> import numpy as np, autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> result = ag.compare(lambda x: ag.batch_norm(x, form="composed"), ag.batch_norm, [x])
    >>> result.ok, [row.name for row in result.rows]
    (True, ['output', 'dx'])
    """
    check_settings(order, seed, f=f, g=g)
    inputs = arguments(inputs)
    arrays = [np.asarray(value) for value in inputs]
    for i, array in enumerate(arrays):
        check_differentiable(array, f"inputs[{i}]: ")
    names = input_names(f, inputs)
    sides = _Run(arrays, f, "f", names, order, seed), _Run(arrays, g, "g", names, order, seed)
    check_same(sides[0].values, sides[1].values)
    wide, reference = _in_wide_arithmetic(sides)
    rows = tuple([_row(name, sides, wide) for name in sides[0].values])
    dtype = str(np.result_type(*arrays))
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
    """A function and its weighted gradients, in the arithmetic of the inputs: `values` has each by name.

    `dtypes` has the narrowest dtype that each was computed in.
    """

    def __init__(self, arrays: Sequence[Array], *settings: Any) -> None:
        f, what, names, order, seed = self.settings = settings
        self.arrays = arrays
        self.moves: dict[float, dict[str, Array]] = {}
        leaves = [ag.tensor(a, requires_grad=True, name=name) for a, name in zip(arrays, names, strict=True)]
        with np.errstate(all="ignore"):
            _, orders = derivatives(f, leaves, order, weighing(seed), what=what)
        outputs = {name: output for outputs in orders for name, output in outputs.items()}
        self.values = {name: output.data for name, output in outputs.items()}
        nodes = ag.Graph(*outputs.values()).nodes
        within = [node.dtype for node in nodes if node.op and node.dtype.kind == "f"]
        floats = {name: np.result_type(output.dtype, np.float16) for name, output in outputs.items()}
        self.dtypes = {name: _narrowest(dtype, *within) for name, dtype in floats.items()}

    def at(self, arrays: Sequence[Array]) -> _Run:
        """The same elsewhere, or in other arithmetic."""
        return _Run(arrays, *self.settings)

    def moved(self, name: str, dtype: np.dtype[Any] | None = None) -> Array:
        """How far each entry may move when the inputs move by their last bits, in `dtype` or in the row's own."""
        unit = float(np.finfo(dtype or self.dtypes[name]).eps)
        if unit not in self.moves:
            self.moves[unit] = moved_by_last_bits(self.values, self.arrays, lambda a: self.at(a).values, unit)
        return self.moves[unit][name]

    def vanishes(self, name: str, size: Callable[[Array], Any] = largest) -> Any:
        """Whether what `size` looks at holds nothing but rounding errors."""
        return size(self.values[name]) <= size(self.moved(name))


def _narrowest(*dtypes: np.dtype[Any]) -> np.dtype[Any]:
    """The least exact of these; rationals are exact, whatever is beside them."""
    return dtypes[0] if dtypes[0].kind == "O" else max(dtypes, key=lambda dtype: float(np.finfo(dtype).eps))


def _in_wide_arithmetic(sides: Sequence[_Run]) -> tuple[list[_Run], str | None]:
    """Both functions in arithmetic wider than the inputs', and what to call it; none where there is none."""
    dtype = np.result_type(*sides[0].arrays)
    for wide, label in ((np.longdouble, "long double"), (np.float64, "float64")):
        if dtype.kind == "f" and np.finfo(wide).nmant > np.finfo(dtype).nmant:
            with suppress(Exception):  # whatever they raise on wide numbers, they don't take them
                runs = [side.at([a.astype(wide) for a in side.arrays]) for side in sides]
                return runs, f"the first function in {label} ({np.finfo(wide).nmant} bits)"
    return [], "the first function itself, which is exact" if dtype.kind == "O" else None


def _row(name: str, sides: Sequence[_Run], wide: Sequence[_Run]) -> Row:
    values = [side.values[name] for side in sides]
    dtype = _narrowest(*[side.dtypes[name] for side in sides])
    difference, scale = np.max(apart(*values), initial=0), max(map(largest, values))
    beyond, small = _disagreeing(name, wide or sides, dtype, sizes if wide else largest)
    agree, right = not beyond.any(), [True, True]
    ulp: tuple[float | None, ...] = (None, None)
    if wide:
        exact = wide[0].values[name]
        scale = largest(exact)
        unit = np.spacing(np.asarray(min(scale, 0.99 * float(np.finfo(dtype).max))).astype(dtype))
        errors = [_error(value, exact) for value in values]
        ulp = tuple([float(error / unit) for error in errors])
        right = [_is_rounding(error, name, side, wide[0], dtype) for error, side in zip(errors, sides, strict=True)]
    wrong = not right[0], bool(wide) and not (right[1] and agree)
    relative = float(difference / scale if scale else np.inf if difference else 0)
    bad = [~np.isfinite(value.astype(float) if dtype.kind == "O" else value) for value in values]
    columns = tuple(np.unique(np.argwhere(bad[0] | bad[1])[:, -1:]).tolist())
    ok, counts = agree and not any(wrong), tuple([int(where.sum()) for where in bad])
    return Row(name, bad[0].shape, float(difference), relative, ulp, ok, wrong, counts, columns, int(small.sum()))


def _disagreeing(
    name: str, runs: Sequence[_Run], dtype: np.dtype[Any], size: Callable[[Array], Any]
) -> tuple[Array, Array]:
    """Where two formulas differ by more than rounding, which may take half of the digits of `dtype`.

    And where they differ by more than the tolerance, but for larger numbers beside.
    """
    a, b = (run.values[name] for run in runs)
    off = apart(a, b)
    if dtype.kind == "O":
        return off != 0, np.zeros(off.shape, bool)
    tolerance, scale = FORMULA[str(dtype)], np.maximum(size(a), size(b))
    beyond = ~(off <= tolerance * scale)
    small = ~beyond & (off > tolerance * np.maximum(abs(a), abs(b)))
    if beyond.any():
        close = off <= float(np.sqrt(np.finfo(dtype).eps)) * scale
        close |= np.logical_and(*[run.vanishes(name, size) for run in runs])
        beyond &= ~(close & (off <= np.add(*[size(run.moved(name)) for run in runs])))
    return beyond, small


def _is_rounding(error: Any, name: str, side: _Run, exact: _Run, dtype: np.dtype[Any]) -> bool:
    """Whether one side's largest error may come from rounding in its own arithmetic."""
    small = ROUNDING[str(dtype)] * largest(exact.values[name]) + float(np.finfo(dtype).smallest_subnormal)
    if error <= small or error <= largest(exact.moved(name, dtype)):
        return True
    return bool(exact.vanishes(name) and error <= largest(side.moved(name, dtype)))


def _error(value: Array, exact: Array) -> Any:
    """The largest distance from the exact values, where those that overflow in the value's dtype are infinite there."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(value.dtype).astype(exact.dtype)
    finite = np.isfinite(value) & np.isfinite(exact)
    return np.max(apart(value.astype(exact.dtype), np.where(finite, exact, rounded)), initial=0)
