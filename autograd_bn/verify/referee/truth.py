"""The true gradients of a forward pass: by automatic differentiation, which differences confirm, or by differences."""

import copy
from collections.abc import Callable, Sequence

import numpy as np

from ...engine.node import Array
from ..finite_differences import Differences
from ..gradcheck import Unjudgeable
from .author import methods_of
from .held import is_float, objects
from .inputs import Inputs, moved, scale
from .pairs import Pair, explains, slope
from .source import guard
from .trace import Arrays, NoDerivative, Trace, reported

Derivative = Callable[[Array], Arrays]


def known_to(pair: Pair) -> float:
    """How well differences are known, of the largest entry: but for what guards in logarithms do, its layers' too."""
    kept = objects(pair.calls.author.owner) if pair.calls and pair.unit else []
    layers = [getattr(type(value), passes[0]) for value in kept if (passes := methods_of(type(value)))]
    return max(1e-6, min(300 * max(map(guard, [pair.forward, *layers])), 1e-4))


class Forward:
    """A pair's forward pass as a function of named inputs, on copies of them; `passes` counts how often it ran."""

    def __init__(self, pair: Pair, inputs: Inputs) -> None:
        self.pair, self.passes = pair, 0
        self.floats = [name for name, value in inputs.items() if is_float(value)]

    def output(self, inputs: Inputs) -> Array:
        """The output as floats; `Unjudgeable` where there is none."""
        self.passes += 1
        try:
            y = np.asarray(self.pair.forward(*copy.deepcopy(inputs).values())[0])
        except Unjudgeable:
            raise
        except Exception as error:
            raise Unjudgeable(f"forward raised {reported(error)}") from error
        if y.dtype.kind != "f":
            raise Unjudgeable(f"forward returned a y of dtype {y.dtype}, expected floats")
        if not np.isfinite(y).all():
            bad = y[~np.isfinite(y)].flat[0]
            raise Unjudgeable(f"forward returned a y with {bad} in it: no gradient can be judged there")
        return y.astype(np.float64)

    def derivative(self, inputs: Inputs) -> Derivative:
        """The derivative by automatic differentiation; `NoDerivative` says why there is none."""
        truth = self.pair.truth
        if truth is None:
            self.passes += 1
            return Trace.of(self.pair.forward, copy.deepcopy(inputs), self.floats, self.output(inputs))

        def framework(dy: Array) -> Arrays:
            try:
                gradients = truth(copy.deepcopy(inputs), dy.copy())
            except Exception as error:
                why = f"forward can't be differentiated by its framework ({reported(error)})"
                raise NoDerivative(why) from None
            return {name: np.asarray(gradients[name], dtype=np.float64) for name in self.floats}

        return framework

    def confirmed(self, inputs: Inputs, names: Sequence[str], derive: Derivative | None = None) -> set[str]:
        """The inputs by which the derivative agrees with differences of the output, each by itself and at its size."""
        rng = np.random.default_rng(0)
        try:
            derive = derive or self.derivative(inputs)
            return {name for name in names if self._agrees(inputs, name, derive, rng)}
        except (Unjudgeable, NoDerivative, ValueError):  # it takes no such values, or gives another shape
            return set()

    def _agrees(self, inputs: Inputs, name: str, derive: Derivative, rng: np.random.Generator) -> bool:
        """Whether one difference in one input, extrapolated (Richardson 1911), is what the derivative says."""
        y = self.output(inputs)
        for h in (1e-3, 1e-3, 1e-5):
            dy = np.asarray(rng.normal(size=y.shape))
            step = rng.normal(size=inputs[name].shape) * scale(inputs[name])
            far, near = (slope(self.output, inputs, name, step, dy, t) for t in (h, h / 2))
            rounding = 1e-13 * float(np.sum(np.abs(y * dy))) / h
            if explains(derive(dy)[name], step, (4 * near - far) / 3, 1e-7, rounding):
                return True
        return False

    def exact(self, inputs: Inputs, dy: Array, rng: np.random.Generator) -> tuple[Arrays, Arrays, Trace | None]:
        """The gradients by automatic differentiation, how far rounding may carry each, and the trace.

        How far: as the gradients move when the inputs move by their last bits. At a kink they jump, by as much for a
        step 16 times as long, where a smooth derivative moves 16 times as far: then the entry's noise is infinite.
        """
        derive = self.derivative(inputs)
        truth = derive(dy)
        # A forward pass that leaves the tensors half way, by `np.asarray`, is recorded in part only. Where differences
        # can't tell, at a kink or a steep place, those near by decide.
        left = [name for name in self.floats if name not in self.confirmed(inputs, self.floats, derive)]
        steps = np.random.default_rng(0)
        near = inputs | {n: moved(inputs[n], steps) for n in self.floats}
        if left and not {*left} <= self.confirmed(near, left):
            raise NoDerivative("the derivative of forward's code disagrees with differences of its output")
        sides = {n: rng.uniform(-1.0, 1.0, size=np.shape(inputs[n])) for n in self.floats}

        def moves(t: float) -> Arrays:
            steps = {n: t * (4e-15 * inputs[n] + 1e-20 * scale(inputs[n])) * side for n, side in sides.items()}
            near = inputs | {n: np.asarray(inputs[n] + step) for n, step in steps.items()}
            try:
                gradients = self.derivative(near)(dy)
            except (Unjudgeable, NoDerivative):
                return {n: np.zeros(g.shape) for n, g in truth.items()}
            return {n: np.abs(gradients[n] - g) for n, g in truth.items()}

        rounding = 1e-14 * float(np.max(np.abs(self.output(inputs) * dy), initial=0)) + 1e-300
        noise = {n: np.zeros(g.shape) for n, g in truth.items()}
        for t in (1, -1):
            off, far = moves(t), Arrays()
            for n, g in truth.items():
                largest = np.max(np.abs(g), where=np.isfinite(g), initial=0)
                jumps = ~(off[n] <= 1e-6 * largest + rounding / scale(inputs[n]))
                if np.any(jumps):
                    far = far or moves(16 * t)
                    jumps &= ~(far[n] > 8 * off[n])
                least = np.max(20 * off[n], where=~jumps, initial=0)
                noise[n] = np.maximum(noise[n], np.where(jumps, np.inf, least))
        return {n: np.nan_to_num(g) for n, g in truth.items()}, noise, derive if isinstance(derive, Trace) else None

    def by_differences(self, inputs: Inputs, dy: Array) -> tuple[Arrays, Arrays]:
        """The gradients by differences of the output, each with its error, which is infinite at a kink."""

        def loss(at: Sequence[Array]) -> list[Array]:
            try:
                y = self.output(inputs | dict(zip(self.floats, at, strict=True)))
            except Unjudgeable:
                return [np.asarray(np.nan)]
            return [np.asarray(np.sum(y * dy))]

        slopes = Differences(loss, [inputs[name] for name in self.floats])
        truth, noise, known = Arrays(), Arrays(), known_to(self.pair)
        for i, name in enumerate(self.floats):
            shape = inputs[name].shape
            value, error = (figures[0].reshape(shape) for figures in slopes.jacobian(i))
            truth[name] = np.nan_to_num(value)
            least = known * np.max(np.abs(truth[name]), initial=0)
            noise[name] = np.nan_to_num(10 * error, nan=np.inf, posinf=np.inf) + least
        return truth, noise
