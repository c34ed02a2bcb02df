"""`gradcheck`: the derivatives that rules compute against those that differences measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
_NOT_LINEAR = "the rule is not linear in the incoming gradient"


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

    def at(self, place: int, rows: list[str]) -> Any:
        """What one entry is called, and its figures; `rows` are the outputs' names."""
        row, column = divmod(place, self.analytic.shape[1])
        entry = f"d {rows[row]} / d {self.name}{_at(np.unravel_index(column, self.shape))}"
        return entry, *[a.flat[place] for a in (self.analytic, self.measured, self.bound, self.limit)]


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
    Jacobian is checked, with weights other than 1 on the outputs, and that the rules are linear in those
    weights. `order=2` also checks the gradient of the gradient, with respect to the inputs and to the
    weights, and so on upwards. Running statistics and every `.grad` stay as they are.

    A numeric derivative n comes with an estimate e of its own error (see `Differences`). A derivative a passes
    within both of

        bound = 10 (e + r) + 1e-11 m        limit = atol + rtol |n|

    where r is what moving the inputs by their last bits does to the rules' results, and m the largest
    derivative of the same output with respect to the same input. Beyond the bound it is wrong, however small that
    is: so a factor of 1 - 1e-4 is found. Where the bound is wider than the limit the differences are too coarse, and
    what they can't hold to the limit is refused. `eps` is the smallest step, in standard deviations of the input.

    `GradientError` names the input, the worst entry, both values and the likely mistake; it holds the figures of
    every entry. It is a `ValueError` too where nothing can be judged, and says why: a kink nearer than `eps`, inputs
    that share memory, nothing that requires a gradient, outputs that don't depend on the inputs or differ from call to
    call. `TypeError` for inputs that aren't floats and results that aren't tensors.

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

    def record(at: Sequence[Array], k: int, record: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs and the weights of `k` orders as fresh leaves, and what is differentiated next, both by name."""
        rest = (array.copy() for array in at)
        tensors = [
            ag.as_tensor(a if constant else next(rest), requires_grad=not constant, name=name)
            for a, constant, name in zip(arrays, constants, names, strict=True)
        ]
        weigh = lambda _: ag.as_tensor(next(rest), requires_grad=True)
        *_, last = derivatives(f, tensors, k, weigh, record=record, label="f")
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
    if not any(a.size and not constant for a, constant in zip(arrays, constants, strict=True)):
        raise Unjudgeable(f"nothing to check: none of the {len(given)} inputs requires a gradient, or they are empty")
    return [np.array(a, dtype=np.float64) if a.dtype.kind in "fO" else a for a in arrays]


class _Check:
    """The check of one order: of the outputs that `record` gives, by its variables."""

    def __init__(
        self, record: Any, at: list[Array], k: int, eps: float, atol: float, rtol: float, rng: np.random.Generator
    ) -> None:
        self.record, self.at, self.k, self.atol, self.rtol, self.rng = record, at, k, atol, rtol, rng
        self.leaves, self.outputs = record(at)
        self.size = sum(output.size for output in self.outputs.values())
        self.graph = ag.Graph(*self.outputs.values())
        if k == 0:
            self.refuse_what_cannot_be_judged()
        floats = [a for a in map(np.asarray, self.graph.values().values()) if a.dtype.kind == "f"]
        magnitude = max(float(np.max(np.abs(a), initial=0, where=np.isfinite(a))) for a in floats)
        self.differences = Differences(self.values, at, smallest=eps, magnitude=magnitude, rng=rng)
        if kink := self.differences.kink():
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
            if not np.isfinite(output.data).all():
                raise Unjudgeable(f"{name} is not finite: there is no derivative there")
        for again in (self.values(self.at), self.values(self.at)):
            if not all(map(np.array_equal, self.outputs.values(), again)):
                raise Unjudgeable(
                    "f is not deterministic: it returned other values for the same inputs; fix its seed inside f"
                )
        moving = {leaf.node for leaf in self.leaves.values()}
        for node in self.graph.nodes:
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
        """Judge every derivative, then that of two weighted sums: a backward pass is linear in its weights."""
        weights = np.outer([1, -1.5], self.rng.normal(size=self.size))  # of both signs, since a rule may take |g|
        pulled = list(map(self.pull, weights))
        rounding = self.rounding(weights[0], pulled[0])
        blocks, sums, linear = [], [], True
        for i, ((name, leaf), analytic) in enumerate(zip(self.leaves.items(), self.jacobians(), strict=True)):
            measured, error = self.differences.jacobian(i)
            floor = 1e-11 * np.max(np.abs(measured), axis=1, keepdims=True, initial=0) + _UNDERFLOW
            figures = measured, 10 * (error + rounding[i]) + floor, self.atol + self.rtol * np.abs(measured)
            blocks.append(Block(name, leaf.shape, analytic, *figures))
            rows = np.array([gradients[i].ravel() for gradients in pulled])
            summed = [w @ figure for w, figure in zip((weights, abs(weights), abs(weights)), figures, strict=True)]
            sums.append(Block(name, leaf.shape, rows, *summed))
            linear &= not np.any(np.abs(rows - weights @ analytic) > 1e-6 * np.abs(weights) @ np.abs(analytic))
        entries = [f"{name}{_at(i)}" for name, output in self.outputs.items() for i in np.ndindex(output.shape)]
        try:
            self.judge(blocks, entries, "" if linear else _NOT_LINEAR)
            self.judge(sums, ["(a weighted sum of f)"] * 2, _NOT_LINEAR)
        except GradientError as error:
            error.rows = tuple(blocks)
            raise

    def pull(self, weights: Array, at: Sequence[Array] | None = None) -> list[Array]:
        """The gradients of the outputs weighed by a vector, here or elsewhere."""
        leaves, outputs = (self.leaves, self.outputs) if at is None else self.record(at)
        parts = np.split(weights, np.cumsum([output.size for output in outputs.values()])[:-1])
        shaped = [part.reshape(output.shape) for part, output in zip(parts, outputs.values(), strict=True)]
        return [g.data for g in pull(outputs.values(), leaves.values(), shaped)]

    def rounding(self, weights: Array, here: list[Array]) -> list[float]:
        """How far rounding may throw the rules' results: what moving the inputs by their last bits does to them."""
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

    def judge(self, blocks: list[Block], rows: list[str], mistake: str = "") -> None:
        """Raise where the rules are wrong, then where what was measured is too coarse to say; `rows` names outputs."""
        if bad := [block for block in blocks if block.wrong.any()]:
            what = f"derivative of order {self.k + 1}" if self.k else "gradient"
            text = [f"the {what} with respect to {', '.join(block.name for block in bad)} is wrong"]
            for block in bad:
                off = np.where(block.wrong, np.nan_to_num(np.abs(block.analytic - block.measured), nan=np.inf), -1)
                entry, got, expected, bound, _ = block.at(int(np.argmax(off)), rows)
                text += [
                    f"  {block.name}: {block.wrong.sum()} of {off.size} entries, worst {entry}: got {got:.10g}, "
                    f"expected {expected:.10g} (measured to {bound:.1g})",
                    f"  likely mistake: {mistake or _likely(block)}",
                ]
            if any(node.op == "stop_gradient" or node.params.get("stop") for node in self.graph.nodes):
                text += ["  note: f stops a gradient on purpose (stop_gradient or stop=), which differences do not see"]
            raise GradientError("\n".join(text))
        for block in blocks:
            for place in np.flatnonzero(~(np.abs(block.analytic - block.measured) <= block.limit))[:1]:
                entry, _, _, bound, limit = block.at(place, rows)
                raise Unjudgeable(
                    f"the numeric value of {entry} is good to {bound:.3g} only, more than atol + rtol * |value| = "
                    f"{limit:.3g}: f is too noisy, too steep or too near a kink here"
                )


def _likely(block: Block) -> str:
    """The kind of mistake that a wrong block looks like."""
    got, want, shape = block.analytic, block.measured, block.shape
    if not np.isfinite(got).all():
        return "an overflow or a division by 0"
    close = block.bound + 1e-9 * np.max(np.abs(want))
    factor = float(np.vdot(want, got) / (np.vdot(want, want) or 1))
    if np.all(np.abs(got - factor * want) <= close):
        times = f"{factor:.7g}" if abs(factor - 1) > 1e-6 else f"(1 {factor - 1:+.1e})"
        return f"every entry is {times} times the right one"
    if len(shape) == 2 and shape[0] == shape[1]:
        turned = got.reshape(-1, *shape).swapaxes(1, 2).reshape(got.shape)
        if np.all(np.abs(turned - want) <= close):
            return f"transposed: the two axes of {block.name} are exchanged"
    return "a term is missing, or has a wrong factor"


def _at(index: Any) -> str:
    return f"[{', '.join(str(int(i)) for i in index)}]" if len(index) else ""
