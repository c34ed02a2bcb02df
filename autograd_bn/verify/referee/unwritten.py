"""What is yet to be written: a stub is no mistake."""

import ast
import copy
import re
from contextlib import suppress
from traceback import extract_tb
from typing import Any

import numpy as np

from ..gradcheck import Unjudgeable
from .author import returned_names
from .held import is_float
from .names import COST, is_constant
from .pairs import Pair, stirred
from .source import code_of, signature, syntax, unwrapped

_TODO = re.compile(r"todo|implement|your code|fill|not done|unwritten|finish", re.IGNORECASE)


def noted(error: Exception) -> Exception:
    """An exception, as `NotImplementedError` where it is an author's note that nothing stands there yet."""
    todo = isinstance(error, NotImplementedError)
    if todo and re.search(r"not implemented for '\w+'$", str(error)):  # PyTorch's, of a type that was guessed
        return TypeError(str(error))
    if isinstance(error, TypeError):  # or `raise NotImplemented`
        todo = bool(re.search("abstract class|must derive from BaseException", str(error)))
    elif isinstance(error, AssertionError) and not isinstance(error, Unjudgeable):
        lines = [step.line or "" for step in extract_tb(error.__traceback__)[-1:]]
        todo = bool(_TODO.search(str(error)) or re.match(r"assert (False|0)\b", "".join(lines)))
    return NotImplementedError(str(error) or f"it raises {type(error).__name__}") if todo else error


def written(pair: Pair) -> None:
    """`NotImplementedError` where one of the passes isn't written yet."""
    y, kept = pair.forward(*copy.deepcopy(pair.inputs))
    if y is None:
        raise NotImplementedError("forward returned None")
    try:
        back = pair.call(pair.source, np.ones(np.shape(y)), kept)
    except Unjudgeable:
        raise
    except Exception as error:
        if isinstance(todo := noted(error), NotImplementedError):
            raise todo from None
        return  # for the verdict to report
    floats = [n for n, v in zip(pair.names, pair.inputs, strict=True) if is_float(v) and not is_constant(n, v)]
    handed, returned = {*pair.names} & {*signature(pair.source)}, returned_names(pair.source)
    if len(returned) > 1 and {*returned} <= handed and "=" not in code_of(pair.source, 0):
        raise NotImplementedError("backward returns what it is handed")
    listed = back.listed
    left = [name for name, value in back.left.items() if value is not None]
    if isinstance(back.back, dict) or (back.back is None and left):
        return
    none = [n for n, v in zip(back.names, listed, strict=False) if v is None and n in floats and n not in left]
    none = none if len(listed) == len(back.names) else []
    if all(value is None for value in listed) and not left:
        none = floats
    if none and pair.truth is not None and len(none) < len(floats):  # as PyTorch has it for constants
        raise ValueError(f"backward takes {', '.join(none)} for constants, and returns None for them")
    if none:
        raise NotImplementedError(f"backward returned None for {', '.join(none)}")
    numbers = [v for v in [*listed, *back.left.values()] if v is not None]
    with suppress(TypeError, ValueError):
        if not any(np.any(np.asarray(v, dtype=float)) for v in numbers):
            _refuse_zeros(pair, y, bool(left))


def _refuse_zeros(pair: Pair, y: Any, left: bool) -> None:
    """`NotImplementedError` where the zeros that came back, and not what was `left` behind, are all that is written."""
    rng = np.random.default_rng(4)
    moved = [stirred(v, rng) if is_float(v) else v for v in copy.deepcopy(pair.inputs)]
    same = np.array_equal(y, pair.forward(*moved)[0])
    if same and not re.search(r"[-+*/@](?!>)", code_of(pair.forward, 0)):  # `0 * x` is no stub
        raise NotImplementedError("forward returns the same for all inputs, and backward zeros")
    whole = unwrapped(pair.forward) is unwrapped(pair.source)  # a loss with its gradient
    if not left and (whole or not same) and _only_zeros(pair.source):
        raise NotImplementedError("backward returns zeros, as they were made at its start")


_ZEROS = re.compile(r"(\w+\.)?(zeros|zeros_like|empty|empty_like)\(.*|0(\.0*)?|None|\[\]", re.DOTALL)


def _only_zeros(function: Any) -> bool:
    """Whether the arrays that a function returns are made of zeros, and nothing else is ever put into them."""
    names = {name for name in returned_names(function) if not re.fullmatch(COST, name)}
    made, filled = set[str](), set[str]()
    for node in ast.walk(syntax(function)):
        if isinstance(node, ast.Assign | ast.AugAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                pairs: Any = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = zip(target.elts, node.value.elts, strict=False)
                for part, value in pairs:
                    inner = part.value if isinstance(part, ast.Subscript) else part
                    zeros = _ZEROS.fullmatch(ast.unparse(value))
                    (made if zeros else filled).add(getattr(inner, "id", getattr(inner, "attr", "")))
        elif isinstance(node, ast.Call) and "zeros" not in ast.unparse(node.func):  # np.add.at(dW, ...)
            filled |= {part.id for part in node.args if isinstance(part, ast.Name)}
    return bool(names) and names <= made - filled
