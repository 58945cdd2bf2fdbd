"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # the tests share cases.py and interpreter_shim.py

if not torch.cuda.is_available():
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise pytest.UsageError("triton was imported before tests/kernels could choose its interpreter")
    os.environ["TRITON_INTERPRET"] = "1"
    import interpreter_shim

    interpreter_shim.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu need CUDA."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))
