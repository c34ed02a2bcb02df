"""How an author's passes are called, on copies of everything: what each is handed, and where its results are."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from types import SimpleNamespace
from typing import Any

import numpy as np

from ...engine import Tensor
from .author import Author, parameters, returned_names
from .frameworks import Backend, array, backend_of, lowered, seeded
from .held import Path, arrays, get, groups, inner, is_array, is_tensor, label, looks_like_a_gradient, put, vector
from .names import RATE
from .pairs import Pair, globals_read
from .returned import Gradients
from .source import handed, signature

Seen = dict[str, Any]  # after a forward pass: "object", "input" by name, "result" in parts, "start" of the parameters


@dataclass(frozen=True)
class Plan:
    """Where forward's outputs are, and what backward is called with: places in what is `Seen`, or dy's by number."""

    outputs: tuple[Path, ...]
    arguments: tuple[Path, ...]
    sure: bool = True  # whether it follows from the counts and names of arguments and results
    hung: str = ""  # the attribute of the output in which backward looks for dy, as `self.out.g`
    judged: tuple[str, ...] | None = None  # the inputs of which gradients are returned beside a loss

    @property
    def unit(self) -> bool:
        """Whether backward takes no dy."""
        return not self.hung and not any(place[0] == "dy" for place in self.arguments)


@dataclass(frozen=True)
class Calls:
    """The calls of an author's passes by a plan.

    `slots` are the arrays that forward reads from objects, each with where it stands, and `values` what they are.
    `places` says where backward leaves a gradient, by what it is the gradient of, and `rates` by how much it moves a
    parameter that it updates itself. `constants` are inputs of a loss that returns one gradient, of another input.
    """

    author: Author
    inputs: tuple[Any, ...]
    backend: Backend
    names: list[str]
    plan: Plan = field(default_factory=lambda: Plan((), ()))
    slots: dict[str, list[Path]] = field(default_factory=dict)
    values: tuple[Any, ...] = ()
    places: dict[str, Path] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    @classmethod
    def of(cls, author: Author, inputs: Sequence[Any]) -> Calls:
        """Calls with these inputs, of which there is no plan yet."""
        backend, names = backend_of(inputs), parameters(author.forward, len(inputs), skip=int(author.leads))
        if author.owner is not None:
            author = replace(author, owner=_doubled(author.copied()))
        return cls(author, tuple(map(array, inputs)), backend, names)

    @cached_property
    def returns(self) -> list[str]:
        """What backward calls the values that it returns."""
        return returned_names(self.author.backward)

    @property
    def all(self) -> dict[str, Any]:
        """Every input and parameter by name."""
        return dict(zip([*self.names, *self.slots], [*self.inputs, *self.values], strict=True))

    def without(self, *unseen: str) -> Calls:
        """The calls with more arrays of which nothing is judged, each with why."""
        return replace(self, unseen=(*self.unseen, *unseen))

    def pair(self) -> Pair:
        """The calls as a pair."""

        @wraps(self.author.forward)
        def forward(*values: Any) -> tuple[Any, Any]:
            for (name, paths), value in zip(self.slots.items(), values[len(self.names) :], strict=True):
                taken = dict(zip(self.names, values, strict=False))
                shape = np.shape(get({"object": self.author.owner, "input": taken}, paths[0]))
                if shape != np.shape(value):
                    raise ValueError(f"{name} has shape {shape}, not {np.shape(value)}")
            seen = self.passed(values)
            outputs = self.outputs(seen)
            # A cache that nobody looks into; `watched` says what of it backward must not overwrite.
            kept = SimpleNamespace(reveal=lambda: (seen, outputs), watched=partial(self._watched, seen))
            return self.backend.lower(self.backend.join(outputs)), kept

        def call(function: Callable[..., Any], dy: Any, kept: Any) -> Gradients:
            return self.pulled(function, dy, *kept.reveal())

        unit = self.plan.unit and not self.author.whole
        parts = getattr(self.author.forward, "parts", ())
        what = f"labels: it is judged as the gradient of {parts[1].__name__}" if parts else ""
        notes = (f"backward takes {what or 'no dy: it is judged as the gradient for dy = 1'}.",) if unit else ()
        return Pair(
            forward,
            (*self.inputs, *self.values),
            [*self.all],
            self.author.backward,
            call,
            self.backend.truth and self.backend.truth(self),
            unit,
            (*self.notes, *notes),
            (*self.unseen, *itertools.chain(*map(globals_read, parts or [self.author.forward]))),
            self,
        )

    # Forward

    def passed(self, values: Sequence[Any]) -> Seen:
        """What there is after a forward pass at these values, which it may overwrite."""
        count, lift = len(self.names), self.backend.lift
        inputs = dict(zip(self.names, map(lift, values[:count]), strict=True))
        seen: Seen = {"object": self.author.copied(), "input": inputs}
        seen["start"] = dict(zip(self.slots, values[count:], strict=True))
        for name, value in seen["start"].items():
            for path in self.slots[name]:
                put(seen, path, lift(value))
            seen["start"][name] = copy.copy(value)  # backward may update the parameter in place
        seen["before"] = {} if self.plan.outputs else arrays({"object": seen["object"]})
        with seeded(self.author.forward):
            result = self._run(self.author.forward, seen, [*seen["input"].values()])
        parts = list(result) if isinstance(result, tuple | list) else [result]
        # Arrays of the author's own class are kept, since backward may hold them by weak references alone.
        seen["own"] = [part for part in parts if inner(part) is not part]
        result = [*map(inner, parts)] if seen["own"] else vector(result)
        if isinstance(result, tuple) and result and isinstance(result[0], tuple) and not self.author.whole:
            spread = (*result[0], *result[1:])  # `return (h, c), cache`
            result = spread if len(returned_names(self.author.forward)) == len(spread) else result
        seen["result"] = list(result) if isinstance(result, tuple | list) else [result]
        return seen

    def outputs(self, seen: Seen) -> list[Any]:
        """What forward computed, by the plan."""
        outputs = [get(seen, place) for place in self.plan.outputs]
        if any(y is None for y in outputs):
            raise NotImplementedError("forward returned None")
        return outputs

    def flat(self, values: Sequence[Any]) -> np.ndarray[Any, Any]:
        """All outputs at copies of these values, laid end to end."""
        outputs = self.outputs(self.passed(copy.deepcopy([*values])))
        return np.concatenate([np.ravel(array(y)) for y in outputs]).astype(np.float64)

    def _run(self, function: Callable[..., Any], seen: Seen, arguments: Sequence[Any]) -> Any:
        """What one of the passes returns; where they are one, the second call takes what the first did."""
        if self.author.whole:
            moves: Any = lambda v: isinstance(v, Tensor) or (is_tensor(v) and v.requires_grad)
            arguments = [v if moves(v) else copy.deepcopy(v) for v in arguments]
        with self.backend.precise():
            return handed(function, [*([seen["object"]] if self.author.leads else []), *arguments])

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

    # Backward

    def pulled(self, function: Callable[..., Any], dy: Any, seen: Seen, outputs: list[Any]) -> Gradients:
        """What a backward pass returns and leaves behind."""
        self._anew(seen)
        dy = np.asarray(dy) if isinstance(outputs[0], np.ndarray) else dy  # some take no other numbers
        shapes, parts = [np.shape(y) for y in outputs], [dy]  # the gradient of all outputs, laid end to end
        if len(outputs) > 1:
            ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
            split = np.split(np.reshape(dy, -1), ends)
            parts = [part.reshape(shape) for part, shape in zip(split, shapes, strict=True)]
        parts = list(map(self.backend.lift, parts))
        wrapped = [*map(type(seen["own"][0]), parts)] if seen["own"] else parts
        defaults = {name: p.default for name, p in signature(self.author.forward).items()}
        there = seen | {"dy": wrapped, "rate": RATE, "node": _node(seen), "default": defaults}
        if self.plan.hung:
            setattr(outputs[0], self.plan.hung, parts[0])
        with seeded(function) if self.author.whole else nullcontext():
            back = self._run(function, seen, [get(there, place) for place in self.plan.arguments])
        if self.author.whole:
            back = self._scaled(back, dy)
        elif np.ndim(self.inputs[0]):
            back = vector(back)
        shape = np.shape([*seen["input"].values(), 0][0])
        number = isinstance(back, int | float) or (isinstance(back, np.ndarray) and not back.ndim)
        if self.plan.unit and not self.author.whole and number and np.shape(outputs[0]) == shape:
            back = np.full(shape, float(back))  # the derivative of each entry, the same for all
        if len(parts) == 1 and isinstance(dy, np.ndarray):
            np.copyto(dy, array(parts[0]))  # where a framework's copy was overwritten
        left = {name: self._left(name, place, seen) for name, place in self.places.items()}
        names = [name for name in self.names if name not in self.constants]
        names = names if self.plan.judged is None else [*self.plan.judged]
        alike = len(names) > 1 and {*map(np.shape, seen["input"].values())} == {shape}
        if alike and isinstance(back, np.ndarray) and back.shape == (len(names), *shape):
            back = tuple(back)  # `np.array([da, db])`
        returns = () if self.author.whole else tuple(self.returns)
        return Gradients(lowered(back), left, returns, tuple(names), self.plan.unit)

    def _scaled(self, results: Any, dy: Any) -> Any:
        """The gradients that stand beside a loss, times dy; those of an object's own by what they are called."""
        place = self.plan.outputs[0][1]
        rest = [lowered(part) for i, part in enumerate(results) if i != place]
        back: Any = rest[0] if len(rest) == 1 else rest
        if self.author.leads and not isinstance(back, dict):
            alike = [name for name in self.slots if np.shape(self.all[name]) == np.shape(back)]
            back = {self.returns[1 - place] or next(iter(alike), ""): back}
        if isinstance(back, dict):
            return {label((key,)): dy * value for key, value in back.items()}
        listed = back if isinstance(back, tuple | list) else (back,)
        return tuple([None if value is None else dy * value for value in listed])

    def _anew(self, seen: Seen) -> None:
        """Have gradients start from 0, since some layers add to them, and parameters from where they were."""
        for name, place in self.places.items():
            held = get(seen, place)
            if self.updates(name):
                for path in self.slots[name]:
                    put(seen, path, self.backend.lift(copy.copy(seen["start"][name])))
            elif isinstance(held, np.ndarray):
                held[...] = 0
            elif isinstance(held, list):
                put(seen, place, np.zeros(np.shape(held)))

    def _left(self, name: str, place: Path, seen: Seen) -> Any:
        """The gradient that backward left behind, by the step where it updates the parameter itself."""
        left = array(get(seen, place))
        if left is None or not self.updates(name):
            return left
        return (array(seen["start"][name]) - left) / self.rates[name]

    def updates(self, name: str) -> bool:
        """Whether backward updates a parameter itself."""
        return self.places.get(name) in self.slots.get(name, ())


class _Value(np.ndarray[Any, Any]):
    """An array as a node of a graph holds it."""

    cached_data = data = property(lambda self: self.view(np.ndarray))
    realize_cached_data = numpy = lambda self: self.view(np.ndarray)


def _node(seen: Seen) -> Any:
    """A node of a graph, as `gradient(out_grad, node)` reads it."""
    node: Any = np.asarray(seen["result"][0]).view(_Value)
    node.inputs = [np.asarray(value).view(_Value) for value in seen["input"].values()]
    return node


def _doubled(owner: Any) -> Any:
    """An object whose tensors and arrays are in double precision."""
    for value, paths in groups(arrays({"object": owner})):
        wide = value.detach().double() if is_tensor(value) and value.is_leaf else None
        wide = value.astype(np.float64) if isinstance(value, np.ndarray) and value.itemsize < 8 else wide
        for path in [path for path in paths if path[-1] != "grad" and wide is not None]:
            put({"object": owner}, path, wide)
    return owner
