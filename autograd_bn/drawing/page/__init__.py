"""A page that steps through a graph, forward and back: one HTML file that needs nothing else, and no network."""

import base64
import hashlib
import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Unpack

from ...engine.graph import Values
from ...files import ending, path_of
from ..dot import CARD
from ..options import DEFAULTS, Options, named, settled
from ..run_graphviz import write
from ..scene import scene_of, seeds
from .arrays import Arrays
from .reports import REPORTS, of_report
from .svg import draw_view
from .views import BRIEF, MOST, Twins, View

ALONE = 8  # fused nodes that have a view of their own


@dataclass(frozen=True, repr=False)
class Page:
    """A page: `str()` is its HTML, `save` writes it, and a notebook shows it with its still picture above it."""

    html: str
    still: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"<Page of {len(self.html):,} characters>"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, whole or not at all, and return its path."""
        if (path := path_of(path)).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"path {str(path)!r} {ending(path)}, expected .html")
        return write(path, self.html.encode())

    def _repr_html_(self) -> str:
        picture = base64.b64encode(self.still.encode()).decode()
        # In a notebook that is not trusted style and frame are taken out, and the picture is left.
        return (
            '<style>img[alt="the graph"]:has(+ iframe) {display: none}</style>'
            f'<img alt="the graph" src="data:image/svg+xml;base64,{picture}" style="{CARD}">'
            f'<iframe sandbox="allow-scripts" title="the graph, step by step" srcdoc="{escape(self.html)}" '
            'style="width:100%;height:820px;border:0"></iframe>'
        )


@named
def page(outputs: Any, **options: Unpack[Options]) -> Page:
    """A page that steps through the graph below `outputs` forward and back, with the options of `render`.

    It shows every operation in topological order and every visit of the backward pass in the engine's, with the value,
    the incoming gradient, the local derivative and each share; a fused batch norm opens into its composed body; and
    where 2 to 16 paths lead to a leaf, what each carries. It is one offline HTML document; `save(path)` writes it.

    `outputs` may also be a `Comparison`, which shows both graphs side by side, each node with its errors in ulp, or a
    `Verdict` or a `GradientError`: then the page opens at the first wrong step.

    Values and gradients are shown unless False. For an output of more than one element `grads` is an array of its
    shape, without which the page steps forward only. Equal blocks or time steps in a row are
    one with "× 20", which opens. `expand=True` shows the open form first, and every block. A page has at most 1,500
    nodes (`ValueError` for more), and above 200 summaries of all arrays.

    >>> import autograd_bn as ag
    >>> x = ag.tensor([1.0, 2.0], requires_grad=True, name="x")
    >>> str(ag.page((x * x).sum()))[:15]
    '<!doctype html>'
    """
    options, arrays = settled(options), Arrays()
    direction, grads, expand = options["direction"], options["grads"], options["expand"]
    plain = {**DEFAULTS, "direction": direction}
    if isinstance(outputs, REPORTS):
        if any(value is not default for value, default in zip(options.values(), plain.values(), strict=True)):
            raise ValueError(f"options but direction are for tensors, outputs is a {type(outputs).__name__}")
        title, views, twins, code = of_report(outputs, arrays)
        return _document(title, views, twins, direction, beside=bool(twins), code=code)
    scene = scene_of(outputs, options, opened=True)
    ends = scene.graph.outputs
    start, why = seeds(scene.graph, grads is None or grads), ""
    if start is None and grads is not False:
        shape = next(node.shape for node in ends if math.prod(node.shape) != 1)
        why = f"There is no backward pass: an output has shape {shape}, so pass its gradient as grads=."
    elif start and not any(node.requires_grad for node in ends):
        why = "There is no backward pass: nothing requires a gradient."
    fused = [node for node in scene.shown if node.own_op == "batch_norm"]
    known, forms = Values(scene.graph.nodes), {"closed" if fused else "graph": scene}
    opened = scene.opened(fused, known)
    if fused and (expand or len(opened.shown) <= MOST):
        forms["open"] = opened
    if len(fused) > 1 and all(len(form.shown) <= BRIEF for form in forms.values()):
        forms |= {f"open {k}": scene.opened([node], known) for k, node in enumerate(fused[:ALONE], 1)}
    views = [View(name, form, start, arrays, options["values"] is not False, why) for name, form in forms.items()]
    form = "fused batch norm" if fused else "composed batch norm" if "x̂" in views[0].roles.values() else ""
    names = ", ".join([node.name for node in ends if node.name])
    what = ": ".join(filter(None, [names, form])) or f"A graph of {len(scene.graph.nodes)} nodes"
    title = f"{what}, step by step"
    return _document(title, views, _twins(views), direction, start=int(expand and bool(fused)), fold=not expand)


def _twins(views: list[View]) -> Twins:
    """Of each other view the node of the first, and of the first that of the second: of a body the last one."""
    first, twins = views[0], Twins()
    for other in views[1:]:
        back = {str(i): first.ids[other.scene.origin(node)] for node, i in other.ids.items()}
        twins.setdefault(first.name, {str(there): int(i) for i, there in back.items()})
        twins[other.name] = back
    return twins


def _document(
    title: str,
    views: list[View],
    twins: Twins,
    direction: str | None,
    *,
    start: int = 0,
    fold: bool = True,
    beside: bool = False,
    code: str = "",
) -> Page:
    """The HTML of a page, the same bytes for the same graph."""
    folder = files(__package__)
    parts = {name: (folder / f"page.{name}").read_text("utf-8") for name in ("css", "js", "html")}
    css, js = (" ".join([line.strip() for line in parts[name].splitlines()]) for name in ("css", "js"))
    with ThreadPoolExecutor() as pool:  # Graphviz, a program of its own, draws while the steps are written
        drawn = [pool.map(partial(draw_view, made, direction=direction or "TB"), made.pictures) for made in views]
        data = {"format": "autograd-bn-page", "version": 1, "beside": beside, "start": start, "twin": twins}
        data |= {"fold": fold, "views": [made.data for made in views], "arrays": views[0].arrays.listed}
        svgs = [list(pictures) for pictures in drawn]
    text = json.dumps(data, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    fill = {
        "title": escape(title),
        "policy": f"default-src 'none'; style-src {_hash(css)}; script-src {_hash(js)}; base-uri 'none'",
        "css": css,
        "js": js,
        "data": text,
        "code": code,
        "stages": "".join([_stage(made, svgs[i], beside or i == start) for i, made in enumerate(views)]),
        "steps": "".join([f"<li>{escape(step['say'])}</li>" for step in views[start].data["steps"]]),
    }
    html = re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], parts["html"])
    still = svgs[start][-1].replace(">", "><style>text{stroke:none}</style>", 1)
    still = re.sub(r'viewBox="\S+ \S+ (\S+) (\S+)"', r'\g<0> width="\1" height="\2"', still, count=1)
    return Page(html.encode("utf-8", "backslashreplace").decode(), still)


def _stage(made: View, svgs: list[str], shown: bool) -> str:
    name, hidden = escape(made.name), "" if shown else " hidden"
    full, *folded = svgs
    drawn = "".join([full, *[svg.replace("<svg", "<svg hidden", 1) for svg in folded]])
    return f'<section class="stage" aria-label="Graph, {name}"{hidden}><p>{name}</p>{drawn}</section>'


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
