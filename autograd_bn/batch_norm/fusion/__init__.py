"""Spelled-out batch norm and the fused node: each rewritten into the other, and the names of the parts."""

from .rewrite import expand, fuse, roles

__all__ = ["expand", "fuse", "roles"]
