"""Repair by search: the one small edit of the author's code that makes a wrong gradient right."""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import math
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import thread_time
from typing import Any

import numpy as np

from ...engine.node import Array
from .matching import Returned
from .run import Run
from .slips import Edit, NoSearch, Slips, Source
from .verdict import Repair

Backward = Callable[..., Any]


class Clock:
    """The budget of a whole check: seconds of computing, so that what it finds doesn't depend on who else computes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, thread_time()

    def spent(self) -> float:
        """The share of the budget that is gone."""
        return (thread_time() - self.started) / self.seconds if self.seconds > 0 else np.inf


class Repairs(dict[str, tuple[float, Repair]]):
    """The cheapest edits found: for each gradient its edit and what that costs, which one edit of several shares."""

    def price(self, names: set[str]) -> float:
        """What the edits for these gradients cost together: the next must be cheaper."""
        if not names <= set(self):
            return math.inf
        return sum({self[name][1]: self[name][0] for name in names}.values())


def search(runs: Sequence[Run], order: Sequence[str], clock: Clock) -> list[Repair]:
    """For each wrong gradient the smallest edit that makes it right in every run and leaves the others right.

    `NoSearch` where the code can't be edited, or must not be run many times.
    """
    workshop, wrong = Workshop(runs[0].pair.source), set(order)
    as_it_stands = workshop.space[workshop.main]
    before = runs[0].back(as_it_stands)
    if before.failure and not runs[0].author.failure:
        raise NoSearch("its source does not run by itself")

    def passed(run: Run, back: Returned) -> set[str]:
        """The gradients that come out right, unless arrays are overwritten on the way that weren't before."""
        new = back.faults and not run.author.faults
        return set() if new else {name for name, g in back.gradients.items() if run.right(name, g)}

    def steps(backward: Backward) -> dict[str, bool]:
        return {step.name: step.ok for step in runs[-1].steps(backward)}

    fixed, known = passed(runs[0], before) - wrong, steps(as_it_stands)
    found, spare = Repairs(), Repairs()
    tried: set[bytes] = set()
    for owner, edit in workshop.touching(runs[0], before, wrong, fixed, clock):
        if clock.spent() > 1 or edit.cost >= min(found.price(wrong), 1.5 + spare.price(wrong)):
            break
        text = owner.edited(edit)
        if text in tried:
            continue
        tried.add(text)
        with contextlib.suppress(SyntaxError), workshop.with_text(owner, text) as backward:
            right = wrong | fixed
            for run in runs:
                right &= passed(run, run.back(backward))
                if not fixed <= right or edit.cost >= found.price(right & wrong):
                    break
            else:
                # One that leaves a step wrong, or makes one wrong, makes up for a slip that stands elsewhere.
                now = steps(backward)
                kept = found if all(now.get(name) for name in known) else spare
                mended = [name for name in order if name in right]
                if edit.cost < kept.price(set(mended)):
                    kept.update(dict.fromkeys(mended, (edit.cost, _repair(owner, edit, tuple(mended)))))
    return list(dict.fromkeys(repair for _, repair in {**spare, **found}.values()))


def _repair(source: Source, edit: Edit, gradients: tuple[str, ...]) -> Repair:
    """An edit as the lines that it changes, without brackets that change nothing."""
    meant, at = ast.dump(ast.parse(source.edited(edit))), edit.new.find("(")
    while at >= 0:
        for end in [i for i, sign in enumerate(edit.new) if sign == ")" and i > at]:
            shorter = replace(edit, new=edit.new[:at] + edit.new[at + 1 : end] + edit.new[end + 1 :])
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(source.edited(shorter))) == meant:
                    edit, at = shorter, at - 1
                    break
        at = edit.new.find("(", at + 1)
    first = source.text.count(b"\n", 0, edit.start)
    start = source.starts[first]
    end = next(at for at in source.starts[first + 1 :] if at >= edit.end)
    lines = source.text[start:end], source.text[start : edit.start] + edit.new.encode() + source.text[edit.end : end]
    old, new = (textwrap.dedent(text.decode()).rstrip("\n") for text in lines)
    was, now = (_TOKEN.findall(text) for text in (source.text[edit.start : edit.end].decode(), edit.new))
    for last in (0, -1):
        while was and now and was[last] == now[last]:
            del was[last], now[last]
    out, into = ("".join(tokens).strip(" ,") for tokens in (was, now))
    what = f"`{out}` stands where `{into}` belongs"
    if not (out and into):
        what = f"`{into}` is missing" if into else f"`{out}` has no place"
    return Repair(source.file, source.first + first, old, new, gradients, edit.kind, what)


_TOKEN = re.compile(r"\d[\w.]*|\w+|\*\*|[<>=!]=|.", re.DOTALL)


class Workshop:
    """Copies of a backward function and its helpers, which can be replaced by edited ones."""

    def __init__(self, function: Any) -> None:
        self.sources = [Source(function)]
        for source in self.sources:
            for name, helper in source.outside.globals.items():
                known = [other.function for other in self.sources]
                plain = isinstance(helper, types.FunctionType) and helper.__name__ == name and helper not in known
                if plain and helper.__code__.co_filename == source.file:
                    self.sources.append(Source(helper))
        self.space, self.main = dict(function.__globals__), function.__name__
        for source in self.sources:
            self.space.update(source.outside.nonlocals)
        # An edit may write into the arrays of the file, so each is tried on copies of them.
        read = {n.id for source in self.sources for n in ast.walk(source.tree) if isinstance(n, ast.Name)}
        self.kept = {n: v for n, v in self.space.items() if n in read and isinstance(v, np.ndarray | list | dict)}
        for source in self.sources:
            _check_calls(source, self.space)
            self._compile(source, source.text)

    def _compile(self, source: Source, text: bytes) -> None:
        exec(compile(text, source.file, "exec"), self.space)
        self.space[source.function.__name__].__defaults__ = source.function.__defaults__

    @contextlib.contextmanager
    def with_text(self, source: Source, text: bytes) -> Iterator[Backward]:
        """The backward pass with one function's text exchanged; `SyntaxError` where that is no Python."""
        name = source.function.__name__
        kept = self.space[name]
        self.space.update(copy.deepcopy(self.kept))
        try:
            self._compile(source, text)
            yield self.space[self.main]
        finally:
            self.space[name] = kept

    def touching(
        self, run: Run, before: Returned, wrong: set[str], fixed: set[str], clock: Clock
    ) -> Iterator[tuple[Source, Edit]]:
        """Edits, the cheapest first, at the places that reach a wrong gradient and none that is right."""
        edits = [(source, edit) for source in self.sources for edit in Slips(source).found]
        reaches: dict[tuple[Source, tuple[int, int]], bool] = {}
        for source, edit in sorted(edits, key=lambda pair: (pair[1].cost, -pair[1].start)):
            at = source, source.span(edit.place)
            if at not in reaches and clock.spent() < 1:
                moved = None if before.failure else self._moving(*at, run, before.gradients)
                reaches[at] = moved is None or (bool(moved & wrong) and not moved & fixed)
            if reaches.get(at):
                yield source, edit

    def _moving(self, source: Source, span: tuple[int, int], run: Run, before: dict[str, Array]) -> set[str] | None:
        """The gradients that move when the value of an expression does, or None where it can't be moved."""
        moved = []

        def move(value: Any) -> Any:
            if isinstance(value, float) or "float" in str(getattr(value, "dtype", "")):
                moved.append(True)
                return value * 1.3 + 0.1
            return value

        self.space["_move"], (start, end) = move, span
        text = source.text[:start] + b"_move(" + source.text[start:end] + b")" + source.text[end:]
        after = dict[str, Array]()
        with contextlib.suppress(SyntaxError), self.with_text(source, text) as backward:
            after = run.back(backward).gradients
        if not moved or not after:
            return None
        return {n for n, g in before.items() if n not in after or g.tobytes() != after[n].tobytes()}


_MODULES = {"numpy", "math", "torch", "jax", "scipy", "operator", "functools", "itertools"}
_BUILTINS = set("len range float int bool abs sum max min zip enumerate tuple list dict set slice pow reversed".split())
_BUILTINS |= set("sorted isinstance getattr hasattr print round map super".split())
_BUILTINS |= set("ValueError TypeError NotImplementedError".split())
_UNSAFE = set("tofile dump dumps save savez savez_compressed savetxt load loadtxt fromfile memmap write close".split())
_UNSAFE |= set("remove unlink send system popen seed backward".split())


def _check_calls(source: Source, space: dict[str, Any]) -> None:
    """Refuse code whose repetition may do anything but arithmetic."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.While | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal):
            raise NoSearch(f"it has `{type(node).__name__.lower()}` in it")
        if isinstance(node, ast.Call):
            root: Any = node.func
            method = isinstance(root, ast.Attribute)
            safe = not (method and root.attr in _UNSAFE)
            while isinstance(root, ast.Attribute):
                root = root.value
            value = space.get(getattr(root, "id", ""))
            if value is not None and (isinstance(value, types.ModuleType) or not method):
                home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "numpy")
                local = getattr(getattr(value, "__code__", None), "co_filename", "") == source.file
                safe &= local or str(home).split(".")[0] in _MODULES
            elif isinstance(root, ast.Name) and not method:
                safe &= root.id in _BUILTINS or not hasattr(builtins, root.id)
            if not safe:
                raise NoSearch(f"it calls `{source.segment(node.func)}`")
