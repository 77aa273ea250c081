"""Every entry of systems.yaml and models.yaml is well-formed, raced by a profile or not."""

from __future__ import annotations

import pytest

from baselines.base import load_module, read_params
from baselines.models import OWN_KINDS, check_reference
from configs.errors import UserError
from configs.load import load

EXPERIMENT = load("tiny")
REFERENCES = [name for name, spec in EXPERIMENT.models.items() if spec.kind not in OWN_KINDS]


@pytest.mark.parametrize("name", list(EXPERIMENT.systems))
def test_a_system_names_what_there_is_and_its_parameters_are_known(name: str) -> None:
    spec = EXPERIMENT.systems[name]
    named = {spec.model, spec.reranker} - {None}
    if spec.index:
        index = EXPERIMENT.indexes[spec.index]
        named |= {index.model} - {None}
        builder = load_module(index.kind, "here")
        read_params(builder.IndexParams, index.params, "here")
    assert named <= set(EXPERIMENT.models)
    module = load_module(spec.kind, "here")
    read_params(module.Params, spec.params, "here")
    for setting, values in spec.search.items():
        for value in values:
            read_params(module.Params, {**spec.params, setting: value}, "here")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_well_formed_and_a_model_of_the_hub_waits_for_its_commit(name: str) -> None:
    spec = EXPERIMENT.models[name]
    if spec.kind == "sentence_encoder":
        with pytest.raises(UserError, match="needs the 40 digits of a commit"):
            check_reference(spec, "here")
        spec.params["revision"] = "0" * 40
    assert check_reference(spec, "here").parallel >= 1 if spec.kind == "endpoint" else check_reference(spec, "here")


def test_the_papers_stacks_are_all_there() -> None:
    """Its Tables 2 and 3 (read 1, 5, 10; 100 candidates) and the long-context models of its Figures 1 and 4."""
    for stack in ("rag_qwen3_4b", "kalm_qwen3_235b", "kalm_llama33_70b"):
        for name in (stack, f"{stack}_rerank"):
            specs = [EXPERIMENT.systems[f"{name}_r{k}"] for k in (1, 5, 10)]
            assert [spec.params["read_k"] for spec in specs] == [1, 5, 10]
            module = load_module(specs[0].kind, "here")
            assert {read_params(module.Params, spec.params, "here").routed_k for spec in specs} == {100}
            assert all((spec.reranker is not None) == name.endswith("_rerank") for spec in specs)
    assert sum(name.startswith("full_") for name in EXPERIMENT.systems) >= 8
