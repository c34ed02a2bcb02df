"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ...engine.node import Array
from .explain import Explanation, explain_dx, explain_sum, tell
from .generic import alone, generic, not_linear, one_path, say, shape_finding, swapped
from .matching import Returned, Step, right, shows, sort, steps, vanishing
from .mistakes import RTOL, Dictionary, Finding
from .normalisation import Normalisation, canonical, close, recognise, telling_inputs
from .run import Pair, Run, Unjudgeable
from .verdict import Row, Verdict


def check_backward(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Verdict:
    """Judge a hand-written backward pass against the forward pass it belongs to.

    The pair is as courses and papers have it: `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`,
    in NumPy. `grads` is a tuple with one gradient an input, in their order (a single array for a single input;
    None, or nothing at the end, for an input that needs no gradient), or a dict: `dx` or `grad_x` is the
    gradient of the input `x`, and any other such name that of a value with that name in `forward`, an
    intermediate. `names` are the inputs' names, by default those of forward's parameters.

    The truth comes from running `forward` itself on tensors, confirmed by a difference of its output; where
    it can't be recorded, from central differences with Richardson's extrapolation, and the verdict says so.
    It is judged in float64 with a random cotangent, at the inputs given, at others near them, and if it is a
    normalisation at inputs on which every mistake shows: eps of the variance's size, gamma far from 1.
    A gradient is right if no entry is further from the truth than 1e-9 of the largest (1e-6 by differences).

    Nothing of the caller's is changed. `TypeError` and `ValueError` for inputs and a forward pass that can't
    be judged; whatever is wrong with `backward`, an exception too, is in the verdict.

    >>> import autograd_bn as ag
    >>> import numpy as np
    >>> def forward(x, w):
    ...     return x @ w, (x, w)
    >>> def backward(dy, cache):
    ...     x, w = cache
    ...     return dy @ w.T, -x.T @ dy
    >>> rng = np.random.default_rng(0)
    >>> verdict = ag.check_backward(forward, backward, (rng.normal(size=(5, 3)), rng.normal(size=(3, 2))))
    >>> verdict.ok, str(verdict.diagnosis[0])
    (False, 'dw has the wrong sign. Flip its sign.')
    """
    pair = Pair(forward, backward, inputs, names)
    rng = np.random.default_rng([seed, 9157])  # a stream of its own: the caller's x may come from the same seed
    given = pair.run(pair.inputs, rng)
    runs = [given]
    norm = None
    if given.failure is None:
        near = _another(pair, _jittered(pair, rng), rng)
        runs += [near] if near is not None else []
        norm = recognise(near or given)
        if norm is not None:
            told = _another(pair, telling_inputs(norm, near.inputs if near is not None else pair.inputs, rng), rng)
            told_norm = recognise(told) if told is not None else None
            if told is not None and told_norm is not None:
                runs, norm = [*runs, told], told_norm
    return _verdict(pair, runs, norm)


def _jittered(pair: Pair, rng: np.random.Generator) -> dict[str, Any]:
    """Inputs near the caller's, in which no two entries are equal: a gamma of ones hides mistakes."""
    moved = dict(pair.inputs)
    for name in pair.floats:
        value = pair.inputs[name]
        noise = rng.uniform(0.5, 1.5, size=value.shape)
        moved[name] = value * noise if np.any(value) else noise - 1
    return moved


def _another(pair: Pair, inputs: dict[str, Any], rng: np.random.Generator) -> Run | None:
    """A run on inputs that the caller didn't give, where the pair can take them."""
    try:
        run = pair.run(inputs, rng)
    except Unjudgeable:
        return None
    return run if run.failure is None else None


def _verdict(pair: Pair, runs: list[Run], norm: Normalisation | None) -> Verdict:
    """Judge every gradient in every run, and look for the reason in the run that tells most, the last."""
    first = runs[0]
    if first.failure is not None:
        empty = tuple([_unreturned(first, name, "not computed") for name in pair.floats])
        return Verdict(False, empty, (Finding("raised", (), f"{first.failure}.", ""),), ())
    sorted_runs = [(run, sort(pair, run)) for run in runs]
    returned = sorted_runs[0][1]
    repair = "Work on a copy: a = a * b, not a *= b."
    findings = [Finding("overwritten", (), f"{words}.", repair) for words in first.faults] + returned.findings
    notes = list(returned.notes)
    rows, wrong = [], []
    for name in pair.floats:
        if name in returned.gradients:
            rows.append(_judged(name, sorted_runs))
            wrong += [] if rows[-1].ok else [name]
        elif any(f"d{name}" in finding.gradients for finding in findings):
            rows.append(_unreturned(first, name, "missing"))
    showing = [(run, r) for run, r in sorted_runs if shows(run, r, wrong)] or sorted_runs[:1]
    if wrong:
        findings += _diagnosed(pair, showing, wrong, norm if showing[-1][0] is runs[-1] else None)
    run, r = showing[0]
    intermediates = steps(run, r, recognise(run) if norm is not None else None)
    intermediates = [step for step in intermediates if wrong or step.returned]
    if not wrong:
        findings += _wrong_steps(run, intermediates)
    rows += [_row(step) for step in intermediates]
    findings += [
        Finding("overwritten", (), f"{words}.", "Work on a copy: a = a * b, not a *= b.") for words in first.faults
    ]
    if first.why_differences:
        why = first.why_differences
        notes.append(f"{why[0].upper()}{why[1:]}, so the truth is by central differences, to 1e-6.")
    named = {canonical(step.name.lower().removeprefix("d").strip("_")) for step in intermediates if step.ok}
    if norm is not None and norm.spelling == "standard" and "mean" in named:
        notes.append(
            "In the gradient of the mean, the term through the variance is a multiple of sum(x - mean) = 0. "
            "No input can show it: with or without it the gradient is right."
        )
    return Verdict(not findings, tuple(rows), tuple(findings), tuple(dict.fromkeys(notes)))


def _judged(name: str, sorted_runs: list[tuple[Run, Returned]]) -> Row:
    """The row of one gradient: the first run in which it is wrong, else the run on the caller's inputs."""
    judged = [(run, returned.gradients[name]) for run, returned in sorted_runs if name in returned.gradients]
    bad = [
        (run, given)
        for run, given in judged
        if not right(given, run.truth[name], run.noise[name], vanishing(run, name))
    ]
    run, given = (bad or judged)[0]
    truth, note = run.truth[name], ""
    if given.shape != truth.shape:
        note = f"shape {given.shape} for {name} of shape {truth.shape}"
    elif not np.isfinite(given).all():
        note = "not finite"
    elif bad and run is not sorted_runs[0][0]:
        note = "shows at other inputs than those given"
    elif bad and vanishing(run, name):
        note = "should be 0"
    return Row(f"d{name}", "gradient", given.shape, *_error(given, truth, vanishing(run, name)), not bad, note)


def _error(given: Array, truth: Array, size: float = 0.0) -> tuple[float, float]:
    """The worst entry's error, and that over the truth's largest entry, which has none where it vanishes."""
    if given.shape != truth.shape:
        return np.nan, np.nan
    with np.errstate(all="ignore"):
        absolute = float(np.max(np.abs(given - truth), initial=0))
    largest = float(np.max(np.abs(truth), initial=0))
    return absolute, absolute / largest if largest > 1e-12 * size else np.nan


def _unreturned(run: Run, name: str, note: str) -> Row:
    return Row(f"d{name}", "gradient", run.truth[name].shape, np.nan, np.nan, False, note)


def _row(step: Step) -> Row:
    note = f"the part through {step.part}" if step.part else ""
    if step.given.shape != step.truth.shape:
        note = f"shape {step.given.shape}, expected {step.truth.shape}"
    return Row(step.name, "intermediate", step.given.shape, *_error(step.given, step.truth), step.ok, note)


def _wrong_steps(run: Run, intermediates: list[Step]) -> list[Finding]:
    """The first returned intermediate that is wrong, where the gradients are right all the same."""
    for step in intermediates:
        if not step.ok:
            reason = alone(run, step.given, step.truth)
            if reason is None:
                return [Finding("unexplained", (step.name,), f"{step.name} is wrong.", "Check its formula.")]
            finding = say(reason, [step.name])
            return [Finding(finding.kind, (step.name,), finding.what, finding.repair)]
    return []


def _diagnosed(
    pair: Pair, showing: list[tuple[Run, Returned]], wrong: list[str], norm: Normalisation | None
) -> list[Finding]:
    """The mistakes behind the wrong gradients: in shape, in order, on a path of a normalisation, or any other.

    Paths are looked for in the last of the runs, which tells most; what remains is told by the first, with the
    caller's own figures.
    """
    run, returned = showing[-1]
    findings, shaped = _shaped(run, returned, wrong, norm)
    exchanged = swapped(run, shaped, list(shaped))
    if exchanged is not None:
        findings.append(exchanged)
    left = [name for name in shaped if exchanged is None or f"d{name}" not in exchanged.gradients]
    doubled = _doubled(pair, run)
    if norm is not None:
        roles = {norm.x_name: "dx", norm.gamma_name: "dgamma", norm.beta_name: "dbeta"}
        if any(name not in roles for name in left):
            joint = one_path(showing[0][0], _shaped(*showing[0], left, None)[1], left)
            if joint is not None:
                return [*findings, joint]
        dictionary, explained = Dictionary(norm), list[Explanation]()
        for name in [name for name in left if name in roles and not close(shaped[name], run.truth[name], 5e-7)]:
            role, given = roles[name], shaped[name]
            found = explain_dx(dictionary, given) if role == "dx" else explain_sum(dictionary, role, given)
            if found is None or not 0.5 < found.cost < 4:
                continue
            left.remove(name)
            curved = not_linear(given, doubled().get(name)) if found.cost >= 3 else None
            if curved is not None:
                findings.append(say(curved, [f"d{name}"]))
            else:
                explained.append(found)
        findings += tell(norm, explained)
    run, returned = showing[0]
    shaped = _shaped(run, returned, left, None)[1]
    intermediates = steps(run, returned, recognise(run) if norm is not None else None)
    return findings + generic(run, shaped, list(shaped), _doubled(pair, run), intermediates)


def _doubled(pair: Pair, run: Run) -> Callable[[], dict[str, Array]]:
    """What backward returns in this run for -2 * dy, computed when it is asked for."""

    @cache
    def doubled() -> dict[str, Array]:
        again = pair.run(run.inputs, np.random.default_rng(0), -2 * run.dy)
        return sort(pair, again).gradients if again.failure is None else {}

    return doubled


def _shaped(
    run: Run, returned: Returned, wrong: list[str], norm: Normalisation | None
) -> tuple[list[Finding], dict[str, Array]]:
    """Findings on values and shapes, and the gradients that are left to explain, brought into shape."""
    findings: list[Finding] = []
    shaped: dict[str, Array] = {}
    for name in wrong:
        given, truth = returned.gradients[name], run.truth[name]
        if not np.isfinite(given).all():
            words = f"d{name} has {given[~np.isfinite(given)].flat[0]} in it."
            findings.append(Finding("not finite", (f"d{name}",), words, "Look for a division by 0 or a root below 0."))
            continue
        others = [run.truth[other] for other in wrong if other != name]
        if given.shape != truth.shape and not any(close(given, other, RTOL) for other in others):
            terms = [run.dy] if norm is None else [run.dy, run.dy * norm.xhat]
            finding, given = shape_finding(name, given, truth, terms)
            findings.append(finding)
            if not np.isfinite(given).all() or right(given, truth, run.noise[name]):
                continue
        shaped[name] = given
    return findings, shaped
