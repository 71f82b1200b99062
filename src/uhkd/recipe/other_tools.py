"""Names of options and values in other tools (timm, ultralytics, Lightning, transformers), and ours for them."""

import re
from collections.abc import Iterable

# ours, with a value where one belongs to it, by command if they differ -> theirs
_NAMES = {
    "lr": "learning_rate lr0 base_lr init_lr max_lr",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size imgs_per_batch",
    "grad_accum_steps": "gradient_accumulation_steps accumulate_grad_batches",
    "epochs": "num_epochs num_train_epochs max_epochs n_epochs",
    "workers": "num_workers dataloader_num_workers j",
    "image_size": "img_size imgsz img input_size resolution crop_size",
    "weight_decay": "wd decay",
    "ema_decay 0.999": "ema model_ema model_ema_decay",
    "precision bf16": "amp fp16 bf16 half mixed_precision",
    "optimizer": "opt optim optimiser",
    "schedule": "sched scheduler lr_scheduler lr_scheduler_type cos_lr",
    "clip_grad": "max_grad_norm gradient_clip_val grad_clip clip_grad_norm",
    "erasing": "reprob random_erasing",
    "randaugment rand-m9-mstd0.5-inc1": "aa auto_augment autoaugment augment augmentation",
    "out": "output output_dir save_dir work_dir workdir project name experiment log_dir default_root_dir",
    "data": "dataset data_dir data_path dataset_dir root",
    "model|student": "arch architecture backbone net network model model_name model_name_or_path",
    "start pretrained|student_start pretrained": "pretrained student_pretrained",
    "teacher_start": "teacher_ckpt teacher_checkpoint teacher_weights",
    "start|student_start": "weights_path ckpt checkpoint ckpt_path initial_checkpoint student_ckpt",
    "options drop_rate=0.1|student_options drop_rate=0.1": "dropout drop drop_rate",
    "options drop_path_rate=0.1|student_options drop_path_rate=0.1": "drop_path drop_path_rate",
    "settings temperature=4": "temperature temp kd_temperature",
    "weights kl=1": "alpha kd_weight distillation_alpha",
    "method": "distiller distillation kd_method loss distillation_type",
    "val_fraction": "val_split validation_split",
    "device": "device_id accelerator",
    "resume": "resume_from_checkpoint continue_training",
}
_NOTES = {
    "several GPUs: start the command with torchrun --nproc-per-node N": "gpus num_gpus gpu devices device_ids ngpu world_size",
    "the number of classes is that of the data": "num_classes nc nb_classes num_labels",
}
_VALUES = {
    "device": {"gpu": "cuda"},
    "optimizer": {"adam": "adamw"},
    "precision": dict.fromkeys(("16", "fp16", "float16", "half", "16-mixed", "amp", "bfloat16", "bf16-mixed"), "bf16")
    | dict.fromkeys(("32", "float32", "full"), "fp32"),
    "schedule": {"cos": "cosine", "multistep": "step", "none": "constant"},
}


def other_name(option: str, known: Iterable[str], *, flags: bool = False) -> str:
    """Return '; here it is X' for an option's name in another tool, or an empty string.

    known: the options of the command. flags: whether to write them as on the command line.
    """
    key, known = option.lower().lstrip("-").replace("-", "_").replace(".", "_"), {*known}
    if notes := [note for note, theirs in _NOTES.items() if key in theirs.split()]:
        return f"; {notes[0]}"
    ours = [name.split() for names, theirs in _NAMES.items() if key in theirs.split() for name in names.split("|")]
    found = [(name, *value) for name, *value in ours if name in known]
    if flags:
        texts = [" ".join(("--" + name.replace("_", "-"), *value)) for name, *value in found]
    else:
        texts = [repr(name) + "".join(f" ({item})" for item in value) for name, *value in found]
    return f"; here it is {' or '.join(texts)}" if texts else ""


def other_value(option: str, value: object) -> str:
    """Return what to write for the value of an option in another tool, as the end of a message, or an empty string."""
    text = str(value).lower()
    if option == "device" and re.fullmatch(r"(cuda:|gpu:)?\d+(,\d+)*", text):
        return f"; choose a GPU with the environment variable CUDA_VISIBLE_DEVICES={text.rpartition(':')[2]}"
    ours = _VALUES.get(option, {}).get(text)
    return f"; did you mean {ours!r}?" if ours else ""
