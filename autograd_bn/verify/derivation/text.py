"""Expressions as Python: how each operation is written, numbers by the lengths that they follow, and two functions."""

from __future__ import annotations

import ast
import inspect
import itertools
import keyword
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from textwrap import dedent
from typing import Any

import numpy as np

from .expressions import REDUCTIONS, Expression, bare, plain_index
from .tracing import Unwritable

COMPARISON, OR, AND, SUM, PRODUCT, UNARY, POWER, ATOM = range(1, 9)
WIDTH = 98
# How an operation is written, how tightly that binds, and how tightly its operands have to.
FORMS: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "add": ("{} + {}", SUM, (SUM, SUM)),
    "subtract": ("{} - {}", SUM, (SUM, PRODUCT)),
    "multiply": ("{} * {}", PRODUCT, (PRODUCT, PRODUCT)),
    "divide": ("{} / {}", PRODUCT, (PRODUCT, UNARY)),
    "matmul": ("{} @ {}", SUM, (UNARY, UNARY)),
    "power": ("{} ** {}", POWER, (ATOM, UNARY)),
    "square": ("{} ** 2", POWER, (ATOM,)),
    "negative": ("-{}", SUM, (PRODUCT,)),
    "sigmoid": ("1 / (1 + np.exp(-{}))", PRODUCT, (PRODUCT,)),
    "relu": ("np.maximum({}, 0)", ATOM, (0,)),
    "bitwise_and": ("{} & {}", AND, (AND, SUM)),
    "bitwise_or": ("{} | {}", OR, (OR, AND)),
    "invert": ("~{}", UNARY, (UNARY,)),
    "stop_gradient": ("{}", ATOM, (ATOM,)),
    "copy": ("{}", ATOM, (ATOM,)),
}
SIGNS = {"greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
FORMS |= {name: (f"{{}} {sign} {{}}", COMPARISON, (SUM, SUM)) for name, sign in SIGNS.items()}
CHEAP = frozenset("number array reshape transpose broadcast_to negative getitem astype stop_gradient copy".split())
# The names of values that are used more than once and that nobody named.
CALLED = {
    "exp": "e", "sum": "total", "sum_to": "total", "mean": "mean", "var": "var", "sqrt": "root", "max": "top",
    "subtract": "diff", "equal": "hit", "greater": "mask", "less": "mask", "divide": "ratio", "getitem": "part",
    "add": "pre", "matmul": "product", "tanh": "t", "sigmoid": "s",
}  # fmt: skip
HELPERS = {
    "softmax": "def softmax(x, axis=None):\n    e = np.exp(x - x.max(axis=axis, keepdims=True))\n"
    "    return e / e.sum(axis=axis, keepdims=True)\n",
    "log_softmax": "def log_softmax(x, axis=None):\n    shifted = x - x.max(axis=axis, keepdims=True)\n"
    "    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))\n",
    "logsumexp": "def logsumexp(x, axis=None, keepdims=False):\n    top = x.max(axis=axis, keepdims=True)\n"
    "    total = np.log(np.exp(x - top).sum(axis=axis, keepdims=True)) + top\n"
    "    return total if keepdims else total.squeeze(axis)\n",
}


class Function:
    """The lines of one function: `names` are those that it may read, `arrays` those whose lengths it may take."""

    def __init__(self, names: dict[Expression, str], arrays: dict[str, Expression], numbers: dict[str, Any]) -> None:
        self.names, self.arrays, self.numbers = dict(names), dict(arrays), numbers
        self.lines, self.reserved, self.read = list[str](), set[str](), set[str]()
        self.above: dict[str, str] = {}  # the functions that are called, and their source
        self.written: list[tuple[Expression, str]] = []

    # Operations

    def text(self, e: Any, level: int = 0) -> str:
        """An expression as code; in brackets where it binds less tightly than `level`."""
        if not isinstance(e, Expression):
            return self.literal(e)
        if e in self.names:
            self.read.add(self.names[e])
            return self.names[e]
        if self._places(e) or e.op == "put":
            self.line(e, self.fresh("d" if e.moving else called(e)))
            return self.names[e]
        text, own = self._form(e)
        self.written.append((e, text))
        return f"({text})" if own < level else text

    def _form(self, e: Expression) -> tuple[str, int]:
        if e.op in ("number", "array"):
            return self.number(e.values) if e.op == "number" else (self.constant(e), ATOM)
        if e.op in ("multiply", "divide"):
            return self._product(e)
        if e.op in FORMS:
            form, own, levels = FORMS[e.op]
            operands = [self.text(arg, level) for arg, level in zip(e.args, levels, strict=True)]
            if e.op in ("power", "square") and all(
                o.lstrip("-").replace(".", "").isidentifier() or o.lstrip("-").replace(".", "").isdigit()
                for o in operands
            ):
                form = form.replace(" ", "")
            return form.format(*operands), own
        special = getattr(self, f"_{e.op}", None) if isinstance(e.op, str) else None
        if special is not None:
            return special(e), ATOM
        if e.op in REDUCTIONS and len(e.args) == 1:
            return f"{self.text(e.args[0], ATOM)}.{e.op}({self._options(e.params)})", ATOM
        if not isinstance(e.op, str):
            name = e.op.name
            self.above |= sources(e.op.forward)
        elif e.op in HELPERS:
            name = e.op
            self.above[name] = HELPERS[name]
        elif hasattr(np, e.op):
            name = f"np.{e.op}"
        else:
            raise Unwritable(f"{e.op} is no function of NumPy's")
        args = [self.text(arg) for arg in e.args] + [self._options(e.params)] * bool(e.params)
        return f"{name}({', '.join(args)})" + "[0]" * (not isinstance(e.op, str) and e.op.joint), ATOM

    def _product(self, e: Expression) -> tuple[str, int]:
        """A product, several factors with fewer elements first: 2 * dvar / n * diff runs over diff once."""
        signs, factors = 0, list[tuple[Expression, str, str]]()
        for part, joint in self._factors(e):
            signs += part is None
            if part is not None:
                text = self.text(part, PRODUCT if joint == "*" else UNARY)
                turned = part.op in ("number", "sigmoid") and joint == "*" and text.startswith("1 / ")
                factors.append((part, "/", text[4:]) if turned else (part, joint, text))
        plain = [f for f in factors if f[0].op == "number" and f[1] == "*"]
        short = [f for f in factors if f not in plain and f[0].values[0].size < e.values[0].size]
        rest = [f for f in factors if f not in plain]
        if len(short) > 1:
            rest = short + [f for f in rest if f not in short]
        elif len(rest) == 2 and rest[0][0].op in ("add", "subtract") and rest[0][0] not in self.names:
            rest.sort(key=lambda f: (f[1] == "/", f[2][0] == "("))
        over = [f for f in plain + rest if f[1] == "*" and f[2] != "1"]
        text = over[0][2] if over else "1"
        ordered = [(joint, t) for f in plain + rest if f not in over[:1] for _, joint, t in [f] if t != "1"]
        for (joint, t), again in itertools.groupby(ordered):
            count = len(list(again))
            power = joint == "/" and count > 1 and t.isidentifier()
            text += f" / {t}**{count}" if power else f" {joint} {t}" * count
        return ("-" if signs % 2 else "") + text, SUM if signs % 2 else PRODUCT

    def _factors(self, e: Expression, joint: str = "*") -> Iterator[tuple[Expression | None, str]]:
        """What is multiplied, and what it is divided by; None for a minus sign."""
        if e in self.names or joint == "/" or e.op not in ("multiply", "divide", "negative"):
            yield e, joint
        elif e.op == "negative":
            yield None, joint
            yield from self._factors(e.args[0])
        else:
            yield from self._factors(e.args[0])
            yield from self._factors(e.args[1], "*" if e.op == "multiply" else "/")

    def _options(self, params: dict[str, Any]) -> str:
        return ", ".join([f"{name}={self.literal(value)}" for name, value in params.items()])

    def _terms(self, e: Expression) -> list[Expression]:
        if e.op == "add" and e not in self.names:
            return [term for arg in e.args for term in self._terms(arg)]
        return [e]

    def _places(self, e: Expression) -> list[Expression]:
        """The terms of a sum that are 0 but at an index, and have no name, in the order of their places."""
        return sorted([t for t in self._terms(e) if t.op == "scatter" and t not in self.names], key=_start)

    def _reshape(self, e: Expression) -> str:
        (a,), shape = e.args, e.shapes[0]
        bare = [[n for n in s if n > 1] for s in (a.shapes[0], shape)]
        if bare[0] == bare[1] and len(shape) > len(a.shapes[0]):
            if a.op in REDUCTIONS and a not in self.names and np.ndim(a.args[0].values[0]) == len(shape):
                return f"{self.text(a.args[0], ATOM)}.{a.op}({self._options({**a.params, 'keepdims': True})})"
            places, left = [], list(a.shapes[0])
            for n in shape:
                taken = bool(left) and left[0] == n
                places.append(":" if taken else "None")
                left = left[1:] if taken else left
            if not left:
                while places[-1:] == [":"]:
                    places.pop()
                return f"{self.text(a, ATOM)}[{', '.join(places)}]"
        return f"{self.text(a, ATOM)}.reshape({self.shape(e.shapes, True)})"

    def _broadcast_to(self, e: Expression) -> str:
        return f"np.broadcast_to({self.text(bare(e.args[0], set(self.names)))}, {self.shape(e.shapes)})"

    def _zero(self, e: Expression) -> str:
        return f"np.zeros({self._extent(e.shapes)})" if e.shapes[0] else "0.0"

    def _extent(self, shapes: Any) -> str:
        return self.number([shape[0] for shape in shapes])[0] if len(shapes[0]) == 1 else self.shape(shapes)

    def _transpose(self, e: Expression) -> str:
        text, axes = self.text(e.args[0], ATOM), e.params.get("axes")
        order = [int(axis.values[0]) % len(e.shapes[0]) for axis in axes] if axes else []
        swapped = [*range(len(order))][:-2] + [*range(len(order))][-2:][::-1]
        if not axes or (len(order) == 2 and order == swapped):
            return f"{text}.T"
        return f"{text}.swapaxes(-1, -2)" if order == swapped else f"{text}.transpose{self.literal(axes)}"

    def _getitem(self, e: Expression) -> str:
        return f"{self.text(e.args[0], ATOM)}[{self.index(e.params['index'], e.args[0].shapes)}]"

    def _astype(self, e: Expression) -> str:
        kind = {"f": "float", "i": "int", "b": "bool"}[e.values[0].dtype.kind]
        return f"{self.text(e.args[0], ATOM)}.astype({kind})"

    def _concatenate(self, e: Expression) -> str:
        axis = e.params.get("axis", e.params.get("out_axis"))
        return f"np.{e.op}([{', '.join([self.text(arg) for arg in e.args])}], axis={self.literal(axis)})"

    _stack = _concatenate

    def _einsum(self, e: Expression) -> str:
        left, right, out = e.params["terms"]
        return f'np.einsum("{left},{right}->{out}", {self.text(e.args[0])}, {self.text(e.args[1])})'

    def _pad(self, e: Expression) -> str:
        value = e.params.get("value")
        filled = "" if value is None or not any(value.values) else f", constant_values={self.text(value)}"
        return f"np.pad({self.text(e.args[0])}, {self.literal(e.params['widths'])}{filled})"

    # Constants, lengths and indices

    def literal(self, value: Any) -> str:
        """A constant, or a structure of expressions."""
        if isinstance(value, Expression):
            return self.text(value)
        if isinstance(value, tuple):
            if len(value) == 1 and isinstance(value[0], Expression):
                return self.text(value[0])
            return f"({', '.join(map(self.literal, value))})"
        if isinstance(value, type) and value in (float, int, bool):
            return value.__name__
        return "..." if value is ... else repr(value)

    def index(self, index: Any, shapes: Any) -> str:
        """What stands between the brackets of an index."""
        items = list(index) if isinstance(index, tuple) else [index]
        plain = all(isinstance(item, slice | Expression) for item in items)
        texts = []
        for i, item in enumerate(items):
            if not isinstance(item, slice):
                texts.append(self.literal(item))
                continue
            lengths = [shape[i] for shape in shapes] if plain else [-1, -1]
            whole = item.stop is not None and [int(v) for v in item.stop.values] == lengths
            start = "" if item.start is None or not any(item.start.values) else self.text(item.start)
            stop = "" if item.stop is None or whole else self.text(item.stop)
            texts.append(f"{start}:{stop}" + (f":{self.text(item.step)}" if item.step is not None else ""))
        while len(texts) > 1 and texts[-1] == ":" and isinstance(items[-1], slice):
            texts.pop()
        return ", ".join(texts)

    def shape(self, shapes: Any, spelled: bool = False) -> str:
        """A shape, by an array that has it or by its lengths."""
        for name, e in self.arrays.items():
            if e.shapes == shapes and len(shapes[0]) > 1:
                self.read.add(name)
                return f"{name}.shape"
        texts = []
        for lengths in zip(*shapes, strict=True):
            read = set(self.read)
            try:
                text = self.number(lengths)[0]
            except Unwritable:
                text = "-1"
            if spelled and ("size" in text or " * " in text) and "-1" not in texts:
                text, self.read = "-1", read
            texts.append(text)
        if texts.count("-1") > 1 or (not spelled and "-1" in texts):
            raise Unwritable(f"the shape {shapes[0]} follows from no lengths of the inputs")
        return ", ".join(texts) if spelled else f"({', '.join(texts)}{',' * (len(texts) == 1)})"

    def constant(self, e: Expression) -> str:
        """An array that comes from no input: by what makes it, or by its elements."""
        a, b, *_ = e.values
        if all(v.size and not np.any(v != v.flat[0]) for v in e.values):
            filled, extent = self.number([v.flat[0].item() for v in e.values])[0], self._extent(e.shapes)
            kind = {"0": "zeros", "1": "ones"}.get(filled)
            return f"np.{kind}({extent})" if kind else f"np.full({extent}, {filled})"
        size = self.number((len(a), len(b)))[0]
        if all(v.ndim == 1 and np.array_equal(v, v[0] + np.arange(len(v))) for v in (a, b)) and a[0] == b[0]:
            return f"({self.number((a[0], b[0]))[0]} + np.arange({size}))" if a[0] else f"np.arange({size})"
        if all(v.ndim == 2 and v.shape[0] == v.shape[1] > 1 for v in (a, b)):
            kind = ", dtype=bool" if a.dtype == bool else ""

            def alike(part: Callable[[Any], Any]) -> bool:
                return all(np.array_equal(v, part(np.ones(v.shape))) for v in (a, b))

            if alike(lambda ones: np.tril(np.triu(ones))):
                return f"np.eye({size}{kind})"
            for half in filter(alike, (np.tril, np.triu)):
                return f"np.{half.__name__}(np.ones(({size}, {size}){kind}))"
            aside = [v[0, 1] for v in (a, b)]  # beside the diagonal, as in what takes off a mean
            if all(np.allclose(v, np.eye(len(v)) + w, rtol=1e-13, atol=0) for v, w in zip((a, b), aside, strict=True)):
                return f"(np.eye({size}) - {self.number([-w for w in aside])[0]})"
        if np.array_equal(a, b) and a.size <= 32:
            return f"np.array({a.tolist()})"
        raise Unwritable(f"forward reads an array of shape {a.shape} that comes from no input: pass it as an input")

    def _known(self) -> Iterator[tuple[str, Any]]:
        """Numbers that have a name, with their values: the author's, then the lengths of arrays."""
        yield from self.numbers.items()
        for name, e in self.arrays.items():
            for axis, values in enumerate(zip(*e.shapes, strict=True)):
                yield (f"{name}.shape[{axis}]" if axis else f"len({name})"), values
        for name, e in self.arrays.items():
            yield f"{name}.size", [v.size for v in e.values]

    def number(self, values: Any) -> tuple[str, int]:
        """A number, by the lengths that it follows where it isn't always the same; and how tightly that binds."""
        a, b = (float(v) for v in values[:2])
        if a == b:
            a = float(f"{a:.15g}")  # 3 * 0.3 is 0.9 to a reader
            texts = [repr(int(a))] * (a == int(a)) + [repr(a), f"{a:.0e}"]
            text = min([t.replace("e+0", "e").replace("e-0", "e-") for t in texts if float(t) == a], key=len)
            return text, UNARY if a < 0 else ATOM
        whole = isinstance(values[0], int | np.integer) or getattr(values[0], "dtype", np.dtype(float)).kind in "iu"
        for form, c, other in self._guesses(a, b, whole):
            nice = _nice(c) if math.isclose(c, other, rel_tol=1e-13) else ""
            if nice and not (whole and "." in nice):
                once = nice in ("1", "-1") and form.startswith("{} * ")
                text = self._reading(form[5:] if once else form.format(nice).replace("+ -", "- "))
                if once and nice == "-1":
                    return f"-{text}", SUM if " " in text else UNARY
                return text, PRODUCT if "*" in text or "/" in text else SUM if " " in text else ATOM
        if a > 0 and not getattr(self, "rooted", False):
            self.rooted = True
            try:
                return f"np.sqrt({self.number((_round(a * a), _round(b * b)))[0]})", ATOM
            finally:
                self.rooted = False
        raise Unwritable(f"forward reads the number {a:g} at some inputs and {b:g} at others, which follows no length")

    def _guesses(self, a: float, b: float, whole: bool) -> Iterator[tuple[str, float, float]]:
        """Ways to write a number by a constant and lengths, with that constant in both recordings."""
        known = [(text, float(v), float(w)) for text, (v, w, *_) in self._known() if v != w and v * w != 0]
        pairs = [(f"{s} * {t}", v * x, w * y) for (s, v, w), (t, x, y) in itertools.combinations(known, 2)]
        less = [(f"({text} - 1)", v - 1, w - 1) for text, v, w in known if v > 1 < w]
        over = " // " if whole else " / "
        for text, v, w in known + less + pairs:
            yield "{} * " + text, a / v, b / w
            yield text + over + "{}", v / a, w / b
            yield "{} / " + (f"({text})" if " * " in text else text), a * v, b * w
        for text, v, w in known:
            if whole or text in self.numbers:
                yield text + " + {}", a - v, b - w
                yield "{} - " + text, a + v, b + w
        for (s, v, w), (t, x, y) in itertools.permutations(known, 2):
            yield "{} * " + s + over + t, a * x / v, b * y / w

    def _reading(self, text: str) -> str:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Name):
                self.read.add(node.id)
        return text.strip("()") if text[0] == "(" and text.count("(") == 1 and text[-1] == ")" else text

    # Lines

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        taken = {*self.names.values(), *self.reserved, *self.numbers, *self.above, *keyword.kwlist, "np", "cache"}
        numbered = (f"{name}{i}" for i in itertools.count(2))
        return next(n for n in itertools.chain([name], numbered) if n not in taken)

    def line(self, e: Expression, name: str, comment: str = "") -> None:
        """Compute an expression under a name, parts of too long a line under names of their own."""
        before, self.written = self.written, []
        own = self._scattered if self._places(e) else self._filled if e.op == "put" else None
        text = "" if own else self._fitted(lambda: self._form(e)[0], WIDTH - len(name) - 7)
        self.lines += [f"# {comment}"] * bool(comment)
        if own:
            own(e, name)
        else:
            self.lines.append(f"{name} = {text}")
        self.names[e], self.written = name, before

    def _fitted(self, spell: Callable[[], str], room: int) -> str:
        """Code that is short enough, its longest parts computed before."""
        self.written = []
        text = spell()
        while len(text) > room:
            parts = [(p.op not in CHEAP, len(t), p.serial, p) for p, t in self.written if 12 < len(t) < WIDTH - 20]
            if not parts:
                break
            *_, part = max(parts)
            self.line(part, self.fresh(called(part)))
            self.written = []
            text = spell()
        return text

    def _own(self, e: Expression, text: str) -> str:
        """The text of an array that nothing else holds."""
        return f"{text}.copy()" if e in self.names or e.op in CHEAP - {"array", "negative"} else text

    def _filled(self, e: Expression, name: str) -> None:
        """An array, some of whose elements are set."""
        steps = [e]
        while steps[-1].args[0].op == "put" and steps[-1].args[0] not in self.names:
            steps.append(steps[-1].args[0])
        base = steps[-1].args[0]
        start = self._own(base, self._fitted(partial(self.text, base, ATOM), WIDTH - len(name) - 7))
        self.lines.append(f"{name} = {start}")
        for step in reversed(steps):
            index, text, sign = self._element(name, step.args[1], step, 9)
            self.lines.append(f"{name}[{index}] = {sign}{text}")

    def _element(self, name: str, value: Expression, e: Expression, spare: int) -> tuple[str, str, str]:
        """Where a value goes in an array, its text, and its sign."""
        index = self.index(e.params["index"], e.shapes)
        minus = value.op == "negative" and value not in self.names
        inner, level = bare(value.args[0] if minus else value, set(self.names)), PRODUCT if minus else 0
        return index, self._fitted(partial(self.text, inner, level), WIDTH - len(name + index) - spare), "-" * minus

    def _scattered(self, e: Expression, name: str) -> None:
        """A sum of arrays that are 0 but at an index, in an array of its own."""
        places = self._places(e)
        rest = [term for term in self._terms(e) if term not in places]
        start = self._fitted(lambda: " + ".join([self.text(term, SUM) for term in rest]), WIDTH - len(name) - 7)
        if not rest:
            floats = [n for n, a in self.arrays.items() if a.shapes == e.shapes and a.values[0].dtype.kind == "f"]
            start = f"np.zeros_like({floats[0]})" if floats else f"np.zeros({self._extent(e.shapes)})"
            self.read.update(floats[:1])
        elif len(rest) == 1:
            start = self._own(rest[0], start)
        parts = [(term, *self._element(name, term.args[0], term, 18)) for term in places]
        self.lines.append(f"{name} = {start}")
        taken = np.zeros(e.shapes[0], bool) | bool(rest)
        for term, index, value, sign in parts:
            new = np.zeros(e.shapes[0], int)
            np.add.at(new, plain_index(term.params["index"], 0), 1)
            arrays = [part for part in term.parts[1:] if part.shapes[0] and part.values[0].dtype != bool]
            if new.max(initial=0) > 1 or (arrays and not any(part.op == "array" for part in arrays)):
                place = f"({index})" if "," in index else index
                self.lines.append(f"np.add.at({name}, {place}, {sign}{value})")
            else:
                joint = f" {sign or '+'}= " if np.any(taken[new > 0]) else f" = {sign}"
                self.lines.append(f"{name}[{index}]{joint}{value}")
            taken |= new > 0


def wrapped(head: str, items: Sequence[str], tail: str = "", indent: int = 0, joint: str = ", ") -> str:
    """One line, or several where it would be too long: in brackets, as many items on each as it takes."""
    line = head + joint.join(items) + tail
    if len(line) + 4 - indent <= WIDTH or len(items) == 1:
        return line
    rows = [""]
    for item in items:
        if rows[-1] and len(rows[-1]) + len(item) > WIDTH - 16:
            rows.append("")
        rows[-1] += item + joint.rstrip() + " "
    rows[-1] = rows[-1].removesuffix(joint.rstrip() + " ") + ("," if joint == ", " else "")
    opened = head.endswith("(")
    body = "\n".join(["    " + " " * indent + row.rstrip() for row in rows])
    return f"{head}{'' if opened else '('}\n{body}\n{'' if opened else ')'}{tail}"


def called(e: Expression) -> str:
    """A name for what nobody named, by its meaning."""
    return "g" if e.moving and e.op not in ("sum", "mean") else CALLED.get(e.op, "part")


def _round(value: float) -> float:
    return round(value) if abs(value - round(value)) < 1e-9 * abs(value) else value


def _nice(value: float) -> str:
    """A factor that a person would write, else nothing."""
    value = round(value, 10)
    text = repr(int(value)) if value == int(value) else repr(value)
    return text if len(text) <= 7 and value else ""


def _start(scatter: Expression) -> int:
    """Where an index begins, to have its slices in their order."""
    place = np.zeros(scatter.shapes[0], bool)
    place[plain_index(scatter.params["index"], 0)] = True
    return int(np.argmax(place))


def sources(function: Any) -> dict[str, str]:
    """The source of a function of arrays, after that of the functions that it calls."""
    name, found = function.__name__.strip("_"), dict[str, str]()
    try:
        definition: Any = ast.parse(dedent(inspect.getsource(function))).body[0]
        reads = inspect.getclosurevars(function)
    except (OSError, TypeError, SyntaxError):
        raise Unwritable(f"{name} has no source to write above") from None
    if not isinstance(definition, ast.FunctionDef):
        raise Unwritable(f"{name} has no source to write above")
    renamed: dict[str, ast.expr] = {}
    for key, value in {**reads.globals, **reads.nonlocals}.items():
        inner = inspect.unwrap(value) if callable(value) else value
        if inner is np:
            renamed[key] = ast.Name("np")
        elif (
            inspect.isfunction(inner)
            and str(inner.__module__).startswith("autograd_bn.engine.")
            and hasattr(np, inner.__name__)
        ):
            renamed[key] = ast.Attribute(ast.Name("np"), inner.__name__)
        elif inspect.isfunction(inner) and inner is not function:
            found |= sources(inner)
            renamed[key] = ast.Name(inner.__name__.strip("_"))
        elif isinstance(value, int | float | str | tuple):
            renamed[key] = ast.parse(repr(value), mode="eval").body
        elif key != function.__name__ and not isinstance(value, type):
            raise Unwritable(f"{name} reads {key}, which has no source to write above")
    definition.name, definition.decorator_list, definition.returns = name, [], None
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    for node in ast.walk(definition):
        if isinstance(node, ast.arg):
            node.annotation = None

    class Renaming(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return renamed.get(node.id, node)

    return {**found, name: ast.unparse(Renaming().visit(definition)) + "\n"}
