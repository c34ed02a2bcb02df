"""`compare`: that it passes what is equal, fails what is not, and measures rounding errors."""

from fractions import Fraction

import numpy as np
import pytest

import autograd_bn as ag


def composed(x, gamma, beta):
    return ag.batch_norm(x, gamma, beta, form="composed")


def fused(x, gamma, beta):
    return ag.batch_norm(x, gamma, beta)


def inputs(dtype="float64", mean=0.0, rows=40):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=shape) + mean).astype(dtype) for shape in ((rows, 5), 5, 5)]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_equal_functions_agree_in_every_dtype_and_order(dtype, order):
    result = ag.compare(composed, fused, inputs(dtype), order=order)
    assert result.ok, str(result)
    assert [row.name for row in result.rows][:4] == ["output", "dx", "dgamma", "dbeta"]
    assert len(result.rows) == 1 + 3 * order


def test_a_large_mean_is_rounding_and_not_a_difference():
    result = ag.compare(composed, fused, inputs("float32", mean=1e4))
    assert result.ok, str(result)
    assert max(result.rows[0].ulp) > 0


def damped(factor):
    """Batch norm whose gradient is scaled."""

    def wrong(x, gamma, beta):
        right = fused(x, gamma, beta)
        return right * factor + ag.stop_gradient(right) * (1 - factor)

    return wrong


@pytest.mark.parametrize("factor", [1 - 1e-4, 1 - 1e-8, -1.0, 0.0])
def test_a_wrong_gradient_under_a_right_output_is_found(factor):
    result = ag.compare(composed, damped(factor), inputs())
    assert not result.ok
    assert [row.name for row in result.rows if not row.ok] == ["dx", "dgamma", "dbeta"]
    assert "differ in dx, dgamma, dbeta" in str(result)


@pytest.mark.parametrize("stop", [("mean",), ("var",)])
def test_a_cut_path_is_found(stop):
    result = ag.compare(composed, lambda x, gamma, beta: ag.batch_norm(x, gamma, beta, stop=stop), inputs())
    assert [row.name for row in result.rows if not row.ok] == ["dx"]


def test_a_single_nan_on_one_side_is_found_and_on_both_sides_is_equal():
    data = inputs()
    data[0][0, 0] = np.nan
    assert ag.compare(composed, fused, data).ok
    spoiled = ag.compare(composed, lambda x, g, b: ag.where(np.arange(5) == 4, np.nan, fused(x, g, b)), inputs())
    assert not spoiled.ok
    assert spoiled.rows[0].max_abs == np.inf


def test_ulp_is_measured_against_long_double():
    x = np.array([1.0, 3.0, 7.0])
    result = ag.compare(lambda x: x / 3, lambda x: x * (1 / 3), [x])
    exact = [Fraction(int(v), 3) for v in x]
    for divide, row in zip((lambda v: v / 3, lambda v: v * (1 / 3)), result.rows[0].ulp, strict=True):
        worst = max(abs(Fraction(float(divide(v))) - e) for v, e in zip(x, exact, strict=True))
        assert row == pytest.approx(float(worst / Fraction(float(np.spacing(7 / 3)))), rel=1e-2)


def test_rationals_are_compared_exactly():
    x = np.array([Fraction(1, 3), Fraction(2, 7)], dtype=object)
    result = ag.compare(ag.square, lambda x: x * x, [x], order=2)
    assert result.ok
    assert {row.max_abs for row in result.rows} == {0.0}
    assert not ag.compare(ag.square, lambda x: x * x + Fraction(1, 10**40), [x]).ok


def test_an_input_without_influence_has_a_zero_gradient():
    result = ag.compare(lambda a, b: a * a, lambda a, b: a**2 + 0 * b[:2], [np.ones(2), np.ones(3)])
    assert result.ok
    assert result.rows[2].shape == (3,)


def test_html_and_text_hold_every_row():
    result = ag.compare(composed, fused, inputs())
    for name in ("output", "dx", "dgamma", "dbeta", "ulp composed", "ulp fused", "long double"):
        assert name in str(result)
        assert name in result._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"order": 0}, ValueError, "order is 0, expected 1 or more"),
        ({"inputs": [np.arange(3)]}, TypeError, r"inputs\[0\].*int64"),
        ({"g": lambda x: x[:1]}, ValueError, r"output has shape \(3,\) from f and \(1,\) from g"),
        ({"g": lambda x: 1.0}, TypeError, "g returned a float, expected a tensor"),
    ],
)
def test_bad_input_names_itself(arguments, error, message):
    call = {"f": lambda x: x * x, "g": lambda x: x * x, "inputs": [np.ones(3)]} | arguments
    with pytest.raises(error, match=message):
        ag.compare(call.pop("f"), call.pop("g"), call.pop("inputs"), **call)
