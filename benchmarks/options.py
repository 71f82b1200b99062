"""What each option of the student's step is worth: time with it over time with the packaged choice, interleaved.

    python benchmarks/options.py --rounds 20 --out options.json

The packaged step is channels last, bfloat16 where the device is fast at it, fused AdamW, not compiled. Images are random, of
224 px. Every round takes one step of every candidate.
"""

from dataclasses import asdict
from typing import Any

import torch
from measuring import DEVICE, Step, parser, save

from uhkd.commands.comparing.cost import geometric_mean, time_steps
from uhkd.models import create

NETWORKS = ("timm/resnet18", "timm/deit_tiny_patch16_224")
OPTIONS: dict[str, dict[str, Any]] = {
    "packaged": {},
    "channels first": {"form": torch.contiguous_format},
    "float32": {"bf16": False},
    "AdamW by torch's default": {"fused": None},
    "AdamW foreach": {"fused": None, "foreach": True},
    "compiled": {"compiled": True},
}


def make_step(
    name: str,
    batch: int,
    *,
    form: torch.memory_format = torch.channels_last,
    bf16: bool = True,
    compiled: bool = False,
    fused: bool | None = True,
    **adamw: Any,
) -> Step:
    """A training step of a network with the options given."""
    torch.manual_seed(0)
    model = create(name, num_classes=100).to(DEVICE).to(memory_format=form)
    image = torch.rand(batch, 3, 224, 224, device=DEVICE).contiguous(memory_format=form)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, fused=fused, **adamw)
    if compiled:
        model.compile()

    def step(_number: int) -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            logits = model(image).logits
        logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    """Measure and write."""
    options = parser(__doc__)
    options.add_argument("--batch", type=int, default=256 if DEVICE == "cuda" else 4)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    arguments = options.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for name in arguments.networks:
        chosen = dict.fromkeys(("packaged", *arguments.options))
        steps = {label: make_step(name, arguments.batch, **OPTIONS[label]) for label in chosen}
        for step in steps.values():
            for number in range(3):
                step(number)
        seconds = time_steps(steps, arguments.rounds)
        del steps
        found[name] = {
            label: {"seconds": own, "to_packaged": asdict(geometric_mean(own, seconds["packaged"]))}
            for label, own in seconds.items()
        }
        for label, own in found[name].items():
            print(f"{name}, {label}: {own['to_packaged']['mean']:.3f} of the packaged step's time")
    settings = {"batch": arguments.batch, "rounds": arguments.rounds}
    save(arguments.out, "Options of the student's step", settings, networks=found)


if __name__ == "__main__":
    main()
