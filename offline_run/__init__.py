"""What surrounds any offline training run: its folder and files, resuming, signals, logging, evaluation, video.

A script defines `Args(RunArgs)`, the method's arguments, and an agent (run.Agent says what a run asks of it):

    run = Run(args, __file__)
    agent = ...
    run.start(agent, dataset_files, percent_score)
    while run.goes_on():
        agent.advance()
        run.advanced()
    run.finish()

The modules, in reading order: args, run, evaluation, saved, files, log, signals, compilation, video.
"""

from offline_run.args import RunArgs, launch, parse
from offline_run.compilation import compile_agent
from offline_run.evaluation import episodes
from offline_run.run import Agent, Run
from offline_run.saved import evaluate_saved

__all__ = ["Agent", "Run", "RunArgs", "compile_agent", "episodes", "evaluate_saved", "launch", "parse"]
