"""How much a check of derivatives would catch: mistakes planted in the rules, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import engine as ag
from ..engine import Tensor
from ..engine.graph import compute
from ..engine.node import Array, Node

_CHANGES: dict[str, Callable[[Any], Any]] = {
    "dropped": lambda term: term * 0,
    "sign flipped": lambda term: -term,
    "scaled by 1 + 1e-4": lambda term: term * (1 + 1e-4),
    "scaled by 1 - 1e-4": lambda term: term * (1 - 1e-4),
    "transposed": lambda term: np.swapaxes(term, -1, -2),
}

# A mutation that moves no entry by more than this part of the largest is one that no rounding would show.
_NO_CHANGE = 1e-10


@dataclass(frozen=True)
class Power:
    """What a check caught of the mistakes planted in the rules that it checks; `str()` is a short table.

    `planted` and `caught` count the mistakes that change a gradient, by kind. `survivors` describes those that
    went unseen, `harmless` counts those that change nothing.
    """

    planted: dict[str, int]
    caught: dict[str, int]
    survivors: tuple[str, ...]
    harmless: int

    @property
    def share(self) -> float:
        """The part of the planted mistakes that was caught."""
        return sum(self.caught.values()) / max(sum(self.planted.values()), 1)

    def __add__(self, other: Power) -> Power:
        return Power(
            {kind: self.planted[kind] + other.planted[kind] for kind in _CHANGES},
            {kind: self.caught[kind] + other.caught[kind] for kind in _CHANGES},
            self.survivors + other.survivors,
            self.harmless + other.harmless,
        )

    def __str__(self) -> str:
        lines = [f"{kind:20} {self.caught[kind]:5} of {n:5} caught" for kind, n in self.planted.items() if n]
        lines.append(f"{'all':20} {sum(self.caught.values()):5} of {sum(self.planted.values()):5} caught")
        lines.append(f"{self.harmless} more change no gradient")
        return "\n".join(lines + [f"survived: {survivor}" for survivor in self.survivors])


class RecordedRules:
    """The rules of a function as they ran: the graph of its gradient, to be run again with a term changed.

    `leaves` and `outputs` are a recorded function. What depends on the weights of the outputs is a sum of
    products in them, and each input of each operation there is a term of a rule, or of several.
    """

    def __init__(self, leaves: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.leaves = leaves
        weights = [ag.tensor(np.ones(output.shape)) for output in outputs]
        used = [(output, w) for output, w in zip(outputs, weights, strict=True) if output.requires_grad]
        found: Sequence[Any] = [None] * len(leaves)
        if used:
            found = ag.grad([t for t, _ in used], leaves, [w for _, w in used], create_graph=True, allow_unused=True)
        self.results = [None if g is None else g.node for g in found]
        self.weights = [(w.node, w.size) for w in weights]
        graph = ag.Graph(*[g for g in found if g is not None], *weights)
        self.values = graph.values()
        moving = {node for node, _ in self.weights}
        self.terms: list[Node] = []
        for node in graph.nodes:
            if moving.intersection(node.inputs):
                moving.add(node)
                self.terms.append(node)
        self.moving = moving
        self.rows = [self._run(self._seed(k)) for k in range(sum(size for _, size in self.weights))]

    def mutants(self) -> Iterator[tuple[str, str, list[Array]]]:
        """Every mutation as its kind, a description, and the Jacobian that it leads to, input by input."""
        for i, node in enumerate(self.terms):
            place = f"{node.op} (step {i + 1} of {len(self.terms)} of the gradient)"
            for position, term in enumerate(node.args):
                if isinstance(term, Node) and term in self.moving:
                    for kind, change in self._changes(term):
                        rows = [self._run(row, node, position, change) for row in self.rows]
                        yield kind, f"input {position} of {place} {kind}", self._jacobian(rows)
        for leaf, result in zip(self.leaves, self.results, strict=True):
            if result is not None:
                for kind, change in self._changes(result):
                    rows = [{**row, result: change(row[result])} for row in self.rows]
                    yield kind, f"the gradient of {leaf.name} {kind}", self._jacobian(rows)

    def _changes(self, term: Node) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        square = len(term.shape) > 1 and term.shape[-1] == term.shape[-2] > 1
        for kind, change in _CHANGES.items():
            if square or kind != "transposed":
                yield kind, change

    def _seed(self, k: int) -> dict[Node, Any]:
        seeds: dict[Node, Any] = {}
        for node, size in self.weights:
            seed = np.zeros(size)
            if 0 <= k < size:
                seed[k] = 1
            seeds[node] = seed.reshape(node.shape)
            k -= size
        return seeds

    def _run(
        self, known: dict[Node, Any], site: Node | None = None, position: int = 0, change: Any = None
    ) -> dict[Node, Any]:
        """The values that depend on the weights, computed anew from `site` on."""
        values = dict(known)
        stale: set[Node] = set()
        for node in self.terms:
            if node in values and node is not site and not stale.intersection(node.inputs):
                continue
            stale.add(node)
            args = [values.get(a, self.values.get(a)) if isinstance(a, Node) else a for a in node.args]
            if node is site:
                args[position] = change(args[position])
            values[node] = compute(node, args)
        return values

    def _jacobian(self, rows: list[dict[Node, Any]]) -> list[Array]:
        blocks = []
        for leaf, result in zip(self.leaves, self.results, strict=True):
            block = np.zeros((len(rows), leaf.size))
            if result is not None:
                for k, row in enumerate(rows):
                    block[k] = np.ravel(row.get(result, self.values[result]))
            blocks.append(block)
        return blocks


def measure(
    leaves: Sequence[Tensor], outputs: Sequence[Tensor], right: Sequence[Array], wrong: Sequence[Callable[[Array], Any]]
) -> Power:
    """Plant every mutation in the rules of a recorded function and see which a check catches.

    `right` is the Jacobian of each input, and `wrong` says of a Jacobian of that input which entries are
    seen to be wrong.
    """
    planted, caught = dict.fromkeys(_CHANGES, 0), dict.fromkeys(_CHANGES, 0)
    survivors, harmless = [], 0
    for kind, what, blocks in RecordedRules(leaves, outputs).mutants():
        moved = [
            np.max(np.abs(block - true), initial=0) > _NO_CHANGE * np.max(np.abs(true), initial=0)
            for block, true in zip(blocks, right, strict=True)
        ]
        if not any(moved):
            harmless += 1
            continue
        planted[kind] += 1
        if any(np.any(seen(block)) for seen, block in zip(wrong, blocks, strict=True)):
            caught[kind] += 1
        else:
            survivors.append(what)
    return Power(planted, caught, tuple(survivors), harmless)
