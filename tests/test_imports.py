"""The rules of the layout, read from the source and from the table of floors in CONTRIBUTING.md."""

import ast
import collections
import functools
import importlib
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import genmod

ROOT = Path(genmod.__file__).parent
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(ROOT.rglob("*.py"))
}
by_file = pytest.mark.parametrize("name", FILES)

# Imported inside a function, where they are used: a user may do without.
OPTIONAL = {"blackjax", "matplotlib", "sklearn", "tyro"}
# Libraries that come through a door, modules or folders, and through nothing else.
DOORS = {
    "flax": {"genmod.nets"},
    "distrax": {"genmod.densities.base", "genmod.bijectors.distrax"},
    "diffrax": {"genmod.dynamics"},
}
# One name for two things, where the folder says which.
TWINS = {
    "digits": {"genmod.data.images", "genmod.data.tables"},
    "flow_matching": {"genmod.flows.continuous", "genmod.losses.matching"},
}
# Functions above 60 lines: an argument a line, and a line of docstring for each.
LONG = {"genmod.training.fitting.fit", "genmod.training.loop.train"}


def room(name):
    """The top-level entry of genmod to which a module belongs; "" for the package itself."""
    return name.split(".")[1] if "." in name else ""


@functools.cache
def tree(name):
    return ast.parse(FILES[name].read_text())


@functools.cache
def imports(name):
    """(imported module, whether inside a function) of every import statement."""
    functions = [n for n in ast.walk(tree(name)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(n) for f in functions for n in ast.walk(f)}
    found = []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(w if w in FILES else node.module, id(node) in inside) for w in whole]
    return found


def of_genmod(name):
    return {imported for imported, _ in imports(name) if imported.split(".")[0] == "genmod"}


def public(name):
    """The classes and functions that a module defines."""
    return [n for n in tree(name).body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]


@functools.cache
def table():
    """{room: (floor, the rooms that it knows)}, as CONTRIBUTING.md says; the package itself is ""."""
    lines = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().splitlines()
    start = lines.index("| floor | room | knows |") + 2
    floors = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[start:]):
        floor, name, knows = (cell.strip() for cell in line.strip("|").split("|"))
        names = re.findall("`([a-z]+)`", name)
        assert len(names) == (name != "the package itself"), f"a row of the table names one room: {name}"
        floors["".join(names)] = int(floor), set(re.findall("`([a-z]+)`", knows))
    everything = set(floors) - {""}
    return floors | {"": (floors[""][0], everything)}


# --- rooms and floors --------------------------------------------------------------------------------------------------------


def test_the_table_is_the_house():
    rooms = {room(name) for name in FILES}
    assert rooms == set(table()), "the table of floors in CONTRIBUTING.md and the folders of genmod differ"
    for name in rooms:
        known = {room(imported) for file in FILES if room(file) == name for imported in of_genmod(file)} - {name}
        assert "" not in known, f"{name} imports the package that exports it"
        assert known == table()[name][1], f"{name or 'genmod'} knows {sorted(known)}; the table says {sorted(table()[name][1])}"


def test_imports_point_down():
    for name, (floor, knows) in table().items():
        for other in knows:
            assert table()[other][0] < floor, f"{name or 'genmod'} (floor {floor}) knows {other} (floor {table()[other][0]})"


def test_the_house_is_small():
    @functools.cache
    def floor(name):
        return 1 + max((floor(other) for other in table()[name][1]), default=-1)

    assert floor("") + 1 <= 9, "at most nine floors"
    assert len(table()) - 1 <= 20, "at most twenty rooms"
    modules = [path.stem for path in ROOT.glob("*.py") if path.stem != "__init__"]
    assert len(modules) <= 3, f"at most three modules in the root, got {modules}"


def test_no_circle():
    state = {}

    def visit(name, trail):
        assert state.get(name) != "open", f"circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in state:
            state[name] = "open"
            for other in of_genmod(name) & set(FILES):
                visit(other, [*trail, name])
            state[name] = "done"

    for name in FILES:
        visit(name, [])


# --- what a file may import --------------------------------------------------------------------------------------------------


@by_file
def test_families_stand_alone(name):
    models = {imported for imported in of_genmod(name) if room(imported) == "models"}
    protocols = {"genmod.models.base", "genmod.models.unnormalized"}
    if room(name) in ("losses", "samplers"):
        assert not models
    if room(name) in ("training", "evaluation", "inference", "lab"):
        assert models <= protocols, f"{name} names a family"
    if room(name) == "models" and name != "genmod.models":
        assert models <= protocols | {"genmod.models.flow"}, f"{name} imports another family"


@by_file
def test_libraries_come_through_their_door(name):
    for imported, _ in imports(name):
        doors = DOORS.get(imported.split(".")[0])
        assert doors is None or any(name == door or name.startswith(f"{door}.") for door in doors), f"{name} imports {imported}"


@by_file
def test_no_import_inside_a_function(name):
    for imported, inside in imports(name):
        assert inside == (imported.split(".")[0] in OPTIONAL), f"{name}: {imported}, inside a function: {inside}"


# --- names -------------------------------------------------------------------------------------------------------------------


def test_one_name_is_one_thing():
    places = collections.defaultdict(set)
    for name in FILES:
        for node in public(name):
            places[node.name].add(name)
    doubles = {name: where for name, where in places.items() if len(where) > 1}
    assert doubles == TWINS


def test_no_module_is_named_as_what_its_package_exports():
    for name, path in FILES.items():
        if path.name == "__init__.py":
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__):
                exported = vars(package).get(module.name)
                assert exported is None or inspect.ismodule(exported), f"{name}.{module.name} hides a module"


# --- files and functions -------------------------------------------------------------------------------------------------------


@by_file
def test_files_and_functions_are_short(name):
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= 300, f"{name} has {lines} lines"
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60 or f"{name}.{node.name}" in LONG, f"{name}.{node.name} has {length} lines"


def test_the_long_functions_are_long():
    for whole in LONG:
        name, function = whole.rsplit(".", 1)
        assert any(node.name == function and node.end_lineno - node.lineno >= 60 for node in public(name)), whole


@by_file
def test_files_are_documented(name):
    assert ast.get_docstring(tree(name)), f"{name} has no module docstring"
    for node in public(name):
        assert ast.get_docstring(node), f"{name}.{node.name} has no docstring"


def test_public_names_are_documented():
    for info in pkgutil.walk_packages(genmod.__path__, "genmod."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            ours = getattr(value, "__module__", "").startswith("genmod")
            if ours and not name.startswith("_") and (inspect.isroutine(value) or inspect.isclass(value)):
                assert inspect.getdoc(value), f"{info.name}.{name}"


NOTHING_HAPPENS = """
import jax
config = dict(jax.config.values)
import genmod
from jax._src import xla_bridge
assert not xla_bridge._backends, f"importing genmod started {list(xla_bridge._backends)}"
changed = {name for name, value in jax.config.values.items() if name in config and value != config[name]}
assert not changed, changed
import sys
assert not {"blackjax", "matplotlib", "sklearn", "tyro"} & set(sys.modules)
"""


def test_nothing_happens_at_import():
    env = os.environ | {"PYTHONPATH": str(ROOT.parent)}
    result = subprocess.run([sys.executable, "-c", NOTHING_HAPPENS], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
