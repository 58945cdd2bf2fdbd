"""Decode's kernels: one-query paged attention and the verification of short query runs."""
