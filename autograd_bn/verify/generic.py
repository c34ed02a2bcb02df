"""What is wrong with the gradient of a function of which nothing is known but its recorded graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ..engine.derivatives import propagate
from ..engine.node import Array, topological_order
from .factors import RTOL, Finding
from .normalisation import close
from .truth import Run, contributions


def shape_finding(name: str, given: Array, truth: Array, terms: dict[str, Array]) -> tuple[Finding | None, Array]:
    """What a gradient of the wrong shape says, and the gradient brought into its shape where that is possible."""
    label = f"d{name}"
    says = f"{label} has shape {given.shape}, and {name} has {truth.shape}"
    if given.size == truth.size and tuple(k for k in given.shape if k != 1) == tuple(k for k in truth.shape if k != 1):
        shaped = given.reshape(truth.shape)
        return Finding(
            "shape", (label,), f"{says}.", f"Return it with {name}'s shape, without axes of length 1."
        ), shaped
    if truth.ndim > 1 and given.shape == truth.shape[::-1]:
        return Finding("transposed", (label,), f"{says}: it is transposed.", f"Return {label}.T."), given.T
    try:
        spread = np.broadcast_shapes(given.shape, truth.shape) == given.shape
    except ValueError:
        spread = False
    if spread:
        lead = given.ndim - truth.ndim
        axes = tuple(i for i in range(given.ndim) if i < lead or (truth.shape[i - lead] == 1 and given.shape[i] != 1))
        shaped = given.sum(axis=axes, keepdims=True).reshape(truth.shape)
        told = axes[0] if len(axes) == 1 else axes
        what = f"{says}: it is not summed over axis {told}, along which {name} is broadcast."
        return Finding("not summed", (label,), what, f"Sum it over axis {told}."), shaped
    for term in terms.values():
        for axes in _subsets(term.ndim):
            reduced = term.sum(axis=axes)
            if reduced.size == given.size and close(reduced.ravel(), given.ravel(), RTOL):
                return Finding(
                    "wrong axis", (label,), f"{says}: it is summed over axis {axes}.", "Sum over the batch."
                ), truth
    return Finding("shape", (label,), f"{says}.", f"Return an array of {name}'s shape."), np.full_like(truth, np.nan)


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), size)


def generic(
    run: Run, given: dict[str, Array], wrong: list[str], doubled: Callable[[], dict[str, Array]]
) -> list[Finding]:
    """Reasons for wrong gradients of a function of which only the recorded graph is known.

    `doubled` gives what backward returns for -2 * dy.
    """
    if not wrong:
        return []
    single = {name: _alone(run, name, given[name]) for name in wrong}
    plain = [f for f in single.values() if f is not None and f.kind != "weight"]
    path = None if len(plain) == len(wrong) else one_path(run, given, wrong)
    if path is not None:
        return [path]
    if any(f is None for f in single.values()):
        other = doubled()
        for name in wrong:
            if single[name] is None:
                single[name] = _last_resort(run, name, given[name], other.get(name))
    return [f for f in single.values() if f is not None]


def swapped(run: Run, given: dict[str, Array], wrong: list[str]) -> Finding | None:
    for a, b in itertools.combinations(wrong, 2):
        if close(given[a], run.truth[b], RTOL) and close(given[b], run.truth[a], RTOL):
            what = f"d{a} and d{b} are each other's: they come back in the wrong order."
            return Finding("swapped", (f"d{a}", f"d{b}"), what, f"Exchange d{a} and d{b}.")
    return None


def _alone(run: Run, name: str, given: Array) -> Finding | None:
    truth, label = run.truth[name], f"d{name}"
    if close(given, truth, 5e-7):
        return rounded(label, given, truth)
    if not np.any(given):
        return Finding("zero", (label,), f"{label} is zero everywhere.", "")
    if not np.any(truth):
        return Finding("unexplained", (label,), f"{label} should be zero: the output does not depend on {name}.", "")
    if truth.ndim == 2 and truth.shape[0] == truth.shape[1] and close(given, truth.T, RTOL):
        return Finding("transposed", (label,), f"{label} is transposed.", f"Return {label}.T.")
    k = float(np.sum(given * truth) / np.sum(truth * truth))
    if close(given, k * truth, RTOL):
        return _multiple(label, k, run)
    for other, value in _values(run).items():
        for power, words in (
            (1, "times {} too much"),
            (-1, "without a factor {}"),
            (2, "times {}**2 too much"),
            (-2, "without a factor {}**2"),
        ):
            with np.errstate(all="ignore"):
                try:
                    factor = np.broadcast_to(np.asarray(value, float) ** power, truth.shape)
                except ValueError:
                    continue
                if not np.isfinite(factor).all():
                    continue
                guess = truth * factor
                k = float(np.sum(given * guess) / max(float(np.sum(guess * guess)), 1e-300))
            if close(given, k * guess, RTOL) and np.ptp(factor) > 0 and abs(abs(k) - 1) < 1e-7:
                sign = "with the wrong sign and " if k < 0 else ""
                return Finding("factor", (label,), f"{label} comes {sign}{words.format(f'`{other}`')}.", "")
    return None


def rounded(label: str, given: Array, truth: Array) -> Finding:
    digits = int(-np.log10(np.max(np.abs(given - truth)) / np.max(np.abs(truth))))
    what = f"{label} is right to {digits} digits only: something on its way is rounded to a narrower type."
    return Finding("precision", (label,), what, "Compute in float64: take out the cast to float32 or float16.")


def not_linear(given: Array, doubled: Array | None) -> bool:
    """Whether `doubled`, what came back for -2 * dy, is not -2 times what came back for dy."""
    return doubled is not None and not (doubled.shape == given.shape and close(doubled / -2, given, 1e-7))


def nonlinear(label: str) -> Finding:
    """The finding for a gradient that isn't linear in dy."""
    what = f"{label} is not a linear function of dy: for -2 * dy backward should return -2 * {label}, and it does not."
    return Finding("not linear", (label,), what, "Use dy itself: no |dy|, dy**2 or clipping of it.")


def _last_resort(run: Run, name: str, given: Array, doubled: Array | None) -> Finding:
    truth, label = run.truth[name], f"d{name}"
    if not_linear(given, doubled):
        return nonlinear(label)
    right = np.isclose(given, truth, rtol=1e-7, atol=1e-9 * np.max(np.abs(truth)))
    if np.any(right) and np.all(right | (given == 0)):
        zeros = sorted({int(i[0]) for i in np.argwhere(~right)}) if truth.ndim else []
        shown = ", ".join(map(str, zeros[:6])) + (", ..." if len(zeros) > 6 else "")
        what = f"{label} is right in some entries and 0 in others (in row {shown} of axis 0)."
        return Finding("lost rows", (label,), what, "Fill in the whole array.")
    if close(given, truth, 1e-3):
        return rounded(label, given, truth)
    return _unexplained(run, name, given)


def _lengths(run: Run) -> list[int]:
    """The lengths that a sum or a mean in this function may run over."""
    lengths = {length for value in run.inputs.values() for length in np.shape(value)} | {run.y.size}
    return sorted(lengths - {0, 1})


def _multiple(label: str, k: float, run: Run) -> Finding:
    if abs(k + 1) < 1e-8:
        return Finding("sign", (label,), f"{label} has the wrong sign.", f"Return -{label}.")
    for length in _lengths(run):
        for sign in (1, -1):
            extra = " and has the wrong sign" if sign < 0 else ""
            if abs(k - sign * length) < 1e-7 * length:
                return Finding(
                    "sum for mean",
                    (label,),
                    f"{label} is {length} times too large{extra}: a sum stands where a mean belongs.",
                    f"Divide it by {length}.",
                )
            if abs(k - sign / length) < 1e-7 / length:
                return Finding(
                    "mean for sum",
                    (label,),
                    f"{label} is {length} times too small{extra}: a mean stands where a sum belongs.",
                    f"Multiply it by {length}.",
                )
            if abs(k - sign * length / (length - 1)) < 1e-8:
                return Finding(
                    "N-1",
                    (label,),
                    f"{label} is divided by {length - 1} where {length} belongs{extra}.",
                    f"Divide by {length}.",
                )
    return Finding("weight", (label,), f"{label} is {k:.6g} times what it should be.", f"Divide it by {k:.6g}.")


def _values(run: Run) -> dict[str, Array]:
    named = {name: t.data for name, t in run.trace.named.items()} if run.trace else {}
    return {**{name: run.inputs[name] for name in run.floats}, **named}


def one_path(run: Run, given: dict[str, Array], wrong: list[str]) -> Finding | None:
    """One edge of the recorded graph whose share, weighted otherwise, makes every wrong gradient come out."""
    if run.trace is None:
        return None
    trace = run.trace
    everything = {node for node in topological_order([trace.y.node]) if node.requires_grad}
    found = propagate([(trace.y.node, run.dy)], everything, create_graph=False)
    leaves = [trace.leaves[name].node for name in wrong]
    excess = [given[name] - run.truth[name] for name in wrong]
    edges = list(contributions(trace.y.node, found))
    for consumer, parent, part in edges[-400:]:
        shares = propagate([(parent, part)], set(leaves), create_graph=False)
        share = [np.asarray(shares.get(leaf, np.zeros(leaf.shape))) for leaf in leaves]
        power = sum(float(np.sum(s * s)) for s in share)
        if power == 0:
            continue
        k = sum(float(np.sum(s * e)) for s, e in zip(share, excess, strict=True)) / power
        if all(
            close(t + k * s, given[n], RTOL)
            for n, s, t in ((n, s, run.truth[n]) for n, s in zip(wrong, share, strict=True))
        ):
            labels = tuple([f"d{name}" for name in wrong])
            return _path_finding(labels, trace.label(parent), trace.label(consumer), 1 + k, run)
    return None


def _path_finding(labels: tuple[str, ...], start: str, end: str, weight: float, run: Run) -> Finding:
    way = f"the path from `{start}` to `{end}` in forward"
    both, carries = " and ".join(labels), "carries" if len(labels) == 1 else "carry"
    if abs(weight) < 1e-7:
        what = f"{both} {carries} 0.00 of {way}: that term is missing."
        return Finding("missing path", labels, what, f"Add what flows back from `{end}` to `{start}`.")
    if abs(weight + 1) < 1e-7:
        return Finding("sign", labels, f"{both} {carries} {way} with the wrong sign.", "Flip that term's sign.")
    for length in _lengths(run):
        if abs(weight / length - 1) < 1e-7:
            what = f"{both} {carries} {length} times {way}: a sum over {length} values stands where a mean belongs."
            return Finding("sum for mean", labels, what, f"Divide that term by {length}.")
    what = f"{both} {carries} {weight:.4g} times {way}, which should count once."
    return Finding("weight", labels, what, f"Divide that term by {weight:.4g}.")


def _unexplained(run: Run, name: str, given: Array) -> Finding:
    truth, label = run.truth[name], f"d{name}"
    difference = np.abs(given - truth)
    at = (
        np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), truth.shape)
        if truth.size
        else ()
    )
    index = tuple(int(i) for i in at)
    got, should = f"{given[index]:.6g}", f"{truth[index]:.6g}"
    what = f"{label} is wrong in a way not known here: at {list(index)} it is {got} and should be {should}."
    return Finding("unexplained", (label,), what, "Check its terms one by one against the chain rule.")
