"""Bytes of all live torch tensors, operation by operation: what torch has no counter for on a CPU.

A storage is counted once, however many tensors look at it, from the operation that returns it
until it is freed: parameters, gradients, Adam moments, and what autograd keeps for the backward
pass alike. What a kernel takes and gives back inside of one operation is not seen; on a training
step of a Llama that is nothing: the peak equals that of torch's allocator to the byte.
"""

import gc
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """`with LiveBytes() as live: ...` leaves the largest sum of live bytes in `live.peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # of live storages, by address
        self.now = self.peak = self.start = self.operations = 0

    def __enter__(self) -> "LiveBytes":
        for value in gc.get_objects():
            if issubclass(type(value), torch.Tensor):  # isinstance would wake lazy modules
                self._count(value)
        self.start = self.now
        return super().__enter__()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.operations += 1
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self.sizes:
            return
        self.sizes[address] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        # The Python object of a storage lives as long as the storage itself.
        weakref.finalize(storage, self._drop, address).atexit = False

    def _drop(self, address: int) -> None:
        self.now -= self.sizes.pop(address)
