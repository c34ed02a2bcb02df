"""The paths of a gradient, taken from the recorded graph: of any normalisation, by its author's names."""

import numpy as np
import pytest

import autograd_bn as ag

rng = np.random.default_rng(0)
X, G, B = rng.normal(size=(6, 4)) + 1, rng.uniform(0.5, 2, 4), rng.normal(size=4)


def softmax(x):
    z = x - x.max(axis=1, keepdims=True)
    e = np.exp(z)
    s = e.sum(axis=1, keepdims=True)
    return e / s, e / s


def layer(x, gamma, beta):
    mu = x.mean(-1, keepdims=True)
    var = x.var(-1, keepdims=True)
    std = np.sqrt(var + 1e-3)
    xhat = (x - mu) / std
    return gamma * xhat + beta, (xhat, std, gamma)


def layer_backward(dy, cache, mean=1, var=1):
    xhat, std, gamma = cache
    d = dy * gamma
    means = mean * d.mean(-1, keepdims=True) + var * xhat * (d * xhat).mean(-1, keepdims=True)
    return (d - means) / std, (dy * xhat).sum(0), dy.sum(0)


def group(x):
    t = x.reshape(len(x), 2, -1)
    m = t.mean(2, keepdims=True)
    y = (t - m) / np.sqrt(((t - m) ** 2).mean(2, keepdims=True) + 1e-3)
    return y.reshape(x.shape), (y, t.var(2, keepdims=True))


def group_backward(dy, cache, k=1):
    y, v = cache
    d = dy.reshape(y.shape)
    dx = (d - d.mean(2, keepdims=True) - k * y * (d * y).mean(2, keepdims=True)) / np.sqrt(v + 1e-3)
    return dx.reshape(dy.shape)


def rms(x, w):
    r = np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3)
    return w * x / r, (x, w, r)


def rms_backward(dy, cache, power=3):
    x, w, r = cache
    d = dy * w
    return d / r - x * (d * x).mean(-1, keepdims=True) / r**power, (dy * x / r).sum(0)


def weight(v, g):
    norm = np.sqrt((v * v).sum(1, keepdims=True))
    return g * v / norm, (v, g, norm)


def weight_backward(dy, cache, path=1, scaled=True):
    v, g, norm = cache
    d = dy * g if scaled else dy
    return d / norm - path * v * (d * v).sum(1, keepdims=True) / norm**3, (dy * v / norm).sum(1, keepdims=True)


def linear(x, w, b):
    h = x @ w + b
    m, v = h.mean(0), h.var(0)
    inv = 1 / np.sqrt(v + 1e-3)
    return (h - m) * inv, (x, w, (h - m) * inv, inv)


def linear_backward(dy, cache, var=1):
    x, w, xhat, inv = cache
    d = inv * (dy - dy.mean(0) - var * xhat * (dy * xhat).mean(0))
    return d @ w.T, x.T @ d, d.sum(0)


WIDE = rng.normal(size=(3, 4, 5))
PAIRS = {
    "softmax": (softmax, lambda dy, p: p * (dy - (dy * p).sum(1, keepdims=True)), (X,)),
    "layer": (layer, layer_backward, (X, G, B)),
    "group": (group, group_backward, (WIDE,)),
    "rms": (rms, rms_backward, (X, G)),
    "weight": (weight, weight_backward, (X, rng.normal(size=(6, 1)))),
    "linear": (linear, linear_backward, (X, rng.normal(size=(4, 3)), B[:3])),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_right_gradient_passes(name):
    verdict = ag.check_backward(*PAIRS[name])
    assert verdict.ok, str(verdict)


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("name", "backward", "what"),
    [
        ("softmax", lambda dy, p: p * dy, "In dx the path through `s` is missing."),
        ("layer", {"var": 0}, "In dx the path through the variance is missing."),
        ("layer", {"var": -1}, "In dx the path through the variance has the wrong sign."),
        (
            "layer",
            {"mean": 4},
            "In dx the path through the mean is N times too large: a sum stands where a mean belongs.",
        ),
        (
            "layer",
            {"mean": 4, "var": 4},
            "In dx the path through the mean and the path through the variance are N times too large: a sum stands "
            "where a mean belongs.",
        ),
        ("group", {"k": 2}, "In dx the path through the variance is twice what it should be."),
        ("rms", {"power": 2}, "In dx the path through `r` lacks the factor 1 / r."),
        ("weight", {"path": 0}, "In dv the path through `norm` is missing."),
        ("weight", {"scaled": False}, "dv as a whole lacks the factor g."),
        ("linear", {"var": 0}, "In dx and dw the path through the variance is missing."),
    ],
)
def test_a_wrong_path_is_named(name, backward, what):
    forward, right, inputs = PAIRS[name]
    wrong = backward if callable(backward) else lambda dy, cache: right(dy, cache, **backward)
    verdict = ag.check_backward(forward, wrong, inputs)
    assert [finding.what for finding in verdict.diagnosis] == [what]


@pytest.mark.usefixtures("no_search")
def test_the_weights_of_all_paths_are_kept_by_the_names_of_the_statistics():
    verdict = ag.check_backward(softmax, lambda dy, p: p * dy, (X,))
    assert verdict.coefficients["dx"] == pytest.approx({"direct": 1, "s": 0}, abs=1e-12)


@pytest.mark.usefixtures("no_search")
def test_a_mistake_that_no_factor_explains_is_not_blamed_on_a_path():
    verdict = ag.check_backward(layer, lambda dy, cache: (np.sin(dy), *layer_backward(dy, cache)[1:]), (X, G, B))
    assert not verdict.ok
    assert "path" not in verdict.diagnosis[0].what


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("missing", "repair"),
    [
        ({"var": 0}, "Add -xhat * mean(direct * xhat), where direct is the direct path."),
        ({"mean": 0}, "Add -mean(direct), where direct is the direct path."),
        ({"mean": 0, "var": 0}, "Add -mean(direct) and -xhat * mean(direct * xhat), where direct is the direct path."),
    ],
)
def test_a_missing_path_is_written_out(missing, repair):
    verdict = ag.check_backward(layer, lambda dy, cache: layer_backward(dy, cache, **missing), (X, G, B))
    assert [finding.repair for finding in verdict.diagnosis] == [repair]


@pytest.mark.usefixtures("no_search")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "forward",
    [
        lambda x: (x / x.sum(0), None),
        lambda x: (x * (x.mean(0) - 5), None),
        lambda x: (x * 0.0 + x.sum() * 0, None),
        lambda x: (x + 0.0 * x.sum(0), None),
    ],
)
@pytest.mark.parametrize("shape", [(6, 4), (2, 1), (1, 3)])
def test_statistics_that_are_no_variance_are_taken_as_they_are(forward, shape):
    x = np.random.default_rng(1).normal(size=shape)
    assert not ag.check_backward(forward, lambda dy, cache: 3 * dy, (x,)).ok
