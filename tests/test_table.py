"""Tables: as text and as HTML."""

from autograd_bn.verify.table import html_table, text_table

HEAD, BODY = ["name", "", "n"], [["a", "bc", "100"], ["longer", "", "7"]]


def test_columns_are_aligned_and_lines_end_without_blanks():
    assert text_table(HEAD, BODY, right=[2]).splitlines() == [
        "name          n",
        "---------------",
        "a       bc  100",
        "longer        7",
    ]
    assert text_table(HEAD, []).splitlines()[0] == "name    n"


def test_html_has_every_cell_and_escapes_it():
    table = html_table(["<b>"], [["x & y"], ['"']])
    assert table.count("<tr>") == table.count("</tr>") == 3
    assert "<th>&lt;b&gt;</th>" in table
    assert "<td>x &amp; y</td>" in table
    assert "<td>&quot;</td>" in table
