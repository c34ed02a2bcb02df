"""A forward pass recorded on tensors, and the one hook that sees what the functions of an author are at."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from types import MappingProxyType
from typing import Any

import numpy as np

from ...engine import Tensor, as_tensor
from ...engine.backward import pull
from ...engine.graph import Values
from ...engine.node import Array, Node, recording, topological_order
from .source import GUARD, NoSearch, unwrapped

Arrays = dict[str, Array]
NUMBERS = 50_000  # of an array that cost as much to go through as a call of a small pair
STANDARD = os.path.dirname(os.__file__)
OWN = str(Path(__file__).parents[2])  # this package
_NOT_AUTHORS = re.compile(rf"{re.escape(OWN)}|site-packages|lib[/\\]python")


class NoDerivative(Exception):
    """Why a forward pass can't be differentiated automatically."""


class Trace:
    """A forward pass recorded on tensors: its output, its inputs, and every name its author gave a value.

    Called with dy it gives the gradient of `sum(y * dy)` with respect to each input.
    """

    def __init__(self, y: Tensor, leaves: dict[str, Tensor], named: dict[str, Tensor]) -> None:
        self.y, self.leaves, self.named = y, leaves, named
        self.order = topological_order([y.node])

    @classmethod
    def of(cls, forward: Callable[..., Any], inputs: dict[str, Any], floats: Sequence[str], y: Array) -> Trace:
        """Run `forward`, whose output on arrays is `y`; `NoDerivative` where it can't be recorded."""
        leaves = {name: as_tensor(inputs[name], requires_grad=True, name=name) for name in floats}
        try:
            with recording(True), local_values(forward) as seen:
                recorded, cache = forward(*{**inputs, **leaves}.values())
        except Exception as error:
            raise NoDerivative(f"forward can't be recorded on tensors ({reported(error)})") from None
        if not isinstance(recorded, Tensor) or not recorded.requires_grad:
            raise NoDerivative("forward leaves the tensors it is given, so it can't be recorded")
        if not np.allclose(recorded.data, y, rtol=1e-9, atol=1e-12, equal_nan=True):
            raise NoDerivative("forward gives another result on tensors than on arrays")
        named = {name: t for name, t in [*seen.items(), *named_in(cache)] if name and isinstance(t, Tensor)}
        return cls(recorded, leaves, named)

    def flow(
        self, start: Node, gradient: Array, cut: Sequence[Node] = (), weights: Mapping[Node, Any] = MappingProxyType({})
    ) -> tuple[dict[Node, Array], list[tuple[Node, Node, Array]]]:
        """What flows back from a node to all below it, and the share of each edge: (consumer, input, share).

        `weights` are what the shares of some consumers are multiplied by.
        """
        gradients, shares = {start: gradient}, []
        for node in reversed(self.order):
            if node in gradients and node not in cut:
                for parent, part in pull(node, gradients[node]):
                    share = np.asarray(part) * weights[node] if node in weights else np.asarray(part)
                    gradients[parent] = gradients[parent] + share if parent in gradients else share
                    shares.append((node, parent, share))
        return gradients, shares

    def __call__(self, dy: Array, weights: Mapping[Node, Any] = MappingProxyType({})) -> Arrays:
        gradients, _ = self.flow(self.y.node, dy, (), weights)
        return {name: np.array(gradients.get(leaf.node, np.zeros(leaf.shape))) for name, leaf in self.leaves.items()}

    def unguarded(self, dy: Array) -> Arrays:
        """The gradients as if no small number were added inside of a logarithm, or in a ratio there; else nothing."""
        inner = [node.inputs[0] for node in self.order if node.own_op == "log"]
        inner += [part for node in inner if node.own_op in ("divide", "multiply") for part in node.inputs]
        guards = {n: added for n in inner if n.own_op == "add" and 0 < abs(added := constant(n)) <= GUARD}
        values = Values(self.order) if guards else {}
        weights = {node: values[node] / (values[node] - guard) for node, guard in guards.items()}
        return self(dy, weights) if guards else {}

    def constants(self, dy: Array) -> list[Node]:
        """Nodes whose parts of the gradient cancel: constants to authors, as the maximum that softmax takes off."""
        gradients, edges = self.flow(self.y.node, dy)
        largest: dict[Node, float] = {}
        for consumer, parent, _ in edges:
            largest[parent] = max(largest.get(parent, 0.0), float(np.max(np.abs(gradients[consumer]), initial=0)))
        leaves = [leaf.node for leaf in self.leaves.values()]
        small = [n for n, size in largest.items() if np.max(np.abs(gradients[n]), initial=0) < 1e-12 * size]
        return [node for node in small if node not in leaves]

    def author_name(self, node: Node) -> str:
        """The name that the author gave a node, or nothing."""
        return next((name for name, t in self.named.items() if t.node is node), node.name or "")

    def label(self, node: Node) -> str:
        """The name that the author gave a node, else its operation."""
        return self.author_name(node) or node.op or "an input"


def constant(node: Node) -> float:
    """The number that an operation takes beside another node, or 0."""
    constants = [float(a) for a in node.args if not isinstance(a, Node) and np.ndim(a) == 0]
    return constants[0] if len(constants) == len(node.inputs) == 1 else 0.0


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def steps(error: BaseException) -> list[tuple[str, int]]:
    """The author's files and lines that an exception came through, the outer ones first."""
    every = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    return [(file, line) for file, line in every if file.endswith((".py", ".ipynb")) and not _NOT_AUTHORS.search(file)]


def line_of(error: BaseException) -> str:
    """Where an exception was raised: a line of the file that is judged, or of another that is named."""
    if not (through := steps(error)):
        return ""
    (first, _), (last, line) = through[0], through[-1]
    return f" ({'' if last == first else f'{os.path.basename(last)}, '}line {line})"


def reported(error: BaseException) -> str:
    """An exception in one line, with where it was raised."""
    return said(error) + line_of(error)


@contextmanager
def local_values(function: Callable[..., Any]) -> Iterator[dict[str, Any]]:
    """The local variables that a function ends with, filled in when it returns."""
    with values_in([function]) as (seen,):
        yield seen


@contextmanager
def values_in(functions: Sequence[Callable[..., Any]]) -> Iterator[list[dict[str, Any]]]:
    """The local variables that each of these functions ends with."""
    seen: list[dict[str, Any]] = [{} for _ in functions]
    inner = [unwrapped(getattr(function, "func", function)) for function in functions]
    codes = {getattr(function, "__code__", None): values for function, values in zip(inner, seen, strict=True)}

    def watch(frame: Any, event: str, _: Any) -> None:
        if event == "return" and frame.f_code in codes:
            codes[frame.f_code].update(frame.f_locals)

    with hooked("profile", watch):
        yield seen


@contextmanager
def hooked(kind: str, watch: Callable[..., Any]) -> Iterator[None]:
    """Python calls a function at each call, `profile`, or at each line, `trace`; then what it called before."""
    before, set_hook = getattr(sys, f"get{kind}")(), getattr(sys, f"set{kind}")
    set_hook(watch)
    try:
        yield
    finally:
        set_hook(before if callable(before) else None)
        getattr(before, "enable", bool)()  # `cProfile` is no function


@contextmanager
def work() -> Iterator[list[float]]:
    """What the calls made inside cost, in calls of a small pair, whatever the machine is at: long arrays cost more."""
    done = [0.0]

    def watch(frame: Any, event: str, function: Any) -> None:
        if event in ("call", "c_call") and _counts(frame):
            owner = getattr(function, "__self__", None)  # a copy is one call of an array's own
            done[0] += 5e-4 + (owner.size / NUMBERS if isinstance(owner, np.ndarray) else 0.0)

    with hooked("profile", watch):
        yield done


def instructions(function: Callable[[], Any], known: Container[Any] | None = None) -> set[Any]:
    """What a call runs of code that isn't the standard library's; `NoSearch` before it runs what is not `known`."""
    ran = set[Any]()

    def watch(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename.startswith((STANDARD, OWN)):
            return None
        frame.f_trace_opcodes, step = True, (frame.f_code, frame.f_lasti)
        if event == "opcode":
            if known is not None and step not in known:
                raise NoSearch(f"line {frame.f_lineno} is not run otherwise")
            ran.add(step)
        return watch

    with hooked("trace", watch):
        function()
    return ran


def effort(function: Callable[[], Any]) -> float:
    """What a call costs, in calls of a small pair: by the calls that it makes and the lines of Python that it runs."""
    lines = [0]

    def watch(frame: Any, event: str, _: Any) -> Any:
        lines[0] += event == "line"
        return watch if _counts(frame) else None

    with hooked("trace", watch), work() as done:
        function()
    return max(1.0, lines[0] / 2_000, done[0])


def _counts(frame: Any) -> bool:
    """The standard library doesn't count, but for copies: PyTorch formats the whole stack when it is seeded."""
    file = frame.f_code.co_filename
    return file.endswith("copy.py") or not file.startswith(STANDARD)


def named_in(cache: Any) -> Iterator[tuple[str, Any]]:
    """Every array and tensor in a cache, with the name it has there."""
    todo, seen = [("", cache)], set()
    while todo:
        name, value = todo.pop()
        if isinstance(value, np.ndarray | np.floating | Tensor):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, tuple | list):
                todo += [(name, item) for item in reversed(value)]
            else:
                watched = getattr(value, "watched", None)
                kept = watched() if callable(watched) else value
                kept = kept if isinstance(kept, dict) else getattr(value, "__dict__", {})
                todo += [(str(key), item) for key, item in kept.items()]
