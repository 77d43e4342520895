"""What the ablations share: aspc_td3bc.py's `main` with another agent, under the ablation's name."""

import aspc_td3bc
import d4rl_gymnasium as d4rl
from offline_run import Run, evaluate_saved, launch


def run(agent_class: type[aspc_td3bc.Agent], doc: str, script: str) -> None:
    """The command line of an ablation. script: its file."""

    def main(args: aspc_td3bc.Args) -> None:
        if args.eval:
            return evaluate_saved(args, script, aspc_td3bc.load_policy, d4rl.percent_score)
        run = Run(args, script)
        args = run.args
        tasks = d4rl.load_tasks(args.env_id, args.dataset_path, args.stand_in)
        agent = agent_class(args, tasks.transitions, tasks.low, tasks.high, run.device)
        run.start(agent, tasks, d4rl.percent_score)
        while run.goes_on():
            agent.advance()
            run.advanced()
        run.finish()

    launch(main, aspc_td3bc.Args, doc, d4rl.DatasetError)
