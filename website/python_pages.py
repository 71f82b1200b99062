"""The public Python names, and a page of directives for each module that has some; mkdocstrings fills it from docstrings."""

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
MODULES = (
    "uhkd",
    "uhkd.spectral",
    "uhkd.spectral.fam",
    "uhkd.methods",
    "uhkd.features",
    "uhkd.models",
    "uhkd.data",
    "uhkd.recipe",
    "uhkd.evaluation.metrics",
    "uhkd.training",
    "uhkd.runs",
    "uhkd.cache",
    "uhkd.export",
    "uhkd.reporting.plots",
    "uhkd.evaluation.diagnostics",
    "uhkd.evaluation.probe",
    "uhkd.reporting.health",
    "uhkd.training.distillation",
    "uhkd.integrations.lightning",
    "uhkd.integrations.timm",
)
_INTRODUCTIONS = {
    "uhkd.recipe": "The options of each kind of recipe, with bounds and defaults: [Recipe](../recipe.md)."
}


def source(module: str) -> Path:
    """The file of a module, or the __init__.py of a package."""
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> list[str]:
    """What __all__ lists; without one, the functions, classes and constants that the file itself defines without a "_"."""
    names: list[str] = []
    for node in ast.parse(source(module).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and target.id == "__all__":
                return list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
            if isinstance(target, ast.Name):
                names.append(target.id)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
    return [name for name in names if not name.startswith("_")]


def python_page(module: str) -> str:
    """A page that shows the module's docstring and all its public names."""
    entries = "\n\n".join(f"::: {module}.{name}" for name in public_names(module) if name != "__version__")
    head = ast.get_docstring(ast.parse(source(module).read_text(encoding="utf-8"))) or ""
    return f"# {module}\n\n{head}\n\n{_INTRODUCTIONS.get(module, '')}\n\n{entries}\n"
