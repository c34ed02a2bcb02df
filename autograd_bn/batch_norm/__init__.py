"""Batch norm as a composition of primitives and as one fused node."""

from .definition import batch_norm

__all__ = ["batch_norm"]
