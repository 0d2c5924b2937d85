"""Losses of hidden states and a classifier's weight: ``linear_cross_entropy(input, linear_weight, target)``."""
