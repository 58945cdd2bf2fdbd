"""Kernels used by two or more services; a module dispatches to Triton on CUDA, to its reference elsewhere."""
