"""Implementations are chosen in one place, recorded, and fall back where a machine lacks something."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from msa.ops import cpu, dispatch, native, reference
from msa.ops.keys import Keys
from msa.ops.route import Part, route
from msa_base.errors import UserError

CPU = torch.device("cpu")


def test_a_processor_takes_its_own_code_and_else_the_reference():
    assert {name: dispatch.choose(name, CPU) for name in dispatch.OPERATIONS} == {
        "chunk_scores": "cpu",
        "top_documents": "cpu",
        "attend_pieces": "cpu",
        "pool_chunks": "reference",
        "training_scores": "reference",
    }
    assert {dispatch.choose(name, CPU, "reference") for name in dispatch.OPERATIONS} == {"reference"}
    assert {dispatch.choose(name, CPU, "triton") for name in dispatch.OPERATIONS} == {"triton"}


def test_a_gpu_takes_triton():
    device = torch.device("cuda")
    assert {dispatch.choose(name, device) for name in dispatch.OPERATIONS} == {"triton"}
    with pytest.raises(UserError, match="cpu does not run on cuda"):
        dispatch.choose("chunk_scores", device, "cpu")


def test_what_cannot_run_is_refused(monkeypatch):
    with pytest.raises(UserError, match="'fast' is unknown; write one of auto, reference"):
        dispatch.choose("chunk_scores", CPU, "fast")
    monkeypatch.setattr(dispatch, "interpreted", lambda: False)
    with pytest.raises(UserError, match="triton needs a CUDA device"):
        dispatch.choose("chunk_scores", CPU, "triton")


def test_a_run_can_record_what_was_chosen():
    keys = torch.empty(1, 64, dtype=torch.bfloat16)
    said = dispatch.chosen(keys)
    assert said["chunk_scores"] == f"cpu ({cpu.variants(keys)[0]})" and said["native"] == native.native().why
    assert dispatch.chosen(keys, "triton")["triton"].endswith("interpreter")
    assert set(dispatch.chosen(keys, "reference").values()) == {"reference"}


def test_attention_with_a_gradient_is_the_reference():
    q, keys = torch.randn(1, 2, 2, 4, requires_grad=True), torch.randn(1, 2, 1, 4)
    bank, chunks = torch.randn(3, 1, 4), torch.tensor([[2]])
    for name in ("cpu", "triton"):
        out = dispatch.attend_pieces(
            q, keys, keys, torch.ones(1, 2, dtype=torch.bool), bank, bank, chunks, implementation=name
        )
        assert torch.autograd.grad(out.sum(), q)[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_pieces_are_read_in_place_by_what_can_and_without_a_gradient(name, monkeypatch):
    keys = torch.zeros(1, 1, 2, 64)
    monkeypatch.setattr(dispatch, "_configured", name)
    monkeypatch.setattr(cpu, "reads_in_place", lambda tokens, width: (tokens, width) == (1, 128))
    assert dispatch.attends_in_place(keys, 1) == (name != "reference")
    assert dispatch.attends_in_place(keys, 2) == (name == "triton")
    assert not dispatch.attends_in_place(keys.requires_grad_(), 1)


@pytest.mark.parametrize("name", ["reference", "cpu", "triton"])
def test_shapes_that_do_not_fit_are_refused(name):
    folded, mask, keys = torch.randn(1, 3, 64), torch.ones(1, 3, dtype=torch.bool), torch.randn(5, 64)
    for wrong in (
        (folded, mask[:, :2], Keys(keys)),
        (folded, mask, Keys(keys[:, :32])),
        (folded, mask, Keys(keys.to(torch.int8), torch.ones(4))),
    ):
        with pytest.raises(ValueError, match="keys"):
            dispatch.scores_with_error(*wrong, implementation=name)
    with pytest.raises(ValueError, match="documents"):
        dispatch.top_documents(torch.zeros(1, 5), torch.tensor([0, 5]), torch.tensor([1, 2]), 1, implementation=name)


def test_offsets_that_lead_out_of_the_scores_are_refused():
    keys, ids = Keys.store(torch.ones(5, 64), "bfloat16"), torch.tensor([1, 2])
    for wrong in ([0, 6, 6], [0, 4, 3]):
        refused = ValueError if native.native().library else RuntimeError  # torch's own, where torch routes
        with pytest.raises(refused):
            dispatch.top_documents(torch.zeros(1, 5), torch.tensor(wrong), ids, 1)
        with pytest.raises(refused):
            route(torch.ones(1, 1, 64), torch.ones(1, 1, dtype=torch.bool), [Part(keys, torch.tensor(wrong), ids)], 1)


def test_nothing_to_route_over_is_no_error():
    for name in ("reference", "cpu", "triton"):
        for dtype in ("float32", "bfloat16"):
            keys = Keys.store(torch.zeros(0, 64), dtype)
            nobody = torch.zeros(2, 3, 64), torch.ones(2, 3, dtype=torch.bool)
            nothing = Part(keys, torch.tensor([0]), torch.zeros(0, dtype=torch.long))
            assert route(*nobody, [nothing], 3, implementation=name).doc_ids.tolist() == [[-1] * 3] * 2
            unasked = torch.zeros(2, 0, 64), torch.zeros(2, 0, dtype=torch.bool)
            one = Part(Keys.store(torch.ones(1, 64), dtype), torch.tensor([0, 1]), torch.tensor([7]))
            assert route(*unasked, [one], 1, implementation=name).place.tolist() == [[-1]] * 2
            found = route(*nobody, [nothing, one], 2, implementation=name)
            assert found.doc_ids.tolist() == [[7, -1]] * 2 and found.part.tolist() == [[1, -1]] * 2
            assert route(*nobody, [one], 0, implementation=name).doc_ids.shape == (2, 0)


MACHINES = {  # what keeps routing from native code, and how that is said
    "no C compiler": lambda patch: patch.setattr(native.shutil, "which", lambda name: None),
    "linux on aarch64: only": lambda patch: patch.setattr(native.platform, "machine", lambda: "aarch64"),
    "darwin on": lambda patch: patch.setattr(native.sys, "platform", "darwin"),
}


@pytest.fixture(params=MACHINES)
def without_native(request, monkeypatch):
    """A machine that cannot compile or run routing.c, and why."""
    MACHINES[request.param](monkeypatch)
    native.native.cache_clear()
    yield request.param
    native.native.cache_clear()


def test_without_native_code_torch_routes(without_native):
    assert without_native in native.native().why
    folded, mask = torch.randn(1, 9, 64), torch.ones(1, 9, dtype=torch.bool)
    unit = torch.nn.functional.normalize(torch.randn(50, 64), dim=-1)
    offsets, ids = torch.arange(0, 51, 2), torch.arange(25).flip(0)
    for stored in (Keys.store(unit, "bfloat16"), Keys.store(unit, "int8")):
        assert cpu.variants(stored.values) == ["tiles"]
        found = route(folded, mask, [Part(stored, offsets, ids)], 4)
        true = reference.document_scores(reference.chunk_scores(folded.double(), mask, stored.exact()), offsets)
        assert torch.equal(found.scores, true.topk(4).values.float())


def test_a_compiler_that_fails_is_reported(monkeypatch):
    monkeypatch.setattr(native.shutil, "which", lambda name: "/bin/false")
    native.native.cache_clear()
    try:
        assert native.native().library is None and "/bin/false cannot build routing.c" in native.native().why
    finally:
        native.native.cache_clear()


def test_where_nothing_can_be_written_the_library_is_temporary(monkeypatch, tmp_path):
    source = tmp_path / "routing.c"
    source.write_bytes(native.SOURCE.read_bytes())
    (tmp_path / "__pycache__").write_text("in the way")
    monkeypatch.setattr(native, "SOURCE", source)
    native.native.cache_clear()
    try:
        made = native.native()
        assert (made.library is None) == (not made.why.startswith("built by"))
        if made.library is not None:
            assert not str(made.library._name).startswith(str(tmp_path))
    finally:
        native.native.cache_clear()


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_kernels_build_for_gpus_that_are_not_here(target):
    if sys.platform != "linux":
        pytest.skip("triton has no compiler for this system")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "msa.ops.check", "--compile", target], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "0 of them too large" in done.stdout
    assert ("wgmma.mma_async" in done.stdout) == ("cp.async.bulk" in done.stdout) == (target == "sm_90")
