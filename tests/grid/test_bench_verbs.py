"""`scanrl bench run`, `scanrl bench report` and `scanrl presets`."""

import csv
import io
import json
from pathlib import Path

import pytest
import yaml

from scanrl.cli import main
from scanrl.grid.schedule import read_rows
from scanrl.models.recipes import RECIPES
from tests.grid.grids import grid_values

pytestmark = pytest.mark.usefixtures("elsewhere")
EXAMPLE = Path(__file__).parents[2] / "examples" / "grid.yaml"


def write(path, values):
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_grid_is_run_continued_and_reported(tmp_path, capsys):
    spec = write(tmp_path / "poles.yaml", grid_values(tmp_path, recipes={"bc": {}}, evaluate={}))
    assert main(["bench", "run", spec, "--updates", "3"]) == 0
    said = capsys.readouterr().out
    assert "1 runs, 1 to go" in said
    assert said.endswith("1 runs done; next: scanrl bench report outputs/bench/poles\n")
    assert main(["bench", "run", spec, "--updates", "3", "--seeds", "2"]) == 0
    assert "2 runs, 1 to go, 1 recorded before" in capsys.readouterr().out
    assert main(["bench", "report", "outputs/bench/poles"]) == 0
    said = capsys.readouterr().out
    assert "3 updates" in said
    assert "environment: CartPole-v1" in said
    assert main(["bench", "report", "outputs/bench/poles", "--layout", "csv"]) == 0
    (record,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (record["recipe"], record["seeds"], record["unit"]) == ("bc", "0 1", "score")


def test_a_failed_run_is_exit_code_one(tmp_path, capsys):
    recipes = {"bc": {"train.learning_rate": 1e30}}
    spec = write(tmp_path / "wild.yaml", grid_values(tmp_path, recipes=recipes, evaluate={}))
    assert main(["bench", "run", spec, "--out", "here"]) == 1
    assert "0 runs done, 1 failed (--retry-failed runs them again)" in capsys.readouterr().out
    assert main(["bench", "report", "here"]) == 0
    assert "failed: bc, pole, 12 updates, seed 0: " in capsys.readouterr().out


def test_the_example_runs(monkeypatch, tmp_path, capsys):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(EXAMPLE.parents[1])
    values = yaml.safe_load(EXAMPLE.read_text())
    values["settings"] |= {"eval.episodes": 1, "eval.num_envs": 1}
    spec = write(tmp_path / "grid.yaml", values)
    assert main(["bench", "run", spec, "--updates", "2", "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    rows = read_rows(tmp_path / "out")
    assert [row["recipe"] for row in rows] == list(values["recipes"])
    assert {row["env"] for row in rows} == {"Hopper-v5"}
    assert {len(row["checkpoints"]) for row in rows} == {values["evaluate"]["checkpoints"]}
    assert main(["bench", "report", str(tmp_path / "out")]) == 0
    assert "window of 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["bench", "run"], "bench run: expected SPEC or --preset, got neither"),
        (["bench", "run", "x.yaml", "--preset", "dt/hopper-medium"], "expected SPEC or --preset, got both"),
        (["bench", "run", "--preset", "dt/hopper-medium"], "hopper_medium-v2.hdf5: "),
        (
            ["bench", "run", "--preset", "dt/antmaze-umaze"],
            "expected --data with a file, folder or URI of D4RL antmaze-umaze-v2",
        ),
        (["bench", "run", "x.yaml", "--data", "d"], "bench run: --data: expected with --preset alone"),
        (["bench", "run", "--preset", "dt/hoper-medium", "--data", "d"], "(did you mean 'dt/hopper-medium'?)"),
        (["bench", "run", "none.yaml"], "none.yaml: expected a readable YAML file, got: No such file"),
        (["bench", "run", "x", "--jobs", "0"], "bench run: --jobs: expected at least 1 and finite, got 0"),
        (["bench", "run", "x", "--updates", "0"], "bench run: --updates: expected at least 1 and finite, got 0"),
        (["bench", "report", "none"], "none: expected the folder of a grid (with rows.jsonl), got none"),
        (["presets", "--contains", "nosuch"], "presets: --contains: expected part of a name, got 'nosuch'"),
        (["train", "--preset", "dmm/hopper"], "preset: expected RECIPE/TASK as scanrl presets lists them, got"),
        (["train", "dt", "--preset", "dm/hopper-medium"], "train: preset: expected one of the recipe dt, got 'dm/hop"),
    ],
)
def test_a_wrong_command_says_what_was_expected(words, message, failing):
    assert message in failing(*words)


def test_presets_are_listed_with_what_was_printed(capsys):
    assert main(["presets"]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}/hopper-medium " in said for name in RECIPES if f"{name}/" in said)
    assert "98.6 (Kim 2024, arXiv 2408.10517, table of the double models; maximum over" in said
    assert main(["presets", "--contains", "dm/hopper-medium-replay", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [number["score"] for number in found["published"]] == [81.7, 82.6]
    assert main(["presets", "--contains", "DM/Hopper-medium-replay"]) == 0
    assert "model.width" in capsys.readouterr().out


def test_a_preset_is_the_base_that_options_and_files_change(tmp_path, capsys):
    words = ["train", "--preset", "dmm-dc/walker2d-medium", "--print-config"]
    assert main(words) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["recipe"], found["env"], found["model"]["width"]) == ("dmm-dc", "Walker2d-v4", 32)
    assert found["eval"]["targets"] == [5000.0, 10000.0, 50000.0, 100000.0]
    (tmp_path / "c.yaml").write_text("train: {steps: 5, learning_rate: 1}\n")
    assert main([*words, "--config", str(tmp_path / "c.yaml"), "--train.learning-rate", "2"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["train"]["steps"], found["train"]["learning_rate"], found["train"]["warmup"]) == (5, 2.0, 0.1)
