"""NumPy's functions and Python's operators on tensors."""

import math
import operator
from math import exp

import numpy as np
import pytest

import autograd_bn as ag


@pytest.fixture
def x():
    return ag.tensor(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]]), requires_grad=True)


NUMPY = [
    lambda x: np.sqrt(x),
    lambda x: np.exp(-x) + np.log(x) + np.tanh(x) + np.square(x) + np.abs(x) + np.negative(x),
    lambda x: np.mean(x, axis=0),
    lambda x: np.sum(x),
    lambda x: np.sum(x, 1, keepdims=True),
    lambda x: np.var(x, axis=(0, 1), ddof=1),
    lambda x: np.std(x, axis=1),
    lambda x: np.max(x, axis=1) + np.min(x),
    lambda x: np.amax(x, axis=1) + np.amin(x),
    lambda x: np.where(x > 2.5, x, 0),
    lambda x: np.maximum(x, 2.2) * np.minimum(3.3, x) / np.add(x, 1) - np.power(x, 2),
    lambda x: np.ones(3) * x + np.float64(2) / x - [1.0, 2.0, 3.0] * x,
    lambda x: np.ones((4, 2)) @ x,
    lambda x: np.matmul(x, np.ones(3)) + np.dot(x, np.ones(3)),
    lambda x: np.reshape(x, (3, 2)) + np.transpose(x) + x.T,
    lambda x: np.concatenate([x, np.ones((1, 3))]),
    lambda x: np.stack([x, np.ones((2, 3))], axis=1),
    lambda x: np.broadcast_to(x, (4, 2, 3)),
    lambda x: np.expand_dims(x, (0, -1)),
    lambda x: np.squeeze(np.expand_dims(x, 1), axis=1),
    lambda x: np.ravel(x) + x.ravel() + x.flatten(),
    lambda x: np.swapaxes(x, 0, 1),
    lambda x: np.clip(x, 1.5, 5.5) + np.clip(x, None, 3.5),
    lambda x: np.reciprocal(x) + np.positive(x) + np.copy(x),
    lambda x: np.add.reduce(x) + np.maximum.reduce(x, axis=0) + np.add.reduce(x, 0, None, None, False),
    lambda x: np.add.reduce(x, axis=None, out=None) + np.add.accumulate(x, out=None),
    lambda x: (x - np.mean(x, axis=0)) / np.sqrt(np.var(x, axis=0) + 1e-5),
    lambda x: x % 1.7 + 9.1 % x + x // 1.31,
    lambda x: np.fmax(x, 2.2) - np.fmin(x, 3.3) + np.float_power(x, 2) + np.deg2rad(x) + np.rad2deg(x) + np.fabs(x),
    lambda x: np.nan_to_num(x) + np.nansum(x) + np.nanmean(x, axis=1, keepdims=True) + np.ptp(x, axis=0),
    lambda x: np.average(x, axis=0) + np.average(x, axis=0, weights=[1.0, 3.0]) + np.average(x, weights=x),
    lambda x: np.cumprod(x, axis=1) + np.multiply.accumulate(x) + np.add.accumulate(x) + np.multiply.reduce(x),
    lambda x: np.diff(x) + np.diff(x, 1, 0, prepend=0.0)[:, :2] + np.diff(x, append=np.ones((2, 1)))[:, :2],
    lambda x: np.trapezoid(x) + np.trapezoid(x, [0.0, 1.0, 3.0]) + np.trapezoid(x, dx=0.5),
    lambda x: (
        np.roll(x, 1) + np.roll(x, (1, 2), axis=(0, 1)) + np.flip(x) + np.fliplr(x) + np.flipud(x) + x[::-1, ::-1]
    ),
    lambda x: np.tile(x, (2, 2)) + np.resize(x, (4, 6)) + np.repeat(np.repeat(x, 2, axis=0), 2, axis=1),
    lambda x: np.rot90(x) + np.moveaxis(x, 0, -1) + np.rollaxis(x, 1) + np.matrix_transpose(x),
    lambda x: np.diagonal(x) + np.diag(x) + np.diag(np.diag(x)).sum(0) + np.diagflat(np.diag(x)).sum(0),
    lambda x: np.take(x, [2, 0], axis=1) + np.take_along_axis(x, np.array([[2, 0], [1, 1]]), axis=1),
    lambda x: np.delete(x, 1, axis=1) + np.append(x, x[:, :1], axis=1)[:, ::3] + np.append(x, 1.0)[:2],
    lambda x: np.atleast_1d(x[0, 0]) + np.atleast_2d(x[0]) + np.atleast_3d(x) + np.column_stack([x[0], x[1]])[0, 1],
    lambda x: np.dstack([x, x]) + np.hstack([x[0], x[1, :0]])[:, None] + np.vstack([x[0], x[1]])[..., None],
    lambda x: np.split(x, 3, axis=1)[1] + np.array_split(x, 2, 1)[1] + np.hsplit(x, [1, 2])[1] + np.vsplit(x, 2)[0],
    lambda x: (
        np.broadcast_arrays(x, np.ones((2, 2, 3)))[0] + np.meshgrid(x[0], x[1])[0][:2] + np.meshgrid(x[0], x[1])[1][:2]
    ),
    lambda x: np.meshgrid(x[0], x[1])[0],
    lambda x: np.sort(-x) + np.sort(x, axis=0) + np.tril(x) + np.triu(x, 1) + np.sort(x, axis=None)[:3],
    lambda x: np.outer(x, x)[:2, :3] + np.multiply.outer(x, x)[0, 0] + np.inner(x, x)[:, :1] + np.vdot(x, x),
    lambda x: (
        np.tensordot(x, x, (1, 1)) + np.tensordot(x, x.T, 1) + np.kron(x, x)[:2, :2] + np.cross(x, x[::-1])[:, :2]
    ),
    lambda x: np.linalg.norm(x) + np.linalg.norm(x, axis=0) + np.linalg.norm(x, 1, axis=0) + np.linalg.norm(x, np.inf),
    lambda x: np.linalg.inv(x[:, :2]) + np.linalg.det(x[:, :2]) + np.linalg.solve(x[:, :2], x[:, 1:]),
    lambda x: np.linalg.solve(x[:, :2], x[:, 2]) + x[:, 0],
    lambda x: np.linalg.matrix_power(x[:, :2], 3) + np.linalg.multi_dot([x[:, :2], x, x.T]),
    lambda x: sum(np.linalg.matrix_power(x[:, :2], n) for n in (-2, -1, 0, 1)),
    lambda x: np.full_like(x, x[0, 0]),
    lambda x: np.select([x > 5.5, x > 2.5], [x, x * x], -1) + np.select([x.T > 2.5], [x.T]).T,
    lambda x: np.dsplit(x[:, None], 3)[1][:, 0] + np.unstack(x, axis=1)[2][:, None] + np.hsplit(x[0], 3)[0],
    lambda x: np.linalg.norm(x, np.inf, axis=0) - np.linalg.norm(x, -np.inf, axis=0) + np.linalg.norm(x, -1),
    lambda x: np.linalg.norm(x, 1, axis=(1, 0)) + np.linalg.norm(x, np.inf, axis=(-1, 0)),
    lambda x: np.vecdot(x[:, :2], x[0, :2], axis=0) + np.cross(x.T, x[1], axis=0)[0],
    lambda x: np.einsum("...i->...", x) + np.einsum(x, [0, 1], [0]) + np.einsum("ij,ij->i", x, x, optimize=True),
    lambda x: np.pad(x, 1, mode="edge") + np.pad(x, 1, mode="reflect") + np.pad(x, ((1, 1), (1, 1)), "wrap"),
    lambda x: np.clip(x, min=1.5, max=5.5) + np.sinc(x) + np.square(x, dtype=None, casting="same_kind"),
    lambda x: np.dot(2.0, x) + np.linalg.norm(x, 0, axis=1, keepdims=True),
    lambda x: np.array_split(x, [-2, 1, 2], axis=1)[2] + np.array_split(x, 2, -1)[0] + np.tile(x[0], (2, 1))[:, :1],
]


@pytest.mark.parametrize("f", NUMPY)
def test_code_written_for_arrays_records_nodes(f, x):
    y = f(x)
    assert isinstance(y, ag.Tensor)
    assert y.requires_grad
    expected = f(x.data)
    np.testing.assert_allclose(y.data, expected, rtol=1e-14)
    assert y.shape == expected.shape
    w = np.random.default_rng(0).normal(size=y.shape)
    (g,) = ag.grad(y, x, w)
    v = np.random.default_rng(1).normal(size=x.shape)
    h = 1e-6
    slope = np.sum(w * (f(x.data + h * v) - f(x.data - h * v))) / (2 * h)
    assert np.isclose(np.sum(g * v), slope, rtol=1e-6)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.average(x, weights=[1.0, 3.0]),
        lambda x: np.split(x, 2, axis=1),
        lambda x: np.cross(x[:, :1], x[:, :1]),
        lambda x: np.hsplit(x[0, 0], 1),
        lambda x: np.vsplit(x[0], 1),
        lambda x: np.dsplit(x, 1),
        lambda x: np.vstack([x, x[:, :2]]),
        lambda x: np.tile(x, -1),
        lambda x: np.repeat(x, -1, axis=0),
    ],
)
def test_what_numpy_refuses_is_refused(f, x):
    for value in (x.data, x):
        with pytest.raises((TypeError, ValueError)):
            f(value)


def test_second_derivative_of_sinc_near_zero():
    near = np.array([0.0, 1e-12, 1e-8, 1e-4, 9.9e-4, 1.1e-3])
    found = np.diag(ag.hessian(lambda x: np.sinc(x).sum(), near))
    a = np.pi * near
    np.testing.assert_allclose(found, -(np.pi**2) * (1 / 3 - a**2 / 10 + a**4 / 168), rtol=1e-9)


def test_product_of_nothing_stays_a_tensor():
    x = ag.tensor(np.zeros((0, 3), np.float32), requires_grad=True)
    y = np.prod(x, axis=0)
    assert isinstance(y, ag.Tensor)
    assert y.dtype == np.float32
    assert y.data.tolist() == [1, 1, 1]
    assert ag.grad(y.sum(), x)[0].shape == (0, 3)


def test_diag_takes_what_numpy_takes():
    with pytest.raises(ValueError, match="diag takes"):
        np.diag(ag.tensor(np.ones((2, 2, 2)), requires_grad=True))


def test_odd_reflections_are_refused(x):
    with pytest.raises(ValueError, match="reflect_type"):
        np.pad(x, 1, mode="reflect", reflect_type="odd")


def test_reflected_operators(x):
    for op in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow):
        for other in (2, 2.5, np.float32(2), np.array([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0]):
            for a, b in ((x, other), (other, x)):
                y = op(a, b)
                assert isinstance(y, ag.Tensor)
                left, right = (np.asarray(s) for s in (a, b))
                np.testing.assert_array_equal(y.data, op(left, right))
    assert np.array_equal(([[1.0, 1.0]] @ x).data, [[5.0, 7.0, 9.5]])


def test_in_place_is_a_new_node_or_an_assignment_or_refused(x):
    before = x.data.copy()
    y = x * 1
    y += 1
    y *= 2
    assert np.array_equal(y.data[0], [4.0, 6.0, 8.0])
    total = ag.tensor(0.0)
    total += x.sum()  # a leaf without gradient: a sum is begun
    assert total.requires_grad
    with pytest.raises(RuntimeError, match=r"t = t - step.*no_grad"):
        x -= 1
    assert np.array_equal(x.data, before)
    kept, squared = x, (x * x).sum()
    with ag.no_grad():
        x -= 0.5 * before
    assert x is kept
    assert np.array_equal(x.data, before / 2)
    with pytest.raises(RuntimeError, match="overwritten"):
        squared.backward()
    with ag.no_grad(), pytest.raises(ValueError, match="shape"):
        x += np.ones((5, *x.shape))


def test_comparisons_are_plain_arrays(x):
    for op in (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne):
        for a, b in ((x, 2.0), (2.0, x), (x, x), (np.full(3, 2.0), x)):
            found = op(a, b)
            assert type(found) is np.ndarray
            assert np.array_equal(found, op(np.asarray(a), np.asarray(b)))
    assert type(np.greater(x, 2)) is np.ndarray
    assert {x: 1}[x] == 1


def test_functions_without_derivative_give_plain_values(x):
    assert np.argmax(x) == 5
    assert np.argmax(x, axis=0).tolist() == [1, 1, 1]
    assert np.shape(x) == (2, 3)
    assert np.ndim(x) == 2
    assert np.size(x) == 6
    assert type(np.sign(x)) is np.ndarray
    assert np.isfinite(x).all()
    assert np.allclose(x, x.data)
    assert np.array_equal(x, x.data)
    assert np.zeros_like(x).tolist() == [[0.0] * 3] * 2


def stored(array, index, value):
    array[index] = value


LEAVING = {
    "array": lambda y: np.array([y[0], y[1]]),
    "array of rows": lambda y: np.array([[y[0], 1.0], [2.0, y[1]]]),
    "asarray": lambda y: np.asarray(y),
    "as_tensor": lambda y: ag.as_tensor(y, requires_grad=True),
    "ndarray.dot": lambda y: np.eye(2).dot(y),
    "mean of a list": lambda y: np.mean([y[0], y[1]]),
    "sum of a list": lambda y: np.sum([y, y]),
    "maximum of a list": lambda y: np.maximum([y[0], y[1]], 0.0),
    "r_": lambda y: np.r_[y, y],
    "c_": lambda y: np.c_[y, y],
    "full": lambda y: np.full(2, y[0]),
    "a row": lambda y: stored(np.zeros((2, 2)), 0, y),
    "all": lambda y: stored(np.zeros(2), slice(None), y),
    "an element": lambda y: stored(np.zeros(2), 0, y[0]),
    "an element of integers": lambda y: stored(np.zeros(2, int), (0,), y[0]),
    "put": lambda y: np.zeros(2).put(0, y[0]),
    "fill": lambda y: np.zeros(2).fill(y[0]),
    "fromiter": lambda y: np.fromiter(y, float),
    "masked": lambda y: np.ma.array([1.0, 2.0], mask=[1, 0]) * y,
    "vectorize": lambda y: np.vectorize(lambda number: number * 2)(y),
    "polyval": lambda y: np.polyval([y[0], y[1]], 2.0),
    "objects": lambda y: np.array([y[0], y[1]], dtype=object),
    "setitem": lambda y: operator.setitem(np.zeros(2), 0, y[0]),
    "numbers of objects": lambda y: np.frompyfunc(lambda number: number * y[0], 1, 1)(np.ones(2)).astype(float),
    "unique": lambda y: np.unique(y),
    "bincount": lambda y: np.bincount([0, 1], weights=y),
    "bincount by place": lambda y: np.bincount([0, 1], y),
    "histogram": lambda y: np.histogram([0.0, 1.0], weights=y),
    "heaviside": lambda y: np.heaviside([0.0, 1.0], y),
    "a function of math": lambda y: math.sqrt(y[0]),
    "a function of math by its name": lambda y: exp(y[0]),
    "a sum of math's": lambda y: math.fsum(y),
}


@pytest.mark.parametrize("call", LEAVING.values(), ids=LEAVING)
def test_numpy_cannot_take_what_is_computed_out_of_the_graph(call):
    leaf = ag.tensor([3.0, 5.0], requires_grad=True)
    with pytest.raises((RuntimeError, ValueError)) as info:
        call(leaf * 1)
    error = info.value.__cause__ or info.value  # for an element NumPy says "a sequence" on top of it
    assert isinstance(error, RuntimeError)
    for word in ("cuts the graph", "stack()", "np.where", "t.data", "detach()"):
        assert word in str(error)
    with ag.no_grad():
        call(leaf * 1)
    call(leaf.detach() * 1)


def test_what_decides_or_shows_a_number_may_have_it():
    y = ag.tensor([2.5, 3.0], requires_grad=True) * 1
    assert (math.floor(y[0]), math.isnan(y[0]), math.exp(float(y[0]))) == (2, False, math.exp(2.5))
    assert np.bincount(y > 2.7).tolist() == [1, 1]
    exp = float  # by whatever name
    assert exp(y[0]) == 2.5


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.cumprod(x, axis=0),
        lambda x: np.diff(x, n=0),
        lambda x: np.clip(x, None, None),
        lambda x: np.real(x),
        lambda x: np.einsum("ij->ij", x),
        lambda x: ag.einsum("ij->ij", x),
        lambda x: np.linalg.matrix_power(x @ x.T, 1),
    ],
)
def test_a_function_with_nothing_to_do_gives_a_new_tensor_all_the_same(function):
    x = ag.tensor([[1.0, 2.0]], requires_grad=True)
    y = function(x)
    y.name = "y"
    assert x.name is None
    assert ag.grad(x.sum(), y, allow_unused=True) == (None,)


def test_an_array_of_elements_no_longer_hides_a_derivative():
    with pytest.raises(RuntimeError, match="cuts the graph"):
        ag.jacobian(lambda x: x * np.array([x[0], x[1]]), [3.0, 5.0])
    for call in (np.vectorize(lambda number: number * 2), lambda x: x * np.eye(2).dot(x), lambda x: x * np.asarray(x)):
        for derivative in (ag.jacobian, lambda f, x: ag.jvp(f, [x], [x])):
            with pytest.raises(RuntimeError, match="cuts the graph"):
                derivative(call, [3.0, 5.0])
    leaf = ag.tensor([3.0, 5.0], requires_grad=True)
    with (
        pytest.warns(UserWarning, match="of a leaf"),
        pytest.raises(RuntimeError, match="a leaf that requires a gradient, which cuts the graph"),
    ):
        np.vectorize(lambda number: number * 2)(leaf)


converted = np.asarray


def row_assigned(leaf):
    rows = np.zeros((2, 2))
    rows[0] = leaf


def element_assigned(leaf):
    row = np.zeros(2)
    row[0] = leaf


CUTS = [
    lambda w: np.eye(2).dot(w),
    lambda w: np.maximum([w], 0),
    lambda w: np.full((3, 2), w),
    lambda w: np.array([w, w]),
    lambda w: np.mean([w, w]),
    lambda w: np.append([w], 1),
    lambda w: np.r_[w, w],
    lambda w: np.ma.array([1.0, 2.0], mask=[1, 0]) * w,
    row_assigned,
]


@pytest.mark.parametrize("cut", CUTS)
def test_a_leaf_that_numpy_takes_out_of_the_graph_unasked_is_warned_of(cut):
    leaf = ag.tensor([3.0, 5.0], requires_grad=True)
    with pytest.warns(UserWarning, match=r"no gradient will flow.*t\.data"):
        cut(leaf)
    cut(leaf.data)
    cut(ag.tensor([3.0, 5.0]))
    with ag.no_grad():
        cut(leaf)


def test_an_element_that_is_set_to_a_leaf_is_warned_of():
    with pytest.warns(UserWarning, match="no gradient will flow"):
        element_assigned(ag.tensor(3.0, requires_grad=True))


def test_an_array_of_a_leaf_that_is_asked_for_is_not_warned_of():
    w = ag.tensor([3.0, 5.0], requires_grad=True)
    convert = np.asarray
    for array in (
        np.array(w),
        np.array(w, float),
        np.asarray(w, dtype=np.float64),
        np.asanyarray(w),
        np.ascontiguousarray(w),
        convert(w),
        converted(w),
        [np.asarray(t) for t in (w, w)][1],
        np.asarray(
            w,
        ),
    ):
        assert array.tolist() == [3, 5]
    np.testing.assert_array_equal(w, w.data)
    assert f"{float(w.sum()):.0f} {np.array_repr(w)}".startswith("8 ")


def test_numbers_and_formats_leave_the_graph_as_in_pytorch():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    loss, history, kept = x.sum(), [0.0], {}
    history[0], kept[0] = loss, float(loss)
    history.append(float(loss))
    assert (float(loss), int(loss), bool(loss), f"{loss:.1f}", loss.item(), kept) == (3, 3, True, "3.0", 3, {0: 3})
    losses = np.zeros(2)
    losses[0] = float(loss)
    losses[1] = loss.data
    assert losses.tolist() == [3.0, 3.0]
    x.assign(x * 2)
    x.grad = x * 3
    assert (x.data.tolist(), x.grad.tolist()) == ([2, 4], [6, 12])


def test_asarray_shares_and_converts(x):
    assert np.asarray(x) is x.data or np.shares_memory(np.asarray(x), x.data)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.data)
    with pytest.raises(ValueError):
        np.array(x, dtype=np.float32, copy=False)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        (r"np\.fft\.fft has no rule", lambda x: np.fft.fft(x)),
        (r"np\.linalg\.svd has no rule", lambda x: np.linalg.svd(x)),
        (r"np\.linalg\.norm of a tensor has no rule for ord='nuc'", lambda x: np.linalg.norm(x, "nuc")),
        (r"np\.i0 has no rule", lambda x: np.i0(x)),
        (r"np\.add\.at has no rule.*in place", lambda x: np.add.at(x, 0, 1.0)),
        (r"np\.add\.reduceat has no rule.*slices", lambda x: np.add.reduceat(x, [0, 1])),
        (r"np\.subtract\.reduce has no rule.*use sum", lambda x: np.subtract.reduce(x)),
        (r"np\.maximum\.accumulate has no rule.*use cumsum", lambda x: np.maximum.accumulate(x)),
        (r"np\.greater\.outer has no rule.*broadcast", lambda x: np.greater.outer(x, x)),
        (r"np\.add\.outer has no rule", lambda x: np.add.outer(x, x, dtype=np.float32)),
    ],
)
def test_a_function_without_a_rule_is_named(name, call, x):
    with pytest.raises(TypeError, match=name):
        call(x)


def test_options_without_a_rule_are_named(x):
    for name, call in (
        ("dtype", lambda: np.mean(x, dtype=np.float32)),
        ("where", lambda: np.sum(x, where=x > 2)),
        ("where", lambda: np.add(x, 1, where=np.asarray(x) > 2)),
        ("initial", lambda: np.max(x, initial=3.0)),
        ("order", lambda: np.reshape(x, (3, 2), order="F")),
        ("sum", lambda: np.sum(x, 0, np.float32)),
        ("var", lambda: np.var(x, 0, None)),
    ):
        with pytest.raises(TypeError, match=name):
            call()


def test_writing_into_an_array_is_refused(x):
    array = np.ones((2, 3))
    with pytest.raises(TypeError, match="in place"):
        np.add(x, 1, out=array)
    with pytest.raises(TypeError, match="in place"):
        array += x
    with pytest.raises(TypeError, match="in place"):
        np.sum(x, axis=0, out=np.ones(3))
    with pytest.raises(TypeError, match=r"np.add.reduce has no rule"):
        np.add.reduce(x, out=np.ones(3))
    with pytest.raises(TypeError):
        x[0] = 1.0
    assert array.tolist() == [[1.0] * 3] * 2


# --- Arguments that ours doesn't take ---------------------------------------------------------------------------


X = ag.tensor(np.arange(1.0, 7.0).reshape(2, 3), requires_grad=True)
V = ag.tensor([1.0, 2.0, 0.0], requires_grad=True)


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (lambda: np.cross(V, V, axisa=0), "np.cross of a tensor takes no axisa=, only a, b, axis"),
        (lambda: np.ravel(V, "F"), "np.ravel of a tensor takes .x., got 2 arguments by position"),
        (lambda: ag.trace(V, V, x=V, offset=0), "trace takes .x, offset=0., got 2 arguments by position"),
        (lambda: np.reshape(X, (3, 2), "F"), "reshape takes shape after its arrays, no more"),
        (lambda: X.reshape(3, 2, order="F"), "reshape takes no order=: transpose first"),
        (lambda: np.sort(V, -1, "stable"), r"takes \(x, axis=-1\), got 3"),
        (lambda: np.average(V, returned=True), "no returned=: sum the weights"),
        (lambda: ag.concatenate([X, X], dim=1), "concatenate takes no dim=: it is called axis= here"),
        (lambda: ag.prod(X, keepdim=True), "prod takes no keepdim=: it is called keepdims= here"),
        (lambda: X.repeat(2, dim=1), "repeat takes no dim=: it is called axis= here"),
        (lambda: X.std(dtype=float), "std takes no dtype=: convert"),
        (lambda: np.tile(X, V), "tile got a tensor that requires a gradient for a count"),
        (lambda: np.repeat(X, V), "repeats got a tensor that requires a gradient for a count"),
        (lambda: np.take(X, V), "take got a tensor that requires a gradient for a count or an index"),
        (lambda: np.delete(V, obj=V), "obj got a tensor that requires a gradient"),
    ],
)
def test_arguments_that_are_not_taken_get_one_line_that_says_what_is(call, advice):
    with pytest.raises(TypeError, match=advice):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: np.repeat(x, 2, axis=2),
        lambda x: np.diff(x, axis=2),
        lambda x: np.cumprod(x, axis=-3),
        lambda x: np.array_split(x, 2, axis=2),
        lambda x: np.trapezoid(x, axis=2),
        lambda x: np.tensordot(x, x, ((2,), (2,))),
    ],
)
def test_an_axis_that_is_not_there_is_refused_as_numpy_does(call):
    for x in (X.data, X):
        with pytest.raises((ValueError, IndexError), match=r"axis|out of (bounds|range)"):
            call(x)


def test_what_numpy_takes_of_arrays_it_takes_of_tensors():
    counts = ag.tensor([1, 2])
    for call in (
        lambda x, v: np.tile(x, counts),
        lambda x, v: np.repeat(x, ag.tensor(2), 1),
        lambda x, v: np.take(x, counts, 1),
        lambda x, v: np.tril(v),
        lambda x, v: np.triu(v, 1),
        lambda x, v: np.sort(v, kind="stable"),
        lambda x, v: np.average(x, returned=False),
        lambda x, v: np.around(x / 4, 1),
        lambda x, v: np.degrees(v),
        lambda x, v: np.radians(v),
        lambda x, v: divmod(x, 2)[0],
        lambda x, v: divmod(x, 2)[1],
        lambda x, v: divmod(7.0, x)[1],
        lambda x, v: np.divmod(v, 0.75)[1],
        lambda x, v: np.dot(x, np.arange(24.0).reshape(4, 3, 2)),
        lambda x, v: np.dot(np.arange(24.0).reshape(4, 2, 3), v),
        lambda x, v: np.dot(v, np.arange(24.0).reshape(4, 3, 2)),
        lambda x, v: x.prod(axis=1),
        lambda x, v: x.cumprod(1),
        lambda x, v: x.take([0, 1]),
        lambda x, v: x.diagonal(),
        lambda x, v: np.where(v)[0],
        lambda x, v: np.einsum(x, [..., 0], v, [0]),
        lambda x, v: x.astype(np.float32, copy=False),
        lambda x, v: np.cumprod(v[0]),
    ):
        want, got = call(X.data, V.data), call(X, V)
        assert np.shape(got) == np.shape(want)
        np.testing.assert_allclose(got.data if isinstance(got, ag.Tensor) else got, want)


def test_a_tensor_without_axes_is_no_sequence():
    assert not np.iterable(ag.tensor(1.0))
    with pytest.raises(TypeError, match="without axes"):
        iter(ag.tensor(1.0))


def test_a_sign_is_that_of_a_determinant_too_small_for_a_number():
    assert np.linalg.slogdet(ag.tensor(np.eye(300) * -0.01))[0] == 1
    assert np.linalg.slogdet(ag.tensor(np.eye(301) * -0.01))[0] == -1


def test_small_integers_do_not_wrap_in_norms_and_averages():
    x = np.array([200, 3], np.uint8)
    for f in (np.linalg.norm, lambda x: np.linalg.norm(x, 3), lambda x: np.average(x, weights=x)):
        assert np.isclose(f(ag.tensor(x)), f(x))


def test_the_slope_of_a_norm_at_zero_is_zero():
    x = ag.tensor([4.0, 0.0, -1.0], requires_grad=True)
    for order in (0.5, 1.5, 2, 3):
        (slope,) = ag.grad(np.linalg.norm(x, order), x, create_graph=True)
        (curve,) = ag.grad(slope.sum(), x)
        assert slope.data[1] == 0
        assert np.isfinite(curve).all()
        assert (ag.grad(np.linalg.norm(x * 0, order), x)[0] == 0).all()
