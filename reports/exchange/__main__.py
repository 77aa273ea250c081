"""Write what is scored of a profile for other tools.

    python -m reports.exchange --profile tiny

    results/tiny/_exchange/trec/{system}/{task}_{context}_seed{n}.{stage}.run   rankings, and citations
    results/tiny/_exchange/trec/{task}_{context}.qrels                          gold documents
    results/tiny/_exchange/inspect_ai/*.json                                    a log a cell
    results/tiny/_exchange/lm_eval/{system}/results_*.json, samples_*.jsonl

All of it can be made again from the results; the folder is replaced whole.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from pathlib import Path

from msa_base.command import experiment_parser
from msa_base.errors import UserError, run_command
from msa_base.options import given_path
from msa_base.tables import whole_directory, write_json, write_lines
from reports.evidence import Evidence
from reports.exchange import inspect_log, lm_eval, trec
from reports.exchange.scored import Scored, scored_cells


def write(evidence: Evidence, folder: Path) -> int:
    """Write every format into a folder that is not there yet; how many cells it has.

    Raises:
        UserError: nothing is scored, or a file is not as its stage left it.
    """
    systems: dict[str, list[Scored]] = defaultdict(list)
    with whole_directory(folder) as temporary:
        for cell in scored_cells(evidence):
            systems[cell.cell.system].append(cell)
            for stage, lines in trec.runs(cell):
                _write_text(lines, temporary / "trec" / cell.cell.system / f"{cell.name}.{stage}.run")
            # on one line: keys stay in their order
            write_lines([inspect_log.log(cell, evidence)], temporary / "inspect_ai" / inspect_log.file_name(cell))
        if not systems:
            raise UserError(f"{evidence.paths.root}: holds no scores; run `make reproduce` first")
        asked = dict.fromkeys(
            (cell.cell.task, cell.cell.context) for cells in systems.values() for cell in cells if cell.answers
        )
        for task, context in asked:
            _write_text(trec.qrels(evidence.paths, task, context), temporary / "trec" / f"{task}_{context}.qrels")
        for system, cells in systems.items():
            answered = [cell for cell in cells if cell.answers]
            place = temporary / "lm_eval" / system
            for cell in answered:
                write_lines(lm_eval.samples(cell), place / f"samples_{cell.name}_{lm_eval.date(answered)}.jsonl")
            if answered:
                results = lm_eval.results(answered, evidence)
                write_json(results, place / f"results_{lm_eval.date(answered)}.json")
    return sum(map(len, systems.values()))


def _write_text(lines: list[str], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines))


def main() -> None:
    parser = experiment_parser(__doc__)
    parser.add_argument(
        "--output", type=given_path, help="a folder that is not there yet (default: that of the profile)"
    )
    chosen = parser.parse_args()
    evidence = Evidence.named(chosen)
    own = evidence.paths.root / "_exchange"
    if chosen.output is None and own.exists():
        shutil.rmtree(own)
    cells = write(evidence, chosen.output or own)
    print(f"{chosen.output or own}: {cells} cells")


if __name__ == "__main__":
    run_command(main)
