"""Toy models: layers, losses, optimisers, data and checkpoints, with PyTorch's habits."""

from typing import Any

from . import data as data, optim as optim
from .layers import AvgPool2d, BatchNorm, Conv2d, Dropout, Flatten, LayerNorm, Linear, MaxPool2d, ReLU, Sigmoid, Tanh
from .losses import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from .module import Module, Sequential

__all__ = ["AvgPool2d", "BatchNorm", "Conv2d", "Dropout", "Flatten", "LayerNorm", "Linear", "MaxPool2d", "Module"]
__all__ += ["ReLU", "Sequential", "Sigmoid", "Tanh", "binary_cross_entropy_with_logits", "cross_entropy", "mse_loss"]

_OURS = {
    "BatchNorm1d": "nn.BatchNorm(num_features)",
    "BatchNorm2d": "nn.BatchNorm(num_features), of images (N, H, W, C)",
    "BCEWithLogitsLoss": "nn.binary_cross_entropy_with_logits(logits, targets)",
    "CrossEntropyLoss": "nn.cross_entropy(logits, labels)",
    "functional": "nn.cross_entropy, ag.relu, ag.softmax and their like",
    "ModuleDict": "attributes, each a module",
    "ModuleList": "a list of modules, set as an attribute",
    "MSELoss": "nn.mse_loss(prediction, target)",
    "NLLLoss": "nn.cross_entropy(logits, labels), of logits themselves",
    "Parameter": "ag.tensor(data, requires_grad=True), set as an attribute",
    "Softmax": "ag.softmax(x, axis=-1)",
}


def __getattr__(name: str) -> Any:
    ours = f": write {_OURS[name]}" if name in _OURS else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{ours}")
