"""What an author's functions can change beside their arguments, put back as it was when they have been judged."""

import inspect
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .frameworks import seeded
from .harmless import harmless
from .pure import Kept
from .source import framework

_METHODS = (staticmethod, classmethod, types.MethodType)
_CONTAINERS = (list, tuple, set, dict, defaultdict, OrderedDict, Counter, deque)
_ABSENT = object()


class Outside:
    """The globals, closures and attributes that functions of an author's modules mention, with what those hold."""

    def __init__(self, targets: Iterable[Any]) -> None:
        self.names = dict[tuple[int, str], tuple[dict[str, Any], Any]]()
        self.cells = list[tuple[Any, Any]]()
        self.classes = list[tuple[type, dict[str, Any]]]()
        contents, seen, left = list[Any](), dict[int, Any](), list(targets)
        self.homes = {getattr(inspect.unwrap(t) if callable(t) else type(t), "__module__", "") for t in left}
        while left:
            value = left.pop()
            if id(value) not in seen:
                seen[id(value)] = value
                left += self._inside(value, contents)
        self.kept = Kept(contents)

    def _inside(self, value: Any, contents: list[Any]) -> list[Any]:
        """What a value leads to; what of it can be written to joins the names, cells, classes or `contents`."""
        own = getattr(value if isinstance(value, type | types.FunctionType) else type(value), "__module__", "")
        if isinstance(value, _METHODS):
            return [value.__func__, getattr(value, "__self__", None)]
        if isinstance(value, property):
            return [value.fget, value.fset]
        if type(value) in _CONTAINERS:
            contents += [] if isinstance(value, tuple) else [value]
            return [*value.values()] if isinstance(value, dict) else [*value]
        torch: Any = framework("torch")
        tensor = torch is not None and isinstance(value, torch.Tensor) and value.layout == torch.strided
        if type(value) is np.ndarray or tensor:
            contents.append(value)
        if own not in self.homes:
            return []
        if isinstance(value, types.FunctionType):
            return self._function(value, contents)
        if isinstance(value, type):
            self.classes.append((value, dict(vars(value))))
            return [*vars(value).values()]
        contents.append(getattr(value, "__dict__", {}))
        return [type(value), *getattr(value, "__dict__", {}).values()]

    def _function(self, function: types.FunctionType, contents: list[Any]) -> list[Any]:
        contents.append(function.__dict__)
        space = function.__globals__
        mentioned = {name for code in _codes(function.__code__) for name in code.co_names}
        for name in mentioned:
            self.names[id(space), name] = space, space.get(name, _ABSENT)
        filled = [cell for cell in function.__closure__ or () if cell != types.CellType()]
        self.cells += [(cell, cell.cell_contents) for cell in filled]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        held = [cell.cell_contents for cell in filled]
        return [*function.__dict__.values(), *defaults, *held, *[space.get(name) for name in mentioned]]

    def restore(self) -> None:
        """Make it all as it was."""
        for (_, name), (space, before) in self.names.items():
            if before is _ABSENT:
                space.pop(name, None)
            elif space.get(name, _ABSENT) is not before:
                space[name] = before
        for cell, before in self.cells:
            cell.cell_contents = before
        for cls, attributes in self.classes:
            for name, before in attributes.items():
                if vars(cls).get(name) is not before:
                    setattr(cls, name, before)
            for name in [name for name in vars(cls) if name not in attributes and not name.startswith("__")]:
                delattr(cls, name)
        self.kept.restore()


def _codes(code: types.CodeType) -> list[types.CodeType]:
    return [code, *[c for inner in code.co_consts if isinstance(inner, types.CodeType) for c in _codes(inner)]]


@contextmanager
def as_it_was(*targets: Any) -> Iterator[None]:
    """Put back afterwards what functions, classes and objects of an author's changed beside arguments; no files."""
    outside = Outside(targets)
    try:
        with harmless(), seeded(targets[0]), np.errstate(all="ignore"):
            yield
    finally:
        outside.restore()
