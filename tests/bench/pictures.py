"""Seconds to draw large graphs as svg: `python tests/bench/pictures.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import autograd_bn as ag


def recurrent(steps: int = 60) -> ag.Tensor:
    """A recurrent net with two weights that every step shares: 5 nodes a step, and 3."""
    rng = np.random.default_rng(0)
    w, u = (ag.tensor(rng.normal(size=(4, 4)) / 2, requires_grad=True, name=name) for name in "WU")
    h = ag.tensor(np.zeros((2, 4)), name="h0")
    for step in range(steps):
        x = ag.tensor(rng.normal(size=(2, 4)), name=f"x{step}")
        h = ag.tanh(x @ w + h @ u)
    return h


def chain(steps: int = 598) -> ag.Tensor:
    """A chain whose every node reads one input."""
    x = y = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    for _ in range(steps):
        y = y * x
    return y.sum()


def residual(blocks: int = 50) -> ag.Tensor:
    """A residual net: two linear maps with batch norm a block, and the sum with the block's input."""
    rng = np.random.default_rng(0)
    h = ag.tensor(rng.normal(size=(8, 4)), name="x")
    for _ in range(blocks):
        norms = [ag.nn.Linear(4, 4, rng=rng), ag.nn.BatchNorm(4), ag.nn.ReLU(), ag.nn.Linear(4, 4, rng=rng)]
        h = ag.relu(h + ag.nn.Sequential(*norms, ag.nn.BatchNorm(4))(h))
    return h.sum()


def main() -> None:
    """Print a table."""
    graphs: list[Callable[[], ag.Tensor]] = [recurrent, chain, residual]
    print("| graph | nodes | options | s |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for make in graphs:
            for options in ({}, {"values": True, "grads": True}):
                y = make()
                y = y if y.size == 1 else y.sum()
                start = time.perf_counter()
                ag.render(y, Path(folder, "graph.svg"), **options)
                taken = time.perf_counter() - start
                print(
                    f"| {make.__name__} | {len(ag.Graph(y))} | {', '.join(options) or '-'} | {taken:.2f} |", flush=True
                )


if __name__ == "__main__":
    main()
