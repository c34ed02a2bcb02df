"""Sums over the ranks of an MPI job, as nodes of the graph. mpi4py is the caller's: nothing here imports it."""

from .collectives import allreduce
from .gradients import average_gradients, share, sum_gradients
from .leaving import end_together

__all__ = ["allreduce", "end_together", "average_gradients", "share", "sum_gradients"]
