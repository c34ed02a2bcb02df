"""What a backward pass returned, matched with what each array should be the gradient of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine.node import Array
from .paths import canonical, plain
from .run import Pair, Run
from .verdict import Finding

TOLERANCE = 1e-9  # of a gradient's largest entry; more only where rounding alone carries a right one further


@dataclass
class Returned:
    """What backward returned, sorted: gradients of inputs by the inputs' names, other arrays, complaints."""

    gradients: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Array] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Step:
    """An intermediate gradient of a backward pass beside the true one.

    `part` names the consumer through which `truth` is the share that comes back, where the author keeps
    shares apart. `returned` is false for a local variable of backward.
    """

    name: str
    given: Array
    truth: Array
    ok: bool
    returned: bool
    part: str = ""


def sort(pair: Pair, run: Run) -> Returned:
    """Match what came back with the inputs, by place or by name."""
    out, returned = Returned(), run.returned
    if isinstance(returned, dict):
        inputs = {plain(name): name for name in pair.names}
        for key, value in returned.items():
            name = next((inputs[n] for n in _derivative_of(str(key)) if n in inputs), None)
            array = _array(str(key), value, out)
            if array is not None:
                (out.others if name is None or name in out.gradients else out.gradients)[name or str(key)] = array
    else:
        listed = list(returned) if isinstance(returned, tuple | list) else [returned]
        while len(listed) > len(pair.names) and listed[-1] is None:
            listed.pop()  # for an argument left to its default
        wanted = pair.names if len(listed) == len(pair.names) else pair.floats
        if len(listed) > len(wanted):
            what = f"backward returned {len(listed)} gradients for {len(wanted)} inputs ({', '.join(wanted)})."
            out.findings.append(Finding("count", (), what, _ONE_EACH))
        for name, value in zip(wanted, listed, strict=False):
            if value is None:
                continue
            if name in pair.floats:
                array = _array(f"d{name}", value, out)
                if array is not None:
                    out.gradients[name] = array
            else:
                kind = getattr(pair.inputs[name], "dtype", type(pair.inputs[name]).__name__)
                out.notes.append(f"d{name} is not judged: {name} is no array of floats ({kind}).")
    refused = {label for finding in out.findings for label in finding.gradients}
    for name in pair.floats:
        if name not in out.gradients and f"d{name}" not in refused:
            if np.any(run.truth[name]) and not _constant(name, pair.inputs[name]):
                what = f"backward returned no gradient for {name}."
                out.findings.append(Finding("count", (f"d{name}",), what, _ONE_EACH))
            else:
                out.notes.append(f"No gradient came back for {name}, which is taken for a constant.")
    return out


_ONE_EACH = "Return one gradient an input, in forward's order."


def _constant(name: str, value: Array) -> bool:
    """Whether backward may leave an input out: by its name, or as labels, masks and one-hot rows are whole numbers."""
    words = ("running", "moving", "population", "eps", "target", "label", "mask")
    return any(word in name.lower() for word in words) or bool(np.all(value == np.round(value)))


def _derivative_of(key: str) -> list[str]:
    """What `key` may be the gradient of: `dx`, `grad_x`, `x_grad`, `dL_dx` of x; `x` itself comes last."""
    short = plain(key)
    prefixes = ("dlossd", "dld", "gradient", "grad", "delta", "d", "g")
    found = [short[len(prefix) :] for prefix in prefixes if short.startswith(prefix)]
    found += [short[: -len(suffix)] for suffix in ("gradient", "grad") if short.endswith(suffix)]
    return [name for name in [*found, short] if name]


def _array(label: str, value: Any, out: Returned) -> Array | None:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        what = f"{label} is a {type(value).__name__}, expected an array of floats."
        out.findings.append(Finding("type", (label,), what, "Return a NumPy array."))
        return None
    return array.astype(np.float64)


def wrong_entries(given: Array, truth: Array, noise: Any = 0.0, size: float = 0.0) -> Array:
    """Where a gradient is not the true one, up to rounding; `size` is that of terms that cancel in it."""
    if given.shape != truth.shape:
        return np.ones(given.shape, bool)
    size = max(float(np.max(np.abs(truth), initial=0)), size)
    with np.errstate(all="ignore"):
        return np.asarray(~(np.abs(given - truth) <= TOLERANCE * size + noise) & (noise != np.inf))


def right(given: Array, truth: Array, noise: Any = 0.0, size: float = 0.0) -> bool:
    """Whether a gradient is the true one, up to rounding."""
    return given.shape == truth.shape and not np.any(wrong_entries(given, truth, noise, size))


def right_in(run: Run, name: str, given: Array | None = None) -> bool:
    """Whether a gradient, by default the one returned, is right in a run; one that should be 0 is measured by dy."""
    given = run.back.gradients.get(name) if given is None else given
    return given is not None and right(given, run.truth[name], run.noise[name], vanishing(run, name))


def vanishing(run: Run, name: str) -> float:
    """The size that a gradient is measured by where it is 0 itself, else 0."""
    if np.any(np.abs(run.truth[name]) > 1e-12):
        return 0.0
    return 1e-3 * float(np.max(np.abs(run.dy), initial=0))


def steps(run: Run, aliased: bool) -> list[Step]:
    """The intermediates in backward order: those of a returned dict, and backward's own variables.

    `aliased` matches names by what normalisations call their values.
    """
    trace, rows = run.trace, list[tuple[int, Step]]()
    if trace is None:
        return []
    found, shares = trace.flow(trace.y.node, run.dy)
    known = {plain(n): t.node for n, t in trace.named.items() if t.node in found and t.node is not trace.y.node}
    roles = {canonical(name): name for name in known if canonical(name) and aliased}
    inputs = {plain(name) for name in run.inputs}
    for key, value in (run.locals | run.back.others).items():
        targets = [name for name in _derivative_of(key)[:-1] if name not in inputs]
        target = next((name for t in targets for name in (t, roles.get(canonical(t))) if name in known), None)
        if target is not None and value.dtype.kind in "fiu":
            node = known[target]
            parts = [(trace.label(consumer), part) for consumer, parent, part in shares if parent is node]
            size = 1e-3 * max([float(np.max(np.abs(part), initial=0)) for _, part in parts], default=0.0)
            given = value.reshape(node.shape) if value.size == found[node].size else value
            # Authors call the whole gradient or the share through one consumer by the value's name.
            tries = [("", found[node], size), *[(consumer, part, 0.0) for consumer, part in parts if len(parts) > 1]]
            fits = [(part, truth) for part, truth, size in tries if right(given, truth, size=size)]
            part, truth = (fits or [("", found[node])])[0]
            rows.append((trace.order.index(node), Step(key, given, truth, bool(fits), key in run.back.others, part)))
    return [step for _, step in sorted(rows, key=lambda row: -row[0])]
