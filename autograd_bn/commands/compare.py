"""`autograd-bn compare`: both forms of batch norm on real data, side by side."""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from . import UsageError, load_data, writable_folder

HELP = """compare composed and fused batch norm on data, and draw both graphs

Prints how far outputs and gradients are apart and the rounding error of each form, counts nodes and bytes kept
for backward, takes the time, and writes both graphs as SVG and PNG. DATA is a .npy, .npz or .csv file with rows of
features; without it, the packaged digits. Exit status 0 where the forms agree, 1 where they differ.

example: autograd-bn compare measurements.csv -o graphs"""

_REPEATS = 15


def composed(x: Any, gamma: Any, beta: Any) -> Any:
    """Batch norm as nine operations."""
    import autograd_bn as ag

    return ag.batch_norm(x, gamma, beta, form="composed")


def fused(x: Any, gamma: Any, beta: Any) -> Any:
    """Batch norm as one node."""
    import autograd_bn as ag

    return ag.batch_norm(x, gamma, beta)


FORMS: dict[str, Callable[[Any, Any, Any], Any]] = {"composed": composed, "fused": fused}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("data", nargs="?", metavar="DATA", help=".npy, .npz or .csv file, features last")
    parser.add_argument("-o", "--output", metavar="DIR", default="batch_norm_graphs", help="folder for the pictures")
    parser.add_argument("--order", type=int, default=1, help="highest order of the gradients (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")


def run(args: argparse.Namespace) -> int:
    """Compare, print, draw; the exit status."""
    import numpy as np

    import autograd_bn as ag

    name, data = load_data(args.data)
    folder = writable_folder(args.output)
    rng = np.random.default_rng(0)
    gamma, beta = (rng.uniform(low, high, data.shape[-1:]).astype(data.dtype) for low, high in ((0.5, 1.5), (-1, 1)))

    try:
        comparison = ag.compare(composed, fused, [data, gamma, beta], order=args.order)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from None

    inputs = [
        ag.as_tensor(array, requires_grad=True, name=label)
        for array, label in ((data, "x"), (gamma, "gamma"), (beta, "beta"))
    ]
    weights = np.ones(data.shape, data.dtype)
    graphs = {which: ag.Graph(form(*inputs)) for which, form in FORMS.items()}
    seconds = _times(lambda form: ag.grad(form(*inputs), inputs, weights))
    pictures = [folder / f"{which}.{suffix}" for which in FORMS for suffix in ("svg", "png")]

    if args.json:
        report = {
            "data": name,
            "shape": list(data.shape),
            "dtype": str(data.dtype),
            "ok": comparison.ok,
            "reference": comparison.reference,
            "rows": [vars(row) for row in comparison.rows],
            "forms": {
                which: {
                    "nodes": len(graphs[which]),
                    "operations": sum(graphs[which].ops.values()),
                    "saved_bytes": graphs[which].saved_bytes,
                    "seconds": seconds[which],
                }
                for which in FORMS
            },
            "pictures": [str(path) for path in pictures],
        }
        print(json.dumps(_finite(report), indent=2))
    else:
        shape = " x ".join(map(str, data.shape))
        print(f"Batch norm of {name}: x of shape {shape}, {data.dtype}\n")
        _print_forms(graphs, seconds)
        print(f"\n{comparison}")
    inputs[0].requires_grad = False  # in the pictures x is an input; only gamma and beta are parameters
    for path in pictures:
        y = FORMS[path.stem](*inputs)
        y.name = "y"
        _draw(y, path)
    if not args.json:
        print(f"\nPictures in {folder}{os.sep}: " + ", ".join(path.name for path in pictures))
    return 0 if comparison.ok else 1


def _times(work: Callable[[Any], Any]) -> dict[str, float]:
    """The median time of each form, taken in turns so that a noisy machine treats them alike."""
    taken: dict[str, list[float]] = {which: [] for which in FORMS}
    for _ in range(_REPEATS):
        for which, form in FORMS.items():
            start = time.perf_counter()
            work(form)
            taken[which].append(time.perf_counter() - start)
    return {which: median(times) for which, times in taken.items()}


def _print_forms(graphs: dict[str, Any], seconds: dict[str, float]) -> None:
    rows = [
        ("nodes in the graph", [f"{len(graphs[w])}" for w in FORMS]),
        ("of them operations", [f"{sum(graphs[w].ops.values())}" for w in FORMS]),
        ("bytes saved for backward", [f"{graphs[w].saved_bytes:,}" for w in FORMS]),
        (f"forward + backward, median of {_REPEATS}", [f"{1000 * seconds[w]:.3f} ms" for w in FORMS]),
    ]
    width = max(len(label) for label, _ in rows)
    print(" " * width + "".join(f"{which:>14}" for which in FORMS))
    for label, values in rows:
        print(label.ljust(width) + "".join(f"{value:>14}" for value in values))


def _draw(output: Any, path: Any) -> None:
    import autograd_bn as ag

    try:
        ag.render(output, path)
    except (RuntimeError, OSError) as error:
        raise UsageError(str(error)) from None


def _finite(value: Any) -> Any:
    """JSON has neither infinity nor NaN: where a difference is one of them it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
