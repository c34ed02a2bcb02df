"""The fused node's arithmetic against exact and extended arithmetic on the stored inputs."""

import math
import os
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.batch_norm import layout, numpy_kernels, threads

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


# Extended arithmetic, for any number of rows: sums of pairs of a dtype that is wider than the input in precision and
# range. T. J. Dekker, "A floating-point technique for extending the available precision", 1971.


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
    t = a * a.dtype.type(2 ** ((np.finfo(a.dtype).nmant + 2) // 2) + 1)
    high = t - (t - a)
    return high, a - high


def pair_sum(high, low):
    """The sum of pairs along the first axis, as a pair."""
    while len(high) > 1:
        half = len(high) // 2
        s, e = two_sum(high[:half], high[half : 2 * half])
        rest = high[2 * half :], low[2 * half :]
        high, low = (np.concatenate(p) for p in ((s, rest[0]), (low[:half] + low[half : 2 * half] + e, rest[1])))
    return two_sum(high[0], low[0])


def chunks(n):
    """Slices of rows that stay in cache."""
    return [slice(start, start + 8192) for start in range(0, n, 8192)]


class Reference(NamedTuple):
    """What the results must be. The elements are computed chunk by chunk, each time anew, so that memory suffices."""

    x: Any
    g: Any
    gamma: Any
    beta: Any
    mean: tuple[Any, Any]
    scale: Any
    dgamma: Any
    dbeta: Any

    def elements(self, rows):
        """y and dx of a slice of rows."""
        n, (high, low) = len(self.x), self.mean
        normal = ((self.x[rows] - high) - low) * self.scale
        g = self.g[rows] - self.dbeta / n
        return normal * self.gamma + self.beta, (g - normal * (self.dgamma / n)) * self.gamma * self.scale


def reference(x, gamma, beta, g):
    """The `Reference` of (rows, features)."""
    dtype = np.longdouble if x.dtype == np.float64 else np.float64
    n = dtype(len(x))

    def total(terms):
        pairs = [pair_sum(*terms(x[rows].astype(dtype), g[rows].astype(dtype))) for rows in chunks(len(x))]
        return pair_sum(*(np.stack(p) for p in zip(*pairs, strict=True)))

    def squares(x, g):
        (d, e) = two_sum(x, -mean)
        high, low = two_product(d, d)
        return high, low + 2 * d * e

    def products(x, g):
        (d, e) = two_sum(x, -mean)
        high, low = two_product(g, d)
        return high, low + g * e

    sums, rest = total(lambda x, g: (x, 0 * x))
    mean = sums / n
    high, low = two_product(mean, np.full_like(mean, n))
    correction = ((sums - high) + (rest - low)) / n
    var = sum(total(squares)) / n - correction**2
    dbeta = sum(total(lambda x, g: (g, 0 * g)))
    weighted, rest = total(products)
    scale = 1 / np.sqrt(var + EPS)
    dgamma = (weighted + (rest - correction * dbeta)) * scale
    return Reference(x, g, gamma.astype(dtype), beta.astype(dtype), (mean, correction), scale, dgamma, dbeta)


def score(results, expected, features=slice(None)):
    """For y, dx, dgamma, dbeta: the largest error over the ulp of the feature's largest true value."""
    dtype = expected.x.dtype
    errors, largest = np.zeros((2, 4, expected.x.shape[1]), expected.scale.dtype)
    for rows in chunks(len(expected.x)):
        for i, true in enumerate(expected.elements(rows)):
            errors[i] = np.maximum(errors[i], np.abs(results[i][rows] - true).max(axis=0))
            largest[i] = np.maximum(largest[i], np.abs(true).max(axis=0))
    for i, true in ((2, expected.dgamma), (3, expected.dbeta)):
        errors[i], largest[i] = np.abs(np.ravel(results[i]) - true), np.abs(true)
    ulps = np.spacing(largest.astype(dtype)).astype(errors.dtype)
    return [float(worst) for worst in (errors / ulps)[:, features].max(axis=1)]


def assert_close(results, expected, features=slice(None)):
    """The promise: 2 ulp for y and dx, 4 for dgamma and dbeta. NaN is not close."""
    y, dx, dgamma, dbeta = score(results, expected, features)
    assert y <= 2
    assert dx <= 2
    assert dgamma <= 4
    assert dbeta <= 4


def computed(x, gamma, beta, g, axes=None):
    """y, dx, dgamma, dbeta of the fused node; None for the gradient of a parameter that is None."""
    leaves = [None if a is None else ag.as_tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = ag.batch_norm(*leaves, axes=axes, eps=EPS)
    gradients = iter(ag.grad(y, [leaf for leaf in leaves if leaf is not None], g))
    return [y.data, *[None if leaf is None else next(gradients) for leaf in leaves]]


TORTURE = [
    *[f"mean {m}" for m in ("0", "1e2", "1e4", "1e6", "1e8")],
    *[f"constant {c}" for c in ("0.1", "100", "-7e9")],
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


@lru_cache(maxsize=2)
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
    modules = [numpy_kernels]
    if find_spec("numba"):
        from autograd_bn.batch_norm import numba_kernels

        modules.append(numba_kernels)
    return modules


def cut(monkeypatch):
    """Cut arrays of a few hundred elements into many blocks, and share them among threads: the only place that knows
    the names of the thresholds.
    """
    monkeypatch.setattr(layout, "BLOCK", 256)
    monkeypatch.setattr(layout, "_layout", layout.Layout)
    for module in kernel_modules():
        monkeypatch.setattr(module, "PARALLEL", 0)


@pytest.fixture(params=["small", "cut", "large"])
def n(request, monkeypatch):
    """Rows of three features: too few for threads; as few, but cut into blocks; enough for blocks and threads."""
    if request.param == "cut":
        cut(monkeypatch)
    return 250_007 if request.param == "large" else 600


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
    assert max(score([np.array(part).T for part in zip(*columns, strict=True)], extended)) < 0.01


@pytest.mark.parametrize("n", ["cut", "large"], indirect=True)
def test_sizes_meant_for_several_threads_are_shared_by_them(n, backend, monkeypatch):
    shared = []

    def share(work, items, parallel):
        shared.append(parallel and len(items))
        threads.share(work, items, parallel)

    for module in kernel_modules():
        monkeypatch.setattr(module, "share", share)
    computed(*case("mean 0", "float32", n))
    assert len(shared) >= 4
    assert min(shared) >= 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
def test_torture_set_is_right_to_the_last_bits_with_any_number_of_threads(name, dtype, n, backend):
    arrays, expected = torture(name, dtype, n)
    first, *others = with_threads(lambda: computed(*arrays))
    assert_close(first, expected)
    for other in others:
        assert [a.tobytes() for a in other] == [a.tobytes() for a in first]
    if name.startswith("constant"):
        assert (first[0] == expected.beta).all()


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_feature_alone(bad, backend):
    x, gamma, beta, g = case("mean 0", "float32")
    clean = computed(x, gamma, beta, g)
    x[7, 1] = bad
    for spoiled, expected in zip(computed(x, gamma, beta, g), clean, strict=True):
        np.testing.assert_array_equal(spoiled[..., [0, 2]], expected[..., [0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_shuffled_rows_stay_within_one_ulp(dtype, backend):
    x, gamma, beta, g = case("mean 1e4", dtype, n=5000)
    order = np.random.default_rng(1).permutation(len(x))
    y, dx, *_ = computed(x, gamma, beta, g)
    shuffled_y, shuffled_dx, *_ = computed(x[order], gamma, beta, g[order])
    for a, b in ((y[order], shuffled_y), (dx[order], shuffled_dx)):
        assert (np.abs(a - b) <= np.spacing(np.abs(a).max(axis=0))).all()


# NIST's Statistical Reference Datasets, univariate, NumAcc1 to 4: made from their published definitions.
NUMACC = {
    "NumAcc1": (np.array([10000001.0, 10000003.0, 10000002.0]), 10000002, 1),
    "NumAcc2": (np.array([1.2] + [1.1, 1.3] * 500), 1.2, 0.1),
    "NumAcc3": (np.array([1000000.2] + [1000000.1, 1000000.3] * 500), 1000000.2, 0.1),
    "NumAcc4": (np.array([10000000.2] + [10000000.1, 10000000.3] * 500), 10000000.2, 0.1),
}


@pytest.mark.parametrize("name", NUMACC)
def test_nist_certified_mean_and_deviation(name, backend):
    x, certified_mean, certified_deviation = NUMACC[name]
    _, mean, var = ag.batch_norm(x[:, None], return_stats=True)
    assert mean.item() == certified_mean
    # The data are stored to the nearest double, which moves the deviation by this much.
    stored = np.spacing(np.abs(x).max()) / certified_deviation
    deviation = math.sqrt(var.item() * len(x) / (len(x) - 1))
    assert abs(deviation / certified_deviation - 1) <= stored + 1e-15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_threads():
    program = """if True:
        import os, numpy as np, autograd_bn as ag
        ag.set_num_threads(3); ag.set_backend("numpy")
        x = np.ones((3000, 100), "float32")
        ag.batch_norm(x)
        if (child := os.fork()) == 0:
            ag.batch_norm(x)
            os._exit(7)
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
