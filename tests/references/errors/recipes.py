"""Recipes: what lies in a YAML file, and what its fields say together."""

from pathlib import Path

from references.errors.case import Case
from references.errors.shelf import write

FINETUNE, DISTILL, CACHE = "finetune -c mine.yaml", "distill -c mine.yaml", "cache -c mine.yaml"
MODEL = "model: uhkd/resnet10\ndata: digits\n"
PAIR = "teacher: teacher\nstudent: uhkd/vit_micro\ndata: digits\n"
STORED = "teacher: teacher\ndata: digits\nout: new\n"


def wrong(did: str, ask: str, text: str | bytes, says: str) -> Case:
    """A recipe mine.yaml that is not right."""
    return Case(did, ask, says, make=lambda: write("mine.yaml", text))


CASES = (
    Case(
        "a recipe that does not exist",
        "distill -c digit/vit",
        "no recipe 'digit/vit': neither a file nor a packaged recipe; did you mean 'digits/vit', 'digits/mlp'"
        " or 'digits/cnn'?",
    ),
    Case(
        "a recipe file with a misspelt name",
        "distill -c mine.yml",
        "no recipe 'mine.yml': neither a file nor a packaged recipe; did you mean mine.yaml?",
        make=lambda: write("mine.yaml", ""),
    ),
    Case(
        "a folder without a recipe",
        "distill -c mine",
        "no recipe 'mine': neither a file nor a packaged recipe; `uhkd recipes` lists them",
        make=lambda: Path("mine").mkdir(),
    ),
    wrong(
        "an unknown key", FINETUNE, MODEL + "epocs: 5\n", "epocs: unknown key; did you mean 'epochs' or 'step_epochs'?"
    ),
    wrong(
        "a repeated key",
        FINETUNE,
        MODEL + "epochs: 5\nepochs: 6\n",
        "mine.yaml, line 4, column 1: key 'epochs' given twice",
    ),
    wrong(
        "text in place of a number", FINETUNE, MODEL + "epochs: ten\n", "epochs: expected a whole number, found 'ten'"
    ),
    wrong(
        "an image size of three numbers",
        FINETUNE,
        MODEL + "image_size: [3, 96, 224]\n",
        "image_size: expected one side, or height and width, of 4 or more pixels, found [3, 96, 224]",
    ),
    wrong(
        "an image size below 4",
        FINETUNE,
        MODEL + "image_size: 3\n",
        "image_size: expected one side, or height and width, of 4 or more pixels, found 3",
    ),
    wrong(
        "another way to resize",
        FINETUNE,
        MODEL + "resize: stretch\n",
        "resize: expected crop, squash or pad, found 'stretch'",
    ),
    wrong("true in place of a number", FINETUNE, MODEL + "epochs: true\n", "epochs: expected a number, found true"),
    wrong("a number out of range", FINETUNE, MODEL + "lr: 0\n", "lr: expected a value > 0, found 0"),
    wrong("nan as a number", FINETUNE, MODEL + "lr: .nan\n", "lr: expected a finite number, found nan"),
    wrong(
        "a misspelt value",
        FINETUNE,
        MODEL + "optimizer: adam\n",
        "optimizer: expected adamw, sgd or lamb, found 'adam'; did you mean 'adamw'?",
    ),
    wrong(
        "a list in place of key: value",
        FINETUNE,
        MODEL + "options: [1, 2]\n",
        "options: expected key: value pairs, found [1, 2]",
    ),
    wrong("no value in place of text", FINETUNE, "model:\ndata: digits\n", "model: expected text, found nothing"),
    wrong(
        "an empty recipe",
        FINETUNE,
        "",
        "2 problems:\n"
        "  - data: required but not given (digits, cifar100[:ROOT], a folder of images, tar shards, an .npz file, a table "
        "(.csv, .tsv, .parquet), hfds/NAME or torch/NAME)\n"
        "  - model: required but not given (network: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder)",
    ),
    wrong(
        "a list in place of a recipe",
        FINETUNE,
        "- model\n- data\n",
        "mine.yaml, line 1: expected 'key: value' lines, found a list",
    ),
    wrong(
        "a bracket that is not closed",
        FINETUNE,
        MODEL + "options: {depth: 3\n",
        "mine.yaml, line 4, column 1: expected ',' or '}', but got '<stream end>'",
    ),
    wrong(
        "a tab as indentation",
        FINETUNE,
        MODEL + "options:\n\tdepth: 3\n",
        "mine.yaml, line 4, column 1: found character '\\t' that cannot start any token",
    ),
    wrong("a file that is not text", FINETUNE, b"\xff\xfe\x00model", "cannot read recipe mine.yaml: not UTF-8 text"),
    wrong(
        "a YAML tag that would run code",
        FINETUNE,
        MODEL + "options: !!python/object/apply:os.system [ls]\n",
        "mine.yaml, line 3, column 10: could not determine a constructor for the tag "
        "'tag:yaml.org,2002:python/object/apply:os.system'",
    ),
    wrong(
        "a date that does not exist",
        FINETUNE,
        MODEL + "options: {day: 2026-02-31}\n",
        "mine.yaml, line 3, column 16: '2026-02-31' is not a valid timestamp",
    ),
    wrong(
        "a YAML tag that does not fit its value",
        FINETUNE,
        MODEL + "flip: !!bool perhaps\n",
        "mine.yaml, line 3, column 7: 'perhaps' is not a valid bool",
    ),
    wrong(
        "lists nested too deeply",
        FINETUNE,
        MODEL + f"options: {'[' * 1000}\n",
        "cannot read recipe mine.yaml: it is nested too deeply",
    ),
    wrong(
        "a list that contains itself",
        FINETUNE,
        MODEL + "step_epochs: &all [*all]\n",
        "cannot read recipe mine.yaml: it has more than 20,000 values after expanding its aliases (*name)",
    ),
    wrong(
        "a value that is not plain data",
        FINETUNE,
        MODEL + "options: {day: 2026-02-28}\n",
        "options: expected text, finite numbers, true, false, none, and lists and 'key: value' of these, found "
        "a date (2026-02-28)",
    ),
    wrong(
        "text in place of a number of channels",
        CACHE,
        STORED + "channels: many\n",
        "channels: expected a whole number >= 1, auto or none, found 'many'",
    ),
    wrong("a number as a key", FINETUNE, MODEL + "3: 4\n", "mine.yaml: expected names as keys, found 3"),
    wrong(
        "a recipe of another command",
        FINETUNE,
        PAIR,
        "3 problems:\n"
        "  - model: required but not given (network: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder)\n"
        "  - teacher: unknown key; `uhkd COMMAND --help` lists the known ones\n"
        "  - student: unknown key; `uhkd COMMAND --help` lists the known ones",
    ),
    wrong(
        "several mistakes at once",
        FINETUNE,
        "epocs: 5\nlr: -1\ndata: digits\n",
        "3 problems:\n"
        "  - lr: expected a value > 0, found -1\n"
        "  - model: required but not given (network: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder)\n"
        "  - epocs: unknown key; did you mean 'epochs' or 'step_epochs'?",
    ),
    wrong(
        "a warm-up longer than the training",
        FINETUNE,
        MODEL + "epochs: 5\nwarmup_epochs: 5\n",
        "warmup_epochs: expected less than epochs (5), found 5",
    ),
    wrong(
        "step_epochs without schedule step",
        FINETUNE,
        MODEL + "step_epochs: [10]\n",
        "step_epochs: only schedule step uses it, found schedule cosine",
    ),
    wrong(
        "schedule step without step_epochs",
        FINETUNE,
        MODEL + "schedule: step\n",
        "step_epochs: schedule step needs at least one epoch, found none",
    ),
    wrong(
        "a min_lr above lr",
        FINETUNE,
        MODEL + "lr: 1e-3\nmin_lr: 1e-2\n",
        "min_lr: expected less than lr (0.001), found 0.01",
    ),
    wrong(
        "a batch size that is not a multiple of grad_accum_steps",
        FINETUNE,
        MODEL + "batch_size: 64\naccumulate: 5\n",
        "grad_accum_steps: expected a divisor of batch_size (64), found 5",
    ),
    wrong(
        "a typing error in randaugment",
        FINETUNE,
        MODEL + "randaugment: rand-m9-mst0.5\n",
        "randaugment: expected rand followed by sections such as -m9 (magnitude), -n2 (operations), -p0.5 "
        "(chance of each), -mstd0.5, -mmax10, -inc1, -tweights, -t3a or -t3aw, found 'rand-m9-mst0.5'",
    ),
    wrong(
        "resume without a run folder",
        FINETUNE,
        MODEL + "resume: true\n",
        "resume: needs out, the run folder to resume",
    ),
    wrong(
        "no teacher",
        DISTILL,
        "student: uhkd/vit_micro\ndata: digits\n",
        "teacher: required but not given (a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME; "
        "for several use teachers, for stored outputs teacher_cache)",
    ),
    wrong(
        "teacher_views without a cache",
        DISTILL,
        PAIR + "teacher_views: 3\n",
        "teacher_views: needs teacher_cache, which is not given",
    ),
    wrong(
        "an unknown method",
        DISTILL,
        PAIR + "method: uhkt\n",
        "unknown method 'uhkt'; did you mean 'uhkd'? (known: scratch, kd, …)",
    ),
    wrong("a repeated method", DISTILL, PAIR + "method: kd+kd\n", "method 'kd+kd' contains a name twice"),
    wrong(
        "an unknown setting",
        DISTILL,
        PAIR + "settings: {radios: 2}\n",
        "uhkd has no setting 'radios'; did you mean 'radius'? (known: channels, fam, form, frequency_decay, "
        "hidden, level_weights, norm, radius, standardise, temperature, whiten)",
    ),
    wrong(
        "a setting of the wrong type",
        DISTILL,
        PAIR + "settings: {radius: wide}\n",
        "setting radius='wide' of uhkd: input should be a valid integer, unable to parse string as an integer",
    ),
    wrong(
        "an unknown weight",
        DISTILL,
        PAIR + "weights: {feature: 3}\n",
        "uhkd has no weight 'feature'; did you mean 'features'? (known: ce, features, inter, intra, kl, "
        "redundancy, relations)",
    ),
    wrong(
        "a weight below 0",
        DISTILL,
        PAIR + "weights: {features: -3}\n",
        "weights.features: expected a value >= 0, found -3",
    ),
    wrong(
        "an unknown balance",
        DISTILL,
        PAIR + "balance: led\n",
        "balance: expected constant, linear, cosine, lead, cap or famo, found 'led'; did you mean 'lead'?",
    ),
    wrong(
        "balance_settings without a balance",
        DISTILL,
        PAIR + "balance_settings: {window: 100}\n",
        "balance_settings: need a balance, and none is given (--balance)",
    ),
    wrong(
        "an unknown setting of a balance",
        DISTILL,
        PAIR + "balance: lead\nbalance_settings: {feature_gate: 0.3}\n",
        "balance_settings.feature_gate: unknown key; did you mean 'features_gate', 'features_fall' or 'features_power'?",
    ),
    wrong(
        "a setting of a balance out of range",
        DISTILL,
        PAIR + "balance: lead\nbalance_settings: {logits_gate: 2}\n",
        "balance_settings.logits_gate: expected a value <= 1, found 2",
    ),
    wrong(
        "a balance given by its old and its new name",
        DISTILL,
        PAIR + "balance: lead\nweights_schedule: linear\n",
        "weights_schedule: is now called balance, and both are given; remove weights_schedule",
    ),
    wrong(
        "outputs that a cache does not store",
        CACHE,
        STORED + "keep: [logits, maps]\n",
        "keep: expected some of logits, embedding, spectra, each once, found logits, maps",
    ),
    wrong(
        "a channel mix of amplitudes",
        CACHE,
        STORED + "form: amplitude\nchannels: 8\n",
        "channels: a linear mix of channels needs form pairs, found form amplitude; use --channels none",
    ),
)
