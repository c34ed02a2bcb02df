"""Two functions from recordings: which values have lines of their own, under which names, and what is cached."""

import contextlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from ...batch_norm.fusion import norms
from ...engine import Tensor
from .expressions import Expression, Expressions
from .numbers import Numbers
from .text import WIDTH, Function, called, cheap, names_in, wrapped
from .tracing import Recording, Unkept, Unwritable

ROLES = {"mean": "mean", "var": "var", "1/σ": "inv_std", "centred": "diff", "x̂": "xhat"}
_serial = attrgetter("serial")
SPREAD = ("upstream", "broadcast_to")  # gradients without a line
PATHS = dict.fromkeys(("mean", "mu"), "the mean") | dict.fromkeys(("var", "variance", "sigma2"), "the variance")


class Writer:
    """What `recordings` have in common, and the text of it."""

    def __init__(
        self, runs: Sequence[Recording], titles: tuple[str, str, str], kept: Container[int] | None = None
    ) -> None:
        *self.titles, upstream = titles
        self.runs, self.first = runs, runs[0]
        first, self.made = runs[0], Expressions(runs, kept)
        made = self.made
        self.ys = made.of(*[run.outputs for run in runs])
        arrays = [name for name, value in first.args.items() if isinstance(value, Tensor | np.ndarray)]
        self.inputs = {name: made.of(*[run.args[name] for run in runs]) for name in arrays}
        self.named = {e: name for name, e in self.inputs.items()}  # by the author
        self.numbers: dict[str, Any] = {}
        self.forward = below(self.ys)
        for name, value in first.named.items():
            values = [run.named.get(name) for run in runs]
            e = made.made.get(tuple([id(run.source(v)) for run, v in zip(runs, values, strict=True)]))
            if type(value) in (int, float):
                self.numbers[name] = values
            elif e in self.forward and e not in self.named and name not in ("_", "np", "cache", upstream, *first.args):
                self.named[e] = name
        self.meant = self._meant()
        axes = [n for e in self.forward if "axis" in e.params for n in np.ravel(np.array(e.params["axis"], object))]
        self.from_end = any(isinstance(n, Expression) and n.values[0] < 0 for n in axes)
        made.late = made.unit
        self.shares: list[tuple[Expression, Expression]] = []  # values of forward with their gradients
        for visits in zip(*[run.visits for run in runs], strict=True):
            node, gradient = (made.of(*items) for items in zip(*visits, strict=True))
            self.shares.append((node, gradient if node.op == "input" else made.bare(gradient)))
            own = node in self.named and kept is None
            if own and self.shares[-1][1].op != "broadcast_to":
                made.fixed.add(self.shares[-1][1])
        self.gradients = {name: made.of(*[run.gradients[name] for run in runs]) for name in first.gradients}
        for name, g in self.gradients.items():
            if g.op == "zero" and self.inputs[name] in self.forward and 1 in g.shapes[0]:
                raise Unwritable(
                    f"the gradient of {name} is 0 where it has an axis of length 1, and there alone perhaps"
                )
        several = [f"d{self.named.get(y, f'y{i}')}" for i, y in enumerate(self.ys, 1)]
        seeds = made.of(*[run.upstream for run in runs])
        upstream = next(name for name in (upstream, "dout", "upstream") if name not in first.args)
        self.seeds = dict(zip([upstream] if len(self.ys) == 1 else several, seeds, strict=True))

    def _meant(self) -> dict[Expression, str]:
        """Names for what nobody named, by what it is in a batch norm."""
        nodes, meanings = {key[0]: e for key, e in self.made.made.items()}, dict[Expression, str]()
        for roles in norms(self.first.outputs):
            for node, role in roles.items():
                if id(node) in nodes and role in ROLES:
                    meanings.setdefault(nodes[id(node)], ROLES[role])
        spread = {e for e, role in meanings.items() if role == "var"}
        for e in self.forward:
            if e.op == "sqrt" and spread & {*e.parts, *[part for inner in e.parts for part in inner.parts]}:
                meanings[e] = "std"
        return meanings

    def source(self) -> str:
        """The module."""
        ends = list(self.gradients.values())
        behind = [e for e in below(ends, self.forward) if e.op != "number"]
        reached = [part for e in behind for part in e.parts] + ends
        crossing = sorted(self._crossing(reached), key=_serial)
        ahead = self._ahead(crossing)
        for y in self.ys:
            if len(ahead.text(y)) > WIDTH // len(self.ys) - 20:
                ahead.line(y, ahead.fresh("y"))
        outputs = [ahead.text(y) for y in self.ys]
        arrays = {**self.seeds, **{ahead.names[e]: e for e in crossing if e in ahead.names}}
        arrays |= {n: e for e, n in ahead.names.items() if n not in arrays}
        back = Function(
            {**ahead.names, **{e: name for name, e in self.seeds.items()}}, arrays, self.numbers, self.from_end
        )
        self.back(back, behind, ends, ahead.names, {g: f"d{name}" for name, g in self.gradients.items()})
        texts = {name: back.text(g) for name, g in self.gradients.items()}
        constants = {
            n: f"np.zeros_like({n})" if n in self.inputs and n in self.first.leaves else "None" for n in self.first.args
        }
        returned = list({**constants, **texts}.values())
        while returned[-1] == "None":
            returned.pop()
        read, read_ahead = names_in([*back.lines, *returned]), names_in([*ahead.lines, *outputs])
        # What backward reads of forward: arrays, numbers, and lengths that none of these has.
        taken = [*self.first.args, *self.first.options]
        cached = [n for n in dict.fromkeys([*taken, *ahead.names.values()]) if n in read and n not in self.seeds]
        held = {n: e for e, n in ahead.names.items() if n in cached}
        lengths = [n for n in self.numbers if n not in taken]
        lines, missing = self.lengths([n for n in lengths if n in read], {**self.seeds, **held})
        cached += missing
        before, missing = self.lengths([n for n in lengths if n in read_ahead or n in missing], self.inputs)
        if missing:
            raise Unwritable(f"forward reads the number {missing[0]}, which follows no length of the inputs")
        arguments = [*self.first.args, *[f"{name}={value!r}" for name, value in self.first.options.items()]]
        made = wrapped("return ", outputs, f", {cached[0] if cached else None}" if len(cached) < 2 else ", cache")
        kept = [wrapped("cache = ", cached)] if len(cached) > 1 else []
        ahead.lines = [*self.guard(), *before, *ahead.lines, *kept, made]
        opened = [wrapped("", cached, " = cache")] if cached else []
        back.lines = [*opened, *lines, *back.lines, wrapped("return ", returned)]
        parts = [*{**ahead.above, **back.above}.values()]
        for title, names, function in zip(self.titles, (arguments, [*self.seeds, "cache"]), (ahead, back), strict=True):
            body = "\n".join(function.lines).replace("\n", "\n    ")
            parts.append(f"{wrapped(f'def {title}(', names, '):', 4)}\n    {body}\n")
        return "import numpy as np\n\n\n" + "\n\n".join(parts)

    def _ahead(self, crossing: Sequence[Expression]) -> Function:
        """The forward pass: a line for what its author named, for what backward reads, and for what is used twice."""
        uses = Counter(part for e in self.forward for part in e.parts)
        out = Function({e: name for name, e in self.inputs.items()}, self.inputs, self.numbers, self.from_end)
        out.reserved = {*self.named.values(), *self.seeds}
        for e in sorted(self.forward, key=_serial):
            kept = e in self.named or e in crossing or (uses[e] > 1 and not cheap(e))
            if e not in out.names and kept and e.op not in ("number", "array"):
                own = "y" if e in self.ys and len(self.ys) == 1 else self.meant.get(e, called(e))
                out.line(e, self.named.get(e) or out.fresh(own))
        return out

    def back(self, out: Function, behind: Any, ends: Any, known: dict[Expression, str], gradients: Any) -> None:
        """The backward pass: a line for the gradient of each named value, and for what is used twice.

        `known` are the names of values, `gradients` those of the gradients that are asked for.
        """
        alone, uses = Counter(n for n, _ in self.shares), Counter(part for e in behind for part in e.parts)
        values = {g: n for n, g in self.shares[::-1] if n in known and g.op not in SPREAD and alone[n] == 1}
        for e in sorted(behind, key=_serial):
            several = uses[e] > (2 if cheap(e) else 1) and (not cheap(e) or e.op == "reshape")
            own = e in self.named and not e.moving  # the author's, computed anew
            if e in out.names or not (e in values or e in gradients or e in ends or several or own):
                continue
            value = values.get(e)
            name = gradients.get(e) or self.meant.get(e) or called(e)
            name = name if value is None or not name.isidentifier() else f"d{known[value]}"  # or where it is kept
            path = "" if value is None or value.op == "input" else PATHS.get(name[1:], name[1:])
            name = self.named[e] if own else out.fresh(name) if name.isidentifier() else name
            out.line(e, name, f"through {path}" if path else "")

    def _crossing(self, read: Iterable[Expression]) -> set[Expression]:
        """What backward reads of forward; what is cheap it makes again from what that is made of."""
        kept = [e for e in self.forward if e in self.named or not cheap(e)]
        again = below([e for e in read if e in self.forward and e not in kept], kept)
        return {e for e in (*read, *[part for inner in again for part in inner.parts]) if e in kept}

    def lengths(self, names: Sequence[str], arrays: dict[str, Expression]) -> tuple[list[str], list[str]]:
        """Lines that say what the author's lengths are, and those that no array has."""
        known = {n: list(values) for n, values in self.numbers.items()}
        axes = {
            array: [
                next((n for n in [*names, *known] if known[n] == list(own)), "") for own in zip(*e.shapes, strict=True)
            ]
            for array, e in arrays.items()
        }
        lines, left = list[str](), list(names)
        for array, own in sorted(axes.items(), key=lambda item: -len({*item[1]} & {*names})):  # those with most first
            here = [n for n in own if n in left]
            if here and len(own) > 1 and all(own) and len(set(own)) == len(own):
                lines.append(f"{', '.join(own)} = {array}.shape")
            else:
                spelled = [f"{array}.shape[{i}]" if i else f"len({array})" for i in range(len(own))]
                lines += [f"{n} = {spelled[i]}" for i, n in enumerate(own) if n in here]
            left = [n for n in left if n not in here]
        lengths = Numbers({}, {array: e.shapes for array, e in arrays.items()}, self.from_end)
        for n in left:
            with contextlib.suppress(Unwritable):
                lines.append(f"{n} = {lengths.text(known[n])}")
                left = [other for other in left if other != n]
        return lines, left

    def guard(self, spelled: Callable[[str], str] = str) -> list[str]:
        """Refuse lengths and numbers for which forward takes another course, or takes none; by what they are called."""
        first, second = self.runs[:2]
        wrong, others = list[tuple[str, Any]](), {**second.inputs, **second.options}

        def refuse(name: str, facts: list[tuple[str, Any]]) -> None:
            if facts and (text := spelled(name)):
                wrong.extend([(what.format(text), value) for what, value in facts])
            elif any(type(value) in (bool, str) or np.min(value) < 2 for _, value in facts):
                raise Unkept(f"what is written holds for {name} as it is, and forward keeps it nowhere")

        for name, value in {**first.inputs, **first.options}.items():
            if isinstance(value, np.ndarray):
                same = [i for i, n in enumerate(value.shape) if n == others[name].shape[i] > 1]
                whole = value.ndim > 1 and len(same) == value.ndim
                each = [(f"{{}}.shape[{i}]" if i else "len({})", value.shape[i]) for i in same]
                refuse(name, [("{}.shape", value.shape)] if whole else each)
            elif type(value) in (bool, str) or (type(value) in (int, float) and others[name] == value):
                refuse(name, [("{}", value)])
            elif isinstance(value, dict) and {*map(type, value.values())} <= {int, bool, str, float}:
                refuse(name, [(f"{{}}[{k!r}]", v) for k, v in value.items()])
            elif type(value) not in (int, float):
                raise Unwritable(
                    f"{name} is a {type(value).__name__}, of which no check can be written: pass its arrays as inputs"
                )
        if not wrong:
            return []
        yes_or_no = {True: "not {}", False: "{}"}
        tests = [yes_or_no[v].format(w) if type(v) is bool else f"{w} != {v!r}" for w, v in wrong]
        said = " and ".join([f"{what} == {value!r}" for what, value in wrong]).replace('"', "'")
        said = f"written for {said}" if len(said) < 60 else "written for other lengths and numbers"
        return [wrapped("if ", tests, ":", joint=" or "), f'    raise ValueError("{said}")']


def below(ends: Iterable[Expression], stop: Container[Expression] = ()) -> dict[Expression, None]:
    """The expressions that these are computed from, and these, but for what is in `stop`."""
    listed, stack = dict[Expression, None](), list(ends)
    while stack:
        e = stack.pop()
        if e not in listed and e not in stop:
            listed[e] = None
            stack += e.parts
    return listed
