"""Ids of environments that carry options."""

import gymnasium as gym
import pytest

from scanrl.cli import main
from scanrl.envs.ids import base_id, full_id, id_of, split_id
from scanrl.envs.make import environment_spec, make_environment
from scanrl.envs.reference_scores import reference_score
from scanrl.run import open_run
from scanrl.types import DataError

OPTIONS = {"size": 17, "start": "corner", "ends": True, "word": "17", "share": 0.5, "noise": 1e-05}


def test_options_come_back_as_what_they_were():
    text = full_id("Room-v0", OPTIONS)
    assert text == "Room-v0@ends=true,noise=1.0e-05,share=0.5,size=17,start=corner,word='17'"
    assert split_id(text) == ("Room-v0", OPTIONS)
    assert split_id("Room-v0@noise=1e-5")[1] == {"noise": 1e-05}
    assert base_id(text) == base_id("Room-v0") == full_id("Room-v0", {"shape": (1, 2), "joined": "a,b"}) == "Room-v0"


def test_an_environment_names_the_options_that_are_not_the_usual_ones():
    made = make_environment("Darkroom-v0@size=5,start=corner", {"task": 3, "start": "centre"})
    assert made.unwrapped.family.task_count == 25
    assert id_of(made) == "Darkroom-v0@size=5,start=centre"
    assert environment_spec("Darkroom-v0@size=5").env_id == "Darkroom-v0@size=5"
    assert environment_spec("scanrl.envs:Darkroom-v0@size=5").env_id == "scanrl.envs:Darkroom-v0@size=5"
    for plain in ("Darkroom-v0", "CartPole-v1"):
        assert id_of(gym.make(plain, render_mode="rgb_array")) == plain


def test_an_environment_with_other_options_has_no_scale():
    assert reference_score("Darkroom-v0") == reference_score("scanrl.envs:Darkroom-v0") is not None
    assert reference_score("Darkroom-v0@size=5") is None


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ("Darkroom-v0@", "Darkroom-v0@: options: expected name=value, got ''"),
        ("Darkroom-v0@size", "Darkroom-v0@size: options: expected name=value, got 'size'"),
        ("Darkroom-v0@sise=3", "Darkroom-v0: Darkroom: option: expected one of task, tasks, size, "),
        ("CartPole-v1@a=3", "CartPole-v1: cannot be made with {'a': 3}: TypeError"),
        ("Darkrom-v0@size=3", "Darkrom-v0: no such environment; did you mean Darkroom-v0"),
    ],
)
def test_what_is_wrong_is_said(env, told):
    with pytest.raises(DataError, match=told):
        make_environment(env)


def test_a_room_of_ones_own_is_recorded_learned_and_played(tmp_path, capsys):
    store, run = str(tmp_path / "room.ds"), str(tmp_path / "run")
    words = ["--histories", "--learner", "posterior", "--tasks", "10", "--steps", "60", "--history-episodes", "3"]
    assert main(["collect", "--env", "Darkroom-v0", "--env-options", "size=4", *words, "-o", store]) == 0
    small = ["--model.width", "16", "--train.context-episodes", "2", "--train.batch-size", "2"]
    assert main(["train", "ad-mamba", "--data", store, "--steps", "1", *small, "--out", run]) == 0
    assert open_run(run).checkpoint().spec.env_id == "Darkroom-v0@size=4"
    capsys.readouterr()
    assert main(["eval", run, "--new-tasks", "3", "--episodes", "2"]) == 0
    assert "Darkroom-v0@size=4, 3 tasks" in capsys.readouterr().out
    assert main(["eval", run, "--env", "Darkroom-v0@size=4,horizon=7", "--tasks", "1", "--episodes", "2"]) == 0
    assert "horizon=7" in capsys.readouterr().out
