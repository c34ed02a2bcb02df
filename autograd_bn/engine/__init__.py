"""The engine: tensors, the operations on them with their derivatives, and the backward pass."""

from . import operations, protocols as protocols
from .backward import grad
from .functional import hessian, jacobian, jvp
from .graph import Graph
from .node import Leaf, Node, no_grad
from .numpy_functions import erf
from .operations import *  # noqa: F403
from .primitive import primitive
from .tensor import Tensor, as_tensor, tensor

__all__ = [
    "Graph",
    "Leaf",
    "Node",
    "Tensor",
    "as_tensor",
    "erf",
    "grad",
    "hessian",
    "jacobian",
    "jvp",
    "no_grad",
    "primitive",
]
__all__ += ["tensor"]
__all__ += operations.__all__
