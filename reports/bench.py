"""The benchmarks: a roofline and a table of what `make bench` measured, the stages of `make bench-workflow`.

python -m reports.bench results/bench        writes roofline.svg and summary.csv beside routing.csv
python -m reports.bench --workflow           shows results/bench/workflow.csv, stage by stage
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.tables import read_json, whole_file
from reports.figures import look
from reports.tables.table import Column, Table, bytes_text, plain, seconds_text

Rows = pd.DataFrame  # of routing.csv
DTYPES = {"float32": (":", "o"), "bfloat16": ("--", "s"), "int8": ("-", "^")}  # dash of the limit, mark of a row
CELL = ["context", "question_tokens", "batch", "cache"]
NEEDED = f"""{" ".join(CELL)} peer dtype status median_s p90_s n necessary_bytes flops bandwidth_bytes_per_s
matmul_flops_per_s bandwidth_share matmul_share deficit extra_bytes chunks""".split()
PEERS = {  # title and colour
    "eager": ("per head, as released", "#d55e00"),
    "folded": ("heads folded, torch", "#e69f00"),
    "compiled": ("folded, torch.compile", "#009e73"),
    "faiss": ("FAISS flat", "#cc79a7"),
    "numkong": ("NumKong", "#8a6d3b"),
    "maxsim_cpu": ("maxsim-cpu, a call a token", "#999999"),
    "first_pass": ("this project, rounded as the others", "#56b4e9"),
    "ours": ("this project, exact", look.OURS),
}
OTHERS = ("folded", "compiled", "faiss", "numkong", "maxsim_cpu")
TIMES = "{:.2f} x".format


def read(directory: Path) -> pd.DataFrame | None:
    """Rows of routing.csv, or None where it was not measured; a UserError where a column is missing."""
    path = directory / "routing.csv"
    if not path.exists():
        return None
    frame = pd.read_csv(path)
    if missing := [name for name in NEEDED if name not in frame.columns]:
        raise UserError(f"{path}: column {missing[0]} is missing; delete the file and run `make bench` again")
    return frame


def ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell: ours and the best other peer, each in its best dtype and in equal dtypes; ratios of medians."""
    rows = []
    for cell, every in frame.groupby(CELL, sort=False):
        found = every[every["status"] == "ok"]

        def best(*peers: str, dtype: str | None = None, found: pd.DataFrame = found) -> pd.Series | None:
            chosen = found[found["peer"].isin(peers) & ((found["dtype"] == dtype) | (dtype is None))]
            return chosen.loc[chosen["median_s"].idxmin()] if len(chosen) else None

        ours, rounded, other = best("ours"), best("first_pass"), best(*OTHERS)
        if ours is None:
            continue
        row = dict(zip(CELL, cell, strict=True)) | {"ours": ours["dtype"], "ours_s": ours["median_s"], "n": ours["n"]}
        row |= {"bandwidth_share": ours["bandwidth_share"], "matmul_share": ours["matmul_share"]}
        row["best"] = None if other is None else f"{other['peer']} {other['dtype']}"
        row |= {"times_best": _times(other, ours), "rounded_times_best": _times(other, rounded)}
        lost = every[every["peer"].isin(OTHERS) & (every["status"] != "ok")]
        row["not_measured"] = ", ".join(lost["peer"].unique())
        for dtype in DTYPES:
            equal = best(*OTHERS, dtype=dtype)
            row[f"times_{dtype}"] = _times(equal, best("ours", dtype=dtype))
            row[f"rounded_times_{dtype}"] = _times(equal, best("first_pass", dtype=dtype))
        rows.append(row | {"times_eager": _times(best("eager"), ours)})
    return pd.DataFrame(rows)


def _times(slower: pd.Series | None, faster: pd.Series | None) -> float:
    """How many times as fast the second is; nan where one was not measured."""
    return np.nan if slower is None or faster is None else slower["median_s"] / faster["median_s"]


def table(frame: pd.DataFrame) -> Table:
    """Ours against the best of the others, cell by cell; the CSV holds every row that was measured."""
    columns = [
        *plain(context="Memory", batch="Questions", question_tokens="Tokens of each", cache="Caches", ours="Ours"),
        Column("ours_s", "Median", seconds_text),
        Column("n", "n", ".0f"),
        Column("best", "Best other"),
        Column("times_best", "Times as fast", TIMES),
        Column("rounded_times_best", "Without exact scores", TIMES),
        *(Column(f"times_{dtype}", f"Than {dtype}", TIMES) for dtype in DTYPES),
        Column("times_eager", "Than per head", TIMES),
        Column("bandwidth_share", "Of bandwidth", ".0%"),
        Column("matmul_share", "Of matrix products", ".0%"),
        Column("not_measured", "Not measured"),
    ]
    found = ratios(frame).reindex(columns=[column.name for column in columns]).astype(object)
    rows = list(found.where(found.notna(), None).itertuples(index=False, name=None))
    return Table("routing", "Routing one layer: times as fast as the others", columns, rows, frame)


def stages(frame: pd.DataFrame) -> Table:
    """The jobs of each stage and unit together: their seconds, the share of start-up, kernels for one unit."""
    columns = [
        *plain(profile="Profile", stage="Stage"),
        Column("jobs", "Jobs"),
        Column("seconds", "Seconds", seconds_text),
        Column("start_up", "Start-up, of those that record their work", ".0%"),
        Column("unit", "One"),
        Column("units_per_s", "A second", ".3g"),
        Column("kernels_per_unit", "Kernels for one", ".3g"),
        Column("not_measured", "Jobs not measured"),
    ]
    rows = []
    for (profile, stage), jobs in frame.groupby(["profile", "stage"], sort=False):
        ok = jobs[jobs["status"] == "ok"]
        for unit, alike in ok.groupby("unit", sort=False) if len(ok) else [(None, ok)]:
            own = alike[alike["work_s"].notna()]
            start_up = 1 - own["work_s"].sum() / own["seconds"].sum() if len(own) else None
            count, spent = alike["count"].sum(), alike["seconds"].sum()
            kernels = (alike["seconds"] / alike["kernel_s"]).sum()
            each = (count / spent, kernels / count) if len(alike) else (None, None)
            rows.append((profile, stage, len(alike), spent, start_up, unit, *each, len(jobs) - len(ok)))
    return Table("workflow", "Stages of a workflow, in runs of one kernel", columns, rows, frame)


def roofline(frame: pd.DataFrame) -> Figure | None:
    """FLOP/s of every row over FLOPs per necessary byte, under the machine's measured limits of each dtype."""
    ok = frame[frame["status"] == "ok"]
    if not len(ok):
        return None
    figure, (axes,) = look.new(size=(6.4, 4.2))
    intensity = ok["flops"] / ok["necessary_bytes"]
    span = np.geomspace(intensity.min() / 2, intensity.max() * 2, 100)
    bandwidth = ok["bandwidth_bytes_per_s"].median()
    for dtype, (dash, mark) in DTYPES.items():
        rows = ok[ok["dtype"] == dtype]
        if len(rows):
            peak = rows["matmul_flops_per_s"].median()
            axes.plot(span, np.minimum(span * bandwidth, peak) / 1e9, dash, color=look.MUTED, linewidth=1.1)
            axes.annotate(dtype, (span[-1], peak / 1e9), ha="right", va="bottom", fontsize=8, color=look.MUTED)
        for peer, some in ok[ok["dtype"].str.startswith(dtype)].groupby("peer"):
            x, y = some["flops"] / some["necessary_bytes"], some["flops"] / some["median_s"] / 1e9
            axes.scatter(x, y, marker=mark, s=26, color=PEERS[peer][1], zorder=3 if peer == "ours" else 2)
    for peer, (title, colour) in PEERS.items():
        if (ok["peer"] == peer).any():
            axes.scatter([], [], s=26, color=colour, label=title)
    axes.set(xscale="log", xlabel="FLOPs for each byte that has to be read", ylabel="necessary GFLOP/s")
    look.cost_axis(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def main() -> None:
    """Draw the roofline and write the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=given_path, nargs="?", default="results/bench", help="where routing.csv lies")
    parser.add_argument("--workflow", action="store_true", help="the stages of workflow.csv in place of routing")
    chosen = parser.parse_args()
    directory = chosen.directory
    if chosen.workflow:
        path = directory / "workflow.csv"
        if not path.exists():
            raise UserError(f"{path}: no such file; run `make bench-workflow` first")
        print("\n".join(stages(pd.read_csv(path)).text()))
        return
    frame = read(directory)
    if frame is None:
        raise UserError(f"{directory / 'routing.csv'}: no such file; run `make bench` first")
    if figure := roofline(frame):
        with whole_file(directory / "roofline.svg") as temporary:
            temporary.write_text(look.svg(figure))
    with whole_file(directory / "summary.csv") as temporary:
        ratios(frame).to_csv(temporary, index=False)
    machine = directory / "machine.json"
    if machine.exists():
        print(f"{read_json(machine)['name']}, {read_json(machine)['threads']} threads, {len(frame)} rows")
    lost = frame.loc[frame["status"] != "ok", ["peer", "dtype", "status"]].drop_duplicates()
    for row in lost.itertuples(index=False, name=None):
        print(": ".join(row))
    own = frame[(frame["peer"] == "ours") & (frame["status"] == "ok")]
    if own["extra_bytes"].notna().any():
        each = (own["extra_bytes"] / own["chunks"] / own["batch"]).max()
        largest = bytes_text(own["extra_bytes"].max())
        print(f"largest extra memory of one call of ours: {largest}; {each:.1f} bytes a chunk and question at most")
    print("\n".join(table(frame).text()))
    print(directory / "roofline.svg")


if __name__ == "__main__":
    run_command(main)
