"""Where an author's backward pass keeps gradients, and how: set, filled, added to, or in a list made anew."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ..referee.held import Path, arrays, get, groups, is_float, label, put
from ..referee.pairs import Pair
from ..referee.returned import Gradients, Matching
from .tracing import Unwritable

START = 3.25  # of the gradients that a second run may add to


class Ran:
    """A run of an author's backward pass: what it gives, and the arrays of his object before and after.

    `started` are places in which gradients are not 0 before.
    """

    def __init__(self, pair: Pair, started: list[Path]) -> None:
        calls: Any = pair.calls
        y, kept = pair.forward(*copy.deepcopy(pair.inputs))
        seen, outputs = kept.reveal()
        self.root = {"object": seen["object"]}
        for path in started:
            if isinstance(held := get(self.root, path), np.ndarray):
                held[...] = START
            elif isinstance(held, float):
                put(self.root, path, START)
        self.holders = {path[:-1]: get(self.root, path[:-1]) for path in started}
        self.held = arrays(self.root)
        self.before = {path: np.copy(value) for path, value in self.held.items()}
        dy = np.ones(np.shape(y)) if pair.unit else np.random.default_rng(3).normal(size=np.shape(y))
        self.back: Gradients = replace(calls, places={} if started else calls.places).pulled(
            pair.source, dy, seen, outputs
        )
        self.after = arrays(self.root)

    @classmethod
    def of(cls, pair: Pair) -> "Ran | None":
        """A run, if the backward pass is written."""
        with suppress(Exception):
            run = cls(pair, [])
            if any(value is not None for value in run.back.listed) or any(map(np.any, run.back.left.values())):
                return run
        return None

    def places(self, pair: Pair) -> list[tuple[str, Path]]:
        """Where else gradients are kept; `Unwritable` where backward changes what no gradient is."""
        calls: Any = pair.calls
        gradients = gradients_of(self.back, dict(zip(pair.names, pair.inputs, strict=True)))
        own, kept = arrays({"object": calls.author.owner}), list[tuple[str, Path]]()
        known = {*calls.places.values()}
        known |= {path for name in calls.places if calls.updates(name) for path in calls.slots[name]}
        shared = [paths for _, paths in groups(self.held) if known & {*paths}]  # one array, which is filled in place
        for path, value in self.after.items():
            same = any(path in paths and value is self.held[path] for paths in shared)
            if path in known or same or np.array_equal(value, self.before.get(path, np.nan)):
                continue
            of = [name for name, g in gradients.items() if g is not None and np.array_equal(g, value)]
            if of:
                kept.append((of[0], path))
            elif path in own and np.array_equal(own[path], self.before[path]):
                raise Unwritable(f"backward changes {label(path[1:])} as well, and what is written makes gradients")
        return kept


def manner(pair: Pair, first: Ran, paths: list[Path]) -> dict[Path, str]:
    """How an author keeps gradients in places: "add", "fill", "set", or "anew" where he makes what holds them too."""
    run, how = Ran(pair, paths), dict[Path, str]()
    for path in paths:
        holder, value, there = path[:-1], run.after[path], path in run.before
        if get(run.root, holder) is not run.holders[holder]:
            how[path] = "anew"
        elif there and np.all(value == START):
            continue  # nothing is kept yet
        elif not np.allclose(value, first.after[path]):
            if not np.allclose(value - START, first.after[path]):
                raise Unwritable(f"backward leaves more than a gradient in {label(path[1:])}")
            how[path] = "add"
        else:
            how[path] = "fill" if there and value is run.held[path] else "set"
    return how


def gradients_of(back: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a backward pass gave, by the inputs: None for what has no gradient."""
    back = Matching(back, dict(inputs), {name: 1 for name, value in inputs.items() if is_float(value)}).matched()
    return {name: back.gradients.get(name) for name in inputs}
