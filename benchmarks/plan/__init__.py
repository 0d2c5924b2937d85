"""Predicts what each loss needs at any size, from a step on tensors without elements."""
