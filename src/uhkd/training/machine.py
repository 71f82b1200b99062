"""The machine of a training: device, precision, processes and loader workers, each chosen for a reason that is printed."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision

from uhkd.console import log_info, verbose
from uhkd.data import DataSplits, in_memory, usable_cores
from uhkd.distributed import exit_with_parent
from uhkd.errors import UhkdError
from uhkd.recipe import DeviceOptions
from uhkd.training.deterministic import make_deterministic
from uhkd.training.optimizer import FUSED

_SMALL = 64  # pixels: up to here images are kept in memory and take little time to augment


def fast_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(flag in flags.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))


def choose_device(recipe: DeviceOptions) -> tuple[str, str]:
    """(device, precision), both settled.

    Raises:
        UhkdError: when a GPU is asked for and there is none.
    """
    device = recipe.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UhkdError(
            "device=cuda was asked for and torch sees no GPU; use device=auto, or install a CUDA build of torch"
        )
    precision = recipe.precision
    if precision == "auto":
        precision = "bf16" if fast_bf16(device) else "fp32"
    return device, precision


def log_device(recipe: DeviceOptions, device: str, precision: str) -> None:
    """Say what a training runs on, and why in this way."""
    if recipe.precision != "auto":
        why = "as asked"
    elif precision == "bf16":
        why = f"the {'GPU' if device == 'cuda' else 'processor'} multiplies bfloat16 natively"
    else:
        why = f"the {'GPU' if device == 'cuda' else 'processor'} has no fast bfloat16"
    chosen = ["channels last"]
    if getattr(recipe, "optimizer", None) in FUSED:
        chosen.append("fused optimizer")
    if (compiled := getattr(recipe, "compile", None)) is not None:
        hardly = " (it hardly pays on a CPU: docs/performance.md)" if device == "cpu" else ""
        chosen.append(f"{'compiled' if compiled else 'not compiled'}{hardly}")
    if recipe.deterministic and device == "cuda":
        chosen.append("deterministic")
    threads = torch.get_num_threads()
    chosen.append(f"{threads} CPU thread{'s' * (threads > 1)}")
    log_info(f"running on {device} in {precision} ({why}), {', '.join(chosen)}")


class _Bf16(MixedPrecision):
    """bf16 autocast that leaves a module's inputs alone: Fabric's own would round images, targets and spectra too."""

    def __init__(self, device: str) -> None:
        super().__init__("bf16-mixed", device)

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: str, precision: str, deterministic: bool = False) -> Fabric:
    """Fabric on one device, or on as many processes as torchrun started, on this machine and on others.

    deterministic: see `make_deterministic`; a CPU repeats to the bit by itself.
    """
    if deterministic and device == "cuda":
        make_deterministic()
    here, everywhere = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    exit_with_parent()
    # Fabric advises to round float32 products on a GPU; what runs in float32 here, spectra and losses, does so to be exact
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    if not verbose():  # each process would say that it joins
        logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=here,
        num_nodes=everywhere // here,
        strategy="ddp" if everywhere > 1 else "auto",
        plugins=_Bf16(device) if precision == "bf16" else None,
    )
    fabric.launch()
    return fabric


def choose_workers(recipe: DeviceOptions, data: DataSplits, device: str) -> int:
    """Loader processes: for small images in memory none, or up to 4 to feed a GPU; otherwise one a core, at most 8."""
    if recipe.workers is not None:
        return recipe.workers
    cores = usable_cores()
    if in_memory(data.train) and data.native_size is not None and max(data.native_size) <= _SMALL:
        # A GPU would wait while this process makes a batch; a few others have the next ready. A CPU is busy either way.
        return min(4, cores) if device == "cuda" else 0
    return min(8, cores)
