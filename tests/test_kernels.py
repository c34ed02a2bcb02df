"""The fused node's arithmetic against exact and extended arithmetic on the stored inputs."""

import itertools
import math
import os
import subprocess
import sys
import threading
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

import autograd_bn as ag
from autograd_bn.batch_norm import arithmetic, kernels
from autograd_bn.batch_norm.kernels import numpy, threads, thresholds

EPS = 1e-5
DTYPES = ["float32", "float64"]
THREADS = (1, 2, 5)


# Exact arithmetic: Python's integers, for a few hundred rows.


def parts(value):
    """A float as an integer times a power of two."""
    numerator, denominator = float(value).as_integer_ratio()
    return numerator, denominator.bit_length() - 1


def integers(values):
    """An array of floats as Python integers over one power of two."""
    pairs = [parts(v) for v in values]
    bits = max(b for _, b in pairs)
    return [n << (bits - b) for n, b in pairs], bits


def widened(number, bits):
    """number / 2**bits as a long double."""
    excess = max(0, abs(number).bit_length() - 200)
    number >>= excess
    high = float(number)
    return np.ldexp(np.longdouble(high) + np.longdouble(float(number - int(high))), excess - bits)


def exact(x, gamma, beta, g):
    """y, dx, dgamma, dbeta of one feature: in integers, but for one root that has 300 bits; as long doubles."""
    n = len(x)
    xs, xb = integers(x)
    gs, gb = integers(g)
    total = sum(xs)
    deviations = [n * v - total for v in xs]  # n * 2**xb times too large
    square = sum(d * d for d in deviations)  # n**3 * 4**xb times the variance
    (eps, eb), (gamma, ab), (beta, bb) = parts(EPS), parts(gamma), parts(beta)
    # (var + eps) = numerator / denominator
    denominator = n**3 << (2 * xb + eb)
    numerator = (square << eb) + (eps * n**3 << 2 * xb)
    rb = 300 + max(0, numerator.bit_length() - denominator.bit_length())
    r = math.isqrt((denominator << 2 * rb) // numerator)  # the root's reciprocal, 2**rb times too large
    normal_bits = xb + rb + 64
    normal = [((d * r) << 64) // n for d in deviations]
    y = [v * gamma + (beta << (normal_bits + ab - bb)) for v in normal]
    dgamma = sum(a * b for a, b in zip(gs, normal, strict=True))
    dbeta = sum(gs)
    # n * (g - avg(g)) - normal * sum(g * normal), times gamma * r
    up = 2 * normal_bits
    dx = [gamma * r * (((n * a - dbeta) << up) - v * dgamma) // n for a, v in zip(gs, normal, strict=True)]
    return [
        [widened(v, normal_bits + ab) for v in y],
        [widened(v, gb + up + ab + rb) for v in dx],
        widened(dgamma, gb + normal_bits),
        widened(dbeta, gb),
    ]


# Extended arithmetic, for any number of rows: sums of pairs of floats. T. J. Dekker, "A floating-point technique for
# extending the available precision", 1971.


def two_sum(a, b):
    """a + b rounded, and what that lacks."""
    s = a + b
    t = s - a
    return s, (a - (s - t)) + (b - t)


def two_product(a, b):
    """a * b rounded, and what that lacks."""
    p = a * b
    (a, c), (b, d) = _halves(a), _halves(b)
    return p, ((a * b - p) + a * d + c * b) + c * d


def _halves(a):
    t = a * (2.0**27 + 1)
    high = t - (t - a)
    return high, a - high


def pair_sum(high, low):
    """The sum of pairs along the last axis, which it keeps, as a pair."""
    while (n := high.shape[-1]) > 1:
        half, rest = n // 2, n - n % 2
        s, e = two_sum(high[..., :half], high[..., half:rest])
        low = np.concatenate((low[..., :half] + low[..., half:rest] + e, low[..., rest:]), axis=-1)
        high = np.concatenate((s, high[..., rest:]), axis=-1)
    return two_sum(high, low)


def chunks(*arrays):
    """Arrays of (rows, features), part by part that stays in cache, with the features first."""
    for start in range(0, len(arrays[0]), 4096):
        yield [np.ascontiguousarray(array[start : start + 4096].T) for array in arrays]


class Reference(NamedTuple):
    """What the results must be, in a dtype that is wider than the input's; a column for each of what features have.

    y and dx are computed chunk by chunk, each time anew, so that memory suffices.
    """

    x: Any
    g: Any
    gamma: Any
    beta: Any
    mean: tuple[Any, Any]
    scale: Any
    dgamma: Any
    dbeta: Any
    norms: tuple[Any, Any]  # of the terms of dgamma and of dbeta

    def elements(self, x, g):
        """y and dx of a chunk."""
        n, (high, low), direct = len(self.x), self.mean, self.gamma * self.scale
        centred = (x - high) - low
        return centred * direct + self.beta, ((g - self.dbeta / n) - centred * (self.scale * self.dgamma / n)) * direct


def reference(x, gamma, beta, g):
    """The `Reference` of (rows, features)."""
    n, wide = float(len(x)), np.longdouble if x.dtype == np.float64 else np.float64
    _, exponent = np.frexp(np.abs(x).max(axis=0)[:, None].astype(float))
    unit = np.ldexp(1.0, -exponent)  # no square of x * unit overflows

    def total(terms):
        pairs = [pair_sum(*terms(a * unit, b.astype(float))) for a, b in chunks(x, g)]
        return pair_sum(*(np.concatenate(p, axis=1) for p in zip(*pairs, strict=True)))

    def squares(x, g):
        d, e = two_sum(x, -mean)
        high, low = two_product(d, d)
        return high, low + 2 * d * e

    def products(x, g):
        d, e = two_sum(x, -mean)
        high, low = two_product(g, d)
        return high, low + g * e

    def rounded(pair):
        return np.add(*pair, dtype=wide)

    sums, rest = total(lambda x, g: (x, 0 * x))
    mean = sums / n
    high, low = two_product(mean, n)
    correction = ((sums - high) + (rest - low)) / n
    var = np.ldexp(rounded(total(squares)) / n - correction**2, 2 * exponent)
    dbeta = rounded(total(lambda x, g: (g, 0 * g)))
    scale = 1 / np.sqrt(var + EPS)
    dgamma = np.ldexp(rounded(total(products)) - correction * dbeta, exponent) * scale
    high, low = (np.ldexp(part.astype(wide), exponent) for part in (mean, correction))
    normal = (x.T - high) * scale
    norms = [np.sqrt(np.sum(np.square(terms, dtype=wide), axis=1, keepdims=True)) for terms in (normal * g.T, g.T)]
    return Reference(x, g, *(p[:, None].astype(wide) for p in (gamma, beta)), (high, low), scale, dgamma, dbeta, norms)


def score(results, expected, features=slice(None), beside_terms=False):
    """The largest errors of y, dx, dgamma, dbeta over the ulp of the feature's largest true value.

    `beside_terms`: a sum that cancels has the size of its terms' norm, below which plain doubles can't reach.
    """
    y, dx, *sums = results
    errors, largest = np.zeros((2, 4, *expected.scale.shape), expected.scale.dtype)

    def compare(i, result, true):
        errors[i] = np.maximum(errors[i], np.abs(result - true).max(axis=1, keepdims=True))
        largest[i] = np.maximum(largest[i], np.abs(true).max(axis=1, keepdims=True))

    for x, g, *parts in chunks(expected.x, expected.g, y, dx):
        for i, true in enumerate(expected.elements(x, g)):
            compare(i, parts[i], true)
    for i, (true, norm) in enumerate(zip((expected.dgamma, expected.dbeta), expected.norms, strict=True)):
        compare(2 + i, np.reshape(sums[i], true.shape), true)
        if beside_terms:
            largest[2 + i] = np.maximum(largest[2 + i], norm)
    ulps = np.spacing(largest.astype(expected.x.dtype)).astype(errors.dtype)
    return (errors / ulps)[:, features].max(axis=(1, 2))


# In ulp, of y, dx, dgamma and dbeta: rounding the exact result alone costs half of one; float64 has none wider.
LIMITS = {"float16": np.array([1, 1, 1, 1]), "float32": np.array([1, 1, 1, 1]), "float64": np.array([8, 8, 32, 32])}


def assert_close(results, expected, features=slice(None)):
    """NaN is not close."""
    errors = score(results, expected, features, expected.x.dtype == "float64")
    assert (errors <= LIMITS[str(expected.x.dtype)]).all(), errors


def assert_ulps_apart(results, others, ulps=1):
    """At most so many, of the feature's largest value, for y and dx, and for sums where arithmetic is wider."""
    wide = results[0].dtype != np.float64
    for result, other in zip(results[: None if wide else 2], others, strict=wide):
        limit = ulps if wide else 2 * LIMITS["float64"][0]
        assert (np.abs(result - other) <= limit * np.spacing(np.abs(result).max(axis=0))).all()


def computed(x, gamma, beta, g, axes=None):
    """y, dx, dgamma, dbeta of the fused node; None for the gradient of a parameter that is None."""
    leaves = [None if a is None else ag.as_tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = ag.batch_norm(*leaves, axes=axes, eps=EPS)
    gradients = iter(ag.grad(y, [leaf for leaf in leaves if leaf is not None], g))
    return [y.data, *[None if leaf is None else next(gradients) for leaf in leaves]]


TORTURE = [
    *[f"mean {m}" for m in ("0", "1e2", "1e4", "1e6", "1e8", "1e12")],
    *[f"constant {c}" for c in ("0.1", "100", "-7e9", "123456789.1")],
    *[f"outlier {where}" for where in ("first", "last", "middle")],
    *[f"scale {s}" for s in ("1e-40", "1e-20", "1e18", "1e30", "max")],
    "alternating max",
]


def case(name, dtype, n=600, features=3):
    """x, gamma, beta, g."""
    rng = np.random.default_rng(len(name))
    x = rng.normal(size=(n, features))
    largest = float(np.finfo(dtype).max)
    kind, _, value = name.partition(" ")
    if kind == "mean":
        x += float(value)
    elif kind == "constant":
        x[:] = float(value)
    elif kind == "outlier":
        x[{"first": 0, "last": -1, "middle": n // 2}[value]] = 1e8
    elif kind == "scale":
        x = x / np.abs(x).max() * largest if value == "max" else x * float(value)
    elif kind == "alternating":
        x = np.where(np.arange(n) % 2, largest, -largest)[:, None] * np.ones(features)
    gamma, beta = rng.normal(size=(2, features))
    return [a.astype(dtype) for a in (x, gamma, beta, rng.normal(size=(n, features)))]


@lru_cache(maxsize=1)
def torture(name, dtype, n=600):
    """A case and its reference."""
    arrays = case(name, dtype, n)
    return arrays, reference(*arrays)


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    ag.set_backend(request.param)
    yield request.param
    ag.set_backend(None)
    ag.set_num_threads(None)


def kernel_modules():
    modules = [numpy]
    if find_spec("numba"):
        from autograd_bn.batch_norm.kernels import numba

        modules.append(numba)
    return modules


def lower(monkeypatch, **limits):
    """Other thresholds for one test."""
    for name, limit in limits.items():
        monkeypatch.setattr(thresholds, name, limit)
    kernels.chosen.cache_clear()


@pytest.fixture(autouse=True)
def layouts_of_moved_thresholds_are_forgotten(monkeypatch):
    yield
    monkeypatch.undo()
    lower(monkeypatch)


def cut(monkeypatch):
    """Cut arrays of a few hundred elements into many tiles, and share them among threads."""
    lower(monkeypatch, DIRECT=0, TILE=256, TILE_NUMBA=256, LINE=32, FOLDED=0, SHARED_NUMPY=0, SHARED_NUMBA=0)


@pytest.fixture(params=["small", "cut", "large"])
def n(request, monkeypatch):
    """Rows of three features: too few for threads; as few, but cut into blocks; enough for blocks and threads."""
    if request.param == "cut":
        cut(monkeypatch)
    return 350_003 if request.param == "large" else 600


def sized(names, large):
    """Every name with few rows, some with many."""
    return [*[(n, name) for name in names for n in ("small", "cut")], *[("large", name) for name in large]]


def with_threads(run):
    """What `run` returns with each number of threads."""
    for number in THREADS:
        ag.set_num_threads(number)
        yield run()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
def test_extended_arithmetic_agrees_with_exact_arithmetic(name, dtype):
    (x, gamma, beta, g), extended = torture(name, dtype)
    columns = [exact(x[:, j], gamma[j], beta[j], g[:, j]) for j in range(x.shape[1])]
    assert (score([np.array(part).T for part in zip(*columns, strict=True)], extended) < 0.01).all()


@pytest.mark.parametrize("n", ["cut", "large"], indirect=True)
def test_sizes_meant_for_several_threads_are_shared_by_them(n, backend, monkeypatch):
    shared = []

    def share(work, items):
        shared.append(len(items))
        threads.share(work, items)

    monkeypatch.setattr(arithmetic, "share", share)
    computed(*case("mean 0", "float32", n))
    assert len(shared) >= 4
    assert min(shared) >= 3


LARGE = "mean 1e4", "outlier middle", "alternating max"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "name"), sized(TORTURE, LARGE), indirect=["n"])
def test_torture_set_is_right_to_the_last_bits_with_any_number_of_threads(name, dtype, n, backend):
    arrays, expected = torture(name, dtype, n)
    first, *others = with_threads(lambda: computed(*arrays))
    assert_close(first, expected)
    for other in others:
        assert [a.tobytes() for a in other] == [a.tobytes() for a in first]
    if name.startswith("constant"):
        assert (first[0] == arrays[2]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
@pytest.mark.parametrize("n", ["small", "cut"], indirect=True)
def test_valid_input_gives_no_warning(name, dtype, n, backend):
    arrays, _ = torture(name, dtype, n)
    for state in ("raise", "warn"):  # a thread other than this one has a state of its own
        with np.errstate(all=state):
            list(with_threads(lambda: computed(*arrays)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes"), [((500, 700), None), ((40, 5, 900), (0, 2)), ((30, 8, 5, 60), (0, 3))])
def test_any_number_of_threads_gives_the_same_bits(shape, axes, dtype, backend):
    rng = np.random.default_rng(5)
    x, g = rng.normal(3, 2, size=(2, *shape)).astype(dtype)
    kept = [n for i, n in enumerate(shape) if i not in (axes or (0,))]
    gamma, beta = rng.normal(size=(2, *kept)).astype(dtype)
    one, two, five = ([a.tobytes() for a in r] for r in with_threads(lambda: computed(x, gamma, beta, g, axes)))
    assert one == two == five


SMALL = pytest.mark.parametrize("n", ["small", "cut"], indirect=True)


# The shape of 600 rows, and which axis the features are.
LAYOUTS = {
    "rows": ((600,), 1),
    "columns": ((600,), 0),
    "features last": ((20, 30), 2),
    "channels before many": ((4, 10, 15), 1),
    "channels before few": ((150, 2, 2), 1),
    "channels between": ((2, 30, 10), 2),
}


def as_rows(results, axis):
    """Results with y and dx as (rows, features)."""
    elements = [np.moveaxis(a, axis, -1) for a in results[:2]]
    return [*(a.reshape(-1, a.shape[-1]) for a in elements), *results[2:]]


def every_other(a):
    """`a` as a view with gaps, its first axis backwards."""
    return a[::-1].repeat(2, axis=0).repeat(2, axis=-1)[::-2, ..., ::2]


MEMORY = [
    (np.ascontiguousarray, np.ascontiguousarray),
    (np.asfortranarray, np.asfortranarray),
    (np.ascontiguousarray, np.asfortranarray),
    (every_other, every_other),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("laid", "name"), [(laid, name) for i, laid in enumerate(LAYOUTS) for name in TORTURE[i % 3 :: 3]]
)
@SMALL
def test_any_layout_is_right_to_the_last_bits(laid, name, dtype, n, backend):
    (x, gamma, beta, g), expected = torture(name, dtype)
    rows, axis = LAYOUTS[laid]
    axes = tuple(i for i in range(len(rows) + 1) if i != axis)
    first = None
    for of_x, of_g in MEMORY:
        into = [of(np.moveaxis(a.reshape(*rows, -1), -1, axis)) for of, a in ((of_x, x), (of_g, g))]
        results = as_rows(computed(into[0], gamma, beta, into[1], axes), axis)
        assert_close(results, expected)
        first = first or results
        # An outlier's square has one rounding error, which is another one for another order.
        assert_ulps_apart(results, first, 2 if name.startswith("outlier") else 1)


@pytest.mark.parametrize("mean", ["0", "1e2", "1e4"])
@pytest.mark.parametrize("narrow", ["float16", "float32"])
@SMALL
def test_a_result_wider_than_x_is_as_exact_as_its_dtype(narrow, mean, n, backend):
    x, *others = case(f"mean {mean}", "float64", n)
    x = x.astype(narrow)
    y, dx, *sums = computed(x, *others)
    assert y.dtype == "float64"
    assert dx.dtype == narrow
    expected = reference(x.astype("float64"), *others)
    true = expected.elements(expected.x.T, expected.g.T)[1].T
    assert (np.abs(dx - true) <= np.spacing(np.abs(true).max(axis=0).astype(narrow))).all()
    assert_close([y, true.astype("float64"), *sums], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
@SMALL
def test_shuffled_rows_stay_within_one_ulp(name, dtype, n, backend):
    (x, gamma, beta, g), expected = torture(name, dtype)
    order = np.random.default_rng(1).permutation(n)
    back = np.argsort(order)
    y, dx, *sums = computed(x[order], gamma, beta, g[order])
    shuffled = [y[back], dx[back], *sums]
    assert_close(shuffled, expected)
    assert_ulps_apart(shuffled, computed(x, gamma, beta, g))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
@SMALL
def test_gamma_and_beta_may_be_left_out(name, dtype, n, backend):
    (x, gamma, beta, g), _ = torture(name, dtype)
    for known in ((None, beta), (gamma, None), (None, None)):
        expected = reference(
            x, *(np.full(3, i, dtype) if p is None else p for i, p in ((1, known[0]), (0, known[1]))), g
        )
        results = computed(x, *known, g)
        true = [None, None, expected.dgamma, expected.dbeta]
        assert_close([t if r is None else r for r, t in zip(results, true, strict=True)], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
@SMALL
def test_a_broadcast_gradient_is_right_to_the_last_bits(name, dtype, n, backend):
    (x, gamma, beta, g), _ = torture(name, dtype)
    few = g[:40]
    expected = reference(x, gamma, beta, few.repeat(15, axis=0))
    pooled = np.broadcast_to(few[:, None], (40, 15, 3))
    assert_close(as_rows(computed(x.reshape(pooled.shape), gamma, beta, pooled), 2), expected)
    image = np.ascontiguousarray(np.moveaxis(x.reshape(40, 3, 5, 3), -1, 1))
    pooled = np.broadcast_to(few[..., None, None], image.shape)
    assert_close(as_rows(computed(image, gamma, beta, pooled, (0, 2, 3)), 1), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
@SMALL
def test_a_constant_gradient_cancels_to_the_last_bits_of_its_terms(name, dtype, n, backend):
    (x, gamma, beta, _), expected = torture(name, dtype)
    _, dx, dgamma, _ = computed(x, gamma, beta, np.broadcast_to(np.array(0.3, dtype), x.shape))
    term = np.abs(expected.gamma * expected.scale).ravel().astype(dtype)
    y_limit, _, sum_limit, _ = LIMITS[dtype]
    assert (np.abs(dx) <= y_limit * np.spacing(term)).all()
    assert (np.abs(dgamma) <= sum_limit * np.spacing(np.array(n, dtype))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0, 1e4])
def test_sums_that_cancel_are_right_beside_their_terms(mean, dtype, backend):
    """Some of many sums are far smaller than their terms: the size of such a sum is its terms' norm."""
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(2, 1000, 500))
    x, g, gamma, beta = (a.astype(dtype) for a in (x + mean, g, *rng.normal(size=(2, 500))))
    expected = reference(x, gamma, beta, g)
    sums = computed(x, gamma, beta, g)[2:]
    normal = (x.T - expected.mean[0]) * expected.scale
    for result, true, terms in zip(sums, (expected.dgamma, expected.dbeta), (g.T * normal, g.T), strict=True):
        size = np.maximum(np.abs(true).ravel(), np.sqrt((terms**2).sum(axis=1))).astype(dtype)
        assert (np.abs(result - true.ravel()) <= LIMITS[dtype][2] * np.spacing(size)).all()


# Any shape over any axes in any memory, on both sides of every threshold.


def textbook(x, gamma, beta, g, axes):
    """y, dx, dgamma, dbeta by the definition, in long doubles."""
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    x, gamma, beta, g = (
        a.astype(np.longdouble).reshape(s) for a, s in ((x, x.shape), (gamma, kept), (beta, kept), (g, x.shape))
    )
    centred = x - x.mean(axes, keepdims=True)
    scale = 1 / np.sqrt((centred * centred).mean(axes, keepdims=True) + EPS)
    normal = centred * scale
    dx = gamma * scale * (g - g.mean(axes, keepdims=True) - normal * (g * normal).mean(axes, keepdims=True))
    return gamma * normal + beta, dx, (g * normal).sum(axes), g.sum(axes)


def assert_textbook(arrays, results, expected, terms=1.0):
    bits = np.finfo(arrays[0].dtype).eps
    for result, true in zip(results, expected, strict=True):
        assert result.dtype == arrays[0].dtype
        size = max(1, terms, np.abs(true).max())
        assert (np.abs(result - true.reshape(result.shape)) <= 100 * bits * size).all()


def in_memory(draw, a):
    """`a` with its axes in any order in memory, any of them backwards or with gaps; or repeated along one."""
    order = draw(st.permutations(range(a.ndim)))
    a = np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    for axis in range(a.ndim):
        kind = draw(st.sampled_from(["as it is"] * 4 + ["backwards", "gaps", "repeated"]))
        if kind == "backwards":
            a = np.flip(np.flip(a, axis).copy(order="K"), axis)
        elif kind == "gaps":
            a = np.take(a, np.arange(a.shape[axis]).repeat(2), axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        elif kind == "repeated":
            a = np.broadcast_to(a[(slice(None),) * axis + (slice(1),)], a.shape)
    return a


LOWERED = {
    "DIRECT": (0, 30),
    "COMPILED": (0, 30),
    "TILE": (1, 4, 16, 64),
    "TILE_NUMBA": (1, 4, 16, 64),
    "LINE": (8, 32),
    "FOLDED": (0, 30),
    "PRODUCT": (1, 64, 1 << 13),
    "FEWEST_LINES": (2, 8),
    "SHORTEST_RUN": (1, 4, 32),
    "RUN": (1, 4, 32),
    "SHARED_NUMPY": (0, 30),
    "SHARED_NUMBA": (0, 30),
}


@given(data=st.data())
@settings(max_examples=200)
def test_any_shape_axes_memory_and_dtype_on_both_sides_of_every_threshold(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    axes = tuple(sorted(data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))))
    assume(math.prod(shape[i] for i in axes) > 1)
    dtype = data.draw(st.sampled_from(["float16", "float32", "float64", "longdouble"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x, g = (in_memory(data.draw, a.astype(dtype)) for a in rng.normal(size=(2, *shape)))
    gamma, beta = rng.normal(size=(2, *[n for i, n in enumerate(shape) if i not in axes])).astype(dtype)
    names = ["numpy", "numba", None] if find_spec("numba") else ["numpy"]
    with pytest.MonkeyPatch.context() as patch:
        limits = {name: data.draw(st.sampled_from(limits), name) for name, limits in LOWERED.items()}
        lower(patch, **limits)
        try:
            ag.set_backend(data.draw(st.sampled_from(names)))
            results = computed(x, gamma, beta, g, axes)
        finally:
            ag.set_backend(None)
    slope = np.abs(gamma.astype(float)) / np.sqrt(x.astype(float).var(axes) + 1e-5)
    terms = np.sqrt((g.astype(float) ** 2).sum(axes).max()) * max(1, slope.max())  # of sums that may cancel, and of dx
    assert_textbook((x, gamma, beta, g), results, textbook(x, gamma, beta, g, axes), terms)


@pytest.mark.parametrize("axes", [axes for n in range(1, 5) for axes in itertools.combinations(range(4), n)], ids=str)
def test_all_axes_of_a_small_array(axes, backend):
    shape, rng = (5, 4, 3, 2), np.random.default_rng(0)
    x, g = rng.normal(size=(2, *shape))
    gamma, beta = rng.normal(size=(2, *[n for i, n in enumerate(shape) if i not in axes]))
    assert_textbook((x, gamma, beta, g), computed(x, gamma, beta, g, axes), textbook(x, gamma, beta, g, axes))


def test_every_threshold_of_an_array_is_moved():
    assert {name for name in vars(thresholds) if name.isupper()} - set(LOWERED) == {
        *("SMALLEST_ROOM", "LARGEST_ROOM", "HELD", "ROOMS"),  # of memory, which has tests of its own
    }


SIZES = sorted({getattr(thresholds, name) for name in LOWERED if getattr(thresholds, name) >= 1 << 12})


@pytest.mark.parametrize("shape", [(5000, 32), (3, 40, 40, 8), (1 << 18, 8)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_given_statistics_are_computed_by_every_backend(shape, dtype, backend):
    rng = np.random.default_rng(0)
    x, gamma, beta, mean = (rng.normal(size=n).astype(dtype) for n in (shape, *[shape[-1:]] * 3))
    var = rng.uniform(0.5, 2, shape[-1]).astype(dtype)
    leaf = ag.tensor(x, requires_grad=True)
    y = ag.batch_norm(leaf, gamma, beta, mean=mean, var=var)
    (dx,) = ag.grad(y, leaf, x)
    slope = gamma / np.sqrt(var.astype(float) + 1e-5)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.data, (x.astype(float) - mean) * slope + beta, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(dx, x * slope, rtol=rtol)
    assert (y.dtype, dx.dtype) == (dtype, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [n for size in SIZES for n in (size - 1, size, size + 1)])
def test_all_axes_of_arrays_about_as_large_as_each_threshold(n, dtype, backend):
    x, g = np.random.default_rng(0).normal(size=(2, n)).astype(dtype)
    gamma, beta = np.array(2, dtype), np.array(1, dtype)
    expected = textbook(x, gamma, beta, g, (0,))
    y, dx, *sums = computed(x, gamma, beta, g, 0)
    assert_textbook((x,), (y, dx), expected[:2])
    both = [a.reshape(-1, next(k for k in (7, 5, 3, 2, 1) if n % k == 0)) for a in (x, g)]
    y2, dx2, *sums2 = computed(both[0], gamma, beta, both[1], (0, 1))
    assert [a.tobytes() for a in (y2, dx2, *sums2)] == [a.tobytes() for a in (y, dx, *sums)]


# Which of y, dx, dgamma and dbeta a number that is not finite goes into.
SPOILED = {"x": [0, 1, 2], "gamma": [0, 1], "beta": [0], "g": [1, 2, 3]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", SPOILED)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["mean 1e2", "constant 100"])
@SMALL
def test_a_number_that_is_not_finite_spoils_its_own_feature_alone(bad, where, dtype, name, n, backend):
    arrays, expected = torture(name, dtype)
    arrays = dict(zip(("x", "gamma", "beta", "g"), arrays, strict=True))
    spoiled = arrays[where] = arrays[where].copy()
    spoiled.reshape(-1, 3)[len(spoiled) // 2 if spoiled.ndim > 1 else 0, 1] = bad
    results = computed(**arrays)
    assert_close(results, expected, [0, 2])
    close = score(results, expected, [1], dtype == "float64") <= LIMITS[dtype]
    for i, result in enumerate(results):
        assert close[i] == (i not in SPOILED[where])
        assert np.isfinite(result[..., 1]).any() == close[i]


# Those that are finite.
HALF = [
    *["mean 0", "mean 1e2", "mean 1e4", "constant 0.1", "constant 100"],
    *["scale 1e-40", "scale 1e-20", "scale max", "alternating max"],
]


@pytest.mark.parametrize(("n", "name"), sized(HALF, ["alternating max"]), indirect=["n"])
def test_float16_is_right_to_the_last_bits(name, n, backend):
    arrays, expected = torture(name, "float16", n)
    first, *others = with_threads(lambda: computed(*arrays))
    assert_close(first, expected)
    for other in others:
        assert [a.tobytes() for a in other] == [a.tobytes() for a in first]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_million_rows_are_right_to_the_last_bits(dtype):
    rng = np.random.default_rng(7)
    x, g = (rng.standard_normal((10**6, 2), dtype) for _ in range(2))
    x[:, 1] += 1e4
    gamma, beta = rng.standard_normal((2, 2), dtype)
    expected = reference(x, gamma, beta, g)
    for name in ("numpy", "numba") if find_spec("numba") else ("numpy",):
        ag.set_backend(name)
        results = computed(x, gamma, beta, g)
        ag.set_backend(None)
        assert_close(results, expected)


# NIST's Statistical Reference Datasets, univariate, NumAcc1 to 4: made from their published definitions.
NUMACC = {
    "NumAcc1": (np.array([10000001.0, 10000003.0, 10000002.0]), 10000002, 1),
    "NumAcc2": (np.array([1.2] + [1.1, 1.3] * 500), 1.2, 0.1),
    "NumAcc3": (np.array([1000000.2] + [1000000.1, 1000000.3] * 500), 1000000.2, 0.1),
    "NumAcc4": (np.array([10000000.2] + [10000000.1, 10000000.3] * 500), 10000000.2, 0.1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NUMACC)
@SMALL
def test_nist_sets_are_right_to_the_last_bits(name, dtype, n, backend):
    x = NUMACC[name][0].astype(dtype)[:, None]
    rng = np.random.default_rng(3)
    gamma, beta, g = (rng.normal(size=shape).astype(dtype) for shape in (1, 1, x.shape))
    expected = reference(x, gamma, beta, g)
    for results in with_threads(lambda: computed(x, gamma, beta, g)):
        assert_close(results, expected)


@pytest.mark.parametrize("name", NUMACC)
def test_nist_certified_mean_and_deviation(name, backend):
    x, certified_mean, certified_deviation = NUMACC[name]
    _, mean, var = ag.batch_norm(x[:, None], return_stats=True)
    assert abs(mean.item() - certified_mean) <= np.spacing(certified_mean)
    # The data are stored to the nearest double, which moves the deviation by this much.
    stored = np.spacing(np.abs(x).max()) / certified_deviation
    deviation = math.sqrt(var.item() * len(x) / (len(x) - 1))
    assert abs(deviation / certified_deviation - 1) <= stored + 1e-15


@pytest.mark.parametrize("shape", [(64, 100), (1100, 1000)])
def test_read_only_memory_is_computed_by_the_same_code(shape, backend):
    rng = np.random.default_rng(2)
    arrays = [rng.normal(size=size).astype("float32") for size in (shape, shape[1:], shape[1:], shape)]
    first = computed(*arrays)
    kernels = [f for f in vars(kernel_modules()[-1]).values() if hasattr(f, "signatures")]
    before = [len(f.signatures) for f in kernels]
    for array in arrays:
        array.flags.writeable = False
    assert [a.tobytes() for a in computed(*arrays)] == [a.tobytes() for a in first]
    assert [len(f.signatures) for f in kernels] == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads(backend):
    program = f"""if True:
        import os, threading, numpy as np, autograd_bn as ag
        ag.set_num_threads(3); ag.set_backend("{backend}")
        x = np.random.default_rng(0).normal(size=(30000, 100)).astype("float32")
        y = ag.batch_norm(x)
        if (child := os.fork()) == 0:
            os._exit(7 if (ag.batch_norm(x) == y).all() and threading.active_count() > 1 else 1)
        raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 7


@pytest.mark.parametrize("n", [0, -1, 1.5, "two"])
def test_a_number_of_threads_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match="expected a positive integer"):
        ag.set_num_threads(n)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match='name is \'cuda\', expected "numpy", "numba" or None'):
        ag.set_backend("cuda")


def test_features_in_another_order_than_memory_has(backend):
    x, g = np.random.default_rng(0).normal(size=(2, 64, 10, 12))
    gamma, beta = g[:2]
    found = []
    for laid_out in (np.ascontiguousarray, np.asfortranarray):
        leaves = [ag.as_tensor(a, requires_grad=True) for a in (laid_out(x), gamma, beta)]
        y = ag.batch_norm(*leaves, axes=0)
        found.append([y.data, *ag.grad(y, leaves, g)])
    for a, b in zip(*found, strict=True):
        assert np.allclose(a, b, rtol=1e-12, atol=1e-12)


def test_numba_where_it_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "_has_numba", lambda: False)
    with pytest.raises(ImportError, match="pip install"):
        ag.set_backend("numba")
    assert kernels.describe_backend() == "the numpy kernels (numba is not installed)"


UNUSABLE = {
    "no place for its cache": "import numba.core.caching as c; c.CacheImpl._locator_classes = []; why = 'no locator'",
    "no import": """if True:
        import sys, tempfile, pathlib
        path = pathlib.Path(tempfile.mkdtemp(), "numba.py")
        path.write_text("raise ImportError('Numba needs NumPy 1.0')")
        sys.path.insert(0, str(path.parent)); why = "Numba needs NumPy 1.0" """,
}


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
@pytest.mark.parametrize("how", UNUSABLE)
def test_numba_that_cannot_be_used_gives_way_to_numpy_with_one_warning(how):
    program = """if True:
        import numpy as np, warnings, autograd_bn as ag
        x = ag.tensor(np.random.default_rng(0).normal(size=(3000, 100)), requires_grad=True)
        ag.set_backend("numpy")
        expected = ag.batch_norm(x).data
        ag.set_backend(None)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            for _ in range(2):
                y = ag.batch_norm(x)
                ag.grad(y, x, y.data)
        [only] = seen
        assert only.category is RuntimeWarning and why in str(only.message), only
        assert (y.data == expected).all()
        try:
            ag.set_backend("numba")
        except ImportError:
            raise SystemExit(7)
    """
    done = subprocess.run([sys.executable, "-c", UNUSABLE[how] + "\n" + program], capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (7, b"")


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
@pytest.mark.parametrize(("patience", "said"), [(0.05, 1), (1000, 0)])
def test_a_first_call_that_keeps_one_waiting_says_so_once(patience, said, tmp_path):
    program = f"""if True:
        import numpy as np, autograd_bn as ag
        from autograd_bn.batch_norm.kernels import numba
        numba.PATIENCE = {patience}
        for dtype in ("float32", "float64"):
            x = ag.tensor(np.ones((100, 50)), requires_grad=True, dtype=dtype)
            y = ag.batch_norm(x)
            ag.grad(y, x, y.data)
    """
    cold = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=cold)
    assert done.returncode == 0
    assert done.stderr.count("numba is compiling batch norm's kernels") == len(done.stderr.splitlines()) == said


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_kernels_that_are_not_to_be_compiled_are_interpreted():
    program = "import numpy as np, autograd_bn as ag; ag.set_backend('numba'); print(ag.batch_norm(np.eye(4)).sum())"
    run = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"NUMBA_DISABLE_JIT": "1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert abs(float(done.stdout)) < 1e-12


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_two_processes_that_compile_at_once_never_take_each_others_code(tmp_path, monkeypatch):
    from autograd_bn.batch_norm.kernels import numba

    kept = [getattr(f._cache, "_cache_file", None) for f in vars(numba).values() if hasattr(f, "signatures")]
    assert {type(files) for files in kept} == {numba._Files, type(None)}  # None of what is inlined
    first, second = (numba._Files(str(tmp_path), "affine", "stamp") for _ in range(2))

    def save_while_the_other_does(index):
        numba._Files._save_index(first, index)
        second.save(1, "code of 1")

    with monkeypatch.context() as interleaved:
        interleaved.setattr(second, "_load_index", dict)  # it was read before the first wrote
        interleaved.setattr(first, "_save_index", save_while_the_other_does)
        first.save(0, "code of 0")
    assert [first.load(key) for key in range(2)] == [None, "code of 1"]
    first.save(0, "code of 0")
    assert [second.load(key) for key in range(2)] == ["code of 0", "code of 1"]


def test_the_number_of_threads_may_change_while_another_thread_computes(backend):
    x = np.random.default_rng(0).normal(size=(12_000, 100))  # enough for threads
    expected = ag.batch_norm(x).tobytes()
    failed = []

    def compute():
        try:
            for _ in range(10):
                assert ag.batch_norm(x).tobytes() == expected
        except BaseException as error:
            failed.append(error)

    computing = [threading.Thread(target=compute) for _ in range(2)]
    for thread in computing:
        thread.start()
    while any(thread.is_alive() for thread in computing):
        for number in THREADS:
            ag.set_num_threads(number)
    assert not failed


def test_the_kernels_are_described(backend):
    assert kernels.describe_backend() == f"the {backend} kernels, chosen by set_backend"
    ag.set_backend(None)
    assert backend == "numpy" or kernels.describe_backend().startswith("the numba kernels from ")


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_no_features_are_normalised_by_the_backend_that_is_asked_for():
    ag.set_backend("numba")
    try:
        x = ag.tensor(np.ones((5, 0)), requires_grad=True)
        assert ag.grad(ag.batch_norm(x), x, np.ones((5, 0)))[0].shape == (5, 0)
    finally:
        ag.set_backend(None)
