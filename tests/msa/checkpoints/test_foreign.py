"""Checkpoints of other people: shards, what ends a text, tokens without a row, numbers that are none."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from msa.checkpoints import hub, pretrained, read, write
from msa.checkpoints.convert import export
from msa.generation.decode import Session
from msa.generation.embed import Embedder
from msa.generation.generate import Interleave, Limits
from msa.generation.likelihood import QueryLikelihood
from msa.generation.reader import Reader
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.model.decoder import MSAModel
from msa_base import prompts
from msa_base.errors import UserError
from msa_base.records import Document, Question
from msa_base.specs import ModelSpec
from tests.small_model import ROUTED, small_config

QUESTION = Question("q", "what is alpha", "", 16)
SHAPE = {"hidden_size": 8, "intermediate_size": 8, "layers": 1, "query_heads": 1, "kv_heads": 1, "head_dim": 8}
SHAPE |= {"vocab_size": 8, "rope_theta": 1e4, "norm_eps": 1e-6, "qk_norm": True, "tied_head": True}


def save(directory: Path, model: MSAModel, tokenizer: Tokenizer, **options) -> Path:
    write.save(model, directory, **options)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def copy_of(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


# --- shards -------------------------------------------------------------------------------------------------------


def test_shards_are_adopted_opened_answer_and_are_exported_again(tmp_path, model, tokenizer):
    weights = save(tmp_path / "weights", model, tokenizer, shard_bytes=20_000)
    assert len(list(weights.glob("model-*.safetensors"))) > 2
    (weights / hub.GENERATION).write_text(json.dumps({"eos_token_id": 9}))
    params = {"hub": "a/b", "path": str(weights), "shape": SHAPE, "revision": "0123456789" * 4}
    entry = ModelSpec("pretrained", params=params)
    pretrained.adopt("reader", entry, tmp_path / "model")
    adopted, prompter = read.open_model(tmp_path / "model")
    assert all(torch.equal(adopted.state_dict()[name], value) for name, value in model.state_dict().items())
    assert prompter.ends == {prompter.im_end, 9}
    export(tmp_path / "model", tmp_path / "exported", "hf")
    documents = [Document(1, "the number for alpha is 12", 12)]
    places = (tmp_path / "model", tmp_path / "exported")
    said = [Reader(place, 1).answer([(documents, QUESTION)])[0].text for place in places]
    assert said[0] == said[1]
    shard = sorted(weights.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=rf"shards are missing beside it: {shard.name} \(1 of \d+\); fetch them again"):
        pretrained.adopt("reader", entry, tmp_path / "again")
    (weights / hub.INDEX).unlink()
    with pytest.raises(UserError, match="put the index there"):
        read.load(weights)


# --- what ends a text ---------------------------------------------------------------------------------------------


def chain(tokenizer: Tokenizer, *texts: str) -> MSAModel:
    """A model that says these tokens one after another, behind any prompt that ends in a colon."""
    ids = [tokenizer.token_to_id(text) for text in (":", *texts)]
    made = MSAModel(
        small_config(tokenizer.get_vocab_size(), hidden_size=64, tied_head=False, routed_layers=(2,), **ROUTED)
    )
    torch.manual_seed(0)
    for name, parameter in made.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            torch.nn.init.zeros_(parameter)  # every state is its token's own embedding
        elif parameter.dim() == 2:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        for now, after in pairwise(ids):
            made.lm_head.weight[after] = made.model.embed_tokens.weight[now]
    return made.eval().requires_grad_(False)


def says(directory: Path) -> set[str]:
    """The answers of every local way to answer."""
    reader, document = Reader(directory, 1), Document(1, "alpha", 5)
    model, prompter = reader.model, reader.prompter
    memory = BankMemory(Encoder(model, prompter).bank([document]), None, torch.zeros(1, 0, dtype=torch.bool), [[]], 3)
    interleave = Interleave(model, prompter, Limits(), lambda question, doc_id: document)
    answers = [*reader.answer([([document], QUESTION)]), *reader.answer_shared([document], [QUESTION])]
    return {answer.text for answer in [*answers, *interleave.answer([QUESTION], memory)]}


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        ({}, None, "alphabetagamma"),
        ({"eos_token_id": "delta"}, None, "alphabetagamma"),  # comes behind <|im_end|>, which ends every answer
        ({"eos_token_id": "gamma"}, None, "alphabeta"),
        ({"eos_token_id": ["gamma", "beta"]}, None, "alpha"),
        ({"eos_token_id": []}, None, "alphabetagamma"),
        ({"eos_token_id": "gamma"}, {"eos_token_id": ["beta"]}, "alpha"),
        ({}, {"eos_token_id": "beta"}, "alpha"),
        ({}, {"eos_token_id": None}, "alphabetagamma"),
    ],
)
def test_every_reader_ends_at_each_token_that_the_configuration_names(tmp_path, tokenizer, config, generation, said):
    def numbered(content: dict) -> dict:
        found = content.get("eos_token_id")
        if isinstance(found, list):
            return {"eos_token_id": [tokenizer.token_to_id(token) for token in found]}
        return {"eos_token_id": tokenizer.token_to_id(found)} if found else content

    model = chain(tokenizer, "alpha", "beta", "gamma", prompts.IM_END, "delta")
    save(tmp_path, model, tokenizer, **numbered(config))
    if generation is not None:
        (tmp_path / hub.GENERATION).write_text(json.dumps(numbered(generation)))
    assert says(tmp_path) == {said}


@pytest.mark.parametrize("found", [True, -1, 2**40, "2", [2, None], {"a": 1}, 1.5])
@pytest.mark.parametrize("place", ["config.json", hub.GENERATION])
def test_an_end_that_is_no_token_is_named(tmp_path, model, tokenizer, place, found):
    save(tmp_path, model, tokenizer)
    content = json.loads((tmp_path / place).read_text()) if (tmp_path / place).exists() else {}
    (tmp_path / place).write_text(json.dumps({**content, "eos_token_id": found}))
    with pytest.raises(UserError, match=rf"{place}: eos_token_id is .* must name tokens from 0 to"):
        read.open_model(tmp_path)


def test_two_sets_of_weights_in_one_directory_are_refused(tmp_path, model, tokenizer):
    save(tmp_path / "whole", model, tokenizer)
    save(tmp_path / "both", model, tokenizer, shard_bytes=1000)
    assert (tmp_path / "both" / hub.INDEX).exists()
    shutil.copyfile(tmp_path / "whole" / hub.WEIGHTS, tmp_path / "both" / hub.WEIGHTS)
    with pytest.raises(UserError, match=r"holds model\.safetensors and model\.safetensors\.index\.json, .*; keep one"):
        read.open_model(tmp_path / "both")


def test_an_export_names_an_end_that_is_no_token_and_an_output_that_is_a_dangling_link(tmp_path, model, tokenizer):
    save(tmp_path / "odd", model, tokenizer, eos_token_id=10**6)
    save(tmp_path / "plain", model, tokenizer)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, target, said in (("odd", "new", "must name tokens from 0 to"), ("plain", "link", "exists already")):
        with pytest.raises(UserError, match=said):
            export(tmp_path / name, tmp_path / target, "hf")
        assert not (tmp_path / target).exists()


def test_weights_that_were_adopted_before_do_not_stay_beside_others(tmp_path, model, tokenizer):
    whole, parts = save(tmp_path / "whole", model, tokenizer), tmp_path / "parts"
    with torch.no_grad():
        model.model.norm.weight += 1
    save(parts, model, tokenizer, shard_bytes=20_000)
    for source in (whole, parts):
        params = {"hub": "a/b", "path": str(source), "shape": SHAPE, "revision": "0123456789" * 4}
        pretrained.adopt("reader", ModelSpec("pretrained", params=params), tmp_path / "model")
        adopted, _ = read.open_model(tmp_path / "model")
        assert torch.equal(adopted.model.norm.weight, read.load(source).model.norm.weight)


# --- texts and tokens ---------------------------------------------------------------------------------------------


def test_a_token_without_a_row_is_named(tmp_path, model, tokenizer):
    more = copy_of(tokenizer)
    more.add_tokens([AddedToken("<tool_call>")])
    save(tmp_path, model, more)
    known, prompter = read.open_model(tmp_path)
    beyond = (
        rf"token {tokenizer.get_vocab_size()} \('<tool_call>'\), and the model has rows for {model.config.vocab_size}"
    )
    for reads in (prompter.text, prompter.opening, lambda text: Encoder(known, prompter).bank([Document(1, text, 5)])):
        with pytest.raises(UserError, match=beyond):
            reads("alpha <tool_call> beta")
        reads("alpha tool_call beta")
    more.add_special_tokens([AddedToken("<|eot|>")])  # marked as special: text spells it
    save(tmp_path, model, more)
    assert read.open_model(tmp_path)[1].text("<|eot|>") == prompter.text("<|eot|>")


def test_special_tokens_in_documents_and_questions_stay_text(tmp_path, model, tokenizer):
    more = copy_of(tokenizer)
    more.add_tokens([AddedToken("<stop>", normalized=False)])
    more.add_special_tokens([AddedToken("<|vision|>")])
    bigger = MSAModel(small_config(more.get_vocab_size(), routed_layers=(2, 3), **ROUTED))
    save(tmp_path, bigger, more, eos_token_id=more.token_to_id("<stop>"))
    prompter = read.open_model(tmp_path)[1]
    control = {*prompter.special.values(), *prompter.ends, more.token_to_id("<|vision|>")}
    for token in (*prompts.SPECIAL_TOKENS, "<stop>", "<|vision|>"):
        text = f"the number is {token} 42"
        assert not control & set(prompter.text(text))
        (wrapped,) = prompter.documents([Document(7, text, 0)])
        assert [place for place, one in enumerate(wrapped) if one in control] == [0, len(wrapped) - 1]
        row = prompter.opening(text)
        routing = [one for one, routes in zip(row.ids, row.routing, strict=True) if routes]
        assert not control & set(routing)


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff"])
def test_text_that_is_no_unicode_is_named(prompter, text):
    with pytest.raises(UserError, match="is not valid Unicode; give it as UTF-8"):
        prompter.text(text)


# --- numbers that are none ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_refused(tmp_path, model, tokenizer, value, dtype):
    save(tmp_path, model, tokenizer, dtype=dtype)
    tensors, name = load_file(tmp_path / hub.WEIGHTS), "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = value
    save_file(tensors, tmp_path / hub.WEIGHTS)
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        read.open_model(tmp_path)
    broken = chain(tokenizer, "alpha")
    broken.lm_head.weight[2, 5] = value
    with pytest.raises(UserError, match=r"lm_head.weight has (NaN|values that float16 cannot hold)"):
        write.save(broken, tmp_path / "new", dtype)
    assert not (tmp_path / "new" / hub.WEIGHTS).exists()


def test_answers_ranks_and_memories_of_values_that_overflow_are_refused(tmp_path, tokenizer, documents):
    huge = chain(tokenizer, "alpha")
    save(tmp_path, huge, tokenizer)
    reader, embedder, likelihood = Reader(tmp_path, 1), Embedder(tmp_path, 1), QueryLikelihood(tmp_path, 1)
    for model in (reader.model, embedder.model, likelihood.model):
        model.model.norm.weight.fill_(3e38)  # finite, and too large
        model.lm_head.weight.fill_(3e38)
    with pytest.raises(UserError, match="logits are not finite"):
        reader.answer([(documents, QUESTION)])
    with pytest.raises(UserError, match="embeddings are not finite"):
        embedder.documents(documents)
    with pytest.raises(UserError, match="logits are not finite"):
        likelihood.scores([("what is alpha", documents[0])])
    reader.model.model.layers[2].self_attn.v_proj.weight.fill_(3e38)
    with pytest.raises(UserError, match="pooled keys and values are not finite"):
        Encoder(reader.model, reader.prompter).bank(documents)
    with pytest.raises(UserError, match="logits are not finite"):
        Session(reader.model, [reader.prompter.opening("what")], reader.prompter.pad, 3)
