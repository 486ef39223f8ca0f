"""Functions of tensors as CUDA graphs: one launch for all the kernels of a call.

An update of a small network is hundreds of kernels that run shorter than a CPU takes to launch them. A graph
records the launches once and repeats them as one, on the addresses of the recording.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from iqrl.errors import one_line

Arguments = tuple[Mapping[str, Tensor], ...]
WARM_UP = 3  # calls before the recording: to compile, to choose algorithms, to allocate work space


class Recorded:
    """A function recorded once for each set of addresses and shapes, then repeated.

    Args:
        name: what a warning calls it.
        function: of groups of tensors on one CUDA device. It must not wait for the device, and may write to
            tensors of its first argument alone.
        fixed: number of leading arguments whose tensors stay where they are: the function reads and writes them in
            place. The tensors of the others are copied to where the recording reads them.

    The tensors it returns are written over by the next call of any recording: all use one pool of memory, as they run
    one after another. What cannot be recorded is called as it is, with one warning that says why.
    """

    def __init__(self, name: str, function: Callable[..., Any], fixed: int) -> None:
        self.name, self.function, self.fixed = name, function, fixed
        self.recordings: dict[tuple[Any, ...], Callable[[Arguments], Any]] = {}

    def __call__(self, *arguments: Mapping[str, Tensor]) -> Any:
        key = self._key(arguments)
        if key not in self.recordings:
            self.recordings[key] = self._record(arguments)
        return self.recordings[key](arguments)

    def _key(self, arguments: Arguments) -> tuple[Any, ...]:
        places = [(k, v.data_ptr(), v.shape) for group in arguments[: self.fixed] for k, v in group.items()]
        shapes = [(k, v.dtype, v.shape) for group in arguments[self.fixed :] for k, v in group.items()]
        return *places, *shapes

    def _record(self, arguments: Arguments) -> Callable[[Arguments], Any]:
        given = [{k: v.clone() for k, v in group.items()} for group in arguments[self.fixed :]]
        recorded = (*arguments[: self.fixed], *given)
        before = {k: v.clone() for k, v in arguments[0].items()}
        fixed, function = self.fixed, self.function  # not `self`: in a circle, it would keep the device's memory
        try:
            repeat, result = self._capture(recorded)
        except Exception as error:  # whatever CUDA or the function raises; without a graph it is slower, not wrong
            print(f"warning: {self.name} runs without a CUDA graph: {one_line(error)}", file=sys.stderr)
            return lambda now: function(*now)
        finally:  # the warm-up was no learning
            for k, v in arguments[0].items():
                v.copy_(before[k])

        kept = [(i, k) for i, group in enumerate(given, fixed) for k in group]
        places = [recorded[i][k] for i, k in kept]

        def call(now: Arguments) -> Any:
            if places:
                torch._foreach_copy_(places, [now[i][k] for i, k in kept])  # few launches for all of them
            repeat()
            return result

        return call

    def _capture(self, arguments: Arguments) -> tuple[Callable[[], None], Any]:
        """Something that repeats the function on these very tensors, and the result that it writes to."""
        side, graph = _side_stream(torch.cuda.current_device()), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(side):  # outside, too: a recording that fails would leave this process on it
                for _ in range(WARM_UP):
                    self.function(*arguments)
                with torch.cuda.graph(graph, pool=_pool(side.device_index), stream=side):
                    result = self.function(*arguments)
        finally:
            torch.cuda.current_stream().wait_stream(side)
        return graph.replay, result


@functools.cache
def _pool(device: int) -> Any:
    """Memory that all recordings on a device share: each writes anew what it reads, but for its arguments."""
    return torch.cuda.graph_pool_handle()


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings: each stream keeps work space of its own for matrix products."""
    return torch.cuda.Stream(device)
