"""What is wrong with the gradient of a function of which nothing is known but its recorded graph."""

from __future__ import annotations

import itertools

import numpy as np

from ...engine.node import Array, Node
from .matching import Step, vanishing, wrong_entries
from .mistakes import RTOL, SIGN, Mistake, listed
from .normalisation import close
from .run import Run, Trace
from .verdict import Finding


def shape_finding(name: str, given: Array, truth: Array, terms: list[Array]) -> tuple[Finding, Array | None]:
    """What a gradient of the wrong shape says, and the gradient brought into shape where it can be.

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
        over = "axis " + ", ".join(map(str, axes))
        what = f"{says}: it is not summed over {over}, along which {name} is broadcast."
        finding = Finding("not summed", (label,), what, f"Sum it over {over}.")
        return finding, given.sum(axis=axes, keepdims=True).reshape(truth.shape)
    for term in terms:
        for size in range(1, term.ndim + 1):
            for axes in itertools.combinations(range(term.ndim), size):
                if close(term.sum(axis=axes).ravel(), given.ravel(), RTOL):
                    over = ", ".join(map(str, axes))
                    what = f"{says}: it is summed over axis {over}, which is not the one of the batch."
                    repair = f"Sum over the axes along which {name} is broadcast."
                    return Finding("wrong axis", (label,), what, repair), None
    return Finding("shape", (label,), f"{says}.", f"Return an array of {name}'s shape."), None


def _spreads(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    """Whether one shape broadcasts to the other."""
    tail = large[len(large) - len(small) :]
    return len(small) <= len(large) and all(a in (1, b) for a, b in zip(small, tail, strict=True))


def generic(run: Run, given: dict[str, Array], steps: list[Step]) -> list[Finding]:
    """Reasons for wrong gradients; `steps` are the intermediates in backward order."""
    single = {name: alone(run, g, run.truth[name]) for name, g in given.items()}
    labels = tuple([f"d{name}" for name in given])
    if any(reason is None or reason.kind == "weight" for reason in single.values()):
        path = one_path(run, given)
        if path is not None:
            return [path]
        first = next((step for step in steps if not step.ok), None)
        reason = None if first is None else alone(run, first.given, first.truth)
        if first is not None and reason is not None:
            what = f"{listed(labels)} {'is' if len(labels) == 1 else 'are'} wrong from the step {first.name} on:"
            return [Finding(reason.kind, labels, f"{what} {first.name} {reason.words}.", f"{reason.repair}.")]
    reasons = {name: reason or _unknown(run, name, given[name]) for name, reason in single.items()}
    shared: dict[str, list[str]] = {}
    for name, known in reasons.items():
        shared.setdefault(known.key, []).append(name)
    return [reasons[names[0]].of([f"d{name}" for name in names]) for names in shared.values()]


def swapped(run: Run, given: dict[str, Array]) -> Finding | None:
    """Two gradients that are each other's."""
    for a, b in itertools.combinations(given, 2):
        if close(given[a], run.truth[b], RTOL) and close(given[b], run.truth[a], RTOL):
            what = f"d{a} and d{b} are each other's: they come back in the wrong order."
            return Finding("swapped", (f"d{a}", f"d{b}"), what, f"Exchange d{a} and d{b}.")
    return None


def alone(run: Run, given: Array, truth: Array) -> Mistake | None:
    """Why one gradient, or one step, is wrong by itself: a number, a transposition, a mask."""
    if given.shape != truth.shape:
        return Mistake("shape", f"has shape {given.shape} and should have {truth.shape}", "Sum or reshape it")
    if not np.any(given):
        return Mistake("zero", "is zero everywhere", "Compute it by the chain rule")
    if not np.any(truth):
        return Mistake("not zero", "should be zero, since the output doesn't depend on it", "Return zeros")
    if truth.ndim == 2 and truth.shape[0] == truth.shape[1] and close(given, truth.T, RTOL):
        return Mistake("transposed", "is transposed", "Transpose it")
    k = float(np.sum(given * truth) / np.sum(truth * truth))
    if close(given, k * truth, 1e-9):
        return _multiple(k, run)
    if close(given, truth, 1e-3):
        digits = int(-np.log10(np.max(np.abs(given - truth)) / np.max(np.abs(truth))))
        words = f"is right to {digits} digits only: a number is off, or rounded to a narrower type on the way"
        return Mistake("precision", words, "Compute in float64, and look for a constant cut short")
    with np.errstate(all="ignore"):
        if np.any(truth == 0) and close(np.where(truth == 0, 0, given), truth, RTOL):
            words = "is right where it should not be 0, but is not 0 where forward cuts the gradient off"
            return Mistake("mask missing", words, "Multiply it by the mask of forward's maximum, clip or where")
    return None


def _multiple(k: float, run: Run) -> Mistake:
    """What a plain factor `k` on a whole gradient says."""
    sign = ", and has the wrong sign" if k < 0 else ""
    if abs(k + 1) < 1e-8:
        return SIGN
    for n in _lengths(run):
        if abs(abs(k) / n - 1) < 1e-7:
            words = f"is {n} times too large{sign}: a sum stands where a mean belongs, or 1 / {n} is missing"
            return Mistake("sum for mean", words, f"Divide it by {n}, the length of an axis")
        if abs(abs(k) * n - 1) < 1e-7:
            words = f"is {n} times too small{sign}: a mean stands where a sum belongs"
            return Mistake("mean for sum", words, "Sum there, and don't average")
        if abs(abs(k) * (n - 1) / n - 1) < 1e-8:
            return Mistake("N-1", f"is divided by {n - 1} where {n} belongs{sign}", f"Divide by {n}")
    if abs(abs(k) - 0.5) < 1e-8:
        return Mistake("factor", f"is half of what it should be{sign}: a factor 2 is missing", "Multiply it by 2")
    return Mistake("weight", f"is {k:.8g} times what it should be", f"Divide it by {k:.8g}")


def _lengths(run: Run) -> list[int]:
    """The lengths that a sum or a mean in this function may run over."""
    lengths = {length for value in run.inputs.values() for length in np.shape(value)} | {run.y.size}
    return sorted(lengths - {0, 1})


def _unknown(run: Run, name: str, given: Array) -> Mistake:
    """Where a gradient is wrong, if not why."""
    truth = run.truth[name]
    wrong = wrong_entries(given, truth, run.noise[name], vanishing(run, name))
    places = where(wrong, run.inputs[name])
    if np.any(~wrong) and np.all(~wrong | (given == 0)):
        return Mistake("lost rows", f"is 0 {places}, and right elsewhere", "Fill in the whole array")
    index = tuple(
        int(i) for i in np.unravel_index(int(np.argmax(np.where(wrong, np.abs(given - truth), 0))), wrong.shape)
    )
    got, should = f"{given[index]:.6g}", f"{truth[index]:.6g}"
    words = (
        f"is wrong {places}: at {list(index)} it is {got} and should be {should}"
        if index
        else f"is {got} and should be {should}"
    )
    return Mistake("unexplained", words, "Check it term by term against the chain rule")


def where(wrong: Array, value: Array) -> str:
    """Where a gradient is wrong: on a diagonal, at a border, in rows or columns, where the input has a sign."""
    if np.all(wrong) or not wrong.ndim:
        return "everywhere"
    if wrong.ndim == 2:
        rows, columns = np.indices(wrong.shape)
        for words, mask in (
            ("on the diagonal", rows == columns),
            ("off the diagonal", rows != columns),
            ("above the diagonal", rows < columns),
            ("below the diagonal", rows > columns),
        ):
            if np.array_equal(wrong, mask):
                return words
    inner = np.zeros(wrong.shape, bool)
    inner[tuple([slice(1, -1) if length > 2 else slice(None) for length in wrong.shape])] = True
    if np.array_equal(wrong, ~inner):
        return "at the borders"
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
    for words, mask in (("< 0", value < 0), ("> 0", value > 0), ("== 0", value == 0)):
        if np.array_equal(wrong, mask):
            return f"where its input is {words}"
    return f"in {np.count_nonzero(wrong)} of {wrong.size} entries"


def one_path(run: Run, given: dict[str, Array]) -> Finding | None:
    """One edge of the recorded graph whose share, weighted otherwise, makes every wrong gradient come out."""
    if run.trace is None:
        return None
    trace = run.trace
    found, edges = trace.flow(trace.y.node, run.dy)
    leaves = {name: trace.leaves[name].node for name in given}
    excess = {name: g - run.truth[name] for name, g in given.items()}
    # A value whose parts cancel, as the maximum does that softmax takes off, is a constant to most authors.
    largest: dict[Node, float] = {}
    for consumer, parent, _ in edges:
        largest[parent] = max(largest.get(parent, 0.0), float(np.max(np.abs(found[consumer]), initial=0)))
    constant = [n for n, size in largest.items() if np.max(np.abs(found[n]), initial=0) < 1e-12 * size]
    constant = [node for node in constant if node not in leaves.values()]
    for cut in [[], constant] if constant else [[]]:
        for consumer, parent, part in edges[:_MOST_EDGES]:
            shares, _ = trace.flow(parent, part, cut)
            share = {name: shares.get(leaf, np.zeros(leaf.shape)) for name, leaf in leaves.items()}
            power = sum(float(np.sum(s * s)) for s in share.values())
            if power == 0:
                continue
            k = sum(float(np.sum(s * excess[name])) for name, s in share.items()) / power
            if all(close(run.truth[n] + k * s, given[n], RTOL) for n, s in share.items()):
                finding = _path_finding(tuple([f"d{n}" for n in given]), trace, parent, consumer, 1 + k, run)
                if finding is not None:
                    return finding
    return None


_MOST_EDGES = 300


def _path_finding(
    labels: tuple[str, ...], trace: Trace, parent: Node, consumer: Node, weight: float, run: Run
) -> Finding | None:
    """What the weight of one path says, where it is one that people write."""
    start, end = trace.label(parent), trace.label(consumer)
    way = f"the path from `{start}` to `{end}` in forward"
    both, carries = listed(labels), "carries" if len(labels) == 1 else "carry"
    if abs(weight) < 1e-7:
        what = f"{both} {carries} 0.00 of {way}: that term is missing."
        return Finding("missing path", labels, what, f"Add what flows back from `{end}` to `{start}`.")
    if abs(weight + 1) < 1e-7:
        return Finding("sign", labels, f"{both} {carries} {way} with the wrong sign.", "Flip that term's sign.")
    for length in _lengths(run):
        if abs(weight / length - 1) < 1e-7:
            what = f"{both} {carries} {length} times {way}: a sum over {length} values stands where a mean belongs."
            return Finding("sum for mean", labels, what, f"Divide that term by {length}.")
        if abs(weight * length - 1) < 1e-7:
            what = f"{both} {carries} 1 / {length} of {way}: a mean over {length} values stands where a sum belongs."
            return Finding("mean for sum", labels, what, "Sum there, and don't average.")
    for simple in (2, 3, 4, 0.5, 0.25):
        if abs(weight / simple - 1) < 1e-7:
            return Finding(
                "factor", labels, f"{both} {carries} {simple} times {way}.", f"Divide that term by {simple}."
            )
    what = f"{both} {carries} {weight:.7g} times {way}, which should count once."
    return Finding("weight", labels, what, f"Divide that term by {weight:.7g}.")
