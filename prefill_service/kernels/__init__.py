"""Prefill's kernels: paged causal attention of long query runs."""
