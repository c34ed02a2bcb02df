"""What is handed out: the text of a backward pass, and both functions, compiled from it."""

import html
import itertools
import keyword
import linecache
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...files import is_one_file, whole
from ..table import PRE

COLOURS = {"comment": "#6a737d", "word": "#d73a49", "number": "#005cc5"}
_count = itertools.count(1)


@dataclass(frozen=True, repr=False)
class Derivation:
    """A forward and a backward pass as NumPy code: `source`, and both functions, compiled from exactly that text.

    `forward(*inputs)` gives y (or several outputs) and the cache, `backward(dy, cache)` the gradients of the inputs.
    `inputs` are those that it was read off.
    """

    source: str
    forward: Callable[..., Any] = field(compare=False)
    backward: Callable[..., Any] = field(compare=False)
    inputs: Mapping[str, Any] = field(default_factory=dict, compare=False)
    read: str = field(default="", compare=False)  # the author's file

    def __repr__(self) -> str:
        return self.source

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the source to a file, and return its path; `ValueError` for the author's own file."""
        if is_one_file(path, self.read):
            raise ValueError(f"path is {os.fspath(path)!r}, the file that was read, expected another")
        with whole(path) as file:
            file.write(self.source.encode())
        return Path(path)

    def _repr_html_(self) -> str:
        """With its comments, keywords and numbers in colour."""
        pattern = rf"(?P<comment>#.*)|(?P<word>\b(?:{'|'.join(keyword.kwlist)})\b)|(?P<number>\b\d[\d.e-]*)"
        coloured = lambda match: f'<span style="color:{COLOURS[match.lastgroup]}">{match[0]}</span>'
        return f"{PRE}{re.sub(pattern, coloured, html.escape(self.source, quote=False))}</pre>"


def executed(text: str, space: dict[str, Any]) -> dict[str, Any]:
    """What a text defines, in a space of its own that has these names."""
    where = f"<written {next(_count)}>"
    linecache.cache[where] = len(text), None, text.splitlines(True), where  # for whoever reads its source
    exec(compile(text, where, "exec"), space)
    return space
