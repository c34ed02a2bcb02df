"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

import contextlib
import copy
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .conventions import adapt, numpy_pair
from .explain import Case, explained
from .inputs import Inputs, checked, lengthened, moved, named_lengths
from .meant import convention, cut_by_a_guard, without_guards
from .mistakes import Mistake, alone, close
from .names import canonical
from .outside import as_it_was
from .pairs import Pair
from .paths import Paths, main_paths, telling
from .repair import search
from .run import Run
from .source import NoSearch
from .trace import effort
from .truth import known_to
from .unwritten import written
from .verdict import Finding, Repair, Row, Verdict, row

CALLS = 1_500  # of a small forward pass, after which no more inputs are tried; a large one counts for several
ENTRIES = 50_000  # of inputs that take as long as a small forward pass
_COPY = "Work on a copy: a = a * b, not a *= b."
_CUTTING = {"clip", "maximum", "minimum", "where"}


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

    The pair is as courses and papers have it: `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`,
    in NumPy. `grads` is a tuple with one gradient an input, in their order (a single array for a single input;
    None, or nothing at the end, for an input that needs no gradient), or a dict: `dx` or `grad_x` is the
    gradient of the input `x`, and any other such name that of a value with that name in `forward`, an
    intermediate. `names` are the inputs' names, by default those of forward's parameters.

    The truth comes from running `forward` itself on tensors, confirmed by a difference of its output; where
    it can't be recorded, from central differences with Richardson's extrapolation, and the verdict says so.
    It is judged in float64 with a random `dy` from `seed` (1 for a loss whose backward doesn't read it), at the inputs
    given, at others near them, of other signs and of lengths that don't collide, and if it is a normalisation at
    inputs on which every mistake shows: eps of the variance's size, gamma far from 1. A gradient is right if no entry
    is further from the truth than 1e-9 of the largest (1e-6 by differences). Entries at a kink are not judged.

    `check_backward(target, inputs)` judges a `torch.autograd.Function`, a function with a `jax.custom_vjp`, or a layer
    object with `y = layer.forward(x)` and `dx = layer.backward(dy)` in the same way; the truth is the framework's own
    derivative of the forward code. Of a function with `loss, dx, ... = function(x, ...)` it judges dx, ...

    For wrong gradients it looks for the smallest edit of `backward` that makes them right. Only code that is arithmetic
    on arrays through and through, by an allow-list, is edited and run again; a note says which line is not. As they
    stand, backward runs at most 60 times, and forward a few times as often as its inputs have entries where its
    derivative comes from differences, else at most 2,000 times. All of it is counted in runs of the pair, of which one
    that calls many functions counts for several, and not in seconds: a verdict is the same on a busy machine.

    A pair that is right and overwrites an array of its own on the way is right with a warning; `strict` makes it wrong.

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
        return Referee(pair, checked(pair.inputs, pair.names, names), seed, strict).verdict()


class Referee:
    """One check: the runs that it makes of a pair, and what it makes of them."""

    def __init__(self, pair: Pair, inputs: Inputs, seed: int, strict: bool) -> None:
        self.pair, self.inputs, self.unit, self.why, self.strict = pair, inputs, pair.unit, "", strict
        self.rng = np.random.default_rng([seed, 9157])  # its own: the caller's x may come from the same seed
        self.effort = 1.0  # what a forward pass costs
        self.findings: list[Finding] = []
        self.notes = [*pair.notes]
        self.warnings: list[str] = []
        self.coefficients: dict[str, dict[str, float]] = {}
        self.paths: Paths | None = None
        self.runs: list[Run] = []
        self.raised = ""  # at inputs of other lengths

    @property
    def first(self) -> Run:
        """The run at the caller's inputs."""
        return self.runs[0]

    # Runs

    def _run(self) -> None:
        """Run the pair at the caller's inputs and elsewhere; by differences everywhere, once one run needs them."""
        with contextlib.suppress(Exception):  # for the first run to report
            self.effort = effort(lambda: self.pair.forward(*copy.deepcopy(self.inputs).values()))
        self.effort = max(self.effort, sum([np.size(value) for value in self.inputs.values()]) / ENTRIES)
        self.runs = [self._at(self.inputs)]
        # Off the caller's inputs too, where no gradient is 0 by zeros in them.
        deaf = not self.unit and _ignores_dy(self.first)
        if deaf and _ignores_dy(self._tried(self._moved([*self.first.truth])) or self.first):
            self._without_dy()
            self.runs = [self._at(self.inputs)]
        if self.first.author.failure is None:
            self._run_elsewhere()
        why = next((run.why_differences for run in self.runs if run.why_differences), "")
        if why and not self.first.why_differences:
            self.why, self.runs = why, []
            self.runs = [self._at(self.inputs)]
            self._run_elsewhere()
        self.first.call_twice()

    def _without_dy(self) -> None:
        self.unit = True
        if self.first.y.size == 1:
            self.notes.append("backward doesn't read dy, which is taken to be 1: that is usual for a loss.")
        else:
            labels = tuple([f"d{name}" for name in self.first.truth])
            what = "backward ignores dy: it returns the same for every gradient that it is handed."
            repair = "Multiply by dy, with which the chain rule starts. The rest is judged for dy = 1."
            self.findings.append(Finding("ignores dy", labels, what, repair))

    def _run_elsewhere(self) -> None:
        """Run the pair at inputs that the caller didn't give, where it takes them: the last tells most."""
        judged = [*self.first.author.gradients]
        near = self._another(self._moved(judged))
        for names in [judged, *([name] for name in judged if len(judged) > 1)]:
            if self._another(self._moved(names, turned=True)):
                break
        self._run_far(judged)
        self._run_longer()
        self.paths = main_paths(near or self.first)
        if self.paths is not None and not self._another(telling(self.paths, self.rng)) and near:
            self.runs.sort(key=lambda run: run is near)

    def _run_far(self, judged: Sequence[str]) -> None:
        """Much larger and smaller inputs, where forward may cut off either, if its derivative is known there."""
        operations = {node.own_op for node in self.first.trace.order} if self.first.trace else _CUTTING | {"log"}
        if self.first.why_differences or not operations & _CUTTING:
            return
        # What lies between 0 and 1, and has a logarithm, are probabilities, which are cut off as a guard alone.
        names = [n for n in judged if "log" not in operations or np.any((self.inputs[n] <= 0) | (self.inputs[n] >= 1))]
        for factor in (10.0, 100.0, 0.1) if names else ():
            run = self._another(self._moved(names, factor=factor))
            if run is not None and not self._known(run, judged):
                self.runs.remove(run)

    def _known(self, run: Run, judged: Sequence[str]) -> bool:
        """Whether the truth is as well known there as elsewhere, the output not flat, and the gradients finite."""
        if run.y.size > 1 and not np.ptp(run.y):
            return False
        for name in judged:
            largest, noise = np.max(np.abs(run.truth[name]), initial=0), run.noise[name]
            known = np.max(noise, where=np.isfinite(noise), initial=0) <= 1e-9 * largest
            if not known or not np.isfinite(run.author.gradients.get(name, np.nan)).all():
                return False
        return True

    def _run_longer(self) -> None:
        """Axes of other lengths. A forward pass that reads a part of longer arrays takes them, and is no witness."""
        runs = 0
        for inputs in lengthened(self.pair, self.inputs, self.rng):
            run = self._another(inputs, failed=True) if runs < 3 else None
            if run is None:
                continue
            runs += 1
            back = run.author
            others = {n: g.shape for n, g in back.gradients.items() if g.shape != run.truth[n].shape}
            if back.failure is not None or others:
                self._failed_at(run, others)
                self.runs.remove(run)

    def _failed_at(self, run: Run, others: dict[str, tuple[int, ...]]) -> None:
        """What it says that backward fails at inputs of other lengths, which forward takes and reads as a whole."""
        name = next(n for n, v in run.inputs.items() if np.shape(v) != np.shape(self.inputs[n]))
        judged = [run.truth[n] for n in self.first.author.gradients]
        axes = [(g, i) for g in judged for i in range(g.ndim)]
        whole = all(np.any(g, axis=tuple([j for j in range(g.ndim) if j != i])).all() for g, i in axes)
        why = run.author.failure or " and ".join([f"d{n} has shape {shape}" for n, shape in others.items()])
        what = f"At {name} of shape {np.shape(run.inputs[name])}, which forward takes, {why}."
        own = named_lengths(self.pair, self.inputs) & {k for v in self.inputs.values() for k in np.shape(v)}
        exchanged = any(sorted(shape) == sorted(run.truth[n].shape) for n, shape in others.items())
        if whole and own and not exchanged:
            self.notes.append(what)
        elif whole:
            self.raised = what

    def _moved(self, names: Sequence[str], turned: bool = False, factor: float = 1.0) -> Inputs:
        return self.inputs | {n: factor * moved(self.inputs[n], self.rng, turned=turned) for n in names}

    def _at(self, inputs: Inputs) -> Run:
        return Run.of(self.pair, inputs, self.rng, self.unit, self.why)

    def _another(self, inputs: Inputs, failed: bool = False) -> Run | None:
        """A run on other inputs, kept where the pair takes them, or forward does if backward has `failed`."""
        run = self._tried(inputs, failed)
        self.runs += [run] if run else []
        return run

    def _tried(self, inputs: Inputs, failed: bool = False) -> Run | None:
        """A run on inputs that the pair may not take; by differences it takes many calls."""
        calls = sum([run.calls for run in self.runs])
        if calls * self.effort > CALLS:
            self.notes.append(f"It took {calls:,} runs of forward: fewer inputs were tried.")
            return None
        try:
            run = self._at(inputs)
        except Unjudgeable:
            return None
        return run if (failed or run.author.failure is None) and not cut_by_a_guard(run, self.inputs) else None

    # The verdict

    def verdict(self) -> Verdict:
        """Judge every gradient in every run, and look for the reason in the run that tells most, the last."""
        self._run()
        run, back = self.first, self.first.author
        if back.failure is not None:
            rows = [self._unreturned(name, "not computed") for name in run.truth]
            self.findings.append(Finding("raised", (), f"{back.failure}.", ""))
            return self._made(rows, self._repairs([*run.truth]))
        self.warnings = [f"{what}. {_COPY}" for what in back.faults]
        self.findings += back.findings
        self.notes += back.notes
        rows, wrong = [], []
        for name in run.truth:
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
        if wrong:
            case = Case.of(showing, wrong, repairs, self.paths is not None, self.unit)
            explanation = explained(case)
            self.findings += explanation.findings
            self.coefficients = {**explanation.coefficients}
        elif self.raised:
            repair = "Two lengths that are alike in the inputs given stand for each other."
            self.findings.append(Finding("raised", (), self.raised, repair))
        if run.why_differences:
            why = run.why_differences
            known = f"{known_to(self.pair):.0e}".replace("e-0", "e-")
            self.notes.append(f"{why[0].upper()}{why[1:]}, so the truth is by central differences, to {known}.")
        return self._made(rows + self._steps(showing[0], bool(wrong)), repairs)

    def _steps(self, run: Run, wrong: bool) -> list[Row]:
        """The intermediates; one that is wrong by itself is a finding."""
        steps = [step for step in run.steps(self.pair.source) if wrong or step.name in self.first.author.others]
        for step in [step for step in steps if not step.ok and not wrong][:1]:
            unknown = Mistake("unexplained", "is wrong", "Check its formula")
            self.findings.append((alone(self.first, step.returned, step.truth) or unknown).of([step.name]))
        named = {canonical(step.name.removeprefix("d")) for step in steps if step.ok}
        if self.paths is not None and {"mean", "var"} <= {*self.paths.shares} and "mean" in named:
            self.notes.append(
                "In the gradient of the mean, the term through the variance is a multiple of sum(x - mean) = 0. "
                "No input can show it: with or without it the gradient is right."
            )
        return steps

    def _made(self, rows: list[Row], repairs: list[Repair], convention: str = "") -> Verdict:
        if not rows and not self.findings:
            raise Unjudgeable("backward returned no gradient of an array that forward reads")
        findings, notes = tuple(dict.fromkeys(self.findings)), tuple(dict.fromkeys(self.notes))
        right = all(row.ok for row in rows if row.what == "gradient")
        judged = self.pair.forward, self.inputs, self.first.dy
        seen = tuple(self.warnings), (*self.pair.unseen, *self.first.author.unseen), convention
        ok = right and not findings and not (self.strict and self.warnings)
        return Verdict(ok, tuple(rows), findings, notes, tuple(repairs), self.coefficients, *judged, *seen, self.pair)

    def _judged(self, name: str) -> Row:
        """The row of one gradient: the first run in which it is wrong, else the run on the caller's inputs."""
        judged = [run for run in self.runs if name in run.author.gradients]
        bad = [run for run in judged if not run.right(name)]
        if bad and all(close(run.author.gradients[name], without_guards(run).get(name, np.nan)) for run in bad):
            bad = []
            self.notes.append(f"d{name} is right without the small number that forward adds inside of its logarithm.")
        run = (bad or judged)[0]
        gradient, truth, note = run.author.gradients[name], run.truth[name], ""
        if gradient.shape != truth.shape:
            note = f"shape {gradient.shape} for {name} of shape {truth.shape}"
        elif not np.isfinite(gradient).all():
            note = "not finite"
        elif bad and run is not self.first:
            note = "shows at other inputs than those given"
        elif bad and run.vanishing(name):
            note = "should be 0"
        undecided = np.isinf(self.first.noise[name])
        if np.any(undecided):
            some = ", ".join([str(list(map(int, index))) for index in np.argwhere(undecided)[:4]])
            count = np.count_nonzero(undecided)
            self.notes.append(
                f"d{name} is not judged at {some}{', ...' if count > 4 else ''} ({count} of {undecided.size} entries), "
                "where forward has a kink."
            )
        least = 1e-12 * run.vanishing(name)
        judged_at = np.isfinite(run.noise[name])
        return row(f"d{name}", "gradient", gradient, truth, ok=not bad, note=note, judged=judged_at, least=least)

    def _unreturned(self, name: str, note: str) -> Row:
        truth = self.first.truth[name]
        return Row(f"d{name}", "gradient", truth.shape, np.nan, np.nan, False, note, truth=truth)

    def _repairs(self, wrong: Sequence[str]) -> list[Repair]:
        """The edits of the author's code that make wrong gradients right."""
        try:
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
                repairs = search(self.runs[::-1], wrong, self.effort)
        except NoSearch as why:
            self.notes.append(f"No repair was looked for in backward: {why}.")
            return []
        for repair in repairs:
            rest = [f"d{name}" for name in wrong if name not in {name for other in repairs for name in other.gradients}]
            if rest:
                mended = " and ".join([f"d{name}" for name in repair.gradients])
                self.notes.append(f"The edit of line {repair.line} mends {mended} only, and not {', '.join(rest)}.")
        return repairs


def _ignores_dy(run: Run) -> bool:
    """Whether backward returns the same whatever the gradient is that it is handed."""
    if run.author.failure is not None or not any(np.any(g) for g in run.truth.values()):
        return False
    other = run.back(run.pair.source, -2)
    before, after = ([g.tobytes() for g in [*b.gradients.values(), *b.others.values()]] for b in (run.author, other))
    return bool(before) and before == after
