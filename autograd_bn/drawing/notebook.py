"""What a notebook shows of a graph and of a tensor that has one."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from ..engine import Graph
from .layout import draw
from .picture import to_dot

MOST = 200  # nodes of a graph that is drawn without being asked for


def html(shown: Any) -> str | None:
    """The text of a graph or a tensor and below it the picture; None where the text is all there is to show."""
    graph = shown if isinstance(shown, Graph) else Graph(shown)
    if len(graph) > MOST or not graph.ops:
        return None
    try:
        picture = base64.b64encode(draw(to_dot(graph).source, "svg")).decode()
    except RuntimeError:  # there is no Graphviz, or it needs too long
        return None
    text = escape(repr(shown), quote=True)
    # An image also survives in a notebook that isn't trusted.
    return f'<pre>{text}</pre><img alt="{text}" style="max-width:100%" src="data:image/svg+xml;base64,{picture}">'
