"""Batch norm: the two forms against each other, against PyTorch, and against bad input."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.engine.tensor import values_of

FORMS = ["fused", "composed"]
STOPS = [(), ("mean",), ("var",), ("mean", "var")]


def test_composed_form_records_the_nine_operations_in_order():
    x = ag.tensor(np.random.default_rng(0).normal(size=(4, 3)), requires_grad=True)
    y = ag.batch_norm(x, np.ones(3), np.zeros(3), form="composed")
    assert [node.op for node in ag.Graph(y).nodes if node.op] == (
        "mean subtract square mean add rsqrt multiply multiply add".split()
    )


def test_composed_inference_shows_the_given_variance_and_eps():
    x = ag.tensor(np.ones((4, 3)), requires_grad=True)
    y = ag.batch_norm(x, mean=np.zeros(3), var=np.ones(3), form="composed")
    assert [node.op for node in ag.Graph(y).nodes if node.op] == "subtract add rsqrt multiply".split()


# --- Both forms, to order 4 --------------------------------------------------------------------------------

LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 3, axis=-1)[..., ::3],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ..., ::-1])[::-1, ..., ::-1],
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(0, -1)).swapaxes(0, -1),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


def tower(f, arrays, order, seed=0):
    """The value of f, and each order's gradients of a randomly weighed sum of those of the order before."""
    rng = np.random.default_rng(seed)
    leaves = [ag.as_tensor(a, requires_grad=True) for a in arrays]
    values = [f(*leaves)]
    weights = ag.tensor(rng.normal(size=values[0].shape), requires_grad=True)
    leaves.append(weights)
    total = (values[0] * weights).sum()
    for k in range(order):
        found = ag.grad(total, leaves, create_graph=k < order - 1, allow_unused=True)
        found = [np.zeros(leaf.shape) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
        values += found
        total = sum(((g * rng.normal(size=g.shape)).sum() for g in found), 0.0)
        if not isinstance(total, ag.Tensor) or not total.requires_grad:
            break
    return [values_of(value) for value in values]


@st.composite
def problems(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axes = tuple(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
    n = math.prod(shape[i] for i in axes)
    inference = n == 1 or draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    x = rng.normal(draw(st.sampled_from([0, 3])), 1, size=shape)
    kept = tuple(1 if i in axes else k for i, k in enumerate(shape))
    if draw(st.booleans()):
        kept = tuple(k for i, k in enumerate(shape) if i not in axes)
    gamma, beta = rng.normal(size=kept), rng.normal(size=kept)
    if draw(st.booleans()):
        x = np.where(rng.random(shape)[:1] < 0.5, x[:1], x)  # values that are constant along the first axis
    if draw(st.booleans()):
        gamma = gamma * 0
    options = {"axes": tuple(i - len(shape) * draw(st.integers(0, 1)) for i in axes)}
    if inference:
        options |= {"mean": rng.normal(size=kept), "var": rng.random(kept)}
    else:
        options["stop"] = draw(st.sampled_from(STOPS))
    per_feature = draw(st.booleans())
    options["eps"] = rng.uniform(0.2, 1, size=kept) if per_feature else draw(st.sampled_from([0.1, 1.0]))
    parameters = [gamma, beta][: draw(st.integers(0, 2))]
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](x), parameters, options


@given(problem=problems(), order=st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_fused_and_composed_agree_to_order_four(problem, order):
    x, parameters, options = problem
    fused, composed = (
        tower(lambda *leaves, form=form: ag.batch_norm(*leaves, form=form, **options), [x, *parameters], order)
        for form in FORMS
    )
    for a, b in zip(fused, composed, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * max(1, np.abs(b).max()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", STOPS)
def test_stop_is_stop_gradient_on_the_statistic(form, stop):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(5, 3)), rng.normal(size=3), rng.normal(size=3)]

    def spelled(x, gamma, beta):
        mean = x.mean(0)
        mean = ag.stop_gradient(mean) if "mean" in stop else mean
        var = ((x - mean) * (x - mean)).mean(0)
        var = ag.stop_gradient(var) if "var" in stop else var
        return gamma * (x - mean) / ag.sqrt(var + 0.1) + beta

    ours = tower(lambda *leaves: ag.batch_norm(*leaves, eps=0.1, stop=stop, form=form), arrays, 3)
    for a, b in zip(ours, tower(spelled, arrays, 3), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_agrees_with_complex_steps(form):
    rng = np.random.default_rng(0)
    x, weights, h = rng.normal(size=(5, 2)), rng.normal(size=(5, 2)), 1e-30
    leaf = ag.tensor(x, requires_grad=True)
    (ours,) = ag.grad(ag.batch_norm(leaf, form=form, eps=0.1), leaf, [weights])
    for index in np.ndindex(x.shape):
        z = x.astype(complex)
        z[index] += 1j * h
        d = z - z.mean(0)
        y = d / np.sqrt((d * d).mean(0) + 0.1)
        assert ours[index] == pytest.approx((y * weights).sum().imag / h, rel=1e-12, abs=1e-13)


# --- PyTorch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (2, 3, 4, 2)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_pytorch_agrees_at_order_one_and_two(shape, affine, training, form):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(1, 2, size=shape), rng.normal(size=3), rng.normal(size=3)][: 3 if affine else 1]
    mean, var = rng.normal(size=3), rng.random(3) + 0.5
    weights, again = rng.normal(size=shape), [rng.normal(size=a.shape) for a in arrays]
    axes = tuple(i for i in range(len(shape)) if i != 1)
    options = {} if training else {"mean": mean, "var": var}

    leaves = [ag.tensor(a, requires_grad=True) for a in arrays]
    y = ag.batch_norm(*leaves, axes=axes, eps=0.1, form=form, **options)
    first = ag.grad(y, leaves, [weights], create_graph=True)
    second = ag.grad(sum((g * w).sum() for g, w in zip(first, again, strict=True)), leaves, allow_unused=True)

    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    given = [] if training else [torch.tensor(mean), torch.tensor(var)]
    running = given or [None, None]
    expected = torch.nn.functional.batch_norm(theirs[0], *running, *theirs[1:], training=training, eps=0.1)
    slopes = torch.autograd.grad(expected, theirs, torch.tensor(weights), create_graph=True)
    total = sum((g * torch.tensor(w)).sum() for g, w in zip(slopes, again, strict=True))
    curves = torch.autograd.grad(total, theirs, allow_unused=True) if total.requires_grad else [None] * len(theirs)

    for a, b in zip((y, *first, *second), (expected, *slopes, *curves), strict=True):
        a, b = (np.zeros(()) if t is None else values_of(t.detach() if hasattr(t, "detach") else t) for t in (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10)


# --- Statistics, dtypes, exactness -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_return_stats_gives_the_mean_and_the_biased_variance(form):
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype("float32")
    for batch in (x, ag.tensor(x, requires_grad=True)):
        y, mean, var = ag.batch_norm(batch, axes=(0, 2), form=form, return_stats=True)
        assert type(y) is type(batch)
        assert type(mean) is type(var) is np.ndarray
        assert mean.dtype == var.dtype == "float32"
        np.testing.assert_allclose(mean, x.mean((0, 2)), atol=1e-6)
        np.testing.assert_allclose(var, x.var((0, 2)), rtol=1e-5)
        mean[:] = 0
        assert ag.batch_norm(batch, axes=(0, 2), form=form, return_stats=True)[1].any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes_stay_through_values_gradients_and_statistics(dtype, form):
    rng = np.random.default_rng(0)
    leaves = [ag.tensor(rng.normal(size=s), dtype=dtype, requires_grad=True) for s in ((8, 3), 3, 3)]
    y, *statistics = ag.batch_norm(*leaves, form=form, eps=0.1, return_stats=True)
    gradients = ag.grad(y, leaves, [np.ones(y.shape)], create_graph=True)
    second = ag.grad((gradients[0] * gradients[0]).sum() + y.sum(), leaves)
    assert {a.dtype for a in (y, *statistics, *gradients, *second)} == {np.dtype(dtype)}
    exact = ag.batch_norm(*(leaf.data.astype(float) for leaf in leaves), eps=0.1)
    np.testing.assert_allclose(y.data, exact, atol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("form", FORMS)
def test_each_gradient_has_the_dtype_of_its_own_input(form):
    rng = np.random.default_rng(0)
    x = ag.tensor(rng.normal(size=(8, 3)), dtype="float32", requires_grad=True)
    gamma = ag.tensor(rng.normal(size=3), requires_grad=True)
    y = ag.batch_norm(x, gamma, form=form)
    assert y.dtype == "float64"
    assert [g.dtype for g in ag.grad(y, (x, gamma), [y.data])] == ["float32", "float64"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("stop", STOPS)
def test_fractions_stay_exact(form, stop):
    x, gamma, beta, eps = ag.rational_batch((4, 2))
    leaves = [ag.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y, mean, var = ag.batch_norm(*leaves, eps=eps, form=form, stop=stop, return_stats=True)
    assert (mean == x.sum(0) / Fraction(4)).all()
    assert (var == ((x - mean) ** 2).sum(0) / Fraction(4)).all()
    assert ((y.data - beta) ** 2 * (var + eps) == (gamma * (x - mean)) ** 2).all()
    gradients = ag.grad(y, leaves, [x * x])
    assert {type(element) for a in (y.data, *gradients) for element in a.flat} == {Fraction}
    total = x * x
    assert (gradients[2] == total.sum(0)).all()
    if "mean" not in stop:
        assert (gradients[0].sum(0) == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_exact_inference_takes_float_statistics_for_the_fractions_that_they_are(form):
    x = np.array([[Fraction(1, 3)], [Fraction(2)]], dtype=object)
    y = ag.batch_norm(x, mean=[0.5], var=[3.75], eps=0.25, form=form)
    assert y.tolist() == [[Fraction(-1, 12)], [Fraction(3, 4)]]


@pytest.mark.parametrize("form", FORMS)
def test_a_fraction_serves_as_eps_for_floats(form):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    y = ag.batch_norm(x, eps=Fraction(1, 8), form=form)
    assert y.dtype == "float32"
    assert np.array_equal(y, ag.batch_norm(x, eps=0.125, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_integers_are_normalised_as_floats(form):
    x = np.arange(6).reshape(3, 2)
    assert np.array_equal(ag.batch_norm(x, form=form), ag.batch_norm(x.astype(float), form=form))
    assert ag.batch_norm(ag.tensor(x), form=form).dtype == "float64"
    assert ag.batch_norm(x.tolist(), form=form).shape == (3, 2)


# --- Shapes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axes", [0, -2, (0,), [0], np.array([0]), (np.int64(0),), range(1), None])
def test_axes_come_in_every_kind(axes, form):
    x = np.random.default_rng(0).normal(size=(4, 3))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(ag.batch_norm(x, axes=axes, form=form), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("full", [True, False])
def test_parameters_have_the_kept_shape_with_or_without_ones(form, full):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3, 2))
    shape = (1, 3, 1) if full else (3,)
    gamma, beta, mean, var, eps = rng.random((5, *shape)) + 0.5
    leaves = [ag.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    g, b, m, v, e = (a.reshape(1, 3, 1) for a in (gamma, beta, mean, var, eps))
    for statistics in ({}, {"mean": mean, "var": var}):
        y = ag.batch_norm(*leaves, axes=(0, 2), eps=eps, form=form, **statistics)
        centre, spread = (m, v) if statistics else (x.mean((0, 2), keepdims=True), x.var((0, 2), keepdims=True))
        np.testing.assert_allclose(y.data, g * (x - centre) / np.sqrt(spread + e) + b, rtol=1e-12)
        assert [a.shape for a in ag.grad(y, leaves, [x])] == [x.shape, shape, shape]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0, 3), (0, 2, 3), (4, 0)])
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(shape, form):
    leaves = [ag.tensor(np.ones(s), requires_grad=True, dtype="float32") for s in (shape, shape[-1:], shape[-1:])]
    y, mean, var = ag.batch_norm(*leaves, form=form, return_stats=True)
    assert y.shape == shape
    assert mean.shape == var.shape == shape[-1:]
    for leaf, g in zip(leaves, ag.grad(y, leaves, [np.zeros(shape)], create_graph=True), strict=True):
        assert (g.shape, g.dtype) == (leaf.shape, leaf.dtype)
        assert not g.data.any()


@pytest.mark.parametrize("form", FORMS)
def test_one_row_works_with_given_statistics(form):
    x = ag.tensor([[1.0, 2.0]], requires_grad=True)
    y = ag.batch_norm(x, mean=[0.0, 1.0], var=[4.0, 0.0], eps=1e-5, form=form)
    np.testing.assert_allclose(y.data, [[1 / math.sqrt(4.00001), 1 / math.sqrt(1e-5)]])
    np.testing.assert_allclose(ag.grad(y, x, [np.ones((1, 2))])[0], [[1 / math.sqrt(4.00001), 1 / math.sqrt(1e-5)]])


# --- Odd values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_bad_value_stays_in_its_feature(odd, form, dtype):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(40, 3)).astype(dtype)
    bad = clean.copy()
    bad[2, 1] = odd
    given = [rng.normal(size=3).astype(dtype) for _ in range(2)]
    weights = rng.normal(size=clean.shape)

    def everything(x):
        leaves = [ag.tensor(a, requires_grad=True) for a in (x, *given)]
        y, *statistics = ag.batch_norm(*leaves, form=form, return_stats=True)
        return [y.data, *ag.grad(y, leaves, [weights]), *statistics]

    for i, (a, b) in enumerate(zip(everything(bad), everything(clean), strict=True)):
        assert np.array_equal(a[..., ::2], b[..., ::2])
        assert i == 3 or not np.isfinite(a[..., 1]).all()  # the gradient of beta reads no x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_feature_is_beta_and_a_zero_gamma_cuts_only_the_input(form, dtype):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(6, 3))
    data[:, 0] = 7.25
    x, gamma, beta = (
        ag.tensor(a, dtype=dtype, requires_grad=True) for a in (data, [2.0, 0.0, 3.0], rng.normal(size=3))
    )
    y = ag.batch_norm(x, gamma, beta, form=form)
    assert np.array_equal(y.data[:, :2], np.broadcast_to(beta.data[:2], (6, 2)))
    dx, dgamma, _ = ag.grad(y, (x, gamma, beta), [rng.normal(size=y.shape)])
    assert not dx[:, 1].any()
    assert dx[:, 0].any()
    assert dgamma[0] == 0
    assert dgamma[1] != 0


@pytest.mark.parametrize("form", FORMS)
def test_the_inputs_and_their_gradients_are_left_as_they_are(form):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((5, 3), 3, 3)]
    copies = [a.copy() for a in arrays]
    leaves = [ag.as_tensor(a, requires_grad=True) for a in arrays]
    y = ag.batch_norm(*leaves, form=form)
    seed = np.ones(y.shape)
    y.backward(seed)
    first = [leaf.grad.copy() for leaf in leaves]
    y.backward(seed)
    for leaf, before, a, g in zip(leaves, copies, arrays, first, strict=True):
        assert np.array_equal(a, before)
        assert np.array_equal(leaf.grad, 2 * g)
        assert not np.shares_memory(leaf.grad, seed)
    assert (seed == 1).all()


# --- Narrow and foreign numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", ">f2"])
@pytest.mark.parametrize("form", FORMS)
def test_float16_squares_beyond_its_range_stay_finite(form, dtype):
    leaves = [ag.tensor(a, dtype=dtype, requires_grad=True) for a in ([[500.0], [-500.0]], [2.0], [1.0])]
    y = ag.batch_norm(*leaves, form=form)
    assert y.dtype == "float16"
    assert y.data.tolist() == [[3.0], [-1.0]]
    dx, dgamma, dbeta = ag.grad(y, leaves, [np.array([[1.0], [0.5]])])
    assert {g.dtype for g in (dx, dgamma, dbeta)} == {np.dtype(dtype)}
    assert (dgamma.item(), dbeta.item()) == (0.5, 1.5)
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("shape", [(4, 3), (500, 10)])  # the larger in numba
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("narrow", "wide"), [("float32", "float64"), ("float16", "float32"), ("float16", "float64")])
@pytest.mark.parametrize("stop", [(), ("var",)])
def test_a_wider_parameter_widens_the_result_and_no_gradient(form, shape, narrow, wide, stop):
    x = ag.tensor(np.random.default_rng(0).normal(size=shape), dtype=narrow, requires_grad=True)
    for name in ("gamma", "beta"):
        parameter = ag.tensor(np.full(shape[1], 0.1), dtype=wide, requires_grad=True)
        for order in (1, 2):
            y = ag.batch_norm(x, **{name: parameter}, form=form, stop=stop)
            dx, dwide = ag.grad(y, [x, parameter], y.data, create_graph=order == 2)
            assert (y.dtype, dx.dtype, dwide.dtype) == (wide, narrow, wide)
    if wide == "float64":  # 0.1 as it is, which float32 has not
        assert np.all(ag.batch_norm(x * 0, beta=parameter, form=form).data == 0.1)


@pytest.mark.parametrize("scale", [500.0, 0.01])
@pytest.mark.parametrize("form", FORMS)
def test_float16_is_right_at_order_2(form, scale):
    draw = np.random.default_rng(0)
    x, g, v = draw.normal(size=(3, 6, 2)).astype("float16")
    x *= np.float16(scale)
    orders = []
    for dtype in ("float16", float):
        leaf = ag.tensor(x.astype(dtype), requires_grad=True)
        (first,) = ag.grad(ag.batch_norm(leaf, form=form), leaf, g.astype(dtype), create_graph=True)
        orders.append((first.data, *ag.grad(first, leaf, v.astype(dtype))))
    for found, true in zip(*orders, strict=True):
        assert found.dtype == "float16"
        np.testing.assert_allclose(found, true, rtol=1e-2, atol=1e-2 * np.abs(true).max())


@pytest.mark.parametrize("form", FORMS)
def test_float16_takes_statistics_and_eps_beyond_its_range(form):
    x = ag.tensor([[1000.0, 1.0], [-1000.0, 1.0]], dtype="float16", requires_grad=True)
    y = ag.batch_norm(x, mean=[0.0, 1.0], var=[1e6, 1e-9], eps=[1e-9, 1e-9], form=form)
    assert y.data.tolist() == [[1.0, 0.0], [-1.0, 0.0]]
    (dx,) = ag.grad(y, x, [np.ones((2, 2))])
    np.testing.assert_allclose(dx, [[1e-3, 22360.68]] * 2, rtol=1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_float16_statistics_overflow_only_as_float16(form):
    x = np.array([[500.0], [-500.0]], "float16")
    assert ag.batch_norm(x, form=form, return_stats=True)[2] == np.inf
    *_, var, n = ag.batch_norm(x, form=form, return_stats="count")
    assert (var.item(), n) == (250000, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(6, 3), (3000, 100)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("foreign", ["x", "g", "gamma", "x alone"])
def test_numbers_in_the_other_byte_order_are_computed_like_native_ones(foreign, dtype, shape, form):
    rng = np.random.default_rng(0)
    native = {"x": rng.normal(3, 1, shape), "gamma": rng.normal(size=shape[1:]), "g": rng.normal(size=shape)}
    native = {name: a.astype(dtype) for name, a in native.items()}

    def everything(x, gamma, g):
        leaves = [ag.as_tensor(a, requires_grad=True) for a in ((x,) if foreign == "x alone" else (x, gamma))]
        y = ag.batch_norm(*leaves, form=form)
        return [y.data, *ag.grad(y, leaves, g)]

    swapped = native | {(name := foreign.split()[0]): native[name].astype(">" + dtype)}
    for a, b in zip(everything(**swapped), everything(**native), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6 if dtype == "f4" else 1e-12, atol=1e-6 if dtype == "f4" else 1e-12)


def test_given_statistics_beyond_the_range_of_squares_are_as_others():
    x, g = np.random.default_rng(0).normal(size=(2, 6, 3))

    def everything(scale):
        leaf = ag.tensor(x * scale, requires_grad=True)
        y = ag.batch_norm(leaf, mean=np.full(3, 0.5 * scale), var=np.full(3, 2 * scale**2), eps=1e-30)
        return y.data, ag.grad(y, leaf, g)[0] * scale

    for a, b in zip(everything(1e150), everything(1.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e150, 1e170, 1e300])
def test_numbers_near_the_ends_of_the_range_are_normalised_as_others_are(scale):
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 50, 3))
    gamma, beta = rng.normal(size=(2, 3))

    def everything(x, eps):
        leaves = [ag.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
        y = ag.batch_norm(*leaves, eps=eps)
        return [y.data, *ag.grad(y, leaves, g)]

    expected, found = everything(x, 1e-30), everything(x * scale, 1e-30 if scale > 1 else 1.0)
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if scale > 1:
            np.testing.assert_allclose(a * scale if i == 1 else a, b, rtol=1e-9)
        else:
            assert np.isfinite(a).all()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_a_gradient_near_the_end_of_the_range_gives_finite_gradients(backend):
    if backend == "numba":
        pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 50, 3))

    def everything(x, g):
        leaves = [ag.tensor(a, requires_grad=True) for a in (x, [2.0, -1.0, 3.0])]
        return ag.grad(ag.batch_norm(*leaves, eps=1e-20), leaves, g)

    ag.set_backend(backend)
    try:
        (dx, dgamma), (expected_dx, expected_dgamma) = everything(x * 1e9, g * 1e300), everything(x, g)
    finally:
        ag.set_backend(None)
    np.testing.assert_allclose(dx / 1e291, expected_dx, rtol=1e-9)
    np.testing.assert_allclose(dgamma / 1e300, expected_dgamma, rtol=1e-9)


# --- One compiled call -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("given", [(), ("gamma",), ("beta",), ("gamma", "beta")])
@pytest.mark.parametrize(("shape", "axes"), [((50, 7), (0,)), ((5, 7, 60), (0, 2)), ((4, 6, 3, 2), (1,))])
def test_compiled_calls_agree_with_composed(shape, axes, given, stop, dtype):
    pytest.importorskip("numba")
    rng = np.random.default_rng(0)
    kept = tuple(n for i, n in enumerate(shape) if i not in axes)
    arrays = {"x": rng.normal(1, 2, shape), "gamma": rng.normal(size=kept), "beta": rng.normal(size=kept)}
    leaves = {
        name: ag.tensor(a, dtype=dtype, requires_grad=True) for name, a in arrays.items() if name in ("x", *given)
    }
    g = rng.normal(size=shape)

    def everything(form, seed):
        y = ag.batch_norm(**leaves, axes=axes, eps=0.1, stop=stop, form=form)
        return [y.data, *ag.grad(y, list(leaves.values()), seed)]

    ag.set_backend("numba")
    try:
        for seed in (g, np.broadcast_to(g[:1], shape)):
            for a, b in zip(everything("fused", seed), everything("composed", seed), strict=True):
                assert (a.shape, a.dtype) == (b.shape, b.dtype)
                atol = (1e-5 if dtype == "float32" else 1e-13) * max(10, np.abs(b).max())
                np.testing.assert_allclose(a, b, rtol=0, atol=atol)
    finally:
        ag.set_backend(None)


# --- Bad input ---------------------------------------------------------------------------------------------

X = np.arange(12.0).reshape(4, 3)
BAD = {
    "gamma has shape (4,), expected (3,) or (1, 3) for x of shape (4, 3) averaged over axes (0,)": {
        "gamma": np.ones(4)
    },
    "beta has shape (), expected (3,)": {"beta": 1.0},
    "mean has shape (2,), expected (3,)": {"mean": np.ones(2), "var": np.ones(3)},
    "var has shape (3, 1), expected (3,)": {"mean": np.ones(3), "var": np.ones((3, 1))},
    "eps has shape (2,), expected (3,)": {"eps": [1.0, 2.0]},
    "gamma has dtype complex128": {"gamma": np.ones(3) * 1j},
    "beta has dtype <U1": {"beta": ["a", "b", "c"]},
    "mean has dtype complex128": {"mean": np.ones(3) * 1j, "var": np.ones(3)},
    "x has dtype complex128": {"x": X * 1j},
    "x has dtype <U1": {"x": [["a"], ["b"]]},
    "axes has 2, expected integers from -2 to 1 for x of shape (4, 3)": {"axes": 2},
    "axes has -3, expected": {"axes": (0, -3)},
    "axes has 0.5, expected integers": {"axes": 0.5},
    "axes has '0', expected integers": {"axes": "0"},
    "axes is (0, -2), which names an axis twice": {"axes": (0, -2)},
    "eps is 0, expected a positive": {"eps": 0},
    "eps is -1e-05, expected a positive": {"eps": -1e-5},
    "eps is nan, expected a positive": {"eps": np.nan},
    "eps is inf, expected a positive": {"eps": np.inf},
    "eps is [1.0, 0.0, 1.0], expected a positive": {"eps": [1.0, 0.0, 1.0]},
    "eps is None, expected a positive": {"eps": None},
    "eps has dtype <U4, expected a positive number": {"eps": "1e-5"},
    "eps requires a gradient": {"eps": ag.tensor(1e-5, requires_grad=True)},
    "mean and var go together, got only mean": {"mean": np.ones(3)},
    "mean and var go together, got only var": {"var": np.ones(3)},
    "var has a negative entry, -1.0": {"mean": np.ones(3), "var": [1.0, -1.0, 1.0]},
    "mean requires a gradient, but given statistics are constants": {
        "mean": ag.tensor(np.ones(3), requires_grad=True),
        "var": np.ones(3),
    },
    "form is 'merged', expected": {"form": "merged"},
    "stop is 'mean', expected a tuple": {"stop": "mean"},
    "stop is ('scale',), expected a tuple": {"stop": ("scale",)},
    "stop is None, expected a tuple": {"stop": None},
    "x of shape (1, 3) has one value per feature over axes (0,), whose variance is 0: give more rows": {"x": X[:1]},
    "x of shape (4, 3) has one value per feature over axes ()": {"axes": ()},
    "x of shape () has one value per feature": {"x": 1.0},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message, form, recorded):
    options = {"x": X, "form": form} | BAD[message]
    x = options.pop("x")
    if recorded and np.asarray(x).dtype.kind == "f":
        x = ag.tensor(x, requires_grad=True)
    with pytest.raises((TypeError, ValueError), match="^" + re.escape(message)) as error:
        ag.batch_norm(x, **options)
    assert "\n" not in str(error.value)


ALONE = ag.tensor(3.0, requires_grad=True) * 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "operands",
    [
        {"x": [[ALONE, 1.0], [2.0, 3.0]]},
        {"gamma": [ALONE, ALONE]},
        {"beta": [1.0, ALONE]},
        {"mean": [ALONE, ALONE], "var": np.ones(2)},
        {"mean": np.ones(2), "var": (ALONE, 1.0)},
        {"eps": [ALONE, 1.0]},
    ],
    ids=lambda operands: list(operands)[-1],
)
def test_tensors_in_a_list_are_refused(operands, form):
    with pytest.raises(TypeError, match="of tensors, which would cut the graph"):
        ag.batch_norm(**{"x": np.eye(2), "form": form} | operands)
