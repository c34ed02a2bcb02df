"""Formulas as text, read off what was recorded: of an operation, and of its rules."""

from collections.abc import Mapping
from copy import copy
from functools import reduce
from typing import Any

import numpy as np

from ...batch_norm.fusion import norms
from ...engine import Graph, Leaf, Node, as_tensor
from ...engine.backward import pull
from ...engine.node import recording, topological_order
from ...verify.derivation import text
from ...verify.derivation.text import ATOM, POWER, PRODUCT, SUM
from .. import labels

# How an operation is written, how tightly that binds, and how tightly its operands have to: as code, but for these.
SIGNS = {" * ": " · ", "-": "−", ">=": "≥", "<=": "≤", "==": "=", "!=": "≠"}
FORMS = {
    op: (reduce(lambda text, sign: text.replace(*sign), SIGNS.items(), form), own, levels)
    for op, (form, own, levels) in text.FORMS.items()
    if op not in ("sigmoid", "relu", "stop_gradient", "copy")
} | {
    "power": ("{} ^ {}", POWER, (ATOM, ATOM)),
    "square": ("{}²", POWER, (ATOM,)),
    "sqrt": ("√{}", POWER, (ATOM,)),
    "rsqrt": ("1/√{}", PRODUCT, (ATOM,)),
    "transpose": ("{}ᵀ", ATOM, (ATOM,)),
    "abs": ("|{}|", ATOM, (0,)),
    "sum": ("Σ({})", ATOM, (0,)),
    "sum_to": ("Σ({})", ATOM, (0,)),
    "broadcast_to": ("spread({})", ATOM, (0,)),
}
SILENT = ("reshape", "astype", "copy")
# Operations of each element by itself: a rule that is made of them alone shows a local derivative, a factor for each.
FACTORS = frozenset(
    "add subtract multiply divide power negative exp expm1 log log1p sqrt rsqrt square abs tanh sigmoid sin cos relu "
    "maximum minimum where copy astype sum_to".split()
)


def formula(node: Node, names: Mapping[Node, str]) -> str:
    """What an operation computes."""
    if node.own_op == "batch_norm":
        return labels.formula(node)
    return "" if isinstance(node, Leaf) else _text({**names, node: ""}, node, 0)


def _text(names: Mapping[Node, str], node: Any, level: int) -> str:
    """An expression; in brackets where it binds less tightly than `level`."""
    if isinstance(node, Node) and names.get(node):
        return names[node]
    if isinstance(node, Leaf):
        node = node.data
    if not isinstance(node, Node):
        number = "c" if np.ndim(node) else labels.number_text(node).replace("-", "−")
        return f"({number})" if number[0] == "−" and level > SUM else number
    if node.own_op in SILENT:
        return _text(names, node.args[0], level)
    if node.own_op in FORMS:
        form, own, levels = FORMS[node.own_op]
        made = form.format(*[_text(names, arg, inner) for arg, inner in zip(node.args, levels, strict=False)])
        return f"({made})" if own < level else made
    return f"{node.op}({', '.join([_text(names, arg, 0) for arg in node.args if arg is not None])})"


def rules(node: Node, g: Any, names: Mapping[Node, str]) -> list[tuple[str, Any, Any]]:
    """For each input that gets a part: the rule's formula in `g`, the local derivative where it is elementwise, and
    its product with `g` where that is yet to be summed.

    The rules run once on tensors that stand for what they read, and what that records is the formula: so a wrong rule
    shows its wrong formula.
    """
    op: Any = node.primitive
    upstream, alone = as_tensor(np.asarray(g), requires_grad=True), copy(node)
    alone.args = tuple([_stand_in(arg) if isinstance(arg, Node) else arg for arg in node.args])
    called = {alone: names[node], upstream.node: "g"}
    called |= {new: names[arg] for new, arg in zip(alone.args, node.args, strict=True) if isinstance(arg, Node)}
    try:
        with recording(True):
            parts = pull(alone, upstream, create_graph=True)
    except Exception:  # a rule of the user's that runs on arrays alone has no formula to read
        return [("its own rule", None, None)] * len(node.wanted)
    roles = _roles([part.node for _, part in parts], upstream.node) if op.joint else {}
    read: list[tuple[str, Any, Any]] = []
    for position, (parent, part) in zip(node.wanted, parts, strict=True):
        if isinstance(part.node, Leaf) and part.node not in called:
            read.append(("a constant", None, None))
            continue
        local, product = None, None
        if not op.joint and {inner.own_op for inner in Graph(part).nodes if inner not in called} <= FACTORS:
            rule = op.rule(position)
            local = rule.function(np.ones_like(np.asarray(g)), *rule.pick(node.saved), **rule.about(node, position))
            product = None if upstream.shape == parent.shape else g * local
        read.append((_text({**roles, **called}, part.node, 0), local, product))
    return read


def _roles(ends: list[Node], g: Node) -> dict[Node, str]:
    """Batch norm's names for what a rule computes anew from its inputs alone, before `g` comes in."""
    moving, steady = {g}, dict[Node, None]()
    for node in topological_order(ends):
        if not moving.isdisjoint(node.inputs):
            moving.add(node)
            steady |= dict.fromkeys([parent for parent in node.inputs if parent.op and parent not in moving])
    return {inner: role for node in steady for norm in norms([node]) for inner, role in norm.items()}


def _stand_in(node: Node) -> Node:
    return as_tensor(np.zeros(node.shape, node.dtype), requires_grad=node.requires_grad).node
