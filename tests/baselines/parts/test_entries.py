"""Every entry of systems.yaml and models.yaml is well-formed, evaluated by a profile or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from baselines.parts.models import check_here, check_reference
from msa_base.errors import UserError
from msa_base.kinds import holds_checkpoint, import_kind
from msa_base.load import load
from msa_base.validate import build

EXPERIMENT = load("tiny")
REFERENCES = [name for name, spec in EXPERIMENT.models.items() if not holds_checkpoint(spec.kind)]


@pytest.mark.parametrize("name", list(EXPERIMENT.systems))
def test_a_system_names_what_there_is_and_its_parameters_are_known(name: str) -> None:
    spec = EXPERIMENT.systems[name]
    named = {spec.model, spec.reranker} - {None}
    if spec.index:
        index = EXPERIMENT.indexes[spec.index]
        named |= {index.model} - {None}
        builder = import_kind(index.kind, "baselines", "here")
        build(builder.IndexParams, index.params, "here")
    assert named <= set(EXPERIMENT.models)
    module = import_kind(spec.kind, "baselines", "here")
    build(module.Params, spec.params, "here")
    for setting, values in spec.search.items():
        for value in values:
            build(module.Params, {**spec.params, setting: value}, "here")


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_is_well_formed_and_a_model_of_the_hub_names_its_commit(name: str) -> None:
    spec = EXPERIMENT.models[name]
    params = check_reference(spec, "here")
    if spec.kind == "sentence_encoder":
        with pytest.raises(UserError, match="needs the 40 digits of a commit"):
            check_here(replace(params, revision=None), "here")
        check_here(params, "here")
    else:
        assert params.parallel >= 1


def test_the_papers_stacks_are_all_there() -> None:
    """Its Tables 2 and 3 (read 1, 5, 10; 100 candidates) and the long-context models of its Figures 1 and 4."""
    for stack in ("rag_qwen3_4b", "kalm_qwen3_235b", "kalm_llama33_70b"):
        for name in (stack, f"{stack}_rerank"):
            specs = [EXPERIMENT.systems[f"{name}_r{k}"] for k in (1, 5, 10)]
            assert [spec.params["read_k"] for spec in specs] == [1, 5, 10]
            module = import_kind(specs[0].kind, "baselines", "here")
            assert {build(module.Params, spec.params, "here").routed_k for spec in specs} == {100}
            assert all((spec.reranker is not None) == name.endswith("_rerank") for spec in specs)
    assert sum(name.startswith("full_") for name in EXPERIMENT.systems) >= 8
