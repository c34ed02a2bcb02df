"""What a backward pass returned, matched by place or by name with what each array should be the gradient of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from .names import derivative_of, is_constant, plain
from .verdict import Finding

_ONE_EACH = "Return one gradient an input, in forward's order."


class Gradients(NamedTuple):
    """What backward returned, what it left on an object by name, the names it returned them by, forward's arguments."""

    back: Any
    left: dict[str, Any]
    returns: tuple[str, ...]
    names: tuple[str, ...]


@dataclass
class Returned:
    """What backward returned: gradients of inputs by the inputs' names, other arrays, and what is wrong with them.

    `faults` says what it and forward overwrite, `failure` what it raised.
    """

    gradients: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Array] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failure: str | None = None
    unseen: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)  # inputs that are no arrays, and have a gradient all the same
    labels: list[str] = field(default_factory=list)  # and those that are arrays of integers
    named: bool = False  # whether what came back is told apart by its names

    def sort(self, returned: Gradients, inputs: dict[str, Any], truth: Mapping[str, Any]) -> None:
        """Match what came back with the inputs, of which those in `truth` have a gradient."""
        for name, value in returned.left.items():
            if value is not None:
                self._keep(self.gradients, name, f"d{name}", value)
        self._sort(returned.back, inputs, truth, returned)
        refused = {label for finding in self.findings for label in finding.gradients}
        for name in [name for name in truth if name not in self.gradients and f"d{name}" not in refused]:
            if name not in returned.names and name not in returned.left:
                continue  # an object's own, which nobody hands over
            if name == next(iter(inputs)) and (self.named or (returned.back is None and self.gradients)):
                self.unseen.append(f"{name}, of which no gradient is returned")
            elif np.any(truth[name]) and not is_constant(name, inputs[name]):
                what = f"backward returned no gradient for {name}."
                self.findings.append(Finding("count", (f"d{name}",), what, _ONE_EACH))
            else:
                self.notes.append(f"No gradient came back for {name}, which is taken for a constant.")

    def _sort(self, back: Any, inputs: dict[str, Any], truth: Mapping[str, Any], returned: Gradients) -> None:
        if isinstance(back, dict):
            self.named = len(inputs) > len(returned.names)  # an object's own, by its names for them
            known = {plain(name): name for name in reversed(inputs)}
            for key, value in back.items():
                name = next((known[n] for n in derivative_of(str(key)) if n in known), None)
                if value is None:
                    continue
                free = name is not None and name not in self.gradients
                self._keep(self.gradients if free else self.others, name if free else key, str(key), value)
            return
        listed = list(back) if isinstance(back, tuple | list) else [back]
        while len(listed) > len(returned.names) and listed[-1] is None:
            listed.pop()  # for an argument left to its default
        listed = self._without_lists(listed, inputs, truth, returned)
        wanted = self.wanted(listed, inputs, truth, returned)
        if len(listed) > len(wanted):
            what = f"backward returned {len(listed)} gradients for {len(wanted)} inputs ({', '.join(wanted)})."
            self.findings.append(Finding("count", (), what, _ONE_EACH))
        for name, value in zip(wanted, listed, strict=False):
            inside = [n for n in truth if n.startswith(f"{name}[")]
            if isinstance(inputs.get(name), dict | list | tuple) and isinstance(value, dict | list | tuple):
                pairs = value if isinstance(value, dict) else dict(zip(inside, value, strict=False))
                self._sort(pairs, inputs, truth, returned)
            elif value is not None and name in self.gradients:
                continue
            elif value is not None and name in truth:
                self._keep(self.gradients, name, f"d{name}", value)
            elif value is not None:
                kind = getattr(inputs[name], "dtype", type(inputs[name]).__name__)
                array, same = isinstance(inputs[name], np.ndarray), np.shape(inputs[name]) == np.shape(value)
                if np.shape(value) and isinstance(inputs[name], int | float):
                    self.numbers.append(name)  # also zeros: it was meant to be an array
                elif np.any(value) and (array or isinstance(inputs[name], float)):
                    (self.numbers if same or not array else self.labels).append(name)
                self.notes.append(f"d{name} is not judged: {name} is no array of floats ({kind}).")

    def _without_lists(
        self, listed: list[Any], inputs: dict[str, Any], truth: Mapping[str, Any], returned: Gradients
    ) -> list[Any]:
        """What is left where lists with a gradient for each array in a list of an object's, `nabla_w`, are kept.

        And dicts with gradients of an object's own by their names, beside dx.
        """
        lists, left, words = dict[str, list[str]](), list[Any](), returned.returns
        for name in truth:
            if "[" in name and name not in self.gradients:
                lists.setdefault(name.partition("[")[0], []).append(name)
        if listed and all(isinstance(item, tuple) and len(item) == len(lists) for item in listed):
            listed, words = [list(part) for part in zip(*listed, strict=True)], ()  # (dW, db) for each layer
        for item, word in zip(listed, words if len(words) == len(listed) else [""] * len(listed), strict=True):
            if isinstance(item, dict) and not any(isinstance(inputs.get(n), dict) for n in returned.names):
                self._sort(item, inputs, truth, returned)
                continue
            shapes = [np.shape(value) for value in item] if isinstance(item, list | tuple) else []
            wanted = {key: [np.shape(inputs[n]) for n in lists[key]] for key in lists if len(lists[key]) == len(shapes)}
            said = [key for key in wanted if any(plain(key).startswith(n) for n in derivative_of(word)[:-1])]
            key = next(iter([*said, *[key for key in wanted if wanted[key] in (shapes, shapes[::-1])]]), None)
            if key is None:
                left.append(item)
                continue
            self.named = True
            back = item[::-1] if shapes == wanted[key][::-1] != wanted[key] else item
            for name, value in zip(lists.pop(key), back, strict=True):
                self._keep(self.gradients, name, f"d{name}", value)
        return left

    def wanted(
        self, listed: list[Any], inputs: dict[str, Any], truth: Mapping[str, Any], returned: Gradients
    ) -> list[str]:
        """What the gradients in a list are those of: one an argument, else by their names, else the floats in order."""
        names, count = list(returned.names), len(listed)
        if count == len(names):
            return names
        letters = [plain(name)[0] for name in inputs]  # dW of `weight`, where nothing else begins so
        known = {letter: name for letter, name in zip(letters, inputs, strict=True) if letters.count(letter) == 1}
        known |= {plain(name): name for name in reversed(inputs)}
        words = [n for word in returned.returns for n in derivative_of(word)[:-1] if len(n) > 2 and n not in known]
        ends = {word: [name for name in inputs if plain(name).endswith(word)] for word in words}
        known |= {word: named[0] for word, named in ends.items() if len(named) == 1}  # `dLogVar` of `t_log_var`
        said = [next((known[n] for n in derivative_of(word)[:-1] if n in known), "") for word in returned.returns]
        if len(said) == count and all(said) and len(set(said)) == count:
            self.named = True
            return said
        floats = [name for name in names if name in truth]
        free = [name for name in floats if not is_constant(name, inputs[name])]
        left = [name for name in truth if name not in self.gradients]
        every = [*names, *[name for name in left if name not in names]]  # None of indices, too
        choices = (some for some in (free, floats, left, every) if len(some) == count)
        return next(choices, [*floats, *left][: max(count, len(left))])

    def _keep(self, where: dict[str, Array], name: Any, label: str, value: Any) -> None:
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind in "fiub":
            where[str(name)] = array.astype(np.float64)
        else:
            what = f"{label} is a {type(value).__name__}, expected an array of floats."
            self.findings.append(Finding("type", (label,), what, "Return a NumPy array."))
