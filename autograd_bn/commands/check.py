"""`autograd-bn check`: the referee on every hand-written pair in a file."""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import inspect
import itertools
import json
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, wraps
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

import numpy as np

from ..drawing.render import render
from ..verify.gradcheck import Unjudgeable
from ..verify.referee import Verdict, check_backward
from ..verify.referee.adapters import NoPair, Pair, adapt, is_float, loss, numpy_pair, parameters
from . import UsageError, complain
from .data import output_file

HELP = """judge hand-written forward and backward passes, and say where the mistake is

FILE.py is run. Judged is what it defines of: NumPy pairs such as NAME_forward(x, ...) -> y, cache with
NAME_backward(dy, cache) -> dx, ...; losses NAME_loss(x, y) -> loss, dx; layer classes with forward and backward;
torch.autograd.Function classes; jax.custom_vjp functions. Where a dict has a "mode" both train and test are judged.
Inputs are found by the parameters' names and by trying; a file can give its own: NAME_inputs (or inputs), a tuple of
what forward takes or a function that returns one.
Exit status 0 where what could be judged is right, 1 where something is wrong, 2 where nothing could be judged.

examples: autograd-bn check my_batch_norm.py
          autograd-bn check --json layers.py"""

SECONDS, TRIALS = 60, 3000
# Sizes that can't be mistaken for each other, by the letters that stand for them below.
SIZES = {"1": 1, "N": 5, "D": 4, "M": 3, "F": 12, "B": 2, "T": 6, "V": 7, "I": 3, "J": 5, "K": 4, "L": 6, "P": 3}
# What a parameter of this name may be, likeliest first: a shape (after +, positive; after int, whole numbers below the
# last size; after bool, a mask), after = a value, or the options below.
CANDIDATES = (
    (r"\w*(params?|config|cfg)", "options"),
    (r"x\d?|inputs?|data|a|z|images?|scores|logits|pred\w*|y_?hat", "ND BDIJ BDKL BTD D +ND int:BTV"),
    (r"w|weights?|kernels?|filters?|theta|table", "DM MD D +D MDPP VM MN"),
    (r"b|bias", "M D F M1"),
    (r"gamma|scale", "+D +1D11 +1D"),
    (r"beta|shift", "D 1D11 1D"),
    (r"h0?|h_?prev|prev_?h|c0?|c_?prev|prev_?c", "NM BM"),
    (r"w_?(x|xh|ih)", "DM DF"),
    (r"w_?(h|hh)", "MM MF"),
    (r"y|labels?|targets?|y_?true|t", "int:NM int:BTM int:NMM ND N +ND"),
    (r"mask", "bool:BT bool:ND"),
    (r"(running_?)?(mean|mu)", "D"),
    (r"(running_?)?(var|sigma2)", "+D"),
    (r"(in|n_in|input|fan_in|num|dim|d)(_?(features|channels|size|dims?|dim))?|size|features", "=4"),
    (r"(out|n_out|output|fan_out|hidden|n_hidden)(_?(features|channels|size|dims?|dim))?|units|classes", "=3"),
    (r"g|n?_?groups?|stride|\w*pool\w*_size|k|kernel_?size", "=2"),
    (r"pad(ding)?", "=1"),
    (r"eps(ilon)?", "=0.001"),
    (r"p|keep\w*|\w*rate|\w*ratio|prob\w*", "=0.6"),
    (r"reg|alpha|lam\w*|slope|delta|momentum", "=0.1"),
)
UNKNOWN = "ND D DM M MM BTD BDIJ =0.5 int:NM"
OPTIONS = {"mode": "train", "p": 0.6, "seed": 1, "eps": 1e-3, "stride": 2, "pad": 1, "pool_height": 2, "pool_width": 2}
CONSTANTS = r"y|labels?|targets?|y_?true|t|mask|(running_?)?(mean|mu|var)|p|q"


@dataclass
class Entry:
    """Something to judge: its functions, what it takes, how it becomes a pair on such values; then what came of it."""

    forward: str
    backward: str
    parameters: list[str]
    adapted: Callable[[Sequence[Any]], Pair]
    verdict: str = ""  # right, wrong, unwritten, unjudged, or nothing where this is no pair
    reason: str = ""
    report: Verdict | None = None

    def __str__(self) -> str:
        head = f"{self.verdict.upper()}: {self.reason}"
        return head if self.report is None else f"{self.report}\n{self.reason}".rstrip()

    def json(self) -> str:
        """One line for machines."""
        findings, repairs = ((), ()) if self.report is None else (self.report.diagnosis, self.report.repair)
        diagnosis = " ".join([*map(str, findings), *[self.reason] * bool(self.reason)])
        edits = [{name: getattr(r, name) for name in ("file", "line", "old", "new")} for r in repairs]
        fields = {"forward": self.forward, "backward": self.backward, "verdict": self.verdict}
        return json.dumps({**fields, "diagnosis": diagnosis, "repair": edits})

    def on(self, values: Sequence[Any]) -> Pair:
        """The pair on copies of these values, with the same random numbers in every call."""
        pair = self.adapted(copy.deepcopy(tuple(values)))

        @wraps(pair.forward)
        def forward(*values: Any) -> Any:
            np.random.seed(0)  # noqa: NPY002
            return pair.forward(*values)

        return replace(pair, forward=forward)


class _TimeUp(BaseException):
    """A pair took too long; no handler of the file's own catches it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE.py", help="Python file with the functions to judge")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a pair, each on a line of its own")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="also step through the wrong ones on a page")


def run(args: argparse.Namespace) -> int:
    """Judge every pair in the file; the exit status."""
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}, expected 0 or more")
    page = output_file(args.output, (".html",)) if args.output else None
    # What the file prints must not mix with the report.
    with contextlib.redirect_stdout(sys.stderr), np.errstate(all="ignore"), _loaded(Path(args.file)) as module:
        found = list(_entries(module))
        for entry in found:
            _judge(entry, vars(module), args.seed)
    found = [entry for entry in found if entry.verdict]
    if not found:
        raise UsageError(f"{args.file} defines no pair of functions forward and backward")
    several = len(found) > 1
    for entry in found:
        text = str(entry)
        if several and entry.verdict == "right":
            text = f"{text.splitlines()[0]} {entry.reason}".rstrip()
        print(entry.json() if args.json else f"{entry.backward}: {text}" if several else text)
        if page is not None and entry.report is not None and (entry.verdict == "wrong" or not several):
            try:
                render(entry.report, page.with_stem(f"{page.stem}-{entry.backward}") if several else page)
            except (ValueError, RuntimeError) as error:  # it has no graph, or there is nothing to draw it with
                complain(f"{entry.backward}: {error}")
    counts = Counter(entry.verdict for entry in found)
    if several and not args.json:
        print("\n" + ", ".join(f"{counts[v]} {v}" for v in ("right", "wrong", "unwritten", "unjudged") if counts[v]))
    return 1 if counts["wrong"] else 0 if counts["right"] else 2


def _judge(entry: Entry, space: dict[str, Any], seed: int) -> None:
    """What the referee makes of an entry."""
    try:
        with _limited(SECONDS):
            inputs = _given_inputs(entry, space) or _found_inputs(entry)
            pair = entry.on(inputs)
            _fits(pair)
            entry.report = check_backward(pair, pair.inputs, seed=seed)
            if entry.report.ok and any(isinstance(value, dict) and "mode" in value for value in inputs):
                _judge_test_mode(entry, inputs, seed)
            entry.verdict = "right" if entry.report.ok else "wrong"
    except NoPair:
        pass
    except _TimeUp:
        entry.verdict, entry.reason, entry.report = "unjudged", f"it took more than {SECONDS} s", None
    except NotImplementedError as error:
        entry.verdict, entry.reason = "unwritten", str(error) or "it raises NotImplementedError"
    except (Exception, SystemExit) as error:  # the file's own, or what the referee declines
        entry.verdict, entry.reason = "unjudged", " ".join(str(error).split()) or type(error).__name__


def _judge_test_mode(entry: Entry, inputs: Sequence[Any], seed: int) -> None:
    """Dropout and batch norm have another backward pass there, where forward keeps a cache for one."""
    there = copy.deepcopy(tuple(inputs))
    forward = inspect.unwrap(entry.on(there).forward)
    if "mode" not in getattr(forward, "__code__", _fits.__code__).co_consts:
        return
    forward(*there)  # in training it leaves its running statistics in the dict
    pair = entry.on([{**value, "mode": "test"} if isinstance(value, dict) else value for value in there])
    y, *_, cache = forward(*copy.deepcopy(pair.inputs))
    if y is None or cache is None:
        what = "output" if y is None else "cache"
        entry.reason = f"In test mode forward returns no {what}, so its gradient is not judged."
    elif not (report := check_backward(pair, pair.inputs, seed=seed)).ok:
        entry.report, entry.reason = report, "This is in test mode."


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Stop what takes longer, where the platform can."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TimeUp

    handler = signal.signal(signal.SIGALRM, stop)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again, where the file swallows it
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


# The file, and what it imports


class _Absent(ModuleType):
    """In the place of a module that isn't there: what is called of it raises."""

    __all__ = ()

    def __init__(self, name: str, *folders: str) -> None:
        super().__init__(name)
        self.__path__ = list(folders)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*_: Any, **__: Any) -> Any:
            raise ImportError(f"{self.__name__}.{name} is called, but {self.__name__} isn't there")

        return range if name == "xrange" else call


@contextlib.contextmanager
def _loaded(path: Path) -> Iterator[ModuleType]:
    """The file's module, with imports as it expects them, from its own folders; nothing of them stays."""
    if path.suffix != ".py":
        raise UsageError(f"{path} ends in {path.suffix!r}, expected a Python file, .py")
    if not path.is_file():
        raise UsageError(f"can't read {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    folder, above = path.resolve().parents[:2]
    before, writes, modules = list(sys.path), sys.dont_write_bytecode, set(sys.modules)
    sys.path[:0], sys.dont_write_bytecode = [str(folder), str(above)], True
    try:
        # A module of a package in a package, since it may import its neighbours so.
        package = f"checked.{folder.name.replace('.', '_')}"
        sys.modules.update({"checked": _Absent("checked", str(above)), package: _Absent(package, str(folder))})
        yield _run(path, f"{package}.{path.stem}")
    finally:
        sys.path[:], sys.dont_write_bytecode = before, writes
        for name in set(sys.modules) - modules:
            module = sys.modules[name]
            if isinstance(module, _Absent) or str(getattr(module, "__file__", "")).startswith(str(folder)):
                del sys.modules[name]


def _run(path: Path, name: str) -> ModuleType:
    """Run the file; what it imports in vain is stood in for."""
    absent = list[str]()
    while True:
        spec: Any = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            with _limited(SECONDS):
                spec.loader.exec_module(module)
            return module
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: the file is not ours
            if isinstance(error, ModuleNotFoundError) and error.name and error.name not in absent:
                absent.append(error.name)
                sys.modules[error.name] = _Absent(error.name)
                continue
            steps = [step.lineno for step in extract_tb(error.__traceback__) if step.filename == str(path)]
            line = getattr(error, "lineno", None) or (steps or [None])[-1]
            words = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
            where, needs = f", line {line}" * bool(line), f" (without {', '.join(absent)})" * bool(absent)
            raise UsageError(f"{path}{where}: {type(error).__name__}: {words}{needs}") from None


# What there is to judge


def _entries(module: ModuleType) -> Iterator[Entry]:
    """Everything in the file that has a forward and a backward pass, in the file's order."""
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
    functions = {n: v for n, v in own.items() if inspect.isfunction(v)}
    jax = sys.modules.get("jax")
    for name, value in own.items():
        if "backward" in name and name in functions:
            wanted = name.replace("backward", "forward")
            bare = re.sub("_?backward_?", "", name)  # relu, relu_backward
            known = [n for n in functions if wanted == n or wanted.startswith(f"{n}_")] or {bare} & {*functions}
            if known:
                forward = max(known, key=len)
                adapted = partial(numpy_pair, functions[forward], value)
                yield Entry(forward, name, parameters(functions[forward]), adapted)
        elif name in functions and re.search(r"loss(_|$)", name, re.IGNORECASE) and "forward" not in name:
            yield Entry(name, name, parameters(value), partial(loss, value))
        elif isinstance(value, type) and not value.__subclasses__() and {"forward", "backward"} <= set(dir(value)):
            yield _class_entry(name, value)
        elif jax is not None and isinstance(value, jax.custom_vjp):
            yield Entry(name, getattr(value.bwd, "__name__", "bwd"), parameters(value.fun), partial(adapt, value))


def _class_entry(name: str, what: Any) -> Entry:
    """A `torch.autograd.Function`, or a layer class, whose object is made first."""
    takes, made, torch = parameters(what.forward), parameters(what), sys.modules.get("torch")
    if torch is not None and issubclass(what, torch.autograd.Function):
        apart = what.setup_context is not torch.autograd.Function.setup_context
        return Entry(f"{name}.forward", f"{name}.backward", takes[not apart :], partial(adapt, what))
    adapted = lambda values: adapt(what(*values[: len(made)]), values[len(made) :])
    return Entry(f"{name}.forward", f"{name}.backward", [*made, *takes[1:]], adapted)


# Inputs


def _given_inputs(entry: Entry, space: dict[str, Any]) -> tuple[Any, ...] | None:
    """The inputs that the file gives."""
    given = space.get(_inputs_name(entry), space.get("inputs"))
    given = given() if callable(given) else given
    if given is not None and not isinstance(given, tuple | list):
        raise TypeError(f"inputs is a {type(given).__name__}, expected a tuple of what forward takes")
    return None if given is None else tuple(given)


def _inputs_name(entry: Entry) -> str:
    return re.sub(r"([._]?forward.*)?$", "_", entry.forward, count=1).lstrip("_") + "inputs"


def _drawn(kind: str, rng: np.random.Generator) -> Any:
    """A value of a kind as `CANDIDATES` lists them."""
    if kind == "options":
        return dict(OPTIONS)
    if kind.startswith("="):
        return json.loads(kind[1:])
    what, _, letters = kind.rpartition(":")
    shape = tuple([SIZES[letter] for letter in letters.lstrip("+")])
    if what == "int":
        return rng.integers(0, shape[-1], shape[:-1])
    if what == "bool":
        return rng.random(shape) < 0.8
    return rng.uniform(0.5, 2, shape) if letters.startswith("+") else rng.normal(size=shape) * 1.5 + 0.2


def _found_inputs(entry: Entry) -> tuple[Any, ...]:
    """Inputs that forward accepts, best such that backward's gradients fit their shapes."""
    names = [name.lower() for name in entry.parameters]
    kinds = [next((c for pattern, c in CANDIDATES if re.fullmatch(pattern, n)), UNKNOWN).split() for n in names]
    accepted, first = None, ""
    for chosen in itertools.islice(itertools.product(*kinds), TRIALS):
        rng = np.random.default_rng(1)
        values = tuple([_drawn(kind, rng) for kind in chosen])
        try:
            if _fits(entry.on(values)):
                return values
        except (NotImplementedError, Unjudgeable, NoPair):
            raise
        except Exception as error:  # not these
            first = first or f" ({type(error).__name__}: {' '.join(str(error).split())})"
        else:
            accepted = accepted or values
    if accepted is None or UNKNOWN.split() in kinds:
        call = f"{entry.forward}({', '.join(entry.parameters)})"
        raise ValueError(f"no inputs are known for {call}: define {_inputs_name(entry)} in the file{first}")
    return accepted


def _fits(pair: Pair) -> bool:
    """Whether backward's gradients have the inputs' shapes; raises what forward raises, or that one isn't written."""
    y, cache = pair.forward(*copy.deepcopy(pair.inputs))
    if y is None:
        raise NotImplementedError("forward returned None")
    y = np.asarray(y, dtype=np.float64)
    if not y.size or not np.isfinite(y).all():
        raise ValueError("forward's output is empty or not finite")
    try:
        given = pair.call(pair.source, np.ones(y.shape), cache)
    except (NotImplementedError, Unjudgeable):
        raise
    except Exception:
        return False  # for the verdict to report
    if isinstance(given, dict):
        return True
    given = given if isinstance(given, tuple | list) else [given] * (len(pair.names) if given is None else 1)
    gradients = list(zip(pair.names, pair.inputs, given, strict=False))
    unwritten = [n for n, x, d in gradients if d is None and is_float(x) and not re.fullmatch(CONSTANTS, n.lower())]
    if unwritten:
        raise NotImplementedError(f"backward returned None for {', '.join(unwritten)}")
    return all(d is None or np.shape(d) == np.shape(x) for _, x, d in gradients)
