"""Layers that are brought when it is their turn: a sequence of blocks, of which two are there at a time.

While the block of layer l is used, layer l + 1 is on its way to the device and layer l + 2 on its way from the disk. A
loop over a `Streamed` must be done with a block, results and all, when it asks for the next one, and must not keep it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from grokscope.transformer.weights import BlockWeights

Step = Callable[[Any], Any]


class Streamed(Sequence[BlockWeights]):
    """Blocks by the number of their layer; nothing is kept of them here.

    read: the number of a layer -> its block in host memory; runs in a thread of its own, and may raise: the loop then
    gets the error when it asks for that layer. send: starts to copy a block to the device, in another thread; None where
    the host is the device. prepare: brings it into the form that the device computes with, when it is its turn.
    """

    def __init__(
        self, layers: Sequence[int], read: Callable[[int], BlockWeights], send: Step | None = None, prepare: Step | None = None
    ) -> None:
        self.layers, self.read = layers, read
        self.send, self.prepare = send, prepare or (lambda block: block)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Streamed(self.layers[index], self.read, self.send, self.prepare)
        block = self.read(self.layers[index])
        return self.prepare(self.send(block) if self.send else block)

    def __iter__(self) -> Iterator[BlockWeights]:
        waiting = iter(self.layers)
        reads: deque[Future] = deque()
        with ThreadPoolExecutor(1, "read") as reader:

            def read_next() -> None:
                for layer in waiting:
                    reads.append(reader.submit(self.read, layer))
                    return

            def bring() -> list[Any]:
                """The next layer, in a list that gives it away; empty after the last."""
                if not reads:
                    return []
                block = reads.popleft().result()
                read_next()
                return [self.send(block) if self.send else block]

            try:
                read_next()
                here = bring()
                while here:
                    # A copy to the device waits for all that was computing when it was asked for: so it is asked for first.
                    coming = bring() if self.send else []
                    here = [self.prepare(here.pop())]
                    yield here.pop()
                    here = coming if self.send else bring()
            finally:
                for future in reads:
                    future.cancel()
