"""Batch norm as a composition of primitives and as one fused node."""

from .definition import batch_norm
from .kernels import set_backend
from .kernels.threads import set_num_threads

__all__ = ["batch_norm", "set_backend", "set_num_threads"]
