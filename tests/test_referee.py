"""The referee: what it says of planted mistakes, and that it can't be fooled."""

import numpy as np
import pytest

import autograd_bn as ag
from tests.mutants import correct, mutants, pairs


def forward(x, gamma, beta, eps=1e-5):
    mean = x.mean(axis=0)
    centred = x - mean
    var = np.mean(centred**2, axis=0)
    ivar = 1 / np.sqrt(var + eps)
    xhat = centred * ivar
    return gamma * xhat + beta, (centred, ivar, xhat, gamma)


def backward(dy, cache):
    centred, ivar, xhat, gamma = cache
    n = len(dy)
    dbeta = dy.sum(axis=0)
    dgamma = (dy * xhat).sum(axis=0)
    dxhat = dy * gamma
    dvar = (dxhat * centred).sum(axis=0) * -0.5 * ivar**3
    dmean = -(dxhat * ivar).sum(axis=0)
    return dxhat * ivar + dvar * 2 * centred / n + dmean / n, dgamma, dbeta


def inputs(rows=6, columns=4):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, columns)), rng.uniform(0.5, 2, columns), rng.normal(size=columns)


def test_a_right_pair_passes():
    verdict = ag.check_backward(forward, backward, inputs())
    assert verdict.ok, str(verdict)
    assert verdict
    assert verdict.diagnosis == ()
    assert [row.name for row in verdict.rows] == ["dx", "dgamma", "dbeta"]


def test_a_missing_variance_path_is_named_with_its_weight():
    def without_variance(dy, cache):
        _, ivar, xhat, gamma = cache
        dxhat = dy * gamma
        return dxhat * ivar - (dxhat * ivar).mean(axis=0), (dy * xhat).sum(axis=0), dy.sum(axis=0)

    verdict = ag.check_backward(forward, without_variance, inputs())
    assert not verdict.ok
    assert [row.name for row in verdict.rows if not row.ok] == ["dx"]
    assert verdict.diagnosis[0].kind == "missing path"
    assert "dx carries 0.00 of the path through the variance" in str(verdict)


def test_gamma_of_ones_hides_nothing():
    def without_gamma(dy, cache):
        dx, dgamma, dbeta = backward(dy, cache)
        return dx / cache[3], dgamma, dbeta

    x, _, beta = inputs()
    verdict = ag.check_backward(forward, without_gamma, (x, np.ones(4), beta))
    assert verdict.diagnosis[0].kind == "gamma missing"
    assert verdict.rows[0].note == "shows at other inputs than those given"


@pytest.mark.parametrize("seed", range(3))
def test_the_callers_arrays_are_not_touched(seed):
    def rude(dy, cache):
        dy *= 2
        cache[0][:] = 0
        return dy, dy.sum(axis=0), dy.sum(axis=0)

    given = inputs()
    before = [a.copy() for a in given]
    verdict = ag.check_backward(forward, rude, given, seed=seed)
    assert [finding.what for finding in verdict.diagnosis[:2]] == [
        "backward overwrites dy in place.",
        "backward overwrites an array of the cache in place.",
    ]
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)


# --- Planted mistakes --------------------------------------------------------------------------------------

# What the referee may call each kind of mistake of tests/mutants.py.
WEIGHTS = {"missing path", "missing", "zero", "weight", "sign", "factor"}
CALLED = {
    "direct path": WEIGHTS,
    "mean path": WEIGHTS,
    "variance path": WEIGHTS,
    "dx factor": WEIGHTS,
    "dgamma factor": WEIGHTS,
    "dbeta factor": WEIGHTS,
    "sum for mean": {"sum for mean"},
    "mean for sum": {"mean for sum"},
    "n - 1": {"N-1"},
    "gamma missing": {"gamma missing"},
    "gamma squared": {"gamma squared", "gamma", "gamma inverse"},
    "eps missing": {"eps missing"},
    "eps outside": {"eps outside"},
    "inv power": {"sigma", "1/N for 1/sigma"},
    "wrong operand": {"wrong operand", "sigma", "mean for sigma"},
    "inference formula": {"inference formula"},
    "wrong axis": {"wrong axis", "transposed"},
    "not summed": {"not summed"},
    "stale statistics": {"statistics"},
    "float32": {"precision"},
    "float16": {"precision"},
    "lost rows": {"lost rows"},
    "not linear": {"not linear", "wrong operand"},
    "swapped": {"swapped"},
    "transposed": {"transposed"},
}


def judged(pair):
    return ag.check_backward(pair.forward, pair.backward, pair.inputs(), seconds=0.5)


def names_the_mistake(pair, verdict):
    """Whether the first findings, as many as there are mistakes, name them all, or the repairs undo them all."""
    kinds = pair.kind.split(" + ")
    found = [finding.kind for finding in verdict.diagnosis[: len(kinds)]]
    undone = {f"d{name}" for repair in verdict.repair for name in repair.gradients}
    return all(CALLED[kind] & set(found) for kind in kinds) or pair.changes <= undone


@pytest.mark.parametrize("part", range(4))
def test_every_correct_spelling_passes(part):
    assert [pair.name for pair in correct()[part::4] if not judged(pair).ok] == []


def test_every_single_mistake_is_caught_and_95_percent_are_named_first():
    verdicts = {pair: judged(pair) for pair in mutants()}
    assert len(verdicts) >= 150
    assert [pair.name for pair, verdict in verdicts.items() if verdict.ok == bool(pair.changes)] == []
    wrong = {pair: verdict for pair, verdict in verdicts.items() if pair.changes}
    unnamed = [pair.name for pair, verdict in wrong.items() if not names_the_mistake(pair, verdict)]
    assert len(unnamed) <= 0.05 * len(wrong), unnamed


def test_every_pair_of_mistakes_is_caught_and_80_percent_are_named_first():
    verdicts = {pair: judged(pair) for pair in pairs()}
    assert [pair.name for pair, verdict in verdicts.items() if verdict.ok] == []
    unnamed = [pair.name for pair, verdict in verdicts.items() if not names_the_mistake(pair, verdict)]
    assert len(unnamed) <= 0.2 * len(verdicts), unnamed


@pytest.mark.filterwarnings("always")
def test_the_search_warns_of_nothing(recwarn):
    def forward(x, gamma, beta):
        mean, var = x.mean(0), x.var(0) + 1e-5
        xhat = (x - mean) / np.sqrt(var)
        return gamma * xhat + beta, (x, gamma, mean, var, xhat)

    def backward(da, cache):
        x, gamma, mean, var, xhat = cache
        m = len(x)
        dvar = -1 / (2 * var**1.5) * (da * gamma * (x - mean)).sum(axis=0)
        dmean = -gamma / mean * da.sum(axis=0)
        dx = da * gamma / m + dmean / m + dvar * 2 * (x - mean) / m
        return dx, (da * xhat).sum(axis=0), da.sum(axis=0)

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(6, 4)) + 1, rng.uniform(0.5, 2, 4), rng.normal(size=4)
    assert not ag.check_backward(forward, backward, inputs).ok
    assert not recwarn.list
