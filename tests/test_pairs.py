"""The set of hand-written pairs behind the referee's figures: right ones are right, and every slip shows."""

import numpy as np
import pytest

from tests.bench.referee import AREAS, cases, right

CASES = list(cases())


@pytest.mark.parametrize("area", AREAS)
def test_every_pair_is_what_it_is_taken_for(area):
    here = [case for case in CASES if case.area == area]
    assert len(here) >= 16
    if area == "kinks":
        return  # no difference judges them
    with np.errstate(all="ignore"):
        assert [case.title for case in here if right(case) == bool(case.slip)] == []


def test_both_halves_hold_their_share():
    wrong = [case for case in CASES if case.slip]
    held = [case for case in wrong if case.half == "held"]
    assert len(CASES) >= 300
    assert 0.4 < len(held) / len(wrong) < 0.6
    assert {case.name for case in held}.isdisjoint({case.name for case in wrong if case.half == "train"})
