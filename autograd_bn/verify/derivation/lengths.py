"""Recordings of one function at other values, lengths and numbers, in which shows what each number in it follows."""

import ast
import contextlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ..referee.held import is_float
from ..referee.inputs import moved
from ..referee.source import syntax, unwrapped
from .tracing import Inputs, Options, Recording, Unwritable

Place = tuple[str, int]  # an input and one of its axes
# By how many times lengths grow in two recordings, small so that these are. Each first is taken once, and no products,
# quotients or differences of a few are alike in both, so that no length follows another.
FACTORS = [(2, 3), (3, 2), (4, 2), (5, 2), (6, 2), (7, 2), (8, 3), (9, 4), (10, 5), (11, 2), (12, 7), (13, 2), (14, 8)]
Growth = dict[Place, Fraction]  # axes that grow together, each by so many times as much as the first
LONGEST = 1_000  # lengths that are tried


def recordings(
    forward: Callable[..., Any], recorded: Callable[[Inputs, Inputs], Recording], inputs: Inputs, options: Inputs
) -> list[Recording]:
    """Recordings near the inputs and at them; of those near, in the second each length is another where that is taken.

    So is each number among the inputs that no branch of `forward` reads. In the third, lengths are odd where they may
    be, and where a branch of `forward` reads a number, there is one with lengths above it.
    """
    rng = np.random.default_rng(7)

    def record(inputs: Inputs, options: Inputs) -> Recording:
        near: Any = lambda v, share: np.asarray(v + share * (moved(v, rng) - v)) if is_float(v) else v
        with contextlib.suppress(Unwritable):  # where an index is beyond what there is
            if (run := recorded({n: near(v, 1) for n, v in inputs.items()}, options)).finite:
                return run
        return recorded({n: near(v, 0.05) for n, v in inputs.items()}, options)  # a probability stays one

    first, second, at = _relabelled(record, inputs, options), record(inputs, options), recorded(inputs, options)
    if not first.course == second.course == at.course:
        raise Unwritable("forward takes another way at other inputs, and what is written takes one way")
    names, limits = _branches(forward)
    first.tested = frozenset(names)
    lengths = _Lengths(record, limits)
    grown, odd = lengths.grown(second), lengths.odd(at)
    at.single, at.even = lengths.single(at), lengths.even
    dicts = {name: {**value.defaults, **inputs[name]} for name, value in at.args.items() if isinstance(value, Options)}
    numbers: list[Any] = [(name, value, None) for name, value in {**inputs, **options}.items()]
    numbers += [(key, value, name) for name, own in dicts.items() for key, value in own.items()]
    for i, (name, value, owner) in enumerate(numbers):
        others: tuple[float, ...] = ()
        if type(value) is float and value:  # each times another factor, so that none follows another
            others = value * (i + 7) / (i + 10), value * (i + 11) / (i + 13)
        elif type(value) is int and name in options and not re.search("ax[ei]s|dim", name):
            others = value + 1, value + 2
        if others and name not in names:
            grown, odd = _tried(grown, {name: others[0]}, owner), _tried(odd, {name: others[1]}, owner)
    turned = {n: moved(v, rng, turned=True) if v.size > 1 else np.asarray(-v) for n, v in inputs.items() if is_float(v)}
    run = _tried(at, turned)  # of other signs, where forward takes them: masks show
    if run is at:
        run = first
        for name, value in turned.items():
            run = _tried(run, {name: value})
    return [first, grown, at, odd, *([run] if run is not first else []), *lengths.above]


def _relabelled(record: Callable[..., Recording], inputs: Inputs, options: Inputs) -> Recording:
    """A recording with other labels and masks, if forward takes any: each the next, but for the largest, or turned."""

    def following(labels: Any) -> Any:
        known = np.unique(labels)
        return known[(np.searchsorted(known, labels) + 1) % max(2, len(known) - 1)] if len(known) > 1 else labels ^ 1

    whole = [n for n, v in inputs.items() if isinstance(v, np.ndarray) and v.dtype.kind in "iub"]
    for other in (following, np.flip) if whole else ():
        with contextlib.suppress(Exception):
            run = record(inputs | {n: other(inputs[n]) for n in whole}, options)
            if run.finite:
                return run
    return record(inputs, options)


def _tried(run: Recording, values: Inputs, owner: str | None = None) -> Recording:
    """A recording at other values; the known one where forward refuses them, takes another course or overflows."""
    with contextlib.suppress(Exception):  # whatever the author's code raises
        made = run.changed(values, owner)
        return made if made.course == run.course and made.finite else run
    return run


def _branches(function: Any, levels: int = 2) -> tuple[set[str], set[int]]:
    """What the branches of a function and of those of its file that it calls read: names, and whole numbers."""
    tree = list(ast.walk(syntax(function)))
    tests: list[ast.AST] = [n.test for n in tree if isinstance(n, ast.If | ast.IfExp | ast.While)]
    tests += [n for n in tree if isinstance(n, ast.Call) and ast.unparse(n.func) in ("min", "max")]
    tests += [n for n in tree if isinstance(n, ast.BoolOp)]
    inside: list[Any] = [n for test in tests for n in ast.walk(test)]
    compared = inside + [part for n in tree if isinstance(n, ast.Compare) for part in ast.walk(n)]
    names, numbers = _names(tests), {n.value for n in compared if isinstance(n, ast.Constant) and type(n.value) is int}
    indexed = [n.value for n in tree if isinstance(n, ast.Subscript)]  # as x.shape[0], beside x.shape
    sized = [n.value for n in inside if getattr(n, "attr", "") in ("ndim", "size", "shape") and n not in indexed]
    names |= {f"{ast.unparse(owner).removeprefix('self.')}.ndim" for owner in sized}
    for target, value in [pair for n in tree[::-1] if isinstance(n, ast.Assign) for pair in _assigned(n)]:
        names |= _names([value]) if names & _names([target]) else set()  # what those are computed from
    function = unwrapped(function)
    space = getattr(function, "__globals__", {})
    for name in function.__code__.co_names if levels and space else ():
        if inspect.isfunction(helper := space.get(name)) and helper.__globals__ is space:
            more = _branches(helper, levels - 1)
            names, numbers = names | more[0], numbers | more[1]
    return names, numbers


def _assigned(node: ast.Assign) -> list[tuple[ast.AST, ast.AST]]:
    """What a statement binds, with the value: those of a, b = c, d apart."""
    targets, values = (getattr(side, "elts", [side]) for side in (node.targets[0], node.value))
    apart = len(node.targets) == 1 and len(targets) == len(values)
    return list(zip(targets, values, strict=True)) if apart else [(ast.Tuple(node.targets), node.value)]


def _names(trees: Sequence[ast.AST]) -> set[str]:
    """The names and constants in some code, and those of attributes, but for the names of what has these or items."""
    nodes = [n for tree in trees for n in ast.walk(tree)]
    owners = [n.value for n in nodes if isinstance(n, ast.Attribute)]
    owners += [n.value for n in nodes if isinstance(n, ast.Subscript) and isinstance(n.slice, ast.Constant)]
    named = {ast.Name: "id", ast.Attribute: "attr", ast.Constant: "value"}
    return {getattr(n, named[type(n)]) for n in nodes if type(n) in named and n not in owners}


def _length(inputs: Inputs, place: Place) -> int:
    """The length of an axis, or a whole number, which may be one."""
    value = inputs[place[0]]
    return value if type(value) is int else np.shape(value)[place[1]]


def _resized(inputs: Inputs, growth: Growth, length: int) -> Inputs:
    """Inputs with other lengths, of which the first is this one."""
    resized, more = dict(inputs), length - _length(inputs, next(iter(growth)))
    for (name, axis), times in growth.items():
        n = _length(inputs, (name, axis))
        longer = n + int(times * more)
        if (times * more).denominator > 1 or longer < 1:
            raise ValueError(f"{name} takes no such length")
        places = np.arange(longer) % n
        resized[name] = longer if type(inputs[name]) is int else np.take(resized[name], places, axis=axis)
    return resized


class _Lengths:
    """Which lengths of the inputs forward takes others for in the same course; `record` makes a recording.

    `growths` are those that may be others together, each with its factors, but odd if the first is in `even`; `above`
    are recordings with lengths above the numbers in `limits`.
    """

    def __init__(self, record: Callable[[Inputs, Inputs], Recording], limits: set[int]) -> None:
        self.record, self.growths, self.above = record, list[tuple[Growth, tuple[int, int]]](), list[Recording]()
        self.even = list[Place]()
        self.limits = sorted({n + i for n in limits for i in (-1, 0, 1) if 1 < n < LONGEST})

    def grown(self, run: Recording) -> Recording:
        """A recording in which each length is another, where forward takes that in the same course."""
        left = [(name, axis) for name, value in run.inputs.items() for axis in range(np.ndim(value))]
        left += [(name, 0) for name, value in run.inputs.items() if type(value) is int and value > 1]
        known = {n for value in run.inputs.values() for n in np.shape(value)}
        every = [*left]
        for joint in (False, True):  # those that grow with no other length, then the rest, labels with any
            stuck, places = list[Place](), [*left]
            while left:
                labels = getattr(run.inputs[left[0][0]], "dtype", np.dtype(float)).kind == "i"
                others = (every if labels else places) if joint else left
                for growth in itertools.islice(_growths(left[0], others, run.inputs, joint), 400):
                    try:
                        made, factors = self._longer(run, growth, known)
                    except Exception:  # whatever the author's code raises
                        continue
                    if made.course == run.course and self._is_one_course(run, growth):
                        known |= {_length(made.inputs, place) for place in growth}
                        run, self.growths = made, [*self.growths, (growth, factors)]
                        left = [place for place in left if place not in growth]
                    else:  # another course: the text is for this length alone
                        left.pop(0)
                    break
                else:
                    stuck.append(left.pop(0))
            left = [place for place in stuck if _length(run.inputs, place) > 1]
        return run

    def _longer(self, run: Recording, growth: Growth, known: set[int]) -> tuple[Recording, tuple[int, int]]:
        """A recording with longer axes, each as long as no other, and its factors."""
        head, taken = next(iter(growth)), [factors for _, factors in self.growths]
        for factors in [each for each in FACTORS if each not in taken]:
            inputs = _resized(run.inputs, growth, _length(run.inputs, head) * factors[0])
            if {_length(inputs, place) for place in growth} & known:
                continue
            try:
                return self.record(inputs, run.options), factors
            except Exception:
                if type(run.inputs[head[0]]) is not int:  # another number may divide what this one doesn't
                    raise
        raise Unwritable(f"no other length of {head[0]} is taken")

    def _is_one_course(self, run: Recording, growth: Growth) -> bool:
        """Whether forward takes the same course for a length less by one, and for those at its limits."""
        lengths = sorted({_length(run.inputs, next(iter(growth))) - 1, *self.limits})
        made = [self._at(run, growth, length) for length in lengths]
        several = [each for each in made if each and min(_length(each.inputs, place) for place in growth) > 1]
        if any(each.course != run.course for each in several):  # but of 1, which NumPy broadcasts
            n = _length(run.inputs, next(iter(growth)))
            if n % 2 or several[1:] or any(self._at(run, growth, other) for other in (2 * n - 1, 2 * n + 1)):
                return False
            self.even.append(next(iter(growth)))  # of halves, of which one may broadcast, as 1 and 2 of 3
            return True
        self.above += [each for each in several[-1:] if self.limits and each.finite]
        return True

    def _at(self, run: Recording, growth: Growth, length: int) -> Recording | None:
        """A recording in which lengths are others, of which the first is this one, if forward takes it."""
        with contextlib.suppress(Exception):  # whatever the author's code raises
            return self.record(_resized(run.inputs, growth, length), run.options)
        return None

    def odd(self, run: Recording) -> Recording:
        """A recording in which each length is another again, and even only where forward takes no other."""
        for growth, (_, factor) in self.growths:
            even = _length(run.inputs, next(iter(growth))) * factor
            for length in (even, even + 1 + even % 2):
                made = self._at(run, growth, length)
                run = made if made and made.course == run.course else run
        return run

    def single(self, run: Recording) -> dict[Place, Recording]:
        """Recordings in which a length is 1, by its axis, and in which the first array has an axis more, at -1."""
        made = {next(iter(growth)): self._at(run, growth, 1) for growth, _ in self.growths}
        name, value = next((n, v) for n, v in run.inputs.items() if is_float(v))
        for length in {2, *[len(v) for v in run.inputs.values() if np.ndim(v)]} if value.ndim else ():
            with contextlib.suppress(Exception):  # whatever the author's code raises
                several = run.inputs | {name: np.array([value * (1 - i / 9) for i in range(length)])}
                made[name, -1] = self.record(several, run.options)
                break
        return {place: each for place, each in made.items() if each and each.finite}


def _growths(head: Place, places: Sequence[Place], inputs: Inputs, joint: bool) -> Iterator[Growth]:
    """Axes of these that may grow with one, each by so many times as much.

    They have the same length; labels go with the rows that they belong to. Jointly D + H grows with D, 4 * H with H.
    """
    lengths = {place: _length(inputs, place) for place in places}
    by_length = {m: [place for place in lengths if lengths[place] == m] for m in lengths.values()}
    alike = by_length.pop(lengths[head])
    kinds = {name: getattr(value, "dtype", np.dtype("f")).kind for name, value in inputs.items()}
    labels = {place[0]: place for place in alike[::-1] if place[0] != head[0] and kinds[place[0]] != "f"}
    rest = [place for place in alike if place != head and place not in labels.values()]
    same = [chosen for k in range(len(rest[:6]) + 1) for chosen in itertools.combinations(rest[:6], k)]
    groups = [[head, *labels.values(), *chosen] for chosen in (*same, rest)]
    groups[:0] = [[head]] if labels else []
    others = [(some, times) for m, some in by_length.items() for times in {Fraction(1), Fraction(m, lengths[head])}]
    others += [([place], times) for some, times in others if len(some) > 1 for place in some]
    for count in (1, 2) if joint else (0,):
        for chosen in itertools.combinations(others, count):
            for group in groups:
                yield dict.fromkeys(group, Fraction(1)) | {p: times for some, times in chosen for p in some}
