"""Formulas as text, read off what was recorded: of an operation, and of its rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...batch_norm.fusion import norms
from ...engine import Graph, Leaf, Node, Tensor, as_tensor
from ...engine.node import recording
from .. import labels

SUM, PRODUCT, POWER, ATOM = 1, 2, 3, 4
INFIX = {
    "add": ("+", SUM),
    "subtract": ("−", SUM),
    "multiply": ("·", PRODUCT),
    "divide": ("/", PRODUCT),
    "matmul": ("@", PRODUCT),
    "power": ("^", POWER),
}
# What stands around the only operand, and how tightly the result and the operand bind.
AROUND = {
    "negative": ("−", "", PRODUCT, PRODUCT),
    "square": ("", "²", POWER, ATOM),
    "sqrt": ("√", "", POWER, ATOM),
    "rsqrt": ("1/√", "", PRODUCT, ATOM),
    "transpose": ("", "ᵀ", ATOM, ATOM),
    "abs": ("|", "|", ATOM, 0),
    "sum": ("Σ(", ")", ATOM, 0),
    "broadcast_to": ("spread(", ")", ATOM, 0),
}
SILENT = ("reshape", "astype", "copy")
# Operations whose derivative is a factor for each element.
ELEMENTWISE = frozenset(
    "add subtract multiply divide power negative exp expm1 log log1p sqrt rsqrt square abs tanh sigmoid sin cos relu "
    "maximum minimum where copy astype".split()
)


def formula(node: Node, names: Mapping[Node, str]) -> str:
    """What an operation computes."""
    if node.op == "batch_norm":
        return labels.formula(node)
    return "" if isinstance(node, Leaf) else _text({**names, node: ""}, node, 0)


def _text(names: Mapping[Node, str], node: Any, level: int) -> str:
    """An expression; in brackets where it binds less tightly than `level`."""
    if not isinstance(node, Node):
        text = "c" if np.ndim(node) else labels.number_text(node).replace("-", "−")
        return _bracketed(text, SUM if text[0] == "−" else ATOM, level)
    if names.get(node):
        return names[node]
    if isinstance(node, Leaf):
        return "c" if node.shape else _text(names, node.data, level)
    args = node.args
    if node.op in SILENT:
        return _text(names, args[0], level)
    if node.op in INFIX:
        sign, own = INFIX[node.op]
        right = own if sign in "+·@" else own + 1
        return _bracketed(f"{_text(names, args[0], own)} {sign} {_text(names, args[1], right)}", own, level)
    if node.op in AROUND:
        before, after, own, inner = AROUND[node.op]
        return _bracketed(before + _text(names, args[0], inner) + after, own, level)
    inside = ", ".join([_text(names, arg, 0) for arg in args if arg is not None])
    return f"{node.op}({inside})"


def _bracketed(text: str, own: int, level: int) -> str:
    return f"({text})" if own < level else text


def rules(node: Node, g: Any, names: Mapping[Node, str]) -> dict[int, tuple[str, Any, Any]]:
    """For each input that gets a part: the rule's formula in `g`, the local derivative where it is elementwise, and
    what the rule gives where that is yet to be summed.

    The rule runs once on tensors that stand for what it reads, and what that records is the formula: so a wrong rule
    shows its wrong formula.
    """
    op: Any = node.primitive
    called: dict[Node, str] = {}

    def stand_in(value: Any, name: str, requires_grad: bool) -> Tensor:
        tensor = as_tensor(np.asarray(value), requires_grad=requires_grad)
        called[tensor.node] = name
        return tensor

    upstream = stand_in(g, "g", True)
    saved = [
        stand_in(value, names[source], source.requires_grad)
        if isinstance(source, Node) and value is not None
        else value
        for source, value in zip((*node.args, node, None), node.saved, strict=False)
    ]
    flags = [tuple([position in node.wanted for position in range(len(node.args))])] if op.joint else []
    found: dict[int, tuple[str, Any, Any]] = {}
    outs: Any = None
    for position in node.wanted:
        rule = op.rule(position)
        about = rule.about(node, position)
        try:
            if outs is None or not op.joint:
                with recording(True):
                    outs = rule.function(upstream, *flags, *rule.pick(saved), **about)
        except Exception:  # a rule of the user's that runs on arrays alone has no formula to read
            found[position] = ("its own rule", None, None)
            continue
        out = outs[position] if op.joint else outs
        if not isinstance(out, Tensor):
            found[position] = ("a constant", None, None)
            continue
        roles = {inner: role for norm in norms([out]) for inner, role in norm.items()} if op.joint else {}
        text, local = _text({**roles, **called}, out.node, 0), None
        if not op.joint and {inner.op for inner in Graph(out).nodes if inner.op} <= ELEMENTWISE:
            local = rule.function(np.ones_like(np.asarray(g)), *rule.pick(node.saved), **about)
        fits = out.shape == node.args[position].shape
        found[position] = (text, local, None) if fits else (f"Σ({text})", local, out.data)
    return found
