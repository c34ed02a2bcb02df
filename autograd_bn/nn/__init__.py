"""Toy models: layers, losses, optimisers, data and checkpoints, with PyTorch's habits."""

from . import data as data, optim as optim
from .layers import AvgPool2d, BatchNorm, Conv2d, Dropout, Flatten, LayerNorm, Linear, MaxPool2d, ReLU, Sigmoid, Tanh
from .losses import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from .module import Module, Sequential

__all__ = ["AvgPool2d", "BatchNorm", "Conv2d", "Dropout", "Flatten", "LayerNorm", "Linear", "MaxPool2d", "Module"]
__all__ += ["ReLU", "Sequential", "Sigmoid", "Tanh", "binary_cross_entropy_with_logits", "cross_entropy", "mse_loss"]
