"""The backward pass and what is made of it: sums, ownership, errors, depth, threads, memory."""

import gc
import itertools
import pickle
import sys
import threading
import time
import tracemalloc
import weakref
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.engine.primitive import primitive
from autograd_bn.engine.tensor import values_of

rng = np.random.default_rng(0)


def leaf(*shape, dtype=float, name=None):
    return ag.tensor(rng.normal(size=shape), requires_grad=True, dtype=dtype, name=name)


# --- Sums ----------------------------------------------------------------------------------------------------


def test_second_backward_adds_exactly_the_same():
    x = leaf(3, 4)
    y = ag.tanh(x @ rng.normal(size=(4, 2))).sum()
    y.backward()
    once = x.grad.copy()
    y.backward()
    assert np.array_equal(x.grad, once * 2)
    y.backward(np.array(4.0))
    assert np.array_equal(x.grad, once * 6)


def test_backward_touches_leaves_only():
    x = leaf(3)
    y = x * 2
    z = (y * y).sum()
    z.backward()
    for computed in (y, z):
        with pytest.warns(UserWarning, match="always None"):
            assert computed.grad is None
    assert ag.grad(z, [x, y])[1].shape == (3,)
    assert np.array_equal(x.grad, 8 * x.data)


def test_a_reused_node_counts_its_edges():
    x = leaf(3)
    y = x * x
    z = y + y + y * y + x
    assert np.allclose(ag.grad(z.sum(), x)[0], 4 * x.data + 4 * x.data**3 + 1)


def test_an_output_may_be_an_input_and_stand_above_another():
    x = leaf()
    y = x * 3.0
    z = y * 2.0
    assert ag.grad([y, z], [x, y, z]) == (9.0, 3.0, 1.0)
    assert ag.grad([y, y], y) == (2.0,)
    assert ag.grad(x, x) == (1.0,)
    x.backward()
    assert x.grad == 1.0


def test_an_output_given_twice_counts_twice():
    x = leaf(3)
    y = x * x
    (twice,) = ag.grad([y, y], x, [np.ones(3), np.full(3, 3.0)])
    assert np.array_equal(twice, 8 * x.data)


@pytest.mark.parametrize("step", [lambda w, h: w * h, lambda w, h: h * w])
def test_gradients_of_a_value_used_at_every_step_are_summed_as_they_come(step):
    w, h = leaf(1 << 14), leaf(1 << 14)
    for _ in range(64):
        h = step(w, h)
    tracemalloc.start()
    h.backward(np.ones(h.shape))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * w.data.nbytes


def test_branches_that_lead_to_no_input_are_left_out():
    calls = []

    @primitive(lambda g: calls.append(1) or g)
    def seen(x, /):
        return x + 0

    x, w = leaf(2), leaf(2)
    y = x * 2 + seen(w)
    ag.grad(y.sum(), x)
    assert not calls
    ag.grad(y.sum(), w)
    assert len(calls) == 1


def test_diamond_of_forty_levels_is_linear():
    x = leaf()
    y = x
    for _ in range(40):
        y = y + y
    calls = time.thread_time()
    y.backward()
    assert x.grad == 2.0**40
    assert ag.grad(ag.grad(y * x, x, create_graph=True)[0], x)[0] == 2.0**41
    assert len(ag.Graph(y)) == 41
    assert time.thread_time() - calls < 5  # 2^40 paths would take days


def test_a_chain_of_a_hundred_thousand_nodes():
    x = ag.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(100_000):
        y = y * 1.00001
    y.backward()
    assert np.isclose(x.grad, np.e, rtol=1e-4)
    assert len(ag.Graph(y)) == 100_001
    dropped = weakref.ref(y.node)
    del y
    assert dropped() is None


def test_a_long_chain_of_second_derivatives():
    x = ag.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y * x
    (slope,) = ag.grad(y, x, create_graph=True)
    assert slope.data == 20_001
    (curvature,) = ag.grad(slope, x)
    assert curvature == 20_001 * 20_000


# --- Ownership -----------------------------------------------------------------------------------------------


def shares(arrays):
    return [(i, j) for i in range(len(arrays)) for j in range(i) if np.shares_memory(arrays[i], arrays[j])]


SHARED_GRADIENTS = {
    "add": lambda a, b: a + b,
    "add, then a product": lambda a, b: (a + b) * 2,
    "views": lambda a, b: a.reshape(2, 2).T.reshape(4) + b.reshape(4),
    "broadcast": lambda a, b: ag.broadcast_to(a, (3, 4)) + b,
    "concatenate": lambda a, b: ag.concatenate([a, b, a]),
    "stack": lambda a, b: ag.stack([a, b]),
    "split": lambda a, b: a[:2].sum() + b[2:] + a[2:],
    "sum": lambda a, b: a.sum() + b.sum(),
    "where": lambda a, b: ag.where([True, False, True, False], a, b),
    "subtract": lambda a, b: a - b,
    "astype": lambda a, b: a.astype(float) + b.copy(),
}


@pytest.mark.parametrize("f", SHARED_GRADIENTS.values(), ids=SHARED_GRADIENTS)
def test_gradients_never_share_a_buffer(f):
    a, b = leaf(4), leaf(4)
    y = f(a, b)
    seed = np.ones(y.shape)
    y.backward(seed)
    found = ag.grad(y, [a, b], seed)
    arrays = [a.grad, b.grad, *found, seed, a.data, b.data, y.data]
    assert shares(arrays) == []
    before = [array.copy() for array in arrays]
    y.backward(seed)
    a.grad += 1
    assert all(np.array_equal(x, y) for x, y in zip(arrays[2:], before[2:], strict=True))


def test_one_array_given_to_two_inputs_by_a_joint_rule_is_copied():
    @primitive(lambda g, wanted: (twice := g * 2, twice), joint=True)
    def both(a, b, /):
        return 2 * (a + b), None

    a, b = leaf(4), leaf(4)
    y, _ = both(a, b)
    (y + a).backward(np.ones(4))
    assert np.array_equal(a.grad, [3.0] * 4)
    assert np.array_equal(b.grad, [2.0] * 4)
    assert shares([a.grad, b.grad]) == []


def test_gradients_are_writable_and_plain():
    a, b = leaf(4), leaf()
    ag.broadcast_to(a + b, (3, 4)).sum().backward()
    for t in (a, b):
        assert type(t.grad) is np.ndarray
        assert t.grad.flags.writeable
        assert t.grad.shape == t.shape


@pytest.mark.parametrize("f", [ag.sum, ag.mean, lambda x: ag.mean(x * 2), lambda x: x[0, 0] / 3, ag.transpose])
def test_gradients_are_writable_whatever_view_a_rule_gives(f):
    x = leaf(3, 2)
    y = f(x)
    (gradient,) = ag.grad(y, x, np.ones(y.shape))
    y.backward(np.ones(y.shape))
    for array in (gradient, x.grad):
        array += 1
        assert array.flags.writeable
    assert np.array_equal(gradient, x.grad)


def test_an_exception_in_mid_backward_changes_no_gradient():
    def refuse(g):
        raise ArithmeticError("no")

    @primitive(refuse)
    def refusing(x, /):
        return x + 0

    x, w = leaf(3), leaf(3)
    (x * w).sum().backward()
    before = x.grad.copy(), w.grad.copy()
    with pytest.raises(ArithmeticError):
        (w * w + refusing(x * 2) * x).sum().backward()
    assert np.array_equal(x.grad, before[0])
    assert np.array_equal(w.grad, before[1])


# --- Memory and threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_dropped_graph_is_gone_at_once(order):
    gc.collect()
    gc.disable()
    try:
        x = leaf(3)
        y = ag.sigmoid(x) * ag.softmax(x * x)
        z = y.sum()
        watched = [weakref.ref(node) for node in ag.Graph(z).nodes if node.op]
        tensors = [weakref.ref(y), weakref.ref(z)]
        if order == 1:
            z.backward()
        if order == 2:
            (g,) = ag.grad(z, x, create_graph=True)
            watched += [weakref.ref(node) for node in ag.Graph(g).nodes if node.op]
            ag.grad(g.sum(), x)
            del g
        del y, z
        assert [w() for w in watched + tensors if w() is not None] == []
    finally:
        gc.enable()


def test_an_error_in_the_forward_pass_leaves_nothing_behind():
    x = leaf(3)
    with pytest.raises(ValueError, match="broadcast"):
        x + np.ones(4)
    y = (x * 2).sum()
    y.backward()
    assert np.array_equal(x.grad, [2.0] * 3)


def test_five_threads_run_backward_on_one_graph():
    x = leaf(50)
    y = ag.tanh(ag.softmax(x * x) * x)
    for _ in range(30):
        y = y * x + y
    y = y.sum()
    (expected,) = ag.grad(y, x)
    start, failures = threading.Barrier(5), []

    def run():
        start.wait()
        for _ in range(4):
            if not np.array_equal(ag.grad(y, x)[0], expected):
                failures.append("grad")
            y.backward()

    threads = [threading.Thread(target=run) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    total = np.zeros(50)
    for _ in range(20):
        total += expected
    assert np.array_equal(x.grad, total)


# --- dtypes --------------------------------------------------------------------------------------------------


def test_the_gradient_has_the_dtype_and_shape_of_its_input():
    a, b = leaf(3, 1, dtype=np.float32), leaf(4, dtype=np.float64)
    y = a * b
    assert y.dtype == np.float64
    y.sum().backward()
    assert (a.grad.dtype, a.grad.shape) == (np.float32, (3, 1))
    assert (b.grad.dtype, b.grad.shape) == (np.float64, (4,))
    (g,) = ag.grad(y.sum(), a, create_graph=True)
    assert g.dtype == np.float32


def test_an_integer_seed_is_converted():
    x = leaf(2)
    (x * 2).backward([1, 2])
    assert np.array_equal(x.grad, [2.0, 4.0])
    assert np.array_equal(*ag.grad(x * 2, x, [1, 2]), [2.0, 4.0])


def fraction_tensor(array, **options):
    return ag.tensor(np.vectorize(Fraction, otypes=[object])(array), requires_grad=True, **options)


def test_fractions_stay_exact_from_end_to_end():
    x = fraction_tensor([[1, 2], [3, 5]])
    w = fraction_tensor([[2, 1], [1, 3]])
    y = (ag.square(x @ w) / 3 - x).mean(axis=0)
    z = ag.max(y) * 2 + ag.relu(x).sum() + ag.where(x.data > 2, x, 0).mean() + x[0].var()
    gradients = ag.grad(z, [x, w])
    assert all(type(e) is Fraction for g in gradients for e in g.flat)
    x64, w64 = (ag.tensor(t.data.astype(float), requires_grad=True) for t in (x, w))
    y = (ag.square(x64 @ w64) / 3 - x64).mean(axis=0)
    z64 = ag.max(y) * 2 + ag.relu(x64).sum() + ag.where(x64.data > 2, x64, 0).mean() + x64[0].var()
    for exact, rounded in zip(gradients, ag.grad(z64, [x64, w64]), strict=True):
        np.testing.assert_allclose(exact.astype(float), rounded, rtol=1e-13)


@pytest.mark.parametrize("unpickled", [False, True])
def test_every_exact_number_is_a_fraction(unpickled):
    numbers = np.array([2, 3, 5], dtype=object)
    x = ag.tensor(pickle.loads(pickle.dumps(numbers)) if unpickled else numbers, requires_grad=True)
    for y in (x[0] * x[1], np.pad(x, 1, constant_values=np.int64(7)), x[0].var() + x, ag.stack([x, x])):
        assert all(type(e) is Fraction for e in np.ravel(y.data))
        (g,) = ag.grad(y, x, np.ones(y.shape, int))
        assert all(type(e) is Fraction for e in g)
    assert ag.grad(x / 3, x, [1, 2, 4])[0].tolist() == [Fraction(1, 3), Fraction(2, 3), Fraction(4, 3)]
    for inexact in (lambda: ag.grad((2**x).sum(), x), lambda: np.pad(x, 1, constant_values=np.float32(0.5))):
        with pytest.raises(TypeError, match="among exact numbers"):
            inexact()


# --- grad ----------------------------------------------------------------------------------------------------


def test_grad_leaves_the_leaves_alone():
    x = leaf(3)
    ag.grad((x * x).sum(), x)
    assert x.grad is None


def test_derivatives_of_order_four():
    x = ag.tensor(1.5, requires_grad=True)
    y = x**6
    expected = 1.0
    for order in range(1, 5):
        (y,) = ag.grad(y, x, create_graph=True)
        expected *= 7 - order
        assert np.isclose(y.item(), expected * 1.5 ** (6 - order))


def test_create_graph_works_inside_no_grad_and_leaves_it_as_it_was():
    x = leaf()
    y = x * x * x
    with ag.no_grad():
        (slope,) = ag.grad(y, x, create_graph=True)
        assert not (x * x).requires_grad
        assert ag.jacobian(lambda t: t * t, 3.0) == 6.0
        assert ag.hessian(lambda t: t * t * t, 2.0) == 12.0
        assert ag.jvp(lambda t: t * t, [3.0], [1.0])[1] == 6.0
        assert not (x * x).requires_grad
    assert np.isclose(ag.grad(slope, x)[0], 6 * x.data)


def test_gradient_with_respect_to_the_seed():
    x = leaf(3)
    v = leaf(3)
    (g,) = ag.grad(x * x, x, v, create_graph=True)
    assert np.array_equal(ag.grad(g, v, [np.ones(3)])[0], 2 * x.data)


def test_unused_inputs():
    x, w = leaf(2), leaf(2, name="w")
    y = (x * x).sum()
    with pytest.raises(RuntimeError, match=r"inputs\[1\] \(w\)"):
        ag.grad(y, [x, w])
    assert ag.grad(y, [x, w], allow_unused=True)[1] is None


def test_errors_name_what_came_and_what_was_expected():
    x = leaf(2, 3)
    y = x * 2
    cases = [
        (ValueError, r"gradient .*\(2, 3\)", lambda: y.backward()),
        (ValueError, r"gradient has shape \(3,\), expected .*\(2, 3\)", lambda: y.backward(np.ones(3))),
        (ValueError, r"grad_outputs\[0\] has shape \(1,\)", lambda: ag.grad(y, x, [np.ones(1)])),
        (TypeError, "complex128", lambda: y.backward(np.ones((2, 3)) * 1j)),
        (RuntimeError, "requires_grad=True", lambda: ag.tensor(1.0).backward()),
        (RuntimeError, "requires_grad=True", lambda: ag.grad([y.sum(), ag.tensor(1.0)], x)),
        (
            RuntimeError,
            r"inputs\[1\] does not require",
            lambda: ag.grad(y.sum(), [x, ag.tensor(1.0)], allow_unused=True),
        ),
        (TypeError, r"outputs\[0\] is a ndarray", lambda: ag.grad([np.ones(2)], x)),
        (TypeError, "outputs is a float", lambda: ag.grad(2.0, x)),
        (TypeError, r"inputs\[1\] is a int", lambda: ag.grad(y.sum(), [x, 3])),
        (ValueError, "1 entries for 2", lambda: ag.grad([y, y], x, [np.ones((2, 3))])),
        (ValueError, r"tangents\[0\] has shape \(3,\)", lambda: ag.jvp(lambda t: t, [np.ones(2)], [np.ones(3)])),
        (ValueError, "0 entries for 1", lambda: ag.jvp(lambda t: t, [np.ones(2)], [])),
        (TypeError, r"inputs\[0\].*int64", lambda: ag.jacobian(lambda t: t, np.array([1, 2]))),
        (TypeError, "f returned a ndarray", lambda: ag.jacobian(lambda t: t.data, np.ones(2))),
        (ValueError, r"\(2,\)", lambda: ag.hessian(lambda t: t, np.ones(2))),
    ]
    for error, text, call in cases:
        with pytest.raises(error, match=text):
            call()
    assert x.grad is None


def test_overwritten_values_are_noticed():
    x, w = leaf(3), leaf(3, name="w")
    y = (x * w).sum()
    (x * 2).sum().backward()
    w.assign(np.zeros(3))
    with pytest.raises(RuntimeError, match="'w' of 'multiply' was overwritten"):
        y.backward()
    with pytest.raises(RuntimeError, match="'w'"):
        ag.grad(y, x, create_graph=True)
    assert np.array_equal(x.grad, [2.0] * 3)
    z = (x + w).sum()
    w.assign(np.ones(3))
    z.backward()  # an addition reads nothing
    square, other = x * x, w * w
    w.assign(np.zeros(3))
    (dx,) = ag.grad([square, other], [x], [np.ones(3), np.ones(3)])  # which `other` has no part in
    assert np.array_equal(dx, 2 * x.data)


# --- Functions of functions ----------------------------------------------------------------------------------


def test_jacobian_shapes():
    a, b = rng.normal(size=(2, 3)), rng.normal(size=(3,))
    both = ag.jacobian(lambda a, b: a * b, a, b)
    assert isinstance(both, tuple)
    first, second = both
    assert (first.shape, second.shape) == ((2, 3, 2, 3), (2, 3, 3))
    assert np.allclose(np.einsum("ijij->ij", first), np.broadcast_to(b, (2, 3)))
    assert np.allclose(np.einsum("ijj->ij", second), a)
    assert ag.jacobian(lambda a: ag.stop_gradient(a), a).shape == (2, 3, 2, 3)
    assert ag.jacobian(lambda a: a.reshape(6)[:0], a).shape == (0, 2, 3)
    assert ag.jacobian(lambda a: a, np.float32(2.0)).dtype == np.float32


def test_jvp_is_the_jacobian_times_the_tangent():
    x, v = rng.normal(size=4), rng.normal(size=4)

    def f(x):
        return ag.softmax(x) @ ag.reshape(ag.exp(x), (4, 1))

    value, tangent = ag.jvp(f, [x], [v])
    assert np.allclose(value, f(x))
    assert np.allclose(tangent, ag.jacobian(f, x) @ v)
    assert np.array_equal(ag.jvp(lambda x: x + 0 * x, [x], [v])[1], v)
    assert np.array_equal(ag.jvp(ag.stop_gradient, [x], [v])[1], np.zeros(4))
    w = ag.tensor(x, requires_grad=True)
    assert np.array_equal(ag.jvp(lambda x: w * w, [x], [v])[1], np.zeros(4))
    assert np.array_equal(ag.jvp(lambda x: ag.stop_gradient(x) + 0 * v, [x], [v])[1], np.zeros(4))
    assert np.array_equal(ag.jvp(lambda x: ag.tensor([1, 2]), [x], [v]), [[1, 2], [0, 0]])
    assert ag.jvp(lambda x: x * x, [np.float32([1, 2])], [[1, 0]])[1].dtype == np.float32
    exact = ag.jvp(lambda x, y: x / y, [np.array([Fraction(1)]), np.array([Fraction(3)])], [[0], [1]])
    assert [type(a.item()) for a in exact] == [Fraction, Fraction]
    assert exact[1] == Fraction(-1, 9)
    with pytest.raises(TypeError, match="complex"):
        ag.jvp(ag.exp, [x], [v * 1j])
    assert np.array_equal(ag.jacobian(lambda x: ag.tensor([1, 2]), x), np.zeros((2, 4)))
    assert np.array_equal(ag.jvp(lambda x, unused: 2 * x, [x, x], [v, v])[1], 2 * v)


def test_hessian_blocks():
    a, b = rng.normal(size=2), rng.normal(size=3)
    blocks = ag.hessian(lambda a, b: (ag.reshape(a, (2, 1)) * b * b).sum(), a, b)
    assert {type(blocks), *map(type, blocks)} == {tuple}
    assert np.allclose(blocks[0][0], np.zeros((2, 2)))
    assert np.allclose(blocks[0][1], np.broadcast_to(2 * b, (2, 3)))
    assert np.allclose(blocks[1][0], blocks[0][1].T)
    assert np.allclose(blocks[1][1], 2 * a.sum() * np.eye(3))


# --- Chains of operations against PyTorch --------------------------------------------------------------------

UNARY = {
    "tanh": lambda m, x: m.tanh(x),
    "sigmoid": lambda m, x: m.sigmoid(x),
    "exp": lambda m, x: m.exp(x * 0.3),
    "softmax": lambda m, x: m.softmax(x, -1),
    "log_softmax": lambda m, x: m.log_softmax(x, -1),
    "square": lambda m, x: m.square(x),
    "sqrt": lambda m, x: m.sqrt(x * x + 0.5),
    "rsqrt": lambda m, x: m.rsqrt(x * x + 0.5),
    "abs": lambda m, x: m.abs(x),
    "relu": lambda m, x: m.relu(x),
    "cube": lambda m, x: x**3,
    "fraction": lambda m, x: (x * x + 1) ** -0.5,
    "negative": lambda m, x: -x,
    "centred": lambda m, x: x - x.mean(0),
    "transposed": lambda m, x: x.T.reshape(3, 4),
    "sliced": lambda m, x: x[:, [1, 0, 1, 3]] + x[::1],
}
BINARY = {
    "add": lambda m, a, b: a + b,
    "subtract": lambda m, a, b: a - b,
    "multiply": lambda m, a, b: a * b,
    "divide": lambda m, a, b: a / (b * b + 1),
    "maximum": lambda m, a, b: m.maximum(a, b),
    "minimum": lambda m, a, b: m.minimum(a, b),
    "matmul": lambda m, a, b: a @ b.T @ b,
    "where": lambda m, a, b: m.where(a > b, a * 2, b),
    "broadcast": lambda m, a, b: a * b[:, :1] + b[0],
    "concatenated": lambda m, a, b: m.concatenate([a, b], 1)[:, 2:6],
}
steps = st.lists(
    st.tuples(
        st.sampled_from([*UNARY, *BINARY]),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    min_size=1,
    max_size=7,
)


def run_chain(module, chain, values):
    values = list(values)
    for name, i, j in chain:
        a, b = values[i % len(values)], values[j % len(values)]
        values.append(UNARY[name](module, a) if name in UNARY else BINARY[name](module, a, b))
    return (values[-1] * values[-1]).sum() + sum(v.mean() for v in values)


@settings(max_examples=150, deadline=None)
@given(chain=steps, seed=st.integers(0, 1000))
def test_chains_agree_with_pytorch_to_second_order(chain, seed):
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(seed)
    arrays = [draw.normal(size=(3, 4)), draw.normal(size=(3, 4))]
    directions = [draw.normal(size=(3, 4)) for _ in arrays]

    peers = [torch.tensor(a, requires_grad=True) for a in arrays]
    z = run_chain(torch, chain, peers)
    peer_first = torch.autograd.grad(z, peers, create_graph=True)
    peer_along = sum((g * torch.tensor(d)).sum() for g, d in zip(peer_first, directions, strict=True))
    peer_second = (
        torch.autograd.grad(peer_along, peers, allow_unused=True) if peer_along.requires_grad else (None, None)
    )
    expected = [
        np.zeros((3, 4)) if found is None else found.numpy(force=True) for found in (z, *peer_first, *peer_second)
    ]
    assume(all(np.abs(found).max() < 1e100 for found in expected))  # a chain of exponentials is out of range

    leaves = [ag.tensor(a, requires_grad=True) for a in arrays]
    y = run_chain(ag, chain, leaves)
    first = ag.grad(y, leaves, create_graph=True)
    along = sum((g * d).sum() for g, d in zip(first, directions, strict=True))
    second = ag.grad(along, leaves, allow_unused=True) if along.requires_grad else (None, None)
    for found, peer in zip([y, *first, *second], expected, strict=True):
        found = np.zeros((3, 4)) if found is None else values_of(found)
        scale = 1 + np.abs(peer).max()
        np.testing.assert_allclose(found / scale, peer / scale, atol=1e-8)


def test_an_input_given_twice_gets_two_arrays():
    x = ag.tensor([1.0, 2.0], requires_grad=True)
    first, second = ag.grad((x * x).sum(), [x, x])
    first += 1
    assert np.array_equal(second, [2.0, 4.0])
    first, second = ag.grad((x * x).sum(), [x, x], create_graph=True)
    assert first is second
    w = leaf(2)
    assert ag.grad(x.sum(), [w, w], allow_unused=True) == (None, None)


def test_jvp_hands_out_nothing_of_the_callers():
    x, t = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    for f in (lambda x: x, lambda x: x * 1, lambda x: ag.reshape(x, (2, 1))):
        value, tangent = ag.jvp(f, [x], [t])
        value += 1
        tangent += 1
        assert np.array_equal(x, [1.0, 2.0])
        assert np.array_equal(t, [3.0, 4.0])


def test_gradients_are_never_the_callers_array():
    x, seed = leaf(3), np.ones(3)
    for y in (x + 0, ag.stack([x, x])[0], x.reshape(3)):
        x.zero_grad()
        y.backward(seed)
        x.grad += 1
        assert np.array_equal(seed, np.ones(3))


def test_sums_added_up_by_many_threads_are_whole():
    x, times, before = leaf(3), 200, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [(x * 1.0).backward(np.ones(3)) for _ in range(times)]) for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert np.array_equal(x.grad, np.full(3, 6.0 * times))


def test_sums_of_gradients_keep_dtype_byte_order_and_0d_objects():
    x = ag.tensor(np.array(Fraction(3), dtype=object), requires_grad=True)
    assert ag.grad(x * x + x, [x]) == (Fraction(7),)
    (slope,) = ag.grad(x * x * x, x, create_graph=True)
    assert ag.grad(slope, x) == (Fraction(18),)
    assert [f(lambda x: x * x * x, x).item() for f in (ag.jacobian, ag.hessian)] == [27, 18]
    swapped = ag.tensor(np.array([1.0, 2.0], ">f8"), requires_grad=True)
    for passes in (1, 2):
        (swapped * swapped + swapped).sum().backward()
        assert swapped.grad.dtype.str == ">f8"
        assert swapped.grad.tolist() == [3.0 * passes, 5.0 * passes]


def test_a_rule_that_makes_new_arrays_can_be_differentiated_again():
    @primitive(lambda g, x: np.zeros(x.shape))
    def flat(x, /):
        return np.ones_like(x)

    x = ag.tensor([2.0, 3.0], requires_grad=True)
    for f, second in ((lambda x: flat(x) + flat(x) + x * x * x, [12.0, 18.0]), (flat, None)):
        (slope,) = ag.grad(f(x).sum(), x, create_graph=True)
        assert isinstance(slope, ag.Tensor)
        if second:
            assert ag.grad(slope.sum(), x)[0].tolist() == second


@pytest.mark.parametrize("reduce", [ag.mean, ag.var])
def test_the_mean_of_more_float16_than_it_counts_has_a_gradient(reduce):
    x = (np.arange(70_000) % 5).astype("float16")
    (narrow,), (wide,) = (
        ag.grad(reduce(t), t, 100.0) for t in (ag.tensor(x.astype(d), requires_grad=True) for d in ("float16", float))
    )
    assert narrow.dtype == "float16"
    np.testing.assert_allclose(narrow, wide, rtol=2e-3, atol=1e-6)


def test_float16_is_summed_over_broadcast_rows_without_loss():
    shift = ag.tensor(np.zeros(2, "float16"), requires_grad=True)
    ones = np.ones((4096, 2), "float16")
    layer = ag.nn.Linear(2, 2, dtype="float16", rng=0)
    assert ag.grad((ones + shift).sum(), shift)[0].tolist() == [4096, 4096]
    assert ag.grad(layer(ones), layer.bias, ones)[0].tolist() == [4096, 4096]
    for a, b, c in itertools.permutations([2048, 1, 1]):
        assert ag.grad(shift * a + shift * b + shift * c, shift, np.ones(2))[0].tolist() == [2050, 2050]


def test_the_backward_pass_lets_go_of_gradients_that_were_added():
    x = ag.tensor(np.random.default_rng(0).standard_normal((512, 512)), requires_grad=True)
    y = ag.batch_norm(x, form="composed")
    g = np.ones(y.shape)
    ag.grad(y, x, g)
    tracemalloc.start()
    ag.grad(y, x, g)
    peak = tracemalloc.get_traced_memory()[1] / x.data.nbytes
    tracemalloc.stop()
    assert peak < 3.5
