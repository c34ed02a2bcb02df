"""The command that writes the backward passes of a file."""

import importlib.util

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.__main__ import main

COURSE = """
import numpy as np

def affine_forward(x, w, b):
    return x @ w + b, (x, w)

def affine_backward(dout, cache):
    raise NotImplementedError

def norm_forward(x, gamma, beta, eps=1e-5):
    mu, var = x.mean(axis=0), x.var(axis=0)
    xhat = (x - mu) / np.sqrt(var + eps)
    return gamma * xhat + beta, (xhat, var, gamma, eps)

def norm_backward(dy, cache):
    xhat, var, gamma, eps = cache
    return gamma * dy / np.sqrt(var + eps), (dy * xhat).sum(0), dy.sum(0)

def kernel_forward(x):
    return np.convolve(x, x), x

def kernel_backward(dout, x):
    return np.correlate(dout, x)
"""


@pytest.fixture
def course(tmp_path):
    path = tmp_path / "course.py"
    path.write_text(COURSE)
    return path


def test_the_answers_of_a_course_file_are_written_in_its_own_names(course, tmp_path, capsys):
    out = tmp_path / "answers.py"
    assert main(["write", str(course), "affine_backward", "-o", str(out)]) == 0
    spec = importlib.util.spec_from_file_location("answers", out)
    answers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(answers)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)
    assert ag.check_backward(answers.affine_forward, answers.affine_backward, inputs).ok
    assert "def affine_backward(dout, cache):\n    x, w = cache\n" in out.read_text()
    assert capsys.readouterr().out == ""


def test_what_can_not_be_written_is_said(course, capsys):
    assert main(["write", str(course), "--form", "folded"]) == 1
    said = capsys.readouterr()
    assert said.out.count("import numpy") == 1
    assert "dx = gamma / std * (dy - dbeta / len(dy) - dgamma / len(dy) * xhat)" in said.out
    assert said.err.count("\n") == 1
    assert "kernel_backward: " in said.err
    assert main(["write", str(course), "kernel_forward"]) == 2


def test_a_name_that_is_not_there_is_a_usage_error(course, capsys):
    assert main(["write", str(course), "nothing"]) == 2
    assert "defines no forward or backward pass named nothing" in capsys.readouterr().err


def test_a_wrong_verdict_brings_what_would_be_right(course):
    space = {}
    exec(compile(COURSE, str(course), "exec"), space)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 4)), rng.normal(size=4), rng.normal(size=4)
    verdict = ag.check_backward(space["norm_forward"], space["norm_backward"], inputs)
    assert not verdict.ok
    assert ag.check_backward(verdict.solution.forward, verdict.solution.backward, inputs).ok
    assert "What would be right:\n\ndef norm_backward(dy, cache):\n" in str(verdict)
    assert "<details><summary>What would be right</summary><pre>def norm_backward" in verdict._repr_html_()
    right = ag.check_backward(verdict.solution.forward, verdict.solution.backward, inputs)
    assert right.solution is None
    assert "What would be right" not in str(right)
