"""Do the detectors keep their false-alarm rate, and what does that cost in delay?

    python -m benchmarks.false_alarms [--peers PEERS/bin/python] [--target 10000]
        [--calibrations 400] [--seed 1] [--only unscored-images]

Two tables. First, how many of many calibration sets, drawn anew, have a real average run length
(ARL) below the one that was asked for. Second, the delay from a change of the flag rate to the
alarm, at the same measured ARL on in-distribution flags. With ``--peers``, an interpreter that has
benchmarks/peers.txt, alibi-detect's Fisher detector and river's ADWIN, PageHinkley and DDM stand
beside the package's, and a third table says which of them have an ARL to compare at. All streams
are simulated and independent; 95 % intervals in brackets.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from benchmarks.equal_rates import Setting, print_comparison
from benchmarks.horizons import print_laws
from benchmarks.promises import Promise, drawn_bin_rates, flag_rates, kinds, run_lengths_of
from benchmarks.streams import ALPHA
from nap_stream.core.conformal import flag_rank

SIZES = (500, 2_000, 20_000)
DRIFTED = (0.10, 0.20)
WINDOWS = (50, 200)
LIMIT = 20_000
ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    arguments = _arguments()
    promise = Promise(arguments.target, arguments.confidence, arguments.window)
    rng = np.random.default_rng(arguments.seed)
    drawn = {size: drawn_bin_rates(size, arguments.calibrations, rng) for size in SIZES}
    print(f"`python -m benchmarks.false_alarms {shlex.join(sys.argv[1:])}`\n", flush=True)
    print(
        f"ARL asked for: {promise.target:,} records, for a share of {promise.confidence:g} of "
        f"calibrations; alpha {ALPHA:g}, window {promise.window:,}.\n"
    )
    with ThreadPoolExecutor(1) as pool:
        task = _task(arguments, drawn)
        asked = pool.submit(_run_peers, arguments.peers, task) if arguments.peers else None
        kept = _print_ours(drawn, promise, rng, arguments.only)
        rows = _print_peers(asked.result(), promise) if asked else []
    if arguments.only is not None:
        raise SystemExit(0 if kept else 1)
    setting = Setting(
        promise.target,
        promise.confidence,
        promise.window,
        SIZES,
        DRIFTED,
        arguments.streams,
        LIMIT,
    )
    print_comparison(setting, rows, rng)
    raise SystemExit(0 if kept else 1)


def _print_ours(
    drawn: dict[int, NDArray[np.float64]],
    promise: Promise,
    rng: np.random.Generator,
    only: str | None,
) -> bool:
    lengths = {
        (kind.name, size): run_lengths_of(kind, drawn[size], promise, rng)
        for size in SIZES
        for kind in kinds(size, promise)
        if only in {None, kind.name}
    }
    print_shares(lengths, promise)
    kept = all(
        (values < promise.target).mean() <= 1 - promise.confidence for values in lengths.values()
    )
    print(f"\nEach of them keeps it: {'yes' if kept else 'NO'}.\n", flush=True)
    return kept


def _print_peers(result: Any, promise: Promise) -> list[dict[str, Any]]:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    print(f"The same of {versions}, at their defaults:\n")
    lengths = {
        (name, int(size)): np.array(values)
        for name, by_size in result["run_lengths"].items()
        for size, values in by_size.items()
    }
    print_shares(lengths, promise)
    print(
        f"\nFisher: ert the ARL asked for, reference the calibration's flags. Records of 6,000 at "
        f"which its predict() differs: {result['disagreements']}. river: what its runs say when "
        f"they are read at the one horizon and at the other.\n",
        flush=True,
    )
    rows: list[dict[str, Any]] = result["rows"]
    print_laws(rows)
    return rows


def print_shares(lengths: dict[tuple[str, int], NDArray[np.float64]], promise: Promise) -> None:
    print("| detector | calibration set | ARL below the target | ARL / target: 5 % | 50 % | 95 % |")
    print("|---|---|---|---|---|---|")
    for (name, size), values in lengths.items():
        below = int((values < promise.target).sum())
        interval = binomtest(below, len(values)).proportion_ci()
        ratios = np.quantile(values / promise.target, [0.05, 0.5, 0.95], method="lower")
        columns = " | ".join(_ratio(ratio) for ratio in ratios)
        print(
            f"| {name} | {size:,} | {below / len(values):.3f} "
            f"({interval.low:.3f} to {interval.high:.3f}) | {columns} |"
        )


def _ratio(value: float) -> str:
    return "> 30" if value > 30 else f"{value:.2g}"


def _task(arguments: argparse.Namespace, drawn: dict[int, NDArray[np.float64]]) -> dict[str, Any]:
    return {
        "seed": arguments.seed,
        "target": arguments.target,
        "windows": list(WINDOWS),
        "configurations": arguments.configurations,
        "flags": {str(size): flag_rank(ALPHA, size) for size in SIZES},
        "rates": {str(size): flag_rates(rates).tolist() for size, rates in drawn.items()},
        "replicas": 50,
        "base_rate": ALPHA,
        "drifted_rates": list(DRIFTED),
        "streams": arguments.peer_streams,
        "prefix": arguments.target // 2,
        "limit": LIMIT,
    }


def _run_peers(interpreter: str, task: dict[str, Any]) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder) / "task.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(task), encoding="utf-8")
        command = [interpreter, "-m", "benchmarks.peers", str(asked), str(answered)]
        subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603  the caller names the interpreter
        return json.loads(answered.read_text(encoding="utf-8"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peers", help="interpreter that has benchmarks/peers.txt")
    parser.add_argument("--target", type=int, default=10_000, help="ARL in records")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--window", type=int, default=1_000)
    parser.add_argument("--calibrations", type=int, default=400, help="of each size")
    parser.add_argument("--configurations", type=int, default=1, help="of the Fisher detector")
    parser.add_argument("--streams", type=int, default=4_000, help="for each delay")
    parser.add_argument("--peer-streams", type=int, default=1_000, help="the same, of river's")
    parser.add_argument("--only", help="name of a detector: its promise alone")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
