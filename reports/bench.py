"""The benchmark of routing: a roofline and a table of what `make bench` measured.

    python -m reports.bench results/bench        writes roofline.svg and summary.csv beside routing.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from configs.errors import UserError, run_command
from configs.tables import read_json, whole_file
from reports import plotting
from reports.tables import Field, Table, bytes_text, seconds_text

CELL = ["context", "question_tokens", "batch", "cache"]
NEEDED = [*CELL, "peer", "dtype", "status", "median_s", "p90_s", "n", "necessary_bytes", "flops", "bandwidth_bytes_per_s"]
NEEDED += ["matmul_flops_per_s", "bandwidth_share", "matmul_share", "deficit", "extra_bytes", "chunks"]
TITLES = {
    "eager": "per head, as released", "folded": "heads folded, torch", "compiled": "folded, torch.compile", "faiss": "FAISS flat",
    "first_pass": "this project, rounded as the others", "ours": "this project, exact",
}  # fmt: skip
COLOURS = dict(zip(TITLES, ("#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", plotting.OURS), strict=True))


def read(directory: Path) -> pd.DataFrame | None:
    """Rows of routing.csv, or None where it was not measured.

    Raises:
        UserError: a column is missing.
    """
    path = directory / "routing.csv"
    if not path.exists():
        return None
    frame = pd.read_csv(path)
    missing = [name for name in NEEDED if name not in frame.columns]
    if missing:
        raise UserError(f"{path}: column {missing[0]} is missing; delete the file and run `make bench` again")
    return frame


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: ours and the best other peer, each in its best dtype and in equal dtypes, as ratios of medians of one run."""
    rows = []
    for cell, found in frame[frame["status"] == "ok"].groupby(CELL, sort=False):
        ours, rounded = (found[found["peer"] == name] for name in ("ours", "first_pass"))
        others = found[~found["peer"].isin(["ours", "first_pass", "eager"])]
        if not len(ours):
            continue
        mine = ours.loc[ours["median_s"].idxmin()]
        row = dict(zip(CELL, cell, strict=True)) | {"ours": mine["dtype"], "ours_s": mine["median_s"], "n": int(mine["n"])}
        row |= {"bandwidth_share": mine["bandwidth_share"], "matmul_share": mine["matmul_share"]}
        if len(others):
            best = others.loc[others["median_s"].idxmin()]
            row |= {"best": f"{best['peer']} {best['dtype']}", "times_best": best["median_s"] / mine["median_s"]}
            row["rounded_times_best"] = best["median_s"] / rounded["median_s"].min() if len(rounded) else np.nan
        for dtype in ("float32", "bfloat16", "int8"):
            equal = others[others["dtype"] == dtype]["median_s"]
            for name, mine_too in (("times", ours), ("rounded_times", rounded)):
                own = mine_too[mine_too["dtype"] == dtype]["median_s"]
                row[f"{name}_{dtype}"] = equal.min() / own.iloc[0] if len(equal) and len(own) else np.nan
        eager = found[found["peer"] == "eager"]["median_s"]
        row["times_eager"] = eager.min() / mine["median_s"] if len(eager) else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def table(frame: pd.DataFrame) -> Table:
    """Ours against the best of the others, cell by cell; the CSV holds every row that was measured."""
    rows = []
    for row in ratios(frame).to_dict("records"):
        times = [row.get(name, np.nan) for name in ("times_best", "times_float32", "times_bfloat16", "times_int8", "times_eager")]
        rows.append(
            [
                Field(f"{row['context']}, {row['batch']} x {row['question_tokens']} tokens", row["cache"]),
                Field(seconds_text(row["ours_s"]), f"{row['ours']}, n = {row['n']}"),
                Field("–" if np.isnan(times[0]) else f"{times[0]:.2f} x", _beside(row)),
                *(Field("–" if np.isnan(value) else f"{value:.2f} x") for value in times[1:]),
                Field(f"{row['bandwidth_share']:.0%}, {row['matmul_share']:.0%}"),
            ]
        )
    header = ["One layer", "Ours, median", "Best other", "float32", "bfloat16", "int8", "Per head", "Of bandwidth, of matmul"]
    return Table("routing", "Routing one layer: times as fast as the others", header, rows, frame)


def _beside(row: dict) -> str:
    """The best other peer, and how much faster ours is where it rounds as that one does."""
    rounded = row.get("rounded_times_best", np.nan)
    return row.get("best", "") + ("" if np.isnan(rounded) else f"; without exact scores {rounded:.2f} x")


def roofline(frame: pd.DataFrame) -> Figure | None:
    """FLOP/s of every row over FLOPs per necessary byte, under the machine's measured limits of each dtype."""
    ok = frame[frame["status"] == "ok"]
    if not len(ok):
        return None
    figure, (axes,) = plotting.new(size=(9.6, 4.8))
    intensity = ok["flops"] / ok["necessary_bytes"]
    span = np.geomspace(intensity.min() / 2, intensity.max() * 2, 100)
    bandwidth = ok["bandwidth_bytes_per_s"].median()
    for dtype, dash in (("float32", ":"), ("bfloat16", "--"), ("int8", "-")):
        rows = ok[ok["dtype"] == dtype]
        if len(rows):
            peak = rows["matmul_flops_per_s"].median()
            axes.plot(span, np.minimum(span * bandwidth, peak) / 1e9, dash, color=plotting.MUTED, linewidth=1.1)
            axes.annotate(dtype, (span[-1], peak / 1e9), ha="right", va="bottom", fontsize=8, color=plotting.MUTED)
    for peer, title in TITLES.items():
        rows = ok[ok["peer"] == peer]
        for dtype, mark in (("float32", "o"), ("bfloat16", "s"), ("int8", "^")):
            some = rows[rows["dtype"].str.startswith(dtype)]
            label = title if len(some) and dtype == rows["dtype"].iloc[0] else None
            axes.scatter(
                some["flops"] / some["necessary_bytes"], some["flops"] / some["median_s"] / 1e9, marker=mark, s=26,
                color=COLOURS[peer], label=label, zorder=3 if peer == "ours" else 2,
            )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("FLOPs for each byte that has to be read")
    axes.set_ylabel("necessary GFLOP/s")
    plotting.cost_axis(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def main() -> None:
    """Draw the roofline and write the ratios."""
    parser = argparse.ArgumentParser(prog="python -m reports.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("results/bench"), help="where routing.csv lies (default: results/bench)")
    directory = parser.parse_args().directory
    frame = read(directory)
    if frame is None:
        raise UserError(f"{directory / 'routing.csv'}: no such file; run `make bench` first")
    figure, summary = roofline(frame), ratios(frame)
    if figure is not None:
        with whole_file(directory / "roofline.svg") as temporary:
            temporary.write_bytes(plotting.svg(figure))
    with whole_file(directory / "summary.csv") as temporary:
        summary.to_csv(temporary, index=False)
    machine = directory / "machine.json"
    if machine.exists():
        print(f"{read_json(machine)['name']}, {read_json(machine)['threads']} threads, {len(frame)} rows")
    own = frame[(frame["peer"] == "ours") & (frame["status"] == "ok")]
    if own["extra_bytes"].notna().any():
        each = (own["extra_bytes"] / own["chunks"] / own["batch"]).max()
        print(f"largest extra memory of one call of ours: {bytes_text(own['extra_bytes'].max())}; {each:.1f} bytes a chunk and question at most")
    for row in summary.to_dict("records"):
        cell = f"{row['context']:>5} {row['batch']:>3} x {row['question_tokens']:>3} tokens {row['cache']:4}"
        print(
            f"{cell}  ours {seconds_text(row['ours_s']):>8}  {row.get('times_best', np.nan):6.2f} x {row.get('best', '-'):20}"
            f" (rounded too {row.get('rounded_times_best', np.nan):5.2f} x) {row['times_eager']:7.1f} x per head"
        )
    print(directory / "roofline.svg")


if __name__ == "__main__":
    run_command(main)
