"""Batch norm as a composition of primitives and as one fused node.

`definition` has both forms and the derivative, `norm` checks the arguments, `arithmetic` and `kernels` compute, `ranks`
sums over processes, and `fusion` turns one form of a graph into the other.
"""

from .definition import batch_norm
from .kernels import set_backend
from .kernels.threads import set_num_threads

__all__ = ["batch_norm", "set_backend", "set_num_threads"]
