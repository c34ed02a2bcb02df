"""`autograd-bn write`: the backward passes of a file's forward passes, written out."""

import argparse
import contextlib
import copy
import re
import sys
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing.run_graphviz import write
from ..engine import Tensor, as_tensor, grad
from ..engine.node import setting
from ..verify.derivation import solution
from ..verify.derivation.tracing import assigned, fillable
from ..verify.referee.discover import on_more_axes
from ..verify.referee.entries import Entry, entries
from ..verify.referee.guesses import meant, parsed_inputs, shape_of
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
    parser.add_argument("--form", choices=("steps", "folded"), default="steps", help="folded: a formula a batch norm")
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
                except (Exception, TimeUp) as error:  # the file's own, or why none can be written
                    if not entry.base and not isinstance(error, NoPair):
                        late = f"it took more than {2 * SECONDS} s" if isinstance(error, TimeUp) else ""
                        complain(f"{entry.backward}: {late or ' '.join(str(error).split()) or type(error).__name__}")
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
        stub, fit = False, given(entry, space) or guessed(entry, known)
    except NotImplementedError:  # it says nothing about the inputs, and the true one all
        stub, fit = True, guessed(replace(entry, adapted=lambda values: _true_pair(entry.adapted(values))), known)
    folded = re.search("reshape|ravel|flat", entry.text) and on_more_axes(entry, fit.inputs)  # an image in each row
    made = solution(entry.adapted(folded or copy.deepcopy([*fit.inputs])), form == "folded")
    if stub and not (fit.fits and fit.firm):
        shapes = [f"{name} {np.shape(v)}" for name, v in zip(entry.parameters, fit.inputs, strict=True)]
        complain(f"{entry.backward}: written for {', '.join(shapes)}: where others are meant, give --inputs")
    return made.source.removeprefix(HEAD)


def _true_pair(pair: Pair) -> Pair:
    """A pair with the engine's gradients for its backward pass, with axes too many where another shape is likelier."""
    calls: Any = pair.calls
    run = replace(calls, author=replace(calls.author, forward=fillable(calls.author.forward))).pair().forward

    @setting(assigned)
    def call(_: Any, dy: Any, values: Any) -> Gradients:
        leaves = [as_tensor(v, requires_grad=True) if is_float(v) else v for v in values]
        wanted = [v for v in leaves if isinstance(v, Tensor)]
        y, back = run(*leaves)[0], list[Any]()
        gradients = iter(grad(y, wanted, dy, allow_unused=True))
        for name, value, leaf in zip(pair.names, values, leaves, strict=True):
            g: Any = next(gradients) if isinstance(leaf, Tensor) else None
            g = np.zeros(np.shape(value)) if g is None and is_float(value) else g
            unlikely = g is not None and _unlikely(name, value, y, name in calls.slots)
            back.append(g[None, None] if unlikely else g)  # with axes that no input has, so that others come first
        return Gradients(tuple(back), {}, (), tuple(pair.names))

    forward = wraps(pair.forward)(lambda *values: (pair.forward(*values)[0], values))
    return replace(pair, forward=forward, call=call)


def _unlikely(name: str, value: Any, y: Any, held: bool) -> bool:
    """Whether another shape is likelier: a batch for a row outside of dicts, a matrix for a vector W, any for y."""
    batch = not held and name[0] not in "wW" and len(shape_of(meant(name)[0][0])) > 1
    row = (batch and 0 < np.ndim(value) < y.ndim) or (name[0] in "UVW" and np.ndim(value) == 1)
    return row or (np.shape(value) == y.shape and np.allclose(value, y.data))  # as the mean along no axis is
