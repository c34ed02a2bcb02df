"""The fused node's arithmetic against exact arithmetic on the stored inputs."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

import autograd_bn as ag

EPS = 1e-5
DTYPES = ["float32", "float64"]


def parts(value):
    """A float as an integer times a power of two."""
    numerator, denominator = float(value).as_integer_ratio()
    return numerator, denominator.bit_length() - 1


def integers(values):
    """An array of floats as Python integers over one power of two."""
    pairs = [parts(v) for v in values]
    bits = max(b for _, b in pairs)
    return [n << (bits - b) for n, b in pairs], bits


def double_double(number, bits):
    """number / 2**bits as an unevaluated sum of two floats."""
    excess = max(0, abs(number).bit_length() - 200)
    number >>= excess
    high = float(number)
    return math.ldexp(high, excess - bits), math.ldexp(float(number - int(high)), excess - bits)


def exact(x, gamma, beta, g):
    """y, dx, dgamma, dbeta of one feature: in integers, but for one root that has 300 bits; pairs of floats."""
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
    y = [v * gamma + (beta << (normal_bits + ab - bb)) for v in normal] if normal_bits + ab >= bb else None
    dgamma = sum(a * b for a, b in zip(gs, normal, strict=True))
    dbeta = sum(gs)
    # n * (g - avg(g)) - normal * sum(g * normal), times gamma * r
    up = 2 * normal_bits
    dx = [gamma * r * (((n * a - dbeta) << up) - v * dgamma) // n for a, v in zip(gs, normal, strict=True)]
    return [
        [double_double(v, normal_bits + ab) for v in y],
        [double_double(v, gb + up + ab + rb) for v in dx],
        [double_double(dgamma, gb + normal_bits)],
        [double_double(dbeta, gb)],
    ]


def reference(x, gamma, beta, g):
    """For each of y, dx, dgamma, dbeta the pair of arrays whose sum is exact."""
    columns = [exact(x[:, j], gamma[j], beta[j], g[:, j]) for j in range(x.shape[1])]
    return [np.array([column[i] for column in columns]).transpose(2, 1, 0) for i in range(4)]


def computed(x, gamma, beta, g, axes=None):
    """y, dx, dgamma, dbeta of the fused node."""
    leaves = [ag.as_tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = ag.batch_norm(*leaves, axes=axes, eps=EPS)
    return [y.data, *ag.grad(y, leaves, g)]


def score(results, references, dtype):
    """For y, dx, dgamma, dbeta: the largest error over the ulp of the feature's largest exact value."""
    scores = []
    for result, (high, low) in zip(results, references, strict=True):
        error = np.abs((np.asarray(result, float).reshape(high.shape) - high) - low).max(axis=0)
        ulp = np.spacing(np.abs(high).max(axis=0).astype(dtype)).astype(float)
        scores.append(float((error / ulp).max()))
    return scores


def _case(name, dtype, n=600, features=3, seed=0):
    rng = np.random.default_rng([seed, len(name)])
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
    return (
        x.astype(dtype),
        rng.normal(size=features).astype(dtype),
        rng.normal(size=features).astype(dtype),
        rng.normal(size=(n, features)).astype(dtype),
    )


TORTURE = [
    *[f"mean {m}" for m in ("0", "1e2", "1e4", "1e6", "1e8")],
    *[f"constant {c}" for c in ("0.1", "100", "-7e9")],
    *[f"outlier {where}" for where in ("first", "last", "middle")],
    *[f"scale {s}" for s in ("1e-40", "1e-20", "1e18", "1e30", "max")],
    "alternating max",
]


@pytest.fixture(params=["numpy", "numba"])
def backend(request):
    if request.param == "numba":
        pytest.importorskip("numba")
    ag.set_backend(request.param)
    yield request.param
    ag.set_backend(None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", TORTURE)
def test_torture_set_is_right_to_the_last_bits(name, dtype, backend):
    x, gamma, beta, g = _case(name, dtype)
    references = reference(x, gamma, beta, g)
    first = computed(x, gamma, beta, g)
    y, dx, dgamma, dbeta = score(first, references, dtype)
    assert max(y, dx) <= 2
    assert max(dgamma, dbeta) <= 4
    fortran = computed(np.asfortranarray(x), gamma, beta, np.asfortranarray(g))
    y, dx, dgamma, dbeta = score(fortran, references, dtype)
    assert max(y, dx) <= 2
    assert max(dgamma, dbeta) <= 4
    if name.startswith("constant"):
        assert (first[0] == beta).all()
        assert (fortran[0] == beta).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axes"), [((70001, 3), None), ((500, 700), None), ((40, 5, 900), (0, 2))])
def test_any_number_of_threads_gives_the_same_bits(shape, axes, dtype, backend):
    rng = np.random.default_rng(5)
    x, g = rng.normal(3, 2, size=(2, *shape)).astype(dtype)
    gamma, beta = rng.normal(size=(2, shape[1])).astype(dtype)
    results = []
    for n in (1, 2, 5):
        ag.set_num_threads(n)
        results.append([a.tobytes() for a in computed(x, gamma, beta, g, axes)])
    ag.set_num_threads(None)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_spoils_its_own_feature_alone(bad, backend):
    x, gamma, beta, g = _case("mean 0", "float32")
    clean = computed(x, gamma, beta, g)
    x[7, 1] = bad
    for spoiled, expected in zip(computed(x, gamma, beta, g), clean, strict=True):
        np.testing.assert_array_equal(spoiled[..., [0, 2]], expected[..., [0, 2]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_shuffled_rows_stay_within_one_ulp(dtype, backend):
    x, gamma, beta, g = _case("mean 1e4", dtype, n=5000)
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
