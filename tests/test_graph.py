"""`Graph`: its nodes, its counts, the bytes it holds, and values computed anew."""

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.engine.graph import Values

rng = np.random.default_rng(0)


def leaf(*shape, **options):
    return ag.tensor(rng.normal(size=shape), requires_grad=True, **options)


def test_nodes_ops_and_len():
    x, w = leaf(5, 3, name="x"), leaf(3, 2, name="w")
    y = ag.tanh(x @ w).mean(axis=0)
    graph = ag.Graph(y, y * 2)
    assert [node.op for node in graph.nodes] == [None, None, "matmul", "tanh", "mean", "multiply"]
    assert [node.name for node in graph.nodes[:2]] == ["x", "w"]
    assert graph.nodes[4].params == {"axis": 0, "keepdims": False}
    assert [node.shape for node in graph.nodes[2:4]] == [(5, 2), (5, 2)]
    assert graph.nodes[3].inputs == (graph.nodes[2],)
    assert graph.ops == {"matmul": 1, "tanh": 1, "mean": 1, "multiply": 1}
    assert len(graph) == 6
    assert "tanh" in repr(graph)


def test_saved_bytes_counts_what_is_kept_and_each_buffer_once():
    x = leaf(10, 10)
    assert ag.Graph(x + 1).saved_bytes == 0
    assert ag.Graph((x * 2 + x) * 3).saved_bytes == 0
    e = ag.exp(x)
    assert ag.Graph(e).saved_bytes == 800
    assert ag.Graph(e * e.T + e[:5].sum()).saved_bytes == 800
    assert ag.Graph(e * leaf(10, 10)).saved_bytes == 800  # a leaf's memory is its own
    assert ag.Graph(ag.tanh(e * 2)).saved_bytes == 1600
    constant = np.ones((10, 10))
    assert ag.Graph(x * constant).saved_bytes == 800


def test_a_value_that_nothing_reads_is_freed():
    x = leaf(10)
    y = x * 2
    buffer = y.data
    z = y * 3 + 1
    del y
    held = [value for node in ag.Graph(z).nodes for value in node.saved]
    assert not any(value is buffer for value in held)


def test_values_are_the_same_to_the_bit():
    x, w = leaf(6, 3, dtype=np.float32), leaf(3, 3, dtype=np.float32)
    steps = [x @ w]
    steps.append(ag.batch_norm(steps[-1]))
    steps.append(ag.sigmoid(steps[-1]))
    steps.append(ag.log_softmax(steps[-1]) * 0.3)
    steps.append(steps[-1][1:, [0, 1]].max(axis=0))
    values = ag.Graph(steps[-1]).values()
    for step in steps:
        assert np.array_equal(values[step.node], step.data)
    assert values[x.node] is x.data
    x.assign(np.zeros((6, 3)))
    with pytest.raises(RuntimeError, match="overwritten"):
        ag.Graph(steps[-1]).values()


def test_values_of_scalars_are_the_same_to_the_bit():
    for _ in range(20):
        x, p = leaf(dtype=np.float32), leaf(dtype=np.float32)
        steps = [x * x + 1]
        steps += [ag.power(x * x, p), ag.exp(p) ** x.detach().sum(), ag.sigmoid(x) / p]
        values = ag.Graph(*steps).values()
        assert all(np.array_equal(values[step.node], step.data) for step in steps)
    powers = [ag.tensor(base) ** 1.7 for base in rng.uniform(1, 2, 99)]  # which save nothing
    assert all(ag.Graph(y).values()[y.node].tobytes() == y.data.tobytes() for y in powers)
    x = ag.tensor(np.array([1, 2], dtype=object), requires_grad=True)
    (g,) = ag.grad(x[0] * x[0], x, create_graph=True)
    assert ag.Graph(g).values()[g.node].tolist() == [2, 0]


def test_bad_outputs():
    with pytest.raises(ValueError, match="at least one"):
        ag.Graph()
    with pytest.raises(TypeError, match=r"outputs\[1\] is a int"):
        ag.Graph(leaf(), 3)


def test_values_of_another_pass_are_never_shown():
    w = ag.tensor([1.0, 2.0], requires_grad=True, name="w")
    y = ag.exp(w * 2)  # nothing saves w itself
    w.assign([5.0, 6.0])
    with pytest.raises(RuntimeError, match="'w' of 'multiply' was overwritten"):
        ag.Graph(y).values()
    y.sum().backward()
    np.testing.assert_allclose(w.grad, 2 * np.exp([2.0, 4.0]))  # what was saved is still right


def test_a_value_is_computed_from_far_below_it_and_what_was_saved_is_not_computed_again():
    x, calls = leaf(3), []

    @ag.primitive(lambda g, out: g * out)
    def counted(x, /):
        calls.append(1)
        return np.exp(x)

    y = z = counted(x) * np.arange(3.0)
    for _ in range(5000):
        z = z + 1
    values = Values(ag.Graph(z).nodes)
    assert np.array_equal(values[z.node], z.data)
    assert np.array_equal(values[y.node], y.data)
    assert len(calls) == 1


def test_saved_bytes_counts_what_a_joint_rule_keeps():
    @ag.primitive(lambda g, wanted, kept: (g * kept[0],), joint=True)
    def twice(x, /):
        return 2 * x, (np.full(x.shape, 2.0), [np.ones(7)])

    y, _ = twice(leaf(10))
    assert ag.Graph(y).saved_bytes == 8 * 17
