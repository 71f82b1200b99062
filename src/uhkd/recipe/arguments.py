"""What the small verbs may be asked: options of demo, models, recipes, index, inspect, eval, predict, export, push, doctor."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from uhkd.recipe import Levels, StrictModel

Form = Literal["safetensors", "timm", "pt2", "onnx", "int8", "onnx-int8"]
"""A form that a trained network can be written in."""


class DemoArguments(StrictModel):
    """Handwritten digits: a CNN teacher, then ViT and MLP students from scratch, by KD, by a spatial twin, by UHKD."""

    out: str = Field(default="runs/demo", description="folder for the runs, the table and the pictures")
    seeds: int = Field(default=3, ge=1, description="repetitions with other seeds, for mean and spread")
    quick: bool = Field(default=False, description="one short round to see it work; the numbers mean nothing")


class ModelsArguments(StrictModel):
    """List networks by name, with their parameters: which student fits?"""

    positional: ClassVar[tuple[str, ...]] = ("pattern",)

    pattern: str = Field(default="*", description="names to list, with * and ?, as in 'timm/*swin*' or 'uhkd/*'")
    max_params: float | None = Field(
        default=None, gt=0, description="only networks up to this size, in millions of parameters"
    )
    limit: int = Field(default=50, ge=1, description="longest list")
    measured: bool = Field(default=False, description="also time one image on this machine, in milliseconds")


class RecipesArguments(StrictModel):
    """List the packaged recipes; show one as it stands; or compare two, key by key, defaults filled in."""

    positional: ClassVar[tuple[str, ...]] = ("names",)

    names: tuple[str, ...] = Field(
        default=(),
        description="none: list all; one: show it; two: the keys in which they differ. Packaged names, files or run folders",
    )
    schema_: Literal["finetune", "distill", "cache", "compare"] | None = Field(
        default=None, description="print the JSON Schema of a verb's recipes, for editors (docs/scripting.md)"
    )


class IndexArguments(StrictModel):
    """Note where each sample of a folder of tar shards lies, in one file beside them: opened faster, also from afar."""

    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = Field(description="folder of .tar shards, train-*.tar, val-*.tar or train/*.tar, val/*.tar")


class InspectArguments(StrictModel):
    """Try a pair of networks without training: taps, map sizes, spectra, memory and one step."""

    teacher: str = Field(
        description="teacher: a run folder, timm/NAME, torchvision/NAME, transformers/NAME or uhkd/NAME"
    )
    student: str = Field(
        description="student: timm/NAME, torchvision/NAME, transformers/NAME, uhkd/NAME or a run folder"
    )
    data: str | None = Field(default=None, description="data for the dry step; none: random images")
    method: str = Field(default="uhkd", min_length=1, description="distillation method of the dry step")
    settings: dict[str, Any] = Field(default={}, description="the method's own settings, as in radius=2")
    weights: dict[str, float] = Field(default={}, description="weights of the loss terms by name, as in features=10")
    teacher_levels: Levels = Field(default=None, description="names of the teacher's layers to match; none: chosen")
    teacher_options: dict[str, Any] = Field(default={}, description="keyword arguments of the teacher's constructor")
    student_levels: Levels = Field(default=None, description="names of the student's layers to match; none: chosen")
    student_options: dict[str, Any] = Field(default={}, description="keyword arguments of the student's constructor")
    image_size: int | None = Field(default=None, ge=4, description="student's input size in pixels; none: its own")
    num_classes: int = Field(default=10, ge=2, description="classes of the student's head where no data is given")


class EvalArguments(StrictModel):
    """Accuracy of a trained run on its own or other data, of its head or of a probe on its frozen embeddings."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str = Field(description="run folder written by finetune or distill")
    data: str | None = Field(default=None, description="data to measure on; none: the run's own")
    split: Literal["auto", "val", "test"] = Field(
        default="auto", description="part of the data; auto: test if there, else val"
    )
    probe: Literal["none", "knn", "linear"] = Field(
        default="none",
        description="none: the network's own head; else k nearest neighbours (20, by cosine) or logistic regression, fitted on "
        "the embeddings of the data's labelled training part",
    )
    batch_size: int = Field(default=256, ge=1, description="images at a time")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to compute")


class WatchArguments(StrictModel):
    """Where trainings stand, live, from another terminal: progress, loss terms, accuracy, health; Ctrl-C ends it, not them."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str = Field(description="run folder, or a folder of runs, such as a comparison")
    once: bool = Field(default=False, description="show it once and end")
    every: float = Field(default=1.0, ge=0.1, description="seconds between two looks at the folder")


class ExportCheckOptions(StrictModel):
    """On which images a form is checked, and 8-bit ones calibrated and judged."""

    data: str | None = Field(default=None, description="data whose images it is checked on; none: the run's own")
    images: int = Field(default=64, ge=2, description="images it is checked on")
    calibrate: int = Field(
        default=256, ge=1, description="training images on which int8 and onnx-int8 see the ranges of activations"
    )
    max_drop: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="largest loss of accuracy by int8 and onnx-int8, in percentage points of all evaluation images",
    )


class ExportArguments(ExportCheckOptions):
    """A trained network alone, in forms that other programs open; each is checked against PyTorch on real images."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str = Field(description="run folder written by finetune or distill")
    to: tuple[Form, ...] = Field(
        default=("safetensors",),
        description="forms: safetensors (uhkd.load_run), timm (timm.create_model('local-dir:')), pt2 (torch.export.load), onnx, "
        "int8 (torchao), onnx-int8",
    )
    out: str | None = Field(
        default=None, description="folder to write, one folder a form in it; none: export in the run folder"
    )


class PushArguments(ExportCheckOptions):
    """Put a trained network on a hub of models, with its card: checked as by export, private unless you say otherwise."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str = Field(description="run folder written by finetune or distill")
    repo: str = Field(description="where on the hub, OWNER/NAME; made if it is not there")
    to: Literal["hub"] = Field(
        default="hub", description="which hub: Hugging Face's, or the one that HF_ENDPOINT names"
    )
    forms: tuple[Form, ...] = Field(
        default=(), description="forms, as of export; none: timm if the network is one of timm's, else safetensors"
    )
    public: bool = Field(default=False, description="a repository that it makes can be seen by everyone")
    license: str = Field(
        default="other",
        min_length=1,
        description="licence of the weights for the card, as in apache-2.0; yours to choose",
    )
    dry_run: bool = Field(default=False, description="show files, sizes, target and card; contact nothing")


class ReportArguments(StrictModel):
    """One self-contained HTML page on some runs, made from their folders alone: tables, figures, images, recipes."""

    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[str, ...] = Field(
        min_length=1, description="run folders, or folders of them as compare and demo write; all runs below are taken"
    )
    out: str | None = Field(
        default=None,
        description="page to write, or a folder for it; none: report.html in the folder, or here for several",
    )
    figures: bool = Field(
        default=False, description="also write every figure as PNG and SVG, in figures beside the page"
    )


class PredictArguments(StrictModel):
    """The likeliest classes of some images."""

    positional: ClassVar[tuple[str, ...]] = ("run", "images")

    run: str = Field(description="run folder written by finetune or distill")
    images: tuple[str, ...] = Field(min_length=1, description="image files or folders of them")
    top: int = Field(default=5, ge=1, description="classes to show for an image")
    csv: bool = Field(default=False, description="print CSV: file, rank, class, probability")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where to compute")


class DoctorArguments(StrictModel):
    """Report the versions of this machine; check packages, device, threads and disk, and advise what to do."""


class CompletionArguments(StrictModel):
    """Print the script by which a shell completes uhkd's verbs, options and values; docs/scripting.md says where it goes."""

    positional: ClassVar[tuple[str, ...]] = ("shell",)

    shell: Literal["bash", "zsh", "fish"] = Field(description="the shell")


class VerifyArguments(StrictModel):
    """Check a cache: every record's checksum, then a sample against the teacher itself, views bit by bit."""

    positional: ClassVar[tuple[str, ...]] = ("cache",)

    cache: str = Field(description="folder of the cache")
    sample: int = Field(
        default=64, ge=0, description="records made anew and compared; 0: checksums alone, without teacher"
    )
    data: str | None = Field(default=None, description="where the images lie now; none: where they lay")
    teacher: str | None = Field(default=None, description="where the teacher lies now; none: where it lay")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="where the teacher runs")
