"""`autograd-bn render`: the graph of batch norm on data, as a picture."""

import argparse
from pathlib import Path

import numpy as np

import autograd_bn as ag

from . import UsageError, complain, refused
from .compare import FORMS, add_data
from .data import load_data, writable_folder

HELP = """draw the graph of batch norm on data

DATA is a .npy, .npz, .csv, .tsv or .txt file with rows of features; without it, the packaged digits. The suffix of FILE
picks the format: .svg, .png, .pdf or .dot, or .html, a page that steps through the graph with every value and gradient.

example: autograd-bn render measurements.csv --form fused --expand -o graph.svg"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
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
    data = load_data(args.data, args.columns)
    for note in data.notes:
        complain(note)
    leaves = data.leaves()
    weights = np.random.default_rng(0).normal(size=leaves[0].shape)
    wanted = args.grads or args.output.lower().endswith(".html")
    with refused():
        y = FORMS[args.form](*leaves)
        y.name = "y"
        options = {"expand": args.expand, "direction": args.direction, "grads": weights if wanted else None}
        print(ag.render(y, args.output, values=args.values or None, **options))
    return 0
