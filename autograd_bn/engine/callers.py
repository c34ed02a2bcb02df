"""What the code that uses a tensor does with it, where only its frame can tell."""

import dis
import math
import sys
from functools import lru_cache
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import Any

STORING = ("__setitem__", "astype", "fill", "fromiter", "setitem")
# What jumps only, and is asked for to decide something or to show it.
STEPS = (math.ceil, math.floor, math.isclose, math.isfinite, math.isinf, math.isnan, math.trunc)


def takes_unasked(frame: FrameType) -> bool:
    """Whether what takes the number of t is `array[i] = t`, `array.fill(t)` or their like, or `math.exp(t)`."""
    steps = _steps(frame.f_code, frame.f_lasti)
    if any(op == "STORE_SUBSCR" or name in STORING for name, op in steps):
        return True
    names = [name for name, _ in steps if isinstance(name, str)]
    function = _named(names.pop(), frame) if names else None
    function = getattr(function, names.pop(), None) if function is math and names else function
    return getattr(function, "__module__", None) == "math" and function not in STEPS


def converts_unasked(frame: FrameType, copy: Any) -> bool:
    """Whether what turns t into an array is not `np.asarray(t)`, `np.array(t)` or the like outside of NumPy and SciPy.

    For a tensor in a list, NumPy leaves the `copy` of `np.array` out.
    """
    room = frame.f_globals.get("__name__", "").split(".")
    if room[0] in ("numpy", "scipy"):
        return "testing" not in room[1:2]
    step, *before = _steps(frame.f_code, frame.f_lasti)
    names = [name for name, _ in before if isinstance(name, str)] if "CALL" in step[1] else []
    name = names[0] if names else ""
    name = getattr(_named(name, frame), "__name__", name)  # of an alias
    return "array" not in name or (name == "array" and copy is None)


def _named(name: str, frame: FrameType) -> Any:
    return frame.f_locals.get(name, frame.f_globals.get(name))


def alone(t: Any, frame: FrameType) -> int:
    """The references that `t += 1` finds there if one name, or one place, holds t."""
    in_a_place, by_name = _counts()
    if by_name == in_a_place:
        return in_a_place
    # As of Python 3.14 a frame may borrow what it loads, and what it was called with, from the name that holds it.
    names = _names(t, frame)
    if not names:
        return in_a_place
    if len(names) > 1 or (frame.f_back is not None and _names(t, frame.f_back)):
        return 0
    return by_name + (not any("BORROW" in opname for _, opname in _steps(frame.f_code, frame.f_lasti)))


def _names(t: Any, frame: FrameType) -> list[str]:
    """The local names of a function that hold t, but for those that a closure shares."""
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        return []
    shared = (*code.co_cellvars, *code.co_freevars)
    return [name for name, value in frame.f_locals.items() if value is t and name not in shared]


@lru_cache
def _steps(code: CodeType, at: int) -> list[tuple[Any, str]]:
    """The instruction at an offset, and backwards those that start at its line and column: what it loads first."""
    steps = [step for step in dis.get_instructions(code) if step.offset <= at][::-1]
    places = [step.positions and (step.positions.lineno, step.positions.col_offset) for step in steps]
    return [(step.argval, step.opname) for step, place in zip(steps, places, strict=True) if place == places[0]]


@lru_cache
def _counts() -> tuple[int, int]:
    """The references that `t += 1` finds of what one place holds, and one name."""

    class Probe:
        held: Any = 0

        def __iadd__(self, other: Any) -> Any:
            self.held = sys.getrefcount(self)
            return self

    probe = Probe()
    probe.held = place = Probe()
    del place
    probe.held += 0
    in_a_place = probe.held.held
    probe += 0
    return in_a_place, probe.held
