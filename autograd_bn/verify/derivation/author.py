"""How an author's passes are called, what of it can be another, and where he leaves his gradients."""

import ast
import copy
import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial, update_wrapper, wraps
from typing import Any, cast

import numpy as np

from ..referee.author import returned_names
from ..referee.calls import Calls
from ..referee.conventions import plans
from ..referee.held import Path, arrays, best, get, groups, is_float, label, put
from ..referee.names import RATE, derivative_of, is_constant, plain
from ..referee.pairs import Pair
from ..referee.parameters import with_parameters
from ..referee.returned import Gradients, Matching
from ..referee.source import code_of, signature, syntax, unwrapped
from .tracing import Unwritable, step

START = 3.25  # of the gradients that a second run may add to


class Author:
    """How an author's passes are called, what of it can be another, and where gradients go."""

    def __init__(self, pair: Pair) -> None:
        run, calls = Ran.of(pair), cast(Calls, pair.calls)
        self.author, self.whole, self.old = calls.author, calls.author.whole, unwrapped(calls.author.backward)
        self.title = self.old.__name__.replace("<lambda>", "backward")
        self.pair = pair = pair if run is not None or self.whole else _as_named(pair)
        calls, self.root = cast(Calls, pair.calls), {"object": calls.author.owner}
        named = zip(pair.names, pair.inputs, strict=True)
        self.inputs = {n: np.array(v, float) if is_float(v) else v for n, v in named}
        taken = signature(self.author.backward)
        if any(p.kind is p.VAR_POSITIONAL for p in taken.values()):
            raise Unwritable("backward takes any number of arguments")
        _refuse_tuples(self.author.forward)
        listed = [*taken][int(self.author.leads) :]
        self.lead = next(iter(taken)) if self.author.leads else ""
        self.arguments = dict(zip(listed, calls.plan.arguments, strict=False))
        results = returned_names(self.author.forward)
        for name, (what, *_) in self.arguments.items():
            if what == "result" and len(derivative_of(name)) > 1 and name not in results:
                raise Unwritable(f"backward takes {name}, and what it is handed is no gradient")
        self.calls = self._with_the_rest(calls)
        self.keys: list[str] = []  # of a dict that is returned
        self.returned: list[str] = []  # what is returned, by what it is the gradient of, "" for None
        self.kept = [*calls.places.items()]  # where gradients are kept
        self.steps = {path for paths in calls.slots.values() for path in paths}  # or parameters, which he moves
        self._find_destinations(run.back if run is not None else None)
        self.manner, self.anew = dict[Path, str](), dict[Path, Any]()  # and the lists and dicts that are made anew
        if run is not None and not self.whole:
            self.kept += run.places()
            self.manner = run.manner([path for _, path in self.kept if path not in self.steps])
            self.anew = {path[:-1]: get(run.root, path[:-1]) for path, how in self.manner.items() if how == "anew"}
        self.wanted = [*dict.fromkeys([*filter(None, self.returned), *dict(self.kept)])]
        held = [(name, path) for name, path in self.kept if self.manner.get(path) != "anew"]
        self.left = [(name, *self._statement(name, path)) for name, path in held]
        self.lost: list[str] = []  # what forward has to keep beside what it does
        if not self.wanted:
            raise Unwritable("backward has no gradient to return")

    def _with_the_rest(self, calls: Calls) -> Calls:
        """The calls, with what else forward reads of the object for inputs, as eps, or running means."""
        code, own, slots = code_of(self.author.forward), self.author.owner if self.lead else None, dict(calls.slots)
        methods = inspect.getmembers(type(own), inspect.isfunction)
        code += "".join([code_of(method) for name, method in methods if re.search(rf"\.{name}\(", code)])
        attributes = getattr(own, "__dict__", {}).items()
        mine = [(("object", name), value) for name, value in attributes if re.search(rf"\.{name}\b", code)]
        held = arrays({"object": own}).items()
        inner = [(path, value) for path, value in held if isinstance(value, float) and len(path) > 2]
        for path, value in [*mine, *inner[:6]]:
            name, value = label(path[1:]), float(value) if isinstance(value, float) else value
            known = is_float(value) or type(value) in (int, bool, str, float)
            if known and name not in self.inputs:
                slots[name], self.inputs[name] = [path], value
        return replace(calls, slots=slots)

    def _statement(self, name: str, path: Path) -> tuple[str, str]:
        """Where the author sets a gradient, if he does, and the statement by which he keeps it."""
        text, how = self.spelled(path), self.manner.get(path)
        if path in self.steps:
            numbers = [(n, RATE) for n, place in self.arguments.items() if place == ("rate",)]
            numbers += [(n, p.default) for n, p in signature(self.author.backward).items()]
            numbers += [(f"{self.lead}.{n}", v) for n, v in vars(self.author.owner).items()]
            rate = next((n for n, value in numbers if value == self.calls.rates[name]), repr(self.calls.rates[name]))
            return "", f"{text} -= {rate} * {{}}"
        holder = get(self.root, path[:-1])
        if isinstance(holder, list) and path[-1] >= len(holder):
            return "", f"{self.spelled(path[:-1])}.append({{}})"
        if how is None and isinstance(holder, list) and is_float(holder[path[-1]]):
            how = "fill"  # others may hold the array
        text += "[...]" * (how == "fill")
        return ("", f"{text} += {{}}") if how == "add" else (text, f"{text} = {{}}")

    def passed(self, forward: Any, values: Sequence[Any], options: dict[str, Any]) -> Any:
        """The outputs of the author's forward pass, and what there is after it."""
        forward = update_wrapper(partial(forward, **options), self.author.forward)
        seen = replace(self.calls, author=replace(self.author, forward=forward)).passed(values)
        return (*self.calls.outputs(seen), seen)

    def spelled(self, path: Path) -> str:
        """A place in the author's object as code."""
        value, text = self.author.owner, self.lead
        for i, key in enumerate(path[1:]):
            text += step(value, key)
            value = get(self.root, path[: i + 2])
        return text

    def _find_destinations(self, back: Gradients | None) -> None:
        """Where the author's gradients go: by what his backward pass does, else by what it says."""
        calls: Any = self.pair.calls
        names = [n for n in self.pair.names if is_float(self.inputs[n])]
        answer = back.back if back is not None else None
        listed = list(answer) if isinstance(answer, tuple | list) else [answer]
        known = {plain(name): name for name in reversed(self.pair.names)}
        of: Any = lambda words: next((known[n] for n in words if n in known), "")
        hints = calls.returns[self.whole :]  # but for a loss
        said = [of(derivative_of(hint)[:-1]) for hint in hints]
        if isinstance(answer, dict):
            named = [(str(key), of(derivative_of(str(key)))) for key in answer or names]
            self.keys, self.returned = [key for key, name in named if name], [name for _, name in named if name]
        elif any(isinstance(value, tuple | list | dict) for value in listed):
            raise Unwritable("backward returns what is no array among its gradients")
        elif back is not None and any(value is not None for value in listed):
            pairs = zip(Matching(back, self.inputs, dict.fromkeys(names, 1)).wanted(listed), listed, strict=False)
            self.returned = [name if name in names and value is not None else "" for name, value in pairs]
        elif back is None or not calls.places:
            handed = [name for name in names if name not in calls.slots]
            free = [name for name in handed if not is_constant(name, self.inputs[name])]
            self.returned = said if any(said) else free or handed[:1]
            self.kept = [*({n: self._beside(paths[0]) for n, paths in calls.slots.items()} | dict(self.kept)).items()]
        hints = hints if len(hints) == len(self.returned) else []
        self.hints = {n: hint for n, hint in zip(self.returned, hints, strict=False) if len(derivative_of(hint)) > 1}

    def _beside(self, path: Path) -> Path:
        """Where a gradient goes of which nobody says where: to a place that is named so, as grads["W"], else dW."""
        slots = list[Path]()
        for way in (path[:-1], path[:-2]):
            holder = get(self.root, way)
            items = holder if isinstance(holder, dict) else getattr(holder, "__dict__", {})
            slots += [(*way, key, path[-1]) if isinstance(v, dict | list) else (*way, key) for key, v in items.items()]
        rated = best([path], slots)
        if rated and rated[0][0] > 1:
            return rated[0][1]
        if not rated or isinstance(get(self.root, path[:-1]), list):
            place = "make a list" if self.lead else "return a dict"
            raise Unwritable(f"nothing says where the gradient of {label(path[1:])} goes: {place} of gradients")
        return (*path[:-1], f"d{path[-1]}")

    @property
    def home(self) -> str:
        """The class that the backward pass stands in, or nothing."""
        owner = type(self.author.owner)
        if self.lead and hasattr(owner, self.old.__name__):
            return owner.__name__  # a subclass's
        return str(self.old.__qualname__).rpartition(".")[0].rpartition(".")[2].replace("<locals>", "")

    def keeping(self) -> Any:
        """The author's forward pass, which keeps what it has to."""
        own = self.author.forward

        def forward(lead: Any, *values: Any, **options: Any) -> Any:
            vars(lead).update({n: v for n, v in zip(self.calls.names, values, strict=False) if n in self.lost})
            return own(lead, *values, **options)

        return wraps(own)(forward) if self.lost else own


def _refuse_tuples(forward: Any) -> None:
    """Refuse a forward pass that takes or returns tuples, where a guess may hand it an array of as many rows."""
    nodes: Any = ast.walk(syntax(forward))
    for node in nodes:
        opens = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple | ast.List)
        taken = ast.unparse(node.value) if opens else ""
        if taken in signature(forward):
            raise Unwritable(f"forward opens {taken}, and what is written takes and returns arrays")
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 1:
            raise Unwritable("forward returns a tuple of one, and what is written takes and returns arrays")


def _as_named(pair: Pair) -> Pair:
    """A pair whose backward pass is yet to be written, called as its arguments are named: dy for dh and dc."""
    calls: Any = pair.calls
    seen = calls.passed(copy.deepcopy([*calls.inputs, *calls.values]))
    takes = [*signature(calls.author.backward)][int(calls.author.leads) :]
    named = [len(derivative_of(name)) > 1 for name in takes]
    fits: Any = lambda plan: sum(a == (place[0] == "dy") for a, place in zip(named, plan.arguments, strict=False))
    plan = max(plans(calls.author, calls.names, seen), key=fits)
    return with_parameters(Calls(calls.author, calls.inputs, calls.backend, calls.names, plan)).pair()


class Ran:
    """A run of an author's backward pass: what it gives, and the arrays of his object before and after."""

    def __init__(self, pair: Pair, started: Sequence[Path] = ()) -> None:  # where gradients are not 0 before
        calls: Any = pair.calls
        y, kept = pair.forward(*copy.deepcopy(pair.inputs))
        seen, outputs = kept.reveal()
        self.pair, self.root = pair, {"object": seen["object"]}
        for path in started:
            if isinstance(held := get(self.root, path), np.ndarray):
                held[...] = START
            elif isinstance(held, float):
                put(self.root, path, START)
        self.holders = {path[:-1]: get(self.root, path[:-1]) for path in started}
        self.held = arrays(self.root)
        self.before = {path: np.copy(value) for path, value in self.held.items()}
        dy = np.ones(np.shape(y)) if pair.unit else np.random.default_rng(3).normal(size=np.shape(y))
        calls = replace(calls, places={} if started else calls.places)
        self.back: Gradients = calls.pulled(pair.source, dy, seen, outputs)
        self.after = arrays(self.root)

    @classmethod
    def of(cls, pair: Pair) -> "Ran | None":
        """A run, if the backward pass is written."""
        with suppress(Exception):
            run = cls(pair)
            if any(value is not None for value in run.back.listed) or any(map(np.any, run.back.left.values())):
                return run
        return None

    def places(self) -> list[tuple[str, Path]]:
        """Where else gradients are kept; `Unwritable` where backward changes what no gradient is."""
        calls: Any = self.pair.calls
        gradients = gradients_of(self.back, dict(zip(self.pair.names, self.pair.inputs, strict=True)))
        own, kept = arrays({"object": calls.author.owner}), list[tuple[str, Path]]()
        known = {*calls.places.values()}
        known |= {path for name in calls.places if calls.updates(name) for path in calls.slots[name]}
        shared = [paths for _, paths in groups(self.held) if known & {*paths}]  # one array, which is filled in place
        for path, value in self.after.items():
            same = any(path in paths and value is self.held[path] for paths in shared)
            if path in known or same or np.array_equal(value, self.before.get(path, np.nan)):
                continue
            of = [name for name, g in gradients.items() if g is not None and np.array_equal(g, value)]
            if of:
                kept.append((of[0], path))
            elif path in own and np.array_equal(own[path], self.before[path]):
                raise Unwritable(f"backward changes {label(path[1:])} as well, and what is written makes gradients")
        return kept

    def manner(self, paths: Sequence[Path]) -> dict[Path, str]:
        """How gradients are kept in places: "add", "fill", "set", or "anew" where what holds them is made too."""
        again, how = Ran(self.pair, paths), dict[Path, str]()
        for path in paths:
            holder, value, there = path[:-1], again.after[path], path in again.before
            if get(again.root, holder) is not again.holders[holder]:
                how[path] = "anew"
            elif there and np.all(value == START):
                continue  # nothing is kept yet
            elif np.allclose(value, self.after[path]):
                how[path] = "fill" if there and value is again.held[path] else "set"
            elif np.allclose(value - START, self.after[path]):
                how[path] = "add"
            else:
                raise Unwritable(f"backward leaves more than a gradient in {label(path[1:])}")
        return how


def gradients_of(back: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a backward pass gave, by the inputs: None for what has no gradient."""
    back = Matching(back, dict(inputs), {name: 1 for name, value in inputs.items() if is_float(value)}).matched()
    return {name: back.gradients.get(name) for name in inputs}
