"""Lints: a batch norm whose gradient does not cancel is found, a bias before one is redundant, and nothing else is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_bn as ag
from autograd_bn.engine.primitive import registry

FORMS = ["fused", "composed"]


def leaf(*shape, name=None, seed=0, dtype="float64"):
    data = np.random.default_rng(seed).normal(size=shape).astype(dtype)
    return ag.tensor(data, requires_grad=True, name=name)


@given(
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=4).map(tuple),
    axis=st.integers(0, 3),
    offset=st.sampled_from([0.0, 1.0, -300.0, 1e4]),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
    form=st.sampled_from(FORMS),
    eps=st.sampled_from([1e-5, 1e-2]),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_a_right_gradient_is_never_reported(shape, axis, offset, dtype, form, eps, seed):
    axis %= len(shape)
    if dtype == "float16":
        eps, offset = 0.1, offset / 100  # its range ends at 65,504
    rng = np.random.default_rng(seed)
    data = rng.normal(offset, 1, size=shape)
    data[..., 0] = offset
    x = ag.tensor(data.astype(dtype), requires_grad=True)
    gamma = leaf(*(n if i == axis else 1 for i, n in enumerate(shape)), dtype=dtype)
    gamma.data.flat[0] = 0
    axes = tuple(i for i in range(len(shape)) if i != axis)
    y = ag.batch_norm(x, gamma, axes=axes, form=form, eps=eps)
    report = ag.lint(ag.tanh(y), seed=seed)
    assert report.ok, str(report)
    assert report.checked == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.0, 0.999, -1.0])
def test_a_wrong_path_through_the_mean_of_the_fused_node_is_reported(monkeypatch, share, dtype):
    right = registry["batch_norm"].rules[0]

    def wrong(g, wanted, x, gamma, beta, mean, var, eps, kept, axes, stop, comm):
        read = (x, gamma, beta, mean, var, eps, kept, axes)
        dx, *others = right(g, wanted, *read, stop, comm)
        without, *_ = right(g, wanted, *read, stop | {"mean"}, comm)
        return without + share * (dx - without), *others

    monkeypatch.setattr(registry["batch_norm"], "rules", (wrong,))
    x = leaf(64, 3, name="x", dtype=dtype)
    y = ag.batch_norm(x, leaf(3, dtype=dtype))
    y.name = "y"
    report = ag.lint(ag.exp(y))
    assert [finding.node for finding in report.findings] == [y.node]
    assert "the gradient of its input 'x' sums to" in str(report)
    assert "over axes (0,) at feature (0, 0), and must sum to 0" in str(report)


def test_a_wrong_derivative_inside_a_spelled_out_batch_norm_is_reported(monkeypatch):
    right = registry["mean"].rules[0]

    def wrong(g, shape, axis, keepdims):
        return 0.999 * right(g, shape, axis, keepdims)

    monkeypatch.setattr(registry["mean"], "rules", (wrong,))
    x = leaf(64, 3)
    assert not ag.lint((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)).ok


@pytest.mark.parametrize("form", FORMS)
def test_where_the_sum_need_not_be_zero_nothing_is_checked(form):
    x, b = leaf(4, 3), leaf(3, seed=1)
    mean, var = np.zeros(3), np.ones(3)
    for y in (
        ag.batch_norm(x + b, stop=("mean",), form=form),
        ag.batch_norm(x + b, stop=("mean", "var"), form=form),
        ag.batch_norm(x + b, mean=mean, var=var, form=form),
        ag.batch_norm(ag.tensor(np.ones((0, 3)), requires_grad=True) + b, form=form),
    ):
        assert (ag.lint(y).checked, ag.lint(y).findings) == (0, ())
    assert ag.lint(ag.batch_norm(x, stop=("var",), form=form)).checked == 1


@pytest.mark.parametrize("form", FORMS)
def test_other_ways_to_the_input_do_not_count(form):
    x = leaf(5, 3)
    gate = ag.sigmoid(x.mean(0))
    y = ag.batch_norm(x, gate, form=form) + ag.batch_norm(x, leaf(3), form=form) * 2 + x * x
    assert ag.lint(y, x.sum()).ok
    assert ag.lint(y).checked == 2


def test_without_gradients_there_is_nothing_to_sum():
    report = ag.lint(ag.batch_norm(ag.tensor(np.arange(6.0).reshape(3, 2))))
    assert (report.checked, report.ok) == (1, True)
    assert str(report) == "1 batch norm checked, nothing found"


def placed(b, how):
    """An input of shape (2, 3, 4) with a bias in it, and the axes of a batch norm that takes the bias away."""
    w = leaf(5, 4, seed=3)
    h = leaf(6, 5, seed=2) @ w
    return {
        "before a reshape": lambda: ((h + b).reshape(2, 3, 4), (0, 1)),
        "after it": lambda: (b + h.reshape(2, 3, 4), (0, 1)),
        "as a row": lambda: ((h + b.reshape(1, 4)).reshape(2, 3, 4), (0, 1)),
        "broadcast": lambda: (h.reshape(2, 3, 4) - ag.broadcast_to(b[None], (2, 3, 4)), (0, 1)),
        "one of three": lambda: ((h + b + 1).reshape(2, 3, 4) + leaf(2, 3, 4), (0, 1)),
        "transposed": lambda: ((h + b).reshape(2, 3, 4).transpose(2, 0, 1), (1, 2)),
    }[how]()


@pytest.mark.parametrize("form", [*FORMS, "spelled"])
@pytest.mark.parametrize("how", ["before a reshape", "after it", "as a row", "broadcast", "one of three", "transposed"])
def test_a_bias_just_before_is_redundant(how, form):
    b = leaf(4, name="b")
    x, axes = placed(b, how)
    if form == "spelled":
        y = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    else:
        y = ag.batch_norm(x, axes=axes, form=form)
    (finding,) = ag.lint(y).findings
    assert finding.node is b.node
    assert "redundant" in finding.text
    (gradient,) = ag.grad(y, b, [np.random.default_rng(5).normal(size=y.shape)])
    assert np.abs(gradient).max() < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_that_does_something_is_left_alone(form):
    h = leaf(4, 3)
    across, full, shared = leaf(4, 1), leaf(4, 3, seed=1), leaf(3)
    used = h + leaf(3, seed=4)
    for y in (
        ag.batch_norm(h + across, form=form),
        ag.batch_norm(h + full, form=form),
        ag.batch_norm(ag.relu(h + leaf(3)), form=form),
        ag.batch_norm(h * leaf(3), form=form),
        ag.batch_norm(h + shared, form=form) * shared,
        ag.batch_norm(used, form=form) + used,
        ag.batch_norm(h, leaf(3), leaf(3), form=form),
        ag.batch_norm(h + np.ones(3), form=form),
    ):
        assert ag.lint(y).ok, str(ag.lint(y))
    assert ag.lint(ag.batch_norm(used, form=form), used).ok
    assert not ag.lint(ag.batch_norm(used, form=form)).ok


def test_a_model_of_layers_is_told_by_name():
    rng = np.random.default_rng(0)
    model = ag.nn.Sequential(
        ag.nn.Linear(3, 4, rng=rng),
        ag.nn.BatchNorm(4),
        ag.nn.ReLU(),
        ag.nn.Linear(4, 4, rng=rng),
        ag.nn.Linear(4, 2, rng=rng),
    )
    for name, parameter in model.named_parameters():
        parameter.name = name
    report = ag.lint(model(rng.normal(size=(8, 3))))
    assert report.checked == 1
    assert str(report).count("redundant") == 1
    assert report.findings[0].node.name == next(n for n, _ in model.named_parameters() if n.endswith("bias"))


def test_an_overwritten_leaf_raises():
    x, w = leaf(4, 3), leaf(3)
    y = ag.batch_norm(x * w)
    w.assign(w.data * 2)
    with pytest.raises(RuntimeError, match="overwritten"):
        ag.lint(y)
