"""`autograd-bn bench`: fused against composed batch norm on this machine."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import batch_norm, grad, tensor
from ..batch_norm.kernels import describe_backend
from ..engine import Graph
from . import UsageError, fill, output_file, progress

HELP = f"""measure fused against composed batch norm: time and bytes kept for backward

It runs {describe_backend()}.

example: autograd-bn bench -o bench.svg"""

SHAPES = ((64, 100), (1024, 256), (1024, 1024), (8192, 1024), (65536, 64))
REPEATS = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("-o", "--output", metavar="FILE", help="draw a plot, .svg or .png (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    """Measure, print, plot; the exit status."""
    path = None if args.output is None else output_file(args.output, (".svg", ".png"))
    if path is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise UsageError('-o needs matplotlib, which is not installed: pip install "autograd_bn[plot]"') from None
    rows = []
    with progress(len(SHAPES), "measuring", quiet=args.json) as show:
        for shape in SHAPES:
            rows.append(_measure(shape))
            show(f"{shape[0]} x {shape[1]}")
    print(json.dumps(rows, indent=2) if args.json else _table(rows))
    if path is not None:
        _draw(rows, path)
        if not args.json:
            print(f"\nplot: {path}")
    return 0


def _measure(shape: tuple[int, int]) -> dict[str, Any]:
    """Forward plus backward of both forms in turn, float32: median milliseconds, and the bytes kept between them."""
    rng = np.random.default_rng(0)
    leaves = [tensor(rng.normal(size=s), dtype="float32", requires_grad=True) for s in (shape, shape[1:], shape[1:])]
    g = rng.normal(size=shape).astype("float32")
    times: dict[str, list[float]] = {"fused": [], "composed": []}
    for _ in range(REPEATS + 1):
        for form in ("fused", "composed"):
            start = time.perf_counter()
            grad(batch_norm(*leaves, form=form), leaves, g)
            times[form].append(1e3 * (time.perf_counter() - start))
    row: dict[str, Any] = {"rows": shape[0], "features": shape[1]}
    for form in times:
        row[f"{form}_ms"] = median(times[form][1:])  # the first warms up
        row[f"{form}_bytes"] = Graph(batch_norm(*leaves, form=form)).saved_bytes  # type: ignore[arg-type]
    return row | {
        "speedup": row["composed_ms"] / row["fused_ms"],
        "bytes_ratio": row["fused_bytes"] / row["composed_bytes"],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        fill(f"Batch norm, forward plus backward, float32, by {describe_backend()}."),
        fill("ms: median time. MB: what is kept from forward to backward.") + "\n",
        "         shape  composed ms  fused ms  speedup  composed MB  fused MB  ratio",
    ]
    for r in rows:
        shape = f"{r['rows']} x {r['features']}"
        lines.append(
            f"{shape:>14} {r['composed_ms']:12.3f} {r['fused_ms']:9.3f} {r['speedup']:7.1f}x "
            f"{r['composed_bytes'] / 1e6:12.3f} {r['fused_bytes'] / 1e6:9.3f} {r['bytes_ratio']:6.2f}"
        )
    return "\n".join(lines)


def _draw(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(rows))
    for axes, unit, title in ((left, "ms", "time, ms"), (right, "bytes", "bytes kept for backward")):
        for form, offset, hatch in (("composed", -0.2, "//"), ("fused", 0.2, "")):
            axes.bar(places + offset, [r[f"{form}_{unit}"] for r in rows], 0.4, label=form, hatch=hatch)
        axes.set(title=title, yscale="log")
        axes.set_xticks(places, [f"{r['rows']} x {r['features']}" for r in rows], rotation=30, ha="right")
    left.legend()
    figure.savefig(path)
