"""Two functions from recordings: which values have lines of their own, under which names, and what is cached."""

import contextlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ...batch_norm.fusion import norms
from ...engine import Tensor
from ..referee.verdict import Verdict
from .derived import Derivation
from .expressions import REDUCTIONS, TOO_MANY, Expression, Expressions
from .numbers import Numbers, length_of
from .text import Function, called, cheap, wrapped
from .tracing import Options, Recording, Unkept, Unwritable

ROLES = {"mean": "mean", "var": "var", "1/σ": "inv_std", "centred": "diff", "x̂": "xhat"}
SPREAD = ("upstream", "broadcast_to")  # gradients without a line
PATHS = dict.fromkeys(("mean", "mu"), "the mean") | dict.fromkeys(("var", "variance", "sigma2"), "the variance")
Names = dict[Expression, str]


class Writer:
    """What `runs` have in common: values and gradients as expressions, and what they are called.

    `stored` is what an author's forward pass keeps, one a recording, where that is not ours to choose. `source` is the
    text, which is `run`, held against each recording, and judged: `verdict` is the referee's, unless he can't see it.
    """

    source: Callable[[], str]
    run: Callable[[str], Derivation]
    hold: Callable[[Derivation, Recording], None]
    verdict: Callable[[Derivation], Verdict | None]

    def __init__(self, runs: Sequence[Recording], upstream: str, stored: Sequence[Any] | None = None) -> None:
        self.runs, self.first = runs, runs[0]
        kept = None if stored is None else {id(self.first.source(values[0])) for values in stored}
        self.made = Expressions(runs, kept)
        try:
            self.ys = self.made.of(*[run.outputs for run in runs])
        except RecursionError as error:
            raise Unwritable(TOO_MANY) from error
        self.forward = below(self.ys)
        for values in stored or ():  # also what no output is computed from
            with contextlib.suppress(Unwritable):
                self.made.of(*values) if all(isinstance(value, Tensor | np.ndarray) for value in values) else None
        arrays = [name for name, value in self.first.args.items() if isinstance(value, Tensor | np.ndarray)]
        self.inputs: Names = {self.made.of(*[run.args[name] for run in runs]): name for name in arrays}
        self.named = dict(self.inputs)  # by the author
        self.numbers: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}  # numbers in dicts, by the code that reads them
        self._find_names({"_", "np", "cache", upstream, *self.first.args}, stored is None)
        # Axes of which the text holds for no length of 1, or no odd one: how that is found, and said.
        self.refused = dict.fromkeys(runs[2].even, ("{} % 2 == 1", "even {}"))
        self.said = list[str]()  # for what else it holds
        self.meant = self._meant()
        axes = [n for e in self.forward if "axis" in e.params for n in np.ravel(np.array(e.params["axis"], object))]
        self.from_end = any(isinstance(n, Expression) and n.values[0] < 0 for n in axes)
        self.shares: list[tuple[Expression, Expression]] = []  # values of forward with their gradients
        self.gradients = self._gradients(stored is None)
        several = [f"d{self.named.get(y, f'y{i}')}" for i, y in enumerate(self.ys, 1)]
        inner = {name for e, name in self.named.items() if e not in self.ys}
        free = [n for n in ("dy", "dout", "upstream") if n not in self.first.args and n[1:] not in inner]
        upstream = upstream if upstream not in ("", *self.first.args) else free[0]
        seeds = self.made.of(*[run.upstream for run in runs])
        self.seeds: Names = dict(zip(seeds, [upstream] if len(self.ys) == 1 else several, strict=True))

    def _find_names(self, taken: set[str], again: bool) -> None:
        """What the author calls values and numbers; `again` if what he binds an input's name to gets another."""
        runs, first = self.runs, self.first
        for name, value in {**first.args, **first.named}.items():
            own = f"{name}2" if again and name in first.args and f"{name}2" not in first.named else name
            e = self.made.known([run.named.get(name) for run in runs])
            if type(value) in (int, float):
                self.numbers[name] = [{**run.named, **run.inputs, **run.options}[name] for run in runs]
            elif e in self.forward and e not in self.named and own not in taken:
                self.named[e] = own
        for name, given in first.args.items():
            for key, default in {**given.defaults, **first.inputs[name]}.items() if isinstance(given, Options) else ():
                text = f'{name}["{key}"]' if key in first.inputs[name] else f'{name}.get("{key}", {default!r})'
                if type(default) is float:
                    self.settings[text] = [run.inputs[name].get(key, default) for run in runs]

    def _gradients(self, fixed: bool) -> dict[str, Expression]:
        """The gradients of inputs, and those of values as shares; of named values they stand as they are if `fixed`."""
        runs, made = self.runs, self.made
        made.late = made.unit
        for visits in zip(*[run.visits for run in runs], strict=True):
            node, gradient = (made.of(*items) for items in zip(*visits, strict=True))
            gradient = gradient if node.op == "input" else made.bare(gradient)
            self.shares.append((node, gradient))
            if fixed and node in self.named and gradient.op != "broadcast_to":
                made.fixed.add(gradient)
        gradients = {name: made.of(*[run.gradients[name] for run in runs]) for name in self.first.gradients}
        for e, name in self.inputs.items():
            g = gradients.get(name)
            if g and g.op == "zero" and e in self.forward and 1 in g.shapes[0]:
                raise Unwritable(f"the gradient of {name} is 0 where an axis has length 1, and there alone perhaps")
        return gradients

    def derived(self) -> Derivation:
        """What is written, run, held against the recordings and judged: never is anything else handed out."""
        if not all(run.finite for run in self.runs):
            raise Unwritable("a gradient or an output is not finite at the inputs or near them")
        made, known = self._held(), len(self.refused)
        for (name, axis), run in self.runs[2].single.items():
            try:
                self.hold(made, run)
            except Exception as error:  # for no length of 1, which is to be refused
                if axis >= 0:
                    self.refused.setdefault((name, axis), ("{} == 1", "{} > 1"))
                elif isinstance(error, Unwritable):  # not one that whoever runs it would see
                    self.said.append(f"# where {name}.ndim == {np.ndim(self.first.inputs[name])}")
        made = self._held() if self.said or len(self.refused) > known else made
        shown = any(g.op != "zero" for g in self.gradients.values())  # of zeros the referee sees nothing
        verdict = self.verdict(made) if shown else None
        if verdict is not None and verdict.status in ("wrong", "convention"):  # unwritten, as zeros are, is not
            raise Unwritable(f"what was written is judged wrong: {verdict.diagnosis[0]}")
        return made

    def _held(self) -> Derivation:
        made = self.run(self.source())
        for run in self.runs:
            try:
                self.hold(made, run)
            except Unwritable:
                raise
            except Exception as error:
                raise Unwritable(f"what was written can't run at other inputs: {error}") from error
        return made

    def _meant(self) -> Names:
        """Names for what nobody named, by what it is in a batch norm."""
        nodes, meanings = {key[0]: e for key, e in self.made.made.items()}, Names()
        for roles in norms(self.first.outputs):
            for node, role in roles.items():
                if id(node) in nodes and role in ROLES:
                    meanings.setdefault(nodes[id(node)], ROLES[role])
        spread = {e for e, role in meanings.items() if role == "var"}
        parts = {e: [*e.parts, *[inner for part in e.parts for inner in part.parts]] for e in self.forward}
        meanings |= {e: "std" for e in self.forward if e.op == "sqrt" and spread & {*parts[e]}}
        return {e: name for e, name in meanings.items() if name not in self.named.values()}

    def back(self, out: Function, known: Names, gradients: Names, ys: Sequence[Expression] = ()) -> None:
        """The backward pass: a line for the gradient of each named value, and for what is used twice.

        `known` are the names of values, `gradients` those of the gradients that are asked for.
        """
        behind = [e for e in below([*gradients, *ys], out.names) if e.op != "number"]
        alone = Counter(n for n, _ in self.shares)
        values = {g: n for n, g in self.shares[::-1] if n in known and g.op not in SPREAD and alone[n] == 1}
        several = used_again(behind, {*values, *gradients, *ys})
        names = {e: self.meant.get(e, called(e)) for e in (*several, *ys)}
        names |= {g: f"d{known[value]}" for g, value in values.items()} | gradients  # or where they are kept
        for e in behind:
            if e not in out.names and (e in names or e in self.named):
                name = names.get(e, "")
                fresh = out.fresh(name) if name.isidentifier() else name
                value = values.get(e)
                path = "" if value is None or value.op == "input" else PATHS.get(known[value], known[value])
                out.line(e, self.named.get(e, fresh), f"through {path}" if path else "")  # the author's anew

    def function(self, names: Names) -> Function:
        """A function that may read these."""
        numbers = {n: values for n, values in self.numbers.items() if n != "_"}
        return Function(names, numbers | self.settings, self.from_end)

    def lengths(self, wanted: Sequence[str], arrays: Names, settings: dict[str, Any]) -> tuple[list[str], list[str]]:
        """Lines that say what the author's lengths are, and those that no array has, and none of the `settings`."""
        alike = Counter(map(tuple, self.numbers.values()))  # a length may be 2 as a stride is, by chance
        telling = [n for n, v in self.numbers.items() if alike[tuple(v)] == 1 or len({*v}) > 1]
        called = {tuple(self.numbers[n]): n for n in (*reversed(telling), *reversed(wanted))}
        axes = {array: [called.get(own, "") for own in zip(*e.shapes, strict=True)] for e, array in arrays.items()}
        lines, left = list[str](), list(wanted)
        for array, own in sorted(axes.items(), key=lambda item: -len({*item[1]} & {*wanted})):  # those with most first
            if all(own) and len({*own}) == len(own) > 1 and {*own} & {*left}:
                lines.append(f"{', '.join(own)} = {array}.shape")
                left = [n for n in left if n not in own]
        numbers = Numbers(settings, arrays, self.from_end)
        for n in [*left]:
            with contextlib.suppress(Unwritable):
                lines.append(f"{n} = {numbers.text(self.numbers[n])}")
                left.remove(n)
        return lines, left

    def guard(self, spelled: Callable[[str], str] = str) -> list[str]:
        """Refuse lengths and numbers for which forward takes another course, or takes none; by what they are called.

        A word that forward keeps nowhere, as the mode of its options, is said alone: in another there is no cache.
        """
        words, tests = [*self.said], dict[str, str]()  # what is refused, with what is said of the rest
        for name, value in {**self.first.inputs, **self.first.options}.items():
            facts = self._facts(name, value)
            text = spelled(name) if facts else ""
            for fact, v in facts.items():
                what, absent = fact.format(text or name), " in " in fact
                if text and absent:
                    tests[what] = f"no {what}"
                elif text:
                    test = f"{'not ' * v}{what}" if type(v) is bool else f"{what} != {v!r}"
                    tests |= {test: f"{what} == {v!r}"} if v is not None else {f"{what} is not None": f"{what} is None"}
                elif type(v) is str:
                    words.append(f"# where {what} is {v!r}")
                elif type(v) is int and name in self.first.options:
                    continue  # the author's own backward would hold for that axis alone too
                elif not absent and (type(v) is bool or np.min(v) < 2):
                    raise Unkept(f"what is written holds for {name} as it is, and forward keeps it nowhere")
        for (name, axis), (test, held) in self.refused.items():
            text = ""
            with contextlib.suppress(Unkept):
                text = spelled(name)
            what = length_of(text or name, axis)
            tests |= {test.format(what): held.format(what)} if text else {}
            words += [] if text else [f"# where {held.format(what)}"]
        why = "written for " + " and ".join(tests.values()).replace('"', "'")
        why = why if len(why) < 72 else "written for other lengths and numbers"
        lines = [wrapped("if ", [*tests], ":", joint=" or "), f'    raise ValueError("{why}")']
        return words + lines * bool(tests)

    def _facts(self, name: str, value: Any) -> dict[str, Any]:
        """What of an input or an option is the same in all recordings, and what a dict lacks, by how it is spelled."""
        first, others = self.first, [{**run.inputs, **run.options}[name] for run in self.runs[1:]]
        facts: dict[str, Any] = {"{}.ndim": np.ndim(value)} if f"{name}.ndim" in first.tested else {}
        if isinstance(value, np.ndarray):
            same = {length_of("{}", i): n for i, n in enumerate(value.shape) if n == others[0].shape[i] > 1}
            facts |= {"{}.shape": value.shape} if len(same) == value.ndim > 1 else same
        else:  # arrays in a dict are inputs of their own
            items = lambda v: {f"{{}}[{key!r}]": v[key] for key in value if key not in first.inputs}
            own, *rest = map(items if isinstance(value, dict) else lambda v: {"{}": v}, (value, *others))
            if not {*map(type, own.values())} <= {int, float, bool, str, type(None)}:
                raise Unwritable(f"no check can be written of {name}: pass its arrays as inputs")
            facts |= {fact: v for fact, v in own.items() if all(other[fact] == v for other in rest)}
        if isinstance(given := first.args.get(name), Options):  # but for what forward sets itself
            known = {*given.keys()} | given.defaults.keys() & others[0].keys()
            facts |= {f"{key!r} in {{}}": False for key in sorted(given.missed - known)}
        return facts


def used_again(listed: Iterable[Expression], lines: Container[Expression]) -> set[Expression]:
    """Those of these expressions, in their order, that are written again, and worth a line; `lines` have one."""
    ordered = [*listed][::-1]
    uses, readers = Counter[Expression](), Counter(part for e in ordered for part in e.parts)
    sums = {e for e in ordered if e.op == "reshape" and e.args[0].op in REDUCTIONS and readers[e.args[0]] == 1}
    in_place = {e for e in ordered if cheap(e)} - sums  # those keep their axes
    turned = ("reshape", "transpose")
    in_place -= {e for e in in_place if e.op in turned and e.args[0].op in turned and e.args[0] not in lines}
    for e in ordered:
        for part in e.parts:  # as often as what stands in place is written
            uses[part] += uses[e] if e in in_place and e not in lines else 1
    return {e for e in ordered if uses[e] > 1 + (e in in_place) and (e not in in_place or e.op == "reshape")}


def below(ends: Iterable[Expression], stop: Container[Expression] = ()) -> dict[Expression, None]:
    """The expressions that these are computed from, and these, in their order, but for what is in `stop`."""
    listed, stack = dict[Expression, None](), list(ends)
    while stack:
        e = stack.pop()
        if e not in listed and e not in stop:
            listed[e] = None
            stack += e.parts
    return dict.fromkeys(sorted(listed, key=attrgetter("serial")))
