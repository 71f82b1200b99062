"""Several processes train as one would: the gradients of every method, whole runs, and what happens when one of them dies."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import uhkd
from references import processes
from references.nodes import ENVIRON, PROGRAM, TORCHRUN, children, distil, distil_by_nodes, rank_of
from references.runs import TIMES, assert_equal_runs
from uhkd.methods import method_names
from uhkd.runs import RunFolder
from uhkd.runs.checksums import SUMS
from uhkd.training import fit

TINY: dict[str, Any] = {
    "data": "digits",
    "train_limit": 100,
    "image_size": 16,
    "batch_size": 20,
    "epochs": 3,
    "device": "cpu",
    "precision": "fp32",
    "workers": 0,
    "optimizer": "sgd",
    "lr": 0.02,
}
# what a run keeps, and two parts a step; layer norms, so that no statistics of a part of the batch come in
STUDENT: dict[str, Any] = {
    "student": "uhkd/vit_micro",
    "student_options": {"embed_dim": 24, "depth": 3, "num_heads": 2},
    "method": "uhkd",
    "mixup": 0.4,
    "ema_decay": 0.8,
    "grad_accum_steps": 2,
    "allow_weak_teacher": True,
    "checkpoint_minutes": 1e-9,
}
STEPS = [5, 10, 15]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Gradients of every method by two processes, each with half of the batch."""
    out = tmp_path_factory.mktemp("processes") / "gradients.safetensors"
    command = [*TORCHRUN, "--nproc-per-node", "2", "--rdzv-endpoint", "localhost:0", str(processes.__file__), str(out)]
    done = subprocess.run([*command, *method_names()], env=ENVIRON, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(out)


@pytest.mark.parametrize("method", method_names())
def test_two_processes_have_the_gradient_of_one(by_two: dict[str, torch.Tensor], method: str):
    """Up to rounding, also of what relates the images of a batch, of the methods' own batch statistics and of CRD's banks."""
    one = processes.gradients(method, 0, 1)
    two = {name: value for name, value in by_two.items() if name.startswith(f"{method}/")}
    assert one.keys() == two.keys() and any("student" in name for name in one)
    for name, value in one.items():
        close = 1e-4 * value.float().abs().max().item() + 1e-7
        torch.testing.assert_close(
            two[name], value, rtol=1e-3, atol=close, msg=lambda said, name=name: f"{name}: {said}"
        )


@pytest.mark.parametrize("method", processes.ACCUMULATED)
def test_a_step_in_parts_sends_its_gradients_once(by_two: dict[str, torch.Tensor], method: str):
    """As often as a step in one piece; they are those of a step that sends them after every part."""
    found = {
        how: {k.removeprefix(start): v for k, v in by_two.items() if k.startswith(start)}
        for how in ("once", "always", "whole")
        for start in [f"accumulated/{method}/{how}/"]
    }
    sent = {how: int(grads.pop("sent")) for how, grads in found.items()}
    assert sent["once"] == sent["whole"] >= 1 and sent["always"] >= 2 * sent["once"]
    assert found["once"].keys() == found["always"].keys() and any("student" in name for name in found["once"])
    for name, value in found["always"].items():
        close = 1e-5 * value.abs().max().item() + 1e-8
        torch.testing.assert_close(found["once"][name], value, rtol=1e-4, atol=close)
        assert value.isfinite().all()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, the recipe of a student, the student by one process, and the program."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda folder: [])
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        words = TINY | {"model": "uhkd/resnet10", "options": {"channels": [8, 12, 16, 24]}, "epochs": 2, "crop": "none"}
        uhkd.finetune(**words, out=place / "teacher")
        words = TINY | STUDENT | {"teacher": str(place / "teacher")}
        uhkd.distill(**words, out=place / "one")
    (place / "recipe.yaml").write_text(yaml.safe_dump(words))
    (place / "program.py").write_text(PROGRAM)
    return place


@pytest.fixture(scope="module")
def two(place: Path) -> RunFolder:
    process = distil(place, "two")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    assert said.count("training 0.02 M parameters") == 1 == said.count("epoch 3/3"), said  # the first speaks for all
    return RunFolder(place / "two")


def test_a_run_of_two_processes_is_that_of_one(place: Path, two: RunFolder):
    one = RunFolder(place / "one")
    assert {p.name for p in one.path.iterdir()} == {p.name for p in two.path.iterdir()}
    ours, theirs = load_file(two.weights), load_file(one.weights)
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
        )
    rows = one.read_metrics(), two.read_metrics()
    assert [row["step"] for row in rows[1]] == STEPS
    for a, b in zip(*rows, strict=True):
        assert {k: b[k] for k in a if k not in TIMES} == pytest.approx({k: a[k] for k in a if k not in TIMES}, rel=1e-2)
    first = json.loads((two.path / "environment.json").read_text())
    assert first["versions"] == json.loads((one.path / "environment.json").read_text())["versions"]


def test_processes_end_together_and_keep_one_best_epoch(place: Path):
    process = distil(place, "kept", "--keep", "best", "--patience", "1", "--lr", "1e-12", "--sampling", "balanced")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    assert said.count("stopped after epoch 2 of 3: patience 1, no improvement of val accuracy since epoch 1") == 1, said
    result = RunFolder(place / "kept").read_result()
    assert (result["metrics"]["epoch"], result["best_epoch"]["of"], result["stopped_early"]["epoch"]) == (1, 2, 2)
    used, last = (load_file(place / "kept" / name) for name in ("model.safetensors", "last.safetensors"))
    assert used.keys() == last.keys() and any(not torch.equal(used[name], last[name]) for name in used)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes by /proc")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_one_that_is_killed_ends_the_others_and_the_run_goes_on_to_the_bit(place: Path, two: RunFolder, rank: int):
    name = f"killed-{rank}"
    process = distil(place, name)
    checkpoints = place / name / "checkpoints"
    while not any(checkpoints.glob("step-[3-9]")) and process.poll() is None:
        time.sleep(0.02)
    both = children(process.pid)
    assert len(both) == 2
    os.kill({rank_of(pid): pid for pid in both}[rank], signal.SIGKILL)
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 60
    assert not [pid for pid in both if Path(f"/proc/{pid}").exists()]
    assert not RunFolder(place / name).result.exists(), said
    again = distil(place, name, "--resume")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0 and "resuming at step" in said, said[-4000:]
    assert_equal_runs(two, RunFolder(place / name), STEPS)


@pytest.fixture(scope="module")
def behind(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair whose teacher names each class by the name of the next: its student leads from the first step."""
    other = tmp_path_factory.mktemp("behind")
    shutil.copytree(place / "teacher", other / "teacher")
    weights = load_file(other / "teacher" / "model.safetensors")
    weights |= {name: tensor.roll(1, 0) for name, tensor in weights.items() if name.startswith("fc.")}
    save_file(weights, other / "teacher" / "model.safetensors")
    (other / "teacher" / SUMS).unlink()  # the change is meant
    words = TINY | STUDENT | {"teacher": str(other / "teacher"), "balance": "lead"}
    words["balance_settings"] = {"bound": "held-out"}  # the default counts an error of the accuracies of 143 images
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fit, "draw", lambda folder: [])
        patched.setattr(RunFolder, "drop_checkpoints", lambda self: None)
        uhkd.distill(**words, out=other / "one")
    (other / "recipe.yaml").write_text(yaml.safe_dump(words))
    (other / "program.py").write_text(PROGRAM)
    return other


def test_two_processes_switch_off_a_teacher_that_no_longer_leads(behind: Path):
    """Its terms, its forward pass and the gradients of the method's own layers, which DDP waits for no more."""
    process = distil(behind, "two")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said[-4000:]
    assert said.count("are switched off, and the teacher too") == 1, said
    rows = RunFolder(behind / "one").read_metrics(), RunFolder(behind / "two").read_metrics()
    assert ["uhkd.features" in row for row in rows[0]] == [True, True, False]
    for a, b in zip(*rows, strict=True):
        assert {k: b[k] for k in a if k not in TIMES} == pytest.approx({k: a[k] for k in a if k not in TIMES}, rel=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes by /proc")
def test_two_processes_that_are_killed_after_the_switch_go_on_to_the_bit(behind: Path):
    process = distil(behind, "whole")
    assert process.communicate(timeout=300) and process.returncode == 0
    process = distil(behind, "killed")
    while not any((behind / "killed" / "checkpoints").glob("step-1[1-4]")) and process.poll() is None:
        time.sleep(0.02)
    for one in children(process.pid):
        os.kill(one, signal.SIGKILL)
    process.communicate(timeout=60)
    again = distil(behind, "killed", "--resume")
    _, said = again.communicate(timeout=300)
    assert again.returncode == 0, said[-4000:]
    assert_equal_runs(RunFolder(behind / "whole"), RunFolder(behind / "killed"), STEPS)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes by /proc")
def test_a_run_of_two_processes_that_are_killed_at_any_moment_ends_as_one_that_was_not(place: Path, two: RunFolder):
    """Either of them, or torchrun itself, at a random moment: while it starts, trains, writes, or shuts down."""
    chance, killed, name = random.Random(5), [], "tortured"
    folder = RunFolder(place / name)
    while True:
        process = distil(place, name, *(["--resume"] if folder.started() else []))
        armed, known = len(killed) < 8, []
        if armed:
            begun, whom = folder.started() and any(folder.checkpoints.glob("step-*")), chance.choice([0, 1, 0, 1, None])
            before = {p.name for p in folder.checkpoints.glob("step-*")}
            while process.poll() is None and len(known := children(process.pid)) < 2:
                time.sleep(0.02)
            # half of them while it works, the rest at any time from its start on
            while chance.random() < 0.98 and begun and process.poll() is None:
                time.sleep(0.05)
                if before != {p.name for p in folder.checkpoints.glob("step-*")}:
                    break
            time.sleep(chance.uniform(0, 0.3) if begun else chance.uniform(0, 12))
            victim = process.pid if whom is None else next((pid for pid in known if rank_of(pid) == whom), None)
            if victim is not None and process.poll() is None:
                os.kill(victim, signal.SIGKILL)
                killed.append(whom)
        _, said = process.communicate(timeout=120)
        until = time.monotonic() + 60
        while (left := [pid for pid in known if rank_of(pid) is not None]) and time.monotonic() < until:
            time.sleep(0.1)
        assert not left, "without the others, and without torchrun, none of them works on"
        if process.returncode == 0:
            assert_equal_runs(two, folder, STEPS)
            assert not list(folder.path.rglob("*.tmp")) and not (folder.path / ".owner").exists()
            if not armed:
                break
            shutil.rmtree(folder.path)
        else:
            assert armed, said[-4000:]
    assert len(killed) == 8 and {0, 1} <= set(killed)


@pytest.fixture(scope="module")
def nodes(place: Path) -> RunFolder:
    started = distil_by_nodes(place, "nodes")
    said = [node.communicate(timeout=300)[1] for node in started]
    assert [node.returncode for node in started] == [0, 0], said[0][-3000:] + said[1][-3000:]
    # ranks are given by who meets first: one of them speaks for both
    assert sorted(text.count("training 0.02 M parameters") for text in said) == [0, 1], said
    assert sorted(text.count("epoch 3/3") for text in said) == [0, 1]
    return RunFolder(place / "nodes")


@pytest.mark.slow
def test_a_run_of_two_nodes_is_that_of_two_processes(two: RunFolder, nodes: RunFolder):
    """To the bit: each process has the part of the batch that its rank has, wherever it runs."""
    assert_equal_runs(two, nodes, STEPS)
    assert {p.name for p in two.path.iterdir()} == {p.name for p in nodes.path.iterdir()}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="finds the processes by /proc")
@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_node_that_is_lost_ends_the_other_and_the_run_goes_on_to_the_bit(place: Path, nodes: RunFolder, lost: int):
    """torchrun and its process at once, as when a machine goes dark."""
    name = f"lost-{lost}"
    started = distil_by_nodes(place, name)
    while not any((place / name / "checkpoints").glob("step-[3-9]")) and started[0].poll() is None:
        time.sleep(0.02)
    gone, kept = started[lost], started[1 - lost]
    workers = [children(node.pid) for node in started]
    assert [len(w) for w in workers] == [1, 1]
    for pid in (gone.pid, *workers[lost]):
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    _, said = kept.communicate(timeout=90)
    gone.communicate()
    assert kept.returncode != 0 and time.monotonic() - began < 60
    assert not [pid for pid in workers[1 - lost] if Path(f"/proc/{pid}").exists()]
    assert not RunFolder(place / name).result.exists(), said
    again = distil_by_nodes(place, name, "--resume")
    said = [node.communicate(timeout=300)[1] for node in again]
    assert [node.returncode for node in again] == [0, 0] and "resuming at step" in "".join(said), said
    assert_equal_runs(nodes, RunFolder(place / name), STEPS)
