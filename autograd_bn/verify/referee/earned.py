"""When WRONG is earned: what shows that a pair was read as its author meant, where the inputs were guessed."""

import re
from collections.abc import Sequence

import numpy as np

from .author import returned_names
from .names import CONTEXTS, DY, VALUES, plain
from .pairs import Pair
from .source import code_of, signature
from .verdict import Row, Verdict

# What a misreading looks like as well as a mistake does; these come too where an argument is something else.
_LAYOUT = {"raised", "count", "type", "shape"}
_VAGUE = {"unexplained", "not linear", "mask missing", "lost rows", "not finite", "ignores dy", "weight of a path"}
_SLIPS = re.compile(r"NameError|UnboundLocalError")  # the author's own, whatever the arguments are
_SEVERAL = re.compile(r"sum\(|mean\(|axis|batch|example|sample|shape\[|\bm\b|einsum|len\(")  # more than one at a time
_LENGTHS = re.compile(r"ValueError: (shapes|matmul|operands|cannot reshape|non-broadcastable)|returned an invalid grad")


def unearned(report: Verdict, pair: Pair, guessed: Sequence[str], firm: bool) -> str:
    """Why a WRONG is no verdict: nothing if another gradient is right, if a cause is named, or if the reading is firm.

    A reading is `firm` if the names of all that forward takes say what it is, and if what is wrong was so for each
    shape of it that fitted; backward's names must say the same of dy. An axis of length 1 too many in the gradient of
    what was `guessed` is no mistake either, nor are other lengths, which the author's code may say itself.
    """
    if not report.diagnosis:  # it is strictness that makes it wrong
        return ""
    slots = pair.calls.slots.items() if pair.calls else ()
    guessed = [*guessed, *[name for name, paths in slots if paths[0][0] == "input"]]  # what dicts of it hold
    first, kinds = report.diagnosis[0].what, {finding.kind for finding in report.diagnosis}
    if why := _misread(report, pair, guessed, kinds):
        return f"{why}: {first}"
    rows = _gradients(report)
    right = any(row.ok or ("mask missing" not in kinds and _mostly_right(row)) for row in rows)
    named = bool(kinds - _VAGUE - _LAYOUT) or (bool(report.repair) and not kinds & _LAYOUT)
    unset = re.search(r"AttributeError: '(\w+)' object has no attribute", first)  # of the author's own object
    owner = type(pair.calls.author.owner).__name__ if pair.calls else ""
    if hasattr(pair.forward, "parts") and not right:
        return f"backward may be of another loss than {pair.forward.parts[1].__name__}: {first}"
    if right or named or _SLIPS.search(first) or (unset and unset[1] == owner):
        return ""
    if firm and _takes_dy(pair) and (kinds != {"raised"} or _LENGTHS.search(first)):
        return ""
    taken = ", ".join([f"{n} {np.shape(v)}" for n, v in zip(pair.names, pair.inputs, strict=True)])
    return f"as read here, at guessed inputs ({taken}), nothing agrees: {first}"


def _gradients(report: Verdict) -> list[Row]:
    """The gradients of which something shows."""
    return [row for row in report.rows if row.what == "gradient" and np.any(row.truth)]


def _misread(report: Verdict, pair: Pair, guessed: Sequence[str], kinds: set[str]) -> str:
    """What was taken for another thing than its author meant, by what is wrong and by what is right beside it."""
    wrong, forward = {label[1:] for finding in report.diagnosis for label in finding.gradients}, code_of(pair.forward)
    right = [row.name[1:] for row in _gradients(report) if row.ok]
    level = all(finding.repair.endswith("axes of length 1.") for finding in report.diagnosis)
    shapes = {name: np.shape(value) for name, value in zip(pair.names, pair.inputs, strict=True)}
    known = {length for name in right for length in shapes[name]}  # another may be the code's own
    misfits = {name for name in guessed if 1 in shapes.get(name, ()) or {*shapes.get(name, ())} - known}
    shaped = kinds <= {"shape", "not summed", "not zero"} and not level and wrong <= misfits
    # Entries that forward takes one by one may be arrays of one number, as older NumPy had it.
    read, parts = ([n for n in wrong & {*guessed} if re.search(rf"\b{n}\[{i}\]", forward)] for i in (r"\w+", r"\d"))
    if shaped or (level and wrong <= {*guessed} and ({*right}.isdisjoint(guessed) or read)):
        return "only the shape is another than that of the guessed input, it seems"
    if parts and kinds <= _LAYOUT:
        return f"{parts[0]} may be a list of arrays"
    if kinds == {"not linear"} and len(returned_names(pair.forward)) > 2:
        return "the gradient of another output, a loss, may be taken for 1"
    column = kinds == {"not summed"} and all(shapes.get(name, ())[-1:] == (1,) for name in wrong)
    if column and not _SEVERAL.search(forward + code_of(pair.source)):
        return f"{', '.join(sorted(wrong))} may be of one column, and isn't summed over several"
    steps = {*pair.calls.rates} if pair.calls else set()  # of the parameters that backward updates itself
    if wrong and wrong <= steps and not {*right} & steps and not report.repair:  # else another step is right
        return "backward changes what it keeps, and no gradient is told from that"
    return ""


def _mostly_right(row: Row) -> bool:
    """Whether most entries of a gradient are right, as where one weight has no decay."""
    if row.returned is None or row.truth is None or row.returned.shape != row.truth.shape:
        return False
    same = np.isclose(row.returned, row.truth, rtol=1e-6, atol=0)[row.truth != 0]
    return bool(np.mean(same) > 0.5)


def _takes_dy(pair: Pair) -> bool:
    """Whether one of backward's first two arguments that aren't forward's is dy by its name."""
    taken = [p.name for p in signature(pair.source).values() if p.default is p.empty]
    taken = [name for name in taken if name not in ("self", "cls", *CONTEXTS, *pair.names)]
    if pair.unit:  # as `grad(x)` takes where forward takes z
        taken = [n for n in taken if n not in VALUES and (DY.fullmatch(n) or not re.fullmatch("[a-z]", n))]
    return not taken or any(DY.fullmatch(plain(name)) for name in taken[:2])
