import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import yaml

from scanrl import __version__, cli
from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.cli import VERBS, main
from scanrl.data import read_store, write_store
from scanrl.models.recipes import RECIPES
from scanrl.run import open_run
from scanrl.types import Spec
from tests.conftest import make_dataset
from tests.test_training import LONG, ended, fit, fork, stop_at

CARTPOLE = Spec((4,), "discrete", 2)
PENDULUM = Spec((3,), "continuous", 1)
SMALL = [
    "--model.width=8",
    "--model.pattern=modal_conv mamba",
    "--model.state-size=4",
    "--context=4",
    "--train.batch-size=4",
    "--train.log-every=1",
    "--train.checkpoint-every=3",
    "--eval.episodes=2",
    "--eval.num-envs=2",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory and a cache of its own."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def failing(capsys, elsewhere):
    """Run a command that must fail: one line on standard error, nothing on standard output, nothing written."""

    def run(*words, code=2):
        before = sorted(elsewhere.rglob("*"))
        assert main(list(words)) == code
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("scanrl: ")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        assert sorted(elsewhere.rglob("*")) == before
        return said.err

    return run


def npz(path, dataset, **changes):
    """The episodes as an archive; a change of `None` leaves a column out."""
    columns = {**dataset.columns, **changes}
    np.savez(path, **{name: column for name, column in columns.items() if column is not None})
    return path


def hdf5(path, dataset, **changes):
    columns = dict(
        zip(("observations", "actions", "rewards", "terminals", "timeouts"), dataset.columns.values(), strict=True)
    )
    with h5py.File(path, "w") as file:
        for name, column in {**columns, **changes}.items():
            if column is not None:
                file[name] = column
    return path


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
        "--config",
        "--print-config",
        "--model.width",
        "--train.steps",
        "--eval.every",
    ],
    "resume": ["RUN"],
    "eval": ["RUN", "--env", "--episodes", "--target-return", "--sweep-targets", "--context", "--save", "--json"],
    "bench speed": ["--threads", "--json"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_help_names_the_options_of_every_verb(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    said = capsys.readouterr()
    assert f"usage: scanrl {verb}" in said.out
    assert all(option in said.out for option in OPTIONS[verb])
    assert said.err == ""


@pytest.mark.parametrize("family, verb", [("data", "data convert"), ("bench", "bench speed")])
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


# Data


@pytest.mark.parametrize("verb", ["train", "data info", "data convert", "data validate"])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda d: None, "x: expected an existing path or <format>:<path>"),
        (lambda d: d.write_text("hello"), "x: expected an HDF5 file, an npz archive or a store, got something else"),
        (lambda d: d.mkdir(), "x: expected a store (a folder with manifest.json), got another folder"),
        (lambda d: d.write_bytes(b""), "x: expected an HDF5 file, an npz archive or a store, got something else"),
    ],
    ids=["missing", "text", "folder", "empty"],
)
def test_data_of_no_known_kind_is_named(tmp_path, verb, make, message, failing):
    path = tmp_path / "x"
    make(path)
    words = {"train": ["train", "dt", "--data"], "data convert": ["data", "convert", "-o", "out"]}.get(
        verb, verb.split()
    )
    assert message in failing(*words, str(path))


def cut(path, size):
    os.truncate(path, int(path.stat().st_size * size))
    return path


def spoiled(column, index, value):
    column = column.copy()
    column[index] = value
    return column


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p, d: cut(hdf5(p / "x.h5", d), 0.5), "x.h5: unreadable ("),
        (lambda p, d: cut(npz(p / "x.npz", d), 0.5), "x.npz: unreadable ("),
        (lambda p, d: hdf5(p / "x.h5", d, rewards=None), "x.h5: rewards: expected an array of this name, got "),
        (lambda p, d: npz(p / "x.npz", d, actions=None), "x.npz: actions: expected"),
        (lambda p, d: hdf5(p / "x.h5", d, rewards=d.rewards[:-1]), "x.h5: observations: expected "),
        (lambda p, d: npz(p / "x.npz", d, actions=d.actions[:-3]), "x.npz: actions: expected "),
        (
            lambda p, d: hdf5(p / "x.h5", d, rewards=spoiled(d.rewards, 2, np.nan)),
            "x.h5: episode 0: step 2: rewards: expected finite numbers, got nan",
        ),
        (
            lambda p, d: npz(p / "x.npz", d, observations=spoiled(d.observations, (0, 1), -np.inf)),
            "x.npz: episode 0: step 0: observations: expected finite numbers, got -inf",
        ),
        (lambda p, d: npz(p / "x.npz", d), "x.npz: observation_shape: expected (4,), got (5,) (from CartPole-v1)"),
    ],
    ids=["hdf5 cut", "npz cut", "no rewards", "no actions", "rewards short", "actions short", "nan", "inf", "env"],
)
def test_training_on_data_that_cannot_be_used_names_file_and_field(tmp_path, make, message, failing):
    path = make(tmp_path, make_dataset())
    said = failing("train", "dmm-dc", "--data", str(path), "--env", "CartPole-v1", *SMALL)
    assert f"scanrl: {message}" in said


def test_validation_lists_every_problem_and_exits_with_one(tmp_path, capsys):
    data = make_dataset(CARTPOLE)
    good = npz(tmp_path / "good.npz", data)
    assert main(["data", "validate", str(good)]) == 0
    assert "12 episodes" in capsys.readouterr().out
    path = npz(
        tmp_path / "bad.npz",
        data,
        rewards=spoiled(data.rewards, 1, np.nan),
        observations=spoiled(data.observations, (0, 0), np.inf),
        actions=spoiled(data.actions, 2, -1),
    )
    assert main(["data", "validate", str(path)]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("bad.npz: episode 0: step ") for line in lines)
    assert {line.split(": ")[3] for line in lines} == {"observations", "rewards", "actions"}


def test_data_info_and_convert(tmp_path, capsys):
    data = make_dataset()
    path = hdf5(tmp_path / "x.h5", data)
    assert main(["data", "info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["steps"], found["observation_shape"]) == (12, data.steps, [5])
    assert main(["data", "info", f"d4rl:{path}"]) == 0
    assert "return_max" in capsys.readouterr().out
    assert main(["data", "convert", str(path), "-o", "out"]) == 0
    assert f"{data.steps} steps, fingerprint" in capsys.readouterr().out
    assert read_store("out").steps == data.steps
    assert main(["data", "convert", str(path), "-o", "out"]) == 2
    assert "out: expected a new or empty folder, got one with files" in capsys.readouterr().err
    assert main(["data", "convert", str(path), "-o", "out", "--overwrite"]) == 0
    assert main(["data", "convert", str(path), "-o", str(path / "below")]) == 2


def test_data_that_needs_an_option_of_its_reader_can_be_read_by_the_command(tmp_path, capsys):
    data = make_dataset(CARTPOLE)
    first = int(data.lengths[0])
    open_end = {"terminals": data.terminations.copy(), "timeouts": data.truncations.copy()}
    for flags in open_end.values():
        flags[-1] = False
    path = hdf5(tmp_path / "x.h5", data, rewards=spoiled(data.rewards, 1, np.nan), **open_end)
    for words in (["info"], ["convert", "-o", "out"]):
        assert main(["data", *words, str(path)]) == 2
        assert "x.h5: episode 0: step 1: rewards: expected finite numbers" in capsys.readouterr().err
    options = ["--nonfinite=drop-episode", "--tail=drop", "--env-id=CartPole-v1", "--memory-gib=3", "--timeout=50"]
    assert main(["data", "validate", str(path), *options]) == 0
    capsys.readouterr()
    assert main(["data", "info", str(path), *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["episodes"], found["env_id"]) == (10, "CartPole-v1")
    assert main(["data", "convert", str(path), "-o", "out", *options]) == 0
    kept = read_store("out")
    assert (len(kept), kept.spec.env_id) == (10, "CartPole-v1")
    assert np.array_equal(kept[0].rewards, data.rewards[first:][: len(kept[0])])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--tail=drop"], "data: --tail: expected data of format d4rl or npz, got store\n"),
        (["--observation-keys", "a", "b"], "data: --observation-keys: expected data of format minari, got store\n"),
        (["--tail=cut"], "invalid choice 'cut' for argument '--tail'"),
        (["--memory-gib=0"], "data: --memory-gib: expected more than 0 and less than a million, got 0.0\n"),
        (["--timeout=nan"], "data: --timeout: expected more than 0 and less than a million, got nan\n"),
    ],
)
def test_options_of_another_reader_are_refused_as_the_command_spells_them(tmp_path, words, message, failing):
    write_store(make_dataset(), tmp_path / "data")
    for verb in ("info", "validate"):
        assert message in failing("data", verb, str(tmp_path / "data"), *words)


def test_a_limit_that_is_too_low_names_the_option_that_raises_it(tmp_path, failing):
    path = hdf5(tmp_path / "x.h5", make_dataset(), rewards=None)
    with h5py.File(path, "a") as file:
        file.create_dataset("rewards", (2**38,), "f8", chunks=(1024,))
    said = failing("data", "convert", str(path), "-o", "out", "--memory-gib=3")
    assert "expected at most 2.25 GiB in all" in said
    assert said.endswith("raise memory_gib: scanrl data convert --memory-gib)\n")


def test_a_damaged_store_exits_with_three(tmp_path, failing):
    store = write_store(make_dataset(), tmp_path / "data")
    content = bytearray((store / "rewards.npy").read_bytes())
    content[-1] ^= 1
    (store / "rewards.npy").write_bytes(content)
    assert "data/rewards.npy: sha256: expected " in failing("train", "dt", "--data", str(store), code=3)


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


# From data to a score


@pytest.mark.parametrize(
    "spec, env", [(CARTPOLE, "CartPole-v1"), (PENDULUM, "Pendulum-v1")], ids=["discrete", "continuous"]
)
def test_train_stop_resume_and_score(tmp_path, elsewhere, capsys, monkeypatch, spec, env):
    path = npz(tmp_path / "log.npz", make_dataset(spec))
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert main(["train", "dmm-dc", "--data", str(path), "--env", env, "--steps=4", *SMALL]) == 143
    run = elsewhere / "outputs" / "train" / "dmm-dc-log-0"
    said = capsys.readouterr()
    assert (
        said.err.splitlines()[-1]
        == "scanrl: stopped by SIGTERM; continue with: scanrl resume outputs/train/dmm-dc-log-0"
    )
    assert load_checkpoint(run).step == 2
    assert main(["resume", "outputs/train/last"]) == 0
    said = capsys.readouterr().out
    assert "eval/return_mean" in said
    assert f"next: scanrl eval outputs/train/last --env {env}" in said
    assert load_checkpoint(run).step == 4

    assert main(["eval", str(run), "--episodes=3", "--target-return", "auto", "5", "--json", "--save", "played"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["env_id"], second["target_return"], len(first["returns"])) == (env, 5.0, 3)
    assert first["dataset"] == load_checkpoint(run).about["fingerprint"]
    played = read_store("played")
    assert played.returns.tolist() == first["returns"] + second["returns"]
    assert main(["eval", str(run), "--episodes=2", "--context=3", "--sweep-targets"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 6
    assert f"{env}, context 3, seed 1000; 1 training run: no interval over seeds" in said
    assert main(["data", "validate", "played"]) == 0
    assert main(["eval", str(run), "--episodes=1"]) == 0
    last = "trained on windows of 4 steps: --context 4 recomputes that window and may score very differently"
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_behaviour_cloning_is_scored_without_a_target_and_the_data_names_its_environment(tmp_path, elsewhere, capsys):
    data = make_dataset(CARTPOLE)
    write_store(data.with_spec(replace(data.spec, env_id="CartPole-v1")), tmp_path / "data")
    assert main(["train", "bc", "--data", str(tmp_path / "data"), "--steps=1", "--out=run"]) == 0
    assert "next: scanrl eval run --env CartPole-v1\n" in capsys.readouterr().out
    for words in ([], ["--sweep-targets"]):
        assert main(["eval", "run", "--episodes=2", *words]) == 0
        row = capsys.readouterr().out.splitlines()[1]
        assert row.split()[0] == "-"
    assert main(["eval", "run", "--target-return=5"]) == 2
    assert "targets: expected none" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    return fit(path, data=make_dataset(CARTPOLE), overrides={**LONG, "train.checkpoint_every": 2}, steps=3).path


def test_an_environment_that_does_not_fit_the_checkpoint_is_refused(trained, failing):
    said = failing("eval", str(trained), "--env", "Pendulum-v1")
    assert "run: observation_shape: expected (4,), got (3,) (from Pendulum-v1)" in said
    assert "env: expected an environment (the run was trained without one), got none" in failing("eval", str(trained))
    assert "did you mean CartPole-v1?" in failing("eval", str(trained), "--env", "CartPole-v9")
    assert "target_return: expected a finite number" in failing(
        "eval", str(trained), "--env=CartPole-v1", "--target-return=nan"
    )
    assert "context: expected" in failing("eval", str(trained), "--env=CartPole-v1", "--context=0")


@pytest.mark.filterwarnings("default")
def test_a_damaged_checkpoint_exits_with_three_and_a_run_falls_back_with_a_warning(trained, tmp_path, failing, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    file = run / "checkpoints" / "step-3" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "step-3/model.safetensors: sha256: expected " in failing(
        "eval", str(file.parent), "--env=CartPole-v1", code=3
    )
    assert main(["eval", str(run), "--env=CartPole-v1", "--episodes=1"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("scanrl: warning: passing over a damaged checkpoint: ")
    assert "step-3/model.safetensors: sha256: " in said
    (run / "checkpoints" / "step-2" / "stats.json").unlink()
    assert "step-3/model.safetensors: " in failing("resume", str(run), code=3)


def test_a_full_disk_leaves_the_old_checkpoint_and_exits_with_four(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("steps: 3\n", "steps: 4\n"))
    largest = max(p.stat().st_size for p in checkpoints_of(run)[-1].rglob("*"))

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))
        return main(["resume", str(run)])

    assert ended(fork(limited, tmp_path / "errors")) == 4
    said = (tmp_path / "errors").read_text().splitlines()
    assert said[-1].startswith("scanrl: out of resources: ")
    assert said[-1].endswith("File too large")
    assert "optimizer.safetensors" in said[-1]
    assert load_checkpoint(run).step == 3
    assert sorted(os.listdir(run / "checkpoints")) == ["step-2", "step-3"]
    assert main(["resume", str(run)]) == 0
    assert open_run(run).checkpoint().step == 4
