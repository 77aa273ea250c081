# The experiment, top to bottom. Stages meet only through files; each rule is one command, which `--help` explains.
#
#   make reproduce                                          everything, with progress and a report at the end
#   make reproduce SYSTEMS=all                              the rivals too that the profile does not name as `main`
#   make reproduce SYSTEMS=rag_bm25,rag_rerank              some of the profile's systems and what they need
#   snakemake --cores all --config profile=tiny             the same without progress and report on the screen
#   snakemake -n --config profile=tiny                      what would run, and why
#
# Entries of the configuration reach rules as params, so an edited entry reruns what depends on it and nothing else.

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, workflow.basedir)
from configs.load import load
from configs.paths import Paths

PROFILE, RESULTS, CONFIGS = config.get("profile", "tiny"), config.get("results", "results"), config.get("configs", "configs")
E = load(PROFILE, CONFIGS)
P = Paths.of(PROFILE, RESULTS)
ROOT, LOGS = str(P.root), f"{P.root}/_logs"
CHOSEN = f"--profile {PROFILE} --results {RESULTS} --configs {CONFIGS}"
PYTHON = f"{sys.executable} -m"

CHECKPOINT = ["model.safetensors", "config.json", "tokenizer.json"]
SYSTEMS = E.profile.raced(config.get("systems", "main"))
PRETRAINED = [model for model in E.profile.models if E.models[model].kind == "pretrained"]
REFERENCES = [model for model in E.profile.models if E.models[model].kind not in ("msa.train", "pretrained")]
TRAINED = [model for model in E.profile.models if model not in PRETRAINED + REFERENCES]
PROSE = [P.prose / "train.parquet", P.prose / "evaluation.parquet"]


def entry(*parts):
    """Configuration entries as the text whose change reruns a rule; titles and searches change no cell."""
    found = [asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts]
    return json.dumps([{k: v for k, v in p.items() if k not in ("title", "search")} if isinstance(p, dict) else p for p in found], sort_keys=True)


def contexts():
    return {context: E.contexts[context] for context in E.profile.contexts}


def data(params):
    """What the profile's data directory holds now, for what is made of question-answering sets and novels."""
    return sorted(map(str, Path(E.profile.data).glob("*/*"))) if E.profile.data and {"set", "sets", "novels"} & set(params) else []


def asked(task):
    """What a system may see of a prepared task: never its gold."""
    return [P.prepared(task, c) / name for c in contexts() for name in ("questions.parquet", "overlays.parquet", "view.json")]


def gold(task):
    return [P.prepared(task, c) / "gold.parquet" for c in contexts()]


def checkpoint(model):
    """Files of a model: config.json stands for the weights of a pretrained one, which may be several; a reference is one file."""
    files = ["reference.json"] if model in REFERENCES else CHECKPOINT[1:] if model in PRETRAINED else CHECKPOINT
    return [P.model(model) / name for name in files] if model else []


def one_of(names):
    return "|".join(map(re.escape, names)) or "none"


def models_of(system):
    """The models that a system and its index open."""
    spec = E.systems[system]
    return [name for name in (spec.model, spec.reranker, E.indexes[spec.index].model if spec.index else None) if name]


def checkpoints(system):
    return [file for model in models_of(system) for file in checkpoint(model)]


def opened(system, task):
    """Checkpoints and index that a system opens for a task; gold only where its entry declares that it reads it."""
    spec, corpus = E.systems[system], E.tasks[task].corpus
    index = [P.index(spec.index, corpus) / "index.json"] if spec.index else []
    return [P.corpus(corpus), *asked(task), *checkpoints(system), *index, *(gold(task) if spec.reads_gold else [])]


def trained():
    """Models that are trained for the chosen systems, with their parents."""
    found = {name for system in SYSTEMS for name in models_of(system)}
    while parents := {E.models[name].after for name in found} - found - {None}:
        found |= parents
    return [model for model in E.profile.models if model in found and model in TRAINED]


def indexed():
    """Pairs of an index and a corpus that the chosen systems search."""
    return {(index, E.tasks[task].corpus) for system in SYSTEMS if (index := E.systems[system].index) for task in E.profile.tasks}


def system_entry(system):
    spec = E.systems[system]
    return entry(spec, E.indexes[spec.index] if spec.index else None)


wildcard_constraints:
    corpus=one_of(E.corpora),
    task=one_of(E.profile.tasks),
    samples=one_of(E.profile.samples),
    index=one_of(E.indexes),
    system=one_of(E.profile.systems),


rule all:
    input:
        P.report / "index.html",
        f"{ROOT}/tracked.done",


# --- prepare: prose, tokenizer, corpora, questions with gold, training samples


rule prose:
    output: PROSE, P.prose / "sources.json"
    log: f"{LOGS}/prose.log"
    shell: "{PYTHON} tasks.sources {CHOSEN} > {log} 2>&1"


rule tokenizer:
    input: PROSE, data(E.profile.tokenizer)
    output: P.tokenizer
    params: entry=entry(E.profile.tokenizer)
    log: f"{LOGS}/tokenizer.log"
    shell: "{PYTHON} tasks.vocabulary {CHOSEN} > {log} 2>&1"


rule corpus:
    input: PROSE, P.tokenizer, lambda w: data(E.corpora[w.corpus].params)
    output: P.corpus("{corpus}")
    params: entry=lambda w: entry(E.corpora[w.corpus], max(contexts().values()))
    log: f"{LOGS}/corpus.{{corpus}}.log"
    shell: "{PYTHON} tasks.prepare corpus {CHOSEN} --corpus {wildcards.corpus} > {log} 2>&1"


rule prepare:
    input: PROSE, P.tokenizer, lambda w: P.corpus(E.tasks[w.task].corpus)
    output: asked("{task}"), gold("{task}")
    params:
        entry=lambda w: entry(E.tasks[w.task].kind, E.tasks[w.task].corpus, E.tasks[w.task].params, E.profile.tasks[w.task], contexts()),
    log: f"{LOGS}/prepare.{{task}}.log"
    shell: "{PYTHON} tasks.prepare task {CHOSEN} --task {wildcards.task} > {log} 2>&1"


rule samples:
    input: PROSE, P.tokenizer, lambda w: data(E.profile.samples[w.samples])
    output: P.samples("{samples}") / "banks.parquet", P.samples("{samples}") / "samples.parquet"
    params: entry=lambda w: entry(E.profile.samples[w.samples])
    log: f"{LOGS}/samples.{{samples}}.log"
    shell: "{PYTHON} tasks.samples {CHOSEN} --samples {wildcards.samples} > {log} 2>&1"


# --- models: trained in their order, one at a time on all cores, or taken from weights that somebody fetched


rule train:
    input:
        P.tokenizer,
        lambda w: [P.samples(s) / f for s in E.models[w.model].samples for f in ("banks.parquet", "samples.parquet")],
        lambda w: checkpoint(E.models[w.model].after),
    output: checkpoint("{model}"), P.model("{model}") / "train.jsonl"
    wildcard_constraints: model=one_of(TRAINED)
    params: entry=lambda w: entry(E.models[w.model])
    threads: workflow.cores
    priority: 1
    log: f"{LOGS}/train.{{model}}.log"
    shell: "{PYTHON} msa.train {CHOSEN} --model {wildcards.model} --threads {threads} --processes {threads} > {log} 2>&1"


rule pretrained:
    output: [P.model("{model}") / name for name in CHECKPOINT[1:]]
    wildcard_constraints: model=one_of(PRETRAINED)
    params: entry=lambda w: entry(E.models[w.model])
    log: f"{LOGS}/pretrained.{{model}}.log"
    shell: "{PYTHON} msa.pretrained {CHOSEN} --model {wildcards.model} > {log} 2>&1"


rule reference:
    output: P.model("{model}") / "reference.json"
    wildcard_constraints: model=one_of(REFERENCES)
    params: entry=lambda w: entry(E.models[w.model])
    log: f"{LOGS}/reference.{{model}}.log"
    shell: "{PYTHON} baselines.models {CHOSEN} --model {wildcards.model} > {log} 2>&1"


# --- index: a system's index over a corpus, once for all contexts and replicates


rule index:
    input: lambda w: P.corpus(w.corpus), lambda w: checkpoint(E.indexes[w.index].model)
    output: P.index("{index}", "{corpus}") / "index.json"
    params: entry=lambda w: entry(E.indexes[w.index])
    threads: max(1, workflow.cores // max(1, len(indexed())))  # many run side by side; a single one takes every core
    log: f"{LOGS}/index.{{index}}.{{corpus}}.log"
    shell: "{PYTHON} baselines.index {CHOSEN} --index {wildcards.index} --corpus {wildcards.corpus} --threads {threads} > {log} 2>&1"


# --- tune: a system's searched settings on the tuning split; on demand (`make tune`), the report shows what is there


rule tuning:
    input: [P.tuning(system) for system in SYSTEMS if E.systems[system].search]


rule tune:
    input:
        lambda w: [P.samples("tuning") / f for f in ("banks.parquet", "samples.parquet")],
        lambda w: checkpoints(w.system),
    output: P.tuning("{system}")
    params: entry=lambda w: entry(E.systems[w.system].search, E.systems[w.system].params)
    log: f"{LOGS}/tune.{{system}}.log"
    shell: "{PYTHON} baselines.tune {CHOSEN} --systems {wildcards.system} --threads {threads} > {log} 2>&1"


# --- run: a system at a task, all contexts and seeds; the cells' own files resume, the marker says that all have ended


rule run:
    input: lambda w: opened(w.system, w.task)
    output: touch(f"{ROOT}/{{system}}/{{task}}/run.done")
    params: entry=lambda w: system_entry(w.system), cells=entry(contexts(), E.profile.seeds, E.profile.limits)
    log: f"{LOGS}/run.{{system}}.{{task}}.log"
    shell: "{PYTHON} baselines.run {CHOSEN} --system {wildcards.system} --task {wildcards.task} --threads {threads} > {log} 2>&1"


rule latency:
    input: lambda w: opened(w.system, E.profile.latency["task"])
    output: P.latency("{system}")
    params: entry=lambda w: system_entry(w.system), cells=entry(contexts(), E.profile.latency, E.profile.limits)
    threads: workflow.cores  # nothing runs beside it; how many threads it uses is the profile's
    log: f"{LOGS}/latency.{{system}}.log"
    shell: "{PYTHON} baselines.measure {CHOSEN} --system {wildcards.system} > {log} 2>&1"


# --- judge (where the profile names judges) and score: gold meets the answers here


rule judge:
    input: f"{ROOT}/{{system}}/{{task}}/run.done", lambda w: gold(w.task)
    output: touch(f"{ROOT}/{{system}}/{{task}}/judge.done")
    params: entry=entry(*E.judges.values())
    log: f"{LOGS}/judge.{{system}}.{{task}}.log"
    shell: "{PYTHON} tasks.judge {CHOSEN} --system {wildcards.system} --task {wildcards.task} > {log} 2>&1"


rule score:
    input:
        f"{ROOT}/{{system}}/{{task}}/run.done",
        [f"{ROOT}/{{system}}/{{task}}/judge.done"] if E.judges else [],
        lambda w: gold(w.task),
    output: touch(f"{ROOT}/{{system}}/{{task}}/score.done")
    params:
        metric=lambda w: " ".join([E.tasks[w.task].metric, *E.tasks[w.task].metrics]),
        judges=list(E.judges),
    log: f"{LOGS}/score.{{system}}.{{task}}.log"
    shell: "{PYTHON} tasks.score {CHOSEN} --system {wildcards.system} --task {wildcards.task} > {log} 2>&1"


# --- summarise, report, mirror to Weights & Biases


rule summarise:
    input:
        expand(f"{ROOT}/{{system}}/{{task}}/score.done", system=SYSTEMS, task=E.profile.tasks),
        expand(P.latency("{system}"), system=SYSTEMS),
    output: P.summary
    params: entry=entry(contexts(), E.profile.seeds, list(E.profile.tasks), E.profile.systems, SYSTEMS)
    log: f"{LOGS}/summarise.log"
    shell: "{PYTHON} reports.summarise {CHOSEN} > {log} 2>&1"


rule report:
    input:
        P.summary,
        expand(P.model("{model}") / "train.jsonl", model=trained()),
        expand(f"{workflow.basedir}/reports/{{file}}.yaml", file=["reference", "expected"]),
    output: P.report / "index.html", P.report / "summary.txt"
    params: entry=json.dumps([asdict(E), SYSTEMS], sort_keys=True)
    log: f"{LOGS}/report.log"
    shell: "{PYTHON} reports.build {CHOSEN} --print > {output[1]} 2> {log}"


rule track:
    input: P.summary, expand(P.model("{model}") / "train.jsonl", model=trained())
    output: touch(f"{ROOT}/tracked.done")
    log: f"{LOGS}/track.log"
    shell: "{PYTHON} reports.track {CHOSEN} > {log} 2>&1"
