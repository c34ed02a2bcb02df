"""`autograd-bn check`: the referee on the hand-written pairs in a file."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import UsageError

HELP = """judge a hand-written forward and backward pass, and say where the mistake is

FILE.py defines forward(x, gamma, beta) -> y, cache and backward(dy, cache) -> dx, dgamma, dbeta in NumPy, or several
such pairs named NAME_forward and NAME_backward. If their inputs are not x, or x, gamma, beta and the like, the file
also defines inputs, a tuple of arrays or a function that returns one (NAME_inputs for a pair of its own). FILE.py is
run. Exit status 0 where every gradient is right, 1 where one is wrong, 2 where nothing could be judged.

example: autograd-bn check my_batch_norm.py"""

ROWS, COLUMNS = 7, 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("file", metavar="FILE.py", help="Python file with the functions to judge")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the text")


def run(args: argparse.Namespace) -> int:
    """Judge every pair in the file; the exit status."""
    import autograd_bn as ag

    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}, expected 0 or more")
    verdicts = {}
    # What the file prints must not mix with the report.
    with contextlib.redirect_stdout(sys.stderr):
        space = _load(Path(args.file))
        for name, (forward, backward) in _pairs(space, args.file).items():
            inputs = _inputs(name, forward, space)
            try:
                verdicts[name] = ag.check_backward(forward, backward, inputs, seed=args.seed)
            except (ValueError, TypeError) as error:
                raise UsageError(f"{name}: {' '.join(str(error).split())}") from None
    ok = all(verdict.ok for verdict in verdicts.values())
    if args.json:
        pairs = {name: json.loads(verdict.to_json()) for name, verdict in verdicts.items()}
        print(json.dumps({"file": args.file, "ok": ok, "pairs": pairs}, indent=2))
    else:
        texts = [f"{name}: {verdict}" if len(verdicts) > 1 else str(verdict) for name, verdict in verdicts.items()]
        print("\n\n".join(texts))
    return 0 if ok else 1


def _load(path: Path) -> dict[str, Any]:
    """Run the file and return what it defines."""
    if path.suffix != ".py":
        raise UsageError(f"{path} ends in {path.suffix!r}, expected a Python file, .py")
    if not path.is_file():
        raise UsageError(f"can't read {path}: {'it is a folder' if path.is_dir() else 'no such file'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"can't run {path}")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: the file is not ours
        line = getattr(error, "lineno", None) or _line(error, str(path))
        where = f", line {line}" if line else ""
        told = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
        raise UsageError(f"{path}{where}: {type(error).__name__}: {told}") from None
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(path.parent))
    return vars(module)


def _line(error: BaseException, file: str) -> int | None:
    """The last line of the file on the way to an exception."""
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == file:
            line = step.tb_lineno
        step = step.tb_next
    return line


def _pairs(space: dict[str, Any], file: str) -> dict[str, tuple[Callable[..., Any], Callable[..., Any]]]:
    """The functions whose names end in `forward`, each with the one that ends in `backward`."""
    found = {}
    for name, forward in space.items():
        backward = space.get(name.removesuffix("forward") + "backward")
        if name.endswith("forward") and callable(forward) and callable(backward):
            found[name] = forward, backward
    if not found:
        raise UsageError(f"{file} defines no pair of functions forward and backward")
    return {name.removesuffix("forward").rstrip("_") or "forward": pair for name, pair in found.items()}


def _inputs(name: str, forward: Callable[..., Any], space: dict[str, Any]) -> tuple[Any, ...]:
    """The pair's inputs: the file's, or random ones by the names of forward's parameters."""
    import numpy as np

    given = space.get(f"{name}_inputs", space.get("inputs"))
    if given is not None:
        try:
            given = given() if callable(given) else given
        except Exception as error:
            raise UsageError(f"inputs() raised {type(error).__name__}: {' '.join(str(error).split())}") from None
        if not isinstance(given, tuple | list):
            raise UsageError(f"inputs is a {type(given).__name__}, expected a tuple of what forward takes")
        return tuple(given)
    rng = np.random.default_rng(1)
    made: list[Any] = []
    for parameter in inspect.signature(forward).parameters.values():
        plain = parameter.name.lower()
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            continue
        if not made:
            made.append(rng.normal(size=(ROWS, COLUMNS)) * 1.5 + rng.normal(size=COLUMNS))
        elif plain in ("gamma", "scale", "weight", "g"):
            made.append(rng.uniform(0.5, 2, COLUMNS))
        elif plain in ("beta", "shift", "bias", "b") or plain in ("running_mean", "mean", "mu"):
            made.append(rng.normal(size=COLUMNS))
        elif plain in ("running_var", "var"):
            made.append(rng.uniform(0.5, 2, COLUMNS))
        elif plain in ("eps", "epsilon"):
            made.append(1e-5)
        elif plain in ("bn_param", "ln_param"):
            made.append({"mode": "train"})
        else:
            raise UsageError(
                f"no inputs are known for {name}'s parameter {parameter.name}: define inputs = (...) in the file"
            )
    return tuple(made)
