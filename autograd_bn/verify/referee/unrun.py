"""The statements of an author's that never run where a pair is judged: nothing says whether they are right."""

import ast
import itertools
import linecache
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from .source import file_of, syntax
from .trace import OWN, hooked

# Statements without a result that counts; what draws random numbers fills parameters before anything is judged.
_NOTHING = re.compile(
    r"(raise|assert|pass|import|from|break|continue|print)\b|return( None)?$|['\"]|.*\b(random|rng)\b"
)


class Place(NamedTuple):
    """Lines of a function in its file; an arm of `a if condition else b` from a `column` on."""

    first: int
    last: int
    function: str
    column: int = 0


def reached(passes: Iterable[Any], calls: Iterable[Any]) -> dict[Place, bool]:
    """The statements of functions, and of those of their files that they call, and whether any call runs them.

    Calls are made as they are drawn. What computes nothing is left out, as are lambdas and what is compiled.
    """
    files, entered = {file for f in passes if not (file := file_of(f)).startswith(OWN)}, set[Any]()
    at, ran = dict[tuple[Any, int], Place](), set[Place | None]()

    def watch(frame: Any, event: str, _: Any) -> Any:
        code = frame.f_code
        if code.co_filename not in files or code.co_name[0] == "<":
            return None
        if code not in entered:
            entered.add(code)
            at.update(_instructions(code))
        frame.f_trace_opcodes = True  # a line may hold a condition and what it is for
        ran.add(at.get((code, frame.f_lasti)))
        return watch

    with hooked("trace", watch):
        for _ in calls:
            if ran >= {*at.values()}:
                break
    return {place: place in ran for place in at.values()}


def _instructions(code: Any) -> Iterator[tuple[tuple[Any, int], Place]]:
    """The statements that compute something, keep or return it, and arms that do, by each instruction of theirs."""
    above, line = code.co_firstlineno - 1, linecache.getline(code.co_filename, code.co_firstlineno)
    indent, walked = len(line) - len(line.lstrip()), [*ast.walk(syntax(code))]
    nodes: list[Any] = [n for n in walked if isinstance(n, ast.stmt) and not hasattr(n, "body")]
    arms = [arm for n in walked if isinstance(n, ast.IfExp) for arm in (n.body, n.orelse)]
    nodes = [n for n in nodes if not _NOTHING.match(ast.unparse(n))] + [n for n in arms if [*ast.walk(n)][2:]]
    for node in nodes:
        start, end = node.col_offset + indent, node.end_col_offset + indent
        column = 0 if isinstance(node, ast.stmt) else start
        place = Place(node.lineno + above, node.end_lineno + above, code.co_name, column)
        start, end = (place.first, start), (place.last, end)
        for i, (first, _, column, _) in enumerate(code.co_positions()):
            if first and column is not None and start <= (first, column) < end:
                yield (code, 2 * i), place


def told(places: Collection[Place]) -> str:
    """Where statements stand, as "lines 3 to 5 of backward"; those that follow each other as one."""
    lines = sorted({(line, at.function, at.column > 0) for at in places for line in range(at.first, at.last + 1)})
    said = list[str]()
    for _, group in itertools.groupby(enumerate(lines), lambda pair: (pair[1][0] - pair[0], pair[1][1:])):
        run = [at for _, at in group]
        (first, function, part), last = run[0], run[-1][0]
        said.append(f"{'part of ' * part}line{f's {first} to' if first < last else ''} {last} of {function}")
    return ", ".join(said)
