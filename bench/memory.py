"""Two memory counts that do not depend on the device: tensors alive, and saved for backward.

Both count *untyped storages*, each once: a storage is the block of memory behind a tensor, and
views of a tensor share it. Both are exact to the byte and repeat exactly, on the meta device too,
where nothing is allocated at all; so a continuous-integration gate can rely on them, and a job
that does not fit on this machine can be measured here. Neither sees an allocator's rounding,
fragmentation or cache, nor the scratch space inside one operator: those belong to the process
and to the device, and are measured there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensorTracker(TorchDispatchMode):
    """Bytes of the tensors alive at once, measured by watching every operator's outputs.

    A context manager. A storage counts from the operator that returns it until the last tensor,
    graph or view that holds it is gone, whether the tracker is still active by then or not:

        with LiveTensorTracker() as tracker:
            loss(model, batch).backward()
        tracker.peak_bytes

    Storages that existed before are not counted, however often they are read, viewed or written
    to; `track` adds them (parameters, inputs). What happens in backward, inside a custom
    `autograd.Function`, a checkpointed region or `torch.tensor` counts like everything else.
    Not seen: scratch space within one operator; storages that no operator returns
    (`torch.frombuffer`, `torch.from_dlpack`, `torch.load`, `torch.UntypedStorage`, and
    `torch.tensor(..., device="meta")`), which count as having existed before; a storage resized
    behind the dispatcher's back, until the next operator reads it.

    Raises NotImplementedError on tensors without a storage (sparse layouts).
    """

    def __init__(self) -> None:
        super().__init__()
        #: by storage: a reference whose callback forgets it, and its bytes
        self._known: dict[int, tuple[weakref.ref, int]] = {}
        #: bytes of the counted storages that are alive now
        self.live_bytes = 0
        #: the largest value `live_bytes` had after any operator
        self.peak_bytes = 0
        # Backward runs on a thread of its own for CUDA; a finalizer may run in the middle of an
        # update on the same thread, hence reentrant.
        self._lock = threading.RLock()

    def track(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors`, which existed before, from now on."""
        for storage in _storages(list(tensors)):
            self._count(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Held until the operator is through, so that no identity below is a recycled one.
        given = {id(storage): storage for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        # `torch.tensor` and `torch.from_numpy` announce their new storage by passing it to this
        # one operator; everywhere else an output that shares an input's storage is a view of it.
        fresh = func is torch.ops.aten.lift_fresh.default
        for storage in _storages(result):
            if fresh or id(storage) not in given:
                self._count(storage)
        for key, storage in given.items():
            if key in self._known:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage not seen before, or the new size of one that was resized."""
        # torch keeps one Python object per storage for as long as the storage lives, so its
        # identity is the storage's and its finalizer runs before that identity can be reused.
        key, size = id(storage), storage.nbytes()
        with self._lock:
            known = self._known.get(key)
            if known is None:
                reference, old = weakref.ref(storage, lambda _: self._forget(key)), 0
            else:
                reference, old = known
            if known is None or size != old:
                self._known[key] = (reference, size)
                self.live_bytes += size - old
                self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _forget(self, key: int) -> None:
        with self._lock:
            self.live_bytes -= self._known.pop(key)[1]


class SavedTensorCounter:
    """Bytes of the storages that autograd holds for backward, each counted once and whole.

    A context manager around a forward pass; `exclude` names tensors whose storages do not count
    because they are there anyway (parameters, inputs):

        with SavedTensorCounter(exclude=model.parameters()) as counter:
            cost = loss(model, batch)
        counter.bytes

    A storage counts while at least one graph node holds it, so a graph that is dropped, or freed
    by a backward pass, gives its bytes back; `bytes` is the largest total held at once. A view
    keeps its whole storage alive and counts as such. Within `torch.utils.checkpoint` (or any
    other `saved_tensors_hooks`) the inner hooks take over: what the region saves for itself is
    not held and not counted, its saved inputs are. Tensors that a custom `autograd.Function`
    keeps as attributes of `ctx` bypass the hooks; `LiveTensorTracker` sees those.

    Not usable around `torch.func` transforms, which refuse saved-tensor hooks.
    """

    def __init__(self, exclude: Iterable[Tensor] = ()) -> None:
        # The storages themselves are held, so that their identities are not recycled.
        self._excluded = {id(storage): storage for storage in _storages(list(exclude))}
        #: by storage: the graph nodes that hold it, and its bytes
        self._held: dict[int, tuple[int, int]] = {}
        #: bytes held for backward now
        self.live_bytes = 0
        #: the largest number of bytes held for backward at once
        self.bytes = 0
        self._lock = threading.RLock()
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None

    def __enter__(self) -> SavedTensorCounter:
        if self._hooks is not None:
            raise RuntimeError("this SavedTensorCounter is already active; use a second one")
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        hooks, self._hooks = self._hooks, None
        assert hooks is not None
        hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Saved:
        storage = tensor.untyped_storage()
        if id(storage) in self._excluded:
            return _Saved(tensor, storage, None)
        with self._lock:
            holders, size = self._held.get(id(storage), (0, storage.nbytes()))
            self._held[id(storage)] = (holders + 1, size)
            if holders == 0:
                self.live_bytes += size
                self.bytes = max(self.bytes, self.live_bytes)
        return _Saved(tensor, storage, self)

    def _release(self, storage: torch.UntypedStorage) -> None:
        with self._lock:
            holders, size = self._held.pop(id(storage))
            if holders > 1:
                self._held[id(storage)] = (holders - 1, size)
            else:
                self.live_bytes -= size


class _Saved:
    """What one graph node keeps in place of a saved tensor, until it gives the tensor up.

    Refers to the storage so that its identity stays taken for as long as it is counted.
    """

    __slots__ = ("_counter", "_storage", "tensor")

    def __init__(
        self, tensor: Tensor, storage: torch.UntypedStorage, counter: SavedTensorCounter | None
    ) -> None:
        # Detached: a node that saves its own output would otherwise hold itself through the
        # output's grad_fn, and outlive its graph until the next garbage collection. Autograd
        # puts the graph back when it unpacks.
        self.tensor = tensor.detach()
        self._storage, self._counter = storage, counter

    def __del__(self) -> None:
        if self._counter is not None:
            self._counter._release(self._storage)


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    """The storages of the tensors (and bare storages) in nested containers, repeats included."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf.untyped_storage()
        elif isinstance(leaf, torch.UntypedStorage):
            yield leaf
