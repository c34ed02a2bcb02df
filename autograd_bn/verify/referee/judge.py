"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .conventions import adapt, numpy_pair
from .explain import Case, Explained, explained
from .inputs import checked
from .meant import convention
from .mistakes import Mistake, alone
from .names import canonical
from .outside import as_it_was
from .repair import search
from .run import Run
from .sampling import Sample, sampled
from .source import NoSearch
from .truth import known_to
from .unrun import reached
from .unwritten import written
from .verdict import UNJUDGED, Finding, Repair, Row, Verdict, row

_COPY = "Work on a copy: a = a * b, not a *= b."


def check_backward(
    forward: Any,
    backward: Any,
    inputs: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    strict: bool = False,
) -> Verdict:
    """Judge a hand-written backward pass against the forward pass it belongs to.

    The pair is as courses and papers have it: `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`, in
    NumPy. `grads` is a tuple with one gradient an input, in their order (a single array for a single input; None, or
    nothing at the end, for an input that needs no gradient), or a dict: `dx` or `grad_x` is the gradient of the input
    `x`, any other such name that of an intermediate value in `forward`. `names` are the inputs' names, by default those
    of forward's parameters. `check_backward(target, inputs)` judges in the same way a `torch.autograd.Function`, a
    function with a `jax.custom_vjp`, a layer object with `y = layer.forward(x)` and `dx = layer.backward(dy)`, or a
    function with `loss, dx, ... = function(x, ...)`.

    The truth comes from running `forward` itself on tensors, or by the framework's own derivative, confirmed by a
    difference of its output; where it can't be recorded, from central differences with Richardson's extrapolation, and
    the verdict says so. It is judged in float64 with a random `dy` from `seed` (1 for a loss whose backward doesn't
    read it), at the inputs given, at others near them, of other signs and of lengths that don't collide, and if it is a
    normalisation at inputs on which every mistake shows: eps of the variance's size, gamma far from 1. A gradient is
    right if no entry is further from the truth than 1e-9 of the largest (1e-6 by differences). Entries at a kink are
    not judged. A pair that is right and overwrites an array of its own on the way is right with a warning; `strict`
    makes it wrong.

    For wrong gradients it looks for the smallest edit of `backward` that makes them right. Only code that is arithmetic
    on arrays through and through, by an allow-list, is edited and run again; a note says which line is not. As they
    stand, backward runs at most 60 times, and forward a few times as often as its inputs have entries where its
    derivative comes from differences, else at most 2,000 times: counted in runs of a small pair, and not in seconds.

    Nothing of the caller's is changed. `TypeError` and `ValueError` for inputs and a forward pass that can't be judged,
    and for passes that would write a file or start a program; whatever else is wrong with `backward`, an exception too,
    is in the verdict. A stub, which raises `NotImplementedError` or returns None or zeros, has the status "unwritten".

    >>> import autograd_bn as ag
    >>> import numpy as np
    >>> def forward(x, w):
    ...     return x @ w, (x, w)
    >>> def backward(dy, cache):
    ...     x, w = cache
    ...     return dy @ w.T, -x.T @ dy
    >>> rng = np.random.default_rng(0)
    >>> verdict = ag.check_backward(forward, backward, (rng.normal(size=(5, 3)), rng.normal(size=(3, 2))))
    >>> verdict.ok, [row.name for row in verdict.rows if not row.ok]
    (False, ['dw'])
    """
    taken = backward if inputs is None else inputs
    if not isinstance(taken, tuple | list):
        raise TypeError(f"inputs is a {type(taken).__name__}, expected a tuple of what forward takes: (x, ...)")
    author = [forward] if inputs is None else [forward, backward]
    with as_it_was(*author):
        try:
            pair = adapt(forward, taken) if inputs is None else numpy_pair(forward, backward, taken)
            written(pair)
        except NotImplementedError as todo:
            return Verdict(False, (), (), (), unwritten=str(todo) or "it raises NotImplementedError")
        return judge(sampled(pair, checked(pair.inputs, pair.names, names), seed), strict)


def judge(sample: Sample, strict: bool) -> Verdict:
    """Judge every gradient in every run, and look for the reason in the run that tells most, the last."""
    pair, first, back = sample.pair, sample.first, sample.first.author
    hidden = [n for n, t in first.truth.items() if t.size and all(np.isinf(r.noise[n]).all() for r in sample.runs)]
    warned = () if back.failure is not None else tuple([f"{what}. {_COPY}" for what in back.faults])
    unseen = *pair.unseen, *back.unseen, *[f"{name}, at a kink of forward in every entry" for name in hidden]
    base = Verdict(False, (), (), (), warnings=warned, unseen=unseen, pair=pair)
    made = partial(_made, replace(base, forward=pair.forward, inputs=sample.inputs, dy=first.dy), strict)
    notes = [*pair.notes, *sample.notes]
    findings = _without_dy(sample, notes)
    if back.failure is not None:
        rows = [_unreturned(first, name, "not computed") for name in first.truth]
        findings.append(Finding("raised", (), f"{back.failure}.", ""))
        return made(rows, findings, notes, repair=_repairs(sample, [*first.truth], notes))
    findings, notes = [*findings, *back.findings], [*notes, *back.notes]
    missing = {label for finding in findings for label in finding.gradients}
    judged = {name: _judged(sample, name, notes) for name in first.truth if name in back.gradients}
    rows = [judged.get(n) or _unreturned(first, n, "missing") for n in first.truth if n in judged or f"d{n}" in missing]
    wrong = [name for name, row in judged.items() if not row.ok]
    meant = convention(sample.runs, wrong, pair.source) if wrong and not findings else ""
    if meant:
        meant_so = Finding("convention", tuple([f"d{name}" for name in wrong]), meant, "")
        return made(rows, [meant_so], notes, convention=meant)
    repairs = _repairs(sample, wrong, notes) if wrong or back.faults else ()
    showing = [run for run in sample.runs if not any(run.right(name) for name in wrong)] or sample.runs[:1]
    explanation = Explained()
    if wrong:
        case = Case(showing, wrong, repairs, normalises=sample.paths is not None, unit=sample.unit)
        explanation = explained(case)
        findings += explanation.findings
    elif sample.failures:
        repair = "Two lengths that are alike in the inputs given stand for each other."
        findings.append(Finding("raised", (), sample.failures[-1], repair))
    if why := first.why_differences:
        known = f"{known_to(pair):.0e}".replace("e-0", "e-")
        notes.append(f"{why[0].upper()}{why[1:]}, so the truth is by central differences, to {known}.")
    steps = [step for step in showing[0].steps(pair.source) if wrong or step.name in back.others]
    for step in [step for step in steps if not step.ok and not wrong]:
        mistake = alone(first, step.returned, step.truth) or Mistake("unexplained", "is wrong", "Check its formula")
        if mistake.kind != "sum for mean":
            findings.append(mistake.of([step.name]))  # the first that is wrong by itself
            break
        notes.append(f"{step.name} is that of a sum, of which the mean is taken later.")
    notes += _hidden_terms(sample, steps)
    ran = {} if findings else reached(pair.passes, (run.back(pair.source) for run in sample.runs))
    return made([*rows, *steps], findings, notes, repair=repairs, coefficients=explanation.coefficients, reached=ran)


def _made(
    base: Verdict, strict: bool, rows: list[Row], findings: list[Finding], notes: list[str], **more: Any
) -> Verdict:
    """A verdict with what was found, each thing once."""
    gradients = [row for row in rows if row.what == "gradient"]
    if not findings and all(row.note == UNJUDGED for row in gradients):
        kink = "forward has a kink at every entry of what backward returns a gradient of"
        raise Unjudgeable(kink if gradients else "backward returned no gradient of an array that forward reads")
    ok = all(row.ok for row in gradients) and not findings and not (strict and base.warnings)
    once, said = tuple(dict.fromkeys(findings)), tuple(dict.fromkeys(notes))
    return replace(base, ok=ok, rows=tuple(rows), diagnosis=once, notes=said, **more)


def _without_dy(sample: Sample, notes: list[str]) -> list[Finding]:
    """What it says that backward doesn't read dy though it takes it: a note of a loss, else a finding."""
    if sample.unit == sample.pair.unit:
        return []
    if sample.first.y.size == 1 and any(np.size(value) > 1 for value in sample.inputs.values()):
        notes.append("backward doesn't read dy, which is taken to be 1: that is usual for a loss.")
        return []
    labels = tuple([f"d{name}" for name in sample.first.truth])
    what = "backward ignores dy: it returns the same for every gradient that it is handed."
    repair = "Multiply by dy, with which the chain rule starts. The rest is judged for dy = 1."
    return [Finding("ignores dy", labels, what, repair)]


def _hidden_terms(sample: Sample, steps: Sequence[Row]) -> list[str]:
    """What no input can show."""
    named = {canonical(step.name.removeprefix("d")) for step in steps if step.ok}
    if sample.paths is None or not {"mean", "var"} <= {*sample.paths.shares} or "mean" not in named:
        return []
    return [
        "In the gradient of the mean, the term through the variance is a multiple of sum(x - mean) = 0. "
        "No input can show it: with or without it the gradient is right."
    ]


def _judged(sample: Sample, name: str, notes: list[str]) -> Row:
    """The row of one gradient: the first run in which it is wrong, else the run on the caller's inputs."""
    first = sample.first
    judged = [run for run in sample.runs if name in run.author.gradients]
    bad = [run for run in judged if not run.right(name)]
    if not bad and any(np.any(run.wrong(name, run.author.gradients[name])) for run in judged):
        notes.append(f"d{name} is right without the small number that forward adds inside of its logarithm.")
    run = (bad or judged)[0]
    gradient, truth, note = run.author.gradients[name], run.truth[name], ""
    if gradient.shape != truth.shape:
        note = f"shape {gradient.shape} for {name} of shape {truth.shape}"
    elif not np.isfinite(gradient).all():
        note = "not finite"
    elif bad and run is not first:
        note = "shows at other inputs than those given"
    elif bad and run.vanishing(name):
        note = "should be 0"
    elif truth.size and all(np.isinf(run.noise[name]).all() for run in judged):
        note = UNJUDGED
    undecided = np.isinf(first.noise[name])
    if np.any(undecided):
        some = ", ".join([str(list(map(int, index))) for index in np.argwhere(undecided)[:4]])
        count = np.count_nonzero(undecided)
        which = f"{some}{', ...' if count > 4 else ''} ({count} of {undecided.size} entries)"
        notes.append(f"d{name} is not judged at {which}, where forward has a kink.")
    least = 1e-12 * run.vanishing(name)
    judged_at = np.isfinite(run.noise[name])
    return row(f"d{name}", "gradient", gradient, truth, ok=not bad, note=note, judged=judged_at, least=least)


def _unreturned(run: Run, name: str, note: str) -> Row:
    truth = run.truth[name]
    return Row(f"d{name}", "gradient", truth.shape, np.nan, np.nan, False, note, truth=truth)


def _repairs(sample: Sample, wrong: Sequence[str], notes: list[str]) -> tuple[Repair, ...]:
    """The edits of the author's code that make wrong gradients right."""
    try:
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
            repairs = search(sample.runs[::-1], wrong, sample.effort)
    except NoSearch as why:
        notes.append(f"No repair was looked for in backward: {why}.")
        return ()
    mended = {name for repair in repairs for name in repair.gradients}
    rest = [f"d{name}" for name in wrong if name not in mended]
    for repair in repairs if rest else ():
        some = " and ".join([f"d{name}" for name in repair.gradients])
        notes.append(f"The edit of line {repair.line} mends {some} only, and not {', '.join(rest)}.")
    return tuple(repairs)
