"""What the referee makes of each pair in a file, and of the other ways that its code may take."""

import copy
import json
import linecache
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from traceback import extract_tb
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .author import author_of
from .conventions import LossElsewhere, adapt
from .earned import unearned
from .entries import Entry, entries
from .harmless import Refused
from .held import is_float
from .judge import check_backward
from .load import SECONDS, TimeUp, limited
from .names import KEEPING, SLOPES, TRAINING
from .outside import as_it_was
from .pairs import NoPair, Pair, arguments_of, share
from .pure import Allowed
from .source import NoSearch, code_of, signature, unwrapped
from .trace import OWN, instructions, line_of, reported, said
from .trials import Fit, finite, given, guessed, inputs_name, rated
from .unrun import reached
from .verdict import Verdict

Check = Callable[[Pair], Verdict]


@dataclass(frozen=True)
class Judged:
    """What came of an entry: right, wrong, convention, unwritten, unjudged, or nothing where this is no pair."""

    forward: str
    backward: str
    verdict: str
    reason: str = ""  # what is said beside the report
    report: Verdict | None = None

    def __str__(self) -> str:
        head = f"{self.verdict.upper()}: {self.reason}"
        return head if self.report is None else f"{self.report}\n\n{self.reason}".rstrip()

    def json(self) -> str:
        """One line for machines."""
        said = [] if self.report is None else [*map(str, self.report.diagnosis), *self.report.remarks]
        repairs = () if self.report is None else self.report.repair
        edits = [{name: getattr(r, name) for name in ("file", "line", "old", "new")} for r in repairs]
        fields = {"forward": self.forward, "backward": self.backward, "verdict": self.verdict}
        diagnosis = " ".join([*said, self.reason] if self.reason else said)
        return json.dumps({**fields, "diagnosis": diagnosis, "repair": edits})


def judge(entry: Entry, space: dict[str, Any], known: dict[str, Any], seed: int = 0, strict: bool = False) -> Judged:
    """What the referee makes of an entry."""
    made = partial(Judged, entry.forward, entry.backward)
    check: Check = lambda pair: check_backward(pair, pair.inputs, seed=seed, strict=strict)
    try:
        with limited(2 * SECONDS), np.errstate(all="ignore"):
            fit = given(entry, space) or guessed(entry, {n: v for n, v in known.items() if n in entry.parameters})
            report, reasons = _reported(entry, fit, check, space)
            if lacking := _lacking(report, space):
                return made("unjudged", lacking)
            return made(report.status, " ".join(reasons), report)
    except NoPair:
        return made("")
    except LossElsewhere as why:
        return judge(entry.judged_with, space, known, seed, strict) if entry.judged_with else made("unjudged", str(why))
    except TimeUp:
        return made("unjudged", f"it took more than {2 * SECONDS} s")
    except NotImplementedError as error:
        return made("" if entry.base else "unwritten", str(error) or "it raises NotImplementedError")
    except (Exception, SystemExit) as error:  # the file's own, or what the referee declines
        ours = [step.filename.startswith(OWN) for step in extract_tb(error.__traceback__)][-1:] == [True]
        known_kind = isinstance(error, Unjudgeable | ValueError | TypeError) and ours
        reason = (" ".join(str(error).split()) if known_kind else reported(error)) or said(error)
        if isinstance(error, Refused):
            reason += f"{line_of(error)}: give inputs with which it doesn't by --inputs or {inputs_name(entry)}"
        return made("" if entry.base else "unjudged", reason)


def _reported(entry: Entry, fit: Fit, check: Check, space: dict[str, Any]) -> tuple[Verdict, list[str]]:
    """The report of a pair, of where its code takes another way if that is wrong; and what is said beside it."""
    report = check(fit.pair)
    reasons = [fit.note] if fit.note else []
    if report.unwritten:
        raise NotImplementedError(report.unwritten)
    known = report.ok  # at these inputs, which are what is meant
    if known:
        report, more = _on_other_ways(entry, fit, check, report)
        reasons += more
    elsewhere = ""
    if fit.guessed and (report.ok or (report.status == "wrong" and not fit.right)):
        elsewhere = _at_other_shapes(entry, fit, report.ok)
    reasons += [elsewhere] if elsewhere else []
    if fit.guessed and report.status == "wrong" and not known:
        why = unearned(report, fit.pair, entry.parameters, fit.firm and not elsewhere)
        if why and not _beside_a_right_one(entry, fit, space):
            raise Unjudgeable(" ".join([why, *reasons, f"Give others by --inputs or {inputs_name(entry)}"]))
    return report, reasons


def _beside_a_right_one(entry: Entry, fit: Fit, space: dict[str, Any]) -> bool:
    """Whether another pair of the file takes the same three arguments or more, by their names, and is right there."""
    for other in entries(space) if len(entry.parameters) > 2 else ():
        with suppress(Exception):
            if other.parameters == entry.parameters and share(other.adapted(fit.inputs)) == 1:
                return True
    return False


def _on_other_ways(entry: Entry, fit: Fit, check: Check, right: Verdict) -> tuple[Verdict, list[str]]:
    """The first report that is wrong, else the right one, with what no run reached on any way; and what is said."""
    reasons = list[str]()
    rows: list[Way] = [*ROWS, partial(_where_none_ran, lambda: right.unrun)]
    with closing(variant for row in rows for variant in row(entry, fit.inputs)) as others:
        for variant in others:
            if variant.pair is None:
                reasons.append(variant.where)
                continue
            with suppress(ValueError, TypeError):  # what can't be judged there is judged here
                report = check(variant.pair)
                raised = bool(report.diagnosis) and report.diagnosis[0].kind in ("raised", "shape")
                if raised and variant.raises != "wrong":
                    reasons += [variant.raises] if variant.raises else []
                elif report.status == "wrong":
                    cut = any(finding.kind == "not linear" for finding in report.diagnosis)  # as by a largest norm
                    if variant.doubtful and (cut or unearned(report, variant.pair, entry.parameters, False)):
                        reasons.append(f"A{variant.where[1:]}, which forward takes, it is wrong.")
                        continue
                    return report, [*reasons, f"This is {variant.where}."]
                elif report.ok:
                    ran = {place: True for verdict in (right, report) for place, ran in verdict.reached.items() if ran}
                    right = replace(right, reached={**right.reached, **report.reached, **ran})
    return right, reasons


def _lacking(report: Verdict, space: dict[str, Any]) -> str:
    """What backward imports in vain, or reads of an object before it is set, if that is why it raised."""
    raised = next((finding.what for finding in report.diagnosis if finding.kind == "raised"), "")
    text = "".join(linecache.getlines(space["__file__"]))
    unset = re.search(r"AttributeError: '\w+' object has no attribute '(\w+)'", raised)
    if unset and re.search(rf"\w\.{unset[1]} *=(?!=)", text):
        return f"backward reads self.{unset[1]}, which is set elsewhere: {raised}"
    named = re.search(r"NameError: name '(\w+)' is not defined|ImportError: ([\w.]+) is", raised)
    name, missing = named.groups() if named else (None, None)
    if name and re.search(rf"(?m)^\s*(from|import) .*\b{name}\b|^from .* import \*", text):
        missing = name
    return f"backward needs {missing}, which isn't there" if missing else ""


# Other ways


class Variant(NamedTuple):
    """A pair where its code takes another way, and `where` that is; or a note alone.

    `raises` is what it says where backward raises: that the pair is wrong, a note, or nothing; `doubtful`, whether no
    author may mean it so, unless what is wrong has a cause.
    """

    where: str
    pair: Pair | None = None
    raises: str = "wrong"
    doubtful: bool = False


def _on_more_axes(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """`affine` on images, of which forward makes rows; batches of matrices, or one, where the code has a branch."""
    axes = r"(ndim|len\([\w.]+\.shape\)) *"
    branch = re.search(rf"{axes}((==|>=) *3|(>|!=) *2)\b|\bif .*{axes}(== *2|< *3)\b", entry.text)
    for other in (on_more_axes(entry, inputs), _stacked(entry, inputs) if branch else []):
        there = zip(entry.parameters, other, inputs, strict=False)
        for name, shape in [(name, np.shape(new)) for name, new, old in there if np.ndim(new) != np.ndim(old)]:
            yield Variant(f"for {name} of shape {shape}", entry.adapted(other))


def on_more_axes(entry: Entry, inputs: Sequence[Any]) -> list[Any]:
    """Inputs with a matrix in each row of the first array, where forward makes rows of these; else nothing."""
    first = next((i for i, value in enumerate(inputs) if is_float(value) and i >= entry.made), None)
    shaped = any(isinstance(value, tuple) for value in inputs[: entry.made])  # an object made for a shape
    part = r"(?:[^(),]|\([^()]*\))+"  # of three lengths or more, in which forward makes groups of columns
    groups = re.search(rf"\.reshape\(\(?{part}(,{part}){{2,}}", entry.text)
    if first is None or shaped or groups or inputs[first].ndim != 2 or inputs[first].shape[1] % 2:
        return []
    rows, columns = inputs[first].shape
    folded = [*inputs]
    folded[first] = inputs[first].reshape(rows, 2, columns // 2)
    with suppress(Exception):
        a, b = (_output(entry.probe(values)) for values in (inputs, folded))
        return folded if a.shape == b.shape and np.allclose(a, b) else []
    return []


def _stacked(entry: Entry, inputs: Sequence[Any]) -> list[Any]:
    """Inputs with two of the first array upon each other, or with one of three axes parted, where forward takes parts.

    Nothing where it doesn't make of each part what it makes of it in the stack.
    """
    first = next((i for i, value in enumerate(inputs) if is_float(value) and i >= entry.made), -1)
    with suppress(Exception):
        array, flat = inputs[first], max(np.ndim(value) for value in inputs) < 3
        parts = [array, array[::-1] * np.random.default_rng(4).uniform(0.9, 1.1)] if flat else [*array]
        stacked, *apart = [[v if i == first else w for i, w in enumerate(inputs)] for v in (np.stack(parts), *parts)]
        y, each = _output(entry.probe(stacked)), np.array([_output(entry.probe(part)) for part in apart])
        return (stacked if flat else apart[0]) if y.shape == each.shape and np.allclose(y, each) else []
    return []


def _out_of_training(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """Objects that are told to be in test mode by an attribute, for which backward has a branch."""
    owner = entry.maker(inputs) if entry.maker else None
    switches = [n for n, v in getattr(owner, "__dict__", {}).items() if v is True and re.fullmatch(TRAINING, n)]
    if entry.maker and switches and f"self.{switches[0]}" in code_of(author_of(owner).backward):
        setattr(owner, switches[0], False)
        with suppress(Exception):
            yield Variant("in test mode", adapt(owner, inputs[entry.maker.parted(inputs) :]), "")


def _in_test_mode(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """Dropout and batch norm have another backward pass there, where forward keeps a cache for one."""
    there = list(copy.deepcopy(inputs))
    pair = entry.adapted(there) if any(isinstance(value, dict) for value in inputs) else None
    if pair is None or "mode" not in code_of(pair.forward):
        return
    _, trained = _parts(entry.probe(inputs))
    pair.forward(*there, *pair.inputs[len(there) :])  # in training it leaves its running statistics in the dict
    for value in there:
        if isinstance(value, dict):
            value["mode"] = "test"
    try:
        y, cache = _parts(entry.probe(there))
    except Refused as error:
        yield Variant(f"In test mode it is not judged: {error}.")
        return
    if y is None:
        yield Variant("In test mode forward returns no output, so its gradient is not judged.")
    elif cache is None or (isinstance(cache, dict | tuple | list) and not cache):
        yield Variant("In test mode forward returns no cache, so its gradient is not judged.")
    elif _form(cache) == _form(trained) and not re.search(r"mode|test|train", code_of(pair.source)):
        yield Variant("It is judged in training mode, since backward doesn't look at the mode.")
    else:
        none = "In test mode there is no cache for backward, so its gradient is not judged."
        yield Variant("in test mode", entry.adapted(there), none)


def _parts(result: Any) -> tuple[Any, Any]:
    """The output and the cache of a forward pass."""
    return (result[0], result[-1]) if isinstance(result, tuple | list) else (result, 0)


def _form(value: Any) -> Any:
    """What a cache is made of, by which backward may tell one mode from the other."""
    if isinstance(value, tuple | list):
        return [_form(item) for item in value]
    return type(value), np.shape(value) if hasattr(value, "dtype") else ()


def _with_other_words(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """An argument as another of the words that the code compares it with, `mode == "max"`."""
    holder = {p.name: f for f in entry.code for p in signature(f).values() if isinstance(p.default, str)}
    passed = {n: v for n, v in zip(entry.parameters, inputs, strict=False) if isinstance(v, str)}
    if not (holder or passed):
        return
    for name in {**holder, **passed}:
        now = passed.get(name) or signature(holder[name])[name].default
        told = re.findall(rf"\b{name}\s*(?:==|(?:not )?in\b)\s*([\[({{].*?[\])}}]|[\"']\w+[\"'])", entry.text)
        words = re.findall(r"\w+", " ".join(told))
        words = words if {*words} != {now} or now == "train" else ["other"]  # which `else` is for
        for word in [word for word in dict.fromkeys(words) if word != now][:3]:
            there = [word if n == name else v for n, v in zip(entry.parameters, inputs, strict=False)]
            unjudged = [Variant(f'With {name}="{word}" it is not judged.')] * (word != "other")
            with suppress(Exception), _otherwise(entry, inputs, name, word, [*there, *inputs[len(there) :]]) as pair:
                unjudged = []
                yield Variant(f'with {name}="{word}"', pair, "")
            yield from unjudged


def _with_other_numbers(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """A default as another number, an axis as the first or second, or a flag turned, where that is seen in the output.

    0, 1, 2 and 1/2 hide factors, terms, powers, strides, and p for 1 - p; any hides that backward has it as a number.
    """
    defaults = [(p.name, p.default) for f in entry.code for p in signature(f).values()]
    numbers = {n: v for n, v in defaults if type(v) is float or (type(v) in (bool, int) and v < 3)}
    numbers = {n: v for n, v in numbers.items() if not _NO_FACTOR.fullmatch(n)}
    before = list[Array]()
    for name, number in sorted(numbers.items(), key=lambda item: item[1] not in (0, 1, 2, 0.5))[:5]:
        axis = re.fullmatch(r"\w*axis|dim", name) or number < 0
        other = number + (0.7 if isinstance(number, float) else 1) if number in (0, 1, 2) else 0.6 * number
        other = not number if isinstance(number, bool) else int(not number) if axis else other
        with suppress(Exception):
            if not before:  # what is cut off shows at large ones
                before = _outputs(entry.adapted(inputs), 1, 10)
            with _otherwise(entry, inputs, name, other, inputs) as pair:
                pairs = zip(before, _outputs(pair, 1, 10), strict=True)
                if not all(a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in pairs):
                    yield Variant(f"with {name}={other}", pair, "")


def _with_other_constants(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """What is said where a number of the file's, as SCALE = 1.0, hides a factor; others may follow from it."""
    lines = "".join(linecache.getlines(entry.space.get("__file__", "")))
    for name, number in [(n, v) for n, v in entry.space.items() if type(v) is float and v in (0, 1, 2, 0.5)]:
        if re.search(rf"\b{name}\b", entry.text) and not re.search(rf"(?m)^\w.*=.*\b{name}\b", lines):
            with suppress(Exception), _otherwise(entry, inputs, name, number + 0.7, inputs) as pair:
                if share(pair) < 1:
                    yield Variant(f"With {name} = {number + 0.7} in the place of {number} it is wrong.")


_NO_FACTOR = re.compile(
    r"(?!ignore_)\w*(axes|dims|\Bdim|seed|random_state|verbose|eps|epsilon|dtype|start|idx|index|mode"
    rf"|{TRAINING}|{KEEPING}|inplace|in_place|test\w*|eval\w*|infer\w*|debug|copy|requires_grad|return_\w*|\w*plot\w*)"
    rf"|{'|'.join(SLOPES)}"
)


def _outputs(pair: Pair, *factors: float) -> list[Array]:
    """What the forward pass returns at so many times its floats."""
    there = [[k * v if is_float(v) else copy.deepcopy(v) for v in pair.inputs] for k in factors]
    return [np.asarray(pair.forward(*values)[0]) for values in there]


def _with_other_labels(entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """Class indices as one-hot rows, or these as indices, where the loss is the same: each may have its branch."""
    scores = [v.shape for v in inputs[entry.made :] if is_float(v) and v.ndim == 2][:1]
    for i, labels in enumerate(inputs) if scores else ():
        (rows, classes), known = scores[0], {*np.ravel(labels).tolist()} if isinstance(labels, np.ndarray) else set()
        if np.shape(labels) == (rows,) and set() < known <= {*range(classes)} and not is_float(labels):
            where, other = "with one-hot labels", np.eye(classes)[labels]
        elif np.shape(labels) == (rows, classes) and known == {0, 1} and np.all(np.sum(labels, axis=1) == 1):
            where, other = "with class indices", np.argmax(labels, axis=1)
        else:
            continue
        with suppress(Exception):
            pair = entry.adapted([other if j == i else value for j, value in enumerate(inputs)])
            if np.allclose(_outputs(pair, 1), _outputs(entry.adapted(inputs), 1)):
                yield Variant(where, pair, "")


def _where_none_ran(unrun: Callable[[], Any], entry: Entry, inputs: tuple[Any, ...]) -> Iterator[Variant]:
    """Other numbers, and arrays with an axis less or of length 1, where they reach statements that no run did."""
    named = [(i, n, v) for i, (n, v) in enumerate(zip(entry.parameters, inputs, strict=False)) if i >= entry.made]
    floats = [(i, name, value) for i, name, value in named if is_float(value) and value.size]
    others = [(f"at {k} times the inputs", {i: k * value for i, _, value in floats}) for k in (100, -100, 0.01)]
    parts = [(i, n, v.take(at, axis)) for at in ([0], 0) for i, n, v in floats for axis in range(v.ndim)]
    others += [(f"at {name} of shape {part.shape}", {i: part}) for i, name, part in parts]
    for where, there in others if (missing := unrun()) else ():
        with suppress(Exception):
            changed = [there.get(i, value) for i, value in enumerate(inputs)]
            pair = entry.adapted(changed)
            ran = reached(pair.passes, (share(pair) for _ in range(1)))
            if any(ran.get(place) for place in missing):
                fewer = any(np.ndim(value) < np.ndim(inputs[i]) for i, value in there.items())
                wrong = fewer and _rated(entry, changed) < (True, 1)  # few authors mean a single example
                note = f"A{where[1:]}, which forward takes, it is wrong."
                yield Variant(note) if wrong else Variant(where, entry.adapted(changed), "", doubtful=True)


@contextmanager
def _otherwise(entry: Entry, inputs: Sequence[Any], name: str, other: Any, there: Sequence[Any]) -> Iterator[Pair]:
    """The pair at other inputs, with another default or global; `NoSearch` where that could do more than compute.

    What no default takes may be anything, as `if save:`. So both passes must be arithmetic on arrays through and
    through, and so must constructors, which may draw random numbers, or else run nothing that they don't run as it is.
    """
    make: Any = entry.maker or list
    steps: set[Any] | None = instructions(partial(make, copy.deepcopy(inputs)))
    pair = entry.adapted(inputs)
    y, kept = pair.forward(*copy.deepcopy(pair.inputs))
    handed = arguments_of(pair, np.ones(np.shape(y)), kept)
    owner = [pair.calls.author.owner] if pair.calls and pair.calls.author.leads else []
    with as_it_was(*entry.code, *([entry.maker.what] if entry.maker else [])), ExitStack() as stack:
        takers, space = [own for own in map(unwrapped, entry.code) if name in signature(own)], entry.space
        if name in space and not takers:
            stack.callback(space.update, {name: space[name]})
            space[name] = other
        for function in takers:
            listed = [p for p in signature(function).values() if p.kind is not p.KEYWORD_ONLY]
            defaults = tuple([other if p.name == name else p.default for p in listed if p.default is not p.empty])
            stack.enter_context(patch.object(function, "__defaults__", defaults))
        with suppress(NoSearch):
            for constructor in [own for own in entry.code if own.__name__ == "__init__"]:
                Allowed(constructor, [*owner, *there], draws=True)
            steps = None
        instructions(lambda: owner.append(make(copy.deepcopy(there))), steps)
        Allowed(unwrapped(pair.forward), [*owner, *handed, *pair.inputs], draws=True)
        Allowed(unwrapped(pair.source), [*owner, *handed], draws=True)
        yield entry.adapted(there)


Way = Callable[[Entry, tuple[Any, ...]], Iterator[Variant]]
ROWS: tuple[Way, ...] = (
    _on_more_axes, _out_of_training, _in_test_mode, _with_other_words, _with_other_numbers, _with_other_labels,
    _with_other_constants
)  # fmt: skip


def _at_other_shapes(entry: Entry, fit: Fit, right: bool) -> str:
    """Where guesses leave open what was meant: other axes and lengths, or, of what is wrong, one example."""
    own = [i for i, value in enumerate(fit.inputs) if isinstance(value, np.ndarray) and i >= entry.made]
    axes, rng = {fit.inputs[i].ndim for i in own}, np.random.default_rng(4)
    with suppress(Exception):
        stacked = _stacked(entry, fit.inputs) if right and max(axes, default=0) == 2 else []
        if stacked and (True, 0) <= _rated(entry, stacked) < (True, 1):
            shape = stacked[own[0]].shape
            return f"At {entry.parameters[own[0]]} of shape {shape}, of which forward takes each part, it is wrong."
    with suppress(Exception):
        if right and axes == {1}:
            there = _with(fit, {i: rng.uniform(0.1, 0.9, (5, 3)) for i in own})
            fits, part = _rated(entry, there)
            return "That is for vectors: for matrices, as of shape (5, 3), it is wrong." if fits and part < 1 else ""
        if right and len(own) == 1 and axes != {0} and not np.allclose(fit.inputs[own[0]].sum(axis=-1), 1):
            shape = tuple([length + (length > 1) for length in fit.inputs[own[0]].shape])
            longer = np.resize(fit.inputs[own[0]], shape) * rng.uniform(0.9, 1.1, shape)
            wrong = _rated(entry, _with(fit, {own[0]: longer})) < (True, 1)
            return f"At {entry.parameters[own[0]]} of shape {shape}, which forward takes, it is wrong." if wrong else ""
        if not right and len({len(fit.inputs[i]) for i in own if fit.inputs[i].ndim > 1}) == 1:
            batches = [i for i in own if fit.inputs[i].ndim > 1]
            one, other = (_with(fit, {i: fit.inputs[i][k : k + 1] for i in batches}) for k in (0, 1))
            first, second = (_output(entry.probe(values)) for values in (one, other))
            if _rated(entry, one) == (True, 1) and np.any(first != second):  # else it is normalised to nothing
                return f"For one example, as of shape {np.shape(one[batches[0]])}, it is right."
    return ""


def _with(fit: Fit, others: dict[int, Any]) -> list[Any]:
    return [others.get(i, value) for i, value in enumerate(fit.inputs)]


def _rated(entry: Entry, inputs: list[Any]) -> tuple[bool, float]:
    finite(entry.probe(inputs))
    return rated(replace(entry.adapted(inputs), unseen=()))[0]


def _output(result: Any) -> Any:
    return np.asarray(_parts(result)[0])
