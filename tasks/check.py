"""Check what only tasks know of the configuration, before any job: modules, parameters, metrics, sets and samples.

    python -m tasks.check --profile tiny

Every entry of tasks.yaml and tasks/qa/sets.yaml is checked, and the tokenizer, samples and models of the profile. A
task module keeps its parameters in a dataclass called ``Params``, a corpus module in ``CorpusParams``.
"""

from __future__ import annotations

from typing import Any

from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.load import Experiment
from msa_base.specs import TaskSpec
from msa_base.validate import build, check_known
from tasks.metrics import check_metrics
from tasks.qa.distractors import DOCUMENTATION
from tasks.qa.readers import READERS
from tasks.qa.samples import RealSpec
from tasks.qa.table import TABLE, SetSpec, read_table
from tasks.stages.prepare import kind_module
from tasks.stages.samples import sample_spec
from tasks.stages.vocabulary import tokenizer_spec


def main() -> None:
    check(open_experiment(experiment_parser(__doc__).parse_args())[0])


def check(experiment: Experiment) -> None:
    """Raise a UserError that names file, entry and key for the first bad entry."""
    path, sets = experiment.configs / "tasks.yaml", read_table()
    for name, spec in sets.items():
        for form in spec.forms:
            check_known([form.reader], READERS, f"{TABLE}: {name}: forms: {form.name}: reader", "tasks/qa/readers.py")
    for name, corpus in experiment.corpora.items():
        where = f"{path}: corpora: {name}"
        _check_params(kind_module(corpus.kind, "make_corpus", where), "CorpusParams", corpus.params, where)
        _check_sets(corpus.params, sets, f"{where}: params")
    for name, task in experiment.tasks.items():
        where = f"{path}: tasks: {name}"
        params = _check_params(kind_module(task.kind, "prepare", where), "Params", task.params, where)
        if name in experiment.profile.tasks:
            _check_sizes(experiment, task, params, where)
        check_metrics([task.metric], f"{where}: metric")
        check_metrics(task.metrics, f"{where}: metrics")
    profile = experiment.profile
    tokenizer_spec(profile.tokenizer, f"{experiment.file}: tokenizer")
    _check_sets(profile.tokenizer, sets, f"{experiment.file}: tokenizer")
    where = f"{experiment.file}: samples"
    asked = {name: _check_samples(entry, sets, f"{where}: {name}") for name, entry in profile.samples.items()}
    for name in profile.models:
        spec = experiment.models[name]
        known = {task for sample in spec.samples for task in asked[sample]}
        for number, shares in enumerate(_answer_shares(spec.params)):
            where = f"{experiment.configs / 'models.yaml'}: {name}: params: phases[{number}]: answer_shares"
            check_known(shares, sorted(known), where, f"the samples of {experiment.file}")


def _check_params(module: Any, holder: str, params: dict[str, Any], where: str) -> Any:
    return build(getattr(module, holder), params, f"{where}: params") if hasattr(module, holder) else None


def _answer_shares(params: dict[str, Any]) -> list[dict[str, Any]]:
    """The ``answer_shares`` of each phase; a trainer's own check says what is wrong with the form of its parameters."""
    phases = params.get("phases")
    phases = [phase if isinstance(phase, dict) else {} for phase in phases] if isinstance(phases, list) else []
    return [shares if isinstance(shares := phase.get("answer_shares"), dict) else {} for phase in phases]


def _check_sizes(experiment: Experiment, task: TaskSpec, params: Any, where: str) -> None:
    """Raise a UserError where a document, a head or an answer is as large as the smallest context."""
    context = experiment.profile.contexts[0]
    room, corpus = experiment.contexts[context], experiment.corpora[task.corpus].params
    sizes = {"head_tokens": getattr(params, "head_tokens", 0), "max_new_tokens": getattr(params, "max_new_tokens", 0)}
    sizes |= {f"{task.corpus}/document_tokens": corpus.get("document_tokens", 0)}
    for key, size in sizes.items():
        if size >= room:
            raise UserError(
                f"{where}: params: {key} must be below the smallest context {context} ({room:,}), found {size:,}"
            )


def _check_sets(params: dict[str, Any], sets: dict[str, SetSpec], where: str) -> None:
    """Check the names of sets and forms in parameters of a corpus, a tokenizer or samples."""
    if isinstance(name := params.get("set"), str):
        check_known([name], sets, f"{where}: set", TABLE)
        if isinstance(form := params.get("form"), str):
            check_known([form], [item.name for item in sets[name].forms], f"{where}: form", TABLE)
    check_known(params.get("sets", []), sets, f"{where}: sets", TABLE)
    check_known(params.get("fill", []), [*sets, "prose", DOCUMENTATION], f"{where}: fill", TABLE)


def _check_samples(params: dict[str, Any], sets: dict[str, SetSpec], where: str) -> list[str]:
    """Check one training set; the tasks that it asks."""
    if "set" in params:
        _check_sets(params, sets, where)
        spec: RealSpec = build(RealSpec, params, where)
        return [spec.set]
    return list(sample_spec(params, where).weights)


if __name__ == "__main__":
    run_command(main)
