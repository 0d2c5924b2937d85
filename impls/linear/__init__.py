"""Losses of hidden states and the classifier's weight: ``linear_cross_entropy``."""
