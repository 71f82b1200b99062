"""Options for one's own data: unequal classes, frozen layers, the best epoch, early stopping; and Apple's GPU."""

from references.errors.case import Case
from references.errors.shelf import write

TRAIN = "finetune --model uhkd/resnet10 --data digits --train-limit 20 --device cpu --out new"
BLIND = (
    "distill --teacher teacher --student uhkd/resnet10 --method kd --data digits --unlabelled --device cpu --out new"
)


def train(did: str, more: str, says: str) -> Case:
    """A training with one option that cannot be used."""
    return Case(did, f"{TRAIN} {more}", says)


def compare(did: str, pair: str, says: str) -> Case:
    """A comparison whose recipe has an option that comparisons refuse."""
    text = f"teacher: teacher\nstudent: uhkd/vit_micro\ndata: digits\n{pair}\n"
    return Case(
        did,
        "compare --pairs pair.yaml --methods kd --out new",
        says,
        ("teacher",),
        make=lambda: write("pair.yaml", text),
    )


CASES = (
    train(
        "class weights that are no pairs",
        "--class-weights 3",
        "class_weights: expected none, balanced or CLASS=WEIGHT pairs with weights > 0, found '3'",
    ),
    train(
        "a class weight of 0",
        "--class-weights 3=0",
        "class_weights: expected none, balanced or CLASS=WEIGHT pairs with weights > 0, found {'3': 0.0}",
    ),
    train(
        "the weight of an unknown class",
        "--class-weights cat=3",
        "class_weights: digits has no class 'cat'; its classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    ),
    train(
        "classes balanced twice",
        "--class-weights balanced --sampling balanced",
        "class_weights: sampling balanced balances the classes already; choose one of the two",
    ),
    Case(
        "class weights without labels",
        f"{BLIND} --class-weights balanced",
        "class_weights: weigh the cross-entropy, and these images have no labels; leave them out",
        ("teacher",),
    ),
    Case(
        "balanced sampling without labels",
        f"{BLIND} --sampling balanced",
        "sampling balanced draws images by class, and these have no labels; use --sampling uniform",
        ("teacher",),
    ),
    train(
        "a part to freeze that does not exist",
        "--freeze layr1",
        "freeze: ResNet, which consists of conv1, bn1, act1, maxpool, layer1, layer2, layer3, layer4, global_pool, fc, has "
        "no part 'layr1'; did you mean 'layer1', 'layer1.0' or 'layer4'?",
    ),
    train(
        "everything frozen",
        "--freeze *",
        "freeze: * would freeze every parameter; leave some to train, such as the head",
    ),
    train(
        "an epoch to keep that does not exist",
        "--keep bets",
        "keep: expected last or best, found 'bets'; did you mean 'best'?",
    ),
    train("a patience of 0", "--patience 0", "patience: expected a value >= 1, found '0'"),
    compare(
        "a comparison of best epochs",
        "keep: best",
        "pair by kd: keep=best: a comparison measures every training after its last epoch; set overrides "
        "keep=last patience=none",
    ),
    compare(
        "a comparison with early stopping",
        "patience: 3",
        "pair by kd: patience=3: a comparison measures every training after its last epoch; set overrides "
        "keep=last patience=none",
    ),
    train(
        "Apple's GPU on another machine",
        "--device mps",
        "device=mps: torch finds no Apple GPU; expected macOS on Apple silicon and a build of torch with MPS; use device=auto",
    ),
)
