"""`tinyfleet experiment`: its commands and options. What they do stands in ``commands``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleet.command_options import Json

experiment = typer.Typer(
    help="Fleets in virtual time: experiments that replay.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(help="YAML file: docs/howto/experiment.md.")]
Out = Annotated[Path, typer.Option("--out", help="Folder that results are written to.")]
Workers = Annotated[
    str,
    typer.Option(
        "--workers",
        help="Number of processes; or ray for a local Ray cluster, ray:ADDRESS for one that runs. "
        "Results are the same.",
    ),
]
Seeds = Annotated[
    list[int] | None,
    typer.Option("--seed", min=0, help="Instead of the file's; repeat for more."),
]
Run = Annotated[Path, typer.Argument(help="Folder of a run.")]


@experiment.command()
def run(
    file: File, out: Out, workers: Workers = "1", seed: Seeds = None, json: Json = False
) -> None:
    """Run an experiment, or go on with one that was interrupted."""
    from simulator.experiments.commands import run as command

    command(file, out, workers, seed, as_json=json)


@experiment.command()
def sweep(
    file: File,
    vary: Annotated[
        list[str],
        typer.Option(
            help="A field of the file and its values, as defaults.learning_rate=0.01,0.02; repeat "
            "for every combination with another field's."
        ),
    ],
    out: Out,
    workers: Workers = "1",
    seed: Seeds = None,
    json: Json = False,
) -> None:
    """Run an experiment with several values of its fields, and compare."""
    from simulator.experiments.commands import sweep as command

    command(file, vary, out, workers, seed, as_json=json)


@experiment.command()
def compare(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Out,
    target_accuracy: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Instead of the experiments' own."),
    ] = None,
    json: Json = False,
) -> None:
    """Put runs beside each other: a table, and one report."""
    from simulator.experiments.commands import compare as command

    command(folders, out, target_accuracy, as_json=json)


@experiment.command()
def replay(folder: Run, workers: Workers = "1", json: Json = False) -> None:
    """Run once more what a folder says; exit code 1 where results aren't byte for byte the same."""
    from simulator.experiments.commands import replay as command

    command(folder, workers, as_json=json)


@experiment.command()
def export(
    folder: Run,
    mlflow: Annotated[
        str, typer.Option(help="Tracking URI of MLflow; or a folder, for a database there.")
    ],
    json: Json = False,
) -> None:
    """Write a finished run to MLflow, one run of it for each strategy and seed."""
    from simulator.experiments.commands import export as command

    command(folder, mlflow, as_json=json)


@experiment.command("list")
def list_command(json: Json = False) -> None:
    """List what there is: strategies, data sets, aggregation rules, machines, examples."""
    from simulator.experiments.commands import list_all

    list_all(as_json=json)


@experiment.command()
def faults(
    seeds: Annotated[str, typer.Option(help="Which: A..B, both included, or one.")] = "1..200",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    events: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Faults of a seed at most.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(help="Only the faults with these numbers, such as 3,17; none: no fault."),
    ] = "",
    build: Annotated[
        Path, typer.Option(help="Folder for the firmware, which is compiled once.")
    ] = Path("out/faults"),
    json: Json = False,
) -> None:
    """Let everything go wrong in small fleets, and look whether what has to hold does.

    Of a seed that fails the shortest story is printed, and the line that shows it again. Ends
    with 1 where there is one.
    """
    from simulator.experiments.faults.command import faults as command

    command(seeds, workers, events, only, build, as_json=json)
