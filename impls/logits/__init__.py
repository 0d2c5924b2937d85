"""Losses of logits: ``cross_entropy``."""
