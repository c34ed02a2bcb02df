"""Gradients that are other than the derivative on purpose: conventions with names of their own, a row each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...engine.graph import Values
from ...engine.node import Array, Node
from .held import is_float
from .mistakes import close, factor, listed
from .run import Run
from .source import GUARD, code_of, guard, unwrapped
from .trace import constant

_REVERSED = re.compile(r"rev(?!iew)|advers|domain|grl|neg|flip|lam|alpha|coef|scale", re.IGNORECASE)
_COUNT = r"/=?\s*(float\()?(self\.)?(m|M|batch(_?size)?|bs|(n_|num_)?(examples|samples))\b"
_INFINITE = 1e4  # masks fill with -1e4 where half precision has to hold it, else with -1e9 and the like


def cut_by_a_guard(run: Run, inputs: Mapping[str, Any]) -> bool:
    """Whether a guard cuts off what the run is at, as `clip(p, 1e-7, 1 - 1e-7)` does: gradients are meant without it.

    So does a number that stands for infinity, `where(mask, scores, -1e9)`, where scores are as large. Where forward
    isn't recorded, but has such a guard in its text: whether the run left what lay between 0 and 1.
    """
    if run.trace is None:
        shares = [n for n, v in inputs.items() if is_float(v) and np.all((v >= 0) & (v <= 1))]
        text = code_of(unwrapped(run.pair.forward))
        guarded = re.search(r"\b(clip|clamp\w*|max\w*|min\w*)\([^\n]*(\de-\d|eps)", text)
        return bool(guarded) and any(np.any((run.inputs[n] < 0) | (run.inputs[n] > 1)) for n in shares)
    values = Values(run.trace.order)
    for node in run.trace.order:
        bound = constant(node) if node.own_op in ("maximum", "minimum") else 0.0
        off = 1 - bound if node.own_op == "minimum" else bound
        if 0 < off <= GUARD and np.any(values[node] != values[node.inputs[0]]):
            return True
        fills = [a for a in node.args if not isinstance(a, Node)] if node.own_op in ("where", "add") else []
        infinite = max([np.max(np.abs(a * 1.0), initial=0) for a in fills], default=0)
        if _INFINITE <= infinite < 100 * np.max(np.abs(values[node.inputs[0]]), initial=0):
            return True
    return False


def convention(runs: Sequence[Run], wrong: Sequence[str], source: Any) -> str:
    """The convention by which every wrong gradient is what it is, in every run; nothing where there is none."""
    text = code_of(unwrapped(source))
    for row in ROWS:
        said = set[str | None]()
        for run in runs:
            off = [name for name in wrong if name in run.author.gradients and not run.right(name)]
            said |= {row(run, name, run.author.gradients[name], off, text) for name in off}
        if len(said) > 1:  # of decay by the weights' norm
            said = {text and re.sub(r"[\d.e-]+ times", "a multiple of", text) for text in said}
        if len(said) == 1 and (meant := said.pop()):
            return f"{listed([f'd{name}' for name in wrong])}: {meant}."
    return ""


def _same(run: Run, a: Array, b: Array) -> bool:
    """Whether two gradients agree as well as the truth is known."""
    return close(a, b, 5e-6 if run.why_differences else 1e-7)


def _straight_through(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    first, head = run.y.ravel()[: gradient.size], run.dy.ravel()[: gradient.size]
    flat = len(np.unique(first)) <= min(3, gradient.size // 2)
    if gradient.size < run.y.size and flat and np.array_equal(gradient.ravel(), head):
        return "the straight-through estimator: forward's first output is flat, and backward that of the identity"
    moves = (np.abs(run.truth[name]) > 1e-9) & np.isfinite(run.noise[name])  # no jump near by
    flat = not np.any(moves) and float(np.std(run.y)) > 0
    if not flat or gradient.shape != run.dy.shape:
        return None
    if np.all(np.isclose(gradient, run.dy, rtol=1e-9) | (gradient == 0)) and np.any(gradient):
        return "the straight-through estimator: forward is flat, and backward is that of the identity"
    whole = np.array_equal(run.y, np.round(run.y)) and np.all((gradient == 0) | (np.sign(gradient) == np.sign(run.dy)))
    return "a surrogate gradient: forward is a step, and backward that of something smoother" if whole else None


def _back_to_a_bound(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    free = run.truth[name] != 0
    if gradient.shape == run.dy.shape == free.shape and np.array_equal(run.truth[name], np.where(free, run.dy, 0)):
        passed = [np.where(free | (sign * run.dy > 0), run.dy, 0) for sign in (1, -1)]
        if any(np.array_equal(gradient, some) for some in passed):
            return "dy also passes where forward cuts off, if that leads back: a bound that can be left again"
    return None


def _reversal(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    times = factor(gradient, run.dy) if close(run.y, run.inputs[name]) else None
    if not times:
        return None
    if times > 0:  # a constant of the layer's own is there on purpose
        given = [value for value in run.inputs.values() if isinstance(value, int | float)]
        own = re.search(r"(self|ctx)\.\w+ *\*|\* *(self|ctx)\.\w+", text) or np.any(np.isclose(times, given))
        return f"forward is the identity, and backward scales the gradient, by {times:.6g}" if own else None
    if times == -1 and not _REVERSED.search(f"{unwrapped(run.pair.source).__qualname__} {text}"):
        return None  # a sign, as in any other gradient
    return f"gradient reversal: forward is the identity, and backward turns the gradient round, times {times:.6g}"


def _mean_over_examples(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    x = next(iter(run.inputs.values()))
    lengths = [m for m in np.shape(x) if m > 1 and (m in run.y.shape or run.y.size == 1)]
    counts = [m for m in lengths if _same(run, gradient * m, run.truth[name])]
    others = [n for n in run.author.gradients if n != next(iter(run.inputs))]
    each = run.y.shape == np.shape(x)[:1] and bool(np.all(run.dy == 1))  # a loss for each example
    said = len(others) > 1 or each or re.search(_COUNT, text)
    if not counts or not said or not set(others) <= set(off):
        return None
    return "1/m of the vector-Jacobian product, m examples: the mean over examples is taken here"


def _passed_on(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    # Of softmax alone: a sigmoid's derivative is forgotten as easily as it is left out.
    squashed = bool(np.all(run.y > 0)) and any(np.allclose(run.y.sum(axis), 1) for axis in range(run.y.ndim))
    if not squashed or not close(gradient, run.dy):
        return None
    return "dy is passed on as it is: the derivative of this last activation is taken together with that of the loss"


def _with_the_loss(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    p, truth = run.inputs[name], run.truth[name]
    for t in run.inputs.values() if gradient.shape == p.shape else ():
        target = np.asarray(t)
        if target.shape == p.shape and t is not p and target.dtype.kind in "fiub":
            scale = float(np.sum(gradient * (p - target)) / (np.sum((p - target) ** 2) or 1))
            known = _same(run, truth * p, -scale * target) or _same(run, truth * p * (1 - p), scale * (p - target))
            if known and close(gradient, scale * (p - target)):
                return "p - t, the gradient of what softmax or sigmoid is taken of: both are differentiated together"
    return None


def _clipped(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    limit = float(np.max(np.abs(gradient), initial=0))
    if "clip" not in text or np.sum(np.abs(gradient) == limit) < 2:
        return None
    return "clipped gradients" if _same(run, gradient, np.clip(run.truth[name], -limit, limit)) else None


def _decay(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    value, parts = run.inputs[name], [*getattr(run.pair.forward, "parts", ())]
    text += "".join(map(code_of, parts))
    if value.size < 3 or gradient.shape != run.truth[name].shape or not re.search(r"reg|decay|penal|lamb|l[12]", text):
        return None
    terms, rest = np.stack([value.ravel(), np.sign(value).ravel()], axis=1), gradient - run.truth[name]
    rates = np.linalg.lstsq(terms, rest.ravel(), rcond=None)[0]
    if (np.min(rates) < -1e-9 and (np.max(rates) > 1e-9 or not parts)) or not close(terms @ rates, rest.ravel(), 1e-6):
        return None
    if np.max(rates) < 1e-9:
        return f"the weight decay in {parts[1].__name__} is left out, as where the step of the weights adds it"
    said = [f"{rate:.6g} times {what}" for rate, what in zip(rates, ("", "the sign of "), strict=True) if rate > 1e-9]
    return f"weight decay is added, {listed([f'{part}the weights' for part in said])}"


def _multiple(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    gradients = [(g, run.truth[n]) for n, g in run.author.gradients.items() if np.any(run.truth[n])]
    factors = [float(np.sum(g * truth) / np.sum(truth**2)) for g, truth in gradients if g.shape == truth.shape]
    parts = [*getattr(run.pair.forward, "parts", ())]
    same = len(factors) == len(gradients) and min(factors, default=0) > 0 and np.allclose(factors, factors[0])
    if not parts or not same or not _same(run, gradient, factors[0] * run.truth[name]):
        return None
    return f"a multiple of the gradient of {parts[1].__name__}, by the same factor for each"


def _guarded(run: Run, name: str, gradient: Array, off: list[str], text: str) -> str | None:
    own, forward = (guard(function, "/") for function in (run.pair.source, run.pair.forward))
    near = 0 < own < 1e-6 and not forward and close(gradient, run.truth[name], 300 * own)
    return f"right but for {own:g}, which backward adds where it divides" if near else None


Convention = Callable[[Run, str, Array, list[str], str], str | None]
ROWS: tuple[Convention, ...] = (
    _straight_through, _back_to_a_bound, _reversal, _mean_over_examples, _passed_on, _with_the_loss, _clipped, _decay,
    _multiple, _guarded,
)  # fmt: skip
