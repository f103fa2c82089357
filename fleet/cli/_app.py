"""Commands and their options; what they do stands in the modules beside this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Literal

import typer

from fleet.cli import _app_campaigns, _app_keys, _app_privacy, _app_service
from fleet.cli._errors import is_expected, is_ours, message_of
from fleet.command_options import Json

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="tinyfleet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tinyfleet {version('tinyfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Fleets of microcontrollers that learn together without their data leaving them."""


Model = Annotated[Path, typer.Argument(help="ONNX file, float or QDQ int8.")]
BoardName = Annotated[
    str,
    typer.Option(help="Board: one that `tinyfleet boards` lists, or the .json file of your own."),
]
BundleFolder = Annotated[
    Path | None,
    typer.Argument(
        help="Bundle folder, written by `tinyfleet compile`. Default: the newest in out/."
    ),
]
OnePlan = Annotated[
    str | None, typer.Option(help="Plan: its name or the start of its id. Default: the first.")
]
Compiler = Annotated[
    Literal["gcc", "zig"] | None,
    typer.Option(help="Default: gcc where it is installed, else zig."),
]
CalibrationMethod = Annotated[
    Literal["min-max", "percentile", "mse"] | None,
    typer.Option(
        help="How ranges are made of the samples' activations: all of them, without the "
        "outermost, or of least mean square error. Default: min-max."
    ),
]
Percentile = Annotated[
    float | None,
    typer.Option(
        help="For the method percentile: so many per cent of the values don't saturate at "
        "each end. Default: 99.99."
    ),
]
Equalize = Annotated[
    bool,
    typer.Option(
        "--equalize",
        help="Even out the ranges of channels between two layers where it doesn't change "
        "what the model computes.",
    ),
]

TrainedLoss = Annotated[
    Literal["cross-entropy", "binary", "mse", "none"] | None,
    typer.Option(
        "--loss",
        help="What the model is trained with: cross-entropy (its outputs are logits of classes), "
        "binary (each is the logit of a yes or no), mse (they reconstruct its input, or stand for "
        "targets `y`) or none (it only infers). Default: what the model, or labels `y` beside the "
        "samples, say.",
    ),
]
TrainedOutput = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="Which of several outputs is trained. Default: the one that the others are made of.",
    ),
]


@app.command("compile")
def compile_command(
    model: Model,
    board: BoardName,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            help="Update plan: FILE, or FILE#NAME of several; repeat for more plans. "
            "Default: a small, a middle and a full one made for the model."
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            help="Plan that other boards of the campaign have and this one hasn't: what it trains "
            "can be replaced here as well; repeat for more."
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="NPZ with an array `x` of typical input samples; float models need it."),
    ] = None,
    calibration_method: CalibrationMethod = None,
    percentile: Percentile = None,
    equalize: Equalize = False,
    quantization_report: Annotated[
        bool,
        typer.Option(
            "--quantization-report",
            help="Compare the int8 model with the float one, layer by layer; also written "
            "into the bundle.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder that the bundle is written to. Default: out/MODEL-BOARD."),
    ] = None,
    samples: Annotated[
        Literal["newest", "reservoir"],
        typer.Option(
            help="Which samples a device keeps when its log is full: the newest, or a fair choice "
            "of all that it has seen."
        ),
    ] = "newest",
    loss: TrainedLoss = None,
    output: TrainedOutput = None,
    compiler: Compiler = None,
    json: Json = False,
) -> None:
    """Compile a model and its update plans into a firmware bundle for a board."""
    from fleet.cli._bundles import default_folder
    from fleet.cli._compile import compile_bundle
    from fleet.cli._quantization import quantization_options

    compile_bundle(
        model=model,
        board=board,
        plans=plan or [],
        publish=publish or [],
        calibration=calibration,
        quantization=quantization_options(
            calibration_method, percentile, equalize=equalize, report=quantization_report
        ),
        out=out or default_folder(model, board),
        samples=samples,
        compiler=compiler,
        loss=loss,
        output=output,
        as_json=json,
    )


@app.command("plan")
def plan_command(
    model: Model,
    board: BoardName,
    data: Annotated[
        Path,
        typer.Option(
            help="NPZ of labelled samples: `x` (samples, channels, height, width), floats as the "
            "model takes them, device codes as int8, or codes plus 128 as uint8; `y` classes; "
            "`group`, if known, the person or place of each: groups are held out whole."
        ),
    ],
    method: Annotated[
        Literal["finetune", "fisher"],
        typer.Option(help="Contributions by training each candidate, or by squared gradients."),
    ] = "finetune",
    channels: Annotated[
        Literal["norm", "contribution"],
        typer.Option(help="Channels trained first: of largest weights, or of largest gradients."),
    ] = "norm",
    uplink_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of coded delta per device and round.")
    ] = None,
    round_samples: Annotated[
        int, typer.Option(min=1, help="Samples that a device trains on in a round.")
    ] = 64,
    round_epochs: Annotated[
        int, typer.Option(min=1, help="Times that it trains on each of them.")
    ] = 1,
    sram_bytes: Annotated[
        int | None, typer.Option(min=1, help="Most SRAM of the firmware. Default: the board's.")
    ] = None,
    instructions: Annotated[
        int | None, typer.Option(min=1, help="Most instructions of a training step.")
    ] = None,
    state: Annotated[
        Literal["q8.8", "int8-stochastic"],
        typer.Option(help="How trained weights are kept on the device."),
    ] = "q8.8",
    last: Annotated[
        int | None, typer.Option(min=0, help="Analyse only the last so many layers.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs that a candidate is trained.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Learning rate at the beginning.")] = 0.01,
    repeats: Annotated[
        int, typer.Option(min=1, help="Runs with different seeds that a score is the mean of.")
    ] = 1,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            help="A plan of your own, FILE or FILE#NAME, that takes part in the last choice; may "
            "be given several times. One that names no state has that of --state."
        ),
    ] = None,
    final_seeds: Annotated[
        int, typer.Option(min=1, help="Seeds that plans of the last choice are trained with.")
    ] = 5,
    final_epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of each: as many as your fleet trains in all rounds.")
    ] = 30,
    final_learning_rate: Annotated[
        float | None,
        typer.Option(help="Your fleet's learning rate. Default: that of --learning-rate."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed: same parts held out, same scores.")] = 1,
    calibration: Annotated[
        Path | None,
        typer.Option(help="NPZ as for compile, for float models. Default: the data's `x`."),
    ] = None,
    calibration_method: CalibrationMethod = None,
    percentile: Percentile = None,
    equalize: Equalize = False,
    out: Annotated[
        Path, typer.Option(help="Plan file; pictures and what a run resumes from lie beside it.")
    ] = Path("plans.json"),
    loss: TrainedLoss = None,
    output: TrainedOutput = None,
    compiler: Compiler = None,
    json: Json = False,
) -> None:
    """Find the update plans that learn most from your samples within a board's limits."""
    from codegen.plan_search.costs import Round
    from codegen.plan_search.finals import Finals
    from codegen.plan_search.proposals import Settings
    from codegen.plan_search.race import Rules
    from codegen.plan_search.training import Schedule
    from codegen.program.plans import load_plan
    from fleet.cli._plan import make_plans
    from fleet.cli._quantization import quantization_options

    _check_rate(learning_rate)
    rate = learning_rate if final_learning_rate is None else final_learning_rate
    _check_rate(rate, "--final-learning-rate")
    make_plans(
        model=model,
        board=board,
        data=data,
        calibration=calibration,
        quantization=quantization_options(calibration_method, percentile, equalize=equalize),
        settings=Settings(
            method=method,
            channel_choice=channels,
            state=state,
            sram_bytes=sram_bytes,
            uplink_bytes=uplink_bytes,
            instructions=instructions,
            round=Round(round_samples, round_epochs),
            last=last,
            schedule=Schedule(epochs=epochs, learning_rate=learning_rate, seed=seed),
            repeats=repeats,
            finals=Finals(Rules(final_seeds), final_epochs, rate),
            given=tuple(map(load_plan, candidate or [])),
        ),
        out=out,
        compiler=compiler,
        loss=loss,
        output=output,
        as_json=json,
    )


def _check_rate(learning_rate: float, option: str = "--learning-rate") -> None:
    if not 0.0 < learning_rate < 4096.0:
        raise typer.BadParameter(f"{learning_rate:g} is not between 0 and 4096", param_hint=option)


@app.command()
def measure(
    bundle: BundleFolder = None,
    plan: OnePlan = None,
    machine: Annotated[
        str | None, typer.Option(help="What runs the image: unicorn or qemu, as the board is.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="NPZ of your labelled samples, `x` and `y` as for plan: say how good the bundle "
            "is on them instead."
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--model", help="With --data: the ONNX file, to compare the bundle with."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="With --data: train so long, and measure again.")
    ] = 0,
    learning_rate: Annotated[
        float, typer.Option(help="With --epochs: learning rate at the beginning.")
    ] = 0.01,
    held_out: Annotated[
        float, typer.Option(help="With --epochs: share of the samples that is measured on.")
    ] = 1 / 3,
    seed: Annotated[int, typer.Option(help="With --epochs: same seed, same samples held out.")] = 1,
    json: Json = False,
) -> None:
    """Run a bundle's image and report the instructions, stack and SRAM that it really uses.

    With --data: run its engine on your samples, and report how often it is right.
    """
    from fleet.cli._bundles import named_or_newest
    from fleet.cli._measure import measure_bundle

    if data is not None:
        from codegen.plan_search.training import Schedule
        from fleet.cli._measure_data import measure_data

        _check_rate(learning_rate)
        if not 0.0 < held_out < 1.0:
            raise typer.BadParameter(
                f"{held_out:g} is not between 0 and 1", param_hint="--held-out"
            )
        measure_data(
            bundle=named_or_newest(bundle),
            plan=plan,
            data=data,
            model=onnx,
            schedule=Schedule(epochs=epochs, learning_rate=learning_rate, seed=seed),
            held_out=held_out,
            as_json=json,
        )
        return
    if onnx is not None or epochs:
        raise typer.BadParameter("--model and --epochs need samples", param_hint="--data")
    measure_bundle(bundle=named_or_newest(bundle), plan=plan, machine=machine, as_json=json)


@app.command()
def explain(
    bundle: BundleFolder = None,
    plan: OnePlan = None,
    memory: Annotated[
        Path | None,
        typer.Option(help="Picture of the memory over time to write: FILE.png or FILE.svg."),
    ] = None,
    instructions: Annotated[
        bool,
        typer.Option("--instructions", help="Run a training step and count each program step."),
    ] = False,
    json: Json = False,
) -> None:
    """Show a plan's program step by step, and what fills the SRAM when."""
    from fleet.cli._bundles import named_or_newest
    from fleet.cli._explain import explain_bundle

    explain_bundle(
        bundle=named_or_newest(bundle),
        plan=plan,
        memory=memory,
        instructions=instructions,
        as_json=json,
    )


@app.command()
def demo(
    devices: Annotated[int, typer.Option(min=2, help="Emulated microcontrollers.")] = 24,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the campaign.")] = 6,
    seed: Annotated[int, typer.Option(help="Same seed: same partition, plans and cohorts.")] = 1,
    out: Annotated[Path, typer.Option(help="Result folder.")] = Path("out/demo"),
    cohort: Annotated[
        float, typer.Option(help="Share of the devices whose deltas a round wants, above 0 to 1.")
    ] = 1.0,
    over_selection: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=4.0,
            help="Share of the cohort asked on top; a round ends with the deltas it wants, "
            "the slowest devices are stragglers.",
        ),
    ] = 0.0,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Sign tasks and mask deltas: only sums of many devices can be read.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Let emulated microcontrollers learn together over a real broker and a real SuperLink."""
    from fleet.cli._demo import show_demo
    from fleet.demo.orchestrator import DemoSettings

    if not 0.0 < cohort <= 1.0:
        raise typer.BadParameter(
            f"{cohort:g} isn't a share above 0, up to 1", param_hint="--cohort"
        )
    show_demo(
        DemoSettings(
            devices=devices,
            rounds=rounds,
            seed=seed,
            out=out,
            cohort_share=cohort,
            over_selection=over_selection,
            private=private,
        ),
        as_json=json,
    )


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, what is missing and how to get it."""
    from fleet.cli._doctor import report

    if not report(as_json=json):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def boards(json: Json = False) -> None:
    """List the boards that firmware can be built for."""
    from fleet.cli._boards import list_boards

    list_boards(as_json=json)


@app.command()
def machines(json: Json = False) -> None:
    """List the ways to run devices without hardware, what each can and which boards it can be."""
    from fleet.cli._machines import list_machines

    list_machines(as_json=json)


ca = typer.Typer(help="The fleet's own certificate authority.", no_args_is_help=True)
app.add_typer(ca, name="ca")
AuthorityFolder = Annotated[Path, typer.Argument(help="Folder of the authority.")]


@ca.command("init")
def ca_init(
    folder: AuthorityFolder,
    fleet: Annotated[str, typer.Option(help="Name of the fleet.")] = "fleet",
    json: Json = False,
) -> None:
    """Make a certificate authority."""
    from fleet.cli._ca import init

    init(folder, fleet, as_json=json)


@ca.command("issue")
def ca_issue(
    folder: AuthorityFolder,
    name: Annotated[str, typer.Argument(help="Who it is for, such as broker or gw-east.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which a server is reached; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Issue a certificate, or replace the one that NAME has."""
    from fleet.cli._ca import issue

    issue(folder, name, host or [], as_json=json)


@ca.command("list")
def ca_list(folder: AuthorityFolder, json: Json = False) -> None:
    """List what has been issued, and until when it is good."""
    from fleet.cli._ca import list_issued

    list_issued(folder, as_json=json)


broker = typer.Typer(help="The MQTT broker of a site.", no_args_is_help=True)
app.add_typer(broker, name="broker")


@broker.command("config")
def broker_config(
    out: Annotated[Path, typer.Option(help="Folder of the broker's files.")],
    fleet: Annotated[str, typer.Option(help="Name of the fleet.")],
    gateway: Annotated[
        list[str],
        typer.Option(
            help="Gateway, as NAME=PASSWORDFILE; may be repeated. A file that isn't there is made, "
            "with a new password."
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at without TLS; other machines need TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port without TLS.")] = 1883,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate, to listen with TLS as well.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key.")] = None,
    tls_host: Annotated[
        str, typer.Option(help="Address to listen at with TLS. Default: all.")
    ] = "0.0.0.0",
    tls_port: Annotated[int, typer.Option(min=1, max=65535, help="Port with TLS.")] = 8883,
    json: Json = False,
) -> None:
    """Write Mosquitto's configuration, and the passwords and rights of the site's gateways."""
    from fleet.cli._broker import write_config
    from fleet.gateway.broker import Tls

    if (tls_cert is None) != (tls_key is None):
        raise typer.BadParameter("a certificate and its key go together", param_hint="--tls-cert")
    tls = Tls(tls_cert, tls_key, tls_port, tls_host) if tls_cert and tls_key else None
    write_config(
        out=out, fleet=fleet, gateways=gateway, host=host, port=port, tls=tls, as_json=json
    )


_app_keys.add_commands(app)
_app_service.add_commands(app)
_app_campaigns.add_commands(app)
_app_privacy.add_commands(app)
# Of parts that stand above this one, and of other packages.
for _group in sorted(entry_points(group="tinyfleet.commands")):
    app.add_typer(_group.load(), name=_group.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with one of the exit codes above.

    Bad input and failures that can be expected print one message. Anything else is a defect of
    ours and keeps its traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=given, prog_name="tinyfleet")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`| head`); nothing more can be printed, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or is_ours(module):
            raise
        from fleet.cli._roles import remedy

        print(f"error: {remedy(given[0], module)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"error: {message_of(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
