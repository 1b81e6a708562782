"""Decision Mamba-Hybrid: segments, streams, causality, and what its loss asks for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from scanrl.batch import Batch
from scanrl.checkpoint import load_checkpoint, save_checkpoint
from scanrl.models.hybrid import HybridModel, HybridState
from scanrl.models.segments import segments
from scanrl.nn import ModelConfig
from scanrl.policy import Policy
from scanrl.types import DataError
from tests.conftest import BOX, CHOICE, make_stats

SMALL = ModelConfig(
    pattern="(attention mlp)*2",
    layout="sar",
    width=16,
    context=40,
    heads=4,
    state_size=4,
    subgoal_steps=5,
    subgoal_size=8,
)
FORMS = [
    {},
    {"subgoal_prefix": True},
    {"planner_tokens": "separate"},
    {"layout": "sra"},
    {"merged": True},
    {"merged": True, "planner_tokens": "separate"},
    {"planner": "mamba mlp", "pattern": "mamba*2"},
    {"merged": True, "subgoal_choices": (3, 5, 7)},
    {"planner_tokens": "separate", "subgoal_choices": (5, 9), "subgoal_draw": "never"},
]
FORMS += [
    {"planner_tokens": "separate", "subgoal_choices": (5, 9), "planner_reads": "steps"},
    {"merged": True, "planner_reads": "actions"},
    {"merged": True, "planner_reads": "steps"},
    {"planner_tokens": "separate", "planner_reads": "actions", "subgoal_draw": "never"},
]
TORCH_FORMS = [{"merged": True, "planner_reads": "steps", "subgoal_draw": "always"}]  # which have no native step
EPISODES = [[7, 20, 3], [20, 20], [1, 1, 13]]
every_form = pytest.mark.parametrize("changes", [*FORMS, *TORCH_FORMS])
both_kinds = pytest.mark.parametrize("spec", [BOX, CHOICE])


def build(spec=BOX, **changes) -> HybridModel:
    return HybridModel(replace(SMALL, **changes), spec, make_stats(spec)).double().eval()


def make_batch(spec=BOX, seed: int = 0) -> Batch:
    """Rows of several whole episodes, padded on the right."""
    g = torch.Generator().manual_seed(seed)
    steps = [torch.cat([torch.arange(n) for n in row]) for row in EPISODES]
    most = max(map(len, steps))
    lead = len(steps), most
    timesteps = torch.stack([torch.cat([x, torch.zeros(most - len(x), dtype=torch.int64)]) for x in steps])
    mask = torch.stack([torch.arange(most) < len(x) for x in steps])
    continuous = spec.action_kind == "continuous"
    actions = torch.rand(*lead, spec.action_size, generator=g).double() * 2 - 1
    return Batch(
        observations=torch.randn(*lead, *spec.observation_shape, generator=g).double(),
        actions=actions if continuous else torch.randint(spec.action_size, lead, generator=g),
        rewards=torch.rand(*lead, generator=g).double(),
        returns_to_go=torch.zeros(lead).double(),
        timesteps=timesteps,
        mask=mask,
        goals=torch.randn(*lead, *spec.observation_shape, generator=g).double(),
        goal_values=torch.rand(*lead, generator=g).double(),
    )


def by_step(model: HybridModel, batch: Batch) -> Tensor:
    """Hidden states at the observations `(B, T, D)`, 0 where padded."""
    hidden, _, cut = model(batch)
    out = hidden.new_zeros(*batch.mask.shape, hidden.shape[-1])
    for row in range(len(out)):
        out[row, cut.steps[row][cut.valid[row]]] = hidden[row][cut.valid[row]]
    return out


def streamed(model: HybridModel, batch: Batch) -> Tensor:
    """The same, a step at a time, with the state carried over episodes."""
    tail = {"a": batch.actions, "r": batch.rewards}
    state, outs = model.initial_state(len(batch.mask)), []
    for t in range(batch.mask.shape[1]):
        if t:
            letters = [(x, tail[x][:, t - 1]) for x in model.config.layout[1:]]
            _, state = model.feed(letters, batch.timesteps[:, t - 1], state)
        hidden, state = model.feed([("s", batch.observations[:, t])], batch.timesteps[:, t], state)
        outs.append(model.norm(hidden))
    return torch.stack(outs, 1)


def test_segments_hold_every_valid_step_once_and_cross_no_episode() -> None:
    batch = make_batch()
    cut = segments(batch.timesteps, batch.mask, 5)
    for row, lengths in enumerate(EPISODES):
        held = cut.steps[row][cut.valid[row]]
        assert held.tolist() == list(range(sum(lengths)))
        sizes = [int(n) for n in cut.valid[row].sum(1) if n]
        expected = [min(5, n - start) for n in lengths for start in range(0, n, 5)]
        assert sizes == expected
        starts = cut.steps[row, : len(sizes), 0]
        assert cut.new[row, : len(sizes)].tolist() == [int(batch.timesteps[row, s]) == 0 for s in starts]


def test_a_window_that_begins_inside_an_episode_meets_its_segments() -> None:
    cut = segments(torch.arange(3, 14)[None], torch.ones(1, 11, dtype=torch.bool), 5)
    assert [int(n) for n in cut.valid[0].sum(1)] == [2, 5, 4]
    assert not cut.new.any()


@every_form
@both_kinds
def test_streams_equal_the_training_forward(spec, changes) -> None:
    model, batch = build(spec, **changes), make_batch(spec)
    with torch.no_grad():
        expected, found = by_step(model, batch), streamed(model, batch)
    torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [3, 5, 7])
def test_streams_equal_the_forward_with_every_choice(steps: int) -> None:
    model, batch = build(subgoal_choices=(3, 5, 7), planner_reads="steps"), make_batch()
    model.act_every(steps)
    with torch.no_grad():
        expected, found = by_step(model, batch), streamed(model, batch)
        assert model(batch)[2].steps.shape[2] == steps
    torch.testing.assert_close(found[batch.mask], expected[batch.mask], rtol=1e-10, atol=1e-12)


def test_without_a_planner_an_action_knows_its_segment_alone() -> None:
    model, batch = build(planner="none"), make_batch()
    changed = batch._replace(observations=batch.observations.clone(), rewards=batch.rewards + 1)
    changed.observations[1, 2] = 9.0
    with torch.no_grad():
        expected = by_step(model, batch)
        torch.testing.assert_close(streamed(model, batch)[batch.mask], expected[batch.mask], rtol=1e-10, atol=1e-12)
        after = by_step(model, changed._replace(rewards=batch.rewards))
    assert not torch.equal(after[1, 2], expected[1, 2])
    assert torch.equal(after[1, 5:], expected[1, 5:])


@pytest.mark.parametrize("reads", ["sums", "actions", "steps"])
def test_the_planner_is_told_what_it_reads_and_no_more(reads: str) -> None:
    model, batch = build(planner_reads=reads), make_batch()
    cut = segments(batch.timesteps, batch.mask, 5)

    def moved(**columns: Tensor) -> bool:
        """Whether a step in the middle of a segment of 20 (row 1) changes the sub-goal behind it."""
        return not torch.equal(model.goals(batch._replace(**columns), cut)[1, 2], goals[1, 2])

    with torch.no_grad():
        goals = model.goals(batch, cut)
        actions, observations, rewards = (x.clone() for x in (batch.actions, batch.observations, batch.rewards))
        actions[1, 7] += 0.5
        observations[1, 7] += 0.5
        rewards[1, [7, 8]] = rewards[1, [8, 7]]  # the sum stays
        assert moved(actions=actions) == (reads != "sums")
        assert moved(observations=observations) == (reads == "steps")
        if reads == "steps":
            assert moved(rewards=rewards)
        swapped = batch.actions.clone()
        swapped[1, [6, 7]] = swapped[1, [7, 6]]
        assert moved(actions=swapped) == (reads != "sums")  # also their order


def test_sub_goals_are_drawn_when_it_says() -> None:
    batch = make_batch()
    cut = segments(batch.timesteps, batch.mask, 5)

    def goals(draw: str, *, training: bool) -> list[Tensor]:
        model = build(subgoal_draw=draw).train(training)
        with torch.no_grad():
            return [model.goals(batch, cut) for _ in range(2)]

    for draw, differ in {"training": True, "always": True, "never": False}.items():
        assert torch.equal(*goals(draw, training=True)) != differ
        assert torch.equal(*goals(draw, training=False))  # whoever recomputes draws the same
    mean, drawn = build(), build(subgoal_draw="always")
    with torch.no_grad():
        assert not torch.allclose(mean.goals(batch, cut), drawn.goals(batch, cut))
    assert len(build(subgoal_draw="never").planner.moments.bias) == SMALL.subgoal_size


def test_training_reads_a_batch_with_every_choice_and_held_out_losses_choose_one() -> None:
    model, batch = build(subgoal_choices=(3, 5, 7), subgoal_draw="never"), make_batch()
    with torch.no_grad():
        found, alone = model.train().loss(batch, final_weight=0.5), []
        for steps in (3, 5, 7):
            model.eval().act_every(steps)
            alone.append(model.loss(batch, final_weight=0.5))
        torch.testing.assert_close(found, sum(alone) / 3, rtol=1e-12, atol=0.0)
        losses = model.choice_losses(batch, final_weight=0.5)
        assert losses.shape == (3, len(batch.mask))
        for steps, loss in zip((3, 5, 7), losses, strict=True):
            other = build(subgoal_choices=(3, 5, 7), subgoal_draw="never", subgoal_targets="none")
            other.act_every(steps)
            for row, own in enumerate(loss):
                part = Batch(*(x[row : row + 1] for x in batch))
                torch.testing.assert_close(own, other.loss(part, final_weight=0.5), rtol=1e-12, atol=0.0)
    assert model.choose(losses) == model.steps in (3, 5, 7)
    with pytest.raises(DataError, match="steps: expected one of 3, 5, 7, got 4"):
        model.act_every(4)


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0]], 5),  # of equals the longest
        ([[1.0, 3.0], [2.9, 2.9], [3.1, 3.1]], 5),  # 2 and its error of 1
        ([[1.0, 3.0], [3.1, 3.1], [3.1, 3.1]], 3),
        ([[1.0], [1.1], [9.0]], 3),  # a single context has no error
        ([[np.nan, 1.0], [9.0, 9.0], [np.nan, np.nan]], 5),
        ([[np.nan, 1.0], [np.nan, 9.0], [np.nan, np.nan]], 7),
        ([[np.inf, 1.0], [2.0, 1.0], [np.inf, np.inf]], 5),
    ],
)
def test_the_longest_choice_within_an_error_of_the_best_acts(losses: list[list[float]], chosen: int) -> None:
    model = build(subgoal_choices=(3, 5, 7))
    assert model.choose(torch.tensor(losses)) == chosen == model.steps
    assert model.choose(torch.tensor(losses), torch.full((len(losses[0]),), 9)) == chosen


def test_a_long_context_counts_more_than_a_short_one() -> None:
    model, losses = build(subgoal_choices=(3, 5, 7)), torch.tensor([[1.0, 1.0], [9.0, 0.5], [9.0, 9.0]])
    assert (model.choose(losses), model.choose(losses, torch.tensor([1, 99]))) == (3, 5)


def test_a_choice_is_saved_with_the_weights(tmp_path) -> None:
    model = HybridModel(replace(SMALL, subgoal_choices=(3, 5, 7)), BOX, make_stats(BOX))
    model.act_every(7)
    path = save_checkpoint(tmp_path, 1, model, {}, {}, {})
    loaded = load_checkpoint(path).model()
    assert isinstance(loaded, HybridModel)
    assert loaded.steps == 7
    assert loaded.config.subgoal_steps == 5
    batch = Batch(*(x.float() if x.is_floating_point() else x for x in make_batch()))
    with torch.no_grad():
        assert torch.equal(loaded.eval().actions(batch), model.eval().actions(batch))


def test_the_planner_is_told_which_choice_it_plans_for() -> None:
    model, batch = build(subgoal_choices=(4, 5)), make_batch()
    tokens = torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1, 5), torch.zeros(1, 1, 0)
    tokens = tuple(x.double() for x in tokens)
    with torch.no_grad():
        assert not torch.equal(model.planner.tokens(*tokens, steps=4), model.planner.tokens(*tokens, steps=5))
        assert torch.isfinite(model.loss(batch))


def test_a_stream_under_way_takes_another_choice_from_its_next_step_on() -> None:
    model = build(subgoal_choices=(3, 7), subgoal_steps=7)
    state = model.initial_state(1)
    goals = []
    with torch.no_grad():
        for t in range(12):
            if t == 5:
                model.act_every(3)
            _, state = model.feed([("s", torch.full((1, 5), float(t)).double())], torch.tensor([t]), state)
            goals.append(state.goal)
    begun = [t for t in range(1, 12) if not torch.equal(goals[t], goals[t - 1])]
    assert begun == [5, 6, 9]


def test_a_stream_does_not_notice_its_neighbours() -> None:
    model, batch = build(), make_batch()
    alone = Batch(*(x[:1] for x in batch))
    with torch.no_grad():
        torch.testing.assert_close(streamed(model, alone), streamed(model, batch)[:1], rtol=1e-12, atol=1e-12)


@every_form
def test_a_sub_goal_knows_nothing_that_comes_after_its_first_observation(changes) -> None:
    model, batch = build(**changes), make_batch()
    cut = segments(batch.timesteps, batch.mask, 5)
    with torch.no_grad():
        before = model.goals(batch, cut)
        for number in range(int(cut.valid.any(2).sum(1).min())):
            changed = Batch(*(x.clone() for x in batch))
            for row in range(len(batch.mask)):
                start = int(cut.steps[row, number, 0])
                changed.observations[row, start + 1 :] = 9.0
                changed.actions[row, start:] = 0.5
                changed.rewards[row, start:] = 9.0
            assert torch.equal(model.goals(changed, cut)[:, : number + 1], before[:, : number + 1])
            assert not torch.equal(model.goals(changed, cut)[0], before[0])


@every_form
def test_an_action_depends_on_nothing_later(changes) -> None:
    model, batch = build(**changes), make_batch()
    with torch.no_grad():
        before = by_step(model, batch)
        for t in range(0, 30, 4):
            changed = Batch(*(x.clone() for x in batch))
            changed.observations[:, t + 1 :] = 9.0
            changed.actions[:, t:] = 0.5
            changed.rewards[:, t:] = 9.0
            assert torch.equal(by_step(model, changed)[:, : t + 1], before[:, : t + 1])


def test_the_executor_remembers_nothing_of_the_segment_before() -> None:
    model, batch = build(), make_batch()
    with torch.no_grad():
        model.of_goal.weight.zero_()  # what reaches it from the past comes through the sub-goal alone
        before = by_step(model, batch)
        changed = batch._replace(observations=batch.observations.clone())
        changed.observations[1, 2] = 9.0
        after = by_step(model, changed)
    assert not torch.equal(after[1, 2:5], before[1, 2:5])
    assert torch.equal(after[1, 5:], before[1, 5:])


def test_padding_does_not_change_the_loss() -> None:
    model, batch = build(), make_batch()

    def pad(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, torch.full((len(x), 4, *x.shape[2:]), value, dtype=x.dtype)], 1)

    longer = Batch(*(pad(x, 0.0 if name in ("timesteps", "mask") else 3.0) for name, x in batch._asdict().items()))
    with torch.no_grad():
        torch.testing.assert_close(model.loss(longer), model.loss(batch), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model.loss(longer, final_weight=2.0), model.loss(batch, final_weight=2.0))


@every_form
def test_gradients_reach_every_parameter_and_not_the_picture_of_valuable_states(changes) -> None:
    model, batch = build(**changes).train(), make_batch()
    model.loss(batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert "valuable" in model.state_dict()
    assert not model.valuable.requires_grad


def test_targets_without_a_reward_ahead_count_only_where_all_are_asked_for() -> None:
    batch = make_batch()
    empty = batch._replace(goal_values=torch.zeros_like(batch.goal_values))
    with torch.no_grad():
        own = build(subgoal_targets="none").loss(batch)
        assert not torch.isclose(build(subgoal_targets="all").loss(empty), own / 2)
        torch.testing.assert_close(build(subgoal_targets="rewarded").loss(empty), own / 2)
        torch.testing.assert_close(
            build(subgoal_targets="rewarded").loss(batch), build(subgoal_targets="all").loss(batch)
        )


def test_the_final_steps_are_those_before_an_episode_or_the_padding() -> None:
    batch = make_batch()
    ends = [list(np.cumsum(row) - 1) for row in EPISODES]
    assert [row.nonzero()[:, 0].tolist() for row in batch.finals()] == ends


def test_rows_restart_by_replacing_their_state() -> None:
    model, batch = build(), make_batch()
    state = model.initial_state(3)
    assert isinstance(state, HybridState)
    with torch.no_grad():
        first, state = model.feed([("s", batch.observations[:, 0])], batch.timesteps[:, 0], state)
        again, _ = model.feed([("s", batch.observations[:, 0])], batch.timesteps[:, 0], model.initial_state(3))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"subgoal_steps": 0}, "model.subgoal_steps: expected at least 1"),
        ({"layout": "Rsar"}, "model.layout: expected"),
        ({"layout": "sa"}, "model.layout: expected"),
        ({"layout": "sr", "planner_reads": "actions"}, "model.layout: expected an a where the planner reads"),
        ({"time_embedding": True}, "model.time_embedding: expected false"),
        ({"merged": True, "subgoal_prefix": True}, "model.subgoal_prefix: expected false"),
        ({"subgoal_choices": (5, 5)}, "model.subgoal_choices: expected different numbers of at least 1, got"),
        ({"subgoal_choices": (0, 5)}, "model.subgoal_choices: expected different numbers of at least 1, got"),
        ({"subgoal_choices": (10, 20)}, "model.subgoal_steps: expected one of .10, 20., got 5"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(changes, problem) -> None:
    with pytest.raises(DataError, match=problem):
        build(**changes)


def test_training_towards_valuable_states_needs_them() -> None:
    with pytest.raises(DataError, match="goals"):
        build().loss(make_batch()._replace(goals=torch.empty(0)))


@pytest.mark.parametrize("impl", [None, "reference"])
def test_a_stream_that_is_played_equals_the_training_forward(impl) -> None:
    """Through the policy: what it feeds over two episodes of a task is what training reads."""
    model = build(CHOICE, merged=True).float()
    policy = Policy(model, forget="task", impl=impl)
    g = np.random.default_rng(0)
    seen = g.standard_normal((17, *CHOICE.observation_shape)).astype(np.float32)
    rewards = g.standard_normal(17).astype(np.float32)
    first = np.isin(np.arange(17), [0, 9])
    policy.reset(1)
    actions = [int(policy.act(seen[t][None], [rewards[t - 1]], first[t : t + 1])[0]) for t in range(17)]
    timesteps = torch.tensor([*range(9), *range(8)])
    batch = Batch(
        observations=torch.from_numpy(seen)[None],
        actions=torch.tensor(actions)[None],
        rewards=torch.from_numpy(rewards)[None],
        returns_to_go=torch.zeros(1, 17),
        timesteps=timesteps[None],
        mask=torch.ones(1, 17, dtype=torch.bool),
    )
    with torch.no_grad():
        assert actions == model.actions(batch)[0].tolist()
        assert actions == model.head.act(by_step(model, batch)[0]).tolist()


def test_only_a_carried_state_acts_on_sub_goals() -> None:
    with pytest.raises(DataError, match="context: expected 'recurrent'"):
        Policy(build(), context=5)
