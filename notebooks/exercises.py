"""The grader of notebook 06: it judges each hole as it is filled, though others are left."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import autograd_bn as ag


def names_in(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[dict[str, Any], list[str]]:
    """The variables of a function where it ends or stops, and why it stops, if that isn't that it needs a hole."""
    found: dict[str, Any] = {}
    why = []

    def watch(frame: Any, event: str, arg: Any) -> None:
        if event == "return" and frame.f_code is function.__code__:
            found.update(frame.f_locals)

    sys.setprofile(watch)
    try:
        function(*args, **kwargs)
    except Exception as error:
        if "ellipsis" not in str(error):
            why.append(f"it stops with {type(error).__name__}: {error}")
    finally:
        sys.setprofile(None)
    return found, why


def holes(function: Callable[..., Any]) -> list[str]:
    """What a function still says `...` for, in order."""
    lines = [line.partition("#")[0].partition("=") for line in _source(function)]
    return [name.strip() for name, _, value in lines if value.strip() == "..."]


def _source(function: Callable[..., Any]) -> list[str]:
    return inspect.getsource(function).splitlines()


def _same(mine: Any, right: Any) -> bool:
    mine, right = np.squeeze(mine), np.squeeze(right)
    return bool(mine.shape == right.shape and np.allclose(mine, right, rtol=1e-9, atol=1e-12))


def _line(name: str, slips: list[tuple[str, Any]], mine: Any, right: Any) -> str:
    if _same(mine, right):
        return f"{name}: right"
    known = [what for what, value in slips if _same(mine, value)]
    if not known and np.size(mine) != np.size(right):
        return f"{name}: has shape {np.shape(mine)}, expected {np.shape(right)}"
    return ", ".join([f"{name}: wrong", *known[:1]])


def _tell(lines: list[str], left: list[str]) -> None:
    count = len(left)
    last = f"{count} hole{'s' if count > 1 else ''} left: {', '.join(left)}" if left else "no hole left"
    print("\n".join([*lines, last]))


def grade_forward(forward: Callable[..., Any], x: Any, gamma: Any, beta: Any) -> None:
    """Judge mean, var, xhat and y, each by itself, with an eps that shows."""
    eps = 0.5
    mine, why = names_in(forward, x, gamma, beta, eps=eps)
    mean, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mean) / np.sqrt(var + eps)
    right = {"mean": mean, "var": var, "xhat": xhat, "y": gamma * xhat + beta}
    slips: dict[str, list[tuple[str, Any]]] = {
        "mean": [
            ("it averages each example (axis 1): a feature's mean goes over the batch (axis 0)", x.mean(axis=1)),
            ("it averages over both axes: every feature has a mean of its own", x.mean()),
            ("a sum stands where a mean belongs", x.sum(axis=0)),
        ],
        "var": [
            ("it divides by n - 1 (ddof=1): batch norm divides by n", x.var(axis=0, ddof=1)),
            ("it is that of each example (axis 1): a feature's goes over the batch (axis 0)", x.var(axis=1)),
            ("it is taken over both axes: every feature has a variance of its own", x.var()),
            ("it is the standard deviation: its square belongs here", x.std(axis=0)),
            ("it is the mean of x**2: the mean is to be taken off first", (x**2).mean(axis=0)),
            ("a sum stands where a mean belongs", len(x) * var),
            ("eps is in it already: keep it for xhat", var + eps),
        ],
        "xhat": [
            ("eps is missing", (x - mean) / np.sqrt(var)),
            ("eps stands outside the root", (x - mean) / (np.sqrt(var) + eps)),
            ("the root is missing", (x - mean) / (var + eps)),
            ("the mean is not taken off", x / np.sqrt(var + eps)),
            ("it is multiplied by the deviation", (x - mean) * np.sqrt(var + eps)),
        ],
        "y": [
            ("beta is missing", gamma * xhat),
            ("gamma is missing", xhat + beta),
            ("gamma and beta are in each other's place", beta * xhat + gamma),
        ],
    }
    filled = [name for name in right if name in mine and mine[name] is not ...]
    _tell([_line(name, slips[name], mine[name], right[name]) for name in filled] + why, holes(forward))


def grade(forward: Callable[..., Any], backward: Callable[..., Any], solution: Callable[..., Any], inputs: Any) -> Any:
    """The verdict on a backward pass that is whole; of one with holes, a line for each that is filled."""
    left = holes(backward)
    if not left:
        return ag.check_backward(forward, backward, inputs)

    def completed(dy: Any, cache: Any) -> dict[str, Any]:
        """The gradients as they are filled in, and the solution's in the place of the others."""
        (right, _), (mine, _) = (names_in(function, dy, cache) for function in (solution, backward))
        right = {name: value for name, value in right.items() if name.startswith("d") and name not in backward_inputs}
        return right | {name: mine[name] for name in right if mine.get(name, ...) is not ...}

    backward_inputs = {*inspect.signature(backward).parameters, *_unpacked(backward)}
    verdict = ag.check_backward(forward, completed, inputs)
    output, cache = forward(*inputs)
    mine, stops = names_in(backward, np.ones(np.shape(output)), cache)
    lines = []
    for row in verdict.rows:
        if mine.get(row.name, ...) is not ...:
            why = [str(finding) for finding in verdict.diagnosis if row.name in finding.gradients]
            lines.append(f"{row.name}: " + ("right" if row.ok else " ".join(["wrong.", *why])))
    _tell(lines + stops, left)
    return None


def _unpacked(function: Callable[..., Any]) -> list[str]:
    """The names that a function takes out of its cache."""
    line = next((line for line in _source(function) if line.endswith("= cache")), "")
    return [name.strip() for name in line.partition("=")[0].split(",")]
