"""How a process treats memory that it has freed."""

import contextlib
import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep large freed buffers; elsewhere, do nothing.

    By default it gives each of them back to the system and the next one pays for its page faults: these cost
    a decode step of 32 sequences more than its arithmetic does, and bulk gRPC most of its time.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        mallopt(_M_TOP_PAD, 1 << 28)
