"""The pane of code: the lines of a forward and a backward pass, and which of them each step of the page is at."""

import ast
import inspect
import textwrap
from collections.abc import Callable
from html import escape
from typing import Any


def source_of(*functions: Callable[..., Any] | None) -> str:
    """The text of these functions, each once, or nothing where one has none, as a lambda."""
    try:
        texts = [textwrap.dedent(inspect.getsource(inspect.unwrap(f))) for f in functions if f is not None]
        whole = all(isinstance(ast.parse(text).body[0], ast.FunctionDef) for text in texts)
    except (OSError, TypeError, SyntaxError):
        return ""
    return "\n\n".join(dict.fromkeys(texts)) if whole else ""


def _lines(function: ast.FunctionDef) -> dict[str, int]:
    """The lines in which a function gives values the names that it gives, or attributes; "" for what it returns."""
    names, attributes = dict[str, int](), dict[str, int]()
    for node in ast.walk(function):
        if isinstance(node, ast.Return):
            names[""] = node.lineno
        elif isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            place: Any = node
            while isinstance(place, ast.Subscript):
                place = place.value
            if isinstance(place, ast.Attribute):
                attributes[place.attr] = node.lineno
            else:
                names[getattr(place, "id", "")] = node.lineno
    return attributes | names


def mark(data: dict[str, Any], source: str, key: str, first: int, passes: str) -> None:
    """Give each step of a view the line it is at, under `key`; the first line of the text is number `first`.

    An operation is at the line of its name, or of the next named value that it goes into; a visit of the backward
    pass is at the line of the gradient that arrives, or of the next one that is written by itself. `passes` says what
    the last functions of the text are: "forward", "backward" or "forward backward".
    """
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    functions.sort(key=lambda node: node.lineno)
    ahead = _lines(functions[-len(passes.split())]) if "forward" in passes else {}
    back = _lines(functions[-1]) if "backward" in passes else {}
    onward: dict[int, list[int]] = {node["id"]: [] for node in data["nodes"]}
    for start, end, _ in data["edges"]:
        onward[start].append(end)
    inward = {node["id"]: node["in"] for node in data["nodes"]}
    for step in data["steps"]:
        line = None
        if step["pass"] == "forward" and ahead:
            line = _next([step["node"]], onward, data, ahead, "")
        elif step["pass"] == "backward":
            line = _next([part["to"] for part in step["parts"]], inward, data, back or ahead, "d" if back else "")
        if line is not None:
            step[key] = line - 1 + first


def _next(ids: list[int], along: dict[int, list[int]], data: dict[str, Any], lines: dict[str, int], d: str) -> Any:
    """The line of the first of these nodes, or of those that they lead to, that has one; else of what is returned."""
    seen: set[int] = set()
    while ids:
        for i in ids:
            if (name := d + data["nodes"][i]["symbol"]) in lines:
                return lines[name]
        seen |= {*ids}
        ids = [there for i in ids for there in along[i] if there not in seen]
    return lines.get("")


def pane(texts: list[tuple[str, str]], folded: str = "") -> str:
    """The HTML of texts side by side, each with its title, `folded` shut; lines are numbered through."""
    columns, first = [], 0
    for title, source in texts:
        lines = source.rstrip("\n").splitlines()
        shown = [f'<span data-line="{first + i}">{escape(line) or " "}\n</span>' for i, line in enumerate(lines)]
        head, code = f"<h3>{escape(title)}</h3>", f"<pre>{''.join(shown)}</pre>"
        column = f"<details><summary>{head}</summary>{code}</details>" if title == folded else head + code
        columns.append(f'<div tabindex="0">{column}</div>')
        first += len(lines)
    return f'<section id="code" aria-label="Code">{"".join(columns)}</section>' if columns else ""
