"""The statements of an author's passes that never run where these are judged: nothing says whether they are right."""

import ast
import itertools
import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from .source import file_of, syntax, unwrapped
from .trace import hooked

# Statements without a result that counts; what draws random numbers fills parameters before anything is judged.
_NOTHING = re.compile(
    r"(raise|assert|pass|import|from|break|continue|print)\b|return( None)?$|['\"]|.*\b(random|rng)\b"
)


class Place(NamedTuple):
    """Lines of a function in its file."""

    first: int
    last: int
    function: str


def unrun(passes: Iterable[Any], calls: Iterable[Any]) -> tuple[Place, ...]:
    """The statements of functions that run in no call, as these are drawn; but those that compute nothing."""
    left = {(file_of(function), place) for function in passes for place in _statements(unwrapped(function))}
    files, entered = {file for file, _ in left}, set[str]()

    def watch(frame: Any, event: str, _: Any) -> Any:
        if (file := frame.f_code.co_filename) not in files:
            return None
        entered.add(frame.f_code.co_name)
        left.difference_update([(file, at) for f, at in left if f == file and at.first <= frame.f_lineno <= at.last])
        return watch

    with hooked("trace", watch):
        for _ in calls:
            if not left:
                break
    return tuple(sorted([place for _, place in left if place.function in entered]))  # compiled code runs unseen


def _statements(function: Any) -> list[Place]:
    """Where a function computes something, keeps or returns it."""
    above = getattr(getattr(function, "__code__", None), "co_firstlineno", 1) - 1
    nodes: list[Any] = [n for n in ast.walk(syntax(function)) if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    kept = [node for node in nodes if not _NOTHING.match(ast.unparse(node))]
    return [Place(node.lineno + above, node.end_lineno + above, function.__name__) for node in kept]


def told(places: Collection[Place]) -> str:
    """Where statements stand, as "lines 3 to 5 of backward"; those that follow each other as one."""
    lines = sorted({(line, at.function) for at in places for line in range(at.first, at.last + 1)})
    said = list[str]()
    for _, group in itertools.groupby(enumerate(lines), lambda pair: (pair[1][0] - pair[0], pair[1][1])):
        run = [at for _, at in group]
        first, last = run[0][0], run[-1][0]
        said.append(f"line{f's {first} to' if first < last else ''} {last} of {run[0][1]}")
    return ", ".join(said)
