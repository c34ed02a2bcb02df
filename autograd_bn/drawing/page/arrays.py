"""Arrays as a page holds them: short ones whole, of long ones a summary, each once."""

import json
import math
from typing import Any

import numpy as np

WHOLE = 64  # the most entries that are shown one by one
FEW = 8  # ... in a large graph
BINS, TILE = 16, 8
# A letter for each of the shades of a tile, from the most negative to the most positive.
SHADES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxy"


class Arrays:
    """The arrays of a page; `add` gives the place of one among `listed`. A `brief` page has neither tiles nor bars."""

    def __init__(self) -> None:
        self.brief = False
        self.places: dict[str, int] = {}
        self.entries: dict[Any, str] = {}  # by bytes: most arrays come more than once

    @property
    def listed(self) -> list[Any]:
        """The arrays for JSON, in the order in which they came."""
        return [json.loads(entry) for entry in self.places]

    def add(self, values: Any) -> int:
        """The place of an array, or of anything that NumPy makes one."""
        array = np.asarray(values)
        key = array.dtype, array.shape, array.tobytes()
        if array.dtype == object or key not in self.entries:  # the bytes of objects are their places
            self.entries[key] = json.dumps(self._entry(array))
        return self.places.setdefault(self.entries[key], len(self.places))

    def _entry(self, array: Any) -> dict[str, Any]:
        entry: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
        flat = array.reshape(-1)
        if array.size <= (FEW if self.brief else WHOLE):
            return {**entry, "data": [*map(str if array.dtype == object else number, flat)]}
        head, tail = (2, 1) if self.brief else (4, 2)
        floats = array.astype(float)
        finite = np.isfinite(floats)
        known = floats[finite]
        top = np.max(np.abs(known), initial=0) or 1.0
        scaled = known / top  # so that no square leaves the range
        figures = [f(scaled) * top if known.size else math.nan for f in (np.mean, np.std, np.min, np.max)]
        entry |= {
            "first": [_rounded(v) for v in flat[:head]],
            "last": [_rounded(v) for v in flat[-tail:]],
            "stats": {
                **{name: _rounded(f) for name, f in zip(("mean", "sd", "min", "max"), figures, strict=True)},
                "zeros": int((floats == 0).sum()),
                "nonfinite": int((~finite).sum()),
            },
        }
        if not self.brief:
            plane = np.where(finite, floats / top, 0).reshape(-1, array.shape[-1] if array.ndim > 1 else array.size)
            rows, columns = (np.array_split(np.arange(n), min(TILE, n)) for n in plane.shape)
            means = np.array([plane[r][:, c].mean() for r in rows for c in columns])
            middle = len(SHADES) // 2
            shades = middle + np.rint(means / (np.max(np.abs(means)) or 1.0) * middle).astype(int)
            entry["hist"] = np.histogram(scaled, BINS)[0].tolist()
            entry["tile"] = {"columns": len(columns), "shades": "".join([SHADES[i] for i in shades])}
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
    """Four digits of what stands in a summary, so that forms which differ by rounding share one."""
    return number(float(f"{float(value):.4g}"))
