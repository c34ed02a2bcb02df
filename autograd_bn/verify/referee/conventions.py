"""How an author's code is called, a convention a row: what is taken for a pair, and what backward is called with."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any

import numpy as np

from ...engine import Tensor
from ..gradcheck import Unjudgeable
from .author import (
    CONTEXTS,
    LABELS,
    Author,
    author_of,
    context_of,
    loss_class,
    parameters,
    returned_names,
    returns_a_loss,
    takes_a_context,
)
from .calls import Calls, Plan, Seen
from .frameworks import array, jax_function, library_of, lowered, seeded, torch_function
from .held import Path, arrays, get, is_array, is_float
from .pairs import NoPair, Pair, share
from .parameters import RATES, with_parameters
from .returned import Gradients, derivative_of, is_constant, plain
from .source import code_of, framework, signature

_CACHES = ("cache", "caches", "memory", "saved", "stored", "tape", "kept", "mem", *CONTEXTS)
_OUTPUTS = ("output", "out", "outputs", "y", "result", "activation", "a", "z", "value", "data", "loss")
_SELECTS = re.compile(r"wrt\w*|\w*respect\w*|which|of|param(eter)?|arg(num)?s?|target_var|grad_(of|for)")


def adapt(target: Any, inputs: Sequence[Any]) -> Pair:
    """Recognise a target by what it is, with the frameworks that the caller has imported."""
    torch, jax = framework("torch"), framework("jax")
    if isinstance(target, Pair):
        return target
    if torch is not None and isinstance(target, type) and issubclass(target, torch.autograd.Function):
        return torch_function(torch, target, inputs)
    if jax is not None and isinstance(target, jax.custom_vjp):
        return jax_function(jax, target, inputs)
    if inspect.isfunction(target) and len(returned_names(target)) != 1:
        with suppress(NoPair):
            return loss(target, inputs)
    if returns_a_loss(type(target)):
        target = copy.copy(target)
        target.__class__ = loss_class(type(target))
    return called(author_of(target), inputs)


def numpy_pair(forward: Any, backward: Any, inputs: Sequence[Any]) -> Pair:
    """A pair of functions or of methods."""
    for what, function in (("forward", forward), ("backward", backward)):
        if not callable(function):
            raise TypeError(f"{what} is a {type(function).__name__}, expected a function")
    owner = getattr(backward, "__self__", None) if inspect.ismethod(backward) else None
    leads = owner is not None and getattr(forward, "__self__", None) is owner
    if leads:
        forward, backward = forward.__func__, backward.__func__
    elif takes_a_context(forward) and len(signature(forward)) == len(inputs) + 1:
        owner, leads = context_of(forward), True
    return called(Author(forward, backward, owner, leads), inputs)


def loss(function: Callable[..., Any], inputs: Sequence[Any]) -> Pair:
    """`loss, dx = function(x, ...)`; several gradients are those that their names say, else of the first inputs."""
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

    def call(edited: Callable[..., Any], dy: Any, values: Any) -> Gradients:
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
    plan = Plan((("result", place),), tuple([("input", name) for name in names]))
    calls = replace(Calls.of(Author(function, function), inputs), plan=plan)
    return Pair(forward, inputs, names, function, call, unseen=unseen, calls=calls)


def _is_number(value: Any) -> bool:
    return not isinstance(value, dict) and not np.shape(value)


# What backward is called with


@dataclass(frozen=True)
class Signs:
    """What tells how a backward pass is meant: the names and counts of what it takes, and of what forward returned.

    `outputs` are the places of forward's results, the output first, `named` those of the others by their names, and
    `fixed` what arguments of backward are by theirs.
    """

    author: Author
    names: list[str]
    seen: Seen
    wanted: list[str]
    variadic: bool
    outputs: list[Path]
    named: dict[str, Path]
    fixed: dict[str, Path]

    @classmethod
    def of(cls, author: Author, names: list[str], seen: Seen) -> "Signs":
        """Read them from a pair of passes, of which the first was run."""
        wanted, variadic = _wanted(author, names)
        outputs: list[Path] = [("result", i) for i in range(len(seen["result"]))]
        if len(outputs) == 1 and seen["result"][0] is None and author.leads:
            kept = _kept_output(seen)
            outputs = [kept] if kept else outputs
        called = returned_names(author.forward)
        if len(called) == len(outputs) == 2 and called[0] in _CACHES:
            outputs, called = outputs[::-1], called[::-1]
        named = dict(zip(called, outputs, strict=False)) if len(outputs) > 1 else {}
        named = {name: place for name, place in named.items() if name and place != outputs[0]}
        fixed = dict[str, Path]()
        for name in wanted:
            if re.fullmatch(RATES, name) and name not in names and (len(wanted) > 1 or name.startswith("l")):
                fixed[name] = ("rate",)  # `backward(eta)` takes a gradient
            elif name == "node":
                fixed[name] = ("node",)
            elif name in named and name not in _CACHES:
                fixed[name] = named[name]
            elif name in names:
                fixed[name] = ("input", name)
        return cls(author, names, seen, wanted, variadic, outputs, named, fixed)

    @property
    def count(self) -> int:
        """How many arguments there are."""
        return len(self.wanted)

    @property
    def several(self) -> bool:
        """Whether forward returned more than an output."""
        return len(self.outputs) > 1

    @property
    def loss(self) -> Path | None:
        """The one number among several results, after the first."""
        results = {place: get(self.seen, place) for place in self.outputs}
        numbers = [place for place, y in results.items() if isinstance(y, float) or getattr(y, "shape", None) == ()]
        return numbers[0] if len(numbers) == 1 and numbers[0] != self.outputs[0] else None

    @property
    def gradients(self) -> int:
        """How many of them are called as gradients."""
        return sum(len(derivative_of(name)) > 1 for name in self.wanted)

    @property
    def dys(self) -> list[Path]:
        """The gradient of each output."""
        return [("dy", i) for i in range(len(self.outputs))]

    @property
    def dys_but_one(self) -> list[Path]:
        """The gradient of an output for each argument but one."""
        return self.dys[: self.count - 1]

    @property
    def caches(self) -> list[Path]:
        """The results that are a cache by their names, else all but the output, the last first."""
        return [place for name, place in self.named.items() if name in _CACHES] or self.outputs[:0:-1]

    def is_cache(self, i: int) -> bool:
        """Whether an argument is a cache by its name."""
        return plain(self.wanted[i]) in _CACHES


def _wanted(author: Author, names: list[str]) -> tuple[list[str], bool]:
    """The arguments that backward must be handed, and whether it takes any number of them."""
    listed = [*signature(author.backward).values()][int(author.leads) :]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in listed)
    if named := [p.name for p in listed if p.kind is p.KEYWORD_ONLY and p.default is p.empty]:
        raise Unjudgeable(f"backward takes {', '.join(named)} by keyword only, expected (dy, cache) by position")
    listed = [p for p in listed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    wanted = [p.name for p in listed if p.default is p.empty]
    if not wanted and listed and (listed[0].default is None or listed[0].default in (1, 1.0)) and not variadic:
        wanted = [p.name for p in listed[:1] if not re.fullmatch(RATES, p.name) and p.name not in names]
    return wanted, variadic


def _kept_output(seen: Seen) -> Path | None:
    """Where an object keeps the output of a forward pass that returns nothing."""
    now, before = arrays({"object": seen["object"]}), seen["before"]
    inputs = [id(value) for value in seen["input"].values()]
    new = [p for p, v in now.items() if len(p) == 2 and before.get(p) is not v]
    named = [p for p in new if plain(p[1]) in _OUTPUTS]  # the input itself too, where that comes out as it is
    kept = named or [p for p in new if id(now[p]) not in inputs]
    return min(kept, key=lambda p: _OUTPUTS.index(plain(p[1])) if p in named else 99, default=None)


# The rows


def plans(author: Author, names: list[str], seen: Seen) -> Iterator[Plan]:
    """The ways in which a backward pass may be meant to be called, the likeliest first."""
    signs = Signs.of(author, names, seen)
    if hung := [*_on_the_output(signs)]:
        yield from hung
        return
    yield from _at_the_prediction(signs)
    yield from _at_the_input(signs)
    inputs = {name for name, place in signs.fixed.items() if place[0] == "input"}
    for unnamed in (set[str](), inputs):  # what is called as an input may be something else
        known = {name: place for name, place in signs.fixed.items() if name not in unnamed}
        free = replace(signs, wanted=[name for name in signs.wanted if name not in known])
        for filled, sure in _filled(free):
            count, filling = max(1, sum(place[0] == "dy" for place in filled)), iter(filled)
            arguments = [known[name] if name in known else next(filling) for name in signs.wanted]
            plan = Plan(tuple(signs.outputs[:count]), (*arguments, *filling), sure)
            if signs.loss and plan.unit:  # `p, loss = forward(x, t)`
                yield replace(plan, outputs=(signs.loss,))
            yield plan


def _on_the_output(signs: Signs) -> Iterator[Plan]:
    """`backward()` that reads dy from the output, `self.out.g`."""
    hung = re.search(r"self\.(out\w*|y|result)\.(g|grad)\b(?!\w* *=[^=])", code_of(signs.author.backward, 0))
    if hung and not signs.wanted and hasattr(signs.seen["result"][0], "__dict__"):
        yield Plan((signs.outputs[0],), (), hung=hung[2])


def _at_the_prediction(signs: Signs) -> Iterator[Plan]:
    """`backward(p, t)` of a loss, handed what it is the loss of in the place of dy."""
    labels = [name for name, place in signs.fixed.items() if place[0] == "input"]
    if len(labels) == len(signs.wanted) - 1 == len(signs.outputs) == 1 and np.ndim(signs.seen["result"][0]) < 2:
        held = arrays({"object": signs.seen["object"]})
        kept = [path for path in held if plain(path[-1]) in _OUTPUTS]
        for place in [("input", signs.names[0]), *kept]:
            yield Plan((signs.outputs[0],), tuple([signs.fixed.get(name, place) for name in signs.wanted]), False)


def _at_the_input(signs: Signs) -> Iterator[Plan]:
    """`relu_prime(x)`, a derivative in terms of the input, or of the output, `y * (1 - y)`."""
    back, names, outputs = signs.author.backward, signs.names, signs.outputs
    slope = re.search("(?i)deriv|prime|grad(ient)?$", getattr(back, "__name__", "")) and not signs.author.leads
    if len(signs.wanted) == len(outputs) == 1 and (signs.wanted[0] in names or (slope and names)):
        yield Plan((outputs[0],), (signs.fixed.get(signs.wanted[0], ("input", names[0])),), True)
        yield Plan((outputs[0],), (outputs[0],), False)


Filled = list[tuple[list[Path], bool]]


def _filled(signs: Signs) -> Filled:
    """What fills the arguments without a name of their own, by the first row that fits, and whether that is sure."""
    return next((filled(signs) for fits, filled in ROWS if fits(signs)), [])


def _dys_and_cache(s: Signs) -> Filled:
    """`backward(dy, cache)`; or dy for each result; or the cache in several results."""
    filled = [([*s.dys_but_one, s.caches[0]], True)]
    if s.gradients == s.count:
        filled.append((s.dys, False))
    elif s.gradients == 1:
        filled.append(([s.dys[0], *s.outputs[1:]], False))
    return filled


def _dy_and_value(s: Signs) -> Filled:
    """`backward(dy, x)` or `backward(dy, y)`."""
    places: list[Path] = [("input", name) for name in s.names]
    places.insert(0 if plain(s.wanted[1]) in _OUTPUTS else len(places), s.outputs[0])
    return [([s.dys[0], place], False) for place in places]


Row = tuple[Callable[[Signs], bool], Callable[[Signs], Filled]]
ROWS: tuple[Row, ...] = (
    # backward(*dys)
    (lambda s: s.variadic and not s.count, lambda s: [(s.dys, True)]),
    # backward(), the gradient of a loss for dy = 1
    (lambda s: s.count == 0, lambda s: [([], True)]),
    # backward(cache)
    (lambda s: s.count == 1 and s.several and s.is_cache(0), lambda s: [(s.caches[:1], True)]),
    # backward(dy), or backward(cache) by another name
    (lambda s: s.count == 1 and s.several and not s.gradients, lambda s: [(s.dys[:1], True), (s.caches[:1], False)]),
    (lambda s: s.count == 1, lambda s: [(s.dys[:1], True)]),
    # backward(cache, dy)
    (lambda s: s.count == len(s.outputs) and s.is_cache(0), lambda s: [([s.caches[0], *s.dys_but_one], True)]),
    # backward(dy, cache)
    (lambda s: s.count == len(s.outputs), _dys_and_cache),
    # y, cache, more = forward(...)
    (lambda s: s.count < len(s.outputs), lambda s: [([*s.dys_but_one, cache], False) for cache in s.caches]),
    # backward(dy, x)
    (lambda s: s.count == 2 and not s.is_cache(1), _dy_and_value),
)


# The one that fits


def called(author: Author, inputs: Sequence[Any]) -> Pair:
    """A pair called by the first plan under which the gradients are right where there are several, else that works."""
    calls = Calls.of(author, inputs)
    seen = calls.passed(copy.deepcopy(calls.inputs))
    candidates = list(dict.fromkeys(plans(author, calls.names, seen)))
    if not candidates:
        none = len(seen["result"]) == 1 and any(plain(n) in _CACHES for n in signature(author.backward))
        takes = f"backward takes other arguments than (dy, cache): ({', '.join(signature(author.backward))})"
        raise Unjudgeable("forward returned no cache, expected a pair (y, cache)" if none else takes)
    best, rated, raised = calls, -2.0, ""
    doubtful = len(candidates) > 1 or not candidates[0].sure
    for plan in candidates:
        planned, score = replace(calls, plan=plan), -1.0
        try:
            planned = with_parameters(planned)
            score = share(planned.pair()) if doubtful else score
        except NotImplementedError:  # it is yet to be written
            score = 0.0
        except Unjudgeable:
            raise
        except Exception as error:
            raised = raised or f"{type(error).__name__}: {error}"
        if score > rated:
            best, rated = planned, score
        if score == 1:
            break
    _refuse(best, rated if doubtful else None, raised)
    read = {*best.plan.outputs, *best.plan.arguments}  # the last result may be a cache
    left = [i for i, part in enumerate(seen["result"][:-1]) if is_array(part) and ("result", i) not in read]
    unseen = [f"output {i} of forward, for which backward takes no gradient" for i in left]
    return replace(best, unseen=(*best.unseen, *unseen)).pair()


def _refuse(calls: Calls, rated: float | None, raised: str) -> None:
    """Decline what backward takes and nobody can hand it, where the gradients aren't right all the same."""
    taken = signature(calls.author.backward)
    wanted = [name for name, p in taken.items() if p.default is p.empty]
    choices = [name for name in taken if _SELECTS.fullmatch(name) and name not in calls.names]
    gradients = [name for name in wanted if len(derivative_of(name)) > 1]
    labels = [n for n in wanted if not gradients and LABELS.fullmatch(n) and n not in calls.names]
    if (labels or choices) and rated is None:
        with suppress(Exception):
            rated = share(calls.pair())
    if choices and ((rated or 0) < 1 or calls.unseen):
        raise Unjudgeable(f"backward takes {choices[0]}, by which it returns one gradient or another")
    if raised and not calls.plan.sure and rated is not None and rated < 0:
        raise Unjudgeable(f"backward takes other arguments than (dy, cache), it seems: it raised {raised}")
    if labels and (rated or 0) < 1:
        raise Unjudgeable(f"backward takes {labels[0]}, which forward doesn't: its loss is computed elsewhere")
