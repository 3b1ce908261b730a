"""The benchmark: `python -m benchmarks [--quick] [--case NAME]...`; see docs/scaling.md."""

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from benchmarks import limits, material, queueing, staging
from benchmarks.report import Report, machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
CACHE = HERE / ".archives"
Case = Callable[[Report, material.Archive, Path, int], None]
CASES: dict[str, Case] = {"compare": staging.compare, **queueing.CASES, **limits.CASES}
FULL = {
    "requests": 2000,
    "backlogs": [100, 10_000, 100_000],
    "idle_seconds": 60,
    "rate": 25,
    "slow_rate": 10,
    "memory_sizes": ["1G", "8G"],
}
QUICK = {
    "requests": 50,
    "backlogs": [10, 100],
    "idle_seconds": 2,
    "rate": 25,
    "slow_rate": 5,
    "memory_sizes": ["16M", "32M"],
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", default="1G", help="Of each image.")
@click.option("--rounds", default=5)
@click.option("--case", "cases", multiple=True, type=click.Choice([*CASES]), help="Only these.")
@click.option("--quick", is_flag=True, help="Small and short: does it run, do the figures parse?")
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Where to work; default: TMPDIR."
)
@click.option("--name", default="", help="Of the files in results/.")
def main(
    size: str, rounds: int, cases: tuple[str, ...], quick: bool, directory: Path | None, name: str
) -> None:
    """Measure watcherd and its peers side by side."""
    if quick:
        size, rounds = "16M", 2
    archive = material.make_archive(CACHE / f"{size}.zip", material.parse_size(size))
    root = Path(tempfile.mkdtemp(prefix="watcherd-bench-", dir=directory))
    settings = {"size": size, "rounds": rounds, **(QUICK if quick else FULL)}
    report = Report(machine(root), settings)
    try:
        for case in cases or CASES:
            click.echo(f"-- {case}", err=True)
            place = root / case
            place.mkdir()
            CASES[case](report, archive, place, rounds)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    default = "quick" if quick else "bench"
    report.write(RESULTS, name or default)
    click.echo(report.text())
    click.echo(f"\nwritten to {RESULTS}/{name or default}.txt, .json and .svg")
    if quick:
        click.echo("quick: small and short; its yes and NO say nothing, only that it runs")
    sys.exit(0)


if __name__ == "__main__":
    main()
