"""`gradcheck`: the derivatives that rules compute against those that differences measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from numbers import Rational
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array, no_update
from .finite_differences import Differences
from .orders import check_order, derivatives, input_names, pull

# Below it products of derivatives with each other vanish in float64.
_UNDERFLOW = 1e-60


@dataclass(frozen=True)
class Block:
    """The derivatives of all outputs (rows) by the elements of one input (columns), as the check saw them.

    `analytic` comes from the rules, `measured` from differences, `bound` is how far apart the two may be;
    `limit` is atol + rtol * |measured|, and `shape` the input's.
    """

    name: str
    shape: tuple[int, ...]
    analytic: Array
    measured: Array
    bound: Array
    limit: Array

    @property
    def wrong(self) -> Array:
        """Where the rules are further from what was measured than that can be off."""
        return np.asarray(~(np.abs(self.analytic - self.measured) <= self.bound) & (self.bound <= self.limit))


class GradientError(AssertionError):
    """A derivative is wrong; the text says which, where, by how much, and what mistake it looks like.

    `rows` has a `Block` for each input, right or wrong, `order` is the order of the derivatives in it. `f`, `inputs`
    (float64 arrays; constants as they were given) and `names` are what was checked.
    """

    rows: tuple[Block, ...] = ()
    order: int = 1
    f: Callable[..., Any] | None = None
    inputs: tuple[Any, ...] = ()
    names: tuple[str, ...] = ()


class Unjudgeable(GradientError, ValueError):
    """The check can't tell a right derivative from a wrong one here; the text says why."""


def gradcheck(
    f: Callable[..., Any],
    inputs: Any,
    *,
    order: int = 1,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    seed: int = 0,
) -> bool:
    """Check the derivatives of `f(*inputs)` against numeric ones: True, or `GradientError`.

    `f` takes tensors and returns a tensor or several. `inputs` are arrays of floats, whatever their width:
    the check runs in float64. Tensors that don't require a gradient are constants. Every entry of the
    Jacobian is checked with weights other than 1 on the outputs, and that the rules are linear in those
    weights. `order=2` also checks the gradient of the gradient, with respect to the inputs and to the
    weights, and so on upwards. Running statistics and every `.grad` stay as they are.

    The numeric derivative n comes with an estimate e of its own error (see `Differences`). With it a derivative
    a is judged by

        bound = 10 (e + r) + 1e-11 m        limit = atol + rtol |n|

    where r is what moving the inputs by their last bits does to the rules' results, and m the largest
    derivative of the same output with respect to the same input. It passes within both. It is wrong beyond
    the bound, however small that is: so a factor of 1 - 1e-4 is found. Where the bound is wider than the
    limit the differences are too coarse, and what they can't hold to the limit is refused. `eps` is the
    smallest step, in units of the standard deviation of the input.

    `GradientError` names the input, the worst entry, both values and the likely mistake; it holds the figures of
    every entry. What can't be judged is refused with the reason, by a `GradientError` that is a `ValueError` too:
    a kink nearer than `eps`, inputs that share memory, nothing that requires a gradient, outputs that don't depend
    on the inputs or differ from call to call.
    `TypeError` for inputs that aren't floats and results that aren't tensors.

    >>> import autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> ag.gradcheck(ag.batch_norm, [x, [2.0, 3.0], [0.0, 1.0]], order=2)
    True
    """
    check_order(order)
    given = [inputs] if isinstance(inputs, np.ndarray | Tensor) else list(inputs)
    names = input_names(f, given)
    constants = [isinstance(value, Tensor) and not value.requires_grad for value in given]
    arrays = _checked_inputs(given, names, constants)
    rng = np.random.default_rng(seed)

    def record(variables: Sequence[Array], k: int, record: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs and the weights of `k` orders as fresh leaves, and what is differentiated next, both by name."""
        rest = iter([ag.as_tensor(array.copy(), requires_grad=True) for array in variables])
        tensors = [ag.as_tensor(a) if constant else next(rest) for a, constant in zip(arrays, constants, strict=True)]
        for tensor, name in zip(tensors, names, strict=True):
            tensor.name = name
        *_, last = derivatives(f, tensors, k, lambda _: next(rest), record=record, label="f")
        return last

    with no_update():
        variables = [array for array, constant in zip(arrays, constants, strict=True) if not constant]
        for k in range(order):
            try:
                check = _Check(partial(record, k=k), variables, k, eps, atol, rtol, rng)
                check.run()
            except GradientError as error:
                error.f, error.inputs, error.names, error.order = f, tuple(arrays), tuple(names), k + 1
                raise
            variables = [*variables, *[np.asarray(rng.normal(size=t.shape)) for t in check.outputs.values()]]
    return True


def _checked_inputs(given: list[Any], names: list[str], constants: list[bool]) -> list[Array]:
    """Every input as a private float64 array."""
    arrays = [np.asarray(value) for value in given]
    for i, (array, name) in enumerate(zip(arrays, names, strict=True)):
        where = f"inputs[{i}] ({name})"
        exact = array.dtype == object and all(isinstance(number, Rational) for number in array.flat)
        if not (array.dtype.kind == "f" or exact or constants[i]):
            raise TypeError(
                f"{where} has dtype {array.dtype}, expected floats: convert it, or pass a constant as a tensor "
                "without requires_grad"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unjudgeable(f"{where} holds {array[~np.isfinite(array)][0]}: differences need finite numbers")
        for j in range(i):
            if np.shares_memory(array, arrays[j]):
                raise Unjudgeable(
                    f"inputs[{j}] ({names[j]}) and {where} share memory, so neither can change alone: pass a copy"
                )
    if all(constants):
        raise Unjudgeable(f"nothing to check: none of the {len(given)} inputs requires a gradient")
    if not any(a.size for a, constant in zip(arrays, constants, strict=True) if not constant):
        raise Unjudgeable("nothing to check: the inputs are empty")
    return [np.array(a, dtype=np.float64) if a.dtype.kind in "fO" else a for a in arrays]


class _Check:
    """The check of one order: of the outputs that `record` gives, by its variables."""

    def __init__(
        self, record: Any, at: list[Array], k: int, eps: float, atol: float, rtol: float, rng: np.random.Generator
    ) -> None:
        self.record, self.at, self.k, self.atol, self.rtol, self.rng = record, at, k, atol, rtol, rng
        self.leaves, self.outputs = record(at)
        self.size = sum(output.size for output in self.outputs.values())
        self.nodes = ag.Graph(*self.outputs.values()).nodes
        if k == 0:
            self.refuse_what_cannot_be_judged()
        values = ag.Graph(*self.outputs.values()).values().values()
        floats = [a for a in map(np.asarray, values) if a.dtype.kind == "f"]
        magnitude = max(float(np.max(np.abs(a), initial=0, where=np.isfinite(a))) for a in floats)
        self.differences = Differences(self.values, at, smallest=eps, magnitude=magnitude, rng=rng)
        kink = self.differences.kink()
        if kink is not None:
            i, index = kink
            raise Unjudgeable(
                f"f is not smooth within {eps * self.differences.scale[i]:.1g} of {[*self.leaves][i]}{_at(index)} = "
                f"{at[i][index]:.6g} (a kink, a jump, the edge of its domain or a very steep place): "
                "there is no derivative to compare with, move that element"
            )

    def values(self, at: Sequence[Array]) -> list[Array]:
        """The outputs elsewhere."""
        return [output.data for output in self.record(at, record=False)[1].values()]

    def refuse_what_cannot_be_judged(self) -> None:
        """Raise where no difference of `f` could say whether its derivative is right."""
        for name, output in self.outputs.items():
            if output.dtype.kind != "f":
                raise TypeError(f"{name} has dtype {output.dtype}, expected floats")
            if not np.isfinite(output.data).all():
                bad = output.data[~np.isfinite(output.data)][0]
                raise Unjudgeable(f"{name} holds {bad}: there is no derivative there")
        for again in (self.values(self.at), self.values(self.at)):
            apart = [np.max(np.abs(b - a.data), initial=0) for a, b in zip(self.outputs.values(), again, strict=True)]
            if max(apart) > 0:
                raise Unjudgeable(
                    "f is not deterministic: it returned other values for the same inputs "
                    f"(they differ by up to {max(apart):.3g}); fix its seed inside f"
                )
        moving = {leaf.node for leaf in self.leaves.values()}
        for node in self.nodes:
            if node in moving or not moving.isdisjoint(node.inputs):
                moving.add(node)
                if node.dtype.kind == "f" and node.dtype.itemsize < 8:
                    raise Unjudgeable(
                        f"f computes in {node.dtype} ({node.op}) on float64 inputs: take the conversion out of f"
                    )
        if not any(output.requires_grad for output in self.outputs.values()):
            names = ", ".join(self.leaves)
            raise Unjudgeable(f"no output of f depends on its inputs ({names}): every gradient would pass")

    def run(self) -> None:
        rounding = self.measured_rounding()
        blocks = []
        for i, ((name, leaf), analytic) in enumerate(zip(self.leaves.items(), self.jacobians(), strict=True)):
            measured, error = self.differences.jacobian(i)
            floor = 1e-11 * np.max(np.abs(measured), axis=1, keepdims=True, initial=0) + _UNDERFLOW
            limit = self.atol + self.rtol * np.abs(measured)
            blocks.append(Block(name, leaf.shape, analytic, measured, 10 * (error + rounding[i]) + floor, limit))
        try:
            self.check_linear(blocks, rounding)
            self.judge(blocks)
        except GradientError as error:
            error.rows = tuple(blocks)
            raise

    def pull(self, weights: Array, at: Sequence[Array] | None = None) -> list[Array]:
        """The gradients of the outputs weighed by a vector, here or elsewhere."""
        leaves, outputs = (self.leaves, self.outputs) if at is None else self.record(at)
        parts = np.split(weights, np.cumsum([output.size for output in outputs.values()])[:-1])
        shaped = [part.reshape(output.shape) for part, output in zip(parts, outputs.values(), strict=True)]
        return [g.data for g in pull(outputs.values(), leaves.values(), shaped)]

    def measured_rounding(self) -> list[float]:
        """How far rounding may throw the rules' results: what moving the inputs by their last bits does to them."""
        weights = self.rng.normal(size=self.size)
        here = self.pull(weights)
        most = [0.0] * len(here)
        for _ in range(2):
            there = self.pull(weights, [a * (1 + 2**-51 * self.rng.uniform(-1, 1, a.shape)) for a in self.at])
            most = [max(m, float(np.max(np.abs(a - b), initial=0))) for m, a, b in zip(most, here, there, strict=True)]
        return most

    def jacobians(self) -> list[Array]:
        """Every derivative by the rules, for each variable an array of outputs by elements."""
        found = [np.empty((self.size, leaf.size)) for leaf in self.leaves.values()]
        # A weight of 1 would not show a rule that squares it.
        for k, weight in enumerate(self.rng.uniform(0.5, 2, self.size) * self.rng.choice([-1, 1], self.size)):
            for rows, gradient in zip(found, self.pull(weight * (np.arange(self.size) == k)), strict=True):
                rows[k] = gradient.ravel() / weight
        return found

    def check_linear(self, blocks: list[Block], rounding: list[float]) -> None:
        """A backward pass is linear in the weights of the outputs, so that its rows give every other."""
        first = self.rng.normal(size=self.size)
        # A rule may take |g|, which one sign alone does not show.
        for weights, (i, block) in product((first, -1.5 * first), enumerate(blocks)):
            gradient = self.pull(weights)[i]
            if not np.isfinite(block.analytic).all():
                continue
            expected = weights @ block.analytic
            error = np.abs(gradient.ravel() - expected)
            size = np.max(np.abs(weights) @ np.abs(block.analytic), initial=0)
            noise = np.abs(weights) @ self.differences.noise[i]
            noise += 2**-52 * np.max(np.abs(weights)) * self.differences.magnitude  # of terms that cancelled
            bound = 1e-11 * size + _UNDERFLOW + 100 * (rounding[i] + noise / self.differences.scale[i])
            limit = self.atol + self.rtol * np.abs(expected)
            for j in np.flatnonzero(~(error <= np.minimum(bound, limit)))[:1]:
                text = (
                    f"at {block.name}{_at(np.unravel_index(j, block.shape))}: {gradient.ravel()[j]:.10g} for weights w "
                    f"on the outputs, but {expected[j]:.10g} as the sum over the outputs one by one"
                )
                if error[j] <= bound:
                    raise Unjudgeable(f"{text}: more than atol + rtol * |value|, but rounding may do that here")
                mistake = "the rule is not linear in the incoming gradient"
                raise GradientError(f"{self.title([block])}\n  {text}\n  likely mistake: {mistake}")

    def judge(self, blocks: list[Block]) -> None:
        bad = [block for block in blocks if block.wrong.any()]
        if bad:
            text = [self.title(bad), *map(self.report, bad)]
            if any(node.op == "stop_gradient" or node.params.get("stop") for node in self.nodes):
                text += ["  note: f stops a gradient on purpose (stop_gradient or stop=), which differences do not see"]
            raise GradientError("\n".join(text))
        for block in blocks:
            for row, column in np.argwhere(~(np.abs(block.analytic - block.measured) <= block.limit))[:1]:
                good, limit = block.bound[row, column], block.limit[row, column]
                raise Unjudgeable(
                    f"the numeric value of {self.entry(block, row, column)} is good to {good:.3g} only, "
                    f"more than atol + rtol * |value| = {limit:.3g}: f is too noisy, too steep or too near a kink here"
                )

    def title(self, bad: list[Block]) -> str:
        what = f"derivative of order {self.k + 1}" if self.k else "gradient"
        return f"the {what} with respect to {', '.join(block.name for block in bad)} is wrong"

    def entry(self, block: Block, row: int, column: int) -> str:
        places = [f"{name}{_at(index)}" for name, output in self.outputs.items() for index in np.ndindex(output.shape)]
        return f"d {places[row]} / d {block.name}{_at(np.unravel_index(column, block.shape))}"

    def report(self, block: Block) -> str:
        off = np.nan_to_num(np.abs(block.analytic - block.measured), nan=np.inf)
        row, column = map(int, np.unravel_index(np.argmax(np.where(block.wrong, off, -1)), off.shape))
        shapes = [output.shape for output in self.outputs.values()]
        return (
            f"  {block.name}: {block.wrong.sum()} of {off.size} entries, worst {self.entry(block, row, column)}: "
            f"got {block.analytic[row, column]:.10g}, expected {block.measured[row, column]:.10g} "
            f"(measured to {block.bound[row, column]:.1g})\n"
            f"  likely mistake: {likely(block, shapes[0] if len(shapes) == 1 else off.shape[:1])}"
        )


def likely(block: Block, output: tuple[int, ...]) -> str:
    """The kind of mistake that a wrong block looks like."""
    got, want, shape, wrong = block.analytic, block.measured, block.shape, block.wrong

    def fits(guess: Array) -> bool:
        return bool(np.all(np.abs(guess - want) <= block.bound + 1e-9 * np.max(np.abs(want))))

    if not np.isfinite(got).all():
        return "an overflow or a division by 0"
    if not got.any():
        return "the whole term is missing, the gradient is 0"
    if not want.any():
        return "a gradient where there should be none"
    factor = float(np.vdot(want, got) / np.vdot(want, want))
    if fits(-got):
        return "the sign is flipped"
    if factor and fits(got / factor):
        times = f"{factor:.7g}" if abs(factor - 1) > 1e-6 else f"(1 {factor - 1:+.1e})"
        return f"every entry is {times} times the right one"
    if len(shape) == 2 and shape[0] == shape[1] and fits(got.reshape(-1, *shape).swapaxes(1, 2).reshape(got.shape)):
        return f"transposed: the two axes of {block.name} are exchanged"
    for axis, length in enumerate(output):
        by_index = [np.moveaxis(a.reshape(*output, -1), axis, 0) for a in (wrong, got)]
        counted = [i for i in range(length) if not by_index[0][i].any()]
        if 0 < len(counted) < length and not np.delete(by_index[1], counted, axis=0).any():
            return f"not summed over a broadcast axis: only index {counted} of axis {axis} of the output is counted"
    columns = wrong.any(axis=0)
    if not columns.all():
        first = _at(np.unravel_index(int(np.argmax(columns)), shape))
        return f"{columns.sum()} of {columns.size} elements of {block.name} get a wrong gradient, the first at {first}"
    rest = (want - got).reshape(-1, *shape)
    for axis in range(len(shape)):
        if shape[axis] > 1 and np.ptp(rest, axis=axis + 1).max() <= 1e-7 * np.abs(rest).max():
            return f"a term through a sum or mean over axis {axis} of {block.name} is missing or wrong"
    return "a term is missing, or has a wrong factor"


def _at(index: Any) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]" if len(index) else ""
