"""`autograd-bn check`: exit statuses, JSON, and one line for whatever can't be judged."""

import json

import pytest

from autograd_bn.__main__ import main

RIGHT = """
import numpy as np

print("a line that the file prints")

def forward(x, gamma, beta, eps=1e-5):
    mean, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mean) / np.sqrt(var + eps)
    return gamma * xhat + beta, (xhat, gamma, np.sqrt(var + eps))

def backward(dy, cache):
    xhat, gamma, std = cache
    dxhat = dy * gamma
    dx = (dxhat - dxhat.mean(axis=0) - xhat * (dxhat * xhat).mean(axis=0)) / std
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)
"""
WRONG = RIGHT.replace(" - xhat * (dxhat * xhat).mean(axis=0)", "")
LINEAR = """
import numpy as np

def inputs():
    return np.arange(6.0).reshape(2, 3), np.ones((3, 2))

def linear_forward(x, w):
    return x @ w, (x, w)

def linear_backward(dy, cache):
    x, w = cache
    return dy @ w.T, x.T @ dy

def scale_forward(x, w):
    return x * w.sum(), (x, w)

def scale_backward(dy, cache):
    x, w = cache
    return dy * w.sum(), (dy * x).sum() * np.ones(w.shape)
"""


@pytest.fixture
def check(tmp_path, capsys):
    def call(text, *options, name="mine.py"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        status = main(["check", str(path), *options])
        return status, *capsys.readouterr()

    return call


def test_a_right_pair_exits_0(check):
    status, out, _ = check(RIGHT)
    assert status == 0
    assert out.startswith("RIGHT: all 3 gradients are right.")
    assert "a line that the file prints" not in out


def test_a_wrong_pair_exits_1_and_names_the_mistake(check):
    status, out, _ = check(WRONG)
    assert status == 1
    assert "dx carries 0.00 of the path through the variance" in out


def test_json_is_the_only_output(check):
    status, out, _ = check(WRONG, "--json")
    report = json.loads(out)
    assert status == 1
    assert report["ok"] is False
    assert report["pairs"]["forward"]["diagnosis"][0]["kind"] == "missing path"
    assert [row["ok"] for row in report["pairs"]["forward"]["rows"][:3]] == [False, True, True]


def test_every_pair_of_a_file_is_judged_on_its_own_inputs(check):
    status, out, _ = check(LINEAR, "--json")
    assert status == 0, out
    assert list(json.loads(out)["pairs"]) == ["linear", "scale"]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "mine.py", "defines no pair of functions forward and backward"),
        ("def forward(:", "mine.py", "line 1: SyntaxError"),
        ("\nraise SystemExit(3)", "mine.py", "line 2: SystemExit: 3"),
        (RIGHT.replace("gamma", "what"), "mine.py", "no inputs are known for forward's parameter what"),
        (RIGHT + "\ninputs = 3", "mine.py", "inputs is a int, expected a tuple"),
        (RIGHT.replace("return gamma * xhat + beta, (xhat", "return (gamma, xhat"), "mine.py", "expected a pair"),
        (RIGHT, "mine.txt", "expected a Python file"),
    ],
)
def test_what_cannot_be_judged_exits_2_with_one_line(check, text, name, message):
    status, out, err = check(text, name=name)
    assert status == 2
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("a line that")]
    assert len(lines) == 1, err
    assert message in lines[0]


def test_a_missing_file_exits_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.py")]) == 2
    assert "no such file" in capsys.readouterr().err
