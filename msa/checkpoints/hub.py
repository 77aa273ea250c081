"""Weights on disk: safetensors read tensor by tensor from one file or from shards, and written back.

Names and layout are Hugging Face's: ``model.safetensors``, or ``model.safetensors.index.json`` with the shards it maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from msa.ops.finite import all_finite
from msa_base.errors import UserError
from msa_base.paths import SEAL
from msa_base.seal import Seal
from msa_base.tables import read_json, read_text, whole_file, write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"  # says, beside config.json, which tokens end a text
CHAT_TEMPLATE = "chat_template.jinja"
SHARD_BYTES = 5 * 10**9
TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A checkpoint on disk, its weights not read yet.

    ``path`` is the file that messages name, ``content`` what config.json says (or would say), ``types`` the type of
    each tensor (float32 for a quantised one), ``tensors`` reads them one at a time. ``generation`` is what
    generation_config.json says, where there is one; ``chat_template`` how a chat model is spoken to (Jinja);
    ``tokenizer`` reads one that lies in the same file.
    """

    path: Path
    content: dict[str, Any]
    types: dict[str, torch.dtype]
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    generation: dict[str, Any] = field(default_factory=dict)
    chat_template: str | None = None
    tokenizer: Callable[[], Tokenizer] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every tensor exactly."""
        kinds = set(self.types.values())
        return kinds.pop() if len(kinds) == 1 else torch.float32


def open_directory(directory: Path) -> Stored:
    """A Hugging Face directory, plain or sharded; a UserError where files are missing, corrupt or disagree."""
    _verify(directory)
    path, shards = weight_files(directory)
    types: dict[str, torch.dtype] = {}
    for name, listed in shards.items():
        found = _tensor_types(directory / name)
        if listed is not None and found.keys() != listed:
            raise UserError(
                f"{directory / name}: does not hold what {INDEX} says: missing {sorted(listed - found.keys())[:4]}, "
                f"not in the index {sorted(found.keys() - listed)[:4]}"
            )
        types |= found
    content, generation = read_json(directory / "config.json"), {}
    if (directory / GENERATION).exists() and not isinstance(generation := read_json(directory / GENERATION), dict):
        raise UserError(f"{directory / GENERATION}: must be a JSON object")

    def read() -> Iterator[tuple[str, Tensor]]:
        for name in shards:
            yield from _tensors(directory / name)

    return Stored(path, content, types, read, generation, _chat_template(directory))


def _chat_template(directory: Path) -> str | None:
    """The chat template of a directory, in whichever of its three files; a UserError where it is no text."""
    if (directory / CHAT_TEMPLATE).exists():
        return read_text(directory / CHAT_TEMPLATE)
    for name in ("chat_template.json", "tokenizer_config.json"):
        content = read_json(directory / name) if (directory / name).exists() else {}
        found = content.get("chat_template") if isinstance(content, dict) else None
        if isinstance(found, list):  # several by name
            named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
        if found is not None:
            raise UserError(f"{directory / name}: chat_template must be a text, found {str(found)[:60]!r}")
    return None


def _verify(directory: Path) -> None:
    """Hold the files of a checkpoint that was sealed against their sha256; a UserError names one that changed."""
    if (directory / SEAL).exists():
        try:
            Seal.open(directory / SEAL)
        except UserError as error:
            raise UserError(f"{error} (where you changed it yourself, delete {directory / SEAL})") from None


def weight_files(directory: Path) -> tuple[Path, dict[str, set[str] | None]]:
    """The weights' file, or the index with the tensors of each shard; a UserError where there are none, or some lack.

    Whether the one file is there is left to its reader.
    """
    path = directory / WEIGHTS
    if path.exists() and (directory / INDEX).exists():
        raise UserError(f"{directory}: holds {WEIGHTS} and {INDEX}, which may be other weights; keep one of them")
    if path.exists():
        return path, {WEIGHTS: None}
    if (directory / INDEX).exists():
        return directory / INDEX, _read_index(directory / INDEX)
    if alone := sorted(directory.glob("*.safetensors")):
        raise UserError(f"{directory}: holds {alone[0].name}, and neither {WEIGHTS} nor {INDEX}; put the index there")
    if list(directory.glob("*.bin")):
        raise UserError(f"{directory}: only pickled weights; save them as safetensors (transformers: save_pretrained)")
    return path, {WEIGHTS: None}


def _read_index(path: Path) -> dict[str, set[str]]:
    """Tensor names by shard."""
    content = read_json(path)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path}: key 'weight_map' must map tensor names to files")
    shards: dict[str, set[str]] = {}
    for tensor, shard in names.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{path}: weight_map: {tensor} is in {shard!r}; it must be a file of this directory")
        shards.setdefault(shard, set()).add(tensor)
    missing = sorted(shard for shard in shards if not (path.parent / shard).exists())
    if missing:
        count = f"{len(missing)} of {len(shards)}"
        raise UserError(f"{path}: shards are missing beside it: {', '.join(missing[:4])} ({count})")
    return shards


@contextmanager
def _opened(path: Path):
    """A safetensors file; what goes wrong with it is a UserError that names it."""
    try:
        # reading, not mapping: the file may be replaced later, and its pages do not count twice
        with safe_open(path, framework="pt", backend="pread") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); delete it and make it again") from None


def _tensor_types(path: Path) -> dict[str, torch.dtype]:
    with _opened(path) as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.offset_keys()}
    unknown = sorted(name for name, kind in types.items() if kind not in TYPES)
    if unknown:
        raise UserError(f"{path}: {unknown[0]} is of type {types[unknown[0]]}; supported are {', '.join(TYPES)}")
    return {name: TYPES[kind] for name, kind in types.items()}


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with _opened(path) as file:
        for name in file.offset_keys():  # in file order
            yield name, file.get_tensor(name)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Tensors of a safetensors file, of any type; a missing or corrupt one is a UserError that names it."""
    return dict(_tensors(Path(path)))


def write_tensors(
    tensors: dict[str, Tensor], directory: Path, dtype: torch.dtype, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a model's tensors as ``dtype``, into one file or, above ``shard_bytes``, into shards and their index.

    Every file appears whole; the one that makes the directory a checkpoint comes last. Weights of an earlier save that
    the new ones do not replace are removed.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(tensor.shape, dtype=dtype, device="meta") for name, tensor in tensors.items()},
        max_shard_size=shard_bytes,
    )
    if plan.is_sharded:  # no checkpoint at all until every shard is the new one
        (directory / INDEX).unlink(missing_ok=True)
    for name, members in plan.filename_to_tensors.items():
        part = {member: tensors[member].detach().to("cpu", dtype).contiguous() for member in members}
        for member, tensor in part.items():
            if not all_finite(tensor):
                narrow = "values that float16 cannot hold; write bfloat16 or float32"
                raise UserError(f"{member} has {narrow if dtype == torch.float16 else 'NaN or infinite values'}")
        with whole_file(directory / name) as temporary:
            save_file(part, temporary, metadata={"format": "pt"})
    if plan.is_sharded:
        write_json({"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}, directory / INDEX)
    (directory / (WEIGHTS if plan.is_sharded else INDEX)).unlink(missing_ok=True)
    for stale in directory.glob("model-*-of-*.safetensors"):
        if stale.name not in plan.filename_to_tensors:
            stale.unlink()
