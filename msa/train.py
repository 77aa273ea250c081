"""Training: the phases of one model, with resumption and a log a dashboard can follow (paper sections 3.3-3.4).

Train one model of models.yaml, after its parent::

    python -m msa.train --profile tiny --model msa
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import hashlib
import json
import math
import resource
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from configs import prompts
from configs.errors import UserError, run_command
from configs.load import DIRECTORY, ModelSpec, build, load
from configs.paths import Paths
from configs.tables import read_json, whole_file, write_json
from msa import checkpoint, parallel
from msa.config import ModelConfig
from msa.initialise import initialise, initialise_routers
from msa.loss import IGNORE, auxiliary_loss, language_loss
from msa.memory import PaddedMemory
from msa.model import MSAModel, PooledLayer
from msa.prompt import Prompter, load_tokenizer
from msa.samples import Batch, Group, TrainingSet


@dataclass(frozen=True)
class Shape:
    """Backbone shape of a model trained from scratch; see :class:`msa.config.ModelConfig`."""

    hidden_size: int
    intermediate_size: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    logit_gain: float = 0.15  # initial gain of the final norm: with unit embeddings it keeps first logits small


@dataclass(frozen=True)
class Router:
    """What turns a backbone into MSA."""

    routed_layers: list[int]
    pool_tokens: int
    top_k_documents: int
    aux_temperature: float


@dataclass(frozen=True)
class Phase:
    """One phase. ``objective``: copy (shuffled words twice), recall (values by their keys), read (answer from documents in
    context), ask (the question that a document answers), memory_agent (rewrite a memory from a section, or answer from it),
    memory (routed), or embed (bi-encoder).

    The loss is ``lm_weight`` x L_LM + ``aux_weight`` x L_aux, where answers may have an ``answer_weight`` of their own in
    place of ``lm_weight``; ``answer_share`` of the memory rows are answers, the others retrieval rounds, or a memory agent's sections (``answer_shares``:
    of some tasks, by name, as some are hard to find and others hard to read).
    ``routing_dropout`` leaves a share of a question's tokens out of its routing: a document's score is that of its best
    pair of token and chunk, and a token that all documents of a kind match would win every pair and leave names untaught. ``memory_dropout`` is the share of answers that are read from fetched text alone.
    ``documents`` bounds the documents of a reading row or a section, ``questions`` is how many questions follow them (at most, of a section), ``tokens`` the
    length of a copied sequence or of a list to recall from.
    """

    name: str
    objective: str
    samples: str
    steps: int
    rows: int
    lm_weight: float = 1.0
    aux_weight: float = 0.1
    answer_weight: float | None = None
    answer_share: float = 0.5
    answer_shares: dict[str, float] = field(default_factory=dict)
    routing_dropout: float = 0.0
    memory_dropout: float = 0.0
    documents: list[int] = field(default_factory=lambda: [1, 4])
    questions: int = 1
    tokens: int = 32


@dataclass(frozen=True)
class Optimizer:
    """Muon on matrices, AdamW on embeddings and gains.

    One schedule over all phases: warm-up, constant, then over the last ``decay_share`` linear to ``final_share``.
    """

    matrix_learning_rate: float = 0.02
    vector_learning_rate: float = 0.005
    matrix_weight_decay: float = 0.0
    warmup_steps: int = 20
    decay_share: float = 0.5
    final_share: float = 0.02
    clip: float = 1.0


@dataclass(frozen=True)
class TrainParams:
    """The ``params`` of a models.yaml entry of this kind.

    A step is the mean over ``shards`` batches, each with a bank of its own; they are spread over as many processes as
    there are, so that the result is the same with one.
    """

    phases: list[dict[str, Any]]
    shape: dict[str, Any] | None = None
    router: dict[str, Any] | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    precision: str = "auto"
    max_id: int = 1_000_000
    seed: int = 0
    save_every: int = 100
    shards: int = 1


def _precision(name: str) -> torch.dtype | None:
    """Autocast type: bfloat16 where the processor multiplies it faster than float32, unless configured."""
    if name == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        name = "bfloat16" if fast else "float32"
    if name not in ("bfloat16", "float32"):
        raise UserError(f"models.yaml: precision {name!r} is unknown (known: auto, bfloat16, float32)")
    return torch.bfloat16 if name == "bfloat16" else None


TRIM_STEPS = 4
# Shapes that recur (msa.samples.WIDTH): documents of a bank, and targets of a group, are filled up to multiples of these.
DOCUMENTS, TARGETS = 8, 64


def _trim() -> None:
    """Give freed memory back to the system: batches of ever new shapes leave holes that grow to several times what is in use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)


class Trainer:
    """Runs the phases of one model.

    Args:
        spec: the models.yaml entry; its name is ``name``.
        paths: where samples, tokenizer and models lie.
        rank, ranks: this process among those that train together.

    Raises:
        UserError: the shards of a step cannot be spread evenly over the processes, or ``params`` are wrong.
    """

    def __init__(self, name: str, spec: ModelSpec, paths: Paths, rank: int = 0, ranks: int = 1):
        self.name, self.paths, self.parent, self.rank, self.ranks = name, paths, spec.after, rank, ranks
        where = f"models.yaml: {name}: params"
        self.params: TrainParams = build(TrainParams, spec.params, where)
        if self.params.shards < 1 or self.params.shards % ranks:
            raise UserError(f"{where}: shards: {self.params.shards} cannot be spread over {ranks} processes; make it a multiple")
        self.phases: list[Phase] = [
            build(Phase, phase, f"{where}: phases[{number}]") for number, phase in enumerate(self.params.phases)
        ]
        self.optimizer_spec: Optimizer = build(Optimizer, self.params.optimizer, f"{where}: optimizer")
        self.precision = _precision(self.params.precision)
        torch.manual_seed(self.params.seed)
        self.prompter = Prompter(load_tokenizer(paths.tokenizer))
        self.model = self._fresh_model(spec, where)
        self.top_k = self.model.config.top_k_documents if self.model.config.routed_layers else 0
        self.sets = {
            sample_set: TrainingSet(paths.samples(sample_set), self.prompter, self.top_k)
            for sample_set in sorted({phase.samples for phase in self.phases})
        }
        if self.params.router is not None:
            bank = self.sets[self.phases[0].samples].memory_batch(0, self.params.seed, 1, 0.0, self.params.max_id)
            initialise_routers(self.model, bank.documents, bank.lengths)
        self.temperature = self.model.config.aux_temperature
        self.total = sum(phase.steps for phase in self.phases)
        self._make_optimizers()

    def _fresh_model(self, spec: ModelSpec, where: str) -> MSAModel:
        vocabulary = self.prompter.tokenizer.get_vocab_size()
        if spec.after is None:
            shape: Shape = build(Shape, self.params.shape, f"{where}: shape")
            values = {key: value for key, value in dataclasses.asdict(shape).items() if key != "logit_gain"}
            return initialise(ModelConfig(vocab_size=vocabulary, **values), shape.logit_gain)
        parent = checkpoint.load(self.paths.model(spec.after)).requires_grad_(True)
        if self.params.router is None:
            return parent
        router: Router = build(Router, self.params.router, f"{where}: router")
        config = dataclasses.replace(
            parent.config, **{**dataclasses.asdict(router), "routed_layers": tuple(router.routed_layers)}
        )
        model = initialise(config, 1.0)
        model.load_state_dict(parent.state_dict(), strict=False)
        return model

    def _make_optimizers(self) -> None:
        matrices = [p for n, p in self.model.named_parameters() if p.dim() == 2 and "embed_tokens" not in n and "lm_head" not in n]
        chosen = {id(parameter) for parameter in matrices}
        vectors = [p for p in self.model.parameters() if id(p) not in chosen]
        spec = self.optimizer_spec
        muon = torch.optim.Muon(matrices, lr=spec.matrix_learning_rate, weight_decay=spec.matrix_weight_decay, adjust_lr_fn="original")
        adam = torch.optim.AdamW(vectors, lr=spec.vector_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = [muon, adam]
        self.base_rates = [spec.matrix_learning_rate, spec.vector_learning_rate]

    def rate(self, step: int) -> float:
        """Share of the base learning rate at a step."""
        spec = self.optimizer_spec
        warm = min(1.0, (step + 1) / max(1, spec.warmup_steps))
        left = min(1.0, (1 - step / self.total) / max(spec.decay_share, 1e-9))
        return warm * (spec.final_share + (1 - spec.final_share) * left)

    def phase_at(self, step: int) -> Phase:
        """The phase that a global step belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError(step)

    def batch(self, number: int, phase: Phase) -> Batch:
        """Batch ``number`` of the whole training (step x shards + shard); it depends on the seed and the number alone."""
        data, params = self.sets[phase.samples], self.params
        if phase.objective == "copy":
            return data.copying_batch(number, params.seed, phase.rows, phase.tokens)
        if phase.objective == "recall":
            return data.recall_batch(number, params.seed, phase.rows, phase.tokens)
        if phase.objective == "read":
            return data.reading_batch(number, params.seed, phase.rows, tuple(phase.documents), phase.questions, params.max_id)
        if phase.objective == "ask":
            return data.asking_batch(number, params.seed, phase.rows, params.max_id)
        if phase.objective == "memory_agent":
            return data.memory_agent_batch(
                number, params.seed, phase.rows, tuple(phase.documents), phase.questions, phase.answer_share, params.max_id
            )
        if phase.objective in ("memory", "embed"):
            share = phase.answer_share if phase.objective == "memory" else 0.0
            shares = phase.answer_shares if phase.objective == "memory" else {}
            return data.memory_batch(
                number, params.seed, phase.rows, share, params.max_id, phase.routing_dropout, phase.memory_dropout, shares
            )
        raise UserError(f"models.yaml: {self.name}: phase {phase.name}: objective {phase.objective!r} is unknown (known: copy, recall, read, ask, memory_agent, memory, embed)")

    def backward(self, batch: Batch, phase: Phase) -> dict[str, float]:
        """Gradients of a batch under a phase's weights, group by group; the figures to log."""
        if phase.objective == "embed":
            from msa.embed import contrastive_loss

            loss, figures = contrastive_loss(self.model, batch, self.temperature)
            loss.backward()
            return {"loss": loss.item(), **figures}
        memory, leaves = None, []
        if batch.documents is not None:
            again = torch.arange(-(-len(batch.lengths) // DOCUMENTS) * DOCUMENTS) % len(batch.lengths)
            pooled = self.model.encode(batch.documents[again], batch.lengths[again])
            # groups share the bank: their gradients gather at its outputs and go through the document tower once
            kept = [tensor[: len(batch.lengths)] for layer in pooled for tensor in layer.tensors()]
            leaves = [(tensor, tensor.detach().requires_grad_()) for tensor in kept]
            detached = iter([leaf for _, leaf in leaves])
            memory = PaddedMemory(
                [PooledLayer(next(detached), next(detached), next(detached)) for _ in pooled],
                batch.lengths, self.model.config.pool_tokens, self.top_k,
            )
        figures: dict[str, float] = defaultdict(float)
        routed = sum(int(group.positives.any(-1).sum()) for group in batch.groups) if memory else 0
        for group in batch.groups:
            self._group_backward(group, memory, phase, max(1, batch.targets), max(1, routed), figures)
        if leaves:
            torch.autograd.backward([tensor for tensor, _ in leaves], [leaf.grad for _, leaf in leaves])
        return dict(figures)

    def _group_backward(
        self, group: Group, memory: PaddedMemory | None, phase: Phase, targets: int, routed: int, figures: dict[str, float]
    ) -> None:
        """Add one group's share of the step's losses and gradients."""
        learn = group.targets != IGNORE
        counts = learn.sum(1)
        most = min(-(-int(counts.max()) // 8) * 8, learn.shape[1])
        places = (~learn).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]  # those that learn first, in order
        hidden, selections = self.model(
            group.ids, group.positions, memory=memory, routing_mask=group.routing, reads_memory=group.reads, wanted=places
        )
        hidden = hidden[torch.arange(places.shape[1]) < counts.unsqueeze(1)]
        wanted = group.targets[learn]
        filled = F.pad(hidden, (0, 0, 0, -len(hidden) % TARGETS))
        logits = self.model.logits(filled, group.vocabulary)[: len(wanted)]
        if group.vocabulary is not None:
            wanted = torch.searchsorted(group.vocabulary, wanted)
        each = language_loss(logits, wanted, reduction="none")
        lm = each.sum() / targets
        figures["lm_loss"] += lm.item()
        figures["target_accuracy"] += (logits.argmax(-1) == wanted).sum().item() / targets
        if memory is None or phase.answer_weight is None:
            loss = phase.lm_weight * lm
        else:
            answers = ~group.positives.any(-1, keepdim=True).expand_as(learn)[learn]
            loss = (each * torch.where(answers, phase.answer_weight, phase.lm_weight)).sum() / targets
        if selections:
            share = int(group.positives.any(-1).sum()) / routed
            layers = [auxiliary_loss(s.scores, group.positives, self.temperature, group.countable) for s in selections]
            aux = torch.stack(layers).mean() * share
            figures["aux_loss"] += aux.item()
            loss = loss + phase.aux_weight * aux
            for number, selection in zip(self.model.config.routed_layers, selections, strict=True):
                best = selection.scores.masked_fill(~group.countable, -torch.inf).argmax(-1, keepdim=True)
                figures[f"recall@1/layer{number}"] += group.positives.gather(1, best).sum().item() / routed
        figures["loss"] += loss.item()
        loss.backward()

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns what the log holds of it."""
        phase = self.phase_at(step)
        share = self.rate(step)
        for optimizer, base in zip(self.optimizers, self.base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * share
        figures = self._gradients(step, phase)
        if step % TRIM_STEPS == 0:
            _trim()
        if not math.isfinite(figures["loss"]):
            raise UserError(f"{self.name}: the loss of step {step} ({phase.name}) is not finite; lower the learning rates in models.yaml")
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_spec.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"step": step, "phase": phase.name, "learning_rate": self.base_rates[0] * share, **figures}

    def _gradients(self, step: int, phase: Phase) -> dict[str, float]:
        """Mean gradients over the step's shards, of all processes together; means of their figures, sums of tokens and memory."""
        shards, total = self.params.shards, defaultdict(float)
        for shard in range(self.rank, shards, self.ranks):
            batch = self.batch(step * shards + shard, phase)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision is not None):
                figures = self.backward(batch, phase)
            for key, value in figures.items():
                total[key] += value / shards
            total["tokens"] += batch.tokens
        total["peak_host_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self.ranks > 1:
            parallel.sum_gradients(self.model.parameters())
            total = parallel.sum_figures(total)
        if shards > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad /= shards
        return {**total, **{key: int(total[key]) for key in ("tokens", "peak_host_bytes")}}

    def run(self) -> None:
        """Train to the end, from the last saved step where there is one, then write the checkpoint."""
        resume = Resume(self.paths.model(self.name).with_name(f".{self.name}.resume"), self)
        log = resume.load()
        seconds = log[-1]["seconds"] if log else 0.0
        started = time.perf_counter() - seconds
        self.model.train()
        bar = tqdm(
            range(len(log), self.total), initial=len(log), total=self.total, desc=f"train {self.name}", mininterval=5,
            disable=self.rank > 0,
        )
        for step in bar:
            log.append({**self.step(step), "seconds": round(time.perf_counter() - started, 3)})
            shown = {key: f"{log[-1][key]:.3f}" for key in ("lm_loss", "aux_loss", "target_accuracy") if key in log[-1]}
            bar.set_postfix(phase=log[-1]["phase"], **shown, refresh=False)
            if self.rank == 0 and (step + 1) % self.params.save_every == 0 and step + 1 < self.total:
                resume.save(log)
        if self.rank > 0:
            return
        directory = self.paths.model(self.name)
        directory.mkdir(parents=True, exist_ok=True)
        with whole_file(directory / "train.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in log))
        with whole_file(directory / "tokenizer.json") as temporary:
            shutil.copyfile(self.paths.tokenizer, temporary)
        checkpoint.save(self.model, directory)
        resume.drop()


class Resume:
    """The state of an unfinished training, beside the model's directory: weights, optimiser states and the log.

    A state saved under other params, samples, tokenizer, parent or code is not used.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self.directory, self.trainer = directory, trainer
        inputs = [trainer.paths.tokenizer, *(trainer.paths.samples(name) / "samples.parquet" for name in trainer.sets)]
        if trainer.parent:
            inputs.append(trainer.paths.model(trainer.parent) / "model.safetensors")
        inputs += [Path(prompts.__file__), *sorted(Path(__file__).parent.glob("*.py"))]
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]
        self.identity = json.loads(json.dumps({"params": dataclasses.asdict(trainer.params), "inputs": digests}))

    def save(self, log: list[dict[str, Any]]) -> None:
        """Write the state of the step that the log ends with; the JSON goes last and makes it count."""
        tensors = {f"model.{name}": tensor for name, tensor in self.trainer.model.state_dict().items()}
        for number, optimizer in enumerate(self.trainer.optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
        (self.directory / "state.json").unlink(missing_ok=True)
        with whole_file(self.directory / "state.safetensors") as temporary:
            save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, temporary)
        write_json({**self.identity, "log": log}, self.directory / "state.json")

    def load(self) -> list[dict[str, Any]]:
        """Restore the last saved state; the log so far, empty where there is none."""
        if not (self.directory / "state.json").exists():
            return []
        content = read_json(self.directory / "state.json")
        if any(content.get(key) != value for key, value in self.identity.items()):
            return []
        tensors = checkpoint.read_tensors(self.directory / "state.safetensors")
        self.trainer.model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        )
        for number, optimizer in enumerate(self.trainer.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    key, field_name = name.split(".")[2:]
                    state.setdefault(int(key), {})[field_name] = tensor
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        return content["log"]

    def drop(self) -> None:
        """Forget the state: the training is done."""
        shutil.rmtree(self.directory, ignore_errors=True)


def main() -> None:
    """Train one model of a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny", help="a file of configs/profiles (default: tiny)")
    parser.add_argument("--model", required=True, help="an entry of models.yaml")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads in all (default: torch's choice)")
    parser.add_argument("--processes", type=int, default=1, help="processes at most that share the shards of a step (default: 1)")
    parser.add_argument("--results", default="results", type=Path, help="results directory")
    parser.add_argument("--configs", default=DIRECTORY, type=Path, help="configuration directory")
    arguments = parser.parse_args()
    experiment = load(arguments.profile, arguments.configs)
    if arguments.model not in experiment.models:
        raise UserError(f"--model {arguments.model}: unknown (known in models.yaml: {', '.join(experiment.models)})")
    torch.use_deterministic_algorithms(True)
    spec = experiment.models[arguments.model]
    shards = max(1, spec.params.get("shards", 1))
    processes = max(number for number in range(1, max(1, arguments.processes) + 1) if shards % number == 0)
    with parallel.joined(processes) as (rank, ranks):
        if arguments.threads:
            torch.set_num_threads(max(1, arguments.threads // ranks))
        paths = Paths.of(arguments.profile, arguments.results)
        Trainer(arguments.model, spec, paths, rank, ranks).run()


if __name__ == "__main__":
    run_command(main)
