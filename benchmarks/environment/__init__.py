"""Describes what a number depends on beside the loss: machine, threads, allocator, GPU state."""
