"""Backward passes written out: right, readable, and declined where none can be written.

`python tests/test_derivation.py` writes the golden files anew; look at the difference before you keep it.
"""

import ast
import html
import inspect
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.engine.node import setting
from autograd_bn.verify.derivation import text
from autograd_bn.verify.derivation.tracing import assigned, fillable
from autograd_bn.verify.referee.held import is_float
from tests.bench.referee import cases
from tests.test_fusion import SPELLINGS

GOLDEN = Path(__file__).with_name("golden")
PAIRS = {case.title: case for case in cases() if not case.slip}
# Why none is written: one element at a time, no rule, a random mask, or no gradient at the inputs.
DECLINED = {
    "batch_norm/loops": "more than 600 operations",
    "layers/conv1d": "np.convolve has no rule",
    "layers/dropout": "comes from no input",
    "kinks/safe_length": "is not finite",
}


def engine_gradients(forward, inputs, dys):
    """The engine's gradients of the float inputs."""
    leaves = [ag.tensor(x, requires_grad=True) if is_float(x) else x for x in inputs]
    with setting(assigned):
        returned = fillable(forward)(*leaves)
    outputs = returned[: len(dys)] if isinstance(returned, tuple) else [returned]
    wanted = [leaf for leaf in leaves if isinstance(leaf, ag.Tensor)]
    found = ag.grad(list(outputs), wanted, list(dys), allow_unused=True)
    return [np.zeros(x.shape) if g is None else g for x, g in zip(wanted, found, strict=True)]


def assert_right(derivation, forward, inputs, rtol=1e-12):
    """Outputs and gradients are the engine's, each to so much of its largest entry."""
    *outputs, cache = derivation.forward(*inputs)
    dys = [np.random.default_rng(1).normal(size=np.shape(y)) for y in outputs]
    returned = derivation.backward(*dys, cache)
    returned = returned if isinstance(returned, tuple) else (returned,)
    found = [g for g, x in zip(returned, inputs, strict=False) if is_float(x)]
    for value, true in zip(found, engine_gradients(forward, inputs, dys), strict=True):
        assert np.shape(value) == true.shape
        assert np.max(np.abs(value - true), initial=0) <= rtol * np.max(np.abs(true), initial=1e-3)


def assert_readable(source):
    """Lines that fit, nothing computed in vain, nothing cached that backward doesn't read."""
    assert max(map(len, source.splitlines())) < 100
    for function in ast.parse(source).body[1:]:
        assigned, read = set(), {a.arg for a in function.args.args} & {"cache"}
        for node in ast.walk(function):
            if isinstance(node, ast.Name):
                (assigned if isinstance(node.ctx, ast.Store) else read).add(node.id)
        shapes = [
            n for line in source.splitlines() if line.endswith(".shape") for n in line.split(" = ")[0].split(", ")
        ]
        assert assigned - read <= {n.strip() for n in shapes}


@pytest.mark.parametrize("title", PAIRS)
def test_a_pair_is_written_right_or_declined_with_a_reason(title):
    case = PAIRS[title]
    forward, _ = case.pair
    with np.errstate(all="ignore"):
        if title in DECLINED:
            with pytest.raises(ValueError, match=DECLINED[title]):
                ag.write_backward(forward, case.inputs())
            return
        made = ag.write_backward(forward, case.inputs())
    assert_readable(made.source)
    assert_right(made, forward, case.inputs())
    if case.area != "kinks":
        assert_right(made, forward, case.inputs(seed=3))


def test_most_pairs_are_written():
    assert len(DECLINED) <= 0.05 * len(PAIRS)


def paper(x, gamma, beta):
    mean = x.mean(axis=0)
    var = x.var(axis=0)
    xhat = (x - mean) / np.sqrt(var + 1e-5)
    return gamma * xhat + beta


def images(x, gamma, beta):
    N, H, W, C = x.shape
    flat = x.reshape(N * H * W, C)
    mean = flat.mean(0)
    var = ((flat - mean) ** 2).mean(0)
    return (gamma * ((flat - mean) / np.sqrt(var + 1e-5)) + beta).reshape(N, H, W, C)


def layer_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)
    var = x.var(axis=-1, keepdims=True)
    xhat = (x - mean) / np.sqrt(var + eps)
    return gamma * xhat + beta


def cross_entropy(scores, labels):
    N = len(scores)
    shifted = scores - scores.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -logp[np.arange(N), labels].mean()


def two_layers(x, W1, b1, W2, b2):
    h = np.maximum(x @ W1 + b1, 0)
    return h @ W2 + b2


def attention(q, k, v):
    scores = q @ k.T / np.sqrt(q.shape[1])
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return p @ v


def convolution(x, w, b):
    """Images (N, H, W, C) by filters (3, 3, C, F)."""
    H, W = x.shape[1:3]
    out = b
    for i in range(3):
        for j in range(3):
            out = out + x[:, i : H - 2 + i, j : W - 2 + j] @ w[i, j]
    return out


def max_pool(x):
    N, H, W, C = x.shape
    blocks = x.reshape(N, H // 2, 2, W // 2, 2, C)
    return blocks.max(axis=(2, 4))


def arrays(*shapes):
    return tuple([np.random.default_rng(len(shape)).normal(size=shape) + 0.2 for shape in shapes])


NORM = arrays((6, 4), (4,), (4,))
WRITTEN = {
    "batch_norm": (paper, NORM, "steps"),
    "batch_norm_folded": (paper, NORM, "folded"),
    "batch_norm_walk": (PAIRS["batch_norm/graph_walk"].pair[0], NORM, "steps"),
    "batch_norm_images": (images, arrays((2, 3, 5, 4), (4,), (4,)), "folded"),
    "layer_norm": (layer_norm, NORM, "steps"),
    "cross_entropy": (cross_entropy, (*arrays((6, 4)), np.array([0, 3, 1, 1, 2, 0])), "steps"),
    "two_layers": (two_layers, arrays((6, 4), (4, 5), (5,), (5, 3), (3,)), "steps"),
    "lstm_step": (PAIRS["recurrent/lstm_step"].pair[0], PAIRS["recurrent/lstm_step"].inputs(), "steps"),
    "attention": (attention, arrays((4, 3), (5, 3), (5, 2)), "steps"),
    "convolution": (convolution, arrays((2, 6, 5, 4), (3, 3, 4, 2), (2,)), "steps"),
    "max_pool": (max_pool, arrays((2, 4, 6, 3)), "steps"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_golden(name):
    forward, inputs, form = WRITTEN[name]
    made = ag.write_backward(forward, inputs, form=form)
    assert made.source == (GOLDEN / f"{name}.txt").read_text("utf-8")
    assert_readable(made.source)
    assert_right(made, forward, inputs)


@pytest.mark.parametrize("form", ["steps", "folded"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_batch_norm_is_written_in_both_forms(name, form):
    def forward(x, gamma, beta):
        return SPELLINGS[name](x, gamma, beta, 1e-3)

    inputs = arrays((5, 3), (3,), (3,))
    made = ag.write_backward(forward, inputs, form=form)
    assert_right(made, forward, inputs)
    assert_readable(made.source)
    if form == "folded":  # at most dbeta, dgamma, dx and a part that stands twice
        assert len(made.source.split("def backward")[1].splitlines()) <= 9


def test_several_outputs_have_a_gradient_each():
    def cell(x, c, W):
        z = np.tanh(x @ W)
        c_next = c * z
        return np.tanh(c_next) * z, c_next, (x, c, z)

    made = ag.write_backward(cell, arrays((3, 4), (3, 5), (4, 5)))
    assert list(inspect.signature(made.backward).parameters) == ["dy1", "dc_next", "cache"]
    assert_right(made, cell, arrays((3, 4), (3, 5), (4, 5)))


STEPS = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / (1.5 + b**2),
    lambda a, b: -a,
    lambda a, b: a - a.mean(axis=0),
    lambda a, b: a - a.sum(axis=1, keepdims=True) / a.shape[1],
    lambda a, b: np.tanh(a),
    lambda a, b: np.exp(-(a**2)),
    lambda a, b: np.maximum(a, b),
    lambda a, b: np.where(a > b, a, 0.5 * b),
    lambda a, b: (a @ b.T) @ b / len(a),
    lambda a, b: np.concatenate([a[:, 1:], b[:, :1]], axis=1),
    lambda a, b: a / np.sqrt(a.var(axis=0) + 0.1),
    lambda a, b: a * (b > 0),
    lambda a, b: a.max(axis=1)[:, None] - b,
    lambda a, b: a.T.reshape(a.shape) * 0.25,
    lambda a, b: ag.sigmoid(a) * b.sum(),
]


@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
def test_any_graph_is_written_right(steps):
    def forward(x, w):
        values = [x, x * w]
        for step, i, j in steps:
            values.append(step(values[-1 - i % len(values)], values[j % len(values)]))
        return values[-1] + values[1]

    inputs = arrays((4, 3), (3,))
    for form in ("steps", "folded"):
        made = ag.write_backward(forward, inputs, form=form)
        assert_right(made, forward, inputs, rtol=1e-10)
        assert_readable(made.source)


def test_a_module_is_written_with_its_parameters_as_inputs():
    net = ag.nn.Sequential(ag.nn.Linear(4, 3, rng=0), ag.nn.BatchNorm(3), ag.nn.ReLU(), ag.nn.Linear(3, 2, rng=1))
    (x,), before = arrays((5, 4)), net.state_dict()
    made = ag.write_backward(net, [x], form="folded")
    assert list(inspect.signature(made.forward).parameters)[:3] == ["x", "weight_0", "bias_0"]
    assert "def linear(x, weight, bias, /):" in made.source
    values = [x, *[np.array(p.data, dtype=float) for p in net.parameters()]]
    y, cache = made.forward(*values)
    given, (dx, dweight, *_) = ag.tensor(x, requires_grad=True), made.backward(np.ones(y.shape), cache)
    net(given).sum().backward()
    assert np.allclose(given.grad, dx, rtol=1e-4, atol=1e-6)
    assert np.allclose(next(net.parameters()).grad, dweight, rtol=1e-4, atol=1e-6)
    after = net.state_dict()
    assert all(name.startswith("1.") or np.array_equal(before[name], after[name]) for name in before)


def test_a_tensor_that_requires_no_gradient_gets_none():
    x, *weights = arrays((5, 4), (4, 3), (3,), (3, 2), (2,))
    made = ag.write_backward(two_layers, [ag.tensor(x), *weights])
    none, *found = made.backward(np.ones((5, 2)), made.forward(x, *weights)[1])
    full = ag.write_backward(two_layers, [x, *weights])
    _, *true = full.backward(np.ones((5, 2)), full.forward(x, *weights)[1])
    assert none is None
    assert all(np.allclose(a, b, rtol=1e-12) for a, b in zip(found, true, strict=True))
    assert "W1" not in made.source.split("def backward")[1].replace("dW1", "")
    with pytest.raises(TypeError, match="only tensors that require no gradient"):
        ag.write_backward(np.tanh, [ag.tensor(x)])


def recurrent(x, h0, W, U):
    N, T, _ = x.shape
    h = np.zeros((N, T, h0.shape[1]))
    prev = h0
    for t in range(T):
        prev = np.tanh(x[:, t] @ W + prev @ U)
        h[:, t] = prev
    return h


def shifted(x):
    s = x**2
    out = np.zeros_like(x)
    out[1:] += s[:-1]
    out[0] = 2 * s[-1]
    return out * x


def doubled(x):
    y = np.full(x.shape, 2.0)
    y[0] = 0.5 * x[0]
    return x * y


def all_but_one(x, labels):
    d = np.exp(x)
    d[np.arange(len(x)), labels] = 0
    return d.sum() / 3


def one_hot(z, labels):
    N, C = z.shape
    y = np.zeros((N, C))
    y[np.arange(N), labels] = 1
    return -(y * z).sum(axis=1)


def smoothed(z, labels):
    N, C = z.shape
    y = np.full((N, C), 0.1 / C)
    y[np.arange(N), labels] += 0.9
    return -(y * z).sum(axis=1)


@pytest.mark.parametrize(
    ("function", "inputs", "line"),
    [
        (recurrent, arrays((2, 3, 4), (2, 5), (4, 5), (5, 5)), "h[:, 2] = prev\n"),
        (shifted, arrays((4, 3)), "out[1:] = s[:-1]\n"),
        (doubled, arrays((4, 3)), "y = np.full(x.shape, 2.0)\n"),
        (all_but_one, (*arrays((3, 4)), np.array([0, 3, 1])), "de = np.full(e.shape, dd)\n"),
        (one_hot, (*arrays((6, 4)), np.array([0, 3, 1, 1, 2, 0])), "y[np.arange(N), labels] = 1\n"),
        (smoothed, (*arrays((6, 4)), np.array([0, 3, 1, 1, 2, 0])), "y = np.full(z.shape, 0.1 / C)\n"),
    ],
)
def test_arrays_that_are_filled_are_filled_in_the_text(function, inputs, line):
    made = ag.write_backward(function, inputs)
    assert line in made.source
    assert np.allclose(made.forward(*inputs)[0], function(*inputs), rtol=1e-12)
    assert ag.check_backward(made.forward, made.backward, inputs).ok


def gate(x, h, W):
    return np.tanh(np.concatenate([x, h], axis=1) @ W) * h


def gates(x, h, W):
    H = h.shape[1]
    a = np.concatenate([x, h], axis=1) @ W
    return np.tanh(a[:, :H]) * a[:, H : 2 * H] + h * a[:, 2 * H :]


@pytest.mark.parametrize(("function", "count"), [(gate, 1), (gates, 3)])
@pytest.mark.parametrize(("D", "H"), [(4, 2), (3, 3), (2, 5)])
def test_lengths_that_add_up_do_not_follow_one_another(function, count, D, H):
    made = ag.write_backward(function, arrays((3, D), (3, H), (D + H, count * H)))
    for D2, H2 in ((7, 4), (2, 4), (3, 3)):
        assert_right(made, function, arrays((2, D2), (2, H2), (D2 + H2, count * H2)))


def test_lengths_of_many_axes_stay_small():
    inputs, sizes = WRITTEN["convolution"][1], []

    def forward(x, w, b):
        sizes.append(x.size)
        return convolution(x, w, b)

    ag.write_backward(forward, inputs)
    assert max(sizes) < 200 * inputs[0].size


def test_numbers_of_a_signature_do_not_follow_one_another():
    def scaled(x, k=2.0, alpha=0.5):
        return (k + alpha * x) * x

    made = ag.write_backward(scaled, arrays((4, 3)))
    assert "k + alpha * x" in made.source
    x = arrays((4, 3))[0]
    assert np.allclose(made.forward(x, alpha=3.0)[0], scaled(x, alpha=3.0))
    with pytest.raises(ValueError, match=r"written for lam == 0\.0"):  # of which nothing shows at the inputs
        ag.write_backward(ridge, [x]).forward(x, lam=3.0)


def focal(z, t, gamma=2.0):
    p = np.where(t == 1, 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z)))
    return -((1 - p) ** gamma * np.log(p)).mean()


def mean_embedding(E, ids):
    return E[ids].mean(axis=1)


def patches(x, w):
    _, H, W = x.shape
    cols = np.stack([x[:, i : H - 1 + i, j : W - 1 + j] for i in range(2) for j in range(2)], axis=-1)
    return cols @ w


def grouped(x, gamma, G):
    N, C, H, W = x.shape
    flat = x.reshape(N * G, -1).T
    xhat = (flat - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-5)
    return gamma * xhat.T.reshape(N, C, H, W)


def contrastive(a, b, same):
    d = np.sqrt(((a - b) ** 2).sum(axis=1))
    return (same * d**2 + (1 - same) * np.maximum(1 - d, 0) ** 2).mean()


def squeezed(x):
    return np.squeeze(x.sum(axis=1, keepdims=True), 1) * x[:, 0]


def ridge(x, lam=0.0):
    return x**2 + lam * x


def rectified(x):
    y = x.copy()
    y[y < 0] = 0
    return y * x


def pairs_of_rows(x):
    n = len(x)
    m = n * (n - 1)
    return x.sum(axis=0) / m


def momentum(x, m=0.9, p=0.5):
    return (m * x + (1 - m) * x**2) / (1 - p)


def upper_half(x):
    return (x[: (len(x) + 1) // 2] ** 2).sum(axis=0) + x[: len(x) // 2].sum(axis=0)


def every_other(x):  # the last row is among them for odd lengths alone
    return x[::2].sum(axis=0) * x[-1]


def in_thirds(x):
    a, b, c = np.split(x, 3, axis=1)
    return a * b + c


def causal(x):
    s = np.where(np.tril(np.ones((len(x), len(x)))) == 0, -np.inf, x)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(x, W):
    _, T, D = x.shape
    s = (x @ W) @ x.swapaxes(-1, -2) / np.sqrt(D)
    s = np.where(np.triu(np.ones((T, T)), k=1).astype(bool), -1e9, s)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True) @ x


def running_mean(x, w):
    return np.cumsum(x * w[:, None], axis=0) / np.arange(1, len(x) + 1)[:, None]


def of_labels_kept(x, labels):
    kept = labels > 0
    x, labels = x[kept], labels[kept]
    return x[np.arange(len(labels)), labels].mean()


def nearby(q, k):
    n, d = q.shape
    i = np.arange(n)
    s = np.where(np.abs(i[:, None] - i) <= 1, q @ k.T / np.sqrt(d), -np.inf)
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def encoded(x):
    T, D = x.shape
    return x * np.sin(np.arange(T)[:, None] / 10000 ** (np.arange(D) / D))


def ridge_regression(X, y):
    return np.linalg.solve(X.T @ X + 0.1 * np.eye(X.shape[1]), X.T @ y)


def one_hot(z, labels):
    t = np.zeros_like(z)
    t[range(len(labels)), labels] = 1
    return ((np.tanh(z) - t) ** 2).sum()


def joined(a, b):
    return np.tanh(np.concatenate([a, b, a * a], axis=1)).sum(axis=1)


def by_columns(x):
    return sum([(i + 1) * x[:, i] ** 2 for i in np.arange(3)])


def clipped_policy(p, old, gain):
    return -np.minimum(p / old * gain, np.clip(p / old, 0.8, 1.2) * gain).mean()


def huber_loss(x, t):
    err = x - t
    return np.where(np.abs(err) < 1, 0.5 * err**2, np.abs(err) - 0.5).mean()


def two_limits(x):
    return np.where(x > 0.3, x, 0.1 * x) * (x > 0)


def mean_of_sorted(x):
    return np.sort(x, axis=1).mean(axis=0) + np.roll(x, 1, axis=1).mean(axis=0)


def mean_of_rows(x, w):
    return (x * w).sum(axis=0) / x.shape[0]


def mean_by_label(x, labels):
    total, count = np.zeros((3, x.shape[1])), np.zeros(3)
    np.add.at(total, labels, x)
    np.add.at(count, labels, 1)
    return total / np.maximum(count, 1)[:, None]


def sums_of_neighbours(h, to, start, w):
    out = h.copy()
    np.add.at(out, to, w[:, None] * h[start])
    out[:] = out * h
    return np.add(out, h) ** 2


def of_pairs(x):
    i, j = np.triu_indices(len(x), k=1)
    return ((x[i] - x[j]) ** 2).sum(axis=1)


def masked(x):
    return np.where(np.triu(np.ones(x.shape), k=1).astype(bool), 0, x * x)


FEW, MANY = np.random.default_rng(12).normal(size=(3, 4))[:, :2], np.random.default_rng(5).normal(size=(2, 9))
EDGES = np.array([[0, 2, 2], [3, 0, 1]])
FAR = arrays((4, 9))[0], 2 - arrays((4, 9))[0]


@pytest.mark.parametrize(
    ("function", "inputs", "others"),
    [
        (focal, (*arrays((6,)), np.arange(6) % 2), (*arrays((4,)), np.arange(4) % 3)),  # gamma - 1 is 6 / len(z)
        (mean_embedding, (*arrays((7, 3)), np.eye(2, dtype=int)), (*arrays((5, 2)), np.eye(2, 4, dtype=int))),
        (patches, arrays((2, 4, 5), (4,)), arrays((3, 7, 6), (4,))),  # H - 1 is N + 1
        (grouped, (*arrays((2, 4, 3, 5), (1, 4, 1, 1)), 2), (*arrays((3, 6, 2, 4), (1, 6, 1, 1)), 2)),
        (contrastive, (*FAR, np.arange(4) % 2), (FAR[0], 0.9 * FAR[0], np.arange(4) % 2)),
        (squeezed, arrays((4, 3)), arrays((2, 5))),
        (rectified, arrays((4, 3)), arrays((2, 5))),
        (lambda x: np.linalg.inv(x @ x.T + np.eye(len(x))), arrays((3, 4)), arrays((2, 5))),
        (pairs_of_rows, arrays((4, 3)), arrays((7, 4))),
        (momentum, arrays((4, 3)), arrays((2, 3))),
        (upper_half, arrays((4, 3)), arrays((7, 2))),
        (upper_half, arrays((5, 3)), arrays((4, 2))),
        (every_other, arrays((6, 3)), arrays((7, 2))),
        (in_thirds, arrays((4, 6)), arrays((3, 9))),
        (causal, arrays((4, 4)), arrays((5, 5))),
        (masked, arrays((4, 5)), arrays((3, 2))),
        (attention, arrays((2, 5, 4), (4, 4)), arrays((3, 2, 5), (5, 5))),  # T and D are 5, 10, 17 and 4, 16, 9
        (running_mean, arrays((4, 3), (4,)), arrays((7, 2), (7,))),
        (of_labels_kept, (*arrays((4, 3)), np.array([1, 2, 0, 1])), (*arrays((5, 4)), np.array([0, 0, 3, 1, 2]))),
        (clipped_policy, (np.exp(FEW[0] / 2), np.exp(FEW[1] / 2), FEW[2]), (*np.exp(MANY / 2), MANY[0])),
        (huber_loss, (*np.random.default_rng(24).normal(size=(3, 4))[:2, :2],), (3 * MANY[0], MANY[1])),
        (lambda x, m: x[m].mean(), (*arrays((4,)), np.arange(4) > 1), (*arrays((6,)), np.arange(6) != 4)),
        (lambda a: np.sqrt(a * a) + a, (np.array(0.7),), (np.array(-1.3),)),
        (two_limits, (np.random.default_rng(4).normal(size=3),), (MANY[0],)),
        (mean_of_sorted, arrays((3, 4)), arrays((5, 3))),
        (nearby, arrays((4, 3), (4, 3)), arrays((6, 2), (6, 2))),
        (encoded, arrays((4, 3)), arrays((5, 6))),
        (ridge_regression, arrays((4, 3), (4,)), arrays((6, 2), (6,))),
        (one_hot, (*arrays((4, 3)), np.array([1, 2, 0, 1])), (*arrays((2, 5)), np.array([4, 4]))),
        (joined, arrays((4, 3), (4, 2)), arrays((3, 2), (3, 5))),
        (lambda x: x**2 * (x.shape[1] // 2) ** -0.5, arrays((4, 3)), arrays((2, 8))),  # which is 1 at the inputs
        (lambda a, b: np.concatenate([a, b]).mean(axis=0) ** 2, arrays((4, 3), (2, 3)), arrays((3, 2), (5, 2))),
        (by_columns, arrays((4, 3)), arrays((2, 3))),
        (mean_of_rows, arrays((1, 3), (3,)), arrays((5, 4), (4,))),
        (mean_by_label, (*arrays((4, 3)), np.array([1, 2, 0, 1])), (*arrays((2, 5)), np.array([2, 2]))),
        (sums_of_neighbours, (*arrays((4, 3)), *EDGES, *arrays((3,))), (*arrays((2, 5)), *(EDGES % 2), *arrays((3,)))),
        (of_pairs, arrays((4, 3)), arrays((6, 2))),
        (lambda x: np.tril(x @ x.T, -1) + np.triu(x @ x.T), arrays((4, 3)), arrays((6, 2))),
        (np.cross, arrays((3,), (3,)), (np.arange(3.0), np.ones(3))),
        (lambda a, b: np.log(a) * np.sqrt(b**2), (FAR[0] ** 2, FAR[0] ** 2), (FAR[0] ** 2, FAR[1])),
        (lambda x: x * (x > 0).T, arrays((4, 4)), arrays((3, 3))),
        (lambda x: np.trace(np.linalg.inv(x + 4 * np.eye(len(x)))) * np.diag(x), arrays((3, 3)), arrays((4, 4))),
        (lambda x: np.linalg.slogdet(x)[1] * x, arrays((3, 3)), arrays((4, 4))),
        (lambda x, dy: np.exp(x) * dy + dy, arrays((4, 3), (4, 3)), arrays((2, 3), (2, 3))),
        (lambda x: x * np.roll(x, 1, axis=1), arrays((4, 3)), arrays((2, 5))),
        (lambda x, w: np.tile(x, (1, 2)) @ w, arrays((4, 3), (6, 2)), arrays((2, 5), (10, 3))),
        (lambda x, w: np.repeat(x, 2, axis=1) @ w, arrays((4, 3), (6, 2)), arrays((2, 5), (10, 3))),
        (
            lambda x, i: np.take(x, i, axis=0) ** 2,
            (*arrays((4, 3)), np.array([0, 2, 2])),
            (*arrays((5, 2)), np.ones(4, int)),
        ),
        (lambda x, w: x.repeat(2, axis=1) @ w, arrays((4, 3), (6, 2)), arrays((2, 5), (10, 3))),
        (lambda x, w: x.take([0, 2], axis=1) @ w, arrays((4, 3), (2, 2)), arrays((5, 6), (2, 3))),
        (lambda x, w: np.sort(x, axis=1) @ w, arrays((4, 3), (3, 2)), arrays((2, 5), (5, 3))),
        (ag.nn.cross_entropy, (*arrays((6, 4)), np.array([0, 3, 1, 1, 2, 0])), (*arrays((2, 5)), np.array([4, 1]))),
    ],
)
def test_what_agrees_by_chance_at_the_inputs_is_right_at_others(function, inputs, others):
    made = ag.write_backward(function, inputs)
    if function.__module__ == __name__:  # else its own source stands above
        assert_readable(made.source)
    for values in (inputs, others):
        assert_right(made, function, values, rtol=1e-10)


def test_labels_do_not_follow_a_length_that_is_theirs_by_chance():
    def bag(E, ids):
        return E[ids].sum(axis=1)

    made = ag.write_backward(bag, (*arrays((7, 3)), np.array([[0, 2], [2, 6], [1, 1]])))  # 3 rows, 3 columns
    assert_right(made, bag, (*arrays((9, 4)), np.array([[8, 0, 1], [3, 3, 2]])))


def test_halves_are_written_for_even_lengths():
    def gated(x, b):
        half = x.shape[-1] // 2
        return (x + b)[..., :half] * np.tanh((x + b)[..., half:])

    made = ag.write_backward(gated, arrays((3, 4), (4,)))
    for inputs in (arrays((5, 2), (2,)), arrays((5, 10), (10,))):
        assert_right(made, gated, inputs)
    with pytest.raises(ValueError, match=r"written for even x\.shape\[1\]"):  # of 3, one broadcasts to two
        made.forward(*arrays((5, 3), (3,)))


def test_of_two_that_are_equal_one_has_the_gradient():
    def least(a, b):
        return np.minimum(a, b) + 3 * np.maximum(2 * a, a + b)

    (a,) = arrays((4, 3))
    made = ag.write_backward(least, [a, a[::-1]])
    da, db = made.backward(np.ones(a.shape), made.forward(a, a)[1])
    assert np.allclose(da + db, 7)


def test_a_gradient_that_is_0_by_broadcasting_alone_is_declined():
    def cosine(a, b):
        return (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))

    with pytest.raises(ValueError, match="the gradient of b is 0"):
        ag.write_backward(cosine, arrays((5, 4), (5, 1)))


def test_what_counts_axes_from_the_end_is_right_for_more_axes():
    text = {}
    exec(ag.write_backward(layer_norm, NORM).source, text)
    x, gamma, beta = arrays((2, 5, 4), (4,), (4,))
    dy = np.random.default_rng(0).normal(size=x.shape)
    dx, *_ = text["backward"](dy, text["forward"](x, gamma, beta)[1])
    leaf = ag.tensor(x, requires_grad=True)
    assert np.allclose(dx, ag.grad([layer_norm(leaf, gamma, beta)], [leaf], [dy])[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("function", "shapes", "others"),
    [
        (lambda x, w: x * w, [(5, 1), (5, 3)], [(5, 3), (5, 3)]),
        (lambda x, w: x * w, [(5, 3), (5, 3)], [(5, 3), (1, 3)]),
        (lambda x, w: x * w, [(5, 3), (3,)], [(5, 3), (1,)]),
        (lambda x, w: x * w, [(5, 3), (3,)], [(5, 3), (1, 3)]),
        (paper, [(6, 4), (4,), (4,)], [(2, 6, 4), (4,), (4,)]),
    ],
)
def test_inputs_that_broadcast_otherwise_are_refused(function, shapes, others):
    made = ag.write_backward(function, arrays(*shapes))
    with pytest.raises(ValueError, match="broadcast otherwise"):
        made.forward(*arrays(*others))


def test_one_row_is_written_for_many():
    def layer(x, w):
        return np.tanh(x @ w)

    assert_right(ag.write_backward(layer, arrays((1, 4), (4, 3))), layer, arrays((5, 4), (4, 3)))


def test_like_terms_are_one_term():
    made = ag.write_backward(lambda x, w: 4 * (x * w) + x**2 + (x * w), arrays((4, 3), (4, 3)))
    assert "5 * dy * " in made.source
    assert_right(made, lambda x, w: 5 * x * w + x**2, arrays((2, 5), (2, 5)))


def test_an_input_that_forward_sets_elements_of_has_the_gradient_of_what_it_was():
    def rectified_in_place(x):
        x[x < 0] = 0
        return x * x

    made = ag.write_backward(rectified_in_place, arrays((4, 3)))
    assert_right(made, rectified, arrays((2, 5)))


def test_a_reciprocal_that_forward_reads_is_multiplied_by():
    def two(x, w, v):
        return 1 / (1 + np.exp(-(x @ w))) @ v

    made = ag.write_backward(two, arrays((4, 3), (3, 5), (5, 2)))
    assert "* ratio * (1 - ratio)" in made.source
    assert "pre" not in made.source


def test_a_course_that_shorter_inputs_take_is_not_written_for_them():
    made = ag.write_backward(lambda x: x.mean(axis=0) if len(x) > x.shape[1] else x.sum(axis=0), arrays((4, 3)))
    with pytest.raises(ValueError, match="written for"):
        made.forward(np.ones((3, 3)))


def long_ones_are_summed(x):
    n = len(x)
    return (x / n if n < 50 else x).sum(axis=0)


def long_ones_count_twice(x):
    return (2 if _is_long(x) else 1) * x**2


def _is_long(x):
    return len(x) > 50


def kept(x, rate=0.5):
    keep = 1 - rate
    return x * keep if keep > 0.1 else x**2


def capped(x, k=2.0):
    return min(k, 5.0) * x**2


@pytest.mark.parametrize(
    ("function", "rows", "options"),
    [(long_ones_are_summed, 60, {}), (kept, 4, {"rate": 0.95}), (capped, 4, {"k": 7.0})],
)
def test_a_course_that_no_input_near_takes_is_not_written_for_it(function, rows, options):
    made = ag.write_backward(function, arrays((4, 3)))
    with pytest.raises(ValueError, match="written for"):
        made.forward(np.ones((rows, 3)), **options)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / max(len(x) - 1, 1),
        lambda x: x / len(x) if len(x) >= 2 else 5 * x,
        lambda x: np.squeeze(x**2),
    ],
)
def test_a_length_of_1_for_which_it_does_not_hold_is_refused(function):
    made = ag.write_backward(function, arrays((4, 3)))
    assert_right(made, function, arrays((2, 3)))
    with pytest.raises(ValueError, match=r"written for len\(x\) > 1"):
        made.forward(*arrays((1, 3)))


def test_a_number_that_follows_no_length_but_a_branch_is_declined():
    with pytest.raises(ValueError, match="a number that is 1 and 2 at different inputs"):
        ag.write_backward(long_ones_count_twice, arrays((4, 3)))


def test_a_scalar_input_is_an_input():
    made = ag.write_backward(lambda s, x: s * x**2, (np.array(3.0), *arrays((4, 3))), names=["s", "x"])
    (x,) = arrays((4, 3))
    ds, dx = made.backward(np.ones((4, 3)), made.forward(np.array(3.0), x)[1])
    assert np.isclose(ds, (x**2).sum())
    assert np.allclose(dx, 6 * x)


def test_an_operation_without_a_numpy_spelling_brings_its_source():
    def cubed(x):
        return cube(2 * x).sum(axis=0)

    made = ag.write_backward(cubed, arrays((4, 3)))
    assert "def cube(x, /):\n    return x * x * x\n" in made.source
    assert_right(made, cubed, arrays((4, 3)))
    with pytest.raises(ValueError, match="hidden has no source"):
        ag.write_backward(lambda x: hidden(x), arrays((4, 3)))


@pytest.mark.parametrize("function", [ag.logsumexp, ag.softmax, ag.log_softmax])
@pytest.mark.parametrize("options", [{}, {"axis": 0}, {"axis": -1}])
def test_a_helper_is_called_with_the_axis_that_was_meant(function, options):
    def forward(x):
        return 2 * function(x, **options)

    assert_right(ag.write_backward(forward, arrays((4, 3))), forward, arrays((4, 3)))


@ag.primitive(lambda g, x: g * 3 * x**2)
def cube(x, /):
    return x * x * x


SPACE = {"primitive": ag.primitive}
exec("@primitive(lambda g: 2 * g)\ndef hidden(x, /):\n    return 2 * x\n", SPACE)
hidden = SPACE["hidden"]


def branching(x):
    return x * 2 if (x > 0).any() else x * 3


def through_a_view(x):
    y = 2 * x
    row = y[0]
    row[1] = 3.0
    return y * y


def through_a_view_of_few(x):  # of none at the inputs
    columns = x.T
    columns[columns > 50] = 0
    return x * x


def of_a_row(x):
    y = 2 * x
    row = y[0]
    row[row > 50] = 0
    return y


def by_classes(x, labels):
    return x / (int(labels.max()) + 1)


def up_to_a_label(x, labels):
    return x[: labels[0]].sum(axis=0) * range(9)[labels[1]]


def by_distinct_labels(x, labels):
    return x / len(np.unique(labels))


def row_of_a_label(x, labels):
    return 2 * x[labels[0]]


def each_by_its_label(x, labels):
    return sum([np.exp(x[i, label]) for i, label in enumerate(labels)])


def as_often_as_printed(x, labels):
    return x * str(labels).count("2")


def row_of_the_largest(x):
    return x[np.argmax(x[:, 0])]


def of_those_kept(x, labels):
    return x[labels >= 0].mean()


def noisy(x):
    noise = np.random.standard_normal(x.shape)  # noqa: NPY002
    return x + 0.1 * noise


def partly(x):
    mask = x > -50
    mask[0] = False
    return x * mask


def detached(x):
    return ag.tensor(np.exp(x.data)) * 2


def as_often_as_data_say(x, w):
    for _ in range(int(abs(x[0, 0]) * 10) % 3 + 1):
        x = x @ w
    return x


def many_times(x):
    for _ in range(400):
        x = np.tanh(x)
    return x


@pytest.mark.parametrize(
    ("function", "inputs", "error", "words"),
    [
        (through_a_view, arrays((3, 2)), ValueError, "sets elements of a view"),
        (through_a_view_of_few, arrays((3, 2)), ValueError, "sets elements of a view"),
        (of_a_row, arrays((3, 2)), ValueError, "sets elements of a view"),
        (partly, arrays((3, 2)), ValueError, "that no gradient goes through in line .* of partly"),
        (by_classes, (*arrays((3, 2)), np.array([0, 1, 2])), ValueError, "makes a number of data in line"),
        (up_to_a_label, (*arrays((3, 2)), np.array([2, 1])), ValueError, "makes a number of data in line"),
        (by_distinct_labels, (*arrays((3, 3)), np.array([0, 1, 2])), ValueError, "2 and 3 at different inputs"),
        (row_of_a_label, (*arrays((3, 3)), np.array([2, 1, 0])), ValueError, "makes a number of data in line"),
        (each_by_its_label, (*arrays((3, 3)), np.array([2, 1, 0])), ValueError, "makes a number of data in line"),
        (as_often_as_printed, (*arrays((3, 3)), np.array([2, 1, 0])), ValueError, "0 and 1 at different inputs"),
        (row_of_the_largest, arrays((4, 3)), ValueError, "makes a number of data in line"),
        (of_those_kept, (*arrays((4, 3)), np.array([0, 1, 2, 1])), ValueError, "picks by a mask that is true of all"),
        (noisy, arrays((4, 3)), ValueError, "comes from no input, as noise does: pass"),
        (branching, arrays((3, 2)), ValueError, "branches on data in line .* of branching"),
        (detached, arrays((3, 2)), ValueError, "leaves the tensors"),
        (as_often_as_data_say, (np.full((4, 3), 0.6), np.eye(3)), ValueError, "makes a number of data in line .* of"),
        (lambda x: 2 * x if x[0, 0] + 5 else x, arrays((3, 2)), ValueError, "branches on data in line .* of <lam"),
        (lambda x: x[:, : 1 + (x[0, 0].item() > 9)], arrays((3, 2)), ValueError, "makes a number of data"),
        (lambda x: np.convolve(x, x), arrays((3,)), ValueError, "in line .* of <lambda>: .*np.convolve has no rule"),
        (lambda x: np.sign(x).sum(axis=0), arrays((3, 2)), ValueError, "signs, comparisons or counts"),
        (lambda x: x * np.random.random(x.shape), arrays((3, 2)), ValueError, "comes from no input"),  # noqa: NPY002
        (ag.erf, arrays((3, 2)), ValueError, "erf is no function of NumPy's"),
        (many_times, arrays((3, 2)), ValueError, "more than 600 operations"),
        (lambda x: x, 3.0, TypeError, "inputs is a float"),
        (lambda x: x, (np.arange(3),), TypeError, "no array of floats"),
        (4, arrays((3,)), TypeError, "f is a int"),
    ],
)
def test_what_can_not_be_written_is_declined(function, inputs, error, words):
    with pytest.raises(error, match=words):
        ag.write_backward(function, inputs)


def test_none_is_written_for_none_alone():
    made = ag.write_backward(lambda x, mask: x if mask is None else x * mask, [*arrays((4, 3)), None])
    with pytest.raises(ValueError, match="written for mask is None"):
        made.forward(*arrays((4, 3)), np.array(3.0))


def test_options_that_forward_asked_for_in_vain_are_refused_later():
    def dropped(x, mask, options):
        options["passes"] = options.get("passes", 0) + 1
        return x * mask / options["p"] if "p" in options else 2 * x * mask

    (x,) = arrays((4, 3))
    made = ag.write_backward(dropped, [x, x > 0, {"mode": "train"}])
    assert made.forward(x, x > 0, {"mode": "train", "passes": 3, "name": "a"})[0].shape == x.shape
    with pytest.raises(ValueError, match=r"written for options\['mode'\] == 'train' and no 'p' in options"):
        made.forward(x, x > 0, {"mode": "train", "p": 0.1})


def test_numbers_in_a_dict_of_options_are_read_from_it():
    def leaky(x, options):
        slope, skip = options.get("slope", 0.1), options["skip"]
        options.setdefault("gain", 2.0)
        return options["gain"] * np.where(x > 0, x, slope * x) * (1 - options["rate"]) + (x if skip > 0.5 else 0)

    (x,) = arrays((4, 3))
    made = ag.write_backward(leaky, [x, {"rate": 0.3, "skip": 0.0}])
    assert '    slope = options.get("slope", 0.1)\n' in made.source
    for options in ({"rate": 0.3}, {"rate": 0.6, "slope": 0.2, "gain": 1.5}):
        y, cache = made.forward(x, options | {"skip": 0.0})
        assert np.allclose(y, leaky(x, options | {"skip": 0.0}), rtol=1e-12)
        true = options.get("gain", 2.0) * np.where(x > 0, 1, options.get("slope", 0.1)) * (1 - options["rate"])
        assert np.allclose(made.backward(np.ones(y.shape), cache), true, rtol=1e-12)
    with pytest.raises(ValueError, match=r"written for options\['skip'\] == 0.0"):  # by which forward branches
        made.forward(x, {"rate": 0.3, "skip": 1.0})


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.where(x > 0, x, 0.01 * x),
        lambda x: np.where(x < 0, 2 * np.exp(x), 5 * x),
        lambda x: np.where(x >= 0, x, np.exp(x) - 1),
        lambda x: np.where(x == 0, 1, x) ** 2,
        lambda x: x * (x > 0) + 3 * x * (x <= 0),
    ],
)
def test_what_an_author_says_of_a_tie_holds_there(function):
    made = ag.write_backward(function, arrays((4, 3)))
    assert_right(made, function, [np.array([[0.0, 1.0, -1.0], [0.0, 0.0, 2.0]])])


def of_channels(x, gamma):
    N, _, H, W = x.shape
    mean = x.sum(axis=(0, 2, 3)) / (N * H * W)
    std = np.sqrt(x.var(axis=(0, 2, 3)) + 1e-5)
    xhat = (x - mean[None, :, None, None]) / std[None, :, None, None]
    return gamma[None, :, None, None] * xhat


def steps_of_one_layer(x, h, W, b):
    for t in range(3):
        h = np.tanh(x[t] + h @ W + b)
    return h


def cell(x, c):
    c = c * x + x
    return np.tanh(c), c, None


def heads(x, W):
    N, T, D = x.shape
    k = (x @ W).reshape(N, T, 2, D // 2).transpose(0, 2, 1, 3)
    return np.tanh((k * k).transpose(0, 2, 1, 3).reshape(N, T, D) @ W)


def with_half(x, k=3.0):
    k = k / 2
    return k * x**2


def squared_layer(x, w):
    y = x @ w
    return y * y


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def next_state(x, prev_c, w):
    next_c = np.tanh(prev_c @ w + x)
    return next_c * x, next_c


def two_moments(x):
    mean = x.mean(axis=0)
    return mean, (x - mean).T @ (x - mean)


def loss_and_what_it_keeps(x):
    e = np.exp(x)
    return (x - np.log(e.sum(axis=1, keepdims=True))).sum(), e / e.sum(axis=1, keepdims=True)


def attended(x, w):
    t = np.tanh(x @ w)
    context = t @ w.T
    return context, t


def leapfrog(q, p):
    p = p - 0.1 * np.sin(q)
    q = q + 0.2 * p
    return q, p - 0.1 * np.sin(q)


def with_neighbours(A, x):
    A_hat = A + np.eye(len(A))
    return A_hat @ (A_hat @ x)


def strided(x, stride=2):
    part = x[::stride]
    n, m = part[:, :2].shape
    return part[:, :m] * part[:, 1:3] / n


def per_total(q, k):
    return q / (q @ k.sum(axis=0))[:, None]


def decayed(w, x, lam=0.1):
    m = len(x)
    return (x @ w).sum() / m + lam / (2 * m) * (w**2).sum()


def rooted(x, p=3.0):
    return (np.abs(x) ** p).sum(axis=1) ** (1 / p)


def tempered(x, T=2.0):
    return T * T * np.exp(x / T)


def between(table, x):
    low = np.floor(x).astype(int)
    return table[low] * (low + 1 - x) + table[low + 1] * (x - low)


@pytest.mark.parametrize(
    ("function", "inputs", "line"),
    [
        (next_state, arrays((5, 4), (5, 4), (4, 4)), "def backward(dy1, dnext_c, cache):"),
        (two_moments, arrays((5, 4)), "def backward(dmean, dy2, cache):"),
        (loss_and_what_it_keeps, arrays((5, 4)), "def backward(dy, cache):"),
        (attended, arrays((5, 4), (4, 3)), "return context, cache\n"),
        (leapfrog, arrays((4,), (4,)), "return dq, dp\n"),
        (with_neighbours, (np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]]), *arrays((3, 2))), "A_hat.T @ "),
        (per_total, arrays((5, 4), (6, 4)), "dk = -np.broadcast_to((q.T @ g).T, k.shape)"),
        (decayed, arrays((4,), (5, 4)), "0.5 * lam / m * (w**2).sum(), cache\n"),
        (rooted, arrays((5, 4)), "total ** (1 / p - 1)"),
        (tempered, arrays((5, 4)), "return T**2 * e, cache\n"),
        (lambda x: x.sum() - len(x) * np.log(2 * np.pi), arrays((5,)), " - np.log(2 * np.pi) * len(x)"),
        (between, (np.arange(6.0) ** 2, np.array([0.2, 4.6, 2.5])), "np.add.at("),
        (lambda x: np.pad(x, 1, mode="edge") ** 2, arrays((3, 2)), "np.pad(x, 1, mode="),
        (lambda x, w: (x @ w) ** 2, arrays((4, 3), (3,)), "dw = x.T @ "),
        (lambda x, w: (x @ w) ** 2, arrays((4, 3), (3,)), "[:, None] * w\n"),
        (lambda x, q: x - (q @ x) * q, arrays((4,), (4,)), "dx = dy - q * total\n"),
        (lambda x: x * np.roll(x, 2, axis=0), arrays((5, 3)), " + np.roll("),
        (
            lambda x: np.log(np.linalg.det(x)),
            (2 * np.eye(3) + 0.1 * np.arange(9.0).reshape(3, 3),),
            "dy * np.linalg.inv",
        ),
        (strided, arrays((6, 3)), "n = len(dy)\n"),  # its other length is the stride by chance
        (lambda x, i: x[:, i], (*arrays((4, 3)), np.array([0, 2, 2])), "np.add.at(dx, np.s_[:, i], dy)\n"),
        (lambda x: np.log(np.exp(x).sum(axis=1, keepdims=True))[:, 0], arrays((4, 3)), "dy[:, None] / "),
        (lambda x: 1.0507009873554805 * x, arrays((4, 3)), "1.0507009873554805 * dy"),
        (lambda x: x + np.log(2 * np.pi), arrays((4, 3)), "x + np.log(2 * np.pi)"),
        (lambda x, y: (x - y) ** 2, arrays((4, 3), (4, 3)), "def backward(dout, cache):"),
        (gelu, arrays((4, 3)), "+ 0.0670725 * np.sqrt(2 / np.pi) * g * x**2 + 0.5 * dy * pre\n"),
        (lambda x: np.diag(x).mean(), arrays((4, 4)), "dx = dy / min(len(x), x.shape[1]) * np.eye(*x.shape)\n"),
        (lambda x: 2 * np.diag(x), arrays((4, 4)), "dx[np.arange(len(dy)), np.arange(len(dy))] = 2 * dy\n"),
        (lambda x, w, b: np.tanh(np.exp(x) @ w + b), arrays((1, 4), (4, 3), (1, 3)), "dw = e.T @ db\n"),
        (lambda x: np.prod(x), arrays((4, 3)), "return (part3 * part2[-1:]).squeeze(), cache\n"),
        (of_channels, arrays((2, 3, 4, 5), (3,)), "    dstd = -(dxhat * xhat).sum(axis=(0, 2, 3)) / std\n"),
        (of_channels, arrays((2, 3, 4, 5), (3,)), "(dmean / (N * H * W))[None, :, None, None]"),
        (steps_of_one_layer, arrays((3, 2, 4), (2, 4), (4, 4), (4,)), "db = (g + g2 + g3).sum(axis=0)\n"),
        (cell, arrays((4, 3), (4, 3)), "c2 = c * x + x\n    t = np.tanh(c2)\n"),
        (cell, arrays((4, 3), (4, 3)), "dc2_2 = dc2 + "),
        (heads, arrays((2, 3, 4), (4, 4)), "g2 = dk.transpose(0, 2, 1, 3).reshape(dy.shape)\n"),
        (with_half, arrays((4, 3)), "return 0.5 * k * x**2, cache\n"),
        (lambda x, mask: -(mask * x) / len(x), (*arrays((4, 3)), arrays((4, 3))[0] > 0), "-1 * mask"),
        (squared_layer, arrays((4, 3), (3, 2)), "def backward(dout, cache):"),  # dy is another's
        (lambda x, t: x * np.ones_like(t, np.float64), (*arrays((4, 3)), np.eye(4, 3, dtype=int)), "np.float64)"),
    ],
)
def test_it_is_written_as_by_hand(function, inputs, line):
    made = ag.write_backward(function, inputs)
    assert line in made.source, made.source
    assert_right(made, function, inputs)


def net_of_dicts(x, params, layers):
    for layer in layers:
        filled = np.zeros((len(x), layer["W"].shape[1]))
        filled[:] = x @ layer["W"] * layer["gain"]
        x = np.tanh(filled)
    return x @ params["out"]["W_out"] + params["out"]["b_out"], params["reg"] * x


def flat_net(x, out, b, reg, W0, gain, W1, other):
    return net_of_dicts(
        x, {"out": {"W_out": out, "b_out": b}, "reg": reg}, [{"W": W0, "gain": gain}, {"W": W1, "gain": other}]
    )


def test_arrays_in_dicts_and_lists_are_inputs_of_their_own():
    x, W0, W1, out, b = arrays((5, 4), (4, 3), (3, 2), (2, 2), (2,))
    layers = [{"W": W0, "gain": 2.0, "name": "first"}, {"W": W1, "gain": 3.0, "name": "second"}]
    made = ag.write_backward(net_of_dicts, (x, {"out": {"W_out": out, "b_out": b}, "reg": 0.3}, layers))
    names = [*inspect.signature(made.forward).parameters]
    assert names == "x W_out b_out reg layers_0_W layers_0_gain layers_1_W layers_1_gain".split()
    x, W0, W1, out, b = arrays((6, 5), (5, 2), (2, 3), (3, 2), (2,))
    assert_right(made, flat_net, (x, out, b, 0.5, W0, 1.5, W1, 2.5))


def test_what_is_declined_by_name_and_form():
    with pytest.raises(ValueError, match="form is 'short'"):
        ag.write_backward(lambda x: x * x, arrays((3,)), form="short")
    with pytest.raises(ValueError, match="names is"):
        ag.write_backward(lambda x: x * x, arrays((3,)), names=["x", "y"])


def test_lengths_that_the_text_has_as_numbers_are_refused():
    case = PAIRS["recurrent/rnn"]
    x, *rest = case.inputs()
    made = ag.write_backward(case.pair[0], (x, *rest))
    with pytest.raises(ValueError, match=r"written for x.shape\[1\] == 4"):
        made.forward(np.concatenate([x, x], axis=1), *rest)
    made.forward(np.concatenate([x, x]), np.concatenate([rest[0]] * 2), *rest[1:])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / np.maximum(np.sqrt((x * x).sum(axis=1, keepdims=True)), 1e-3),
        lambda x: x * (x.sum() > -100),
        lambda x: np.where(x > -50, x * x, 3 * x),
        lambda x: x * (x < 90).astype(float),
        lambda x: np.abs(x + 60) * x,
        lambda x: np.maximum(x - 80, 0) + x,
        lambda x: np.prod(x, axis=0),
    ],
)
def test_a_case_that_is_not_met_at_the_inputs_is_written_too(function):
    (x,) = arrays((4, 3))
    made = ag.write_backward(function, [x])
    for factor in (1, 1e-4, 200, -200):
        assert_right(made, function, [factor * x])


def test_a_wrong_text_would_not_be_handed_out(monkeypatch):
    # Every root is of something larger.
    monkeypatch.setitem(text.FORMS, "sqrt", ("np.sqrt(2 * {})", text.ATOM, (text.PRODUCT,)))
    with pytest.raises(ValueError, match="is not right"):
        ag.write_backward(paper, NORM)


def test_a_derivation_is_a_file_and_shows_itself(tmp_path):
    made = ag.write_backward(two_layers, WRITTEN["two_layers"][1])
    assert made.save(tmp_path / "layers.py").read_text("utf-8") == str(made) == made.source
    shown = html.unescape(re.sub("<[^>]*>", "", made._repr_html_()))
    assert shown == made.source
    assert '<span style="color:#d73a49">def</span>' in made._repr_html_()


if __name__ == "__main__":
    for name, (forward, inputs, form) in WRITTEN.items():
        ag.write_backward(forward, inputs, form=form).save(GOLDEN / f"{name}.txt")


def test_a_derivation_is_not_saved_over_the_code_that_it_was_read_from(tmp_path):
    path = tmp_path / "layer.py"
    path.write_text("import numpy as np\n\n\ndef forward(x):\n    return np.tanh(x)\n", "utf-8")
    space = runpy.run_path(str(path))
    code = ag.write_backward(space["forward"], (np.ones((3, 2)),))
    with pytest.raises(ValueError, match="the file that was read, expected another"):
        code.save(path)
    assert "def backward" not in path.read_text("utf-8")
    assert "def backward" in code.save(tmp_path / "key.py").read_text("utf-8")


def test_an_option_of_any_name_leaves_arrays_that_can_be_filled():
    def forward(x, *, run="all"):
        y = np.zeros(x.shape)
        y[:, 0], y[:, 1:] = x[:, 0] ** 2, np.exp(x[:, 1:])
        return y

    assert "dx[:, 1:] = " in ag.write_backward(forward, [np.arange(6.0).reshape(3, 2) / 6]).source
