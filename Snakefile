# The experiment, top to bottom. Stages meet only through files; each rule is one command, which `--help` explains.
#
#   make reproduce                                          everything, with progress and a report at the end
#   make reproduce SYSTEMS=all                              the rivals too that the profile does not name as `main`
#   make reproduce SYSTEMS=rag_bm25,rag_rerank              some of the profile's systems and what they need
#   snakemake --cores all --config profile=tiny             the same without progress and report on the screen
#   snakemake -n --config profile=tiny                      what would run, and why
#
# A rule's output is the seal of what its command made: a small JSON with the digests of the files, and of the code, the
# configuration and the data that they were made from (msa_base/seal.py). Code and configuration are the rule's param
# `made`, the seals of what it reads are its inputs: what changed runs again, with what depends on it, nothing else.

import re
import shlex
import sys

sys.path.insert(0, workflow.basedir)
from msa_base import kinds
from msa_base.execution import prepare_on_execution
from msa_base.load import load
from msa_base.paths import SEAL, Paths
from msa_base.stages import Stages

DEFAULTS = {"profile": "tiny", "results": "results", "configs": "configs"}
PROFILE, RESULTS, CONFIGS = (str(config.get(key, default)) for key, default in DEFAULTS.items())
DATA = config.get("data")  # of fetched sets and novels; none: the profile's
E = load(PROFILE, CONFIGS, DATA)
S = Stages(E)
P = Paths.of(PROFILE, RESULTS)
LOGS = f"{P.root}/_logs"
PLACES = ["--profile", PROFILE, "--results", RESULTS, "--configs", CONFIGS, *(["--data", DATA] if DATA else [])]
CHOSEN = shlex.join(PLACES)
PYTHON = f"{shlex.quote(sys.executable)} -m"

SYSTEMS = E.profile.selected_systems(config.get("systems", "main"))
PRETRAINED = [model for model in E.profile.models if E.models[model].kind == kinds.PRETRAINED]
REFERENCES = [model for model in E.profile.models if not kinds.holds_checkpoint(E.models[model].kind)]
TRAINED = [model for model in E.profile.models if model not in PRETRAINED + REFERENCES]
EVALUATED = ["cells.json", *(["judgments.json"] if E.judges else []), "scores.json"]
PROSE, TOKENIZER, SUMMARY = P.prose / SEAL, P.tokenizer.with_name(SEAL), P.summary.with_suffix(".json")


def corpus(name):
    return P.corpus(name).with_name(SEAL)


def views(task):
    return [P.prepared(task, context) / "view.json" for context in E.profile.contexts]


def checkpoint(model):
    return [P.model(model) / SEAL] if model else []


def one_of(names):
    return "|".join(map(re.escape, names)) or "none"


def models_of(system):
    """The models that a system and its index open."""
    spec = E.systems[system]
    return [name for name in (spec.model, spec.reranker, E.indexes[spec.index].model if spec.index else None) if name]


def checkpoints(system):
    return [file for model in models_of(system) for file in checkpoint(model)]


def run_inputs(system, task):
    """The corpus, the views of a task, the checkpoints and the index that a system opens."""
    spec, tail = E.systems[system], E.tasks[task].corpus
    index = [P.index(spec.index, tail) / "index.json"] if spec.index else []
    return [corpus(tail), *views(task), *checkpoints(system), *index]


def trained():
    """Models that are trained for the chosen systems, with their parents."""
    found = {name for system in SYSTEMS for name in models_of(system)}
    while parents := {E.models[name].after for name in found} - found - {None}:
        found |= parents
    return [model for model in E.profile.models if model in found and model in TRAINED]


def indexed():
    """Pairs of an index and a corpus that the chosen systems search."""
    tails = {E.tasks[task].corpus for task in E.profile.tasks}
    return {(index, tail) for system in SYSTEMS if (index := E.systems[system].index) for tail in tails}


wildcard_constraints:
    corpus=one_of(E.corpora),
    task=one_of(E.profile.tasks),
    samples=one_of(E.profile.samples),
    index=one_of(E.indexes),
    system=one_of(E.profile.systems),


# everything is named: Snakemake misses no file between those that are there
NEEDED = [
    *[PROSE, TOKENIZER, SUMMARY, P.report / SEAL],
    *[file for task in E.profile.tasks for file in (corpus(E.tasks[task].corpus), *views(task))],
    *[P.samples(samples) / SEAL for model in trained() for samples in E.models[model].samples],
    *[file for system in SYSTEMS for file in checkpoints(system)],
    *[P.index(*pair) / "index.json" for pair in indexed()],
    *[P.task(system, task) / name for system in SYSTEMS for task in E.profile.tasks for name in EVALUATED],
    *[P.latency(system) for system in SYSTEMS],
]
prepare_on_execution(workflow, E, P, NEEDED)


rule all:
    input: NEEDED


# --- prepare: prose, tokenizer, corpora, questions with gold, training samples


rule prose:
    output: PROSE
    params: made=S.prose().digest
    log: f"{LOGS}/prose.log"
    shell: "{PYTHON} tasks.stages.sources {CHOSEN} > {log:q} 2>&1"


rule tokenizer:
    input: PROSE, S.data(E.profile.tokenizer)
    output: TOKENIZER
    params: made=S.tokenizer().digest
    log: f"{LOGS}/tokenizer.log"
    shell: "{PYTHON} tasks.stages.vocabulary {CHOSEN} > {log:q} 2>&1"


rule corpus:
    input: PROSE, TOKENIZER, lambda w: S.data(E.corpora[w.corpus].params)
    output: corpus("{corpus}")
    params: made=lambda w: S.corpus(w.corpus).digest
    log: f"{LOGS}/corpus.{{corpus}}.log"
    shell: "{PYTHON} tasks.stages.prepare corpus {CHOSEN} --corpus {wildcards.corpus} > {log:q} 2>&1"


rule prepare:
    input: PROSE, TOKENIZER, lambda w: corpus(E.tasks[w.task].corpus)
    output: views("{task}")
    params: made=lambda w: S.task(w.task).digest
    log: f"{LOGS}/prepare.{{task}}.log"
    shell: "{PYTHON} tasks.stages.prepare task {CHOSEN} --task {wildcards.task} > {log:q} 2>&1"


rule samples:
    input: PROSE, TOKENIZER, lambda w: S.data(E.profile.samples[w.samples])
    output: P.samples("{samples}") / SEAL
    params: made=lambda w: S.samples(w.samples).digest
    log: f"{LOGS}/samples.{{samples}}.log"
    shell: "{PYTHON} tasks.stages.samples {CHOSEN} --samples {wildcards.samples} > {log:q} 2>&1"


# --- models: trained in their order, one at a time on all cores, or taken from weights that somebody fetched


rule train:
    input:
        TOKENIZER,
        lambda w: [P.samples(samples) / SEAL for samples in E.models[w.model].samples],
        lambda w: checkpoint(E.models[w.model].after),
    output: P.model("{model}") / SEAL
    wildcard_constraints: model=one_of(TRAINED)
    params: made=lambda w: S.model(w.model).digest, trainer=lambda w: E.models[w.model].kind  # any module with TRAINS
    threads: workflow.cores
    priority: 1
    log: f"{LOGS}/train.{{model}}.log"
    shell: "{PYTHON} {params.trainer:q} {CHOSEN} --model {wildcards.model} --threads {threads} > {log:q} 2>&1"


rule pretrained:
    output: P.model("{model}") / SEAL
    wildcard_constraints: model=one_of(PRETRAINED)
    params: made=lambda w: S.model(w.model).digest
    log: f"{LOGS}/pretrained.{{model}}.log"
    shell: "{PYTHON} msa.checkpoints.pretrained {CHOSEN} --model {wildcards.model} > {log:q} 2>&1"


rule reference:
    output: P.model("{model}") / SEAL
    wildcard_constraints: model=one_of(REFERENCES)
    params: made=lambda w: S.model(w.model).digest
    log: f"{LOGS}/reference.{{model}}.log"
    shell: "{PYTHON} baselines.parts.models {CHOSEN} --model {wildcards.model} > {log:q} 2>&1"


# --- index: a system's index over a corpus, once for all contexts and replicates


rule index:
    input: lambda w: corpus(w.corpus), lambda w: checkpoint(E.indexes[w.index].model)
    output: P.index("{index}", "{corpus}") / "index.json"
    params: made=lambda w: S.index(w.index).digest
    threads: max(1, workflow.cores // max(1, len(indexed())))  # many run side by side; a single one takes every core
    log: f"{LOGS}/index.{{index}}.{{corpus}}.log"
    shell:
        "{PYTHON} baselines.drivers.index {CHOSEN} --index {wildcards.index} --corpus {wildcards.corpus}"
        " --threads {threads} > {log:q} 2>&1"


# --- tune: a system's searched settings on the tuning split; on demand (`make tune`), the report shows what is there


rule tuning:
    input: [P.tuning(system) for system in SYSTEMS if E.systems[system].search]


rule tune:
    input: P.samples("tuning") / SEAL, lambda w: checkpoints(w.system)
    output: P.tuning("{system}")
    params: made=lambda w: S.tuning(w.system).digest
    log: f"{LOGS}/tune.{{system}}.log"
    shell: "{PYTHON} baselines.drivers.tune {CHOSEN} --systems {wildcards.system} --threads {threads} > {log:q} 2>&1"


# --- run: a system at a task, all contexts and seeds. Each cell has a record of its own, by which the command goes on


rule run:
    input: lambda w: run_inputs(w.system, w.task)
    output: P.task("{system}", "{task}") / "cells.json"
    params:
        made=lambda w: S.system(w.system).of(P.root, **S.elsewhere(w.system, w.task)).digest,
        cells=[E.profile.contexts, E.profile.seeds, str(E.profile.limits)],
    log: f"{LOGS}/run.{{system}}.{{task}}.log"
    shell:
        "{PYTHON} baselines.drivers.run {CHOSEN} --system {wildcards.system} --task {wildcards.task}"
        " --threads {threads} > {log:q} 2>&1"


rule latency:
    input: lambda w: run_inputs(w.system, E.profile.latency.task)
    output: P.latency("{system}")
    params: made=lambda w: S.latency(w.system).digest, limits=str(E.profile.limits)
    threads: workflow.cores  # nothing runs beside it; how many threads it uses is the profile's
    log: f"{LOGS}/latency.{{system}}.log"
    shell: "{PYTHON} baselines.drivers.measure {CHOSEN} --system {wildcards.system} > {log:q} 2>&1"


# --- judge and probe the judges (where the profile names any), and score: gold meets the answers here


rule judge:
    input: P.task("{system}", "{task}") / "cells.json", lambda w: views(w.task)
    output: P.task("{system}", "{task}") / "judgments.json"
    params: made=S.judgments().digest
    log: f"{LOGS}/judge.{{system}}.{{task}}.log"
    shell: "{PYTHON} tasks.stages.judge {CHOSEN} --system {wildcards.system} --task {wildcards.task} > {log:q} 2>&1"


rule probe:
    input: lambda w: views(w.task)
    output: P.probes("{task}")
    params: made=lambda w: S.probes(w.task).digest
    log: f"{LOGS}/probe.{{task}}.log"
    shell: "{PYTHON} tasks.stages.probe {CHOSEN} --task {wildcards.task} > {log:q} 2>&1"


rule score:
    input:
        P.task("{system}", "{task}") / "cells.json",
        [P.task("{system}", "{task}") / "judgments.json"] if E.judges else [],
        lambda w: views(w.task),
    output: P.task("{system}", "{task}") / "scores.json"
    params: made=lambda w: S.scores(w.task).digest
    log: f"{LOGS}/score.{{system}}.{{task}}.log"
    shell: "{PYTHON} tasks.stages.score {CHOSEN} --system {wildcards.system} --task {wildcards.task} > {log:q} 2>&1"


# --- summarise, report. The workflow's command mirrors all this to Weights & Biases beside it (reports/track.py)


rule summarise:
    input:
        [P.task(system, task) / "scores.json" for system in SYSTEMS for task in E.profile.tasks],
        [P.latency(system) for system in SYSTEMS],
        [P.probes(task) for task in E.profile.tasks if E.judges],
    output: SUMMARY
    params: made=S.summary().digest
    log: f"{LOGS}/summarise.log"
    shell: "{PYTHON} reports.summarise {CHOSEN} > {log:q} 2>&1"


rule report:
    input: SUMMARY, [P.model(model) / SEAL for model in trained()]
    output: P.report / SEAL
    params: made=S.report().digest
    log: f"{LOGS}/report.log"
    shell: "{PYTHON} reports.build {CHOSEN} > {log:q} 2>&1"
