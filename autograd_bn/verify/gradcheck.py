"""`gradcheck`: the derivatives that rules compute against those that differences measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Rational
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array
from .finite_differences import Differences
from .orders import arguments, check_settings, derivatives, input_names, place, vjp

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

    def named(self, entry: int, rows: list[str]) -> str:
        """What one entry is called, where `rows` are the outputs' names."""
        row, column = divmod(entry, self.analytic.shape[1])
        return f"d {rows[row]} / d {place(self.name, np.unravel_index(column, self.shape))}"


class GradientError(AssertionError):
    """A derivative is wrong; the text says which, where, by how much, and what mistake it looks like.

    `rows` has a `Block` for each input, right or wrong, `order` is the order of the derivatives in it. `f`, `inputs`
    (float64 arrays; constants as they came) and `names` are what was checked.
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

    `f` takes tensors and returns a tensor or several. `inputs` are arrays of floats of any width: the check runs in
    float64. Tensors that don't require a gradient are constants. Every entry of the Jacobian is checked, with weights
    other than 1 on the outputs, and that the rules are linear in those weights. `order=2` also checks the gradient of
    the gradient, by the inputs and by the weights, and so on. Running statistics and every `.grad` stay as they are.

    A numeric derivative n comes with an estimate e of its own error (see `Differences`). A derivative a passes
    within both of

        bound = 10 (e + r) + 1e-11 m        limit = atol + rtol |n|

    where r is what moving the inputs by their last bits does to the rules' results, and m the largest derivative of the
    same output with respect to the same input. Beyond the bound it is wrong, however small that is: so a factor of
    1 - 1e-4 is found. Where the bound is wider than the limit the differences are too coarse, and the check is refused.
    `eps` is the smallest step, in standard deviations of the input.

    `GradientError` names the input, the worst entry, both values and the likely mistake, and holds every figure. It is
    a `ValueError` too where nothing can be judged, and says why: a kink nearer than `eps`, inputs that share memory,
    nothing that requires a gradient, outputs that don't depend on the inputs or differ from call to call. `TypeError`
    for inputs that aren't floats and results that aren't tensors.

    >>> import numpy as np, autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> ag.gradcheck(ag.batch_norm, [x, [2.0, 3.0], [0.0, 1.0]], order=2)
    True
    """
    check_settings(order, seed, f=f)
    for name, size, least in (("eps", eps, "above"), ("atol", atol, "of at least"), ("rtol", rtol, "of at least")):
        if not isinstance(size, int | float | np.floating) or not (0 < size < np.inf or (size == 0 and name != "eps")):
            raise ValueError(f"{name} is {size!r}, expected a finite number {least} 0")
    values = arguments(inputs)
    names = input_names(f, values)
    constants = [isinstance(value, Tensor) and not value.requires_grad for value in values]
    arrays = _checked_inputs(values, names, constants)
    rng = np.random.default_rng(seed)

    def recorded(at: Sequence[Array], k: int, record: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs and the weights of `k` orders as fresh leaves, and what is differentiated next, both by name."""
        rest = (array.copy() for array in at)
        tensors = [
            ag.as_tensor(a if constant else next(rest), requires_grad=not constant, name=name)
            for a, constant, name in zip(arrays, constants, names, strict=True)
        ]
        weigh = lambda _: ag.as_tensor(next(rest), requires_grad=True)
        variables, orders = derivatives(f, tensors, k, weigh, record=record, label="f")
        return variables, orders[-1]

    limit = lambda measured: atol + rtol * np.abs(measured)
    variables = [array for array, constant in zip(arrays, constants, strict=True) if not constant]
    for k in range(order):
        check = _Check(partial(recorded, k=k), variables, k, eps, limit, rng)
        try:
            check.run()
        except GradientError as error:
            error.f, error.inputs, error.names = f, tuple(arrays), tuple(names)
            error.rows, error.order = tuple(check.blocks), k + 1
            raise
        variables = [*variables, *[np.asarray(rng.normal(size=t.shape)) for t in check.outputs.values()]]
    return True


def _checked_inputs(values: list[Any], names: list[str], constants: list[bool]) -> list[Array]:
    """Every input as a private float64 array."""
    arrays = [np.asarray(value) for value in values]
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
        raise Unjudgeable(f"nothing to check: none of the {len(values)} inputs requires a gradient, or they are empty")
    return [np.array(a, dtype=np.float64) if a.dtype.kind in "fO" else a for a in arrays]


@dataclass
class _Check:
    """The check of the derivative of order `k + 1`: of the outputs that `recorded` gives, by its variables."""

    recorded: Any
    at: list[Array]
    k: int
    eps: float
    limit: Callable[[Array], Array]
    rng: np.random.Generator

    def __post_init__(self) -> None:
        self.leaves, self.outputs = self.recorded(self.at)
        self.graph = ag.Graph(*self.outputs.values())
        self.blocks: list[Block] = []

    def run(self) -> None:
        """Judge every derivative by the rules, and that these are linear in the incoming gradient."""
        if self.k == 0:
            self.refuse_what_cannot_be_judged()
        differences = self.measured()
        # A weight of 1 would not show a rule that squares it; the two sums are of both signs, as a rule may take |g|.
        size = sum(output.size for output in self.outputs.values())
        scale = self.rng.uniform(0.5, 2, size) * self.rng.choice([-1, 1], size)
        sums = np.outer([1, -1.5], self.rng.normal(size=size))
        weighed = [self.gradients(weights, self.leaves, self.outputs) for weights in (*np.diag(scale), *sums)]
        rounding, linear = self.rounding(sums[0], weighed[-2]), True
        for i, (name, leaf) in enumerate(self.leaves.items()):
            rows = np.array([gradients[i].ravel() for gradients in weighed])
            analytic = rows[:-2] / scale[:, None]
            measured, error = differences.jacobian(i)
            floor = 1e-11 * np.max(np.abs(measured), axis=1, keepdims=True, initial=0) + _UNDERFLOW
            bound = 10 * (error + rounding[i]) + floor
            self.blocks.append(Block(name, leaf.shape, analytic, measured, bound, self.limit(measured)))
            linear &= not np.any(np.abs(rows[-2:] - sums @ analytic) > np.abs(sums) @ bound)
        self.judge(linear)

    def measured(self) -> Differences:
        """The derivatives by differences; `Unjudgeable` at a kink."""
        floats = [a for a in map(np.asarray, self.graph.values().values()) if a.dtype.kind == "f"]
        magnitude = max(float(np.max(np.abs(a), initial=0, where=np.isfinite(a))) for a in floats)
        differences = Differences(self.values, self.at, smallest=self.eps, magnitude=magnitude, rng=self.rng)
        if kink := differences.kink():
            i, index = kink
            raise Unjudgeable(
                f"f is not smooth within {self.eps * differences.scale[i]:.1g} of {place([*self.leaves][i], index)} = "
                f"{self.at[i][index]:.6g} (a kink, a jump, the edge of its domain or a very steep place): "
                "there is no derivative to compare with, move that element"
            )
        return differences

    def values(self, at: Sequence[Array]) -> list[Array]:
        """The outputs elsewhere."""
        return [output.data for output in self.recorded(at, record=False)[1].values()]

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

    def gradients(self, weights: Array, leaves: dict[str, Tensor], outputs: dict[str, Tensor]) -> list[Array]:
        """The gradients of the outputs weighed by a vector."""
        parts = np.split(weights, np.cumsum([output.size for output in outputs.values()])[:-1])
        shaped = [part.reshape(output.shape) for part, output in zip(parts, outputs.values(), strict=True)]
        return [g.data for g in vjp(outputs.values(), leaves.values(), shaped)]

    def rounding(self, weights: Array, here: list[Array]) -> list[float]:
        """How far rounding may throw the rules' results: what moving the inputs by their last bits does to them."""
        most = [0.0] * len(here)
        for _ in range(2):
            at = [a * (1 + 2**-51 * self.rng.uniform(-1, 1, a.shape)) for a in self.at]
            there = self.gradients(weights, *self.recorded(at))
            most = [max(m, float(np.max(np.abs(a - b), initial=0))) for m, a, b in zip(most, here, there, strict=True)]
        return most

    def judge(self, linear: bool) -> None:
        """Raise where the rules are wrong, then where what was measured is too coarse to say."""
        rows = [place(name, i) for name, output in self.outputs.items() for i in np.ndindex(output.shape)]
        bad = [block for block in self.blocks if block.wrong.any()]
        if bad or not linear:
            what = f"derivative of order {self.k + 1}" if self.k else "gradient"
            text = [f"the {what} with respect to {', '.join(block.name for block in bad or self.blocks)} is wrong"]
            for block in bad:
                off = np.where(block.wrong, np.nan_to_num(np.abs(block.analytic - block.measured), nan=np.inf), -1)
                worst = int(np.argmax(off))
                analytic, measured, bound = (a.flat[worst] for a in (block.analytic, block.measured, block.bound))
                text.append(
                    f"  {block.name}: {block.wrong.sum()} of {off.size} entries, worst {block.named(worst, rows)}: "
                    f"got {analytic:.10g}, expected {measured:.10g} (measured to {bound:.1g})"
                )
                text += [f"  likely mistake: {_likely(block)}"] if linear else []
            text += [] if linear else ["  likely mistake: the rule is not linear in the incoming gradient"]
            stops = [node.params["norm"].stop for node in self.graph.nodes if node.own_op == "batch_norm"]
            if any(stops) or any(node.own_op == "stop_gradient" for node in self.graph.nodes):
                text += ["  note: f stops a gradient on purpose (stop_gradient or stop=), which differences do not see"]
            raise GradientError("\n".join(text))
        for block in self.blocks:
            for i in np.flatnonzero(~(np.abs(block.analytic - block.measured) <= block.limit))[:1]:
                raise Unjudgeable(
                    f"the numeric value of {block.named(i, rows)} is good to {block.bound.flat[i]:.3g} only, "
                    f"more than atol + rtol * |value| = {block.limit.flat[i]:.3g}: "
                    "f is too noisy, too steep or too near a kink here"
                )


def _likely(block: Block) -> str:
    """The kind of mistake that a wrong block looks like."""
    analytic, measured, shape = block.analytic, block.measured, block.shape
    if not np.isfinite(analytic).all():
        return "an overflow or a division by 0"
    close = block.bound + 1e-9 * np.max(np.abs(measured))
    factor = float(np.vdot(measured, analytic) / (np.vdot(measured, measured) or 1))
    if np.all(np.abs(analytic - factor * measured) <= close):
        times = f"{factor:.7g}" if abs(factor - 1) > 1e-6 else f"(1 {factor - 1:+.1e})"
        return f"every entry is {times} times the right one"
    if len(shape) == 2 and shape[0] == shape[1]:
        turned = analytic.reshape(-1, *shape).swapaxes(1, 2).reshape(analytic.shape)
        if np.all(np.abs(turned - measured) <= close):
            return f"transposed: the two axes of {block.name} are exchanged"
    return "a term is missing, or has a wrong factor"
