"""Backbones turned into MSA, checkpoints written for others, and the released inference behaviour."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from msa.checkpoints import read, write
from msa.checkpoints.__main__ import main
from msa.checkpoints.convert import convert, export
from msa.generation.decode import Session
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.model import onepass
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa.model.prompt import Prompter
from msa_base import prompts
from msa_base.errors import UserError, run_command
from tests.small_model import small_config

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def cli(monkeypatch, capsys):
    """The command in this process: exit code, stdout, stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["msa.checkpoints", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            run_command(main)
        return done.value.code, *capsys.readouterr()

    return run


def backbone(directory: Path, tokenizer: Tokenizer | None = None, vocab_size: int = 60, **options) -> MSAModel:
    """A random backbone on disk, as transformers would leave it."""
    config = small_config(vocab_size, layers=5, **options)
    torch.manual_seed(0)
    model = MSAModel(config)
    write.save(model, directory, eos_token_id=7)
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))
    return model.requires_grad_(False)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def msa_config(directory: Path) -> dict:
    return json.loads((directory / "config.json").read_text())["msa_config"]


def test_opening_a_model_imports_no_compiler(tmp_path):
    backbone(tmp_path / "plain")
    code = "import sys, torch; before = 'torch._dynamo' in sys.modules; from msa.checkpoints import read\n"
    code += f"read.load({str(tmp_path / 'plain')!r}); sys.exit(('torch._dynamo' in sys.modules) - before)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


def test_a_backbone_becomes_msa(tmp_path, tokenizer, cli):
    plain = backbone(tmp_path / "plain", tokenizer)
    code, said, _ = cli("convert", tmp_path / "plain", tmp_path / "msa", "--pool-tokens", 8, "--top-k", 5, "--seed", 3)
    assert code == 0 and "routers on layers 2-4, P = 8, k = 5, routing by cosine" in said
    model, prompter = read.open_model(tmp_path / "msa")
    assert (model.config.routed_layers, model.config.pool_tokens, model.config.top_k_documents) == ((2, 3, 4), 8, 5)
    ours, old = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], old[name]) for name in old)
    routers = {name: ours[name] for name in ours.keys() - old.keys() - {"temperature"}}
    assert len(routers) == 6 and all(
        tensor.std().item() == pytest.approx(0.02, rel=0.15) for tensor in routers.values()
    )
    assert len({tensor.flatten()[0].item() for tensor in routers.values()}) == 6
    content = json.loads((tmp_path / "msa" / "config.json").read_text())
    assert (content["model_type"], content["eos_token_id"]) == ("msa", 7)
    assert content["pad_token_id"] == prompter.pad
    convert(tmp_path / "plain", tmp_path / "again", None, 8, 5, 3)
    assert files(tmp_path / "again") == files(tmp_path / "msa")
    convert(tmp_path / "plain", tmp_path / "other", "0, 2-3", seed=4)
    other = read.load(tmp_path / "other")
    assert other.config.routed_layers == (0, 2, 3) and other.config.pool_tokens == 64
    name = "model.layers.2.self_attn.router_q_proj.0.weight"
    assert not torch.equal(other.state_dict()[name], ours[name])


def test_bad_requests_leave_nothing_behind(tmp_path, cli):
    backbone(tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "msa")
    before = sorted(tmp_path.iterdir())
    for arguments, expected in (
        (("convert", "plain", "msa"), "msa: exists already"),
        (("convert", "msa", "new"), "has routers already (layers 2-4); use export"),
        (("convert", "plain", "new", "--routed-layers", "3-5"), "layers from 0 to 4"),
        (("convert", "plain", "new", "--routed-layers", "top"), "'top' is not a list"),
        (("convert", "plain", "new", "--pool-tokens", "0"), "--pool-tokens 0"),
        (("convert", "plain", "new", "--shard-gb", "0"), "--shard-gb 0"),
        (("convert", "nowhere", "new"), "nowhere: no such file"),
        (("export", "plain", "new", "--to", "msa"), "has no routers; use convert"),
        (("export", "msa", "new", "--to", "hf", "--released-inference"), "does not route"),
    ):
        code, _, said = cli(arguments[0], *(tmp_path / name for name in arguments[1:3]), *arguments[3:])
        assert code == 2 and expected in said and len(said.splitlines()) == 1, said
        assert sorted(tmp_path.iterdir()) == before
    tensors = load_file(tmp_path / "plain" / "model.safetensors")
    tensors["model.norm.weight"] *= 1e30
    save_file(tensors, tmp_path / "plain" / "model.safetensors")
    with pytest.raises(UserError, match=r"model.norm.weight has values that float16 cannot hold"):
        convert(tmp_path / "plain", tmp_path / "new", dtype=torch.float16)
    assert sorted(tmp_path.iterdir()) == before


def test_help_has_examples(cli):
    for arguments in (("--help",), ("convert", "--help"), ("export", "--help")):
        code, said, _ = cli(*arguments)
        assert code == 0 and "python -m msa.checkpoints" in said


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "Qwen3"])
@torch.no_grad()
def test_transformers_opens_what_is_written_for_it(tmp_path, kind):
    import transformers

    options = {
        "Llama": {"qk_norm": False, "mlp_bias": True, "max_positions": 64},
        "Qwen2": {"qk_norm": False, "qkv_bias": True, "tied_head": False},
        "Qwen3": {"qkv_bias": True, "output_bias": True},
    }[kind]  # fmt: skip
    model = backbone(tmp_path / "plain", **options)
    convert(tmp_path / "plain", tmp_path / "msa")
    report = export(tmp_path / "msa", tmp_path / "out", "hf", shard_bytes=30_000)
    assert kind.lower() in report and "tokenizer.json does not exist" in report
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == f"{kind}ForCausalLM" and not any(info.values()), info
    ids = torch.randint(60, (2, 17))
    assert torch.allclose(theirs(ids).logits, model.logits(model(ids, torch.arange(17))[0]), atol=1e-4)
    again = read.load(tmp_path / "out")
    assert again.config == model.config
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_released_checkpoint_comes_back_bit_for_bit(tmp_path, dtype, cli):
    shutil.copytree(GOLDEN, tmp_path / "released")
    tensors = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load_file(GOLDEN / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "released" / "model.safetensors")
    assert export(tmp_path / "released", tmp_path / "ours", shard_bytes=200_000).startswith(
        f"{tmp_path / 'ours'}: msa, 4 layers"
    )
    export(tmp_path / "ours", tmp_path / "again")
    found = load_file(tmp_path / "again" / "model.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    content = json.loads((tmp_path / "again" / "config.json").read_text())
    released = json.loads((GOLDEN / "config.json").read_text())
    same = (
        "model_type",
        "architectures",
        "vocab_size",
        "head_dim",
        "rope_theta",
        "max_position_embeddings",
        "bos_token_id",
        "tie_word_embeddings",
    )
    assert all(content[key] == released[key] for key in same) and content["torch_dtype"] == dtype
    for key in released["msa_config"].keys() - {"aux_loss_method"}:
        assert content["msa_config"][key] == released["msa_config"][key]
    assert content["msa_config"]["doc_top_k"] == 3  # the released engine reads this spelling
    if dtype == "float32":
        shutil.copyfile(GOLDEN / "golden.safetensors", tmp_path / "again" / "golden.safetensors")
        assert cli("verify", tmp_path / "again")[0] == 0


@pytest.mark.parametrize(("loss", "as_trained", "released"), [
    ("INFONCE", True, True), ("INFONCE_DECOUPLE", True, False), ("INFONCE_FOCAL", True, False), ("BCE", False, False),
    (None, True, True),
])  # fmt: skip
def test_the_released_switch_is_recorded(tmp_path, loss, as_trained, released):
    shutil.copytree(GOLDEN, tmp_path / "released")
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"]["aux_loss_method"] = loss
    if loss is None:
        del content["msa_config"]["aux_loss_method"]
    (tmp_path / "released" / "config.json").write_text(json.dumps(content))
    assert read.load(tmp_path / "released").config.normalise_routing is as_trained
    assert read.load(tmp_path / "released", released_inference=True).config.normalise_routing is released
    for name, switch, expected in (("plain", False, as_trained), ("switched", True, released)):
        export(tmp_path / "released", tmp_path / name, released_inference=switch)
        written = msa_config(tmp_path / name)
        assert written["normalise_routing"] is expected
        assert (written["aux_loss_method"] == "INFONCE") is expected  # so that the released engine routes alike
        assert read.load(tmp_path / name).config.normalise_routing is expected
        assert read.load(tmp_path / name, released_inference=True).config.normalise_routing is expected


@pytest.mark.parametrize(("written", "released"), [({}, True), ({"normalise_routing": True}, False)])
def test_who_made_a_checkpoint_says_in_whose_words_it_is_asked(tmp_path, written, released):
    shutil.copytree(GOLDEN, tmp_path / "source")
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"] |= written
    (tmp_path / "source" / "config.json").write_text(json.dumps(content))
    assert read.load(tmp_path / "source").config.released_prompts is released
    export(tmp_path / "source", tmp_path / "written")
    assert msa_config(tmp_path / "written")["released_prompts"] is released
    assert read.load(tmp_path / "written").config.released_prompts is released


@torch.no_grad()
def test_released_routing_is_the_scaled_product_everywhere(model, prompter, documents):
    """Stages, one-pass forward and the released engine's formula agree; cosines would choose otherwise."""
    raw = MSAModel(replace(model.config, normalise_routing=False, top_k_documents=len(documents))).eval()
    state = model.state_dict()
    scales = torch.linspace(0.2, 3.0, 16).unsqueeze(1)  # heads of unequal length, so that normalising matters
    for name in state:
        if "router_k_proj" in name:
            state[name] = state[name] * scales
    raw.load_state_dict(state)
    row = prompter.opening("what is the number for gamma delta beta")
    bank = Encoder(raw, prompter, precision="float32").bank(documents)
    memory = BankMemory(bank, None, torch.zeros(1, 0, dtype=torch.bool), [[]], len(documents))
    session = Session(raw, [row], prompter.pad, len(prompter.head), memory)
    head, wrapped = len(prompter.head), prompter.documents(documents)
    labels = [onepass.TEMPLATE] * head + [n for n, tokens in enumerate(wrapped, 1) for _ in tokens]
    labels += [onepass.QUESTION if routing else onepass.TEMPLATE for routing in row.routing[head:]]
    positions = [*range(head), *(place for tokens in wrapped for place in range(len(tokens)))]
    positions += [place + raw.config.top_k_documents for place in range(head, len(row.ids))]
    ids = row.ids[:head] + [token for tokens in wrapped for token in tokens] + row.ids[head:]
    expected = onepass.forward(raw, torch.tensor(ids), torch.tensor(labels), torch.tensor(positions)).scores
    attention = raw.model.layers[2].self_attn
    hidden = []
    hook = raw.model.layers[2].input_layernorm.register_forward_hook(lambda _, __, out: hidden.append(out))
    raw(torch.tensor([row.ids]), torch.tensor([[*range(head), *positions[-(len(row.ids) - head) :]]]))
    hook.remove()
    queries = attention.router_q_proj[0](hidden[0][0]).view(-1, 4, 8)[torch.tensor(row.routing)]
    segment = bank.segments[0]
    keys = segment.layers[0].routing.values.view(-1, 2, 8).repeat_interleave(2, 1)
    by_hand = torch.einsum("thd,chd->tch", queries, keys).mul(8**-0.5).mean(-1).amax(0)
    order = [document.doc_id for document in documents]
    for layer, selection in enumerate(session.selections):
        found = dict(zip(selection.documents[0].tolist(), selection.scores[0].tolist(), strict=True))
        assert [found[doc_id] for doc_id in order] == pytest.approx(expected[layer].tolist(), abs=1e-5)
    chunks = by_hand.split(segment.offsets.diff().tolist())
    assert [chunk.max().item() for chunk in chunks] == pytest.approx(expected[0].tolist(), abs=1e-5)
    cosines = torch.einsum("thd,chd->tch", F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)).mean(-1).amax(0)
    assert cosines.argsort().tolist() != by_hand.argsort().tolist()


@pytest.mark.parametrize(("key", "value"), [
    ("head_reduce_method", "max"), ("chunk_reduce_method", "mean"), ("query_reduce_method", "sum"),
    ("decouple_router", False),
    ("decouple_pooling_mode", "max"), ("router_layer_idx", "2,4"), ("router_layer_idx", ""), ("router_layer_idx", [-1]),
    ("router_layer_idx", "x"), ("router_layer_idx", None), ("pooling_kernel_size", 0), ("top_k_docs", "3"),
    ("doc_top_k", 4),
    ("infonce_loss_temp", 0),
])  # fmt: skip
def test_released_options_that_change_results_are_refused(key, value):
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"][key] = value
    with pytest.raises(UserError, match=f"config.json: msa_config: .*{key}"):
        ModelConfig.from_hub(content, "config.json")


@pytest.mark.parametrize(
    ("value", "layers"), [("2,3", (2, 3)), ([3, 2], (2, 3)), ("all", (0, 1, 2, 3)), ("1", (1,)), ([0], (0,))]
)
def test_released_spellings_are_read(value, layers):
    content = json.loads((GOLDEN / "config.json").read_text())
    content["msa_config"] |= {
        "router_layer_idx": value,
        "rewrite_position": False,
        "add_mem_tokens": False,
        "anything": [1],
    }
    assert ModelConfig.from_hub(content, "here").routed_layers == layers
    del content["msa_config"]["router_layer_idx"]
    with pytest.raises(UserError, match="router_layer_idx"):
        ModelConfig.from_hub(content, "here")
    del content["msa_config"]
    with pytest.raises(UserError, match="'msa_config' is missing"):
        ModelConfig.from_hub(content, "here")


def test_a_released_checkpoint_of_the_other_loss_loads(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "released")
    tensors = load_file(GOLDEN / "model.safetensors")
    tensors["b"] = torch.tensor(-20.0)
    del tensors["temperature"]
    save_file(tensors, tmp_path / "released" / "model.safetensors")
    assert read.load(tmp_path / "released").temperature.item() == pytest.approx(0.1)


def foreign(tokenizer: Tokenizer, missing: tuple[str, ...]) -> Tokenizer:
    """The word tokenizer without some of the special tokens; what is left keeps its ids, unlisted words are [UNK]."""
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in missing]
    for number, token in enumerate(missing):
        content["model"]["vocab"][f"unused{number}"] = content["model"]["vocab"].pop(token)
    content["model"]["vocab"] |= {"<": 45, "End": 46}
    return Tokenizer.from_str(json.dumps(content))


@pytest.mark.parametrize("tied", [True, False])
def test_missing_special_tokens_become_rows(tmp_path, tokenizer, tied):
    missing = (prompts.IM_START, prompts.END_OF_RETRIEVE)
    plain = backbone(tmp_path / "plain", foreign(tokenizer, missing), 48, tied_head=tied)
    with pytest.raises(UserError, match=r"no token <\|im_start\|>"):
        read.open_model(tmp_path / "plain")
    report = convert(tmp_path / "plain", tmp_path / "msa")
    assert f"tokens added: {' '.join(missing)}" in report
    model, prompter = read.open_model(tmp_path / "msa")
    assert prompter.im_start == 47 and prompter.end_of_retrieve == 48 and model.config.vocab_size == 49
    for name in ("model.embed_tokens.weight",) if tied else ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = plain.state_dict()[name], model.state_dict()[name]
        assert torch.equal(new[:47], old[:47])
        pieces = foreign(tokenizer, missing).encode(prompts.END_OF_RETRIEVE, add_special_tokens=False).ids
        assert len(set(pieces)) > 2 and torch.allclose(new[48], old[pieces].mean(0), atol=1e-6)
    assert prompter.text("alpha <|im_start|> beta") == foreign(tokenizer, missing).encode("alpha <|im_start|> beta").ids


def test_a_released_model_ends_retrieval_where_it_would_spell_it(tmp_path, tokenizer):
    missing = (prompts.END_OF_RETRIEVE,)
    backbone(tmp_path / "plain")
    convert(tmp_path / "plain", tmp_path / "released")
    foreign(tokenizer, missing).save(str(tmp_path / "released" / "tokenizer.json"))
    assert "tokens added: <End-of-Retrieve>" in export(tmp_path / "released", tmp_path / "ours")
    model, prompter = read.open_model(tmp_path / "ours")
    first = foreign(tokenizer, missing).encode(prompts.END_OF_RETRIEVE, add_special_tokens=False).ids[0]
    assert torch.equal(
        model.model.embed_tokens.weight[prompter.end_of_retrieve], model.model.embed_tokens.weight[first]
    )
    export(tmp_path / "ours", tmp_path / "plain again", "hf")
    assert read.load(tmp_path / "plain again").config.vocab_size == model.config.vocab_size


def test_tokenizer_files_travel_along(tmp_path, tokenizer):
    import transformers

    backbone(tmp_path / "plain", tokenizer)
    (tmp_path / "plain" / "generation_config.json").write_text('{"temperature": 0.5}')
    convert(tmp_path / "plain", tmp_path / "msa")
    assert (tmp_path / "msa" / "tokenizer.json").read_bytes() == (tmp_path / "plain" / "tokenizer.json").read_bytes()
    assert (tmp_path / "msa" / "generation_config.json").read_text() == '{"temperature": 0.5}'
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "msa")
    assert theirs.pad_token == prompts.END_OF_TEXT and theirs.eos_token == prompts.IM_END
    assert theirs("alpha 17 beta", add_special_tokens=False)["input_ids"] == Prompter(tokenizer).text("alpha 17 beta")
    (tmp_path / "plain" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer.json: not a readable"):
        convert(tmp_path / "plain", tmp_path / "new")


def test_special_tokens_beyond_the_embedding_are_refused(tmp_path, tokenizer):
    backbone(tmp_path / "plain", foreign(tokenizer, (prompts.IM_END,)), 48)
    grown = Tokenizer.from_file(str(tmp_path / "plain" / "tokenizer.json"))
    grown.add_special_tokens(["<extra>", prompts.IM_END])
    grown.save(str(tmp_path / "plain" / "tokenizer.json"))
    with pytest.raises(UserError, match="rows for 48 tokens"):
        read.open_model(tmp_path / "plain")


def test_a_tokenizer_with_gaps_cannot_grow(tmp_path, tokenizer):
    content = json.loads(foreign(tokenizer, (prompts.IM_START,)).to_str())
    content["model"]["vocab"]["End"] = 47
    backbone(tmp_path / "plain", Tokenizer.from_str(json.dumps(content)))
    with pytest.raises(UserError, match="ids have gaps"):
        convert(tmp_path / "plain", tmp_path / "msa")
    assert not (tmp_path / "msa").exists()
