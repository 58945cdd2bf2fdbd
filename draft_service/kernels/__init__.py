"""Drafting kernels: n-gram lookup and the draft model's paged attention."""
