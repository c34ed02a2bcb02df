"""What an author's functions change beside their arguments is as it was after a check."""

from __future__ import annotations

import collections
import cProfile
import importlib.machinery
import importlib.util
import random
import sys
from typing import Any, ClassVar

import numpy as np
import pytest

import autograd_bn as ag

X, W = np.random.default_rng(0).normal(size=(5, 3)), np.random.default_rng(1).normal(size=(3, 2))
calls = 0
history: list[float] = []
nested: list[Any] = [[1.0], {"n": 0}]
counted = collections.Counter[str]()
window = collections.deque([1.0], maxlen=2)
running = np.zeros(2)


def noted() -> None:
    """Keeps what it is given as attributes."""


class Meter:
    """Counts on itself, on its class, and by items."""

    total = 0
    seen: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def __setitem__(self, key: str, value: float) -> None:
        self.values[key] = value


meter, generator = Meter(), np.random.default_rng(3)


def forward(x: Any, w: Any) -> Any:
    """A linear layer."""
    return x @ w, (x, w)


def backward(dy: Any, cache: Any) -> Any:
    """Twice dx, with all side effects in memory."""
    global calls, created
    x, w = cache
    calls += 1
    created = calls
    history.append(float(dy.sum()))
    nested[0][0] += 1
    nested[1]["n"] += 1
    counted["a"] += 1
    window.append(2.0)
    running[:] += dy.sum(0)
    noted.last = dy  # type: ignore[attr-defined]
    meter["n"] = 1.0
    Meter.total += 1
    Meter.late = 1  # type: ignore[attr-defined]
    Meter.seen.append(1)
    np.random.rand(2)  # noqa: NPY002
    random.random()
    generator.normal()
    np.seterr(over="raise")
    return 2 * dy @ w.T, x.T @ dy


def state() -> str:
    """All that backward changes."""
    states = np.random.get_state()[1].tolist(), random.getstate(), generator.bit_generator.state  # noqa: NPY002
    held = calls, history, nested, counted, window, running.tolist(), vars(noted), meter.values
    return repr((held, {n: v for n, v in vars(Meter).items() if n[0] != "_"}, states, np.geterr(), {*globals()}))


def test_nothing_outside_is_changed() -> None:
    """Globals, what they hold, attributes of functions and classes, and generators."""
    before = state()
    assert str(ag.check_backward(forward, backward, (X, W))).startswith("WRONG")  # with what would be right
    assert state() == before


def test_a_profiler_goes_on() -> None:
    """It may be a function, or `cProfile`, which is none."""
    with cProfile.Profile() as profile:
        ag.check_backward(lambda x: (x * x, x), lambda dy, x: 2 * dy * x, (X,))
        noted()
    profile.create_stats()
    assert any(name == noted.__name__ for _, _, name in profile.stats)  # type: ignore[attr-defined]


def test_closures_are_as_they_were() -> None:
    """A `nonlocal` counter, which is also no reason to stop."""
    n, kept = 0, [0.0]

    def counting(dy: Any, cache: Any) -> Any:
        nonlocal n
        n, kept[0] = n + 1, kept[0] + 1
        return 2 * dy @ cache[1].T, cache[0].T @ dy

    verdict = ag.check_backward(forward, counting, (X, W))
    assert any("`nonlocal`" in note for note in verdict.notes)
    assert (n, kept) == (0, [0.0])


def test_tensors_are_as_they_were() -> None:
    """Also where `.data` or NumPy writes, which PyTorch doesn't count."""
    torch = pytest.importorskip("torch")
    held = [torch.ones(1, dtype=torch.float64) for _ in range(3)]

    class Linear(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any, w: Any) -> Any:
            ctx.save_for_backward(x, w)
            return x @ w

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            x, w = ctx.saved_tensors
            held[0].data[0] += 1
            held[1].numpy()[0] += 1
            held[2].add_(1)
            return 2 * dy @ w.T, x.T @ dy

    verdict = ag.check_backward(Linear, (torch.tensor(X), torch.tensor(W)))
    assert verdict.repair
    assert [float(t) for t in held] == [1, 1, 1]


def test_a_file_of_the_users_that_is_called_torch_is_not_taken_for_pytorch(monkeypatch):
    spec = importlib.machinery.ModuleSpec("torch", None, origin="torch.py")
    monkeypatch.setitem(sys.modules, "torch", importlib.util.module_from_spec(spec))
    factors = [2.0]
    assert ag.check_backward(lambda x: factors[0] * x**2, lambda dy, x: 2 * factors[0] * x * dy, (X,)).ok
