"""The rules of the layout, read from the source."""

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import genmod

ROOT = Path(genmod.__file__).parent
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(ROOT.rglob("*.py"))
}
by_file = pytest.mark.parametrize("name", FILES)

# Folder or file below genmod -> layer; a module imports its own layer's folder and lower layers only.
LAYERS = {
    **dict.fromkeys(("base", "checks", "keys"), 0),
    **dict.fromkeys(("nets", "ode", "divergence", "densities", "data", "metrics", "transport"), 1),
    **dict.fromkeys(("schedules", "paths", "denoisers", "predictors"), 1),
    **dict.fromkeys(("bijectors", "losses", "samplers", "inference"), 2),
    **dict.fromkeys(("models", "flows"), 3),
    **dict.fromkeys(("train", "step", "batches", "recorder", "evaluate", "checkpoint", "run", "plot", "conformance"), 4),
}
OPTIONAL = {"matplotlib", "sklearn", "tyro"}
DOORS = {"flax": "genmod.nets", "distrax": "genmod.densities", "diffrax": "genmod.ode"}


def part(name):
    return name.split(".")[1] if "." in name else ""


def imports(path, name):
    """(imported module, whether inside a function) of every import statement."""
    tree = ast.parse(path.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else node.module, id(node) in inside


@by_file
def test_imports_point_down(name):
    if name == "genmod":
        return
    assert part(name) in LAYERS, f"{name} has no layer: add it to LAYERS"
    layer = LAYERS[part(name)]
    for imported, _ in imports(FILES[name], name):
        if imported.split(".")[0] == "genmod" and part(imported) != part(name):
            assert imported != "genmod", f"{name} imports the package that exports it"
            below = LAYERS[part(imported)]
            assert below < layer or (below == layer and layer in (0, 1, 3, 4)), (
                f"{name} (layer {layer}) imports {imported} (layer {below})"
            )


@by_file
def test_folders_know_what_they_may(name):
    known = {part(imported) for imported, _ in imports(FILES[name], name) if imported.startswith("genmod.")}
    if part(name) in ("losses", "samplers"):
        assert "models" not in known and "bijectors" not in known
    if part(name) == "data":
        assert known <= {"data", "base", "checks", "keys"}
    if part(name) in ("train", "step", "batches", "recorder", "evaluate", "checkpoint", "run"):
        assert not known & {"flows", "bijectors", "nets", "losses"}
        models = {i for i, _ in imports(FILES[name], name) if i.startswith("genmod.models")}
        assert models <= {"genmod.models.base"}, "a family is named"
    if part(name) == "models" and name not in ("genmod.models", "genmod.models.base"):
        families = {i for i, _ in imports(FILES[name], name) if i.startswith("genmod.models.")}
        assert families <= {"genmod.models.base", "genmod.models.pushforward"}, "one family imports another"


@by_file
def test_libraries_come_through_their_door(name):
    for imported, _ in imports(FILES[name], name):
        door = DOORS.get(imported.split(".")[0])
        assert door is None or name == door or name.startswith(door + "."), f"{name} imports {imported}"


@by_file
def test_no_import_inside_a_function(name):
    for imported, inside in imports(FILES[name], name):
        assert inside == (imported.split(".")[0] in OPTIONAL), f"{name}: {imported}, inside a function: {inside}"


def test_no_circle():
    graph = {name: {i for i, _ in imports(path, name) if i in FILES} for name, path in FILES.items()}
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", f"circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in state:
            state[name] = "open"
            for other in graph[name]:
                visit(other, [*trail, name])
            state[name] = "done"

    for name in graph:
        visit(name, [])


@by_file
def test_files_are_documented(name):
    tree = ast.parse(FILES[name].read_text())
    assert ast.get_docstring(tree), f"{name} has no module docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_public_names_are_documented():
    for info in pkgutil.walk_packages(genmod.__path__, "genmod."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("genmod")
            if ours and not name.startswith("_") and (inspect.isroutine(value) or inspect.isclass(value)):
                assert inspect.getdoc(value), f"{info.name}.{name}"


def test_files_are_short():
    """An aim, not a law: 300 lines."""
    for name, path in FILES.items():
        lines = len(path.read_text().splitlines())
        if lines > 300:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.warn(f"{name} has {lines} lines", stacklevel=1)
        assert lines < 500, f"{name} has {lines} lines"


NOTHING_HAPPENS = """
import jax
config = dict(jax.config.values)
import genmod
from jax._src import xla_bridge
assert not xla_bridge._backends, f"importing genmod started {list(xla_bridge._backends)}"
changed = {name for name, value in jax.config.values.items() if name in config and value != config[name]}
assert not changed, changed
import sys
assert not {"matplotlib", "sklearn", "tyro"} & set(sys.modules)
"""


def test_nothing_happens_at_import():
    env = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    result = subprocess.run([sys.executable, "-c", NOTHING_HAPPENS], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
