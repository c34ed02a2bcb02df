"""Exact proof: what is equal in rational arithmetic, and what only looks equal in floats."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag

STOPS = [(), ("mean",), ("var",), ("mean", "var")]


def forms(eps, **options):
    return [
        lambda x, gamma=None, beta=None, form=form: ag.batch_norm(x, gamma, beta, eps=eps, form=form, **options)
        for form in ("fused", "composed")
    ]


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("order", [1, 2])
def test_fused_is_composed_exactly(stop, order):
    x, gamma, beta, eps = ag.rational_batch((4, 2), seed=order)
    proof = ag.prove_equal(*forms(eps, stop=stop), (x, gamma, beta), order=order)
    assert proof.equal, str(proof)
    assert proof.shapes["output"] == proof.shapes["dx"] == (4, 2)
    assert ("d2x" in proof.shapes) == (order == 2)


def test_fused_is_composed_exactly_at_order_3():
    x, gamma, beta, eps = ag.rational_batch((3, 1))
    assert ag.prove_equal(*forms(eps), (x, gamma, beta), order=3)


@pytest.mark.parametrize("order", [1, 2])
def test_inference_is_equal_exactly(order):
    x, gamma, beta, _ = ag.rational_batch((3, 2))
    options = {
        "mean": np.array([Fraction(1, 3), Fraction(2)]),
        "var": np.array([Fraction(7, 9), Fraction(3)]),
    }
    eps = np.array([Fraction(1), Fraction(1)])  # 16 / 9 and 4
    assert ag.prove_equal(*forms(eps, **options), (x, gamma, beta), order=order)


@pytest.mark.parametrize("parameters", [(), ("gamma",), ("gamma", "beta")])
def test_without_gamma_or_beta(parameters):
    x, gamma, beta, eps = ag.rational_batch((4, 2))
    inputs = [x, *[{"gamma": gamma, "beta": beta}[name] for name in parameters]]
    assert ag.prove_equal(*forms(eps), inputs, order=2)


@settings(max_examples=10, deadline=None)
@given(
    shape=st.sampled_from([(2, 3), (2, 2, 2), (5, 1)]),
    axis=st.integers(0, 1),
    seed=st.integers(0, 1000),
)
def test_any_axes_and_any_batch(shape, axis, seed):
    if shape[axis] == 1:
        axis = 0
    x, gamma, beta, eps = ag.rational_batch(shape, axes=axis, seed=seed)
    deviation = x - np.mean(x, axis=axis, keepdims=True)
    ag.sqrt(np.mean(deviation * deviation, axis=axis) + eps)  # rational, or it raises
    assert (eps > 0).all()
    assert ag.prove_equal(*forms(eps, axes=axis), (x, gamma, beta))


def test_a_stopped_path_differs_and_is_shown_exactly():
    x, gamma, beta, eps = ag.rational_batch((4, 3))
    (fused, _), (stopped, _) = forms(eps), forms(eps, stop=("var",))
    proof = ag.prove_equal(fused, stopped, (x, gamma, beta))
    assert not proof
    assert not proof.equal
    assert proof.difference.quantity == "dx"
    left, right = proof.difference.left, proof.difference.right
    assert isinstance(left, Fraction)
    assert left != right
    assert f"{float(left):.10g}"[:8] in str(proof)
    assert "differ, first in dx[" in str(proof)
    assert "<pre" in proof._repr_html_()


def test_a_factor_that_no_float_shows_is_found():
    tiny = 1 + Fraction(1, 10**30)
    proof = ag.prove_equal(lambda x: x * x, lambda x: x * x * tiny, [[Fraction(0), Fraction(2, 3)]])
    assert proof.difference.index == (1,)
    assert "e-31 apart" in str(proof).lower()


def test_a_derivative_that_differs_at_order_2_only():
    def loses_second_order(x):
        return x * ag.stop_gradient(x) * 2 - ag.stop_gradient(x * x)

    x = [[Fraction(1), Fraction(3)]]
    assert ag.prove_equal(lambda x: x * x, loses_second_order, x, order=1)
    proof = ag.prove_equal(lambda x: x * x, loses_second_order, x, order=2)
    assert proof.difference.quantity == "d2x"


def test_floats_are_taken_for_the_fractions_that_they_are():
    assert ag.prove_equal(lambda x: x + x, lambda x: 2 * x, [np.array([0.1, 0.3])], order=2)
    assert not ag.prove_equal(lambda x: x, lambda x: x * Fraction(0.1) * 10, [np.array([0.3])])


def test_what_has_no_exact_answer_says_so():
    x, gamma, beta, _ = ag.rational_batch((4, 3))
    with pytest.raises(ValueError, match=r"square root of .* is not rational"):
        ag.prove_equal(ag.batch_norm, ag.batch_norm, (x, gamma, beta))
    with pytest.raises(TypeError, match="rational"):
        ag.prove_equal(ag.exp, ag.exp, [[Fraction(1, 2)]])
    with pytest.raises(TypeError, match=r"float 0\.25"):
        ag.prove_equal(lambda x: x * 0.5, lambda x: x / 2, [[Fraction(1, 2)]])
    with pytest.raises(TypeError, match=r"g left the rational numbers: it gave 0\.5"):
        ag.prove_equal(lambda x: x, lambda x: ag.tensor([0.5]), [[Fraction(1, 2)]])
    with pytest.raises(ValueError, match=r"output has shape \(1,\) from f and \(\) from g"):
        ag.prove_equal(lambda x: x, lambda x: x.sum(), [[Fraction(1, 2)]])
    with pytest.raises(TypeError, match=r"inputs\[0\].*NaN"):
        ag.prove_equal(lambda x: x, lambda x: x, [np.array([np.nan])])
    with pytest.raises(ValueError, match="order is 0"):
        ag.prove_equal(lambda x: x, lambda x: x, [[1]], order=0)
    with pytest.raises(ValueError, match="at least two values per feature"):
        ag.rational_batch((1, 3))


def test_running_statistics_stay_as_they_are():
    norm = ag.nn.BatchNorm(2, eps=0.75, affine=False)
    before = {name: np.copy(value) for name, value in norm.state_dict().items()}
    x = np.array([[Fraction(0), Fraction(1)], [Fraction(1), Fraction(2)]])
    assert ag.prove_equal(norm, lambda x: (x - ag.mean(x, 0)) / ag.sqrt(ag.var(x, 0) + Fraction(3, 4)), [x], order=2)
    for name, value in norm.state_dict().items():
        assert np.array_equal(before[name], value)


def test_it_claims_no_more_than_these_inputs():
    square, line = (lambda x: x * x), (lambda x: 2 * x - 1)
    assert "f = g at these inputs, exactly, to order 1" in str(ag.prove_equal(square, line, [[1]]))
    assert ag.prove_equal(square, line, [[1]], order=2).difference.quantity == "d2x"
    assert ag.prove_equal(square, line, [[2]]).difference.quantity == "output"


def test_a_division_by_zero_is_named():
    with pytest.raises(ValueError, match="f divides by zero at these inputs"):
        ag.prove_equal(lambda x: 1 / x, lambda x: x, [[0, 1]])
    with pytest.raises(ValueError, match="g divides by zero at these inputs"):
        ag.prove_equal(lambda x: x, lambda x: x / (x - x), [[0, 1]])


def test_powers_of_a_single_number():
    x = [[Fraction(1), Fraction(-2, 3)]]
    assert ag.prove_equal(lambda x: (x * x).sum() ** 2, lambda x: ag.square((x * x).sum()), x, order=2)
    assert ag.prove_equal(lambda x: x.sum() ** -2, lambda x: 1 / (x.sum() * x.sum()), x, order=2)
    assert ag.prove_equal(lambda x: (x.sum() ** 2) ** Fraction(1, 2), lambda x: abs(x.sum()), x)


def test_every_output_counts():
    f, g = (lambda x: (x, x * x)), (lambda x: (x, x * x + (x - 1) ** 2))
    proof = ag.prove_equal(f, g, [[1, 2]])
    assert (proof.difference.quantity, proof.difference.index) == ("output[1]", (1,))
    assert ag.prove_equal(f, f, [[1, 2]]).shapes == {"output[0]": (2,), "output[1]": (2,), "dx": (2,)}
    with pytest.raises(ValueError, match="expected the same outputs"):
        ag.prove_equal(f, lambda x: x, [[1]])
    with pytest.raises(ValueError, match="no numbers at these inputs"):
        ag.prove_equal(lambda x: x, lambda x: 2 * x, [[]])


def test_long_fractions_are_counted_in_digits():
    tiny = Fraction(1, 7**6000)  # more digits than Python writes out
    text = str(ag.prove_equal(lambda x: x, lambda x: 2 * x, [[tiny]]))
    assert "f = a fraction of 1 over 5071 digits = " in text
    assert "E-5071" in text
    assert "f = 1/3 = 0.33333333333333333333" in str(ag.prove_equal(lambda x: x, lambda x: 2 * x, [[Fraction(1, 3)]]))


def test_whole_numbers_do_not_wrap_around_however_they_come_in():
    big, small = np.int64(2**62), [Fraction(1, 2), Fraction(3)]
    for c in (ag.tensor(big), ag.tensor([big]), ag.tensor(np.array([big], object)), ag.tensor(np.uint8(64))):
        proof = ag.prove_equal(lambda x, c: x + 4 * c, lambda x, c: x, (small, c))
        assert proof.difference.left - proof.difference.right == 4 * int(c.data.flat[0])
    for x in ([big], np.array([big], object), np.array([big, 1])):
        assert ag.prove_equal(lambda x: 4 * x, lambda x: x * 0, [x]).difference.left == 2**64
    for c in (ag.tensor(big), ag.tensor([big]), ag.tensor(np.uint8(200))):  # of which f knows by itself
        with pytest.raises(TypeError, match=r"f left the rational numbers: multiply of u?int\d+ wrapped around"):
            ag.prove_equal(lambda x, c=c: x + 4 * c, lambda x: x, [small])
    assert ag.prove_equal(lambda x: x.sum() * big, lambda x: x.sum() * 0, [[4]]).difference.left == 2**64
    assert ag.prove_equal(lambda x: x + 4 * ag.tensor([1, 2]), lambda x: x + np.array([4, 8]), [small])
    picked = ag.tensor([0, 0, 1])
    assert ag.prove_equal(lambda x, i: x[i.data] * (i + 1), lambda x, i: x[[0, 0, 1]] * [1, 1, 2], [small, picked])


def test_what_f_overwrites_g_gets_as_it_was():
    def overwriting(x, c):
        y = x * 3
        with ag.no_grad():
            x.assign(x.data * 0)
            c.assign(c.data * 0)
        return y

    x, c = ag.tensor([Fraction(2)], requires_grad=True), ag.tensor([5])
    assert ag.prove_equal(overwriting, lambda x, c: x + x + x, (x, c), order=1)
    assert ag.prove_equal(overwriting, lambda x, c: 3 * x + c - 5, (x, c))
    assert (x.data[0], c.data[0]) == (2, 5)
