"""Batch norm: the two forms against each other."""

import numpy as np

import autograd_bn as ag


def test_composed_form_records_the_nine_operations_in_order():
    x = ag.tensor(np.random.default_rng(0).normal(size=(4, 3)), requires_grad=True)
    y = ag.batch_norm(x, np.ones(3), np.zeros(3), form="composed")
    assert [node.op for node in ag.Graph(y).nodes if node.op] == (
        "mean subtract square mean add rsqrt multiply multiply add".split()
    )
