"""The benchmarks' machinery, from the command line to the report; never a time. The peers need no PyTorch here."""

import tomllib
from pathlib import Path

import pytest

from experiments.benchmarks import peer, report, runner

ROOT = Path(__file__).parents[1]
FAMILIES = sorted(path.parent.name for path in (ROOT / "experiments/benchmarks").glob("*/problems.py"))


def rows(text, title):
    """The cells of the table under a heading, header first, without the line of dashes."""
    lines = text.split(f"## {title}")[1].split("\n\n")[1].splitlines()
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in split}) == 1 and set(split[1]) == {"---"}
    return [split[0], *split[2:]]


def arguments(out, *more):
    return ["dynamics", "--cells", "tiny", "--rounds", "1", "--scale", "0.2", "--out", str(out), *more]


@pytest.mark.slow
def test_a_tiny_cell_end_to_end(tmp_path, monkeypatch, capsys):
    asked = arguments(tmp_path / "run", "--libraries", "genmod", "plainjax")
    metrics = runner.main(asked)
    text = (tmp_path / "run/report.md").read_text()
    for title in ("CPU milliseconds", "Wall milliseconds"):
        header, *lines = rows(text, title)
        assert header == ["cell", "op", "genmod", "plainjax"]
        assert [line[:2] for line in lines] == [["tiny", "train"], ["tiny", "sample"], ["tiny", "sample_fixed"]]
        assert lines[1][3] == "n/a" and lines[0][3].endswith("(1.00)")
    assert [line[1] for line in rows(text, "Compilation")[1:]] == ["build", "train", "sample", "sample_fixed"]
    assert "plainjax: not offered (tiny sample)" in text
    measured = {f"tiny_genmod_{op}_cpu_ms" for op in ("train", "sample", "sample_fixed")}
    assert set(metrics) == {"family", *measured, "tiny_plainjax_train_cpu_ms", "tiny_plainjax_sample_fixed_cpu_ms"}

    # Both send the same noise where SciPy does in float64, and learn from the same weights and batches by other noise.
    found = {(op, what): values for _, op, what, *values in rows(text, "What the results")[1:]}
    assert all(float(error) < 1e-5 for error in found["sample_fixed", "largest error"])
    ours, theirs = found["sample_fixed", "solver steps"]
    assert ours == theirs and int(ours) >= 1
    losses = [float(loss) for loss in found["train", "loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=0.3)

    # Killed after the cell, the run goes on without measuring it again.
    (tmp_path / "run/metrics.json").unlink()
    monkeypatch.setattr(runner, "start", lambda *_: pytest.fail("a finished cell was measured again"))
    assert runner.main(asked) == metrics
    assert "# Benchmark" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["tiny", "tiny-iwae"])
def test_a_tiny_autoencoder(tmp_path, cell):
    """Both libraries evaluate the same bound of the same weights, and learn alike; nothing is said of their times."""
    runner.main(["vae", "--cells", cell, "--rounds", "1", "--libraries", "genmod", "flax", "--out", str(tmp_path / "run")])
    text = (tmp_path / "run/report.md").read_text()
    header, line = rows(text, "CPU milliseconds")
    assert header == ["cell", "op", "genmod", "flax"] and line[:2] == [cell, "train"] and line[3].endswith("(1.00)")
    found = {(op, what): values for _, op, what, *values in rows(text, "What the results")[1:]}
    assert found["", "parameters"] == ["298", "298"]
    assert all(abs(float(value)) < 4.5 for value in found["bound", "standard deviations from float64"])
    losses = [float(loss) for loss in found["train", "loss"]]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.slow
def test_a_tiny_transformer(tmp_path):
    """The shared weights are the reference's, with a cache and without one the model is drawn from, and it learns."""
    runner.main(["sequence", "--cells", "tiny", "--rounds", "1", "--libraries", "genmod", "--out", str(tmp_path / "run")])
    text = (tmp_path / "run/report.md").read_text()
    assert [line[1] for line in rows(text, "CPU milliseconds")[1:]] == ["train", "cached", "uncached"]
    found = {(op, what): value for _, op, what, value in rows(text, "What the results")[1:]}
    assert float(found["nll", "error, nats per token"]) < 1e-5
    # Trained for 60 steps it is better than its first weights, and not better than the entropy of a successor, log 4.
    assert 1.386 < float(found["train", "loss, nats per token"]) < float(found["nll", "nats per token"]) - 0.1
    assert all(abs(float(found[op, "standard deviations"])) < 4.5 for op in ("cached", "uncached"))


@pytest.mark.slow
def test_a_tiny_lattice(tmp_path):
    """Both libraries evaluate the same loss of the same fields at equal weights, and learn; nothing is said of their times."""
    runner.main(
        ["lattice", "--cells", "tiny", "--rounds", "1", "--libraries", "genmod", "plainjax", "--out", str(tmp_path / "run")]
    )
    text = (tmp_path / "run/report.md").read_text()
    header, *lines = rows(text, "CPU milliseconds")
    assert header == ["cell", "op", "genmod", "plainjax"] and [line[1] for line in lines] == ["train", "sample"]
    found = {(op, what): values for _, op, what, *values in rows(text, "What the results")[1:]}
    assert found["", "parameters"] == ["172", "172"]
    assert all(float(error) < 1e-5 for error in found["given", "largest relative error"])
    assert all(abs(float(value)) < 4.5 for value in found["sample", "standard deviations from float64"])
    for loss, start in zip(found["train", "loss"], found["sample", "nats"], strict=True):
        assert float(loss) < 0.5 * float(start)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [(("--cells", "nonesuch"), "cnf-exact"), (("--libraries", "nonesuch"), "plainjax"), (("--family", "x"), "flows")],
)
def test_what_is_not_known_is_one_sentence(tmp_path, wrong, named):
    with pytest.raises(SystemExit, match=f"^error: .*{named}.*(nonesuch|'x')"):
        runner.main([*arguments(tmp_path / "run"), *wrong])


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_consistent(name):
    family = peer.family(name)
    assert {"genmod"} < set(peer.libraries(name)) and "problems" not in peer.libraries(name)
    operations = {op for cell in family.cells.values() for op in cell.operations}
    assert set(family.quick) <= family.cells.keys() and "tiny" in family.cells
    assert set(family.inputs) <= operations
    assert {op for long, short, _ in family.differences.values() for op in (long, short)} <= operations
    assert all(cell.operations or cell.checks for cell in family.cells.values())
    assert not any(cell.startswith("tiny") for cell in runner.chosen(family, ("all", "quick")))


def test_a_report_of_any_family():
    def known(cpu_ms, **more):
        time = {op: {"cpu_ms": ms, "wall_ms": ms} for op, ms in cpu_ms.items()}
        return {"first": {}, "checks": {}, "time": time, "missing": {}, **more}

    libraries = {
        "genmod": known({"sweep": 2.0, "long": 12.0, "short": 2.0}, checks={"sweep": {"energy": float("nan"), "error": 1e-6}}),
        "one": known({"sweep": 4.0}),
        "two": known({"sweep": 5.0}, missing={"long": "not offered"}),
        "three": known({}, missing={"peer": "no lattices"}),
    }
    cell = {"versions": dict.fromkeys(libraries, "1"), "load": [0.0, 1.0], "seconds": 1.0, "libraries": libraries}
    family = peer.Family(
        title="Lattices",
        cells={},
        quick=(),
        make=lambda cell: {},
        check=lambda *_: {},
        inputs={},
        notes="",
        differences={"each": ("long", "short", 5)},
    )
    text = report.markdown(family, {"ising": cell})
    assert rows(text, "CPU milliseconds")[1:] == [
        ["ising", "sweep", "2.00 (0.50)", "4.00 (1.00)", "5.00 (1.25)", "n/a"],
        ["ising", "long", "12.0", "n/a", "n/a", "n/a"],
        ["ising", "short", "2.00", "n/a", "n/a", "n/a"],
        ["ising", "each", "2.00", "n/a", "n/a", "n/a"],
    ]
    assert [line[3] for line in rows(text, "What the results")[1:]] == ["nan", "1.0e-06"]
    assert "- two: not offered (ising long)" in text and "- three: no lattices (ising)" in text


def test_only_genmod_is_in_the_wheel():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["genmod"]
