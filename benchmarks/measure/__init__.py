"""Measures one training step: the step, its oracle, its meters."""
