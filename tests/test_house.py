"""The order of the rooms: no file imports from a room above its own, and importing the package loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autograd_bn

PACKAGE = Path(autograd_bn.__file__).parent
ROOMS = "engine distributed batch_norm verify drawing nn commands __main__".split()
HEAVY = "graphviz pygraphviz numba matplotlib mpi4py tqdm torch".split()


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    return {found for found in imported_rooms(source, path) if ROOMS.index(found) > ROOMS.index(room(path))}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def test_every_room_is_named():
    assert {room(path) for path in FILES} <= set(ROOMS)
    assert not list(PACKAGE.rglob("utils.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_from_a_room_above(path):
    assert not upward(path.read_text("utf-8"), path)


@pytest.mark.parametrize(
    "line",
    [
        "from ..nn import Module",
        "from .. import nn",
        "import autograd_bn.nn",
        "from autograd_bn.nn.optim import SGD",
        "def f():\n    from ..nn import optim",
    ],
)
def test_an_import_from_above_would_be_seen(line):
    assert upward(line, PACKAGE / "engine" / "node.py") == {"nn"}
    assert not upward(line, PACKAGE / "commands" / "train.py")


def test_importing_the_package_loads_nothing_heavy():
    code = f"import sys, autograd_bn; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_public_name_is_there():
    import autograd_bn as ag

    for name in dir(ag):
        getattr(ag, name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = ag.nothing_of_the_kind
