"""CUDA graphs, streams and pinned memory for the drivers: everything here is enqueued, and only a ticket's wait blocks the host."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import CaptureError, DeviceMemoryError
from .arena import Arena
from .decode_loop import DecodeLoop, LoopLibrary

# Kernels are compiled and libraries pick their algorithms in the first call; the second runs as the captured one will.
WARM_UP_STEPS = 2


class CudaCapture:
    """Implements `graphs.Backend` on one GPU. All graphs share a memory pool: only one of them runs at a time.

    library: the built decode loop, None where only the replay driver is wanted.
    """

    is_simulated = False

    def __init__(self, device: torch.device | str, library: LoopLibrary | None = None) -> None:
        self.device, self._library = torch.device(device), library
        self._pool = torch.cuda.graph_pool_handle()
        self._capture_stream = torch.cuda.Stream(self.device)
        self._copy_stream = torch.cuda.Stream(self.device)
        self._uploads: weakref.WeakKeyDictionary[Arena, torch.cuda.Event] = weakref.WeakKeyDictionary()
        self._copied: dict[int, torch.cuda.Event] = {}

    def empty(self, nbytes: int) -> Tensor:
        """Return a block for an arena."""
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def pinned(self, nbytes: int) -> Tensor:
        """Return page-locked host memory: copies from and to it do not stop the host."""
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def before_staging(self, arena: Arena) -> None:
        """Wait until the last request of `arena` has left the staging memory."""
        if arena in self._uploads:
            self._uploads[arena].synchronize()

    def upload(self, arena: Arena, staging: Tensor, block: Tensor) -> None:
        """Enqueue the copy of a request into its block."""
        block.copy_(staging, non_blocking=True)
        event = torch.cuda.current_stream(self.device).record_event()
        self._uploads[arena] = event

    def download(self, source: Tensor, target: Tensor, between: Tensor | None = None) -> Callable[[], None]:
        """Enqueue a copy to pinned `target` on the copy stream; the function that is returned waits for it.

        between: device memory that takes the state of this moment first, so that the next step may write `source` meanwhile. Without
        it the copy may see what later steps wrote, which is right for flags that are only ever set.
        """
        main = torch.cuda.current_stream(self.device)
        if between is not None:
            earlier = self._copied.get(between.data_ptr())
            if earlier is not None:
                main.wait_event(earlier)
            between.copy_(source)
        ready = main.record_event()
        with torch.cuda.stream(self._copy_stream):
            self._copy_stream.wait_event(ready)
            target.copy_(source if between is None else between, non_blocking=True)
            copied = self._copy_stream.record_event()
        if between is not None:
            self._copied[between.data_ptr()] = copied
        return copied.synchronize

    def capture(self, step: Callable[[], None], state: Any) -> CudaGraph:
        """Warm up on a side stream, then capture one call of `step`.

        Raises:
            DeviceMemoryError: there is no memory for its activations (without a remedy: the caller knows the bucket).
            CaptureError: the step does something that a graph cannot hold.
        """
        stream, main = self._capture_stream, torch.cuda.current_stream(self.device)
        graph = torch.cuda.CUDAGraph(keep_graph=self._library is not None)
        try:
            # The stream by name: torch leaves that of a capture current where its end fails.
            with torch.cuda.device(self.device), torch.cuda.stream(main):
                stream.wait_stream(main)
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP_STEPS):
                        step()
                main.wait_stream(stream)
                # Thread-local: another thread's allocation must not end our capture.
                with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                    step()
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(str(error)) from error
        except RuntimeError as error:
            raise CaptureError(
                f"capture: the step cannot be captured ({_first_line(error)}), expected operations a CUDA graph can hold. "
                "Use --driver eager, and report the message."
            ) from error
        return CudaGraph(graph, self.device)

    def loop(self, graph: CudaGraph, state: Any) -> Callable[[], None]:
        """Return a function that enqueues the whole decode as one graph launch.

        Raises:
            CaptureError: the driver refuses the graph.
        """
        assert self._library is not None, "loop: the graph was captured without keeping it"
        # The library makes the state's device current, and nobody else's may stay changed.
        with torch.cuda.device(self.device):
            loop = DecodeLoop(self._library, graph.graph.raw_cuda_graph(), state.done, state.step, state.bounds)

        def launch() -> None:
            with torch.cuda.device(self.device):
                loop.launch(torch.cuda.current_stream().cuda_stream)

        return launch

    def synchronize(self) -> None:
        """Wait for everything enqueued so far."""
        torch.cuda.current_stream(self.device).synchronize()

    def free_bytes(self) -> int | None:
        """Return what the device could still give, memory that torch holds and does not use included."""
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)


class CudaGraph:
    """One captured step; it owns the memory of its activations, also for a loop that was built around it."""

    def __init__(self, graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
        self.graph, self._device = graph, device

    def replay(self) -> None:
        """Enqueue the step on the current stream of its own device, whichever device is current."""
        with torch.cuda.device(self._device):
            self.graph.replay()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
