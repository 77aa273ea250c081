"""Estimates of a profile's models, indexes and cells, judged on a machine; and the refusal of what cannot run on this one.

The drivers ask :func:`refuse_cell` and :func:`refuse_index` before they begin: what the plan says will not fit, or takes
longer than the profile allows, gets its status with the plan's figures instead of being killed halfway.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from baselines.base import CellStatus
from baselines.estimate import Estimate, Part, cell_estimate, index_estimate, together
from baselines.race import Cell, Race
from baselines.workload import Workload, corpus_documents, workload
from configs.errors import UserError
from configs.hardware import GB, Hardware, free_disk_bytes, host_bytes
from configs.load import Experiment, LimitsSpec
from configs.paths import Paths
from msa import plan, pretrained
from msa.config import ModelConfig

PROCESS_BYTES = 0.5e9  # of a process that imports torch and reads tables, before data and weights (docs/LOG.md)
USABLE_SHARE = 0.9  # of a memory, that one cell may plan to fill
REFUSED = "planned, not run"  # how the reason of a cell begins that was refused
AUTO_SHARE = 0.7  # of what is left of a tier, that a part without a tier may take (msa.tiers)
MATMUL_SHARE = 0.25  # of this machine's matrix rate, for stages that nothing measured here; assumed
MATRIX, REPEATS = 1024, 5  # of the matrix rate's measurement
# tokens that tasks.vocabulary adds to the `words` and `pieces` of a profile: names, templates, characters (tiny: 19,004 in all)
FIXED_WORDS = 14_400
# tokens of a training question, of a document in prose, of a bare one
ROW_TOKENS, DOCUMENT_TOKENS, SENTENCE_TOKENS = 45, 85, 40


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
    """Estimates of a profile; what is prepared or has run under ``paths`` makes them exact.

    ``rates``: seconds a FLOP that stages took on this machine (baselines.measured).
    """

    experiment: Experiment
    paths: Paths
    rates: dict[str, float] = field(default_factory=dict)

    def config(self, model: str | None) -> ModelConfig | None:
        """A model's shape: of its checkpoint, else of its entry; None where neither says."""
        if model is None:
            return None
        path = self.paths.model(model) / "config.json"
        if path.exists():
            from configs.tables import read_json

            try:
                return ModelConfig.from_hub(read_json(path), str(path))
            except UserError:  # somebody else's kind of model
                return None
        return plan.planned_config(model, self.experiment.models, self._vocab_size())

    def _vocab_size(self) -> int:
        """Tokens of the profile's tokenizer; about as many as it will have, where it was not made yet."""
        if self.paths.tokenizer.exists():
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(self.paths.tokenizer)).get_vocab_size()
        made = self.experiment.profile.tokenizer
        return FIXED_WORDS + int(made.get("words", 4000)) + int(made.get("pieces", 600))

    def indexes(self) -> dict[str, list[str]]:
        """The corpora that each index of the profile's systems is built over."""
        profile = self.experiment.profile
        corpora = sorted({self.experiment.tasks[task].corpus for task in profile.tasks})
        used = {self.experiment.systems[system].index for system in profile.systems} - {None}
        return {name: corpora for name in sorted(used)}

    def index(self, name: str, corpora: Sequence[str], dtype: str) -> Estimate:
        """An index over some corpora."""
        spec = self.experiment.indexes[name]
        held = [corpus_documents(self.experiment, self.paths, corpus) for corpus in corpora]
        return together([index_estimate(spec, self.config(spec.model), documents, dtype) for documents in held])

    def workload(self, system: str, task: str, context: str) -> Workload:
        """What a cell asks."""
        return workload(self.experiment, self.paths, system, task, context)

    def cell(self, system: str, work: Workload, dtype: str) -> Estimate:
        """A system's cell."""
        spec = self.experiment.systems[system]
        index = self.experiment.indexes[spec.index] if spec.index else None
        encoder = self.config(index.model) if index else None
        return cell_estimate(spec, index, self.config(spec.model), encoder, self.config(spec.reranker), work, dtype)

    def training_log(self, name: str) -> list[dict[str, Any]]:
        """The steps of a model whose training ended, none of others.

        Raises:
            UserError: the log is broken.
        """
        directory = self.paths.model(name)
        path = directory / "train.jsonl"
        if not path.exists() or not (directory / "config.json").exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text().splitlines()]
        except ValueError as error:
            raise UserError(f"{path}: not a training log ({error}); delete {directory} and train again") from None

    def training_tokens(self, name: str) -> tuple[float | None, str]:
        """Tokens that training a model reads, and whether its own log says so or its phases do; None without phases."""
        if log := self.training_log(name):
            return sum(step["tokens"] for step in log), "ran"
        params = self.experiment.models[name].params
        if not params.get("phases"):
            return None, "formula"
        tokens = sum(phase_tokens(phase, self.experiment.profile.samples) for phase in params["phases"])
        return tokens * params.get("shards", 1), "assumed"

    def training(self, name: str) -> Estimate:
        """Training a model, or taking one that somebody fetched; its memory is not estimated."""
        spec, config, (tokens, _) = self.experiment.models[name], self.config(name), self.training_tokens(name)
        if spec.kind == pretrained.KIND and (reason := pretrained.missing(name, spec)):
            return Estimate(stages={}, status="unavailable_data", reason=reason)
        return Estimate(stages=None if None in (config, tokens) else {"train": plan.training_cost(config, tokens)})

    def here(self) -> Hardware:
        """This machine: sizes from the system, the matrix rate of one thread measured."""
        return Hardware(
            "this machine", "one thread, matrix rate measured", devices=0, device_gb=0, host_gb=host_bytes() / GB,
            disk_gb=free_disk_bytes(self.paths.root) / GB, dtype="float32", matmul_tflops=matmul_tflops(),
            memory_gb_per_s=0, link_gb_per_s=0, matmul_share=MATMUL_SHARE, memory_share=0,
        )  # fmt: skip

    def seconds(self, made: Estimate, machine: Hardware, rates: dict[str, float] | None = None) -> float | None:
        """Seconds of all stages: here, at measured rates where there are any. Encoding, routing and training are divided
        among devices; the rest is done by each.
        """
        if made.stages is None:
            return None
        known, total = {} if machine.devices else self.rates if rates is None else rates, 0.0
        for stage, cost in made.stages.items():
            if stage in known:
                total += cost.flops * known[stage]
            else:
                split = machine.devices if stage.startswith(("encode", "route", "train")) else 1
                total += machine.roofline_s(cost.flops, cost.read_bytes, cost.link_bytes) / max(1, split)
        return total

    def judge(self, made: Estimate, machine: Hardware) -> Verdict:
        """Place an estimate's parts on a machine and time its stages there; the profile's limits hold for this machine."""
        limits = LimitsSpec() if machine.devices else LimitsSpec(**self.experiment.profile.limits)
        room = {
            "device": machine.device_gb * GB * USABLE_SHARE,
            "host": min(machine.host_gb, limits.host_gb or machine.host_gb) * GB * USABLE_SHARE,
            "disk": min(machine.disk_gb, limits.disk_gb or machine.disk_gb) * GB,
        }
        process = [Part("process", PROCESS_BYTES, "host")] if made.parts else []
        placed = place([*process, *made.parts], machine, room)
        held = {tier: sum(size for _, size in parts) for tier, parts in placed.items()}
        seconds, status, reason = self.seconds(made, machine), made.status, made.reason
        over = [tier for tier in room if held[tier] > room[tier]]
        if status == "ok" and over:
            status, reason = "out_of_memory", "; ".join(shortage(tier, placed[tier], room[tier]) for tier in over)
        elif status == "ok" and limits.cell_hours and (seconds or 0) > limits.cell_hours * 3600:
            status = "timeout"
            reason = f"planned {seconds / 3600:.3g} h, the profile's limit for a cell is {limits.cell_hours:g} h"
        return Verdict(
            status, reason, held["device"], held["host"], held["disk"] + held["stored"], held["host"] + held["copied"], seconds
        )


@cache
def matmul_tflops() -> float:
    """TFLOP/s of float32 matrix products on one thread of this machine, by its own clock: other programs count little."""
    from time import process_time

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix, spent = torch.ones(MATRIX, MATRIX), []
    for _ in range(REPEATS):
        start_s = process_time()
        torch.mm(matrix, matrix)
        spent.append(process_time() - start_s)
    torch.set_num_threads(threads)
    return 2 * MATRIX**3 / min(spent) / 1e12


def phase_tokens(phase: dict[str, Any], samples: dict[str, dict[str, Any]]) -> float:
    """Tokens that a phase of msa.train reads, bank and rows, by the make-up of its rows (msa.samples)."""
    steps, rows = phase["steps"], phase["rows"]
    sample = samples.get(phase["samples"], {})
    document = SENTENCE_TOKENS if sample.get("bare_share") == 1.0 else DOCUMENT_TOKENS
    if phase["objective"] == "copy":  # up to `tokens` before, within and behind a span that comes again
        return steps * rows * 2.5 * phase.get("tokens", 32)
    if phase["objective"] == "recall":  # a list, and half of it again
        return steps * rows * 1.5 * phase.get("tokens", 32)
    if phase["objective"] == "read":
        fewest, most = phase.get("documents", (1, 4))
        return steps * rows * ((fewest + most) / 2 * document + phase.get("questions", 1) * ROW_TOKENS)
    if phase["objective"] == "ask":
        return steps * rows * (document + ROW_TOKENS / 2)
    if phase["objective"] == "memory_agent":  # each problem, with its memories
        fewest, most = phase.get("documents", (1, 4))
        return steps * rows * ((fewest + most) / 2 * document + (1 + phase.get("questions", 1)) / 2 * ROW_TOKENS)
    # an answer's row has the documents of its chain behind the question
    share = phase.get("answer_share", 0.5) if phase["objective"] == "memory" else 0.0
    return steps * (sample.get("bank_tokens", 0) + rows * (ROW_TOKENS + share * (1.5 * document + ROW_TOKENS)))


def place(parts: Sequence[Part], machine: Hardware, room: dict[str, float]) -> dict[str, list[tuple[str, float]]]:
    """Names and bytes of parts by tier, those of a device for each of them.

    What lies on disk already is ``stored`` there; a copy of it in the memory of a processor that computes leaves the pages
    that it was read from (``copied``).
    """
    placed: dict[str, list[tuple[str, float]]] = {name: [] for name in ("device", "host", "disk", "stored", "copied")}

    def size(part: Part, tier: str) -> float:
        return part.bytes / machine.devices if part.sharded and tier == "device" else part.bytes

    def fits(part: Part, tier: str) -> bool:
        return size(part, tier) <= AUTO_SHARE * (room[tier] - sum(held for _, held in placed[tier]))

    for part in sorted(parts, key=lambda part: part.tier == "auto"):
        tiers = ("device", "host", "disk") if part.tier == "auto" else (part.tier,)
        if not machine.devices:
            tiers = tuple(dict.fromkeys("host" if tier == "device" else tier for tier in tiers))
        tier = next((tier for tier in tiers[:-1] if fits(part, tier)), tiers[-1])
        placed["stored" if tier == "disk" and part.stored else tier].append((part.name, size(part, tier)))
        if part.stored and tier != "disk" and not machine.devices:
            placed["copied"].append((part.name, part.bytes))
    return placed


def shortage(tier: str, parts: list[tuple[str, float]], room: float) -> str:
    """What a tier lacks, with its three largest parts."""
    needed = sum(size for _, size in parts)
    largest = ", ".join(f"{name} {size / GB:,.1f}" for name, size in sorted(parts, key=lambda part: -part[1])[:3])
    return f"{tier} needs {needed / GB:,.1f} GB, has {room / GB:,.1f} GB to give ({largest})"


def refuse_cell(race: Race, cell: Cell, questions: int | None = None) -> None:
    """Raise the status of a cell whose index was refused, that this machine cannot hold, or that passes the limits.

    Args:
        questions: how many are asked, where not all are.
    """
    from configs.tables import read_json

    if reason := race.view(cell).get("unavailable"):
        raise CellStatus("unavailable_data", reason)
    if (directory := race.resources(seed=0).index) is not None:
        record = read_json(directory / "index.json")
        if record.get("status", "ok") != "ok":
            raise CellStatus(record["status"], f"{REFUSED}: index {race.spec.index}: {record['reason']}")
    planner = _planner(race.experiment, race.paths)
    work = planner.workload(race.system, race.task, cell.context)
    work = work if questions is None else replace(work, questions=min(questions, work.questions))
    _refuse(planner, planner.cell(race.system, work, "float32"), REFUSED)


def refuse_index(experiment: Experiment, paths: Paths, index: str, corpus: str) -> None:
    """Raise the status of an index whose corpus is not here, or that this machine cannot build, or not in the time allowed."""
    from configs.tables import unavailable

    if reason := unavailable(paths.corpus(corpus)):
        raise CellStatus("unavailable_data", reason)
    planner = _planner(experiment, paths)
    _refuse(planner, planner.index(index, [corpus], "float32"), "planned, not built")


def _planner(experiment: Experiment, paths: Paths) -> Planner:
    from baselines.measured import profile_rates

    limited = experiment.profile.limits.get("cell_hours") is not None
    return Planner(experiment, paths, profile_rates(experiment, paths) if limited else {})


def _refuse(planner: Planner, made: Estimate, what: str) -> None:
    verdict = planner.judge(made, planner.here())
    if verdict.status in ("out_of_memory", "timeout"):
        raise CellStatus(verdict.status, f"{what}: {verdict.reason}")
