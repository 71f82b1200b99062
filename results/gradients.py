"""How strongly each term of the loss pulls at the student over a training: results/search/gradients/NAME.json.

python results/gradients.py NAME --recipe cifar100/32px/vit-micro --teacher RUN --data DATA [--times 11]

The training is the recipe's, taken step by step: at some steps, the norm of weight * gradient of every term over all of the
student's parameters, averaged over ten batches in a row, and its cosine with the gradient of the cross-entropy.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from uhkd.commands.comparing.step_benchmark import BenchmarkStep, StepFactory
from uhkd.console import log_info
from uhkd.data import Batch
from uhkd.recipe import find_recipe, load_yaml
from uhkd.runs import environment, write_atomically
from uhkd.training.schedule import lr_factor

HERE = Path(__file__).resolve().parent
BATCHES = 10


def pulls(step: BenchmarkStep, batch: Batch) -> dict[str, Tensor]:
    """Weighted gradient of each term, flat, over the student's parameters, for one batch."""
    learner, teacher = step.setup.learner, step.setup.teacher
    assert teacher is not None
    weights = [p for p in learner.student.parameters() if p.requires_grad]
    with step.setup.fabric.autocast():  # not the wrapped model: that gives gradients to the trainer alone
        terms = learner(batch, teacher.outputs(batch, learner.teacher_needs))
    found = {}
    for name, value in terms.items():
        if step.weights[name]:
            own = torch.autograd.grad(step.weights[name] * value, weights, retain_graph=True, materialize_grads=True)
            found[name] = torch.cat([g.flatten().float() for g in own])
    return found


def measure(step: BenchmarkStep, times: int) -> list[dict[str, object]]:
    """Train, and look at `times` evenly spaced steps, the first and the last among them."""
    recipe, total = step.setup.recipe, len(step.batches)
    per_epoch = total // recipe.epochs
    looks = {round(i * (total - BATCHES) / (times - 1)) for i in range(times)}
    rows: list[dict[str, object]] = []
    for number in range(total):
        if number in looks:
            seen = [pulls(step, batch) for batch in step.batches[number : number + BATCHES]]
            norms = {name: sum(own[name].norm().item() for own in seen) / len(seen) for name in seen[0]}
            aligned = {
                name: sum(torch.cosine_similarity(own[name], own["ce"], dim=0).item() for own in seen) / len(seen)
                for name in seen[0]
            }
            rows.append({"epoch": round(number / per_epoch, 3), "norm": norms, "cosine_with_ce": aligned})
            log_info(json.dumps(rows[-1]))
        factor = lr_factor(number, total, warmup=round(recipe.warmup_epochs * per_epoch))
        for group in step.take.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        step(number)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the file to write, without .json")
    for name in ("recipe", "teacher", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--times", type=int, default=11)
    arguments = parser.parse_args()
    where = {name: value for name, value in environment().items() if name != "command"}
    options = load_yaml(find_recipe(arguments.recipe)) | {"teacher": arguments.teacher, "data": arguments.data}
    step = StepFactory({}, batches=10**9).step(options)  # all batches of the training
    result = {
        "recipe": arguments.recipe,
        "teacher": Path(arguments.teacher).name,
        "method": step.setup.recipe.method,
        "seed": step.setup.recipe.seed,
    }
    result |= {"weights": step.weights, "rows": measure(step, arguments.times), "environment": where}
    (HERE / "search" / "gradients").mkdir(exist_ok=True)
    write_atomically(HERE / "search" / "gradients" / f"{arguments.name}.json", json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
