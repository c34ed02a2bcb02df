"""Code that is judged can't reach beyond its arrays, whatever it is called with."""

import os
import socket
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.gradcheck import Unjudgeable
from autograd_bn.verify.referee import discover, entries, load
from autograd_bn.verify.referee.harmless import Refused, harmless

X = np.arange(6.0).reshape(3, 2)
# What forward may do with an argument of which only the name is known.
DEEDS = {
    "save": "if save: np.save('made.npy', x)",
    "path": "open(path, 'w').close()",
    "filename": "x.tofile(filename)",
    "out_dir": "os.makedirs(str(out_dir), exist_ok=True)",
    "clean": "if clean: os.remove('kept')",
    "folder": "shutil.rmtree(folder, ignore_errors=True)",
    "name": "os.replace('kept', 'moved')",
    "command": "os.system('touch made')",
    "log": "subprocess.run(['touch', 'made'])",
    "device": "socket.create_connection(('127.0.0.1', 9))",
    "options": "if options.get('dump', True): np.savetxt('made', x)",
    "worker": "futures.ThreadPoolExecutor(1).submit(open, 'made', 'w').result()",
    "dump": "os.close(os.open('made', os.O_CREAT | os.O_RDWR))",
}


def file_of(deed, name, made):
    """A layer that does it in its constructor, or in forward."""
    first, second = (f"        {deed if here else 'pass'}\n" for here in (made, not made))
    return f"""import os, shutil, socket, subprocess
from concurrent import futures
import numpy as np
class Scale:
    def __init__(self, {"x, " + name if made else "gain=2.5"}):
{first}
    def forward(self, x{"" if made else ", " + name}):
{second}
        self.x = x
        return 2.5 * x
    def backward(self, dy):
        return 2.5 * dy
"""


@pytest.mark.parametrize("made", [True, False], ids=["in the constructor", "in forward"])
@pytest.mark.parametrize("name", DEEDS)
def test_no_argument_that_is_guessed_makes_code_reach_out(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "layer.py"
    path.write_text(file_of(DEEDS[name], name, made), encoding="utf-8")
    for kept in ("kept", "x"):
        (tmp_path / kept).write_text("mine", encoding="utf-8")
    with load.loaded(path) as file:
        (found,) = [discover.judge(entry, file.space, {}) for entry in entries.entries(file.space)]
    assert {p.name: p.read_text("utf-8") for p in tmp_path.iterdir() if p != path} == {"kept": "mine", "x": "mine"}
    assert found.verdict == "unjudged"
    assert "beyond its arrays (line" in found.reason


@pytest.mark.parametrize("saved", [True, False], ids=["torch.save", "open"])
def test_nor_does_a_function_of_pytorch(saved, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)

    class Square(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            (x,) = ctx.saved_tensors
            torch.save(x, "x.pt") if saved else open("x.txt", "w").close()
            return 2 * x * dy

    with pytest.raises(Unjudgeable, match=r"open\('x\.(pt|txt)'\)"):
        ag.check_backward(Square, (torch.tensor(X),))
    assert not [*tmp_path.iterdir()]
    torch.save(torch.ones(1), "after.pt")
    assert [*tmp_path.iterdir()]


@pytest.mark.parametrize("when", ["x.max() > 50", "len(x) == 1", "True"])
@pytest.mark.parametrize("passes", ["forward", "backward"])
def test_no_other_input_makes_a_pair_reach_out(passes, when, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"np": np}
    lines = [f"if {when}: np.save('x.npy', x)" if name == passes else "pass" for name in ("forward", "backward")]
    text = "def forward(x):\n    {}\n    return 3 * x, x\ndef backward(dy, x):\n    {}\n    return 3 * dy\n"
    exec(text.format(*lines), space)
    if when == "True":
        with pytest.raises(Refused, match="open"):
            ag.check_backward(space["forward"], space["backward"], (X,))
    else:
        assert ag.check_backward(space["forward"], space["backward"], (X,)).ok
    assert not [*tmp_path.iterdir()]


def test_a_mode_that_writes_is_not_judged_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dropout.py"
    path.write_text(
        """import numpy as np
def drop_forward(x, drop_param):
    mask = None
    if drop_param["mode"] == "train":
        mask = x > 0
        out = x * mask
    else:
        np.save("x", x)
        out = x
    return out, (drop_param, mask)
def drop_backward(dout, cache):
    param, mask = cache
    return dout * mask if param["mode"] == "train" else dout
""",
        encoding="utf-8",
    )
    with load.loaded(path) as file:
        (found,) = [discover.judge(entry, file.space, {}) for entry in entries.entries(file.space)]
    assert found.verdict == "right"
    assert found.reason.startswith("In test mode it is not judged: it calls open('x.npy'")
    assert [*tmp_path.iterdir()] == [path]


def test_other_threads_and_what_is_only_read_go_on(tmp_path):
    read, written = tmp_path / "read", tmp_path / "written"
    read.write_text("1", encoding="utf-8")
    with harmless(), harmless():
        thread = threading.Thread(target=written.write_text, args=("2",))
        thread.start()
        thread.join()
        assert (read.read_text("utf-8"), len(os.listdir(tmp_path))) == ("1", 2)
        open(os.devnull, "w").close()
        for deed in (
            written.unlink,
            lambda: subprocess.run([sys.executable]),
            lambda: socket.getaddrinfo("localhost", 9),
        ):
            with pytest.raises(OSError, match="beyond its arrays"):
                deed()
    written.unlink()
