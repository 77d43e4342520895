"""What surrounds any offline training run: its folder and files, resuming, signals, logging, evaluation, video.

A script defines `Args(RunArgs)`, the method's arguments, and an agent (run.Agent says what a run asks of it):

    run = Run(args, __file__)
    agent = ...
    run.start(agent, tasks, percent_score)
    while run.goes_on():
        agent.advance()
        run.advanced()
    run.finish()

The modules, in reading order: args, run, evaluation, saved, files, log, signals, acceleration.
"""

from offline_run.acceleration import compile_agent, graph_agent, load_state
from offline_run.args import RunArgs, launch, parse, tuned
from offline_run.evaluation import episodes
from offline_run.run import Agent, Run
from offline_run.saved import evaluate_saved

__all__ = [
    "Agent", "Run", "RunArgs", "compile_agent", "episodes", "evaluate_saved", "graph_agent", "launch", "load_state",
    "parse", "tuned",
]  # fmt: skip
