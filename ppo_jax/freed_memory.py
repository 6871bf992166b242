"""Memory that is free and still counts as the process's."""

import ctypes
import gc

import jax


def give_back(*, caches: bool = False) -> None:
    """Give the system back what the C library keeps of freed memory, where it can (glibc): loading
    and compilation leave more than a gigabyte of it, some in cycles of Python objects.

    `caches`: what JAX keeps of all functions traced and compiled so far goes too, so whatever is
    called again is compiled again.
    """
    if caches:
        jax.clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
