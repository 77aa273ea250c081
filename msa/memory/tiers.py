"""Tiers: where a bank's routing keys and content live while questions are answered (paper section 3.4).

``device`` is where the model computes, ``host`` is main memory (pinned where there is a GPU to copy to), ``disk`` the
mapped segments. Keys are read whole by every question, content only where a document wins, so that content goes down
first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import psutil
import torch
from torch import Tensor

from msa.memory.bank import Bank
from msa.memory.segment import StoredLayer
from msa.ops.keys import DTYPES
from msa_base.errors import UserError

TIERS = ("device", "host", "disk")
SHARE = 0.7  # of what is free, for the bank; the rest is for activations and other processes


@dataclass(frozen=True)
class Tiers:
    """Wanted tiers; "auto" takes the fastest that holds the bank.

    ``scan`` names the precision of a coarser copy of the keys that is read in the keys' tier; the stored keys then stay
    on disk for rescoring, so that scores are still exact for the stored precision.
    """

    keys: Literal["auto", "device", "host", "disk"] = "auto"
    content: Literal["auto", "device", "host", "disk"] = "auto"
    scan: Literal["float32", "bfloat16", "float8", "int8"] | None = None

    def fitted(self, bank: Bank, device: torch.device, free: dict[str, int] | None = None) -> Tiers:
        """These tiers with "auto" settled by what fits; a UserError where a tier that was asked for is too small.

        ``free`` bytes may be used, by tier; they are measured where not given. On a CPU the device is the host.
        """
        free = dict(free if free is not None else free_bytes(device))
        chosen, keys = {}, self._key_bytes(bank)
        for name, wanted, needs in (("keys", self.keys, keys), ("content", self.content, content_bytes(bank))):
            fitting = [tier for tier in TIERS if tier == "disk" or needs <= free[tier]]
            chosen[name] = fitting[0] if wanted == "auto" else wanted
            if chosen[name] not in fitting:
                limit = f"the {free[wanted]:,} that are free on tier '{wanted}'"
                mend = f"choose {' or '.join(fitting)}, or auto"
                raise UserError(f"tiers: {name} take {needs:,} bytes, more than {limit}; {mend}")
            if chosen[name] != "disk":
                free[chosen[name]] -= needs
                if device.type == "cpu":
                    free["device"] = free["host"] = min(free["device"], free["host"])
        return Tiers(chosen["keys"], chosen["content"], self.scan)

    def _key_bytes(self, bank: Bank) -> int:
        keys = [layer.routing for segment in bank.segments for layer in segment.layers]
        if self.scan is None:
            return sum(stored.nbytes for stored in keys)
        return sum(stored.values.numel() * DTYPES[self.scan].itemsize for stored in keys)


def free_bytes(device: torch.device) -> dict[str, int]:
    """Bytes that a bank may take on each tier."""
    host = int(psutil.virtual_memory().available * SHARE)
    if device.type == "cuda":
        return {"device": int(torch.cuda.mem_get_info(device)[0] * SHARE), "host": host}
    return {"device": host, "host": host}


def content_bytes(bank: Bank) -> int:
    return sum(layer.content.nbytes for segment in bank.segments for layer in segment.layers)


def placed(bank: Bank, tiers: Tiers, device: torch.device) -> Bank:
    """The bank with keys and content in settled tiers; what stays on disk stays mapped."""
    segments = []
    for segment in bank.segments:
        layers = []
        for layer in segment.layers:
            routing = layer.routing
            if tiers.scan is None:
                routing = routing.moved(lambda tensor: _to(tensor, tiers.keys, device))
            layers.append(StoredLayer(routing, _to(layer.content, tiers.content, device)))
        segments.append(replace(segment, layers=layers, file=""))
    return Bank(bank.signature, segments, None, bank.corpus)


def _to(tensor: Tensor, tier: str, device: torch.device) -> Tensor:
    if tier == "disk":
        return tensor
    if tier == "device" and device.type != "cpu":
        return tensor.to(device, non_blocking=True)
    copy = tensor.clone()  # out of the mapping: its pages stay
    return copy.pin_memory() if torch.cuda.is_available() else copy
