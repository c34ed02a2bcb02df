"""The losses: against PyTorch, at the ends of the range, and what they refuse."""

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn import nn
from autograd_bn.engine.tensor import values_of

rng = np.random.default_rng


def against_pytorch(mine, theirs, inputs):
    torch = pytest.importorskip("torch")
    leaves = [ag.tensor(x, requires_grad=True) for x in inputs]
    tleaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    loss, tloss = mine(*leaves), theirs(torch.nn.functional, *tleaves)
    assert loss.shape == ()
    np.testing.assert_allclose(loss.item(), tloss.item(), rtol=1e-13)
    loss.backward()
    tloss.backward()
    for leaf, tleaf in zip(leaves, tleaves, strict=True):
        np.testing.assert_allclose(leaf.grad, tleaf.grad.numpy(), atol=1e-14)


def test_cross_entropy_equals_pytorch():
    torch = pytest.importorskip("torch")
    labels = rng(1).integers(0, 5, size=7)
    against_pytorch(
        lambda x: nn.cross_entropy(x, labels),
        lambda f, x: f.cross_entropy(x, torch.tensor(labels)),
        [rng(0).normal(size=(7, 5)) * 10],
    )


def test_mse_loss_equals_pytorch():
    against_pytorch(nn.mse_loss, lambda f, x, t: f.mse_loss(x, t), rng(0).normal(size=(2, 7, 5)))


def test_binary_cross_entropy_equals_pytorch():
    against_pytorch(
        nn.binary_cross_entropy_with_logits,
        lambda f, x, t: f.binary_cross_entropy_with_logits(x, t),
        [rng(0).normal(size=(7, 5)) * 10, rng(1).random(size=(7, 5))],
    )


@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (lambda x: nn.cross_entropy(x, [[2, 0], [1, 1], [0, 2]]), 1),
        (nn.mse_loss, 2),
        (nn.binary_cross_entropy_with_logits, 2),
    ],
    ids=["cross_entropy", "mse_loss", "binary_cross_entropy"],
)
def test_losses_pass_gradcheck_at_both_orders(loss, count):
    assert ag.gradcheck(loss, [rng(i).normal(size=(3, 2, 3)) for i in range(count)], order=2)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "axes turned": lambda x: np.ascontiguousarray(x.transpose(*range(1, x.ndim), 0)).transpose(-1, *range(x.ndim - 1)),
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (2, 5, 3, 4)], ids=str)
def test_gradients_do_not_depend_on_the_memory_order(shape, layout):
    x, target, labels = rng(0).normal(size=shape), rng(1).random(shape), rng(2).integers(0, 4, size=shape[:-1])
    turn = LAYOUTS[layout]
    np.testing.assert_array_equal(turn(x), x)
    for loss in (
        lambda x, turn: nn.cross_entropy(x, turn(labels) if labels.ndim else labels),
        lambda x, turn: nn.mse_loss(x, turn(target)),
        lambda x, turn: nn.binary_cross_entropy_with_logits(x, turn(target)),
    ):
        plain, turned = (ag.as_tensor(a, requires_grad=True) for a in (x, turn(x)))
        expected = loss(plain, np.asarray)
        found = loss(turned, turn)
        np.testing.assert_allclose(found.data, expected.data, rtol=1e-14)
        for order in (False, True):
            (g,) = ag.grad(found, turned, create_graph=order)
            (right,) = ag.grad(expected, plain)
            np.testing.assert_allclose(np.asarray(g.detach() if order else g), right, rtol=1e-12, atol=1e-16)


def test_cross_entropy_neither_overflows_nor_cancels():
    logits = ag.tensor([[1000.0, 0.0], [-1000.0, 0.0], [0.0, -np.inf]], requires_grad=True)
    loss = nn.cross_entropy(logits, [1, 1, 0])
    loss.backward()
    np.testing.assert_allclose(loss.item(), 1000 / 3)
    np.testing.assert_allclose(logits.grad * 3, [[1, -1], [0, 0], [0, 0]])
    tiny = nn.cross_entropy(ag.tensor([[40.0, 0.0]]), [0]).item()
    np.testing.assert_allclose(tiny, np.log1p(np.exp(-40.0)), rtol=1e-2, atol=1e-17)


def test_binary_cross_entropy_is_stable_at_both_ends():
    logits = ag.tensor([800.0, -800.0, -40.0], requires_grad=True)
    loss = nn.binary_cross_entropy_with_logits(logits, [1, 0, 0])
    loss.backward()
    np.testing.assert_allclose(loss.item() * 3, np.exp(-40.0), rtol=1e-12)
    np.testing.assert_allclose(logits.grad * 3, [0, 0, np.exp(-40.0)], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_losses_keep_their_dtype(dtype):
    x = ag.tensor(np.ones((3, 2)), dtype=dtype, requires_grad=True)
    target = np.ones((3, 2), dtype=dtype)
    for loss in (
        nn.cross_entropy(x, [0, 1, 1]),
        nn.mse_loss(x, target),
        nn.binary_cross_entropy_with_logits(x, target),
    ):
        assert loss.dtype == dtype
        assert ag.grad(loss, x)[0].dtype == dtype


def test_plain_arrays_give_plain_numbers():
    assert isinstance(nn.cross_entropy(np.zeros((2, 2)), [0, 1]), np.ndarray | np.generic)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.cross_entropy(np.zeros((2, 3)), [0, 3]), ValueError, "labels have a 3, expected 0 to 2"),
        (lambda: nn.cross_entropy(np.zeros((2, 3)), [-1, 0]), ValueError, "labels have a -1"),
        (lambda: nn.cross_entropy(np.zeros((2, 3)), [0.0, 1.0]), TypeError, "dtype float64, expected integers"),
        (lambda: nn.cross_entropy(np.zeros((2, 3)), [0, 1, 2]), ValueError, r"shape \(3,\).*logits of shape \(2, 3\)"),
        (lambda: nn.cross_entropy(np.zeros((2, 3)), [[0], [1]]), ValueError, "one for each row"),
        (lambda: nn.cross_entropy(np.zeros((2, 3), int), [0, 1]), TypeError, "logits has dtype int64"),
        (lambda: nn.cross_entropy(np.zeros((0, 3)), np.zeros(0, int)), ValueError, "no rows"),
        (lambda: nn.mse_loss(np.zeros((2, 1)), np.zeros(2)), ValueError, r"\(2, 1\) and the target \(2,\)"),
        (lambda: nn.mse_loss(np.zeros(0), np.zeros(0)), ValueError, "no elements"),
        (lambda: nn.mse_loss(np.zeros(2), ["a", "b"]), TypeError, "expected real numbers"),
        (lambda: nn.binary_cross_entropy_with_logits(np.zeros(3), np.zeros(2)), ValueError, "expected one shape"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("create_graph", [False, True])
def test_cross_entropy_of_more_float16_rows_than_it_counts(create_graph):
    x = rng(0).normal(size=(70_000, 2)).astype("float16")
    labels = np.zeros(len(x), int)
    found = []
    for dtype in ("float16", float):
        logits = ag.tensor(x.astype(dtype), requires_grad=True)
        loss = nn.cross_entropy(logits, labels)
        (g,) = ag.grad(loss, logits, 100.0, create_graph=create_graph)
        found.append((loss.item(), values_of(g)))
    (loss, g), (true, exact) = found
    assert g.dtype == "float16"
    assert loss == pytest.approx(true, rel=2e-3)
    np.testing.assert_allclose(g, exact, rtol=2e-2, atol=1e-6)
