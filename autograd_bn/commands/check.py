"""`autograd-bn check`: the referee on every hand-written pair in a file, printed."""

import argparse
import contextlib
import html
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..drawing.render import render
from ..drawing.run_graphviz import write
from ..verify.referee.discover import Judged, judge
from ..verify.referee.entries import entries
from ..verify.referee.guesses import parsed_inputs
from ..verify.referee.load import Unreadable, loaded
from . import UsageError, complain, refused
from .data import output_file, taken

HELP = """judge hand-written forward and backward passes, and say where the mistake is

FILE.py, or a notebook, is run. Judged is what it defines of: NumPy pairs such as NAME_forward(x, ...) -> y, cache with
NAME_backward(dy, cache) -> dx, ...; losses NAME_loss(x, y) -> loss, dx; layer classes with forward and backward, whose
parameters' gradients are looked for on the object; torch.autograd.Function classes; jax.custom_vjp functions. Where a
dict has a "mode" both train and test are judged. Passes may write no file and start no program, or they are declined.
Inputs are found by the parameters' names and by trying; a file can give its own: NAME_inputs (or inputs), a tuple of
what forward takes or a function that returns one; or --inputs 'x=(6,4) y=onehot(6,3) k=2'.
Exit status 0 where what could be judged is right, 1 where something is wrong, 2 where nothing could be judged.

examples: autograd-bn check my_batch_norm.py
          autograd-bn check --json layers.py"""

VERDICTS = ("right", "wrong", "convention", "unwritten", "unjudged")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE.py", help="Python file or notebook with the functions to judge")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a pair, each on a line of its own")
    parser.add_argument("--inputs", metavar="'x=(6,4) ...'", default="", help="what to call forward with, by name")
    parser.add_argument("--strict", action="store_true", help="arrays overwritten and conventions named fail too")
    parser.add_argument("--watch", action="store_true", help="judge again at each save, and print what changed")
    parser.add_argument("-o", "--output", metavar="FILE.html", help="also step through the wrong ones on a page")


def run(args: argparse.Namespace) -> int:
    """Judge every pair in the file; the exit status."""
    if args.seed < 0:
        raise UsageError(f"--seed is {args.seed}, expected 0 or more")
    page = output_file(args.output, (".html",)) if args.output else None
    with refused():
        known = parsed_inputs(args.inputs)
    return _watched(args, page, known) if args.watch else _judged(args, page, known, {})


def _watched(args: argparse.Namespace, page: Path | None, known: dict[str, object]) -> int:
    """Judge at each save until interrupted."""
    path, said, last = Path(args.file), dict[str, str](), None
    while True:
        saved = path.stat().st_mtime_ns if path.is_file() else None
        if saved != last:
            last = saved
            try:
                _judged(args, page, known, said)
            except UsageError as error:
                complain(f"autograd-bn check: {error}")
                said.clear()  # what is right again is to be said again
        time.sleep(0.5)


def _judged(args: argparse.Namespace, page: Path | None, known: dict[str, object], said: dict[str, str]) -> int:
    """Judge and print what isn't `said` yet; the exit status."""
    judged, out, notes = list[Judged](), sys.stdout, list[str]()
    try:
        # What the file prints must not mix with the report.
        with contextlib.redirect_stdout(sys.stderr), _heard(args.file), loaded(Path(args.file)) as file:
            notes, listed = file.notes, list(entries(file.space))
            taken(known, listed)
            for note in notes if listed else ():
                complain(f"Note: the file stops at {note}; judged is what it defines.")
            for entry in listed:
                with _heard(entry.backward):
                    verdict = judge(entry, file.space, known, args.seed, args.strict)
                if verdict.verdict:
                    judged.append(verdict)
                    text = _text(verdict, len(listed) > 1, args.json)
                    if said.get(entry.backward) != text:
                        print(text, file=out, flush=True)
                    said[entry.backward] = text
    except Unreadable as error:
        raise UsageError(str(error)) from None
    if not judged:
        none = "defines no pair of functions forward and backward, and no class with two methods of such names"
        raise UsageError(notes[0] if notes else f"{args.file} {none}")
    counts = Counter(entry.verdict for entry in judged)
    unseen = sum(len(entry.report.unseen) for entry in judged if entry.report is not None)
    if len(judged) > 1 and not args.json:
        summary = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
        print(f"{summary}; {unseen} array{'s' * (unseen > 1)} not judged" if unseen else summary, flush=True)
    if page is not None:
        _write(page, judged)
        complain(f"Step by step: open {page} in a browser")
    failed = counts["wrong"] or (args.strict and counts["convention"])
    return 1 if failed else 0 if counts["right"] or counts["convention"] else 2


def _text(entry: Judged, several: bool, json: bool) -> str:
    """An entry as it is printed; one that is right in a line, among others."""
    if json:
        return entry.json()
    text = str(entry)
    if several and entry.verdict == "right" and entry.report is not None:
        rest = [*entry.report.remarks, entry.reason]
        text = " ".join([text.splitlines()[0], *rest]).rstrip()
    return f"{entry.backward}: {text}\n" if several else text


@contextlib.contextmanager
def _heard(what: str) -> Iterator[None]:
    """Say on standard error what takes so long."""
    timer = threading.Timer(5, lambda: complain(f"still at {what} ..."))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _write(page: Path, judged: list[Judged]) -> None:
    """The page of a pair, or a list of pairs with a page each of the wrong ones."""
    items = []
    for entry in judged:
        own = page.with_stem(f"{page.stem}-{entry.backward}") if len(judged) > 1 else page
        link = html.escape(entry.backward)
        if entry.report is not None and (entry.verdict == "wrong" or len(judged) == 1):
            try:
                render(entry.report, own)
                link = f'<a href="{html.escape(own.name)}">{link}</a>'
            except (ValueError, RuntimeError) as error:  # it has no graph, or there is nothing to draw it with
                complain(f"{entry.backward}: {error}")
        text = html.escape(str(entry))
        items.append(f"<h2>{link}: {entry.verdict}</h2><pre>{text}</pre>")
    if len(judged) > 1 or link == html.escape(judged[0].backward):
        style = "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}pre{white-space:pre-wrap}</style>"
        head = f"<!doctype html><meta charset=utf-8><title>{html.escape(page.stem)}</title>{style}"
        write(page, f"{head}<h1>{html.escape(page.stem)}</h1>{''.join(items)}\n".encode())
