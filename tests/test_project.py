"""The project itself: what is packaged, what is declared, who may import whom, and documents that must be current."""

import ast
import graphlib
import json
import re
import runpy
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import mlx_lm
import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = sorted([*(ROOT / "parm_mlx").rglob("*.py"), *(ROOT / "convert").rglob("*.py")])
EXTRAS = PROJECT["project"]["optional-dependencies"]
DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "mlx_lm": "mlx-lm",
    "prompt_toolkit": "prompt-toolkit",
    "yaml": "pyyaml",
}

# Who may import whom. A part that is not named here is the ground (errors, preference, files, …) and imports no part.
LAYERS = {
    "named": {"convert"},
    "cli": {
        "serving",
        "diagnostics",
        "training",
        "evaluation",
        "data",
        "answers",
        "rewards",
        "guidance",
        "pblora",
        "kernels",
        "convert",
    },
    "serving": {"guidance", "pblora", "kernels"},
    "diagnostics": {"evaluation", "answers", "rewards", "guidance", "pblora", "kernels"},
    "training": {"data", "rewards", "guidance", "pblora", "kernels"},
    "evaluation": {"data", "answers", "rewards", "guidance", "pblora", "kernels"},
    "data": {"answers", "rewards", "guidance", "pblora", "kernels"},
    "answers": {"rewards", "guidance", "pblora", "kernels"},
    "rewards": {"guidance", "pblora", "kernels"},
    "guidance": {"pblora", "kernels"},
    "convert": {"rewards", "guidance", "pblora"},
    "pblora": {"kernels"},
    "kernels": set[str](),
}


def imports(source: Path) -> Iterator[str]:
    """The modules that a file imports, wherever in the file it does so."""
    yield from imports_of(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))


def imports_of(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What import statements name: modules, and what is imported from them."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import of {node.module}"
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def part(module: str) -> str:
    """The part of the house that a module belongs to: parm_mlx.pblora.layer -> pblora."""
    names = module.split(".")
    return names[1] if len(names) > 1 else ""


def module_name(source: Path) -> str:
    relative = source.relative_to(ROOT).with_suffix("")
    parts = ("parm_mlx", *relative.parts) if relative.parts[0] == "convert" else relative.parts
    return ".".join(parts)


def test_every_package_in_the_tree_is_installed() -> None:
    found = {module_name(path).removesuffix(".__init__") for path in SOURCES if path.name == "__init__.py"}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_every_data_file_of_the_package_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["parm_mlx"]
    installed = {path for pattern in patterns for path in (ROOT / "parm_mlx").glob(pattern)}
    data = {
        path
        for path in (ROOT / "parm_mlx").rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    assert data - installed == set()


def test_convert_is_part_of_the_installed_package() -> None:
    import parm_mlx.convert

    assert parm_mlx.convert.__name__ == "parm_mlx.convert"


def test_the_console_script_is_declared() -> None:
    scripts = {script.name: script.value for script in metadata.entry_points(group="console_scripts")}
    assert scripts["parm-mlx"] == "parm_mlx.cli.main:main"


def test_the_back_ends_of_linux_are_extras_that_only_add_to_plain_mlx() -> None:
    (plain,) = (line for line in PROJECT["project"]["dependencies"] if re.match(r"mlx\b(?!-)", line))
    versions = plain.removeprefix("mlx")
    assert versions[0] in "<>="
    names = ("cpu", "cuda", "cuda13")
    assert {name: EXTRAS[name] for name in names} == {name: [f"mlx[{name}]{versions}"] for name in names}


def test_mlx_has_the_extras_that_bring_its_back_ends() -> None:
    assert {"cpu", "cuda", "cuda13"} <= set(metadata.metadata("mlx").get_all("Provides-Extra") or ())


def test_third_party_imports_are_declared_and_all_declared_are_imported() -> None:
    unseen = ("dev", "blas")  # of blas, a library is used and no module
    extras = {name: lines for name, lines in PROJECT["project"]["optional-dependencies"].items() if name not in unseen}
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in extras.values() for line in extra)]
    declared = {re.split(r"[\[<>=!~; ]", line)[0] for line in lines}
    tops = {name.split(".")[0] for source in SOURCES for name in imports(source)}
    third_party = {DISTRIBUTIONS.get(top, top) for top in tops - set(sys.stdlib_module_names) - {"parm_mlx"}}
    assert third_party == declared


def test_layers_point_one_way() -> None:
    wrong = set()
    for source in SOURCES:
        module = module_name(source)
        used = {part(name) for name in imports(source) if name.startswith("parm_mlx.")} & LAYERS.keys()
        if module != "parm_mlx.__init__":  # the public API, which is above all layers
            wrong |= {(module, other) for other in used - {part(module)} - LAYERS.get(part(module), set())}
    assert wrong == set()


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    """Imports at the top of a module; a package is imported before the modules in it."""
    modules = {module_name(source).removesuffix(".__init__"): source for source in SOURCES}
    graph = {}
    for module, source in modules.items():
        tree = ast.parse(source.read_text(encoding="utf-8"))
        graph[module] = {name for name in imports_of(tree.body) if name in modules} - {module}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' <- '.join(error.args[1])}")


def test_mlx_lm_is_imported_in_one_package() -> None:
    """Elsewhere only its public names are: those of ``mlx_lm.__all__``, from the top."""
    allowed = {"mlx_lm", *(f"mlx_lm.{name}" for name in mlx_lm.__all__)}
    wrong = {
        (module_name(source), name)
        for source in SOURCES
        for name in imports(source)
        if name.split(".")[0] == "mlx_lm" and name not in allowed and part(module_name(source)) != "mlxlm"
    }
    assert wrong == set()


def test_the_changelog_describes_this_version() -> None:
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_command_line_reference_is_current() -> None:
    from parm_mlx.cli.app import app

    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["reference"](app)
    assert "\\b" not in page, "a raw docstring shows its \\b"
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_page_of_performance_is_current() -> None:
    record = json.loads((ROOT / "docs" / "performance.json").read_text(encoding="utf-8"))
    page = runpy.run_path(str(ROOT / "docs" / "make_performance.py"))["page"](record)
    assert (ROOT / "docs" / "performance.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_page_of_large_models_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_large.py"))["page"]()
    assert (ROOT / "docs" / "large.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_page_of_the_papers_set_up_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_paper.py"))["page"]()
    assert (ROOT / "docs" / "paper.md").read_text(encoding="utf-8") == page, "run `make docs`"


def test_the_tables_of_experiments_are_current() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path, text in runpy.run_path(str(ROOT / "docs" / "make_results.py"))["pages"](readme).items():
        assert path.read_text(encoding="utf-8") == text, "run `make docs`"


def test_ci_runs_the_tests() -> None:
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
