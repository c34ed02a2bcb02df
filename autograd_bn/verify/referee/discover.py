"""What there is to judge in a file, inputs that suit it, and what the referee makes of each."""

import ast
import copy
import inspect
import itertools
import json
import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from traceback import extract_tb, walk_tb
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .earned import unearned
from .frameworks import torch_library
from .guesses import TAKEN, Choices, drawn, meant, shown
from .held import arrays, is_array, is_float, is_tensor
from .judge import check_backward
from .load import SECONDS, TimeUp, limited, said
from .pairs import (
    CONTEXTS,
    NUMPY,
    Calls,
    NoPair,
    Pair,
    adapt,
    agreement,
    array,
    author_of,
    loss,
    loss_class,
    methods_of,
    numpy_pair,
    parameters,
    returned_names,
)
from .source import code_of, framework, signature, syntax, unwrapped
from .trace import work
from .unwritten import COST, is_todo, written
from .verdict import Verdict

ABSENT = 20  # guesses one after the other that end at what isn't there, after which no more are tried
_ABSENT = "NameError|ImportError|ModuleNotFound|FileNotFoundError(?!.*'x')"
ACCEPTED, FITTING = 60, 5  # how many inputs are tried on the pair, and where shapes fit
WORK, LARGE = 1_500, 2_000_000  # calls of a small pair that looking for inputs takes; numbers that an object may hold
_TRAINING = r"_?(is_|in_)?train(ing)?(_mode)?"
# What makes a layer whole takes a shape alone, and has no name of what reaches for a file.
_BUILDS = re.compile(r"(?!_*(save|write|dump|export|load|del|remove|plot))\w+\((\w+_)?shape\)", re.IGNORECASE)
_NOT_THE_AUTHORS = re.compile(r"autograd_bn|site-packages|lib[/\\]python")


@dataclass
class Entry:
    """Something to judge: what it takes, and how it becomes a pair on such values; then what came of it."""

    forward: str
    backward: str
    parameters: list[str]
    adapted: Callable[[Sequence[Any]], Pair]
    probe: Callable[[Sequence[Any]], Any]  # the author's forward pass alone
    made: int = 0  # how many of the values its object is made of
    make: Callable[[Sequence[Any]], Any] | None = None  # and how
    cost: float = 0.3  # what it costs more to try it than what it calls
    firm: bool = True  # whether what forward takes is given, or said by its names
    base: bool = False  # a base class, whose passes may be left to others
    code: tuple[Any, ...] = ()  # the author's functions that may have a word for a default, `mode="max"`
    kinds: dict[str, list[str]] = field(default_factory=dict)  # what some of its parameters are
    verdict: str = ""  # right, wrong, convention, unwritten, unjudged, or nothing where this is no pair
    reasons: list[str] = field(default_factory=list)
    report: Verdict | None = None

    @property
    def reason(self) -> str:
        """What is said beside the report."""
        return " ".join(self.reasons)

    def __str__(self) -> str:
        head = f"{self.verdict.upper()}: {self.reason}"
        return head if self.report is None else f"{self.report}\n{self.reason}".rstrip()

    def json(self) -> str:
        """One line for machines."""
        said: list[str] = []
        if self.report is not None:
            said = [*map(str, self.report.diagnosis), *self.report.warnings]
            said += [f"Not judged: {what}." for what in self.report.unseen]
        repairs = () if self.report is None else self.report.repair
        edits = [{name: getattr(r, name) for name in ("file", "line", "old", "new")} for r in repairs]
        fields = {"forward": self.forward, "backward": self.backward, "verdict": self.verdict}
        return json.dumps({**fields, "diagnosis": " ".join([*said, *self.reasons]), "repair": edits})


# What there is to judge


def entries(space: dict[str, Any]) -> Iterator[Entry]:
    """Everything in a file that has a forward and a backward pass, in the file's order."""
    name_of_file = space["__name__"]
    own = {n: v for n, v in space.items() if getattr(v, "__module__", None) == name_of_file}
    functions = {n: v for n, v in space.items() if inspect.isfunction(v)}
    # What a framework made of a function, as `jax.grad(f)`, nobody wrote by hand.
    written = {n for n, v in functions.items() if v.__code__.co_filename == space["__file__"]}
    jax = framework("jax")
    rules = [v for v in own.values() if jax is not None and isinstance(v, jax.custom_vjp)]
    passes_of_rules = {part for rule in rules for part in (rule.fwd, rule.bwd)}
    own = {n: v for n, v in own.items() if not inspect.isfunction(v) or v not in passes_of_rules}
    for name, value in own.items():
        passes = methods_of(value) if isinstance(value, type) else None
        if name in written and (forward := _forward_of(name, functions)):
            ahead = functions[forward]
            if len(parameters(ahead)) == len(parameters(value)) == 1:
                ahead, value = _each(ahead), _each(value)
            on, code = partial(_on, _uses_torch(space, ahead)), (functions[forward], functions[name])
            pair = on(partial(numpy_pair, ahead, value))
            yield Entry(forward, name, parameters(ahead), pair, on(_spread(ahead)), code=code)
        elif name in functions and _is_loss(name, value):
            on = partial(_on, _uses_torch(space, value))
            yield Entry(name, name, parameters(value), on(partial(loss, value)), on(_spread(value)))
        elif isinstance(value, type) and (passes := methods_of(value)):
            yield _class_entry(name, value, passes, _uses_torch(space, getattr(value, passes[0])))
        elif isinstance(value, type) and len(returned_names(getattr(value, "loss", None))) == 2:
            what: Any = value
            yield _class_entry(name, loss_class(what), ("loss", "loss"), _uses_torch(space, what.loss))
        elif jax is not None and isinstance(value, jax.custom_vjp):
            back = getattr(value.bwd, "__name__", "bwd")
            yield Entry(
                name, back, parameters(value.fun), partial(adapt, value), _on(None, _spread(value.fun)), cost=5.0
            )


_SLOPE = re.compile(r"\w*(grad|cost)\w*|d(?!ata|ic|ist|im|ep|on|eb|ro|ev)\w+|g")


def _is_loss(name: str, function: Any) -> bool:
    """Whether a function may return a loss and its gradient."""
    returned = returned_names(function)
    said = len(returned) > 1 and {bool(re.fullmatch(COST, returned[0])), bool(re.fullmatch(COST, returned[1]))}
    named = re.search(r"(loss|entropy|nll|mse|hinge|huber|bce)(_|\d|$)", name, re.IGNORECASE) or (
        said == {True, False} and _SLOPE.fullmatch(returned[-1])
    )
    return bool(named) and len(returned) != 1 and not re.search(r"forward|^(test|plot|train|fit|num)", name)


# What a backward pass and the forward pass that belongs to it have in their names.
_NAMES = {"backward": "forward", "backprop": "forwardprop", "bprop": "fprop", "bwd": "fwd", "Backward": "Forward"}
_NAMES |= {"back_prop": "forward_prop", "_bw": "_fw", "back": "forward"}


def _forward_of(name: str, functions: dict[str, Any]) -> str | None:
    """The forward pass that a function's name says that it is the backward pass of."""
    for back, fore in _NAMES.items():
        if back in name:
            wanted, bare = name.replace(back, fore), re.sub(f"_?{back}_?", "", name)  # relu, relu_backward
            known = [n for n in functions if wanted == n or wanted.startswith(f"{n}_")] or [*({bare} & {*functions})]
            known = [n for n in known if n != name]
            return max(known, key=len) if known else None
    match = re.fullmatch(r"(\w+?)_?(grad|gradient|prime|deriv|derivative)|(?:grad|d|deriv|derivative)_(\w+)", name)
    bare = (match[1] or match[3]) if match else ""
    return bare if bare in functions else None


def _each(function: Any) -> Any:
    """A function that may be one of a number, on arrays too: entry by entry, where it doesn't take them."""

    @wraps(function)
    def call(*values: Any) -> Any:
        try:
            return function(*values)
        except (TypeError, ValueError):
            return np.vectorize(function, otypes=[float])(*values)

    return call


def _spread(function: Any) -> Callable[[Sequence[Any]], Any]:
    return lambda values: function(*values)


def _class_entry(name: str, what: Any, passes: tuple[str, str], torch: Any) -> Entry:
    """A class whose passes stand by themselves, or a layer class, whose object is made first."""
    fore = (methods_of(what) or passes)[0]
    forward = getattr(what, fore)
    takes, library = parameters(forward), framework("torch")
    names = f"{name}.{passes[0]}", f"{name}.{passes[1]}"
    if library is not None and issubclass(what, library.autograd.Function):
        apart = what.setup_context is not library.autograd.Function.setup_context
        return Entry(*names, takes[not apart :], partial(adapt, what), lambda values: None, cost=5.0)
    first = next(iter(signature(forward)), "")
    if inspect.ismethod(forward) or first in CONTEXTS or isinstance(inspect.getattr_static(what, fore), staticmethod):
        author = author_of(what)
        lead = [author.owner] if author.leads else []
        probe = lambda values: author.forward(*copy.deepcopy(lead), *values)
        adapted = lambda values: Calls(author_of(what), values).pair()
        return Entry(*names, takes[first in CONTEXTS :], _on(torch, adapted), _on(torch, probe))
    made, fixed, kinds = _made_of(what)

    most = len([p for p in signature(forward).values() if p.kind is p.POSITIONAL_OR_KEYWORD]) - 1

    def parted(values: Sequence[Any]) -> int:
        """How many of the values the object is made of: a file may give those too that have a default."""
        return len(made) if len(values) <= len(made) + most else len(values) - len(takes) + 1

    def make(values: Sequence[Any]) -> Any:
        count = parted(values)
        np.random.seed(0)  # noqa: NPY002
        library = torch_library(torch) if torch else NUMPY
        values = [library.lift(array(v)) if is_tensor(v) else array(v) if is_float(v) else v for v in values]
        with library.precise():
            more = values[:count] if count > len(made) else ()
            owner = what(*more, **({} if more else dict(zip(made, values, strict=False))), **fixed)
        with suppress(TypeError):
            for switch in [n for n, value in vars(owner).items() if value is False and re.fullmatch(_TRAINING, n)]:
                setattr(owner, switch, True)
        if (size := sum([int(np.prod(np.shape(value))) for value in arrays(owner).values()])) > LARGE:
            raise Unjudgeable(f"an object of {name} holds {size:,} numbers, which is too much to try inputs on")
        return _built(owner, fore, values[count:])

    return Entry(
        *names,
        [*made, *takes[1:]],
        _on(torch, lambda values: adapt(make(values), values[parted(values) :]), len(made)),
        _on(torch, lambda values: getattr(make(values), fore)(*values[parted(values) :]), len(made)),
        len(made),
        make,
        base=bool(what.__subclasses__()) and not fixed,
        kinds=kinds,
        code=tuple([vars(base)["__init__"] for base in what.__mro__ if inspect.isfunction(vars(base).get("__init__"))]),
    )


def _built(owner: Any, fore: str, values: Sequence[Any]) -> Any:
    """An object that `build(input_shape)`, or another such method, makes whole, where forward fails without it."""
    shape: tuple[int, ...] = np.shape(values[0]) if values else ()
    methods = [method for _, method in inspect.getmembers(owner, inspect.ismethod) if shape]
    builds = [m.__name__ for m in methods if _BUILDS.fullmatch(f"{m.__name__}({', '.join(parameters(m))})")]
    for name, size in [("", shape), *itertools.product(builds, (shape, shape[1:], *shape[-1:]))] if builds else ():
        with suppress(Exception):
            made = copy.deepcopy(owner)
            if name:
                getattr(made, name)(size)
            getattr(copy.deepcopy(made), fore)(*copy.deepcopy(list(values)))
            return made
    return owner


def _made_of(what: type) -> tuple[list[str], dict[str, Any], dict[str, list[str]]]:
    """What an object is made of: what it needs, large sizes as small ones, and double precision."""
    makers = [vars(base)["__init__"] for base in what.__mro__ if inspect.isfunction(vars(base).get("__init__"))]
    open_ = [inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD]
    listed = list[inspect.Parameter]()
    for maker in makers:
        taken = [*signature(maker).values()][1:]
        listed = [p for p in taken if p.kind not in open_]
        if listed or not taken:
            break
    needed, fixed, kinds = list[str](), dict[str, Any](), dict[str, list[str]]()
    lengths = _used_as_lengths(what)
    for p in listed:
        if (p.annotation in (int, "int") or p.name in lengths) and not _is_size(p.name):
            kinds[p.name] = ["=3", "=4"] if kinds else ["=4", "=3"]
        least = min([n for n in np.ravel(p.default).tolist() if type(n) is int], default=0) if p.default else 0
        large = type(p.default) is int and p.default > 16 and _is_size(p.name)
        image = type(p.default) is tuple and len(p.default) == 3 and least > 0
        kinds |= {p.name: ["=[4,6,6]"]} if image else {}
        needed += [p.name] if p.default is p.empty or large or image or (p.name == "reg" and not p.default) else []
        if "float32" in str(p.default) and p.name == "dtype":
            fixed["dtype"] = framework("torch").float64 if str(p.default) == "torch.float32" else np.float64
    return needed, fixed, kinds


_SHAPED = r"zeros|ones|empty|randn?|random|random_sample|standard_normal|eye|identity|range|arange|full|normal|uniform"


def _used_as_lengths(what: type) -> set[str]:
    """What a class is made of that gives arrays their lengths, `np.zeros(n)`, also by way of `self.n = n`."""
    used, kept = set[str](), dict[str, str]()
    for base in [base for base in what.__mro__ if base.__module__ == what.__module__]:
        for node in ast.walk(syntax(base)):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                kept |= {t.attr: node.value.id for t in node.targets if isinstance(t, ast.Attribute)}
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            if isinstance(node, ast.Call) and re.fullmatch(_SHAPED, name):
                shapes = [*node.args[: 1 if name == "full" else 9], *[k.value for k in node.keywords]]
                if name in ("normal", "uniform"):  # of which the others are numbers
                    shapes = [*[a for a in shapes if isinstance(a, ast.Tuple)], *node.args[2:]]
                parts = [part for shape in shapes for part in ast.walk(shape)]
                used |= {getattr(part, "attr", getattr(part, "id", "")) for part in parts}
    return used | {kept[name] for name in used if name in kept}


def _is_size(name: str) -> bool:
    """Whether a parameter's name says that it is a length."""
    return bool(re.fullmatch(r"=[2-6]", meant(name)[0][0]))


def _uses_torch(space: dict[str, Any], function: Any) -> Any:
    """PyTorch, where a file imports it and a function doesn't compute with NumPy alone."""
    homes = {
        name: str(getattr(v, "__name__", "")).partition(".")[0] for name, v in space.items() if inspect.ismodule(v)
    }
    code = getattr(unwrapped(function), "__code__", None)
    read = {homes.get(name) for name in code.co_names} if code else set[Any]()
    plain = "numpy" in read and "torch" not in read
    return framework("torch") if "torch" in homes.values() and not plain else None


def _on(torch: Any, call: Callable[[list[Any]], Any], made: int = 0) -> Callable[[Sequence[Any]], Any]:
    """A call on copies of NumPy's arrays, or on PyTorch's where the file computes with these, but for the first few."""

    def on(values: Sequence[Any]) -> Any:
        np.random.seed(0)  # noqa: NPY002
        plain, copies = copy.deepcopy(list(values)), copy.deepcopy(list(values))
        if torch is None:
            return call(plain)
        library = torch_library(torch)
        with library.precise():
            try:
                return call([*copies[:made], *map(library.lift, copies[made:])])
            except Exception as error:
                with suppress(Exception):
                    return call(plain)
                raise error

    return on


# Inputs


def _kinds(entry: Entry, name: str, lengths: Sequence[int]) -> list[str]:
    """What a parameter may be, by its name and by what stands beside it."""
    if (name == "p" and {"y", "t"} & {*entry.parameters}) or (name == "y" and "t" in entry.parameters):
        name = "pred"
    if name in entry.kinds:
        return entry.kinds[name]
    listed, _ = meant(name)
    if all(kind[0] == "=" for kind in listed) and len(name) == 1:
        listed += ["ND", "BNN"]
    for length in lengths if "ND" in listed else ():
        listed += [f"({length},5)", f"(5,{length})", f"(2,{length},3,5)", f"(2,6,{length})"]
    return listed


def guessed(entry: Entry, known: dict[str, Any]) -> tuple[tuple[Any, ...], Pair]:
    """Inputs that forward takes, best such that every gradient agrees with differences there; and the pair on them."""
    inside: dict[str, list[str]] = {}  # what a dict must hold, by its parameter
    best: tuple[tuple[bool, float], tuple[Any, ...], Pair] | None = None
    failed: list[tuple[list[float], str]] = []
    accepted = fitting = 0
    spent = 0.0
    flat = False  # whether it is wrong for vectors
    lengths = _lengths(entry)
    while True:
        slots = [(name, None) for name in entry.parameters] + [(n, key) for n, keys in inside.items() for key in keys]
        kinds = [["known"] if n in known and key is None else _kinds(entry, key or n, lengths) for n, key in slots]
        missing, firm, choices = None, dict[int, str](), Choices(kinds)
        for chosen in choices:
            if any(chosen[i] != kind for i, kind in firm.items()):
                continue
            if spent > WORK:
                break
            rng, values = np.random.default_rng(1), dict[str, Any]()
            for (name, key), kind in zip(slots, chosen, strict=True):
                if key is None:
                    values[name] = known[name] if kind == "known" else drawn(kind, rng)
                else:
                    values[name][key] = drawn(kind, rng)
            inputs = tuple(values.values())
            depth = list[float]()
            try:
                with work() as done:
                    _finite(entry.probe(inputs))
                    depth = [*TAKEN]
                    pair = entry.adapted(copy.deepcopy(inputs))
                    score = rating(pair)
            except (NotImplementedError, Unjudgeable, NoPair):
                if best is None or not depth:
                    raise
                continue
            except Exception as error:
                if is_todo(error):
                    raise NotImplementedError(str(error) or f"it raises {type(error).__name__}") from None
                missing = None if depth else _missing(error, values, known)
                if missing:
                    break
                failed.append((depth or _depth(error), f"{said(error)}{_line(error)}"))
                choices.told(chosen, failed[-1][0])
                lost = [reason for _, reason in failed[-ABSENT:] if re.match(_ABSENT, reason)]
                if len(lost) == ABSENT and best is None:
                    raise ValueError(_no_inputs(entry, failed)) from None
                continue
            finally:
                spent += done[0] + entry.cost
            accepted, fitting = accepted + 1, fitting + score[0]
            choices.told(chosen, [*depth, *score])
            if score[0] and not firm:  # what else may be meant is labels, probabilities, and what has no telling name
                # and a number that may be an array, as p, a rate or a probability.
                firm = {i: chosen[i] for i, (name, key) in enumerate(slots) if not meant(key or name)[1]}
                firm = {i: kind for i, kind in firm.items() if kind[0] != "=" or all(k[0] == "=" for k in kinds[i])}
                firm = {i: kind for i, kind in firm.items() if kind not in ("D", "N")}  # a vector may be a column
            if best is None or score > best[0]:
                best = score, inputs, pair
                entry.firm = all(
                    "known" in likely or (not meant(key or name)[1] and (kind == likely[0] or kind[0] != "="))
                    for (name, key), kind, likely in zip(slots, chosen, kinds, strict=True)
                )
            right = score[0] and score[1] == 1
            flat = flat or (score[0] and not right and bool({"D", "N"} & {*chosen}))
            if right or accepted >= ACCEPTED or fitting >= FITTING:
                if right and flat:
                    entry.reasons.append("For vectors, as of shape (4,), which forward takes, it is wrong.")
                return best[1:]
        if missing is not None and len(inside.get(missing[0], ())) < 12:
            inside.setdefault(missing[0], []).append(missing[1])
            continue
        if best is not None:
            return best[1:]
        raise ValueError(_no_inputs(entry, failed))


def _missing(error: Exception, values: dict[str, Any], known: dict[str, Any]) -> tuple[str, str] | None:
    """The dict among the values that lacks a key, with the key, where that is what an exception says."""
    key, dicts = (*error.args, None)[0], [n for n, value in values.items() if isinstance(value, dict)]
    lacks = isinstance(error, KeyError) and isinstance(key, str) and dicts and dicts[0] not in known
    return (dicts[0], str(key)) if lacks and key not in values[dicts[0]] else None


def _lengths(entry: Entry) -> list[int]:
    """The lengths that an object made without arguments holds, of which x may have one."""
    with suppress(Exception):
        if entry.make and not entry.made:
            shapes = [np.shape(value) for value in arrays(entry.make(())).values() if is_array(value)]
            return sorted({length for shape in shapes for length in shape if length > 1})[:4]
    return []


def rating(pair: Pair) -> tuple[bool, float]:
    """Whether a pair's gradients have the shapes of the inputs, and which share of them agrees with differences."""
    written(pair)
    try:
        with np.errstate(all="ignore"):
            told = agreement(pair)
    except (NotImplementedError, Unjudgeable):
        raise
    except Exception:
        return False, -1.0
    fit = bool(told) and all(value is not None for value in told.values())
    return fit, sum(map(bool, told.values())) / max(len(told) + len(pair.unseen), 1)


def _finite(result: Any) -> None:
    first = result[0] if isinstance(result, tuple | list) and result else result
    if first is None or isinstance(first, dict):  # gradients, before their loss
        return
    y = np.asarray(first.detach() if hasattr(first, "detach") else first, dtype=np.float64)
    if not y.size or not np.isfinite(y).all():
        raise ValueError("forward's output is empty or not finite")


def _steps(error: BaseException) -> list[tuple[str, int]]:
    """The author's files and lines that an exception came through, the outer ones first."""
    steps = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    return [step for step in steps if step[0].endswith((".py", ".ipynb")) and not _NOT_THE_AUTHORS.search(step[0])]


def _depth(error: BaseException) -> list[float]:
    """How far forward got, as a list that is greater the further it is."""
    return [line for _, line in _steps(error)]


def _line(error: BaseException) -> str:
    """Where an exception was raised: a line of the file that is judged, or of another that is named."""
    steps = _steps(error)
    if not steps:
        return ""
    (first, _), (last, line) = steps[0], steps[-1]
    return f" ({'' if last == first else f'{Path(last).name}, '}line {line})"


def inputs_name(entry: Entry) -> str:
    """What a file calls the inputs that it gives for a pair."""
    return re.sub(r"([._]?forward.*|\.\w+)?$", "_", entry.forward, count=1).lstrip("_") + "inputs"


def _no_inputs(entry: Entry, failed: list[tuple[list[float], str]]) -> str:
    """Why forward took no inputs, by the guess that it went furthest with, and how others are given."""
    call = f"{entry.forward}({', '.join(entry.parameters)})"
    lost = [reason for reason in failed if re.match(_ABSENT, reason[1])]
    why = max(lost or failed, key=lambda reason: reason[0])[1] if failed else "it takes none"
    if lost:
        return f"{call} needs what isn't there: {why}"
    if failed and all("NoneType" in reason for _, reason in failed):
        return f"{call} reads what is None until something else sets it: {why}"
    set_elsewhere = re.match(r"AttributeError: '(\w+)' object has no attribute '(\w+)'", why)
    if set_elsewhere and entry.forward.startswith(f"{set_elsewhere[1]}."):
        return f"{call} reads self.{set_elsewhere[2]}, which is set elsewhere: {why}"
    if re.match(r"AttributeError: '(int|str|tuple|list|Lengths|numpy.ndarray)' object has no attribute '\w+'", why):
        return f"{call} takes objects, as layers: define {inputs_name(entry)} in the file, a tuple of them ({why})"
    first = {name: _kinds(entry, name, ())[0] for name in entry.parameters}
    line = " ".join([f"{name}={shown(kind)}" for name, kind in first.items() if not kind.startswith("call")])
    return (
        f"no inputs are known for {call}, the best of {len(failed)} guesses ended with {why}; "
        f"give them as --inputs '{line}' or define {inputs_name(entry)} in the file"
    )


# The verdict


def given_inputs(entry: Entry, space: dict[str, Any]) -> tuple[Any, ...] | None:
    """The inputs that the file gives."""
    inputs = space.get(inputs_name(entry), space.get("inputs"))
    inputs = inputs() if callable(inputs) else inputs
    if inputs is not None and not isinstance(inputs, tuple | list):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what forward takes")
    return None if inputs is None else tuple(inputs)


def judge(entry: Entry, space: dict[str, Any], known: dict[str, Any], seed: int = 0, strict: bool = False) -> None:
    """What the referee makes of an entry."""
    try:
        with limited(2 * SECONDS), np.errstate(all="ignore"):
            inputs = given_inputs(entry, space)
            guess = inputs is None
            if inputs is None:
                inputs, pair = guessed(entry, {n: v for n, v in known.items() if n in entry.parameters})
            else:
                pair = entry.adapted(copy.deepcopy(inputs))
            entry.report = check_backward(pair, pair.inputs, seed=seed, strict=strict)
            if entry.report.unwritten:
                raise NotImplementedError(entry.report.unwritten)
            for other, where in _elsewhere(entry, inputs) if entry.report.ok else ():
                report = check_backward(other, other.inputs, seed=seed, strict=strict)
                if "test" in where and report.diagnosis and report.diagnosis[0].kind == "raised":
                    entry.reasons.append("In test mode there is no cache for backward, so its gradient is not judged.")
                elif not report.ok:
                    entry.report = report
                    entry.reasons.append(f"This is {where}.")
                    break
            for word, report in _by_other_words(entry, inputs, partial(check_backward, seed=seed, strict=strict)):
                if entry.report.ok and report.status == "wrong" and report.diagnosis[0].kind != "raised":
                    entry.report = report
                    entry.reasons.append(f"This is with {word}.")
            entry.verdict = entry.report.status
            told = guess and (entry.report.ok or (entry.report.status == "wrong" and rating(pair) < (True, 1)))
            elsewhere = _at_other_shapes(entry, inputs, entry.report.ok) if told else ""
            entry.reasons += [elsewhere] if elsewhere else []
            if lacking := _lacking(entry.report, space):
                entry.verdict, entry.report = "unjudged", None
                entry.reasons = [f"backward needs {lacking}"]
            elif (
                guess
                and entry.verdict == "wrong"
                and (why := unearned(entry.report, pair, entry.parameters, entry.firm and not elsewhere))
            ):
                raise Unjudgeable(" ".join([why, *entry.reasons, f"Give others by --inputs or {inputs_name(entry)}"]))
    except NoPair:
        pass
    except TimeUp:
        entry.verdict, entry.report = "unjudged", None
        entry.reasons.append(f"it took more than {2 * SECONDS} s")
    except NotImplementedError as error:
        entry.verdict = "" if entry.base else "unwritten"
        entry.reasons.append(str(error) or "it raises NotImplementedError")
    except (Exception, SystemExit) as error:  # the file's own, or what the referee declines
        last = [step.filename for step in extract_tb(error.__traceback__)][-1:]
        known_kind = isinstance(error, Unjudgeable | ValueError | TypeError) and "autograd_bn" in str(last)
        entry.verdict, entry.report = "" if entry.base else "unjudged", None
        entry.reasons = [(" ".join(str(error).split()) if known_kind else said(error) + _line(error)) or said(error)]


def _lacking(report: Verdict, space: dict[str, Any]) -> str:
    """What backward imports in vain, if that is why it raised."""
    raised = [finding.what for finding in report.diagnosis if finding.kind == "raised"]
    named = re.search(r"NameError: name '(\w+)' is not defined|ImportError: ([\w.]+) is", raised[0] if raised else "")
    if not named:
        return ""
    text = "".join(linecache.getlines(space["__file__"]))
    missing = named[2] or (re.search(rf"(?m)^\s*(from|import) .*\b{named[1]}\b", text) and named[1])
    missing = missing or (named[1] if re.search(r"(?m)^from .* import \*", text) else "")
    return f"{missing}, which isn't there" if missing else ""


def _elsewhere(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[tuple[Pair, str]]:
    """The pair where the same code may take another way: in test mode, and on x of more axes."""
    first = next((i for i, value in enumerate(inputs) if is_float(value) and i >= entry.made), None)
    if first is not None and inputs[first].ndim == 2 and inputs[first].shape[1] % 2 == 0:
        rows, columns = inputs[first].shape
        folded = list(copy.deepcopy(inputs))
        folded[first] = folded[first].reshape(rows, 1, 2, columns // 2)
        with suppress(Exception):
            a, b = (_output(entry.probe(copy.deepcopy(values))) for values in (inputs, folded))
            if a.shape == b.shape and np.allclose(a, b) and (pair := entry.adapted(folded)):
                yield pair, f"for {entry.parameters[first]} of shape {folded[first].shape}"
    if any(isinstance(value, dict) and "mode" in value for value in inputs):
        yield from _in_test_mode(entry, inputs)


def _by_other_words(entry: Entry, inputs: tuple[Any, ...], check: Any) -> Iterator[tuple[str, Verdict]]:
    """What is made of the pair where an argument is another of the words that the code compares it with."""
    holder = {p.name: f for f in entry.code for p in signature(f).values() if isinstance(p.default, str)}
    passed = {n: v for n, v in zip(entry.parameters, inputs, strict=False) if isinstance(v, str)}
    if not (holder or passed) or not (entry.report and entry.report.ok):
        return
    text = "\n".join(map(code_of, entry.code)) + (code_of(type(entry.make(inputs)), 0) if entry.make else "")
    for name in {**holder, **passed}:
        now = passed.get(name) or signature(holder[name])[name].default
        words = re.findall(rf"\b{name}\s*==\s*[\"'](\w+)[\"']", text)
        for word in [word for word in dict.fromkeys(words) if word != now][:3]:
            there = [word if n == name else v for n, v in zip(entry.parameters, copy.deepcopy(inputs), strict=False)]
            with suppress(Exception), _defaults(entry.code, name, word):
                pair = entry.adapted([*there, *inputs[len(there) :]])
                yield f'{name}="{word}"', check(pair, pair.inputs)


@contextmanager
def _defaults(functions: Sequence[Any], name: str, word: str) -> Iterator[None]:
    """Functions whose parameter of this name has another word for its default."""
    was = [(unwrapped(f), unwrapped(f).__defaults__, signature(f)) for f in functions]
    try:
        for function, defaults, taken in was:
            names = [p.name for p in taken.values() if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY]
            if name in names:
                function.__defaults__ = tuple([word if n == name else v for n, v in zip(names, defaults, strict=True)])
        yield
    finally:
        for function, defaults, _ in was:
            function.__defaults__ = defaults


def _at_other_shapes(entry: Entry, inputs: tuple[Any, ...], right: bool) -> str:
    """Where it is otherwise: what is right for vectors for matrices, as a mean divided by `len(x)`; for one example."""
    own = [i for i, value in enumerate(inputs) if isinstance(value, np.ndarray) and i >= entry.made]
    axes, rng = {inputs[i].ndim for i in own}, np.random.default_rng(4)
    if right and axes == {1}:
        others = {i: rng.uniform(0.1, 0.9, (5, 3)) for i in own}
    elif not right and len({len(inputs[i]) for i in own if inputs[i].ndim > 1}) == 1:
        others = {i: inputs[i][:1] for i in own if inputs[i].ndim > 1}
    else:
        return ""
    there = [others.get(i, value) for i, value in enumerate(inputs)]
    with suppress(Exception):
        _finite(entry.probe(there))
        fits, part = rating(entry.adapted(copy.deepcopy(there)))
        if right:
            return "That is for vectors: for matrices, as of shape (5, 3), it is wrong." if fits and part < 1 else ""
        other = [value[1:2] if i in others else value for i, value in enumerate(inputs)]
        one, two = (_output(entry.probe(copy.deepcopy(values))) for values in (there, other))
        if (fits, part) == (True, 1) and (one != two).any():  # a batch of one is normalised to nothing
            return f"For one example, as of shape {np.shape(next(iter(others.values())))}, it is right."
    return ""


def _output(result: Any) -> Any:
    return np.asarray(result[0] if isinstance(result, tuple | list) else result)


def _in_test_mode(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[tuple[Pair, str]]:
    """Dropout and batch norm have another backward pass there, where forward keeps a cache for one."""
    there = list(copy.deepcopy(inputs))
    pair = entry.adapted(there)
    if "mode" not in code_of(pair.forward):
        return
    result = entry.probe(copy.deepcopy(inputs))
    trained = result[-1] if isinstance(result, tuple | list) else 0
    pair.forward(*there, *pair.inputs[len(there) :])  # in training it leaves its running statistics in the dict
    for value in there:
        if isinstance(value, dict):
            value["mode"] = "test"
    result = entry.probe(there)
    y, cache = (result[0], result[-1]) if isinstance(result, tuple | list) else (result, 0)
    if y is None:
        entry.reasons.append("In test mode forward returns no output, so its gradient is not judged.")
    elif cache is None or (isinstance(cache, dict | tuple | list) and not cache):
        entry.reasons.append("In test mode forward returns no cache, so its gradient is not judged.")
    elif _form(cache) == _form(trained) and not re.search(r"mode|test|train", code_of(pair.source)):
        entry.reasons.append("It is judged in training mode, since backward doesn't look at the mode.")
    else:
        yield entry.adapted(there), "in test mode"


def _form(value: Any) -> Any:
    """What a cache is made of, by which backward may tell one mode from the other."""
    if isinstance(value, tuple | list):
        return [_form(item) for item in value]
    return type(value), np.shape(value) if hasattr(value, "dtype") else ()
