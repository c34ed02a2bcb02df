"""What the referee found, as a table for readers, HTML for notebooks and JSON for graders."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...engine.node import Array
from ..table import PRE, html_prose, html_table, text_table
from .source import unwrapped
from .unrun import Place, told

if TYPE_CHECKING:
    from ..derivation import Derivation
    from .pairs import Pair


@dataclass(frozen=True)
class Finding:
    """One mistake: its kind for machines, the gradients it shows in, what is wrong and how to repair it."""

    kind: str
    gradients: tuple[str, ...]
    what: str
    repair: str

    def __str__(self) -> str:
        return f"{self.what} {self.repair}".strip()


@dataclass(frozen=True)
class Repair:
    """The smallest edit found that makes `gradients` right: in `file` from `line` on, the lines `old` become `new`."""

    file: str
    line: int
    old: str
    new: str
    gradients: tuple[str, ...]
    kind: str
    what: str

    def __str__(self) -> str:
        lines = [f"-{line}" for line in self.old.splitlines()] + [f"+{line}" for line in self.new.splitlines()]
        place = "this cell" if "ipykernel" in self.file else os.path.basename(self.file)
        return "\n".join([f"@@ {place}, line {self.line} @@", *lines])


@dataclass(frozen=True)
class Row:
    """One judged gradient: `what` is "gradient" or "intermediate", errors are of the worst entry.

    `returned` and `truth` are the arrays compared, where there are any.
    """

    name: str
    what: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    ok: bool
    note: str = ""
    returned: Array | None = field(default=None, repr=False, compare=False)
    truth: Array | None = field(default=None, repr=False, compare=False)


def row(
    name: str, what: str, gradient: Array, truth: Array, *, ok: bool, note: str, judged: Any = True, least: float = 0.0
) -> Row:
    """The row of what came back beside the truth, by its worst judged entry; no relative error for a truth of 0."""
    error = largest = np.nan
    if gradient.shape == truth.shape:
        error = float(np.max(np.abs(gradient - truth), where=judged, initial=0))
        largest = float(np.max(np.abs(truth), initial=0))
    relative = error / largest if largest > least else np.nan
    return Row(name, what, gradient.shape, error, relative, ok, note, returned=gradient, truth=truth)


@dataclass(frozen=True)
class Verdict:
    """What the referee found: `ok`, and true in a condition, where everything is right.

    `rows` has an entry for each gradient, and for each intermediate one that could be matched with the forward pass,
    in backward order. `diagnosis` holds the findings, the most telling first, `repair` the edits of the author's code
    that make the gradients right, each of which reads as a diff. `coefficients` says how much of each path of a
    normalisation a gradient carries, NaN where that is no one number, `notes` what else a reader should know.
    `forward`, `backward`, `inputs`, `dy` and `pair` are what was judged; `warnings` say what is overwritten on the way,
    `unseen` which arrays that forward reads are not judged, and `reached` whether a run reached each statement of what
    is right. `solution` is what would be right, written out; `unwritten` says what a stub does.
    """

    ok: bool
    rows: tuple[Row, ...]
    diagnosis: tuple[Finding, ...]
    notes: tuple[str, ...]
    repair: tuple[Repair, ...] = ()
    coefficients: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    forward: Callable[..., Any] | None = field(default=None, repr=False, compare=False)
    inputs: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    dy: Array | None = field(default=None, repr=False, compare=False)
    warnings: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    convention: str = ""
    pair: Pair | None = field(default=None, repr=False, compare=False)
    unwritten: str = ""
    reached: Mapping[Place, bool] = field(default_factory=dict, repr=False, compare=False)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def status(self) -> str:
        """One of right, wrong, unwritten, and convention: a gradient that is other than the derivative on purpose."""
        if self.unwritten:
            return "unwritten"
        return "right" if self.ok else "convention" if self.convention else "wrong"

    @property
    def unrun(self) -> tuple[Place, ...]:
        """Which statements of what is right no run reached."""
        return tuple(sorted([place for place, ran in self.reached.items() if not ran]))

    @property
    def first_wrong(self) -> str | None:
        """The first wrong step in the order of the backward pass, where steps could be judged."""
        return next((row.name for row in self.rows if row.what == "intermediate" and not row.ok), None)

    @property
    def remarks(self) -> list[str]:
        """What a reader should know beside the findings."""
        return [*self.warnings, *self.notes, *[f"Not judged: {what}." for what in self._unjudged]]

    @property
    def _unjudged(self) -> list[str]:
        """What a reader must not take for right."""
        return [*self.unseen, *[f"{told(self.unrun)}, which no run reached" for _ in self.unrun[:1]]]

    @property
    def backward(self) -> Callable[..., Any] | None:
        """The author's backward pass."""
        return self.pair.source if self.pair else None

    @cached_property
    def solution(self) -> Derivation | None:
        """What would be right in the place of the author's backward pass; None where that can't be written."""
        from ..derivation import solution
        from .outside import as_it_was

        if self.status != "wrong" or self.pair is None:
            return None
        try:
            with as_it_was(unwrapped(self.pair.forward), self.pair.source):
                return solution(self.pair)
        except Exception:  # the author's own, or why none can be written
            return None

    def __str__(self) -> str:
        lines = [self._headline()]
        for i, finding in enumerate(self.diagnosis, 1):
            number, indent = (f"{i}. ", "   ") if len(self.diagnosis) > 1 else ("", "")
            lines += [f"{number}{finding.what}"]
            lines += [f"{indent}Repair: {finding.repair}"] if finding.repair else []
        code = [] if self.repair or not self.solution else ["What would be right:\n", self.solution.source.rstrip()]
        steps = [f"Warning: {warning}" for warning in self.warnings]
        steps += [f"First wrong step in backward order: {self.first_wrong}."] if self.first_wrong else []
        table = [text_table(_HEAD, self._cells(), right=(2, 3))] if self.rows else []
        notes = [f"Note: {note}" for note in (*self.notes, *[f"Not judged: {what}" for what in self._unjudged])]
        blocks = lines, map(str, self.repair), code, steps, table, notes
        return "\n\n".join(filter(None, map("\n".join, blocks)))

    __repr__ = __str__

    def _headline(self) -> str:
        wrong = [row.name for row in self.rows if row.what == "gradient" and not row.ok]
        total = sum(row.what == "gradient" and row.note != UNJUDGED for row in self.rows)
        if self.ok:
            warned = ", with a warning" if self.warnings else ""
            return f"RIGHT: {'the gradient is' if total == 1 else f'all {total} gradients are'} right{warned}."
        if self.unwritten:
            return f"UNWRITTEN: {self.unwritten}."
        if self.convention:
            return f"CONVENTION, and no mistake: {', '.join(wrong)}."
        if not wrong:
            return "WRONG, though the gradients of the inputs are right."
        return f"WRONG: {', '.join(wrong)}" + (f" ({len(wrong)} of {total} gradients)." if total > 1 else ".")

    def _cells(self) -> list[tuple[str, ...]]:
        name: Any = lambda row: row.name if row.what == "gradient" else f"  {row.name}"
        size: Any = lambda row: "x".join(map(str, row.shape)) or "scalar"
        worded: Any = lambda row: ("right" if row.ok else "wrong") + (f": {row.note}" if row.note else "")
        said: Any = lambda row: UNJUDGED if row.note == UNJUDGED else worded(row)
        return [(name(row), size(row), _figure(row.max_abs), _figure(row.max_rel), said(row)) for row in self.rows]

    def _repr_html_(self) -> str:
        escape = html.escape
        mend: Any = lambda repair: f" <b>Repair:</b> {html_prose(repair)}" if repair else ""
        items = "".join(f"<li>{html_prose(f.what)}{mend(f.repair)}</li>" for f in self.diagnosis)
        edits = "".join(f"{PRE}{escape(str(repair))}</pre>" for repair in self.repair)
        code = self.solution and f"{PRE}{escape(self.solution.source.rstrip())}</pre>"
        edits += f"<details><summary>What would be right</summary>{code}</details>" if code else ""
        step = escape(self.first_wrong or "")
        first = f"<p>First wrong step in backward order: <code>{step}</code>.</p>" if step else ""
        notes = "".join(f"<p><i>{html_prose(note)}</i></p>" for note in self.remarks)
        head = f"<p><b>{escape(self._headline())}</b></p>"
        return f"<div>{head}<ol>{items}</ol>{edits}{first}{html_table(_HEAD, self._cells())}{notes}</div>"


UNJUDGED = "not judged"  # of a row in which no entry is
_HEAD = ("gradient", "shape", "max |error|", "relative", "verdict")


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.1e}"
