"""Processor, GPU, memory, threads, clock and the encoding of text."""

import locale
import os
import re
import shutil
import statistics
import sys
import time
from pathlib import Path

import uhkd
from uhkd.commands.diagnosing.finding import Finding

_GIB = 2**30
_PROXIES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy")


def device() -> Finding:
    """The GPUs that torch can use; or why it cannot use one that is there."""
    import torch

    if not torch.cuda.is_available():
        return without_gpu(torch.version.cuda, _gpu_is_there(), _why_not())
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    said = ", ".join(f"{gpu.name} ({gpu.total_memory / _GIB:.0f} GiB)" for gpu in names)
    try:
        torch.ones(8, 8, device="cuda").matmul(torch.ones(8, 8, device="cuda")).sum().item()
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        built = ", ".join(torch.cuda.get_arch_list())
        advice = f"this torch is built for {built}: install a build for this GPU, or use --device cpu"
        return Finding("device", f"{said}, but it cannot compute: {why}", "fault", advice)
    return Finding("device", said)


def without_gpu(built: str | None, there: bool, why: str) -> Finding:
    """What it means that torch sees no GPU.

    built: CUDA version that torch was built for. there: whether the machine seems to have one. why: what CUDA says.
    """
    cpu = f"CPU; no GPU seen by torch ({f'built for CUDA {built}' if built else 'built without CUDA'})"
    if not there:
        return Finding("device", cpu)
    if built is None:
        advice = "this machine has an NVIDIA GPU: install a torch that is built for CUDA"
        return Finding("device", cpu, "warning", advice)
    if "driver" in why and ("old" in why or "insufficient" in why):
        advice = f"update the NVIDIA driver, or install a torch built for an older CUDA than {built}"
    else:
        advice = "CUDA_VISIBLE_DEVICES may hide it, a container may lack it (docker run --gpus all), or the driver is not loaded"
    return Finding("device", f"{cpu}, though there is one: {why or 'CUDA gives no reason'}", "fault", advice)


def _gpu_is_there() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").is_file()


def _why_not() -> str:
    import torch

    try:
        torch.cuda.init()
    except Exception as error:  # RuntimeError, AssertionError: by the build
        return str(error).splitlines()[0] if str(error) else ""
    return ""


def cores() -> Finding:
    """Processor cores that this process may use."""
    from uhkd.data import usable_cores

    return Finding("cores", f"{usable_cores()} usable of {os.cpu_count()}")


def threads() -> Finding:
    """Threads of torch beside cores: more of them hinder each other."""
    import torch

    from uhkd.data import usable_cores

    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    settings = {name: os.environ[name] for name in names if name in os.environ}
    return judge_threads(torch.get_num_threads(), usable_cores(), settings)


def judge_threads(used: int, usable: int, settings: dict[str, str]) -> Finding:
    """Whether `used` threads of torch suit `usable` cores; settings: what the environment says of threads."""
    said = f"torch uses {used}; " + (", ".join(f"{k}={v}" for k, v in settings.items()) or "OMP_NUM_THREADS is not set")
    if used > usable:
        advice = f"more threads than cores slow everything down: export OMP_NUM_THREADS={usable} (and MKL_NUM_THREADS)"
        return Finding("threads", said, "warning", advice)
    if used == 1 and usable > 1 and settings:
        return Finding("threads", f"{said}: one core of {usable} computes, as the environment asks for")
    return Finding("threads", said)


def memory() -> Finding:
    """Main memory, and how much of it is free."""
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(re.findall(r"(\w+):\s+(\d+) kB", info.read_text(encoding="utf-8")))
        return judge_memory(1024 * int(lines["MemTotal"]), 1024 * int(lines["MemAvailable"]))
    if hasattr(os, "sysconf"):  # macOS
        return judge_memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None)
    return Finding("memory", "this system does not say by means that Python has")


def judge_memory(total: int, free: int | None) -> Finding:
    """Bytes of main memory, all and free (None: not known)."""
    said = f"{total / _GIB:.1f} GiB" + ("" if free is None else f", {free / _GIB:.1f} GiB free")
    if free is not None and free < 2 * _GIB:
        return Finding(
            "memory",
            said,
            "warning",
            "little is free: a small batch (--batch-size), --workers 0, or end other programs",
        )
    return Finding("memory", said)


def bf16() -> Finding:
    """Measured on one matrix product: a format that computes right may still be emulated and slow."""
    import torch

    place = "cuda" if torch.cuda.is_available() else "cpu"
    edge = 4096 if place == "cuda" else 512
    full = _product_seconds(torch.ones(edge, edge, device=place))
    half = _product_seconds(torch.ones(edge, edge, device=place, dtype=torch.bfloat16))
    verdict = "fast" if half < 0.8 * full else "no gain"
    return Finding("bf16", f"works on {place}, {verdict}: a product takes {half / full:.2f} times as long as in fp32")


def _product_seconds(matrix) -> float:  # untyped, because torch is imported only where it is needed
    import torch

    times = []
    for _ in range(7):
        began = time.perf_counter()
        matrix.matmul(matrix)
        if matrix.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def files() -> Finding:
    """How many files a process may have open: each loader process takes some."""
    try:
        import resource
    except ImportError:
        return Finding("open files", "no limit that Python could read on this system")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    said = "no limit" if most == resource.RLIM_INFINITY else f"up to {most:,}"
    if most != resource.RLIM_INFINITY and most < 1024:
        return Finding("open files", said, "warning", "loader processes may run out of them: ulimit -n 4096")
    return Finding("open files", said)


def encoding() -> Finding:
    """Whether names of files and classes in any language can be written and shown."""
    used = {
        "terminal": getattr(sys.stdout, "encoding", None) or "unknown",
        "files": locale.getpreferredencoding(False),
        "names": sys.getfilesystemencoding(),
    }
    return judge_encoding(used)


def judge_encoding(used: dict[str, str]) -> Finding:
    """Encodings by what they are used for."""
    said = ", ".join(f"{name} {word}" for name, word in used.items())
    other = [name for name, word in used.items() if word.lower().replace("_", "-") not in ("utf-8", "utf8")]
    if other:
        advice = "names beyond it are shown as escapes: export PYTHONUTF8=1, and a UTF-8 locale such as LANG=C.UTF-8"
        return Finding("encoding", said, "warning", advice)
    return Finding("encoding", said)


def clock() -> Finding:
    """Whether the clock can be right: certificates, and what is newer than what, rest on it."""
    newest = max(file.stat().st_mtime for file in Path(uhkd.__file__).parent.glob("*.py"))
    return judge_clock(time.time(), newest)


def judge_clock(now: float, installed: float) -> Finding:
    """Seconds since 1970, by the clock and by the files of uhkd."""
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed - 86400:
        advice = (
            "it is behind the files of uhkd: set it, or downloads fail by their certificates and old indexes look new"
        )
        return Finding("clock", said, "warning", advice)
    return Finding("clock", said)


def network() -> Finding:
    """Proxies and switches that weights and shards from elsewhere would meet; nothing is fetched to try."""
    found = [f"{name}={_without_secret(value)}" for name in _PROXIES if (value := _either(name))]
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        advice = "pretrained weights that are not there already cannot be fetched; unset HF_HUB_OFFLINE for that"
        return Finding("network", ", ".join([*found, "HF_HUB_OFFLINE is set"]), "warning", advice)
    return Finding("network", ", ".join(found) or "no proxy is set")


def _either(name: str) -> str | None:
    return os.environ.get(name) or os.environ.get(name.upper())


def _without_secret(address: str) -> str:
    """An address without the password in it."""
    return re.sub(r"//[^/@]*@", "//…@", address)


MACHINE = {
    "device": device,
    "bf16": bf16,
    "cores": cores,
    "threads": threads,
    "memory": memory,
    "open files": files,
    "encoding": encoding,
    "clock": clock,
    "network": network,
}
