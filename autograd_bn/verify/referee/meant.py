"""Gradients that are other than the derivative on purpose: conventions with names of their own, a row each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...engine.backward import pull
from ...engine.graph import Values
from ...engine.node import Array, Node
from .mistakes import close, listed
from .run import Run
from .source import unwrapped

_COUNT = r"/=?\s*(float\()?(self\.)?(m|M|batch(_?size)?|bs|(n_|num_)?(examples|samples))\b"


def without_guards(run: Run) -> dict[str, Array]:
    """The gradients as if no small number were added inside of a logarithm, `log(p + 1e-7)`; nothing without one."""
    trace = run.trace
    if trace is None or not any(_guard(node) for node in trace.order):
        return {}
    values, found = Values(trace.order), {trace.y.node: run.dy}
    for node in reversed(trace.order):
        for parent, part in pull(node, found[node]) if node in found else ():
            guard = _guard(node)
            share = np.asarray(part) * (values[parent] / (values[parent] - guard) if guard else 1.0)
            found[parent] = found[parent] + share if parent in found else share
    return {name: np.asarray(found.get(leaf.node, np.zeros(leaf.shape))) for name, leaf in trace.leaves.items()}


def _guard(node: Node) -> float:
    """The small number that is added to what a logarithm is taken of, or 0."""
    inner = node.args[0] if node.own_op == "log" else None
    constants = (
        [a for a in inner.args if not isinstance(a, Node)] if isinstance(inner, Node) and inner.own_op == "add" else []
    )
    return next((float(c) for c in constants if np.ndim(c) == 0 and 0 < abs(float(c)) <= 1e-5), 0.0)


def convention(runs: Sequence[Run], wrong: Sequence[str], source: Any) -> str:
    """The convention by which every wrong gradient is what it is, in every run; nothing where there is none."""
    text = code_of(unwrapped(source))
    for row in ROWS:
        said = set[str | None]()
        for run in runs:
            off = [name for name in wrong if name in run.author.gradients and not run.right(name)]
            said |= {row(run, name, run.author.gradients[name], off, text) for name in off}
        if said and None not in said and len(said) == 1:
            return f"{listed([f'd{name}' for name in wrong])}: {said.pop()}."
    return ""


def code_of(function: Any, levels: int = 2) -> str:
    """The text of a function and of those of its file that it calls, without comments."""
    try:
        text = re.sub(r'""".*?"""|#[^\n]*', "", inspect.getsource(unwrapped(function)), flags=re.DOTALL)
    except (OSError, TypeError):
        return ""
    space = getattr(function, "__globals__", {})
    called = [space.get(name) for name in function.__code__.co_names] if levels else []
    return text + "".join([code_of(f, levels - 1) for f in called if inspect.isfunction(f)])


def _same(run: Run, a: Array, b: Array) -> bool:
    """Whether two gradients agree as well as the truth is known."""
    return close(a, b, 5e-6 if run.why_differences else 1e-7)


def _straight_through(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    first, head = run.y.ravel()[: given.size], run.dy.ravel()[: given.size]
    if given.size < run.y.size and len(np.unique(first)) <= 3 and np.array_equal(given.ravel(), head):
        return "the straight-through estimator: forward's first output is flat, and backward that of the identity"
    flat = not np.any(np.abs(run.truth[name]) > 1e-9) and float(np.std(run.y)) > 0
    if not flat or given.shape != run.dy.shape:
        return None
    if np.all(np.isclose(given, run.dy, rtol=1e-9) | (given == 0)) and np.any(given):
        return "the straight-through estimator: forward is flat, and backward is that of the identity"
    whole = np.array_equal(run.y, np.round(run.y)) and np.all((given == 0) | (np.sign(given) == np.sign(run.dy)))
    return "a surrogate gradient: forward is a step, and backward that of something smoother" if whole else None


def _reversal(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    same = run.y.shape == run.inputs[name].shape and close(run.y, run.inputs[name]) and given.shape == run.dy.shape
    factor = float(np.sum(given * run.dy) / np.sum(run.dy**2)) if same else 0.0
    if not same or factor >= 0 or not close(given, factor * run.dy):
        return None
    return f"gradient reversal: forward is the identity, and backward turns the gradient round, times {factor:.6g}"


def _mean_over_examples(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    x = next(iter(run.inputs.values()))
    counts = [
        m
        for m in np.shape(x)
        if m > 1 and given.shape == run.truth[name].shape and _same(run, given * m, run.truth[name])
    ]
    others = [n for n in run.author.gradients if n != next(iter(run.inputs))]
    each = run.y.shape == np.shape(x)[:1] and bool(np.all(run.dy == 1))  # a loss for each example
    said = len(others) > 1 or each or re.search(_COUNT, text)
    if not counts or not said or not set(others) <= set(off):
        return None
    return "1/m of the vector-Jacobian product, m examples: the mean over examples is taken here"


def _passed_on(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    # Of softmax alone: a sigmoid's derivative is forgotten as easily as it is left out.
    squashed = bool(np.all(run.y > 0)) and any(np.allclose(run.y.sum(axis), 1) for axis in range(run.y.ndim))
    if given.shape != run.dy.shape or not squashed or not close(given, run.dy):
        return None
    return "dy is passed on as it is: the derivative of this last activation is taken together with that of the loss"


def _with_the_loss(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    p, truth = run.inputs[name], run.truth[name]
    inside = given.shape == p.shape == truth.shape
    for t in run.inputs.values() if inside else ():
        target = np.asarray(t)
        if target.shape == p.shape and t is not p and target.dtype.kind in "fiub":
            scale = float(np.sum(given * (p - target)) / (np.sum((p - target) ** 2) or 1))
            known = _same(run, truth * p, -scale * target) or _same(run, truth * p * (1 - p), scale * (p - target))
            if scale and close(given, scale * (p - target)) and known:
                return "p - t, the gradient of what softmax or sigmoid is taken of: both are differentiated together"
    return None


def _clipped(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    limit = float(np.max(np.abs(given), initial=0))
    if "clip" not in text or given.shape != run.truth[name].shape or np.sum(np.abs(given) == limit) < 2:
        return None
    return "clipped gradients" if _same(run, given, np.clip(run.truth[name], -limit, limit)) else None


def _decay(run: Run, name: str, given: Array, off: list[str], text: str) -> str | None:
    value, rest = run.inputs[name], given - run.truth[name] if given.shape == run.truth[name].shape else given
    rate = float(np.sum(rest * value) / (np.sum(value**2) or 1)) if rest.shape == value.shape else 0.0
    if rate <= 0 or not close(rest, rate * value, 1e-6) or not re.search(r"reg|decay|lamb|l2", text):
        return None
    return f"weight decay is added, {rate:.6g} times the weights"


Row = Callable[[Run, str, Array, list[str], str], str | None]
ROWS: tuple[Row, ...] = (
    _straight_through, _reversal, _mean_over_examples, _passed_on, _with_the_loss, _clipped, _decay
)  # fmt: skip
