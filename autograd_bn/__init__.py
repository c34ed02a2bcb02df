"""Automatic differentiation in which batch norm is a node that can be opened, checked and trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import batch_norm as _batch_norm, distributed as distributed, engine as _engine
from .batch_norm import *  # noqa: F403
from .engine import *  # noqa: F403
from .engine import words as _words

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import nn as nn
    from .batch_norm.fusion import expand as expand, fuse as fuse
    from .drawing.page import page as page
    from .drawing.render import render as render, to_dot as to_dot
    from .nn import data as data, optim as optim
    from .nn.checkpoint import load as load, save as save
    from .verify.compare import Comparison as Comparison, compare as compare
    from .verify.derivation import Derivation as Derivation, write_backward as write_backward
    from .verify.gradcheck import GradientError as GradientError, gradcheck as gradcheck
    from .verify.proof import Proof as Proof, prove_equal as prove_equal, rational_batch as rational_batch
    from .verify.referee import Verdict as Verdict, check_backward as check_backward

# The same by module: what a first forward and backward pass does not need is imported when it is first asked for.
_LATER = {
    "batch_norm.fusion": "expand fuse",
    "drawing.page": "page",
    "drawing.render": "render to_dot",
    "nn": "data optim",
    "nn.checkpoint": "load save",
    "verify.compare": "Comparison compare",
    "verify.derivation": "Derivation write_backward",
    "verify.gradcheck": "GradientError gradcheck",
    "verify.proof": "Proof prove_equal rational_batch",
    "verify.referee": "Verdict check_backward",
}


def _html(shown: Any) -> str | None:
    from .drawing.render import html

    return html(shown)


Graph._repr_html_ = Tensor._repr_html_ = _html  # type: ignore[attr-defined]  # noqa: F405


def __getattr__(name: str) -> Any:
    if name == "nn":
        return import_module(".nn", __name__)
    for module, names in _LATER.items():
        if name in names.split():
            globals()[name] = value = getattr(import_module(f".{module}", __name__), name)
            return value
    raise AttributeError(_words.missing(f"module {__name__!r} has no attribute {name!r}", name))


def __dir__() -> list[str]:
    modules = "__version__ distributed nn".split()
    return sorted({*_engine.__all__, *_batch_norm.__all__, *modules, *" ".join(_LATER.values()).split()})
