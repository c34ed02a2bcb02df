"""The functions against NumPy and PyTorch: values, dtypes, exact rationals, edges of the domain."""

import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, mutually_broadcastable_shapes

import autograd_bn as ag
from autograd_bn.engine.tensor import values_of

rng = np.random.default_rng(0)

BINARY = "add subtract multiply divide power maximum minimum".split()
UNARY = "negative exp log sqrt square abs tanh".split()
OWN = {  # names that NumPy hasn't
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "softmax": lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True),
    "log_softmax": lambda x: x - np.log(np.exp(x).sum(-1, keepdims=True)),
    "logsumexp": lambda x: np.log(np.exp(x).sum()),
}
REDUCTIONS = "sum mean var max min".split()
DTYPES = [np.float16, np.float32, np.float64, np.longdouble]


def positive(*shape, dtype=float):
    return rng.uniform(0.5, 2, shape).astype(dtype)


def both_ways(f, *inputs):
    """`f` on arrays, which gives plain NumPy, and on tensors, which gives the same recorded."""
    plain = f(*inputs)
    assert not isinstance(plain, ag.Tensor)
    recorded = f(*[ag.tensor(a, requires_grad=np.asarray(a).dtype.kind == "f") for a in inputs])
    assert isinstance(recorded, ag.Tensor)
    np.testing.assert_array_equal(plain, recorded.data)
    assert np.asarray(plain).dtype == recorded.dtype
    return plain


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shapes", [((2, 3), (3,)), ((), (3,)), ((), ()), ((0, 3), (3,)), ((2, 1), (1, 3))])
def test_binary_values(name, shapes):
    a, b = (positive(*shape) for shape in shapes)
    found = both_ways(getattr(ag, name), a, b)
    np.testing.assert_array_equal(found, getattr(np, name)(a, b))


@pytest.mark.parametrize("name", UNARY + list(OWN))
@pytest.mark.parametrize("shape", [(2, 3), (3,), (1,)])
def test_unary_values(name, shape):
    x = positive(*shape)
    expected = getattr(np, name, None) or OWN[name]
    np.testing.assert_allclose(both_ways(getattr(ag, name), x), expected(x), rtol=1e-14)


@pytest.mark.parametrize("name", [*UNARY, "rsqrt", "sigmoid", "relu"])
def test_unary_of_scalars_and_empty(name):
    f = getattr(ag, name)
    assert both_ways(f, np.array(0.5)).shape == ()
    assert both_ways(f, np.zeros((0, 2))).shape == (0, 2)
    assert f(0.5) == f(np.array(0.5)) == f(np.float64(0.5))
    assert np.array_equal(f([0.5, 1.0]), f(np.array([0.5, 1.0])))


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), [1, -1], (), (2, 1, 0)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_reductions(name, axis, keepdims):
    x = positive(2, 3, 4)
    found = both_ways(lambda x: getattr(ag, name)(x, axis=axis, keepdims=keepdims), x)
    expected = getattr(np, name)(x, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert np.shape(found) == np.shape(expected)
    t = ag.tensor(x, requires_grad=True)
    method = getattr(t, name)(axis, keepdims=keepdims)
    np.testing.assert_array_equal(method.data, found)
    assert ag.grad(method.sum(), t)[0].shape == x.shape


@pytest.mark.parametrize("name", [*REDUCTIONS, "logsumexp", "softmax", "log_softmax"])
def test_reductions_refuse_a_bad_axis(name):
    for x in (np.ones((2, 3)), ag.tensor(np.ones((2, 3)), requires_grad=True)):
        with pytest.raises(ValueError, match=r"axis 2 is out of bounds"):
            getattr(ag, name)(x, axis=2)
        with pytest.raises(ValueError, match=r"[Dd]uplicate|repeated"):
            getattr(ag, name)(x, axis=(0, 0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_are_kept_by_every_operation_and_gradient(dtype):
    x, y = positive(3, 4, dtype=dtype), positive(4, dtype=dtype)
    calls = {
        **{name: getattr(ag, name) for name in BINARY},
        **{name: lambda a, b, name=name: getattr(ag, name)(a) + b for name in [*UNARY, *OWN]},
        **{name: lambda a, b, name=name: getattr(ag, name)(a, axis=0) + b for name in REDUCTIONS},
        "matmul": ag.matmul,
        "where": lambda a, b: ag.where(np.asarray(a) > 1, a, b),
        "concatenate": lambda a, b: ag.concatenate([a, b.reshape(1, 4)]),
        "stack": lambda a, b: ag.stack([a[0], b]),
        "transpose": lambda a, b: ag.transpose(a) + b.reshape(4, 1),
        "getitem": lambda a, b: a[[0, 0]] + b,
        "broadcast_to": lambda a, b: ag.broadcast_to(b, (3, 4)) + a,
        "python scalars": lambda a, b: 2 * a / 3.5 - 1 + b**2 + 2**b,
        "weak reduction": lambda a, b: a.mean() * b.sum() + a.max(),
        "scalar function": lambda a, b: ag.sigmoid(a[0, 0]) * 2.0 + b,
    }
    for name, f in calls.items():
        a, b = ag.tensor(x, requires_grad=True), ag.tensor(y, requires_grad=True)
        out = f(a, b)
        assert out.dtype == dtype, name
        assert f(x, y).dtype == dtype, name
        first = ag.grad(out.sum(), [a, b], create_graph=True)
        assert [g.dtype for g in first] == [dtype, dtype], name
        total = sum((g * g).sum() for g in first)
        assert total.dtype == dtype, name
        if total.requires_grad:
            second = ag.grad(total, [a, b], allow_unused=True)
            assert all(g is None or g.dtype == dtype for g in second), name


def test_mixed_dtypes_promote_as_numpy_does():
    kinds = [np.array([1.5, 2], d) for d in DTYPES] + [np.array([1, 2]), np.array([True, False]), 2, 2.5, True]
    for a in kinds:
        for b in kinds:
            for name in ("add", "multiply", "divide", "maximum"):
                if name == "divide" and not np.all(b):
                    continue
                expected = getattr(np, name)(a, b).dtype
                for left, right in ((ag.tensor(a), b), (a, ag.tensor(b)), (ag.tensor(a), ag.tensor(b))):
                    wrapped = [isinstance(s, ag.Tensor) for s in (left, right)]
                    if any(w and isinstance(s, int | float) for w, s in zip(wrapped, (a, b), strict=True)):
                        continue  # a tensor is never weak
                    assert getattr(ag, name)(left, right).dtype == expected
    a = ag.tensor(np.ones(2, np.float32), requires_grad=True)
    b = ag.tensor(np.ones(2), requires_grad=True)
    out = ag.where([True, False], a, b)
    assert out.dtype == np.float64
    assert [g.dtype for g in ag.grad(out.sum(), [a, b])] == [np.float32, np.float64]


def test_integer_tensors_compute_but_carry_no_gradient():
    n = ag.tensor([1, 2, 3])
    assert (n * 2).dtype == np.int64
    assert (n / 2).dtype == np.float64
    assert n.mean().item() == 2.0
    x = ag.tensor([1.0, 2.0, 3.0], requires_grad=True)
    (x * n).sum().backward()
    assert np.array_equal(x.grad, [1.0, 2.0, 3.0])
    assert np.array_equal(ag.grad((x**n).sum(), x)[0], [1.0, 4.0, 27.0])
    assert ag.sigmoid(np.array([0])).dtype == np.float64


def broadcastable():
    return mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3)


@settings(max_examples=60, deadline=None)
@given(shapes=broadcastable(), name=st.sampled_from(BINARY), seed=st.integers(0, 99))
def test_broadcast_gradients_have_the_shapes_and_sums_of_the_inputs(shapes, name, seed):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(seed)
    a, b = (draw.uniform(0.5, 2, shape) for shape in shapes.input_shapes)
    w = draw.normal(size=shapes.result_shape)
    x, y = ag.tensor(a, requires_grad=True), ag.tensor(b, requires_grad=True)
    found = ag.grad(getattr(ag, name)(x, y), [x, y], w)
    p, q = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    method = {"power": "pow"}.get(name, name)
    expected = torch.autograd.grad(getattr(torch, method)(p, q), [p, q], torch.tensor(w))
    for g, e in zip(found, expected, strict=True):
        assert g.shape == tuple(e.shape)
        np.testing.assert_allclose(g, e.numpy(), rtol=1e-11, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    x=array_shapes(min_dims=1, max_dims=3, max_side=4).flatmap(
        lambda shape: arrays(float, shape, elements=st.integers(-2, 2))
    ),
    data=st.data(),
    name=st.sampled_from(["max", "min"]),
)
def test_ties_share_the_gradient_as_in_pytorch(x, data, name):
    torch = pytest.importorskip("torch")
    axis = data.draw(st.lists(st.sampled_from(range(x.ndim)), unique=True, min_size=1))
    t, p = ag.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    found = ag.grad(getattr(t, name)(tuple(axis)).sum(), t)[0]
    getattr(torch, f"a{name}")(p, axis).sum().backward()
    np.testing.assert_allclose(found, p.grad.numpy(), rtol=1e-14)


# --- Edges of the domain -------------------------------------------------------------------------------------


def gradient(f, *values):
    leaves = [ag.tensor(v, requires_grad=True) for v in values]
    return ag.grad(f(*leaves).sum(), leaves)


def test_power_at_zero_and_below():
    assert gradient(lambda x: x**2, [0.0, -3.0])[0].tolist() == [0.0, -6.0]
    assert gradient(lambda x: x**1, [0.0, -3.0])[0].tolist() == [1.0, 1.0]
    assert gradient(lambda x: x**0, [0.0, -3.0])[0].tolist() == [0.0, 0.0]
    assert gradient(lambda x: x**3, [-2.0])[0].tolist() == [12.0]
    assert gradient(lambda x: x**-1, [-2.0])[0].tolist() == [-0.25]
    assert gradient(lambda x: x ** np.array([0, 1, 2]), [0.0, 0.0, 0.0])[0].tolist() == [0.0, 1.0, 0.0]
    base, exponent = gradient(lambda x, b: x**b, [0.0, 0.0, 2.0], [0.0, 2.0, 0.0])
    assert base.tolist() == [0.0, 0.0, 0.0]
    assert exponent.tolist() == [0.0, 0.0, np.log(2.0)]
    assert gradient(lambda b: 0.0**b, [0.0, 1.0])[0].tolist() == [0.0, 0.0]
    assert ag.hessian(lambda x: x**2, 0.0) == 2.0
    assert ag.hessian(lambda x: x**3, 0.0) == 0.0
    assert np.isnan(gradient(lambda x, b: x**b, [2.0, np.nan], [np.nan, 1.0])[0]).tolist() == [True, False]


def test_extremes_with_nan():
    nan = np.nan
    assert gradient(ag.max, [1.0, nan, 3.0])[0].tolist() == [0.0, 1.0, 0.0]
    assert gradient(lambda x: ag.min(x, axis=0), [[1.0, nan], [3.0, 2.0]])[0].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    a, b = gradient(ag.maximum, [1.0, nan, 2.0, 4.0], [nan, 1.0, 2.0, 3.0])
    assert (a.tolist(), b.tolist()) == ([1.0, 1.0, 0.5, 1.0], [1.0, 1.0, 0.5, 0.0])  # as PyTorch
    a, b = gradient(ag.minimum, [1.0, nan, nan], [nan, 1.0, nan])
    assert (a.tolist(), b.tolist()) == ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert np.isnan(ag.relu(nan))


def test_kinks_have_a_defined_derivative():
    assert gradient(ag.abs, [0.0, -0.0])[0].tolist() == [0.0, 0.0]
    assert gradient(ag.relu, [0.0, -1.0, 1.0])[0].tolist() == [0.0, 0.0, 1.0]
    assert gradient(lambda x: ag.maximum(x, 0.0), [0.0])[0].tolist() == [0.5]


def test_where_lets_no_nan_through_from_the_other_branch():
    x = ag.tensor([1.0, -1.0], requires_grad=True)
    with np.errstate(invalid="ignore"):
        y = ag.where(x > 0, ag.sqrt(x), x)
        assert np.isfinite(y.data).all()
    assert gradient(lambda a: ag.where([True, False], a, np.array([0.0, np.nan])), [2.0, 3.0])[0].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_no_overflow_and_no_warning_at_the_ends(dtype):
    huge = np.finfo(dtype).max
    x = np.array([-huge, -50, 0, 50, huge], dtype)
    assert ag.sigmoid(x).tolist()[::4] == [0.0, 1.0]
    assert ag.sigmoid(np.array([-1.0], dtype)) > 0
    y = np.array([[-huge / 2, huge / 2], [1000, 1000]], dtype)
    assert np.array_equal(ag.softmax(y), [[0, 1], [0.5, 0.5]])
    assert np.isfinite(ag.logsumexp(y, axis=1)).all()
    assert np.array_equal(ag.log_softmax(y)[1], np.log(np.array([0.5, 0.5], dtype)))
    for f in (ag.sigmoid, ag.tanh, ag.relu, ag.softmax, ag.log_softmax):
        assert np.isfinite(gradient(f, y / 4)[0]).all()


def test_softmax_of_infinities():
    inf = np.inf
    assert ag.logsumexp([-inf, -inf]) == -inf
    assert ag.logsumexp([inf, 1.0]) == inf
    assert ag.softmax([-inf, 0.0]).tolist() == [0.0, 1.0]
    assert ag.log_softmax([-inf, 0.0]).tolist() == [-inf, 0.0]
    assert gradient(ag.logsumexp, [-inf, 0.0])[0].tolist() == [0.0, 1.0]


def test_sigmoid_keeps_its_relative_accuracy():
    torch = pytest.importorskip("torch")
    x = np.linspace(-80, 80, 2001)
    np.testing.assert_allclose(ag.sigmoid(x), torch.sigmoid(torch.tensor(x)).numpy(), rtol=1e-15)
    np.testing.assert_allclose(ag.sigmoid(-np.float32(80)), np.exp(-80.0), rtol=1e-5)


def test_sigmoid_of_float16_is_right_where_its_exp_overflows():
    x = np.linspace(-17, 17, 500).astype(np.float16)
    true = 1 / (1 + np.exp(-x.astype(float)))
    assert (np.abs(ag.sigmoid(x) - true) <= np.spacing(true.astype(np.float16))).all()


def test_reductions_over_nothing():
    x = ag.tensor(np.zeros((0, 3)), requires_grad=True)
    assert x.sum(axis=0).data.tolist() == [0.0, 0.0, 0.0]
    assert ag.grad(x.sum(), x)[0].shape == (0, 3)
    with pytest.raises(ValueError, match="zero-size"):
        x.max()
    y = ag.tensor(np.zeros((2, 0)), requires_grad=True)
    assert ag.softmax(y, axis=0).shape == (2, 0)
    assert ag.grad(ag.matmul(x, np.ones((3, 2))).sum(), x)[0].shape == (0, 3)
    assert ag.grad((y @ np.ones((0, 2))).sum(), y)[0].shape == (2, 0)


def test_a_single_value_has_no_unbiased_variance():
    with pytest.raises(ValueError, match="ddof"):
        ag.var(ag.tensor([1.0], requires_grad=True), ddof=1)


# --- Shape and place -----------------------------------------------------------------------------------------


def test_reshape_and_transpose_spelled_every_way():
    x = ag.tensor(np.arange(6.0), requires_grad=True)
    for y in (x.reshape(2, 3), x.reshape((2, -1)), x.reshape([2, 3]), ag.reshape(x, (2, 3)), np.reshape(x, (2, 3))):
        assert y.shape == (2, 3)
    assert x.reshape(-1).shape == (6,)
    assert ag.tensor([1.0]).reshape(()).shape == ()
    z = ag.tensor(np.zeros((2, 3, 4)), requires_grad=True)
    for y in (z.transpose(1, 0, 2), z.transpose((1, 0, -1)), ag.transpose(z, [1, 0, 2]), np.transpose(z, (1, 0, 2))):
        assert y.shape == (3, 2, 4)
    assert z.transpose().shape == z.T.shape == (4, 3, 2)
    assert z.swapaxes(0, -1).shape == (4, 3, 2)
    for error, call in (
        (ValueError, lambda: x.reshape(4, 2)),
        (ValueError, lambda: z.transpose(0, 1)),
        (ValueError, lambda: z.transpose(0, 0, 1)),
        (ValueError, lambda: ag.broadcast_to(x, (6, 2))),
    ):
        with pytest.raises(error):
            call()


INDICES = [
    0,
    -1,
    slice(None, None, -2),
    ...,
    None,
    (0, 1),
    (slice(1, None), None, -1),
    [0, 2, 0],
    np.array([[0, 1], [2, 2]]),
    ([0, 1], [1, 1]),
    (slice(None), [3, 0, 3]),
    ([0], slice(None), None),
    np.arange(12).reshape(3, 4) % 3 == 0,
    np.array([True, False, True]),
    (np.int64(1), slice(0, 0)),
    (),
    True,
    (ag.tensor([0, 2]), 1),
    ag.tensor([0, 2]),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(index):
    values = np.arange(12.0).reshape(3, 4)
    plain = tuple(np.asarray(i) if isinstance(i, ag.Tensor) else i for i in index) if type(index) is tuple else index
    plain = np.asarray(plain) if isinstance(plain, ag.Tensor) else plain
    x = ag.tensor(values, requires_grad=True)
    y = x[index]
    assert np.array_equal(y.data, values[plain])
    w = rng.normal(size=y.shape)
    expected = np.zeros((3, 4))
    np.add.at(expected, plain, w)
    np.testing.assert_allclose(ag.grad(y, x, w)[0], expected)
    (g,) = ag.grad((y * y).sum(), x, create_graph=True)
    assert ag.grad(g.sum(), x)[0].shape == (3, 4)


def test_an_index_array_may_be_changed_afterwards():
    x, index = ag.tensor([1.0, 2.0, 3.0], requires_grad=True), np.array([0, 1])
    y = x[index]
    index[:] = 2
    assert ag.grad(y.sum(), x)[0].tolist() == [1.0, 1.0, 0.0]
    with pytest.raises(IndexError):
        x[5]


def test_concatenate_and_stack_take_what_numpy_takes():
    a, b = ag.tensor([[1.0]], requires_grad=True), np.array([[2.0, 3.0]])
    joined = ag.concatenate((a, b), axis=-1)
    assert joined.data.tolist() == [[1.0, 2.0, 3.0]]
    assert ag.concatenate([a, b], axis=None).shape == (3,)
    assert ag.stack([a, a], axis=-1).shape == (1, 1, 2)
    assert ag.stack(ag.tensor(np.ones((3, 2)), requires_grad=True)).shape == (3, 2)
    assert ag.concatenate(ag.tensor(np.ones((3, 2)), requires_grad=True)).shape == (6,)
    assert ag.concatenate([ag.tensor(np.ones(2, np.float32), requires_grad=True), np.ones(1)]).dtype == np.float64
    for error, call in (
        (ValueError, lambda: ag.concatenate([a, b], axis=0)),
        (ValueError, lambda: ag.concatenate([])),
        (ValueError, lambda: ag.stack([])),
        (ValueError, lambda: ag.stack([a, b])),
        (ValueError, lambda: ag.stack([a, a], axis=4)),
        (ValueError, lambda: ag.concatenate([a, a], axis=2)),
    ):
        with pytest.raises(error):
            call()


def test_matmul_errors():
    a = ag.tensor(np.ones((2, 3)), requires_grad=True)
    for other in (np.ones((2, 3)), 2.0):
        with pytest.raises(ValueError, match="matmul"):
            a @ other


# --- Exact rationals -----------------------------------------------------------------------------------------


def exact(*shape, square=False):
    values = rng.integers(1, 9, shape), rng.integers(1, 9, shape)
    ratio = np.frompyfunc(Fraction, 2, 1)(*values)
    return np.asarray(ratio * ratio if square else ratio, dtype=object).reshape(shape)


def half_of(t):
    return Fraction(1, 2) if t.dtype == object else 0.5


EXACT = {
    "add": (lambda a, b: a + b, False),
    "subtract": (lambda a, b: a - b, False),
    "multiply": (lambda a, b: a * b, False),
    "divide": (lambda a, b: a / b, False),
    "scalars": (lambda a, b: 2 * a / 3 - 1 + b / 7, False),
    "square": (lambda a, b: ag.square(a) - ag.negative(b), False),
    "sum": (lambda a, b: a.sum(axis=0) * b.sum(), False),
    "mean": (lambda a, b: a.mean(axis=-1, keepdims=True) * b.mean(), False),
    "var": (lambda a, b: a.var(axis=0) * b.var(ddof=1), False),
    "max": (lambda a, b: a.max(axis=0) * b.min(), False),
    "maximum": (lambda a, b: ag.maximum(a, b) * ag.minimum(a, 1), False),
    "relu": (lambda a, b: ag.relu(a - 1) + ag.abs(b - 1), False),
    "where": (lambda a, b: ag.where(np.asarray(a) > 1, a, b), False),
    "matmul": (lambda a, b: a @ b @ b, False),
    "reshape": (lambda a, b: a.reshape(9).reshape(3, 3).T * ag.broadcast_to(b[0], (3, 3)), False),
    "joined": (lambda a, b: ag.concatenate([a, ag.stack([b[0], a[1]])]), False),
    "getitem": (lambda a, b: a[[0, 0, 2]] * b[::-1, 1:2], False),
    "power": (lambda a, b: a**3 + b**-2 + a**0, False),
    "sqrt": (lambda a, b: ag.sqrt(a) * ag.rsqrt(b), True),
    "half powers": (lambda a, b: a ** half_of(a) + b ** -half_of(b), True),
}


@pytest.mark.parametrize(("f", "square"), EXACT.values(), ids=EXACT)
def test_rationals_flow_through_exactly(f, square):
    a, b = exact(3, 3, square=square), exact(3, 3, square=square)
    x, y = ag.tensor(a, requires_grad=True), ag.tensor(b, requires_grad=True)
    x64, y64 = (ag.tensor(t.astype(float), requires_grad=True) for t in (a, b))
    exactly, rounded = [f(x, y)], [f(x64, y64)]
    for tensors, leaves in ((exactly, (x, y)), (rounded, (x64, y64))):
        tensors += ag.grad(tensors[0].mean(), leaves, create_graph=True, allow_unused=True)
        total = sum((g * g).mean() for g in tensors[1:] if g is not None)
        tensors += ag.grad(total, leaves, allow_unused=True) if total.requires_grad else (None, None)
    for e, r in zip(exactly, rounded, strict=True):
        assert (e is None) == (r is None)
        if e is not None:
            e, r = values_of(e), values_of(r)
            assert all(type(element) is Fraction for element in e.flat)
            np.testing.assert_allclose(e.astype(float), r, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("unit", [1e-15, 1e15])
def test_the_slope_of_a_root_is_right_where_its_cube_leaves_the_range(unit):
    x = ag.tensor([4.0], dtype="float32", requires_grad=True)
    (slope,) = ag.grad(ag.rsqrt(x * unit**2) * unit, x)
    np.testing.assert_allclose(slope, -1 / 16, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    "f",
    [
        lambda x, unit: np.arctan2(x, x[::-1]) * unit,
        lambda x, unit: np.arctan2(x[::-1], x) * unit,
        lambda x, unit: np.arccosh(x) * unit,
        lambda x, unit: np.sinc(np.where([True, False], 0, x)),
    ],
)
def test_slopes_are_right_where_squares_leave_the_range(f, dtype):
    unit = {"float16": 1e3, "float32": 1e25}[dtype]
    slopes = []
    for kind in (dtype, "longdouble"):
        x = ag.tensor([unit, 2 * unit], dtype=kind, requires_grad=True)
        slopes.append(ag.grad(f(x, unit), x, np.ones(2))[0])
    assert np.isfinite(slopes[0]).all()
    np.testing.assert_allclose(*slopes, rtol=1e-2, atol=1e-2)


def test_the_variance_of_float16_has_its_range_and_not_that_of_squares():
    x = ag.tensor([300.0] + [0.0] * 99, dtype="float16", requires_grad=True)
    assert x.var().item() == 891
    np.testing.assert_allclose(ag.grad(x.std(), x)[0][0], 297 / 100 / 891**0.5, rtol=2e-3)
    with pytest.raises(ValueError, match="needs ddof below"):
        x[:1].var(ddof=1)


def test_an_index_of_a_number_that_picks_none_has_gradient_0():
    x = ag.tensor(1.0, requires_grad=True)
    assert ag.grad(x[np.array(False)].sum(), x)[0] == 0


def test_an_irrational_root_says_so():
    x = ag.tensor(np.array([Fraction(4), Fraction(2)], dtype=object), requires_grad=True)
    for f in (ag.sqrt, ag.rsqrt):
        with pytest.raises(ValueError, match="square root of 2 is not rational"):
            f(x)
    with pytest.raises(ValueError, match="square root of -4"):
        ag.sqrt(-x)
    for f in (ag.exp, ag.log, ag.tanh, ag.sigmoid):
        with pytest.raises(TypeError, match=r"Fraction|exact"):
            f(x)
    with pytest.raises(TypeError, match="exact"):
        x ** Fraction(1, 3)


# --- What forward code calls, against NumPy and PyTorch ------------------------------------------------------


def torch_gradients(f, arrays, weights):
    torch = pytest.importorskip("torch")
    leaves = [torch.tensor(a, requires_grad=True) for a in arrays]
    (f(*leaves) * torch.tensor(weights)).sum().backward()
    return [leaf.grad.numpy() for leaf in leaves]


@pytest.mark.parametrize(
    ("subscripts", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("i,j->ij", [(2,), (3,)]),
        ("ii->i", [(3, 3)]),
        ("ii", [(3, 3)]),
        ("iij->j", [(3, 3, 2)]),
        ("ij->ji", [(2, 3)]),
        ("ij,ij->", [(2, 3), (2, 3)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 2)]),
        ("ij,k->i", [(2, 3), (4,)]),
        ("bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]),
        ("ia,ib,ic->abc", [(2, 3), (2, 4), (2, 2)]),
    ],
)
def test_einsum(subscripts, shapes):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in shapes]
    expected = np.einsum(subscripts, *arrays)
    np.testing.assert_allclose(ag.einsum(subscripts, *arrays), expected, rtol=1e-12, atol=1e-12)
    leaves = [ag.tensor(a, requires_grad=True) for a in arrays]
    weights = rng.normal(size=expected.shape)
    (np.einsum(subscripts, *leaves) * weights).sum().backward()
    for leaf, g in zip(leaves, torch_gradients(lambda *t: torch.einsum(subscripts, *t), arrays, weights), strict=True):
        np.testing.assert_allclose(leaf.grad, g, rtol=1e-12, atol=1e-12)


def test_einsum_refuses_what_it_cannot_read():
    a = np.ones((2, 3))
    for subscripts, operands in (
        ("i...->i", [a]),
        ("ij,jk->ik", [a]),
        ("ijk->i", [a]),
        ("ij->x", [a]),
        ("ij->ii", [a]),
        ("ij,jk->ik", [a, a]),
        ("ii->i", [a]),
    ):
        with pytest.raises(ValueError, match="subscript"):
            ag.einsum(subscripts, *operands)


ROWS = {
    "cumsum": (lambda m, x: m.cumsum(x, 1), (2, 3)),
    "trace": (lambda m, x: m.trace(x), (3, 4)),
    "hstack": (lambda m, x: m.hstack([x, 2 * x]), (2, 3)),
    "hstack of vectors": (lambda m, x: m.hstack([x, 2 * x]), (3,)),
    "vstack": (lambda m, x: m.vstack([x, 2 * x]), (3,)),
    "sin": (lambda m, x: m.sin(x), (2, 3)),
    "cos": (lambda m, x: m.cos(x), (2, 3)),
    "log1p": (lambda m, x: m.log1p(x * x), (2, 3)),
    "expm1": (lambda m, x: m.expm1(x), (2, 3)),
    "clip": (lambda m, x: m.clip(x, -0.5, 0.5), (4, 3)),
    "prod": (lambda m, x: m.prod(x), (7,)),
    "prod of rows": (lambda m, x: m.prod(x, 1), (2, 5)),
}


@pytest.mark.parametrize("name", ROWS)
def test_numpy_names_agree_with_numpy_and_pytorch(name):
    torch = pytest.importorskip("torch")
    f, shape = ROWS[name]
    x = np.random.default_rng(1).normal(size=shape)
    leaf = ag.tensor(x, requires_grad=True)
    y = f(np, leaf)
    np.testing.assert_allclose(y.data, f(np, x), rtol=1e-14)
    weights = np.random.default_rng(2).normal(size=y.shape)
    (y * weights).sum().backward()
    (expected,) = torch_gradients(lambda t: f(torch, t), [x], weights)
    np.testing.assert_allclose(leaf.grad, expected, rtol=1e-12, atol=1e-14)


def test_repeat_and_pad_and_offset_traces():
    torch = pytest.importorskip("torch")
    x = np.arange(6.0).reshape(2, 3)
    t = ag.tensor(x, requires_grad=True)
    for ours, theirs in (
        (lambda a: a.repeat(2), lambda a: np.repeat(a, 2)),
        (lambda a: np.repeat(a, [1, 0, 2], axis=-1), lambda a: np.repeat(a, [1, 0, 2], axis=-1)),
        (lambda a: np.pad(a, 1), lambda a: np.pad(a, 1)),
        (lambda a: np.pad(a, ((0, 1), (2, 0))), lambda a: np.pad(a, ((0, 1), (2, 0)))),
        (lambda a: a.trace(1), lambda a: a.trace(1)),
        (lambda a: a.trace(-1), lambda a: a.trace(-1)),
        (lambda a: a.trace(5), lambda a: a.trace(5)),
    ):
        assert np.array_equal(ours(t).data, theirs(x))
    np.pad(t.repeat(2, axis=0) * np.arange(12.0).reshape(4, 3), 1).sum().backward()
    (expected,) = torch_gradients(lambda a: torch.repeat_interleave(a, 2, 0), [x], np.arange(12.0).reshape(4, 3))
    assert np.array_equal(t.grad, expected)
    with pytest.raises(ValueError, match="mode='mean'"):
        np.pad(t, 1, mode="mean")


def test_a_product_with_zeros_hides_no_derivative():
    x = np.array([2.0, 0.0, 3.0])
    assert np.array_equal(ag.grad(ag.prod(t := ag.tensor(x, requires_grad=True)), t)[0], [0.0, 6.0, 0.0])
    assert ag.hessian(lambda x: ag.prod(x), x)[0, 1] == 3
    assert ag.prod(np.ones((0, 2)), 0).tolist() == [1.0, 1.0]
    assert ag.prod(np.ones((2, 3)), 1, keepdims=True).shape == (2, 1)


def test_piecewise_constant_functions_give_values():
    x = ag.tensor([[0.4, 1.6]], requires_grad=True)
    assert type(np.round(x)) is np.ndarray
    assert x.round().tolist() == [[0.0, 2.0]]
    assert (x.argmax(), x.argmin(1).tolist(), np.argmax(x)) == (1, [0], 1)
    assert x.view(2).shape == (2,)
    assert np.array_equal(x.clip(0.5, 1.0).exp().log().data, np.log(np.exp([[0.5, 1.0]])))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "bool"])
@pytest.mark.parametrize(
    "name", "exp log sqrt rsqrt tanh sigmoid softmax log_softmax logsumexp sin cos log1p expm1".split()
)
def test_integers_become_floats_first(name, dtype):
    data = np.array([1, 1, 1] if dtype == "bool" else [1, 3, 100], dtype)
    f = getattr(ag, name)
    expected = f(data.astype(float))
    for out in (f(data), f(ag.tensor(data)).data):
        assert out.dtype == np.float64
        assert np.array_equal(out, expected)


def test_a_power_of_small_integers_is_differentiated_in_float64():
    b = ag.tensor([2.0, 3.0], requires_grad=True)
    y = np.array([3, 5], np.int8) ** b
    assert np.array_equal(ag.grad(y.sum(), b)[0], [9 * np.log(3.0), 125 * np.log(5.0)])


def test_complex_operands_are_refused():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    for f in (lambda: x * 1j, lambda: 1j + x, lambda: x @ np.array([1j, 2]), lambda: np.array([1j, 2]) * x):
        with pytest.raises(TypeError, match="dtype complex128, expected real numbers"):
            f()


def test_operands_that_hold_no_numbers_or_mean_something_else_are_refused():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    masked, matrix = np.ma.array([1.0, 2.0], mask=[1, 0]), np.ones((1, 2)).view(np.matrix)
    for f, text in (
        (lambda: x * masked, r"of multiply is a MaskedArray, .*pass m.filled\(value\)"),
        (lambda: ag.tensor(masked), "data is a MaskedArray"),
        (lambda: ag.batch_norm(masked[:, None]), "x is a MaskedArray"),
        (lambda: x.assign(masked), "a value is a MaskedArray"),
        (lambda: matrix * x, r"of multiply is a matrix, .* np.asarray\(m\)"),
        (lambda: x @ matrix.T, "of matmul is a matrix"),
        (lambda: x * "a", "of multiply has dtype <U1, expected real numbers"),
        (lambda: np.where([True, False], x, ["a", "b"]), "of where has dtype <U1"),
        (lambda: ag.where([True, False], x, np.array([{}, 2.0])), "of where holds a dict, expected real numbers"),
    ):
        with pytest.raises(TypeError, match=text):
            f()


@pytest.mark.parametrize("values", [np.array([100, 100], np.int8), np.array([200, 2], np.uint8), np.ones(2, bool)])
def test_a_product_of_small_integers_is_as_wide_as_numpys(values):
    for f in (np.prod, np.cumprod):
        made, expected = f(ag.tensor(values)), f(values)
        assert made.dtype == expected.dtype
        assert np.array_equal(made.data, expected)
        assert np.array_equal(ag.prod(values), np.prod(values))


def test_nanmean_keeps_the_dtype():
    x = ag.tensor(np.array([[1, np.nan, 2], [3, 5, np.nan]], np.float32), requires_grad=True)
    assert np.nanmean(x, axis=1).dtype == np.nanmean(x).dtype == np.float32
    assert ag.grad(np.nanmean(x, axis=1).sum(), x)[0].tolist() == [[0.5, 0, 0.5], [0.5, 0.5, 0]]


def test_degrees_are_as_wide_as_their_dtype():
    x = np.longdouble([1, 2]) / 3
    assert np.array_equal(np.rad2deg(ag.tensor(x)).data, np.rad2deg(x))


def test_empty_indices_and_index_arrays_as_axes():
    x = ag.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert x[[]].shape == (0, 3)
    assert x[[], 0].shape == (0,)
    y = ag.transpose(x, np.array([1, 0]))
    y.backward(np.arange(6.0).reshape(3, 2))
    assert np.array_equal(x.grad, np.arange(6.0).reshape(3, 2).T)


def test_what_is_exported_is_there_and_in_order():
    from autograd_bn.engine import operations

    assert set(operations.__all__) <= set(vars(operations))
    assert operations.__all__ == sorted(operations.__all__)


def test_unsigned_exponents_of_0_have_no_wrapped_gradient():
    x = ag.tensor([1e3, 1e3], requires_grad=True)
    assert ag.grad((x ** np.array([0, 2], np.uint8)).sum(), x)[0].tolist() == [0, 2e3]


def test_axes_given_as_an_array_are_copied():
    x = ag.tensor(np.arange(9.0).reshape(3, 3), requires_grad=True)
    order, axis = np.array([1, 0]), np.array(0)
    y, total = ag.transpose(x, order), ag.sum(x, axis)
    order[:], axis[...] = (0, 1), 1
    g = np.arange(9.0).reshape(3, 3)
    assert ag.grad(y, x, g)[0].tolist() == g.T.tolist()
    assert ag.grad(total, x, g[0])[0].tolist() == [g[0].tolist()] * 3


# --- Wide sums, small integers, edges of the domain ----------------------------------------------------------


def test_logsumexp_is_differentiated_by_softmax_as_it_is_defined():
    for size in (1e9, 1e30):
        x = ag.tensor(np.full(3, size, np.float32), requires_grad=True)
        np.testing.assert_allclose(ag.grad(ag.logsumexp(x), x)[0], np.full(3, 1 / 3), rtol=1e-6)
    x = ag.tensor([[-np.inf, -np.inf], [0.0, 1.0]], requires_grad=True)
    np.testing.assert_allclose(ag.grad(ag.logsumexp(x, 1)[1], x)[0][1], np.exp([0, 1]) / (1 + np.e))


HALF = np.ones(4096, np.float16)
WIDE = {
    "softmax": (lambda x: ag.softmax(x * 0).sum(), 1.0),
    "logsumexp": (lambda x: ag.logsumexp(x * 0), np.log(4096)),
    "log_softmax": (lambda x: ag.log_softmax(x * 0)[0], -np.log(4096)),
    "sum of rows": (lambda x: ag.sum(ag.reshape(x, (4096, 1)), 0)[0], 4096),
    "cumsum": (lambda x: ag.cumsum(x)[-1], 4096),
    "einsum": (lambda x: ag.einsum("ij,j->", ag.reshape(x, (4096, 1)), HALF[:1]), 4096),
}


# NumPy has more than one object for the dtype of such arrays, and one is in the other byte order.
HALVES = {"new": HALF, "unpickled": pickle.loads(pickle.dumps(HALF)), "swapped": HALF.astype(">f2")}


@pytest.mark.parametrize("ones", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize(("f", "value"), WIDE.values(), ids=WIDE)
def test_float16_is_summed_wide(f, value, ones):
    out = f(ag.tensor(ones, requires_grad=True))
    assert out.dtype.char == "e"
    assert out.item() == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize("ones", HALVES.values(), ids=HALVES)
def test_gradients_of_float16_are_summed_wide(ones):
    x = ag.tensor(ones[:1], requires_grad=True)
    row = np.ones((1, 4096), np.float16)
    cases = {
        "fan-out": lambda: sum(x * 1 for _ in range(4096)).sum(),
        "repeated indices": lambda: x[np.zeros(4096, int)].sum(),
        "cumsum": lambda: ag.cumsum(ag.broadcast_to(x, (4096,)))[-1],
        "einsum": lambda: ag.einsum("i,ij->j", x, row).sum(),
        "softmax": lambda: (ag.softmax(ag.broadcast_to(x * 0, (4096,))) * 0).sum() + 4096 * x.sum(),
    }
    for name, loss in cases.items():
        for create_graph in (False, True):
            if create_graph and name == "fan-out":
                continue
            (g,) = ag.grad(loss(), x, create_graph=create_graph)
            assert (g.dtype, float(values_of(g)[0])) == (x.dtype, 4096), name


def test_integers_do_not_wrap_inside_a_derivative():
    x = ag.tensor([1.5, 2.5], requires_grad=True)
    for kind in (np.uint8, np.int8, np.int64, float):
        seed = np.array([1, 3], kind)
        for weights in (seed, ag.tensor(seed)):
            for create_graph in (False, True):
                (g,) = ag.grad(-100 * x, x, [weights], create_graph=create_graph)
                assert values_of(g).tolist() == [-100, -300]
    (g,) = ag.grad((x ** np.int8(-128)).sum(), x)
    np.testing.assert_allclose(g, -128 * x.data**-129.0)
    (g,) = ag.grad((x ** np.array([-128, 3], np.int8)).sum(), x)
    np.testing.assert_allclose(g, [-128 * 1.5**-129, 3 * 2.5**2])


def test_a_seed_takes_the_dtype_of_the_output():
    x = ag.tensor(np.ones(2, np.float32), requires_grad=True)
    seed = ag.tensor(np.ones(2), requires_grad=True)
    (g,) = ag.grad(x * x, x, [seed], create_graph=True)
    assert g.dtype == np.float32
    assert ag.grad(g.sum(), seed)[0].tolist() == [2, 2]
    assert ag.grad(g.sum(), seed)[0].dtype == np.float64


def test_the_deviation_of_what_does_not_vary_has_gradient_0_as_in_pytorch():
    for x in ([3.0], [2.0, 2.0, 2.0]):
        t = ag.tensor(x, requires_grad=True)
        assert np.std(t).item() == 0
        assert ag.grad(np.std(t), t)[0].tolist() == [0.0] * len(x)
    t = ag.tensor([[1.0, 3.0], [2.0, 2.0]], requires_grad=True)
    assert np.allclose(ag.grad(t.std(1).sum(), t)[0], [[-0.5, 0.5], [0, 0]])


def test_axes_that_numpy_takes_are_differentiated_too():
    x, s = ag.tensor([1.0, 2.0], requires_grad=True), ag.tensor(3.0, requires_grad=True)
    assert ag.grad(np.transpose(x, -1).sum(), x)[0].tolist() == [1, 1]
    assert ag.grad(np.transpose(x, 0).sum(), x)[0].tolist() == [1, 1]
    for axis in (0, -1, None):
        for f in (np.sum, np.max, np.prod, ag.logsumexp):
            assert ag.grad(f(s, axis=axis), s)[0] == 1
            assert f(s, axis=axis, keepdims=True).shape == ()


def test_jvp_is_finite_where_the_gradient_is():
    z, ones = np.array([-1.0, 0.5, 2.0]), np.ones(3)

    def f(z):
        return np.clip(z, 0, 1) ** 0.5

    with np.errstate(all="ignore"):
        value, tangent = ag.jvp(f, [z], [ones])
    assert np.allclose(value, [0, 0.5**0.5, 1])
    assert np.allclose(tangent, [0, 0.5 / 0.5**0.5, 0])


def test_softmax_of_nothing_is_nothing():
    for f in (ag.softmax, ag.log_softmax):
        x = ag.tensor(np.zeros((2, 0)), requires_grad=True)
        assert f(x).shape == (2, 0)
        assert ag.grad(f(x).sum(), x)[0].shape == (2, 0)
    assert ag.softmax(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(("a", "b"), [(0.0, -0.3), (0.0, 0.3), (0.0, 0.0), (2.0, 3.0)])
def test_the_gradient_of_an_exponent_at_base_zero_is_the_limit(a, b):
    base, exponent = ag.tensor(a, requires_grad=True), ag.tensor(b, requires_grad=True)
    with np.errstate(divide="ignore"):
        (slope,) = ag.grad(base**exponent, exponent)
    assert slope == (-np.inf if b < 0 else 0 if a == 0 else 8 * np.log(2))


def test_einsum_of_a_number():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    assert ag.grad(np.einsum("i,->", x, 3), x)[0].tolist() == [3, 3]
    assert ag.grad(np.einsum(2, [], x, [0], [0])[1], x)[0].tolist() == [0, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_is_that_of_the_c_library(dtype):
    x = np.concatenate([np.linspace(-7, 7, 50_001), 10.0 ** np.linspace(-307, 0, 5_001), [0.0, np.inf, -np.inf]])
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
    expected = np.array([*map(math.erf, x)])
    eps = max(np.finfo(dtype).eps, np.finfo(float).eps)
    y = ag.erf(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(float), expected.astype(dtype), rtol=2 * eps, atol=0)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
    assert np.isnan(ag.erf(dtype(np.nan)))


@pytest.mark.parametrize("dtype", [*DTYPES, np.int8])
def test_a_cube_is_that_of_exact_numbers(dtype):
    x = np.arange(-5, 6, dtype=dtype) if dtype == np.int8 else rng.normal(size=100).astype(dtype)
    exact = [Fraction(float(element)) ** 3 for element in x] if dtype != np.longdouble else x**3
    y = ag.power(x, 3)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, np.array(exact, dtype), rtol=2 * np.finfo(dtype).eps if dtype != np.int8 else 0)


@pytest.mark.parametrize("base", [2, 0.5, 1.0, 0, 0.0, np.float32(3), np.array([0.0, 2.0, 3.0])])
def test_the_slope_of_an_exponent_has_its_own_dtype_and_that_of_the_logarithm(base):
    b = ag.tensor([0.0, 1.0, 2.5], dtype="float32", requires_grad=True)
    (slope,) = ag.grad(ag.power(base, b), b, np.ones(3, "float32"))
    log = np.log(np.where(np.equal(base, 0), 1, base))
    np.testing.assert_allclose(slope, np.power(base, b.data) * log, rtol=1e-6)
    assert slope.dtype == np.float32


def test_erf_of_a_number():
    x = ag.tensor(0.5, requires_grad=True)
    assert ag.erf(x).shape == ag.erf(0.5).shape == ()
    assert ag.grad(ag.erf(x), x)[0] == pytest.approx(2 / np.sqrt(np.pi) * np.exp(-0.25))
