"""Training: the phases of one model, with resumption and a log a dashboard can follow (paper sections 3.3-3.4).

Train one model of models.yaml, after its parent::

    python -m msa.training.train --profile tiny --model msa
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import math
import os
import resource
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

from msa.checkpoints import hub, read, write
from msa.memory import parallel
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa.model.initialise import initialise, initialise_routers
from msa.model.prompt import Prompter, load_tokenizer
from msa.ops import precision
from msa.training import adapters
from msa.training.muon import Muon
from msa.training.objectives import OBJECTIVES
from msa.training.recipe import TrainParams as ModelParams
from msa.training.recipe import check_model, read_recipe
from msa.training.samples import Batch, Phase, TrainingSet
from msa.training.sources import made_from
from msa_base.command import experiment_parser, open_experiment
from msa_base.errors import UserError, run_command
from msa_base.options import add_number, add_threads
from msa_base.paths import SEAL, Paths
from msa_base.seal import Seal, write_seal
from msa_base.specs import ModelSpec
from msa_base.tables import read_json, whole_file, write_json

TRAINS = True  # a module with this is a trainer: the workflow runs it for the models whose `kind` names it
# what is asked of an entry: baselines.checks.check its check_model before any job, msa_base.meaning its ModelParams
__all__ = ["TRAINS", "ModelParams", "Trainer", "check_model"]

FILES = ("config.json", "tokenizer.json", "train.jsonl")  # of a trained model, beside its weights
GROWING = "train-{}.jsonl"  # of an unfinished training, with the digest of what it is made from
SHOWN = ("lm_loss", "aux_loss", "target_accuracy")  # beside the progress bar
TRIM_STEPS = 4


def _trim() -> None:
    """Give freed memory back to the system: batches of ever new shapes leave holes, several times what is in use."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc's
        libc.malloc_trim(0)


class Trainer:
    """Runs the phases of one model: ``spec`` is the models.yaml entry ``name``.

    This process is ``rank`` among the ``ranks`` that train together.

    Raises:
        UserError: the shards of a step cannot be spread evenly over the processes, or ``params`` are wrong.
    """

    def __init__(self, name: str, spec: ModelSpec, paths: Paths, rank: int = 0, ranks: int = 1):
        self.name, self.spec, self.paths, self.rank, self.ranks = name, spec, paths, rank, ranks
        where = f"models.yaml: {name}: params"
        self.params = read_recipe(spec, where)
        if (shards := self.params.shards) % ranks:
            raise UserError(f"{where}: shards: {shards} cannot be spread over {ranks} processes; make it a multiple")
        self.phases, self.optimizer_spec = self.params.phases, self.params.optimizer
        self.device = precision.device()
        self.precision = precision.choose(f"training of {name}", self.params.precision, self.device)
        torch.manual_seed(self.params.seed)
        self.carried = write.carried(read.find(paths.model(spec.after))) if spec.after else {}
        self.prompter = Prompter(load_tokenizer(paths.tokenizer), ends=self.carried.get("eos_token_id", []))
        self.model = self._fresh_model(spec).to(self.device)
        self.prompter.released = self.model.config.released_prompts
        self.prompter.query_tokens = self.model.config.form.query_tokens
        top_k = self.model.config.top_k_documents if self.model.config.routed_layers else 0
        self.sets = {
            sample_set: TrainingSet(paths.samples(sample_set), self.prompter, top_k)
            for sample_set in sorted({phase.samples for phase in self.phases})
        }
        if self.params.router is not None:
            first = self.phases[0]
            bank = self.sets[first.samples].memory_batch(0, self.params.seed, first, self.params.max_id)
            initialise_routers(self.model, bank.documents, bank.lengths)
        if self.params.adapter:
            adapters.insert(self.model, self.params.adapter)
        self.temperature = self.model.config.aux_temperature
        self.schedule = [phase for phase in self.phases for _ in range(phase.steps)]  # the phase of each step
        self._make_optimizers()

    def _fresh_model(self, spec: ModelSpec) -> MSAModel:
        vocabulary = self.prompter.tokenizer.get_vocab_size()
        if spec.after is None:
            values = dataclasses.asdict(self.params.shape)
            gain = values.pop("logit_gain")
            return initialise(ModelConfig(vocab_size=vocabulary, **values), gain)
        parent = read.load(self.paths.model(spec.after)).requires_grad_(True)
        if self.params.router is None:
            return parent
        router = {**vars(self.params.router), "routed_layers": tuple(self.params.router.routed_layers)}
        model = initialise(dataclasses.replace(parent.config, **router), 1.0)
        model.load_state_dict(parent.state_dict(), strict=False)
        return model

    def _make_optimizers(self) -> None:
        matrices, vectors = [], []
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            is_matrix = parameter.dim() == 2 and not any(part in name for part in ("embed_tokens", "lm_head", "lora_"))
            (matrices if is_matrix else vectors).append(parameter)
        spec = self.optimizer_spec
        muon = {"lr": spec.matrix_learning_rate, "weight_decay": spec.matrix_weight_decay}
        adam = {"lr": spec.vector_learning_rate, "betas": (0.9, 0.95), "weight_decay": 0.0}
        made = [
            (Muon, matrices, muon | {"dtype": precision.PRODUCTS[self.precision]}),
            (torch.optim.AdamW, vectors, adam),
        ]
        made = [(kind, parameters, options) for kind, parameters, options in made if parameters]
        if self.ranks == 1:
            self.optimizers = [kind(parameters, **options) for kind, parameters, options in made]
        else:  # each process holds the state of its share of the parameters and updates these (ZeRO, stage 1)
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self.optimizers = [
                ZeroRedundancyOptimizer(parameters, kind, **options) for kind, parameters, options in made
            ]

    def rate(self, step: int) -> float:
        """Share of the base learning rate at a step."""
        spec = self.optimizer_spec
        warm = min(1.0, (step + 1) / max(1, spec.warmup_steps))
        left = min(1.0, (1 - step / len(self.schedule)) / max(spec.decay_share, 1e-9))
        return warm * (spec.final_share + (1 - spec.final_share) * left)

    def batch(self, number: int, phase: Phase) -> Batch:
        """Batch ``number`` of the whole training (step x shards + shard); the seed and the number alone decide it."""
        data, params = self.sets[phase.samples], self.params
        return OBJECTIVES[phase.objective].batch(data, number, params.seed, phase, params.max_id)

    def backward(self, batch: Batch, phase: Phase) -> dict[str, float]:
        """Gradients of a batch under a phase's objective and weights; the figures to log."""
        return OBJECTIVES[phase.objective].backward(self.model, batch, phase, self.temperature)

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns what the log holds of it."""
        phase = self.schedule[step]
        share = self.rate(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * share
        figures = self._gradients(step, phase)
        if step % TRIM_STEPS == 0:
            _trim()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_spec.clip)
        for what, value in (("loss", figures["loss"]), ("gradient", norm)):
            if not math.isfinite(value):
                where = f"{self.name}: the {what} of step {step} ({phase.name})"
                raise UserError(f"{where} is not finite; lower the learning rates in models.yaml")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rate = self.optimizers[0].defaults["lr"] * share
        return {"step": step, "phase": phase.name, "precision": self.precision, "learning_rate": rate, **figures}

    def _gradients(self, step: int, phase: Phase) -> dict[str, float]:
        """Mean gradients over the shards of all processes; means of their figures, sums of tokens and memory."""
        shards, total = self.params.shards, defaultdict(float)
        for shard in range(self.rank, shards, self.ranks):
            batch = self.batch(step * shards + shard, phase)
            with precision.autocast(self.precision, self.device):
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
        total = len(self.schedule)
        shown = {"desc": f"train {self.name}", "mininterval": 5, "disable": self.rank > 0}
        bar = tqdm(range(len(log), total), initial=len(log), total=total, **shown)
        growing = resume.growing_log(log) if self.rank == 0 else None
        for step in bar:
            log.append({**self.step(step), "seconds": round(time.perf_counter() - started, 3)})
            if growing:
                growing.write(lines_of(log[-1:]))
            figures = {key: f"{log[-1][key]:.3f}" for key in SHOWN if key in log[-1]}
            bar.set_postfix(phase=log[-1]["phase"], **figures, refresh=False)
            if (step + 1) % self.params.save_every == 0 and step + 1 < total:
                resume.save(log)
        if growing is None:
            return
        growing.close()
        directory = self.paths.model(self.name)
        directory.mkdir(parents=True, exist_ok=True)
        with whole_file(directory / "train.jsonl") as temporary:
            temporary.write_text(lines_of(log))
        with whole_file(directory / "tokenizer.json") as temporary:
            shutil.copyfile(self.paths.tokenizer, temporary)
        if self.params.adapter:
            adapters.write(self.model, self.params.adapter, directory / adapters.FOLDER)
            adapters.merge(self.model)
        write.save(self.model, directory, **self.carried)
        shutil.rmtree(resume.directory, ignore_errors=True)


def lines_of(log: list[dict[str, Any]]) -> str:
    """Entries of a log as JSON, a line each."""
    return "".join(json.dumps(entry) + "\n" for entry in log)


class Resume:
    """The state of an unfinished training, beside the model's directory: weights, optimiser states and the log.

    A state that was made from other params, samples, tokenizer, parent or code is not used.
    """

    def __init__(self, directory: Path, trainer: Trainer):
        self.directory, self.trainer = directory, trainer
        self.made_from = made_from(trainer.spec, trainer.paths)

    def save(self, log: list[dict[str, Any]]) -> None:
        """Write the state of the step that the log ends with; the JSON goes last and makes it count.

        All processes call it: the first one gathers what the others hold of the optimisers, and writes.
        """
        if self.trainer.ranks > 1:
            for optimizer in self.trainer.optimizers:
                optimizer.consolidate_state_dict(to=0)
        if self.trainer.rank:
            return
        model = self.trainer.model
        kept = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}  # the parent's
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items() if name not in kept}
        for number, optimizer in enumerate(self.trainer.optimizers):
            for key, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{key}.{name}": torch.as_tensor(value) for name, value in state.items()}
        (self.directory / "state.json").unlink(missing_ok=True)
        with whole_file(self.directory / "state.safetensors") as temporary:
            save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, temporary)
        write_json({"made_from": self.made_from.model_dump(), "log": log}, self.directory / "state.json")

    def growing_log(self, log: list[dict[str, Any]]) -> TextIO:
        """A file that holds the log so far and takes every further line at once, for who follows the training.

        Its name tells what the training is made from, so that the curve of another one is never taken for its own.
        """
        path = self.directory / GROWING.format(self.made_from.digest)
        for other in self.directory.glob(GROWING.format("*")):
            other.unlink()
        with whole_file(path) as temporary:
            temporary.write_text(lines_of(log))
        return open(path, "a", buffering=1)

    def load(self) -> list[dict[str, Any]]:
        """Restore the last saved state; the log so far, empty where there is none."""
        place = self.directory / "state.json"
        content = read_json(place) if place.exists() else {"made_from": None}
        if content["made_from"] != self.made_from.model_dump():
            return []
        weights, states = {}, [defaultdict(dict) for _ in self.trainer.optimizers]
        for name, tensor in hub.read_tensors(self.directory / "state.safetensors").items():
            if name.startswith("model."):
                weights[name.removeprefix("model.")] = tensor
            else:
                _, number, key, value_name = name.split(".")
                states[int(number)][int(key)][value_name] = tensor
        self.trainer.model.load_state_dict({**self.trainer.model.state_dict(), **weights})
        for optimizer, state in zip(self.trainer.optimizers, states, strict=True):
            plain = torch.optim.Optimizer.state_dict(optimizer)  # a sharded one gives its own only when it is gathered
            optimizer.load_state_dict({**plain, "state": dict(state)})
        return content["log"]


def main() -> None:
    """Train one model of a profile."""
    parser = experiment_parser(__doc__)
    parser.add_argument("--model", required=True, help="an entry of models.yaml")
    add_threads(parser, 0, "CPU threads in all (default: 0, torch's choice)", least=0)
    told = "processes at most that share the shards of a step (default: one a thread)"
    add_number(parser, "--processes", None, told, most=1024)
    arguments = parser.parse_args()
    experiment, paths = open_experiment(arguments)
    if arguments.model not in experiment.models:
        raise UserError(f"--model {arguments.model}: unknown (known in models.yaml: {', '.join(experiment.models)})")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what torch asks for on GPUs
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    spec, directory = experiment.models[arguments.model], paths.model(arguments.model)
    if Seal.current(directory / SEAL, made_from(spec, paths)):
        return
    most = max(1, arguments.processes or arguments.threads)
    shards = read_recipe(spec, f"models.yaml: {arguments.model}: params").shards
    processes = max(number for number in range(1, most + 1) if shards % number == 0)
    with parallel.joined(processes) as (rank, ranks):
        if arguments.threads:
            torch.set_num_threads(max(1, arguments.threads // ranks))
        with precision.device():  # batches are made where they are used
            Trainer(arguments.model, spec, paths, rank, ranks).run()
        if rank == 0:
            names = [path.name for path in directory.iterdir() if path.name in FILES or ".safetensors" in path.name]
            names += [str(path.relative_to(directory)) for path in (directory / adapters.FOLDER).glob("*")]
            write_seal(directory / SEAL, made_from(spec, paths), names)


if __name__ == "__main__":
    run_command(main)
