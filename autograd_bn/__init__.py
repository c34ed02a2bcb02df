"""Automatic differentiation in which batch norm is a node that can be opened, checked and trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import distributed as distributed
from .batch_norm import *  # noqa: F403
from .engine import *  # noqa: F403

__version__ = "0.1.0"

# What a first forward and backward pass does not need is imported when it is first asked for.
_ROOMS: dict[str, str] = {
    "Verdict": "verify.referee:Verdict",
    "check_backward": "verify.referee:check_backward",
    "Comparison": "verify.compare:Comparison",
    "GradientError": "verify.gradcheck:GradientError",
    "Proof": "verify.proof:Proof",
    "compare": "verify.compare:compare",
    "data": "nn.data",
    "expand": "batch_norm.fusion:expand",
    "fuse": "batch_norm.fusion:fuse",
    "gradcheck": "verify.gradcheck:gradcheck",
    "load": "nn.checkpoint:load",
    "nn": "nn",
    "optim": "nn.optim",
    "page": "drawing.page:page",
    "prove_equal": "verify.proof:prove_equal",
    "rational_batch": "verify.proof:rational_batch",
    "render": "drawing.picture:render",
    "save": "nn.checkpoint:save",
    "to_dot": "drawing.picture:to_dot",
}

if TYPE_CHECKING:
    from . import nn as nn
    from .batch_norm.fusion import expand as expand
    from .batch_norm.fusion import fuse as fuse
    from .drawing.page import page as page
    from .drawing.picture import render as render
    from .drawing.picture import to_dot as to_dot
    from .nn import data as data
    from .nn import optim as optim
    from .nn.checkpoint import load as load
    from .nn.checkpoint import save as save
    from .verify.compare import Comparison as Comparison
    from .verify.compare import compare as compare
    from .verify.gradcheck import GradientError as GradientError
    from .verify.gradcheck import gradcheck as gradcheck
    from .verify.proof import Proof as Proof
    from .verify.proof import prove_equal as prove_equal
    from .verify.proof import rational_batch as rational_batch
    from .verify.referee import Verdict as Verdict
    from .verify.referee import check_backward as check_backward


def _html(shown: Any) -> str | None:
    from .drawing.picture import html

    return html(shown)


Graph._repr_html_ = Tensor._repr_html_ = _html  # type: ignore[attr-defined]  # noqa: F405


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _ROOMS[name].partition(":")
    found = import_module(f".{module}", __name__)
    globals()[name] = found = getattr(found, attribute) if attribute else found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
