"""Two results directories are the same when their answers are, whatever those cost."""

from __future__ import annotations

from pathlib import Path

from baselines.compare import differences
from configs.load import load
from configs.paths import Paths
from configs.records import Answer
from configs.tables import write_predictions


def write(root: Path, text: str, total_s: float, contexts=("16K", "1M")) -> Path:
    for context in contexts:
        cell = Paths.of("tiny", root).cell("msa", "two_hop", context, 0)
        write_predictions([Answer("q0", text, [3], {"layer2": [3, 4]}, total_s=total_s)], cell / "predictions.jsonl")
    return root


def test_times_do_not_count_and_words_do(tmp_path):
    experiment = load("tiny")
    one, two = write(tmp_path / "a", "yes", 1.0), write(tmp_path / "b", "yes", 2.0)
    assert differences(experiment, one, two) == (2, [])
    other, fewer = write(tmp_path / "c", "no", 1.0), write(tmp_path / "d", "yes", 1.0, ("16K",))
    assert differences(experiment, one, other) == (2, ["msa/two_hop/16K/seed0", "msa/two_hop/1M/seed0"])
    assert differences(experiment, one, fewer) == (1, ["msa/two_hop/1M/seed0"])
