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
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from ...engine.node import Array
from .verdict import Repair

Backward = Callable[..., Any]
Gradients = dict[str, Array]


class NoSearch(Exception):
    """Why the code isn't edited."""


class Clock:
    """The budget of a check: seconds of computing, and half as many more that pass, where others compute too."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, (thread_time(), perf_counter())

    def spent(self) -> float:
        """The share of the budget that is gone."""
        computed, passed = thread_time() - self.started[0], perf_counter() - self.started[1]
        return max(computed, passed / 1.5) / self.seconds if self.seconds > 0 else np.inf


@dataclass
class Trial:
    """One run to try edits on: what a backward pass returns in it, which is right, and which of its steps are."""

    gradients: Callable[[Backward], Gradients | None]
    right: Callable[[str, Array], bool]
    steps: Callable[[Backward], dict[str, bool]]

    def passed(self, backward: Backward) -> set[str]:
        """The names of the gradients that come out right."""
        return {name for name, g in (self.gradients(backward) or {}).items() if self.right(name, g)}


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
        self.indent = len(lines[skipped]) - len(lines[skipped].lstrip())
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


def search(
    source: Any, rebuild: Callable[[Any], Backward], trials: Sequence[Trial], order: Sequence[str], clock: Clock
) -> list[Repair]:
    """For each wrong gradient the smallest edit that makes it right in every trial and leaves the others right.

    `NoSearch` where the code can't be edited, or must not be run many times.
    """
    workshop, wrong = Workshop(source, rebuild), set(order)
    before = trials[0].gradients(workshop.backward)
    if before is None and trials[0].gradients(rebuild(source)) is not None:
        raise NoSearch("its source does not run by itself")
    fixed = trials[0].passed(workshop.backward) - wrong
    steps = trials[-1].steps(workshop.backward) if before is not None else {}
    found, spare = Repairs(), Repairs()
    tried: set[bytes] = set()
    for owner, edit in workshop.touching(trials[0], before, wrong, fixed, clock):
        if clock.spent() > 1 or edit.cost >= min(found.price(wrong), 1.5 + spare.price(wrong)):
            break
        text = owner.edited(edit)
        if text in tried:
            continue
        tried.add(text)
        with workshop.with_text(owner, text) as backward:
            if backward is None:
                continue
            passed = trials[0].passed(backward)
            for trial in trials[1:]:
                if not fixed <= passed or edit.cost >= found.price(passed & wrong):
                    break
                passed &= trial.passed(backward)
            if fixed <= passed and edit.cost < found.price(passed & wrong):
                # One that leaves a step wrong, or makes one wrong, makes up for a slip that stands elsewhere.
                now = trials[-1].steps(backward) if steps else {}
                kept = found if all(now.get(name) for name in steps) else spare
                mended = [name for name in order if name in passed]
                if edit.cost < kept.price(set(mended)):
                    kept.update(dict.fromkeys(mended, (edit.cost, owner.repair(edit, tuple(mended)))))
    return list(dict.fromkeys(repair for _, repair in {**spare, **found}.values()))


class Repairs(dict[str, tuple[float, Repair]]):
    """The cheapest edits found: for each gradient its edit and what that costs, which one edit of several shares."""

    def price(self, names: set[str]) -> float:
        """What the edits for these gradients cost together: the next must be cheaper."""
        if not names <= set(self):
            return math.inf
        return sum({self[name][1]: self[name][0] for name in names}.values())


def take_apart(backward: Any) -> tuple[Any, Callable[[Any], Backward]]:
    """A callable's plain function, and what makes the callable of such a function again."""
    if isinstance(backward, types.MethodType):
        owner = backward.__self__  # with what forward has left in it
        return backward.__func__, lambda function: lambda *args: function(copy.deepcopy(owner), *args)
    return inspect.unwrap(backward), lambda edited: edited


class Workshop:
    """Copies of a backward function and its helpers, which can be replaced by edited ones."""

    def __init__(self, function: Any, rebuild: Callable[[Any], Backward]) -> None:
        self.rebuild = rebuild
        self.sources = [Source(function)]
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
        self.backward = rebuild(self.space[function.__name__])
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
        self, trial: Trial, before: Gradients | None, wrong: set[str], fixed: set[str], clock: Clock
    ) -> Iterator[tuple[Source, Edit]]:
        """Edits, the cheapest first, at the places that reach a wrong gradient and none that is right."""
        edits = [(source, edit) for source in self.sources for edit in candidates(source)]
        reaches: dict[tuple[int, int, int], bool] = {}
        for source, edit in sorted(edits, key=lambda pair: (pair[1].cost, -pair[1].start)):
            start, end = source.span(edit.place)
            key = (self.sources.index(source), start, end)
            if key not in reaches and clock.spent() < 1:
                reaches[key] = before is None or self._reaches(source, start, end, trial, before, wrong, fixed)
            if reaches.get(key):
                yield source, edit

    def _reaches(
        self, source: Source, start: int, end: int, trial: Trial, before: Gradients, wrong: set[str], fixed: set[str]
    ) -> bool:
        """Whether moving the value of an expression moves a wrong gradient, and none that is right."""
        moved = []

        def move(value: Any) -> Any:
            if isinstance(value, float) or "float" in str(getattr(value, "dtype", "")):
                moved.append(True)
                return value * 1.3 + 0.1
            return value

        self.space["_move"] = move
        text = self.text_around(source, start, end)
        with self.with_text(source, text) as backward:
            after = None if backward is None else trial.gradients(backward)
        if not moved or after is None:
            return True
        changed = {n for n in before if n not in after or not np.array_equal(before[n], after[n], equal_nan=True)}
        return bool(changed & wrong) and not changed & fixed

    def text_around(self, source: Source, start: int, end: int) -> bytes:
        """The text with one expression handed through `_move`."""
        return source.text[:start] + b"_move(" + source.text[start:end] + b")" + source.text[end:]


_MODULES = {"numpy", "math", "torch", "jax", "scipy", "operator", "functools", "itertools"}
_BUILTINS = set("len range float int abs sum max min zip enumerate tuple list dict slice pow reversed sorted".split())
_BUILTINS |= set(
    "isinstance getattr hasattr print bool set round map super ValueError TypeError NotImplementedError".split()
)
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
_KIN = [
    ("sum", "mean", "cumsum"), ("max", "min"), ("argmax", "argmin"), ("maximum", "minimum"), ("exp", "log", "expm1"),
    ("sin", "cos", "-np.sin"), ("sinh", "cosh"), ("sqrt", "square"), ("zeros_like", "ones_like"), ("zeros", "ones"),
    ("var", "std"), ("tanh", "cosh"), ("log", "log1p"), ("abs", "sign"), ("dot", "multiply"), ("add", "subtract"),
    ("matmul", "multiply"), ("subtract.at", "add.at"), ("tril", "triu"), ("floor", "ceil"),
]  # fmt: skip
_NUMBERS = ("0", "1", "2", "0.5", "3", "-1", "-2", "1.5", "-0.5", "-1.5", "4", "0.25", "6")
_AXES = ["0", "1", "-1", "2", "None", "-2"]
_AXES += [
    "(0, 1)",
    "(0, 2)",
    "(1, 2)",
    "(0, 2, 3)",
    "(0, 1, 2)",
    "(2, 3)",
    "(1, 2, 3)",
    "(3, 4)",
    "(2, 3, 4)",
    "(1, 2, 3, 4)",
]
# Factors that derivatives have, in terms of a value at hand.
_DERIVATIVES = [
    f"({form})"
    for form in ("1 - {0}**2", "{0} * (1 - {0})", "{0} > 0", "1 - {0}", "{0}**2", "1 + {0}", "1 / {0}", "np.exp({0})")
]


def _idle(text: str) -> bool:
    """Whether an expression says in a roundabout way what is 0 or 1: `a - a`, `a / a`, `a * 0`."""
    same = re.search(r"(?<![\w.])([A-Za-z_][\w.]*)\)* [-/] \(*\1(?![\w.(\[])", text)
    return bool(same) or bool(re.search(r"\* 0(?![\w.])|(?<![\w.])0 \*", text))


def candidates(source: Source) -> Iterator[Edit]:
    """Every small edit of a function, each with its cost: about how many of its kind one would try first."""
    parents = {child: node for node in ast.walk(source.tree) for child in ast.iter_child_nodes(node)}
    scope = Scope(source, parents)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.stmt):
            yield from _statement_edits(source, node, scope)
        elif isinstance(node, ast.expr) and scope.is_value(node):
            for edit in _expression_edits(source, node, parents, scope):
                first, last = source.text.rfind(b"\n", 0, edit.start) + 1, source.text.find(b"\n", edit.end)
                around = source.text[first : edit.start].decode(), source.text[edit.end : last].decode()
                if not _idle(around[0] + edit.new + around[1]):
                    yield edit


class Scope:
    """The values that an expression of a function may name."""

    def __init__(self, source: Source, parents: dict[ast.AST, ast.AST]) -> None:
        self.source, self.parents = source, parents
        code = source.function.__code__
        space = source.function.__globals__
        self.parameters = list(code.co_varnames[: code.co_argcount])
        self.born: dict[str, int] = dict.fromkeys(self.parameters, 0)
        self.counts: list[str] = []
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.born[node.id] = min(node.lineno, self.born.get(node.id, node.lineno))
            elif isinstance(node, ast.Name) and isinstance(space.get(node.id), int | float | np.ndarray):
                self.born.setdefault(node.id, 0)
            elif isinstance(node, ast.expr) and self.is_atom(node):
                self.born.setdefault(source.segment(node), node.lineno)
        for name in code.co_freevars:
            self.born.setdefault(name, 0)
        loads = [n.id for n in ast.walk(source.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
        self.unread = {name for name in self.born if name.isidentifier() and name not in loads}
        self.counts = [f"{p}.shape[{i}]" for p in self.parameters[:1] for i in (0, -1)] if self.parameters else []

    def is_atom(self, node: ast.AST) -> bool:
        """Whether an expression is a name in all but syntax: `cache["x"]`, `self.w`, `x.shape[0]`, `len(x)`."""
        if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load) or not self.is_value(node):
            return False
        if isinstance(node, ast.Subscript):
            shape = isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
            return shape or (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str))
        if isinstance(node, ast.Attribute):
            return isinstance(node.value, ast.Name) and node.attr not in ("T", "shape", "dtype", "ndim", "real", "flat")
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "len"

    def is_value(self, node: Any) -> bool:
        """Whether an expression is one for its value: no function, no keyword's default, no annotation, no target."""
        if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return False
        child = node
        while child in self.parents:
            parent = self.parents[child]
            if isinstance(parent, ast.Call) and child is parent.func:
                module = self.source.segment(child).startswith(("np.", "numpy.", "math.", "torch.", "jnp."))
                if child is node or (isinstance(node, ast.Name) and module):
                    return False
            if isinstance(parent, ast.arguments | ast.arg | ast.Assert | ast.Raise | ast.JoinedStr):
                return False
            if isinstance(parent, ast.FunctionDef) and child in (*parent.decorator_list, parent.returns):
                return False
            if isinstance(parent, ast.Attribute) and isinstance(node, ast.Name) and child is node:
                module = self.source.function.__globals__.get(node.id)
                if isinstance(module, types.ModuleType) or parent.attr in ("shape", "dtype", "size", "ndim"):
                    return parent.attr in ("shape", "size")
            child = parent
        return True

    def names(self, node: Any) -> list[str]:
        """The values in scope where `node` stands, those that nobody reads first."""
        found = [name for name, line in self.born.items() if line < node.lineno]
        return sorted(found, key=lambda name: (name not in self.unread, -self.born[name]))


def _edit(cost: float, span: tuple[int, int], new: str, kind: str, place: ast.AST) -> Edit:
    return Edit(cost, *span, new, kind, place)


def _statement_edits(source: Source, node: ast.stmt, scope: Scope) -> Iterator[Edit]:
    span = source.span(node)
    if isinstance(node, ast.AugAssign):
        target, value = source.segment(node.target), source.segment(node.value)
        sign = _OPERATORS.get(type(node.op), "")
        yield _edit(1, span, f"{target} = {value}", "assignment", node.value)
        yield _edit(1, span, f"{target} = {target} {sign} ({value})", "in place", node.value)
        for other in "+-*/":
            if other != sign:
                yield _edit(1.2, span, f"{target} {other}= {value}", "operator", node.value)
        yield _edit(1.5, span, "pass", "dropped", node.value)
    elif isinstance(node, ast.Assign) and len(node.targets) == 1:
        (target_node,) = node.targets
        target, value = source.segment(target_node), source.segment(node.value)
        if isinstance(target_node, ast.Name | ast.Subscript | ast.Attribute):
            for sign in "+-":
                yield _edit(1, span, f"{target} {sign}= {value}", "assignment", node.value)
            if isinstance(target_node, ast.Name):
                yield _edit(1.2, span, f"{target} = {target} + ({value})", "assignment", node.value)
            yield _edit(3, span, "pass", "dropped", node.value)
        elif isinstance(target_node, ast.Tuple) and len(target_node.elts) > 1:
            yield from _exchanges(source, target_node.elts, "order", node.value, 1.6)
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
        yield from _exchanges(source, node.value.elts, "swapped", node.value)


def _exchanges(source: Source, nodes: Sequence[ast.expr], kind: str, place: ast.AST, cost: float = 1) -> Iterator[Edit]:
    for a, b in itertools.combinations(nodes, 2):
        (start, middle), (other, end) = source.span(a), source.span(b)
        between = source.text[middle:other].decode()
        yield _edit(cost, (start, end), source.segment(b) + between + source.segment(a), kind, place)


def _expression_edits(source: Source, node: Any, parents: dict[ast.AST, ast.AST], scope: Scope) -> Iterator[Edit]:
    """Edits at one expression: first what stands there turned, then another name, last a factor or a summand more."""
    span, text, parent = source.span(node), source.segment(node), parents[node]
    if isinstance(parent, ast.keyword) and parent.arg in ("axis", "keepdims", "dim", "dtype"):
        return
    if isinstance(node, ast.Tuple | ast.List | ast.Dict | ast.Slice | ast.JoinedStr):
        return
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield _edit(1, span, f"({source.segment(node.operand)})", "sign", node)
    elif isinstance(node, ast.BinOp):
        yield from _operator_edits(source, node, span, scope)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS:
        left, right = source.segment(node.left), source.segment(node.comparators[0])
        for sign in _COMPARISONS.values():
            if sign != _COMPARISONS[type(node.ops[0])]:
                yield _edit(1, span, f"{left} {sign} {right}", "comparison", node)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield from _number_edits(source, node, span, parent, scope)
        return
    elif isinstance(node, ast.Call):
        yield from _call_edits(source, node, span, scope)
    elif isinstance(node, ast.Attribute) and node.attr == "T":
        yield _edit(1, span, source.segment(node.value), "transposed", node)
    elif isinstance(node, ast.Subscript):
        yield _edit(1.6, span, source.segment(node.value), "index", node)
        yield _edit(1.7, span, f"{source.segment(node.value)}.sum(axis=0)", "not summed", node)
        inner = node.value
        if isinstance(inner, ast.Call):  # a reduction over another axis, brought into shape
            start, end = source.span(inner)
            for edit in _call_edits(source, inner, (start, end), scope):
                if edit.kind == "wrong axis":
                    call = source.text[start : edit.start].decode() + edit.new + source.text[edit.end : end].decode()
                    yield _edit(edit.cost + 0.5, span, call, "wrong axis", node)
        if isinstance(node.slice, ast.Slice) and not isinstance(parent, ast.Assign):
            yield from [
                _edit(1.5, span, f"{source.segment(node.value)}[{s}]", "index", node)
                for s in (":-1", "1:", "::-1", "::2", ":", "-1", "0")
            ]
    if isinstance(node, ast.Constant):
        return
    head = (isinstance(parent, ast.Assign | ast.AugAssign) and node is parent.value) or (
        isinstance(parent, ast.Return | ast.Tuple | ast.Dict)
    )
    operand = isinstance(parent, ast.BinOp) or head
    in_index = isinstance(parent, ast.Subscript) and node is parent.slice
    if isinstance(node, ast.Name) or scope.is_atom(node):
        for rank, name in enumerate(scope.names(node)):
            if name != text:
                yield _edit(1.3 + rank / 100, span, name, "wrong name", node)
        yield _edit(1.4, span, f"({text} - 1)", "constant", node)
        yield _edit(1.8, span, f"({text} + 1)", "constant", node)
        yield _edit(1.9, span, f"(1 - {text})", "complement", node)
        yield _edit(1.9, span, f"{text}**2", "power", node)
    if in_index or isinstance(parent, ast.Compare) or (isinstance(parent, ast.Attribute) and parent.attr == "shape"):
        return
    if head or isinstance(parent, ast.Call):
        yield _edit(1.1, span, f"-({text})", "sign", node)
    if operand or isinstance(parent, ast.Call | ast.Attribute):
        yield _edit(1.4, span, f"({text}).T", "transposed", node)
    if operand:
        for rank, (axis, keep) in enumerate(itertools.product(("0", "1", "-1", None, "(0, 1)", "(0, 2, 3)"), (0, 1))):
            if axis is not None or not keep:
                inside = f"axis={axis}{', keepdims=True' * keep}" if axis else ""
                yield _edit(2 + rank / 20, span, f"({text}).sum({inside})", "not summed", node)
        for f in ("exp", "sqrt", "abs", "sign", "log", "cos", "tanh"):
            yield _edit(3.5, span, f"np.{f}({text})", "call", node)
    if operand or isinstance(parent, ast.Call):
        for index in ("[:, None]", "[None, :]", "[::-1]"):
            yield _edit(3, span, f"({text}){index}", "index", node)
    mask = isinstance(parent, ast.Call | ast.Attribute) or operand or isinstance(parent, ast.UnaryOp)
    if mask:
        names = scope.names(node)
        extra = [*names, *[c for c in scope.counts if c not in names]]
        for rank, name in enumerate(extra):
            for sign, more in (("*", 0.0), ("/", 0.1), ("+", 0.2), ("-", 0.2), ("@", 0.4)):
                unread = -0.7 if name in scope.unread else 0
                new = f"({text} {sign} {name})" if _tight(node, sign) else f"(({text}) {sign} {name})"
                yield _edit(
                    2.4 + more + rank / 50 + unread - 0.3 * head, span, new, "factor" if sign in "*/@" else "term", node
                )
            for form in _DERIVATIVES:
                yield _edit(3.2 + rank / 50, span, f"(({text}) * {form.format(name)})", "factor", node)
        for constant in ("2", "0.5", "3"):
            yield _edit(2.2, span, f"({constant} * ({text}))", "constant", node)
        yield _edit(2.3, span, f"(1 - ({text}))", "complement", node)
        yield _edit(3.4, span, f"(1 + ({text}))", "term", node)


def _tight(node: ast.AST, sign: str) -> bool:
    """Whether an operand needs no brackets before this sign."""
    if not isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.IfExp | ast.BoolOp | ast.Lambda):
        return True
    return isinstance(node, ast.BinOp) and (
        sign in "+-" or isinstance(node.op, ast.Mult | ast.Div | ast.MatMult | ast.Pow)
    )


def _names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id != "np"}


def _operator_edits(source: Source, node: ast.BinOp, span: tuple[int, int], scope: Scope) -> Iterator[Edit]:
    sign = _OPERATORS.get(type(node.op))
    if sign is None:
        return
    left_end, right_start = source.span(node.left)[1], source.span(node.right)[0]
    between = source.text[left_end:right_start].decode()
    at = left_end + len(between[: between.index(sign)].encode())
    for other in _OTHERS[sign].replace("", " ").split():
        cost = 1.15 if sign in "+-" and other == "*" else 1
        yield _edit(cost, (at, at + len(sign)), other, "sign" if sign + other in ("+-", "-+") else "operator", node)
    left, right = source.segment(node.left), source.segment(node.right)
    names = _names_in(node)
    for name in names:
        for rank, other in enumerate(scope.names(node)):
            if other != name and sum(n.id == name for n in ast.walk(node) if isinstance(n, ast.Name)) > 1:
                yield _edit(
                    1.6 + rank / 50, span, re.sub(rf"\b{name}\b", other, source.segment(node)), "wrong name", node
                )
    chained = isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mult) and sign == "*"
    head = source.segment(node.left.left) if chained else ""  # type: ignore[attr-defined]
    if chained:
        yield _edit(1.5, span, f"({head})", "factor", node)
    tail = [node.left.right, node.right] if chained else [node]  # type: ignore[attr-defined]
    alone = set().union(*map(_names_in, tail))
    for form in _DERIVATIVES if len(alone) == 1 else ():
        yield _edit(2, span, f"({head + ' * ' * bool(head)}{form.format(*alone)})", "wrong formula", node)
    kind = "term" if sign in "+-" else "power" if sign == "**" else "factor"
    yield _edit(1.05, span, f"({left})", kind, node)
    if sign != "**":
        yield _edit(1.05, span, f"(-({right}))" if sign == "-" else f"({right})", kind, node)
    if sign in "-/@**":
        yield _edit(1.1, span, f"(({right}) {sign} ({left}))", "order", node)
    if sign == "@":
        yield _edit(1.2, span, f"(({right}).T @ ({left}))", "order", node)
        yield _edit(1.3, span, f"(({right}) @ ({left}).T)", "order", node)
        yield _edit(1.3, span, f"(({right}).T @ ({left}).T)", "order", node)


def _number_edits(
    source: Source, node: ast.Constant, span: tuple[int, int], parent: ast.AST, scope: Scope
) -> Iterator[Edit]:
    value: Any = node.value
    near = [str(value + 1), str(value - 1), str(-value)] if value else ["1", "-1"]
    for rank, number in enumerate(dict.fromkeys([*near, *_NUMBERS])):
        idle = isinstance(parent, ast.BinOp) and number == str(int(not isinstance(parent.op, ast.Add | ast.Sub)))
        if number != source.segment(node) and not idle:
            new = (
                f"({number})" if number.startswith("-") and not isinstance(parent, ast.Subscript | ast.Call) else number
            )
            yield _edit(1 + rank / 50, span, new, "constant", node)
    for rank, name in enumerate([*scope.names(node), *scope.counts]):
        yield _edit(1.7 + rank / 50, span, name, "constant", node)


def _call_edits(source: Source, node: ast.Call, span: tuple[int, int], scope: Scope) -> Iterator[Edit]:
    function = source.span(node.func)
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    is_method = isinstance(node.func, ast.Attribute) and source.segment(node.func.value) not in (
        "np",
        "numpy",
        "torch",
        "jnp",
    )
    for kin in _KIN:
        if name in kin:
            for other in kin:
                if other != name and isinstance(node.func, ast.Attribute):
                    start = function[1] - len(name.encode())
                    kind = "sum for mean" if {name, other} == {"sum", "mean"} else "call"
                    yield _edit(1, (start, function[1]), other, kind, node)
    first = source.segment(node.func.value) if is_method else source.segment(node.args[0]) if node.args else ""  # type: ignore[attr-defined]
    if name in _REDUCTIONS:
        arguments = node.args if is_method else node.args[1:]
        given = {keyword.arg: keyword for keyword in node.keywords}
        named = given.get("axis") or given.get("dim")
        axis = arguments[0] if arguments else named.value if named else None
        end = span[1] - 1
        more = ", " if node.args or node.keywords else ""
        if axis is None:
            for rank, new in enumerate(_AXES):
                yield _edit(1.1 + rank / 50, (end, end), f"{more}axis={new}", "wrong axis", node)
                yield _edit(1.3 + rank / 50, (end, end), f"{more}axis={new}, keepdims=True", "wrong axis", node)
        else:
            names = [name for name in ("axis", "axes", "dims") if name in scope.names(node)]
            for rank, new in enumerate([*names, *_AXES]):
                if new != source.segment(axis):
                    yield _edit(1 + rank / 50, source.span(axis), new, "wrong axis", node)
        if "keepdims" in given:
            turned = "False" if source.segment(given["keepdims"].value) == "True" else "True"
            yield _edit(1, source.span(given["keepdims"].value), turned, "wrong axis", node)
        else:
            yield _edit(1, (end, end), f"{more}keepdims=True", "wrong axis", node)
    if first:
        yield _edit(1.2, span, f"({first})", "precision" if name in ("astype", "round", "float32") else "call", node)
    for a, b in itertools.combinations(node.args, 2):
        yield from _exchanges(source, [a, b], "order", node)
