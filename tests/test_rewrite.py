"""Recognising batch norm: every spelling is fused, every near miss is refused with its reason."""

import numpy as np
import pytest

import autograd_bn as ag

EPS = 1e-3


def var_of(x, axis=0, **options):
    d = x - x.mean(axis, **options)
    return (d * d).mean(axis, **options)


# Each is batch norm over axis 0 of an (N, C) input: without parameters, or with gamma, or with both.
NORMALISED = {
    "rsqrt": lambda x: (x - x.mean(0)) * ag.rsqrt(x.var(0) + EPS),
    "1 / sqrt": lambda x: (x - x.mean(0)) * (1 / ag.sqrt(x.var(0) + EPS)),
    "divided by the root": lambda x: (x - x.mean(0)) / ag.sqrt(x.var(0) + EPS),
    "power -0.5": lambda x: (x - x.mean(0)) * (x.var(0) + EPS) ** -0.5,
    "divided by power 0.5": lambda x: (x - x.mean(0)) / np.power(x.var(0) + EPS, 0.5),
    "reciprocal": lambda x: np.reciprocal(np.sqrt(x.var(0) + EPS)) * (x - x.mean(0)),
    "root of the reciprocal": lambda x: (x - x.mean(0)) * np.sqrt(1 / (EPS + x.var(0))),
    "numpy": lambda x: np.divide(np.subtract(x, np.mean(x, axis=0)), np.sqrt(np.add(np.var(x, axis=0), EPS))),
    "keepdims": lambda x: (x - x.mean(0, keepdims=True)) / np.sqrt(x.var(0, keepdims=True) + EPS),
    "mixed keepdims": lambda x: (x - x.mean(0)) / np.sqrt(x.var(0, keepdims=True) + EPS),
    "square": lambda x: (x - x.mean(0)) / np.sqrt(np.mean(np.square(x - x.mean(0)), 0) + EPS),
    "** 2": lambda x: (x - x.mean(0)) / np.sqrt(np.mean((x - np.mean(x, 0)) ** 2, 0) + EPS),
    "d * d": lambda x: (x - x.mean(0)) / np.sqrt(var_of(x) + EPS),
    "m - x squared": lambda x: (x - x.mean(0)) / np.sqrt(np.mean((x.mean(0) - x) ** 2, 0) + EPS),
    "sum / n": lambda x: (
        (x - x.sum(0) / len(x)) / np.sqrt(EPS + np.sum((x - np.sum(x, axis=0) / len(x)) ** 2, axis=0) / len(x))
    ),
    "sum * (1 / n)": lambda x: (
        (x - x.sum(0) * (1 / len(x))) * ag.rsqrt(1.0 / len(x) * ((x - 1 / len(x) * x.sum(0)) ** 2).sum(0) + EPS)
    ),
    "squares over n": lambda x: (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2 / len(x)).sum(0) + EPS),
    "variance of the centred": lambda x: (x - x.mean(0)) / np.sqrt((x - x.mean(0)).var(0) + EPS),
    "minus the mean": lambda x: (-x.mean(0) + x) / np.sqrt(x.var(0) + EPS),
    "negated twice": lambda x: -((x.mean(0) - x) / np.sqrt(x.var(0) + EPS)),
    "eps per feature": lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS * np.arange(1, x.shape[1] + 1)),
    "eps as a tensor": lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + ag.tensor(EPS)),
    "eps of shape (1, C)": lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + np.full((1, x.shape[1]), EPS)),
    "broadcast by hand": lambda x: (
        (x - ag.broadcast_to(x.mean(0), x.shape)) / ag.broadcast_to(np.sqrt(x.var(0) + EPS), x.shape)
    ),
    "scale and shift": lambda x: x * ag.rsqrt(x.var(0) + EPS) - x.mean(0) * ag.rsqrt(x.var(0) + EPS),
    "reshaped statistics": lambda x: (x - x.mean(0).reshape(1, -1)) / np.sqrt(x.var(0)[None, :] + EPS),
    "a composed batch_norm": lambda x: ag.batch_norm(x, eps=EPS, form="composed"),
}


def fold(x, gamma, beta):
    scale = gamma * ag.rsqrt(x.var(0) + EPS)
    return x * scale + (beta - x.mean(0) * scale)


SCALED = {
    "last": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * g + b,
    "first": lambda x, g, b: b + g * ((x - x.mean(0)) / np.sqrt(x.var(0) + EPS)),
    "no beta": lambda x, g, b: g * (x - x.mean(0)) / np.sqrt(x.var(0) + EPS),
    "no gamma": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) + b,
    "gamma * r": lambda x, g, b: (x - x.mean(0)) * (g * ag.rsqrt(x.var(0) + EPS)) + b,
    "gamma / root": lambda x, g, b: (g / np.sqrt(x.var(0) + EPS)) * (x - x.mean(0)) + b,
    "folded": fold,
    "reshaped": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * g.reshape(1, -1) + b[None],
    "broadcast": lambda x, g, b: (
        ag.broadcast_to(g, x.shape) * (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) + ag.broadcast_to(b, x.shape)
    ),
    "gamma of one element": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * g[:1] + b,
    "gamma about 1": lambda x, g, b: (x - x.mean(0)) * ((1 + g) * ag.rsqrt(x.var(0) + EPS)) + b,
    "gamma about 1, last": lambda x, g, b: (x - x.mean(0)) * ag.rsqrt(x.var(0) + EPS) * (g + 1) + b,
    "gamma a product": lambda x, g, b: (x - x.mean(0)) * (g * b * ag.rsqrt(x.var(0) + EPS)) + b,
    "gamma a constant": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * np.arange(1.0, x.shape[1] + 1) + b,
    "gamma stopped": lambda x, g, b: (x - x.mean(0)) / np.sqrt(x.var(0) + EPS) * ag.stop_gradient(g) + b,
    "minus": lambda x, g, b: b - g * (x.mean(0) - x) / np.sqrt(x.var(0) + EPS),
}
SPELLINGS = {name: (lambda x, g, b, f=f: f(x)) for name, f in NORMALISED.items()} | SCALED


def inputs(seed=0, shape=(5, 3), dtype="float64"):
    rng = np.random.default_rng(seed)
    x = ag.tensor(rng.normal(1, 2, size=shape).astype(dtype), requires_grad=True, name="x")
    g, b = (ag.tensor(rng.normal(size=shape[-1]).astype(dtype), requires_grad=True, name=n) for n in "gb")
    return x, g, b


def derivatives(y, given, seed=1):
    """The gradients, and the gradients of a random combination of them."""
    rng = np.random.default_rng(seed)
    first = ag.grad(y, given, [rng.normal(size=y.shape)], create_graph=True, allow_unused=True)
    total = sum(((g * rng.normal(size=g.shape)).sum() for g in first if g is not None), 0.0)
    second = ag.grad(total, given, allow_unused=True)
    return [None if g is None else np.asarray(g) for g in (*first, *second)]


def assert_same(before, after, rtol=1e-9):
    for old, new in zip(before, after, strict=True):
        # Where one form has no path at all the other has zeros.
        shape = np.shape(old if new is None else new)
        old, new = (np.zeros(shape) if a is None else a for a in (old, new))
        np.testing.assert_allclose(new, old, rtol=rtol, atol=1e-10)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_is_fused_with_the_same_derivatives_and_expanded_again(name):
    given = inputs()
    y = SPELLINGS[name](*given)
    value, before = y.data.copy(), derivatives(y, given)

    report = ag.fuse(y)
    ops = ag.Graph(y).ops
    assert report.fused == (y.node,)
    assert not report.refused
    assert ops["batch_norm"] == 1
    assert not ops.keys() - {"batch_norm", "reshape", "broadcast_to", "multiply", "add", "getitem", "stop_gradient"}
    assert np.array_equal(y.data, value)
    np.testing.assert_allclose(ag.Graph(y).values()[y.node], value, rtol=1e-12)
    assert_same(before, derivatives(y, given))

    assert ag.expand(y) == (y.node,)
    assert "batch_norm" not in ag.Graph(y).ops
    assert_same(before, derivatives(y, given))
    assert ag.fuse(y).fused == (y.node,)
    assert_same(before, derivatives(y, given))


STOPS = {
    "mean": lambda x: (x - (m := ag.stop_gradient(x.mean(0)))) / np.sqrt(((x - m) ** 2).mean(0) + EPS),
    "var": lambda x: (x - x.mean(0)) / np.sqrt(ag.stop_gradient(x.var(0)) + EPS),
    "var ": lambda x: (x - x.mean(0)) / np.sqrt(ag.stop_gradient(x.var(0) + EPS)),
    " var": lambda x: (x - x.mean(0)) * ag.stop_gradient(ag.rsqrt(x.var(0) + EPS)),
    "mean var": lambda x: (x - ag.stop_gradient(x.mean(0))) / np.sqrt(ag.stop_gradient(x.var(0)) + EPS),
    "mean var ": lambda x: (x - ag.stop_gradient(x).mean(0)) / np.sqrt(ag.stop_gradient(x).var(0) + EPS),
}


@pytest.mark.parametrize("name", STOPS)
def test_stop_gradient_on_the_statistics_becomes_stop(name):
    given = inputs()[:1]
    y = STOPS[name](*given)
    before = derivatives(y, given)
    (node,) = ag.fuse(y).fused
    assert node.params["stop"] == set(name.split())
    assert_same(before, derivatives(y, given))
    ag.expand(y)
    assert_same(before, derivatives(y, given))


def test_one_use_of_the_mean_stopped_is_not_batch_norm():
    (x, _, _) = inputs()
    y = (x - ag.stop_gradient(x.mean(0))) / np.sqrt(x.var(0) + EPS)
    assert "one use of the mean" in ag.fuse(y).refused[0].reason


def refused(f, *more):
    x, g, b = inputs()
    z = ag.tensor(np.random.default_rng(3).normal(size=x.shape), requires_grad=True, name="z")
    y = f(x, z, *(g, b)[: len(more)])
    return y, ag.fuse(y)


NEAR_MISSES = {
    "outside the root": lambda x, z: (x - x.mean(0)) / (np.sqrt(x.var(0)) + EPS),
    "outside the root, to the standard deviation": lambda x, z: (x - x.mean(0)) / (x.std(0) + EPS),
    "unequal axes: the mean is taken over (0,), the variance over (0, 1)": lambda x, z: (
        (x - x.mean(0)) / np.sqrt(x.var() + EPS)
    ),
    "unequal axes": lambda x, z: (x - x.mean()) / np.sqrt(x.var(0) + EPS),
    "the mean is that of another tensor than 'x'": lambda x, z: (x - z.mean(0)) / np.sqrt(x.var(0) + EPS),
    "the variance is that of another tensor than 'x'": lambda x, z: (x - x.mean(0)) / np.sqrt(z.var(0) + EPS),
    "another tensor": lambda x, z: (x - z.mean(0)) / np.sqrt(z.var(0) + EPS),
    "about something else": lambda x, z: (x - x.mean(0)) / np.sqrt(((x - z) ** 2).mean(0) + EPS),
    "unbiased": lambda x, z: (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + EPS),
    "unbiased, the sum of squares over 4": lambda x, z: (
        (x - x.mean(0)) / np.sqrt(((x - x.mean(0)) ** 2).sum(0) / 4 + EPS)
    ),
    "weighted by 0.9999": lambda x, z: (x - x.mean(0)) / np.sqrt(0.9999 * x.var(0) + EPS),
    "one pass": lambda x, z: (x - x.mean(0)) / np.sqrt((x * x).mean(0) - x.mean(0) ** 2 + EPS),
    "one pass,": lambda x, z: (x - (m := x.mean(0))) * ag.rsqrt((x**2).mean(0) - m * m + EPS),
    "no eps": lambda x, z: (x - x.mean(0)) / np.sqrt(x.var(0)),
    "no eps is added": lambda x, z: (x - x.mean(0)) * ag.rsqrt(x.var(0)),
    "without the square root": lambda x, z: (x - x.mean(0)) / (x.var(0) + EPS),
    "not a mean of squared deviations": lambda x, z: (x - x.mean(0)) / np.sqrt((x**2).mean(0) + EPS),
    "no mean is subtracted": lambda x, z: x / np.sqrt(x.var(0) + EPS),
    "eps is -0.001": lambda x, z: (x - x.mean(0)) / np.sqrt(x.var(0) - EPS),
    "eps requires a gradient": lambda x, z: (x - x.mean(0)) / np.sqrt(x.var(0) + z[0] ** 2 * z.sum() ** 2),
    "the mean is not": lambda x, z: (x - np.zeros(3)) / np.sqrt(x.var(0) + EPS),
    "the scale and the shift": lambda x, z: 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + EPS),
    "requires a gradient": lambda x, z: (x - z[0]) / np.sqrt(z[1] ** 2 + EPS),
}
del NEAR_MISSES["eps requires a gradient"], NEAR_MISSES["requires a gradient"]


@pytest.mark.parametrize("reason", NEAR_MISSES)
def test_a_near_miss_is_refused_with_the_reason(reason):
    y, report = refused(NEAR_MISSES[reason])
    before = ag.Graph(y).nodes
    assert not report.fused
    assert [r.node for r in report.refused] == [y.node]
    assert reason in report.refused[0].reason
    assert report.refused[0].reason in str(report)
    assert ag.Graph(y).nodes == before


def test_a_square_batch_with_statistics_laid_along_the_wrong_axis_is_refused():
    x, _, _ = inputs(shape=(3, 3))
    y = (x - x.mean(1)) / np.sqrt(x.var(1) + EPS)
    assert "keepdims" in ag.fuse(y).refused[0].reason


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_an_interior_tensor_that_is_asked_for_refuses_the_whole(which):
    x, g, b = inputs()
    m = x.mean(0)
    d = x - m
    n = d / np.sqrt(x.var(0) + EPS)
    s = n * g
    y = s + b
    interior = (m, d, n, s)[which]
    report = ag.fuse(y, interior)
    assert not report.fused
    assert [r.node for r in report.refused] == [y.node]
    assert "itself asked for" in report.refused[0].reason
    assert ag.fuse(y).fused == (y.node,)


def test_other_consumers_of_the_interior_stay_right():
    given = x, g, b = inputs()
    m = x.mean(0)
    d = x - m
    n = d / np.sqrt(x.var(0) + EPS)
    y = n * g + b
    loss = (y * y).sum() + (m * d).sum() + (n * n * n).sum()
    value, before = loss.item(), derivatives(loss, given)
    report = ag.fuse(loss)
    assert set(report.fused) == {y.node, n.node}
    assert loss.item() == value
    np.testing.assert_allclose(ag.Graph(loss).values()[loss.node], value)
    assert_same(before, derivatives(loss, given))
    assert not ag.fuse(loss).fused


def test_two_affine_maps_of_one_normalised_tensor_are_two_batch_norms():
    given = x, g, b = inputs()
    n = (x - x.mean(0)) / np.sqrt(x.var(0) + EPS)
    y = ag.concatenate([n * g + b, b * n])
    before = derivatives(y, given)
    assert len(ag.fuse(y).fused) == 2
    assert ag.Graph(y).ops == {"concatenate": 1, "batch_norm": 2}
    assert_same(before, derivatives(y, given))
