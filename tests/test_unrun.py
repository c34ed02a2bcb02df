"""Statements that no run reaches are named, since nothing says whether they are right."""

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee import discover, entries, load
from autograd_bn.verify.referee.unrun import Place, reached, told

LAYER = """
import numpy as np

class Scale:
    def __init__(self, size, bias=None):
        self.w = np.linspace(1, 2, size)
        self.b = bias

    def forward(self, x):
        if self.b is not None and x is None:
            raise ValueError("x")
        self.x = x
        y = x * self.w
        if self.b is not None:
            y = y + self.b
        return y

    def backward(self, dy):
        self.dw = (self.x * dy).sum(axis=0)
        if self.b is not None:
            # Its mistake is a mean.

            self.db = dy.mean(axis=0)
            self.seen = [
                dy,
            ]
        return dy * self.w
"""

TWO_WAYS = """
def scale_forward(x, factor=1.0):
    if factor == 1.0:
        return x, factor
    return factor * x, factor

def scale_backward(dy, factor):
    if factor == 1.0:
        return dy
    return factor * dy
"""


HELPERS = """
def summed_to(g, shape):
    if g.ndim > len(shape):
        g = g.sum(axis=0)
    for axis, length in enumerate(shape):
        if length == 1:
            g = g.sum(axis=axis, keepdims=True)
    return g

def kinked(x):
    return abs(x)

def add_forward(x, b, kind="smooth"):
    def squared(x):
        if x is None: x = 0
        return x * x
    y = squared(x) if kind == "smooth" else kinked(x)
    return y + b, (x, b, kind)

def add_backward(dy, cache):
    x, b, kind = cache
    if kind == "kinked":
        slope = (x > 0) * 2.0 - 1
        return summed_to(dy * slope, x.shape), summed_to(dy, b.shape)
    return summed_to(2 * x * dy, x.shape), summed_to(dy, b.shape)
"""


def judged(tmp_path, text):
    path = tmp_path / "layer.py"
    path.write_text(text, encoding="utf-8")
    with load.loaded(path) as file:
        (entry,) = entries.entries(file.space)
        return discover.judge(entry, file.space, {})


def test_statements_that_no_run_reaches_are_named(tmp_path):
    verdict = judged(tmp_path, LAYER).report
    at = {line: number for number, line in enumerate(LAYER.splitlines(), 1)}
    biased, mean = at["            y = y + self.b"], at["            self.db = dy.mean(axis=0)"]
    assert verdict.ok
    assert verdict.unrun == (
        Place(biased, biased, "forward"),
        Place(mean, mean, "backward"),
        Place(mean + 1, mean + 3, "backward"),
    )
    said = f"line {biased} of forward, lines {mean} to {mean + 3} of backward, which no run reached"
    assert verdict.remarks[-1] == f"Not judged: {said}."
    assert str(verdict).endswith(f"Note: Not judged: {said}")


def test_what_runs_on_another_way_is_judged_there(tmp_path):
    found = judged(tmp_path, TWO_WAYS)
    assert (found.verdict, found.report.unrun) == ("right", ())
    assert judged(tmp_path, TWO_WAYS.replace("    return factor * dy", "    return dy")).verdict == "wrong"


def test_lines_of_helpers_are_named_once_and_those_that_another_way_runs_are_not(tmp_path):
    found = judged(tmp_path, HELPERS)
    at = {line.strip(): number for number, line in enumerate(HELPERS.splitlines(), 1)}
    never = at["if x is None: x = 0"]
    assert found.verdict == "right"
    assert found.report.unrun == (Place(never, never, "squared"),)


def test_a_branch_for_arrays_of_one_row_is_judged_on_such(tmp_path):
    found = judged(tmp_path, HELPERS.replace("g = g.sum(axis=axis", "g = g.mean(axis=axis"))
    assert (found.verdict, found.reason) == ("wrong", "This is at x of shape (5, 1).")


@pytest.mark.parametrize(("slope", "verdict"), [("delta", "right"), ("2 * delta", "wrong")])
def test_a_branch_for_large_numbers_is_judged_there(slope, verdict, tmp_path):
    text = """
import numpy as np
def huber_loss(x, t, delta=100.0):
    d, small = x - t, abs(x - t) < delta
    if np.all(small):
        return 0.5 * np.sum(d * d), d
    loss = np.sum(np.where(small, 0.5 * d * d, delta * (abs(d) - 0.5 * delta)))
    return loss, np.where(small, d, SLOPE * np.sign(d))
"""
    found = judged(tmp_path, text.replace("SLOPE", slope))
    assert (found.verdict, found.report.unrun) == (verdict, ())
    assert found.reason == ("This is at 100 times the inputs." if verdict == "wrong" else "")


def test_a_branch_for_fewer_axes_that_is_wrong_is_said(tmp_path):
    text = """
import numpy as np
def square_loss(x, t):
    if x.ndim == 1:
        x = x.reshape(1, -1)
    return np.sum((x - t) ** 2) / len(x), 2 * (x - t) / len(t)
"""
    found = judged(tmp_path, text)
    assert found.verdict == "right"
    assert found.reason == "At x of shape (4,), which forward takes, it is wrong."


def test_an_arm_of_a_condition_that_no_run_takes_is_named(tmp_path):
    text = """
def scale_forward(x, training=True):
    return 2 * x if training else 3 * x, training
def scale_backward(dy, training):
    return 2 * dy if training else dy if dy is None else 4 * dy
"""
    found = judged(tmp_path, text)
    assert found.verdict == "right"
    said = "part of line 3 of scale_forward, part of line 5 of scale_backward, which no run reached"
    assert found.report.remarks[-1] == f"Not judged: {said}."


def test_a_wrong_verdict_names_none(tmp_path):
    assert judged(tmp_path, LAYER.replace("return dy * self.w", "return dy")).report.unrun == ()


def test_a_branch_on_data_that_no_input_takes_is_named_for_functions():
    def forward(x):
        if np.max(x) > 1e9:
            return x * 0, x
        return x**2, x

    def backward(dy, x):
        if np.max(x) > 1e9:
            print("large")
            return dy
        return (lambda slope: slope * dy)(2 * x)

    first = backward.__code__.co_firstlineno
    verdict = ag.check_backward(forward, backward, [np.array([1.0, -2.0, 0.5])])
    assert verdict.ok
    assert [place for place in verdict.unrun if place.function == "backward"] == [
        Place(first + 3, first + 3, "backward")
    ]
    assert [place.function for place in verdict.unrun] == ["forward", "backward"]


def test_compiled_code_runs_unseen():
    jax = pytest.importorskip("jax")

    @jax.custom_vjp
    def cube(x):
        return x**3

    cube.defvjp(lambda x: (x**3, x), jax.jit(lambda x, dy: (3 * x**2 * dy,)))
    verdict = ag.check_backward(cube, [np.array([1.0, -2.0, 0.5])])
    assert verdict.ok
    assert verdict.unrun == ()


def test_code_of_this_package_is_nobodys():
    assert reached([told], (told(places) for places in [()])) == {}


def test_lines_are_told_in_their_order():
    places = [Place(9, 9, "f"), Place(3, 4, "g"), Place(5, 5, "g"), Place(7, 7, "g"), Place(8, 8, "f")]
    assert told(places) == "lines 3 to 5 of g, line 7 of g, lines 8 to 9 of f"
