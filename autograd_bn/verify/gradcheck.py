"""`gradcheck`: the derivatives that rules compute against those that differences measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.node import Array, no_update, topological_order
from ..engine.tensor import check_differentiable
from .compare import input_names
from .finite_differences import Differences
from .mutations import Power, measure

# Below it products of derivatives with each other vanish in float64.
_UNDERFLOW = 1e-60


class GradientError(AssertionError):
    """A derivative is wrong; the text says which, where, by how much, and what mistake it looks like."""


class CannotJudge(GradientError, ValueError):
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
    projections: int | None = None,
    power: bool = False,
) -> bool | Power:
    """Check the derivatives of `f(*inputs)` against numeric ones: True, or `GradientError`.

    `f` takes tensors and returns a tensor or several. `inputs` are arrays of floats, whatever their width:
    the check runs in float64. Tensors that don't require a gradient are constants. Every entry of the
    Jacobian is checked with weights other than 1 on the outputs, and that the rules are linear in those
    weights. `order=2` also checks the gradient of the gradient, with respect to the inputs and to the
    weights, and so on upwards. Running statistics and every `.grad` stay as they are.

    The numeric derivative n comes with an estimate e of its own error (see `Differences`): complex steps where
    `f` takes complex arrays, else central differences extrapolated twice. With it a derivative a is judged by

        bound = 10 (e + r) + 1e-11 m        limit = atol + rtol |n|

    where r is what moving the inputs by their last bit does to the rules' results, and m the largest
    derivative of the same output with respect to the same input. It passes within both. It is wrong beyond
    the bound, however small that is: so a factor of 1 - 1e-4 is found. Where the bound is wider than the
    limit the differences are too coarse, and what they can't hold to the limit is refused. `eps` is the
    smallest step, in units of the standard deviation of the input.

    `projections=k` is for large inputs, and weaker: k random directions an input and k random weightings of
    the outputs in the place of every entry. A mistake in few entries of many may hide in the sum.

    `power=True` measures what the check is worth: it drops, flips, scales by 1 +- 1e-4 and transposes every
    term of the rules that `f` uses, one at a time, and counts what would be caught. A mistake that changes a
    gradient and survives fails the check. The result is a `Power`, with `share`, `planted`, `caught` and
    `survivors`, in the place of True.

    `GradientError` names the input, the worst entry, both values and the likely mistake. What can't be judged
    is refused with the reason, by a `GradientError` that is a `ValueError` too: a kink nearer than `eps`,
    inputs that share memory, nothing that requires a gradient, outputs that don't depend on the inputs or
    differ from call to call. `TypeError` for inputs that aren't floats and results that aren't tensors.

    >>> import autograd_bn as ag
    >>> x = np.array([[1.0, 2.0], [3.0, 5.0], [4.0, 9.0]])
    >>> ag.gradcheck(ag.batch_norm, [x, [2.0, 3.0], [0.0, 1.0]], order=2)
    True
    >>> ag.gradcheck(ag.batch_norm, [x], power=True).share
    1.0
    """
    if order < 1:
        raise ValueError(f"order is {order}, expected 1 or more")
    if projections is not None and projections < 1:
        raise ValueError(f"projections is {projections}, expected None (every entry) or 1 or more")
    if projections is not None and power:
        raise ValueError("power=True needs every entry of the Jacobian: leave projections out")
    given = [inputs] if isinstance(inputs, np.ndarray | Tensor) else list(inputs)
    names = input_names(f, given)
    arrays, checked = _checked_inputs(given, names)
    rng = np.random.default_rng(seed)
    with no_update():
        level = level_of(f, arrays, checked, names)
        _refuse_what_cannot_be_judged(level)
        total = None
        for k in range(1, order + 1):
            check = _Check(level, k, eps, atol, rtol, projections, rng)
            blocks = check.run()
            if power:
                found = check.power(blocks)
                total = found if total is None else total + found
            if k < order:
                level = level.gradient(lambda shape: np.asarray(rng.normal(size=shape)))
    return total or True


def _checked_inputs(given: list[Any], names: list[str]) -> tuple[list[Any], list[bool]]:
    """Every input as a private float64 array, and which of them to check."""
    arrays, checked = [], []
    for i, value in enumerate(given):
        where = f"inputs[{i}] ({names[i]})"
        constant = isinstance(value, Tensor) and not value.requires_grad
        array = np.asarray(value)
        if not constant:
            try:
                check_differentiable(array)
            except TypeError:
                raise TypeError(
                    f"{where} has dtype {array.dtype}, expected floats: convert it, or pass a constant as a tensor "
                    "without requires_grad"
                ) from None
        if array.dtype.kind in "fO":
            array = np.array(array, dtype=np.float64)
            if not np.isfinite(array).all():
                raise CannotJudge(f"{where} holds {array[~np.isfinite(array)][0]}: differences need finite numbers")
        arrays.append(array)
        checked.append(not constant)
    if not any(checked) or not any(a.size for a, wanted in zip(arrays, checked, strict=True) if wanted):
        raise CannotJudge(
            f"nothing to check: none of the {len(given)} inputs requires a gradient"
            if not any(checked)
            else "nothing to check: the inputs are empty"
        )
    views = [np.asarray(value) for value in given]
    for i, a in enumerate(views):
        for j in range(i):
            if np.shares_memory(a, views[j]):
                raise CannotJudge(
                    f"inputs[{j}] ({names[j]}) and inputs[{i}] ({names[i]}) share memory, so neither can change "
                    "alone: pass a copy of one"
                )
    return arrays, checked


# --- What is differentiated --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """A function of arrays whose derivative is checked: `f` itself, or the gradient of a lower level.

    `function(tensors, recorded)` gives the outputs; unless `recorded`, it need not record its last step.
    """

    function: Callable[[list[Tensor], bool], list[Any]]
    arrays: list[Array]
    names: list[str]
    outputs: list[str]

    def record(self) -> tuple[list[Tensor], list[Tensor]]:
        """The inputs as fresh leaves, and the outputs recorded on them."""
        leaves = [
            ag.as_tensor(array.copy(), requires_grad=True, name=name)
            for array, name in zip(self.arrays, self.names, strict=True)
        ]
        return leaves, self.function(leaves, True)

    def values(self, arrays: Sequence[Array]) -> Array:
        """All outputs as one vector, without a record."""
        tensors = [ag.as_tensor(array, requires_grad=array.dtype.kind == "f") for array in arrays]
        return np.concatenate([np.ravel(np.asarray(output)) for output in self.function(tensors, False)])

    def outputs_at(self, arrays: Sequence[Array]) -> list[Array]:
        """All outputs, without a record."""
        tensors = [ag.as_tensor(array, requires_grad=True) for array in arrays]
        return [np.asarray(output) for output in self.function(tensors, False)]

    def gradient(self, weigh: Callable[[tuple[int, ...]], Array]) -> Level:
        """The gradient of this level's outputs, as a function of its inputs and of the outputs' weights."""
        count = len(self.arrays)
        shapes = [output.shape for output in self.function([ag.as_tensor(a) for a in self.arrays], False)]

        def function(tensors: list[Tensor], recorded: bool) -> list[Any]:
            inputs, weights = tensors[:count], tensors[count:]
            outputs = self.function(inputs, True)
            used = [(t, w) for t, w in zip(outputs, weights, strict=True) if t.requires_grad]
            found: Sequence[Any] = [None] * count
            if used:
                found = ag.grad(*_unzip(used, inputs), create_graph=recorded, allow_unused=True)
            return [
                ag.as_tensor(np.zeros(t.shape, t.dtype)) if g is None else g for t, g in zip(inputs, found, strict=True)
            ]

        return Level(
            function,
            [*self.arrays, *[weigh(shape) for shape in shapes]],
            [*self.names, *[f"(weights of {output})" for output in self.outputs]],
            [f"d{name}" for name in self.names],
        )


def level_of(f: Callable[..., Any], arrays: list[Any], checked: list[bool], names: list[str], what: str = "f") -> Level:
    """`f` as a function of those of its inputs that are checked; the others are constants."""

    def function(tensors: list[Tensor], recorded: bool) -> list[Any]:
        given = iter(tensors)
        args = [next(given) if wanted else ag.as_tensor(a) for a, wanted in zip(arrays, checked, strict=True)]
        if recorded:
            result = f(*args)
        else:
            with ag.no_grad():
                result = f(*args)
        several = isinstance(result, tuple | list)
        outputs = list(result) if several else [result]
        for k, output in enumerate(outputs):
            if not isinstance(output, Tensor):
                which = f" as its output {k}" if several else ""
                raise TypeError(f"{what} returned a {type(output).__name__}{which}, expected a tensor")
        return outputs

    variable = [array for array, wanted in zip(arrays, checked, strict=True) if wanted]
    kept = [name for name, wanted in zip(names, checked, strict=True) if wanted]
    level = Level(function, variable, kept, [what])
    count = len(level.record()[1])
    return level if count == 1 else replace(level, outputs=[f"{what}[{k}]" for k in range(count)])


def _pull(leaves: list[Tensor], outputs: list[Tensor], weights: Array) -> list[Array]:
    """The gradients with respect to `leaves` of all outputs, weighed by one vector."""
    used, start = [], 0
    for output in outputs:
        if output.requires_grad:
            used.append((output, weights[start : start + output.size].reshape(output.shape)))
        start += output.size
    if not used:
        return [np.zeros(leaf.shape) for leaf in leaves]
    found = ag.grad(*_unzip(used, leaves), allow_unused=True)
    return [np.zeros(leaf.shape) if g is None else np.asarray(g) for leaf, g in zip(leaves, found, strict=True)]


def _unzip(used: list[tuple[Tensor, Any]], inputs: list[Tensor]) -> tuple[Any, Any, Any]:
    outputs, weights = zip(*used, strict=True)
    return outputs, inputs, list(weights)


def _refuse_what_cannot_be_judged(level: Level) -> None:
    """Raise where no difference of `f` could say whether its derivative is right."""
    leaves, outputs = level.record()
    for name, output in zip(level.outputs, outputs, strict=True):
        if output.dtype.kind != "f":
            raise TypeError(f"{name} has dtype {output.dtype}, expected floats")
        if not np.isfinite(output.data).all():
            raise CannotJudge(f"{name} holds {output.data[~np.isfinite(output.data)][0]}: there is no derivative there")
    recorded = np.concatenate([output.data.ravel() for output in outputs])
    for again in (level.values(level.arrays), level.values(level.arrays)):
        if not np.array_equal(again, recorded):
            raise CannotJudge(
                "f is not deterministic: it returned other values for the same inputs "
                f"(they differ by up to {np.max(np.abs(again - recorded)):.3g}); fix its seed inside f"
            )
    moving = {leaf.node for leaf in leaves}
    for node in topological_order([output.node for output in outputs]):
        if not moving.isdisjoint(node.inputs):
            moving.add(node)
        if node in moving and node.dtype.kind == "f" and node.dtype.itemsize < 8:
            raise CannotJudge(f"f computes in {node.dtype} ({node.op}) on float64 inputs: take the conversion out of f")
    if not any(output.requires_grad for output in outputs):
        raise CannotJudge(f"no output of f depends on its inputs ({', '.join(level.names)}): every gradient would pass")


# --- The check ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """The derivatives of all outputs (rows) with respect to one input (columns): by rule, and measured."""

    name: str
    shape: tuple[int, ...]
    got: Array
    want: Array
    bound: Array
    limit: Array

    def wrong(self, got: Array) -> Any:
        """Where `got` is further from the measured derivative than that can be off."""
        return ~(np.abs(got - self.want) <= self.bound) & (self.bound <= self.limit)


class _Check:
    """One order of `gradcheck`."""

    def __init__(
        self,
        level: Level,
        order: int,
        eps: float,
        atol: float,
        rtol: float,
        projections: int | None,
        rng: np.random.Generator,
    ) -> None:
        self.level, self.order, self.projections, self.rng = level, order, projections, rng
        self.atol, self.rtol = atol, rtol
        self.leaves, self.outputs = level.record()
        self.size = sum(output.size for output in self.outputs)
        floats = [a for a in map(np.asarray, ag.Graph(*self.outputs).values().values()) if a.dtype.kind == "f"]
        magnitude = max([float(np.max(np.abs(a), initial=0, where=np.isfinite(a))) for a in floats], default=0.0)
        self.differences = Differences(level.outputs_at, level.arrays, smallest=eps, magnitude=magnitude, rng=rng)
        kink = self.differences.kink()
        if kink is not None:
            i, index = kink
            raise CannotJudge(
                f"f is not smooth within {eps * self.differences.scale[i]:.1g} of {level.names[i]}{_at(index)} = "
                f"{level.arrays[i][index]:.6g} (a kink, a jump, the edge of its domain or a very steep place): "
                "there is no derivative to compare with, move that element"
            )
        self.rounding = self.measured_rounding()

    def run(self) -> list[Block]:
        if self.projections is None:
            blocks = self.entries()
            self.check_linear(blocks)
        else:
            blocks = self.projected(self.projections)
        self.judge(blocks)
        return blocks

    def power(self, blocks: list[Block]) -> Power:
        found = measure(self.leaves, self.outputs, [b.got for b in blocks], [b.wrong for b in blocks])
        if found.survivors:
            raise GradientError(
                f"the check is too weak here: {len(found.survivors)} of {sum(found.planted.values())} mistakes planted "
                "in the rules went unseen\n  " + "\n  ".join(found.survivors[:5])
            )
        return found

    def pull(self, weights: Array) -> list[Array]:
        """The gradients of the outputs weighed by a vector."""
        return _pull(self.leaves, self.outputs, weights)

    def measured_rounding(self) -> list[float]:
        """How far rounding may throw the rules' results: what moving the inputs by their last bits does to them."""
        weights = self.rng.normal(size=self.size)
        here = self.pull(weights)
        most = [0.0] * len(here)
        for _ in range(2):
            moved = [a * (1 + 2**-51 * self.rng.uniform(-1, 1, a.shape)) for a in self.level.arrays]
            there = _pull(*replace(self.level, arrays=moved).record(), weights)
            most = [max(m, float(np.max(np.abs(a - b), initial=0))) for m, a, b in zip(most, here, there, strict=True)]
        return most

    def entries(self) -> list[Block]:
        """Every entry of the Jacobian."""
        got = [np.empty((self.size, leaf.size)) for leaf in self.leaves]
        # A weight of 1 would not show a rule that squares it.
        for k, weight in enumerate(self.rng.uniform(0.5, 2, self.size) * self.rng.choice([-1, 1], self.size)):
            seed = np.zeros(self.size)
            seed[k] = weight
            for rows, gradient in zip(got, self.pull(seed), strict=True):
                rows[k] = gradient.ravel() / weight
        blocks = []
        for i, array in enumerate(self.level.arrays):
            want, error = self.differences.jacobian(i)
            floor = 1e-11 * np.max(np.abs(want), axis=1, keepdims=True, initial=0) + _UNDERFLOW
            noise = self.rounding[i] + self.differences.noise[i][:, None] / self.differences.scale[i]
            bound = 10 * (error + noise) + floor
            blocks.append(self.block(i, array.shape, got[i], want, bound))
        return blocks

    def projected(self, count: int) -> list[Block]:
        """Random combinations of the outputs along random directions of the inputs."""
        weights = self.rng.normal(size=(count, self.size))
        pulled = [self.pull(row) for row in weights]
        blocks = []
        for i, array in enumerate(self.level.arrays):
            shape = (count, count)
            got, want, bound = np.empty(shape), np.empty(shape), np.empty(shape)
            for j in range(count):
                direction = np.asarray(self.rng.normal(size=array.shape))
                slope, error = self.differences.along(i, direction)
                want[:, j] = weights @ slope
                floor = 10 * self.rounding[i] * np.abs(direction).sum()
                bound[:, j] = np.abs(weights) @ (10 * error + 1e-11 * np.abs(slope)) + floor
                got[:, j] = [np.vdot(row[i], direction) for row in pulled]
            blocks.append(self.block(i, (count,), got, want, bound))
        return blocks

    def block(self, i: int, shape: tuple[int, ...], got: Array, want: Array, bound: Array) -> Block:
        limit = self.atol + self.rtol * np.abs(want)
        return Block(self.level.names[i], shape, got, want, bound, limit)

    def check_linear(self, blocks: list[Block]) -> None:
        """A backward pass is linear in the weights of the outputs, so that its rows give every other."""
        first = self.rng.normal(size=self.size)
        for weights in (first, -1.5 * first):
            for i, (block, gradient) in enumerate(zip(blocks, self.pull(weights), strict=True)):
                expected = weights @ block.got
                error = np.abs(gradient.ravel() - expected)
                size = np.max(np.abs(weights) @ np.abs(block.got), initial=0)
                noise = np.abs(weights) @ self.differences.noise[i] / self.differences.scale[i]
                if np.any(~(error <= 1e-11 * size + _UNDERFLOW + 100 * (self.rounding[i] + noise))):
                    j = int(np.argmax(np.nan_to_num(error, nan=np.inf)))
                    raise GradientError(
                        f"{self.title([block.name])}\n  at {block.name}{_at(np.unravel_index(j, block.shape))}: "
                        f"{gradient.ravel()[j]:.10g} for weights w on the outputs, but {expected[j]:.10g} as the sum "
                        "over the outputs one by one\n  likely mistake: the rule is not linear in the incoming gradient"
                    )

    def judge(self, blocks: list[Block]) -> None:
        bad = [block for block in blocks if block.wrong(block.got).any()]
        if bad:
            raise GradientError(
                "\n".join([self.title([block.name for block in bad]), *[self.report(b) for b in bad]]) + self.note()
            )
        for block in blocks:
            coarse = ~(np.abs(block.got - block.want) <= block.limit)
            if coarse.any():
                row, column = np.argwhere(coarse)[0]
                good, limit = block.bound[row, column], block.limit[row, column]
                raise CannotJudge(
                    f"the numeric value of {self.entry(block, row, column)} is good to {good:.3g} only, "
                    f"more than atol + rtol * |value| = {limit:.3g}: f is too noisy, too steep or too near a kink here"
                )

    def title(self, names: list[str]) -> str:
        what = "gradient" if self.order == 1 else f"derivative of order {self.order}"
        return f"the {what} with respect to {', '.join(names)} is wrong"

    def entry(self, block: Block, row: int, column: int) -> str:
        if self.projections is not None:
            return f"projection {row} of the outputs along direction {column} of {block.name}"
        k = 0
        while row >= self.outputs[k].size:
            row -= self.outputs[k].size
            k += 1
        where = _at(np.unravel_index(row, self.outputs[k].shape))
        return f"d {self.level.outputs[k]}{where} / d {block.name}{_at(np.unravel_index(column, block.shape))}"

    def report(self, block: Block) -> str:
        off = np.abs(block.got - block.want)
        off = np.where(np.isnan(off), np.inf, off)
        wrong = block.wrong(block.got)
        row, column = np.unravel_index(int(np.argmax(np.where(wrong, off, -1))), off.shape)
        shapes = [output.shape for output in self.outputs]
        kind = likely(block, shapes[0] if len(shapes) == 1 and self.projections is None else off.shape[:1])
        return (
            f"  {block.name}: {wrong.sum()} of {wrong.size} entries, worst {self.entry(block, int(row), int(column))}: "
            f"got {block.got[row, column]:.10g}, expected {block.want[row, column]:.10g} "
            f"(measured to {block.bound[row, column]:.1g})\n  likely mistake: {kind}"
        )

    def note(self) -> str:
        nodes = topological_order([output.node for output in self.outputs])
        if any(node.op == "stop_gradient" or node.params.get("stop") for node in nodes):
            return "\n  note: f stops a gradient on purpose (stop_gradient or stop=), which differences do not see"
        return ""


def likely(block: Block, output: tuple[int, ...]) -> str:
    """The kind of mistake that a wrong block looks like."""
    got, want, shape = block.got, block.want, block.shape

    def fits(guess: Array, slack: float = 1) -> bool:
        return bool(np.all(np.abs(guess - want) <= slack * block.bound + 1e-9 * np.max(np.abs(want))))

    if not np.isfinite(got).all():
        return "an overflow or a division by 0"
    if not got.any():
        return "the whole term is missing, the gradient is 0"
    if not want.any():
        return "a gradient where there should be none"
    factor = float(np.vdot(want, got) / np.vdot(want, want))
    if abs(factor + 1) < 1e-7 and fits(-got):
        return "the sign is flipped"
    if factor and abs(factor - 1) > 1e-7 and fits(got / factor):
        return f"every entry is {factor:.7g} times the right one"
    for axes, what in ((shape, block.name), (output, "the output")):
        if len(axes) == 2 and axes[0] == axes[1]:
            square = got.reshape(-1, *axes) if what != "the output" else got.T.reshape(-1, *axes)
            turned = square.swapaxes(1, 2).reshape(square.shape[0], -1)
            if fits(turned if what != "the output" else turned.T):
                return f"transposed: the two axes of {what} are exchanged"
    for axis, length in enumerate(output):
        by_index = [np.moveaxis(a.reshape(*output, -1), axis, 0) for a in (got, want, block.bound)]
        same = [bool(np.all(np.abs(g - w) <= b)) for g, w, b in zip(*by_index, strict=True)]
        none = [not g.any() for g in by_index[0]]
        if any(same) and not all(same) and all(s or n for s, n in zip(same, none, strict=True)):
            counted = [i for i in range(length) if same[i]]
            return f"not summed over a broadcast axis: only index {counted} of axis {axis} of the output is counted"
    wrong = block.wrong(got)
    if output == shape and not (wrong & ~np.eye(len(wrong), dtype=bool)).any():
        return "the direct term, of each element with itself, is missing or has a wrong factor"
    if not got[wrong].any():
        return "a term is missing: every wrong entry is 0"
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
