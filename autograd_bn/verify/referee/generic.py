"""What is wrong with the gradient of a function of which nothing is known but its recorded graph."""

from __future__ import annotations

import itertools

import numpy as np

from ...engine.node import Array
from ...engine.operations import broadcasts
from .mistakes import MISSING, Mistake, alone, close, lengths, listed, missing, number
from .run import Run
from .verdict import Finding


def shape_finding(name: str, given: Array, truth: Array) -> tuple[Finding, Array | None]:
    """What a gradient of the wrong shape says, and the gradient brought into shape where it can be."""
    label = f"d{name}"
    says = f"{label} has shape {given.shape}, and {name} has {truth.shape}"
    if [k for k in given.shape if k != 1] == [k for k in truth.shape if k != 1]:
        repair = f"Return it with {name}'s shape: mind axes of length 1."
        return Finding("shape", (label,), f"{says}.", repair), given.reshape(truth.shape)
    if truth.ndim > 1 and given.shape == truth.shape[::-1]:
        return Finding("transposed", (label,), f"{says}: it is transposed.", f"Return {label}.T."), given.T
    if broadcasts(truth.shape, given.shape):
        lead = given.ndim - truth.ndim
        axes = tuple(i for i in range(given.ndim) if i < lead or (truth.shape[i - lead] == 1 and given.shape[i] != 1))
        over = "axis " + ", ".join(map(str, axes))
        what = f"{says}: it is not summed over {over}, along which {name} is broadcast."
        finding = Finding("not summed", (label,), what, f"Sum it over {over}.")
        return finding, given.sum(axis=axes, keepdims=True).reshape(truth.shape)
    return Finding("shape", (label,), f"{says}.", f"Return an array of {name}'s shape."), None


def generic(run: Run, given: dict[str, Array]) -> list[Finding]:
    """Reasons for wrong gradients."""
    single = {name: alone(run, g, run.truth[name]) for name, g in given.items()}
    if any(reason is None or reason.kind == "weight" for reason in single.values()):
        path = one_path(run, given)
        if path is not None:
            return [path]
    shared: dict[Mistake, list[str]] = {}
    for name, reason in single.items():
        shared.setdefault(reason or _unknown(run, name, given[name]), []).append(f"d{name}")
    return [reason.of(labels) for reason, labels in shared.items()]


def swapped(run: Run, given: dict[str, Array]) -> Finding | None:
    """Two gradients that are each other's."""
    for a, b in itertools.combinations(given, 2):
        if close(given[a], run.truth[b]) and close(given[b], run.truth[a]):
            what = f"d{a} and d{b} are each other's: they come back in the wrong order."
            return Finding("swapped", (f"d{a}", f"d{b}"), what, f"Exchange d{a} and d{b}.")
    return None


def _unknown(run: Run, name: str, given: Array) -> Mistake:
    """Where a gradient is wrong, if not why."""
    truth = run.truth[name]
    wrong = run.wrong(name, given)
    places = where(wrong, run.inputs[name])
    if np.any(~wrong) and np.all(~wrong | (given == 0)):
        return Mistake("lost rows", f"is 0 {places}, and right elsewhere", "Fill in the whole array")
    index = np.unravel_index(int(np.argmax(np.where(wrong, np.abs(given - truth), 0))), wrong.shape)
    words = f"is {given[index]:.6g} and should be {truth[index]:.6g}"
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


def one_path(run: Run, given: dict[str, Array]) -> Finding | None:
    """One edge of the recorded graph whose share, weighted otherwise, makes every wrong gradient come out."""
    trace = run.trace
    if trace is None:
        return None
    cut = trace.constants(run.dy)
    for consumer, parent, part in trace.flow(trace.y.node, run.dy)[1][:300]:
        shares, _ = trace.flow(parent, part, cut)
        share = {name: shares.get(trace.leaves[name].node, np.zeros(g.shape)) for name, g in given.items()}
        power = sum(float(np.sum(s * s)) for s in share.values())
        k = sum(float(np.sum(s * (given[n] - run.truth[n]))) for n, s in share.items()) / (power or np.inf)
        # A weight so near to 1 is rounding, which any edge explains.
        if abs(k) > 1e-6 and all(close(run.truth[n] + k * s, given[n]) for n, s in share.items()):
            labels = [f"d{n}" for n in given]
            way = f"the path from `{trace.label(parent)}` to `{trace.label(consumer)}` in forward"
            first, *_ = number(1 + k, lengths(run))
            return missing(labels, [way]) if first is MISSING else first.of([f"in {listed(labels)} {way}"], labels)
    return None
