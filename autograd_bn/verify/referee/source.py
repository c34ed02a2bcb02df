"""The text of a function, its syntax, and what it reads from outside."""

import ast
import copy
import inspect
import itertools
import linecache
import re
import sys
import textwrap
import types
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

GUARD = 1.1e-5  # the largest number that keeps a logarithm or a division finite, and is meant for nothing else


def framework(name: str) -> Any:
    """PyTorch or JAX if it has been imported, whole; None where something else has that name or stands in its place."""
    module = sys.modules.get(name)
    known = getattr(module, "__spec__", None) is not None
    return module if known and hasattr(module, "autograd" if name == "torch" else "custom_vjp") else None


def file_of(function: Any) -> str:
    """The file in which a function stands; nothing where that isn't known."""
    return str(getattr(getattr(unwrapped(function), "__code__", None), "co_filename", ""))


def unwrapped(function: Any) -> Any:
    """The function inside of decorators, of those too that leave no word of it but take `*args` in its place."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & inspect.CO_VARARGS and code.co_argcount + code.co_kwonlyargcount < 2:
        held = [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]
        return next((unwrapped(value) for value in held if isinstance(value, types.FunctionType)), function)
    return function


def signature(function: Any) -> dict[str, inspect.Parameter]:
    """What a function takes, by name; nothing where that isn't known, as of a function of C."""
    try:
        if inspect.ismethod(function):
            return dict([*inspect.signature(unwrapped(function.__func__)).parameters.items()][1:])
        return dict(inspect.signature(unwrapped(function)).parameters)
    except (TypeError, ValueError):
        return {}


def by_position(function: Any) -> list[inspect.Parameter]:
    """What a function takes by position."""
    return [p for p in signature(function).values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def keywords(function: Any) -> list[str]:
    """What a function must be handed by keyword."""
    return [n for n, p in signature(function).items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]


def handed(function: Any, values: Sequence[Any]) -> Any:
    """What a function returns for the values of its `parameters`, of which the last may be taken by keyword only."""
    rest = len(values) - len(names := keywords(function))
    return function(*values[:rest], **dict(zip(names, values[rest:], strict=True)))


def code_of(function: Any, levels: int = 2) -> str:
    """The text of a function and of those of its file that it calls, without comments."""
    if parts := getattr(function, "parts", ()):
        return "".join([code_of(part, levels) for part in parts])
    try:
        text = re.sub(r'""".*?"""|#[^\n]*', "", inspect.getsource(unwrapped(function)), flags=re.DOTALL)
    except (OSError, TypeError):
        return ""
    space = getattr(unwrapped(function), "__globals__", {})
    called = [space.get(name) for name in unwrapped(function).__code__.co_names] if space and levels else []
    return text + "".join([code_of(f, levels - 1) for f in called if inspect.isfunction(f)])


def syntax(what: Any) -> ast.Module:
    """The syntax of a function or a class; that of nothing where its text isn't there."""
    with suppress(OSError, TypeError, SyntaxError):
        return ast.parse(textwrap.dedent(inspect.getsource(unwrapped(what))))
    return ast.Module([], [])


def guard(function: Any, before: str = r"log\w*\(") -> float:
    """The largest of the small numbers that a function's text adds behind a pattern, as in `log(p + 1e-7)`, or 0."""
    function, numbers = unwrapped(function), [0.0]
    whole = "".join(linecache.getlines(file_of(function)))
    inside = "\n".join(re.findall(rf"{before}(.*)", code_of(function)))
    for word in re.findall(r"\+ *([\d.]+e-\d+|[A-Za-z_][\w.]*)", inside):
        name = re.escape(word.rpartition(".")[2])
        numbers += map(float, re.findall(rf"\b{name} *(?:: *float *)?= *([\d.]+e-\d+|0\.0+1)\b", whole))
        with suppress(ValueError):
            numbers.append(float(word))
    return max([number for number in numbers if number <= GUARD])


class NoSearch(Exception):
    """Why the code isn't edited."""


class Source:
    """A function's text, its syntax, and the values from outside that it reads."""

    def __init__(self, function: Any) -> None:
        self.function = function
        if not isinstance(function, types.FunctionType):
            raise NoSearch("it is no plain function")
        self.file = function.__code__.co_filename
        try:
            lines, first = inspect.getsourcelines(function)
            tree = ast.parse(textwrap.dedent("".join(lines)))
            self.outside = inspect.getclosurevars(function)
        except (OSError, TypeError, ValueError, SyntaxError):
            raise NoSearch("its source is not at hand") from None
        definition: Any = tree.body[0]
        named = isinstance(definition, ast.FunctionDef)
        if not named and not isinstance(getattr(definition, "value", None), ast.Lambda):
            raise NoSearch("its source is not a plain function")
        skipped = definition.lineno - 1  # decorators
        self.first = max(first, 1) + skipped
        self.text = "".join(textwrap.dedent("".join(lines)).splitlines(keepends=True)[skipped:]).encode()
        definition = ast.parse(self.text).body[0]
        self.tree: Any = definition
        self.bare: Any = bare(copy.deepcopy(definition)) if named else definition.value
        # Whether its text can be run as it is: nothing stands in its signature, and nothing is done over and over.
        again = ast.For | ast.While | ast.FunctionDef | ast.Lambda | ast.comprehension
        inner = [node for statement in definition.body for node in ast.walk(statement)] if named else []
        plain = named and ast.dump(self.bare) == ast.dump(definition)
        self.straight = plain and not any(isinstance(node, again) for node in inner)
        self.starts = [0, *itertools.accumulate(map(len, self.text.splitlines(keepends=True)))]

    def span(self, node: Any) -> tuple[int, int]:
        """Where a node's text begins and ends."""
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def segment(self, node: Any) -> str:
        """A node's text."""
        start, end = self.span(node)
        return self.text[start:end].decode()

    def edited(self, start: int, end: int, new: str) -> bytes:
        """The text with other bytes from `start` to `end`."""
        return self.text[:start] + new.encode() + self.text[end:]


def bare(function: Any) -> Any:
    """Take from a function what Python runs where it is defined: decorators, defaults and annotations."""
    arguments = function.args
    function.decorator_list, function.returns = [], None
    nothing = ast.copy_location(ast.Constant(None), function)
    arguments.defaults = [nothing for _ in arguments.defaults]
    arguments.kw_defaults = [default and nothing for default in arguments.kw_defaults]
    for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
        if argument is not None:
            argument.annotation = None
    return function
