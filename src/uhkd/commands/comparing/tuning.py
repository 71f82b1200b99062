"""The settings a method may try: as many, and the same points of the same cube, for every method."""

from typing import Any

from uhkd.methods import method_class, settings_of
from uhkd.recipe import DistillRecipe

LR_RANGE = 4.0  # a learning rate is tried from a quarter of the recipe's to four times it
WEIGHT_RANGE = 10.0  # a loss weight from a tenth of the method's own to ten times it
_STEPS = (
    (5**0.5 - 1) / 2,
    2**0.5 - 1,
    3**0.5 - 1,
)  # irrational to each other and badly approximable: no two tries alike


def changes_tried(recipe: DistillRecipe, count: int) -> list[dict[str, Any]]:
    """`count` changes to a recipe, the first of them none: learning rate, main loss weight, the method's main setting.

    Point i of one sequence over the cube (learning rate, weight, setting) is the same for all methods, and each maps it onto
    its own ranges (the first two logarithmic). Point 0 is the centre, where learning rate and weight are the method's own;
    the others follow by steps of an irrational vector, which fill each range evenly for any `count`. A method without a weight
    or setting of its own, such as scratch, spends all its tries on the learning rate. In a list joined by "+" the first
    method's weight and setting are varied.
    """
    lead = recipe.method.split("+")[0].strip()
    kind = method_class(lead)
    tried: list[dict[str, Any]] = [{}]
    for i in range(1, count):
        lr, weight, setting = ((0.5 + i * step) % 1 for step in _STEPS)
        change: dict[str, Any] = {"lr": float(f"{recipe.learning_rate * LR_RANGE ** (2 * lr - 1):.3g}")}
        if kind.main_term is not None:
            name = f"{lead}.{kind.main_term}"
            own = recipe.weights.get(kind.main_term, kind.default_weights[kind.main_term])
            own = recipe.weights.get(name, own)
            change["weights"] = {name: float(f"{own * WEIGHT_RANGE ** (2 * weight - 1):.3g}")}
        if kind.tunable is not None:
            name, values = kind.tunable
            own = recipe.settings.get(f"{lead}.{name}", recipe.settings.get(name, settings_of(lead)[name].default))
            values = (own, *(value for value in values if value != own))
            change["settings"] = {f"{lead}.{name}": values[int(setting * len(values))]}
        tried.append(change)
    return tried
