"""The gradient checker, checked: what it must catch, what it must pass, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn.engine.primitive import primitive
from tests.mutants import Pair, correct, mutants


def recorded(pair: Pair):
    """A hand-written pair as a function of tensors, whose rule is the pair's backward."""

    @primitive(lambda g, wanted, kept: pair.backward(g, kept), joint=True)
    def handwritten(x, gamma, beta, /):
        return pair.forward(x, gamma, beta)

    return lambda x, gamma, beta: handwritten(x, gamma, beta)[0]


def seen_by_an_engine(pair: Pair) -> bool:
    """Whether a mistake is one where gradients are summed over broadcast axes after the rule."""
    return bool(pair.changes) and "for every row" not in pair.name


def caught(pair: Pair, seed: int = 1) -> bool:
    with np.errstate(all="ignore"):
        try:
            ag.gradcheck(recorded(pair), pair.inputs(seed))
        except ag.GradientError:
            return True
        return False


def test_the_suite_has_the_size_it_claims():
    assert sum(map(seen_by_an_engine, mutants())) >= 150
    assert len({pair.source for pair in correct()}) >= 100
    assert not any(pair.changes for pair in correct())


@pytest.mark.parametrize("part", range(8))
def test_every_wrong_backward_is_caught(part):
    assert [pair.name for pair in mutants()[part::8] if caught(pair) != seen_by_an_engine(pair)] == []


@pytest.mark.parametrize("part", range(8))
def test_no_right_backward_is_refused(part):
    assert [pair.name for pair in correct()[part::8] if caught(pair)] == []
