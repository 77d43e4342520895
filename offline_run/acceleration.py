"""An agent's updates, faster: compiled, without a trace in its state or in a measurement, and as a CUDA graph."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from offline_run.args import first_line


def load_state(agent, tensors: dict[str, Tensor], generators: list[Tensor]) -> None:
    """Give the agent the values that `agent.tensors()` and its generators' states had."""
    for name, tensor in agent.tensors().items():
        tensor.copy_(tensors[name])
    for generator, state in zip(agent.generators, generators, strict=True):
        generator.set_state(state)


def compile_agent(agent) -> bool:
    """Compile the methods that `agent.compiled` names, by one period of updates that is undone. Says so before and
    after. Where that fails: a sentence, False, and the agent is as it was. An interruption also leaves its state.
    """
    print("Compiling the updates, which takes some minutes ...", flush=True)
    start = time.perf_counter()
    tensors = {name: tensor.clone() for name, tensor in agent.tensors().items()}
    states = [generator.get_state() for generator in agent.generators]
    try:
        for name in agent.compiled:
            setattr(agent, name, torch.compile(getattr(agent, name), fullgraph=True))
        agent.advance()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # an error of a kernel belongs here
    except Exception as error:  # of many types
        for name in agent.compiled:
            delattr(agent, name)
        while error.__cause__:
            error = error.__cause__
        print(f"Compiling failed ({type(error).__name__}: {first_line(error)}): training goes on without.", flush=True)
        return False
    finally:
        load_state(agent, tensors, states)
    print(f"Compiled in {time.perf_counter() - start:.0f} s.", flush=True)
    return True


class CudaGraph:
    """A function without arguments, recorded at its fourth call and replayed from then on. It must read and write
    tensors on the device alone, always the same ones, and never wait for the device.
    """

    def __init__(self, function: Callable[[], None]):
        self.function, self.graph, self.stream = function, None, torch.cuda.Stream()
        self.warmups = 3  # recording wants some calls on a side stream first: calls like any other

    def __call__(self) -> None:
        if self.warmups > 0:
            self.warmups -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.function()
            torch.cuda.current_stream().wait_stream(self.stream)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, stream=self.stream):  # records, runs nothing
                self.function()
        self.graph.replay()


def graph_agent(agent) -> None:
    """From now on `agent.period` is one launch: the kernels of these networks take less time than to launch them."""
    agent.period = CudaGraph(agent.period)
