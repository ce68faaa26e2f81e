"""What makes kernels usable in forked processes, such as the workers of a process pool.

An OpenMP runtime keeps the threads of its last parallel loop waiting for the next. A fork copies
the memory that lists them but not the threads, and GNU's runtime then waits for them for ever. So
they are let go before every fork: the child starts its own, as does the parent at its next loop.
A child works on one thread unless it calls `torch.set_num_threads`, as one of many usually should.
"""

from __future__ import annotations

import ctypes
import os

import torch

_OMP_PAUSE_SOFT = 1  # omp_pause_resource_t of OpenMP 5.0


def _let_threads_go() -> None:
    # Found among what torch has loaded for all: the runtime that torch and the kernels share.
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if pause is not None:
        pause(_OMP_PAUSE_SOFT)


def _work_on_one_thread() -> None:
    torch.set_num_threads(1)


os.register_at_fork(before=_let_threads_go, after_in_child=_work_on_one_thread)
