"""Spelled-out batch norm and the fused node: each rewritten into the other, and the names of the parts."""

from .rewrite import expand, fuse, norms

__all__ = ["expand", "fuse", "norms"]
