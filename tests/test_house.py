"""The order of the rooms: their size, no import from a room above, and importing the package loads nothing heavy."""

import subprocess
import sys

import pytest

from tests import house
from tests.house import FILES, PACKAGE, ROOMS, room, upward, writes_into_a_copy

HEAVY = "graphviz pygraphviz numba matplotlib mpi4py tqdm torch".split()


def test_every_room_is_named():
    assert {room(path) for path in FILES} <= set(ROOMS)
    assert not list(PACKAGE.rglob("utils.py"))


@pytest.mark.parametrize("name", house.LINES)
def test_a_room_stays_small(name):
    assert house.lines()[name] <= house.LINES[name], f"more lines than house.LINES has for {name}: take some out"


def test_argument_lists_stay_short():
    longest, place = max(house.argument_lists())
    assert longest <= house.POSITIONAL, place


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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_written_through_a_reshape(path):
    assert not writes_into_a_copy(path.read_text("utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "out.reshape(n, -1)[rows] -= g",
        "out.ravel()[0] = 1",
        "np.copyto(out.reshape(3), x)",
        "np.add(a, b, out=c.reshape(-1))",
        "flat = out.reshape(-1); flat[0] += 1",
        "flat = np.ravel(out); np.add.at(flat, i, 1)",
        "a, out.reshape(-1)[0] = 1, 2",
    ],
)
def test_a_write_through_a_reshape_would_be_seen(line):
    assert writes_into_a_copy(f"def f():\n    {line}")


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
