"""The referee: what it says of planted mistakes, and that it can't be fooled."""

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee.conventions import numpy_pair
from autograd_bn.verify.referee.inputs import checked
from autograd_bn.verify.referee.judge import judge
from autograd_bn.verify.referee.mistakes import number
from autograd_bn.verify.referee.sampling import sampled
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
    assert "In dx the path through the variance is missing." in str(verdict)


def test_gamma_of_ones_hides_nothing():
    def without_gamma(dy, cache):
        dx, dgamma, dbeta = backward(dy, cache)
        return dx / cache[3], dgamma, dbeta

    x, _, beta = inputs()
    verdict = ag.check_backward(forward, without_gamma, (x, np.ones(4), beta))
    assert verdict.diagnosis[0].what == "dx as a whole lacks the factor gamma."
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
    assert [warning.partition(". ")[0] for warning in verdict.warnings] == [
        "backward overwrites dy in place",
        "backward overwrites an array of the cache in place",
    ]
    for a, b in zip(given, before, strict=True):
        np.testing.assert_array_equal(a, b)


# --- Fairness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [lambda x: x > 0, lambda x: x >= 0, lambda x: (np.sign(x) + 1) / 2])
def test_entries_at_a_kink_are_not_judged(factor):
    x = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
    verdict = ag.check_backward(lambda x: (np.maximum(x, 0), x), lambda dy, x: dy * factor(x), (x,))
    assert verdict.ok, str(verdict)
    assert "dx is not judged at [0, 0], [1, 1] (2 of 6 entries), where forward has a kink." in verdict.notes


def test_a_kink_excuses_nothing_beside_it():
    x = np.array([0.0, 1.0, -1.0])
    assert not ag.check_backward(lambda x: (np.maximum(x, 0), x), lambda dy, x: dy * (x < 0.5), (x,)).ok


def test_weights_that_begin_at_zero_are_judged_elsewhere():
    def forward(x, w):
        return np.maximum(x @ w, 0), (x, w, x @ w)

    def backward(dy, cache):
        x, w, z = cache
        dz = dy * (z > 0)
        return dz @ w.T, x.T @ dz

    x, w = inputs()[0], np.zeros((4, 3))
    assert ag.check_backward(forward, backward, (x, w)).ok
    verdict = ag.check_backward(forward, lambda dy, cache: (backward(dy, cache)[0], 2 * backward(dy, cache)[1]), (x, w))
    assert [row.note for row in verdict.rows if not row.ok] == ["shows at other inputs than those given"]


def test_ties_of_a_maximum_and_a_constant_feature_are_fair():
    def pooled(dy, x):
        first = np.argmax(x, axis=1)
        return np.eye(x.shape[1])[first] * dy[:, None]

    assert ag.check_backward(lambda x: (x.max(axis=1), x), pooled, (np.array([[1.0, 1.0, 0.0], [2.0, 3.0, 3.0]]),)).ok
    x, gamma, beta = inputs()
    x[:, 1] = 0.25
    assert ag.check_backward(forward, backward, (x, gamma, beta)).ok


def cross_entropy(x, labels):
    p = np.exp(x - x.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean(), (p, labels)


def test_a_loss_takes_its_upstream_gradient_for_1():
    def backward(dy, cache):
        p, labels = cache
        d = p.copy()
        d[np.arange(len(labels)), labels] -= 1
        return d / len(labels)

    given = inputs()[0], np.array([0, 1, 2, 3, 1, 0])
    verdict = ag.check_backward(cross_entropy, backward, given)
    assert verdict.ok, str(verdict)
    assert "backward doesn't read dy, which is taken to be 1: that is usual for a loss." in verdict.notes
    wrong = ag.check_backward(cross_entropy, lambda dy, cache: 2 * backward(dy, cache), given)
    assert [row.name for row in wrong.rows if not row.ok] == ["dx"]
    assert ag.check_backward(cross_entropy, lambda dy, cache: dy * backward(1, cache), given).notes == ()


def test_a_gradient_that_ignores_dy_is_wrong_where_y_is_an_array():
    verdict = ag.check_backward(lambda x: (np.tanh(x), np.tanh(x)), lambda dy, y: 1 - y**2, (inputs()[0],))
    assert [finding.kind for finding in verdict.diagnosis] == ["ignores dy"]
    assert [row.ok for row in verdict.rows] == [True]
    assert not verdict.ok


def test_a_branch_that_the_inputs_never_take_is_run():
    x = np.abs(inputs()[0]) + 0.1
    assert not ag.check_backward(lambda x: (np.maximum(x, 0), x), lambda dy, x: dy * np.ones(x.shape), (x,)).ok


def test_lengths_that_collide_are_told_apart():
    def forward(x):
        return x / len(x), x

    x = np.random.default_rng(0).normal(size=(4, 4))
    assert ag.check_backward(forward, lambda dy, x: dy / len(x), (x,)).ok
    verdict = ag.check_backward(forward, lambda dy, x: dy / x.shape[1], (x,))
    assert not verdict.ok


def test_a_number_in_the_code_keeps_its_length():
    def forward(x):
        return x[np.arange(4)] / 4, None

    assert ag.check_backward(forward, lambda dy, cache: dy / 4, (np.random.default_rng(0).normal(size=(4, 4)),)).ok


def test_labels_as_one_hot_floats_need_no_gradient():
    def forward(x, t):
        z = x - x.max(axis=1, keepdims=True)
        logp = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return -(t * logp).sum(), (logp, t)

    given = inputs()[0], np.eye(4)[[0, 1, 2, 3, 1, 0]]
    assert ag.check_backward(forward, lambda dy, cache: dy * (np.exp(cache[0]) - cache[1]), given).ok


def test_sums_kept_from_call_to_call_are_named():
    class Layer:
        total = 0.0

        def forward(self, x):
            return 3 * x, None

        def backward(self, dy, cache):
            self.total = self.total + 3 * dy
            return self.total

    layer = Layer()
    verdict = ag.check_backward(layer.forward, layer.backward, (inputs()[0],))
    assert verdict.ok
    assert "a second backward after the same forward returns something else" in verdict.warnings[0]


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda g: g * (1 - np.eye(4)), "0 on the diagonal"),
        (lambda g: np.where(np.arange(4)[:, None] == 2, 3 * g, g), "wrong in row 2"),
        (lambda g: np.where(np.arange(4) == 1, 3 * g, g), "wrong at 1 of axis 1"),
        (lambda g: g * np.pad(np.ones((2, 2)), 1, constant_values=3), "wrong at the borders"),
    ],
)
def test_it_says_where_a_gradient_is_wrong(spoil, words):
    x = np.random.default_rng(0).normal(size=(4, 4))
    verdict = ag.check_backward(lambda x: (np.sin(x), x), lambda dy, x: spoil(dy * np.cos(x)), (x,))
    assert words in verdict.diagnosis[0].what


def test_it_says_which_entries_of_a_vector_are_wrong():
    x = np.random.default_rng(0).normal(size=5)
    spoilt = lambda dy, x: dy * np.cos(x) * np.where(np.isin(np.arange(len(x)), (1, 3)), 3, 1)
    verdict = ag.check_backward(lambda x: (np.sin(x), x), spoilt, (x,))
    assert "wrong at [1, 3]" in verdict.diagnosis[0].what
    assert "<b>Repair:</b>" in verdict._repr_html_()
    assert "No repair was looked for in backward: it is a lambda." in verdict.notes


def test_the_verdict_keeps_what_it_compared():
    verdict = ag.check_backward(forward, lambda dy, cache: (*backward(dy, cache)[:2], dy.sum(axis=0) * 2), inputs())
    row = next(row for row in verdict.rows if row.name == "dbeta")
    np.testing.assert_allclose(row.returned, 2 * row.truth)
    assert verdict.inputs["x"].shape == (6, 4)
    assert verdict.dy.shape == (6, 4)


def test_the_weights_of_the_paths_are_kept():
    def without_variance(dy, cache):
        _, ivar, xhat, gamma = cache
        dxhat = dy * gamma
        return dxhat * ivar - (dxhat * ivar).mean(axis=0), (dy * xhat).sum(axis=0), dy.sum(axis=0)

    verdict = ag.check_backward(forward, without_variance, inputs())
    assert {path: round(c, 9) for path, c in verdict.coefficients["dx"].items()} == {"direct": 1, "mean": 1, "var": 0}


# --- Planted mistakes --------------------------------------------------------------------------------------

# What the referee may call each kind of mistake of tests/mutants.py.
WEIGHTS = {"missing path", "missing", "weight", "sign", "factor"}
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
    "gamma missing": {"missing factor"},
    "gamma squared": {"extra factor", "missing factor"},
    "eps missing": {"root"},
    "eps outside": {"root"},
    "inv power": {"missing factor", "extra factor", "wrong factor"},
    "wrong operand": {"wrong name", "missing factor", "wrong factor"},
    "inference formula": {"inference formula"},
    "wrong axis": {"wrong axis", "transposed"},
    "not summed": {"not summed"},
    "stale statistics": {"statistics"},
    "float32": {"precision"},
    "float16": {"precision"},
    "lost rows": {"lost rows"},
    "not linear": {"not linear"},
    "swapped": {"swapped"},
    "transposed": {"transposed"},
}


def judged(pair):
    return ag.check_backward(pair.forward, pair.backward, pair.inputs())


def names_the_mistake(pair, verdict):
    """Whether the first findings, as many as there are mistakes, name them all, or the repairs undo them all."""
    kinds = pair.kind.split(" + ")
    found = [finding.kind for finding in verdict.diagnosis[: len(kinds)]]
    undone = {f"d{name}" for repair in verdict.repair for name in repair.gradients}
    return all(CALLED[kind] & set(found) for kind in kinds) or pair.changes <= undone


def test_every_correct_spelling_passes():
    assert [pair.name for pair in correct()[::2] if not judged(pair).ok] == []


@pytest.mark.parametrize(("planted", "least", "share"), [(mutants, 30, 0.9), (pairs, 18, 0.7)])
def test_every_mistake_is_caught_and_most_are_named_first(planted, least, share):
    """On every fifth of them."""
    found = {pair: judged(pair) for pair in planted()[::5]}
    assert [pair.name for pair, verdict in found.items() if verdict.ok == bool(pair.changes)] == []
    wrong = [pair for pair in found if pair.changes]
    unnamed = [pair.name for pair in wrong if not names_the_mistake(pair, found[pair])]
    assert len(wrong) >= least
    assert len(unnamed) <= (1 - share) * len(wrong), unnamed


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


def test_the_steps_are_measured_too():
    def off(dy, cache):
        centred, ivar, xhat, gamma = cache
        n = len(dy)
        dxhat = dy * gamma
        dvar = (dxhat * centred).sum(axis=0) * -0.25 * ivar**3
        dmean = -(dxhat * ivar).sum(axis=0)
        return dxhat * ivar + dvar * 2 * centred / n + dmean / n, (dy * xhat).sum(axis=0), dy.sum(axis=0)

    steps = {row.name: row for row in ag.check_backward(forward, off, inputs()).rows if row.what == "intermediate"}
    assert [name for name, row in steps.items() if not row.ok] == ["dvar"]
    assert steps["dvar"].max_rel == pytest.approx(0.5)
    assert steps["dvar"].max_abs == pytest.approx(np.max(np.abs(steps["dvar"].truth)) / 2)
    assert steps["dxhat"].max_rel < 1e-12


def test_what_backward_is_handed_is_no_step_whatever_its_name():
    def forward(x, w):
        z = x @ w
        return np.maximum(z, 0), (x, w, z)

    def right(dz, cache):
        x, w, z = cache
        dz = dz * (z > 0)
        return dz @ w.T, 2 * x.T @ dz

    def named_anew(dz, cache):
        x, w, z = cache
        da = dz * (z > 0)
        return da @ w.T, 2 * x.T @ da

    def forgotten(dy, cache):
        x, w, _ = cache
        dz = dy
        return dz @ w.T, x.T @ dz

    rng = np.random.default_rng(0)
    given = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    for backward, steps in (right, {"dz": True}), (named_anew, {}), (forgotten, {"dz": False}):
        rows = ag.check_backward(forward, backward, given).rows
        assert {row.name: row.ok for row in rows if row.what == "intermediate"} == steps


def test_a_backward_that_takes_keywords_only_is_handed_them_and_mended():
    def backward(*, dy, cache):
        return 3 * dy * cache

    verdict = ag.check_backward(lambda x: (x**2, x), backward, (np.arange(1.0, 4),))
    assert [edit.new for edit in verdict.repair] == ["return 2 * dy * cache"]


@pytest.mark.usefixtures("no_search")
def test_a_number_cut_short_is_named_with_its_digits():
    x = np.random.default_rng(0).uniform(1, 2, (4, 3))
    verdict = ag.check_backward(lambda x: (x**3, x), lambda dy, x: dy * 3 * x**1.9999, (x,))
    assert verdict.diagnosis[0].kind == "precision"
    assert "is right to 4 digits only" in verdict.diagnosis[0].what


def test_a_factor_that_no_length_changes_may_be_a_constant():
    fixed, moved = {"w.shape[1]": 3}, ({"x.shape[0]": 5}, {"x.shape[0]": 7})
    assert number(1 / 3, fixed, [(1 / 3, fixed)])[0].words.endswith("sum belongs, or a factor 3 is missing")
    assert number(3.0, fixed, [(3.0, fixed)])[0].words.endswith("or 3 is a constant that does not belong there")
    assert number(1 / 5, moved[0], [(1 / 7, moved[1])])[0].words.endswith("a mean stands where a sum belongs")


def test_a_gradient_that_is_judged_in_no_entry_is_not_called_right():
    def forward(x, v):
        return x**2 + v, x

    def backward(dy, x):
        return 2 * x * dy, dy

    pair = numpy_pair(forward, backward, [np.ones(3), np.ones(3)])
    sample = sampled(pair, checked(pair.inputs, pair.names, None), 0)
    for run in sample.runs:
        run.noise["v"][...] = np.inf  # as at a kink
    verdict = judge(sample, False)
    assert str(verdict).startswith("RIGHT: the gradient is right.\n")
    assert [line.split(maxsplit=4)[-1] for line in str(verdict).splitlines()[4:6]] == ["right", "not judged"]
    assert verdict.remarks[-1] == "Not judged: v, at a kink of forward in every entry."
    for run in sample.runs:
        run.noise["x"][...] = np.inf
    with pytest.raises(ValueError, match="forward has a kink at every entry of what backward returns a gradient of"):
        judge(sample, False)
