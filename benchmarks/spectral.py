"""Transform, alignment and loss of one matched level, forward and backward: ours against the obvious route by rfft2.

Ours (as in training): the FTM of the teacher's map, the FAM of the student's (a truncated real basis as matrix products,
channels mixed after it) and the level's error. The other route: a 1x1 convolution lifts the whole student map to the teacher's
channels, `torch.fft.rfft2` transforms both maps in float32, the same low frequencies are cut out, and MSE compares real and
imaginary parts. Maps have the channels and grids of Swin-T -> ResNet18 at 224 px, both sides channels last. Each round measures
every grid by both routes, in an order of its own; beside it stands what share of a plain copy's speed that is. Memory is the
largest growth of resident memory, in fresh processes.

    python benchmarks/spectral.py --rounds 30 --out results/performance/spectral.json
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import DEVICE, Step, copy_bandwidth, parser, save
from torch import Tensor, nn

from uhkd.commands.comparing.cost import geometric_mean, time_steps
from uhkd.methods.spectral_matching import level_error
from uhkd.spectral import FTM, LevelPair, SpectralTarget, ftm_shapes
from uhkd.spectral.fam import FAM

# grid -> channels of ResNet18's and Swin-T's stage
LEVELS = {56: (64, 96), 28: (128, 192), 14: (256, 384), 7: (512, 768)}
ROUTES = ("ours", "rfft2")


def maps_of(grid: int, batch: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The student's map, which requires a gradient, and the teacher's."""
    generator = torch.Generator().manual_seed(grid)
    made = (torch.randn(batch, c, grid, grid, generator=generator).to(dtype) for c in LEVELS[grid])
    student, teacher = (x.to(DEVICE).contiguous(memory_format=torch.channels_last) for x in made)
    return student.requires_grad_(), teacher


def ours(grid: int, student: Tensor, teacher: Tensor, radius: int, channels: int | None) -> Step:
    """FTM, FAM and the level's error."""
    (few, many), k = LEVELS[grid], 2 * radius + 1
    target, shapes = SpectralTarget((LevelPair(0, 0, (k, k), "pairs"),), "coefficient", channels), ((many, grid, grid),)
    ftm, goal = FTM(target, shapes).to(DEVICE), ftm_shapes(target, shapes)[0]
    ftm.calibrate(ftm.raw([teacher]))
    fam = FAM((few, grid, grid), goal, size=(k, k), represent="pairs").to(DEVICE)
    weights = torch.full((goal[1],), 1 / goal[1], device=DEVICE)

    def step(_number: int) -> None:
        with torch.no_grad():
            (spectrum,) = ftm([teacher])
        level_error(fam(student), spectrum, weights).backward()
        student.grad = None
        fam.zero_grad()

    return step


def by_rfft2(grid: int, student: Tensor, teacher: Tensor, radius: int) -> Step:
    """A 1x1 convolution of the whole map, `rfft2` of both, the low frequencies, MSE of real and imaginary parts."""
    lift = nn.Conv2d(*LEVELS[grid], 1).to(DEVICE).to(memory_format=torch.channels_last)
    rows = [*range(radius + 1), *range(-radius, 0)]

    def transformed(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.rfft2(x.float(), norm="forward")[..., rows, : radius + 1])

    def step(_number: int) -> None:
        with torch.no_grad():
            spectrum = transformed(teacher)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=student.dtype == torch.bfloat16):
            lifted = lift(student)
        F.mse_loss(transformed(lifted), spectrum).backward()
        student.grad = None
        lift.zero_grad()

    return step


def step_of(route: str, grid: int, args: argparse.Namespace) -> Step:
    """One route on maps of one grid."""
    torch.manual_seed(0)
    student, teacher = maps_of(grid, args.batch, getattr(torch, args.dtype))
    if route == "ours":
        return ours(grid, student, teacher, args.radius, args.channels)
    return by_rfft2(grid, student, teacher, args.radius)


def least_bytes(grid: int, args: argparse.Namespace) -> int:
    """What no route can do without: both maps read once, the student's gradient written once."""
    few, many = LEVELS[grid]
    return args.batch * grid * grid * (2 * few + many) * getattr(torch, args.dtype).itemsize


def memory(route: str, grid: int, argv: list[str]) -> int | None:
    """Bytes by which one step raised the resident memory of a fresh process; None where the system notes no peak."""
    script = [sys.executable, __file__, *argv, "--peak", route, str(grid)]
    # freed blocks go back to the system at once, so that the peak is of memory in use
    steady = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(script, capture_output=True, text=True, check=True, env=steady)
    return json.loads(done.stdout)


def print_peak(route: str, grid: int, args: argparse.Namespace) -> None:
    """What the fresh process does: one small step for what is made once, then the peak over one whole step."""
    status = Path("/proc/self/status")
    step_of(route, grid, argparse.Namespace(**{**vars(args), "batch": 2}))(0)
    step = step_of(route, grid, args)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        step(0)
        print(json.dumps(torch.cuda.max_memory_allocated() - held))
        return

    def field(name: str) -> int:
        return next(1024 * int(x.split()[1]) for x in status.read_text().splitlines() if x.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = field("VmRSS:")
        step(0)
        print(json.dumps(field("VmHWM:") - before))
    except (OSError, StopIteration):
        print("null")


def main() -> None:
    """Measure, show, and write."""
    options = parser(__doc__, rounds=30, least=20)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--radius", type=int, default=1, help="frequencies kept per axis, 1..3")
    options.add_argument("--channels", type=int, help="principal channels of the teacher that are kept (default: all)")
    options.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the maps")
    options.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.peak:
        print_peak(args.peak[0], int(args.peak[1]), args)
        return
    steps = {f"{route} {grid}": step_of(route, grid, args) for grid in LEVELS for route in ROUTES}
    for step in steps.values():
        for number in range(3):
            step(number)
    seconds = time_steps(steps, args.rounds)
    del steps, step
    settings = {name: value for name, value in vars(args).items() if name not in ("out", "peak")}
    argv = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    grids, limit = {}, copy_bandwidth()
    for grid in LEVELS:
        ours, theirs = (seconds[f"{route} {grid}"] for route in ROUTES)
        ratio, peaks = geometric_mean(ours, theirs), {route: memory(route, grid, argv) for route in ROUTES}
        share = least_bytes(grid, args) / statistics.median(ours) / limit
        grids[str(grid)] = {
            "channels": dict(zip(("student", "teacher"), LEVELS[grid], strict=True)),
            "seconds": {"ours": ours, "rfft2": theirs},
            "ours_to_rfft2": asdict(ratio),
            "share_of_copy": share,
            "extra_bytes": peaks,
        }
        print(
            f"{grid:>2}x{grid:<2} ours {1e3 * statistics.median(ours):7.2f} ms, rfft2 {1e3 * statistics.median(theirs):7.2f} ms, "
            f"ratio {ratio.mean:.3f} ({ratio.low:.3f} to {ratio.high:.3f}); {share:.0%} of a copy's speed; extra bytes {peaks}"
        )
    title = "Transform, FAM and loss of a level, forward and backward, against rfft2 of the whole map"
    save(args.out, title, settings, copy_bytes_per_second=limit, grids=grids)


if __name__ == "__main__":
    main()
