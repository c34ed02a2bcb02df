"""`autograd-bn render`: the graph of batch norm on data, as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import autograd_bn as ag

from . import UsageError, load_data, refused, writable_folder
from .compare import FORMS

HELP = """draw the graph of batch norm on data

DATA is a .npy, .npz or .csv file with rows of features; without it, the packaged digits. The suffix of FILE picks the
format: .svg, .png, .pdf or .dot, or .html, a page that steps through the graph with every value and gradient.

example: autograd-bn render measurements.csv --form fused --expand -o graph.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", nargs="?", metavar="DATA", help=".npy, .npz or .csv file, features last")
    parser.add_argument(
        "-o", "--output", metavar="FILE", required=True, help="the picture: .svg, .png, .pdf, .dot or .html"
    )
    parser.add_argument("--form", choices=("composed", "fused"), default="composed", help="default: composed")
    parser.add_argument("--values", action="store_true", help="show every value")
    parser.add_argument("--grads", action="store_true", help="show every gradient, of randomly weighted outputs")
    parser.add_argument("--expand", action="store_true", help="open the fused node into its composed body")
    parser.add_argument("--direction", choices=("LR", "TB"), help="left to right or top to bottom")


def run(args: argparse.Namespace) -> int:
    """Draw; the exit status."""
    if args.expand and args.form != "fused":
        raise UsageError("--expand opens the fused node: it needs --form fused")
    writable_folder(Path(args.output).parent)
    leaves = load_data(args.data).leaves()
    weights = np.random.default_rng(0).normal(size=leaves[0].shape)
    wanted = args.grads or args.output.lower().endswith(".html")
    with refused():
        y = FORMS[args.form](*leaves)
        y.name = "y"
        options = {"expand": args.expand, "direction": args.direction, "grads": weights if wanted else None}
        print(ag.render(y, args.output, values=args.values or None, **options))
    return 0
