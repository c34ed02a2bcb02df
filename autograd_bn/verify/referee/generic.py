"""What is wrong with the gradient of a function of which nothing is known but its recorded graph."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from ...engine.backward import propagate
from ...engine.node import Array, Node, topological_order
from .matching import Step
from .mistakes import RTOL, Factor, Finding, plural
from .normalisation import close
from .run import Run, contributions, parts_of


def shape_finding(name: str, given: Array, truth: Array, terms: list[Array]) -> tuple[Finding, Array]:
    """What a gradient of the wrong shape says, and the gradient brought into shape, or NaN where it can't be.

    `terms` are arrays of which it may be a sum over the wrong axis.
    """
    label = f"d{name}"
    says = f"{label} has shape {given.shape}, and {name} has {truth.shape}"
    if [k for k in given.shape if k != 1] == [k for k in truth.shape if k != 1]:
        repair = f"Return it with {name}'s shape: mind axes of length 1."
        return Finding("shape", (label,), f"{says}.", repair), given.reshape(truth.shape)
    if truth.ndim > 1 and given.shape == truth.shape[::-1]:
        return Finding("transposed", (label,), f"{says}: it is transposed.", f"Return {label}.T."), given.T
    if _spreads(truth.shape, given.shape):
        lead = given.ndim - truth.ndim
        axes = tuple(i for i in range(given.ndim) if i < lead or (truth.shape[i - lead] == 1 and given.shape[i] != 1))
        told = "axis " + ", ".join(map(str, axes))
        what = f"{says}: it is not summed over {told}, along which {name} is broadcast."
        finding = Finding("not summed", (label,), what, f"Sum it over {told}.")
        return finding, given.sum(axis=axes, keepdims=True).reshape(truth.shape)
    for term, axes in itertools.product(terms, _subsets(max(term.ndim for term in terms))):
        if max(axes) < term.ndim and close(term.sum(axis=axes).ravel(), given.ravel(), RTOL):
            what = f"{says}: it is summed over axis {', '.join(map(str, axes))}, which is not the one of the batch."
            return Finding("wrong axis", (label,), what, f"Sum over the axes along which {name} is broadcast."), truth
    return Finding("shape", (label,), f"{says}.", f"Return an array of {name}'s shape."), np.full_like(truth, np.nan)


def _spreads(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether one shape broadcasts to the other."""
    tail = large[len(large) - len(small) :]
    return len(small) <= len(large) and all(a in (1, b) for a, b in zip(small, tail, strict=True))


def _subsets(ndim: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, ndim + 1):
        yield from itertools.combinations(range(ndim), size)


def generic(
    run: Run, given: dict[str, Array], wrong: list[str], doubled: Callable[[], dict[str, Array]], steps: list[Step]
) -> list[Finding]:
    """Reasons for wrong gradients of a function of which only the recorded graph is known.

    `doubled` gives what backward returns for -2 * dy; `steps` are the intermediates in backward order.
    """
    if not wrong:
        return []
    single = {name: alone(run, given[name], run.truth[name]) for name in wrong}
    if any(reason is None or reason.kind == "weight" for reason in single.values()):
        path = one_path(run, given, wrong)
        if path is not None:
            return [path]
    labels = tuple([f"d{name}" for name in wrong])
    if any(reason is None for reason in single.values()):
        first = next((step for step in steps if not step.ok), None)
        reason = None if first is None else alone(run, first.given, first.truth)
        if first is not None and reason is not None and not_linear_in(given, doubled(), wrong) is None:
            what = f"{' and '.join(labels)} {'is' if len(wrong) == 1 else 'are'} wrong from the step {first.name} on:"
            return [Finding(reason.kind, labels, f"{what} {first.name} {reason.words}.", f"{reason.repair}.")]
        for name in wrong:
            single[name] = single[name] or _last_resort(given[name], run.truth[name], doubled().get(name))
    told: dict[str, list[str]] = {}
    for name, reason in single.items():
        if reason is not None:
            told.setdefault(reason.key, []).append(name)
    reasons = {reason.key: reason for reason in single.values() if reason is not None}
    return [say(reasons[key], [f"d{name}" for name in names]) for key, names in told.items()]


def say(reason: Factor, labels: list[str]) -> Finding:
    """A reason as a finding on these gradients."""
    words, repair = reason.words, reason.repair
    if len(labels) > 1:
        words, repair = plural(words), repair.replace(" its ", " their ").replace(" it ", " them ")
    return Finding(reason.kind, tuple(labels), f"{' and '.join(labels)} {words}.", f"{repair}.")


def swapped(run: Run, given: dict[str, Array], wrong: list[str]) -> Finding | None:
    """Two gradients that are each other's."""
    for a, b in itertools.combinations(wrong, 2):
        if close(given[a], run.truth[b], RTOL) and close(given[b], run.truth[a], RTOL):
            what = f"d{a} and d{b} are each other's: they come back in the wrong order."
            return Finding("swapped", (f"d{a}", f"d{b}"), what, f"Exchange d{a} and d{b}.")
    return None


def _reason(kind: str, words: str, repair: str) -> Factor:
    return Factor(kind, words, words, repair)


def alone(run: Run, given: Array, truth: Array) -> Factor | None:
    """Why one gradient, or one step, is wrong by itself: a number, a factor, a transposition."""
    if given.shape != truth.shape:
        return _reason("shape", f"has shape {given.shape} and should have {truth.shape}", "Sum or reshape it")
    if close(given, truth, 5e-7):
        return rounded(given, truth)
    if not np.any(given):
        return _reason("zero", "is zero everywhere", "Compute it by the chain rule")
    if not np.any(truth):
        return _reason("not zero", "should be zero, since the output doesn't depend on it", "Return zeros")
    if truth.ndim == 2 and truth.shape[0] == truth.shape[1] and close(given, truth.T, RTOL):
        return _reason("transposed", "is transposed", "Transpose it")
    k = float(np.sum(given * truth) / np.sum(truth * truth))
    if close(given, k * truth, RTOL):
        return _multiple(k, run)
    for factor, name in _factors(run, truth.shape):
        for power in (1, -1, 2, -2):
            with np.errstate(all="ignore"):
                guess = truth * factor**power
            if not np.isfinite(guess).all() or not np.any(guess):
                continue
            k = float(np.sum(given * guess) / np.sum(guess * guess))
            if abs(abs(k) - 1) < 1e-7 and close(given, k * guess, RTOL):
                square = "" if abs(power) == 1 else "**2"
                sign = "" if k > 0 else ", and has the wrong sign"
                if power < 0:
                    return _reason(
                        "factor missing", f"lacks the factor {name}{square}{sign}", f"Multiply it by {name}{square}"
                    )
                return _reason(
                    "factor", f"is multiplied by {name}{square}{sign}, which has no place there", "Take it out"
                )
    with np.errstate(all="ignore"):
        if np.any(truth == 0) and close(np.where(truth == 0, 0, given), truth, RTOL):
            words = "is right where it should not be 0, but is not 0 where forward cuts the gradient off"
            return _reason("mask missing", words, "Multiply it by the mask of forward's maximum, clip or where")
    return None


def _factors(run: Run, shape: tuple[int, ...]) -> Iterator[tuple[Array, str]]:
    """The values of forward, and what derivatives make of them, as factors for this shape."""
    named = {name: t.data for name, t in run.trace.named.items()} if run.trace else {}
    for name, value in {**{name: run.inputs[name] for name in run.floats}, **named}.items():
        array = np.asarray(value, dtype=float)
        try:
            np.broadcast_to(array, shape)
        except ValueError:
            continue
        if np.ptp(array) > 0:
            yield array, f"`{name}`"
            yield 1 - array, f"(1 - `{name}`)"
            yield 1 + array, f"(1 + `{name}`)"
            yield 1 - array * array, f"(1 - `{name}`**2)"


def rounded(given: Array, truth: Array) -> Factor:
    """The reason for a gradient that is right to some digits."""
    digits = int(-np.log10(np.max(np.abs(given - truth)) / np.max(np.abs(truth))))
    words = f"is right to {digits} digits only: something on the way is rounded to a narrower type"
    return _reason("precision", words, "Compute in float64: take out the cast to float32 or float16")


def not_linear(given: Array, doubled: Array | None) -> Factor | None:
    """The reason for a gradient that isn't linear in dy: `doubled` is what came back for -2 * dy."""
    if doubled is None or (doubled.shape == given.shape and close(doubled / -2, given, 1e-7)):
        return None
    if doubled.shape == given.shape and close(doubled, given, 1e-12):
        return _reason("not linear", "does not depend on dy at all", "Multiply by dy: the chain rule starts from it")
    words = "is not a linear function of dy: for -2 * dy it should come back -2 times as large, and does not"
    return _reason("not linear", words, "Use dy itself: no |dy|, dy**2 or clipping of it")


def not_linear_in(given: dict[str, Array], doubled: dict[str, Array], names: list[str]) -> Factor | None:
    """The first of these gradients' reasons for not being linear in dy."""
    return next(filter(None, (not_linear(given[name], doubled.get(name)) for name in names)), None)


def _last_resort(given: Array, truth: Array, doubled: Array | None) -> Factor:
    reason = not_linear(given, doubled)
    if reason is not None:
        return reason
    right = np.isclose(given, truth, rtol=1e-7, atol=1e-9 * np.max(np.abs(truth)))
    if np.any(right) and np.all(right | (given == 0)):
        rows = sorted({int(i[0]) for i in np.argwhere(~right)}) if truth.ndim else []
        shown = ", ".join(map(str, rows[:6])) + (", ..." if len(rows) > 6 else "")
        return _reason("lost rows", f"is 0 in row {shown}, and right elsewhere", "Fill in the whole array")
    if close(given, truth, 1e-3):
        return rounded(given, truth)
    index = tuple(int(i) for i in np.unravel_index(int(np.argmax(np.abs(given - truth))), truth.shape))
    got, should = f"{given[index]:.6g}", f"{truth[index]:.6g}"
    words = f"is wrong in a way not known here: at {list(index)} it is {got} and should be {should}"
    return _reason("unexplained", words, "Check it term by term against the chain rule")


def _lengths(run: Run) -> list[int]:
    """The lengths that a sum or a mean in this function may run over."""
    lengths = {length for value in run.inputs.values() for length in np.shape(value)} | {run.y.size}
    return sorted(lengths - {0, 1})


def _multiple(k: float, run: Run) -> Factor:
    """What a plain factor `k` on a whole gradient says."""
    if abs(k + 1) < 1e-8:
        return _reason("sign", "has the wrong sign", "Flip its sign")
    sign = ", and has the wrong sign" if k < 0 else ""
    for n in _lengths(run):
        if abs(abs(k) / n - 1) < 1e-7:
            return _reason(
                "sum for mean", f"is {n} times too large{sign}: a sum stands for a mean", f"Divide it by {n}"
            )
        if abs(abs(k) * n - 1) < 1e-7:
            return _reason(
                "mean for sum", f"is {n} times too small{sign}: a mean stands for a sum", f"Multiply it by {n}"
            )
        if abs(abs(k) * (n - 1) / n - 1) < 1e-8:
            return _reason("N-1", f"is divided by {n - 1} where {n} belongs{sign}", f"Divide by {n}")
    if abs(abs(k) - 0.5) < 1e-8:
        return _reason("factor", f"is half of what it should be{sign}: a factor 2 is missing", "Multiply it by 2")
    return _reason("weight", f"is {k:.6g} times what it should be", f"Divide it by {k:.6g}")


def one_path(run: Run, given: dict[str, Array], wrong: list[str]) -> Finding | None:
    """One edge of the recorded graph whose share, weighted otherwise, makes every wrong gradient come out."""
    if run.trace is None:
        return None
    trace = run.trace
    order = topological_order([trace.y.node])
    everything = {node for node in order if node.requires_grad}
    found = propagate([(trace.y.node, run.dy)], everything, create_graph=False)
    leaves = [trace.leaves[name].node for name in wrong]
    excess = [given[name] - run.truth[name] for name in wrong]
    edges = list(contributions(trace.y.node, found))
    largest: dict[Node, float] = {}
    for consumer, parent, _ in edges:
        largest[parent] = max(largest.get(parent, 0.0), float(np.max(np.abs(found[consumer]), initial=0)))
    # A value whose parts cancel, as the maximum does that softmax takes off, is a constant to most authors.
    constant = {node for node, size in largest.items() if np.max(np.abs(found[node]), initial=0) < 1e-12 * size} - set(
        leaves
    )
    for skipped in [set(), constant] if constant else [set()]:
        for consumer, parent, part in edges[-_MOST_EDGES:]:
            shares = _flow(order, parent, part, skipped)
            share = [shares.get(leaf, np.zeros(leaf.shape)) for leaf in leaves]
            power = sum(float(np.sum(s * s)) for s in share)
            if power == 0:
                continue
            k = sum(float(np.sum(s * e)) for s, e in zip(share, excess, strict=True)) / power
            if all(close(run.truth[n] + k * s, given[n], RTOL) for n, s in zip(wrong, share, strict=True)):
                labels = tuple([f"d{name}" for name in wrong])
                return _path_finding(labels, trace.label(parent), trace.label(consumer), 1 + k, run)
    return None


_MOST_EDGES = 300


def _flow(order: list[Node], start: Node, gradient: Array, skipped: set[Node]) -> dict[Node, Array]:
    """What flows back from one node to all below it, but for what passes `skipped` nodes."""
    reached: dict[Node, Array] = {start: gradient}
    for node in reversed(order):
        if node in reached and node not in skipped:
            for parent, part in parts_of(node, reached[node]):
                reached[parent] = reached[parent] + part if parent in reached else part
    return reached


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
