"""Actions and observations of several parts, from an environment's spaces to a model's action and back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces

from scanrl import preflight
from scanrl.data import Dataset, check, read_store, write_store
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.kernels import native
from scanrl.models.decision import DecisionModel
from scanrl.nn import ModelConfig
from scanrl.policy import Policy
from scanrl.rollout import RandomActor, RolloutError, environment_spec, rollout
from scanrl.spaces import as_space, spec_of
from scanrl.stats import Stats
from scanrl.structure import action_row, flat_observations, structured_actions
from scanrl.types import DataError, Spec
from tests.conftest import BOX, make_dataset
from tests.spaces_cases import ACTIONS, DICT_ACTION, DICT_SEEN, IMAGE, MOVE, SEVERAL, VECTOR, Sampled

SMALL = ModelConfig(pattern="modal_conv mamba", width=16, context=4)


def recorded(taken: spaces.Space, seen: spaces.Space = VECTOR, episodes: int = 4) -> Dataset:
    spec = environment_spec(Sampled(seen, taken))
    played = rollout(RandomActor(spec), lambda: Sampled(seen, taken), episodes=episodes)
    return Dataset.from_trajectories(played, spec=spec, name="made-up")


def model_of(data: Dataset, **changes: object) -> DecisionModel:
    return DecisionModel(replace(SMALL, **changes), data.spec, Stats.fit(data))


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_an_action_of_a_space_survives_its_recorded_row(space):
    spec = spec_of("toy", VECTOR, space)
    space.seed(0)
    for _ in range(20):
        action = space.sample()
        row = action_row(spec, action).astype(spec.action_dtype)
        assert row.shape == spec.action_shape
        again = as_space(space, structured_actions(spec, row))
        assert space.contains(again)
        flat = [spaces.flatten(space, x) for x in (action, again)]
        np.testing.assert_allclose(*flat, rtol=1e-6)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("sample", [False, True])
def test_a_policy_gives_what_the_action_space_accepts(space, sample):
    data = recorded(space)
    policy = Policy(model_of(data), sample=sample)
    seen = VECTOR.sample()
    assert space.contains(as_space(space, policy.act(seen)))
    policy.reset()
    batched = policy.act(np.stack([seen, seen]))
    rows = action_row(data.spec, batched)
    assert rows.shape == (2, data.spec.action_size)
    assert rollout(policy, lambda: Sampled(VECTOR, space), episodes=2)[0].actions.dtype == data.spec.action_dtype


def test_parts_come_back_by_name_and_in_order():
    policy = Policy(model_of(recorded(DICT_ACTION)))
    action = policy.act(VECTOR.sample())
    assert list(action) == ["fire", "gears", "move"]  # Gymnasium sorts them
    assert (action["move"].dtype, action["move"].shape) == (np.float32, (2,))
    assert 2 <= action["fire"] < 5
    assert action["gears"].shape == (2,)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("context", ["recurrent", 7])
def test_acting_on_recorded_episodes_is_the_training_forward(space, context):
    data = recorded(space)
    model = model_of(data, context=7).eval()
    (whole,) = iterate_windows(data.select([1]), 7, 1)
    with torch.inference_mode():
        expected = model.actions(whole)[0].numpy()
    policy = Policy(model, context=context, target_return=data.returns[1])
    episode = data[1]
    for step in range(len(episode)):
        found = policy.act(episode.observations[step], episode.rewards[step - 1] if step else 0.0)
        row = action_row(data.spec, found)
        np.testing.assert_allclose(row, expected[step], atol=2e-5, err_msg=f"step {step}")
        assert policy._last is not None
        policy._last = policy._last._replace(action=episode.actions[step][None])  # what the recording did


def test_the_loss_is_the_sum_over_the_parts():
    data = recorded(DICT_ACTION)
    model = model_of(data).eval()
    batch = WindowSampler(data, 4, 8, 0).sample()
    hidden, _ = model(batch)
    scaled = model.tokens.scale_actions(batch.actions)
    logits = model.head.heads[0].linear(hidden)[batch.mask]
    fire = torch.nn.functional.cross_entropy(logits, batch.actions[..., 0][batch.mask].long())
    gears = [
        torch.nn.functional.cross_entropy(
            model.head.heads[1 + i].linear(hidden)[batch.mask], batch.actions[..., 1 + i][batch.mask].long()
        )
        for i in range(2)
    ]
    move = ((torch.tanh(model.head.heads[3].linear(hidden)) - scaled[..., 3:])[batch.mask] ** 2).mean()
    assert scaled[batch.mask][:, 3:].abs().max() <= 1.0 + 1e-6
    assert scaled[batch.mask][:, 3:].min() < -0.5
    torch.testing.assert_close(model.loss(batch), fire + sum(gears) + move)


@pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)
def test_every_part_is_learned(space):
    data = recorded(space, episodes=1)
    model = model_of(data)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    (batch,) = iterate_windows(data, 7, 1)
    for _ in range(150):
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    found = model.tokens.scale_actions(model.eval().actions(batch))
    assert (found - model.tokens.scale_actions(batch.actions)).abs().max() < 0.25


def test_several_parts_keep_their_data_in_a_store_and_its_fingerprint(tmp_path):
    for name, space in ACTIONS.items():
        data = recorded(space, DICT_SEEN)
        again = read_store(write_store(data, tmp_path / name))
        assert again.spec == data.spec
        assert again.fingerprint == data.fingerprint
        np.testing.assert_array_equal(again.actions, data.actions)


def test_a_spec_of_an_older_release_says_the_same():
    older = {
        "observation_shape": [5],
        "action_kind": "continuous",
        "action_size": 2,
        "action_low": [-1.0, -2.0],
        "action_high": [1.0, 4.0],
        "env_id": None,
    }
    assert Spec.from_json(older) == BOX
    assert json.loads(json.dumps(BOX.to_json())) == older  # and so does its fingerprint
    assert make_dataset().fingerprint == "edaf612b280777960c0b0ed7143553e35384b1e5caf25b78a789140746630c8a"


def test_a_choice_out_of_range_is_named_by_entry_and_step():
    data = recorded(DICT_ACTION)
    data.actions[9, 0] = 3
    assert check(data) == ["made-up: episode 1: step 2: actions[0]: expected 0 to 2, got 3.0"]
    data.actions[9, 0] = 0.5
    assert check(data) == ["made-up: episode 1: step 2: actions[0]: expected 0 to 2, got 0.5"]
    several = recorded(SEVERAL)
    several.actions[0, 2] = -1
    assert check(several) == ["made-up: episode 0: step 0: actions[2]: expected 0 to 4, got -1"]


def test_actions_of_another_width_are_refused():
    data = recorded(DICT_ACTION)
    columns = {**data.columns, "actions": data.actions[:, :3]}
    with pytest.raises(DataError, match=r"^x: actions: expected shape \(5,\) per step, got \(3,\)$"):
        Dataset.from_arrays(**columns, spec=data.spec, name="x")


def test_dictionary_observations_become_one_vector_in_the_recorded_order():
    spec = spec_of("toy", DICT_SEEN, MOVE)
    assert [part.name for part in spec.observation_parts] == ["keys", "place", "room"]
    seen = {"room": 1, "place": np.arange(4.0).reshape(2, 2), "keys": np.array([1, 0])}
    np.testing.assert_array_equal(flat_observations(spec, seen), [1, 0, 0, 1, 2, 3, 0, 1, 0])
    np.testing.assert_array_equal(
        flat_observations(spec, seen), spaces.flatten(DICT_SEEN, {k: seen[k] for k in ("keys", "place", "room")})
    )


def test_a_policy_reads_a_dictionary_for_one_stream_and_for_many():
    data = recorded(MOVE, DICT_SEEN)
    policy = Policy(model_of(data))
    seen = DICT_SEEN.sample()
    one = policy.act(seen)
    policy.reset()
    many = policy.act({key: np.stack([value, value]) for key, value in seen.items()})
    np.testing.assert_allclose(many[1], one, atol=1e-6)
    policy.reset()
    np.testing.assert_array_equal(policy.act(flat_observations(data.spec, seen)), one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda seen: {**seen, "rom": 1},
            r"^observations: rom: expected the entries \['keys', 'place', 'room'\], got ",
        ),
        (lambda seen: {"keys": seen["keys"], "place": seen["place"]}, r"^observations: room: expected the entries"),
        (lambda seen: {**seen, "place": np.zeros(3)}, r"^observations: place: expected shape \(2, 2\), got \(3,\)$"),
        (
            lambda seen: {**seen, "room": 3},
            r"^observations: room: expected choices from 0, fewer than \[3\], got \[3\]",
        ),
    ],
)
def test_a_wrong_dictionary_is_refused_and_changes_no_stream(change, message):
    policy = Policy(model_of(recorded(MOVE, DICT_SEEN)))
    seen = DICT_SEEN.sample()
    policy.act(seen)
    before = policy._last
    with pytest.raises(DataError, match=message):
        policy.act(change(seen))
    assert policy._last is before


def test_a_model_of_some_entries_is_shown_these_in_its_order():
    data = recorded(MOVE, DICT_SEEN)
    some = replace(
        data.spec,
        observation_shape=(5,),
        observation_parts=tuple(data.spec.observation_parts[i] for i in (2, 0)),
    )
    columns = {**data.columns, "observations": data.observations[:, [6, 7, 8, 0, 1]]}
    model = model_of(Dataset(columns, data.offsets, some))
    spec = environment_spec(Sampled(DICT_SEEN, MOVE), like=some)
    assert some.difference(spec) is None
    played = rollout(Policy(model), lambda: Sampled(DICT_SEEN, MOVE), episodes=1, like=some)[0]
    assert played.observations.shape == (7, 5)
    assert (played.observations[:, :3].sum(1) == 1).all()


def test_choices_as_the_whole_observation_become_zeros_and_a_one():
    data = recorded(MOVE, spaces.Discrete(4))
    assert data.observations.shape[1:] == (4,)
    assert (data.observations.sum(1) == 1).all()
    policy = Policy(model_of(data))
    one = policy.act(3)
    policy.reset()
    np.testing.assert_array_equal(policy.act(np.eye(4, dtype=np.float32)[3]), one)


@pytest.mark.parametrize(
    ("seen", "taken", "message"),
    [
        (spaces.Dict({"eye": IMAGE, "x": VECTOR}), MOVE, r"eye: expected numbers or choices in a Dict, got an image"),
        (spaces.Text(3), MOVE, r"^toy: observation space: expected Box, .* got Text"),
        (VECTOR, spaces.Box(0, 1, (2, 2)), r"^toy: action space: expected Discrete, Box of shape \(A,\), .* got Box"),
        (VECTOR, spaces.Dict({"a": spaces.Tuple((MOVE,))}), r"^toy: action space: a: expected Box, Discrete, Multi"),
        (VECTOR, spaces.MultiDiscrete([[2, 3]]), r"^toy: action space: expected one axis"),
    ],
)
def test_spaces_without_a_spec_are_refused_in_one_line(seen, taken, message):
    with pytest.raises(DataError, match=message) as error:
        spec_of("toy", seen, taken)
    assert "\n" not in str(error.value)


def test_an_actor_that_leaves_out_a_part_is_told_so():
    class Forgetful(RandomActor):
        def act(self, *seen):
            return {k: v for k, v in super().act(*seen).items() if k != "fire"}

    spec = environment_spec(Sampled())
    with pytest.raises(DataError, match=r"^Sampled: action: fire: expected the entries \['fire', 'gears', 'move'\]"):
        rollout(Forgetful(spec), Sampled, episodes=1)


def test_an_observation_that_is_not_of_its_space_names_the_episode_and_step():
    class Broken(Sampled):
        def step(self, action):
            seen, *rest = super().step(action)
            return ({"place": seen["place"]}, *rest)

    def make():
        return Broken(DICT_SEEN)

    with pytest.raises(RolloutError, match=r"^Broken: episode 0: step 0: observations: keys: expected the entries"):
        rollout(RandomActor(environment_spec(make())), make, episodes=1)


def test_models_of_other_parts_do_not_fit():
    ours = spec_of("toy", VECTOR, DICT_ACTION)
    other = spec_of("toy", VECTOR, spaces.Dict({**DICT_ACTION.spaces, "fire": spaces.Discrete(2)}))
    assert ours.difference(other) == "action_parts: expected fire: choices of [3], got fire: choices of [2]"


@pytest.mark.parametrize(("head", "space"), [("categorical", DICT_ACTION), ("regression", SEVERAL)])
def test_a_head_that_does_not_serve_the_parts_is_refused(head, space):
    with pytest.raises(DataError, match=r"^model.head: expected a head for (mixed|multi_discrete) actions"):
        model_of(recorded(space), head=head)


def test_policies_of_several_parts_step_in_torch_and_say_why():
    if native.extension()[0] is None:
        pytest.skip("no native step here at all")
    choice = Policy(model_of(recorded(DICT_ACTION))).step_choice()
    assert (choice.impl, choice.reason) == ("reference", "actions of several parts have no native step")


def test_rows_of_a_file_are_choices_where_the_environment_says_so(monkeypatch):
    monkeypatch.setattr(preflight, "environment_spec", lambda env, like: environment_spec(Sampled(VECTOR, SEVERAL)))
    data = recorded(SEVERAL)
    told = Dataset.from_arrays(**{**data.columns, "actions": data.actions.astype(np.float64)}, name="log")
    assert told.spec.action_kind == "continuous"
    found = preflight.bounded(told, "Sampled-v0")
    assert found.spec == data.spec
    assert found.fingerprint == told.fingerprint  # of the file's data, so that a run resumes
    np.testing.assert_array_equal(found.actions, data.actions)
    told.actions[9, 2] = 1.5
    with pytest.raises(DataError, match=r"^log: episode 1: step 2: actions\[2\]: expected 0 to 4, got 1.5$"):
        preflight.bounded(told, "Sampled-v0")


def test_real_entries_outside_their_part_are_refused(monkeypatch):
    monkeypatch.setattr(preflight, "environment_spec", lambda env, like: environment_spec(Sampled()))
    data = recorded(DICT_ACTION)
    assert preflight.bounded(data, "Sampled-v0").spec == data.spec
    data.actions[3, 4] = 40.0
    with pytest.raises(DataError, match=r"^made-up: actions\[4\]: expected within 10 to 30 \(Sampled-v0\), got 40 "):
        preflight.bounded(data, "Sampled-v0")
