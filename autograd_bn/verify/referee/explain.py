"""The reasons for wrong gradients, each sought by an explainer that takes what is left and says what it explains."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from ...engine.node import Array
from ...engine.operations import broadcasts
from .mistakes import MISSING, Mistake, alone, close, factor, lengths, listed, missing, number
from .paths import along_paths
from .run import Run
from .verdict import Finding, Repair


class Explained(NamedTuple):
    """What an explainer found, which gradients it explains, and how much of each path of a normalisation they carry."""

    findings: Sequence[Finding] = ()
    names: frozenset[str] = frozenset()
    coefficients: Mapping[str, dict[str, float]] = MappingProxyType({})


class Case:
    """A pair whose gradients `wrong` are wrong in every one of the `runs`, of which the last tells most.

    What is said is with the figures of the first, the caller's own: its `gradients`, brought into shape; those of the
    last are `told`. `repairs` are the edits that mend them, `normalises` whether forward takes statistics, and `unit`
    whether backward reads no dy.
    """

    def __init__(
        self, runs: Sequence[Run], wrong: Sequence[str], repairs: Sequence[Repair], *, normalises: bool, unit: bool
    ) -> None:
        self.runs, self.run, self.wrong, self.repairs = runs, runs[0], wrong, repairs
        self.normalises, self.unit = normalises, unit
        first, last = ({name: _shaped(run, name, wrong) for name in wrong} for run in (self.run, runs[-1]))
        self.shapes = {name: finding for name, (finding, _) in first.items() if finding is not None}
        self.gradients, self.told = ({n: g for n, (_, g) in each.items() if g is not None} for each in (first, last))

    def longer(self, run: Run) -> list[Run]:
        """Runs with other lengths than one of them."""
        shapes = [np.shape(value) for value in run.inputs.values()]
        return [other for other in self.runs if [np.shape(value) for value in other.inputs.values()] != shapes]


def _shaped(run: Run, name: str, wrong: Sequence[str]) -> tuple[Finding | None, Array | None]:
    """What is wrong with a gradient's shape or entries, and the gradient in its shape if more is wrong with it."""
    gradient, truth, label = run.author.gradients[name], run.truth[name], f"d{name}"
    if not np.isfinite(gradient).all():
        what = f"{label} has {gradient[~np.isfinite(gradient)].flat[0]} in it."
        return Finding("not finite", (label,), what, "Look for a division by 0 or a root below 0."), None
    if gradient.shape == truth.shape or any(close(gradient, run.truth[n]) for n in wrong if n != name):
        return None, gradient
    kind, more, repair, made = "shape", "", f"Return an array of {name}'s shape.", None
    if [k for k in gradient.shape if k != 1] == [k for k in truth.shape if k != 1]:
        repair, made = f"Return it with {name}'s shape: mind axes of length 1.", gradient.reshape(truth.shape)
    elif truth.ndim > 1 and gradient.shape == truth.shape[::-1]:
        kind, more, repair, made = "transposed", ": it is transposed", f"Return {label}.T.", gradient.T
    elif broadcasts(truth.shape, gradient.shape):
        lead = gradient.ndim - truth.ndim
        axes = tuple([i for i, k in enumerate(gradient.shape) if i < lead or truth.shape[i - lead] != k])
        over = "axis " + ", ".join(map(str, axes))
        kind, more = "not summed", f": it is not summed over {over}, along which {name} is broadcast"
        repair, made = f"Sum it over {over}.", gradient.sum(axis=axes, keepdims=True).reshape(truth.shape)
    what = f"{label} has shape {gradient.shape}, and {name} has {truth.shape}{more}."
    return Finding(kind, (label,), what, repair), None if made is None or run.right(name, made) else made


def shape(case: Case, left: frozenset[str]) -> Explained:
    """What isn't finite, or has another shape than its input."""
    return Explained([*case.shapes.values()], left - {*case.gradients})


def order(case: Case, left: frozenset[str]) -> Explained:
    """Gradients that are each other's."""
    gradients, truth = {name: g for name, g in case.told.items() if name in left}, case.runs[-1].truth
    for a, b in itertools.combinations(gradients, 2):
        if close(gradients[a], truth[b]) and close(gradients[b], truth[a]):
            what = f"d{a} and d{b} are each other's: they come back in the wrong order."
            finding = Finding("swapped", (f"d{a}", f"d{b}"), what, f"Exchange d{a} and d{b}.")
            return Explained([finding], frozenset((a, b)))
    return Explained()


def linearity(case: Case, left: frozenset[str]) -> Explained:
    """Gradients that aren't proportional to dy, or change from call to call."""
    kept = "comes back otherwise when backward is called again: something is kept from call to call"
    bent = "is not a linear function of dy: for -2 * dy it should come back -2 times as large, and does not"
    rows = [(1, 1e-12, Mistake("accumulates", kept, "Start from zero in every call"))]
    rows += [(-2, 1e-7, Mistake("not linear", bent, "Use dy itself: no |dy|, dy**2, rounding or clipping of it"))]
    for k, rtol, mistake in rows if not case.unit else ():
        again = case.run.back(case.run.pair.source, k).gradients
        same = [n for n in case.gradients if n in left and n in again and again[n].size == case.gradients[n].size]
        off = [n for n in same if not close(again[n].ravel() / k, case.run.author.gradients[n].ravel(), rtol)]
        if off:
            return Explained([mistake.of([f"d{name}" for name in off])], frozenset(off))
    return Explained()


def paths(case: Case, left: frozenset[str]) -> Explained:
    """Gradients that carry a path of a normalisation too often, too seldom or otherwise, or one edge of the graph."""
    last = case.runs[-1]
    told = {n: g for n, g in case.told.items() if n in left and not close(g, last.truth[n], 5e-7)}
    repaired = {name for repair in case.repairs for name in repair.gradients}
    findings, carried = along_paths(last, told, repaired, case.longer(last))
    if case.normalises and 1 < len(left) > len(carried):
        joint = _one_path(case.run, {name: case.gradients[name] for name in case.wrong if name in left})
        if joint is not None:
            return Explained([joint], left, carried)
    return Explained(findings, frozenset(label[1:] for label in carried), carried)


def slip(case: Case, left: frozenset[str]) -> Explained:
    """Gradients that one edit of the author's code makes right; what has a reason already gets no other."""
    said, findings, names = ({*case.wrong} - left) | {*case.shapes}, list[Finding](), set[str]()
    for repair in case.repairs:
        if {*repair.gradients} & (left - names):
            names |= {*repair.gradients} & left
            if not said & {*repair.gradients}:
                labels = tuple([f"d{name}" for name in repair.gradients])
                verb = "is" if len(labels) == 1 else "are"
                what = f"{listed(labels)} {verb} wrong by one slip, in line {repair.line}: {repair.what}."
                line = " ".join(repair.new.split())
                findings.append(Finding(repair.kind, labels, what, f"Write `{line}`." if line else "Leave it out."))
    return Explained(findings, frozenset(names))


def region(case: Case, left: frozenset[str]) -> Explained:
    """Gradients that are wrong by a number, a transposition or a mask, or by one edge of the graph; else where."""
    single: dict[str, Mistake | None] = {}
    for name in [name for name in case.wrong if name in left]:
        others = list[tuple[float, dict[str, int]]]()
        for run in case.longer(case.run):
            k = factor(run.author.gradients[name], run.truth[name])
            others += [] if k is None else [(k, lengths(run))]
        single[name] = alone(case.run, case.gradients[name], case.run.truth[name], others)
    if any(reason is None or reason.kind == "weight" for reason in single.values()):
        path = _one_path(case.run, {name: case.gradients[name] for name in single})
        # A number by which all of it is too large is told sooner than one for a part.
        if path is not None and not (path.kind == "weight of a path" and all(single.values())):
            return Explained([path], left)
    shared: dict[Mistake, list[str]] = {}
    for name in sorted(single, key=lambda name: single[name] is None):
        shared.setdefault(single[name] or _unknown(case.run, name, case.gradients[name]), []).append(f"d{name}")
    return Explained([reason.of(labels) for reason, labels in shared.items()], left)


Explainer = Callable[[Case, frozenset[str]], Explained]
EXPLAINERS: tuple[Explainer, ...] = (shape, order, linearity, paths, slip, region)


def explained(case: Case) -> Explained:
    """What all explainers say, each of what the ones before it left."""
    findings, left, coefficients = list[Finding](), frozenset(case.wrong), dict[str, dict[str, float]]()
    for explainer in EXPLAINERS:
        explanation = explainer(case, left)
        findings += explanation.findings
        coefficients |= explanation.coefficients
        left -= explanation.names
    return Explained(findings, coefficients=coefficients)


def _unknown(run: Run, name: str, gradient: Array) -> Mistake:
    """Where a gradient is wrong, if not why."""
    truth, wrong = run.truth[name], run.wrong(name, gradient)
    places = where(wrong, run.inputs[name])
    if np.any(~wrong) and np.all(~wrong | (gradient == 0)):
        return Mistake("lost rows", f"is 0 {places}, and right elsewhere", "Fill in the whole array")
    index = np.unravel_index(int(np.argmax(np.where(wrong, np.abs(gradient - truth), 0))), wrong.shape)
    words = f"is {gradient[index]:.6g} and should be {truth[index]:.6g}"
    if index:
        words = f"is wrong {places}: at {list(map(int, index))} it {words}"
    return Mistake("unexplained", words, "Check it term by term against the chain rule")


def where(wrong: Array, value: Array) -> str:
    """Where a gradient is wrong: on a diagonal, at a border, in rows or columns, where the input has a sign."""
    if np.all(wrong) or not wrong.ndim:
        return "everywhere"
    inner = np.zeros(wrong.shape, bool)
    inner[tuple([slice(1, -1) if length > 2 else slice(None) for length in wrong.shape])] = True
    masks: dict[str, Array] = {"at the borders": ~inner, "where its input is < 0": value < 0}
    masks |= {"where its input is > 0": value > 0, "where its input is == 0": value == 0}
    if wrong.ndim == 2:
        above: Array = np.subtract(*np.indices(wrong.shape))
        masks |= {"on the diagonal": above == 0, "off the diagonal": above != 0}
        masks |= {"above the diagonal": above < 0, "below the diagonal": above > 0}
    for words, mask in masks.items():
        if np.array_equal(wrong, mask):
            return words
    for axis in range(wrong.ndim):
        other = tuple(i for i in range(wrong.ndim) if i != axis)
        some = np.any(wrong, axis=other)
        if not np.all(some):
            kept = np.flatnonzero(some)
            shown = ", ".join(map(str, kept[:6])) + (", ..." if len(kept) > 6 else "")
            if wrong.ndim == 1:
                return f"at [{shown}]"
            part = "" if np.all(wrong == np.expand_dims(some, other)) else "in entries "
            return part + (f"in row{'s' * (len(kept) > 1)} {shown}" if axis == 0 else f"at {shown} of axis {axis}")
    return f"in {np.count_nonzero(wrong)} of {wrong.size} entries"


def _one_path(run: Run, gradients: dict[str, Array]) -> Finding | None:
    """One edge of the recorded graph whose share, weighted otherwise, makes every wrong gradient come out."""
    trace = run.trace
    if trace is None:
        return None
    cut = trace.constants(run.dy)
    for consumer, parent, part in trace.flow(trace.y.node, run.dy)[1][:300]:
        if not (trace.author_name(parent) or trace.author_name(consumer)):
            continue  # nobody finds the way from `multiply` to `add`
        shares, _ = trace.flow(parent, part, cut)
        share = {name: shares.get(trace.leaves[name].node, np.zeros(g.shape)) for name, g in gradients.items()}
        power = sum(float(np.sum(s * s)) for s in share.values())
        k = sum(float(np.sum(s * (gradients[n] - run.truth[n]))) for n, s in share.items()) / (power or np.inf)
        # A weight so near to 1 is rounding, which any edge explains.
        if abs(k) > 1e-6 and all(close(run.truth[n] + k * s, gradients[n]) for n, s in share.items()):
            labels = [f"d{n}" for n in gradients]
            way = f"the path from `{trace.label(parent)}` to `{trace.label(consumer)}` in forward"
            counts = lengths(run)
            first, *_ = number(1 + k, counts, [(1 + k, counts)])
            first = replace(first, kind="weight of a path") if first.kind == "weight" else first
            return missing(labels, [way]) if first is MISSING else first.of([f"in {listed(labels)} {way}"], labels)
    return None
