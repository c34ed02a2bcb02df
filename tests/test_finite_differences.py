"""Numeric derivatives: right within the error that they claim, and that error small."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from autograd_bn.verify.finite_differences import Differences

FUNCTIONS = {
    "exp": (np.exp, np.exp),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "sin": (np.sin, np.cos),
    "steep": (lambda x: np.tanh(100 * x), lambda x: 100 / np.cosh(100 * x) ** 2),
    "offset": (lambda x: 1e4 + np.sin(x), np.cos),
    "cancelling": (lambda x: (np.sin(x) + 1e6) - 1e6, np.cos),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2),
    "kinked": (lambda x: np.maximum(x, 0), lambda x: (x > 0) * 1.0),
}


def bounded(name, scale, seed):
    f, derivative = FUNCTIONS[name]
    x = scale * np.random.default_rng(seed).normal(size=4)
    measured, error = Differences(lambda at: [f(at[0])], [x]).jacobian(0)
    with np.errstate(over="ignore"):
        true = np.diag(derivative(x))
    return (np.abs(measured - true) <= 10 * error).all()


SCALES = [1e-3, 1.0, 10.0]


@settings(max_examples=30)
@given(
    name=st.sampled_from(sorted(FUNCTIONS.keys() - {"cancelling"})),
    scale=st.sampled_from(SCALES),
    seed=st.integers(0, 10**6),
)
def test_the_error_bounds_what_is_off(name, scale, seed):
    assert bounded(name, scale, seed)


def test_where_larger_numbers_cancelled_the_error_bounds_what_is_off_but_for_chance():
    assert sum(bounded("cancelling", scale, seed) for scale in SCALES for seed in range(100)) >= 299


@pytest.mark.parametrize(("name", "most"), [("exp", 1e-10), ("cube", 1e-10), ("sin", 1e-10), ("cancelling", 1e-5)])
def test_the_error_is_small(name, most):
    x = np.random.default_rng(0).normal(size=3)
    _, error = Differences(lambda at: [FUNCTIONS[name][0](at[0])], [x]).jacobian(0)
    assert (error < most).all()


@pytest.mark.parametrize("seed", [23, 28])  # where the first direction tried is one in which little changes
def test_a_step_that_is_too_large_in_one_direction_is_refined(seed):
    f = lambda at: [np.sin(30 * (at[0][:1] - at[0][1:]))]
    measured, error = Differences(f, [np.array([1.0, 1.1])], rng=np.random.default_rng(seed)).jacobian(0)
    assert np.allclose(measured, 30 * np.cos(3) * np.array([[1, -1]]), rtol=0, atol=1e-8)
    assert error.max() < 1e-8


def test_several_inputs_and_outputs():
    x, w = np.arange(1.0, 4.0), np.array([[2.0], [5.0]])
    slopes = Differences(lambda at: [at[0] * at[1], at[1].sum()], [x, w])
    assert slopes.value.tolist() == [2, 4, 6, 5, 10, 15, 7]
    for i, true in enumerate(([[2, 0, 0], [0, 2, 0], [0, 0, 2], [5, 0, 0], [0, 5, 0], [0, 0, 5], [0, 0, 0]], None)):
        measured, error = slopes.jacobian(i)
        true = np.array(true) if true else np.array([[1, 0], [2, 0], [3, 0], [0, 1], [0, 2], [0, 3], [1, 1]])
        assert np.abs(measured - true).max() < 1e-10
        assert error.max() < 1e-10
    value, _ = slopes.along(0, np.array([1.0, 1.0, 0.0]))
    assert np.allclose(value, [2, 2, 0, 5, 5, 0, 0])
    assert Differences(lambda at: [at[0]], [np.empty(0)]).jacobian(0)[0].shape == (0, 0)


def test_what_does_not_move_is_uncertain_by_the_rounding_of_larger_numbers():
    f = lambda at: [np.log(1 + np.exp(at[0]))]
    assert Differences(f, [np.array([-50.0])]).jacobian(0)[1] < 1e-11
    assert Differences(f, [np.array([-50.0])], magnitude=1e6).jacobian(0)[1] > 1e-10


@pytest.mark.parametrize("f", [np.abs, lambda x: np.maximum(x, 0), np.floor, lambda x: np.sqrt(np.maximum(x, 0))])
def test_a_kink_is_found_where_it_is(f):
    at = [np.ones(2), np.array([[0.5, 0.0], [0.3, 1.7]])]
    with np.errstate(all="ignore"):
        assert Differences(lambda a: [a[0].sum() + f(a[1])], at).kink() == (1, (0, 1))
    assert Differences(lambda a: [a[0].sum() + np.exp(a[1])], at).kink() is None
