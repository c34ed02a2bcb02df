"""Graphviz at work: DOT becomes svg, png or pdf."""

from __future__ import annotations

import shutil
import subprocess
import sys

# Graphviz may overflow its stack on a graph of some 100,000 nodes, and prints what it pleases: the wheel's
# works in an interpreter of its own, so that neither reaches the caller.
_WHEEL = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot", args=sys.argv[2]))
"""
RESOLUTION = {"png": "-Gdpi=144"}


def draw(source: str, format: str) -> bytes:
    """The picture of a DOT text, as a file of the given format.

    A `dot` on PATH draws it, else the Graphviz that the pygraphviz wheel carries. `RuntimeError` where there
    is neither, or where it fails.
    """
    resolution = RESOLUTION.get(format, "")
    if dot := shutil.which("dot"):
        command = [dot, f"-T{format}", *resolution.split()]
    else:
        try:
            import pygraphviz  # noqa: F401
        except ImportError:
            raise RuntimeError(
                f"drawing {format} needs Graphviz: install it on the system, so that `dot` is on PATH, or "
                "pip install 'pygraphviz>=2', which carries it; .dot files need neither"
            ) from None
        command = [sys.executable, "-P", "-c", _WHEEL, format, resolution]
    done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines and done.returncode > 0 else f"exit status {done.returncode}"
        raise RuntimeError(f"Graphviz failed to draw {format} ({reason}); a .dot file can still be written")
    return done.stdout
