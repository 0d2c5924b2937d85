"""Describes where a number is measured: machine, threads, allocator, GPU state."""
