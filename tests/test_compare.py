"""`compare`: that it passes what is equal, fails what is not, says which is wrong, and measures rounding errors."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.engine.primitive import primitive
from autograd_bn.verify.compare import weighing


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
        ({"g": lambda x: (x * x, x)}, ValueError, r"f gives output, dx and g output\[0\], output\[1\], dx"),
        ({"order": 0}, ValueError, "order is 0, expected an integer of at least 1"),
        ({"inputs": [np.arange(3)]}, TypeError, r"inputs\[0\].*int64"),
        ({"g": lambda x: x[:1]}, ValueError, r"output has shape \(3,\) from f and \(1,\) from g"),
        ({"g": lambda x: 1.0}, TypeError, "g returned a float, expected a tensor"),
        ({"f": lambda x: (), "g": lambda x: ()}, ValueError, "f returned no outputs"),
        ({"f": None}, TypeError, "f is a NoneType, expected a function"),
        ({"g": 3}, TypeError, "g is a int, expected a function"),
        ({"inputs": None}, TypeError, "inputs is a NoneType, expected a sequence"),
        ({"inputs": []}, ValueError, "inputs is empty"),
        ({"inputs": [np.ones((0, 3))]}, ValueError, "f and g give no numbers at these inputs"),
        ({"order": 1.5}, ValueError, "order is 1.5"),
        ({"order": True}, ValueError, "order is True"),
        ({"seed": None}, ValueError, "seed is None"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_bad_input_names_itself(arguments, error, message):
    call = {"f": lambda x: x * x, "g": lambda x: x * x, "inputs": [np.ones(3)]} | arguments
    with pytest.raises(error, match=message):
        ag.compare(call.pop("f"), call.pop("g"), call.pop("inputs"), **call)


def test_one_array_is_one_argument_in_all_three_checks():
    x = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert ag.compare(lambda x: x * x, ag.square, x).ok
    assert ag.prove_equal(lambda x: x * x, ag.square, ag.tensor(x, requires_grad=True)).equal
    assert ag.gradcheck(ag.square, x)


# --- Which side is wrong -------------------------------------------------------------------------------------


def wrong(result):
    """Row by row, who is wrong."""
    sides = {(False, False): "", (True, False): "f", (False, True): "g", (True, True): "both"}
    return {row.name: sides[row.wrong] for row in result.rows}


@pytest.fixture(params=[True, False], ids=["long double", "no long double"])
def wide(request, monkeypatch):
    """Whether the machine has a long double that is wider than a double."""
    if not request.param:
        monkeypatch.setattr(np, "longdouble", np.float64)
    return request.param


def test_a_first_function_that_is_wrong_excuses_nothing(wide):
    result = ag.compare(ag.exp, lambda x: x * 0, [np.array([100.0], "f4")])
    assert wrong(result) == {"output": "g", "dx": "g"}
    assert ag.compare(ag.exp, lambda x: ag.exp(x) * 1, [np.array([100.0], "f4")]).ok


def test_a_side_that_overflows_is_named():
    x, gamma, beta = inputs("float32")
    result = ag.compare(composed, fused, [x * np.float32(1e30), gamma, beta])
    assert wrong(result) == {"output": "f", "dx": "f", "dgamma": "f", "dbeta": ""}
    assert "composed and fused differ in output, dx, dgamma; composed is wrong in output, dx, dgamma" in str(result)
    assert str(result).count("composed WRONG") == 3
    assert wrong(ag.compare(fused, composed, [x * np.float32(1e30), gamma, beta]))["dx"] == "g"


def test_infinity_equals_itself_only(wide):
    x = np.array([[1.0, -2.0], [np.nan, 1e-30]])
    overflowing = lambda x: x * 1e308 * 10
    assert ag.compare(overflowing, lambda x: x * 1e307 * 100, [x]).ok
    for other in (
        lambda x: x,
        lambda x: overflowing(ag.abs(x)),
        lambda x: ag.where(x.data < 0, np.nan, overflowing(x)),
    ):
        result = ag.compare(overflowing, other, [x])
        assert not result.rows[0].ok
        assert result.rows[0].max_abs == np.inf
    assert result.rows[0].non_finite == (3, 3)
    assert result.rows[0].columns == (0, 1)
    plain = ag.compare(overflowing, lambda x: x, [x])
    assert "output: entries that are not finite: 3 of f and 1 of g, in columns 0, 1." in str(plain)
    assert "3 of f and 1 of g" in plain._repr_html_()


def test_both_overflow_where_the_exact_result_does_not():
    result = ag.compare(lambda x: ag.exp(x) / ag.exp(x), lambda x: ag.exp(x) / ag.exp(x), [np.array([100.0], "f4")])
    assert wrong(result)["output"] == "both"


def test_a_large_output_hides_no_gradient(wide):
    x = np.linspace(-1, 1, 10, dtype="f4")
    result = ag.compare(lambda x: x.sum() + 1e4, lambda x: (x * 1.01).sum() + 1e4, [x])
    assert wrong(result)["dx"] == "g"
    pixels = np.arange(256.0, dtype="f4").reshape(16, 16)
    cut = lambda x: x * x + ag.stop_gradient(ag.tanh(x))
    assert wrong(ag.compare(lambda x: x * x + ag.tanh(x), cut, [pixels])) == {"output": "", "dx": "g"}
    assert ag.compare(lambda x: x * x + ag.tanh(x), lambda x: x**2 + ag.tanh(x), [pixels]).ok


def test_no_weight_is_near_0():
    drawn = [weighing(3)(ag.tensor(np.ones(10_000, dtype))) for dtype in ("f2", "f4", "f8", object)]
    assert all(np.array_equal(drawn[0].astype(float), w.astype(float)) for w in drawn)
    assert (abs(drawn[0]).min(), abs(drawn[0]).max()) == (0.5, 2)
    assert 0.4 < np.mean(drawn[0] > 0) < 0.6
    assert not np.array_equal(drawn[0], weighing(4)(ag.tensor(np.ones(10_000, "f2"))))
    for seed in range(200):
        result = ag.compare(lambda x: x.sum(), lambda x: ag.stop_gradient(x.sum()), [np.ones(3)], seed=seed)
        assert wrong(result) == {"output": "", "dx": "g"}


def test_running_statistics_stay_as_they_are():
    norm = ag.nn.BatchNorm(5)
    before = {name: np.copy(value) for name, value in norm.state_dict().items()}
    assert ag.compare(norm, lambda x: ag.batch_norm(x, np.ones(5), np.zeros(5)), inputs("float32")[:1])
    assert all(np.array_equal(before[name], value) for name, value in norm.state_dict().items())


def test_several_outputs_are_rows_of_their_own():
    result = ag.compare(lambda x: (x * x, ag.exp(x)), lambda x: (x**2, ag.exp(x) + 1), [np.ones(3)])
    assert wrong(result) == {"output[0]": "", "output[1]": "g", "dx": ""}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_that_is_0_but_for_rounding_is_equal(dtype, seed, wide):
    """That of a bias before batch norm."""
    rng = np.random.default_rng(seed)

    def net(form):
        return lambda x, w, b: ag.tanh(ag.batch_norm(x @ w + b, form=form))

    data = [rng.normal(size=shape).astype(dtype) for shape in ((16, 5), (5, 4), 4)]
    result = ag.compare(net("composed"), net("fused"), data)
    assert result.ok, str(result)
    assert wrong(ag.compare(net("fused"), lambda x, w, b: net("fused")(x, w, b) + 1e-3 * (b - b.data), data))["db"] == (
        "g" if wide or dtype == "float32" else ""
    )


# --- Planted errors ------------------------------------------------------------------------------------------


@primitive(lambda g, by: g * (1 + by))
def mistaken(x, /, *, by):
    """The identity, whose gradient is wrong."""
    return x


def planted(f, row, by):
    """`f` with a relative error in one row alone: 0 is the output, above it the gradients."""

    def wrong(*tensors):
        given = [mistaken(t, by=by) if i == row - 1 else t for i, t in enumerate(tensors)]
        y = f(*given)
        return y + ag.stop_gradient(y) * by if row == 0 else y

    return wrong


@settings(max_examples=100)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    row=st.integers(0, 3),
    scales=st.tuples(*[st.floats(-30, 30)] * 3),
    sign=st.sampled_from([-1, 1]),
    seed=st.integers(0, 10**6),
)
def test_an_error_of_a_thousandth_in_any_row_at_any_scale_is_found(dtype, row, scales, sign, seed):
    rng = np.random.default_rng(seed)
    most = 4 if dtype == "float16" else 30
    data = [
        (rng.uniform(0.5, 2, shape) * 10.0 ** (scale * most / 30)).astype(dtype)
        for shape, scale in zip(((3, 2), 2, (3, 1)), scales, strict=True)
    ]
    f = lambda x, a, b: x * a + b
    result = ag.compare(f, planted(f, row, sign * 1e-3), data, seed=seed)
    name = ["output", "dx", "da", "db"][row]
    assert wrong(result) == {"output": "", "dx": "", "da": "", "db": "", name: "g"}
    assert ag.compare(f, lambda x, a, b: b + a * x, data, seed=seed)


@settings(max_examples=50)
@given(
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    row=st.integers(0, 3),
    mean=st.sampled_from([0.0, 1.0, 30.0]),
    order=st.integers(1, 2),
    seed=st.integers(0, 10**6),
)
def test_an_error_of_a_thousandth_in_batch_norm_is_found(dtype, row, mean, order, seed):
    rng = np.random.default_rng(seed)
    data = [(rng.normal(size=shape) + mean).astype(dtype) for shape in ((12, 3), 3, 3)]
    result = ag.compare(composed, planted(fused, row, 1e-3), data, seed=seed, order=order)
    assert not result.rows[row].ok
    assert ag.compare(composed, fused, data, seed=seed, order=order)


@pytest.mark.parametrize(("dtype", "by"), [("float16", 5e-4), ("float32", 2e-6), ("float64", 2e-10)])
@pytest.mark.parametrize("row", range(4))
def test_the_tolerance_of_formulas_is_no_wider_than_stated(dtype, by, row):
    assert not ag.compare(fused, planted(fused, row, by), inputs(dtype)).rows[row].ok


@pytest.mark.parametrize(("dtype", "by"), [("float16", 1e-1), ("float32", 2e-5), ("float64", 2e-10)])
@pytest.mark.parametrize("row", range(4))
def test_an_error_in_the_inputs_own_dtype_alone_is_found(dtype, by, row):
    """As of a kernel for float32 that is wrong, where that for other dtypes is right."""

    def native(x, *rest):
        return (planted(fused, row, by) if x.dtype == dtype else fused)(x, *rest)

    assert list(wrong(ag.compare(fused, native, inputs(dtype))).values())[row] == "g"
    assert list(wrong(ag.compare(native, fused, inputs(dtype))).values())[row] == "f"


def test_rounding_passes_up_to_what_the_inputs_last_bits_move():
    x = np.random.default_rng(0).uniform(1, 2, 50).astype("f4")
    through = lambda offset: lambda x: (x + offset) - offset
    assert ag.compare(lambda x: x * 1, through(1e2), [x]).ok
    assert wrong(ag.compare(lambda x: x * 1, through(1e3), [x]))["output"] == "g"
    far = x + np.float32(1e4)
    off = lambda by: lambda x: x - 1e4 + (by if x.dtype == np.float32 else 0)
    assert ag.compare(off(0), off(5e-3), [far]).ok  # an input's last bit is 1e-3
    assert wrong(ag.compare(off(0), off(0.1), [far]))["output"] == "g"


def one_pass_variance(x):
    return (x * x).mean(0) - x.mean(0) ** 2


def test_a_side_that_loses_its_digits_is_named():
    x = (1000 + inputs()[0]).astype("f4")
    assert wrong(ag.compare(lambda x: x.var(0), one_pass_variance, [x]))["output"] == "g"
    assert ag.compare(lambda x: x.var(0), one_pass_variance, [inputs("float32")[0]])


def test_what_underflows_is_0():
    assert ag.compare(lambda x: x * x, ag.square, [np.array([1e-30, 3e-23], "f4")])


def test_without_wider_arithmetic_the_sides_are_held_against_each_other(monkeypatch):
    monkeypatch.setattr(np, "longdouble", np.float64)
    assert ag.compare(composed, fused, inputs(), order=2)
    assert ag.compare(composed, fused, inputs(mean=1e7))
    assert not ag.compare(lambda x: x.var(0), one_pass_variance, [1e6 + inputs()[0]])
    for row in range(4):
        for by in (1e-3, 2e-10):
            result = ag.compare(composed, planted(fused, row, by), inputs())
            assert not result.rows[row].ok
            assert result.rows[row].wrong == (False, False)
            assert result.rows[row].ulp == (None, None)
    assert "DIFFERS" in str(result)
    assert "no wider arithmetic" in str(result)
    assert ag.compare(composed, fused, inputs("float32")).rows[0].ulp[1] < 1


def test_functions_that_refuse_long_double_are_compared_without():
    def picky(x):
        if x.dtype == np.longdouble:
            raise NotImplementedError
        return x * x

    assert ag.compare(picky, ag.square, [np.ones(3)]).reference is None
    assert "float64" in ag.compare(picky, ag.square, [np.ones(3, "f4")]).reference


def test_inputs_of_what_has_no_signature_are_numbered():
    result = ag.compare(max, lambda a, b: ag.maximum(a, b), [np.array(1.0), ag.tensor(2.0, name="b")])
    assert [row.name for row in result.rows] == ["output", "dinput 0", "db"]


def test_exact_inputs_are_judged_exactly_and_the_table_says_so():
    x = np.array([Fraction(1), Fraction(2)], object)
    comparison = ag.compare(lambda x: x * x, lambda x: x**2, [x])
    assert comparison.ok
    assert "equal: exactly." in str(comparison)
    assert not ag.compare(lambda x: x * x, lambda x: x**2 + Fraction(1, 10**30), [x]).ok


# --- Several dtypes, columns of unlike scales ----------------------------------------------------------------


MIXES = [("float32", "float64", "float64"), ("float64", "float32", "float64"), ("float16", "float64", "float32")]


@pytest.mark.parametrize("dtypes", MIXES)
@pytest.mark.parametrize("order", [1, 2])
def test_a_function_is_equal_to_itself_whatever_dtypes_are_mixed(dtypes, order):
    data = [array.astype(dtype) for array, dtype in zip(inputs(), dtypes, strict=True)]
    product = lambda x, gamma, beta: x * gamma + ag.tanh(beta)
    for f, g in ((product, product), (composed, composed), (composed, fused), (fused, composed)):
        result = ag.compare(f, g, data, order=order)
        assert result.ok, str(result)
    assert f"Inputs {' and '.join(sorted(set(dtypes)))}, random" in str(result)


@pytest.mark.parametrize("dtypes", MIXES)
@pytest.mark.parametrize("row", range(4))
def test_a_row_is_held_to_the_narrowest_dtype_that_it_was_computed_in(dtypes, row):
    data = [array.astype(dtype) for array, dtype in zip(inputs(), dtypes, strict=True)]
    f = lambda x, gamma, beta: x * gamma + beta
    by = {"float16": 1e-3, "float32": 2e-6, "float64": 2e-10}["float64" if row == 0 else dtypes[row - 1]]
    result = ag.compare(f, planted(f, row, by), data)
    assert [not r.ok for r in result.rows] == [i == row for i in range(4)], str(result)


def test_what_is_wide_and_was_computed_from_what_is_narrow_has_its_rounding(wide):
    x = inputs("float32")[0]
    f = lambda x, e: (x * 0.1).astype("float64") * e
    assert ag.compare(f, lambda x, e: (x / 10).astype("float64") * e, [x, np.float64(2)])
    assert not ag.compare(f, lambda x, e: (x * 0.10001).astype("float64") * e, [x, np.float64(2)])


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 2, 5)])
def test_a_small_column_is_not_hidden_by_a_large_one(shape, wide):
    scales = (10.0 ** np.array([-8, -4, 0, 4])).reshape(4, *[1] * (len(shape) - 2))
    x = np.random.default_rng(0).normal(size=shape)
    f = lambda x: ag.tanh(x) * scales
    for column in range(4):
        by = np.where(scales == scales.flat[column], 1e-3, 0)
        cut = lambda x, by=by: f(x) * (1 - by) + ag.stop_gradient(f(x)) * by
        output, dx = ag.compare(f, cut, [x]).rows
        assert output.ok
        assert not dx.ok if wide else dx.ok == (dx.unjudged > 0)
    assert ag.compare(f, lambda x: scales * ag.tanh(x), [x])


def test_a_column_of_which_rounding_leaves_nothing_is_judged_with_the_others():
    x = np.random.default_rng(0).normal(size=(20, 3)) * [1, 1, 20]
    saturated = lambda form: lambda x: ag.tanh(5 * ag.batch_norm(x, np.array([1.0, 2, 40]), form=form))
    assert ag.compare(saturated("composed"), saturated("fused"), [x])


def test_what_is_too_small_to_be_judged_is_counted():
    g, scales = np.array([1.0, 2.0, 3.0]), 10.0 ** np.array([-8, 4, 4])
    result = ag.compare(lambda g: g * scales, lambda g: g * (scales * [1.01, 1, 1]), [g])
    assert [row.unjudged for row in result.rows] == [1, 1]
    assert "output: 1 of 3 entries differ, but are too small beside the largest one to be judged." in str(result)
    assert [row.unjudged for row in ag.compare(composed, fused, inputs("float32")).rows] == [0, 0, 0, 0]


def test_whole_numbers_beside_floats_are_compared_too():
    counted = lambda by: lambda x: (x * 1, ag.tensor([1, 2 + by]))
    assert ag.compare(counted(0), counted(0), [np.ones(3, "f4")])
    assert not ag.compare(counted(0), counted(1), [np.ones(3, "f4")]).rows[1].ok


def test_the_words_below_the_table_are_a_students():
    notes = str(ag.compare(composed, fused, inputs())).partition("\n\n")[2]
    assert "last bits" not in notes
    assert "rounding alone costs 0.5" in notes
    assert "equal: computed with more digits both give the same numbers, and what is left is rounding." in notes
