"""Triton kernels that our losses launch."""
