"""What stands in a picture: nodes, options, numbers and arrays in a few words."""

import re
from collections import Counter
from collections.abc import Mapping
from numbers import Rational
from typing import Any

import numpy as np

from ..engine import Node

COMMUTATIVE = {"add", "multiply", "maximum", "minimum"}
# What the shapes on the edges show, and whom an allreduce talks to.
UNSHOWN = {"keepdims", "shape", "to", "comm", "call"}
WIDE = 44  # letters in a line
UNSAID = {"ddof 0", "fill 0"}
INDICES = "₀₁₂₃₄₅₆₇₈₉"
SHORT = 6  # the most elements that are printed one by one


def title(node: Node) -> list[str]:
    """The name of a leaf, or what an operation does: its name with its scalar constants, then its options."""
    if node.primitive is None:
        return [node.name or "input"]
    name = node.op or ""
    metadata = node.params["norm"].options() if node.own_op == "batch_norm" else node.params
    options = [
        f"[{text}]" if key == "index" else f"{key} {text}"
        for key, value in metadata.items()
        if key not in UNSHOWN and (text := _option_text(value)) and f"{key} {text}" not in UNSAID
    ]
    operands = ["·" if is_array(arg) else number_text(arg) for arg in node.args if arg is not None]
    if (arrays := operands.count("·")) < len(operands):
        if node.own_op in COMMUTATIVE or (arrays == 1 and operands[0] == "·"):
            operands = [text for text in operands if text != "·"]
        name += " " + ", ".join(operands)
    return [name, *options]


def numbered(names: Mapping[Node, str]) -> dict[Node, str]:
    """What to call every node of a graph: by the name it has, or as its operation, those that recur with a number."""
    bases = {node: name or node.op or title(node)[0] for node, name in names.items()}
    many, seen, called = Counter(bases.values()), Counter[str](), {}
    for node, base in bases.items():
        seen[base] += 1
        number = str(seen[base]).translate(str.maketrans("0123456789", INDICES))
        called[node] = base if many[base] == 1 or node.name else base + number
    return called


def formula(node: Node) -> str:
    """What a fused batch norm computes."""
    _, gamma, beta = node.args
    return f"{'' if gamma is None else 'gamma · '}(x − mean) / √(var + eps){'' if beta is None else ' + beta'}"


def operand_names(node: Node) -> list[str]:
    """What an operation calls its operands."""
    made = node.primitive
    if made is None or made.variadic:
        return [str(i) for i in range(len(node.args))]
    return list(made.arrays)


def is_array(arg: Any) -> bool:
    """Whether an operand has a place of its own in the picture; a scalar stands in its consumer's label."""
    return isinstance(arg, Node) or (isinstance(arg, np.ndarray) and arg.ndim > 0)


def _option_text(value: Any) -> str:
    """An option in short; nothing for None."""
    if value is None:
        return ""
    if value is Ellipsis:
        return "..."
    if isinstance(value, frozenset | tuple):
        return ", ".join([_option_text(item) or "None" for item in (value if type(value) is tuple else sorted(value))])
    if isinstance(value, slice):
        return re.sub(":$", "", ":".join([_option_text(part) for part in (value.start, value.stop, value.step)]))
    if isinstance(value, np.ndarray | list):
        array = np.asarray(value)
        return "\n".join(value_text(array)) if array.size <= SHORT else f"array {array.shape}"
    return number_text(value)


def number_text(number: Any, digits: int = 6) -> str:
    """A number in at most `digits` significant digits; an exact one in full while it is short."""
    if isinstance(number, np.ndarray | np.generic):
        number = number.item()
    if isinstance(number, float | np.longdouble):
        return f"{number + 0:.{digits}g}"
    text = str(number)
    return text if len(text) <= 12 or not isinstance(number, Rational) else f"{float(number):.{digits}g}"


def value_text(value: Any, what: str = "", brief: bool = False) -> list[str]:
    """The lines for an array, behind `what` it is: a short one as it stands, of a long one its mean and range.

    In `brief`, for few letters, it is short up to three numbers, and long without a mean.
    """
    array = np.asarray(value)
    if not array.size:
        return [f"{what}{array.shape}"]
    array = array.reshape(-1) if brief and array.ndim else array
    whole, numbers = array.size <= (3 if brief else SHORT), array.astype(float)
    finite, noise = np.isfinite(numbers), 0.0
    if array.dtype.kind == "f" and array.size > 1 and (whole or not brief):  # what is so small is rounding
        noise = 16 * float(np.finfo(array.dtype).eps) * np.max(np.abs(numbers), initial=0, where=finite)

    def text(number: Any, noise: float = noise) -> str:
        return "≈ 0" if 0 < abs(number) <= noise else number_text(number, 4 if whole or not brief else 3)

    if whole:
        listed = what + np.array2string(array, separator=", ", formatter={"all": text})
        return [line.strip() for line in listed.split("\n") if line]
    known, lost = (array if brief else numbers)[finite], np.count_nonzero(~finite)
    lines = [f"{what}{lost} of {array.size} not finite"] if lost else []
    if not known.size:
        return lines
    low, high = text(known.min()), text(known.max())
    if low == high:
        return [*lines, f"{what}all {'' if known.min() == known.max() or low == '≈ 0' else '≈ '}{low}"]
    if brief:
        return [*lines, f"{what}{low} … {high}"]
    with np.errstate(all="ignore"):
        return [*lines, f"{what}mean {text(known.mean(), 64 * noise)}", f"{what}range {low} to {high}"]


def wrapped(line: str) -> list[str]:
    """A line of text in parts of at most `WIDE` letters, broken behind blanks and signs where there are some."""
    return re.findall(rf".{{1,{WIDE}}}(?=$)|.{{1,{WIDE - 1}}}[\s_.,:;/-]|.{{{WIDE}}}", line, re.DOTALL) or [line]
