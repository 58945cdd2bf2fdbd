"""The KServe dialect (open inference protocol v2 with Triton's streams): text in and out as tensors."""
