"""Repair by search: the one small edit of the author's code that makes a wrong gradient right."""

from __future__ import annotations

import ast
import contextlib
import itertools
import math
import os
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...engine.node import Array
from .pairs import arguments_of
from .pure import Allowed, exchangeable
from .returned import Returned
from .run import Run
from .slips import Edit, Slips
from .source import NoSearch, Source, bare
from .trace import values_in
from .verdict import Repair

Backward = Callable[..., Any]


# What a search may do, in runs of a small backward: of a larger one each counts for several, and passages of its loops,
# entries of its arrays and the code compiled count too. It is no time: what is found is the same on a busy machine.
WORK = 4_000


class Repairs(dict[str, tuple[float, Repair]]):
    """The cheapest edits found: for each gradient its edit and what that costs, which one edit of several shares."""

    def price(self, names: set[str]) -> float:
        """What the edits for these gradients cost together: the next must be cheaper."""
        if not names <= set(self):
            return math.inf
        return sum({self[name][1]: self[name][0] for name in names}.values())


def search(runs: Sequence[Run], order: Sequence[str], effort: float) -> list[Repair]:
    """For each wrong gradient the smallest edit that makes it right in every run and leaves the others right.

    Only code that is arithmetic on arrays through and through is edited and run again (see `Allowed`), and an edit
    exchanges arrays, numbers, axes and operators, or a function on that list for another: so nothing is executed that
    does anything else than the unedited code does. Forward runs once a run, and backward as it stands twice; what
    either reaches, globals and closures too, is put back as it was after every edit. `NoSearch` says why code is left
    alone.
    """
    copies, wrong = Copies(runs[0], effort), {name for name in order if not _constant(runs, name)}
    stages = [Stage(run, copies) for run in runs]
    as_it_stands = copies.space[copies.main]
    with values_in([copies.space[source.function.__name__] for source in copies.sources]) as seen:
        before = stages[0].back(as_it_stands)
    if before.failure and not runs[0].author.failure:
        raise NoSearch("its source does not run by itself")

    fixed, known = stages[0].right(before) - wrong, stages[-1].steps(as_it_stands)
    repairs, spare = Repairs(), Repairs()

    def mended(backward: Backward, cost: float) -> set[str]:
        """What an edit makes right in every run: nothing if it spoils another gradient, or costs more than is known."""
        names = wrong | fixed
        for right in itertools.chain.from_iterable(stage.mended(backward) for stage in stages):
            names &= right
            if not fixed <= names or cost >= repairs.price(names & wrong):
                return set()
        return names & wrong

    tried: set[bytes] = set()
    for owner, edit in copies.touching(stages[0], before, wrong, fixed, seen):
        if copies.left <= 0 or edit.cost >= min(repairs.price(wrong), 1.5 + spare.price(wrong)):
            break
        text = owner.edited(edit.start, edit.end, edit.new)
        if text in tried:
            continue
        tried.add(text)
        with contextlib.suppress(SyntaxError), copies.with_text(owner, text) as backward:
            if names := mended(backward, edit.cost):
                # One that leaves a step wrong, or makes one wrong, makes up for a slip that stands elsewhere.
                now = stages[-1].steps(backward)
                kept = repairs if all(now.get(name) for name in known) else spare
                if edit.cost < kept.price(names):
                    listed = tuple([name for name in order if name in names])
                    kept.update(dict.fromkeys(listed, (edit.cost, _repair(owner, edit, listed, stages[0].sizes))))
    return list(dict.fromkeys(repair for _, repair in {**spare, **repairs}.values()))


def _constant(runs: Sequence[Run], name: str) -> bool:
    """Whether a gradient is the same number everywhere, as where the output doesn't depend on it: no edit finds why."""
    values = {value for run in runs for value in run.truth[name].ravel().tolist()}
    return len(values) == 1 or all(run.vanishing(name) for run in runs)


def _doubt(source: Source, edit: Edit, sizes: set[str]) -> float:
    """What an edit costs more that may be right by chance, or is no help: lengths as numbers, constants, `a = a`."""
    old, new = (_TOKEN.findall(text) for text in (source.text[edit.start : edit.end].decode(), edit.new))
    words = [token for token in new if token not in "() "]
    if {*words} & sizes - {"1", *old} and not (len(words) == len(old) == 1 and old[0].isdigit()):
        return 2.5
    if len(words) == 1 and len(old) > 1 and old != ["-", *words]:
        line = source.text[: edit.start].rpartition(b"\n")[2].decode().strip()
        return 3.0 if words[0][0].isdigit() else float(line == f"{words[0]} =")
    return 0.0


def _repair(source: Source, edit: Edit, gradients: tuple[str, ...], sizes: set[str]) -> Repair:
    """An edit as the lines that it changes, without brackets that change nothing."""
    meant, at = ast.dump(ast.parse(source.edited(edit.start, edit.end, edit.new))), edit.new.find("(")
    while at >= 0:
        for end in [i for i, sign in enumerate(edit.new) if sign == ")" and i > at]:
            shorter = replace(edit, new=edit.new[:at] + edit.new[at + 1 : end] + edit.new[end + 1 :])
            with contextlib.suppress(SyntaxError):
                if ast.dump(ast.parse(source.edited(shorter.start, shorter.end, shorter.new))) == meant:
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
    also = "".join([f", or a length that is {token} here" for token in now if token in sizes - {"1"}])
    what = f"`{out}` stands where `{into}` belongs"
    if not (out and into):
        what = f"`{into}` is missing" if into else f"`{out}` has no place"
    return Repair(source.file, source.first + first, old, new, gradients, edit.kind, f"{what}{also}")


_TOKEN = re.compile(r"\d[\w.]*|\w+|\*\*|[<>=!]=|.", re.DOTALL)


class Copies:
    """Copies of a backward function and its helpers, which can be replaced by edited ones."""

    def __init__(self, run: Run, effort: float) -> None:
        function, self.effort, self.left = _authors_own(run.pair.source), effort, float(WORK)
        self.allowed = Allowed(function, arguments_of(run.pair, run.dy.copy(), run.passed().cache))
        self.sources = [Source(function)]
        if not isinstance(self.sources[0].tree, ast.FunctionDef):
            raise NoSearch("it is a lambda")
        for source in self.sources:
            for name, helper in source.outside.globals.items():
                known = [other.function for other in self.sources]
                plain = isinstance(helper, types.FunctionType) and helper.__name__ == name and helper not in known
                if plain and helper in self.allowed.functions:
                    self.sources.append(self.allowed.functions[helper])
        self.space, self.steps = dict(function.__globals__), 0
        self.main = self.sources[0].function.__name__
        for source in self.sources:
            self.space.update(source.outside.nonlocals)
        own = {"print": lambda *_: None, "range": _range}
        self.space.update({name: new for name, new in own.items() if name not in self.space})
        self.space["_step"] = self._step
        for source in self.sources:
            self._compile(source, source.text)

    def _compile(self, source: Source, text: bytes) -> None:
        code: Any = text
        if not source.straight:
            code = ast.parse(text)
            _count_steps(bare(code.body[0]))
        exec(compile(code, source.file, "exec", dont_inherit=True), self.space)
        new, old = self.space[source.function.__name__], source.function
        new.__defaults__, new.__kwdefaults__ = old.__defaults__, old.__kwdefaults__

    def _step(self, statements: int) -> None:
        """Count what a run does, and bound it: an edited number may be the length of a loop."""
        self.steps += statements
        if self.steps > _STEPS:
            raise RuntimeError("the edit makes a loop too long")

    @contextlib.contextmanager
    def with_text(self, source: Source, text: bytes) -> Iterator[Backward]:
        """The backward pass with one function's text exchanged; `SyntaxError` where that is no Python."""
        name = source.function.__name__
        kept = self.space[name]
        try:
            self._compile(source, text)
            yield self.space[self.main]
        finally:
            self.space[name] = kept

    def touching(
        self, stage: Stage, before: Returned, wrong: set[str], fixed: set[str], seen: list[Any]
    ) -> Iterator[tuple[Source, Edit]]:
        """Edits, the cheapest first, at the places that reach a wrong gradient and none that is right."""
        slips = [(own, Slips(own, self.allowed, there).edits) for own, there in zip(self.sources, seen, strict=True)]
        doubted: Any = lambda source, edit: replace(edit, cost=edit.cost + _doubt(source, edit, stage.sizes))
        edits = [(source, doubted(source, edit)) for source, listed in slips for edit in listed]
        reaches: dict[tuple[Source, tuple[int, int]], bool] = {}
        for source, edit in sorted(edits, key=lambda pair: (pair[1].cost, -pair[1].start)):
            at = source, source.span(edit.place)
            if at not in reaches and self.left > 0:
                moved = None if before.failure else self._moving(*at, stage, before.gradients)
                reaches[at] = moved is None or (bool(moved & wrong) and not moved & fixed)
            if reaches.get(at):
                yield source, edit

    def _moving(self, source: Source, span: tuple[int, int], stage: Stage, before: dict[str, Array]) -> set[str] | None:
        """The gradients that move when the value of an expression does, or None where it can't be moved.

        None of them where it isn't reached, or is nothing that an edit may exchange.
        """
        kinds = set[str]()

        def move(value: Any) -> Any:
            moves = isinstance(value, float) or "float" in str(getattr(value, "dtype", ""))
            several = isinstance(value, tuple) and all(map(exchangeable, value))
            kinds.add("moved" if moves else "kept" if several or exchangeable(value) else "other")
            return 0.1 - 1.3 * value if moves else value  # of the other sign: masks change too

        self.space["_move"], (start, end) = move, span
        text = source.edited(start, end, f"_move({source.text[start:end].decode()})")
        after = dict[str, Array]()
        with contextlib.suppress(SyntaxError), self.with_text(source, text) as backward:
            after = stage.back(backward).gradients
        if "other" in kinds or not kinds:
            return set()
        if "moved" not in kinds or not after:
            return None
        return {n for n, g in before.items() if n not in after or g.tobytes() != after[n].tobytes()}


class Stage:
    """A run whose forward pass has been run: any backward can follow, and again, and leaves all as it was."""

    def __init__(self, run: Run, copies: Copies) -> None:
        self.run, self.copies = run, copies
        self.sizes = {str(k) for value in run.inputs.values() for k in np.shape(value)}
        self._pass()

    def _pass(self) -> None:
        self.passed = self.run.passed()
        self.kept = self.copies.allowed.kept(arguments_of(self.run.pair, self.run.dy.copy(), self.passed.cache))

    def back(self, backward: Backward, factor: float = 1.0) -> Returned:
        """What an edited backward returns."""
        sizes = [np.size(value) for value in (self.run.y, *self.run.inputs.values())]
        self.copies.left -= self.copies.effort + sum(sizes) / 20_000
        with self._undone():
            return self.run.back(backward, factor, self.passed)

    def right(self, back: Returned) -> set[str]:
        """The gradients that come out right, unless arrays are overwritten on the way that weren't before."""
        new = back.faults and not self.run.author.faults
        return set() if new else {name for name, g in back.gradients.items() if self.run.right(name, g)}

    def mended(self, backward: Backward) -> Iterator[set[str]]:
        """The gradients that an edited backward makes right: those for dy, then those for -2 * dy among them.

        What depends on dy in no way, or not as a multiple, mends by chance what rounding or an eps is off.
        """
        right = self.right(self.back(backward))
        yield right
        turned = {} if np.all(self.run.dy == 1) else self.back(backward, -2.0).gradients
        yield right - {name for name, g in turned.items() if not self.run.right(name, g / -2)}

    def steps(self, backward: Backward) -> dict[str, bool]:
        """The intermediates of an edited backward, and whether each is right."""
        with self._undone():
            return {step.name: step.ok for step in self.run.steps(backward, self.passed)}

    @contextlib.contextmanager
    def _undone(self) -> Iterator[None]:
        """Run something from where forward left off, and again put back all that it reaches."""
        self.copies.steps = 0
        self.kept.restore()  # another stage may have run, with the same object
        try:
            yield
        finally:
            self.copies.left -= self.copies.steps / 35
            if not self.kept.restore():
                self._pass()


def _authors_own(function: Any) -> Any:
    """The author's function in one of the referee's, which calls it for each entry where it takes no arrays."""
    inner, code = getattr(function, "__wrapped__", None), getattr(function, "__code__", None)
    ours = code is not None and os.path.dirname(code.co_filename) == os.path.dirname(__file__)
    return inner if ours and isinstance(inner, types.FunctionType) else function


_STEPS = 100_000


def _range(*ends: Any) -> range:
    numbers = range(*ends)
    if len(numbers) > _STEPS:
        raise ValueError("the edit makes a loop too long")
    return numbers


def _count_steps(node: Any) -> None:
    """Call `_step` in every passage of a loop and every call, with how many statements follow."""
    for field in ("body", "orelse", "finalbody", "handlers"):
        for statement in getattr(node, field, ()) if not isinstance(node, ast.expr) else ():
            _count_steps(statement)
    if isinstance(node, ast.For | ast.FunctionDef):
        step = ast.Expr(ast.Call(ast.Name("_step", ast.Load()), [ast.Constant(len(node.body))], []))
        node.body.insert(0, ast.fix_missing_locations(ast.copy_location(step, node.body[0])))
