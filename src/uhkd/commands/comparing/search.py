"""Settings tried per method: the same number, at the same points of the unit cube, for every method."""

from typing import Any

from uhkd.methods import method_class, settings_of
from uhkd.recipe import DistillRecipe

LR_RANGE = 4.0  # the learning rate is varied from 1/4 to 4 times that of the recipe
WEIGHT_RANGE = 10.0  # the loss weight is varied from 1/10 to 10 times its default
# badly approximable numbers without rational relations: all points differ
_STEPS = ((5**0.5 - 1) / 2, 2**0.5 - 1, 3**0.5 - 1)


def changes_tried(recipe: DistillRecipe, count: int) -> list[dict[str, Any]]:
    """Return `count` changes to a recipe, the first of them empty.

    Point i of one sequence in the cube (learning rate, main loss weight, main setting) is the same for all methods; each method
    maps it to its ranges, the first two logarithmically. Point 0 is the center, with the values of the recipe; the others follow
    by steps of an irrational vector, which fill each range evenly for any `count`. A method without a weight or setting, such
    as scratch, varies only the learning rate. Of methods joined by "+" the first one's weight and setting are varied.
    """
    lead = recipe.method.split("+")[0].strip()
    kind = method_class(lead)
    tried: list[dict[str, Any]] = [{}]
    for i in range(1, count):
        lr, weight, setting = ((0.5 + i * step) % 1 for step in _STEPS)
        change: dict[str, Any] = {"lr": float(f"{recipe.learning_rate * LR_RANGE ** (2 * lr - 1):.3g}")}
        if kind.main_term is not None:
            name = f"{lead}.{kind.main_term}"
            default = recipe.weights.get(kind.main_term, kind.default_weights[kind.main_term])
            default = recipe.weights.get(name, default)
            change["weights"] = {name: float(f"{default * WEIGHT_RANGE ** (2 * weight - 1):.3g}")}
        if kind.tunable is not None:
            name, values = kind.tunable
            default = recipe.settings.get(f"{lead}.{name}", recipe.settings.get(name, settings_of(lead)[name].default))
            values = (default, *(value for value in values if value != default))
            change["settings"] = {f"{lead}.{name}": values[int(setting * len(values))]}
        tried.append(change)
    return tried
