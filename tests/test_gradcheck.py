"""The gradient checker, checked: what it must catch, what it must pass, and what it must refuse."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.engine.primitive import primitive
from tests.mutants import Pair, correct, mutants, wrong_rules
from tests.test_primitive import SAMPLES, drawn

rng = np.random.default_rng(0)


def recorded(pair: Pair):
    """A hand-written pair as a function of tensors, whose rule is the pair's backward."""

    @primitive(lambda g, wanted, kept: pair.backward(g, kept), joint=True)
    def handwritten(x, gamma, beta, /):
        return pair.forward(x, gamma, beta)

    return lambda x, gamma, beta: handwritten(x, gamma, beta)[0]


def seen_by_an_engine(pair: Pair) -> bool:
    """Whether a mistake is one where gradients are summed over broadcast axes after the rule."""
    return bool(pair.changes) and "for every row" not in pair.name


def refused(f, inputs, **options) -> bool:
    with np.errstate(all="ignore"):
        try:
            ag.gradcheck(f, inputs, **options)
        except ag.GradientError:
            return True
        return False


def test_the_suite_has_the_size_it_claims():
    assert sum(map(seen_by_an_engine, mutants())) >= 150
    assert len({pair.source for pair in correct()}) >= 100
    assert not any(pair.changes for pair in correct())


def test_every_wrong_backward_is_caught():
    assert [
        pair.name for pair in mutants()[::2] if refused(recorded(pair), pair.inputs(1)) != seen_by_an_engine(pair)
    ] == []


def test_no_right_backward_is_refused():
    assert [pair.name for pair in correct()[::3] if refused(recorded(pair), pair.inputs(1))] == []


def test_every_wrong_rule_of_a_primitive_is_caught():
    rules = wrong_rules()
    assert sum(rule.changes for rule in rules) >= 150
    assert [rule.name for rule in rules if refused(rule.f, rule.inputs) != rule.changes] == []


@pytest.mark.parametrize("order", [1, 2])
def test_no_right_rule_of_a_primitive_is_refused(order):
    own = {name: rows for name, rows in SAMPLES.items() if name not in ("stop_gradient", "allreduce")}
    for name, rows in own.items():
        for sample in rows[:1] if order == 2 else rows:
            assert not refused(sample.f, drawn(sample, order), order=order), name


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_batch_norm_to_order_3(form):
    x, gamma, beta = rng.normal(size=(4, 2)), np.array([0.0, -1.5]), rng.normal(size=2)
    assert ag.gradcheck(lambda x, g, b: ag.batch_norm(x, g, b, form=form), (x[:3], gamma, beta), order=3)
    far = 1e4 + rng.normal(size=(6, 3))
    far[:, 0] = 1e4  # a constant feature, steep within sqrt(eps)
    assert ag.gradcheck(lambda x: ag.batch_norm(x, form=form, eps=0.1), far, order=2)
    assert ag.gradcheck(lambda x: ag.batch_norm(x, form=form), rng.normal(size=(2, 3)), order=2)


@settings(max_examples=25)
@given(
    shape=st.sampled_from([(2, 3), (7, 2), (3, 2, 2), (5, 1)]),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    after=st.sampled_from([ag.tanh, ag.softmax, ag.square, ag.sigmoid]),
    seed=st.integers(0, 10**6),
)
def test_right_gradients_of_any_scale_pass(shape, scale, offset, after, seed):
    rng = np.random.default_rng(seed)
    x = scale * (offset + rng.normal(size=shape))
    ag.gradcheck(
        lambda x, g, b: after(ag.batch_norm(x, g, b, eps=0.1 * scale**2)),
        (x, rng.normal(size=shape[-1]), rng.normal(size=shape[-1])),
        seed=seed,
    )


# --- Mistakes that other checks let pass ---------------------------------------------------------------------


def test_a_derivative_lost_at_second_order_is_caught_there():
    def root(x):  # the derivative reads the root as a constant
        value = ag.sqrt(x)
        return x / (2 * ag.stop_gradient(value)) + ag.stop_gradient(value) / 2

    x = [np.array([1.0, 2.0, 5.0])]
    with pytest.raises(ag.GradientError):
        ag.gradcheck(root, x, order=2)


def test_weights_other_than_one_are_used():
    @primitive(lambda g: 2 * g * g)
    def doubled(x, /):
        return 2 * x

    with pytest.raises(ag.GradientError, match="not linear in the incoming gradient"):
        ag.gradcheck(lambda x: doubled(x).sum() * 0.5, [np.ones(3) + np.arange(3.0)])


def test_a_rule_that_takes_the_size_of_its_weights_is_caught():
    @primitive(lambda g, x: abs(g) * np.ones(x.shape))
    def total(x, /):
        return x.sum()

    for seed in range(5):
        with pytest.raises(ag.GradientError):
            ag.gradcheck(lambda x: total(x), np.arange(3.0), seed=seed)


def test_a_rule_that_multiplies_weights_of_two_outputs_is_caught():
    @primitive(lambda g: g + 1e-7 * g * np.roll(g, 1))
    def same(x, /):
        return x

    with pytest.raises(ag.GradientError, match="not linear"):
        ag.gradcheck(lambda x: same(x), np.arange(1.0, 4.0))


def test_the_text_names_input_entry_values_and_mistake():
    cases = {
        "every entry is -1 times": lambda d: -d,
        r"every entry is 0\.9999 times": lambda d: d * 0.9999,
        "every entry is 0 times": lambda d: d * 0,
        "transposed: the two axes of x are exchanged": np.transpose,
    }
    for mistake, change in cases.items():

        @primitive(lambda g, w, change: change(g * w), lambda g, x: g * x)
        def scaled(x, w, /, change=None):
            return x * w

        with pytest.raises(ag.GradientError, match=mistake) as caught:
            ag.gradcheck(
                lambda x, w, f=scaled, c=change: f(x, w, change=c),
                [rng.normal(size=(3, 3)), ag.tensor(np.ones(3), requires_grad=True, name="w")],
            )
        text = str(caught.value)
        assert "with respect to x is wrong" in text
        assert "got " in text
        assert "expected " in text
        assert "worst d f[" in text


def with_rule(forward, rule):
    """`forward` of one array, with a rule of the gradient and that array."""
    made = primitive(rule)(lambda_with_slash(forward))
    return lambda x: made(x)


def lambda_with_slash(forward):
    def operation(x, /):
        return forward(x)

    return operation


@pytest.mark.parametrize(
    ("forward", "rule", "hint"),
    [
        (np.exp, lambda g, x: g * np.exp(x) / 0.0, "an overflow or a division by 0"),
        (np.exp, lambda g, x: g * 0, "every entry is 0 times the right one"),
        (np.exp, lambda g, x: -2 * g * np.exp(x), "every entry is -2 times the right one"),
        (np.exp, lambda g, x: (g * np.exp(x)).T, "transposed: the two axes of x are exchanged"),
        (np.exp, lambda g, x: g * np.exp(x) * (1 + x), "a term is missing, or has a wrong factor"),
        (lambda x: 0 * x, lambda g, x: g, "a term is missing"),
    ],
)
def test_the_likely_mistake_is_named(forward, rule, hint):
    x = np.random.default_rng(3).normal(size=(3, 3))
    with np.errstate(all="ignore"), pytest.raises(ag.GradientError, match=hint) as caught:
        ag.gradcheck(with_rule(forward, rule), x)
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("entry", [0, 2])
def test_a_wrong_entry_of_any_output_is_found_and_named(wrong, entry):
    mask = 1 + (np.arange(3) == entry)

    @primitive(lambda g: g * 2 * mask)
    def double(x, /):
        return 2 * x

    f = lambda x: (double(x), ag.exp(x)) if wrong == 0 else (ag.exp(x), double(x))
    with pytest.raises(ag.GradientError) as caught:
        ag.gradcheck(f, np.array([0.5, 1.0, 2.0]))
    assert f"worst d f[{wrong}][{entry}] / d x[{entry}]: got 4, expected 2" in str(caught.value)
    assert "1 of 18 entries" in str(caught.value)


def test_the_error_holds_what_a_page_can_show():
    x, w = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    with pytest.raises(ag.GradientError) as caught:
        ag.gradcheck(lambda x, w: x * w + ag.stop_gradient(x), (x, w))
    error = caught.value
    block, other = error.rows
    assert (block.name, other.name, error.names, error.order) == ("x", "w", ("x", "w"), 1)
    assert np.allclose(block.analytic, np.diag(w))
    assert np.allclose(block.measured, np.diag(w + 1))
    assert np.array_equal(block.wrong, np.eye(2, dtype=bool))
    assert not other.wrong.any()
    assert (block.bound < 1e-9).all()
    assert np.allclose(block.limit, 1e-5 + 1e-3 * block.measured)
    assert all(map(np.array_equal, error.inputs, (x, w)))
    with pytest.raises(ag.GradientError) as caught:
        ag.gradcheck(lambda x: ag.batch_norm(x, stop=("var",)), np.random.default_rng(0).normal(size=(4, 2)))
    assert 1e-12 < caught.value.rows[0].bound.max() < 1e-9


@pytest.mark.parametrize("by", [1e-6, -1e-6, 1e-8])
@pytest.mark.parametrize("form", ["fused", "composed"])
def test_a_factor_near_1_is_found(by, form):
    """However wide the limits: the bound alone decides."""

    @primitive(lambda g: g * (1 + by))
    def nearly(x, /):
        return x

    x = np.random.default_rng(0).normal(size=(4, 2))
    with pytest.raises(ag.GradientError, match=r"every entry is \(?\d[^1].* times"):
        ag.gradcheck(lambda x: ag.batch_norm(nearly(x), form=form), x, atol=1, rtol=1)


def test_a_rule_that_is_not_linear_far_out_is_refused():
    @primitive(lambda g, out: g * abs(g) * out)
    def bent_exp(x, /):
        return np.exp(x)

    with pytest.raises(ag.GradientError):
        ag.gradcheck(lambda x: bent_exp(x), np.array([0.0, 50.0]))


def test_a_stop_is_told_from_a_mistake():
    with pytest.raises(ag.GradientError, match="stops a gradient on purpose"):
        ag.gradcheck(lambda x: ag.batch_norm(x, stop=("var",)), rng.normal(size=(4, 2)))


# --- What can't be judged ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "at", "where"),
    [
        (ag.relu, [1.0, 0.0, -1.0], "x[1] = 0"),
        (ag.relu, [1.0, 1e-7, -1.0], "x[1] = 1e-07"),
        (ag.abs, [1.0, -1.0, 0.0], "x[2] = 0"),
        (ag.max, [1.0, 2.0, 2.0], "x[1] = 2"),
        (lambda x: ag.maximum(x[0], x[1]), [2.0, 2.0], "x[0] = 2"),
        (ag.sqrt, [1.0, 0.0], "x[1] = 0"),
        (ag.log, [1.0, 1e-9], "x[1] = 1e-09"),
        (lambda x: x + np.floor(x.data), [0.3, 1.0], "x[1] = 1"),
    ],
)
def test_a_kink_nearer_than_the_step_is_refused(f, at, where):
    with pytest.raises(ValueError, match="is not smooth within") as caught:
        ag.gradcheck(lambda x: f(x), [np.array(at)])
    assert isinstance(caught.value, ag.GradientError)
    assert where in str(caught.value)


@pytest.mark.parametrize("distance", [1e-5, 1e-3, 0.1])
def test_a_kink_beyond_the_smallest_step_does_not_disturb(distance):
    assert ag.gradcheck(ag.relu, [np.array([1.0, -distance, distance])])
    assert ag.gradcheck(lambda x: ag.batch_norm(ag.abs(x)), [np.array([[1.0], [-distance], [3.0]])], order=2)


def test_what_cannot_be_judged_is_refused_with_the_reason():
    x = rng.normal(size=(3, 2))
    refusals = [
        (lambda x, y: x * y, [x, x[0]], ValueError, r"inputs\[0\] \(x\) and inputs\[1\] \(y\) share memory"),
        (lambda x: x * 2, [ag.tensor(x)], ValueError, "none of the 1 inputs requires a gradient"),
        (lambda x: x * 2, [np.empty((0, 2))], ValueError, "or they are empty"),
        (lambda x: x * 2, [], ValueError, "inputs is empty"),
        (lambda x: x * 2, 3.0, TypeError, "inputs is a float, expected a sequence"),
        (None, [x], TypeError, "f is a NoneType, expected a function"),
        (lambda x: x * 2, [np.arange(3)], TypeError, r"inputs\[0\] \(x\) has dtype int64, expected floats"),
        (lambda x: x * 2, [x + 1j], TypeError, "complex128"),
        (lambda x: x * 2, [np.array([1.0, np.nan])], ValueError, "holds nan"),
        (lambda x: x * rng.normal(), [x], ValueError, "not deterministic"),
        (lambda x: x.data, [x], TypeError, "f returned a ndarray, expected a tensor"),
        (lambda x: (x, 3.0), [x], TypeError, "float as its output 1"),
        (lambda x: ag.tensor(x.data), [x], ValueError, "no output of f depends on its inputs"),
        (lambda x: x.astype("float32") * 2, [x], ValueError, "computes in float32"),
        (lambda x: ag.log(x), [-np.ones(2)], ValueError, "f is not finite"),
    ]
    for f, inputs, error, text in refusals:
        with np.errstate(all="ignore"), pytest.raises(error, match=text):
            ag.gradcheck(f, inputs)
    with pytest.raises(ValueError, match="order is 0"):
        ag.gradcheck(ag.tanh, x, order=0)


def test_an_empty_input_beside_others_is_no_hindrance():
    assert ag.gradcheck(lambda x, e: x * x + e.sum(), [np.ones(2), np.empty((0, 3))], order=2)


def test_tighter_limits_than_differences_can_hold_are_refused():
    x = rng.normal(size=(4, 3))
    assert ag.gradcheck(ag.batch_norm, x, atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match=r"more than atol \+ rtol"):
        ag.gradcheck(ag.batch_norm, x, atol=1e-17, rtol=0)


# --- What is right, and far out ------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("far", [20.0, 30.0, 36.0, 40.0, 100.0])
def test_right_rules_pass_far_out(far, order):
    margin = np.array([[far, 0.1, -0.2], [0.3, far, 0.0]])
    at = np.array([-far, far, 0.5])
    assert ag.gradcheck(lambda z: ag.nn.cross_entropy(z, np.array([0, 1])), margin, order=order)
    assert ag.gradcheck(lambda x: ag.log(1 + ag.exp(x)), at, order=order)
    assert ag.gradcheck(lambda x: ag.log(1 + ag.exp(x)), at[:1], order=order)
    for f in (ag.sigmoid, ag.tanh, ag.softmax, ag.logsumexp):
        assert ag.gradcheck(f, at, order=order), f


@pytest.mark.parametrize("seed", [7, 14, 18])
def test_a_slope_lost_in_the_rounding_of_its_output_is_no_mistake(seed):
    """`p * w - w`, with p next to 1: at small steps all that changes is the rounding."""
    margin = np.array([[20.0, 0.1, -0.2], [0.3, 20.0, 0.0]])
    assert ag.gradcheck(lambda z: ag.nn.cross_entropy(z, np.array([0, 1])), margin, order=2, seed=seed)


def test_a_jump_of_the_second_derivative_passes_at_order_1_and_is_refused_at_order_2():
    x = np.array([0.0, 1.0, -2.0])
    softsign = lambda x: x / (1 + ag.abs(x))
    assert ag.gradcheck(softsign, x[:1])
    for f in (softsign, lambda x: x * ag.abs(x), lambda x: ag.relu(x) ** 2):
        assert ag.gradcheck(f, x)
        with pytest.raises(ValueError, match=r"not smooth within .* of x\[0\] = 0"):
            ag.gradcheck(f, x, order=2)


@pytest.mark.parametrize("form", ["fused", "composed"])
def test_batch_norm_of_batch_norm_passes_at_order_2(form):
    for shape, mean in (((4, 2), 0), ((3, 2), 100), ((8, 1), 5)):
        x = rng.normal(size=shape) + mean
        assert ag.gradcheck(lambda x: ag.batch_norm(ag.batch_norm(x, form=form), form=form), x, order=2)


# --- What it leaves alone ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, object])
def test_it_runs_in_float64_whatever_comes_in(dtype):
    x = rng.normal(size=(4, 3)).astype(np.float16).astype(dtype)
    if dtype is object:
        x = np.frompyfunc(Fraction, 1, 1)(x)
    seen = set()

    def f(x):
        seen.add(x.dtype)
        return ag.batch_norm(x)

    assert ag.gradcheck(f, [ag.tensor(x, requires_grad=True)])
    assert seen == {np.dtype(np.float64)}


def test_inputs_and_gradients_stay_as_they_are():
    x = ag.tensor(rng.normal(size=(4, 3)), requires_grad=True)
    before = x.data.copy()
    assert ag.gradcheck(ag.batch_norm, [x], order=2)
    assert x.grad is None
    assert np.array_equal(x.data, before)


def test_a_training_module_keeps_its_running_statistics():
    model = ag.nn.Sequential(ag.nn.Linear(3, 4, rng=0), ag.nn.BatchNorm(4), ag.nn.Dropout(0.5, rng=1))
    assert model.training
    before = {name: np.copy(value) for name, value in model.state_dict().items()}
    assert ag.gradcheck(model, rng.normal(size=(5, 3)), order=2)
    assert ag.gradcheck(lambda x: model(x) * 2, rng.normal(size=(5, 3)))
    for name, value in model.state_dict().items():
        assert np.array_equal(value, before[name]), name
    model(ag.tensor(rng.normal(size=(5, 3))))
    assert not np.array_equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
