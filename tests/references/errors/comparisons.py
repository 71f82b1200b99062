"""Comparisons."""

from references.errors.case import Case
from references.errors.shelf import write

PAIR = "teacher: teacher\nstudent: uhkd/vit_micro\ndata: digits\n"
COMPARE = "compare --pairs pair.yaml --out new"


def compare(did: str, more: str, says: str, has: tuple[str, ...] = ("teacher",), pair: str = PAIR) -> Case:
    """A comparison of one pair."""
    return Case(did, f"{COMPARE} {more}", says, has, make=lambda: write("pair.yaml", pair))


CASES = (
    Case(
        "no pairs",
        "compare --out new",
        "pairs: required but not given (distill recipes: packaged names, files or run folders)",
    ),
    Case(
        "a pair that does not exist",
        "compare --pairs pairs/mine --out new",
        "no recipe 'pairs/mine': neither a file nor a packaged recipe; `uhkd recipes` lists them",
    ),
    compare(
        "a pair that is a recipe of finetune",
        "",
        "pairs: pair is not a recipe of distill (it has no student)",
        pair="model: uhkd/vit_micro\n",
    ),
    compare("a repeated pair", "--pairs pair.yaml pair.yaml", "pairs: expected each once, found pair.yaml, pair.yaml"),
    compare(
        "an unknown method",
        "--methods kd uhkt",
        "pair by uhkt: unknown method 'uhkt'; did you mean 'uhkd'? (known: scratch, kd, …)",
    ),
    compare("a repeated method", "--methods kd kd", "methods: expected each once, found kd, kd"),
    compare(
        "more teachers than pairs",
        "--teachers teacher teacher",
        "teachers: expected one, or one for each of 1 pairs, found 2",
    ),
    compare(
        "a pair without a teacher",
        "",
        "pair: its recipe names no teacher; choose one with --teachers",
        pair="student: uhkd/vit_micro\ndata: digits\n",
    ),
    compare(
        "a teacher that does not exist",
        "--teachers runs/teacher",
        "pair: teacher: neither a folder nor a model is called 'runs/teacher': no folder or model has a similar name "
        "(`uhkd models` lists models; of the hub: transformers/OWNER/NAME); choose one with --teachers: a run folder, a network, "
        "or a "
        "recipe of finetune, which is trained first",
    ),
    compare(
        "a teacher whose training was stopped",
        "--teachers stopped",
        "teachers: the run stopped is not finished; resume it, or choose another teacher",
        has=("stopped",),
    ),
    compare(
        "an override of a field that the comparison sets",
        "--overrides seed=3",
        "overrides: seed cannot be overridden; the comparison sets it",
    ),
    compare(
        "an override of an unknown field",
        "--overrides epocs=3",
        "3 problems:\n"
        "  - pair by scratch: epocs: unknown key; did you mean 'epochs' or 'step_epochs'?\n"
        "  - pair by kd: epocs: unknown key; did you mean 'epochs' or 'step_epochs'?\n"
        "  - pair by uhkd: epocs: unknown key; did you mean 'epochs' or 'step_epochs'?",
    ),
    compare(
        "a variant without a method",
        "--variants 'r2={settings: {radius: 2}}'",
        "variants: r2 needs 'method: NAME', found ['settings']",
    ),
    compare(
        "a variant with the name of a method",
        "--variants 'kd={method: dkd}'",
        "variants: kd is a method; choose another name",
    ),
    compare(
        "a test split that does not exist",
        "--data images --split test --methods scratch",
        "data images has no test split; leave out --split test to compare on the held-out split",
        has=("teacher", "images"),
    ),
    compare(
        "a pair without data",
        "",
        "3 problems:\n"
        "  - pair by scratch: data: required but not given (digits, cifar100[:ROOT], a folder of images, tar shards, "
        "an .npz file, a table (.csv, .tsv, .parquet), hfds/NAME or torch/NAME)\n"
        "  - pair by kd: data: required but not given (digits, cifar100[:ROOT], a folder of images, tar shards, "
        "an .npz file, a table (.csv, .tsv, .parquet), hfds/NAME or torch/NAME)\n"
        "  - pair by uhkd: data: required but not given (digits, cifar100[:ROOT], a folder of images, tar shards, "
        "an .npz file, a table (.csv, .tsv, .parquet), hfds/NAME or torch/NAME)",
        pair="teacher: teacher\nstudent: uhkd/vit_micro\n",
    ),
    Case(
        "a file as the comparison's folder",
        "compare --pairs digits/vit --out notes",
        "…/notes is a file: expected a folder; choose another --out",
        make=lambda: write("notes", "hello"),
    ),
)
