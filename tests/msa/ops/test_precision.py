"""Precision follows the hardware: who asks, what a configuration may say, and that no slow product is ever taken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from msa.generation.embed import Embedder
from msa.generation.likelihood import QueryLikelihood
from msa.memory.encode import Encoder
from msa.memory.routed import BankMemory
from msa.ops import cpu, native, precision
from msa.ops.keys import DTYPES, Keys
from msa.training.muon import Muon
from msa.training.train import Trainer
from msa_base.errors import UserError
from msa_base.specs import ModelSpec

CPU = torch.device("cpu")
MAKEFILE = Path(__file__).parents[3] / "Makefile"
HELD = dict(re.findall(r"(\w+)=(\S+)", re.search(r"^AVX2 := (.*)", MAKEFILE.read_text(), re.M)[1]))
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "layers": 3, "query_heads": 2, "kv_heads": 1, "head_dim": 8}
ROUTER = {"routed_layers": [1, 2], "pool_tokens": 4, "top_k_documents": 2, "aux_temperature": 0.1}


class Products(TorchDispatchMode):
    """Counts matrix products and attention by the dtype of what is multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(part in name for part in ("mm", "matmul", "linear", "attention", "addmv", "baddbmm", "dot")):
            for dtype in {value.dtype for value in args if isinstance(value, torch.Tensor)}:
                self.count[dtype] = self.count.get(dtype, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def hardware(monkeypatch):
    """Sets what the processor, oneDNN and its environment offer."""

    torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN reads its environment once, at its first use

    def forget() -> None:
        for asked in (precision.fast_bfloat16, native.native):
            asked.cache_clear()

    def offers(units: bool, onednn: bool, held: str) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
        forget()

    yield offers
    forget()


@pytest.mark.parametrize(
    ("units", "onednn", "held", "expected"),
    [
        (True, True, "", "bfloat16"),
        (True, True, "AVX512_CORE_AMX", "bfloat16"),
        (True, True, "avx512_core", "float32"),
        (True, False, "AVX2", "float32"),
        (False, True, "", "float32"),
    ],
)
def test_auto_asks_the_hardware_and_a_named_precision_wins(hardware, units, onednn, held, expected):
    hardware(units, onednn, held)
    assert precision.choose("encoding", "auto", CPU) == expected == precision.chosen()["encoding"]
    for named in precision.PRODUCTS:
        assert precision.choose("encoding", named, CPU) == named == precision.chosen()["encoding"]
    with pytest.raises(UserError, match="encoding: precision 'float8' is unknown"):
        precision.choose("encoding", "float8", CPU)


def test_a_processor_held_to_avx2_takes_float32_and_routes_exactly():
    code = """
import torch
from msa.ops import check, native, precision
features, capability = native.native().features, torch.backends.cpu.get_cpu_capability()
print(precision.fast_bfloat16(torch.device("cpu")), *sorted(features), capability)
raise SystemExit(check.main(["--device", "cpu", "--only", "route cpu"]))
"""
    said = subprocess.run([sys.executable, "-c", code], env={**os.environ, **HELD}, capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    slow, *features, torchs = said.stdout.splitlines()[0].split()
    assert slow == "False" and features == sorted(native.native().features & {"avx2_float32", "avx2_int16"})
    assert torchs in ("AVX2", "DEFAULT") or not features  # whatever torch calls a processor that has no AVX2


@pytest.mark.parametrize(
    ("held", "allowed"),
    [
        ("avx2", {"avx2_float32", "avx2_int16"}),
        ("AVX512_CORE", {"avx2_float32", "avx2_int16"}),
        ("AVX512_CORE_VNNI", {"avx2_float32", "avx2_int16", "avx512_vnni"}),
        ("AVX512_CORE_FP16", {"avx2_float32", "avx2_int16", "avx512_vnni", "avx512_bf16"}),
        ("AVX512_CORE_AMX", set(native.FEATURES)),
        ("DEFAULT", set(native.FEATURES)),
        ("SSE41", set()),
    ],
)
def test_the_kernels_here_follow_what_holds_onednn(monkeypatch, held, allowed):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", held)
    assert {name for name, (_, level) in native.FEATURES.items() if precision.may_use(level)} == allowed


def test_no_product_is_bfloat16_where_that_is_slow(hardware, paths, model, prompter, documents, monkeypatch):
    hardware(False, False, "AVX2")
    opened = lambda directory, threads: (model, prompter)  # noqa: E731
    monkeypatch.setattr("msa.checkpoints.read.open_model", opened)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a dispatch mode sees its own thread alone
    try:
        with Products() as seen:
            train(paths, "auto")
            bank = Encoder(model, prompter, "bfloat16", "bfloat16").bank(documents)
            Embedder("unused").queries(["what is alpha"])
            QueryLikelihood("unused").scores([("what is alpha", documents[0])])
            nothing = torch.zeros(1, 0, dtype=torch.bool)
            queries = torch.randn(1, 3, model.config.routing_width)
            BankMemory(bank, None, nothing, [[]], 2).select(0, queries, torch.ones(1, 3, dtype=torch.bool)).ready()
    finally:
        torch.set_num_threads(threads)
    assert seen.count[torch.float32] > 100 and torch.bfloat16 not in seen.count
    wide = torch.empty(1, 1024, dtype=DTYPES["bfloat16"])
    assert cpu.variants(wide)[0] in ("avx2_float32", "tiles") and cpu.query_dtype(Keys(wide).values) == torch.float32
    with Products() as seen:  # the count sees what it should
        train(paths, "bfloat16")
    assert seen.count[torch.bfloat16] > 100


def train(paths, named: str) -> None:
    """One step of a fresh backbone and one of its routers."""
    read = {"name": "reading", "objective": "read", "samples": "short", "steps": 1, "rows": 4}
    common = {"max_id": 1000, "precision": named}
    params = {"shape": {**SHAPE, "rope_theta": 100.0}, "phases": [read], **common}
    Trainer("backbone", ModelSpec("msa.training.train", None, ["short"], params), paths).run()
    params = {"router": ROUTER, "phases": [{**read, "objective": "memory"}], **common}
    Trainer("msa", ModelSpec("msa.training.train", "backbone", ["short"], params), paths).run()


@pytest.mark.parametrize("shape", [(12, 12), (24, 8), (8, 24)])
def test_muon_is_torchs_but_for_its_precision(shape):
    torch.manual_seed(0)
    start, grads = torch.randn(shape), [torch.randn(shape) for _ in range(3)]
    ends = []
    for make in (
        lambda p: torch.optim.Muon(p, lr=0.02, weight_decay=0.3, adjust_lr_fn="original"),
        lambda p: Muon(p, 0.02, 0.3, torch.bfloat16),
        lambda p: Muon(p, 0.02, 0.3, torch.float32),
    ):
        matrix = torch.nn.Parameter(start.clone())
        optimizer = make([matrix])
        for grad in grads:
            matrix.grad = grad.clone()
            optimizer.step()
        ends.append(matrix.detach())
    assert torch.equal(ends[0], ends[1])
    assert 0 < (ends[0] - ends[2]).abs().max() < 0.01
