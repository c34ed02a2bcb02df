"""`autograd-bn compare`: both forms of batch norm on real data, side by side."""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import autograd_bn as ag

from ..verify.compare import in_ulp
from ..verify.table import text_table
from . import complain, fill, progress, refused
from .data import DATA, Data, few, load_data, writable_folder

HELP = """compare composed and fused batch norm on data, and draw both graphs

Prints how far outputs and gradients are apart and the rounding error of each form, counts nodes and bytes kept for
backward, takes the time, and writes both graphs as SVG and PNG, and compare.html, a page that steps through both side
by side with each node's errors. DATA is a .npy, .npz, .csv, .tsv or .txt file with rows of features (an .npz may hold
x, gamma and beta); without it, the packaged digits. Exit status 0 where the forms agree, 1 where they differ.

example: autograd-bn compare measurements.csv -o graphs"""


def composed(x: Any, gamma: Any, beta: Any) -> Any:
    """Batch norm as nine operations."""
    return ag.batch_norm(x, gamma, beta, form="composed")


def fused(x: Any, gamma: Any, beta: Any) -> Any:
    """Batch norm as one node."""
    return ag.batch_norm(x, gamma, beta)


FORMS = {"composed": composed, "fused": fused}


def add_data(parser: argparse.ArgumentParser) -> None:
    """What to read."""
    parser.add_argument("data", nargs="?", metavar="DATA", help=DATA)
    parser.add_argument("--columns", metavar="A,B", help="columns of a text file to take, by name or number from 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("-o", "--output", metavar="DIR", default="batch_norm_graphs", help="folder for the pictures")
    parser.add_argument("--order", type=int, default=1, help="highest order of the gradients (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the tables")


def run(args: argparse.Namespace) -> int:
    """Compare, print, draw; the exit status."""
    data = load_data(args.data, args.columns)
    folder = writable_folder(args.output)
    leaves = data.leaves()
    pictures = [folder / f"{which}.{suffix}" for which in FORMS for suffix in ("svg", "png")]
    pictures.append(folder / "compare.html")

    bar = progress(2 + len(pictures), "comparing", quiet=args.json)
    with np.errstate(all="ignore"), refused(), bar as show:  # what isn't finite is in the report
        comparison = ag.compare(composed, fused, leaves, order=args.order)
        show("taking the time")
        forms = measure(leaves, repeats=15)
        drawn, undrawn = _draw(pictures, comparison, leaves, show)
        show("done")
    for i, form in enumerate(forms.values()):
        errors = [row.ulp[i] for row in comparison.rows]
        form["ulp"] = max([error for error in errors if error is not None], default=None)

    if args.json:
        report = {
            "data": data.name,
            "shape": data.x.shape,
            "dtype": str(data.x.dtype),
            "notes": data.notes,
            "not_finite": data.not_finite(),
            "ok": comparison.ok,
            "reference": comparison.reference,
            "rows": [asdict(row) for row in comparison.rows],
            "forms": forms,
            "pictures": [str(path) for path in drawn],
        }
        finite = json.loads(json.dumps(report), parse_constant=lambda _: None)  # JSON has neither infinity nor NaN
        print(json.dumps(finite, indent=2))
    else:
        print(_about(data))
        table, _, notes = str(comparison).partition("\n\n")
        print(f"\n{_table(forms)}\n\n{table}\n")
        print("\n".join(map(fill, notes.splitlines())))
        if drawn:
            print(f"\nPictures in {folder}{os.sep}: " + ", ".join(path.name for path in drawn))
        if pictures[-1] in drawn:
            print(f"Both graphs side by side, step by step: open {pictures[-1]} in a browser")
    for why in undrawn:
        complain(why)
    return 0 if comparison.ok else 1


def _draw(
    pictures: list[Path], comparison: ag.Comparison, leaves: list[Any], show: Callable[[str], None]
) -> tuple[list[Path], list[str]]:
    """The pictures that were drawn, and why others were not: what has been computed is told all the same."""
    leaves[0].requires_grad = False  # in the pictures x is an input; only gamma and beta are parameters
    drawn, undrawn = list[Path](), list[str]()
    for path in pictures:
        show(f"drawing {path.name}")
        shown: Any = comparison
        if path.stem in FORMS:
            shown = FORMS[path.stem](*leaves)
            shown.name = "y"
        try:
            drawn.append(ag.render(shown, path))
        except RuntimeError as error:
            undrawn.append(f"{path.name} is not drawn: {error}")
    return drawn, undrawn


def measure(leaves: list[Any], repeats: int) -> dict[str, dict[str, Any]]:
    """What each form costs; the times are medians, taken in turns so that a noisy machine treats both alike."""
    weights = np.random.default_rng(0).normal(size=leaves[0].shape).astype(leaves[0].dtype)
    taken: dict[str, list[float]] = {which: [] for which in FORMS}
    for _ in range(repeats + 1):
        for which, form in FORMS.items():
            start = time.perf_counter()
            ag.grad(form(*leaves), leaves, weights)
            taken[which].append(time.perf_counter() - start)
    graphs = {which: ag.Graph(form(*leaves)) for which, form in FORMS.items()}
    return {
        which: {
            "nodes": len(graph),
            "operations": sum(graph.ops.values()),
            "saved_bytes": graph.saved_bytes,
            "seconds": median(taken[which][1:]),  # the first warms up
        }
        for which, graph in graphs.items()
    }


def _about(data: Data) -> str:
    shape = " x ".join(map(str, data.x.shape))
    lines = [fill(text) for text in (f"Batch norm of {data.name}: x of shape {shape}, {data.x.dtype}", *data.notes)]
    if counts := data.not_finite():
        shown = few([f"{count} in {name}" for name, count in counts.items()])
        lines.append(fill(f"NaN or infinite values, by column: {shown}"))
    return "\n".join(lines)


def _table(forms: dict[str, dict[str, Any]]) -> str:
    """What each form costs, why that matters, and the outcome in one sentence."""
    labels = ["nodes in the graph", "of them operations", "bytes kept for backward"]
    labels += ["forward and backward, ms", "largest error, ulp"]
    shown = [
        (f"{f['nodes']}", f"{f['operations']}", f"{f['saved_bytes']:,}", f"{1000 * f['seconds']:.3f}", in_ulp(f["ulp"]))
        for f in forms.values()
    ]
    why = (
        "A backward pass visits every node, and holds the bytes from forward to backward. The error is that of outputs "
        "and gradients in units in the last place, the gap between neighbouring floats: rounding alone costs 0.5."
    )
    old, new = shown
    outcome = (
        f"One fused node in place of {old[1]} operations took {new[3]} ms against {old[3]}, kept {new[2]} bytes "
        f"against {old[2]}, and was off by {new[4]} ulp at most against {old[4]}."
    )
    table = text_table(["", *forms], list(zip(labels, *shown, strict=True)), right=(1, 2))
    return "\n".join([table, "", fill(why), fill(outcome)])
