"""A function whose launches are recorded on a GPU once and replayed: they no longer wait for Python to order them."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor | None]


class Stream:
    """Where functions that belong together run and are recorded: one stream, one pool of memory.

    Libraries and autograd remember the stream that they first ran on, so warming up and recording take the same one.

    Attributes:
        warm: whether functions are recorded from now on. Till then they run as they are, and all that is made at its
            first use, is made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.warm = device, False
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def forget(self) -> None:
        """What was recorded here is done, and will not be replayed again: what comes has memory of its own."""
        torch.cuda.synchronize(self.device)
        self.warm = False
        self.pool = torch.cuda.graph_pool_handle()

    def give_back(self) -> None:
        """Memory of what was forgotten is free for others than torch, once nothing holds the recordings any more."""
        gc.collect()
        torch.cuda.empty_cache()

    def run(self, call: Callable[[], object]) -> None:
        """Calls it here, after all that has been ordered before and before all that follows."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            call()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, call: Callable[[], object]) -> Callable[[], object]:
        """What replays it; it is not run yet."""
        graph = torch.cuda.CUDAGraph()
        gc.collect()  # a tensor or graph of before, freed while this one is recorded, would spoil it
        # Other threads, the pipeline's, go on allocating and asking for events meanwhile.
        mode = {"capture_error_mode": "thread_local"}
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, **mode):  # type: ignore[arg-type]
            call()
        replay: Callable[[], object] = graph.replay
        return replay


class Recorded:
    """A function of tensors on a GPU, called as it is until its stream is warm, then recorded and replayed.

    What it changes beside its result must be memory that stays where it is: parameters, their gradients, buffers.

    Args:
        function: of tensors of one shape, dtype and layout for good, and of nothing else that changes; waits for
            nothing that the GPU does.
        stream: where it runs.
    """

    def __init__(self, function: Function, stream: Stream) -> None:
        self.function, self.stream = function, stream
        self.inputs: tuple[Tensor, ...] | None = None
        self.result: Tensor | None = None
        self.replay: Callable[[], object] | None = None

    def __call__(self, *inputs: Tensor) -> Tensor | None:
        """What the function returns; the next call writes over it.

        Raises:
            ValueError: inputs of another shape or dtype than those of the first call.
        """
        if self.inputs is None:
            self.inputs = tuple(torch.empty_like(t) for t in inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            if (own.shape, own.dtype) != (given.shape, given.dtype):
                raise ValueError(
                    f"{tuple(given.shape)} in {given.dtype} given, recorded for {tuple(own.shape)} in {own.dtype}"
                )
            own.copy_(given, non_blocking=True)
        if not self.stream.warm:
            self.stream.run(self._call)
            return self.result
        if self.replay is None:
            self.replay = self.stream.record(self._call)
        self.replay()
        return self.result

    def _call(self) -> None:
        assert self.inputs is not None
        self.result = self.function(*self.inputs)
