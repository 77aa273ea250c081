"""Training: batches, gradients, resumption and repeatability, on a miniature of the real thing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from msa.checkpoints import hub, read
from msa.model.losses import IGNORE
from msa.training.samples import Phase, TrainingSet
from msa.training.train import Trainer, made_from
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.specs import ModelSpec
from msa_base.tables import write_json, write_table

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "layers": 3,
    "query_heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "rope_theta": 100.0,
}
ROUTER = {"routed_layers": [1, 2], "pool_tokens": 4, "top_k_documents": 2, "aux_temperature": 0.1}
READ = {"name": "reading", "objective": "read", "samples": "short", "steps": 3, "rows": 4}
MEMORY = {"name": "joint", "objective": "memory", "samples": "short", "steps": 4, "rows": 4}


def phase_of(rows: int, **values) -> Phase:
    return Phase("drawn", "memory", "short", 1, rows, **values)


def backbone(phases=(READ,), **params) -> ModelSpec:
    return ModelSpec(
        "msa.training.train",
        None,
        ["short"],
        {"shape": SHAPE, "phases": list(phases), "max_id": 1000, "precision": "float32", **params},
    )


def msa(phases=(MEMORY,), **params) -> ModelSpec:
    extra = {"router": ROUTER, "phases": list(phases), "max_id": 1000, "precision": "float32", **params}
    return ModelSpec("msa.training.train", "backbone", ["short"], extra)


def weights(paths, name):
    return hub.read_tensors(paths.model(name) / "model.safetensors")


def test_two_trainings_give_identical_weights(paths):
    Trainer("backbone", backbone(), paths).run()
    first = weights(paths, "backbone")
    Trainer("backbone", backbone(), paths).run()
    assert all(torch.equal(first[name], tensor) for name, tensor in weights(paths, "backbone").items())
    log = [json.loads(line) for line in (paths.model("backbone") / "train.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [0, 1, 2]
    assert {"phase", "tokens", "seconds", "loss", "lm_loss", "learning_rate"} <= log[0].keys()


def test_a_trained_model_ends_a_text_where_its_parent_does(paths):
    Trainer("backbone", backbone(), paths).run()
    parent = paths.model("backbone")
    assert "eos_token_id" not in json.loads((parent / "config.json").read_text())
    before = made_from(msa(), paths)
    write_json(
        {**json.loads((parent / "config.json").read_text()), "eos_token_id": 9, "bos_token_id": 8},
        parent / "config.json",
    )
    write_json({"eos_token_id": [7, 9]}, parent / hub.GENERATION)
    assert made_from(msa(), paths).data.keys() - before.data.keys() == {f"_models/backbone/{hub.GENERATION}"}
    trainer = Trainer("msa", msa(), paths)
    trainer.run()
    content = json.loads((paths.model("msa") / "config.json").read_text())
    assert (content["eos_token_id"], content["bos_token_id"]) == ([7, 9], 8)
    _, prompter = read.open_model(paths.model("msa"))
    assert prompter.ends == trainer.prompter.ends == {7, 9, prompter.im_end}
    write_json({"eos_token_id": 10**6}, parent / hub.GENERATION)
    with pytest.raises(UserError, match="must name tokens from 0 to"):
        Trainer("msa", msa(), paths)


@pytest.fixture
def interrupted(paths, monkeypatch):
    """A training of four steps, stopped behind its third; its class, and the list of steps that run from then on."""
    Trainer("backbone", backbone(), paths).run()
    step, ran = Trainer.step, []

    def killed(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        Trainer("msa", msa(save_every=2), paths).run()
    assert not (paths.model("msa") / "model.safetensors").exists()
    monkeypatch.setattr(Trainer, "step", lambda self, number: ran.append(number) or step(self, number))
    return ran


def test_an_interrupted_training_goes_on_to_the_same_weights(paths, interrupted):
    (growing,) = paths.model("msa").with_name(".msa.resume").glob("train-*.jsonl")
    assert growing.stem == f"train-{made_from(msa(save_every=2), paths).digest}"
    assert [json.loads(line)["step"] for line in growing.read_text().splitlines()] == [0, 1, 2]
    Trainer("msa", msa(save_every=2), paths).run()
    assert interrupted == [2, 3]  # from the last saved step
    resumed = weights(paths, "msa")
    assert not list(paths.model("msa").parent.glob(".*resume"))
    Trainer("msa", msa(save_every=2), paths).run()
    assert interrupted == [2, 3, 0, 1, 2, 3]
    assert all(torch.equal(resumed[name], tensor) for name, tensor in weights(paths, "msa").items())


def test_a_state_saved_under_other_code_is_not_used(paths, interrupted, monkeypatch):
    monkeypatch.setattr("msa_base.closure.code", lambda *_, **__: {"msa.training.train": "changed since"})
    Trainer("msa", msa(save_every=2), paths).run()
    assert interrupted == [0, 1, 2, 3]


def test_routers_learn_from_the_auxiliary_loss_alone(paths):
    Trainer("backbone", backbone(), paths).run()
    trainer = Trainer("msa", msa(), paths)
    torch.nn.init.normal_(trainer.model.model.layers[2].self_attn.o_proj.weight)
    grads = {}
    for name, change in {"lm": {"aux_weight": 0.0}, "aux": {"lm_weight": 0.0, "aux_weight": 1.0}}.items():
        phase = dataclasses.replace(Phase(**MEMORY), **change)
        trainer.model.zero_grad()
        trainer.backward(trainer.batch(1, phase), phase)
        grads[name] = {
            n: p.grad is not None and bool(p.grad.abs().sum() > 0) for n, p in trainer.model.named_parameters()
        }
    routers = [name for name in grads["lm"] if "router" in name]
    assert routers and not any(grads["lm"][name] for name in routers)
    assert all(grads["aux"][name] for name in routers)
    assert grads["lm"]["model.layers.1.self_attn.v_proj.weight"] and grads["aux"]["model.embed_tokens.weight"]


def test_gradients_do_not_depend_on_the_grouping_of_rows(paths, monkeypatch):
    Trainer("backbone", backbone(), paths).run()
    trainer, phase = Trainer("msa", msa(), paths), Phase(**MEMORY)
    found = []
    for tokens in (1, 100000):
        monkeypatch.setattr("msa.training.samples.GROUP_TOKENS", tokens)
        monkeypatch.setattr("msa.training.samples.GROUP_ROWS", 1)
        trainer.model.zero_grad()
        batch = trainer.batch(0, phase)
        figures = trainer.backward(batch, phase)
        found.append(
            (
                len(batch.groups),
                figures,
                {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None},
            )
        )
    (many, one_by_one, left), (few, together, right) = found
    assert many == 4 and few == 1
    assert one_by_one == pytest.approx(together, rel=1e-4)
    assert all(torch.allclose(left[name], right[name], atol=1e-5) for name in right)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_do_not_depend_on_how_many_tokens_are_held_at_once(paths, precision):
    """A bank that is encoded twice, in pieces, and rows one by one give the gradients of all at once, holding less."""
    Trainer("backbone", backbone(), paths).run()
    found, calls = {}, {}
    for most in (None, 50):
        phase = {**MEMORY, "tokens_at_once": most} if most else MEMORY
        trainer = Trainer("msa", msa((phase,), precision=precision), paths)
        seen, encode = [], trainer.model.encode
        trainer.model.encode = lambda ids, lengths, seen=seen, encode=encode: (
            seen.append((ids.numel(), torch.is_grad_enabled())) or encode(ids, lengths)
        )
        batch = trainer.batch(0, trainer.phases[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            trainer.backward(batch, trainer.phases[0])
        found[most] = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
        calls[most] = seen
        assert most is None or all(len(group.ids) == 1 or group.ids.numel() <= most for group in batch.groups)
    assert len(calls[None]) == 1 and calls[None][0][0] > 50
    sizes = [size for size, _ in calls[50]]
    assert max(sizes) <= 50 and sizes[: len(sizes) // 2] == sizes[len(sizes) // 2 :]
    assert [grad for _, grad in calls[50]] == [False] * (len(sizes) // 2) + [True] * (len(sizes) // 2)
    for name, gradient in found[None].items():
        close = {"rtol": 0.05, "atol": 0.05 * float(gradient.abs().max())} if precision == "bfloat16" else {}
        torch.testing.assert_close(found[50][name], gradient, **close, msg=lambda text, name=name: f"{name}: {text}")


def test_rows_are_single_steps_of_the_chain(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    rounds, answers = 0, 0
    for step in range(6):
        batch = data.memory_batch(step, 0, phase_of(4), 1000)
        for group in batch.groups:
            for row, positive, countable in zip(group.targets, group.positives, group.countable, strict=True):
                learned = row[row != IGNORE].tolist()
                if learned[-1] == prompter.object_ref_end:
                    rounds += 1
                    assert positive.sum() == 1
                else:
                    answers += 1
                    assert learned[0] == prompter.end_of_retrieve and learned[-1] == prompter.im_end
                    assert positive.sum() == 0 and not countable.all()
    assert rounds and answers


def test_several_questions_follow_one_set_of_documents(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    for step in range(4):
        batch = data.reading_batch(step, 0, phase_of(2, documents=[1, 3], questions=2), 1000)
        rows = [row for group in batch.groups for row in group.targets]
        for row, ids in zip(rows, [row for group in batch.groups for row in group.ids], strict=True):
            answers = "".join(prompter.tokenizer.id_to_token(token) for token in row.tolist() if token != IGNORE)
            values = [value for value in answers.split(prompts.IM_END) if value]
            assert values and all(len(value) == 3 for value in values)
            text = "".join(prompter.tokenizer.id_to_token(token) for token in ids.tolist() if token != prompter.pad)
            documents = text.split(prompts.OBJECT_REF_END)[0]
            assert all(value in documents for value in values)  # every gold document is shown
        assert max(int((row == prompter.im_end).sum()) for row in rows) == 2


def test_memory_agent_rows_end_in_a_reply_whose_values_stand_in_the_message(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    phase = phase_of(4, documents=[1, 2], questions=2, answer_share=0.3)
    seen = set()
    for step in range(8):
        batch = data.memory_agent_batch(step, 0, phase, 1000)
        for group in batch.groups:
            for ids, targets in zip(group.ids, group.targets, strict=True):
                learned = targets[targets != IGNORE].tolist()
                assert learned[-1] == prompter.im_end
                value = "".join(prompter.tokenizer.id_to_token(token) for token in learned[:-1])
                text = "".join(prompter.tokenizer.id_to_token(token) for token in ids.tolist() if token != prompter.pad)
                numbers = re.findall(r"\d{3}", value)
                assert all(number in text[: text.rindex(value)] for number in numbers)
                final = prompts.OBJECT_REF_END in text  # the final call reads the memory as its one document
                seen.add("answer" if final else "known" if numbers else "unknown")
    assert seen == {"answer", "unknown", "known"}


def test_a_memory_agent_trains_and_needs_notes(paths, prompter):
    phase = {
        "name": "sections",
        "objective": "memory_agent",
        "samples": "short",
        "steps": 2,
        "rows": 3,
        "documents": [1, 2],
    }
    Trainer("backbone", backbone([phase]), paths).run()
    log = (paths.model("backbone") / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in log] == ["sections"] * 2
    data = TrainingSet(paths.samples("short"), prompter, 2)
    for samples in data.samples.values():
        for sample in samples:
            sample["notes"] = None
    with pytest.raises(UserError, match="no sample has notes"):
        data.memory_agent_batch(0, 0, phase_of(2), 1000)


def test_answers_and_rounds_have_weights_of_their_own(paths):
    Trainer("backbone", backbone(), paths).run()
    trainer = Trainer("msa", msa(), paths)
    losses = {}
    for name, change in {
        "rounds": {"answer_weight": 0.0},
        "answers": {"lm_weight": 0.0, "answer_weight": 1.0},
        "both": {},
    }.items():
        phase = dataclasses.replace(Phase(**MEMORY), **{"lm_weight": 1.0, "aux_weight": 0.0, **change})
        losses[name] = trainer.backward(trainer.batch(0, phase), phase)["loss"]
    assert losses["rounds"] > 0 and losses["answers"] > 0
    assert losses["rounds"] + losses["answers"] == pytest.approx(losses["both"], rel=1e-5)


def test_weight_decay_reaches_matrices_alone(paths):
    trainer = Trainer("backbone", backbone(optimizer={"matrix_weight_decay": 0.3}), paths)
    muon, adam = trainer.optimizers
    assert [group["weight_decay"] for group in muon.param_groups] == [0.3]
    assert [group["weight_decay"] for group in adam.param_groups] == [0.0]


def test_ids_differ_at_every_visit_of_a_bank(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    visits = [data.memory_batch(step, 0, phase_of(4), 1000).documents for step in (0, 2)]
    assert not torch.equal(*visits)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (backbone([{**READ, "objective": "guess"}]), "objective: unknown name 'guess'"),
        (backbone([{**READ, "stepz": 1}]), "stepz"),
        (backbone(precision="float8"), "float8"),
    ],
)
def test_bad_entries_are_named(paths, spec, message):
    with pytest.raises(UserError, match=message):
        Trainer("backbone", spec, paths).run()


def test_a_sample_of_a_lost_document_is_named(paths, prompter):
    write_table(
        "banks",
        [{"bank_id": 0, "doc_id": 0, "text": "alpha", "num_tokens": 5}],
        paths.samples("short") / "banks.parquet",
    )
    with pytest.raises(UserError, match="sample 1 names document 1"):
        TrainingSet(paths.samples("short"), prompter, 2)


def test_a_step_is_the_mean_of_its_shards(paths):
    Trainer("backbone", backbone(), paths).run()
    trainer = Trainer("msa", msa(shards=2), paths)
    phase, found = trainer.phases[0], []
    for number in (2, 3):
        trainer.model.zero_grad()
        trainer.backward(trainer.batch(number, phase), phase)
        found.append({n: p.grad.clone() for n, p in trainer.model.named_parameters()})
    trainer.model.zero_grad()
    trainer._gradients(1, phase)
    for name, parameter in trainer.model.named_parameters():
        assert torch.allclose(parameter.grad, (found[0][name] + found[1][name]) / 2, atol=1e-6), name
    with pytest.raises(UserError, match="shards: 2 cannot be spread over 3 processes"):
        Trainer("msa", msa(shards=2), paths, 0, 3)


def test_processes_share_a_step_and_end_with_the_weights_of_one(paths, tmp_path):
    Trainer("backbone", backbone(shards=2), paths).run()
    alone = weights(paths, "backbone")
    script = tmp_path / "together.py"
    script.write_text(f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[3]), str(Path(__file__).parents[1])]!r}
import torch
from msa_base.specs import ModelSpec
from msa_base.paths import Paths
from msa.memory import parallel
from msa.training.train import Trainer, made_from
torch.set_num_threads(1)
spec = ModelSpec("msa.training.train", None, ["short"], {backbone(shards=2).params!r})
with parallel.joined(2) as (rank, ranks):
    assert (rank, ranks) in ((0, 2), (1, 2))
    Trainer("backbone", spec, Paths.of("mini", {str(tmp_path)!r}), rank, ranks).run()
    if "fail" in sys.argv and rank == 1:
        sys.exit(3)
""")
    subprocess.run([sys.executable, script], check=True, timeout=300)
    together = weights(paths, "backbone")
    assert all(torch.allclose(alone[name], tensor, atol=1e-5) for name, tensor in together.items())
    log = [json.loads(line) for line in (paths.model("backbone") / "train.jsonl").read_text().splitlines()]
    assert log[0]["peak_host_bytes"] > 2e8 and log[0]["tokens"] > 0  # of both processes
    failed = subprocess.run([sys.executable, script, "fail"], capture_output=True, text=True, timeout=300)
    assert failed.returncode != 0 and "process 1 of 2 ended with exit status 3" in failed.stderr


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_what_some_processes_saved_others_go_on_with(paths, tmp_path, first, then):
    """Several processes hold a share of the optimisers' state each; what they save is the whole of it."""
    spec = backbone(shards=2, save_every=2)
    Trainer("backbone", spec, paths).run()
    alone, script = weights(paths, "backbone"), tmp_path / "together.py"
    shutil.rmtree(paths.model("backbone"))
    script.write_text(f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parents[3]), str(Path(__file__).parents[1])]!r}
import torch
from msa_base.specs import ModelSpec
from msa_base.paths import Paths
from msa.memory import parallel
from msa.training.train import Trainer
torch.set_num_threads(1)
ran, step = [], Trainer.step
def stopped(self, number):
    if number == 2 and "stop" in sys.argv:
        os._exit(0)
    ran.append(number)
    return step(self, number)
Trainer.step = stopped
spec = ModelSpec("msa.training.train", None, ["short"], {spec.params!r})
with parallel.joined(int(sys.argv[1])) as (rank, ranks):
    trainer = Trainer("backbone", spec, Paths.of("mini", {str(tmp_path)!r}), rank, ranks)
    inner = [getattr(optimizer, "optim", optimizer) for optimizer in trainer.optimizers]
    held = sum(len(optimizer.param_groups[0]["params"]) for optimizer in inner)
    assert (held < len(list(trainer.model.parameters()))) == (ranks > 1)
    trainer.run()
    assert ran[0] == 2, ran
""")
    subprocess.run([sys.executable, script, str(first), "stop"], check=True, timeout=300)
    subprocess.run([sys.executable, script, str(then)], check=True, timeout=300)
    assert all(torch.allclose(alone[name], tensor, atol=1e-5) for name, tensor in weights(paths, "backbone").items())


def test_routing_dropout_leaves_at_least_one_token(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)

    def groups(share):
        phase = phase_of(4, answer_share=0.0, routing_dropout=share)
        return [group for step in range(20) for group in data.memory_batch(step, 0, phase, 1000).groups]

    kept = {share: torch.cat([group.routing.sum(1) for group in groups(share)]) for share in (0.0, 0.5, 1.0)}
    assert (kept[1.0] == 1).all() and (kept[0.5] >= 1).all()
    assert 0.35 < kept[0.5].sum() / kept[0.0].sum() < 0.65


def test_recall_asks_for_values_that_the_list_holds(paths, prompter, monkeypatch):
    monkeypatch.setattr("msa.training.samples.FRAME_TOKENS", 1)  # keys and values alone
    data = TrainingSet(paths.samples("short"), prompter, 2)
    data.frequent = np.arange(len(prompter.tokenizer.get_vocab()) - 12, len(prompter.tokenizer.get_vocab()))
    found = 0
    for step in range(6):
        for group in data.recall_batch(step, 0, phase_of(4, tokens=60), 1000).groups:
            assert group.vocabulary[torch.searchsorted(group.vocabulary, group.targets[group.targets != IGNORE])].equal(
                group.targets[group.targets != IGNORE]
            )
            for ids, targets in zip(group.ids.tolist(), group.targets.tolist(), strict=True):
                places = [place for place, target in enumerate(targets) if target != IGNORE]
                first = min(places)
                key = ids[first - 1 : first + 1]
                value = [target for target in targets[first:] if target != IGNORE][:3]
                listed = ids[: first - 1]
                where = [place for place in range(len(listed) - 1) if listed[place : place + 2] == key]
                assert len(where) == 1 and listed[where[0] + 2 : where[0] + 5] == value
                found += 1
    assert found == 24


def test_recall_stands_in_frames_that_a_row_repeats(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    framed = 0
    for step in range(6):
        for group in data.recall_batch(step, 0, phase_of(4, tokens=120), 1000).groups:
            for ids, targets in zip(group.ids.tolist(), group.targets.tolist(), strict=True):
                starts = [
                    place for place in range(1, len(ids)) if targets[place] != IGNORE and targets[place - 1] == IGNORE
                ]
                before = []
                for start in starts:
                    value = [targets[start + offset] for offset in range(3)]  # the shortest has 3 tokens
                    places = [at for at in range(1, starts[0]) if ids[at : at + 3] == value]
                    assert places
                    before.append(ids[places[0] - 1])
                # the token in front of a value is the frame's last, or the key's own where the frame is empty
                framed += len(before) > 1 and len(set(before)) == 1
    assert framed > 6


def test_memory_dropout_takes_memory_from_answers_alone(paths, prompter):
    data = TrainingSet(paths.samples("short"), prompter, 2)
    blind = 0
    for step in range(10):
        for group in data.memory_batch(step, 0, phase_of(4, memory_dropout=0.5), 1000).groups:
            without = ~group.reads.any(1)
            assert not (without & group.positives.any(1)).any()
            blind += int(without.sum())
    assert 2 < blind < 20


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_training_that_is_no_longer_finite_stops(paths, monkeypatch, what):
    trainer = Trainer("backbone", backbone(), paths)
    if what == "loss":
        trainer.model.model.norm.weight.data[3] = float("nan")
    else:
        trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        UserError, match=rf"backbone: the {what} of step 0 \(reading\) is not finite; lower the learning"
    ):
        trainer.run()
    assert not (paths.model("backbone") / "model.safetensors").exists()


def test_a_last_step_that_breaks_the_weights_writes_none(paths):
    trainer = Trainer("backbone", backbone(), paths)
    last, step = trainer.optimizers[-1], trainer.optimizers[-1].step

    def broken() -> None:
        step()
        last.param_groups[0]["params"][0].data.fill_(float("inf"))

    trainer.schedule = trainer.schedule[:1]
    last.step = broken
    with pytest.raises(UserError, match="has NaN or infinite values"):
        trainer.run()
    assert not (paths.model("backbone") / "model.safetensors").exists()
