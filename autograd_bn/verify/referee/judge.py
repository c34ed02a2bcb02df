"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import thread_time
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .adapters import adapt
from .generic import generic, one_path, shape_finding, swapped
from .matching import Returned, Step, right, right_in, sort, steps, vanishing
from .mistakes import Mistake, alone, close, listed
from .paths import Paths, canonical, explain, main_paths, telling
from .repair import NoSearch, Trial, search, take_apart
from .run import Inputs, Pair, Run, arrays_in, lengthened, local_values, moved
from .verdict import Finding, Repair, Row, Verdict


def check_backward(
    forward: Any,
    backward: Any,
    inputs: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    seconds: float = 2.0,
) -> Verdict:
    """Judge a hand-written backward pass against the forward pass it belongs to.

    The pair is as courses and papers have it: `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`,
    in NumPy. `grads` is a tuple with one gradient an input, in their order (a single array for a single input;
    None, or nothing at the end, for an input that needs no gradient), or a dict: `dx` or `grad_x` is the
    gradient of the input `x`, and any other such name that of a value with that name in `forward`, an
    intermediate. `names` are the inputs' names, by default those of forward's parameters.

    The truth comes from running `forward` itself on tensors, confirmed by a difference of its output; where
    it can't be recorded, from central differences with Richardson's extrapolation, and the verdict says so.
    It is judged in float64 with a random cotangent (1 for a loss whose backward doesn't read it), at the inputs
    given, at others near them, of other signs and of lengths that don't collide, and if it is a normalisation at
    inputs on which every mistake shows: eps of the variance's size, gamma far from 1. A gradient is right if no entry
    is further from the truth than 1e-9 of the largest (1e-6 by differences). Entries at a kink are not judged.

    `check_backward(target, inputs)` judges a `torch.autograd.Function`, a function with a `jax.custom_vjp`, or a layer
    object with `y = layer.forward(x)` and `dx = layer.backward(dy)` in the same way; the truth is the framework's own
    derivative of the forward code.

    For wrong gradients it looks for the smallest edit of `backward` that makes them right, for `seconds` of computing
    at most.

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
    >>> verdict.ok, [row.name for row in verdict.rows if not row.ok]
    (False, ['dw'])
    """
    if inputs is not None:
        pair = Pair(forward, backward, inputs, names)
        return Referee(pair, take_apart(pair.backward), seed, seconds).verdict()
    adapted = adapt(forward, backward)
    pair = Pair(adapted.forward, adapted.backward, adapted.inputs, names or adapted.names, adapted.truth)
    return Referee(pair, (adapted.source, adapted.rebuild), seed, seconds).verdict()


class Referee:
    """One check: the runs that it makes of a pair, and what it makes of them."""

    def __init__(self, pair: Pair, source: tuple[Any, Callable[[Any], Any]], seed: int, seconds: float) -> None:
        self.pair, self.source, self.seconds = pair, source, seconds
        self.rng = np.random.default_rng([seed, 9157])  # its own: the caller's x may come from the same seed
        self.begun = thread_time()
        self.given = pair.run(pair.inputs, self.rng)
        self.findings: list[Finding] = []
        self.notes: list[str] = []
        if self.given.failure is None and pair.ignores_dy(self.given) and self._ignores_dy_elsewhere():
            pair.unit = True
            if self.given.y.size == 1:
                self.notes.append("backward doesn't read dy, which is taken to be 1: that is usual for a loss.")
            else:
                labels = tuple([f"d{name}" for name in pair.floats])
                what = "backward ignores dy: it returns the same for every gradient that it is handed."
                repair = "Multiply by dy, with which the chain rule starts. The rest is judged for dy = 1."
                self.findings.append(Finding("ignores dy", labels, what, repair))
            self.given = pair.run(pair.inputs, self.rng)
        self.runs = [(self.given, sort(pair, self.given.returned, self.given.truth))]
        self.paths: Paths | None = None
        if self.given.failure is None:
            self._run_elsewhere()

    def _ignores_dy_elsewhere(self) -> bool:
        """Whether backward ignores dy off the caller's inputs too, where no gradient is 0 by zeros in them."""
        try:
            run = self.pair.run({**self.pair.inputs, **self._moved(self.pair.floats)}, self.rng)
        except Unjudgeable:
            return True
        return run.failure is not None or self.pair.ignores_dy(run)

    def _moved(self, names: Sequence[str], turned: bool = False) -> Inputs:
        return {n: moved(self.pair.inputs[n], self.rng, turned=turned) for n in names}

    def _run_elsewhere(self) -> None:
        """Run the pair at inputs that the caller didn't give, where it takes them: the last tells most."""
        pair, rng, given = self.pair, self.rng, self.runs[0][1]
        judged = [name for name in pair.floats if name in given.gradients]

        near_run = self._another({**pair.inputs, **self._moved(judged)})
        for names in [judged, *([name] for name in judged if len(judged) > 1)]:
            if self._another({**pair.inputs, **self._moved(names, turned=True)}):
                break
        for other in itertools.islice(lengthened(pair, rng), 3):
            run = self._another(other)
            # A forward pass that reads a part of longer arrays takes them, and is no witness.
            if run and any(g.shape != run.truth[n].shape for n, g in self.runs[-1][1].gradients.items()):
                self.runs.pop()
        self.paths = main_paths(near_run or self.given)
        if self.paths is not None:
            told = self._another(telling(self.paths, rng))
            if told is None and near_run is not None:
                self.runs.sort(key=lambda item: item[0] is near_run)

    def _another(self, inputs: Inputs) -> Run | None:
        """A run on other inputs, where the pair takes them."""
        if self.given.why_differences and thread_time() - self.begun > 1:
            return None  # differences take many calls
        try:
            run = self.pair.run(inputs, self.rng)
        except Unjudgeable:
            return None
        if run.failure is None:
            self.runs.append((run, sort(self.pair, run.returned, run.truth)))
        return run if run.failure is None else None

    def verdict(self) -> Verdict:
        """Judge every gradient in every run, and look for the reason in the run that tells most, the last."""
        pair, given, returned = self.pair, self.given, self.runs[0][1]
        if given.failure is not None:
            rows = [self._unreturned(name, "not computed") for name in pair.floats]
            self.findings.append(Finding("raised", (), f"{given.failure}.", ""))
            repairs = self._repairs(pair.floats)
            return self._made(rows, repairs)
        self.findings += [Finding("overwritten", (), f"{what}.", _COPY) for what in given.faults] + returned.findings
        self.notes += returned.notes
        rows, wrong = [], []
        for name in pair.floats:
            if name in returned.gradients:
                rows.append(self._judged(name))
                wrong += [] if rows[-1].ok else [name]
            elif any(f"d{name}" in finding.gradients for finding in self.findings):
                rows.append(self._unreturned(name, "missing"))
        repairs = self._repairs(wrong) if wrong or given.faults else []
        showing = [(run, r) for run, r in self.runs if not any(self._right(run, r, n) for n in wrong)] or self.runs[:1]
        coefficients: dict[str, dict[str, float]] = {}
        if wrong:
            self._diagnose(showing, wrong, repairs, coefficients)
        run, r = showing[0]
        intermediates = steps(run, r, self.paths is not None)
        intermediates = [step for step in intermediates if wrong or step.returned]
        if not wrong:
            self.findings += _wrong_steps(run, intermediates)
        rows += [_step_row(step) for step in intermediates]
        if given.why_differences:
            why = given.why_differences
            self.notes.append(f"{why[0].upper()}{why[1:]}, so the truth is by central differences, to 1e-6.")
        named = {canonical(step.name.removeprefix("d")) for step in intermediates if step.ok}
        if self.paths is not None and {"mean", "var"} <= {*self.paths.shares} and "mean" in named:
            self.notes.append(
                "In the gradient of the mean, the term through the variance is a multiple of sum(x - mean) = 0. "
                "No input can show it: with or without it the gradient is right."
            )
        return self._made(rows, repairs, coefficients)

    def _made(self, rows: list[Row], repairs: list[Repair], coefficients: Any = None) -> Verdict:
        findings = tuple(dict.fromkeys(self.findings))
        return Verdict(
            all(row.ok for row in rows if row.what == "gradient") and not findings,
            tuple(rows),
            findings,
            tuple(dict.fromkeys(self.notes)),
            tuple(repairs),
            coefficients or {},
            self.pair.forward,
            self.given.inputs,
            self.given.dy,
        )

    def _right(self, run: Run, returned: Returned, name: str) -> bool:
        return name in returned.gradients and right_in(run, name, returned.gradients[name])

    def _judged(self, name: str) -> Row:
        """The row of one gradient: the first run in which it is wrong, else the run on the caller's inputs."""
        judged = [(run, returned.gradients[name]) for run, returned in self.runs if name in returned.gradients]
        bad = [(run, g) for run, g in judged if not right_in(run, name, g)]
        run, given = (bad or judged)[0]
        truth, note = run.truth[name], ""
        if given.shape != truth.shape:
            note = f"shape {given.shape} for {name} of shape {truth.shape}"
        elif not np.isfinite(given).all():
            note = "not finite"
        elif bad and run is not self.given:
            note = "shows at other inputs than those given"
        elif bad and vanishing(run, name):
            note = "should be 0"
        undecided = np.isinf(self.given.noise[name])
        if np.any(undecided):
            some = ", ".join([str(list(map(int, index))) for index in np.argwhere(undecided)[:4]])
            count = np.count_nonzero(undecided)
            self.notes.append(
                f"d{name} is not judged at {some}{', ...' if count > 4 else ''} ({count} of {undecided.size} entries), "
                "where forward has a kink."
            )
        return Row(
            f"d{name}", "gradient", given.shape, *_error(given, run, name), not bad, note, returned=given, truth=truth
        )

    def _unreturned(self, name: str, note: str) -> Row:
        truth = self.given.truth[name]
        return Row(f"d{name}", "gradient", truth.shape, np.nan, np.nan, False, note, truth=truth)

    def _repairs(self, wrong: Sequence[str]) -> list[Repair]:
        """The edits of the author's code that make wrong gradients right."""
        trials = [self._trial(run) for run, _ in reversed(self.runs)]
        try:
            return search(*self.source, trials, wrong, self.seconds)
        except NoSearch as why:
            self.notes.append(f"No repair was looked for in backward: {why}.")
        return []

    def _trial(self, run: Run) -> Trial:
        def gradients(backward: Callable[..., Any]) -> dict[str, Array] | None:
            try:
                with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
                    returned, faults = self.pair.call_backward(backward, run)
                return sort(self.pair, returned, run.truth).gradients if not faults or run.faults else None
            except Exception:
                return None

        def right_steps(backward: Callable[..., Any]) -> dict[str, bool]:
            with local_values(backward) as seen:
                returned, _ = self.pair.call_backward(backward, run)
            other = replace(run, returned=returned, locals=arrays_in(seen))
            found = steps(other, sort(self.pair, returned, run.truth), self.paths is not None)
            return {step.name: step.ok for step in found}

        return Trial(gradients, lambda name, g: name in run.truth and right_in(run, name, g), right_steps)

    def _diagnose(
        self,
        showing: list[tuple[Run, Returned]],
        wrong: list[str],
        repairs: list[Repair],
        coefficients: dict[str, dict[str, float]],
    ) -> None:
        """The mistakes behind the wrong gradients: in shape, in order, on a path of a normalisation, or any other.

        Paths are looked for in the last of the runs, which tells most; what remains is told by the first, with the
        caller's own figures.
        """
        findings: list[Finding] = []
        (run, returned), (last, other) = showing[0], showing[-1]
        shaped, told = self._shaped(run, returned, wrong, findings), self._shaped(last, other, wrong, [])
        exchanged = swapped(last, told)
        findings += [exchanged] if exchanged else []
        done = [name for name in shaped if exchanged and f"d{name}" in exchanged.gradients]
        done += self._not_linear(run, {n: g for n, g in shaped.items() if n not in done}, findings)
        left = {n: told[n] for n in shaped if n not in done and n in told and not close(told[n], last.truth[n], 5e-7)}
        explained, carried = explain(last, left, {name for repair in repairs for name in repair.gradients})
        shaped = {name: g for name, g in shaped.items() if name not in done}
        joint = self.paths is not None and 1 < len(shaped) > len(carried) and one_path(run, shaped)
        findings += [joint] if joint else explained
        coefficients |= carried
        shaped = {name: g for name, g in shaped.items() if not joint and f"d{name}" not in carried}
        said = {label for finding in findings for label in finding.gradients}
        for repair in repairs:
            if set(repair.gradients) & set(shaped):
                shaped = {name: g for name, g in shaped.items() if name not in repair.gradients}
                if not said & {f"d{name}" for name in repair.gradients}:
                    findings.append(_slip(repair))
        self.findings += findings
        if shaped:
            self.findings += generic(run, shaped, steps(run, returned, self.paths is not None))

    def _not_linear(self, run: Run, shaped: dict[str, Array], findings: list[Finding]) -> list[str]:
        """The gradients that aren't proportional to dy, or change from call to call, with a finding that says so."""
        found = []
        for factor in (1, -2) if shaped and not self.pair.unit else ():
            try:
                again, _ = self.pair.call_backward(self.pair.backward, run, factor * run.dy)
            except Exception:
                return []
            gradients = sort(self.pair, again, run.truth).gradients
            same = [n for n in shaped if n in gradients and gradients[n].shape == shaped[n].shape]
            found.append({n: gradients[n] / factor for n in same})
        for rtol, values, kind, words, repair in zip((1e-12, 1e-7), found, *_NOT_LINEAR, strict=False):
            off = [n for n, g in values.items() if not close(g, shaped[n], rtol)]
            if off:
                findings.append(Mistake(kind, words, repair).of([f"d{name}" for name in off]))
                return off
        return []

    def _shaped(self, run: Run, returned: Returned, wrong: list[str], findings: list[Finding]) -> dict[str, Array]:
        """The gradients that are left to explain, brought into shape; findings on values and shapes."""
        shaped: dict[str, Array] = {}
        for name in wrong:
            given, truth = returned.gradients[name], run.truth[name]
            if not np.isfinite(given).all():
                what = f"d{name} has {given[~np.isfinite(given)].flat[0]} in it."
                repair = "Look for a division by 0 or a root below 0."
                findings.append(Finding("not finite", (f"d{name}",), what, repair))
                continue
            others = [run.truth[other] for other in wrong if other != name]
            if given.shape != truth.shape and not any(close(given, other) for other in others):
                finding, made = shape_finding(name, given, truth)
                findings.append(finding)
                if made is None or right(made, truth, run.noise[name]):
                    continue
                given = made
            shaped[name] = given
        return shaped


_NOT_LINEAR = (
    ("accumulates", "not linear"),
    (
        "comes back otherwise when backward is called again: something is kept from call to call",
        "is not a linear function of dy: for -2 * dy it should come back -2 times as large, and does not",
    ),
    ("Start from zero in every call", "Use dy itself: no |dy|, dy**2 or clipping of it"),
)
_COPY = "Work on a copy: a = a * b, not a *= b."


def _slip(repair: Repair) -> Finding:
    """A repair as a finding."""
    labels = tuple([f"d{name}" for name in repair.gradients])
    verb = "is" if len(labels) == 1 else "are"
    what = f"{listed(labels)} {verb} wrong by one slip, in line {repair.line}: {repair.what}."
    return Finding(repair.kind, labels, what, f"Write `{' '.join(repair.new.split())}`.")


def _error(given: Array, run: Run, name: str) -> tuple[float, float]:
    """The worst judged entry's error, and that over the truth's largest entry, which has none where it vanishes."""
    truth = run.truth[name]
    if given.shape != truth.shape:
        return np.nan, np.nan
    with np.errstate(all="ignore"):
        absolute = float(np.max(np.abs(given - truth), where=np.isfinite(run.noise[name]), initial=0))
    largest = float(np.max(np.abs(truth), initial=0))
    return absolute, absolute / largest if largest > 1e-12 * vanishing(run, name) else np.nan


def _step_row(step: Step) -> Row:
    note, error = f"the part through {step.part}" if step.part else "", (np.nan, np.nan)
    if step.given.shape != step.truth.shape:
        note = f"shape {step.given.shape}, expected {step.truth.shape}"
    else:
        with np.errstate(all="ignore"):
            absolute = float(np.max(np.abs(step.given - step.truth), initial=0))
        largest = float(np.max(np.abs(step.truth), initial=0))
        error = absolute, absolute / largest if largest else np.nan
    return Row(
        step.name, "intermediate", step.given.shape, *error, step.ok, note, returned=step.given, truth=step.truth
    )


def _wrong_steps(run: Run, intermediates: list[Step]) -> list[Finding]:
    """The first returned intermediate that is wrong, where the gradients are right all the same."""
    for step in intermediates:
        if not step.ok:
            reason = alone(run, step.given, step.truth)
            if reason is None:
                return [Finding("unexplained", (step.name,), f"{step.name} is wrong.", "Check its formula.")]
            return [reason.of([step.name])]
    return []
