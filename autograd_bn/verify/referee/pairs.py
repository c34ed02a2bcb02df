"""How an author's code is called: a convention a row, and what comes of it as a pair of functions on arrays."""

from __future__ import annotations

import ast
import copy
import dis
import inspect
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial, wraps
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from ...engine import Tensor
from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .held import (
    Path,
    arrays,
    best,
    get,
    groups,
    is_array,
    is_float,
    is_tensor,
    label,
    looks_like_a_gradient,
    put,
    vector,
)
from .returned import Gradients, Returned, derivative_of, is_constant, plain
from .source import code_of, framework, signature, syntax, unwrapped

_EXPECTED = (
    "expected a torch.autograd.Function, a jax.custom_vjp function, a layer object with forward and backward, "
    "or a function that returns a loss and its gradients"
)
# What a class may call its two passes; for functions, see `discover._NAMES`.
_FORWARD = """forward forward_pass forward_propagation forward_prop forward_propagate _forward_propagation _forward_pass
fprop fwd _forward feed_forward feedforward propagate propagar vorwaerts avanti compute __call__ function loss
compute_loss""".split()
_BACKWARD = """backward backward_pass backward_propagation backward_prop back_propagate back_propagation backprop bprop
bwd _backward_propagation _backward_pass _backward backpropagate backpropagation retropropagar rueckwaerts
indietro""".split()
_DERIVATIVE = "gradient gradients grad derivative deriv prime compute_derivative compute_gradient".split()
METHODS = [(f, b) for b in _BACKWARD for f in _FORWARD]
METHODS += [(f, b) for b in _DERIVATIVE for f in ("compute", "__call__", "function", "loss", "compute_loss")]
CONTEXTS = ("ctx", "context")
_CACHES = ("cache", "caches", "memory", "saved", "stored", "tape", "kept", "mem", *CONTEXTS)
_RATES = r"(lr|learning_?rate|alpha|eta|rate|step_?size)"
_LABELS = re.compile(r"y|Y|t|[yY]_?(true|real|train|batch|label|target)s?|targets?|labels?|ground_?truth|true_?\w*")
_SELECTS = re.compile(r"wrt\w*|\w*respect\w*|which|of|param(eter)?|arg(num)?s?|target_var|grad_(of|for)")
_SWITCHES = (
    r"(is_|in_)?train(ing)?(_mode)?|cache|(save|store|keep|use|with|return)_?(for_)?(cache|grad|back|tape|state)\w*"
)
_WEIGHTS = re.compile(r"(?i)b|bias|gamma|beta|w|weights?")
_OUTPUTS = ("output", "out", "outputs", "y", "result", "activation", "a", "z", "value", "data", "loss")


@dataclass(frozen=True)
class Pair:
    """A target as `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`, NumPy in and out.

    `source` is the author's backward, and `call(source, dy, cache)` what it returns, or an edited one in its place.
    `truth(inputs, dy)` are the gradients by the framework's own autodiff through the same forward code; it raises where
    that code leaves the framework. `unit`: backward takes no dy, and is the gradient for dy = 1. `unseen` are arrays
    that forward reads and that aren't judged, each with why. `calls` is how the author's own passes are called.
    """

    forward: Callable[..., Any]
    inputs: tuple[Any, ...]
    names: list[str]
    source: Callable[..., Any]
    call: Callable[[Callable[..., Any], Any, Any], Any]
    truth: Callable[[dict[str, Any], Array], dict[str, Array]] | None = None
    unit: bool = False
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    calls: Calls | None = None


class NoPair(Exception):
    """A function isn't what its name seemed to say."""


@dataclass(frozen=True)
class Author:
    """What an author wrote: `forward(*lead, ...)` and `backward(*lead, ...)`; the lead is a copy of `owner` a call."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    owner: Any = None
    leads: bool = False
    names: tuple[str, ...] = ()

    def copied(self) -> Any:
        """A copy of the owner, with the iterators and generators in it as they are."""
        try:
            return copy.deepcopy(self.owner)
        except Exception as error:
            kind = type(self.owner).__name__
            raise Unjudgeable(f"an object of {kind} can't be copied ({error}), and is not run as it is") from None


class Context:
    """A `ctx` for functions that keep what backward reads in one."""

    saved: tuple[Any, ...] = ()

    def save_for_backward(self, *values: Any) -> None:
        """Keep what backward reads."""
        self.saved = values

    def __setitem__(self, key: str, value: Any) -> None:
        self.__dict__[key] = value

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    saved_tensors = saved_values = to_save = property(lambda self: self.saved)
    needs_input_grad = (True,) * 99


# Who wrote what


def switched(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward pass that is told to keep what backward reads, where it has a switch for that, `train=False`."""
    off = [n for n, p in signature(forward).items() if p.default is False and re.fullmatch(_SWITCHES, n.lower())]
    if not off:
        return forward

    @wraps(forward)
    def call(*values: Any) -> Any:
        filled = [*signature(forward)][: len(values)]
        return forward(*values, **{name: True for name in off if name not in filled})

    return call


def parameters(function: Callable[..., Any], count: int | None = None, skip: int = 0) -> list[str]:
    """The names of a function's first parameters, or of those that a caller must give."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    listed = [p for p in signature(function).values() if p.kind in kinds]
    if count is None:  # a bias is there, too, where it may be left out
        needed = [p.default is p.empty or (p.default is None and bool(_WEIGHTS.fullmatch(p.name))) for p in listed]
        return [p.name for i, p in enumerate(listed) if p.default is p.empty or all(needed[: i + 1])]
    names = [p.name for p in listed[skip : skip + count]]
    return names + [f"input{i}" for i in range(len(names), count)]


def methods_of(what: type) -> tuple[str, str] | None:
    """What a class calls its two passes."""
    own = {name for base in what.__mro__ for name in vars(base)}
    return next((pair for pair in METHODS if own >= {*pair} and all(callable(getattr(what, n)) for n in pair)), None)


def author_of(target: Any) -> Author:
    """The passes of a class or an object, and what they work on."""
    what = target if isinstance(target, type) else type(target)
    passes = methods_of(what)
    if passes is None or (passes[0] == "__call__" and inspect.isfunction(target)):
        raise TypeError(f"target is {getattr(target, '__name__', f'a {what.__name__}')}, {_EXPECTED}")
    forward, backward = _called(what, passes[0]), getattr(what, passes[1])
    first = next(iter(signature(forward)), "")
    if inspect.ismethod(forward):  # a class method
        return Author(switched(forward.__func__), backward.__func__, what, leads=True)
    if first in CONTEXTS:
        return Author(forward, backward, _context(forward), leads=True)
    if isinstance(inspect.getattr_static(what, passes[0]), staticmethod):
        return Author(forward, backward)
    if isinstance(target, type):
        raise TypeError(f"target is the class {target.__name__}, expected an object of it: {target.__name__}(...)")
    return Author(switched(forward), backward, target, leads=True)


def _called(what: type, name: str) -> Any:
    """The forward pass, by way of `__call__` where that calls it and keeps something on the object."""
    forward = getattr(what, name)
    call = next((vars(base)["__call__"] for base in what.__mro__ if "__call__" in vars(base)), None)
    if name == "__call__" or not inspect.isfunction(call) or not inspect.isfunction(forward):
        return forward
    stores = any(step.opname == "STORE_ATTR" for step in dis.get_instructions(call.__code__))
    return wraps(forward)(lambda *values: call(*values)) if stores and name in call.__code__.co_names else forward


def doubled(owner: Any) -> Any:
    """An object whose tensors are in double precision."""
    for value, paths in groups(arrays({"object": owner})):
        wide = value.detach().double() if is_tensor(value) and value.is_leaf else None
        for path in [path for path in paths if path[-1] != "grad" and wide is not None]:
            put({"object": owner}, path, wide)
    return owner


def _context(forward: Any) -> Any:
    """A context of the author's own file, else one of ours."""
    space = getattr(unwrapped(forward), "__globals__", {})
    for value in [*space.values()]:
        own = isinstance(value, type) and value.__module__ == space.get("__name__")
        if own and (hasattr(value, "save_for_backward") or re.search("(?i)ctx|context", value.__name__)):
            with suppress(Exception):
                return value()
    return Context()


def loss(function: Callable[..., Any], inputs: Sequence[Any]) -> Pair:
    """`loss, dx = function(x, ...)`; several gradients are those that their names say, else of the first inputs."""
    from .frameworks import library_of

    library, hints, names = library_of(inputs), returned_names(function), parameters(function, len(inputs))

    def results(run: Callable[..., Any], values: Sequence[Any]) -> list[Any]:
        """The loss and its gradients, which some return first."""
        copies = [v if isinstance(v, Tensor) else copy.deepcopy(v) for v in values]  # of a tensor it would be recorded
        with seeded(function), library.precise():
            back = run(*map(library.lift, copies))
        if not isinstance(back, tuple | list) or len(back) < 2 or isinstance(back[0], str):
            raise NoPair
        place = int(len(back) == 2 and not _is_number(back[0]))
        first, *rest = reversed(back) if place else back
        if not _is_number(first):
            raise NoPair
        return [library.lower(first), rest[0] if len(rest) == 1 else rest, place]

    inputs = tuple(map(array, inputs))
    _, rest, place = results(function, inputs)
    known = {plain(name): name for name in names}
    hints = [*map(str, rest)] if isinstance(rest, dict) else hints[1:]
    said = [next((known[n] for n in derivative_of(hint) if n in known), "") for hint in hints]
    count = len(rest) if isinstance(rest, tuple | list) else 1
    judged = said if len(said) == count and all(said) else names[:count]
    judged = list(filter(None, said)) if isinstance(rest, dict) else judged

    @wraps(function)
    def forward(*values: Any) -> Any:
        return results(function, values)[0], values

    def call(edited: Callable[..., Any], dy: Any, values: Any) -> Any:
        back = lowered(results(edited, values)[1])
        if isinstance(back, dict):
            scaled: Any = {name: dy * value for name, value in back.items()}
        else:
            listed = back if isinstance(back, tuple | list) else (back,)
            scaled = tuple([None if d is None else dy * d for d in listed])
        return Gradients(scaled, {}, (), tuple(judged))

    floats = [
        n for n, v in zip(names, inputs, strict=True) if is_float(v) and n not in judged and not is_constant(n, v)
    ]
    unseen = tuple([f"{name}, of which no gradient is returned" for name in floats])
    calls = Calls(Author(function, function), inputs)
    calls.plan = Plan((("result", place),), tuple([("input", name) for name in names]))
    return Pair(forward, inputs, names, function, call, unseen=unseen, calls=calls)


def _is_number(value: Any) -> bool:
    return not isinstance(value, dict) and not np.shape(value)


def loss_class(what: Any) -> type:
    """A class whose `loss(X, y)` returns the loss and its gradients as one with a forward and a backward pass."""
    taken, hint = [*signature(what.loss).values()], returned_names(what.loss)[1]

    def forward(self: Any, *values: Any) -> Any:
        return what.loss(self, *values)

    def backward(self: Any, dy: Any, cache: Any) -> Any:
        back = cache if isinstance(cache, dict) else {hint: cache}
        return {label(name if isinstance(name, tuple) else (name,)): dy * value for name, value in back.items()}

    wanted = [p for p in taken if p.default is p.empty or _LABELS.fullmatch(p.name) or p.name == "reg"]
    forward.__signature__ = inspect.Signature([p.replace(default=p.empty) for p in wanted])  # type: ignore[attr-defined]
    # By these its source is found, by the second from Python 3.13 on.
    place = {key: vars(what)[key] for key in ("__module__", "__firstlineno__") if key in vars(what)}
    return type(what.__name__, (what,), {"forward": forward, "backward": backward, **place})


def adapt(target: Any, inputs: Sequence[Any]) -> Pair:
    """Recognise a target by what it is, with the frameworks that the caller has imported."""
    from .frameworks import jax_function, torch_function

    if isinstance(target, Pair):
        return target
    torch, jax = framework("torch"), framework("jax")
    if torch is not None and isinstance(target, type) and issubclass(target, torch.autograd.Function):
        return torch_function(torch, target, inputs)
    if jax is not None and isinstance(target, jax.custom_vjp):
        return jax_function(jax, target, inputs)
    if inspect.isfunction(target) and len(returned_names(target)) != 1:
        with suppress(NoPair):
            return loss(target, inputs)
    if methods_of(type(target)) is None and len(returned_names(getattr(type(target), "loss", None))) == 2:
        target = copy.copy(target)
        target.__class__ = loss_class(type(target))
    return Calls(author_of(target), inputs).pair()


def numpy_pair(forward: Any, backward: Any, inputs: Sequence[Any]) -> Pair:
    """A pair of functions or of methods."""
    for what, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"{what} is a {type(function).__name__}, expected a function")
    owner = getattr(backward, "__self__", None) if inspect.ismethod(backward) else None
    leads = owner is not None and getattr(forward, "__self__", None) is owner
    if leads:
        forward, backward = forward.__func__, backward.__func__
    first = next(iter(signature(forward)), "")
    if not leads and first in CONTEXTS and len(signature(forward)) == len(inputs) + 1:
        owner, leads = _context(forward), True
    return Calls(Author(forward, backward, owner, leads), inputs).pair()


def returned_names(function: Any) -> list[str]:
    """What a function's last `return` calls the values that it returns; an empty name for what has none."""
    returns = [node for node in ast.walk(syntax(function)) if isinstance(node, ast.Return)]
    returns = sorted(returns, key=lambda node: node.lineno)
    values = [node.value for node in returns if node.value is not None]
    items = values[-1].elts if values and isinstance(values[-1], ast.Tuple | ast.List) else values[-1:]
    return [
        re.sub(r"\W", "", item.attr if isinstance(item, ast.Attribute) else getattr(item, "id", "")) for item in items
    ]


# How it is called


class Library(NamedTuple):
    """What an author computes with: arrays into it and out of it, outputs laid end to end, and its own derivative."""

    lift: Callable[[Any], Any]
    lower: Callable[[Any], Any]
    join: Callable[[list[Any]], Any]
    precise: Callable[[], Any]
    truth: Any = None


def _joined(parts: list[Any]) -> Any:
    return np.concatenate([np.reshape(part, -1) for part in parts]) if len(parts) > 1 else parts[0]


def itself(value: Any) -> Any:
    """A value as it is."""
    return value


NUMPY = Library(itself, itself, _joined, nullcontext)


def array(value: Any) -> Any:
    """A framework's array, or a list of floats, as NumPy's, floats in double precision; anything else as it is."""
    value = vector(value)
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    elif hasattr(value, "__array__") and not isinstance(value, np.generic):
        value = np.asarray(value)
    return value.astype(np.float64, copy=False) if is_float(value) else value


@dataclass(frozen=True)
class Plan:
    """Where forward's outputs are, and what backward is called with: places in what is `Seen`, or dy's by number."""

    outputs: tuple[Path, ...]
    arguments: tuple[Path, ...]
    sure: bool = True  # whether it follows from the counts and names of arguments and results
    hung: str = ""  # the attribute of the output in which backward looks for dy, as `self.out.g`

    @property
    def unit(self) -> bool:
        """Whether backward takes no dy."""
        return not self.hung and not any(place[0] == "dy" for place in self.arguments)


Seen = dict[str, Any]  # after a forward pass: "object", "input" by name, "result" in parts, "start" of the parameters


class _Kept:
    """What backward reads, as a cache; `watched` says what it must not overwrite."""

    def __init__(self, seen: Seen, outputs: list[Any], watched: Callable[[], dict[str, Any]]) -> None:
        self.reveal, self.watched = lambda: (seen, outputs), watched


class Calls:
    """The calls of an author's passes: found out by making them, on copies of everything."""

    def __init__(self, author: Author, inputs: Sequence[Any], library: Library | None = None) -> None:
        from .frameworks import library_of

        self.author, self.framework = author, library or library_of(inputs)
        if self.framework is not NUMPY and author.owner is not None:
            self.author = replace(author, owner=doubled(author.copied()))
        self.names = parameters(author.forward, len(inputs), skip=int(author.leads))
        self.inputs = tuple(map(array, inputs))
        self.slots: dict[str, list[Path]] = {}  # arrays that forward reads from objects: where each of them stands
        self.values: list[Any] = []
        self.places: dict[str, Path] = {}  # where backward leaves a gradient, by what it is the gradient of
        self.constants: list[str] = []  # inputs of a loss that returns one gradient, of another input
        self.rates: dict[str, float] = {}  # and by how much it moves a parameter that it updates itself
        self.notes: list[str] = []
        self.unseen: list[str] = []
        self.returns = returned_names(author.backward)
        self.plan = Plan((), ())

    def pair(self) -> Pair:
        """The calls as a pair."""
        calls = self._chosen()
        notes = ["backward takes no dy: it is judged as the gradient for dy = 1."] if calls.plan.unit else []
        unseen = [*calls.unseen, *globals_read(self.author.forward)]
        return replace(calls.made(), notes=(*calls.notes, *notes), unseen=tuple(unseen))

    def made(self) -> Pair:
        """The calls as a pair, as they are planned."""
        author, names = self.author, [*self.names, *self.slots]

        @wraps(author.forward)
        def forward(*values: Any) -> tuple[Any, Any]:
            seen = self.passed(values)
            outputs = self.outputs(seen)
            return self.framework.lower(self.framework.join(outputs)), _Kept(
                seen, outputs, partial(self._watched, seen)
            )

        def call(function: Callable[..., Any], dy: Any, kept: Any) -> Any:
            return self.pulled(function, dy, *kept.reveal())

        truth = self.framework.truth and self.framework.truth(self, names)
        values = (*self.inputs, *self.values)
        return Pair(forward, values, names, author.backward, call, truth, self.plan.unit, calls=self)

    # One pass

    def passed(self, values: Sequence[Any]) -> Seen:
        """What there is after a forward pass at these values, which it may overwrite."""
        count, lift = len(self.names), self.framework.lift
        seen: Seen = {
            "object": self.author.copied(),
            "input": dict(zip(self.names, map(lift, values[:count]), strict=True)),
        }
        seen["start"] = dict(zip(self.slots, values[count:], strict=True))
        for name, value in seen["start"].items():
            shape = np.shape(get(seen, self.slots[name][0]))
            if shape != np.shape(value):
                raise ValueError(f"{name} has shape {shape}, not {np.shape(value)}")
            for path in self.slots[name]:
                put(seen, path, lift(value))
            seen["start"][name] = copy.copy(value)  # backward may update the parameter in place
        seen["before"] = {} if self.plan.outputs else arrays({"object": seen["object"]})
        with seeded(self.author.forward), self.framework.precise():
            result = self.author.forward(*self._lead(seen), *seen["input"].values())
        result = vector(result)
        seen["result"] = list(result) if isinstance(result, tuple | list) else [result]
        return seen

    def _anew(self, seen: Seen) -> None:
        """Have gradients start from 0, since some layers add to them, and parameters from where they were."""
        for name, place in self.places.items():
            held = get(seen, place)
            if place in self.slots.get(name, ()):
                for path in self.slots[name]:
                    put(seen, path, self.framework.lift(copy.copy(seen["start"][name])))
            elif isinstance(held, np.ndarray):
                held[...] = 0
            elif isinstance(held, list):
                put(seen, place, np.zeros(np.shape(held)))

    def _lead(self, seen: Seen) -> tuple[Any, ...]:
        return (seen["object"],) if self.author.leads else ()

    def outputs(self, seen: Seen) -> list[Any]:
        """What forward computed, by the plan."""
        outputs = [get(seen, place) for place in self.plan.outputs]
        if any(y is None for y in outputs):
            raise NotImplementedError("forward returned None")
        return outputs

    def _watched(self, seen: Seen) -> dict[str, Any]:
        """The arrays that backward has no business with writing into."""
        own, held = {*self.places.values()}, arrays({"object": seen["object"]})
        own |= {path for paths in self.slots.values() for path in paths}
        gradients = {id(value) for path, value in held.items() if path in own or looks_like_a_gradient(path)}
        watched = {"": seen["result"][1:]}
        for path, value in held.items():
            if is_array(value) and id(value) not in gradients:
                watched[str(path[-1])] = value if isinstance(value, np.ndarray) else array(value)
        return watched

    def pulled(self, function: Callable[..., Any], dy: Any, seen: Seen, outputs: list[Any]) -> Gradients:
        """What a backward pass returns and leaves behind."""
        parts = [dy]
        if len(outputs) > 1:
            shapes = [np.shape(y) for y in outputs]
            ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
            parts = [p.reshape(s) for p, s in zip(np.split(np.reshape(dy, -1), ends), shapes, strict=True)]
        self._anew(seen)
        there = seen | {"dy": list(map(self.framework.lift, parts)), "rate": 1.0, "node": _node(seen)}
        if self.plan.hung:
            setattr(outputs[0], self.plan.hung, there["dy"][0])
        with self.framework.precise():
            back = function(*self._lead(seen), *[get(there, place) for place in self.plan.arguments])
        if np.ndim(self.inputs[0]):
            back = vector(back)
        if self.plan.unit and isinstance(back, int | float) and np.shape(outputs[0]) == np.shape(self.inputs[0]):
            back = np.full(np.shape(self.inputs[0]), float(back))  # the derivative of each entry, the same for all
        if len(parts) == 1 and isinstance(dy, np.ndarray):
            np.copyto(dy, array(there["dy"][0]))  # where a framework's copy was overwritten
        left = {}
        for name, place in self.places.items():
            left[name] = array(get(seen, place))
            if place in self.slots.get(name, ()) and left[name] is not None:  # backward updates the parameter itself
                left[name] = (array(seen["start"][name]) - left[name]) / self.rates[name]
        names = [name for name in self.names if name not in self.constants]
        return Gradients(lowered(back), left, tuple(self.returns), tuple(names))

    # How backward is called

    def _chosen(self) -> Calls:
        """Called by the first row under which the gradients are right where there are several, else that works."""
        seen = self.passed(copy.deepcopy(self.inputs))
        candidates = list(dict.fromkeys(plans(self.author, self.names, seen)))
        if not candidates:
            none = len(seen["result"]) == 1 and any(plain(n) in _CACHES for n in signature(self.author.backward))
            takes = f"backward takes other arguments than (dy, cache): ({', '.join(signature(self.author.backward))})"
            raise Unjudgeable("forward returned no cache, expected a pair (y, cache)" if none else takes)
        best, rated, raised = self, -2.0, ""
        for plan in candidates:
            calls, score = self.planned(plan), -1.0
            try:
                calls.look_for_parameters()
                if len(candidates) > 1 or not plan.sure:
                    score = share(calls.made())
            except NotImplementedError:  # it is yet to be written
                score = 0.0
            except Unjudgeable:
                raise
            except Exception as error:
                raised = raised or f"{type(error).__name__}: {error}"
            if score > rated:
                best, rated = calls, score
            if score == 1:
                break
        best._refuse(rated if len(candidates) > 1 or not best.plan.sure else None, raised)
        read = {*best.plan.outputs, *best.plan.arguments}  # the last result may be a cache
        left = [i for i, part in enumerate(seen["result"][:-1]) if is_array(part) and ("result", i) not in read]
        best.unseen += [f"output {i} of forward, for which backward takes no gradient" for i in left]
        return best

    def planned(self, plan: Plan) -> Calls:
        """The calls as a plan has them."""
        calls = copy.copy(self)
        calls.plan, calls.notes, calls.unseen, calls.places, calls.rates = plan, [], [], {}, {}
        calls.constants = []
        calls.slots, calls.values = {}, []
        return calls

    def _refuse(self, rated: float | None, raised: str) -> None:
        """Decline what backward takes and nobody can hand it, where the gradients aren't right all the same."""
        taken = signature(self.author.backward)
        wanted = [name for name, p in taken.items() if p.default is p.empty]
        choices = [name for name in taken if _SELECTS.fullmatch(name) and name not in self.names]
        gradients = [name for name in wanted if len(derivative_of(name)) > 1]
        labels = [n for n in wanted if not gradients and _LABELS.fullmatch(n) and n not in self.names]
        if (labels or choices) and rated is None:
            with suppress(Exception):
                rated = share(self.made())
        if choices and ((rated or 0) < 1 or self.unseen):
            raise Unjudgeable(f"backward takes {choices[0]}, by which it returns one gradient or another")
        if raised and not self.plan.sure and rated is not None and rated < 0:
            raise Unjudgeable(f"backward takes other arguments than (dy, cache), it seems: it raised {raised}")
        if labels and (rated or 0) < 1:
            raise Unjudgeable(f"backward takes {labels[0]}, which forward doesn't: its loss is computed elsewhere")

    # What forward reads beside its arguments

    def look_for_parameters(self) -> None:
        """Take for parameters the arrays in objects and containers that move the output when they are moved."""
        first = self.passed(copy.deepcopy(self.inputs))
        cold, author = self._read(), self.author
        if author.owner is not None:  # some are made by the first forward pass
            self.author = replace(author, owner=first["object"])
            warm = dict[str, list[Path]]()
            with suppress(Exception):
                warm = self._read()
            if set(warm) <= set(cold) or self._moves(set(warm) - set(cold), warm):
                self.author, warm = author, cold
            else:
                self._forget(author.owner, warm)
            cold = warm
        self.slots = cold
        root = self._root()
        self.values = [array(copy.deepcopy(get(root, paths[0]))) for paths in cold.values()]
        numbers = [name for name, value in zip(cold, self.values, strict=True) if isinstance(value, float)]
        self.values = [np.asarray(value) for value in self.values]
        self._move_plain_ones()
        self._place(numbers)
        for name in [name for name in numbers if name not in self.places]:  # an eps, a rate
            del self.values[[*self.slots].index(name)]
            del self.slots[name]

    def _moves(self, names: set[str], places: dict[str, list[Path]]) -> bool:
        """Whether another forward pass changes some of these arrays: then they are sums that it keeps."""
        again, before = self.passed(copy.deepcopy(self.inputs)), self._root()
        return any(not np.array_equal(get(again, places[n][0]), get(before, places[n][0])) for n in names)

    def _forget(self, cold: Any, kept: dict[str, list[Path]]) -> None:
        """Take out of lists what the first forward pass put there, but parameters: inputs that it kept would stay."""
        one, parts = {"object": self.author.owner}, {path for paths in kept.values() for path in paths}
        for path in [path for path in arrays(one) if path not in parts and not looks_like_a_gradient(path)]:
            held, before = get(one, path[:-1]), get({"object": cold}, path[:-1])
            if isinstance(held, list):
                del held[len(before) if isinstance(before, list) else 0 :]

    def _root(self) -> Seen:
        return {"object": self.author.owner, "input": dict(zip(self.names, self.inputs, strict=True))}

    def _plain(self, seen: Seen) -> Array:
        return np.concatenate([np.ravel(array(y)) for y in self.outputs(seen)]).astype(np.float64)

    def _tried(self, values: Sequence[Any]) -> Array | None:
        """The output at these values, where forward takes them."""
        try:
            return self._plain(self.passed(copy.deepcopy([*self.inputs, *values])))
        except Unjudgeable:
            raise
        except Exception:
            return None

    def _read(self) -> dict[str, list[Path]]:
        """The arrays that the output depends on, by name.

        Each is moved from where those that are 0 or 1 throughout are moved already: zero weights hide all before them.
        """
        rng, candidates = np.random.default_rng(3), dict[str, tuple[Any, list[Path]]]()
        for value, paths in groups(arrays(self._root())):
            number = not hasattr(value, "shape") and paths[0][0] == "object"
            if (is_array(value) or number) and not (paths[0][0] == "input" and len(paths[0]) == 2):
                paths.sort(key=looks_like_a_gradient)
                name = label(paths[0][1:] if paths[0][0] == "object" else paths[0][2:])
                if name in self.names or name in candidates:
                    name = label(paths[0]).replace("object", "self", 1)
                candidates[name] = np.asarray(value) if number else array(value), paths
        start = {n: stirred(v, rng) for n, (v, _) in candidates.items() if np.all((v == 0) | (v == 1))}
        for begin in (start, {}):
            self.slots = {name: candidates[name][1] for name in begin}
            y = self._tried([*begin.values()])
            if y is not None and np.isfinite(y).all():
                break
        read = dict[str, list[Path]]()
        for name, (value, paths) in candidates.items() if y is not None else ():
            self.slots = {n: candidates[n][1] for n in begin} | {name: paths}
            moved = self._tried([*(begin | {name: stirred(begin.get(name, value), rng)}).values()])
            if moved is None or y is None or not np.array_equal(moved, y, equal_nan=True):
                read[name] = paths
        self.slots = {}
        return read

    def _move_plain_ones(self) -> None:
        """Move parameters that are 0 or 1 throughout, as a gain and a bias at the start: they would hide mistakes."""
        rng = np.random.default_rng(5)
        for i, value in enumerate(self.values):
            if np.all((value == 0) | (value == 1)):
                values = [*self.values[:i], stirred(value, rng), *self.values[i + 1 :]]
                y = self._tried(values)
                if y is not None and np.isfinite(y).all():
                    self.values = values

    def _all(self) -> dict[str, Any]:
        return dict(zip([*self.names, *self.slots], [*self.inputs, *self.values], strict=True))

    def _place(self, numbers: Sequence[str]) -> None:
        """Find where backward leaves the gradients that it does not return; name the arrays that have none."""
        floats = {name: value for name, value in self._all().items() if is_float(value)}
        try:
            seen = self.passed(copy.deepcopy([*self._all().values()]))
            outputs, y = self.outputs(seen), self._plain(seen)
            before = arrays({"object": seen["object"]})
            bits = {path: array(value).tobytes() for path, value in before.items() if is_array(value)}
            dy = np.ones(y.shape) if self.plan.unit else np.asarray(np.random.default_rng(7).normal(size=y.shape))
            shaped = dy if len(outputs) > 1 else dy.reshape(np.shape(outputs[0]))
            out = Returned()
            out.sort(self.pulled(self.author.backward, shaped, seen, outputs), self._all(), dict.fromkeys(floats, 1.0))
        except Exception as error:  # for the verdict to report
            self.unseen += [f"{name}, since backward raised {type(error).__name__}" for name in self.slots]
            return
        known = arrays({"object": seen["object"]})
        after = {path: value for path, value in known.items() if hasattr(value, "dtype")}
        lists = {p for p in after if isinstance(get({"object": seen["object"]}, p), list)}
        same = {p for p, v in after.items() if before.get(p) is v or (p in lists and p in bits)}
        new = {p for p, v in after.items() if p not in same or bits.get(p) != array(v).tobytes()}
        held = {path for paths in self.slots.values() for path in paths}
        open_ = [path for path in after if path not in held]
        rated = {}
        for name in [name for name in floats if name not in out.gradients]:
            called = (name, "x", "input", "inputs") if name == next(iter(floats)) else (name,)
            paths, shape = self.slots.get(name) or [("object", n) for n in called], np.shape(floats[name])
            rated[name] = [
                (s, p)
                for s, p in best(paths, open_)
                if s >= 2 or (p in new and np.shape(after[p]) == shape and name not in numbers)
            ]
        # Those whose names say it come first: what they take is nobody else's.
        for name in sorted(rated, key=lambda name: -max([surety for surety, _ in rated[name]], default=0)):
            left = [(surety, place) for surety, place in rated[name] if place not in self.places.values()]
            moved = [path for path in self.slots.get(name, ()) if path in new]
            place = self._gradient_of(name, left, after, new, dy) or (
                moved and self._updated(name, moved[0], known, dy)
            )
            if not place and name in self.slots:
                place = self._only_one(name, rated[name], y)
            if place:
                self.places[name] = place
            elif name in self.slots and name not in numbers and not is_constant(name, floats[name]):
                why = "which backward moves by no multiple of a gradient"
                self.unseen.append(f"{name}, {why if moved else 'of which backward leaves no gradient'}")
        if y.size == 1:
            self._take_for_constants(out.gradients, floats, dy)

    def _take_for_constants(self, returned: dict[str, Array], floats: dict[str, Any], dy: Array) -> None:
        """The one gradient of a loss is that of the input whose slope it is; what else is as long is labels."""
        kept = [name for name in self.names if name in returned or name in self.places]
        if len(returned) == 1 and kept:
            (gradient,) = returned.values()
            step = np.asarray(np.random.default_rng(11).normal(size=gradient.shape))
            terms, fit = gradient * step, [n for n in self.names if n in floats and floats[n].shape == gradient.shape]
            near = [n for n in fit if abs(np.sum(terms) - self._slope(n, dy, step)) <= 1e-5 * np.sum(np.abs(terms))]
            kept = near[:1] or kept
        labels = [n for n in self.names if n in floats and n not in kept]
        labels = [n for n in labels if any(np.shape(floats[n])[:1] == np.shape(floats[k])[:1] for k in kept)]
        self.constants = labels
        self.unseen += [f"{n}, of which no gradient is returned" for n in labels if not is_constant(n, floats[n])]

    def _gradient_of(
        self, name: str, rated: list[tuple[float, Path]], after: dict[Path, Any], new: set[Path], dy: Array
    ) -> Path | None:
        """The place whose name says that this gradient is there, else the one whose values do."""
        best_ones = [place for surety, place in rated if surety == rated[0][0]]
        sure = best_ones[0] if rated and rated[0][0] >= 2 and len(best_ones) == 1 else None
        if sure in new:
            return sure
        step = np.random.default_rng(11).normal(size=np.shape(self._all()[name]))
        slope = self._slope(name, dy, step)
        for _, place in rated:
            terms = array(after[place]) * step if np.shape(after[place]) == step.shape else np.zeros(1)
            if np.any(terms) and abs(np.sum(terms) - slope) <= 1e-5 * np.sum(np.abs(terms)):
                return place
        if sure:
            return sure
        likely = [place for surety, place in rated if surety >= 1 or looks_like_a_gradient(place)]
        return likely[0] if likely and (rated[0][0] >= 1 or len(likely) == 1) and name in self.slots else None

    def _only_one(self, name: str, rated: list[tuple[float, Path]], y: Array) -> Path | None:
        """The one array that backward wrote of a parameter's shape, which no other array that forward reads has."""
        shapes = [np.shape(value) for value in self._all().values()]
        left = [place for _, place in rated if place not in self.places.values()]
        shape = np.shape(self._all()[name])
        return left[0] if len(left) == 1 == shapes.count(shape) and shape not in ((), y.shape) else None

    def _slope(self, name: str, dy: Array, step: Array) -> float:
        """How fast `sum(y * dy)` changes along a step of one array, by a difference."""
        values, h = self._all(), 1e-5 * float(np.max(np.abs(self._all()[name]), initial=0) or 1)
        ends = []
        for sign in (1, -1):
            at = values | {name: values[name] + sign * h * step}
            ends.append(self._plain(self.passed(copy.deepcopy([*at.values()]))))
        return float(np.sum((ends[0] - ends[1]) * dy) / (2 * h))

    def _updated(self, name: str, place: Path, known: dict[Path, Any], dy: Array) -> Path | None:
        """The place of a parameter that backward updates itself, if its step is a multiple of a gradient."""
        change = array(self._all()[name]) - array(known[place])
        rates = [v for p, v in known.items() if isinstance(v, float) and re.fullmatch(_RATES, str(p[-1]))]
        rates += [
            p.default for n, p in signature(self.author.backward).items() if re.fullmatch(_RATES, n) and p.default
        ]
        rates = [rate for rate in rates if isinstance(rate, float)]
        handed = ("rate",) in self.plan.arguments
        step = np.random.default_rng(11).normal(size=change.shape)
        factor = (
            1.0 if handed else float(rates[0]) if rates else float(np.sum(change * step)) / self._slope(name, dy, step)
        )
        if not handed and not rates:
            step, factor = np.random.default_rng(12).normal(size=change.shape), float(f"{factor:.4g}")
            if abs(np.sum(change * step) - factor * self._slope(name, dy, step)) > 1e-4 * np.sum(np.abs(change * step)):
                return None
        self.rates[name] = factor
        self.notes.append(
            f"backward updates {name} itself; its step, divided by {factor:.4g}, is judged as the gradient."
        )
        return place


def agreement(pair: Pair) -> dict[str, bool | None]:
    """For each gradient, whether it agrees with a difference along one step; None where its shape is another."""
    rng, inputs = np.random.default_rng(2), dict(zip(pair.names, pair.inputs, strict=True))
    output: Any = lambda at: np.asarray(pair.forward(*copy.deepcopy([*at.values()]))[0], dtype=np.float64)
    y, kept = pair.forward(*copy.deepcopy(pair.inputs))
    # Losses often take dy for 1 and don't read it, which is for the referee to say.
    dy = np.ones(np.shape(y)) if pair.unit or np.size(y) == 1 else rng.normal(size=np.shape(y))
    floats, out = [name for name, value in inputs.items() if is_float(value)], Returned()
    out.sort(pair.call(pair.source, dy, kept), inputs, dict.fromkeys(floats, 1.0))
    agree: dict[str, bool | None] = {}
    for name, gradient in out.gradients.items():
        agree[name] = None
        if gradient.shape == inputs[name].shape:
            step = rng.normal(size=gradient.shape) * (float(np.std(inputs[name])) or 1.0)
            up, down = (output(inputs | {name: inputs[name] + h * step}) for h in (1e-5, -1e-5))
            terms, slope = gradient * step, float(np.sum((up - down) * dy)) / 2e-5
            agree[name] = abs(float(np.sum(terms)) - slope) <= 1e-4 * float(np.sum(np.abs(terms))) + 1e-9
    missing = [f for finding in out.findings for f in finding.gradients]
    return agree | dict.fromkeys(missing, False) | dict.fromkeys(out.numbers)


def share(pair: Pair) -> float:
    """Which share of a pair's gradients agrees with differences."""
    with np.errstate(all="ignore"):
        told = agreement(pair)
    return sum(map(bool, told.values())) / max(len(told), 1)


def stirred(value: Array, rng: np.random.Generator) -> Array:
    """Values near by that are neither 0 nor 1 nor equal to each other; what is positive stays so."""
    size = float(np.max(np.abs(value), initial=0)) or 1.0
    return np.asarray(
        np.where(
            value == 0, 0.3 * size * rng.uniform(0.5, 1.5, value.shape), value * rng.uniform(0.6, 1.4, value.shape)
        )
    )


@contextmanager
def seeded(function: Any) -> Iterator[None]:
    """The same random numbers in every call, and the caller's generators as they were."""
    space = getattr(unwrapped(function), "__globals__", {})
    torch = framework("torch")
    own = [v for v in [*space.values()] if isinstance(v, np.random.Generator)]
    was = [copy.deepcopy(g.bit_generator.state) for g in own]
    kept = np.random.get_state(), random.getstate(), torch and torch.get_rng_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    if torch:  # not `torch.manual_seed`, which formats the stack for each kind of device
        torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        for generator, state in zip(own, was, strict=True):
            generator.bit_generator.state = state
        np.random.set_state(kept[0])  # noqa: NPY002
        random.setstate(kept[1])
        if torch:
            torch.set_rng_state(kept[2])


def globals_read(function: Any) -> list[str]:
    """The arrays of a file or a closure that a function reads by name: nobody hands them over, so none is judged."""
    with suppress(TypeError, ValueError):
        read = inspect.getclosurevars(unwrapped(function))
        held = {**read.globals, **read.nonlocals}
        return [f"{name}, which forward reads from outside" for name, value in held.items() if is_array(value)]
    return []


def lowered(value: Any) -> Any:
    """A framework's arrays as NumPy's, also inside of containers."""
    if isinstance(value, dict):
        return {key: lowered(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(lowered, value)) if not hasattr(value, "_make") else tuple(map(lowered, value))
    return array(value)


def _node(seen: Seen) -> Any:
    """A node of a graph, as `gradient(out_grad, node)` reads it."""
    value: Any = lambda a: SimpleNamespace(
        cached_data=a, data=a, realize_cached_data=lambda: a, numpy=lambda: a, shape=np.shape(a)
    )
    return SimpleNamespace(inputs=list(map(value, seen["input"].values())), **vars(value(seen["result"][0])))


# The rows: what backward is called with


def plans(author: Author, names: list[str], seen: Seen) -> Iterator[Plan]:
    """The ways in which a backward pass may be meant to be called, the likeliest first."""
    parts = seen["result"]
    listed = [*signature(author.backward).values()][int(author.leads) :]
    kinds = inspect.Parameter
    variadic = any(p.kind is kinds.VAR_POSITIONAL for p in listed)
    listed = [p for p in listed if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    wanted = [p.name for p in listed if p.default is p.empty]
    if not wanted and listed and (listed[0].default is None or listed[0].default in (1, 1.0)) and not variadic:
        wanted = [p.name for p in listed[:1] if not re.fullmatch(_RATES, p.name) and p.name not in names]
    outputs: list[Path] = [("result", i) for i in range(len(parts))]
    hung = re.search(r"self\.(out\w*|y|result)\.(g|grad)\b(?!\w* *=[^=])", code_of(author.backward, 0))
    if hung and not wanted and hasattr(parts[0], "__dict__"):
        yield Plan((outputs[0],), (), hung=hung[2])
        return
    if len(parts) == 1 and parts[0] is None and author.leads:
        kept = _kept_output(seen)
        outputs = [kept] if kept else outputs
    called = returned_names(author.forward)
    if len(called) == len(outputs) == 2 and called[0] in _CACHES:
        outputs, called = outputs[::-1], called[::-1]
    named = dict(zip(called, outputs, strict=False)) if len(parts) > 1 else {}
    named = {name: place for name, place in named.items() if name and place != outputs[0]}
    fixed: dict[str, Path] = {}
    for name in wanted:
        if re.fullmatch(_RATES, name) and name not in names and (len(wanted) > 1 or name.startswith("l")):
            fixed[name] = ("rate",)  # `backward(eta)` takes a gradient
        elif name == "node":
            fixed[name] = ("node",)
        elif name in named and name not in _CACHES:
            fixed[name] = named[name]
        elif name in names:
            fixed[name] = ("input", name)
    labels = [name for name, place in fixed.items() if place[0] == "input"]
    if len(labels) == len(wanted) - 1 == len(outputs) == 1 and np.ndim(parts[0]) < 2:
        # The gradient of a loss, handed what it is the loss of in the place of dy.
        held = [path for path, value in arrays({"object": seen["object"]}).items() if plain(path[-1]) in _OUTPUTS]
        for place in [("input", names[0]), *held]:
            yield Plan((outputs[0],), tuple([fixed.get(name, place) for name in wanted]), False)
    slope = re.search("deriv|prime|grad(ient)?$", getattr(author.backward, "__name__", "")) and not author.leads
    if len(wanted) == len(outputs) == 1 and (wanted[0] in names or (slope and names)):
        yield Plan((outputs[0],), (fixed.get(wanted[0], ("input", names[0])),), True)
        yield Plan((outputs[0],), (outputs[0],), False)  # a derivative in terms of the output, `y * (1 - y)`
    for known in (fixed, {n: place for n, place in fixed.items() if place[0] != "input"}):
        free = [name for name in wanted if name not in known]
        for number, filled, sure in _filled(free, outputs, named, names, variadic):
            filling = iter(filled)
            arguments = [known[name] if name in known else next(filling) for name in wanted]
            yield Plan(tuple(outputs[:number]), (*arguments, *filling), sure)


def _filled(
    free: list[str], outputs: list[Path], named: dict[str, Path], names: list[str], variadic: bool
) -> Iterator[tuple[int, list[Path], bool]]:
    """How many outputs count, and what the arguments without a name of their own are: dy for each output, a cache."""
    count, several = len(free), len(outputs) > 1
    gradients = [name for name in free if len(derivative_of(name)) > 1]
    dys: list[Path] = [("dy", i) for i in range(len(outputs))]
    caches = [place for name, place in named.items() if name in _CACHES] or outputs[:0:-1]
    if variadic and not free:
        yield len(outputs), dys, True
    elif count == 0:
        yield 1, [], True  # the gradient of a loss, for dy = 1
    elif count == 1:
        if several and plain(free[0]) in _CACHES:
            yield 1, [caches[0]], True
        else:
            yield 1, dys[:1], True
            if several and not gradients:
                yield 1, [caches[0]], False
    elif several and count == len(outputs) and free[0] in _CACHES:
        yield count - 1, [caches[0], *dys[: count - 1]], True
    elif several and count == len(outputs):
        yield count - 1, [*dys[: count - 1], caches[0]], True
        if len(gradients) == count:
            yield count, dys, False
        elif len(gradients) == 1:
            yield 1, [dys[0], *outputs[1:]], False  # the cache as several results
    elif several and count < len(outputs):
        for cache in caches:
            yield count - 1, [*dys[: count - 1], cache], False
    elif count == 2 and plain(free[1]) not in _CACHES:
        inputs: list[Path] = [("input", name) for name in names]
        for place in [outputs[0], *inputs] if plain(free[1]) in _OUTPUTS else [*inputs, outputs[0]]:
            yield 1, [dys[0], place], False


def _kept_output(seen: Seen) -> Path | None:
    """Where an object keeps the output of a forward pass that returns nothing."""
    now, before = arrays({"object": seen["object"]}), seen["before"]
    inputs = [id(value) for value in seen["input"].values()]
    new = [p for p, v in now.items() if len(p) == 2 and before.get(p) is not v]
    named = [p for p in new if plain(p[1]) in _OUTPUTS]  # the input itself too, where that comes out as it is
    kept = named or [p for p in new if id(now[p]) not in inputs]
    return min(kept, key=lambda p: _OUTPUTS.index(plain(p[1])) if p in named else 99, default=None)
