"""Mirror training curves, summary and figures to Weights & Biases, offline unless WANDB_MODE says otherwise.

One run a model (its training curve) and one for the summary, under results/{profile}/wandb. A run whose data did not
change since the last call is not written again. Example::

    python -m reports.track --profile tiny
    wandb sync results/tiny/wandb/offline-run-...      (printed; sends the runs where they can be seen)
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.errors import run_command
from configs.tables import read_json, write_json
from reports.claims import find, read_reference
from reports.evidence import Evidence
from reports.figures import FIGURES

PROJECT = "msa-bench"
MARKER = "tracked.json"


def track(evidence: Evidence) -> tuple[list[str], list[str]]:
    """Write the runs that are new.

    Returns:
        The names of the runs written now, and the directories of all current offline runs, to be synchronised.
    """
    folder = evidence.paths.root / "wandb"
    mode = os.environ.get("WANDB_MODE", "offline")
    marker = read_json(folder / MARKER) if (folder / MARKER).exists() else {}
    written = []
    for name, (digest, fill) in _runs(evidence).items():
        known = marker.get(name)
        if (
            known
            and known["digest"] == digest
            and known["mode"] == mode
            and (mode != "offline" or (folder / known["directory"]).exists())
        ):
            continue
        directory = _write(evidence, mode, name, digest, fill)
        # the marker follows each run, so that an interrupted mirror goes on where it stopped
        marker[name] = {"digest": digest, "mode": mode, "directory": directory}
        write_json(marker, folder / MARKER)
        written.append(name)
    directories = [str(folder / entry["directory"]) for entry in marker.values() if entry["mode"] == "offline"]
    return written, sorted(directory for directory in directories if Path(directory).exists())


def sync_command(directories: list[str]) -> list[str]:
    """The command that sends offline runs, as arguments."""
    return ["wandb", "sync", *directories]


def _runs(evidence: Evidence) -> dict[str, tuple[str, Callable[[Any], None]]]:
    """Every run by its name: the digest of its data, and what fills it."""
    runs: dict[str, tuple[str, Callable[[Any], None]]] = {}
    for model, log in evidence.training.items():
        path = evidence.paths.model(model) / "train.jsonl"
        runs[f"train-{model}"] = (_digest(path), lambda run, log=log: _fill_training(run, log))
    if evidence.paths.summary.exists():
        runs["summary"] = (_digest(evidence.paths.summary), lambda run: _fill_summary(run, evidence))
    return runs


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(evidence: Evidence, mode: str, name: str, digest: str, fill: Callable[[Any], None]) -> str:
    """Write one run; the name of its directory."""
    import wandb

    profile = evidence.experiment.profile
    run = wandb.init(
        project=PROJECT,
        name=f"{evidence.experiment.name}-{name}",
        # data that changed become another run: a run that was sent is never overwritten
        id=f"{evidence.experiment.name}-{name}-{digest[:8]}",
        group=evidence.experiment.name,
        job_type=name.split("-")[0],
        dir=str(evidence.paths.root),
        mode=mode,
        config={"profile": evidence.experiment.name, "data_sha256": digest, **asdict(profile)},
        settings=wandb.Settings(
            console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True, save_code=False
        ),
    )
    try:
        fill(run)
        return Path(run.dir).parent.name
    finally:
        run.finish()


def _fill_training(run: Any, log: Any) -> None:
    """One point a logged step, every key of it as a metric."""
    for row in log.to_dict("records"):
        values = {key: value for key, value in row.items() if not (isinstance(value, float) and math.isnan(value))}
        run.log(values, step=int(row["step"]))


def _fill_summary(run: Any, evidence: Evidence) -> None:
    """The summary and the claims as tables, each figure as an image, and every value as a number of the run."""
    import wandb
    from PIL import Image

    from reports.plotting import png

    rows = list(evidence.summary.values())
    reference = read_reference(systems=evidence.experiment.profile.systems)
    findings = [
        [
            finding.name,
            finding.claim.published,
            finding.measured and finding.measured.value,
            finding.measured and finding.measured.low,
            finding.measured and finding.measured.high,
            finding.verdict,
        ]
        for finding in find(evidence, reference)
    ]
    entries: dict[str, Any] = {
        "summary": wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows]),
        "claims": wandb.Table(columns=["claim", "published", "measured", "low", "high", "verdict"], data=findings),
    }
    for name, draw in FIGURES.items():
        figure = draw(evidence, reference)
        if figure is not None:
            entries[f"figures/{name}"] = wandb.Image(Image.open(io.BytesIO(png(figure))))
    run.log(entries)
    for row in rows:
        if row["value"] is not None:
            run.summary["/".join((row["system"], row["task"], row["context"], row["metric"]))] = row["value"]


def main() -> None:
    """Mirror one profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--results", default="results", type=Path, help="the results directory (default: results)")
    parser.add_argument(
        "--configs", default="configs", type=Path, help="the configuration directory (default: configs)"
    )
    arguments = parser.parse_args()
    evidence = Evidence.read(arguments.profile, arguments.results, arguments.configs)
    written, directories = track(evidence)
    print(f"written: {', '.join(written) or 'nothing new'}")
    if directories:
        print("send with: " + " ".join(sync_command(directories)))


if __name__ == "__main__":
    run_command(main)
