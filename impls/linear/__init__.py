"""Losses of hidden states: ``linear_cross_entropy(input, linear_weight, target)``."""
