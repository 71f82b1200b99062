"""Networks that leave: export and push."""

from references.errors.case import Case
from references.errors.shelf import write

RUN = {"has": ("run",)}

CASES = (
    Case(
        "exporting a folder that is not a run",
        "export images",
        "'images' is no run folder of uhkd: it lacks card.json or model.safetensors; give a folder that "
        "finetune or distill wrote",
        has=("images",),
    ),
    Case(
        "an unknown form",
        "export run --to tflite",
        "to: expected safetensors, timm, pt2, onnx, openvino, int8 or onnx-int8, found 'tflite'",
        **RUN,
    ),
    Case(
        "the form timm of a network of another library",
        "export run --to timm",
        "uhkd/resnet10 is no architecture of timm: leave timm out of --to",
        **RUN,
    ),
    Case(
        "a form that exists already",
        "export run --to pt2",
        "run/export/pt2 already exists and is not empty; delete it, or choose another --out",
        **RUN,
        make=lambda: write("run/export/pt2/model.pt2", "hello"),
    ),
    Case(
        "exporting when the images have moved",
        "export run",
        "data images does not exist; give a path, or one of: digits, cifar100",
        **RUN,
    ),
    Case(
        "an opset for a form that has none",
        "export run --to pt2 --opset 18",
        "--opset is for onnx and onnx-int8, and --to has pt2: remove --opset, or add onnx",
        **RUN,
    ),
    Case(
        "a variable image size in 8-bit integers",
        "export run --to int8 --dynamic-size",
        "--dynamic-size is for pt2, onnx, openvino: leave int8 out of --to, or export it separately",
        **RUN,
    ),
    Case(
        "max_drop above 100",
        "export run --to int8 --max-drop 200",
        "max_drop: expected a value <= 100, found '200'",
        **RUN,
    ),
    Case("pushing without a repository", "push run", "repo: required but not given (…)", **RUN),
    Case(
        "pushing without an owner",
        "push run --repo student --dry-run",
        "repo: expected OWNER/NAME of letters, numbers and ._-, as in me/my-student",
        **RUN,
    ),
    Case(
        "pushing to an unknown target",
        "push run --repo me/student --to s3",
        "to: expected hub, found 's3'",
        **RUN,
    ),
)
