"""Repair by search: the one small edit of the author's code that makes a wrong gradient right."""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import inspect
import itertools
import math
import re
import textwrap
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import thread_time
from typing import Any

import numpy as np

from ...engine.node import Array
from .adapters import Pair
from .matching import Returned
from .run import Run
from .verdict import Repair

Backward = Callable[..., Any]


class NoSearch(Exception):
    """Why the code isn't edited."""


class Clock:
    """The budget of a whole check: seconds of computing, so that what it finds doesn't depend on who else computes."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, thread_time()

    def spent(self) -> float:
        """The share of the budget that is gone."""
        return (thread_time() - self.started) / self.seconds if self.seconds > 0 else np.inf


@dataclass(frozen=True)
class Edit:
    """The bytes from `start` to `end` of a function's source become `new`; the cheaper edit is tried first."""

    cost: float
    start: int
    end: int
    new: str
    kind: str
    place: ast.AST


class Source:
    """A function's text and syntax, and the names in its scope."""

    def __init__(self, function: Any) -> None:
        self.function = function
        if not isinstance(function, types.FunctionType):
            raise NoSearch("it is no plain function")
        self.file = function.__code__.co_filename
        try:
            lines, first = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
        except (OSError, TypeError, SyntaxError):
            raise NoSearch("its source is not at hand") from None
        definition = tree.body[0]
        if not isinstance(definition, ast.FunctionDef):
            raise NoSearch("its source is not a plain function")
        skipped = definition.lineno - 1  # decorators
        self.first = max(first, 1) + skipped
        self.text = "".join(textwrap.dedent("".join(lines)).splitlines(keepends=True)[skipped:]).encode()
        self.tree = ast.parse(self.text).body[0]
        self.starts = [0, *itertools.accumulate(map(len, self.text.splitlines(keepends=True)))]

    def span(self, node: Any) -> tuple[int, int]:
        """Where a node's text begins and ends."""
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def segment(self, node: Any) -> str:
        """A node's text."""
        start, end = self.span(node)
        return self.text[start:end].decode()

    def edited(self, edit: Edit) -> bytes:
        """The text after an edit."""
        return self.text[: edit.start] + edit.new.encode() + self.text[edit.end :]

    def repair(self, edit: Edit, gradients: tuple[str, ...]) -> Repair:
        """An edit as the lines that it changes, without brackets that change nothing."""
        plain = edit
        meant = ast.dump(ast.parse(self.edited(edit)))
        at = plain.new.find("(")
        while at >= 0:
            for end in [i for i, sign in enumerate(plain.new) if sign == ")" and i > at]:
                shorter = replace(plain, new=plain.new[:at] + plain.new[at + 1 : end] + plain.new[end + 1 :])
                with contextlib.suppress(SyntaxError):
                    if ast.dump(ast.parse(self.edited(shorter))) == meant:
                        plain, at = shorter, at - 1
                        break
            at = plain.new.find("(", at + 1)
        first = self.text.count(b"\n", 0, edit.start)
        start = self.starts[first]
        end = next(at for at in self.starts[first + 1 :] if at >= edit.end)
        old = self.text[start:end].decode()
        new = (self.text[start : edit.start] + plain.new.encode() + self.text[edit.end : end]).decode()
        was = self.text[edit.start : edit.end].decode()
        if not was.strip() or not plain.new.strip():
            what = f"`{plain.new.strip(' ,')}` is missing" if plain.new.strip() else f"`{was.strip()}` has no place"
        else:
            what = f"`{was}` stands where `{plain.new}` belongs"
        return Repair(self.file, self.first + first, _dedented(old), _dedented(new), gradients, edit.kind, what)


def _dedented(text: str) -> str:
    return textwrap.dedent(text).rstrip("\n")


def search(pair: Pair, runs: Sequence[Run], order: Sequence[str], clock: Clock, aliased: bool) -> list[Repair]:
    """For each wrong gradient the smallest edit that makes it right in every run and leaves the others right.

    `NoSearch` where the code can't be edited, or must not be run many times.
    """
    workshop, wrong = Workshop(pair), set(order)
    before = runs[0].back(workshop.backward)
    if before.failure and not runs[0].author.failure:
        raise NoSearch("its source does not run by itself")
    fixed = _passed(runs[0], workshop.backward) - wrong

    def steps(backward: Backward) -> dict[str, bool]:
        return {step.name: step.ok for step in runs[-1].steps(runs[-1].back(backward), aliased)}

    known = [] if before.failure else list(steps(workshop.backward))
    found, spare = Repairs(), Repairs()
    tried: set[bytes] = set()
    for owner, edit in workshop.touching(runs[0], before, wrong, fixed, clock):
        if clock.spent() > 1 or edit.cost >= min(found.price(wrong), 1.5 + spare.price(wrong)):
            break
        text = owner.edited(edit)
        if text in tried:
            continue
        tried.add(text)
        with workshop.with_text(owner, text) as backward:
            if backward is None:
                continue
            passed = _passed(runs[0], backward)
            for run in runs[1:]:
                if not fixed <= passed or edit.cost >= found.price(passed & wrong):
                    break
                passed &= _passed(run, backward)
            if fixed <= passed and edit.cost < found.price(passed & wrong):
                # One that leaves a step wrong, or makes one wrong, makes up for a slip that stands elsewhere.
                now = steps(backward) if known else {}
                kept = found if all(now.get(name) for name in known) else spare
                mended = [name for name in order if name in passed]
                if edit.cost < kept.price(set(mended)):
                    kept.update(dict.fromkeys(mended, (edit.cost, owner.repair(edit, tuple(mended)))))
    return list(dict.fromkeys(repair for _, repair in {**spare, **found}.values()))


def _passed(run: Run, backward: Backward) -> set[str]:
    """The gradients that come out right, unless arrays are overwritten on the way that weren't before."""
    back = run.back(backward)
    return set() if back.faults and not run.author.faults else {n for n, g in back.gradients.items() if run.right(n, g)}


class Repairs(dict[str, tuple[float, Repair]]):
    """The cheapest edits found: for each gradient its edit and what that costs, which one edit of several shares."""

    def price(self, names: set[str]) -> float:
        """What the edits for these gradients cost together: the next must be cheaper."""
        if not names <= set(self):
            return math.inf
        return sum({self[name][1]: self[name][0] for name in names}.values())


class Workshop:
    """Copies of a backward function and its helpers, which can be replaced by edited ones."""

    def __init__(self, pair: Pair) -> None:
        function: Any = pair.source
        self.rebuild, self.sources = pair.rebuild, [Source(function)]
        for source in self.sources:
            for name in source.function.__code__.co_names:
                helper = source.function.__globals__.get(name)
                known = [other.function for other in self.sources]
                plain = isinstance(helper, types.FunctionType) and helper.__name__ == name and helper not in known
                if plain and helper.__code__.co_filename == source.file:
                    self.sources.append(Source(helper))
        self.space = dict(function.__globals__)
        for source in self.sources:
            cells = source.function.__closure__ or ()
            for name, cell in zip(source.function.__code__.co_freevars, cells, strict=True):
                with contextlib.suppress(ValueError):
                    self.space[name] = cell.cell_contents
        # An edit may write into the arrays of the file, so each is tried on copies of them.
        read = {n.id for source in self.sources for n in ast.walk(source.tree) if isinstance(n, ast.Name)}
        self.kept = {n: v for n, v in self.space.items() if n in read and isinstance(v, np.ndarray | list | dict)}
        for source in self.sources:
            _check_calls(source, self.space)
            self._compile(source, source.text)
        self.backward = self.rebuild(self.space[function.__name__])
        self.main = function.__name__

    def _compile(self, source: Source, text: bytes) -> None:
        with warnings.catch_warnings(action="ignore"):  # an edit may call a number, say
            code = compile(text, source.file, "exec")
        exec(code, self.space)
        self.space[source.function.__name__].__defaults__ = source.function.__defaults__

    @contextlib.contextmanager
    def with_text(self, source: Source, text: bytes) -> Iterator[Backward | None]:
        """The backward pass with one function's text exchanged, or None where that is no Python."""
        name = source.function.__name__
        kept = self.space[name]
        self.space.update(copy.deepcopy(self.kept))
        try:
            self._compile(source, text)
            yield self.rebuild(self.space[self.main])
        except SyntaxError:
            yield None
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
        with self.with_text(source, text) as backward:
            after = {} if backward is None else run.back(backward).gradients
        if not moved or not after:
            return None
        return {n for n in before if n not in after or not np.array_equal(before[n], after[n], equal_nan=True)}


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
        if not isinstance(node, ast.Call):
            continue
        root: Any = node.func
        attributes = []
        while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
            attributes += [root.attr] if isinstance(root, ast.Attribute) else []
            root = root.func if isinstance(root, ast.Call) else root.value
        called = source.segment(node.func)
        if attributes and attributes[0] in _UNSAFE:
            raise NoSearch(f"it calls `{called}`")
        if isinstance(root, ast.Name):
            value = space.get(root.id)
            module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "numpy")
            if not attributes and hasattr(builtins, root.id) and root.id not in _BUILTINS:
                raise NoSearch(f"it calls `{called}`")
            safe = root.id in _BUILTINS or root.id not in space or str(module).split(".")[0] in _MODULES
            local = isinstance(value, types.FunctionType) and value.__code__.co_filename == source.file
            if not (safe or local or (attributes and not isinstance(value, types.ModuleType))):
                raise NoSearch(f"it calls `{called}`")


# --- Slips that people make ----------------------------------------------------------------------------------

_OPERATORS: dict[type, str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.MatMult: "@", ast.Pow: "**"}
_OTHERS = {"+": "-*", "-": "+*", "*": "/@+-", "/": "*-", "@": "*", "**": "*"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
_REDUCTIONS = ("sum", "mean", "max", "min", "prod", "var", "std", "cumsum", "argmax")
_MODULE_NAMES = ("np", "numpy", "math", "torch", "jnp")
_KIN = [
    ("sum", "mean", "cumsum"), ("max", "min"), ("argmax", "argmin"), ("maximum", "minimum"), ("exp", "log", "expm1"),
    ("sin", "cos", "-np.sin"), ("sinh", "cosh"), ("sqrt", "square"), ("zeros_like", "ones_like"), ("zeros", "ones"),
    ("var", "std"), ("tanh", "cosh"), ("log", "log1p"), ("abs", "sign"), ("dot", "multiply"), ("add", "subtract"),
    ("matmul", "multiply"), ("subtract.at", "add.at"), ("tril", "triu"), ("floor", "ceil"),
]  # fmt: skip
_NUMBERS = ("0", "1", "2", "0.5", "3", "-1", "-2", "1.5", "-0.5", "-1.5", "4", "0.25", "6")
_AXES = "0;1;-1;2;None;-2;(0, 1);(0, 2);(1, 2);(0, 2, 3);(0, 1, 2);(2, 3);(1, 2, 3);(3, 4);(2, 3, 4);(1, 2, 3, 4)"
# Factors that derivatives have, in terms of a value at hand.
_DERIVATIVES = ("1 - {0}**2", "{0} * (1 - {0})", "{0} > 0", "1 - {0}", "{0}**2", "1 + {0}", "1 / {0}", "np.exp({0})")
# Around a name, and around an operand (o), an argument (c), the head of an expression (h), or one before a dot (a) or
# after a sign (u): cost, what it becomes, kind.
_NAMED = [(1.4, "({} - 1)", "constant"), (1.8, "({} + 1)", "constant"), (1.9, "(1 - {})", "complement")]
_NAMED += [(1.9, "{}**2", "power")]
_SUMS = [f"axis={axis}{keep}" for axis in ("0", "1", "-1") for keep in ("", ", keepdims=True")]
_SUMS += ["", *[f"axis={axis}{keep}" for axis in ("(0, 1)", "(0, 2, 3)") for keep in ("", ", keepdims=True")]]
_AROUND = [
    (1.1, "-({})", "sign", "hc"),
    (1.4, "({}).T", "transposed", "oca"),
    (2.3, "(1 - ({}))", "complement", "ocau"),
]
_AROUND += [(2 + rank / 20, f"({{}}).sum({inside})", "not summed", "o") for rank, inside in enumerate(_SUMS)]
_AROUND += [(2.2, f"({number} * ({{}}))", "constant", "ocau") for number in ("2", "0.5", "3")]
_AROUND += [(3, f"({{}}){index}", "index", "oc") for index in ("[:, None]", "[None, :]", "[::-1]")]
_AROUND += [(3.4, "(1 + ({}))", "term", "ocau")]
_AROUND += [(3.5, f"np.{f}({{}})", "call", "o") for f in ("exp", "sqrt", "abs", "sign", "log", "cos", "tanh")]


class Slips:
    """Every small edit of a function, each with its cost: about how many of its kind one would try first."""

    def __init__(self, source: Source) -> None:
        self.source, self.text, self.found = source, source.segment, list[Edit]()
        self.parents = {child: node for node in ast.walk(source.tree) for child in ast.iter_child_nodes(node)}
        code, space = source.function.__code__, source.function.__globals__
        parameters = code.co_varnames[: code.co_argcount]
        # The values in scope, each with the line it is there from; and those that nobody reads.
        self.born: dict[str, int] = dict.fromkeys([*parameters, *code.co_freevars], 0)
        names = [node for node in ast.walk(source.tree) if isinstance(node, ast.Name)]
        for name in names:
            if isinstance(name.ctx, ast.Store):
                self.born[name.id] = min(name.lineno, self.born.get(name.id, name.lineno))
            elif isinstance(space.get(name.id), int | float | np.ndarray):
                self.born.setdefault(name.id, 0)
        for node in ast.walk(source.tree):
            if self._is_atom(node):
                self.born.setdefault(self.text(node), node.lineno)  # type: ignore[attr-defined]
        read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
        self.unread = {name for name in self.born if name.isidentifier()} - read
        self.counts = [f"{p}.shape[{i}]" for p in parameters[:1] for i in (0, -1)]
        for node in ast.walk(source.tree):
            if isinstance(node, ast.stmt):
                self._statement(node)
            elif isinstance(node, ast.expr) and self._is_value(node):
                self._expression(node)

    def _add(self, cost: float, at: Any, new: str, kind: str, place: ast.AST | None = None) -> None:
        """Note an edit of a node or a span, in `place`, unless it says 0 or 1 in a roundabout way."""
        start, end = at if isinstance(at, tuple) else self.source.span(at)
        text = self.source.text
        first, last = text.rfind(b"\n", 0, start) + 1, text.find(b"\n", end)
        line = text[first:start].decode() + new + text[end:last].decode()
        if not re.search(r"(?<![\w.])([A-Za-z_][\w.]*)\)* [-/] \(*\1(?![\w.(\[])|\* 0(?![\w.])|(?<![\w.])0 \*", line):
            self.found.append(Edit(cost, start, end, new, kind, place or at))

    def _is_atom(self, node: Any) -> bool:
        """Whether an expression is a name in all but syntax: `cache["x"]`, `self.w`, `x.shape[0]`, `len(x)`."""
        if not isinstance(node, ast.expr) or not self._is_value(node):
            return False
        match node:
            case ast.Subscript(value=ast.Attribute(attr="shape")) | ast.Subscript(slice=ast.Constant(value=str())):
                return True
            case ast.Attribute(value=ast.Name()):
                return node.attr not in ("T", "shape", "dtype", "ndim", "real", "flat")
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"

    def _is_value(self, node: Any) -> bool:
        """Whether an expression is one for its value: no function, no keyword's default, no annotation, no target."""
        if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return False
        child = node
        while child in self.parents:
            parent = self.parents[child]
            if isinstance(parent, ast.Call) and child is parent.func:
                module = self.text(child).split(".")[0] in _MODULE_NAMES
                if child is node or (isinstance(node, ast.Name) and module):
                    return False
            if isinstance(parent, ast.arguments | ast.arg | ast.Assert | ast.Raise | ast.JoinedStr):
                return False
            if isinstance(parent, ast.FunctionDef) and child in (*parent.decorator_list, parent.returns):
                return False
            if isinstance(parent, ast.Attribute) and isinstance(node, ast.Name) and child is node:
                module = isinstance(self.source.function.__globals__.get(node.id), types.ModuleType)
                if module or parent.attr in ("shape", "dtype", "size", "ndim"):
                    return parent.attr in ("shape", "size")
            child = parent
        return True

    def _names(self, node: Any) -> list[str]:
        """The values in scope where `node` stands, those that nobody reads first."""
        found = [name for name, line in self.born.items() if line < node.lineno]
        return sorted(found, key=lambda name: (name not in self.unread, -self.born[name]))

    def _statement(self, node: ast.stmt) -> None:
        match node:
            case ast.AugAssign(target=into, value=value):
                target, text, sign = self.text(into), self.text(value), _OPERATORS.get(type(node.op), "")
                self._add(1, node, f"{target} = {text}", "assignment", value)
                self._add(1, node, f"{target} = {target} {sign} ({text})", "in place", value)
                for other in set("+-*/") - {sign}:
                    self._add(1.2, node, f"{target} {other}= {text}", "operator", value)
                self._add(1.5, node, "pass", "dropped", value)
            case ast.Assign(targets=[ast.Tuple(elts=several)], value=value):
                self._exchanges(several, "order", value, 1.6)
            case ast.Assign(targets=[into], value=value):
                target, text = self.text(into), self.text(value)
                for sign in "+-":
                    self._add(1, node, f"{target} {sign}= {text}", "assignment", value)
                if isinstance(into, ast.Name):
                    self._add(1.2, node, f"{target} = {target} + ({text})", "assignment", value)
                self._add(3, node, "pass", "dropped", value)
            case ast.Return(value=ast.Tuple(elts=several) as value):
                self._exchanges(several, "swapped", value)

    def _exchanges(self, nodes: Sequence[ast.expr], kind: str, place: ast.AST, cost: float = 1) -> None:
        for a, b in itertools.combinations(nodes, 2):
            (start, middle), (other, end) = self.source.span(a), self.source.span(b)
            new = self.text(b) + self.source.text[middle:other].decode() + self.text(a)
            self._add(cost, (start, end), new, kind, place)

    def _expression(self, node: Any) -> None:
        """First what stands there turned, then another name, last a factor or a summand more."""
        text, parent = self.text(node), self.parents[node]
        if isinstance(parent, ast.keyword) and parent.arg in ("axis", "keepdims", "dim", "dtype"):
            return
        match node:
            case ast.Constant() if type(node.value) in (int, float):
                self._number(node, parent)
                return
            case ast.Tuple() | ast.List() | ast.Dict() | ast.Slice() | ast.JoinedStr() | ast.Constant():
                return
            case ast.UnaryOp(op=ast.USub() | ast.Invert()):
                self._add(1, node, f"({self.text(node.operand)})", "sign")
            case ast.BinOp() if type(node.op) in _OPERATORS:
                self._operator(node, _OPERATORS[type(node.op)])
            case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
                for sign in set(_COMPARISONS.values()) - {_COMPARISONS[type(op)]}:
                    self._add(1, node, f"{self.text(node.left)} {sign} {self.text(node.comparators[0])}", "comparison")
            case ast.Call():
                self._call(node)
            case ast.Attribute(attr="T"):
                self._add(1, node, self.text(node.value), "transposed")
            case ast.Subscript(value=value):
                self._add(1.6, node, self.text(value), "index")
                self._add(1.7, node, f"{self.text(value)}.sum(axis=0)", "not summed")
        names, counts = self._names(node), self.counts
        if isinstance(node, ast.Name) or self._is_atom(node):
            for rank, name in enumerate(names):
                if name != text:
                    self._add(1.3 + rank / 100, node, name, "wrong name")
            for cost, form, kind in _NAMED:
                self._add(cost, node, form.format(text), kind)
        index = isinstance(parent, ast.Subscript) and node is parent.slice
        if index or isinstance(parent, ast.Compare) or (isinstance(parent, ast.Attribute) and parent.attr == "shape"):
            return
        assigned = isinstance(parent, ast.Assign | ast.AugAssign) and node is parent.value
        head = assigned or isinstance(parent, ast.Return | ast.Tuple | ast.Dict)
        where = "h" * head + "o" * (head or isinstance(parent, ast.BinOp)) + "c" * isinstance(parent, ast.Call)
        where += "a" * isinstance(parent, ast.Attribute) + "u" * isinstance(parent, ast.UnaryOp)
        for cost, form, kind, places in _AROUND:
            if set(where) & set(places):
                self._add(cost, node, form.format(text), kind)
        for rank, name in enumerate([*names, *[c for c in counts if c not in names]] if where else []):
            cost = 2.4 + rank / 50 - 0.7 * (name in self.unread) - 0.3 * head
            for sign, more in (("*", 0.0), ("/", 0.1), ("+", 0.2), ("-", 0.2), ("@", 0.4)):
                new = f"({text} {sign} {name})" if _tight(node, sign) else f"(({text}) {sign} {name})"
                self._add(cost + more, node, new, "factor" if sign in "*/@" else "term")
            for form in _DERIVATIVES:
                self._add(3.2 + rank / 50, node, f"(({text}) * ({form.format(name)}))", "factor")

    def _operator(self, node: ast.BinOp, sign: str) -> None:
        (_, start), (end, _) = self.source.span(node.left), self.source.span(node.right)
        at = start + self.source.text[start:end].index(sign.encode())
        for other in _OTHERS[sign].replace("", " ").split():
            kind = "sign" if sign + other in ("+-", "-+") else "operator"
            self._add(1.15 if sign in "+-" and other == "*" else 1, (at, at + len(sign)), other, kind, node)
        left, right, text = self.text(node.left), self.text(node.right), self.text(node)
        names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        for name in {name for name in names if names.count(name) > 1}:
            for rank, other in enumerate(self._names(node)):
                if other != name:
                    self._add(1.6 + rank / 50, node, re.sub(rf"\b{name}\b", other, text), "wrong name")
        head, tail = "", [node]
        if isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mult) and sign == "*":
            head, tail = f"{self.text(node.left.left)} * ", [node.left.right, node.right]  # type: ignore[list-item]
            self._add(1.5, node, f"({head[:-3]})", "factor")
        alone = {n.id for part in tail for n in ast.walk(part) if isinstance(n, ast.Name) and n.id != "np"}
        for form in _DERIVATIVES if len(alone) == 1 else ():
            self._add(2, node, f"({head}({form.format(*alone)}))", "wrong formula")
        kind = "term" if sign in "+-" else "power" if sign == "**" else "factor"
        self._add(1.05, node, f"({left})", kind)
        if sign != "**":
            self._add(1.05, node, f"(-({right}))" if sign == "-" else f"({right})", kind)
        if sign in "-/@**":
            self._add(1.1, node, f"(({right}) {sign} ({left}))", "order")
        for form in ("(({1}).T @ ({0}))", "(({1}) @ ({0}).T)", "(({1}).T @ ({0}).T)") if sign == "@" else ():
            self._add(1.2, node, form.format(left, right), "order")

    def _number(self, node: ast.Constant, parent: ast.AST) -> None:
        value: Any = node.value
        near = [str(value + 1), str(value - 1), str(-value)] if value else ["1", "-1"]
        for rank, number in enumerate(dict.fromkeys([*near, *_NUMBERS])):
            idle = isinstance(parent, ast.BinOp) and number == str(int(not isinstance(parent.op, ast.Add | ast.Sub)))
            if number != self.text(node) and not idle:
                bare = not number.startswith("-") or isinstance(parent, ast.Subscript | ast.Call)
                self._add(1 + rank / 50, node, number if bare else f"({number})", "constant")
        for rank, name in enumerate([*self._names(node), *self.counts]):
            self._add(1.7 + rank / 50, node, name, "constant")

    def _call(self, node: ast.Call) -> None:
        (_, end), method = self.source.span(node.func), isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for kin in _KIN if method else ():
            for other in [other for other in kin if name in kin and other != name]:
                kind = "sum for mean" if {name, other} == {"sum", "mean"} else "call"
                self._add(1, (end - len(name.encode()), end), other, kind, node)
        arguments, first = node.args[1:], self.text(node.args[0]) if node.args else ""
        if isinstance(node.func, ast.Attribute) and self.text(node.func.value) not in _MODULE_NAMES:
            arguments, first = node.args, self.text(node.func.value)
        if name in _REDUCTIONS:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            axis = arguments[0] if arguments else given.get("axis") or given.get("dim")
            close = self.source.span(node)[1] - 1
            more = ", " if node.args or node.keywords else ""
            if axis is None:
                for rank, new in enumerate(_AXES.split(";")):
                    self._add(1.1 + rank / 50, (close, close), f"{more}axis={new}", "wrong axis", node)
                    self._add(1.3 + rank / 50, (close, close), f"{more}axis={new}, keepdims=True", "wrong axis", node)
            else:
                names = [name for name in ("axis", "axes", "dims") if name in self._names(node)]
                for rank, new in enumerate([*names, *_AXES.split(";")]):
                    if new != self.text(axis):
                        self._add(1 + rank / 50, self.source.span(axis), new, "wrong axis", node)
            if "keepdims" in given:
                keep = given["keepdims"]
                self._add(1, self.source.span(keep), str(self.text(keep) != "True"), "wrong axis", node)
            else:
                self._add(1, (close, close), f"{more}keepdims=True", "wrong axis", node)
        if first:
            self._add(1.2, node, f"({first})", "precision" if name in ("astype", "round", "float32") else "call")
        self._exchanges(node.args, "order", node)


def _tight(node: ast.AST, sign: str) -> bool:
    """Whether an operand needs no brackets before this sign."""
    if not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.IfExp | ast.BoolOp | ast.Lambda):
        return True
    return isinstance(node, ast.BinOp) and (
        sign in "+-" or isinstance(node.op, ast.Mult | ast.Div | ast.MatMult | ast.Pow)
    )
