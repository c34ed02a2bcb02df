"""What a backward pass returned, matched by place or by name with what each array should be the gradient of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ...engine.node import Array
from .names import DATA, LOSS, derivative_of, is_constant, plain
from .verdict import Finding

_ONE_EACH = "Return one gradient an input, in forward's order."


class Gradients(NamedTuple):
    """What backward returned, what it left on an object by name, the names it returned them by, forward's arguments."""

    back: Any
    left: dict[str, Any]
    returns: tuple[str, ...]
    names: tuple[str, ...]
    loss: bool = False  # whether they are of a loss, by a backward pass that takes no dy

    @property
    def listed(self) -> list[Any]:
        """What came back, one by one."""
        alone = [] if self.back is None else [self.back]
        return list(self.back) if isinstance(self.back, tuple | list) else alone


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


@dataclass
class Matching:
    """What `came` back from one backward pass, as it is matched with the inputs that it is the gradients of."""

    came: Gradients
    inputs: dict[str, Any]
    truth: Mapping[str, Any]
    out: Returned = field(default_factory=Returned)
    named: bool = False  # whether what came back is told apart by its names

    def matched(self) -> Returned:
        """What came back, in its places, and what it says that some did not."""
        for name, value in self.came.left.items():
            if value is not None:
                self._keep(name, value)
        if isinstance(self.came.back, dict):
            self._by_names(self.came.back)
        else:
            self._by_place(self.came.listed)
        refused = {label for finding in self.out.findings for label in finding.gradients}
        for name in [name for name in self.truth if name not in self.out.gradients and f"d{name}" not in refused]:
            if name not in self.came.names and name not in self.came.left:
                continue  # an object's own, which nobody hands over
            first = name == next(iter(self.inputs))
            data = self.came.loss and self.out.gradients and re.fullmatch(DATA, name.lower())
            if data or (first and (self.named or (self.came.back is None and self.out.gradients))):
                self.out.unseen.append(f"{name}, of which no gradient is returned")
            elif np.any(self.truth[name]) and not is_constant(name, self.inputs[name]):
                what = f"backward returned no gradient for {name}."
                self.out.findings.append(Finding("count", (f"d{name}",), what, _ONE_EACH))
            else:
                self.out.notes.append(f"No gradient came back for {name}, which is taken for a constant.")
        return self.out

    def _by_place(self, listed: list[Any]) -> None:
        while len(listed) > len(self.came.names) and listed[-1] is None:
            listed.pop()  # for an argument left to its default
        listed = self._without_containers(listed)
        wanted = self.wanted(listed)
        if len(listed) > len(wanted):
            what = f"backward returned {len(listed)} gradients for {len(wanted)} inputs ({', '.join(wanted)})."
            self.out.findings.append(Finding("count", (), what, _ONE_EACH))
        for name, value in zip(wanted, listed, strict=False):
            if value is not None:
                self._of_an_input(name, value)

    def _by_names(self, back: Mapping[Any, Any]) -> None:
        self.named = len(self.inputs) > len(self.came.names)  # an object's own, by its names for them
        known = {plain(name): name for name in reversed(self.inputs)}
        for key, value in back.items():
            name = next((known[n] for n in derivative_of(str(key)) if n in known), None)
            if value is None:
                continue
            if name is None or name in self.out.gradients:
                self._put(self.out.others, str(key), str(key), value)
            else:
                self._put(self.out.gradients, name, str(key), value)

    def _of_an_input(self, name: str, value: Any) -> None:
        """Keep what came back in the place of an input, which may be a container of arrays or have no gradient."""
        taken: Any = self.inputs.get(name)
        if isinstance(taken, dict | list | tuple) and isinstance(value, dict | list | tuple):
            inside = [n for n in self.truth if n.startswith(f"{name}[")]
            self._by_names(value if isinstance(value, dict) else dict(zip(inside, value, strict=False)))
        elif name in self.truth and name not in self.out.gradients:
            self._keep(name, value)
        elif name not in self.out.gradients:
            array = isinstance(taken, np.ndarray)
            if np.shape(value) and isinstance(taken, int | float):
                self.out.numbers.append(name)  # also zeros: it was meant to be an array
            elif np.any(value) and (array or isinstance(taken, float)):
                same = np.shape(taken) == np.shape(value)
                (self.out.numbers if same or not array else self.out.labels).append(name)
            kind = getattr(taken, "dtype", type(taken).__name__)
            self.out.unseen.append(f"d{name}, as {name} is no array of floats ({kind})")

    def _without_containers(self, listed: list[Any]) -> list[Any]:
        """What is left where lists of an object's own gradients, `nabla_w`, and dicts of them beside dx, are kept."""
        lists, left, words = dict[str, list[str]](), list[Any](), self.came.returns
        for name in self.truth:
            if "[" in name and name not in self.out.gradients:
                lists.setdefault(name.partition("[")[0], []).append(name)
        if listed and all(isinstance(item, tuple) and len(item) == len(lists) for item in listed):
            listed, words = [list(part) for part in zip(*listed, strict=True)], ()  # (dW, db) for each layer
        if own := [n for n in self.truth if "[" not in n and n not in (*self.came.names, *self.out.gradients)]:
            lists[""] = own
        for item, word in zip(listed, words if len(words) == len(listed) else [""] * len(listed), strict=True):
            if isinstance(item, dict) and not any(isinstance(self.inputs.get(n), dict) for n in self.came.names):
                self._by_names(item)
            elif (key := self._list_of(item, word, lists)) is None:
                left.append(item)
            else:
                self.named = True
                names = lists.pop(key)
                shapes, wanted = [np.shape(value) for value in item], [np.shape(self.inputs[n]) for n in names]
                for name, value in zip(names, item[::-1] if shapes == wanted[::-1] != wanted else item, strict=True):
                    self._keep(name, value)
        return left

    def _list_of(self, item: Any, word: str, lists: Mapping[str, list[str]]) -> str | None:
        """Of which list of arrays what came back as `word` holds the gradients, by its name, else by their shapes."""
        shapes = [np.shape(value) for value in item] if isinstance(item, list | tuple) else []
        wanted = {key: [np.shape(self.inputs[n]) for n in names] for key, names in lists.items()}
        wanted = {key: there for key, there in wanted.items() if len(there) == len(shapes)}
        said = [key for key in wanted if any(plain(key).startswith(n) for n in derivative_of(word)[:-1])]
        return next(iter([*said, *[key for key in wanted if wanted[key] in (shapes, shapes[::-1])]]), None)

    def wanted(self, listed: list[Any]) -> list[str]:
        """What the gradients in a list are those of: one an argument, else by their names, else the floats in order.

        Or what alone has the shape of each.
        """
        names, count = list(self.came.names), len(listed)
        said, shapes = self._said(), [getattr(value, "shape", ()) for value in listed]
        told = len(said) == count and all(said) and len(set(said)) == count
        misfits: Any = lambda taken: [np.shape(self.inputs[name]) for name in taken] != shapes
        left = [name for name in self.truth if name not in self.out.gradients]
        left_own = [name for name in left if name not in names and not LOSS.search(name)]
        own = [[name for name in left_own if np.shape(self.inputs[name]) == shape] for shape in shapes]
        # Of an object's own, by their names, or where no other has their shapes: beside a loss, or of indices alone.
        free = self.came.loss or not {*names} & {*self.truth}
        others = free and ({*map(len, own)} == {1} or (told and not misfits(said)))
        if count == len(names) and not (others and misfits(names)):
            return names
        if told:
            self.named = True
            return said
        floats = [name for name in names if name in self.truth]
        moving = [name for name in floats if not is_constant(name, self.inputs[name])]
        every = [*names, *[name for name in left if name not in names]]  # None of indices, too
        choice = next((some for some in (moving, floats, left, every) if len(some) == count), [])
        if choice and not (others and misfits(choice)):
            return choice
        whole = count > 1 and all(isinstance(value, np.ndarray | np.number | float) for value in listed)
        alike = [[n for n in floats if np.shape(self.inputs[n]) == np.shape(v)] for v in listed if whole]
        alike = own if others else alike
        if {*map(len, alike)} == {1}:
            self.named = True
            return [name for name, *_ in alike]
        return [*floats, *left][: max(count, len(left))]

    def _said(self) -> list[str]:
        """Of which input each value that is returned is the gradient by its name, if of any."""
        letters = [plain(name)[0] for name in self.inputs]  # dW of `weight`, where nothing else begins so
        known = {letter: name for letter, name in zip(letters, self.inputs, strict=True) if letters.count(letter) == 1}
        known |= {plain(name): name for name in reversed(self.inputs)}
        words = [n for word in self.came.returns for n in derivative_of(word)[:-1] if len(n) > 2 and n not in known]
        ends = {word: [name for name in self.inputs if plain(name).endswith(word)] for word in words}
        known |= {word: named[0] for word, named in ends.items() if len(named) == 1}  # `dLogVar` of `t_log_var`
        return [next((known[n] for n in derivative_of(word)[:-1] if n in known), "") for word in self.came.returns]

    def _keep(self, name: str, value: Any) -> None:
        self._put(self.out.gradients, name, f"d{name}", value)

    def _put(self, where: dict[str, Array], name: str, label: str, value: Any) -> None:
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind in "fiub":
            where[name] = array.astype(np.float64)
        else:
            what = f"{label} is a {type(value).__name__}, expected an array of floats."
            self.out.findings.append(Finding("type", (label,), what, "Return a NumPy array."))
