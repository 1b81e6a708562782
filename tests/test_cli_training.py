import json
import os
import resource
import shutil
from dataclasses import replace

import pytest

from scanrl.checkpoint import checkpoints_of, load_checkpoint
from scanrl.cli import main
from scanrl.data import read_store, write_store
from scanrl.run import open_run
from tests.conftest import make_dataset
from tests.recordings import npz
from tests.runs import CARTPOLE, LONG, PENDULUM, SMALL, ended, fit, fork, stop_at

pytestmark = pytest.mark.usefixtures("elsewhere")


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


def test_several_seeds_are_trained_stopped_and_resumed_together(tmp_path, elsewhere, capsys, monkeypatch):
    path = npz(tmp_path / "log.npz", make_dataset(CARTPOLE))
    words = ["train", "dmm-dc", "--data", str(path), "--env", "CartPole-v1", "--steps=4", *SMALL]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        assert main([*words, "--seeds=2,0-1"]) == 143
    parent = elsewhere / "outputs" / "train" / "dmm-dc-log-0"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "scanrl: stopped by SIGTERM; continue with: scanrl resume outputs/train/dmm-dc-log-0"
    assert main(["resume", "outputs/train/last"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["seed", "train/loss", "val/loss", "eval/return_mean", "eval/normalized_score"]
    assert [line.split()[0] for line in said[1:7]] == ["2", "0", "1", "mean", "std", "95"]
    assert said[7:] == [
        "runs: outputs/train/last",
        "next: scanrl eval outputs/train/last/seed-2 --env CartPole-v1",
    ]
    assert main(["eval", str(parent / "seed-1"), "--episodes=1"]) == 0
    assert main([*words, "--seeds=5", "--out=one"]) == 0
    assert open_run("one").config.train.seed == 5
    assert main([*words, "--seeds=5-6", "--out=one"]) == 2
    said = capsys.readouterr().err
    assert said.endswith(
        "scanrl: one: expected a new or empty folder, got one in use (scanrl resume one continues a run)\n"
    )


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


def test_a_model_that_predicts_its_return_is_scored_without_a_target_in_every_way_of_acting(
    tmp_path, elsewhere, capsys
):
    data = make_dataset(CARTPOLE)
    write_store(data.with_spec(replace(data.spec, env_id="CartPole-v1")), tmp_path / "data")
    small = ["--model.width=8", "--model.context=4", "--train.batch-size=4", "--steps=1"]
    train = ["train", "edt", "--data", str(tmp_path / "data"), "--out=run", *small]
    assert main([*train, "--eval.targets", "5"]) == 2
    assert "eval.targets: expected none (recipe edt takes none), got [5.0]" in capsys.readouterr().err
    assert main(train) == 0
    for context in ("recurrent", "3", "elastic"):
        capsys.readouterr()
        assert main(["eval", "run", "--episodes=2", f"--context={context}"]) == 0
        said = capsys.readouterr().out
        assert said.splitlines()[1].split()[0] == "-"
        assert f"context {context}," in said
    assert main(["eval", "run", "--target-return=5"]) == 2
    assert "targets: expected none (this policy takes no target return)" in capsys.readouterr().err


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
    wanted = "eval: --context: expected own, recurrent, elastic or a number of steps, got"
    for word in ("0", "x", "-3", "1.5"):
        assert f"{wanted} '{word}'" in failing("eval", str(trained), "--env=CartPole-v1", f"--context={word}")
    said = failing("eval", str(trained), "--env=CartPole-v1", "--context=elastic")
    assert "expected 'recurrent' or a number of steps, got 'elastic' (this model predicts no return)" in said


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
