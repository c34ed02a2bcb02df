"""The slips that people make: every small edit of a function that may undo one, the likelier the cheaper."""

import ast
import itertools
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .pure import Allowed, exchangeable
from .source import Source

_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
# What may have been meant where a pattern stands, with its cost and kind. A name in a pattern is any expression, and a
# number any number. One slip more is one row more: of operators here, of functions in `_KIN`, of values in `_VALUES`;
# axes and numbers are lists. Cheaper ones are tried first. A kind is for machines: what is said is read off the edit.
_TABLE: list[Any] = [
    ("a + b", (1, "a - b", "sign"), (1.05, "a", "term"), (1.05, "b", "term"), (1.15, "a * b", "operator")),
    ("a - b", (1, "a + b", "sign"), (1.05, "a", "term"), (1.05, "-b", "term"), (1.15, "a * b", "operator")),
    ("a - b", (1.1, "b - a", "order")),
    ("a * b", (1.05, "a", "factor"), (1.05, "b", "factor"), *[(1, f"a {sign} b", "operator") for sign in "/@+-"]),
    ("a / b", (1.05, "a", "factor"), (1.05, "b", "factor"), *[(1, f"a {sign} b", "operator") for sign in "*-"]),
    ("a / b", (1.1, "b / a", "order")),
    ("a @ b", (1.05, "a", "factor"), (1.05, "b", "factor"), (1, "a * b", "operator"), (1.1, "b @ a", "order")),
    ("a @ b", *[(1.2, new, "order") for new in ("b.T @ a", "b @ a.T", "b.T @ a.T")]),
    ("a ** b", (1.05, "a", "power"), (1, "a * b", "operator"), (1.1, "b ** a", "order")),
    ("a * b * c", (1.5, "a", "factor")),
    ("-a", (1, "a", "sign")),
    ("~a", (1, "a", "sign")),
    ("a.T", (1, "a", "transposed")),
    ("a[b]", (1.6, "a", "index"), (1.7, "a.sum(axis=0)", "not summed")),
    ("a[::-1]", (0.95, "a", "index")),
    *[(f"a {this} b", *[(1, f"a {sign} b", "comparison") for sign in _COMPARISONS]) for this in _COMPARISONS],
    *[(f"a {this}= b", (1.05, "", "term"), *[(1.2, f"a {sign}= b", "operator") for sign in "+-*/"]) for this in "+-*/"],
    *[(f"a {this}= b", (1, "a = b", "assignment"), (1, f"a = a {this} b", "in place")) for this in "+-*/"],
    ("a = b", (1, "a += b", "assignment"), (1, "a -= b", "assignment"), (1.2, "a = a + b", "assignment")),
]
_PATTERNS = [(ast.parse(pattern).body[0], rows) for pattern, *rows in _TABLE]
# Functions that are taken for each other; `pure` must know each, else it is not tried.
_KIN = [
    ("sum", "mean", "cumsum"), ("max", "min"), ("argmax", "argmin"), ("maximum", "minimum"), ("exp", "log", "expm1"),
    ("sin", "cos"), ("sinh", "cosh", "tanh"), ("sqrt", "square"), ("zeros_like", "ones_like"), ("zeros", "ones"),
    ("var", "std"), ("log", "log1p"), ("abs", "sign"), ("dot", "multiply"), ("add", "subtract"),
    ("matmul", "multiply"), ("tril", "triu"), ("floor", "ceil"),
]  # fmt: skip
_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "var", "std", "cumsum", "argmax")
_AXES = "0;1;-1;2;None;-2;(0, 1);(0, 2);(1, 2);(0, 2, 3);(0, 1, 2);(2, 3);(1, 2, 3);(3, 4);(2, 3, 4);(1, 2, 3, 4)"
_NUMBERS = ("0", "1", "2", "0.5", "3", "-1", "-2", "1.5", "-0.5", "-1.5", "4", "0.25", "6")
# Factors that derivatives have, in terms of a value at hand.
_DERIVATIVES = ("1 - {}**2", "{} * (1 - {})", "{} > 0", "1 - {}", "{}**2", "1 + {}", "1 / {}", "np.exp({})")
_SUMMED = [f"axis={axis}{keep}" for axis in ("0", "1", "-1") for keep in ("", ", keepdims=True")]
_SUMMED += ["", *[f"axis={axis}{keep}" for axis in ("(0, 1)", "(0, 2, 3)") for keep in ("", ", keepdims=True")]]
# What a value {0} may have been meant to be, also in terms of another one {1}, with the cost, the kind, and where that
# is tried: on names (n), all values (v), operands (o), heads of expressions (h) or arguments (c).
_VALUES = [
    (1.3, "{1}", "wrong name", "n"), (1.4, "{0} - 1", "constant", "n"), (1.8, "{0} + 1", "constant", "n"),
    (1.9, "1 - {0}", "complement", "n"), (1.9, "{0}**2", "power", "n"), (1.1, "-{0}", "sign", "hc"),
    (1.4, "{0}.T", "transposed", "v"), (1.4, "np.swapaxes({0}, -1, -2)", "transposed", "v"),
    (2.3, "1 - {0}", "complement", "v"), (3.4, "1 + {0}", "term", "v"),
    (2.4, "{0} * {1}", "factor", "v"), (2.5, "{0} / {1}", "factor", "v"), (2.8, "{0} @ {1}", "factor", "v"),
    (2.6, "{0} + {1}", "term", "v"), (2.6, "{0} - {1}", "term", "v"),
    *[(3.2, "{0} * (" + form.replace("{}", "{1}") + ")", "factor", "v") for form in _DERIVATIVES],
    *[(2 + rank / 20, f"{{0}}.sum({inside})", "not summed", "o") for rank, inside in enumerate(_SUMMED)],
    *[(2.2, f"{number} * {{0}}", "constant", "v") for number in ("2", "0.5", "3")],
    *[(3, f"{{0}}{index}", "index", "v") for index in ("[:, None]", "[None, :]", "[::-1]")],
    *[(3.5, f"np.{f}{{0}}", "call", "o") for f in ("exp", "sqrt", "abs", "sign", "log", "cos", "tanh")],
]  # fmt: skip
_PLACES = {ast.BinOp: "vo", ast.Call: "vc", ast.Attribute: "v", ast.UnaryOp: "v"}
_PLACES |= dict.fromkeys([ast.Assign, ast.AugAssign, ast.Return, ast.Tuple, ast.Dict], "voh")


@dataclass(frozen=True)
class Edit:
    """The bytes from `start` to `end` of a function's text become `new`, for a mistake in the value of `place`."""

    cost: float
    start: int
    end: int
    new: str
    kind: str
    place: ast.AST


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, but no signature, no message, no file's or dict's key."""
    yield node
    for child in ast.iter_child_nodes(node):
        key = isinstance(node, ast.Subscript) and child is node.slice and any(map(_is_text, ast.walk(child)))
        if not key and not isinstance(child, ast.arguments | ast.Assert | ast.Raise | ast.JoinedStr):
            yield from _walk(child)


def _is_text(node: Any) -> bool:
    return isinstance(getattr(node, "value", None), str | bytes) or isinstance(node, ast.JoinedStr)


def _matched(pattern: ast.AST, node: ast.AST, parts: dict[str, ast.AST]) -> bool:
    """Whether a node has a pattern's form, with the nodes found for its letters."""
    if isinstance(pattern, ast.Name):
        parts[pattern.id] = node
        return True
    if type(pattern) is not type(node) or getattr(pattern, "attr", "") != getattr(node, "attr", ""):
        return False
    own, others = [*ast.iter_child_nodes(pattern)], [*ast.iter_child_nodes(node)]
    return len(own) == len(others) and all(_matched(a, b, parts) for a, b in zip(own, others, strict=True))


class Slips:
    """Every small edit of a function, each with its cost: about how many of its kind one would try first.

    Arrays, numbers and axes are exchanged, by the values `seen` when it ran, and functions on the list `allowed` for
    others on it; no string, no object, and no value that wasn't there.
    """

    def __init__(self, source: Source, allowed: Allowed, seen: Mapping[str, Any]) -> None:
        self.source, self.text, self.edits, self.allowed = source, source.segment, list[Edit](), allowed
        nodes: list[Any] = [node for statement in source.tree.body for node in _walk(statement)]
        self.parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
        code, outside = source.function.__code__, source.outside
        self.known: Mapping[str, Any] = {**outside.globals, **outside.nonlocals, **seen}
        parameters = code.co_varnames[: code.co_argcount]
        # The values in scope, each with the line it is there from; and those that nobody reads.
        numbers = [n for n, v in outside.globals.items() if isinstance(v, int | float | np.ndarray)]
        self.born: dict[str, int] = dict.fromkeys([*parameters, *outside.nonlocals, *numbers], 0)
        names = [node for node in nodes if isinstance(node, ast.Name)]
        for name in names:
            if isinstance(name.ctx, ast.Store):
                self.born[name.id] = min(name.lineno, self.born.get(name.id, name.lineno))
        self.born = {name: line for name, line in self.born.items() if exchangeable(self.known.get(name, ""))}
        for node in nodes:
            if self._is_value(node) and self._is_atom(node) and exchangeable(self._value(node)):
                self.born.setdefault(self.text(node), node.lineno)
        first = [p for p in parameters[:1] if hasattr(seen.get(p), "shape")]
        self.born |= {f"{p}.shape[{i}]": 0 for p in first for i in (0, -1)}
        self.unread = {name for name in self.born if name.isidentifier()} - {
            name.id for name in names if isinstance(name.ctx, ast.Load)
        }
        for node in nodes:
            match node:
                case ast.Return(value=ast.Tuple() as several) | ast.Assign([ast.Tuple()], ast.Tuple() as several):
                    self._exchanges(several.elts, "swapped", several)
                case ast.Assign(value=value) | ast.AugAssign(value=value):
                    self._patterns(node, value)
                case ast.expr() if self._is_value(node):
                    self._expression(node)

    def _value(self, node: Any) -> Any:
        """The value that a name, an attribute or an item had, or a text where it isn't known."""
        match node:
            case ast.Name():
                return self.known.get(node.id, "")
            case ast.Attribute():
                return getattr(self._value(node.value), "__dict__", {}).get(node.attr, "")
            case ast.Subscript(value=ast.Attribute(attr="shape")) | ast.Call():
                return 1  # a length
            case ast.Subscript(slice=ast.Constant()):
                holder, key = self._value(node.value), node.slice.value  # type: ignore[attr-defined]
                if type(holder) is dict or (type(holder) in (tuple, list) and -len(holder) <= key < len(holder)):
                    return holder[key] if type(holder) is not dict else holder.get(key, "")
        return ""

    def _add(self, cost: float, at: Any, new: str, kind: str, place: ast.AST | None = None) -> None:
        """Note an edit of a node or a span, in `place`."""
        start, end = at if isinstance(at, tuple) else self.source.span(at)
        self.edits.append(Edit(cost, start, end, new, kind, place or at))

    def _is_value(self, node: Any) -> bool:
        """Whether an expression is read for its value: no target, no function or module."""
        parent, root = self.parents.get(node), node
        while isinstance(root, ast.Attribute):
            root = root.value
        outer = self.source.outside.globals.get(getattr(root, "id", ""))
        called = isinstance(parent, ast.Call) and node is parent.func
        read = isinstance(getattr(node, "ctx", ast.Load()), ast.Load)
        return read and not called and not isinstance(outer, types.ModuleType)

    def _is_atom(self, node: Any) -> bool:
        """Whether a value is a name in all but syntax: `cache["x"]`, `self.w`, `x.shape[0]`, `len(x)`."""
        match node:
            case ast.Subscript(value=ast.Attribute(attr="shape")) | ast.Subscript(slice=ast.Constant(value=str())):
                return True
            case ast.Attribute(value=ast.Name()):
                return node.attr not in ("T", "shape", "dtype", "ndim", "real", "flat")
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"

    def _names(self, node: Any) -> list[str]:
        """The values in scope where `node` stands, those that nobody reads first."""
        names = [name for name, line in self.born.items() if line < node.lineno]
        return sorted(names, key=lambda name: (name not in self.unread, -self.born[name]))

    def _patterns(self, node: ast.AST, place: ast.AST) -> None:
        """What the table has for a node."""
        for pattern, rows in _PATTERNS:
            parts = dict[str, ast.AST]()
            if _matched(pattern.value if isinstance(pattern, ast.Expr) else pattern, node, parts):
                texts = {letter: f"({self.text(part)})" for letter, part in parts.items()}
                for cost, new, kind in rows:
                    text = re.sub(r"\b[abc]\b", lambda letter, texts=texts: texts[letter[0]], new)  # type: ignore[misc]
                    self._add(cost, node, text if isinstance(node, ast.stmt) else f"({text})", kind, place)

    def _exchanges(self, nodes: Sequence[ast.expr], kind: str, place: ast.AST) -> None:
        for a, b in itertools.combinations([node for node in nodes if not _is_text(node)], 2):
            (start, middle), (other, end) = self.source.span(a), self.source.span(b)
            new = self.text(b) + self.source.text[middle:other].decode() + self.text(a)
            self._add(1, (start, end), new, kind, place)

    def _expression(self, node: Any) -> None:
        """First what stands there turned, then another name, last a factor or a summand more."""
        text, parent = self.text(node), self.parents[node]
        if isinstance(parent, ast.keyword) and parent.arg in ("axis", "keepdims", "dim", "dtype"):
            return
        match node:
            case ast.Constant() if type(node.value) in (int, float):
                self._number(node)
                return
            case ast.Tuple() | ast.List() | ast.Dict() | ast.Slice() | ast.Constant():
                return
            case ast.Name():
                if not exchangeable(self._value(node)):
                    return
            case ast.Call():
                self._call(node)
        if self._is_atom(node) and not exchangeable(self._value(node)):
            return
        self._patterns(node, node)
        where = set("n" if isinstance(node, ast.Name) or self._is_atom(node) else "")
        where |= set(_PLACES.get(type(parent), "") if getattr(parent, "attr", "") != "shape" else "")
        names = self._names(node)
        numpy = self.known.get("np", self.source.function.__globals__.get("np")) is np
        for cost, form, kind, places in _VALUES:
            flat = "swapaxes" in form and getattr(self._value(node), "ndim", 0) < 3
            if where & set(places) and (numpy or "np." not in form) and not flat:
                for rank, name in enumerate(names if "{1}" in form else [""]):
                    more = rank / 50 - 0.7 * (name in self.unread) - 0.3 * ("h" in where) if name else 0.0
                    if name != text:
                        self._add(cost + more, node, f"({form.format(f'({text})', name)})", kind)

    def _number(self, node: ast.Constant) -> None:
        value: Any = node.value
        near = [str(value + 1), str(value - 1), str(-value)] if value else ["1", "-1"]
        for rank, number in enumerate(dict.fromkeys([*near, *_NUMBERS])):
            if number != self.text(node) and not (number[0] == "-" and isinstance(self.parents[node], ast.UnaryOp)):
                self._add(1.06 + rank / 50, node, f"({number})", "constant")  # dropping it comes first
        for rank, name in enumerate(self._names(node)):
            self._add(1.7 + rank / 50, node, name, "constant")

    def _call(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        arguments, dropped = node.args[1:], self.text(node.args[0]) if node.args else ""
        if isinstance(node.func, ast.Attribute):
            end = self.source.span(node.func)[1]
            for other in sorted({other for kin in _KIN if name in kin for other in kin} - {name}):
                kind = "sum for mean" if {name, other} == {"sum", "mean"} else "call"
                if not self.allowed.knows(self.known.get(getattr(node.func.value, "id", "")), other):
                    continue
                self._add(1, (end - len(name.encode()), end), other, kind, node)
            if self._is_value(node.func.value):
                arguments, dropped = node.args, self.text(node.func.value)
        if dropped and not _is_text(node.args[0] if node.args else None):
            kind = "precision" if name in ("astype", "round", "float32") else "call"
            self._add(1.2, node, f"({dropped})", kind)
        self._exchanges(node.args, "order", node)
        if name not in _REDUCTIONS:
            return
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        axis = arguments[0] if arguments else keywords.get("axis") or keywords.get("dim")
        close = self.source.span(node)[1] - 1
        more = ", " if node.args or node.keywords else ""
        names = [name for name in ("axis", "axes", "dims") if name in self._names(node)]
        for rank, new in enumerate([*names, *_AXES.split(";")]):
            if axis is None:
                self._add(1.1 + rank / 50, (close, close), f"{more}axis={new}", "wrong axis", node)
                self._add(1.3 + rank / 50, (close, close), f"{more}axis={new}, keepdims=True", "wrong axis", node)
            elif new != self.text(axis):
                self._add(1 + rank / 50, self.source.span(axis), new, "wrong axis", node)
        if "keepdims" in keywords:
            keep = keywords["keepdims"]
            self._add(1, self.source.span(keep), str(self.text(keep) != "True"), "wrong axis", node)
        else:
            self._add(1, (close, close), f"{more}keepdims=True", "wrong axis", node)
