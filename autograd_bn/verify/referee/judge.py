"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engine.node import Array
from ..gradcheck import Unjudgeable
from .generic import generic, one_path, shape_finding, swapped
from .inputs import Inputs, checked, lengthened, moved
from .meant import convention, without_guards
from .mistakes import Mistake, alone, close, listed
from .pairs import Pair, adapt, numpy_pair
from .paths import Paths, explain, main_paths, telling
from .repair import Clock, search
from .returned import canonical
from .run import Run
from .source import NoSearch
from .verdict import Finding, Repair, Row, Verdict, row


def check_backward(
    forward: Any,
    backward: Any,
    inputs: Sequence[Any] | None = None,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
    seconds: float = 2.0,
    strict: bool = False,
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

    A pair that is right and overwrites an array of its own on the way is right with a warning; `strict` makes it wrong.

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
    given = backward if inputs is None else inputs
    if not isinstance(given, tuple | list):
        raise TypeError(f"inputs is a {type(given).__name__}, expected a tuple of what forward takes: (x, ...)")
    pair = adapt(forward, given) if inputs is None else numpy_pair(forward, backward, given)
    with np.errstate(all="ignore"):
        return Referee(pair, checked(pair, names), seed, seconds, strict).verdict()


class Referee:
    """One check: the runs that it makes of a pair, and what it makes of them."""

    def __init__(self, pair: Pair, inputs: Inputs, seed: int, seconds: float, strict: bool) -> None:
        self.pair, self.inputs, self.clock, self.unit, self.strict = pair, inputs, Clock(seconds), pair.unit, strict
        self.rng = np.random.default_rng([seed, 9157])  # its own: the caller's x may come from the same seed
        self.findings: list[Finding] = []
        self.notes = [*pair.notes]
        self.warnings: list[str] = []
        self.coefficients: dict[str, dict[str, float]] = {}
        self.paths: Paths | None = None
        self.given = Run(pair, inputs, self.rng, self.unit)
        # Off the caller's inputs too, where no gradient is 0 by zeros in them.
        deaf = not self.unit and _ignores_dy(self.given)
        if deaf and _ignores_dy(self._tried(self._moved(self.given.floats)) or self.given):
            self.unit = True
            if self.given.y.size == 1:
                self.notes.append("backward doesn't read dy, which is taken to be 1: that is usual for a loss.")
            else:
                labels = tuple([f"d{name}" for name in self.given.floats])
                what = "backward ignores dy: it returns the same for every gradient that it is handed."
                repair = "Multiply by dy, with which the chain rule starts. The rest is judged for dy = 1."
                self.findings.append(Finding("ignores dy", labels, what, repair))
            self.given = Run(pair, inputs, self.rng, self.unit)
        self.given.call_twice()
        self.runs = [self.given]
        if self.given.author.failure is None:
            self._run_elsewhere()

    def _moved(self, names: Sequence[str], turned: bool = False) -> Inputs:
        return self.inputs | {n: moved(self.inputs[n], self.rng, turned=turned) for n in names}

    def _run_elsewhere(self) -> None:
        """Run the pair at inputs that the caller didn't give, where it takes them: the last tells most."""
        judged = [*self.given.author.gradients]
        near = self._another(self._moved(judged))
        for names in [judged, *([name] for name in judged if len(judged) > 1)]:
            if self._another(self._moved(names, turned=True)):
                break
        longer = filter(None, map(self._another, lengthened(self.pair, self.inputs, self.rng)))
        for run in itertools.islice(longer, 3):
            # A forward pass that reads a part of longer arrays takes them, and is no witness.
            if any(g.shape != run.truth[n].shape for n, g in run.author.gradients.items()):
                self.runs.pop()
        self.paths = main_paths(near or self.given)
        if self.paths is not None and not self._another(telling(self.paths, self.rng)) and near:
            self.runs.sort(key=lambda run: run is near)

    def _another(self, inputs: Inputs) -> Run | None:
        """A run on other inputs, kept where the pair takes them; by differences it takes many calls."""
        entries = sum([self.given.truth[name].size for name in self.given.floats])
        late = self.given.why_differences and len(self.runs) * entries > 200
        run = None if late else self._tried(inputs)
        self.runs += [run] if run else []
        return run

    def _tried(self, inputs: Inputs) -> Run | None:
        """A run on inputs that the pair may not take."""
        try:
            run = Run(self.pair, inputs, self.rng, self.unit)
        except Unjudgeable:
            return None
        return run if run.author.failure is None else None

    def verdict(self) -> Verdict:
        """Judge every gradient in every run, and look for the reason in the run that tells most, the last."""
        given, back = self.given, self.given.author
        if back.failure is not None:
            rows = [self._unreturned(name, "not computed") for name in given.floats]
            self.findings.append(Finding("raised", (), f"{back.failure}.", ""))
            return self._made(rows, self._repairs(given.floats))
        self.warnings = [f"{what}. {_COPY}" for what in back.faults]
        self.findings += back.findings
        self.notes += back.notes
        rows, wrong = [], []
        for name in given.floats:
            if name in back.gradients:
                rows.append(self._judged(name))
                wrong += [] if rows[-1].ok else [name]
            elif any(f"d{name}" in finding.gradients for finding in self.findings):
                rows.append(self._unreturned(name, "missing"))
        meant = convention(self.runs, wrong, self.pair.source) if wrong and not self.findings else ""
        if meant:
            self.findings = [Finding("convention", tuple([f"d{name}" for name in wrong]), meant, "")]
            return self._made(rows, [], meant)
        repairs = self._repairs(wrong) if wrong or back.faults else []
        showing = [run for run in self.runs if not any(run.right(name) for name in wrong)] or self.runs[:1]
        steps = showing[0].steps(self.pair.source)
        steps = [step for step in steps if wrong or step.name in back.others]
        if wrong:
            self._diagnose(showing[0], showing[-1], wrong, repairs)
        for step in [step for step in steps if not step.ok and not wrong][:1]:
            unknown = Mistake("unexplained", "is wrong", "Check its formula")
            self.findings.append((alone(given, step.returned, step.truth) or unknown).of([step.name]))
        if given.why_differences:
            why = given.why_differences
            self.notes.append(f"{why[0].upper()}{why[1:]}, so the truth is by central differences, to 1e-6.")
        named = {canonical(step.name.removeprefix("d")) for step in steps if step.ok}
        if self.paths is not None and {"mean", "var"} <= {*self.paths.shares} and "mean" in named:
            self.notes.append(
                "In the gradient of the mean, the term through the variance is a multiple of sum(x - mean) = 0. "
                "No input can show it: with or without it the gradient is right."
            )
        return self._made(rows + steps, repairs)

    def _made(self, rows: list[Row], repairs: list[Repair], convention: str = "") -> Verdict:
        if not rows and not self.findings:
            raise Unjudgeable("backward returned no gradient of an array that forward reads")
        findings, notes = tuple(dict.fromkeys(self.findings)), tuple(dict.fromkeys(self.notes))
        ok = all(row.ok for row in rows if row.what == "gradient") and not findings
        judged = self.pair.forward, self.inputs, self.given.dy
        seen = tuple(self.warnings), (*self.pair.unseen, *self.given.author.unseen), convention
        ok = ok and not (self.strict and self.warnings)
        return Verdict(ok, tuple(rows), findings, notes, tuple(repairs), self.coefficients, *judged, *seen)

    def _judged(self, name: str) -> Row:
        """The row of one gradient: the first run in which it is wrong, else the run on the caller's inputs."""
        judged = [run for run in self.runs if name in run.author.gradients]
        bad = [run for run in judged if not run.right(name)]
        if bad and all(close(run.author.gradients[name], without_guards(run).get(name, np.nan)) for run in bad):
            bad = []
            self.notes.append(f"d{name} is right without the small number that forward adds inside of its logarithm.")
        run = (bad or judged)[0]
        given, truth, note = run.author.gradients[name], run.truth[name], ""
        if given.shape != truth.shape:
            note = f"shape {given.shape} for {name} of shape {truth.shape}"
        elif not np.isfinite(given).all():
            note = "not finite"
        elif bad and run is not self.given:
            note = "shows at other inputs than those given"
        elif bad and run.vanishing(name):
            note = "should be 0"
        undecided = np.isinf(self.given.noise[name])
        if np.any(undecided):
            some = ", ".join([str(list(map(int, index))) for index in np.argwhere(undecided)[:4]])
            count = np.count_nonzero(undecided)
            self.notes.append(
                f"d{name} is not judged at {some}{', ...' if count > 4 else ''} ({count} of {undecided.size} entries), "
                "where forward has a kink."
            )
        least = 1e-12 * run.vanishing(name)
        return row(f"d{name}", "gradient", given, truth, not bad, note, np.isfinite(run.noise[name]), least)

    def _unreturned(self, name: str, note: str) -> Row:
        truth = self.given.truth[name]
        return Row(f"d{name}", "gradient", truth.shape, np.nan, np.nan, False, note, truth=truth)

    def _repairs(self, wrong: Sequence[str]) -> list[Repair]:
        """The edits of the author's code that make wrong gradients right."""
        try:
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
                return search(self.runs[::-1], wrong, self.clock)
        except NoSearch as why:
            self.notes.append(f"No repair was looked for in backward: {why}.")
        return []

    def _diagnose(self, run: Run, last: Run, wrong: list[str], repairs: list[Repair]) -> None:
        """The mistakes behind the wrong gradients: in shape, in order, on a path of a normalisation, or any other.

        Paths are looked for in the last of the runs, which tells most; what remains is told by the first, with the
        caller's own figures.
        """
        shaped, told = self._shaped(run, wrong, self.findings), self._shaped(last, wrong, [])
        for found in filter(None, (swapped(last, told), self._not_linear(run, shaped))):
            self.findings.append(found)
            shaped = {name: g for name, g in shaped.items() if f"d{name}" not in found.gradients}
        left = {n: told[n] for n in shaped if n in told and not close(told[n], last.truth[n], 5e-7)}
        explained, carried = explain(last, left, {name for repair in repairs for name in repair.gradients})
        joint = one_path(run, shaped) if self.paths is not None and 1 < len(shaped) > len(carried) else None
        self.findings += [joint] if joint else explained
        self.coefficients = carried
        shaped = {name: g for name, g in shaped.items() if not joint and f"d{name}" not in carried}
        said = {label for finding in self.findings for label in finding.gradients if finding.kind != "ignores dy"}
        for repair in repairs:
            if set(repair.gradients) & set(shaped):
                shaped = {name: g for name, g in shaped.items() if name not in repair.gradients}
                if not said & {f"d{name}" for name in repair.gradients}:
                    self.findings.append(_slip(repair))
        self.findings += generic(run, shaped)

    def _not_linear(self, run: Run, shaped: dict[str, Array]) -> Finding | None:
        """The gradients that aren't proportional to dy, or change from call to call."""
        kept = "comes back otherwise when backward is called again: something is kept from call to call"
        bent = "is not a linear function of dy: for -2 * dy it should come back -2 times as large, and does not"
        rows = (
            (1, 1e-12, Mistake("accumulates", kept, "Start from zero in every call")),
            (-2, 1e-7, Mistake("not linear", bent, "Use dy itself: no |dy|, dy**2 or clipping of it")),
        )
        for factor, rtol, mistake in rows if shaped and not self.unit else ():
            found = run.back(self.pair.source, factor).gradients
            same = [n for n, g in shaped.items() if n in found and found[n].shape == g.shape]
            off = [n for n in same if not close(found[n] / factor, shaped[n], rtol)]
            if off:
                return mistake.of([f"d{name}" for name in off])
        return None

    def _shaped(self, run: Run, wrong: list[str], findings: list[Finding]) -> dict[str, Array]:
        """The gradients that are left to explain, brought into shape; findings on values and shapes."""
        shaped: dict[str, Array] = {}
        for name in wrong:
            given, truth = run.author.gradients[name], run.truth[name]
            if not np.isfinite(given).all():
                what = f"d{name} has {given[~np.isfinite(given)].flat[0]} in it."
                findings.append(
                    Finding("not finite", (f"d{name}",), what, "Look for a division by 0 or a root below 0.")
                )
                continue
            if given.shape != truth.shape and not any(close(given, run.truth[n]) for n in wrong if n != name):
                finding, made = shape_finding(name, given, truth)
                findings.append(finding)
                if made is None or run.right(name, made):
                    continue
                given = made
            shaped[name] = given
        return shaped


def _ignores_dy(run: Run) -> bool:
    """Whether backward returns the same whatever the gradient is that it is handed."""
    if run.author.failure is not None or not any(np.any(g) for g in run.truth.values()):
        return False
    other = run.back(run.pair.source, -2)
    before, after = ([g.tobytes() for g in [*b.gradients.values(), *b.others.values()]] for b in (run.author, other))
    return bool(before) and before == after


_COPY = "Work on a copy: a = a * b, not a *= b."


def _slip(repair: Repair) -> Finding:
    """A repair as a finding."""
    labels = tuple([f"d{name}" for name in repair.gradients])
    verb = "is" if len(labels) == 1 else "are"
    what = f"{listed(labels)} {verb} wrong by one slip, in line {repair.line}: {repair.what}."
    return Finding(repair.kind, labels, what, f"Write `{' '.join(repair.new.split())}`.")
