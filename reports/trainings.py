"""How far figures lie apart between trainings of one recipe: repeat the training, keep the scores, show their spread.

    python -m reports.trainings --profile tiny --seeds 1 2 3 4 5

trains the models that the chosen systems stand on again from each seed (of initialisation, batches and training sets;
tasks and questions stay), lets the systems answer, and adds a row a cell to published/trainings.csv. A seed that is
there for the recipe is left alone, and one that was stopped goes on. The report shows the spread beside each claim: an
interval over questions speaks of one trained model.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import yaml

from msa_base import meaning
from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.kinds import trains
from msa_base.load import Experiment, load
from msa_base.paths import Paths
from msa_base.seal import value_digest
from msa_base.tables import whole_file
from msa_base.validate import check_known, read_yaml
from reports.evidence import ACCURACY, NOT_MEASURED, Evidence
from reports.published.reference import Claim, read_reference

SCORES = Path(__file__).parent / "published" / "trainings.csv"
COLUMNS = ["recipe", "seed", "system", "task", "context", "metric", "score", "n"]
KEY = COLUMNS[:6]


def recipe(experiment: Experiment, system: str) -> str | None:
    """Digest of all that the models of a system are trained by, with the defaults of what is not written and but for
    seeds; None where none is trained.
    """
    spec = experiment.systems[system]
    index = experiment.indexes[spec.index].model if spec.index else None
    named, chain = [spec.model, spec.reranker, index], {}
    while named:
        if (name := named.pop()) is not None and name not in chain:
            chain[name] = experiment.models[name]
            named.append(chain[name].after)
    if not any(trains(model.kind) for model in chain.values()):
        return None
    sets = {name for model in chain.values() for name in model.samples}
    samples = {name: _without_seed(meaning.samples(experiment, name)) for name in sets}
    models = {name: meaning.model(experiment, name) for name in chain}
    models = {name: {**entry, "params": _without_seed(entry.get("params", {}))} for name, entry in models.items()}
    return value_digest([models, samples, meaning.tokenizer(experiment)])[:12]


def _without_seed(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key != "seed"}


def read_scores(path: Path | None = None) -> pd.DataFrame:
    """The scores that were kept; a UserError for a file that is not as this command leaves it."""
    path = path or SCORES
    try:
        scores = pd.read_csv(path, dtype={"recipe": str})
        scores = scores[COLUMNS].astype({"seed": int, "score": float, "n": int})
        if not scores["score"].between(0, 1).all() or scores.duplicated(KEY).any():
            raise ValueError("a score outside 0 to 1, or a row twice")
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is no table of trainings ({error}); restore it from the repository") from None
    return scores


def spread(evidence: Evidence, claim: Claim, tasks: Sequence[str], contexts: tuple[str, str], metric: str) -> str:
    """How a claim's figure varies over the trainings that were kept, in words; empty where it stands on none."""
    sides = list(zip((claim.first.system, claim.second.system), contexts, strict=True))
    recipes = [recipe(evidence.experiment, system) for system, _ in sides]
    if not any(recipes):
        return ""
    scores, means = read_scores(), []
    for (system, context), digest in zip(sides, recipes, strict=True):
        kept = scores[(scores.recipe == digest) & (scores.system == system) & (scores.context == context)]
        kept = kept[(kept.metric == metric) & kept.task.isin(tasks)].pivot(index="seed", columns="task", values="score")
        means.append(kept.reindex(columns=tasks).dropna().mean(axis=1))
    figures = [_figure(claim.statistic, *pair) for pair in pd.concat(means, axis=1, join="inner").to_numpy()]
    if len(figures) < 2:
        return NOT_MEASURED
    ends, deviation = f"{min(figures):.3g} to {max(figures):.3g}{claim.unit}", stdev(figures)
    return f"{ends} over {len(figures)} trainings, mean {fmean(figures):.3g}, standard deviation {deviation:.2g}"


def _figure(statistic: str, first: float, second: float) -> float:
    """A claim's statistic of two means, in the claim's unit."""
    if statistic == "difference":
        return 100 * (first - second)
    quotient = first / second if second else float("inf")
    return {"ratio": quotient, "gain": 100 * (quotient - 1), "loss": 100 * (1 - quotient)}[statistic]


def derive(base: Experiment, seed: int, chosen: dict[str, Any], folder: Path) -> str:
    """Write a configuration whose models train from another seed; the name of its profile."""
    name = f"{base.name}_seed{seed}"
    shutil.copytree(base.configs, folder, dirs_exist_ok=True)
    path = folder / "models.yaml"
    models = read_yaml(path)
    for entry in models.values():
        if trains(entry["kind"]):
            entry["params"] = {**entry.get("params", {}), "seed": seed}
    path.write_text(yaml.safe_dump(models, sort_keys=False))
    samples = {name: {**params, "seed": seed} for name, params in base.profile.samples.items()}
    profile = {
        "extends": base.name,
        "title": f"{base.name}, trained from seed {seed}",
        **{key: chosen[key] for key in ("systems", "contexts")},
        "tasks": {task: base.profile.tasks[task] for task in chosen["tasks"]},
        "main": [],
        "samples": samples,
        "latency": {"task": chosen["tasks"][0], "questions": 1},
    }
    (folder / "profiles" / f"{name}.yaml").write_text(yaml.safe_dump(profile, sort_keys=False))
    return name


def rows(evidence: Evidence, base: Experiment, seed: int) -> Iterator[tuple]:
    """A row for each cell that was scored."""
    for cell in evidence.cells():
        values = evidence.values(cell).dropna()
        if len(values) and (digest := recipe(base, cell.system)):
            yield (digest, seed, *cell, ACCURACY, round(float(values.mean()), 6), len(values))


def keep(found: list[tuple], path: Path | None = None) -> None:
    """Add rows to the file, in its order; a cell that was measured again replaces what was there."""
    path = path or SCORES
    scores = pd.concat([read_scores(path), pd.DataFrame(found, columns=COLUMNS)])
    scores = scores.drop_duplicates(KEY, keep="last").sort_values(KEY)
    with whole_file(path) as temporary:
        scores.to_csv(temporary, index=False)


def main() -> None:
    """Train, run, score and keep, one seed after the other."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="seeds to train from")
    parser.add_argument("--systems", nargs="+", help="default: MSA with and without interleave")
    parser.add_argument("--tasks", nargs="+", help="default: those of scaling and of several hops")
    parser.add_argument("--contexts", nargs="+", help="default: the first and the last of the profile")
    arguments = parser.parse_args()
    base = load(arguments.profile, arguments.configs)
    evidence, roles = Evidence(base, Paths.of(base.name)), read_reference(systems=base.profile.systems).played_by
    ours = [roles["ours"], roles["without_interleave"]]
    chosen = {
        "systems": arguments.systems or [system for system in ours if system in base.profile.systems],
        "tasks": arguments.tasks or [*evidence.tasks_of_role("scaling"), *evidence.tasks_of_role("multi_hop")],
        "contexts": arguments.contexts or evidence.ends,
    }
    for key, names in chosen.items():
        check_known(names, getattr(base.profile, key), f"--{key}", base.file)
    untrained = [system for system in chosen["systems"] if recipe(base, system) is None]
    if untrained or not all(chosen.values()):
        raise UserError(f"{base.file}: {', '.join(untrained) or 'the profile'} has nothing to train; name --systems")
    wanted = [(recipe(base, system), system) for system in chosen["systems"]]
    cells = set(product(wanted, chosen["tasks"], chosen["contexts"]))
    for seed in arguments.seeds:
        kept = read_scores().query("seed == @seed").itertuples(index=False)
        if cells <= {((row.recipe, row.system), row.task, row.context) for row in kept}:
            print(f"seed {seed}: kept already")
            continue
        folder = arguments.results / f"{base.name}_seed{seed}" / "_configs"
        name = derive(base, seed, chosen, folder)
        places = ["--profile", name, "--results", str(arguments.results), "--configs", str(folder), "--systems", "all"]
        subprocess.run([sys.executable, "-m", "msa_base.workflow", "summarise", *places], check=True)
        keep(list(rows(Evidence.read(name, arguments.results, folder), base, seed)))
        print(f"seed {seed}: {SCORES}")


if __name__ == "__main__":
    run_command(main)
