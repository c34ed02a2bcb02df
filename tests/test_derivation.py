"""Backward passes written out: right, readable, and declined where none can be written.

`python tests/test_derivation.py` writes the golden files anew; look at the difference before you keep it.
"""

import ast
from pathlib import Path

import numpy as np
import pytest

import autograd_bn as ag
from tests.bench.referee import cases
from tests.test_fusion import SPELLINGS

GOLDEN = Path(__file__).with_name("golden")
PAIRS = {case.title: case for case in cases() if not case.slip}
# Why none is written: the forward pass leaves the tensors, draws a mask, or has no gradient at the inputs.
DECLINED = {
    "batch_norm/loops": "setting an array element with a sequence",
    "other_norms/response": "a view of",
    "losses/bce_logits": "logaddexp",
    "losses/hinge": "elements can't be set",
    "layers/conv": "cuts the graph",
    "layers/conv1d": "np.convolve has no rule",
    "layers/dropout": "no input and is computed from none",
    "kinks/hinge_at_margin": "elements can't be set",
    "kinks/safe_length": "dx is not finite",
}


def engine_gradients(forward, inputs, dys):
    """The engine's gradients of the float inputs."""
    leaves = [ag.tensor(x, requires_grad=True) if np.asarray(x).dtype.kind == "f" else x for x in inputs]
    returned = forward(*leaves)
    outputs = returned[:-1] if isinstance(returned, tuple) else [returned]
    wanted = [leaf for leaf in leaves if isinstance(leaf, ag.Tensor)]
    found = ag.grad(list(outputs), wanted, list(dys), allow_unused=True)
    return [np.zeros(x.shape) if g is None else g for x, g in zip(wanted, found, strict=True)]


def assert_right(derivation, forward, inputs, rtol=1e-12):
    """Outputs and gradients are the engine's, each to so much of its largest entry."""
    *outputs, cache = derivation.forward(*inputs)
    dys = [np.random.default_rng(1).normal(size=np.shape(y)) for y in outputs]
    returned = derivation.backward(*dys, cache)
    returned = returned if isinstance(returned, tuple) else (returned,)
    found = [g for g, x in zip(returned, inputs, strict=False) if np.asarray(x).dtype.kind == "f"]
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
            with pytest.raises((ValueError, TypeError, RuntimeError), match=DECLINED[title]):
                ag.write_backward(forward, case.inputs())
            return
        made = ag.write_backward(forward, case.inputs())
    assert_readable(made.source)
    assert_right(made, forward, case.inputs())
    if case.area != "kinks":
        assert_right(made, forward, case.inputs(seed=3))


def test_most_pairs_are_written():
    assert len(DECLINED) <= 0.16 * len(PAIRS)


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


if __name__ == "__main__":
    for name, (forward, inputs, form) in WRITTEN.items():
        ag.write_backward(forward, inputs, form=form).save(GOLDEN / f"{name}.txt")
