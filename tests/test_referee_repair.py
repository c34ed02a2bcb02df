"""The search for a repair: the slips that people make are found and undone, and nothing but arithmetic is repeated."""

import contextlib
import os
from dataclasses import replace
from pathlib import Path

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
    ],
)
def test_one_slip_is_undone(tmp_path, right, wrong, kind, what):
    path, forward, backward = module(tmp_path, RIGHT.replace(right, wrong))
    verdict = ag.check_backward(forward, backward, (X, W, B), seconds=10)
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
    assert ag.check_backward(forward, backward, (X, W, B), seconds=10).ok
    assert f"-{repair.old}\n+{repair.new}" in str(verdict)


def test_two_slips_in_two_gradients_are_both_undone(tmp_path):
    text = RIGHT.replace("da.sum(axis=0)", "da.mean(axis=0)").replace("dw = x.T @ da", "dw = -x.T @ da")
    _, forward, backward = module(tmp_path, text)
    verdict = ag.check_backward(forward, backward, (X, W, B), seconds=10)
    assert {repair.new for repair in verdict.repair} == {"db = da.sum(axis=0)", "dw = x.T @ da"}


def test_one_slip_that_spoils_every_gradient_is_undone_once(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("1 - h**2", "1 - h"))
    (repair,) = ag.check_backward(forward, backward, (X, W, B), seconds=10).repair
    assert "h**2" in repair.new
    assert repair.gradients == ("x", "w", "b")


def test_an_exception_is_repaired(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("dx = da @ w.T", "dx = da @ w"))
    verdict = ag.check_backward(forward, backward, (X, W, B), seconds=10)
    assert verdict.diagnosis[0].kind == "raised"
    assert [repair.new for repair in verdict.repair] == ["dx = da @ w.T"]


def test_writing_into_an_argument_is_repaired():
    def forward(x):
        return 3 * x, x

    def backward(dy, cache):
        dy *= 3
        return dy

    verdict = ag.check_backward(forward, backward, (X,))
    assert [finding.kind for finding in verdict.diagnosis] == ["overwritten"]


def test_a_helper_in_another_file_is_left_alone(tmp_path):
    def backward(dy, cache):
        return np.linalg.norm(dy) * cache

    verdict = ag.check_backward(lambda x: (x * x, x), backward, (X,))
    assert not verdict.ok
    assert all(repair.file == __file__ for repair in verdict.repair)


@pytest.mark.parametrize("call", ["os.remove(PATH)", "open(PATH, 'w').close()", "Path(PATH).unlink()", "exec('1')"])
def test_code_that_does_more_than_arithmetic_is_run_as_it_stands_only(tmp_path, call):
    text = RIGHT.replace(
        "    da =", f"    COUNT.append(1)\n    with contextlib.suppress(OSError):\n        {call}\n    da ="
    )
    path = tmp_path / "precious"
    space = {"os": os, "Path": Path, "contextlib": contextlib, "PATH": str(path), "COUNT": []}
    source = tmp_path / "mine.py"
    source.write_text(text.replace("dw = x", "dw = -x"), encoding="utf-8")
    exec(compile(source.read_text("utf-8"), str(source), "exec"), space)
    verdict = ag.check_backward(space["forward"], space["backward"], (X, W, B))
    assert not verdict.ok
    assert verdict.repair == ()
    assert any(note.startswith("No repair was looked for in backward: it calls `") for note in verdict.notes)
    assert len(space["COUNT"]) < 20


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


def test_the_budget_of_seconds_ends_the_search(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("da.sum(axis=0)", "da.mean(axis=0)"))
    assert ag.check_backward(forward, backward, (X, W, B), seconds=0).repair == ()


def test_what_a_repair_says_is_in_every_form(tmp_path):
    _, forward, backward = module(tmp_path, RIGHT.replace("dw = x.T @ da", "dw = x.T @ dy"))
    verdict = ag.check_backward(forward, backward, (X, W, B), seconds=10)
    assert "by one slip, in line 15: `dy` stands where `da` belongs. Write `dw = x.T @ da`." in str(
        verdict.diagnosis[0]
    )
    assert "+dw = x.T @ da" in verdict._repr_html_()


def test_a_diff_names_the_file_without_its_folders_and_a_notebook_by_its_cell():
    repair = Repair("/home/me/layers.py", 3, "a", "b", ("dx",), "sign", "what")
    assert str(repair) == "@@ layers.py, line 3 @@\n-a\n+b"
    assert str(replace(repair, file="/tmp/ipykernel_7/8.py")).startswith("@@ this cell, line 3 @@")
