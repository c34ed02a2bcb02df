"""The search for a repair: the slips that people make are found and undone, and nothing but arithmetic is repeated."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee.verdict import Repair

rng = np.random.default_rng(0)
X, W, B = rng.normal(size=(6, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)
RIGHT = """
import numpy as np

def forward(x, w, b):
    h = np.tanh(x @ w + b)
    return h, {"x": x, "w": w, "h": h}

def scaled(dy, h):
    return dy * (1 - h**2)

def backward(dy, cache):
    x, w, h = cache["x"], cache["w"], cache["h"]
    da = scaled(dy, h)
    db = da.sum(axis=0)
    dw = x.T @ da
    dx = da @ w.T
    return dx, dw, db
"""


def module(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    space = {}
    exec(compile(text, str(path), "exec"), space)
    return path, space["forward"], space["backward"]


@pytest.mark.parametrize(
    ("right", "wrong", "kind", "what"),
    [
        ("dw = x.T @ da", "dw = x.T @ dy", "wrong name", "`dy` stands where `da` belongs"),
        ("dx = da @ w.T", "dx = -da @ w.T", "sign", "`-` has no place"),
        ("da.sum(axis=0)", "da.mean(axis=0)", "sum for mean", "`mean` stands where `sum` belongs"),
        ("da.sum(axis=0)", "da.sum(axis=1)", "wrong axis", "`1` stands where `0` belongs"),
        ("return dy * (1 - h**2)", "return dy * (1 + h**2)", "sign", "`+` stands where `-` belongs"),
        ("return dy * (1 - h**2)", "return dy / (1 - h**2)", "operator", "`/` stands where `*` belongs"),
        ("return dy * (1 - h**2)", "return dy * (1 - h**3)", "constant", "`3` stands where `2` belongs"),
        ("return dy * (1 - h**2)", "return dy", "factor", "`* (1 - h**2)` is missing"),
        ("dx = da @ w.T", "dx = 0.5 * da @ w.T", "factor", "`0.5 *` has no place"),
        ("dx = da @ w.T", "dx = np.abs(da @ w.T)", "call", "`np.abs(da @ w.T)` stands where `da @ w.T` belongs"),
        ("return dx, dw, db", "return dx, dw, db + 1", "term", "`+ 1` has no place"),
        ("dw = x.T @ da", "dw = x[::-1].T @ da", "index", "`[::-1]` has no place"),
        ("return dy * (1 - h**2)", "return dy * (1 - h**-2)", "sign", "`-` has no place"),
        ("dw = x.T @ da", "dw = x.T @ da\n    dw += 0.3 * w", "term", "`dw += 0.3 * w` has no place"),
    ],
)
def test_one_slip_is_undone(tmp_path, right, wrong, kind, what):
    path, forward, backward = module(tmp_path, RIGHT.replace(right, wrong))
    verdict = ag.check_backward(forward, backward, (X, W, B))
    assert not verdict.ok
    (repair,) = verdict.repair
    assert (repair.kind, repair.what) == (kind, what)
    assert repair.file == str(path)
    lines = path.read_text("utf-8").splitlines()
    assert repair.old == lines[repair.line - 1].strip()
    assert set(repair.gradients) == {row.name[1:] for row in verdict.rows if row.what == "gradient" and not row.ok}
    # With the line exchanged the pair is right.
    indent = lines[repair.line - 1][: -len(repair.old)]
    lines[repair.line - 1] = indent + repair.new
    _, forward, backward = module(tmp_path, "\n".join(lines))
    assert ag.check_backward(forward, backward, (X, W, B)).ok
    assert "\n".join([f"-{repair.old}", *[f"+{line}" for line in repair.new.splitlines()]]) in str(verdict)


def test_a_statement_that_has_no_place_is_to_be_left_out(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("dx = da @ w.T", "dx = da @ w.T\n    dx *= x"))
    (finding,) = ag.check_backward(forward, backward, (X, W, B)).diagnosis
    assert "`dx *= x` has no place" in finding.what
    assert finding.repair == "Leave it out."


def test_two_slips_in_two_gradients_are_both_undone(tmp_path):
    text = RIGHT.replace("da.sum(axis=0)", "da.mean(axis=0)").replace("dw = x.T @ da", "dw = -x.T @ da")
    _, forward, backward = module(tmp_path, text)
    verdict = ag.check_backward(forward, backward, (X, W, B))
    assert {repair.new for repair in verdict.repair} == {"db = da.sum(axis=0)", "dw = x.T @ da"}


def test_one_slip_that_spoils_every_gradient_is_undone_once(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("1 - h**2", "1 - h"))
    (repair,) = ag.check_backward(forward, backward, (X, W, B)).repair
    assert "h**2" in repair.new
    assert repair.gradients == ("x", "w", "b")


def test_matrices_in_a_stack_are_transposed_by_their_last_axes(tmp_path):
    text = """
import numpy as np

def forward(q, k):
    return q @ np.swapaxes(k, -1, -2), (q, k)

def backward(dy, cache):
    q, k = cache
    return dy @ k, dy @ q
"""
    _, forward, backward = module(tmp_path, text)
    (repair,) = ag.check_backward(forward, backward, (rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 3, 4)))).repair
    assert repair.new == "return dy @ k, np.swapaxes(dy, -1, -2) @ q"


def test_an_exception_is_repaired(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("dx = da @ w.T", "dx = da @ w"))
    verdict = ag.check_backward(forward, backward, (X, W, B))
    assert verdict.diagnosis[0].kind == "raised"
    assert [repair.new for repair in verdict.repair] == ["dx = da @ w.T"]


def test_writing_into_an_argument_is_repaired():
    def forward(x):
        return 3 * x, x

    def backward(dy, cache):
        dy *= 3
        return dy

    verdict = ag.check_backward(forward, backward, (X,))
    assert verdict.ok
    assert "backward overwrites dy in place" in verdict.warnings[0]
    assert not ag.check_backward(forward, backward, (X,), strict=True).ok


def test_a_helper_in_another_file_is_left_alone(tmp_path):
    def backward(dy, cache):
        return np.linalg.norm(dy) * cache

    verdict = ag.check_backward(lambda x: (x * x, x), backward, (X,))
    assert not verdict.ok
    assert all(repair.file == __file__ for repair in verdict.repair)


# What a backward pass may do beside arithmetic: what it needs, its statement, and what must be as it was. `a` is the
# author's to do with as he likes, `b` is at hand too and must not be met.
EFFECTS = {
    "files": (
        "from pathlib import Path; a, b = Path(FOLDER, 'a'), Path(FOLDER, 'b'); b.write_bytes(b'precious')",
        "n = len(b.read_bytes()); a.write_bytes(dy.tobytes())",
        "b.read_bytes()",
    ),
    "a file by its name": (
        "from pathlib import Path; a, b = FOLDER + '/a', Path(FOLDER)",
        "dy.tofile(a)",
        "[*b.glob('b')]",
    ),
    "an array in a file": (
        "a = np.memmap(FOLDER + '/a', dtype=float, shape=(6, 3), mode='w+')",
        "dy = dy + 0 * a",
        "a.tobytes()",
    ),
    "keys of a store": (
        """
class Store(dict):
    def drop(self, key):
        self.pop(key, None)
store, a, b = Store(a=1, b=2), 'a', 'b'""",
        "n = b; store.drop(a)",
        "'b' in store",
    ),
    "items of an object": (
        """
class Store:
    kept = []
    def __setitem__(self, key, value):
        self.kept.append(key)
store, a, b = Store(), 1, 2""",
        "n = b; store[a] = dy",
        "(2 in store.kept, len(store.kept) > 99)",
    ),
    "an operator of an object": (
        """
class Log:
    seen = []
    def __add__(self, other):
        self.seen.append(1)
        return other
a = Log()""",
        "a + dy",
        "len(a.seen) > 99",
    ),
    "a property": (
        """
from pathlib import Path
class Log:
    @property
    def mean(self):
        Path(FOLDER, str(np.random.default_rng())).write_text("")
a, b = Log(), Path(FOLDER)""",
        "a.mean",
        "len([*b.glob('Gen*')]) > 99",
    ),
    "a method with a name of NumPy's": (
        """
class Mine:
    calls = []
    def exp(self, x):
        self.calls.append(1)
    def log(self, x):
        raise SystemExit
mine = Mine()""",
        "mine.exp(dy)",
        "len(mine.calls) > 99",
    ),
    "sockets": (
        "import socket; a, b = socket.socketpair()",
        "n = b; a.send(b'1')",
        "len(b.recv(999)) > 99",
    ),
    "globals": ("calls = 0", "global calls; calls += 1", "calls > 99"),
    "prints": ("import sys", "print('here', file=sys.stderr)", "None"),
    "loggers": ("import logging; a = logging.getLogger('a')", "a.warning('here')", "None"),
    "random state": ("rng = np.random.default_rng(0); seen = set()", "seen.add(rng.normal())", "len(seen) > 99"),
    "NumPy's random state": ("seen = set()", "seen.add(np.random.normal())", "len(seen) > 99"),
    "the environment": ("import os; a, b = 'A_OF_MINE', 'B_OF_MINE'", "n = b; os.environ[a] = '1'", "b in os.environ"),
    "lists": ("calls, others = [], [1]", "n = others; calls.append(1)", "(len(calls) > 99, others)"),
    "a list behind a default": (
        """
calls = []
def note(x, to=calls):
    to.append(1)""",
        "note(dy)",
        "len(calls) > 99",
    ),
    "a dict": ("calls, a = {}, 'a'", "calls[a] = calls.get(a, 0) + 1", "(calls.get('a', 0) > 99, len(calls) > 1)"),
    "a class": ("\nclass Count:\n    n = 0", "Count.n += 1", "Count.n > 99"),
    "a helper in another file": ("import linecache", "linecache.checkcache()", "None"),
    "a sleep": ("import time", "time.sleep(0.001)", "None"),
    "a loop that need not end": ("a = 1", "n = a\n    while n < 1:\n        n += 1", "None"),
    "running code": ("a, calls = 'calls.append(1)', []", "exec(a)", "len(calls) > 99"),
}
ARITHMETIC = {"lists", "a list behind a default", "a dict", "a method with a name of NumPy's"}


@pytest.mark.parametrize("effect", EFFECTS)
def test_nothing_is_met_that_backward_would_not_touch(tmp_path, effect, capfd, caplog, monkeypatch):
    """Whatever backward does beside arithmetic is done as it stands, a few times, and never in an edited form."""
    needs, statement, watched = EFFECTS[effect]
    text = RIGHT.replace("dw = x.T @ da", "dw = -2 * x.T @ da").replace("    da =", f"    {statement}\n    da =")
    text = text.replace("import numpy as np", f"import numpy as np\nFOLDER = {str(tmp_path)!r}\n{needs}")
    monkeypatch.setenv("A_OF_MINE", "")
    # What runs of the pair as it stands change would be put back, and what edits do with it.
    monkeypatch.setattr("autograd_bn.verify.referee.judge.as_it_was", lambda *_: contextlib.nullcontext())
    _, forward, backward = module(tmp_path, text)
    space, watch = backward.__globals__, compile(watched, "watched", "eval")
    before = None if effect == "sockets" else eval(watch, space)
    verdict = ag.check_backward(forward, backward, (X, W, B))
    assert [row.name for row in verdict.rows if not row.ok and row.what == "gradient"] == ["dw"]
    assert (eval(watch, space) or None) == (before or None)
    assert capfd.readouterr().err.count("here") + len(caplog.records) < 99
    if effect in ARITHMETIC:
        assert [repair.new for repair in verdict.repair] == ["dw = x.T @ da"], str(verdict)
    else:
        assert verdict.repair == ()
        assert any(note.startswith("No repair was looked for in backward: ") for note in verdict.notes), verdict.notes
    if effect == "sockets":
        space["a"].close()
        space["b"].close()


LIBRARIES = {
    "torch": """
class Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w
    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        STATEMENT
        dw = -2 * x.T @ dy
        return dy @ w.T, dw
""",
    "jax": """
@jax.custom_vjp
def Layer(x, w):
    return x @ w
def forward(x, w):
    return x @ w, (x, w)
def backward(kept, dy):
    x, w = kept
    STATEMENT
    dw = -2 * x.T @ dy
    return dy @ w.T, dw
Layer.defvjp(forward, backward)
""",
}


@pytest.mark.parametrize(
    "effect", ["an operator of an object", "globals", "keys of a store", "lists", "the environment"]
)
@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_met_that_a_library_s_backward_would_not_touch(tmp_path, library, effect, monkeypatch):
    pytest.importorskip(library)
    needs, statement, watched = EFFECTS[effect]
    path = tmp_path / "mine.py"
    path.write_text(f"import {library}\n{needs}\n" + LIBRARIES[library].replace("STATEMENT", statement))
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    monkeypatch.setenv("A_OF_MINE", "")
    monkeypatch.setattr("autograd_bn.verify.referee.judge.as_it_was", lambda *_: contextlib.nullcontext())
    before = repr(eval(watched, space))
    verdict = ag.check_backward(space["Layer"], (X, W))
    assert [row.name for row in verdict.rows if not row.ok and row.what == "gradient"] == ["dw"]
    assert repr(eval(watched, space)) == before
    assert [repair.new for repair in verdict.repair] == (["dw = x.T @ dy"] if effect == "lists" else [])


def test_a_note_names_the_line_that_is_no_arithmetic(tmp_path):
    text = RIGHT.replace("dw = x", "print('here', flush=True); dw = -x")
    _, forward, backward = module(tmp_path, text)
    verdict = ag.check_backward(forward, backward, (X, W, B))
    note = (
        "No repair was looked for in backward: line 15 has `print('here', flush=True)`, which is more than arithmetic"
    )
    assert f"{note} on arrays." in verdict.notes


def test_what_an_edit_writes_into_is_put_back(tmp_path):
    """An edit may make `a = b` an `a += b`, where a is the caller's."""
    text = """
import numpy as np
SCALE, KEPT, LIMITS = np.array([1.0, 2.0, 3.0]), [np.ones(3)], {"low": np.zeros(3)}

def forward(x, w):
    return x * w * SCALE, (x, w, KEPT)

def backward(dy, cache):
    x, w, kept = cache
    s = SCALE
    k = kept[0]
    low = LIMITS["low"]
    s = s * k + low
    dw = w
    dw = (dy * x).sum(axis=0)
    return dy * w * s, -dw * s
"""
    _, forward, backward = module(tmp_path, text)
    inputs = rng.normal(size=(4, 3)), rng.normal(size=3)
    before = [a.tobytes() for a in inputs]
    assert ag.check_backward(forward, backward, inputs).repair
    assert [a.tobytes() for a in inputs] == before
    space = backward.__globals__
    np.testing.assert_array_equal(
        [space["SCALE"], space["KEPT"][0], space["LIMITS"]["low"]], [[1, 2, 3], [1] * 3, [0] * 3]
    )


def test_arrays_of_the_file_and_the_object_are_not_written_into(tmp_path):
    text = """
import numpy as np
SCALE = np.array([1.0, 2.0, 3.0])

def forward(x):
    return x * SCALE, None

def backward(dy, cache):
    s = SCALE
    s = s + 1
    return dy * s
"""
    _, forward, backward = module(tmp_path, text)
    verdict = ag.check_backward(forward, backward, (rng.normal(size=(4, 3)),))
    assert verdict.repair
    np.testing.assert_array_equal(forward.__globals__["SCALE"], [1, 2, 3])

    class Layer:
        def __init__(self):
            self.sums = np.zeros(3)

        def forward(self, x):
            self.x = x
            return x**2, None

        def backward(self, dy, cache):
            self.sums += dy.sum(axis=0)
            return dy * self.x

    layer = Layer()
    verdict = ag.check_backward(layer.forward, layer.backward, (rng.normal(size=(4, 3)),))
    assert [repair.new for repair in verdict.repair]
    assert not hasattr(layer, "x")
    np.testing.assert_array_equal(layer.sums, 0)


def test_without_source_it_says_so():
    space = {}
    exec("def forward(x):\n    return 2 * x, None\ndef backward(dy, cache):\n    return dy", space)
    verdict = ag.check_backward(space["forward"], space["backward"], (X,))
    assert verdict.repair == ()
    assert "No repair was looked for in backward: its source is not at hand." in verdict.notes


@pytest.mark.usefixtures("no_search")
def test_the_budget_ends_the_search(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("da.sum(axis=0)", "da.mean(axis=0)"))
    assert ag.check_backward(forward, backward, (X, W, B)).repair == ()


def test_what_a_repair_says_is_in_every_form(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("dw = x.T @ da", "dw = x.T @ dy"))
    verdict = ag.check_backward(forward, backward, (X, W, B))
    assert "by one slip, in line 15: `dy` stands where `da` belongs. Write `dw = x.T @ da`." in str(
        verdict.diagnosis[0]
    )
    html = verdict._repr_html_()
    assert "+dw = x.T @ da" in html
    assert "<code>dy</code> stands where <code>da</code> belongs. <b>Repair:</b> Write <code>dw" in html


def test_a_diff_names_the_file_without_its_folders_and_a_notebook_by_its_cell():
    repair = Repair("/home/me/layers.py", 3, "a", "b", ("dx",), "sign", "what")
    assert str(repair) == "@@ layers.py, line 3 @@\n-a\n+b"
    assert str(replace(repair, file="/tmp/ipykernel_7/8.py")).startswith("@@ this cell, line 3 @@")


class Normed:
    """Layer norm, with its eps in another place in one term of backward."""

    def __init__(self, size):
        self.gamma, self.beta, self.eps = np.ones(size), np.zeros(size), 1e-10

    def forward(self, x):
        self.std = x.std(axis=-1, keepdims=True) + self.eps
        self.xc = x - x.mean(axis=-1, keepdims=True)
        return self.gamma * self.xc / self.std + self.beta

    def backward(self, dy):
        dim = dy.shape[-1]
        self.dgamma = np.sum(dy * self.xc / self.std, axis=0)
        self.dbeta = np.sum(dy, axis=0)
        dxhat = dy * self.gamma
        dxc = dxhat / self.std
        dvar = -0.5 * np.sum(dxhat * self.xc * self.std ** (-3), axis=-1, keepdims=True)
        dxc2 = 2 * self.xc * dvar * 1 / dim
        dxc = dxc + dxc2
        return dxc - np.sum(dxc, axis=-1, keepdims=True) * 1 / dim


def test_what_would_mend_one_dy_alone_is_no_repair():
    x = np.random.default_rng(1).normal(size=(5, 4)) * 1.5 + 0.2
    verdict = ag.check_backward(Normed(4), (x,))
    assert not verdict.ok
    assert verdict.repair == ()
