"""Options of the commands without recipe, from demo and models to export, push and cache verify."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from uhkd.errors import UhkdError
from uhkd.recipe.base import Device, ImageSize, Levels, SourceOptions, StrictModel, Student, Teacher

Form = Literal["safetensors", "timm", "pt2", "onnx", "openvino", "int8", "onnx-int8"]
"""File formats of exported networks."""

Run = Annotated[str, Field(description="run folder written by finetune or distill")]


class DemoArguments(StrictModel):
    """Handwritten digits: train a CNN teacher, then ViT and MLP students from scratch, by KD, a spatial twin and UHKD."""

    out: str = Field(default="runs/demo", description="folder for runs, table and figures")
    seeds: int = Field(default=3, ge=1, description="number of seeds, for mean and standard deviation")
    quick: bool = Field(default=False, description="train very briefly, as a test; accuracies mean nothing")


class ModelsArguments(StrictModel):
    """List available networks with their number of parameters."""

    positional: ClassVar[tuple[str, ...]] = ("pattern",)

    pattern: str = Field(default="*", description="names with wildcards * and ?, such as 'timm/*swin*'")
    max_params: float | None = Field(default=None, gt=0, description="maximum parameters in millions; none: no limit")
    limit: int = Field(default=50, ge=1, description="maximum number of networks to list")
    measured: bool = Field(default=False, description="also measure the latency of one image, in ms")


class RecipesArguments(StrictModel):
    """List the packaged recipes, print one, or compare two key by key (including defaults)."""

    positional: ClassVar[tuple[str, ...]] = ("names",)

    names: tuple[str, ...] = Field(
        default=(),
        description="packaged names, YAML files or run folders; none: list all; one: print it; two: compare them",
    )
    schema_: Literal["finetune", "distill", "cache", "compare"] | None = Field(
        default=None, description="print the JSON Schema of a command's recipes, for editors (docs/scripting.md)"
    )


class IndexArguments(StrictModel):
    """Write an index of the samples in a folder of tar shards, so that the data opens faster, also from remote storage."""

    positional: ClassVar[tuple[str, ...]] = ("folder",)

    folder: str = Field(description="folder of .tar shards, train-*.tar, val-*.tar or train/*.tar, val/*.tar")


class InspectArguments(SourceOptions):
    """Check a teacher and a student without training: layers, map sizes, spectra, memory and one step."""

    teacher: Teacher
    student: Student
    data: str | None = Field(default=None, description="data for the step; none: random images")
    method: str = Field(default="uhkd", min_length=1, description="distillation method of the step")
    settings: dict[str, Any] = Field(default={}, description="settings of the method, such as radius=2")
    weights: dict[str, float] = Field(default={}, description="weights of loss terms by name, such as features=10")
    teacher_levels: Levels = Field(default=None, description="names of teacher layers to match; none: automatic")
    teacher_options: dict[str, Any] = Field(default={}, description="keyword arguments of the teacher's constructor")
    student_levels: Levels = Field(default=None, description="names of student layers to match; none: automatic")
    student_options: dict[str, Any] = Field(default={}, description="keyword arguments of the student's constructor")
    image_size: ImageSize = Field(
        default=None, description="student's input size in pixels, one side or height and width; none: its default"
    )
    num_classes: int = Field(default=10, ge=2, description="number of the student's classes if no data is given")


class EvalArguments(SourceOptions):
    """Measure the accuracy of a trained network, or of a probe on its frozen embeddings, on its own or other data."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: Run
    data: str | None = Field(default=None, description="data to evaluate on; none: the data of the run")
    split: Literal["auto", "val", "test", "all"] = Field(
        default="auto",
        description="auto: test if there is one, else val, or all images of other data without parts; all: of every part",
    )
    probe: Literal["none", "knn", "linear"] = Field(
        default="none",
        description="none: the network's classifier; else a probe on the embeddings of the training split: knn (20 neighbours, "
        "cosine) or linear (logistic regression)",
    )
    batch_size: int = Field(default=256, ge=1, description="images per batch")
    per_class: bool = Field(default=False, description="show all classes and the confusion matrix, however many")
    device: Device = "auto"

    @model_validator(mode="after")
    def _check_probe(self) -> Self:
        if self.split == "all" and self.probe != "none":
            raise UhkdError("a probe is fitted on the training split: measure it with --split val or test, not all")
        return self


class WatchArguments(StrictModel):
    """Show the progress, loss terms, accuracy and health of running trainings; Ctrl-C stops only the display."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: str = Field(description="run folder, or a folder of runs, such as a comparison")
    once: bool = Field(default=False, description="print the state once and exit")
    every: float = Field(default=1.0, ge=0.1, description="seconds between updates")


class ExportOptions(SourceOptions):
    """Properties of exported files, and images for their check and for the calibration of 8-bit formats."""

    opset: int | None = Field(default=None, ge=13, description="opset version of onnx and onnx-int8; none: torch's")
    dynamic_size: bool = Field(
        default=False,
        description="variable height and width of the images for pt2, onnx and openvino, where the network allows it",
    )
    data: str | None = Field(default=None, description="data for check and calibration; none: the data of the run")
    images: int = Field(default=64, ge=2, description="number of images to check on")
    calibrate: int = Field(default=256, ge=1, description="training images to calibrate int8 and onnx-int8")
    max_drop: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="maximum loss of accuracy by int8 and onnx-int8 on all evaluation images, in percentage points",
    )
    raw_logits: bool = Field(default=False, description="logits as trained, not divided by the run's temperature")


class ExportArguments(ExportOptions):
    """Write a trained network in formats for other programs; each is checked against PyTorch on real images."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: Run
    to: tuple[Form, ...] = Field(
        default=("safetensors",),
        description="formats: safetensors (uhkd.load_run), timm (timm.create_model('local-dir:')), pt2 (torch.export.load), "
        "onnx, openvino, int8 (torchao), onnx-int8",
    )
    out: str | None = Field(default=None, description="folder to write; none: export in the run folder")


class PushArguments(ExportOptions):
    """Upload a trained network with a model card to a model hub, checked as by export; private by default."""

    positional: ClassVar[tuple[str, ...]] = ("run",)

    run: Run
    repo: str = Field(description="repository on the hub, OWNER/NAME; created if it does not exist")
    to: Literal["hub"] = Field(default="hub", description="the Hugging Face Hub, or the hub at HF_ENDPOINT")
    forms: tuple[Form, ...] = Field(default=(), description="as for export; none: timm if possible, else safetensors")
    public: bool = Field(default=False, description="make a newly created repository public")
    license: str = Field(default="other", min_length=1, description="licence of the weights, such as apache-2.0")
    dry_run: bool = Field(default=False, description="show files, sizes, target and model card, stay offline")


class ReportArguments(StrictModel):
    """Write one self-contained HTML page about runs, from their folders: tables, figures, images, recipes."""

    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[str, ...] = Field(min_length=1, description="run folders, or folders that contain runs")
    out: str | None = Field(
        default=None,
        description="file or folder to write; none: report.html in the folder, for several in the folder that contains them",
    )
    figures: bool = Field(default=False, description="also write figures as PNG and SVG, next to the page")


class PredictArguments(StrictModel):
    """Predict the most likely classes of images."""

    positional: ClassVar[tuple[str, ...]] = ("run", "images")

    run: Run
    images: tuple[str, ...] = Field(min_length=1, description="image files, or folders of them at any depth")
    topk: int = Field(default=5, ge=1, description="number of classes per image")
    csv: bool = Field(default=False, description="print CSV: file, rank, class, probability")
    device: Device = "auto"


class DoctorArguments(StrictModel):
    """Report versions, check packages, device, threads and disk space, and suggest solutions to problems."""


class CompletionArguments(StrictModel):
    """Print a shell's completion script for commands, options and values; docs/scripting.md explains the installation."""

    positional: ClassVar[tuple[str, ...]] = ("shell",)

    shell: Literal["bash", "zsh", "fish"] = Field(description="shell")


class VerifyArguments(SourceOptions):
    """Check a cache: the checksum of every record, and a sample of records against the teacher, bitwise for the views."""

    positional: ClassVar[tuple[str, ...]] = ("cache",)

    cache: str = Field(description="folder of the cache")
    sample: int = Field(default=64, ge=0, description="records to compare with the teacher; 0: checksums only")
    data: str | None = Field(default=None, description="current location of the images; none: the recorded one")
    teacher: str | None = Field(default=None, description="current location of the teacher; none: the recorded one")
    device: Device = "auto"
