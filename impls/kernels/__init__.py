"""Kernels in C++ and Triton, each used by one file of ``impls``."""
