"""The optimisers and the schedules of their learning rate, with PyTorch's formulas."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import numpy as np

from ..engine import Leaf, Tensor
from ..engine.node import Array
from .arguments import at_least_zero, number, positive
from .module import Module, matched


class Optimiser:
    """What all optimisers share: the parameters, the arrays kept for each, and how they are saved.

    `lr` and its like may be changed between steps. `TypeError` and `ValueError` for what is no leaf, and for a tensor
    that comes twice.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        if isinstance(params, Module):
            raise TypeError(f"params is a {type(params).__name__}, expected its parameters()")
        self.params = [params] if isinstance(params, Tensor) else list(params)
        if not self.params:
            raise ValueError("params is empty: there is nothing to optimise")
        for i, p in enumerate(self.params):
            if not isinstance(p, Tensor) or not isinstance(p.node, Leaf):
                raise TypeError(f"params[{i}] is {type(p).__name__}, expected a leaf tensor")
        if len({id(p.node) for p in self.params}) < len(self.params):
            raise ValueError("params has a tensor twice, which every step would move twice")
        self.lr = at_least_zero(lr, "lr")
        self.weight_decay = at_least_zero(weight_decay, "weight_decay")
        self._plan: list[tuple[Leaf, list[Array], Array]] = [
            (cast(Leaf, p.node), [], np.empty_like(p.data)) for p in self.params
        ]

    def _keep(self) -> None:
        """Make the arrays of `slots` for each parameter, where there are none yet."""
        for leaf, kept, _ in self._plan:
            if not kept:
                kept += [np.zeros(()) if slot == "steps" else np.zeros_like(leaf.data) for slot in self.slots]

    def _state(self) -> dict[str, Array]:
        kept = [arrays for _, arrays, _ in self._plan]
        return {f"{self.slots[j]}.{i}": array for i, arrays in enumerate(kept) for j, array in enumerate(arrays)}

    def step(self) -> None:
        """Move every parameter that has a gradient, in place; each write is counted as `Tensor.assign` counts it."""
        for leaf, kept, scratch in self._plan:
            if leaf.grad is not None:
                value = leaf.data
                value -= self._change(value, leaf.grad, kept, scratch)
                leaf.buffer.touch()  # type: ignore[union-attr]

    def _change(self, value: Array, g: Array, kept: list[Array], scratch: Array) -> Array:
        """What is subtracted from a parameter; `kept` is updated, `g` is only read."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for leaf, _, _ in self._plan:
            leaf.grad = None

    def state_dict(self) -> dict[str, Array]:
        """A copy of all that the next steps depend on, by name, as `save` takes it; `lr` and its like are not in it."""
        return {name: array.copy() for name, array in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another optimiser of this kind; `ValueError`, and no change, if it doesn't fit."""
        mine = self._state()
        for name, value in matched(state, mine, type(self).__name__).items():
            mine[name][...] = value


class SGD(Optimiser):
    """Gradient descent: v = momentum * v + grad + weight_decay * p, then p -= lr * v.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> ag.optim.SGD([w], lr=0.25).step()
    >>> w.data
    array([0.5])
    """

    slots = ("velocity",)

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay)
        self.momentum = momentum

    @property
    def momentum(self) -> float:
        """The weight of the last step's velocity; it may be changed between steps."""
        return self._momentum

    @momentum.setter
    def momentum(self, momentum: float) -> None:
        self._momentum = at_least_zero(momentum, "momentum")
        if momentum:
            self._keep()

    def _change(self, value: Array, g: Array, kept: list[Array], scratch: Array) -> Array:
        if self.weight_decay:
            g = np.add(g, np.multiply(value, self.weight_decay, out=scratch), out=scratch)
        if kept:
            (velocity,) = kept
            velocity *= self.momentum
            velocity += g
            g = velocity
        return np.multiply(g, self.lr, out=scratch)


class Adam(Optimiser):
    """Steps of about `lr`: the running mean of the gradient over the root of the running mean of its square.

    Each parameter counts its own steps. `weight_decay` times the parameter is added to the gradient.

    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0, -1.0], requires_grad=True)
    >>> (w * w * w).sum().backward()
    >>> ag.optim.Adam([w], lr=0.1).step()
    >>> w.data
    array([ 0.9, -1.1])
    """

    slots = ("first", "second", "steps")
    coupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas is {betas!r}, expected two numbers from 0 to below 1")
        for i, beta in enumerate(betas):
            number(beta, f"betas[{i}]", lambda b: 0 <= b < 1, "a number from 0 to below 1")
        self.betas = betas
        self.eps = at_least_zero(eps, "eps")
        super().__init__(params, lr, weight_decay)
        self._keep()

    def _change(self, value: Array, g: Array, kept: list[Array], scratch: Array) -> Array:
        first, second, steps = kept
        beta1, beta2 = self.betas
        if self.weight_decay and self.coupled:
            g = np.add(g, np.multiply(value, self.weight_decay, out=scratch), out=scratch)
        elif self.weight_decay:
            value *= 1 - self.lr * self.weight_decay
        np.multiply(g, 1 - beta1, out=scratch)
        first *= beta1
        first += scratch
        scratch *= scratch  # the gradient's square, times (1 - beta1) ** 2
        scratch *= (1 - beta2) / (1 - beta1) ** 2
        second *= beta2
        second += scratch
        steps += 1
        np.sqrt(second, out=scratch)
        scratch /= math.sqrt(1 - beta2 ** steps.item())
        scratch += self.eps
        np.divide(first, scratch, out=scratch)
        scratch *= self.lr / (1 - beta1 ** steps.item())
        return scratch


class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means: p -= lr * weight_decay * p beside Adam's step.

    I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2019, algorithm 2.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0], requires_grad=True)
    >>> w.sum().backward()
    >>> ag.optim.AdamW([w], lr=0.5, weight_decay=0.5).step()
    >>> w.data.round(6)
    array([0.25])
    """

    coupled = False

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class Schedule:
    """What the schedules share: `step`, called after each epoch, sets the optimiser's `lr` from its first value."""

    def __init__(self, optimizer: Optimiser) -> None:
        if not isinstance(optimizer, Optimiser):
            raise TypeError(f"optimizer is a {type(optimizer).__name__}, expected one of this module")
        self.optimizer = optimizer
        self.base_lr = optimizer.lr
        self.last_epoch = 0

    def step(self) -> None:
        """Go on to the next epoch."""
        self.last_epoch += 1
        self.optimizer.lr = self._lr()

    def _lr(self) -> float:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Array]:
        """The epoch and the first learning rate, as `save` takes them."""
        return {"last_epoch": np.array(self.last_epoch), "base_lr": np.array(self.base_lr)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another schedule, and set the optimiser's `lr`; `ValueError` if it doesn't fit."""
        entries = matched(state, self.state_dict(), type(self).__name__)
        self.last_epoch, self.base_lr = entries["last_epoch"].item(), entries["base_lr"].item()
        self.optimizer.lr = self._lr()


class StepLR(Schedule):
    """The learning rate times `gamma` after every `step_size` epochs.

    >>> import autograd_bn as ag
    >>> sgd = ag.optim.SGD([ag.tensor(1.0, requires_grad=True)], lr=1.0)
    >>> schedule = ag.optim.StepLR(sgd, step_size=2, gamma=0.5)
    >>> for epoch in range(4):
    ...     schedule.step()
    >>> sgd.lr
    0.25
    """

    def __init__(self, optimizer: Optimiser, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = positive(step_size, "step_size")
        self.gamma = at_least_zero(gamma, "gamma")
        super().__init__(optimizer)

    def _lr(self) -> float:
        return self.base_lr * self.gamma ** (self.last_epoch // self.step_size)


class CosineAnnealingLR(Schedule):
    """The learning rate down to `eta_min` in `T_max` epochs along half a cosine; after that up and down again.

    I. Loshchilov and F. Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", 2017, equation 5.

    >>> import autograd_bn as ag
    >>> sgd = ag.optim.SGD([ag.tensor(1.0, requires_grad=True)], lr=1.0)
    >>> schedule = ag.optim.CosineAnnealingLR(sgd, T_max=10)
    >>> for epoch in range(5):
    ...     schedule.step()
    >>> round(sgd.lr, 6)
    0.5
    """

    def __init__(self, optimizer: Optimiser, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = positive(T_max, "T_max")
        self.eta_min = at_least_zero(eta_min, "eta_min")
        super().__init__(optimizer)

    def _lr(self) -> float:
        cosine = math.cos(math.pi * self.last_epoch / self.T_max)
        return self.eta_min + (self.base_lr - self.eta_min) * (1 + cosine) / 2
