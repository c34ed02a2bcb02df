"""What a backward pass returned, matched by place or by name with what each array should be the gradient of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...engine.node import Array
from .inputs import Inputs
from .verdict import Finding

ROLES = {
    "xhat": "xhat xnorm xnormalized xnormalised xn normed normalized normalised hatx xnormal normx",
    "mean": "mean mu samplemean batchmean mub avg average m",
    "var": "var variance sigma2 sigmasq sigmasquared samplevar batchvar vari v sigsq",
    "std": "std sqrtvar sigma sd stddev samplestd",
    "invstd": "ivar inv invvar invstd rstd istd inversestd invsqrtvar stdinv",
}
_ONE_EACH = "Return one gradient an input, in forward's order."


def plain(name: str) -> str:
    """A name without underscores and capitals."""
    return name.lower().replace("_", "")


def canonical(name: str) -> str | None:
    """The textbook's name for what somebody called `name`."""
    return next((role for role, names in ROLES.items() if plain(name) in names.split()), None)


def derivative_of(key: str) -> list[str]:
    """What `key` may be the gradient of: `dx`, `grad_x`, `x_grad`, `dL_dx` of x; `x` itself comes last."""
    short = plain(key)
    prefixes = ("dlossd", "dld", "gradient", "grad", "delta", "d", "g")
    found = [short[len(prefix) :] for prefix in prefixes if short.startswith(prefix)]
    found += [short[: -len(suffix)] for suffix in ("gradient", "grad") if short.endswith(suffix)]
    return [name for name in [*found, short] if name]


@dataclass
class Returned:
    """What backward returned: gradients of inputs by the inputs' names, other arrays, and what is wrong with them.

    `faults` says what it and forward overwrite, `failure` what it raised.
    """

    gradients: dict[str, Array] = field(default_factory=dict)
    others: dict[str, Array] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    failure: str | None = None

    def sort(self, returned: Any, inputs: Inputs, truth: dict[str, Array]) -> None:
        """Match what came back with the inputs, of which those in `truth` have a gradient."""
        if isinstance(returned, dict):
            known = {plain(name): name for name in inputs}
            for key, value in returned.items():
                name = next((known[n] for n in derivative_of(str(key)) if n in known), None)
                free = name is not None and name not in self.gradients
                self._keep(self.gradients if free else self.others, name if free else key, str(key), value)
        else:
            listed = list(returned) if isinstance(returned, tuple | list) else [returned]
            while len(listed) > len(inputs) and listed[-1] is None:
                listed.pop()  # for an argument left to its default
            wanted = list(inputs if len(listed) == len(inputs) else truth)
            if len(listed) > len(wanted):
                what = f"backward returned {len(listed)} gradients for {len(wanted)} inputs ({', '.join(wanted)})."
                self.findings.append(Finding("count", (), what, _ONE_EACH))
            for name, value in zip(wanted, listed, strict=False):
                if value is not None and name in truth:
                    self._keep(self.gradients, name, f"d{name}", value)
                elif value is not None:
                    kind = getattr(inputs[name], "dtype", type(inputs[name]).__name__)
                    self.notes.append(f"d{name} is not judged: {name} is no array of floats ({kind}).")
        refused = {label for finding in self.findings for label in finding.gradients}
        for name in [name for name in truth if name not in self.gradients and f"d{name}" not in refused]:
            if np.any(truth[name]) and not _constant(name, inputs[name]):
                what = f"backward returned no gradient for {name}."
                self.findings.append(Finding("count", (f"d{name}",), what, _ONE_EACH))
            else:
                self.notes.append(f"No gradient came back for {name}, which is taken for a constant.")

    def _keep(self, where: dict[str, Array], name: Any, label: str, value: Any) -> None:
        try:
            array = np.asarray(value)
        except ValueError:
            array = np.asarray(None)
        if array.dtype.kind in "fiub":
            where[str(name)] = array.astype(np.float64)
        else:
            what = f"{label} is a {type(value).__name__}, expected an array of floats."
            self.findings.append(Finding("type", (label,), what, "Return a NumPy array."))


def _constant(name: str, value: Array) -> bool:
    """Whether backward may leave an input out: by its name, or as labels, masks and one-hot rows are whole numbers."""
    words = ("running", "moving", "population", "eps", "target", "label", "mask")
    return any(word in name.lower() for word in words) or bool(np.all(value == np.round(value)))
