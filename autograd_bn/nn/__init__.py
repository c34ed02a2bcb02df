"""Toy models: modules, losses, optimisers, data and checkpoints."""
