"""Inputs that suit an entry: those that a file gives, else guesses at what forward takes, tried one after the other."""

import copy
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..gradcheck import Unjudgeable
from .conventions import LossElsewhere
from .entries import Entry
from .guesses import UNKNOWN, Choices, drawn, meant, shape_of, shown
from .held import arrays, is_array, is_float
from .inputs import symmetric
from .names import BIAS, SHIFT, is_label, plain
from .pairs import NoPair, Pair, agreement
from .source import code_of, signature
from .trace import reported, said, steps, work
from .unwritten import noted, written

ABSENT = 20  # guesses that got furthest and ended at what isn't there, after which no more are tried
_ABSENT = r"(Type|Attribute)Error: .*NoneType|NameError|ImportError|ModuleNotFound|FileNotFoundError(?!.*'x')"
_TAKEN = [10**6]  # how far forward gets, in lines, with what it takes
_ACCEPTED, _FITTING = 60, 8  # how many inputs are tried on the pair, and where shapes fit
_WORK = 1_500  # calls of a small pair that looking for inputs takes
_MARGIN = re.compile(r"(?is)(?!.*(range|eye|hot|max\(.*1\)))(.*hinge|.*max\w*\((0(\.0?)?, *)?1(\.0?)? *- *\w)")
_BIAS = rf"{BIAS}|{SHIFT}"


class Fit(NamedTuple):
    """Inputs that forward takes, and the pair on them; of a guess, with what came of it.

    `fits` is whether gradients have the shapes of the inputs, and `share` which of them agrees with differences; `firm`
    whether the inputs are given, or said by their names; `tabled`, whether no lengths were read from messages.
    """

    inputs: tuple[Any, ...]
    pair: Pair
    fits: bool = True
    share: float = 1.0
    firm: bool = True
    tabled: bool = True
    kinds: tuple[str, ...] = ()  # of a guess
    guessed: bool = False
    note: str = ""
    axes: int = 0  # of the output

    @property
    def right(self) -> bool:
        """Whether every gradient agrees with differences."""
        return self.fits and self.share == 1

    @property
    def first(self) -> tuple[int, ...]:
        """The shape of the first array."""
        return next((value.shape for value in self.inputs if isinstance(value, np.ndarray)), ())

    @property
    def extent(self) -> tuple[int, bool, int]:
        """How much may show: in complex numbers, in arrays of several, in lengths of their own."""
        several = any(np.size(value) > 1 for value in self.inputs)
        return sum(map(np.iscomplexobj, self.inputs)), several, len({*self.first} - {1})


@dataclass(frozen=True)
class Slot:
    """A parameter, or what one that is a dict holds under a key; the kinds that it may be of, the likeliest first."""

    name: str
    key: str
    kinds: list[str]

    @property
    def called(self) -> str:
        """The name that says what it is."""
        return self.key or self.name

    def says(self, kind: str) -> bool:
        """Whether its name says that it is of a kind: lengths that were read from messages may be others."""
        likely = (kind == self.kinds[0] and kind[:2] != "=[") or (kind in self.kinds and kind[0] != "=")
        return kind == "known" or (likely and not meant(self.called)[1])

    def keeps(self, kind: str) -> bool:
        """Whether a kind with which shapes fit stays: but of labels, and of what has no telling name."""
        array = (kind == "+" or kind[0] == "=") and any(k[0] != "=" for k in self.kinds)  # p, a rate or a probability
        column = kind in ("D", "N", "LL")  # a vector that may be one, a matrix
        return kind in self.kinds and not (array or column or meant(self.called)[1])


@dataclass
class Search:
    """Guesses tried on an entry, the likeliest first, and what came of them so far."""

    entry: Entry
    known: dict[str, Any]
    spent: float = 0.0
    tried: list[Fit] = field(default_factory=list)  # guesses that forward takes
    failed: list[tuple[list[int], str]] = field(default_factory=list)  # how far forward got, and why not further
    closed: bool = False  # whether other guesses would only hide what is wrong
    keys: list[tuple[str, str]] = field(default_factory=list)  # what dicts must hold
    slots: list[Slot] = field(default_factory=list)
    settled: dict[int, str] = field(default_factory=dict)  # kinds that stay, by slot
    choices: Choices = field(default_factory=lambda: Choices([]))
    cut_off: bool = False  # whether an output wasn't finite
    summed: set[str] = field(default_factory=set[str])  # arrays with a number for a gradient, beside right ones

    def guesses(self) -> Iterator[tuple[str, ...]]:
        """A kind for each slot, while there is work left."""
        held, names = list[int](), self.entry.parameters
        with suppress(Exception):  # the lengths that an object made without arguments holds, of which x may have one
            if self.entry.maker and not self.entry.made:
                shapes = [np.shape(value) for value in arrays(self.entry.maker(())).values() if is_array(value)]
                held = sorted({length for shape in shapes for length in shape if length > 1})[:4]
        kinds = {name: ["known"] if name in self.known else _kinds(self.entry, name, held) for name in names}
        dicts = dict(self.keys)
        self.slots = [Slot(name, "", ["options"] if name in dicts else listed) for name, listed in kinds.items()]
        held_in = {(name, key): _kinds(self.entry, key, held) for name, key in self.keys}
        self.slots += [Slot(*at, listed[:1] if listed[0][0] == "=" else listed) for at, listed in held_in.items()]
        self.settled, self.choices = {}, Choices([slot.kinds for slot in self.slots])
        for chosen in self.choices:
            if self.spent > _WORK:
                return
            biases = [name for name in self.numbers(chosen) if re.fullmatch(_BIAS, plain(name))]
            positive = "+" * self.cut_off  # then positive ones may fit as well
            if not biases and all(chosen[i] in (kind, positive + kind) for i, kind in self.settled.items()):
                yield chosen

    def numbers(self, chosen: tuple[str, ...]) -> list[str]:
        """What is a number here, and as an array had a number for its gradient."""
        called = [slot.called for slot, kind in zip(self.slots, chosen, strict=True) if kind == "+"]
        return [name for name in called if name in self.summed]

    def inputs(self, chosen: tuple[str, ...]) -> dict[str, Any]:
        """Values of these kinds."""
        rng, values = np.random.default_rng(1), dict[str, Any]()
        for slot, kind in zip(self.slots, chosen, strict=True):
            holder = values[slot.name] if slot.key else values
            holder[slot.called] = self.known[slot.name] if kind == "known" else drawn(kind, rng)
        return values

    @property
    def best(self) -> Fit | None:
        """The guess with the most right gradients so far, the first of several."""
        return max(self.tried, key=lambda fit: (fit.fits, fit.share, fit.tabled), default=None)

    def fit(self) -> Fit:
        """The best fit; anew where a dict is found to lack a key."""
        known = -1
        while len(self.keys) != known:
            known = len(self.keys)
            for chosen in self.guesses():
                self.attempt(chosen)
                if (self.best is not None and self.over) or len(self.keys) != known:
                    break
        best, todo = self.best, [why for _, why in self.failed if "backward returned None" in why]
        if todo and (best is None or best.share < 0):
            raise NotImplementedError(todo[0].removeprefix("NotImplementedError: "))
        if best is None:
            none = any(why[:6] == "NoPair" for _, why in self.failed)
            raise NoPair if none else ValueError(_no_inputs(self.entry, self.failed))
        return best._replace(note=self.note(best))

    @property
    def over(self) -> bool:
        """Whether every gradient agrees with differences, or enough was tried."""
        fits = [fit.fits for fit in self.tried if fit.tabled]
        return self.closed or len(fits) >= _ACCEPTED or sum(fits) >= _FITTING or any(fit.right for fit in self.tried)

    def tabled(self, chosen: tuple[str, ...]) -> bool:
        """Whether each is of a kind that its name says, and not of lengths read from messages."""
        return all(kind in slot.kinds for slot, kind in zip(self.slots, chosen, strict=True))

    def attempt(self, chosen: tuple[str, ...]) -> None:
        """Try a guess; what an author has yet to write, and what can't be judged at all, is raised."""
        values = self.inputs(chosen)
        inputs, taken = tuple(values.values()), False
        with work() as done:
            try:
                axes = np.ndim(finite(self.entry.probe(inputs)))
                taken = True
                self.keep(chosen, values, self.entry.adapted(inputs), axes)
            except Exception as error:
                why, follows = noted(error), self.choices.refused(chosen, str(error))
                declined = isinstance(why, NotImplementedError | Unjudgeable | NoPair)
                sure = self.tabled(chosen) or isinstance(why, LossElsewhere)  # at no shape does forward take labels
                sure = sure and not (isinstance(why, NoPair) and len(self.failed) < ABSENT)  # no loss at this shape
                if declined and sure and (not taken or not (self.best or follows)):
                    raise why from None
                self.fail(why, values, taken)
        self.spent += done[0] + self.entry.cost

    def keep(self, chosen: tuple[str, ...], values: dict[str, Any], pair: Pair, axes: int) -> None:
        """Keep a guess that forward takes, with an output of so many axes."""
        with np.errstate(all="ignore"):
            y = finite(pair.forward(*copy.deepcopy(pair.inputs))[0])  # what is judged may be left on the object
        if pair.unit and np.ndim(y) > 1 and np.shape(y) not in map(np.shape, pair.inputs):  # as w.T @ w is of a matrix
            raise ValueError(f"backward takes no dy, and forward's output has the shape {np.shape(y)}")
        transposed = _transposed(pair)
        for name, value in zip(pair.names, pair.inputs, strict=True):
            if np.ndim(value) < 2 and name in transposed:
                raise ValueError(f"backward transposes {name}, which has the shape {np.shape(value)}")
        (fits, share), message, shapes = rated(pair)
        if self.lacked(message, values):  # backward reads more of it than forward
            return
        if axes > 1 and share >= 0.5:
            self.summed |= {name for name, shape in shapes.items() if shape == ()}
        self.choices.refused(chosen, message, [shapes.get(slot.called) for slot in self.slots])
        firm = all(slot.says(kind) for slot, kind in zip(self.slots, chosen, strict=True))
        fit = Fit(tuple(values.values()), pair, fits, share, firm, self.tabled(chosen), chosen, True, axes=axes)
        longer = any(not f.right and f.share >= 0 and 1 not in f.first for f in self.tried)
        square = len({*fit.first}) < len(fit.first) == 2
        if fit.right and longer and (1 in fit.first or square) and not fit.tabled:  # of lengths that a message says
            return
        if fit.right and (self.hides(fit) or self.along_the_batch(chosen, pair)):
            self.closed = True
            return
        whole = [s for s, k in zip(self.slots, chosen, strict=True) if k[:3] == "int" != s.kinds[0][:3]]
        if whole and self.best and share < self.best.share and not re.search(r"\bint", code_of(pair.forward)):
            return  # floats, which forward takes, have gradients to be judged
        self.tried.append(fit)
        if fits and not self.settled and None not in shapes.values():
            kinds = enumerate(zip(self.slots, chosen, strict=True))
            self.settled = {i: kind for i, (slot, kind) in kinds if slot.keeps(kind)}

    def hides(self, right: Fit) -> bool:
        """Whether it is right where a wrong guess is longer: in more numbers, rows, lengths of their own, or parts."""
        wrong = [fit for fit in self.tried if not fit.right and fit.share >= 0 and (right.axes or not fit.axes)]
        short = any(kind == "+" not in slot.kinds for slot, kind in zip(self.slots, right.kinds, strict=True))
        short |= len({*right.first}) < len(right.first) == 2 and 1 not in right.first
        alone = len(self.slots) == 1 and any(f.fits and f.tabled and len(f.first) == len(right.first) for f in wrong)
        narrow = alone or 1 in right.first or (len(right.first) == 1 and _of_a_difference(right.pair))
        wrong = [fit for fit in wrong if fit.fits or (fit.tabled and (fit.share >= 0.5 or not narrow))]
        longer = [fit.extent for fit in wrong if fit.extent > right.extent]
        return any(short or narrow or extent[:2] > right.extent[:2] for extent in longer)

    def note(self, best: Fit) -> str:
        """Where it is wrong that forward takes as well, if it is right at the best guess."""
        if not best.right:
            return ""
        fixed = [i for i, slot in enumerate(self.slots) if slot.kinds == UNKNOWN.split() and best.kinds[i] == "=0.5"]
        untold = [i for i in fixed if any(f.kinds[i] > "A" for f in self.tried if f.fits and f.share >= 0.5)]
        if numbers := self.numbers(best.kinds) + [self.slots[i].called for i in untold]:
            return f"That is with {numbers[0]} a number: with an array, which forward takes too, it is wrong."
        alike = [sum(map(symmetric, fit.inputs)) for fit in [best, *self.tried] if fit.fits]
        if min(alike) < alike[0]:
            return "That is for a symmetric matrix: for another, which forward takes, it is wrong."
        narrow = 1 in best.first or len(best.first) < 2
        wrong = [fit for fit in self.tried if not fit.right and not self.cut(fit, best)]
        shapes = [fit.first for fit in wrong if fit.fits or (fit.tabled and len(fit.first) > 1)]
        shape = next((at for at in shapes if at and 1 not in at and (narrow or len(at) == 1)), None)
        return f"At inputs of shape {shape}, which forward takes, it is wrong." if shape else ""

    def cut(self, fit: Fit, best: Fit) -> bool:
        """Whether labels are indices that are none in the best guess, or what has a logarithm no shares, as there."""
        kinds, shares = [*zip(fit.kinds, best.kinds, strict=True)], ("prob", "unit")
        cut = re.search(r"log|clip", self.entry.text) and any(a[:4] not in shares and b[:4] in shares for a, b in kinds)
        return bool(cut) or any(a[:3] == "int" != b[:3] for a, b in kinds)

    def lacked(self, message: str, values: dict[str, Any]) -> bool:
        """Whether a message names a key that a dict lacks, which the first without it is to hold then."""
        key = re.fullmatch(r"KeyError: '(\w+)'", message)
        dicts = {name: value for name, value in values.items() if isinstance(value, dict) and name not in self.known}
        lacking = [(name, key[1]) for name, value in dicts.items() if key and key[1] not in value][:1]
        self.keys += lacking
        return bool(lacking)

    def along_the_batch(self, chosen: tuple[str, ...], pair: Pair) -> bool:
        """Whether a bias got lengths, from what was said of its gradient, that no weights have: those of the batch."""
        shapes = {plain(n.rpartition(".")[2]): np.shape(v) for n, v in zip(pair.names, pair.inputs, strict=True)}
        lengths = {k for name, shape in shapes.items() if name[0] == "w" and len(shape) > 1 for k in shape}
        read = [plain(s.called) for s, kind in zip(self.slots, chosen, strict=True) if kind[0] == "("]
        biases = [{*shapes.get(name, ())} for name in read if re.fullmatch(_BIAS, name)]
        first = np.shape(pair.inputs[0])
        whole = len(first) > 1 and any(name[:4] == "bias" and shapes.get(name) == first for name in read)
        return whole or (bool(lengths) and any(not bias <= {1, *lengths} for bias in biases))

    def fail(self, error: Exception, values: dict[str, Any], taken: bool) -> None:
        """Learn from an exception: a key that a dict lacks, or how far forward got."""
        if not taken and self.lacked(said(error), values):
            return
        depth = _TAKEN if taken else [line for _, line in steps(error)]
        self.failed.append((depth, reported(error)))
        self.cut_off |= "not finite" in str(error)
        lost = re.match(_ABSENT, said(error)) and depth == max(self.failed)[0]
        if lost and self.best is None and self.failed.count(self.failed[-1]) == ABSENT:
            raise ValueError(_no_inputs(self.entry, self.failed)) from None


def _of_a_difference(pair: Pair) -> bool:
    """Whether forward is a loss of the difference of two arrays, as a squared error is, of any shape."""
    if len(pair.inputs) != 2 or not all(map(is_float, pair.inputs)):
        return False
    moved = [value + np.arange(1.0, value.size + 1).reshape(value.shape) for value in pair.inputs]
    y, there = (np.asarray(pair.forward(*copy.deepcopy(values))[0]) for values in (pair.inputs, moved))
    return bool(y.size == 1 and np.allclose(y, there))


def _transposed(pair: Pair) -> set[str]:
    """What backward transposes of what forward is handed: it is meant to be a matrix."""
    code = re.sub(r"\[[\"'](\w+)[\"']\]", r".\1", code_of(pair.source))
    turned = re.findall(r"([\w.]+)[\])]*\.T\b|transpose\(([\w.]+)\)", code)
    paths = {f".{path.removeprefix('self.')}" for path in filter(None, itertools.chain(*turned))}
    kept = re.findall(r"\bself\.(\w+) *= *(\w+) *$", code_of(pair.forward), re.MULTILINE)
    paths |= {f".{name}" for attribute, name in kept if f".{attribute}" in paths}
    return {n for n in pair.names if any(path.endswith(f".{n}") or f".{n}".endswith(path) for path in paths)}


def guessed(entry: Entry, known: dict[str, Any]) -> Fit:
    """Inputs that forward takes, best such that every gradient agrees with differences there; and the pair on them."""
    return Search(entry, known, keys=[at for at in entry.keys if at[0] not in known]).fit()


def given(entry: Entry, space: dict[str, Any]) -> Fit | None:
    """The inputs that the file gives."""
    names, inputs = (inputs_name(entry), f"{entry.forward}_inputs"), space.get("inputs")
    inputs = inputs if callable(inputs) or isinstance(inputs, tuple) else None  # a list is what a network is trained on
    inputs = next((space[name] for name in names if name in space), inputs)
    inputs = inputs() if callable(inputs) else inputs
    if inputs is None:
        return None
    if not isinstance(inputs, tuple | list):
        raise TypeError(f"inputs is a {type(inputs).__name__}, expected a tuple of what forward takes")
    other = entry.judged_with
    if other and len(inputs) == len(other.parameters) and np.ndim(inputs[entry.made]):
        raise LossElsewhere("labels are given too")
    return Fit(tuple(inputs), entry.adapted(inputs))


def inputs_name(entry: Entry) -> str:
    """What a file calls the inputs that it gives for a pair."""
    return re.sub(r"([._]?forward.*|_(fw|fwd|fprop)|\.\w+)?$", "_", entry.forward, count=1).lstrip("_") + "inputs"


def rated(pair: Pair) -> tuple[tuple[bool, float], str, dict[str, tuple[int, ...] | None]]:
    """Whether a pair's gradients have the shapes of the inputs, and which share of them agrees with differences.

    With the message of what backward raised, or the shapes of gradients that have others; None where nobody can tell.
    """
    written(pair)
    try:
        with np.errstate(all="ignore"):
            told = agreement(pair)
    except (NotImplementedError, Unjudgeable):
        raise
    except Exception as error:
        return (False, -1.0), said(error), {}
    shapes = {name.rpartition(".")[2]: value for name, value in told.items() if not isinstance(value, bool)}
    judged = [*told.values(), *[None for _ in pair.unseen]]  # an unjudged one is worse
    share = sum([1 if value is True else -0.1 * (value is None) for value in judged]) / max(len(judged), 1)
    return (any(value is not None for value in told.values()) and {*shapes.values()} <= {None}, share), "", shapes


def _kinds(entry: Entry, name: str, lengths: Sequence[int] = ()) -> list[str]:
    """What a parameter may be, by its name and by what stands beside it."""
    if (name == "p" and {"y", "t"} & {*entry.parameters}) or (name == "y" and "t" in entry.parameters):
        name = "pred"
    beside = {*map(plain, entry.parameters)}
    weighted = any(n.startswith("w") for n in beside)
    alike = ("q", "k") if {"q", "k"} <= beside else ("b",) if {"a", "b"} <= beside and not weighted else ()
    if plain(name) in alike or ("logvar" in beside and plain(name) in ("mu", "mean", "logvar")):
        name = "x"  # of attention, two of a kind, a distribution for each example
    if name in entry.kinds:
        return entry.kinds[name]
    margin = _MARGIN.match(entry.text)  # labels of ±1: 0 and 1 would hide it
    told = {n for f in entry.code for n, p in signature(f).items() if p.annotation in (float, "float")}
    if name in told and entry.parameters[0] not in told:
        return ["=0.5", "=2", "+"]
    listed, _ = meant("scores" if margin and meant(name)[0][0] == "prob:ND" else name)
    if margin and is_label(name):
        return ["sign:N", "sign:ND", "sign:N1"]
    if name in entry.parameters[: entry.made] and len(name) == 1 and listed[0] in ("NM", "ND"):
        listed = ["=3", *listed]  # a length, of what is made
    if all(kind[0] == "=" for kind in listed) and (len(name) == 1 or [name] == entry.parameters[entry.made :][:1]):
        listed += ["ND", "BNN", "int:BTM"]
    for length in lengths if {"ND", "NM"} & {*listed} else ():
        listed += [f"({length},5)", f"(5,{length})", f"(2,{length},3,5)", f"(2,6,{length})", f"(2,{length},6)"]
    words = [f'="{word}"' for word in re.findall(rf"\b{name} *== *[\"']([\w-]+)[\"']", entry.text)]
    indices = ["int:BTM"] * ("int:BTM" in listed and "vocab" in " ".join(beside))
    listed = [*dict.fromkeys([*words[: 9 * meant(name)[1]], *listed[:1], *indices, *listed, *words])]
    if meant(name)[1] and re.search(r"reshape\(-1, *1\)", entry.text):
        listed = sorted(listed, key=lambda kind: not kind.endswith("N1"))
    if is_label(name) and re.search("(axis|dim)=0", entry.text) and not re.search("(axis|dim)=-?1", entry.text):
        listed = sorted(listed, key=lambda kind: not kind.startswith("columns"))
    called = rf"\b{entry.backward.rpartition('.')[2]}\(\1, *\2\)"  # `for x, y in batch: self.backprop(x, y)`
    if re.search(rf"for \(?(\w+), *(\w+)\)? in [^\n]*:\s[^#]{{0,200}}?{called}", entry.text):
        listed = listed if listed[0][0] == "=" else ["D1", *listed]
    if listed == ["options"] and re.search(rf"\b{name}\[[^\]\"']*:", entry.text):
        return ["D"]  # a vector of which parts are reshaped
    unpacked = re.search(rf"(?m)^ *((?:\w+, *)+\w*) *= *(?:\w+\.\w+\()?{name}(\.shape)?\)? *$", entry.text)
    count = len(re.findall(r"\w+", unpacked[1])) if unpacked else 0
    if unpacked and not unpacked[2]:  # `mu, log_sigma = theta`, or of `np.exp(theta)`
        return [f"({count})", *listed]
    return sorted(listed, key=lambda kind: count not in (0, len(shape_of(kind)) - kind.startswith("int:")))


def finite(result: Any) -> Any:
    """What forward returns first, if that is not empty and finite; 0 for gradients, before their loss."""
    first = result[0] if isinstance(result, tuple | list) and result else result
    if first is None or isinstance(first, dict):
        return 0
    y = np.asarray(first.detach() if hasattr(first, "detach") else first)
    y = y if np.iscomplexobj(y) else y.astype(np.float64)
    if not y.size or not np.isfinite(y).all() or np.iscomplexobj(y):
        raise ValueError("forward's output is empty, complex or not finite")
    return y


# Why there are none


def _no_inputs(entry: Entry, failed: list[tuple[list[int], str]]) -> str:
    """Why forward took no inputs, by the guess that it went furthest with, and how others are given."""
    call = f"{entry.forward}({', '.join(entry.parameters)})"
    lost = [reason for reason in failed if re.match(_ABSENT, reason[1])]
    why = max(failed, key=lambda reason: reason[0])[1]
    if lost:
        return f"{call} needs what isn't there: {max(lost)[1]}"
    set_elsewhere = re.match(r"AttributeError: '(\w+)' object has no attribute '(\w+)'", why)
    if set_elsewhere and entry.forward.startswith(f"{set_elsewhere[1]}."):
        no_layer = "an object's: the two passes of one have names such as forward, backward"
        return f"{call} reads self.{set_elsewhere[2]}, which is {'set elsewhere' if entry.maker else no_layer}: {why}"
    first = {name: _kinds(entry, name)[0] for name in entry.parameters}
    line = " ".join([f"{name}={shown(kind)}" for name, kind in first.items() if not kind.startswith("call")])
    return (
        f"no inputs are known for {call}, the best of {len(failed)} guesses ended with {why}; "
        f"give them as --inputs '{line}' or define {inputs_name(entry)} in the file"
    )
