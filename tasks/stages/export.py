"""Export the questions of a prepared task, with the memory that they are asked of and without gold.

    python -m tasks.stages.export --profile tiny --task two_hop --output exported

Each context gets a folder: questions.jsonl, documents.jsonl (the tail, in its order), overlays.jsonl (by ``overlay_id``
what a question adds) and README.md, which says how they make a question's memory. Who answers them writes a file of
predictions (baselines/external.py).
"""

from __future__ import annotations

from pathlib import Path

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import run_command
from msa_base.paths import Paths
from msa_base.stage_records import ViewRecord
from msa_base.tables import read_corpus, read_table, whole_directory, write_lines
from msa_base.validate import check_known

README = """# {task} at {context}: {questions} questions over {tokens:,} tokens

The memory of a question is every document of documents.jsonl, and those of overlays.jsonl that have its `overlay_id`:
one whose `doc_id` is in documents.jsonl takes that document's place, any other one is added, at any place. A system
searches all of them alike: which ones an overlay holds tells where the answer is, and a system that looks at that
answers another task.

questions.jsonl: `text` is asked, `answer_prefix` is text that the answer continues, `max_new_tokens` its budget.

Answers are JSON lines: `{{"question_id": "...", "text": "...", "cited_doc_ids": [...]}}`. `routed_doc_ids` may give the
ranking of each stage of a retrieval: `{{"bm25": [12, 7]}}`. Every other key of predictions.jsonl (results/README.md) is
allowed. An entry of `kind: external` in configs/systems.yaml names the file.
"""


def export(paths: Paths, corpus: str, task: str, context: str, folder: Path) -> int:
    """Write one cell into a folder that is not there yet; how many questions it has. UserErrors as those of reading."""
    prepared = paths.prepared(task, context)
    view = ViewRecord.open(prepared / "view.json")
    questions = read_table("questions", prepared / "questions.parquet")
    with whole_directory(folder) as temporary:
        write_lines(questions, temporary / "questions.jsonl")
        write_lines(map(vars, read_corpus(paths.corpus(corpus), view.base_documents)), temporary / "documents.jsonl")
        write_lines(read_table("overlays", prepared / "overlays.parquet"), temporary / "overlays.jsonl")
        said = README.format(task=task, context=context, questions=len(questions), tokens=view.context_tokens)
        (temporary / "README.md").write_text(said)
    return len(questions)


def main() -> None:
    parser = experiment_parser(
        __doc__, task="a task of the profile", output="a folder, which gets one for each context"
    )
    parser.add_argument("--context", help="one context of the profile alone")
    chosen = parser.parse_args()
    experiment, paths = open_experiment(chosen)
    profile = experiment.profile
    check_known([chosen.task], profile.tasks, "--task", experiment.file)
    check_known([chosen.context] if chosen.context else [], profile.contexts, "--context", experiment.file)
    for context in [chosen.context] if chosen.context else profile.contexts:
        folder = Path(chosen.output) / chosen.task / context
        questions = export(paths, experiment.tasks[chosen.task].corpus, chosen.task, context, folder)
        print(f"{folder}: {questions} questions")


if __name__ == "__main__":
    run_command(main)
