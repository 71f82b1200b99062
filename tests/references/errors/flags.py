"""The command line."""

from references.errors.case import Case

CASES = (
    Case("a misspelt command", "distil", "unknown command 'distil'; did you mean 'distill'?"),
    Case(
        "a command that does not exist",
        "xyz",
        "unknown command 'xyz'; the commands are demo, models, recipes, inspect, finetune, distill, cache, compare,"
        " watch, eval, predict, report, export, push, index, doctor, completion",
    ),
    Case(
        "an option before the command",
        "--seed 3",
        "unknown option '--seed'; the commands are demo, models, recipes, inspect, finetune, distill, cache, "
        "compare, watch, eval, predict, report, export, push, index, doctor, completion",
    ),
    Case(
        "quiet and verbose together",
        "--quiet eval run --verbose",
        "--quiet and --verbose exclude each other; remove one",
    ),
    Case(
        "--dry-run of a command without it",
        "eval run --dry-run",
        "unknown option --dry-run; commands with it: demo, finetune, distill, cache, compare, export, push",
    ),
    Case(
        "an unknown shell",
        "completion tcsh",
        "shell: expected bash, zsh or fish, found 'tcsh'",
    ),
    Case(
        "a misspelt option",
        "finetune --model m --data d --epoch 3",
        "unknown option --epoch; did you mean '--epochs', '--step-epochs' or '--warmup-epochs'?",
    ),
    Case(
        "an option of another tool",
        "finetune --model m --data d --learning-rate 3",
        "unknown option --learning-rate; here it is --lr",
    ),
    Case(
        "an option of another tool, with its value here",
        "distill --teacher t --student s --data d --pretrained",
        "unknown option --pretrained; here it is --student-start pretrained",
    ),
    Case(
        "a number of GPUs",
        "finetune --model m --data d --gpus 2",
        "unknown option --gpus; several GPUs: start the command with torchrun --nproc-per-node N",
    ),
    Case(
        "the number of a GPU",
        "finetune --model m --data d --device cuda:1",
        "device: expected auto, cpu, cuda or mps, found 'cuda:1'; choose a GPU with the environment variable "
        "CUDA_VISIBLE_DEVICES=1",
    ),
    Case(
        "a number format of another tool",
        "finetune --model m --data d --precision fp16",
        "precision: expected auto, fp32 or bf16, found 'fp16'; did you mean 'bf16'?",
    ),
    Case(
        "an option without its value",
        "finetune --model m --data d --epochs --seed 3",
        "--epochs: needs a value, found none",
    ),
    Case("an extra argument", "finetune --model m --data d junk", "unexpected argument 'junk'"),
    Case(
        "a missing required option",
        "finetune --model m",
        "data: required but not given (digits, cifar100[:ROOT], a folder of images, tar shards, an .npz file, a table "
        "(.csv, .tsv, .parquet), hfds/NAME or torch/NAME)",
    ),
    Case("text in place of a number", "models --max-params small", "max_params: expected a number, found 'small'"),
    Case(
        "a setting without a value",
        "distill --teacher t --student s --data d --settings radius",
        "--settings: expected KEY=VALUE, found 'radius'",
    ),
    Case(
        "a misspelt split",
        "eval run --split tes",
        "split: expected auto, val, test or all, found 'tes'; did you mean 'test'?",
    ),
    Case(
        "several mistakes at once",
        "distill --epoch=3 --student s --data d --epochs x --weights kl",
        "4 problems:\n"
        "  - unknown option --epoch; did you mean '--epochs', '--step-epochs' or '--warmup-epochs'?\n"
        "  - --weights: expected KEY=VALUE, found 'kl'\n"
        "  - epochs: expected a whole number, found 'x'\n"
        "  - teacher: required but not given (a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME; "
        "for several use teachers, for stored outputs teacher_cache)",
    ),
    Case(
        "a pattern that matches no network",
        "models 'resnet?x'",
        "no network matches 'resnet?x'; expected a name such as timm/resnet18, where * matches any text",
    ),
    Case(
        "three recipes",
        "recipes a b c",
        "recipes: expected no name (list), one (show) or two (compare), found 3",
    ),
)
