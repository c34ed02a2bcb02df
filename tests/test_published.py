"""The published derivations: what the referee must find in each, and the README's table of it."""

from pathlib import Path

import pytest

from notebooks.published import PUBLISHED, table

EXPECTED = {
    "arXiv 1502.03167, section 3, six equations": [],
    "the same without the sum of -2 (x - mean)": [],
    "its code": [],
    "its chain of deltas": [],
    "its simplified formula": [],
    "dx, with the first line of d mean": ["wrong factor"],
    "dx, with the last line of d mean": ["wrong factor", "wrong factor"],
    "the step of b that ignores E[x]": ["missing path"],
    "E[x] as a sum, without 1 / N": ["sum for mean"],
}


@pytest.mark.parametrize("derivation", PUBLISHED, ids=lambda d: d.formula)
def test_each_derivation_is_judged_by_its_mistakes(derivation):
    verdict = derivation.judge()
    assert [finding.kind for finding in verdict.diagnosis] == EXPECTED[derivation.formula], str(verdict)
    assert verdict.ok is (not EXPECTED[derivation.formula])


def test_both_forms_of_the_paper_are_right_and_the_term_between_them_is_said_to_be_zero():
    for derivation in PUBLISHED[:2]:
        verdict = derivation.judge()
        assert [row.name for row in verdict.rows] == ["dx", "dgamma", "dbeta", "dxhat", "dvar", "dmean"]
        assert any("No input can show it" in note for note in verdict.notes)


def test_the_readme_holds_the_table():
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    _, shown, _ = readme.split("<!-- published -->")
    assert shown.strip() == table()
