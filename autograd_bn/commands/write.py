"""`autograd-bn write`: the backward passes of a file's forward passes, written out."""

import argparse
import contextlib
import copy
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.run_graphviz import write
from ..engine import Tensor, as_tensor, grad
from ..verify.derivation import solution
from ..verify.referee.discover import on_more_axes
from ..verify.referee.entries import Entry, entries
from ..verify.referee.guesses import parsed_inputs
from ..verify.referee.held import is_float
from ..verify.referee.load import SECONDS, TimeUp, Unreadable, limited, loaded
from ..verify.referee.pairs import NoPair, Pair
from ..verify.referee.returned import Gradients
from ..verify.referee.trials import given, guessed
from . import UsageError, complain, refused
from .data import output_file, taken

HEAD = "import numpy as np\n\n\n"
HELP = """write the backward pass of every hand-written forward pass in a file

FILE.py, or a notebook, is run. For each pair that check judges, functions, losses and layer classes in NumPy, the
backward pass is printed as it would stand there, also for a stub: it takes what the author's takes, reads what forward
keeps, by its names, and returns or leaves the gradients where his does. It is run in the file and judged right. Where
forward keeps too little, the text says what it has to keep, or brings a forward pass of its own.
NAME writes one of them. Inputs are found as by check, or given as --inputs 'x=(6,4) k=2'.
Exit status 0 where all are written, 1 where some are not, 2 where none is.

examples: autograd-bn write my_batch_norm.py
          autograd-bn write layers.py BatchNorm.backward -o solution.py"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.py", help="Python file or notebook with forward passes")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the forward or backward pass to write (default all)")
    parser.add_argument("--inputs", metavar="'x=(6,4) ...'", default="", help="what to call forward with, by name")
    parser.add_argument(
        "--form", choices=("steps", "folded"), default="steps", help="folded: batch norm as one formula"
    )
    parser.add_argument("-o", "--output", metavar="FILE.py", help="write the code to a file")


def run(args: argparse.Namespace) -> int:
    """Write every backward pass in the file; the exit status."""
    path = output_file(args.output, (".py",), args.file) if args.output else None
    with refused():
        known, texts, declined = parsed_inputs(args.inputs), list[str](), 0
    try:
        with contextlib.redirect_stdout(sys.stderr), np.errstate(all="ignore"), loaded(Path(args.file)) as file:
            listed = [e for e in entries(file.space) if args.name in (None, e.forward, e.backward)]
            taken(known, listed)
            for entry in listed:
                try:
                    with limited(2 * SECONDS):
                        text = _text(entry, file.space, known, args.form)
                    texts += [text] if text not in texts else []
                except TimeUp:
                    complain(f"{entry.backward}: it took more than {2 * SECONDS} s")
                    declined += 1
                except Exception as error:  # the file's own, or why none can be written
                    if entry.base or isinstance(error, NoPair):
                        continue
                    complain(f"{entry.backward}: {' '.join(str(error).split()) or type(error).__name__}")
                    declined += 1
    except Unreadable as error:
        raise UsageError(str(error)) from None
    if not listed:
        what = f"no forward or backward pass named {args.name}" if args.name else "no pair of functions"
        raise UsageError(f"{args.file} defines {what}")
    code = HEAD + "\n\n".join(texts)
    if path is not None and texts:
        write(path, code.encode())
        complain(f"written to {path}")
    elif texts:
        print(code, end="")
    return 2 if not texts else 1 if declined else 0


def _text(entry: Entry, space: dict[str, Any], known: dict[str, Any], form: str) -> str:
    """The backward pass of one entry, in its author's names."""
    known = {name: value for name, value in known.items() if name in entry.parameters}
    try:
        inputs = (given(entry, space) or guessed(entry, known)).inputs
    except NotImplementedError:  # it says nothing about the inputs, and the true one all
        true = replace(entry, adapted=lambda values: _true_pair(entry.adapted(values)))
        inputs = guessed(true, known).inputs
    pair = entry.adapted(on_more_axes(entry, inputs) or copy.deepcopy([*inputs]))
    return solution(pair, form == "folded").source.removeprefix(HEAD)


def _true_pair(pair: Pair) -> Pair:
    """A pair with the engine's gradients for its backward pass."""

    def call(_: Any, dy: Any, values: Any) -> Gradients:
        leaves = [as_tensor(v, requires_grad=True) if is_float(v) else v for v in values]
        wanted = [v for v in leaves if isinstance(v, Tensor)]
        gradients = iter(grad(pair.forward(*leaves)[0], wanted, dy, allow_unused=True))
        filled = [None if not isinstance(v, Tensor) else next(gradients) for v in leaves]
        pairs = zip(filled, values, strict=True)
        back = tuple([np.zeros(np.shape(v)) if g is None and is_float(v) else g for g, v in pairs])
        return Gradients(back, {}, (), tuple(pair.names))

    forward = wraps(pair.forward)(lambda *values: (pair.forward(*values)[0], values))
    return replace(pair, forward=forward, call=call)
