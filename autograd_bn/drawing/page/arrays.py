"""Arrays as a page holds them: short ones whole, of long ones a summary, each once."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from .. import labels

WHOLE = 64  # the most entries that are shown one by one
ENDS = 8  # ... in a large graph, and as the first of a long array
BINS, TILE = 24, 12


class Arrays:
    """The arrays of a page; `add` gives the place of one among `listed`. A `brief` page has neither tiles nor bars."""

    def __init__(self) -> None:
        self.brief = False
        self.listed: list[dict[str, Any]] = []
        self._places: dict[str, int] = {}

    def add(self, given: Any) -> int:
        """The place of an array, or of anything that NumPy makes one."""
        entry = self._entry(np.asarray(given))
        key = json.dumps(entry)
        if key not in self._places:
            self._places[key] = len(self.listed)
            self.listed.append(entry)
        return self._places[key]

    def _entry(self, array: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        flat = array.reshape(-1)
        if array.size <= (ENDS if self.brief else WHOLE):
            return {**entry, "data": [number(v) for v in flat]}
        head, tail, shown = (2, 1, _rounded) if self.brief else (ENDS, 4, number)
        entry |= {"first": [shown(v) for v in flat[:head]], "last": [shown(v) for v in flat[-tail:]]}
        floats = array.astype(float)
        finite = np.isfinite(floats)
        known = floats[finite]
        top = np.max(np.abs(known), initial=0) or 1.0
        scaled = known / top  # so that no square leaves the range
        figures = [f(scaled) * top if known.size else math.nan for f in (np.mean, np.std, np.min, np.max)]
        entry["stats"] = {
            **{name: _rounded(f) for name, f in zip(("mean", "sd", "min", "max"), figures, strict=True)},
            "zeros": int((floats == 0).sum()),
            "nonfinite": int((~finite).sum()),
        }
        if self.brief:
            return entry
        entry["hist"] = np.histogram(scaled, BINS)[0].tolist()
        plane = np.where(finite, floats / top, 0).reshape(-1, array.shape[-1] if array.ndim > 1 else array.size)
        rows, columns = (np.array_split(np.arange(n), min(TILE, n)) for n in plane.shape)
        means = np.array([[plane[r][:, c].mean() for c in columns] for r in rows])
        largest = np.max(np.abs(means)) or 1.0
        entry["tile"] = {
            "columns": len(columns),
            "max": _rounded(largest * top),
            "of127": np.round(means / largest * 127).astype(int).ravel().tolist(),
        }
        return entry


def number(value: Any) -> Any:
    """An entry for JSON: the shortest digits that give it back, text for what is no finite double."""
    if isinstance(value, np.bool_ | bool | int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return str(value) if isinstance(value, np.longdouble) else float(str(value))
    return str(value)


def _rounded(value: Any) -> Any:
    return number(float(f"{float(value):.6g}"))


def short(value: Any) -> str:
    """An array in a few characters: up to three numbers in full, of more the range."""
    array = np.asarray(value)
    if array.size <= 3 or array.dtype.kind not in "biufO":
        return labels.value_text(array.reshape(-1) if array.ndim else array)
    with np.errstate(all="ignore"):
        low, high = [labels.number_text(f(array), 3) for f in (np.min, np.max)]
    return f"all {low}" if low == high else f"{low} … {high}"
