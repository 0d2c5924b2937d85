"""Losses of logits that exist: ``cross_entropy(input, target)``."""
