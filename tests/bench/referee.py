"""`ag.check_backward` on hand-written pairs that it wasn't made for, beside PyTorch's and JAX's checkers.

    python -m tests.bench.referee [--half train|held] [--area NAME] [--peers] [--list]

The pairs are the files of `pairs/`, an area each: right ones as they stand, wrong ones with one slip planted. A pair
begins with `#:` and its inputs (`name shape`, then `+` for positive, `p` for a probability, `int k` for labels, or
`= expression`). A slip stands below the line that it edits: `# slip: old => new : kind`. Of each file
the pairs at even places are for training, those at odd places held out, with all of their slips.

Arrays that are overwritten on the way count as mistakes (`strict`). A mistake counts as named if the first repair edits
the statement with the slip and makes the gradients right, or if the first diagnosis has the words of the slip's kind.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np

import autograd_bn as ag

PAIRS = Path(__file__).parent / "pairs"
AREAS = ("batch_norm", "other_norms", "losses", "layers", "activations", "recurrent", "kinks")
# What a diagnosis says that names a mistake of this kind; with the kinds in `NAMES`, a name that was edited does too.
WORDS = {
    "sign": r"sign|negat|minus|-1(\.0+)? times|subtract|\badd",
    "constant": r"times|twice|half|factor|divide|multipl|constant",
    "factor N": r"\bN\b|\b[nm]\b|count|batch|sum|mean|size|rows",
    "mean for sum": r"\bN\b|\bn\b|mean|sum|count",
    "wrong power": r"power|square|root|\*\*|factor|σ|std|inv|deriv",
    "missing factor": r"factor|multipl|divide|scale",
    "extra factor": r"factor|multipl|divide|scale|extra|too often|twice",
    "missing path": r"path|term|missing|lacks|0(\.0+)? (times|of)|never",
    "extra path": r"path|term|constant|through the (mean|batch)",
    "wrong variable": r"in place of|instead of",
    "wrong formula": r"derivative|formula|instead of|in place of",
    "axis": r"ax[ei]s|shape\[|row|column|\bN\b|features|sum",
    "missing sum": r"\bsum|ax[ei]s",
    "transpose": r"transpos|\.T\b",
    "swapped": r"swap|exchang|order|gradient of",
    "shape": r"shape",
    "accumulate": r"accumul|\+=|overwr|add\.at|last|repeat|once|\bsum|add",
    "comparison": r"compar|mask|where|sign|[<>]=?|branch|entries",
    "index": r"index|shift|order|revers|border|position|flip|row|column",
    "operator": r"divide|multipl|operator|inverse|square|factor",
    "eps": r"\beps\b|epsilon",
    "ignores dy": r"ignores|dy|upstream",
}
NAMES = {"wrong variable", "missing factor", "extra factor", "missing path", "wrong power", "operator", "swapped"}


@dataclass(frozen=True)
class Slip:
    """One planted mistake: the edit, its line in the case's text, and its kind."""

    line: int
    old: str
    new: str
    kind: str


@dataclass(frozen=True)
class Case:
    """A hand-written pair, right unless it has a slip. `text` is the pair's module."""

    area: str
    name: str
    half: str
    text: str
    spec: str
    slip: Slip | None

    @property
    def title(self) -> str:
        return f"{self.area}/{self.name}" + (f": {self.slip.old} => {self.slip.new}" if self.slip else "")

    @cached_property
    def module(self) -> ModuleType:
        """The pair as a module with a file, so that its source can be read."""
        with tempfile.NamedTemporaryFile("w", suffix=".py", delete=False, encoding="utf-8", dir=_folder()) as file:
            file.write(self.text)
        return loaded(Path(file.name))

    @property
    def pair(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        return getattr(self.module, f"{self.name}_forward"), getattr(self.module, f"{self.name}_backward")

    def inputs(self, seed: int = 0) -> tuple[Any, ...]:
        """The pair's inputs; those given as expressions are the same for every seed."""
        rng = np.random.default_rng([zlib.crc32(self.name.encode()), seed])
        return tuple([_drawn(part.split(None, 1)[1], rng) for part in self.spec.split("; ")])


def _drawn(kind: str, rng: np.random.Generator) -> Any:
    if kind.startswith("="):
        return eval(kind[1:], {"np": np})
    shape, *how = kind.split()
    size = tuple([int(n) for n in shape.split(",")])
    match how:
        case []:
            return 1.3 * rng.normal(size=size) + 0.2
        case ["+"]:
            return rng.uniform(0.5, 2, size)
        case ["p"]:
            return rng.uniform(0.1, 0.9, size)
        case ["int", k]:
            return rng.integers(0, int(k), size)
    raise ValueError(f"{kind!r} isn't a way to draw an input")


_HELD: list[tempfile.TemporaryDirectory[str]] = []


def _folder() -> str:
    """One folder for the texts, gone with the process."""
    if not _HELD:
        _HELD.append(tempfile.TemporaryDirectory())
    return _HELD[0].name


def loaded(path: Path) -> ModuleType:
    """A file as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def cases() -> Iterator[Case]:
    """Every pair of every area: the right one, then its wrong ones."""
    for area in AREAS:
        head, *blocks = re.split(r"^#: ", (PAIRS / f"{area}.py").read_text("utf-8"), flags=re.MULTILINE)
        head = re.sub(r'^""".*"""\n', "", head)
        for place, block in enumerate(blocks):
            spec, body = block.split("\n", 1)
            name = re.findall(r"^def (\w+)_forward", body, re.MULTILINE)[0]
            lines, slips = (head + body.rstrip() + "\n").splitlines(), []
            kept: list[str] = []
            for line in lines:
                if line.lstrip().startswith("# slip: "):
                    edit, kind = line.strip()[8:].rsplit(" : ", 1)
                    old, new = edit.split(" => ")
                    at = next(i for i in range(len(kept) - 1, -1, -1) if old.strip() in kept[i])
                    assert kept[at].count(old.strip()) == 1, f"{area}/{name}: {old} stands twice in {kept[at]}"
                    slips.append(Slip(at + 1, old.strip(), new.strip(), kind))
                    assert kind in WORDS, kind
                else:
                    kept.append(line)
            half = ("train", "held")[place % 2]
            yield Case(area, name, half, "\n".join(kept) + "\n", spec, None)
            for slip in slips:
                edited = [*kept]
                edited[slip.line - 1] = edited[slip.line - 1].replace(slip.old, slip.new).rstrip()
                yield Case(area, name, half, "\n".join(edited) + "\n", spec, slip)


def slope(f: Callable[[Any], Any], x: Any, h: float) -> Any:
    """The gradient of a scalar function by central differences."""
    found = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[index] = h
        found[index] = (f(x + step) - f(x - step)) / (2 * h)
    return found


def right(case: Case) -> bool:
    """Whether every gradient agrees with Richardson's central differences, at two draws of the inputs."""
    return all(_right(case, seed) for seed in (1, 2))


def _right(case: Case, seed: int) -> bool:
    forward, backward = case.pair
    inputs = case.inputs(seed)
    y, cache = forward(*inputs)
    dy = np.random.default_rng(seed).normal(size=np.shape(y)) if np.ndim(y) else 1.0
    try:
        given = backward(dy, cache)
    except Exception:
        return False
    given = given if isinstance(given, tuple) else (given,)
    for at, x in enumerate(inputs):
        if x.dtype.kind == "f":
            f = lambda moved, at=at: np.sum(dy * forward(*inputs[:at], moved, *inputs[at + 1 :])[0])
            truth = (4 * slope(f, x, 5e-4) - slope(f, x, 1e-3)) / 3
            if np.shape(given[at]) != x.shape or not np.allclose(given[at], truth, rtol=1e-5, atol=1e-6):
                return False
    return True


def repairs(verdict: Any) -> list[Any]:
    """The verdict's repairs, as a list."""
    found = getattr(verdict, "repair", None) or ()
    return list(found) if isinstance(found, tuple | list) else [found]


def undone(case: Case, repair: Any) -> bool:
    """Whether a repair edits the statement with the slip, and makes the pair right."""
    assert case.slip is not None
    statements = [n for n in ast.walk(ast.parse(case.text)) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    spans = [(n.lineno, n.end_lineno or n.lineno) for n in statements]
    if not any(a <= case.slip.line <= b and a <= repair.line <= b for a, b in spans):
        return False
    lines = case.text.splitlines()
    line = lines[repair.line - 1]
    for match in re.finditer(re.escape(repair.old), line):
        lines[repair.line - 1] = line[: match.start()] + repair.new + line[match.end() :]
        edited = Case(case.area, case.name, case.half, "\n".join(lines) + "\n", case.spec, None)
        try:
            if right(edited):
                return True
        except Exception:  # this occurrence isn't the one
            continue
    return False


def says(case: Case, verdict: Any) -> bool:
    """Whether the first diagnosis has the words of the slip's kind."""
    slip = case.slip
    assert slip is not None
    if not verdict.diagnosis:
        return False
    text = str(verdict.diagnosis[0])
    if re.search(WORDS[slip.kind], text):
        return True
    edited = set(re.findall(r"[a-zA-Z_]\w+", slip.old)) ^ set(re.findall(r"[a-zA-Z_]\w+", slip.new))
    return slip.kind in NAMES and any(re.search(rf"\b{name}\b", text) for name in edited)


@dataclass
class Judged:
    """What a checker made of a case: `called` is "right", "wrong" or "declined"."""

    case: Case
    called: str
    seconds: float
    text: str
    repaired: bool = False
    diagnosed: bool = False
    where: bool = False

    @property
    def named(self) -> bool:
        return self.repaired or self.diagnosed


def judged(case: Case) -> Judged:
    """One case before the referee."""
    inputs = case.inputs()
    _ = case.module
    start = time.perf_counter()
    try:
        verdict = ag.check_backward(*case.pair, inputs, strict=True)
    except (ValueError, TypeError) as error:
        return Judged(case, "declined", time.perf_counter() - start, str(error), where=bool(_KINK.search(str(error))))
    seconds = time.perf_counter() - start
    found = Judged(case, "right" if verdict.ok else "wrong", seconds, str(verdict))
    found.where = bool(_KINK.search(" ".join([*verdict.notes, *[row.note for row in verdict.rows]])))
    if case.slip and not verdict.ok:
        first = repairs(verdict)[:1]
        found.repaired, found.diagnosed = any(undone(case, r) for r in first), says(case, verdict)
    return found


_KINK = re.compile(r"kink|tie\b|ties|not judged|differentiable|constant|declin", re.IGNORECASE)


def share(part: int, whole: int) -> str:
    """A count, and its share of the whole."""
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f} %)" if whole else "")


def report(found: list[Judged]) -> None:
    """The table, a line an area."""
    print(
        "| area | wrong rejected | named first | by repair | by diagnosis | right not passed | s: right, wrong, most |"
    )
    print("|---|---|---|---|---|---|---|")
    for area in (*[a for a in AREAS if a != "kinks"], "all"):
        here = [j for j in found if area == j.case.area or (area == "all" and j.case.area != "kinks")]
        wrong, fine = [j for j in here if j.case.slip], [j for j in here if not j.case.slip]
        if not here:
            continue
        caught = [j for j in wrong if j.called == "wrong"]
        cells = [share(len(caught), len(wrong))]
        cells += [
            share(sum(getattr(j, what) for j in wrong), len(wrong)) for what in ("named", "repaired", "diagnosed")
        ]
        cells.append(share(sum(j.called != "right" for j in fine), len(fine)))
        times = [median([j.seconds for j in group]) if group else 0 for group in (fine, wrong)]
        cells.append(f"{times[0]:.2f}, {times[1]:.2f}, {max(j.seconds for j in here):.2f}")
        print("| " + " | ".join([area.replace("_", " "), *cells]) + " |")
    kinks = [j for j in found if j.case.area == "kinks"]
    if kinks:
        alarms, said = sum(j.called == "wrong" for j in kinks), sum(j.where for j in kinks)
        print(
            f"\nKinks, ties, constant features: {alarms} of {len(kinks)} right pairs are called wrong; {said} say so."
        )


def peers(chosen: list[Case]) -> None:
    """The same cases through PyTorch's and JAX's checkers, each at its defaults."""
    import jax

    from . import checkers

    def wrapped(case: Case) -> checkers.Case:
        inputs = case.inputs()
        floats = [i for i, x in enumerate(inputs) if x.dtype.kind == "f"]
        one, other = case.pair

        def full(arrays: Any) -> list[Any]:
            filled = list(inputs)
            for i, a in zip(floats, arrays, strict=True):
                filled[i] = np.array(a)
            return filled

        def forward(*arrays: Any) -> Any:
            return np.asarray(one(*full(arrays))[0])

        def backward(dy: Any, *arrays: Any) -> Any:
            given = other(np.array(dy), one(*full(arrays))[1])
            given = given if isinstance(given, tuple) else (given,)
            return tuple([given[i] for i in floats])

        return checkers.Case(case.title, "", forward, backward, tuple(inputs[i] for i in floats), bool(case.slip), one)

    def through(check: Callable[[checkers.Case], None], case: Case) -> bool:
        try:
            return checkers.passes(check, wrapped(case))
        except Exception:  # a backward that raises is rejected
            return False

    print("\n| checker | wrong rejected | right called wrong | kinks called wrong | seconds |\n|---|---|---|---|---|")
    for name, check, wide in (
        ("torch.autograd.gradcheck", checkers.pytorch, False),
        ("jax.test_util.check_grads, float32", checkers.google, False),
        ("jax.test_util.check_grads, float64", checkers.google, True),
    ):
        with jax.enable_x64(wide):
            start = time.perf_counter()
            passed = [(case, through(check, case)) for case in chosen]
        wrong = [ok for case, ok in passed if case.slip]
        fine = [ok for case, ok in passed if not case.slip and case.area != "kinks"]
        kinks = [ok for case, ok in passed if case.area == "kinks"]
        cells = [share(wrong.count(False), len(wrong)), share(fine.count(False), len(fine))]
        cells += [share(kinks.count(False), len(kinks)), f"{time.perf_counter() - start:.0f}"]
        print("| " + " | ".join([f"`{name}`", *cells]) + " |", flush=True)


def main() -> None:
    """Judge the set and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=("train", "held"), help="one half of the set")
    parser.add_argument("--area", choices=AREAS, help="one area")
    parser.add_argument("--peers", action="store_true", help="PyTorch's and JAX's checkers too")
    parser.add_argument("--list", action="store_true", help="what was missed, with its verdict")
    args = parser.parse_args()
    chosen = [c for c in cases() if args.half in (None, c.half) and args.area in (None, c.area)]
    with np.errstate(all="ignore"):
        found = [judged(case) for case in chosen]
        report(found)
        if args.peers:
            peers(chosen)
    for j in found if args.list else ():
        if j.called != ("wrong" if j.case.slip else "right") or (j.case.slip and not j.named):
            print(f"\n--- {j.case.title} ({j.case.slip.kind if j.case.slip else 'right'}): {j.called}\n{j.text}")


if __name__ == "__main__":
    main()
