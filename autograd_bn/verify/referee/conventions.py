"""How an author's code is called: what is taken for a pair, and what fills the parameters of its backward pass."""

import copy
import inspect
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .author import Author, author_of, context_of, parameters, returned_names, takes_a_context
from .calls import Calls, Plan, Seen
from .frameworks import array, jax_function, torch_function
from .held import Path, arrays, get, is_array, is_float
from .names import CACHES, CHOOSES, DY, OUTPUTS, RATES, VALUES, derivative_of, is_constant, is_label, is_slope, plain
from .pairs import NoPair, Pair, share
from .parameters import with_parameters
from .source import by_position, code_of, framework, handed, keywords, signature


class LossElsewhere(Unjudgeable):
    """Backward takes labels, of which forward knows nothing."""


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
            return called(Author(target, target), inputs)
    return called(author_of(target), inputs)


def with_a_loss(forward: Any, backward: Any, losses: Iterable[Any]) -> Any:
    """A forward pass that returns the one loss, of some functions, of its output and of labels that backward takes.

    That comes before what it returned. As it is where no loss takes these, or several do.
    """
    ahead, asked = parameters(forward), parameters(backward)
    labels = [name for name in asked if is_label(name) and name not in ahead]
    fitting = list[tuple[Any, list[str]]]()
    for loss in losses if len(labels) == 1 else ():
        taken = parameters(loss)
        own = [name for name in taken if name not in ahead or len(taken) == 2]  # of an output called as forward's input
        said = [name for name in own if name in labels] or [name for name in own if is_label(name)][-1:]
        if taken == asked and own == labels:  # it calls forward itself
            fitting.append((loss, taken))
        elif len(own) == 2 and said:
            fitting.append((loss, [labels[0] if name in said else name * (name not in own) for name in taken]))
    fitting = [fit for fit in fitting if {*labels} <= {*parameters(fit[0])}] or fitting
    if len(fitting) != 1:
        return forward
    (loss, taken), names = fitting[0], [*ahead, *labels]

    def forward_and_loss(first: Any, second: Any, *others: Any) -> Any:
        values = dict(zip(names, (first, second, *others), strict=True))
        if taken == asked:
            return (handed(loss, [values[name] for name in asked]),)
        result = handed(forward, [values[name] for name in ahead])
        parts = result if isinstance(result, tuple) else (result,)
        lost: Any = lambda at: loss(*[at.get(name, parts[0]) for name in taken])
        told = values[names[-1]]
        if np.shape(parts[0]) == (*np.shape(told), 1):  # which nobody means to broadcast, but a loss may flatten both
            column = lost(values | {names[-1]: told[..., None]})
            if not np.allclose(array(column), array(lost(values))):
                raise ValueError(f"labels of other shape than the output, {np.shape(parts[0])}")
        return lost(values), *parts

    listed = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    vars(forward_and_loss).update(__signature__=inspect.Signature(listed), parts=(forward, loss))
    forward_and_loss.__name__ = forward.__name__
    return forward_and_loss


def loss_of(derivative: Any) -> list[Any]:
    """The squared error that a function returns the derivative of, `cost_derivative(output, y)`, if it does."""
    taken = by_position(derivative)
    a, y = np.random.default_rng(0).uniform(size=(2, 4, 1))
    values = (y, a) if is_label(taken[-2].name) else (a, y)
    for k in (1, 2):
        with suppress(Exception):
            if np.allclose(derivative(*[None] * (len(taken) - 2), *values), k * (a - y)):
                loss: Any = lambda one, other, k=k: k * ((one - other) ** 2).sum() / 2
                loss.__signature__ = inspect.Signature(taken[-2:])
                loss.__name__ = f"{'half ' * (k == 1)}the squared error, whose derivative is {derivative.__name__}"
                return [loss]
    return []


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


# What backward is called with

_TOGETHER: Path = ("dy",)  # the gradients of all outputs in a tuple


def plans(author: Author, names: list[str], seen: Seen) -> Iterator[Plan]:
    """The ways in which a backward pass may be meant to be called, the likeliest first."""
    if author.whole:
        yield _beside_the_loss(author, names, seen)
        return
    wanted, variadic = _wanted(author, names)
    body = code_of(author.backward, 0)
    into = re.search(rf"(?m)^ *({'|'.join(wanted) or '-'})(\[.*\])? *[-+*/]?= ", body)
    if into and not author.leads and "return " not in body:
        raise Unjudgeable(f"backward returns nothing, and writes into {into[1]}, which it is handed")
    outputs, named = _results(author, seen, wanted)
    hung = re.search(r"self\.(out\w*|y|result)\.(g|grad)\b(?!\w* *=[^=])", body)
    if hung and not wanted and hasattr(seen["result"][0], "__dict__"):
        yield Plan((outputs[0],), (), hung=hung[2])  # dy is read from the output, `self.out.g`
        return
    caches = [place for name, place in named.items() if name in CACHES] or outputs[:0:-1]
    known = _known(author, wanted, names, named)
    ways = [known]
    if hasattr(author.forward, "parts"):  # beside its loss there is no dy, but the output, or the input by another name
        lost = [name for name in wanted if name not in known and plain(name) not in CACHES]
        ways = [known | dict.fromkeys(lost, place) for place in (("result", 1), ("input", names[0]))]
    numbers = [p for p in outputs if isinstance(y := get(seen, p), float) or getattr(y, "shape", None) == ()]
    loss = numbers[0] if len(numbers) == 1 and numbers[0] != outputs[0] else None  # after the first
    if len(outputs) == 1:
        yield from _without_dy(author, names, seen, known, wanted, outputs[0])
    results = {name: place for name, place in known.items() if place[0] != "input"}
    same = wanted == names and len(names) > 1  # a derivative takes what its loss takes
    for told in ways if same else (*ways, results):  # what is called as an input may be something else
        untold, places = [name for name in wanted if name not in told], [p for p in outputs if p not in told.values()]
        places = places if 1 < len(untold) == len(places) else outputs
        for filled, sure in _filled(untold, variadic, places, caches, names):
            together, filling = _TOGETHER in filled, iter(filled)
            free = [place for place in outputs if place not in (*told.values(), *filled)]
            count = len(free) if together else max(1, sum(place[0] == "dy" for place in filled))
            arguments = [told[name] if name in told else next(filling) for name in wanted]
            plan = Plan(tuple(outputs[:count]), (*arguments, *filling), sure)
            if loss and plan.unit:  # `p, loss = forward(x, t)`
                yield replace(plan, outputs=(loss,))
            yield plan


def _beside_the_loss(author: Author, names: list[str], seen: Seen) -> Plan:
    """Which result is the loss, and of which inputs the others are the gradients: as they are named, else the first."""
    parts = seen["result"]
    place = int(len(parts) == 2 and not _is_number(parts[0]))
    if len(parts) < 2 or not _is_number(parts[place]):
        raise NoPair
    plan = Plan((("result", place),), tuple([("input", name) for name in names]))
    if author.leads:  # an object's own are told by their names
        return plan
    back, known = parts[1 - place] if len(parts) == 2 else parts[1:], {plain(name): name for name in names}
    hints = [*map(str, back)] if isinstance(back, dict) else returned_names(author.forward)[1:]
    said = [next((known[n] for n in derivative_of(hint) if n in known), "") for hint in hints]
    count = len(back) if isinstance(back, tuple | list) else 1
    floats = [name for name in names if is_float(seen["input"][name])]
    judged = said if len(said) == count and all(said) else floats if len(floats) == count else names[:count]
    return replace(plan, judged=tuple(filter(None, said if isinstance(back, dict) else judged)))


def _is_number(value: Any) -> bool:
    return not isinstance(value, dict | str) and not np.shape(value)


def _wanted(author: Author, names: list[str]) -> tuple[list[str], bool]:
    """The arguments that backward must be handed, and whether it takes any number of them."""
    listed = [*signature(author.backward).values()][int(author.leads) :]
    handed = [p.name for p in signature(author.forward).values() if p.kind is p.VAR_POSITIONAL]  # also forward's own
    variadic = any(p.kind is p.VAR_POSITIONAL and p.name not in handed for p in listed)
    listed = by_position(author.backward)[int(author.leads) :]
    wanted = [p.name for p in listed if p.default is p.empty] + keywords(author.backward)
    if not wanted and listed and (listed[0].default is None or listed[0].default in (1, 1.0)) and not variadic:
        wanted = [p.name for p in listed[:1] if not re.fullmatch(RATES, p.name) and p.name not in names]
    return wanted, variadic


def _results(author: Author, seen: Seen, wanted: Sequence[str]) -> tuple[list[Path], dict[str, Path]]:
    """Where forward's results are, the output first, and the others by what it calls them."""
    outputs: list[Path] = [("result", i) for i in range(len(seen["result"]))]
    same = not wanted and any(seen["result"][0] is value for value in seen["input"].values())  # a loss that it keeps
    if len(outputs) == 1 and (seen["result"][0] is None or same) and author.leads:
        kept = _kept_output(seen)
        outputs = [kept] if kept else outputs
    called = returned_names(author.forward)
    if len(called) == len(outputs) == 2 and called[0] in CACHES and called[1] not in CACHES:
        outputs, called = outputs[::-1], called[::-1]
    return outputs, {name: place for name, place in zip(called[1:], outputs[1:], strict=False) if name}


def _kept_output(seen: Seen) -> Path | None:
    """Where an object keeps the output of a forward pass that returns nothing."""
    now, before = arrays({"object": seen["object"]}), seen["before"]
    inputs = [id(value) for value in seen["input"].values()]
    new = [p for p, v in now.items() if len(p) == 2 and before.get(p) is not v]
    there = [*new, ("object", "loss")]  # also a loss that is added to in place
    named = [p for p in now if p in there and plain(p[1]) in OUTPUTS]  # the input itself too, where it is the output
    kept = named or [p for p in new if id(now[p]) not in inputs]
    return min(kept, key=lambda p: OUTPUTS.index(plain(p[1])) if p in named else 99, default=None)


def _known(author: Author, wanted: list[str], names: list[str], named: dict[str, Path]) -> dict[str, Path]:
    """What arguments of backward are by their names: a rate, a node, a result of forward, an input or its default."""
    known, taken = dict[str, Path](), signature(author.forward)
    for name in wanted:
        if re.fullmatch(RATES, name) and name not in names and (len(wanted) > 1 or name.startswith("l")):
            known[name] = ("rate",)  # `backward(eta)` takes a gradient
        elif name == "node":
            known[name] = ("node",)
        elif name in named and name not in CACHES:
            known[name] = named[name]
        elif name in names:
            known[name] = ("input", name)
        elif name in taken and taken[name].default is not taken[name].empty:
            known[name] = ("default", name)
    return known


def _without_dy(
    author: Author, names: list[str], seen: Seen, known: dict[str, Path], wanted: list[str], output: Path
) -> Iterator[Plan]:
    """A backward pass that takes values alone."""
    inputs = [name for name in wanted if known.get(name, ("",))[0] == "input"]
    y, x = (np.shape(value) for value in (seen["result"][0], next(iter(seen["input"].values()), 0)))
    reduced = len(y) < 2 and math.prod(y) < math.prod(x)
    if len(wanted) == 2 and len(inputs) == 1 and reduced:  # `backward(p, t)` of a loss
        held = arrays({"object": seen["object"]})
        for place in [("input", names[0]), *[path for path in held if plain(path[-1]) in OUTPUTS]]:
            yield Plan((output,), tuple([known.get(name, place) for name in wanted]), False)
    # A layer's `gradient(error)` takes dy.
    slope = is_slope(author.backward, author.forward) and (not author.leads or {*map(plain, wanted)} <= {*VALUES})
    slope = slope and len(derivative_of(wanted[0] if wanted else "")) < 2
    if len(wanted) == 1 and names and (inputs or slope):  # `relu_prime(x)`, or of the output, `y * (1 - y)`
        yield Plan((output,), (known.get(wanted[0], ("input", names[0])),), True)
        yield Plan((output,), (output,), False)


def _filled(
    free: list[str], variadic: bool, outputs: list[Path], caches: list[Path], names: list[str]
) -> list[tuple[list[Path], bool]]:
    """What fills the arguments without a name of their own, and whether that is sure."""
    dys: list[Path] = [("dy", i) for i in range(len(outputs))]
    count, several = len(free), len(outputs) > 1
    gradients = sum(len(derivative_of(name)) > 1 for name in free)
    first, second = [plain(name) in CACHES for name in [*free, "", ""][:2]]
    if variadic and not count:
        return [(dys, True)]
    filled = [(dys[:count], True)] if count < 2 and not (first and several) else []  # backward(), backward(dy)
    if 1 < count == len(outputs) == gradients:  # backward(da, db)
        filled.append((dys, False))
    if several and 0 < count <= len(outputs) and not (count == 1 and (gradients or re.fullmatch(DY, plain(free[0])))):
        ahead, sure = dys[: count - 1], first or count == len(outputs)  # backward(dy, cache), backward(cache, dy)
        filled += [([cache, *ahead] if first else [*ahead, cache], sure) for cache in caches]
    if 1 < count == len(outputs) and not first and gradients == 1:  # a gradient, and more of forward's
        filled.append(([dys[0], *outputs[1:]], False))
    if len(outputs) > count and caches[:1] == outputs[-1:] and count in (1, 2):  # backward((da, db), cache)
        filled.append(([_TOGETHER, caches[0]][:count] if not first else [caches[0], _TOGETHER][:count], False))
    if count in (2, 3) and not several and not second:  # backward(dy, x), backward(dy, y, x), backward(y, dy)
        values: list[Path] = [("input", name) for name in names]
        behind = gradients == 1 and len(derivative_of(free[1])) > 1
        values.insert(0 if plain(free[1 - behind]) in OUTPUTS else len(values), outputs[0])
        for value, *others in itertools.permutations(values, count - 1):
            filled.append(([value, dys[0], *others] if behind else [dys[0], value, *others], False))
    return filled


# The one that fits


def called(author: Author, inputs: Sequence[Any]) -> Pair:
    """A pair called by the first plan under which the gradients are right where there are several, else that works."""
    calls = Calls.of(author, inputs)
    seen = calls.passed(copy.deepcopy(calls.inputs))
    code, held = code_of(author.forward, 0), getattr(author.owner, "__dict__", {}).items()
    empty = [n for n, v in held if isinstance(v, list | dict | tuple) and not v and f"self.{n}" in code]
    if empty and any(seen["result"][0] is value for value in seen["input"].values()):
        raise Unjudgeable(f"the object has no {empty[0]}, so that forward returns what it takes")
    candidates = list(dict.fromkeys(plans(author, calls.names, seen)))
    if not candidates:
        _refuse(calls, None, "")
        none = len(seen["result"]) == 1 and any(plain(n) in CACHES for n in signature(author.backward))
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
    return best.without(*_unseen(best, seen)).pair()


def _unseen(calls: Calls, seen: Seen) -> list[str]:
    """The outputs and inputs of which nothing is judged."""
    if calls.author.whole:
        judged = calls.names if calls.plan.judged is None else calls.plan.judged
        inputs = [(n, v) for n, v in zip(calls.names, calls.inputs, strict=True) if is_float(v) and n not in judged]
        return [f"{n}, of which no gradient is returned" for n, v in inputs if not is_constant(n, v)]
    read = {*calls.plan.outputs, *calls.plan.arguments}  # the last result may be a cache
    parts = [] if hasattr(calls.author.forward, "parts") else seen["result"][:-1]  # of which there is a loss
    left = [i for i, part in enumerate(parts) if is_array(part) and ("result", i) not in read]
    return [f"output {i} of forward, for which backward takes no gradient" for i in left]


def _refuse(calls: Calls, rated: float | None, raised: str) -> None:
    """Decline what backward takes and nobody can hand it, where the gradients aren't right all the same."""
    taken = signature(calls.author.backward)
    wanted = [name for name, p in taken.items() if p.default is p.empty]
    choices = [name for name in taken if re.fullmatch(CHOOSES, name) and name not in calls.names]
    gradients = [name for name in wanted if len(derivative_of(name)) > 1]
    slope = len(wanted) < 2 and is_slope(calls.author.backward, calls.author.forward)  # of the output, called t
    known = [*calls.names, *returned_names(calls.author.forward)]
    labels = [n for n in wanted if not (gradients or slope) and is_label(n) and n not in known]
    if (labels or choices) and rated is None:
        with suppress(Exception):
            rated = share(calls.pair())
    if choices and ((rated or 0) < 1 or calls.unseen):
        raise Unjudgeable(f"backward takes {choices[0]}, by which it returns one gradient or another")
    if labels and (rated or 0) < 1:
        raise LossElsewhere(f"backward takes {labels[0]}, which forward doesn't: its loss is computed elsewhere")
    if raised and not calls.plan.sure and rated is not None and rated < 0:
        raise Unjudgeable(f"backward takes other arguments than (dy, cache), it seems: it raised {raised}")
