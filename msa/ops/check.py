"""Checks every operation against its oracle on this machine's device; exit code 1 if one differs.

python -m msa.ops.check                      # on the GPU, or on the processor where there is none
TRITON_INTERPRET=1 python -m msa.ops.check   # on the processor, triton's kernels too
python -m msa.ops.check --compile sm_90      # builds triton's kernels for a GPU that need not be there; runs nothing
"""

from __future__ import annotations

import argparse
import sys
import warnings
from time import perf_counter

import torch

from msa.ops import cases, dispatch
from msa_base.errors import UserError, run_command

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}  # of one program at most
MULTIPROCESSORS = {80: 108, 90: 132}


def main(arguments: list[str] | None = None) -> int:
    """Run, say what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is one, else cpu")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    targets = [f"sm_{number}" for number in SHARED_BYTES]
    parser.add_argument("--compile", choices=targets, help="build for this GPU and run nothing")
    options = parser.parse_args(arguments)
    if options.compile:
        return compile_kernels(int(options.compile.removeprefix("sm_")))
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here")
    return run_cases(device, options.only)


def run_cases(device: torch.device, only: str = "") -> int:
    """All cases on a device: 0 where every one holds, 1 where one does not."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"device {name}, torch {torch.__version__}")
    for operation, name in dispatch.chosen(torch.empty(1, 1024, dtype=torch.bfloat16, device=device)).items():
        print(f"  {operation}: {name}")
    chosen = {name: case for name, case in cases.cases(device).items() if only in name}
    if not chosen:
        raise UserError(f"--only {only!r}: no case of {device.type} has such a name")
    failed, started = 0, perf_counter()
    for name, case in chosen.items():
        try:
            with warnings.catch_warnings(), cases.poisoned():
                warnings.simplefilter("ignore")  # of torch, that some oracle is not deterministic
                case()
        except Exception as error:
            failed += 1
            print(f"FAILED {name}: {type(error).__name__}: {error}")
    print(f"{len(chosen) - failed} of {len(chosen)} cases hold ({perf_counter() - started:.0f} s)")
    return 1 if failed else 0


def compile_kernels(target: int) -> int:
    """Build what paper shapes launch for a GPU that need not be there: 0 where all fits it."""
    if not dispatch.has_triton() or dispatch.interpreted():
        raise UserError("--compile: needs the triton package, and TRITON_INTERPRET unset")
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from msa.ops import tiles

    class Device:
        """Stands in for triton's driver: says what the GPU is, and has none."""

        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device=None: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", target, 32))

    built, launch = [], JITFunction.run

    def build(kernel, *arguments, grid, warmup, **options):
        made = launch(kernel, *arguments, grid=grid, warmup=True, **options)
        built.append((kernel.__name__, made))
        return made

    driver.set_active(Device())
    JITFunction.run = build
    tiles.capability = lambda device: divmod(target, 10)
    tiles.multiprocessors = lambda device: MULTIPROCESSORS[target]
    launch_all(fp8=target >= 89)
    too_large = 0
    for name, made in built:
        used, code = made.metadata.shared, made.asm["ptx"]
        units = [unit for unit in ("wgmma.mma_async", "mma.sync", "cp.async.bulk", "cp.async.cg") if unit in code]
        too_large += used > SHARED_BYTES[target]
        print(f"{name.lstrip('_'):12} {used:7} of {SHARED_BYTES[target]} bytes shared; {', '.join(units)}")
    print(f"{len(built)} kernels built for sm_{target}, {too_large} of them too large")
    return 1 if too_large else 0


def launch_all(fp8: bool) -> None:
    """Launch every kernel at paper shapes; with a launcher that only builds, tensors need not be real."""
    from msa.ops import triton_attention, triton_documents, triton_pooling, triton_routing, triton_training

    stored = [torch.bfloat16, torch.int8, *([torch.float8_e4m3fn] if fp8 else [])]
    for questions, tokens in ((1, 32), (8, 32), (8, 256), (2, 600)):
        folded, mask = torch.zeros(questions, tokens, 1024), torch.ones(questions, tokens, dtype=torch.bool)
        for kind in (torch.float32, *stored):
            keys, scales = torch.zeros(300, 1024).to(kind), torch.ones(300) if kind.itemsize == 1 else None
            for native in (False, True) if scales is not None else (False,):
                triton_routing.chunk_scores(folded, mask, keys, scales, native=native)
    for dtype in (torch.float32, torch.bfloat16):
        folded, keys = (torch.zeros(*size, dtype=dtype, requires_grad=True) for size in ((8, 40, 1024), (300, 1024)))
        triton_training.training_scores(folded, torch.ones(8, 40, dtype=torch.bool), keys).sum().backward()
        x = torch.zeros(3, 130, 2560, dtype=dtype, requires_grad=True)
        triton_pooling.pool_chunks(x, torch.full((3,), 100), 64).sum().backward()
    for visible in (None, torch.ones(2, 3000, dtype=torch.bool)):
        triton_documents.top_documents(torch.zeros(2, 3000), torch.arange(3001), torch.arange(3000), 16, visible)
    bank, chunks = torch.zeros(300, 2, 8, 128), torch.zeros(1, 128, dtype=torch.long)
    for tokens, own in ((1, 300), (600, 600)):
        q, cache = torch.zeros(1, tokens, 32, 128).bfloat16(), torch.zeros(1, own, 8, 128).bfloat16()
        valid, reads = torch.ones(1, own, dtype=torch.bool), torch.ones(1, tokens, dtype=torch.bool)
        for kind in stored:
            pieces = q, cache, cache, valid, *bank.to(kind).unbind(1), chunks
            names = ("key_scales", "value_scales") if kind.itemsize == 1 else ()
            scales = dict.fromkeys(names, torch.ones(300, 8))
            triton_attention.attend_pieces(*pieces, reads_memory=reads, **scales)


if __name__ == "__main__":
    sys.modules.setdefault("msa.ops.check", sys.modules["__main__"])
    run_command(main)
