"""Graphviz out of the pygraphviz wheel, as a program: `python wheel.py svg|pdf`, DOT on stdin, a picture on stdout.

Importing the wheel needs libraries that a bare system lacks, X11 and GLib. What lays out and writes svg needs none of
them, so it is called past the package. Letters are as wide as in the font that is shipped, whatever fonts a system has,
so that the picture is the same on every machine.
"""

import ctypes
import os
import struct
import sys
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FONT = Path(__file__).with_name("fonts") / "DejaVuSans.ttf"


class Font:
    """The widths of a TrueType font's letters, and the height of a line, in ems."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        (count,) = struct.unpack_from(">H", self.data, 4)
        entries = [struct.unpack_from(">4s4xI", self.data, 12 + 16 * i) for i in range(count)]
        self.tables = {tag.decode(): start for tag, start in entries}
        (self.unit,) = self.read("head", 18, "H")
        ascent, descent = self.read("hhea", 4, "hh")
        self.height = (ascent - descent) / self.unit
        (self.widths,) = self.read("hhea", 34, "H")  # glyphs past so many are as wide as the last of them
        self.glyphs = dict(self.segments())

    def read(self, table: str, offset: int, format: str) -> tuple[int, ...]:
        return struct.unpack_from(f">{format}", self.data, self.tables[table] + offset)

    def segments(self) -> Iterator[tuple[int, int]]:
        """Pairs of a code point and its glyph, from a character map of format 4 in which glyphs follow each other."""
        (start,) = self.read("cmap", 8, "I")
        n = self.read("cmap", start + 6, "H")[0] // 2
        ends, starts, deltas = (self.read("cmap", start + 14 + at, f"{n}H") for at in (0, 2 + 2 * n, 2 + 4 * n))
        for first, last, delta in zip(starts, ends, deltas, strict=True):
            for code in range(first, min(last, 0xFFFE) + 1):
                yield code, (code + delta) % 2**16

    def width(self, text: str) -> float:
        """The width of a text. Letters that the font lacks have about what another font gives them."""
        total = 0.0
        for letter in text:
            if (glyph := self.glyphs.get(ord(letter))) is not None:
                total += self.read("hmtx", 4 * min(glyph, self.widths - 1), "H")[0] / self.unit
            elif not unicodedata.combining(letter):
                total += 1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.7
        return total


# --- What Graphviz declares in C: types.h, textspan.h and gvplugin.h -----------------------------------------


def _struct(**fields: Any) -> Any:
    return type("Struct", (ctypes.Structure,), {"_fields_": list(fields.items())})


_int, _text, _double, _pointer = ctypes.c_int, ctypes.c_char_p, ctypes.c_double, ctypes.c_void_p
_Font = _struct(name=_text, color=_text, alias=_pointer, size=_double)
_Size = {"above": _double, "below": _double, "width": _double, "height": _double}
_Span = _struct(text=_text, font=ctypes.POINTER(_Font), layout=_pointer, free_layout=_pointer, **_Size)
_Plugin = _struct(id=_int, type=_text, quality=_int, engine=_pointer, features=_pointer)
_Api = _struct(kind=_int, plugins=ctypes.POINTER(_Plugin))
_Library = _struct(name=_text, apis=ctypes.POINTER(_Api))
_Symbol = _struct(name=_text, library=ctypes.POINTER(_Library))
_TEXT_LAYOUT = 2
_MEASURE = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.POINTER(_Span), _pointer)


def _measuring(font: Font) -> tuple[Any, Any]:
    """A plugin that tells Graphviz how large a text is, and what must outlive its use."""

    def measure(span: Any, _: Any) -> bool:
        text = span.contents
        size = text.font.contents.size
        text.width, text.height = size * font.width(text.text.decode(errors="replace")), size * font.height
        text.above, text.below = 0.0, 0.1 * size
        return True

    function = _MEASURE(measure)
    engine = _pointer(ctypes.cast(function, _pointer).value)
    plugins = (_Plugin * 2)(_Plugin(0, b"textlayout", 100, ctypes.addressof(engine)))
    apis = (_Api * 2)(_Api(_TEXT_LAYOUT, plugins))
    return _Library(b"autograd_bn", apis), (function, engine)


# --- The program ---------------------------------------------------------------------------------------------


def _load(name: str) -> Any:
    """A library in the wheel."""
    spec = find_spec("pygraphviz")
    package = Path(spec.origin or "").parent if spec else Path()
    for folder in (package.with_name("pygraphviz.libs"), package / ".dylibs"):
        for path in sorted(folder.glob(f"lib{name}[-.]*")):
            return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    sys.exit("the pygraphviz that is installed carries no Graphviz: install a wheel of it, or Graphviz on the system")


def draw(source: bytes, format: str, font: Font) -> bytes:
    """The picture of a DOT text as svg; pdf where the system has what the wheel's Pango wants."""
    for name in ("ltdl", "cdt", "pathplan", "xdot"):
        _load(name)
    cgraph, gvc, names = _load("cgraph"), _load("gvc"), ["core", "dot_layout"]
    measuring, _kept = _measuring(font)
    symbols = [_Symbol(b"gvplugin_text_LTX_library", ctypes.pointer(measuring))]
    if format == "pdf":  # Pango draws only what it has measured
        symbols, names = [], [*names, "pango"]
    try:
        loaded = [(f"gvplugin_{name}_LTX_library", _load(f"gvplugin_{name}")) for name in names]
    except OSError as error:
        sys.exit(f"{error}: pdf needs Graphviz on the system, so that `dot` is on PATH")
    symbols += [_Symbol(name.encode(), ctypes.pointer(_Library.in_dll(library, name))) for name, library in loaded]
    gvc.gvContextPlugins.argtypes, gvc.gvContextPlugins.restype = [_pointer, _int], _pointer
    cgraph.agmemread.argtypes, cgraph.agmemread.restype = [_text], _pointer
    gvc.gvLayout.argtypes = [_pointer, _pointer, _text]
    gvc.gvRenderData.argtypes = [_pointer, _pointer, _text, _pointer, _pointer]
    table = (_Symbol * (len(symbols) + 1))(*symbols)
    context, graph = gvc.gvContextPlugins(ctypes.addressof(table), 0), cgraph.agmemread(source)
    picture, length = ctypes.c_char_p(), ctypes.c_size_t()
    if not graph or gvc.gvLayout(context, graph, b"dot"):
        sys.exit("no layout")
    if gvc.gvRenderData(context, graph, format.encode(), ctypes.byref(picture), ctypes.byref(length)):
        sys.exit("no picture")
    return ctypes.string_at(picture, length.value)


if __name__ == "__main__":
    sys.stdout.buffer.write(draw(sys.stdin.buffer.read(), sys.argv[1], Font(FONT)))
    sys.stdout.flush()
    os._exit(0)  # without tidying up: freeing the layout of a graph with a title reads memory that is gone
