"""The optimisers, with PyTorch's formulas."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import numpy as np

from ..engine import Leaf, Tensor
from ..engine.node import Array


class Optimiser:
    """What all optimisers share: the parameters, the arrays kept for each, and how they are saved.

    `step` writes the parameters in place, each write counted as `Tensor.assign` counts it; a parameter without gradient
    stays as it is. `lr` may be changed between steps.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        self.params = [params] if isinstance(params, Tensor) else list(params)
        if not self.params:
            raise ValueError("params is empty: there is nothing to optimise")
        for i, p in enumerate(self.params):
            if not isinstance(p, Tensor) or not isinstance(p.node, Leaf):
                raise TypeError(f"params[{i}] is {type(p).__name__}, expected a leaf tensor")
        self.lr = _at_least_zero(lr, "lr")
        self.steps = 0
        self.kept: list[tuple[Array, ...]] = [tuple([np.zeros_like(p.data) for _ in self.slots]) for p in self.params]
        self._scratch = [np.empty_like(p.data) for p in self.params]

    def step(self) -> None:
        """Move every parameter that has a gradient."""
        self.steps += 1
        for p, kept, scratch in zip(self.params, self.kept, self._scratch, strict=True):
            leaf = cast(Leaf, p.node)
            if leaf.grad is not None:
                value = leaf.data
                value -= self._change(value, leaf.grad, kept, scratch)
                leaf.buffer.version += 1  # type: ignore[union-attr]

    def _change(self, value: Array, g: Array, kept: tuple[Array, ...], scratch: Array) -> Array:
        """What is subtracted from a parameter; `kept` is updated, `g` and `value` are only read."""
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for p in self.params:
            p.zero_grad()

    def state_dict(self) -> dict[str, Array]:
        """A copy of all that the next steps depend on, by name, as `save` takes it; `lr` and its like are not in it."""
        kept = {
            f"{slot}.{i}": array.copy()
            for i, arrays in enumerate(self.kept)
            for slot, array in zip(self.slots, arrays, strict=True)
        }
        return {"steps": np.array(self.steps), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of another optimiser of this kind; `ValueError`, and no change, if it doesn't fit."""
        mine = self.state_dict()
        if state.keys() != mine.keys():
            raise ValueError(f"state has {sorted(state)}, expected {sorted(mine)}")
        for name, array in mine.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(f"{name} has shape {np.shape(state[name])}, expected {array.shape}")
        self.steps = int(state["steps"])
        for i, arrays in enumerate(self.kept):
            for slot, array in zip(self.slots, arrays, strict=True):
                array[...] = state[f"{slot}.{i}"]


class SGD(Optimiser):
    """Gradient descent: v = momentum * v + grad + weight_decay * p, then p -= lr * v.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0], requires_grad=True)
    >>> (w * w).sum().backward()
    >>> ag.optim.SGD([w], lr=0.25).step()
    >>> w.data
    array([0.5])
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.0, weight_decay: float = 0.0) -> None:
        self.momentum = _at_least_zero(momentum, "momentum")
        self.weight_decay = _at_least_zero(weight_decay, "weight_decay")
        if momentum:
            self.slots = ("velocity",)  # type: ignore[misc]
        super().__init__(params, lr)

    def _change(self, value: Array, g: Array, kept: tuple[Array, ...], scratch: Array) -> Array:
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

    D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1.

    >>> import autograd_bn as ag
    >>> w = ag.tensor([1.0, -1.0], requires_grad=True)
    >>> (w * w * w).sum().backward()
    >>> ag.optim.Adam([w], lr=0.1).step()
    >>> w.data
    array([ 0.9, -1.1])
    """

    slots = ("first", "second")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas is {betas!r}, expected two numbers from 0 to below 1")
        self.betas = betas
        self.eps = _at_least_zero(eps, "eps")
        super().__init__(params, lr)

    def _change(self, value: Array, g: Array, kept: tuple[Array, ...], scratch: Array) -> Array:
        first, second = kept
        beta1, beta2 = self.betas
        first += np.multiply(np.subtract(g, first, out=scratch), 1 - beta1, out=scratch)
        second *= beta2
        second += np.multiply(np.multiply(g, g, out=scratch), 1 - beta2, out=scratch)
        np.sqrt(second, out=scratch)
        scratch /= math.sqrt(1 - beta2**self.steps)
        scratch += self.eps
        np.divide(first, scratch, out=scratch)
        return np.multiply(scratch, self.lr / (1 - beta1**self.steps), out=scratch)


def _at_least_zero(value: float, name: str) -> float:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value!r}, expected a finite number of at least 0")
    return value
