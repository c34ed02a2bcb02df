"""Batch norm as a composition of primitives and as one fused node."""

from .definition import batch_norm
from .threads import set_num_threads

__all__ = ["batch_norm", "set_num_threads"]
