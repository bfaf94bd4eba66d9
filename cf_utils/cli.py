"""The command line `cf`, also started by `python -m cf_utils.cli`.

Exit status: 0 done, 1 something failed, 2 bad input, 130 stopped by Ctrl-C. Slow imports are
inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from cf_utils import cli_own, cli_training
from cf_utils.cli_training import Data, Names

STOPPED = 130  # exit status after Ctrl-C
PASSES_OPTIONS_ON = ("run", "claims")  # to Snakemake, after a lone --

app = typer.Typer(
    help="Counterfactual explanations: run the notebooks, train models, tune methods, get data.",
    epilog="CF_TRACEBACK=1 shows where an error was raised.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
report_app = typer.Typer(
    no_args_is_help=True, help="Write report.html or galleries, publish results."
)
world_app = typer.Typer(no_args_is_help=True, help="Check the renderers with known factors.")
app.add_typer(report_app, name="report")
app.add_typer(world_app, name="world")

ONE = "One job in this process, without Snakemake"
Profile = Annotated[str, Option(help="demo, or a file in notebooks/profiles.", metavar="NAME")]
Cores = Annotated[int | None, Option(help="CPU cores to use (default: all).", metavar="N")]
Changes = Annotated[Names, Option("-p", help="Set a parameter; repeatable.", metavar="NAME=VALUE")]
Runnable = Annotated[
    Names, Argument(help="Numbers or names (default: all of the profile).", metavar="NB")
]


@app.command(epilog="Arguments after a lone -- go to the scheduler, Snakemake.")
def run(
    context: typer.Context,
    notebooks: Runnable = None,
    profile: Profile = "demo",
    data: Data = "",
    changes: Changes = None,
    shards: Annotated[
        int | None, Option(help="Jobs per notebook (default: the profile's).", metavar="N")
    ] = None,
    cores: Cores = None,
    dry_run: Annotated[bool, Option("--dry-run", help="List the jobs that would run.")] = False,
    list_all: Annotated[bool, Option("--list", help="List the notebooks.")] = False,
    one: Annotated[
        bool, Option("--one", help="Run one notebook here.", rich_help_panel=ONE)
    ] = False,
    shard: Annotated[
        str, Option(help="Run only this shard.", metavar="K/N", rich_help_panel=ONE)
    ] = "1/1",
    parameters: Annotated[
        str,
        Option(help="Set exactly these, not the profile's.", metavar="JSON", rich_help_panel=ONE),
    ] = "",
    keep_going: Annotated[
        bool, Option("--keep-going", help="Ignore failed claims.", rich_help_panel=ONE)
    ] = False,
) -> None:
    """Run the notebooks that are not done yet; write results/run/<profile> and a report.

    Examples:

    cf run 01 --profile paper --data /data --shards 8

    cf run 03 -p n=50 -p tau=0.7

    cf run --one 01
    """
    from cf_utils.harness import plan
    from cf_utils.harness import run as runner

    options = plan.Options(profile, data, changes or (), shards, cores, dry_run, context.obj)
    if list_all:
        print("\n".join(runner.list_notebooks()))
    elif one:
        raise typer.Exit(runner.run_one(notebooks or (), options, shard, parameters, keep_going))
    else:
        raise typer.Exit(runner.run_workflow(notebooks or (), options))


@app.command()
def claims(
    context: typer.Context,
    notebooks: Runnable = None,
    profile: Profile = "demo",
    data: Data = "",
    changes: Changes = None,
    cores: Cores = None,
) -> None:
    """Run notebooks with 5 seeds, and write the range of each claim to results/claims.

    Example:

    cf claims 00 01
    """
    from cf_utils.harness import plan
    from cf_utils.harness import run as runner

    options = plan.Options(profile, data, changes or (), None, cores, False, context.obj)
    raise typer.Exit(runner.run_claims(notebooks or (), options))


@report_app.command("html")
def report_html(profile: Profile = "demo") -> None:
    """Write report.html again, from what has run in a profile."""
    from cf_utils.harness import report

    print(report.write(profile))


@report_app.command("gallery")
def report_gallery(
    notebooks: Annotated[
        Names, Argument(help="Default: all that are published.", metavar="NB")
    ] = None,
    profile: Annotated[str, Option(help="Only this profile (default: all).", metavar="NAME")] = "",
) -> None:
    """Write the README.md of published results again: figures, claims, the paper beside ours."""
    from cf_utils.harness import gallery

    for path in gallery.write_all(notebooks or (), profile):
        print(path)


@report_app.command("publish")
def report_publish(
    notebooks: Annotated[Names, Argument(help="Default: all that are done.", metavar="NB")] = None,
    profile: Profile = "demo",
    allow_dirty: Annotated[
        bool, Option("--allow-dirty", help="Accept results of uncommitted code.")
    ] = False,
) -> None:
    """Copy metrics, parameters, claims, tables and figures to the tracked folder results/.

    Results are refused if they ran with other parameters than the profile's, or on uncommitted
    code.
    """
    from cf_utils.harness import publish

    for folder in publish.publish_all(profile, notebooks or (), allow_dirty):
        print(folder)


for command in (cli_own.check, cli_own.explain):
    app.command()(command)
for command in (cli_training.train, cli_training.tune, cli_training.ablation):
    app.command()(command)


@app.command()
def data(
    names: Annotated[Names, Argument(help="Data sets (default: all).", metavar="NAME")] = None,
    root: Annotated[str, Option("--data", help="Folder to look into.", metavar="DIR")] = "",
    fetch: Annotated[str, Option(help="Download this set to --data.", metavar="NAME")] = "",
    embedded_rows: Annotated[
        str, Option(help="Find the embedded rows of this set again.", metavar="NAME")
    ] = "",
) -> None:
    """Show which data sets are there, and how to get the others.

    Examples:

    cf data

    cf data --data /data --fetch mnist
    """
    from cf_utils.datasets import catalog

    if fetch:
        catalog.fetch(fetch, root)
    if embedded_rows:
        catalog.write_embedded_rows(embedded_rows, root)
    print("\n".join(catalog.describe(root, names)))


@app.command()
def weights(
    names: Annotated[Names, Argument(help="Networks (default: alexnet).", metavar="NAME")] = None,
    list_all: Annotated[bool, Option("--list", help="List all files and their sources.")] = False,
    pip: Annotated[str, Option(help="More options for pip, in one text.", metavar="TEXT")] = "",
) -> None:
    """Get the published files that metrics and worlds need, or say how to get them.

    Examples:

    cf weights --list

    cf weights alexnet vgg16
    """
    from cf_utils.models import pretrained

    if list_all:
        print("\n".join(pretrained.describe()))
        return
    for name in names or ["alexnet"]:
        print(f"{pretrained.obtain(name, pip.split())} is there")


@app.command()
def workshop(
    names: Annotated[Names, Argument(help="Numbers or names (default: all).", metavar="NB")] = None,
    out: Annotated[Path, Option(help="Folder to write to.", metavar="DIR")] = Path("workshop"),
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace student copies that were edited.")
    ] = False,
) -> None:
    """Write student copies of the notebooks, without solutions and outputs, and the key.

    Example:

    cf workshop 00 01
    """
    from cf_utils.harness import workshop

    copies, key = workshop.write_workshop(out, names or (), overwrite)
    print(f"wrote {len(copies)} student copies to {copies[0].parent} and the instructor's {key}")


@world_app.command("check")
def world_check(
    name: Annotated[str, Argument(help="faces, roads, radiographs or lung_ct.", metavar="WORLD")],
    n: Annotated[int, Option(help="Training renders.", metavar="N")] = 16_000,
) -> None:
    """Measure a world and write results/worlds/NAME.json; end with 1 if a bound is missed.

    Example:

    cf world check faces
    """
    from cf_utils.training import world_card

    raise typer.Exit(world_card.write(name, n))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. A user's mistake gives one line, no traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    given, passed_on = given[:cut], given[cut + 1 :]
    status = 0
    try:
        if passed_on and given[:1] not in [[name] for name in PASSES_OPTIONS_ON]:
            raise ValueError(f"--: got {' '.join(passed_on)}, expected it only after run or claims")
        app(given, prog_name="cf", obj=passed_on)
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 0
        if status == STOPPED:
            print(_say_stopped(e), file=sys.stderr)
    except KeyboardInterrupt as e:
        print(_say_stopped(e), file=sys.stderr)
        status = STOPPED
    except (ValueError, OSError) as e:
        if os.environ.get("CF_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {e}", file=sys.stderr)
        status = 2 if isinstance(e, ValueError | FileNotFoundError) else 1
    return status


def _say_stopped(error: BaseException | None) -> str:
    """Return the message of the KeyboardInterrupt behind an error, or "stopped"."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) and error.args:
            return str(error)
        error = error.__cause__ or error.__context__
    return "stopped"


if __name__ == "__main__":
    sys.exit(main())
