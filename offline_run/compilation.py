"""torch.compile for an agent's updates, outside of all that is measured and without a trace in its state."""

import time

import torch

from offline_run.args import first_line


def compile_agent(agent) -> bool:
    """Compile the methods that `agent.compiled` names, by one period of updates that is undone. Says so before and
    after. Where that fails: a sentence, False, and the agent is as it was. An interruption also leaves its state.
    """
    print("Compiling the updates, which takes 1 to 5 minutes ...", flush=True)
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
        agent.load(tensors, states)
    print(f"Compiled in {time.perf_counter() - start:.0f} s.", flush=True)
    return True
