"""What a profile's models, indexes and cells cost, judged on a machine; and what cannot run here, refused beforehand.

Bytes and FLOPs are the systems' own formulas (baselines.base) over what a cell asks of them: its own answers or its
prepared data say that where they are there, else documents and tokens are assumed. Seconds are a roofline or, on this
machine, the rates that stages reached in what ran here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from operator import truediv
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from baselines.base import NOT_ESTIMATED, REFUSED, Estimate, MemoryPart, PlannedCell, Workload, load_plugin
from baselines.drivers.provenance import hardware
from baselines.parts.cost import training
from baselines.planning.hardware import GB, Hardware, place, shortage, this_machine
from msa.model import cost
from msa.model.config import ModelConfig
from msa.model.cost import Cost, Documents
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.kinds import PRETRAINED
from msa_base.load import Experiment
from msa_base.paths import Paths
from msa_base.specs import LimitsSpec
from msa_base.stage_records import IndexRecord, RunRecord, ViewRecord
from msa_base.tables import read_arrow, read_json, read_predictions, read_questions, unavailable
from msa_base.validate import read_yaml

DOCUMENT_TOKENS = 96  # of a corpus entry without `document_tokens`: its module's default budget
# tokens that tasks.stages.vocabulary adds to the `words` and `pieces` of a profile: names, templates, characters
FIXED_WORDS = 14_400
PROCESS_BYTES = 0.45e9  # of a process that imports torch and reads tables, before data and weights (docs/LOG.md)
USABLE_SHARE = 0.9  # of a memory, that one cell may plan to fill
LEAST_SHARE = 0.25  # of some row's FLOPs; a stage that is nowhere more cannot be told from the others

machine = cache(hardware)
SETS = Path(__file__).parents[2] / "tasks" / "qa" / "sets.yaml"
answers_of = lru_cache(8)(read_predictions)  # of the last cells
open_tokenizer = cache(lambda path: Tokenizer.from_file(str(path)))
Record = TypeVar("Record", IndexRecord, RunRecord)


@dataclass(frozen=True)
class Verdict:
    """An estimate on one machine: bytes by tier (of each device), seconds, and whether it can run there.

    ``resident_bytes`` is what the process will be seen to hold: the host's, and pages of files that it copied.
    """

    status: str
    reason: str
    device_bytes: float
    host_bytes: float
    disk_bytes: float
    resident_bytes: float
    seconds: float | None


@dataclass
class Planner:
    """Estimates of a profile; what is prepared or has run under ``paths`` makes them exact."""

    experiment: Experiment
    paths: Paths
    rates: dict[str, float] = field(default_factory=dict)

    def config(self, model: str | None) -> ModelConfig | None:
        """A model's shape: of its checkpoint, else of its entry; None where neither says."""
        if model is None:
            return None
        path = self.paths.model(model) / "config.json"
        if path.exists():
            try:
                return ModelConfig.from_hub(read_json(path), str(path))
            except UserError:  # somebody else's kind of model
                return None
        return cost.planned_config(model, self.experiment.models, self._vocab_size())

    def _vocab_size(self) -> int:
        """Tokens of the profile's tokenizer; about as many as it will have, where it was not made yet."""
        if self.paths.tokenizer.exists():
            return open_tokenizer(self.paths.tokenizer).get_vocab_size()
        made = self.experiment.profile.tokenizer
        return FIXED_WORDS + int(made.get("words", 4000)) + int(made.get("pieces", 600))

    def indexes(self) -> dict[str, list[str]]:
        """The corpora that each index of the profile's systems is built over."""
        profile = self.experiment.profile
        corpora = sorted({self.experiment.tasks[task].corpus for task in profile.tasks})
        used = {self.experiment.systems[system].index for system in profile.systems} - {None}
        return {name: corpora for name in sorted(used)}

    def documents(self, corpus: str) -> Documents:
        """The whole tail that an index is built over: what is prepared, else as much as the largest context."""
        path = self.paths.corpus(corpus)
        if path.exists():
            return _read_documents(path, path.stat().st_mtime_ns)
        largest = max(self.experiment.contexts[context] for context in self.experiment.profile.contexts)
        return Documents.even(self._corpus_tokens(corpus, largest), self._document_tokens(corpus))

    def _corpus_tokens(self, corpus: str, context_tokens: int) -> int:
        """Tokens of a context that is not prepared; a set's own memory has what was published, or is asked for."""
        params = self.experiment.corpora[corpus].params
        published = _published_sets().get(params.get("set"), {}).get("tokens") or context_tokens
        return min(context_tokens, params.get("max_tokens", published))

    def _document_tokens(self, corpus: str) -> int:
        return int(self.experiment.corpora[corpus].params.get("document_tokens", DOCUMENT_TOKENS))

    def index(self, name: str, corpora: Sequence[str], dtype: str) -> Estimate:
        """An index over some corpora, one after another."""
        spec = self.experiment.indexes[name]
        plugin, shape = load_plugin(spec.kind, f"systems.yaml: indexes: {name}"), self.config(spec.model)
        return together([plugin.estimate_index(spec, shape, self.documents(corpus), dtype) for corpus in corpora])

    def workload(self, system: str, task: str, context: str, answered: bool = True) -> Workload:
        """What a cell asks; ``answered`` says whether to count the tokens of its own answers, where it has run."""
        profile, spec = self.experiment.profile, self.experiment.tasks[task]
        questions = min(profile.tasks[task], self.experiment.systems[system].max_questions or profile.tasks[task])
        size, document_tokens = self.experiment.contexts[context], self._document_tokens(spec.corpus)
        size = self._corpus_tokens(spec.corpus, size) if spec.role == "qa" else size
        found = _assumed(size, questions, spec.params, document_tokens)
        tail, view = self.documents(spec.corpus), self.paths.prepared(task, context) / "view.json"
        if view.exists() and self.paths.corpus(spec.corpus).exists():
            found = replace(found, **_prepared(view.parent, view.stat().st_mtime_ns, tail, self.paths.tokenizer))
        # heads recur from context to context, needles are planted anew
        fresh = context == profile.contexts[0] or "head_tokens" not in spec.params
        found = replace(found, corpus=tail, fresh=fresh)
        cells = (self.paths.cell(system, task, context, seed) for seed in profile.seeds if answered)
        ran = [path for cell in cells if (path := cell / "predictions.jsonl").exists() and path.stat().st_size]
        return _counted(found, answers_of(ran[0])) if ran else found

    def cell(self, system: str, work: Workload, dtype: str) -> Estimate:
        """A system's cell; its index stands on disk already."""
        spec = self.experiment.systems[system]
        index = self.experiment.indexes[spec.index] if spec.index else None
        if work.questions < 1:
            return NOT_ESTIMATED
        shapes = [self.config(name) for name in (spec.model, index.model if index else None, spec.reranker)]
        plugin = load_plugin(spec.kind, f"systems.yaml: systems: {system}")
        return plugin.estimate_cell(PlannedCell(spec, index, *shapes, work, dtype))

    def training_log(self, name: str) -> list[dict[str, Any]]:
        """The steps of a model whose training ended, none of others; a UserError where the log is broken."""
        directory = self.paths.model(name)
        path = directory / "train.jsonl"
        if not path.exists() or not (directory / "config.json").exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text().split("\n") if line]
        except ValueError as error:
            raise UserError(f"{path}: not a training log ({error}); delete {directory} and train again") from None

    def training_tokens(self, name: str) -> tuple[float | None, str]:
        """Tokens that training a model reads, and whether its own log says so or its phases do; None without phases."""
        if log := self.training_log(name):
            return sum(step["tokens"] for step in log), "ran"
        tokens = cost.training_tokens(self.experiment.models[name].params, self.experiment.profile.samples)
        return tokens, "formula" if tokens is None else "assumed"

    def training(self, name: str) -> Estimate:
        """Training a model, or taking one that somebody fetched; where processors train, bytes are one process's."""
        from msa.checkpoints import pretrained  # imports torch, which a look at what is refused does without

        spec, config, (tokens, _) = self.experiment.models[name], self.config(name), self.training_tokens(name)
        if spec.kind == PRETRAINED and (reason := pretrained.missing(name, spec)):
            return Estimate(stages={}, status="unavailable_data", reason=reason)
        samples = self.experiment.profile.samples
        return NOT_ESTIMATED if None in (config, tokens) else training(config, spec.params, samples, tokens)

    def seconds(self, made: Estimate, machine: Hardware) -> float | None:
        """Seconds of all stages, on this machine at measured rates where there are any.

        Several devices divide encoding, routing and training among them; each does the rest.
        """
        if made.stages is None:
            return None
        known, total = {} if machine.devices else self.rates, 0.0
        for stage, work in made.stages.items():
            if stage in known:
                total += work.flops * known[stage]
            else:
                split = machine.devices if stage.startswith(("encode", "route", "train")) else 1
                total += machine.roofline_s(work.flops, work.read_bytes, work.link_bytes) / max(1, split)
        return total

    def judge(self, made: Estimate, machine: Hardware, timed: bool = True) -> Verdict:
        """Place an estimate's parts on a machine and, where ``timed``, count its seconds there.

        The profile's limits hold for this machine alone.
        """
        limits = LimitsSpec() if machine.devices else self.experiment.profile.limits
        room = {
            "device": machine.device_gb * GB * USABLE_SHARE,
            "host": min(machine.host_gb, limits.host_gb or machine.host_gb) * GB * USABLE_SHARE,
            "disk": min(machine.disk_gb, limits.disk_gb or machine.disk_gb) * GB,
        }
        process = [MemoryPart("process", PROCESS_BYTES, "host")] if made.parts else []
        placed = place([*process, *made.parts], machine, room)
        held = {tier: sum(size for _, size in parts) for tier, parts in placed.items()}
        status, reason = made.status, made.reason
        seconds = self.seconds(made, machine) if timed else None
        over = [tier for tier in room if held[tier] > room[tier]]
        if status == "ok" and over:
            status, reason = "out_of_memory", "; ".join(shortage(tier, placed[tier], room[tier]) for tier in over)
        elif status == "ok" and limits.cell_hours and (seconds or 0) > limits.cell_hours * 3600:
            status = "timeout"
            reason = f"planned {seconds / 3600:.3g} h, the profile's limit for a cell is {limits.cell_hours:g} h"
        disk, resident = held["disk"] + held["stored"], held["host"] + held["copied"]
        return Verdict(status, reason, held["device"], held["host"], disk, resident, seconds)

    def refusal(self, made: Estimate, what: str) -> tuple[str, str] | None:
        """Status and reason of what this machine cannot hold, or not do in the time that the profile allows."""
        timed = self.experiment.profile.limits.cell_hours is not None
        found = self.judge(made, this_machine(self.paths.root), timed)
        return (found.status, f"{what}: {found.reason}") if found.status in ("out_of_memory", "timeout") else None


def together(made: Sequence[Estimate]) -> Estimate:
    """Indexes that are built one after another: work and bytes on disk add up, the largest needs its memory."""
    if any(item.stages is None for item in made):
        return NOT_ESTIMATED
    largest = max(made, key=lambda item: sum(part.bytes for part in item.parts))
    others = sum(part.bytes for item in made if item is not largest for part in item.parts if part.tier == "disk")
    names = dict.fromkeys(name for item in made for name in item.stages)
    stages = {name: sum((item.stages.get(name, Cost()) for item in made), Cost()) for name in names}
    return Estimate((*largest.parts, MemoryPart("indexes of other corpora", others, "disk")), stages)


def _assumed(context_tokens: int, questions: int, params: dict[str, Any], document_tokens: int) -> Workload:
    """Heads of a task share its questions; without heads each question has its own needles, a document each."""
    if "head_tokens" in params:
        overlays, tokens = params.get("replicates", 1), params["head_tokens"]
    else:
        overlays, tokens = questions, document_tokens * params.get("num_keys", 1) * params.get("num_values", 1)
    base = Documents.even(context_tokens - tokens, document_tokens)
    return Workload(questions, base, Documents.even(overlays * tokens, document_tokens), overlays)


@cache
def _published_sets() -> dict[str, Any]:
    """The sets of tasks/qa/sets.yaml; nothing is imported from there."""
    return read_yaml(SETS)


@cache
def _read_documents(path: Path, changed: int) -> Documents:
    """Lengths and bytes of a corpus's texts, without holding them (nor pandas, which Arrow's to_numpy imports)."""
    lengths = np.array(read_arrow("corpus", path, ["doc_id", "num_tokens"])["num_tokens"].to_pylist(), np.int64)
    batches = pq.ParquetFile(path).iter_batches(columns=["text"])
    return Documents(lengths, sum(pc.sum(pc.binary_length(batch["text"])).as_py() or 0 for batch in batches))


@cache
def _prepared(cell: Path, changed: int, tail: Documents, tokenizer: Path) -> dict[str, Any]:
    """What the prepared data of a task at a context say, for all systems."""
    rows = read_arrow("overlays", cell / "overlays.parquet", ["overlay_id", "num_tokens"])
    number = ViewRecord.read(cell / "view.json").base_documents
    overlay = np.array(rows["num_tokens"].to_pylist(), np.int64)
    found = {
        "base": Documents(tail.lengths[:number], tail.text_bytes * number // max(1, len(tail))),
        "overlay": Documents(overlay, int(overlay.sum()) * tail.text_bytes // max(1, tail.tokens)),
        "overlays": len(set(rows["overlay_id"].to_pylist())),
        "source": "prepared",
    }
    questions = read_questions(cell / "questions.parquet")
    if tokenizer.exists() and questions:
        requests = [f"{prompts.REPEAT_QUESTION}{q.text}{prompts.GIVE_ANSWER}{q.answer_prefix}" for q in questions]
        texts = {"question_tokens": [prompts.question(q.text) for q in questions], "request_tokens": requests}
        for name, each in texts.items():
            encoded = open_tokenizer(tokenizer).encode_batch_fast(each, add_special_tokens=False)
            found[name] = float(np.mean([len(item.ids) for item in encoded]))
    return found


def _counted(found: Workload, answers: list[Any]) -> Workload:
    """A workload with the counts of its own answers."""
    names = {"prompt_tokens": "input_tokens", "answer_tokens": "output_tokens", "rounds": "rounds"}
    means = {key: float(np.mean([getattr(answer, name) for answer in answers])) for key, name in names.items()}
    longest = max(answer.input_tokens for answer in answers)
    return replace(found, questions=len(answers), longest_tokens=longest, **means, source="ran")


@dataclass(frozen=True)
class Ran:
    """One index, cell or training run that ended well on this machine: ``name`` of an entry, ``row`` of the plan."""

    kind: str  # such as `bm25 cells`, `dense index` or `training`
    name: str
    row: str
    made: Estimate
    seconds: float
    record: IndexRecord | RunRecord | None = None  # none of a training run
    processes: int = 1  # of a training run, and what they held together
    held_bytes: float = 0.0


def what_ran(planner: Planner) -> Iterator[Ran]:
    """Everything of a profile that ended well on this machine."""
    experiment, profile, paths = planner.experiment, planner.experiment.profile, planner.paths
    for index, corpora in planner.indexes().items():
        for corpus in corpora:
            if record := _record(IndexRecord, paths.index(index, corpus) / "index.json"):  # rates are of one thread
                kind, made = f"{experiment.indexes[index].kind} index", planner.index(index, [corpus], "float32")
                yield Ran(kind, index, f"{index} {corpus}", made, record.build_s * record.threads, record)
    for system in profile.systems:
        for context, task in ((context, task) for context in profile.contexts for task in profile.tasks):
            directory = paths.cell(system, task, context, profile.seeds[0])
            if record := _record(RunRecord, directory / "run.json"):
                kind = experiment.systems[system].kind
                made = planner.cell(system, planner.workload(system, task, context), "float32")
                # a prompt that an earlier context's was is not read again, but has the times of its reading
                answered = sum(answer.total_s for answer in answers_of(directory / "predictions.jsonl"))
                yield Ran(f"{kind} cells", system, f"{system} {context}", made, max(record.wall_s, answered), record)
    for name in profile.models:
        if log := planner.training_log(name):
            shards = experiment.models[name].params.get("shards", 1)
            processes = max(n for n in range(1, machine().cores + 1) if shards % n == 0)
            peak = max(step.get("peak_host_bytes", 0.0) for step in log)
            yield Ran("training", name, name, planner.training(name), log[-1]["seconds"], None, processes, peak)


def _record(kind: type[Record], path: Path) -> Record | None:
    try:
        record = kind.read(path)
    except UserError:  # not there, of an older format, or broken: it says nothing of this machine
        return None
    same = (record.hardware.cpu, record.hardware.cores) == (machine().cpu, machine().cores)
    return record if same and record.status == "ok" else None


def fit(ran: Sequence[Ran]) -> dict[str, float]:
    """Seconds a FLOP by stage, found by non-negative least squares; nothing where nothing ran.

    The seconds of every row are taken as the sum over its stages of FLOPs times a rate that all rows share.
    """
    from scipy.optimize import nnls

    # what is served elsewhere has seconds of its own
    known = [item for item in ran if item.made.stages and item.seconds > 0 and not any(item.made.served_tokens)]
    flops = {stage: [] for item in known for stage, work in item.made.stages.items() if work.flops}
    for stage, column in flops.items():
        column += [item.made.stages[stage].flops if stage in item.made.stages else 0.0 for item in known]
    total = [item.made.flops for item in known]
    flops = {stage: column for stage, column in flops.items() if max(map(truediv, column, total)) >= LEAST_SHARE}
    if not flops:
        return {}
    # noise grows with the root of the seconds: short rows count, and long ones more
    weights = np.array([item.seconds for item in known]) ** -0.5
    matrix = np.array(list(flops.values())).T * weights[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    found, _ = nnls(matrix / scale, weights * [item.seconds for item in known])
    return dict(zip(flops, (found / scale).tolist(), strict=True))


def _refusing(planner: Planner) -> Planner:
    """The planner with measured rates, where the profile limits hours; nothing else depends on them."""
    limited = planner.experiment.profile.limits.cell_hours
    return replace(planner, rates=fit(list(what_ran(planner)))) if limited else planner


def refused_contexts(
    experiment: Experiment, paths: Paths, system: str, task: str, questions: int | None = None
) -> dict[str, tuple[str, str]]:
    """Status and reason by context of cells without data, without an index, or beyond this machine or the profile's
    limits; ``questions`` are asked, where not all are.
    """
    planner, spec, refused = _refusing(Planner(experiment, paths)), experiment.systems[system], {}
    directory = paths.index(spec.index, experiment.tasks[task].corpus) if spec.index else None
    index = IndexRecord.read(directory / "index.json") if directory else None
    for context in experiment.profile.contexts:
        if reason := ViewRecord.read(paths.prepared(task, context) / "view.json").unavailable:
            refused[context] = ("unavailable_data", reason)
        elif index and index.status != "ok":
            refused[context] = (index.status, f"{REFUSED}: index {spec.index}: {index.reason}")
        else:
            work = planner.workload(system, task, context, answered=False)
            work = work if questions is None else replace(work, questions=min(questions, work.questions))
            if found := planner.refusal(planner.cell(system, work, "float32"), REFUSED):
                refused[context] = found
    return refused


def refused_index(experiment: Experiment, paths: Paths, index: str, corpus: str) -> tuple[str, str] | None:
    """Status and reason of an index that has no corpus, or that exceeds this machine or the profile's limits."""
    if reason := unavailable(paths.corpus(corpus)):
        return "unavailable_data", reason
    planner = _refusing(Planner(experiment, paths))
    return planner.refusal(planner.index(index, [corpus], "float32"), "planned, not built")
