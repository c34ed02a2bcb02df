"""The referee's truth: each input confirmed by itself, kinks told from optima, and nothing that hides at one length."""

import contextlib
import sys
import traceback

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.verify.referee.conventions import adapt
from autograd_bn.verify.referee.trace import effort

rng = np.random.default_rng(0)
X, B = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))


def wrong(verdict):
    return [row.name for row in verdict.rows if row.what == "gradient" and not row.ok]


# --- What leaves the tensors -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("cut", [np.array, np.asarray])
def test_a_share_that_leaves_the_tensors_is_seen_however_small(size, cut):
    def forward(x, b):
        return size * cut(x) ** 3 + b, x

    right = ag.check_backward(forward, lambda dy, x: (3 * size * x**2 * dy, dy), (X, B))
    assert right.ok, str(right)
    assert any("differences" in note for note in right.notes)
    assert wrong(ag.check_backward(forward, lambda dy, x: (0 * x, dy), (X, B))) == ["dx"]


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_a_share_of_an_input_that_is_recorded_otherwise_is_seen(size):
    def forward(x):
        return x + size * np.array(x) ** 3, x

    assert ag.check_backward(forward, lambda dy, x: dy * (1 + 3 * size * x**2), (X,)).ok
    assert not ag.check_backward(forward, lambda dy, x: dy, (X,)).ok


def test_small_weights_kept_as_an_array_are_judged():
    def forward(x, w):
        return x @ w, (np.asarray(x), np.asarray(w))

    x, w = X, 1e-4 * rng.normal(size=(3, 2))
    assert ag.check_backward(forward, lambda dy, cache: (dy @ cache[1].T, cache[0].T @ dy), (x, w)).ok
    verdict = ag.check_backward(forward, lambda dy, cache: (dy @ cache[1].T, 2 * cache[0].T @ dy), (x, w))
    assert wrong(verdict) == ["dw"]
    assert "zeros" not in str(verdict)


def test_once_one_run_needs_differences_all_do():
    """An array that is taken out of the tensors where it has negative entries alone."""

    def forward(x):
        return (x**2 if np.all(np.asarray(x) > 0) else np.asarray(x) ** 2 + 0 * x), x

    x = np.abs(X) + 0.1
    verdict = ag.check_backward(forward, lambda dy, x: 2 * x * dy, (x,))
    assert verdict.ok, str(verdict)
    assert any("differences" in note for note in verdict.notes)


# --- Kinks and optima --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "backward", "at"),
    [
        (lambda w: (((w - 2) ** 2).sum(), w), lambda dy, w: dy * 2 * (w - 2), 2.0),
        (lambda w: (((w - 2) ** 2).sum(), w), lambda dy, w: dy * 2 * (w - 2), 2.0 + 1e-9),
        (lambda w: (w**2, w), lambda dy, w: dy * 2 * w, 0.0),
        (lambda w: (w**4, w), lambda dy, w: dy * 4 * w**3, 0.0),
        (lambda w: (np.sqrt(w**2 + 1e-12), w), lambda dy, w: dy * w / np.sqrt(w**2 + 1e-12), 0.0),
        (lambda w: (1 - np.cos(w), w), lambda dy, w: dy * np.sin(w), 0.0),
        (lambda w: (np.asarray(w) ** 2, w), lambda dy, w: dy * 2 * w, 0.0),
        (lambda w: (0 * w, w), lambda dy, w: 0 * dy, 1.5),
    ],
)
def test_what_is_smooth_at_its_optimum_is_no_kink(forward, backward, at):
    w = np.full((3, 2), at)
    verdict = ag.check_backward(forward, backward, (w,))
    assert verdict.ok, str(verdict)
    assert not any("kink" in note for note in verdict.notes)
    assert not ag.check_backward(forward, lambda dy, w: backward(dy, w) + dy, (w,)).ok


@pytest.mark.parametrize("forward", [np.abs, lambda x: np.maximum(x, 0), lambda x: np.minimum(3 * x, x)])
@pytest.mark.parametrize("size", [1.0, 1e-6, 1e6])
def test_a_kink_is_where_the_derivative_jumps(forward, size):
    x = np.array([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])
    left = lambda x: (forward(x + 1e-6) - forward(x - 1e-6)) / 2e-6
    verdict = ag.check_backward(lambda x: (size * forward(x), x), lambda dy, x: size * dy * np.round(left(x)), (x,))
    assert verdict.ok, str(verdict)
    assert "dx is not judged at [0, 0], [1, 1] (2 of 6 entries), where forward has a kink." in verdict.notes


def test_a_jump_that_differences_straddle_is_not_judged():
    x = np.array([[0.3, 0.8125 + 1e-7], [-0.2, 1.2]])
    rounded = lambda x: (np.array(np.round(x * 8)) / 8, None)  # which records nothing
    verdict = ag.check_backward(rounded, lambda dy, cache: dy, (x,))
    assert verdict.status == "convention", str(verdict)
    assert "dx is not judged at [0, 1] (1 of 4 entries), where forward has a kink." in verdict.notes


# --- What hides at one length or one scale -----------------------------------------------------------------


def test_rows_and_columns_exchanged_on_a_square_batch_are_seen():
    def forward(x):
        return x - x.mean(axis=0), x.shape

    def swapped(dy, shape):
        features, rows = shape
        means = np.ones((rows, rows)) @ dy / features
        return dy - means

    x = rng.normal(size=(5, 5))
    verdict = ag.check_backward(forward, swapped, (x,))
    assert not verdict.ok
    assert "At x of shape (5, 10), which forward takes, backward raised ValueError" in str(verdict)
    assert ag.check_backward(forward, lambda dy, shape: dy - dy.mean(axis=0), (x,)).ok


def test_gradients_in_another_order_are_wrong_whatever_their_names():
    def backward(dy, cache):
        x, w = cache
        dx, dw = dy @ w.T, x.T @ dy
        return dw, dx

    inputs = rng.normal(size=(5, 4)), rng.normal(size=(4, 3))
    (finding,) = ag.check_backward(lambda x, w: (x @ w, (x, w)), backward, inputs).diagnosis
    assert finding.what == "dx and dw are each other's: they come back in the wrong order."
    assert ag.check_backward(lambda w, x: (x @ w, (x, w)), backward, inputs[::-1]).ok


def test_a_code_that_names_a_length_gets_a_note():
    def forward(x):
        return 2 * x, None

    def backward(dy, cache):
        out = np.zeros((5, 5))
        out += 2 * dy
        return out

    assert ag.check_backward(forward, backward, (rng.normal(size=(5, 5)),)).ok
    sizes = [4, 5]

    def of_another(dy, cache):
        return 2 * dy + np.zeros((5, sizes[1]))

    assert ag.check_backward(forward, of_another, (rng.normal(size=(5, 5)),)).ok


@pytest.mark.parametrize("cut", [lambda x: np.clip(x, -5, 5), lambda x: np.minimum(x, 6.0)])
def test_bounds_that_no_input_meets_are_met(cut):
    x = np.random.default_rng(1).normal(size=(5, 4))
    h = 1e-6
    right = lambda dy, x: dy * (np.abs(cut(x + h) - cut(x - h)) > h)
    assert ag.check_backward(lambda x: (cut(x), x), right, (x,)).ok
    assert not ag.check_backward(lambda x: (cut(x), x), lambda dy, x: dy, (x,)).ok


# --- Causes ------------------------------------------------------------------------------------------------


def norm(x, gamma):
    mean, var = x.mean(axis=0), x.var(axis=0)
    inv = 1 / np.sqrt(var + 1e-2)
    xhat = (x - mean) * inv
    return gamma * xhat, (xhat, inv, gamma, var)


def norm_backward(dy, cache, mean=1.0, root=None, k=1.0):
    xhat, inv, gamma, var = cache
    d = dy * gamma
    inv = inv if root is None else 1 / root(var)
    dx = inv * (d - mean * d.mean(axis=0) - xhat * (d * xhat).mean(axis=0))
    return dx, k * (dy * xhat).sum(axis=0)


NORM = np.random.default_rng(2).normal(size=(7, 4)), np.random.default_rng(3).uniform(0.5, 2, 4)


def said(backward, inputs=NORM, forward=norm):
    return " ".join(map(str, ag.check_backward(forward, backward, inputs).diagnosis))


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 4.0}, "dgamma is 4 times what it should be."),  # 4 features, and no sum over them
        ({"k": 7.0}, "dgamma is 7 times what it should be."),
        ({"mean": 4.0}, "In dx the path through the mean is 4 times what it should be."),
        ({"mean": 7 / 8}, "In dx the path through the mean is 0.875 times what it should be."),
    ],
)
def test_a_constant_is_told_from_a_length_by_other_lengths(options, words):
    assert words in said(lambda dy, cache: norm_backward(dy, cache, **options))


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (lambda n: n, "N times too large: a sum stands where a mean belongs."),
        (lambda n: n / (n + 1), "is divided by N + 1 where N belongs"),
        (lambda n: n / (n - 1), "is divided by N - 1 where N belongs"),
    ],
)
def test_a_length_is_named_where_it_is_one(factor, words):
    assert words in said(lambda dy, cache: norm_backward(dy, cache, mean=factor(len(dy))))


@pytest.mark.usefixtures("no_search")
def test_where_lengths_cannot_be_others_both_are_named():
    x = np.random.default_rng(2).normal(size=(4, 3))
    w = np.random.default_rng(3).normal(size=(4, 3))
    text = said(lambda dy, x: 4 * w * dy, (x,), lambda x: (w * x, x))
    assert "x.shape[0]" in text
    assert "or 4 is a constant" in text


@pytest.mark.usefixtures("no_search")
@pytest.mark.parametrize(
    "root", [lambda var: np.sqrt(var + 2e-2), lambda var: np.sqrt(var + 1e-2) + 1e-2, lambda var: np.sqrt(var) + 1e-2]
)
def test_eps_taken_otherwise_is_named_as_eps(root):
    assert "eps" in said(lambda dy, cache: norm_backward(dy, cache, root=root))
    assert "statistics" not in said(lambda dy, cache: norm_backward(dy, cache, root=root))


# --- The search leaves data as it is -----------------------------------------------------------------------


def test_no_input_changes_by_a_search(monkeypatch):
    """Every array that the pair is handed has the same bits after every run as before."""
    given, changed = {}, []

    def forward(x, w):
        given[id(x)] = x, x.copy()
        given[id(w)] = w, w.copy()
        return x @ w, (x, w)

    def backward(dy, cache):
        x, w = cache
        n = len(x)
        dw = x.T
        dw = dw @ dy / n
        dx = dy @ w.T
        return dx, dw

    x, w = X.copy(), rng.normal(size=(3, 2))
    before = x.tobytes(), w.tobytes()
    verdict = ag.check_backward(forward, backward, (x, w))
    assert [repair.new for repair in verdict.repair] == ["dw = dw @ dy"]
    assert (x.tobytes(), w.tobytes()) == before
    changed = [a for a, kept in given.values() if isinstance(a, np.ndarray) and a.tobytes() != kept.tobytes()]
    assert changed == []
    assert "called again" not in str(verdict)


def test_backward_runs_a_small_number_of_times(monkeypatch):
    monkeypatch.setattr("autograd_bn.verify.referee.judge.as_it_was", lambda *_: contextlib.nullcontext())
    calls = []

    def forward(x, w):
        calls.append("forward")
        return np.maximum(x @ w, 0), (x, w)

    def backward(dy, cache):
        calls.append("backward")
        x, w = cache
        dz = dy * (x @ w > 0)
        return dz @ w.T, -x.T @ dz

    verdict = ag.check_backward(forward, backward, (X, rng.normal(size=(3, 2))))
    assert verdict.repair
    assert 1 < calls.count("backward") <= 60
    assert calls.count("forward") <= 2000


def test_a_loss_keeps_its_data_while_edits_are_tried(tmp_path):
    text = """
import numpy as np

def ridge_loss(W, X, y, reg):
    n = len(X)
    r = X @ W - y
    loss = (r**2).sum() / n + reg * (W**2).sum()
    dW = X.T
    dW = 2 * dW @ r
    dW /= n
    dW += reg * W
    return loss, dW
"""
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    space = {}
    exec(compile(text, str(path), "exec"), space)
    W, y = rng.normal(size=3), rng.normal(size=6)
    before = W.tobytes(), X.tobytes(), y.tobytes()
    verdict = ag.check_backward(adapt(space["ridge_loss"], (W, X, y, 0.3)), (W, X, y, 0.3))
    assert wrong(verdict) == ["dW"]
    assert "differences" not in str(verdict)  # forward is recorded
    assert "called again" not in str(verdict)
    assert [repair.new for repair in verdict.repair] == ["dW += reg * (2 * W)"]
    assert (W.tobytes(), X.tobytes(), y.tobytes()) == before


# --- Repairs that are no help ------------------------------------------------------------------------------


def test_zeros_are_no_repair():
    def forward(x, b):
        h = x + b
        return h - h.mean(axis=0), x

    def backward(dy, x):
        return dy - dy.mean(axis=0), dy.sum(axis=0)

    verdict = ag.check_backward(forward, backward, (X, rng.normal(size=3)))
    assert wrong(verdict) == ["db"]
    assert "should be zero" in str(verdict)
    assert verdict.repair == ()


def test_a_length_as_a_number_is_offered_last():
    """With three features `3 *` makes up for a mean, and so does a sum, which is what is meant."""

    def forward(x):
        return np.ones(3) * x.sum(axis=1, keepdims=True), x.shape

    def backward(dy, shape):
        return np.ones(shape) * dy.mean(axis=1, keepdims=True)

    (repair,) = ag.check_backward(forward, backward, (X,)).repair
    assert "dy.sum(axis=1" in repair.new


def test_an_edit_that_mends_a_part_says_so(tmp_path):
    def forward(x, w):
        return x @ w, (x, w)

    def backward(dy, cache):
        x, w = cache
        return -dy @ w.T, np.tanh(x.T @ np.sin(dy) + 3.5) * 1.75

    verdict = ag.check_backward(forward, backward, (X, rng.normal(size=(3, 2))))
    assert wrong(verdict) == ["dx", "dw"]
    assert [repair.gradients for repair in verdict.repair] == [("x",)]
    assert any(note.endswith("mends dx only, and not dw.") for note in verdict.notes)


def test_what_the_standard_library_does_is_no_effort_of_the_author():
    """As PyTorch, which formats the whole stack at each seed."""

    def called():
        for _ in range(100):
            traceback.format_stack()

    assert effort(called) == 1
    assert effort(lambda: [called() for _ in range(100)]) > 5


def test_a_large_forward_pass_has_fewer_runs_whatever_the_machine_is_at(monkeypatch):
    def forward(x):
        for _ in range(turns[-1]):
            pass
        return np.array(x.tolist()) ** 2, x

    def backward(dy, x):
        return 2 * x * dy

    monkeypatch.setattr("time.process_time", lambda: 1e9)  # no clock is asked
    x, turns, notes = rng.normal(size=(4, 3)), [], []
    for count in (1, 20_000):
        turns.append(count)
        verdict = ag.check_backward(forward, backward, (x,))
        assert verdict.ok
        notes.append([note for note in verdict.notes if "fewer inputs were tried" in note])
    assert not notes[0]
    assert notes[1]


def test_what_is_imported_is_no_effort_of_the_author(monkeypatch):
    for i in range(20_000):
        monkeypatch.setitem(sys.modules, f"imported{i}", sys)
    pair = adapt(_Doubled(), (np.ones((2, 3)),))
    assert effort(lambda: pair.forward(*pair.inputs)) == 1


class _Doubled:
    def forward(self, x):
        return 2 * x

    def backward(self, dy):
        return 2 * dy


def test_zeros_are_right_where_the_output_does_not_depend_on_an_input():
    x = np.random.default_rng(0).normal(size=(4, 3))
    verdict = ag.check_backward(lambda x: (1 + (x - x), x), _zeros, (x,))
    assert (verdict.ok, verdict.status) == (True, "right")
    assert ag.check_backward(lambda x: (x**2, x), _zeros, (x,)).status == "unwritten"


def _zeros(dy, x):
    dx = np.zeros_like(x)
    return dx  # noqa: RET504
