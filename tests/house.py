"""The house in figures: `python -m tests.house` prints lines by room, long argument lists, imports from above."""

import ast
from collections.abc import Iterator
from pathlib import Path

import autograd_bn

PACKAGE = Path(autograd_bn.__file__).parent
ROOMS = "files engine distributed batch_norm verify drawing nn commands __main__".split()
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
# What a room may hold, in lines of Python, and what a function may take by position.
LINES = {
    "engine": 3_391,
    "distributed": 271,
    "batch_norm": 2_428,
    "verify": 11_979,
    "drawing": 2_465,
    "nn": 1_327,
    "commands": 1_171,
}
POSITIONAL = 7
MAY_COPY = ("reshape", "ravel")


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def lines() -> dict[str, int]:
    """Lines of Python, by room."""
    counts = dict.fromkeys(ROOMS, 0)
    for path in FILES:
        counts[room(path)] += len(path.read_text("utf-8").splitlines())
    return counts


def argument_lists() -> Iterator[tuple[int, str]]:
    """How many arguments each function takes by position, itself not counted, and where it stands."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                yield count, f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"


def imported_rooms(source: str, path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file the import stands."""
    package = ("autograd_bn", *path.relative_to(PACKAGE).parts[:-1])
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            modules |= {start, *(f"{start}.{alias.name}" for alias in node.names)}
    rooms = {module.split(".")[1] for module in modules if module.startswith("autograd_bn.")}
    return rooms & set(ROOMS)


def upward(source: str, path: Path) -> set[str]:
    """The rooms above its own that a file imports from."""
    return {name for name in imported_rooms(source, path) if ROOMS.index(name) > ROOMS.index(room(path))}


def main() -> None:
    counts = lines()
    for name, count in counts.items():
        print(f"{name:<12}{count:>7,}" + (f"  of {LINES[name]:,}" if name in LINES else ""))
    print(f"{'all':<12}{sum(counts.values()):>7,}\n")
    for count, place in sorted(argument_lists(), reverse=True)[:5]:
        print(f"{count} arguments by position: {place}")
    from_above = [path for path in FILES if upward(path.read_text("utf-8"), path)]
    print(f"imports from above: {', '.join(map(str, from_above)) or 'none'}")


def written(tree: ast.AST) -> list[ast.expr]:
    """What is written in place: the array of an assignment to an index, a first argument of `copyto`, an `out=`."""
    found = []
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Assign):
            targets = [part for target in node.targets for part in getattr(target, "elts", [target])]
        elif isinstance(node, ast.AugAssign):
            targets = [node.target]
        found += [target.value for target in targets if isinstance(target, ast.Subscript)]
        if isinstance(node, ast.Call):
            found += [keyword.value for keyword in node.keywords if keyword.arg == "out"]
            if ast.unparse(node.func) in ("np.copyto", "np.add.at", "np.put", "np.put_along_axis"):
                found.append(node.args[0])
    return found


def writes_into_a_copy(source: str) -> list[int]:
    """The lines that write through a call that copies for some memory orders, or through a name bound to it."""
    lines = []
    for scope in ast.walk(ast.parse(source)):
        if not isinstance(scope, ast.FunctionDef):
            continue
        bound = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                bound.setdefault(node.targets[0].id, []).append(node.value)
        for target in written(scope):
            values = bound.get(target.id, []) if isinstance(target, ast.Name) else [target]
            calls = [ast.unparse(value.func) for value in values if isinstance(value, ast.Call)]
            lines += [target.lineno for call in calls if call.endswith(MAY_COPY)]
    return lines


if __name__ == "__main__":
    main()
