"""Device, precision, processes and loader workers of a training; the choice and its reasons are logged."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from uhkd.console import log_info, pluralize, verbose
from uhkd.data import DataSplits, is_in_memory, usable_cores
from uhkd.data.worker_errors import check_main_guard
from uhkd.distributed import exit_with_parent
from uhkd.errors import UhkdError
from uhkd.recipe import DeviceOptions
from uhkd.training.deterministic import make_deterministic
from uhkd.training.optimizer import FUSED

_SMALL = 64  # pixels; images up to this size are cheap to augment


def fast_bf16(device: str) -> bool:
    """Return whether the device multiplies bfloat16 natively."""
    if device == "mps":
        return False
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(flag in flags.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))


def choose_device(recipe: DeviceOptions) -> tuple[str, str]:
    """Return (device, precision) with "auto" resolved.

    Raises:
        UhkdError: if torch finds no GPU for device=cuda or mps, or for device=mps with bf16 or several processes.
    """
    check_main_guard()
    device, precision = find_device(recipe.device), recipe.precision
    if device == "mps" and precision == "bf16":
        raise UhkdError("precision: device mps computes in fp32 here, found bf16; use --precision fp32")
    if device == "mps" and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UhkdError("device=mps: trains in one process, and torchrun started several; start it without torchrun")
    if precision == "auto":
        precision = "bf16" if fast_bf16(device) else "fp32"
    return device, precision


def find_device(device: str) -> str:
    """Return the device with "auto" resolved.

    Raises:
        UhkdError: if torch finds no GPU for cuda or mps.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UhkdError("device=cuda: torch finds no GPU; use device=auto, or install a CUDA build of torch")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UhkdError(
            "device=mps: torch finds no Apple GPU; expected macOS on Apple silicon and a build of torch with MPS; use device=auto"
        )
    if device == "mps":
        log_info(
            "warning: device mps is untested; where torch lacks an operation, set PYTORCH_ENABLE_MPS_FALLBACK=1, and compare a "
            "short training with --device cpu"
        )
    return device


def log_device(recipe: DeviceOptions, device: str, precision: str) -> None:
    """Log device, precision and the reason for it, and other settings that affect speed."""
    processor = "processor" if device == "cpu" else "GPU"
    if recipe.precision != "auto":
        why = "as configured"
    elif device == "mps":
        why = "the only format for mps"
    elif precision == "bf16":
        why = f"the {processor} multiplies bfloat16 natively"
    else:
        why = f"the {processor} has no fast bfloat16"
    features = ["channels last"]
    if getattr(recipe, "optimizer", None) in FUSED:
        features.append("fused optimizer")
    if (compiled := getattr(recipe, "compile", None)) is not None:
        little = " (little gain on a CPU: docs/performance.md)" if device == "cpu" else ""
        features.append(f"{'compiled' if compiled else 'not compiled'}{little}")
    if recipe.deterministic and device == "cuda":
        features.append("deterministic")
    features.append(pluralize(torch.get_num_threads(), "CPU thread"))
    log_info(f"running on {device} in {precision} ({why}), {', '.join(features)}")


class _Bf16(MixedPrecision):
    """bf16 autocast that does not convert a module's inputs; Fabric's plugin would round images, targets and spectra too."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: str, precision: str, deterministic: bool = False) -> Fabric:
    """Return Fabric on one device, or on all processes that torchrun started on this and other machines.

    deterministic: see `make_deterministic`; a CPU is deterministic without it.
    """
    if deterministic and device == "cuda":
        make_deterministic()
    local_size, world_size = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    exit_with_parent()
    # Fabric suggests rounding float32 products on a GPU; the spectra and losses are in float32 because they must be exact
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    if not verbose():  # each process would log that it joins
        logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=local_size,
        num_nodes=world_size // local_size,
        strategy="ddp" if world_size > 1 else "auto",
        plugins=_Bf16(device) if precision == "bf16" else None,
    )
    fabric.launch()
    return fabric


def choose_workers(recipe: DeviceOptions, data: DataSplits, device: str) -> int:
    """Return the number of loader processes: 0 for small images in memory (up to 4 with a GPU), else one per core, up to 8."""
    if recipe.workers is not None:
        return recipe.workers
    cores = usable_cores()
    if is_in_memory(data.train) and data.native_size is not None and max(data.native_size) <= _SMALL:
        # a GPU would wait while this process makes a batch, a few others make the next one in time; a CPU is busy either way
        return 0 if device == "cpu" else min(4, cores)
    return min(8, cores)
