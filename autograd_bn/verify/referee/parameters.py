"""What forward reads beside its arguments, found by perturbing it, and where backward leaves its gradients."""

import copy
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .calls import Calls
from .frameworks import array
from .held import Path, arrays, best, get, groups, is_array, is_float, kinship, label, looks_like_a_gradient
from .names import BIAS, RATE, RATES, derivative_of, is_constant, is_label, plain
from .pairs import explains, slope, stirred
from .returned import Matching
from .source import code_of, signature

Slots = dict[str, list[Path]]


def with_parameters(calls: Calls) -> Calls:
    """The calls with the arrays in objects and containers that move the output when they are moved."""
    calls, slots = _warmed(calls, _read(calls))
    held = {name: array(copy.deepcopy(get(_root(calls), paths[0]))) for name, paths in slots.items()}
    numbers = [name for name, value in held.items() if isinstance(value, float)]
    unnamed = {*numbers} - {*_named(numbers, code_of(calls.author.backward))}  # an eps, a rate
    slots = {name: paths for name, paths in slots.items() if name not in unnamed}
    calls = replace(calls, slots=slots, values=tuple([np.asarray(held[name]) for name in slots]))
    calls, returned = _with_gradients(_off_zero_and_one(calls), numbers)
    kept = [name for name in slots if name not in numbers or name in {*calls.places, *returned}]
    values = dict(zip(slots, calls.values, strict=True))
    return replace(calls, slots={n: slots[n] for n in kept}, values=tuple([values[n] for n in kept]))


def _named(names: Sequence[str], code: str) -> list[str]:
    """Those of which a backward pass names the gradient, as `db` or by a key, or which it sets."""
    words = {name for word in re.findall(r"\w+", code) for name in derivative_of(word)[:-1]}
    ends = [(name, name.rpartition(".")[2]) for name in names]
    words |= {end for _, end in ends if re.fullmatch(BIAS, end)}
    is_set: Any = lambda end: re.search(rf"[\"']{end}[\"']|\b{end} *[-+*/]?=[^=]", code)
    return [name for name, end in ends if {end, plain(end)} & words or is_set(end)]


def _root(calls: Calls) -> dict[str, Any]:
    return {"object": calls.author.owner, "input": dict(zip(calls.names, calls.inputs, strict=True))}


def _tried(calls: Calls, values: Sequence[Any]) -> Array | None:
    """The output at these values of the slots, where forward takes them."""
    try:
        return calls.flat([*calls.inputs, *values])
    except Unjudgeable:
        raise
    except Exception:
        return None


def _read(calls: Calls) -> Slots:
    """The arrays that the output depends on, by name.

    Each is moved from where those that are 0 or 1 throughout are moved already: zero weights hide all before them.
    """
    rng, candidates = np.random.default_rng(3), _candidates(calls)
    start = {n: stirred(v, rng) for n, (v, _) in candidates.items() if np.all((v == 0) | (v == 1))}
    for begin in (start, {}):
        y = _tried(replace(calls, slots={name: candidates[name][1] for name in begin}), [*begin.values()])
        if y is not None and np.isfinite(y).all():
            break
    if y is None:
        return {}
    read = Slots()
    for name, (value, paths) in candidates.items():
        slots = {n: candidates[n][1] for n in begin} | {name: paths}
        values = begin | {name: stirred(begin.get(name, value), rng)}
        moved = _tried(replace(calls, slots=slots), [*values.values()])
        if moved is None or not np.array_equal(moved, y, equal_nan=True):
            read[name] = paths
    return read


def _candidates(calls: Calls) -> dict[str, tuple[Any, list[Path]]]:
    """Every array in the object and in what forward is handed, and every number in the object, with its places."""
    candidates = dict[str, tuple[Any, list[Path]]]()
    for value, paths in groups(arrays(_root(calls))):
        number = not hasattr(value, "shape") and paths[0][0] == "object"
        if (is_array(value) or number) and not (paths[0][0] == "input" and len(paths[0]) == 2):
            paths.sort(key=looks_like_a_gradient)
            name = label(paths[0][1:] if paths[0][0] == "object" else paths[0][2:])
            if name in calls.names or name in candidates:
                name = label(paths[0]).replace("object", "self", 1)
            candidates[name] = np.asarray(value) if number else array(value), paths
    return candidates


def _warmed(calls: Calls, cold: Slots) -> tuple[Calls, Slots]:
    """The calls on the object as the first forward pass leaves it, where that makes parameters; and what is read."""
    if calls.author.owner is None:
        return calls, cold
    first = calls.passed(copy.deepcopy(calls.inputs))
    warm = replace(calls, author=replace(calls.author, owner=first["object"]))
    read = Slots()
    with suppress(Exception):
        read = _read(warm)
    made = [read[name][0] for name in set(read) - set(cold)]
    again, before = warm.passed(copy.deepcopy(warm.inputs)) if made else {}, _root(warm)
    if not made or any(not np.array_equal(get(again, place), get(before, place)) for place in made):
        return calls, cold  # sums that each pass adds to are no parameters
    # Inputs that the first pass has kept in lists would stay there, and so they are taken out, but for parameters.
    one, parts = {"object": first["object"]}, {path for paths in read.values() for path in paths}
    for path in [path for path in arrays(one) if path not in parts and not looks_like_a_gradient(path)]:
        held, was = get(one, path[:-1]), get({"object": calls.author.owner}, path[:-1])
        if isinstance(held, list):
            del held[len(was) if isinstance(was, list) else 0 :]
    return warm, read


def _off_zero_and_one(calls: Calls) -> Calls:
    """Move parameters that are 0 or 1 throughout, as a gain and a bias at the start: they would hide mistakes."""
    rng, values = np.random.default_rng(5), list(calls.values)
    for i, value in enumerate(values):
        if np.all((value == 0) | (value == 1)):
            other = [*values[:i], stirred(value, rng), *values[i + 1 :]]
            y = _tried(calls, other)
            if y is not None and np.isfinite(y).all():
                values = other
    return replace(calls, values=tuple(values))


# Where the gradients are


@dataclass(frozen=True)
class _Pass:
    """A backward pass that was run for `dy`: the gradients `returned`, what the object holds, and what is new of it."""

    y: Array
    dy: Array
    returned: Mapping[str, Array]
    held: dict[Path, Any]
    new: set[Path]

    @classmethod
    def of(cls, calls: Calls, floats: Mapping[str, Any], factor: float = 1.0) -> "_Pass":
        seen = calls.passed(copy.deepcopy([*calls.all.values()]))
        outputs = calls.outputs(seen)
        y = np.concatenate([np.ravel(array(y)) for y in outputs]).astype(np.float64)
        bits = {path: np.asarray(array(value)).tobytes() for path, value in arrays(_holders(seen)).items()}
        dy = np.ones(y.shape) if calls.plan.unit else np.asarray(np.random.default_rng(7).normal(size=y.shape))
        dy = factor * dy
        shaped = dy if len(outputs) > 1 else dy.reshape(np.shape(outputs[0]))
        came = calls.pulled(calls.author.backward, shaped, seen, outputs)
        gradients = Matching(came, calls.all, dict.fromkeys(floats, 1.0)).matched().gradients
        held = arrays(_holders(seen))
        new = {p for p, value in held.items() if bits.get(p) != np.asarray(array(value)).tobytes()}
        return cls(y, dy, gradients, held, new)

    @property
    def open(self) -> dict[Path, Any]:
        """The arrays in which a gradient may be, and the numbers that are called so."""
        return {p: v for p, v in self.held.items() if hasattr(v, "dtype") or looks_like_a_gradient(p)}


def _holders(seen: dict[str, Any]) -> dict[str, Any]:
    """Where backward may leave gradients: the object, and the dicts among what forward took."""
    dicts = {name: value for name, value in seen["input"].items() if isinstance(value, dict)}
    return {"object": seen["object"], "input": dicts}


def _with_gradients(calls: Calls, numbers: Sequence[str]) -> tuple[Calls, Sequence[str]]:
    """Find where backward leaves the gradients that it does not return; name the arrays that have none.

    And which of the object's are returned.
    """
    floats = {name: value for name, value in calls.all.items() if is_float(value)}
    try:
        run = _Pass.of(calls, floats)
    except Exception as error:  # for the verdict to report
        return calls.without(*[f"{name}, since backward raised {type(error).__name__}" for name in calls.slots]), ()
    rated = {name: _likely_places(calls, run, name, numbers) for name in floats if name not in run.returned}
    # Those whose names say it come first: what they take is nobody else's.
    for name in sorted(rated, key=lambda name: -max([surety for surety, _ in rated[name]], default=0)):
        free = [(surety, place) for surety, place in rated[name] if place not in calls.places.values()]
        calls = _with_gradient(calls, run, name, free, name in numbers)
    left = [name for name in calls.slots if name in rated and name not in {*calls.places, *numbers}]
    left = [name for name in left if not is_constant(name, calls.all[name])]
    lists = {place[:2] for place in calls.places.values() if isinstance(place[-1], int)}
    rest = [p for p in run.open if p in run.new and p[:2] in lists and p not in calls.places.values()]
    if len(rest) == len(left):  # in the lists of those that were found, of whatever shape
        calls = replace(calls, places=calls.places | dict(zip(left, rest, strict=True)))
    else:
        calls = calls.without(*[f"{name}, of which backward leaves no gradient" for name in left])
    own = getattr(calls.author.owner, "__dict__", {}).items()
    wholes = [n for n, v in own if isinstance(v, int | np.ndarray) and np.asarray(v).dtype.kind == "i"]
    said = [n for n in wholes if any(kinship(("object", n), p) >= 3 for p in run.new - {*calls.places.values()})]
    calls = calls.without(*[f"{name}, in whole numbers, of which backward leaves a gradient" for name in said])
    calls = _without_labels(calls, run, floats) if run.y.size == 1 and calls.plan.judged is None else calls
    return calls, [*run.returned]


def _with_gradient(calls: Calls, run: _Pass, name: str, free: list[tuple[float, Path]], number: bool) -> Calls:
    """Find where backward leaves the gradient of one array, or of a number."""
    place = _gradient_of(calls, run, name, free)
    moved = [path for path in calls.slots.get(name, ()) if path in run.new]
    if place is None and moved and (rate := _rate(calls, run, name, moved[0])):
        place, note = moved[0], f"backward updates {name} itself; its step, divided by {rate:.4g}, is judged as"
        calls = replace(calls, rates=calls.rates | {name: rate}, notes=(*calls.notes, f"{note} the gradient."))
    shapes, shape = [np.shape(value) for value in calls.all.values()], np.shape(calls.all[name])
    if place is None and len(free) == 1 == shapes.count(shape) and shape:  # of a shape that nothing else has
        only, own = free[0][1], name in calls.slots
        said = looks_like_a_gradient(only) and not np.array_equal(np.ravel(run.open[only]), np.ravel(run.dy))
        place = only if (shape != run.y.shape if own else said) else None
    left = np.shape(run.open[place]) if place in run.open else ()
    if number and np.prod(left) != 1:  # it stands for an array, which one step makes of it
        return calls.without(f"{name}, a number whose gradient has shape {left}")
    return calls if place is None else replace(calls, places=calls.places | {name: place})


def _likely_places(calls: Calls, run: _Pass, name: str, numbers: Sequence[str]) -> list[tuple[float, Path]]:
    """The places where the gradient of an array may be: those that say it by their names, and new ones of its shape."""
    slots = {path for paths in calls.slots.values() for path in paths}
    first = next(n for n, value in calls.all.items() if is_float(value))
    called = (name, "x", "input", "inputs") if name == first else (name,)
    paths, shape = calls.slots.get(name) or [("object", n) for n in called], np.shape(calls.all[name])
    now = [run.held[path] for path in paths if path in run.held]  # what equals the parameter is a copy of it
    new = {p: run.open[p] for p in run.new & {*run.open} if np.shape(run.open[p]) == shape and name not in numbers}
    fits = [place for place, value in new.items() if not any(np.array_equal(value, same) for same in now)]
    listed = best(paths, [path for path in run.open if path not in slots])
    return [(surety, place) for surety, place in listed if surety >= 2 or place in fits]


def _slope(calls: Calls, name: str, step: Array, dy: Array) -> float:
    return slope(lambda at: calls.flat([*at.values()]), calls.all, name, step, dy)


def _step(calls: Calls, name: str, seed: int) -> Array:
    value = calls.all[name]
    size = float(np.max(np.abs(value), initial=0)) or 1.0
    return np.asarray(size * np.random.default_rng(seed).normal(size=np.shape(value)))


def _gradient_of(calls: Calls, run: _Pass, name: str, rated: list[tuple[float, Path]]) -> Path | None:
    """The place whose name says that this gradient is there, else the one whose values do."""
    surest = [place for surety, place in rated if surety == rated[0][0]]
    outer = next(iter(calls.slots.get(name, ())), ())  # its sublayer has one of its own, which is the sublayer's
    surest = [place for place in surest if outer and kinship(outer, place) == rated[0][0]] or surest
    sure = surest[0] if rated and rated[0][0] >= 2 and len(surest) == 1 else None
    if sure in run.new or not rated:
        return sure
    step = _step(calls, name, 11)
    along = _slope(calls, name, step, run.dy)
    for _, place in rated:
        gradient = array(run.open[place])
        if gradient.shape == step.shape and explains(gradient, step, along):
            return place
    if sure:
        return sure
    likely = [place for surety, place in rated if surety >= 1 or looks_like_a_gradient(place)]
    return likely[0] if likely and (rated[0][0] >= 1 or len(likely) == 1) and name in calls.slots else None


def _rate(calls: Calls, run: _Pass, name: str, place: Path) -> float | None:
    """By which rate a parameter moves that backward updates itself, if its step is a multiple of a gradient."""
    if ("rate",) in calls.plan.arguments:
        return RATE
    runs = [run, _Pass.of(calls, calls.all, -2.0), _Pass.of(calls, calls.all, 0.0)]
    *steps, decay = [array(calls.all[name]) - array(r.held[place]) for r in runs]
    if not calls.plan.unit:
        steps = [step - decay for step in steps]
        if not np.allclose(steps[1], -2 * steps[0], atol=1e-7 * np.max(np.abs(steps[0]))):
            return None  # Adam, or another optimiser with a memory
    rates = [v for p, v in run.held.items() if re.fullmatch(RATES, str(p[-1]))]
    rates += [p.default for n, p in signature(calls.author.backward).items() if re.fullmatch(RATES, n)]
    rates = [rate for rate in rates if isinstance(rate, float) and rate]
    if rates:
        return float(rates[0])
    step, other = _step(calls, name, 11), _step(calls, name, 12)
    rate = float(f"{float(np.sum(steps[0] * step)) / _slope(calls, name, step, run.dy):.4g}")
    return rate if explains(steps[0], other, rate * _slope(calls, name, other, run.dy), 1e-4) else None


def _without_labels(calls: Calls, run: _Pass, floats: Mapping[str, Any]) -> Calls:
    """The one gradient of a loss is that of the input whose slope it is; what else is as long is labels."""
    kept, near = [name for name in calls.names if name in run.returned or name in calls.places], list[str]()
    if len(run.returned) == 1 and kept:
        (gradient,) = run.returned.values()
        fit = [n for n in calls.names if n in floats and floats[n].shape == gradient.shape]
        fit = [n for n in fit if not is_label(n)] or fit
        steps = {n: _step(calls, n, 11) for n in fit}
        near = [n for n in fit if explains(gradient, steps[n], _slope(calls, n, steps[n], run.dy))]
        near = near or (fit if len(fit) == 1 else [])
        kept = near[:1] or kept
    labels = [n for n in calls.names if n in floats and n not in kept]
    labels = [n for n in labels if near or any(np.shape(floats[n])[:1] == np.shape(floats[k])[:1] for k in kept)]
    unseen = [f"{n}, of which no gradient is returned" for n in labels if not is_constant(n, floats[n])]
    return replace(calls, constants=tuple(labels)).without(*unseen)
