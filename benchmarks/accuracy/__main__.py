"""Accuracy of training on device arithmetic beside float training: one command per data set."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.accuracy.image_check import check_on_image
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.study import METHODS, Results, run_study
from benchmarks.accuracy.tasks import TASKS

RESULTS = Path(__file__).parents[2] / "docs" / "results" / "accuracy"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("dataset", choices=[*TASKS, "report"], help="report: page and plots only")
    parser.add_argument("--plans", help="comma-separated; those of the data set where left out")
    parser.add_argument("--methods", default="float,device", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, help="30 where left out")
    parser.add_argument("--rate", type=float, help="0.025 where left out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--image-steps",
        type=int,
        metavar="N",
        help="compare N steps with the ARM image bit for bit instead of training",
    )
    parser.add_argument(
        "--state",
        choices=["q8.8", "int8-stochastic"],
        default="q8.8",
        help="how the image keeps trained weights, with --image-steps",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.dataset != "report":
        task = TASKS[arguments.dataset]
        plans = arguments.plans.split(",") if arguments.plans else list(task.default_plans)
        given = {"epochs": arguments.epochs, "rate": arguments.rate}
        schedule = replace(task.schedule, **{k: v for k, v in given.items() if v is not None})
        if arguments.image_steps:
            for plan in plans:
                check_on_image(task, plan, schedule, arguments.image_steps, arguments.state)
            return
        methods = arguments.methods.split(",")
        unknown = [name for name in methods if name not in METHODS]
        if unknown:
            parser.error(f"no method {unknown[0]!r}; there are {', '.join(METHODS)}")
        results = Results(arguments.out / f"{task.name}.json", task, schedule)
        run_study(task, plans, methods, arguments.seeds, results)
    write_report(arguments.out)


if __name__ == "__main__":
    main()
