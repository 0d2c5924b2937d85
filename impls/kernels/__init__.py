"""The kernels that our losses call: one in Triton for CUDA, one in C++ for the CPU."""
