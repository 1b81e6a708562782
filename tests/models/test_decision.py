"""The decision model: padding, causality, loss, initialisation, heads and scaling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl.batch import Batch
from scanrl.data.windows import WindowSampler
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn.mamba import Mamba
from scanrl.nn.s4d import S4D
from scanrl.optimizer import adamw
from scanrl.settings import TrainConfig
from scanrl.types import DataError
from tests.conftest import BOX, CHOICE, SEQUENCE_RECIPES, make_batch, make_dataset, make_stats

every_recipe = pytest.mark.parametrize("name", SEQUENCE_RECIPES)
PREDICTING = [name for name in SEQUENCE_RECIPES if recipe(name).model.returns == "predicted"]


def build(name: str, spec=BOX, **changes) -> DecisionModel:
    config = replace(recipe(name).model, **{"width": 16, "context": 8, "dropout": 0.0, "state_size": 4, **changes})
    return DecisionModel(config, spec, make_stats(spec))


def padded(batch: Batch, extra: int) -> Batch:
    """The same windows with `extra` steps of padding that hold garbage."""

    def pad(x: torch.Tensor, value: float) -> torch.Tensor:
        return torch.cat([x, torch.full((len(x), extra, *x.shape[2:]), value).to(x.dtype)], 1)

    return Batch(*(pad(x, 3) for x in batch[:4]), pad(batch.timesteps, 0), pad(batch.mask, False))


@every_recipe
def test_padding_changes_neither_loss_nor_gradient(name: str) -> None:
    model, batch = build(name), make_batch(BOX, 4, 6)
    gradients = []
    for case in (batch, padded(batch, 5)):
        model.zero_grad()
        loss = model.loss(case)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in SEQUENCE_RECIPES if name not in PREDICTING])
def test_loss_is_the_mean_over_valid_entries_only(name: str) -> None:
    model, batch = build(name), make_batch(BOX, 3, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    batch = batch._replace(mask=mask)
    with torch.no_grad():
        error = (model.tokens.scale_actions(model.actions(batch)) - model.tokens.scale_actions(batch.actions)) ** 2
        torch.testing.assert_close(model.loss(batch), error[mask].mean())


@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
def test_the_loss_of_a_model_that_predicts_its_return_is_the_weighted_sum_of_four(spec) -> None:
    weights = {"return_weight": 0.3, "bins_weight": 0.7, "state_weight": 1.9, "return_bins": 7}
    model, batch = build("edt", spec, **weights, expectile=0.8).eval(), make_batch(spec, 3, 5)
    batch = batch._replace(mask=torch.arange(5) < torch.tensor([[3], [5], [1]]))
    valid, returns = batch.mask, model.returns
    assert returns is not None
    with torch.no_grad():
        hidden = model.norm(model.stack(model.tokens(batch))[0]).unflatten(1, (5, 3))  # s, R, a of every step
        scaled = batch.returns_to_go / 10
        error = (scaled - returns.value(hidden[:, :, 0])[..., 0])[valid]
        value = torch.where(error > 0, 0.8, 0.2) * error**2
        outputs = model.head.linear(hidden[:, :, 1])[valid]
        classes = (scaled[valid] / (25 / 10) * 7).floor().clamp(0, 6).long()  # the best return of `make_stats` is 25
        bins = returns.bins(hidden[:, :, 0])[valid].log_softmax(-1)  # type: ignore[misc]
        told = outputs.tanh() if spec is BOX else outputs
        if spec is BOX:
            action = (told - model.tokens.scale_actions(batch.actions)[valid]) ** 2
        else:
            action = -outputs.log_softmax(-1)[range(len(outputs)), batch.actions[valid]]
        everywhere = torch.zeros(*valid.shape, told.shape[-1]).masked_scatter(valid[..., None], told)
        seen = (batch.observations - model.tokens.observation_mean) / model.tokens.observation_std
        followed = valid[:, 1:]
        state = returns.state(torch.cat([hidden[:, :, 1], everywhere], -1))[:, :-1]  # type: ignore[misc]
        state = (state - seen[:, 1:])[followed] ** 2
        chosen = bins[range(len(bins)), classes]
        expected = action.mean() + 0.3 * value.mean() - 0.7 * chosen.mean() + 1.9 * state.mean()
        torch.testing.assert_close(model.loss(batch), expected)


def test_relative_errors_of_the_return_are_divided_by_its_mean_size() -> None:
    model, batch = build("reinformer"), make_batch(BOX, 3, 5)
    other = DecisionModel(replace(model.config, return_loss="scaled"), BOX, make_stats(BOX))
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        losses = []
        for one in (model, other):
            action = one.head.loss(one(batch)[0], one.tokens.scale_actions(batch.actions), batch.mask)
            losses.append(one.loss(batch) - action)
        torch.testing.assert_close(losses[0], losses[1] / (batch.returns_to_go / 10).abs().mean() ** 2)


@pytest.mark.parametrize("name", PREDICTING)
def test_a_predicted_return_sees_no_return_of_its_own_step_and_the_action_does(name: str) -> None:
    model, batch = build(name).eval(), make_batch(BOX, 2, 6)
    with torch.no_grad():
        returns, actions = model.predicted_returns(batch), model.actions(batch)
        changed = batch._replace(returns_to_go=batch.returns_to_go.clone())
        changed.returns_to_go[:, 3] += 20
        assert torch.equal(model.predicted_returns(changed)[:, :4], returns[:, :4])
        assert not torch.equal(model.actions(changed)[:, 3], actions[:, 3])
        # In raw units: a weight of 0 leaves the bias, times the return scale of 10.
        model.returns.value.weight.zero_()  # type: ignore[union-attr]
        model.returns.value.bias.fill_(2.5)  # type: ignore[union-attr]
        torch.testing.assert_close(model.predicted_returns(batch), torch.full((2, 6), 25.0))


@pytest.mark.parametrize("name", ["dmm-dc", *PREDICTING])
def test_a_batch_without_a_valid_entry_has_no_loss_and_no_gradient(name: str) -> None:
    model, batch = build(name), make_batch(BOX, 2, 4)
    loss = model.loss(batch._replace(mask=torch.zeros(2, 4, dtype=torch.bool)))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@every_recipe
def test_an_action_never_depends_on_itself_or_on_anything_later(name: str) -> None:
    model, batch = build(name).eval(), make_batch(BOX, 2, 8)
    with torch.no_grad():
        before = model.actions(batch)
        for t in range(8):
            changed = Batch(*(x.clone() for x in batch))
            changed.actions[:, t:] = 0.9
            changed.rewards[:, t:] = 9.0
            changed.observations[:, t + 1 :] = 9.0
            changed.returns_to_go[:, t + 1 :] = 9.0
            found = model.actions(changed)[:, : t + 1]
            if "s4d" in model.config.pattern:  # an FFT lets all tokens into the rounding
                torch.testing.assert_close(found, before[:, : t + 1], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(found, before[:, : t + 1])


@every_recipe
def test_gradients_reach_every_parameter_an_output_depends_on(name: str) -> None:
    model = build(name)
    model.loss(make_batch(BOX, 4, 8)).backward()
    idle = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {n for n in idle if not n.startswith("extras.")} == set()


@every_recipe
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, two = build(name), build(name)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_mamba_keeps_its_step_sizes_through_the_models_initialisation() -> None:
    model = build("dmm-dc", width=64)
    mambas = [m for m in model.modules() if isinstance(m, Mamba)]
    assert len(mambas) == 3
    for mamba in mambas:
        dt = torch.nn.functional.softplus(mamba.dt_proj.bias)
        assert dt.max() <= 0.1001
        assert dt.min() < 3e-3
    reset = build("dmm-dc", width=64, dt_init="gpt2_reset")
    assert not next(m for m in reset.modules() if isinstance(m, Mamba)).dt_proj.bias.any()


def test_a_merged_token_is_a_linear_map_of_everything_known_at_the_step() -> None:
    """LN(W [R_t; s_t; a_{t-1}] + b), with no action before the first step."""
    tokens, batch = build("ds4").tokens, make_batch(BOX, 2, 4)
    embed = tokens.embeddings
    observations = (batch.observations - tokens.observation_mean) / tokens.observation_std
    actions = tokens.scale_actions(batch.actions)
    parts = torch.cat([batch.returns_to_go[..., None] / 10, observations, actions.roll(1, 1)], -1)
    names = ("return_to_go", "observation", "action")
    weight, bias = torch.cat([embed[n].weight for n in names], 1), sum(embed[n].bias for n in names)
    found = tokens(batch._replace(timesteps=batch.timesteps + 7))
    torch.testing.assert_close(found[:, 1:], tokens.norm(parts @ weight.T + bias)[:, 1:])
    alone = parts[:, 0, :6] @ weight[:, :6].T + embed["return_to_go"].bias + embed["observation"].bias
    torch.testing.assert_close(found[:, 0], tokens.norm(alone))
    assert found.shape == (2, 4, 16)


def test_a_merged_token_is_marked_where_an_episode_begins_and_nowhere_else() -> None:
    tokens, batch = build("ds4").tokens, make_batch(BOX, 2, 4)
    later = tokens(batch._replace(timesteps=batch.timesteps + 7))
    assert torch.equal(tokens(batch)[:, 1:], later[:, 1:])
    assert (tokens(batch)[:, 0] - later[:, 0]).abs().max() > 0.1


@pytest.mark.parametrize(("name", "changes"), [("dmm-dc", {}), ("mambadm", {}), ("ds4", {}), ("dm", {"merged": True})])
def test_chunks_with_the_state_carried_equal_the_whole(name: str, changes: dict) -> None:
    model, batch = build(name, **changes).double().eval(), make_batch(BOX, 2, 9, dtype=torch.float64)
    whole, _ = model(batch)
    first, state = model(Batch(*(x[:, :4] for x in batch[:6])))
    second, _ = model(Batch(*(x[:, 4:] for x in batch[:6])), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-10, atol=1e-10)


def test_a_frozen_shared_mixer_is_one_that_training_leaves_alone() -> None:
    model = build("dmm26", frozen_shared_mixer=True)
    assert model.stack.mixer_of == [0, 1, 0, 2, 0, 3]
    [frozen] = model.stack.mixers[0].parameters()
    before = frozen.clone()
    bound = (6 * 16) ** -0.5  # torch's own initialisation of that matrix
    assert 0.98 * bound < frozen.abs().max() <= bound
    optimizer = adamw(model, TrainConfig())
    model.loss(make_batch(BOX, 4, 8)).backward()
    optimizer.step()
    assert torch.equal(frozen, before)
    assert model.parameter_count() == sum(p.numel() for p in model.parameters()) - frozen.numel()


def test_a_frozen_shared_mixer_needs_a_local_mixer() -> None:
    with pytest.raises(DataError, match=r"model.frozen_shared_mixer: expected one of conv, .* got 'mlp\*2'"):
        build("bc", frozen_shared_mixer=True)


@pytest.mark.parametrize("name", ["dm", "ds4"])
def test_weight_decay_leaves_a_state_space_alone(name: str) -> None:
    model = build(name, pattern=f"({'mamba mamba2' if name == 'dm' else 's4d'})*1")
    decayed, kept = (group["params"] for group in adamw(model, TrainConfig()).param_groups)
    named = {id(p): n.rsplit(".", 1)[1] for n, p in model.named_parameters()}
    assert {named[id(p)] for p in kept} == ({"A_log", "D", "dt_bias"} if name == "dm" else set(S4D.undecayed))
    assert not {named[id(p)] for p in decayed} & {named[id(p)] for p in kept}


def test_raw_units_go_in_and_scaling_happens_once() -> None:
    """A model with other statistics sees other tokens; equal standardised inputs give equal actions."""
    model = build("dmm-dc").eval()
    stats = make_stats(BOX)
    moved = replace(stats, observation_mean=stats.observation_mean + 5, observation_std=stats.observation_std * 2)
    other = DecisionModel(model.config, BOX, moved)
    other.load_state_dict(model.state_dict())
    batch = make_batch(BOX, 2, 4)
    standard = (batch.observations - torch.tensor(stats.observation_mean)) / torch.tensor(stats.observation_std)
    same = standard * torch.tensor(moved.observation_std) + torch.tensor(moved.observation_mean)
    with torch.no_grad():
        expected = model.actions(batch)
        torch.testing.assert_close(other.eval().actions(batch._replace(observations=same)), expected)


def test_actions_are_scaled_to_the_heads_range_and_back() -> None:
    tokens = build("dmm-dc").tokens
    low, high = torch.tensor(BOX.action_low), torch.tensor(BOX.action_high)
    torch.testing.assert_close(tokens.scale_actions(torch.stack([low, high])), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    raw = torch.rand(7, 2)
    torch.testing.assert_close(tokens.unscale_actions(tokens.scale_actions(raw)), raw)


@pytest.mark.parametrize(("spec", "head"), [(BOX, "regression"), (BOX, "gaussian"), (CHOICE, "categorical")])
def test_every_head_learns_to_repeat_its_data(spec, head: str) -> None:
    torch.manual_seed(0)
    model, batch = build("dmm-dc", spec, head=head), make_batch(spec, 4, 4)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(80):
        loss = model.loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.4 * abs(losses[0])


def test_gaussian_loss_is_the_negative_log_likelihood() -> None:
    model = build("dmm-dc", head="gaussian").eval()
    hidden, actions = torch.randn(2, 3, 16), torch.rand(2, 3, 2)
    mean, log_std = model.head.linear(hidden).chunk(2, -1)
    expected = -torch.distributions.Normal(mean.tanh(), log_std.exp()).log_prob(actions).mean()
    torch.testing.assert_close(model.head.loss(hidden, actions, torch.ones(2, 3, dtype=torch.bool)), expected)


def test_a_head_that_does_not_serve_the_actions_is_refused() -> None:
    with pytest.raises(DataError, match=r"model.head: expected a head for discrete actions, got 'gaussian'"):
        build("dmm-dc", CHOICE, head="gaussian")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "Ra"}, "with an s"),
        ({"layout": "Rss"}, "distinct letters"),
        ({"layout": "aRs"}, "expected only R before s"),
        ({"heads": 3}, "expected a divisor of the width"),
        ({"dropout": 1.0}, "expected a value in"),
        ({"window": 0}, "expected at least 1"),
        ({"returns": "predicted"}, "model.layout: expected R right behind s where returns are predicted, got 'Rsa'"),
        ({"expectile": 1.0}, r"model.expectile: expected a value in \(0, 1\), got 1.0"),
        ({"return_weight": -1.0}, "model.return_weight: expected at least 0"),
        ({"return_bins": 0}, "model.return_bins: expected at least 1"),
        ({"state_weight": 1.0}, "model.state_weight: expected 0 where returns are given"),
    ],
)
def test_impossible_networks_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build("dmm-dc", **changes)


def test_windows_of_a_dataset_can_be_trained_on() -> None:
    dataset = make_dataset()
    model = build("dmm-dl")
    sampler = WindowSampler(dataset, 8, 16, seed=0)
    loss = model.loss(sampler.sample())
    loss.backward()
    assert np.isfinite(float(loss.detach()))


def test_time_embedding_tells_steps_apart_and_ends_with_its_table() -> None:
    model, batch = build("dt", max_length=6).eval(), make_batch(BOX, 1, 4)
    with torch.no_grad():
        late, later = (model.actions(batch._replace(timesteps=batch.timesteps + n)) for n in (50, 90))
        assert torch.equal(late, later)
        assert not torch.equal(late, model.actions(batch))


@every_recipe
def test_a_fresh_model_already_tells_return_targets_apart(name: str) -> None:
    """An embedding of a scalar without bias is undone by the LayerNorm behind it."""
    model = build(name)
    if "R" not in model.config.layout:
        return
    R = torch.tensor([1.0, 20.0])
    low, high = model.tokens.embed("R", R, torch.zeros(2, dtype=torch.int64))
    assert (low - high).abs().mean() > 0.1
