"""The backward pass of an author's forward pass: in his names, of what forward keeps, left where he leaves it."""

import ast
import copy
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import numpy as np

from ...engine import Tensor
from ..referee.conventions import called
from ..referee.held import Path, get, is_float, put
from ..referee.judge import check_backward
from ..referee.pairs import Pair
from ..referee.source import file_of, signature, syntax, unwrapped
from ..referee.verdict import Verdict
from .author import Author, gradients_of
from .derived import Derivation, executed
from .expressions import FLIPPED, Expression, is_cut
from .lengths import recordings
from .module import written
from .numbers import constant
from .text import SIGNS, WIDTH, Function, names_in, wrapped
from .tracing import Recording, Unkept, Unwritable, fillable, quoted, reached, word
from .writer import Writer, below


def solution(pair: Pair, folded: bool = False) -> Derivation:
    """A backward pass that is right for `pair`'s forward pass, written in the place of its author's.

    It takes, reads and leaves what the author's does, and stands in his file beside forward as it is; a function that
    returns a loss and its gradient is written whole. For functions of which forward keeps too little, a forward pass
    is written too. `Unwritable` says why there is none.
    """
    if pair.calls is None or pair.calls.backend.truth is not None:
        raise Unwritable("forward computes with another library than NumPy, so that it can't be recorded")
    author, made, why = pair.calls.author, list[Derivation](), list[Unwritable]()
    for form in dict.fromkeys((folded, True)):  # folded less has to be kept
        try:
            made.append(_beside_forward(pair, form))
            if "has to keep" not in made[-1].source:
                return made[-1]
        except Unwritable as error:
            why.append(error)
            if not isinstance(why[0], Unkept):
                raise
    if made:
        return made[0]
    if author.leads or pair.calls.slots or pair.calls.plan.arguments != (("dy", 0), ("result", 1)):
        raise why[0]
    back, (dy, *_) = unwrapped(author.backward).__name__.replace("<lambda>", "backward"), signature(author.backward)
    titles = author.forward.__name__.replace("<lambda>", "forward"), back, dy
    return written(author.forward, pair.inputs, pair.names, "folded" if folded else "steps", titles)


def _beside_forward(pair: Pair, folded: bool) -> Derivation:
    """A backward pass of what the author's forward pass keeps."""
    made = Author(pair)
    run, own = fillable(made.author.forward), made.author.forward
    forward = wraps(own)(lambda *values, **options: made.passed(run, values, options))
    free = [p for name, p in signature(own).items() if name not in made.inputs]
    options = {p.name: p.default for p in free if type(p.default) in (int, float)}
    with np.errstate(all="ignore"):
        record = partial(Recording, forward, made.wanted, folded, made.calls.plan.unit)
        return Answer(recordings(own, record, made.inputs, options), made).derived()


class Answer(Writer):
    """What recordings of an author's forward pass have in common, as a backward pass of his."""

    def __init__(self, runs: Sequence[Recording], made: Author) -> None:
        self.author = made
        caches = [dict(reached(run.cache, "")) for run in runs]
        kept = [[own.get(text) for own in caches] for text in caches[0]]
        if {id(runs[0].source(values[0])) for values in kept} & {*map(id, runs[0].bases)}:
            raise Unwritable("forward sets elements of a view of what it keeps")
        super().__init__(runs, "", None if made.whole else kept)
        self.read: dict[Expression, str] = {}  # what backward may read, as code
        self.constants: dict[str, Any] = {**runs[0].options} if made.whole else {}  # and the numbers and words
        self.opened: dict[str, list[str]] = {}  # what stands in a cache
        assigned = [n for n in ast.walk(syntax(made.author.backward)) if isinstance(n, ast.Assign)]
        opens = [(n.value, n.targets[0].elts) for n in assigned if isinstance(n.targets[0], ast.Tuple | ast.List)]
        self.opens = {ast.unparse(value): [getattr(part, "id", "") for part in parts] for value, parts in opens}
        self.tuples: dict[tuple[Any, ...], str] = {}  # what is kept of shapes, one a recording, as code
        self.bare = False  # whether no length is written as a number
        # What is there from a pass before is no input.
        self.stale = {text.removesuffix("[...]") for _, text, _ in made.left}
        self.stale |= {made.spelled(path) for _, path in made.kept if path[:-1] in made.anew}
        for name, value in getattr(unwrapped(made.author.forward), "__globals__", {}).items():
            if is_float(value) and (e := self._known([value] * len(runs))) is not None:  # the file's own
                self.read.setdefault(e, name)
        for name, place in {**made.arguments, made.lead: ("object",)}.items():
            if name and place[0] in ("object", "input", "result"):
                self._reach(name, [get(run.cache, place) for run in runs])
        self.numbers = {n: self.numbers[n] for n in sorted(self.numbers, key=lambda n: n not in self.constants)}

    def _reach(self, name: str, values: list[Any]) -> None:
        """What can be read from an argument of the backward pass."""
        listed, own = [dict(reached(value, name)) for value in values], dict[str, str]()
        for text, value in listed[0].items():
            some = [run.get(text) for run in listed]
            e = self._known(some)
            place = e is not None and e.op == "input" and self.author.calls.slots.get(e.args[0])
            if text in self.stale or (place and self.author.lead and text != self.author.spelled(place[0])):
                continue  # or it stands elsewhere too
            head = next((place for place in own if text == place or text.startswith(f"{place}[")), "")
            text = own[head] + text.removeprefix(head) if head else text
            if isinstance(value, Tensor | np.ndarray):
                self.read |= {e: text} if e and len(text) < len(self.read.get(e, text + " ")) else {}
            elif isinstance(value, tuple | list):
                shapes = [tuple(each) for each in some if isinstance(each, tuple | list)]
                if all(type(n) is int for each in shapes for n in each):
                    self.tuples[tuple(shapes)] = text
                items = self.opens.get(text) or [self._called(list(items)) for items in zip(*some, strict=True)]
                if all(map(str.isidentifier, items)) and len({*items}) == len(items) == len(value) > 1:
                    own |= {f"{text}[{i}]": item for i, item in enumerate(items)}
                    self.opened[text] = items
            else:
                self.constants[text] = value
                self.numbers |= {text: some} if type(value) in (int, float) and text not in self.numbers else {}

    def _called(self, values: list[Any]) -> str:
        """What the author calls a value, or nothing."""
        if isinstance(values[0], Tensor | np.ndarray):
            return self.named.get(self._known(values), "")
        if isinstance(values[0], dict | tuple | list):
            other = "kept" if isinstance(values[0], dict) or not all(type(n) is int for n in values[0]) else "shape"
            return next((n for n, value in self.first.named.items() if value is values[0]), other)
        return next((name for name, known in self.numbers.items() if known == values), "")

    def _known(self, values: Sequence[Any]) -> Any:
        """The expression that has these values, one a recording, if there is one."""
        fixed = all(type(value) is np.ndarray and value.ndim for value in values)
        return self.made.of(*values) if fixed else self.made.known(values)

    def source(self) -> str:
        """The function, or the method in its class."""
        made, old = self.author, self.author.old
        dys = {place[1]: name for name, place in made.arguments.items() if place[0] == "dy"}
        seeds = {e: dys[i] for i, e in enumerate(self.seeds) if i in dys}
        ys = self.ys if made.whole else ()
        self._find_the_rest([*ys, *self.gradients.values()], seeds)
        out = self.function({**seeds, **self.read, **seeds})
        out.tuples = self.tuples
        out.width, out.reserved = WIDTH - 4 * bool(made.home), {*signature(old), *self.named.values()}
        own = {n: text for n, text, _ in sorted(made.left, key=lambda each: "[" not in each[1]) if text}
        called = {g: own.get(n) or made.hints.get(n) or f"d{word(n)}" for n, g in self.gradients.items()}
        self.back(out, self._names(), called, ys)
        for name, text, form in sorted(made.left, key=lambda each: "-" in each[2]):  # steps, after all gradients
            g = self.gradients.get(name)
            if g and text.removesuffix("[...]") != out.names.get(g):
                out.lines.append(form.format(out.fitted(partial(out.text, g), out.width - len(form))))
        out.lines += [self._made_anew(out, path) for path in made.anew]
        self._return(out)
        ahead = self._ahead(out, seeds)
        body = textwrap.indent("\n".join([*ahead, *out.lines]), "    ")
        # Its head is as the author has it, in its class.
        parameters = [str(p.replace(annotation=p.empty)) for p in inspect.signature(old).parameters.values()]
        text = f"def {made.title}({', '.join(parameters)}):\n{body}\n"
        if made.home:
            kind = type(inspect.getattr_static(old.__globals__.get(made.home, type(made.author.owner)), old.__name__))
            mark = f"@{kind.__name__}\n" if kind in (staticmethod, classmethod) else ""
            text = f"class {made.home}:\n" + textwrap.indent(mark + text, "    ")
        return "\n\n".join([*out.above.values(), text])

    def _ahead(self, out: Function, seeds: dict[Expression, str]) -> list[str]:
        """The lines ahead of what is computed: what forward has to be, what is opened and measured, and checks."""
        made, reads = self.author, names_in(out.lines)
        wanted = [n for n in self.numbers if n in reads and n not in self.constants]
        lines, missing = self.lengths(wanted, {**seeds, **self.read}, {})
        body = "\n".join([*lines, *out.lines])
        missing += [text for text in self.settings if not made.whole and text in body]
        if missing:
            raise Unkept(f"backward reads the number {missing[0]}, which forward keeps nowhere")
        # Where no number above 1 is written, none is a length that has to be what it was.
        self.bare = not re.search(r"(?<![\w.])(?!1\b)[1-9]\d*(?![\w.])", body)
        guard = self.guard(self._spelled)
        if guard and max(Counter([re.sub(r"\d+", "0", line) for line in out.lines]).values()) > 2:
            raise Unwritable("forward has a loop, and what is written is a line for each of its steps")
        said = [f"# forward has to keep {made.lead}.{name} = {name}" for name in made.lost]
        for name, p in signature(made.author.forward).items():
            if name in self.first.tested and name not in made.inputs and type(p.default) in (bool, str):
                said.append(f"# where {name} is {p.default!r}")
        reads |= names_in([*guard, *lines])
        parts = {text: [item if item in reads else "_" for item in items] for text, items in self.opened.items()}
        opened = [f"{', '.join(items)} = {text}" for text, items in parts.items() if {*items} - {"_"}]
        return [*said, *opened, *guard, *lines]

    def run(self, text: str) -> Derivation:
        """What is written, run in the author's file, in the place of his."""
        made, old = self.author, self.author.old
        space = executed(text, {"np": np, **old.__globals__})
        new = inspect.getattr_static(space[made.home], old.__name__) if made.home else space[made.title]
        self.new, pair = getattr(new, "__func__", new), made.pair
        inputs = dict(zip(pair.names, pair.inputs, strict=True))
        backward = lambda dy, cache: tuple(gradients_of(pair.call(self.new, dy, cache), inputs).values())
        return Derivation(text, lambda *values: pair.forward(*values), backward, inputs, file_of(pair.source))

    def verdict(self, made: Derivation) -> Verdict:
        """The referee's."""
        author, calls = self.author.author, self.author.calls
        forward = self.new if author.whole else self.author.keeping()
        pair = called(replace(author, forward=forward, backward=self.new), self.author.pair.inputs[: len(calls.names)])
        return check_backward(pair, pair.inputs)

    def hold(self, _: Derivation, run: Recording) -> None:
        """Hold what a backward pass returns and leaves against the gradients of a recording."""
        made, calls = self.author, self.author.calls
        values, dys = copy.deepcopy([*run.inputs.values()]), [np.array(t.data) for t in run.upstream]
        *outputs, seen = made.passed(made.keeping(), values, run.options)
        kept = [(name, path) for name, path in made.kept if path not in made.steps]
        for name, path in kept:  # to which some add
            if isinstance(get(seen, path), np.ndarray):
                put(seen, path, np.zeros(run.leaves[name].shape))
        if made.whole:
            lead = [seen["object"]] if made.lead else []
            result = self.new(*lead, *seen["input"].values(), **run.options)
            outputs = [result[calls.plan.outputs[0][1]]]
            back = calls.pulled(lambda *_: result, 1.0, seen, outputs)
        else:
            dy = dys[0] if len(dys) == 1 else np.concatenate([dy.ravel() for dy in dys])
            back = replace(calls, places=dict(made.kept[::-1])).pulled(self.new, dy, seen, outputs)
        rough = any(getattr(value, "dtype", None) in (np.float32, np.float16) for _, value in reached(seen, ""))
        gradients = gradients_of(back, run.inputs)
        for there in ({}, *[{name: get(seen, path)} for name, path in kept]):
            run.hold(outputs, gradients | there, 1e-5 if rough else 1e-9)

    def _find_the_rest(self, ends: Sequence[Expression], seeds: dict[Expression, str]) -> None:
        """What is to be read beside what forward keeps: masks, by what it keeps, then what it has to keep."""
        made = self.author
        floats = [(known, text) for known, text in self.read.items() if known.values[0].dtype.kind == "f"]
        for e in [e for e in below(ends, {**self.read, **seeds}) if e.op in FLIPPED]:
            if all(part in self.read or part.op == "number" for part in e.parts):
                continue
            for known, text in floats[::-1]:
                if is_cut(known, *e.args):
                    self.read[e] = f"{text} {SIGNS[e.op]} {constant(float(e.args[1].values[0]))[0]}"
                elif not e.uniform and all(map(np.array_equal, [v > 0 for v in known.values], e.values)):
                    self.read[e] = f"{text} > 0"  # relu(x) > 0 where x > 0, but not where x >= 0
        for e in [e for e in below(ends, {**self.read, **seeds}) if e.op == "input"]:
            if not made.lead or e.args[0] not in made.calls.names:
                raise Unkept(f"backward reads {e.args[0]}, which forward keeps nowhere")
            place = rf"{made.lead}\.{e.args[0]}\b"
            if any(re.match(place, text) for text in (*self.read.values(), *self.constants)):
                raise Unkept(f"backward reads {e.args[0]}, of which forward keeps another by that name")
            self.read[e] = f"{made.lead}.{e.args[0]}"
            made.lost.append(e.args[0])

    def _names(self) -> dict[Expression, str]:
        """What values are called, of which gradients have their names: as they are read, else as in forward."""
        short = {e: text.rpartition(".")[2] for e, text in self.read.items()}
        opened = {e: text for e, text in self.read.items() if text.isidentifier()}
        return {e: n for e, n in (self.meant | short | self.named | opened).items() if n.isidentifier()}

    def _spelled(self, name: str) -> str:
        """An input of forward as backward reads it."""
        if name in self.author.calls.slots:
            return self.author.spelled(self.author.calls.slots[name][0])
        if any(text == name or text.startswith(f"{name}[") for text in self.constants):
            return name
        text = next((self.read[e] for e, own in self.inputs.items() if own == name and e in self.read), "")
        if not text and not self.bare:
            raise Unkept(f"what is written holds for {name} as it is, and forward keeps it nowhere")
        return text

    def _made_anew(self, out: Function, path: Path) -> str:
        """The line that makes a list, a tuple or a dict of gradients."""
        made, held = self.author, self.author.anew[path]
        keys = [*held] if isinstance(held, dict) else [*range(len(held))]
        names = {own[-1]: name for name, own in made.kept if own[:-1] == path}
        marks = "{}" if isinstance(held, dict) else "[]" if isinstance(held, list) else ("", "")
        if {*names} != {*keys}:
            raise Unwritable(f"backward keeps more than gradients in {made.spelled(path)}")
        texts = [f"{quoted(key)}: " * isinstance(held, dict) + self._gradient(out, names[key]) for key in keys]
        return wrapped(f"{made.spelled(path)} = {marks[0]}", texts, marks[1])

    def _gradient(self, out: Function, name: str) -> str:
        g = self.gradients.get(name)
        return out.fitted(partial(out.text, g), out.width - 7) if g else f"np.zeros_like({self._spelled(name)})"

    def _return(self, out: Function) -> None:
        """The line that returns, with what is computed for it alone."""
        made, result = self.author, self.first.cache["result"]
        if not made.returned and not made.whole:
            return
        texts = [self._gradient(out, name) if name else "None" for name in made.returned]
        if made.keys:
            texts = ["{" + ", ".join([f'"{key}": {text}' for key, text in zip(made.keys, texts, strict=True)]) + "}"]
        elif made.whole and len(result) == 2 and isinstance(result[1], tuple | list | dict):
            texts = [f"({', '.join(texts)})"]
        line = wrapped("return ", [*([out.text(y) for y in self.ys] if made.whole else ()), *texts])
        only = line.removeprefix("return ")
        at = next((i for i, each in enumerate(out.lines) if each.startswith(f"{only} = ")), None)
        if only.isidentifier() and at is not None and only not in names_in(out.lines) and "-= " not in out.lines[-1]:
            line = f"return {out.lines.pop(at).partition(' = ')[2]}"
            out.lines[at - 1 : at] = [each for each in out.lines[at - 1 : at] if not each.startswith("#")]
        out.lines.append(line)
