"""`autograd-bn bench`: fused against composed batch norm on this machine."""

import argparse
import json
from typing import Any

import numpy as np

from ..batch_norm.kernels import describe_backend
from ..engine import tensor
from ..verify.table import text_table
from . import fill, progress
from .compare import FORMS, measure

HELP = f"""measure fused against composed batch norm: time and bytes kept for backward

It runs {describe_backend()}.

example: autograd-bn bench --json"""

SHAPES = ((64, 100), (1024, 256), (1024, 1024), (8192, 1024), (65536, 64))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")


def run(args: argparse.Namespace) -> int:
    """Measure and print; the exit status."""
    rows = []
    with progress(len(SHAPES), "measuring", quiet=args.json) as show:
        for shape in SHAPES:
            rows.append(_measure(shape))
            show(f"{shape[0]} x {shape[1]}")
    print(json.dumps(rows, indent=2) if args.json else _table(rows))
    return 0


def _measure(shape: tuple[int, int]) -> dict[str, Any]:
    """Forward plus backward of both forms, float32: median milliseconds, and the bytes kept between them."""
    rng = np.random.default_rng(0)
    leaves = [tensor(rng.normal(size=s), dtype="float32", requires_grad=True) for s in (shape, shape[1:], shape[1:])]
    row: dict[str, Any] = {"rows": shape[0], "features": shape[1]}
    for form, cost in measure(leaves, repeats=7).items():
        row |= {f"{form}_ms": 1e3 * cost["seconds"], f"{form}_bytes": cost["saved_bytes"]}
    speedup, ratio = row["composed_ms"] / row["fused_ms"], row["fused_bytes"] / row["composed_bytes"]
    return row | {"speedup": speedup, "bytes_ratio": ratio}


def _table(rows: list[dict[str, Any]]) -> str:
    head = ["shape", "composed ms", "fused ms", "speedup", "composed MB", "fused MB", "ratio"]
    line = "{rows} x {features}|{composed_ms:.3f}|{fused_ms:.3f}|{speedup:.1f}x"
    line += "|{composed:.3f}|{fused:.3f}|{bytes_ratio:.2f}"
    body = [line.format(**row, **{f: row[f"{f}_bytes"] / 1e6 for f in FORMS}).split("|") for row in rows]
    text = f"Batch norm, forward plus backward, float32, by {describe_backend()}."
    legend = "ms: median time. MB: what is kept from forward to backward."
    return "\n".join([fill(text), fill(legend), "", text_table(head, body, right=range(7))])
