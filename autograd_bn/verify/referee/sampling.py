"""The runs from which a pair is judged: at the caller's inputs, and at others on which more can show."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .inputs import Inputs, lengthened, moved, named_lengths, whole_numbers
from .meant import cut_by_a_guard
from .pairs import Pair
from .paths import Paths, main_paths, revealing
from .run import TOLERANCE, Run
from .source import code_of
from .trace import effort

PASSES = 1_500  # of a small forward pass, after which no more inputs are tried; a large one counts for several
ENTRIES = 50_000  # of inputs that take as long as a small forward pass
_CUTTING = {"clip", "maximum", "minimum", "where"}


@dataclass(frozen=True)
class Sample:
    """A pair's runs: the first at the caller's inputs, others at inputs that it takes, of which the last tells most.

    `effort` is what a forward pass costs, `unit` whether dy is 1, and `why` says why the truth is by differences.
    `failures` says at which lengths forward takes inputs for which backward fails, `paths` are a normalisation's.
    """

    pair: Pair
    inputs: Inputs
    rng: np.random.Generator
    effort: float
    unit: bool
    why: str = ""
    runs: list[Run] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    paths: Paths | None = None

    @property
    def first(self) -> Run:
        """The run at the caller's inputs."""
        return self.runs[0]

    def begun(self, **changes: Any) -> Sample:
        """A sample with the first run alone."""
        sample = replace(self, runs=[], notes=[], failures=[], **changes)
        sample.runs.append(sample._at(self.inputs))
        return sample

    def filled(self) -> Sample:
        """The sample with runs at inputs that the caller didn't give, where the pair takes them."""
        if self.first.author.failure is not None:
            return self
        judged = [*self.first.author.gradients]
        near = self._another(self.moved(judged))
        for names in [judged, *([name] for name in judged if len(judged) > 1)]:
            if self._another(self.moved(names, turned=True)):
                break
        self._run_far(judged)
        self._run_longer()
        paths = main_paths(near or self.first)
        if paths is not None and not self._another(revealing(paths, self.rng)) and near:
            self.runs.sort(key=lambda run: run is near)
        return replace(self, paths=paths)

    def _run_far(self, judged: Sequence[str]) -> None:
        """Much larger and smaller inputs, where forward may cut off either, if its derivative is known there."""
        operations = {node.own_op for node in self.first.trace.order} if self.first.trace else _CUTTING | {"log"}
        if self.first.why_differences or not operations & _CUTTING:
            return
        # What lies between 0 and 1, and has a logarithm, are probabilities, which are cut off as a guard alone.
        names = [n for n in judged if "log" not in operations or np.any((self.inputs[n] <= 0) | (self.inputs[n] >= 1))]
        for factor in (10.0, 100.0, 0.1) if names else ():
            run = self.tried(self.moved(names, factor=factor))
            if run is not None and _well_known(run, judged):
                for name in judged:  # where softmax is flat, all that is left may be rounding in sums that cancel
                    near, far = (np.max(np.abs(there.truth[name]), initial=0) for there in (self.first, run))
                    run.noise[name] = run.noise[name] + TOLERANCE * (near + 100 * far)  # also a guard, clip(x, -30, 30)
                self.runs.append(run)

    def _run_longer(self) -> None:
        """Axes of other lengths. A forward pass that reads a part of longer arrays takes them, and is no witness."""
        longer = (self.tried(inputs, failed=True) for inputs in lengthened(self.pair, self.inputs, self.rng))
        for _, run in zip(range(3), filter(None, longer), strict=False):
            gradients = run.author.gradients.items()
            others = {n: g.shape for n, g in gradients if g.shape != run.truth[n].shape}
            if run.author.failure is None and not others:
                self.runs.append(run)
            else:
                self._failed_at(run, others)

    def _failed_at(self, run: Run, others: dict[str, tuple[int, ...]]) -> None:
        """What it says that backward fails at inputs of other lengths, which forward takes and reads as a whole."""
        name = next(n for n, v in run.inputs.items() if np.shape(v) != np.shape(self.inputs[n]))
        axes = [(g, i) for n, g in run.truth.items() if n in self.first.author.gradients for i in range(g.ndim)]
        if not all(np.any(g, axis=tuple([j for j in range(g.ndim) if j != i])).all() for g, i in axes):
            return
        why = run.author.failure or " and ".join([f"d{n} has shape {shape}" for n, shape in others.items()])
        own = named_lengths(self.pair, self.inputs) & {k for v in self.inputs.values() for k in np.shape(v)}
        if self.pair.calls:  # an object is made for some lengths
            there = zip(np.shape(self.inputs[name]), np.shape(run.inputs[name]), strict=True)
            held = whole_numbers(getattr(self.pair.calls.author.owner, "__dict__", {}))
            own |= held & {a for a, b in there if a != b}
        exchanged = any(sorted(shape) == sorted(run.truth[n].shape) for n, shape in others.items())
        last = np.shape(self.inputs[name])[-2:]
        square = np.ndim(self.inputs[name]) > 3 and last[0] == last[1] and not others  # as scores of attention are
        square |= "diag" in code_of(self.pair.forward)  # of which a diagonal is taken
        said = self.notes if square or (own and not exchanged) else self.failures
        said.append(f"At {name} of shape {np.shape(run.inputs[name])}, which forward takes, {why}.")

    def moved(self, names: Sequence[str], turned: bool = False, factor: float = 1.0) -> Inputs:
        """Inputs of which some are others, near by."""
        return self.inputs | {n: np.asarray(factor * moved(self.inputs[n], self.rng, turned=turned)) for n in names}

    def _at(self, inputs: Inputs) -> Run:
        return Run.of(self.pair, inputs, self.rng, self.unit, self.why)

    def _another(self, inputs: Inputs) -> Run | None:
        """A run on other inputs, kept where the pair takes them."""
        run = self.tried(inputs)
        self.runs.extend([run] if run else [])
        return run

    def tried(self, inputs: Inputs, failed: bool = False) -> Run | None:
        """A run on inputs, where the pair takes them, or forward if backward has `failed`, and passes are left."""
        passes = sum([run.passes for run in self.runs])
        if passes * self.effort > PASSES:
            self.notes.append(f"It took {passes:,} runs of forward: fewer inputs were tried.")
            return None
        try:
            run = self._at(inputs)
        except Unjudgeable:
            return None
        return run if (failed or run.author.failure is None) and not cut_by_a_guard(run, self.inputs) else None


def sampled(pair: Pair, inputs: Inputs, seed: int) -> Sample:
    """The runs of a pair; by differences everywhere, once one of them needs these."""
    rng = np.random.default_rng([seed, 9157])  # its own: the caller's x may come from the same seed
    cost = max(1.0, sum([np.size(value) for value in inputs.values()]) / ENTRIES)
    with contextlib.suppress(Exception):  # for the first run to report
        cost = max(effort(lambda: pair.forward(*copy.deepcopy(inputs).values())), cost)
    sample = Sample(pair, inputs, rng, cost, pair.unit).begun()
    if not sample.unit and _ignores_dy(sample.first):
        near = sample.tried(sample.moved([*sample.first.truth]))  # where no gradient is 0 by zeros in the inputs
        if near is None or _ignores_dy(near):
            sample = sample.begun(unit=True)
    sample = sample.filled()
    why = next((run.why_differences for run in sample.runs if run.why_differences), "")
    if why and not sample.first.why_differences:
        sample = sample.begun(why=why).filled()
    sample.first.call_twice()
    return sample


def _ignores_dy(run: Run) -> bool:
    """Whether backward returns the same whatever the gradient is that it is handed."""
    if run.author.failure is not None or not any(np.any(g) for g in run.truth.values()):
        return False
    other = run.back(run.pair.source, -2)
    before, after = ([g.tobytes() for g in [*b.gradients.values(), *b.others.values()]] for b in (run.author, other))
    return bool(before) and before == after


def _well_known(run: Run, judged: Sequence[str]) -> bool:
    """Whether the truth is as well known in a run as elsewhere, the output not flat, and the gradients finite."""
    if run.y.size > 1 and not np.ptp(run.y):
        return False
    for name in judged:
        largest, noise = np.max(np.abs(run.truth[name]), initial=0), run.noise[name]
        known = np.max(noise, where=np.isfinite(noise), initial=0) <= 1e-9 * largest
        if not known or not np.isfinite(run.author.gradients.get(name, np.nan)).all():
            return False
    return True
