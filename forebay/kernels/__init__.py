"""Kernels used by two or more services: each module dispatches to Triton on CUDA and to `reference` elsewhere."""
