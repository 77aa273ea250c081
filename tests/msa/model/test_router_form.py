"""Forms of a router: own width, bias, reductions, weights and one fused list, each against the one-pass oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from msa.checkpoints import read
from msa.checkpoints.write import save
from msa.generation.decode import Session
from msa.memory.bank import Bank
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory, PaddedMemory
from msa.model import onepass
from msa.model.config import ModelConfig
from msa.model.decoder import MSAModel
from msa.model.prompt import pad_rows
from msa.model.router_form import RouterForm
from msa.model.stated import Router
from msa_base.errors import UserError
from msa_base.validate import build

WIDE = {"query_heads": 2, "key_heads": 1, "head_dim": 24, "bias": True}
FORMS = {
    "paper": {},
    "mean": {"query_reduce": "mean"},
    "last": {"query_reduce": "last"},
    "wide": WIDE,
    "weighted": {"head_weights": (1.0, 2.0, 0.5, 4.0)},
    "all": {**WIDE, "query_reduce": "mean", "head_weights": (0.2, 0.8)},
}
TEXT = "what is the number for gamma delta beta"


def formed(model: MSAModel, form: RouterForm, **changes) -> MSAModel:
    """The model with random routers of a form."""
    made = MSAModel(replace(model.config, form=form, **changes))
    torch.manual_seed(3)
    state = {name: torch.randn_like(value) * 0.4 for name, value in made.state_dict().items()}
    known = model.state_dict()
    state |= {name: known[name] for name in state if name in known and "router" not in name}
    made.load_state_dict(state)
    return made.eval().requires_grad_(False)


def in_one_pass(model: MSAModel, prompter, documents) -> list[torch.Tensor]:
    """Document scores of the oracle, by routed layer."""
    row, wrapped = prompter.opening(TEXT), prompter.documents(documents)
    head = len(prompter.head)
    labels = [onepass.TEMPLATE] * head + [n for n, tokens in enumerate(wrapped, 1) for _ in tokens]
    labels += [onepass.QUESTION if routing else onepass.TEMPLATE for routing in row.routing[head:]]
    positions = [*range(head), *(place for tokens in wrapped for place in range(len(tokens)))]
    positions += [place + model.config.top_k_documents for place in range(head, len(row.ids))]
    ids = row.ids[:head] + [token for tokens in wrapped for token in tokens] + row.ids[head:]
    return onepass.forward(model, torch.tensor(ids), torch.tensor(labels), torch.tensor(positions)).scores


def routed(model: MSAModel, prompter, documents, of: str) -> list[dict[int, float]]:
    """Scores by document id of every routed layer, over a training bank or a stored one."""
    ids = [document.doc_id for document in documents]
    if of == "bank":
        bank = Encoder(model, prompter, precision="float32").bank(documents)
        memory = BankMemory.plain(bank, 1, len(documents))
    else:
        wrapped = prompter.documents(documents)
        lengths = torch.tensor(list(map(len, wrapped)))
        layers = model.encode(pad_rows(wrapped, prompter.pad), lengths)
        memory = PaddedMemory(layers, lengths, model.config.pool_tokens, len(documents))
    session = Session(model, [prompter.opening(TEXT)], prompter.pad, len(prompter.head), memory)
    if of == "bank":
        pairs = [(s.documents[0].tolist(), s.scores[0].tolist()) for s in session.selections]
        return [dict(zip(*pair, strict=True)) for pair in pairs]
    return [dict(zip(ids, selection.scores[0].tolist(), strict=True)) for selection in session.selections]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", ["bank", "padded"])
def test_a_form_scores_as_its_definition_reads(model, prompter, documents, form, of) -> None:
    made = formed(model, RouterForm(**FORMS[form]), top_k_documents=len(documents))
    expected = in_one_pass(made, prompter, documents)
    found = routed(made, prompter, documents, of)
    for layer, scores in enumerate(expected):
        in_order = [found[layer][document.doc_id] for document in documents]
        assert in_order == pytest.approx(scores.tolist(), abs=1e-5)


@pytest.mark.parametrize("reduce", ["max", "mean", "last"])
@pytest.mark.parametrize("of", ["bank", "padded"])
def test_a_fused_list_is_the_weighted_sum_on_the_question_alone(model, prompter, documents, of, reduce) -> None:
    count = len(documents)
    form = RouterForm(**WIDE, query_reduce=reduce, fused=True, layer_weights=(1.0, 3.0))
    made = formed(model, form, top_k_documents=count)
    # below the first routed layer nothing reads the memory, so that its own list says what the question alone scores;
    # above it that needs a model with this one layer routed
    alone = []
    for layer in made.config.routed_layers:
        single = formed(
            model, replace(form, fused=False, layer_weights=()), top_k_documents=count, routed_layers=(layer,)
        )
        state = made.state_dict()
        single.load_state_dict({name: state[name] for name in single.state_dict()})
        alone.append(routed(single, prompter, documents, of)[0])
    expected = {doc_id: 0.25 * alone[0][doc_id] + 0.75 * alone[1][doc_id] for doc_id in alone[0]}
    first, second = routed(made, prompter, documents, of)
    assert first == second == pytest.approx(expected, abs=1e-5)


def test_a_fused_list_is_what_the_answer_reads_in_every_layer(model, prompter, documents) -> None:
    made = formed(model, RouterForm(fused=True))
    memory = BankMemory.plain(Encoder(made, prompter, precision="float32").bank(documents), 1, 3)
    session = Session(made, [prompter.opening(TEXT)], prompter.pad, len(prompter.head), memory)
    first, second = session.selections
    assert first.documents.tolist() == second.documents.tolist()
    assert not torch.equal(first.keys, second.keys)  # each layer reads its own pooled keys of the same documents


def test_forms_are_written_and_read_and_a_bank_belongs_to_its_form(model, prompter, documents, tmp_path) -> None:
    for name, options in {**FORMS, "fused": {"fused": True, "layer_weights": (2.0, 1.0)}}.items():
        form = RouterForm(**options)
        assert form.released == (name in ("paper", "mean", "last"))
        content = formed(model, form).config.to_hub()
        assert ModelConfig.from_hub(content, "config.json").form == form
    made = formed(model, RouterForm(**WIDE))
    save(made, tmp_path / "wide")
    again = read.load(tmp_path / "wide")
    assert again.state_dict().keys() == made.state_dict().keys()
    bank = Encoder(made, prompter, precision="float32").bank(documents)
    assert bank.segments[0].layers[0].routing.values.shape[1] == made.config.routing_width == 24
    with pytest.raises(UserError, match="routing_heads of the bank is 1, of the model 0"):
        bank.signature.check(Encoder(model, prompter).signature, "bank.json")
    assert isinstance(Bank(bank.signature, bank.segments), Bank)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"query_heads": 3, "key_heads": 2}, "3 query heads must be a multiple of 2 key heads"),
        ({"head_weights": [1.0]}, "'head_weights' has 1 weights for 4 query heads"),
        ({"fused": True, "layer_weights": [1.0]}, "'layer_weights' has 1 weights for 2 routed layers"),
        ({"layer_weights": [1.0, 1.0]}, "weighs a fused list; set fused: true"),
        ({"query_reduce": "sum"}, "query_reduce_method 'sum' is not supported; only 'max', 'mean', 'last' are"),
        ({"width": 3}, "unknown key 'width'"),
        ({"head_weights": [0.0, 1.0, 1.0, 1.0]}, "greater than 0"),
    ],
)
def test_a_form_that_cannot_be_is_named(model, form, message) -> None:
    content = formed(model, RouterForm()).config.to_hub()
    form = dict(form)
    content["msa_config"] |= {"query_reduce_method": form.pop("query_reduce", "max"), "router_form": form}
    with pytest.raises(UserError, match=rf"^config.json: msa_config.*{message}"):
        ModelConfig.from_hub(content, "config.json")


def test_an_entry_of_models_yaml_states_a_form() -> None:
    entry = {"routed_layers": [1], "pool_tokens": 16, "top_k_documents": 2, "aux_temperature": 0.1}
    found = build(Router, {**entry, "form": {"query_reduce": "mean", "head_weights": [1, 2]}}, "models.yaml: x")
    assert found.form == RouterForm(query_reduce="mean", head_weights=(1.0, 2.0))
    assert build(Router, entry, "models.yaml: x").form == RouterForm()
    with pytest.raises(UserError, match=r"models.yaml: x: form: unknown key 'fuse'; did you mean 'fused'"):
        build(Router, {**entry, "form": {"fuse": True}}, "models.yaml: x")
