"""Let four workers work for hours, kill some of them, and tell whether memory and keys stay flat.

    python -m tests.soak [--hours 2] [--minutes N] [--warm-up TASKS] [--seed N]
                         [--json FILE] [--svg FILE]

Two workers live all the time, and two are killed (SIGKILL) every ten seconds or so and started
again. Tasks are sent at a steady rate: plain ones, some in sequences, some delayed, some that retry
themselves. At the end each must have been done, and nothing may be left of any.

A series is flat if its robust slope (see `flatness`) amounts to no more than a twentieth of its
median in the last three quarters of the time, or to a few messages, or a few pages of memory. The
exit code is 1 if one is not. Celery keeps something of the last thousands of tasks in every
process: `--warm-up` tasks are sent before, without samples, as fast as the workers do them. In less
than half an hour the memory of workers is shown, and not judged.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from .flatness import Verdict, judge
from .load import Soak
from .plot import svg

#: Samples of a run, and the least seconds between two.
SAMPLES, LEAST_SAMPLE_S = 500, 0.5

#: What a series may always grow by, by the beginning of its name.
LEAST = {
    "memory of a": 2.0, "memory of Redis": 0.5, "keys of": 30.0, "fields of": 60.0,
}  # fmt: skip

#: Seconds of a run from which the memory of workers is judged.
WARM_S = 1_800.0


def least_of(name: str) -> float:
    """Return what a series may always grow by."""
    found = [least for beginning, least in LEAST.items() if name.startswith(beginning)]
    # The longest beginning is the one that names it best.
    return found[-1]


def soak(
    folder: Path, *, seconds: float, seed: int, warm_up_tasks: int = 0
) -> tuple[Soak, list[Verdict]]:
    """Run, and judge every series.

    Raises:
        AssertionError: a task was not done, or something is left of it.
    """
    run = Soak(folder, seed)
    try:
        run.run(seconds, max(LEAST_SAMPLE_S, seconds / SAMPLES), warm_up_tasks)
    finally:
        run.close()
    is_long = seconds >= WARM_S
    verdicts = [
        judge(name, samples, least=least_of(name))
        for name, samples in run.series.items()
        if is_long or "worker" not in name
    ]
    return run, verdicts


def report_of(run: Soak, verdicts: list[Verdict], seconds: float, seed: int) -> dict[str, Any]:
    """Return everything as what JSON can hold."""
    judged = [verdict._asdict() | {"is_flat": verdict.is_flat} for verdict in verdicts]
    return {
        "seconds": seconds,
        "seed": seed,
        "seen": dict(run.seen),
        "verdicts": judged,
        "series": dict(run.series),
    }


def main() -> int:
    """Run; returns 0 if every series that is judged is flat."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--minutes", type=float, help="in place of hours")
    parser.add_argument("--warm-up", type=int, default=100_000, metavar="TASKS")
    parser.add_argument("--seed", type=int, help="without it a random one")
    parser.add_argument("--json", type=Path, metavar="FILE", default=Path("soak.json"))
    parser.add_argument("--svg", type=Path, metavar="FILE", default=Path("soak.svg"))
    options = parser.parse_args()
    seconds = 60 * (options.minutes or options.hours * 60)
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    sys.stderr.write(f"seed {seed}\n")
    with tempfile.TemporaryDirectory(prefix="cqrs-soak-") as folder:
        run, verdicts = soak(
            Path(folder), seconds=seconds, seed=seed, warm_up_tasks=options.warm_up
        )
    report = report_of(run, verdicts, seconds, seed)
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    title = f"{seconds / 60:,.0f} minutes, {run.seen['done']:,} tasks, {run.seen['killed']} kills"
    options.svg.write_text(svg(title, run.series), encoding="utf-8")
    sys.stdout.write(f"{title}\n\n| | median | grew by | may grow by | |\n|---|---|---|---|---|\n")
    for one in verdicts:
        told = "flat" if one.is_flat else "NOT FLAT"
        numbers = f"{one.median:,.4g} | {one.growth:,.3g} | {one.bar:,.3g}"
        sys.stdout.write(f"| {one.name} | {numbers} | {told} |\n")
    return 0 if all(one.is_flat for one in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
