import json
import os
import subprocess
import sys

import pytest
import yaml

from scanrl import __version__, cli
from scanrl.cli import VERBS, main
from scanrl.data import write_store
from scanrl.models.recipes import RECIPES
from tests.conftest import make_dataset
from tests.runs import CARTPOLE, SMALL

pytestmark = pytest.mark.usefixtures("elsewhere")

# Help and what is no command


def test_the_overview_names_every_verb_and_imports_no_torch():
    code = "import sys; from scanrl.cli import main; [main(w) for w in ([], ['--version'], ['nosuch'], ['eval'])]"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)
    assert done.stdout.splitlines()[-2:] == [f"scanrl {__version__}", "False"]
    assert done.stderr.startswith("scanrl: verb: expected one of ")
    assert done.stderr.endswith("scanrl: eval: expected RUN, got none\n")


READING = ["--nonfinite", "--tail", "--env-id", "--observation-keys", "--memory-gib", "--timeout"]
OPTIONS = {
    "demo": ["--out", "--seconds", "--episodes", "--seed"],
    "doctor": ["--json"],
    "models": ["--observations", "--actions", "--discrete", "--json"],
    "data info": ["URI", "--json", *READING],
    "data convert": ["URI", "--out", "--overwrite", *READING],
    "data validate": ["URI", *READING],
    "train": [
        "--data",
        "--env",
        "--out",
        "--seeds",
        "--config",
        "--print-config",
        "--model.width",
        "--train.steps",
        "--eval.every",
    ],
    "collect": [
        *("--out", "--env", "--policy", "--episodes", "--histories", "--learner", "--tasks", "--steps", "--seed"),
        *("--history-episodes", "--replay", "--order", "--env-options", "--num-envs", "--overwrite"),
    ],
    "resume": ["RUN", "--data"],
    "presets": ["--contains", "--json"],
    "bench run": ["SPEC", "--preset", "--data", "--seeds", "--updates", "--out", "--jobs", "--retry-failed"],
    "bench report": ["DIR", "--layout"],
    "analyse eigenvalues": ["RUN", "--data", "--windows", "--out", "--json"],
    "analyse scaling": ["DIR", "--out", "--json"],
    "analyse activations": ["RUN", "--data", "--episode", "--start", "--steps", "--out", "--json"],
    "eval": [
        *("RUN", "--env", "--episodes", "--target-return", "--sweep-targets", "--context", "--save", "--json"),
        *("--new-tasks", "--tasks"),
    ],
    "bench speed": ["--threads", "--json"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_options_of_every_verb(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr()
    assert f"usage: scanrl {verb}" in said.out
    assert all(option in said.out for option in OPTIONS[verb])
    assert said.err == ""


@pytest.mark.parametrize(
    "family, verb", [("data", "data convert"), ("analyse", "analyse activations"), ("bench", "bench speed")]
)
def test_help_for_the_verbs_of_two_words(family, verb, capsys):
    assert main([family, "--help"]) == 0
    assert verb in capsys.readouterr().out


GARBAGE = {
    "unknown": ["--nosuch", "3"],
    "word": ["§", "\n", "%s", "{}"],
    "dash": ["-x"],
    "empty": ["--=", "="],
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("verb", VERBS)
def test_garbage_gives_one_line_and_nothing_else(verb, kind, failing):
    failing(*verb.split(), *GARBAGE[kind])


@pytest.mark.parametrize(
    "words, message",
    [
        (["nosuch"], "scanrl: verb: expected one of demo, "),
        (["trian"], "got 'trian' (did you mean 'train'?)"),
        (["data"], "got 'data' (did you mean 'data "),
        (["data", "infos"], "got 'data infos' (did you mean 'data info'?)"),
        (["eval"], "scanrl: eval: expected RUN, got none"),
        (["data", "info"], "scanrl: data info: expected URI, got none"),
        (["data", "convert", "x"], "scanrl: data convert: expected --out, got none"),
        (["eval", "x", "--episode", "3"], "Unrecognized options: --episode, 3 (did you mean --episodes?)\n"),
        (
            ["train", "dt", "--trian.steps", "5"],
            "Unrecognized options: --trian.steps, 5 (did you mean --train.steps?)\n",
        ),
        (["train", "dt", "--train.steps", "x"], "Error parsing --train.steps: invalid literal for int()"),
        (["train", "dt", "--train.steps", "0"], "scanrl: train: train.steps: expected at least 1, got 0\n"),
        (["train", "dt", "--steps=-3"], "train.steps: expected at least 1, got -3\n"),
        (
            ["train", "dt", "--train.learning-rate", "nan"],
            "train.learning_rate: expected more than 0 and finite, got nan\n",
        ),
        (["train", "dt", "--eval.targets", "inf"], "eval.targets: expected finite numbers, got inf\n"),
        (["train", "dt", "--model.head", "x"], "invalid choice 'x' for argument '--model.head'"),
        (["train", "dt", "--model.layout", "xx"], "model.layout: expected distinct letters of R, s, a, r with an s"),
        (["train", "dtt", "--data", "x"], "recipe: expected one of dt, "),
        (["train"], "train: recipe: expected one of dt, "),
        (["train", "--data", "x"], " as the first word, got none"),
        (["train", "dt"], "train: data: expected --data with a file, folder or URI, got none"),
        (["train", "dt", "--data"], "Missing value for argument '--data'"),
        (["train", "dt", "--data=x", "--seeds=3-1"], "scanrl: seeds: expected a range that rises, got '3-1'\n"),
        (["train", "dt", "--data=x", "--seeds", "1,1"], "scanrl: seeds: expected each one once, got 1 twice\n"),
        (
            ["train", "dt", "--data=x", "--seeds=1-2", "--seed=3"],
            "scanrl: train: seeds: expected --seed or --seeds, got both (--seeds 1-2)\n",
        ),
        (["train", "dt", "--config", "none.yaml"], "none.yaml: expected a readable YAML file, got: No such file"),
        (["models", "--observations", "0"], "models: --observations: expected at least 1 and finite, got 0"),
        (["demo", "--seconds", "nan"], "demo: --seconds: expected at least 0 and finite, got nan"),
        (["demo", "--episodes", "0"], "demo: --episodes: expected at least 1 and finite, got 0"),
        (["eval", "x", "--num-envs", "0"], "eval: --num-envs: expected at least 1 and finite, got 0"),
        (["eval", "x", "--seed", "-1"], "eval: --seed: expected at least 0 and finite, got -1"),
        (["eval", "none"], "none: expected a run folder or a checkpoint, got nothing"),
        (["resume", "none"], "none: expected a run folder (with config.yaml), got nothing"),
    ],
)
def test_a_wrong_command_says_what_was_expected(words, message, failing):
    assert message in failing(*words)


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_complaints_about_options_are_short_on_every_terminal(encoding, failing, monkeypatch):
    monkeypatch.setattr(type(sys.stdout), "encoding", encoding, raising=False)
    for words in (
        ["train", "dt", "--train.step", "5"],
        ["train", "dt", "--eval.context", "x"],
        ["eval", "x", "--context", "y"],
    ):
        assert len(failing(*words)) < 160


def test_debug_shows_where_an_error_came_from(capsys):
    assert main(["--debug", "resume", "none"]) == 2
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "in open_run" in said
    assert said.splitlines()[-1].startswith("scanrl: none: expected a run folder")


@pytest.mark.parametrize(
    "error, code, text",
    [
        (OSError(28, "No space left on device", "f"), 4, "scanrl: out of resources: f: No space left on device"),
        (OSError(27, "File too large"), 4, "scanrl: out of resources: File too large"),
        (MemoryError(), 4, "scanrl: out of resources: memory (a smaller train.batch_size, "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: x"), 4, "out of resources: memory"),
        (PermissionError(13, "Permission denied", "f"), 2, "scanrl: f: Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "f"), 2, "scanrl: f: No such file or directory"),
        (KeyboardInterrupt(), 130, "scanrl: interrupted"),
        (RuntimeError("first\n  second"), 1, "scanrl: RuntimeError: first second"),
        (SystemExit("bye"), 1, ""),
        (SystemExit(5), 5, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_every_error_has_its_exit_code_and_one_line(error, code, text, capsys, monkeypatch):
    def fail(words):
        raise error

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert main(["x"]) == code
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == (1 if text else 0)


def test_a_size_beyond_memory_is_out_of_resources(failing, tmp_path):
    write_store(make_dataset(CARTPOLE), tmp_path / "data")
    words = ["train", "bc", "--data", str(tmp_path / "data"), "--model.width=1000000000000000"]
    assert "out of resources: memory (a smaller train.batch_size, " in failing(*words, code=4)


def test_models_are_listed_with_their_sizes(capsys):
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["observations"], found["actions"]) == (11, 3)
    assert [row["recipe"] for row in found["recipes"]] == list(RECIPES)
    assert all(row["parameters"] > 0 and row["context"] > 0 and row["about"] for row in found["recipes"])
    assert main(["models", "--discrete", "--actions", "4"]) == 0
    assert all(name in capsys.readouterr().out for name in ["dmm-dc"])


# Settings


def test_printed_settings_can_be_fed_back(tmp_path, capsys):
    words = [
        "--steps=77",
        "--eval.targets",
        "1.5",
        "3600",
        "--model.context=12",
        "--train.learning-rate=1e-7",
        "--env=A-v0",
    ]
    assert main(["train", "dmm-c", *words, "--print-config"]) == 0
    first = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(first)
    for again in (["dmm-c", "--config", str(tmp_path / "c.yaml")], [f"--config={tmp_path / 'c.yaml'}"]):
        assert main(["train", *again, "--print-config"]) == 0
        assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["eval"]["targets"] == [1.5, 3600.0]


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("train: {steps: 5, seed: 6}\nmodel: {width: 32}\n")
    words = [
        "train",
        "dt",
        "--config",
        str(tmp_path / "c.yaml"),
        "--train.seed",
        "7",
        "--val-split=0.25",
        "--print-config",
    ]
    assert main(words) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["recipe"], found["train"]["steps"], found["train"]["seed"], found["model"]["width"]) == (
        "dt",
        5,
        7,
        32,
    )
    assert (found["train"]["validation"], found["model"]["pattern"]) == (0.25, "(attention mlp)*3")


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "trian: {}",
            "trian: expected one of recipe, data, env, model, train, eval, got 'trian' (did you mean 'train'?)",
        ),
        ("train: {lerning_rate: 1}", "train.lerning_rate: expected one of "),
        ("train: {steps: many}", "train.steps: expected int, got 'many'"),
        ("recipe: bc", "recipe: expected 'dt', got settings of 'bc'"),
        ("1: 2", "1: expected one of recipe, "),
        (
            "x: !!python/object/apply:os.system ['touch sentinel']",
            "c.yaml: expected plain YAML, got: could not determine",
        ),
    ],
)
def test_a_wrong_file_of_settings_is_refused(tmp_path, text, message, failing):
    (tmp_path / "c.yaml").write_text(text)
    assert message in failing("train", "dt", "--config", str(tmp_path / "c.yaml"), "--data", "x")


def test_a_folder_in_use_is_refused_before_training(tmp_path, failing):
    write_store(make_dataset(), tmp_path / "data")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    words = ["train", "bc", "--data", str(tmp_path / "data"), *SMALL, "--out"]
    assert "out: expected a new or empty folder, got one in use" in failing(*words, str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == ["notes"]
    message = "notes/run: expected a folder that can be written, got: Not a directory"
    assert message in failing(*words, str(tmp_path / "out" / "notes" / "run"))


def test_it_also_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "scanrl", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "scanrl"), done.stderr
