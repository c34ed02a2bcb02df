"""Expressions as Python: how each operation is written, numbers by the lengths that they follow, and two functions."""

import ast
import contextlib
import inspect
import itertools
import keyword
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..referee.source import syntax
from .expressions import REDUCTIONS, Expression, is_negative, plain, terms
from .numbers import Numbers, constant
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
    **dict.fromkeys(("stop_gradient", "copy"), ("{}", ATOM, (ATOM,))),
    "logdet": ("np.linalg.slogdet({})[1]", ATOM, (0,)),
}
SIGNS = {"greater": ">", "greater_equal": ">=", "less": "<", "less_equal": "<=", "equal": "==", "not_equal": "!="}
FORMS |= {name: (f"{{}} {sign} {{}}", COMPARISON, (SUM, SUM)) for name, sign in SIGNS.items()}
KINDS = {"f": "float", "i": "int", "b": "bool"}
CHEAP = {*"number array arange eye reshape transpose broadcast_to negative getitem astype stop_gradient copy".split()}
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
# Arrays by their shape.
SHAPED: dict[str, Callable[[int, int], Any]] = {
    "np.eye({lengths}{kind})": np.eye,
    "np.tril(np.ones({shape}{kind}))": np.tri,
    "np.triu(np.ones({shape}{kind}), k=1)": lambda n, m: 1 - np.tri(n, m),
    "np.tril(np.ones({shape}{kind}), k=-1)": lambda n, m: np.tri(n, m, -1),
    "np.triu(np.ones({shape}{kind}))": lambda n, m: 1 - np.tri(n, m, -1),
    "(np.eye({lengths}) - 1 / {lengths})": lambda n, m: np.eye(n) - 1 / n if n == m else 0,  # which takes off a mean
}


class Function:
    """The lines of one function: `names` are those that it may read, and whose lengths it may take."""

    def __init__(self, names: Mapping[Expression, str], numbers: dict[str, Any], from_end: bool) -> None:
        self.names, self.from_end = dict(names), from_end
        self.arrays = {name: e for e, name in names.items()}
        self.tuples: dict[Any, str] = {}  # what is kept of shapes
        self.numbers = Numbers(numbers, names, from_end)
        self.lines, self.reserved, self.width = list[str](), set[str](), WIDTH
        self.above: dict[str, str] = {}  # the functions that are called, and their source
        self.written: list[tuple[Expression, str]] = []

    # Operations

    def text(self, e: Any, level: int = 0) -> str:
        """An expression as code; in brackets where it binds less tightly than `level`."""
        if not isinstance(e, Expression):
            return self.literal(e)
        if e not in self.names and self._filling(e)[1]:
            self.line(e, self.fresh("d" if e.moving else called(e)))
        if e in self.names:
            return f"({self.names[e]})" if level > COMPARISON and re.search(" [<>] ", self.names[e]) else self.names[e]
        text, own = self._form(e)
        self.written.append((e, text))
        return f"({text})" if own < level else text

    def _form(self, e: Expression) -> tuple[str, int]:
        special = getattr(self, f"_{e.op}", None) if isinstance(e.op, str) else None
        if special is not None:
            made = special(e)
            return made if isinstance(made, tuple) else (made, ATOM)
        if e.op in FORMS:
            form, own, levels = FORMS[e.op]
            return form.format(*[self.text(arg, level) for arg, level in zip(e.args, levels, strict=True)]), own
        if e.op in REDUCTIONS and len(e.args) == 1:
            return self._reduction(e), ATOM
        name, taken = e.op, ""
        if not isinstance(name, str):
            name, taken = e.op.name, "[0]" * e.op.joint
            self.above |= sources(e.op.forward)
        elif name in HELPERS:
            self.above[name] = HELPERS[name]
        elif hasattr(np, name) or hasattr(np.linalg, name):
            name = f"np.{name}" if hasattr(np, name) else f"np.linalg.{name}"
        else:
            raise Unwritable(f"{name} is no function of NumPy's")
        args = [self.text(arg) for arg in e.args] + ([self._options(e.params)] if e.params else [])
        return f"{name}({', '.join(args)}){taken}", ATOM

    def _options(self, params: dict[str, Any]) -> str:
        return ", ".join([f"{name}={self.text(value)}" for name, value in params.items()])

    def _reduction(self, e: Expression, **more: Any) -> str:
        """A reduction; the last axis is -1 to an author who counts from the end, and may have more axes elsewhere."""
        params, axis = {**e.params, **more}, e.params.get("axis")
        (axis,) = axis if isinstance(axis, tuple) and len(axis) == 1 else (axis,)
        if self.from_end and isinstance(axis, Expression) and axis.values[0] == len(e.args[0].shapes[0]) - 1:
            params["axis"] = -1
        return f"{self.text(e.args[0], ATOM)}.{e.op}({self._options(params)})"

    def counted(self, values: Sequence[Any]) -> str:
        """A number by the lengths of what the function takes, else by those of what it has computed."""
        with contextlib.suppress(Unwritable):
            return self.numbers.text(values)
        return Numbers(self.numbers.named, self.names, self.from_end).text(values)

    def _number(self, e: Expression) -> tuple[str, int]:
        text = self.counted(e.values)
        outer = re.sub(r"\(.*\)", "", text)  # outside of brackets
        return text, PRODUCT if re.search("[*/]", outer) else SUM if " " in outer else UNARY if text[0] == "-" else ATOM

    def _add(self, e: Expression) -> tuple[str, int]:
        left, right = self.text(e.args[0], SUM), self.text(e.args[1], SUM)
        if left[0] == "-" != right[0]:
            left, right = right, left
        return f"{left} - {right[1:]}" if right[0] == "-" else f"{left} + {right}", SUM

    def _multiply(self, e: Expression) -> tuple[str, int]:
        """A product: a constant, then several factors with fewer elements: 2 * dvar / n * diff runs over diff once."""
        factor, divided = 1.0, False
        arrays = list[tuple[int, str, str]]()  # of how many elements, how each is joined, and its text
        above, below = list[str](), list[str]()  # numbers that follow lengths
        for (part, joint), n in Counter(self._factors(e)).items():
            if part.op == "number" and np.ptp(part.values) == 0:
                factor *= float(part.values[0]) ** (n if joint == "*" else -n)
                divided = divided or joint == "/"
                continue
            text = self._raised(part, n, PRODUCT if joint == "*" else UNARY)
            if part.op == "number":  # 2 * len(x), 0.5 / n, -n: all constants are one
                lead: Any = re.match(r"(-?[\d.e-]+) (?=[*/] )|-?", text)
                factor *= float(lead[1] or f"{lead[0]}1")
                text = re.sub("^/ ", "1 / ", text[lead.end() :].removeprefix("* "))
            if joint == "*" and text.startswith("1 / "):
                joint, text = "/", text[4:]
            if part.op == "number":
                (below if joint == "/" else above).append(text)
            else:
                arrays.append((part.values[0].size, joint, text))
        over, under = constant(abs(factor), divided)
        arrays += [(1, "/", text) for text in (*below, under) if text]
        few = [own for own in arrays if own[0] < e.values[0].size]
        if len(few) > 1:
            arrays = few + [own for own in arrays if own not in few]
        elif len(arrays) == 2:
            arrays.sort(key=lambda own: (own[1] == "/", own[2][0] == "("))
        flags = factor < 0 and any(part.values[0].dtype == bool for part, _ in self._factors(e))  # which take no sign
        parts = [("*", text) for text in (over, *above) if text != "1" or flags] + [own[1:] for own in arrays]
        lead = next((i for i, (joint, _) in enumerate(parts) if joint == "*"), None)
        if lead is None and len(parts) > 1:
            parts = [("/", f"({' * '.join([text for _, text in parts])})")]
        start = "-" * (factor < 0) + ("1" if lead is None else parts.pop(lead)[1])
        return start + "".join([f" {joint} {text}" for joint, text in parts]), SUM if factor < 0 else PRODUCT

    _divide = _multiply

    def _factors(self, e: Expression, joint: str = "*") -> Iterator[tuple[Expression, str]]:
        """What is multiplied, and what it is divided by."""
        if e in self.names or joint == "/" or e.op not in ("multiply", "divide"):
            yield e, joint
        else:
            yield from self._factors(e.args[0])
            yield from self._factors(e.args[1], "*" if e.op == "multiply" else "/")

    def _raised(self, e: Expression, count: int, level: int = PRODUCT) -> str:
        """A factor that is there so many times."""
        return powered(self.text(e, ATOM), str(count)) if count > 1 else self.text(e, level)

    def _reshape(self, e: Expression) -> Any:
        (a,), shape = e.args, e.shapes[0]
        inner = tuple([x.args[0] for x in a.args if isinstance(x, Expression) and x.op == "reshape"])
        if a.op == "divide" and a not in self.names and [x.shapes for x in inner] == [e.shapes] * 2:
            return self._form(Expression(a.op, inner, {}, e.values))  # of what has axes of length 1 besides
        if a.lengths == e.lengths and len(shape) > len(a.shapes[0]) and a.op in REDUCTIONS and a not in self.names:
            whole = np.empty(a.args[0].shapes[0], bool)
            if whole.any(axis=plain(a.params.get("axis")), keepdims=True).shape == shape:
                return self._reduction(a, keepdims=True)
        if a.lengths == e.lengths and shape:
            if shape == a.shapes[0][::-1]:
                return f"{self.text(a, ATOM)}.T"
            less, more = sorted((shape, a.shapes[0]), key=len)
            mark = "0" if len(shape) < len(a.shapes[0]) else "None"
            places, own = list[str](), [*less, None]
            for n in more:
                places.append(":" if own[0] == n else mark)
                own = own[own[0] == n :]
            if own == [None]:
                return f"{self.text(a, ATOM)}[{_shortened(places)}]"
        return f"{self.text(a, ATOM)}.{f'reshape({self.shape(e.shapes, True)})' if shape else 'squeeze()'}"

    def _broadcast_to(self, e: Expression) -> str:
        text, shape = self.text(e.args[0]), self.shape(e.shapes)
        return f"np.broadcast_to({text}, {shape})" if any(e.args[0].lengths) else f"np.full({shape}, {text})"

    def extent(self, shapes: Any) -> str:
        return self.counted([shape[0] for shape in shapes]) if len(shapes[0]) == 1 else self.shape(shapes)

    def _transpose(self, e: Expression) -> str:
        text, axes = self.text(e.args[0], ATOM), e.params.get("axes")
        ndim = len(e.shapes[0])
        swapped = not axes or [n % ndim for n in plain(axes)] == [*range(ndim - 2), ndim - 1, ndim - 2]
        if not axes or (swapped and ndim == 2):
            return f"{text}.T"
        return f"{text}.swapaxes(-1, -2)" if swapped else f"{text}.transpose{self.text(axes)}"

    operand: Any = lambda self, e: self.text(e.args[0], ATOM)
    operands: Any = lambda self, e: ", ".join(map(self.text, e.args))
    _square: Any = lambda self, e: (self._raised(e.args[0], 2), POWER)
    _power: Any = lambda self, e: (powered(self.operand(e), self.text(e.args[1], UNARY)), POWER)
    _zero: Any = lambda self, e: f"np.zeros({self.extent(e.shapes)})" if e.shapes[0] else "0.0"
    _getitem: Any = lambda self, e: f"{self.operand(e)}[{self.index(e.params.get('index'), e.args[0].shapes)}]"
    _places: Any = lambda self, e: f"np.arange({self.operand(e)}.size).reshape({self.operand(e)}.shape)"
    _astype: Any = lambda self, e: f"{self.operand(e)}.astype({KINDS[e.values[0].dtype.kind]})"
    _concatenate: Any = lambda self, e: f"np.concatenate([{self.operands(e)}], axis={self.text(e.params['axis'])})"
    _stack: Any = lambda self, e: f"np.stack([{self.operands(e)}], axis={self.text(e.params['out_axis'])})"

    def _einsum(self, e: Expression) -> str:
        """A sum over indices; where an operand is transposed, its indices are."""
        *terms, result = e.params["terms"]
        operands = [*e.args]
        for i, arg in enumerate(e.args):
            if arg.op == "transpose" and arg not in self.names and "axes" in arg.params:
                terms[i] = "".join([terms[i][plain(arg.params["axes"]).index(n)] for n in range(len(terms[i]))])
                operands[i] = arg.args[0]
        return f'np.einsum("{",".join(terms)}->{result}", {", ".join(map(self.text, operands))})'

    def _pad(self, e: Expression) -> str:
        if "widths" not in e.params:  # by the places of elements
            return f"np.pad({self.operands(e)}, {self._options(e.params)})"
        value = e.params.get("value")
        filled = "" if value is None or not any(value.values) else f", constant_values={self.text(value)}"
        return f"np.pad({self.text(e.args[0])}, {self.text(e.params['widths'])}{filled})"

    # Constants, lengths and indices

    def literal(self, value: Any) -> str:
        """A constant, or a structure of expressions."""
        if isinstance(value, tuple):
            if len(value) == 1 and isinstance(value[0], Expression):
                return self.text(value[0])
            return f"({', '.join(map(self.text, value))})"
        if isinstance(value, type):
            return f"{'np.' * issubclass(value, np.generic)}{value.__name__}"
        return "..." if value is ... else repr(value)

    def index(self, index: Any, shapes: Any) -> str:
        """What stands between the brackets of an index."""
        items = list(index) if isinstance(index, tuple) else [index]
        plain = all(isinstance(item, slice | Expression) for item in items)
        texts = []
        for i, item in enumerate(items):
            if not isinstance(item, slice):
                texts.append(self.text(item))
                continue
            lengths = [shape[i] for shape in shapes] if plain else [-1, -1]
            whole = item.stop is not None and [int(v) for v in item.stop.values] == lengths
            start = "" if item.start is None or not any(item.start.values) else self.text(item.start)
            stop = "" if item.stop is None or whole else self.text(item.stop)
            step = "" if item.step is None else self.text(item.step)
            texts.append(f"{start}:{stop}" + f":{step}" * (step not in ("", "1")))
        return _shortened(texts)

    def shape(self, shapes: Any, spelled: bool = False) -> str:
        """A shape, by an array that has it or by its lengths."""
        for name, e in self.arrays.items():
            if e.shapes == shapes and len(shapes[0]) > 1:
                return f"{name}.shape"
        if name := self.tuples.get(shapes, ""):
            return name
        texts = []
        for lengths in zip(*shapes, strict=True):
            texts.append("-1")
            with contextlib.suppress(Unwritable):
                texts[-1] = (self.numbers.text if spelled else self.counted)(lengths)
        products = [i for i, text in enumerate(texts) if "size" in text or " * " in text]
        if spelled and products and "-1" not in texts:
            texts[products[0]] = "-1"
        if texts.count("-1") > 1 or (not spelled and "-1" in texts):
            raise Unwritable(f"the shape {shapes[0]} follows from no lengths of the inputs")
        return ", ".join(texts) if spelled else f"({', '.join(texts)}{',' * (len(texts) == 1)})"

    def _array(self, e: Expression) -> str:
        """An array that comes from no input: by what makes it, or by its elements."""
        a, b = e.values[:2]
        if all(v.size and not np.any(v != v.flat[0]) for v in e.values):
            filled, extent = self.counted([v.flat[0].item() for v in e.values]), self.extent(e.shapes)
            kind, point = {"0": "zeros", "1": "ones"}.get(filled), ".0" if filled.isdigit() and a.dtype == float else ""
            return f"np.{kind}({extent})" if kind else f"np.full({extent}, {filled}{point})"
        line, other, *_ = lines = [np.ravel(v) for v in e.values]
        counts = len(line) == max(a.shape) > 0 and all(np.array_equal(v, line[0] + np.arange(len(v))) for v in lines)
        if counts and (len(line) != len(other) or a.dtype.kind == "i"):
            start = [self.counted([line[0]])] * bool(line[0])
            stop = self.counted([int(v[0]) + len(v) for v in lines])
            laid = ", ".join([":" if n == len(line) else "None" for n in a.shape])
            return f"np.arange({', '.join([*start, stop])}){f'[{_shortened([laid])}]' * (a.ndim > 1)}"
        if a.ndim == 2 and min(*a.shape, *b.shape) > 1:
            kind, square = ", dtype=bool" if a.dtype == bool else "", all(len(v) == v.shape[1] for v in e.values)
            for form, make in SHAPED.items():
                if all(np.allclose(v, make(*v.shape), rtol=1e-13, atol=0) for v in e.values):
                    shape = self.shape(e.shapes)
                    lengths = self.counted([len(v) for v in e.values]) if square else f"*{shape}"
                    return form.format(lengths=lengths, shape=shape, kind=kind)
        for name, known in self.arrays.items():  # labels
            pairs = zip(e.values, known.values, strict=True)
            rows = [w[..., None] == np.arange(v.shape[-1]) for v, w in pairs if v.ndim]
            if known.shapes[0] and all(map(np.array_equal, e.values, rows)):
                return f"({name}[..., None] == np.arange({self.counted([v.shape[-1] for v in e.values])}))"
        if np.array_equal(a, b) and a.size <= 32:
            return f"np.array({a.tolist()})"
        as_named = f", as {e.args[0]} does" if e.args else ""
        what = f"an array of shape {a.shape} that comes from no input{as_named}"
        raise Unwritable(f"forward reads {what}: pass it as an input")

    # Lines

    def fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        taken = {*self.names.values(), *self.reserved, *self.numbers.named, *self.above, *keyword.kwlist, "np", "cache"}
        numbered = itertools.chain([name], (f"{name}{'_' * name[-1].isdigit()}{i}" for i in itertools.count(2)))
        return next(n for n in numbered if n not in taken)

    def line(self, e: Expression, name: str, comment: str = "") -> None:
        """Compute an expression under a name, parts of too long a line under names of their own."""
        before, self.written = self.written, []
        self.reserved.add(name)
        self.lines += [f"# {comment}"] if comment else []
        if self._filling(e)[1]:
            self._filled(e, name)
        else:
            text = self.fitted(lambda: self._form(e)[0], self.width - len(name) - 7)
            self.lines.append(f"{name} = {text}")
        self.names[e], self.written = name.removesuffix("[...]"), before

    def fitted(self, spell: Callable[[], str], room: int) -> str:
        """Code that is short enough, its longest parts computed before."""
        while True:
            self.written = []
            text = spell()
            parts = [(p, t) for p, t in self.written if 12 < len(t) < len(text) and t[0] != "-"]
            parts = [(p, t) for p, t in parts if len(t) < self.width - 9 - len(called(p))] or parts
            if len(text) <= room or not parts:
                return text
            part, _ = max(parts, key=lambda each: (not cheap(each[0]), len(each[1]), each[0].serial))
            self.line(part, self.fresh(called(part)))

    def _filling(self, e: Expression) -> tuple[list[Expression], list[Expression]]:
        """The terms that an array starts from, and the operations that then set or add elements, in their order."""
        if e.op == "put":
            start, steps = ([], []) if e.args[0] in self.names else self._filling(e.args[0])
            return ([e.args[0]], [e]) if not steps or steps[0].op != "put" else (start, [*steps, e])
        added = terms(e, self.names.__contains__)
        places = [term for term in added if term.op == "scatter" and term not in self.names]
        first: Any = lambda step: np.argmax(_placed(step) > 0)
        return [term for term in added if term not in places], sorted(places, key=first)

    def _filled(self, e: Expression, name: str) -> None:
        """The lines of an array that has elements set, or that is a sum of arrays which are 0 but at an index."""
        added, steps = self._filling(e)
        self.lines.append(f"{name} = {self._start(e, name, added)}")
        taken = [np.zeros(shape, bool) | bool(added) for shape in e.shapes]
        for step in steps:
            placed = [_placed(step, k) > 0 for k in range(len(taken))]
            again = any(np.any(own & new) for own, new in zip(taken, placed, strict=True))
            self.lines.append(self._filled_at(step, name.removesuffix("[...]"), again))
            taken = [own | new for own, new in zip(taken, placed, strict=True)]

    def _start(self, e: Expression, name: str, added: list[Expression]) -> str:
        """What an array is before elements of it are set: a sum, or zeros."""
        if not added:
            floats = [n for n, a in self.arrays.items() if a.shapes == e.shapes and a.values[0].dtype.kind == "f"]
            zeros = f"np.zeros_like({floats[0]})" if floats else f"np.zeros({self.extent(e.shapes)})"
            return "0" if name.endswith("[...]") else zeros
        text = self.fitted(lambda: " + ".join([self.text(t, SUM) for t in added]), self.width - len(name) - 7)
        if np.broadcast_shapes(*[t.shapes[0] for t in added]) != e.shapes[0]:
            return f"np.broadcast_to({text}, {self.shape(e.shapes)}).copy()"
        shared = len(added) == 1 and (added[0] in self.names or added[0].op in CHEAP - {"array"})
        return text + ".copy()" * (shared and text[:7] != "np.full")

    def _filled_at(self, step: Expression, name: str, again: bool) -> str:
        """The line that sets elements, or adds to those that were set before or that an index names twice."""
        index = self.index(step.params.get("index"), step.shapes)
        room = self.width - len(name + index) - (9 if step.op == "put" else 18)
        text = self.fitted(partial(self.text, step.args[-1], SUM), room)
        arrays = [part for part in step.parts[1:] if part.shapes[0] and part.values[0].dtype != bool]
        free = arrays and not any(part.op in ("array", "arange") for part in arrays)  # to name one twice
        if step.op != "put" and (free or _placed(step).max(initial=0) > 1):
            joint = isinstance(step.params.get("index"), tuple) and ", " in index
            place = f"np.s_[{index}]" if ":" in index else f"({index})" if joint else index
            return f"np.add.at({name}, {place}, {text})"
        if step.op == "put" or not again:
            return f"{name}[{index}] = {text}"
        return f"{name}[{index}] {'-' if text[0] == '-' else '+'}= {text.removeprefix('-')}"


def _shortened(places: Sequence[str]) -> str:
    """An index without what it has by itself, whole axes at its end."""
    return re.sub("(, :)+$", "", ", ".join(places))


def names_in(lines: Sequence[str]) -> set[str]:
    """The names that lines of code read."""
    nodes = ast.walk(ast.parse("\n".join(lines)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def powered(base: str, exponent: str) -> str:
    """A power, without blanks where both are simple."""
    simple = re.fullmatch(r"-?[\w.]+", base + exponent.removeprefix("-"))
    return f"{base}**{exponent}" if simple else f"{base} ** {exponent}"


def wrapped(head: str, items: Sequence[str], tail: str = "", indent: int = 0, joint: str = ", ") -> str:
    """One line, or several where it would be too long: in brackets, as many items on each as it takes."""
    line = head + joint.join(items) + tail
    if len(line) + 4 - indent <= WIDTH or len(items) == 1:
        return line
    text = joint.join(items) + ("," if joint == ", " else "")
    rows = textwrap.wrap(text, WIDTH - 16, break_long_words=False, break_on_hyphens=False)
    body = "".join([f"\n{' ' * (4 + indent)}{row}" for row in rows])
    return f"{head}{body}\n{tail}" if head.endswith(("(", "[", "{")) else f"{head}({body}\n){tail}"


def cheap(e: Expression) -> bool:
    """Whether nothing is saved by a name for what is used more than once."""
    return e.op in CHEAP or (is_negative(e) and min(e.args[0].values) == -1 and not e.moving)


def called(e: Expression) -> str:
    """A name for what nobody named, by its meaning."""
    if e.op == "add" and not e.moving and any(map(is_negative, e.args)):
        return "diff"
    op = e.args[0].op if e.op == "reshape" else e.op
    return "g" if e.moving and op not in ("sum", "mean") else CALLED.get(op, "part")


def _placed(step: Expression, k: int = 0) -> Any:
    """How often an index names each element of an array in which elements are set or added, in one recording."""
    counts = np.zeros(step.shapes[k], int)
    np.add.at(counts, plain(step.params.get("index"), k), 1)
    return counts


def sources(function: Any) -> dict[str, str]:
    """The source of a function of arrays, after that of the functions that it calls."""
    name, others, renamed = function.__name__.strip("_"), dict[str, str](), dict[str, str]()
    definition: Any = next(iter(syntax(function).body), None)
    if not isinstance(definition, ast.FunctionDef):
        raise Unwritable(f"{name} has no source to write above")
    reads = inspect.getclosurevars(function)
    for key, value in {**reads.globals, **reads.nonlocals}.items():
        inner = inspect.unwrap(value) if callable(value) else value
        if inspect.isfunction(inner) and inner is not function:
            of_numpy = inner.__module__.startswith("autograd_bn.engine.") and hasattr(np, inner.__name__)
            others |= {} if of_numpy else sources(inner)
            renamed[key] = f"np.{inner.__name__}" if of_numpy else inner.__name__.strip("_")
        elif inner is np or isinstance(value, int | float | str | tuple):
            renamed[key] = "np" if inner is np else repr(value)
        elif inner is not function and not isinstance(value, type):
            raise Unwritable(f"{name} reads {key}, which has no source to write above")
    definition.name, definition.decorator_list, definition.returns = name, [], None
    if ast.get_docstring(definition):
        definition.body = definition.body[1:]
    for node in ast.walk(definition):
        if isinstance(node, ast.Name):
            node.id = renamed.get(node.id, node.id)
        elif isinstance(node, ast.arg):
            node.annotation = None
    return {**others, name: ast.unparse(definition) + "\n"}
