"""Files as people have them, run so that what they define can be judged: a script, or a notebook's cells."""

import ast
import contextlib
import importlib
import io
import json
import linecache
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np

from .harmless import ALL, harmless
from .trace import said

SECONDS = 30  # of processor time for running the file; a pair has twice as many
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


class Unreadable(Exception):
    """Why there is nothing to judge in a file; the message is one line."""


class TimeUp(BaseException):
    """Something took too long; no handler of the file's own catches it."""


@dataclass
class Loaded:
    """What a file defines, and what a reader should know of how it ran."""

    space: dict[str, Any]
    notes: list[str] = field(default_factory=list)


class StandIn(ModuleType):
    """In the place of a module, or of something in it, that isn't there.

    As a decorator it leaves alone what it is handed, as a base class it is empty; called on arrays it raises.
    """

    __all__ = ()

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return range if name == "xrange" else StandIn(f"{self.__name__}.{name}")

    def __call__(self, *values: Any, **named: Any) -> Any:
        if len(values) == 1 and not named and callable(values[0]) and not isinstance(values[0], StandIn):
            return values[0]
        if any(hasattr(value, "dtype") for value in [*values, *named.values()]):
            raise ImportError(f"{self.__name__} is called, but {self.__name__.partition('.')[0]} isn't there")
        return StandIn(self.__name__)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        first = next(base for base in bases if isinstance(base, StandIn))
        return (StandInBase,) if first is self else ()

    def __setitem__(self, _: Any, __: Any) -> None:
        return None

    def __instancecheck__(self, _: Any) -> bool:
        return False

    def _refuse(self, *_: Any) -> Any:
        raise ImportError(f"{self.__name__} is used, but {self.__name__.partition('.')[0]} isn't there")

    __iter__ = __len__ = __array__ = __float__ = __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = _refuse
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __neg__ = __getitem__ = _refuse

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: Any) -> None:
        return None


class Package(ModuleType):
    """A folder above the file as a package; its `__init__.py` runs when something in it is asked for."""

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__(name)
        self.__path__, self.__package__, self._waiting = [str(folder)], name, [folder / "__init__.py"]

    def __getattr__(self, name: str) -> Any:
        while not name.startswith("__") and self._waiting and self._waiting[0].is_file():
            first = self._waiting.pop()
            with contextlib.suppress(SyntaxError):
                for statement in ast.parse(first.read_text(encoding="utf-8-sig", errors="replace")).body:
                    with contextlib.suppress(Exception):  # what of it fails, the file may not need
                        exec(compile(ast.Module([statement], []), str(first), "exec"), vars(self))
        if name in vars(self):
            return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class StandInBase:
    """In the place of a base class that isn't there."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def text_of(path: Path) -> str:
    """A file's code: of a notebook, its code cells with a line `# In[n]:` above each; magics become comments."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    if path.suffix == ".ipynb":
        try:
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        except (ValueError, KeyError, TypeError):
            raise Unreadable(f"{path} is no notebook of format 4") from None
        text = "\n\n".join([f"# In[{i}]:\n" + _cell("".join(cell["source"])) for i, cell in enumerate(cells, 1)])
    try:
        ast.parse(text)
    except SyntaxError:
        text = _cell(text)
    return text


def _cell(text: str) -> str:
    """A cell without its magics; one for another language is left out."""
    first = text.lstrip().partition("\n")[0]
    if first.startswith("%%") and not re.match(r"%%(time|timeit|capture|prun)\b", first):
        return re.sub(r"(?m)^", "# ", text)
    return re.sub(r"(?m)^(\s*)([%!?].*|.*[^\s#'\"]\?+)$", r"\1pass  # \2", text)


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes more processor time, or waits four times as long with next to none, where the platform can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    spent = [time.process_time()]

    def stop(sign: int, _: Any) -> None:
        spent.append(time.process_time())
        if sign == signal.SIGPROF or spent[-1] - spent[-2] < seconds / 1000:  # more, on a machine that others keep busy
            raise TimeUp

    clocks = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 4 * seconds))
    # And again, where the file swallows it.
    before = [(signal.signal(sign, stop), signal.setitimer(clock, end, end / 30)) for clock, sign, end in clocks]
    try:
        yield
    finally:
        for (clock, sign, _), (handler, timer) in zip(clocks, before, strict=True):
            signal.setitimer(clock, 0)
            signal.signal(sign, handler)
            signal.setitimer(clock, *timer)


# What ends a process, or puts another program in its place, behind Python's back: each of os.exec* calls one of these.
_DOORS = ("_exit", "execv", "execve")
_ENVIRONMENT = {"MPLBACKEND": "Agg", "NUMBA_DISABLE_JIT": "1"}  # to compile takes longer than all that is run
# What NumPy had until its version 1.24 or 2, and much code still reads.
_OLD: Any = {"float": float, "int": int, "float_": np.float64, "product": np.prod, "Inf": np.inf, "NaN": np.nan}


def _refused(door: str, *arguments: Any) -> None:
    raise SystemExit(f"os.{door}({', '.join(map(repr, arguments[:2]))})")


def _folders(path: Path) -> list[Path]:
    """The file's folder and those above it, up to the root of its project."""
    folders = [path.resolve().parent]
    roots = (".git", "setup.py", "pyproject.toml", "setup.cfg", "requirements.txt")
    while len(folders) < 5 and folders[-1].parent != folders[-1]:
        inner = len(folders) == 1 or (folders[-1] / "__init__.py").exists()
        if not inner and any((folders[-1] / root).exists() for root in roots):
            break
        folders.append(folders[-1].parent)
    return folders


@contextlib.contextmanager
def loaded(path: Path) -> Iterator[Loaded]:
    """What the file defines, with imports as it expects them, from its own folders; nothing of them stays."""
    if not path.is_file():
        raise Unreadable(f"can't read {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    if path.suffix not in (".py", ".ipynb"):
        raise Unreadable(f"{path} ends in {path.suffix!r}, expected a Python file, .py, or a notebook, .ipynb")
    folders, modules = _folders(path), {*sys.modules}
    # In a package imports are meant from above it, where `model.init` isn't something in `model/model.py`.
    ordered = folders[::-1] if (folders[0] / "__init__.py").exists() else folders
    paths = [*map(str, ordered), os.getcwd(), *sys.path]
    doors: Any = {door: partial(_refused, door) for door in _DOORS}
    with (
        patch.multiple(sys, path=paths, dont_write_bytecode=True, argv=[str(path)], stdin=io.StringIO()),
        patch.multiple(os, **doors),
        patch.multiple(np, create=True, **_OLD),
        patch.dict(os.environ, {**_ENVIRONMENT, **os.environ}),
    ):
        try:
            file = _run(path, f"{_packages(path, folders)}.{path.stem}")
            with harmless(ALL):
                yield file
        finally:
            for name in {*sys.modules} - modules:
                home = str(getattr(sys.modules[name], "__file__", None) or "")
                inside = home.startswith(str(folders[-1])) and "site-packages" not in home
                if inside or name.startswith("checked") or isinstance(sys.modules[name], StandIn | Package):
                    del sys.modules[name]


def _packages(path: Path, folders: list[Path]) -> str:
    """Make packages of the folders of a file, of which it is a module; what the one that it stands in is called."""
    imported = re.findall(r"(?m)^\s*(?:from|import) +(\w+)", path.read_text("utf-8", "replace"))
    nearest = {folder.name: folder for folder in folders[-2::-1]}
    for name, folder in nearest.items():  # without __init__.py it would give way to `model/model.py`
        if name in imported and name not in sys.modules and not (folder / "__init__.py").exists():
            sys.modules[name] = Package(name, folder)
    name = ""
    for folder in folders[::-1]:  # all of them, since it may import its neighbours so
        name = f"{name}.{re.sub(r'[^0-9A-Za-z_]', '_', folder.name)}" if name else "checked"
        sys.modules[name] = Package(name, folder)
    return name


def _run(path: Path, name: str) -> Loaded:
    """Run the file statement by statement; after one that fails only definitions and imports are run."""
    notes = list[str]()
    (text, statements), module = _parsed(text_of(path), path, notes), ModuleType(name)
    package = name.rpartition(".")[0]
    module.__dict__.update(__file__=str(path), __package__=package, get_ipython=lambda: _Shell(module.__dict__, path))
    sys.modules[name] = module
    linecache.cache[str(path)] = (len(text), None, [*io.StringIO(text)], str(path))
    file, stopped = Loaded(module.__dict__, notes), ""
    absent: list[str] = []
    with contextlib.suppress(TimeUp), limited(SECONDS):
        for statement in statements:
            named = isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
            if stopped and not (isinstance(statement, _DEFINES) or named):
                continue
            try:
                _execute(statement, str(path), module.__dict__, absent)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit too: the file is not ours
                steps = [step.lineno for step in extract_tb(error.__traceback__) if step.filename == str(path)]
                words = f"it takes more than {SECONDS} s" if isinstance(error, TimeUp) else said(error)
                stopped = stopped or f"{path}, line {(steps or [statement.lineno])[-1]}: {words}"
    if stopped:
        needs = f" (without {', '.join(absent)})" if absent else ""
        file.notes.append(stopped + needs)
    return file


def _parsed(text: str, path: Path, notes: list[str]) -> tuple[str, list[ast.stmt]]:
    """A text without the statements that are no Python, line by line as it was, and the others; a note on the first."""
    lines = text.removesuffix("\n").split("\n")
    starts = [i for i, line in enumerate(lines) if re.match(r"[^\s#)\]}]", line)]
    while True:
        try:
            text = "\n".join(lines) + "\n"
            return text, ast.parse(text).body
        except SyntaxError as error:
            number = error.lineno or 1
            if not notes:
                notes.append(f"{path}, line {number}: SyntaxError: {error.msg}")
            first = max([i for i in starts if i < number and lines[i]], default=len(lines))
            end = min([i for i in starts if i >= number], default=len(lines))
            if len(lines) < 2 or first == len(lines):
                raise Unreadable(notes[0]) from None
            lines[first:end] = [""] * (end - first)


def _execute(statement: ast.stmt, file: str, space: dict[str, Any], absent: list[str]) -> None:
    """Run one statement; modules that it imports in vain are stood in for."""
    code = compile(ast.Module([statement], []), file, "exec")
    while True:
        try:
            return exec(code, space)
        except ModuleNotFoundError as error:
            if not error.name or error.name in absent:
                raise
            absent.append(error.name)
            sys.modules[error.name] = importlib.import_module("numpy") if error.name == "cupy" else StandIn(error.name)
            above, _, last = error.name.rpartition(".")
            if isinstance(sys.modules.get(above), StandIn):
                setattr(sys.modules[above], last, sys.modules[error.name])


class _Shell:
    """What a notebook's magics are called on."""

    def __init__(self, space: dict[str, Any], path: Path) -> None:
        self.space, self.path = space, path

    def run_cell_magic(self, magic: str, _: str, code: str) -> None:
        """Run a cell that is timed or captured."""
        if magic in ("time", "timeit", "capture", "prun"):
            exec(compile(code, str(self.path), "exec"), self.space)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
