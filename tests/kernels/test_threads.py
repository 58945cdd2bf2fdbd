"""A small step uses half of the threads; results do not show it."""

import torch

from forebay.kernels.threads import MAX_FEW_TOKENS, threads_for
from forebay.model.linear import Linear

CPU = torch.device("cpu")


def test_small_steps_use_half_of_the_threads_and_give_them_back() -> None:
    before = torch.get_num_threads()
    try:
        for num_threads, few in ((1, 1), (2, 1), (4, 2)):
            torch.set_num_threads(num_threads)
            with threads_for(MAX_FEW_TOKENS, CPU):
                assert torch.get_num_threads() == few
            assert torch.get_num_threads() == num_threads
            with threads_for(MAX_FEW_TOKENS + 1, CPU):
                assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)


def test_linear_layers_have_the_same_bits_with_any_threads() -> None:
    before = torch.get_num_threads()
    linear, x = Linear(torch.randn(960, 576)), torch.randn(32, 576)
    try:
        torch.set_num_threads(2)
        expected = linear(x)
        torch.set_num_threads(1)
        assert all(torch.equal(linear(x[:rows]), expected[:rows]) for rows in (1, 2, 8, 32))
    finally:
        torch.set_num_threads(before)
