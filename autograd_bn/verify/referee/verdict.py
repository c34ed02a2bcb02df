"""What the referee found, as a table for readers, HTML for notebooks and JSON for graders."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .mistakes import Finding


@dataclass(frozen=True)
class Row:
    """One judged gradient: `what` is "gradient" or "intermediate", errors are of the worst entry."""

    name: str
    what: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    ok: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """What the referee found. True in a condition when everything is right.

    `rows` has an entry for each gradient, and for each intermediate gradient that could be matched with the
    forward pass, in backward order. `diagnosis` holds the findings, the most telling first: each has
    `kind`, `gradients`, `what` and `repair`, and reads as a sentence or two. `notes` say what else a reader
    should know, such as how the truth was found.
    """

    ok: bool
    rows: tuple[Row, ...]
    diagnosis: tuple[Finding, ...]
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first_wrong(self) -> str | None:
        """The first wrong step in the order of the backward pass, where steps could be judged."""
        return next((row.name for row in self.rows if row.what == "intermediate" and not row.ok), None)

    def __str__(self) -> str:
        lines = [self._headline()]
        many = len(self.diagnosis) > 1
        for i, finding in enumerate(self.diagnosis, 1):
            lines += [f"{i}. {finding.what}" if many else finding.what]
            lines += [f"   Repair: {finding.repair}" if many else f"Repair: {finding.repair}"] if finding.repair else []
        if self.first_wrong is not None:
            lines.append(f"First wrong step in backward order: {self.first_wrong}.")
        lines += ["", *_table(self.rows)]
        lines += ["", *[f"Note: {note}" for note in self.notes]] if self.notes else []
        return "\n".join(lines)

    __repr__ = __str__

    def _headline(self) -> str:
        wrong = [row.name for row in self.rows if row.what == "gradient" and not row.ok]
        total = sum(row.what == "gradient" for row in self.rows)
        if self.ok:
            return f"RIGHT: {'the gradient is' if total == 1 else f'all {total} gradients are'} right."
        if not wrong:
            return "WRONG, though the gradients of the inputs are right."
        return f"WRONG: {', '.join(wrong)}" + (f" ({len(wrong)} of {total} gradients)." if total > 1 else ".")

    def _repr_html_(self) -> str:
        escape = html.escape
        items = "".join(
            f"<li>{escape(f.what)}{f' <b>Repair:</b> {escape(f.repair)}' if f.repair else ''}</li>"
            for f in self.diagnosis
        )
        cells = "".join(
            f"<tr><td><code>{escape(r.name)}</code></td><td>{r.shape}</td><td>{_figure(r.max_abs)}</td>"
            f"<td>{_figure(r.max_rel)}</td><td>{'right' if r.ok else '<b>wrong</b>'}</td><td>{escape(r.note)}</td></tr>"
            for r in self.rows
        )
        first = (
            f"<p>First wrong step in backward order: <code>{escape(self.first_wrong)}</code>.</p>"
            if self.first_wrong
            else ""
        )
        notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in self.notes)
        head = "".join(f"<th>{h}</th>" for h in ("gradient", "shape", "max |error|", "relative", "verdict", ""))
        return (
            f"<div><p><b>{escape(self._headline())}</b></p><ol>{items}</ol>{first}"
            f"<table><tr>{head}</tr>{cells}</table>{notes}</div>"
        )

    def to_json(self) -> str:
        """The verdict as JSON, for graders."""
        return json.dumps(
            {
                "ok": self.ok,
                "rows": [asdict(row) for row in self.rows],
                "diagnosis": [asdict(finding) for finding in self.diagnosis],
                "first_wrong": self.first_wrong,
                "notes": list(self.notes),
            },
            indent=2,
        )


def _figure(value: float) -> str:
    return "-" if np.isnan(value) else "0" if value == 0 else f"{value:.1e}"


def _table(rows: Sequence[Row]) -> list[str]:
    head = ("gradient", "shape", "max |error|", "relative", "verdict")
    cells = [
        (
            row.name if row.what == "gradient" else f"  {row.name}",
            "x".join(map(str, row.shape)) or "scalar",
            _figure(row.max_abs),
            _figure(row.max_rel),
            ("right" if row.ok else "wrong") + (f": {row.note}" if row.note else ""),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    aligned = [
        f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}  {line[4]}"
        for line in [head, *cells]
    ]
    return [aligned[0], "-" * len(aligned[0]), *aligned[1:]]
