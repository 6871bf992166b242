"""Run the whole table and print it: `make faults` (ARGS="--only F2a F7" picks some)."""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from faults.table import Seen, find, run, table

HEAD = "| fault | injected | expected | seen | pass | seconds |\n|---|---|---|---|---|---|"


def skipped(seen: Seen) -> bool:
    return seen.passed and seen.seen.startswith("not run: ")


def line(seen: Seen) -> str:
    case = find(seen.number)
    cells = (
        f"{case.number} {case.name}",
        case.injected,
        case.expected,
        seen.seen[:400],
        "skipped" if skipped(seen) else "pass" if seen.passed else "FAIL",
        f"{seen.seconds:.0f}",
    )
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="F1", help="rows to run")
    parser.add_argument("--fast", action="store_true", help="the rows that `make test` runs")
    parser.add_argument("--out", type=Path, help="file to write the table to, as Markdown")
    parser.add_argument("--folder", type=Path, help="where the runs lie (a new one, kept)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="rows at once"
    )
    options = parser.parse_args()
    root = options.folder or Path(tempfile.mkdtemp(prefix="ppo_jax-faults-"))
    rows = [case for case in table() if not options.only or case.number in options.only]
    rows = [case for case in rows if case.fast or not options.fast]
    print(HEAD, flush=True)
    began, seen = time.monotonic(), {}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=spawn) as pool:
        jobs = [pool.submit(run, case.number, root / case.number) for case in rows]
        for job in as_completed(jobs):
            seen[job.result().number] = job.result()
            print(line(job.result()), flush=True)
    failed = [case.number for case in rows if not seen[case.number].passed]
    minutes = (time.monotonic() - began) / 60
    summary = f"{len(rows) - len(failed)} of {len(rows)} rows pass, {minutes:.1f} min"
    summary += f"; not: {' '.join(failed)}" if failed else ""
    print(f"\n{summary}; runs in {root}")
    if options.out:
        in_order = [line(seen[case.number]) for case in rows]
        options.out.write_text("\n".join([HEAD, *in_order, "", summary]) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
