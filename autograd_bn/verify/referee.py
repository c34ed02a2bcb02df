"""The referee: is a hand-written backward pass right, and if not, where is the mistake?"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from ..engine.node import Array
from .diagnosis import Explanation, explain_dx, explain_sum, tell
from .factors import RTOL, Dictionary, Finding
from .generic import generic, nonlinear, not_linear, one_path, shape_finding, swapped
from .normalisation import Normalisation, canonical, close, recognise, telling_inputs
from .truth import Pair, Run, Unjudgeable

TOLERANCE = 1e-9  # of a gradient's largest entry; more only where rounding alone carries a right one further


@dataclass(frozen=True)
class Row:
    """One judged gradient: `what` is "gradient" or "intermediate", errors are of the worst entry."""

    name: str
    what: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the referee found. True in a condition when everything is right.

    `rows` has an entry for each gradient, and for each intermediate gradient that could be matched with the
    forward pass, in backward order. `diagnosis` holds the findings, the most telling first: each has
    `kind`, `gradients`, `what` and `repair`, and reads as a sentence or two. `notes` say what else a reader
    should know, such as how the truth was found.
    """

    ok: bool
    rows: tuple[Row, ...]
    diagnosis: tuple[Finding, ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first_wrong(self) -> str | None:
        """The first wrong step in the order of the backward pass, where steps could be judged."""
        return next((row.name for row in self.rows if row.what == "intermediate" and not row.ok), None)

    def __str__(self) -> str:
        lines = [self._headline()]
        many = len(self.diagnosis) > 1
        for i, finding in enumerate(self.diagnosis, 1):
            lines += [f"{i}. {finding.what}" if many else finding.what]
            lines += [f"   Repair: {finding.repair}" if many else f"Repair: {finding.repair}"] if finding.repair else []
        if self.first_wrong is not None:
            lines.append(f"First wrong step in backward order: {self.first_wrong}.")
        lines += ["", *_table(self.rows)]
        lines += ["", *[f"Note: {note}" for note in self.notes]] if self.notes else []
        return "\n".join(lines)

    __repr__ = __str__

    def _headline(self) -> str:
        wrong = [row.name for row in self.rows if row.what == "gradient" and not row.ok]
        total = sum(row.what == "gradient" for row in self.rows)
        if self.ok:
            return f"RIGHT: {'the gradient is' if total == 1 else f'all {total} gradients are'} right."
        if not wrong:
            return "WRONG, though the gradients of the inputs are right."
        return f"WRONG: {', '.join(wrong)} ({len(wrong)} of {total} gradients)."

    def _repr_html_(self) -> str:
        escape = html.escape
        items = "".join(
            f"<li>{escape(f.what)}{f' <b>Repair:</b> {escape(f.repair)}' if f.repair else ''}</li>"
            for f in self.diagnosis
        )
        cells = "".join(
            f"<tr><td><code>{escape(r.name)}</code></td><td>{r.shape}</td><td>{_figure(r.max_abs)}</td>"
            f"<td>{_figure(r.max_rel)}</td><td>{'right' if r.ok else '<b>wrong</b>'}</td><td>{escape(r.note)}</td></tr>"
            for r in self.rows
        )
        first = (
            f"<p>First wrong step in backward order: <code>{escape(self.first_wrong)}</code>.</p>"
            if self.first_wrong
            else ""
        )
        notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in self.notes)
        head = "".join(f"<th>{h}</th>" for h in ("gradient", "shape", "max |error|", "relative", "verdict", ""))
        return (
            f"<div><p><b>{escape(self._headline())}</b></p><ol>{items}</ol>{first}"
            f"<table><tr>{head}</tr>{cells}</table>{notes}</div>"
        )

    def to_json(self) -> str:
        """The verdict as JSON, for graders."""
        return json.dumps(
            {
                "ok": self.ok,
                "rows": [asdict(row) for row in self.rows],
                "diagnosis": [asdict(finding) for finding in self.diagnosis],
                "first_wrong": self.first_wrong,
                "notes": list(self.notes),
            },
            indent=2,
        )


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _table(rows: Sequence[Row]) -> list[str]:
    head = ("gradient", "shape", "max |error|", "relative", "verdict")
    cells = [
        (
            row.name if row.what == "gradient" else f"  {row.name}",
            "x".join(map(str, row.shape)) or "scalar",
            _figure(row.max_abs),
            _figure(row.max_rel),
            ("right" if row.ok else "wrong") + (f": {row.note}" if row.note else ""),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    aligned = [
        f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  {line[4]}"
        for line in [head, *cells]
    ]
    return [aligned[0], "-" * len(aligned[0]), *aligned[1:]]


def check_backward(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> Verdict:
    """Judge a hand-written backward pass against the forward pass it belongs to.

    The pair is as courses and papers have it: `y, cache = forward(*inputs)` and `grads = backward(dy, cache)`,
    in NumPy. `grads` is a tuple with one gradient an input, in their order (a single array for a single input;
    None, or nothing at the end, for an input that needs no gradient), or a dict: `dx` or `grad_x` is the
    gradient of the input `x`, and any other such name that of a value with that name in `forward`, an
    intermediate. `names` are the inputs' names, by default those of forward's parameters.

    The truth comes from running `forward` itself on tensors, confirmed by a difference of its output; where
    it can't be recorded, from central differences with Richardson's extrapolation, and the verdict says so.
    It is judged in float64 with a random cotangent, at the inputs given, at others near them, and if it is a
    normalisation at inputs on which every mistake shows: eps of the variance's size, gamma far from 1.
    A gradient is right if no entry is further from the truth than 1e-9 of the largest (1e-6 by differences).

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
    >>> verdict.ok, str(verdict.diagnosis[0])
    (False, 'dw has the wrong sign. Return -dw.')
    """
    pair = Pair(forward, backward, inputs, names)
    rng = np.random.default_rng([seed, 9157])  # a stream of its own: the caller's x may come from the same seed
    given = pair.run(pair.inputs, rng)
    runs = [given]
    norm = None
    if given.failure is None:
        near = _another(pair, _jittered(pair, rng), rng)
        runs += [near] if near is not None else []
        norm = recognise(near or given)
        if norm is not None:
            told = _another(pair, telling_inputs(norm, near.inputs if near is not None else pair.inputs, rng), rng)
            told_norm = recognise(told) if told is not None else None
            if told is not None and told_norm is not None:
                runs, norm = [*runs, told], told_norm
    return _verdict(pair, runs, norm)


def _jittered(pair: Pair, rng: np.random.Generator) -> dict[str, Any]:
    """Inputs near the caller's, in which no two entries are equal: a gamma of ones hides mistakes."""
    moved = dict(pair.inputs)
    for name in pair.floats:
        value = pair.inputs[name]
        noise = rng.uniform(0.5, 1.5, size=value.shape)
        moved[name] = value * noise if np.any(value) else noise - 1
    return moved


def _another(pair: Pair, inputs: dict[str, Any], rng: np.random.Generator) -> Run | None:
    """A run on inputs that the caller didn't give, where the pair can take them."""
    try:
        run = pair.run(inputs, rng)
    except Unjudgeable:
        return None
    return run if run.failure is None else None


# --- What came back ----------------------------------------------------------------------------------------


@dataclass
class Returned:
    """What backward returned, sorted: gradients of inputs, named intermediates, and complaints."""

    gradients: dict[str, Array]
    intermediates: dict[str, Array]
    findings: list[Finding]
    notes: list[str]


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def _derivative_of(key: str) -> list[str]:
    """What `key` may be the gradient of: `dx`, `grad_x`, `x_grad`, `dL_dx` of x."""
    plain = _plain(key)
    found = [
        plain[len(prefix) :]
        for prefix in ("dlossd", "dld", "gradient", "grad", "delta", "d", "g")
        if plain.startswith(prefix)
    ]
    found += [plain[: -len(suffix)] for suffix in ("gradient", "grad") if plain.endswith(suffix)]
    return [name for name in found if name]


def _sorted(pair: Pair, run: Run) -> Returned:
    out = Returned({}, {}, [], [])
    grads = run.returned
    if isinstance(grads, dict):
        plain = {_plain(name): name for name in pair.names}
        for key, value in grads.items():
            name = next((plain[n] for n in [*_derivative_of(str(key)), _plain(str(key))] if n in plain), None)
            array = _array(str(key), value, out)
            if array is None:
                continue
            if name is not None and name not in out.gradients:
                out.gradients[name] = array
            else:
                out.intermediates[str(key)] = array
    else:
        listed = list(grads) if isinstance(grads, tuple | list) else [grads]
        wanted = pair.names if len(listed) == len(pair.names) else pair.floats
        if len(listed) > len(wanted):
            what = f"backward returned {len(listed)} gradients for {len(wanted)} inputs ({', '.join(wanted)})."
            out.findings.append(Finding("count", (), what, "Return one gradient an input, in forward's order."))
        for name, value in zip(wanted, listed, strict=False):
            if name not in pair.floats:
                if value is not None:
                    kind = pair.inputs[name]
                    kind = kind.dtype if isinstance(kind, np.ndarray) else type(kind).__name__
                    out.notes.append(f"d{name} is not judged: {name} is no array of floats ({kind}).")
                continue
            array = None if value is None else _array(f"d{name}", value, out)
            if array is not None:
                out.gradients[name] = array
    for name in pair.floats:
        if name in out.gradients or any(f"d{name}" in f.gradients for f in out.findings):
            continue
        if np.any(run.truth[name]) and not _is_statistic(name):
            what = f"backward returned no gradient for {name}."
            out.findings.append(
                Finding("count", (f"d{name}",), what, "Return one gradient an input, in forward's order.")
            )
        else:
            out.notes.append(f"No gradient came back for {name}, which is taken for a constant.")
    return out


def _is_statistic(name: str) -> bool:
    return any(word in name.lower() for word in ("running", "moving", "population", "eps"))


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


def _error(given: Array, truth: Array, size: float = 0.0) -> tuple[float, float]:
    """The worst entry's error, and that over the truth's largest entry, which has none where it vanishes."""
    if given.shape != truth.shape:
        return np.nan, np.nan
    with np.errstate(all="ignore"):
        absolute = float(np.max(np.abs(given - truth), initial=0))
    largest = float(np.max(np.abs(truth), initial=0))
    return absolute, absolute / largest if largest > 1e-12 * size else np.nan


def _right(given: Array, truth: Array, noise: float, size: float = 0.0) -> bool:
    if given.shape != truth.shape or not np.isfinite(given).all():
        return False
    size = max(float(np.max(np.abs(truth), initial=0)), size)
    tolerance = noise * size if noise == 1e-6 else TOLERANCE * size + noise
    return float(np.max(np.abs(given - truth), initial=0)) <= tolerance


# --- The verdict -------------------------------------------------------------------------------------------


def _verdict(pair: Pair, runs: list[Run], norm: Normalisation | None) -> Verdict:
    first = runs[0]
    if first.failure is not None:
        finding = Finding("raised", (), f"{first.failure}.", "")
        empty = tuple([_unreturned(first, name, "not computed") for name in pair.floats])
        return Verdict(False, empty, (finding,), ())
    returned = [_sorted(pair, run) for run in runs]
    findings, notes = list(returned[0].findings), list(returned[0].notes)
    rows: list[Row] = []
    wrong: list[str] = []
    for name in pair.floats:
        judged = [(run, r.gradients[name]) for run, r in zip(runs, returned, strict=True) if name in r.gradients]
        if not judged:
            if any(f"d{name}" in f.gradients for f in findings):
                rows.append(_unreturned(first, name, "missing"))
            continue
        bad = [(run, g) for run, g in judged if not _right(g, run.truth[name], run.noise[name], _size(run, name))]
        run, g = bad[0] if bad else judged[0]
        note = ""
        if bad and run is not first:
            note = "shows at other inputs than those given"
        if g.shape != run.truth[name].shape:
            note = f"shape {g.shape} for {name} of shape {run.truth[name].shape}"
        elif not np.isfinite(g).all():
            note = "not finite"
        size = _size(run, name)
        if bad and size and not note:
            note = "should be 0"
        rows.append(Row(f"d{name}", "gradient", g.shape, *_error(g, run.truth[name], size), not bad, note))
        if bad:
            wrong.append(name)
    shown = [i for i in range(len(runs)) if _shows(runs[i], returned[i], wrong)] or [0]
    if wrong:
        last = shown[-1]
        findings += _diagnose(pair, runs[last], returned[last], wrong, norm if last == len(runs) - 1 else None)
    steps = _steps(runs[shown[0]], returned[shown[0]], recognise(runs[shown[0]]) if norm else None, bool(wrong))
    findings += [
        Finding(
            "dy overwritten" if what == "dy" else "overwritten",
            (),
            f"{words}.",
            "Work on a copy: a = a * b, not a *= b.",
        )
        for what, words in first.faults
    ]
    rows += [step for step in steps if step.what == "intermediate"]
    if first.why_differences:
        notes.append(f"{first.why_differences}, so the truth is by central differences, to 1e-6.")
    if (
        norm is not None
        and norm.spelling == "standard"
        and any(s.ok and canonical(s.name.lstrip("d_")) == "mean" for s in steps)
    ):
        notes.append(
            "dmean's term through the variance is a multiple of sum(x - mean), which is 0 for every input: "
            "with it or without it, dmean is right."
        )
    returned_wrong = any(not row.ok and row.note != "local" for row in rows)
    return Verdict(not findings and not returned_wrong, tuple(rows), tuple(findings), tuple(dict.fromkeys(notes)))


def _unreturned(run: Run, name: str, note: str) -> Row:
    return Row(f"d{name}", "gradient", run.truth[name].shape, np.nan, np.nan, False, note)


def _size(run: Run, name: str) -> float:
    """What a gradient is measured against where it vanishes itself: the terms that cancel in it."""
    if np.any(np.abs(run.truth[name]) > 1e-12):
        return 0.0
    return 1e-3 * float(np.max(np.abs(run.dy), initial=0))


def _shows(run: Run, returned: Returned, wrong: list[str]) -> bool:
    return all(
        name in returned.gradients
        and not _right(returned.gradients[name], run.truth[name], run.noise[name], _size(run, name))
        for name in wrong
    )


def _diagnose(pair: Pair, run: Run, returned: Returned, wrong: list[str], norm: Normalisation | None) -> list[Finding]:
    findings: list[Finding] = []
    fixed: dict[str, Array] = {}
    for name in wrong:
        g = returned.gradients[name]
        if not np.isfinite(g).all():
            bad = g[~np.isfinite(g)].flat[0]
            findings.append(
                Finding(
                    "not finite",
                    (f"d{name}",),
                    f"d{name} has {bad} in it.",
                    "Look for a division by zero or a root of a negative number.",
                )
            )
            continue
        if g.shape != run.truth[name].shape:
            terms = {"dy": run.dy}
            if norm is not None:
                terms = {"dy": run.dy, "dy * xhat": run.dy * norm.xhat}
            swap = next(
                (o for o in wrong if o != name and run.truth[o].shape == g.shape and close(g, run.truth[o], RTOL)),
                None,
            )
            if swap is None:
                finding, g = shape_finding(name, g, run.truth[name], terms)
                findings += [finding] if finding else []
            if not np.isfinite(g).all() or _right(g, run.truth[name], run.noise[name]):
                continue
        fixed[name] = g
    if not fixed:
        return findings
    left = list(fixed)
    exchanged = swapped(run, fixed, left)
    if exchanged is not None:
        findings.append(exchanged)
        left = [name for name in left if f"d{name}" not in exchanged.gradients]

    @cache
    def doubled() -> dict[str, Array]:
        again = pair.run(run.inputs, np.random.default_rng(0), -2 * run.dy)
        return _sorted(pair, again).gradients if again.failure is None else {}

    explained: list[Explanation] = []
    dictionary = None if norm is None else Dictionary(norm)
    roles = {} if norm is None else {norm.x_name: "dx", norm.gamma_name: "dgamma", norm.beta_name: "dbeta"}
    if norm is not None and any(name not in roles for name in left):
        joint = one_path(run, fixed, left)
        if joint is not None:
            return [*findings, joint]
    for name in list(left):
        role = roles.get(name)
        if dictionary is None or role is None or close(fixed[name], run.truth[name], 5e-7):
            continue
        found = explain_dx(dictionary, fixed[name]) if role == "dx" else explain_sum(dictionary, role, fixed[name])
        if found is None or not 0.5 < found.cost < 4:
            continue
        left.remove(name)
        if found.cost >= 3 and not_linear(returned.gradients[name], doubled().get(name)):
            findings.append(nonlinear(f"d{name}"))
        else:
            explained.append(found)
    if norm is not None:
        findings += tell(norm, explained)
    return findings + generic(run, fixed, left, doubled)


def _steps(run: Run, returned: Returned, norm: Normalisation | None, wrong: bool) -> list[Row]:
    """The named intermediates in backward order: those in a returned dict, and backward's own variables."""
    named: dict[str, tuple[float, Array, list[tuple[str, Array]]]] = {}
    if run.trace is not None:
        ranks = run.trace.rank()
        for name, (total, parts) in run.trace.named_gradients(run.dy).items():
            if run.trace.named[name].node is run.trace.y.node:
                continue  # what backward is given
            named[_plain(name)] = (ranks[run.trace.named[name].node], total, parts)
    if norm is not None:
        order = {"xhat": 0.9, "invstd": 0.8, "std": 0.7, "var": 0.6, "mean": 0.3}
        height = max([r for r, _, _ in named.values()], default=1)
        for role, value in norm.intermediates().items():
            if not any(canonical(name) == role for name in named):
                named[role] = (order[role] * height, value, [])
    inputs = {_plain(name) for name in run.inputs}
    found: list[tuple[float, Row]] = []
    sources = [(key, value, "") for key, value in returned.intermediates.items()]
    if wrong:
        taken = set(returned.intermediates)
        sources += [(key, value, "local") for key, value in run.locals.items() if key not in taken]
    for key, value, source in sources:
        targets = [name for name in _derivative_of(key) if name not in inputs]
        target = next((t for t in targets if t in named), None)
        if target is None and norm is not None:
            roles = {canonical(name): name for name in named if canonical(name)}
            target = next((roles[canonical(t)] for t in targets if canonical(t) in roles), None)
        if target is None:
            continue
        rank, total, parts = named[target]
        row = _step(key, value, total, parts, source)
        if row is not None:
            found.append((rank, row))
    return [row for _, row in sorted(found, key=lambda item: -item[0])]


def _step(key: str, value: Array, total: Array, parts: list[tuple[str, Array]], source: str) -> Row | None:
    if value.dtype.kind not in "fiu":
        return None
    fit = value.reshape(total.shape) if value.size == total.size else value
    if _right(fit, total, 0.0, _terms(parts)):
        return Row(key, "intermediate", value.shape, *_error(fit, total), True, source)
    for consumer, part in parts:
        if len(parts) > 1 and _right(fit, part, 0.0):
            return Row(
                key, "intermediate", value.shape, *_error(fit, part), True, source or f"the part through {consumer}"
            )
    note = source or ("" if fit.shape == total.shape else f"shape {value.shape}, expected {total.shape}")
    return Row(key, "intermediate", value.shape, *_error(fit, total), False, note)


def _terms(parts: list[tuple[str, Array]]) -> float:
    return 1e-3 * max([float(np.max(np.abs(part), initial=0)) for _, part in parts], default=0.0)
