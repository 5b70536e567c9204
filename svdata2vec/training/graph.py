"""Forward and backward pass as one CUDA graph: launched once per step instead of kernel by kernel.

A pretraining step is about 1,300 launches; beside a loader that needs the same interpreter they cost more time than the GPU
needs for the work. Shapes, addresses and the order of kernels are those of the eager pass, so the numbers are too.

AdamW, the guard of finite gradients and the teacher's average stay outside: they are fused over all weights, a few dozen
launches that are queued while the graph runs, and the rate, the decay and the state that checkpoints hold stay plain values.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3  # passes before the capture: compiled kernels, chosen algorithms, allocated workspaces

Compute = Callable[..., dict[str, Tensor]]


class CapturedPass:
    """`compute(*inputs)` and the gradient of its "loss", captured at the first call and replayed at every call.

    Args:
        compute: from tensors on the device to scalars; draws no random numbers and reads no value.
        network: whose parameters get gradients and whose buffers `compute` may change.
    """

    def __init__(self, compute: Compute, network: nn.Module) -> None:
        self.compute, self.network = compute, network
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._inputs: list[Tensor] = []
        self._figures: dict[str, Tensor] = {}
        self._gradients: list[Tensor | None] = []
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The scalars of this batch, valid until the next call; gradients lie in the parameters' `grad`, not added to it."""
        if self.graph is None:
            self.graph = self._capture(inputs)
        for mine, given in zip(self._inputs, inputs, strict=True):
            if (mine.shape, mine.dtype) != (given.shape, given.dtype):
                shapes = f"{mine.dtype} {tuple(mine.shape)}, called with {given.dtype} {tuple(given.shape)}"
                raise ValueError(f"the pass was captured for {shapes}")
            mine.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient
        return self._figures

    def _capture(self, inputs: Sequence[Tensor]) -> torch.cuda.CUDAGraph:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._warm_up()
        graph = torch.cuda.CUDAGraph()
        # Of this thread alone: the loader's threads allocate and wait meanwhile, which a global capture would take for its own.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._figures = self._pass()
        self._gradients = [parameter.grad for parameter in self.parameters]
        return graph

    def _warm_up(self) -> None:
        """Passes on a stream beside the current one, as a capture needs; the network's buffers stay as they are."""
        before = [buffer.clone() for buffer in self.network.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._pass()
        torch.cuda.current_stream().wait_stream(stream)
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)
        for parameter in self.parameters:
            parameter.grad = None

    def _pass(self) -> dict[str, Tensor]:
        for parameter in self.parameters:
            parameter.grad = None
        figures = self.compute(*self._inputs)
        figures["loss"].backward()
        return {name: value.detach() for name, value in figures.items()}
