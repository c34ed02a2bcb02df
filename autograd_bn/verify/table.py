"""Tables of results: as text for terminals, as HTML for notebooks."""

import html
import re
from collections.abc import Collection, Sequence

PRE = '<pre style="font-family:monospace">'  # a notebook exported to HTML shows a bare <pre> in letters of any width


def text_table(head: Sequence[str], body: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """A table in columns as wide as their widest cell; the columns `right` are flush right.

    >>> print(text_table(["name", "ulp"], [["dx", "0.5"], ["dgamma", "12.25"]], right=[1]))
    name      ulp
    -------------
    dx        0.5
    dgamma  12.25
    """
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *body)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def html_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The same as HTML, every cell as typed.

    >>> html_table(["a"], [["1 < 2"]])
    '<table><tr><th>a</th></tr><tr><td>1 &lt; 2</td></tr></table>'
    """

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(cells, 'td') for cells in body)}</table>"


def html_prose(text: str) -> str:
    """Prose as HTML, with what stands between backticks as code.

    >>> html_prose("put `a < b` here")
    'put <code>a &lt; b</code> here'
    """
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))
