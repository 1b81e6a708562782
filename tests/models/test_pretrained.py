"""The Decision-Pretrained Transformer: its parts, what an answer depends on, and what its loss asks for."""

from __future__ import annotations

import pytest
import torch

from scanrl.models.build import build_model
from scanrl.models.catalogue import parameter_count
from scanrl.models.pretrained import PretrainedModel
from scanrl.models.recipes import recipe
from scanrl.types import DataError, Spec
from tests.conftest import BOX, CHOICE, make_queries, make_stats

SMALL = {"width": 16, "context": 12}
FORMS = [{}, {"time_embedding": True}, {"token_norm": False}, {"heads": 2}, {"pattern": "(mamba mlp)*2"}]
every_form = pytest.mark.parametrize("changes", FORMS)
both_kinds = pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])


def build(spec=BOX, **changes) -> PretrainedModel:
    """Weights large enough that every token matters to the answer."""
    model = build_model(recipe("dpt", **SMALL, **changes).model, spec, make_stats(spec), seed=1)
    assert isinstance(model, PretrainedModel)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=g))
    return model.double().eval()


def queries(spec=BOX, steps: int = 12, seed: int = 0):
    return make_queries(spec, 3, steps, seed, torch.float64)


def test_the_network_of_the_paper_has_its_shapes() -> None:
    """Darkroom: four layers of GPT-2 of width 32 with one head, of tokens (s, a, s', r), over 1 + 100 places."""
    width, states, actions, places = 32, 2, 5, 101
    layer = 12 * width**2 + 13 * width  # two norms, attention, an MLP four times as wide
    token = (2 * states + actions + 1) * width + width
    published = token + places * width + 4 * layer + 2 * width + (width + 1) * actions
    sizes = {"context": 100, "time_embedding": True, "token_norm": False}
    # The reward has a bias of its own.
    assert parameter_count("dpt", states, actions, "discrete", **sizes) == published + width
    assert recipe("dpt").model.heads == 1


@both_kinds
def test_a_token_is_one_linear_map_of_a_transition_and_the_query_has_zeros_elsewhere(spec: Spec) -> None:
    model, batch = build(spec, token_norm=False), queries(spec)
    tokens, stats = model.tokens, make_stats(spec)
    found = model._embed(batch)

    def scaled(x):
        return (x - torch.from_numpy(stats.observation_mean)) / torch.from_numpy(stats.observation_std)

    def linear(name, x):
        return x @ tokens.embeddings[name].weight.T + tokens.embeddings[name].bias

    table = tokens.embeddings["action"]
    taken = table(batch.actions) if spec is CHOICE else linear("action", tokens.scale_actions(batch.actions))
    seen = linear("observation", scaled(batch.observations)) + taken
    seen = seen + linear("reward", batch.rewards[..., None] / stats.reward_scale)
    seen = seen + (scaled(batch.next_observations) @ model.following.weight.T) * batch.followed[..., None]
    torch.testing.assert_close(found[:, 1:], seen, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found[:, 0], linear("observation", scaled(batch.queries)), rtol=1e-10, atol=1e-10)


@every_form
@both_kinds
def test_an_answer_at_a_context_length_is_that_of_a_context_of_this_length(spec: Spec, changes: dict) -> None:
    model, batch = build(spec, **changes), queries(spec)
    with torch.no_grad():
        whole = model(batch)
        for length in range(1, 12):
            columns = {k: v for k, v in batch._asdict().items() if v.numel() and k not in ("queries", "targets")}
            cut = batch._replace(**{name: column[:, :length] for name, column in columns.items()})
            torch.testing.assert_close(model(cut)[:, length], whole[:, length], rtol=1e-10, atol=1e-10)
        other = model(batch._replace(queries=batch.queries + 1))
    assert ((other - whole).abs().amax(-1) > 1e-6).all()  # everything is read in the light of the query


def test_the_order_of_the_examples_says_nothing_where_each_is_read_by_itself() -> None:
    """With one layer and no positions an answer is a function of the set; places, or a second layer, see an order."""
    batch = queries()
    # The last transition stays where it is: the answer is read there.
    order = torch.tensor([7, 2, 10, 0, 5, 9, 1, 8, 3, 6, 4, 11])
    names = ("observations", "actions", "rewards", "next_observations", "followed")
    shuffled = batch._replace(**{name: getattr(batch, name)[:, order] for name in names})

    def differs(**changes) -> float:
        model = build(**changes)
        with torch.no_grad():
            return float((model(batch)[:, -1] - model(shuffled)[:, -1]).abs().max())

    assert differs(pattern="attention mlp") < 1e-12
    assert differs(pattern="attention mlp", time_embedding=True) > 1e-3
    assert differs() > 1e-6


@both_kinds
def test_the_loss_is_the_mean_over_every_context_length_there_is(spec: Spec) -> None:
    model, batch = build(spec), queries(spec)
    mask = torch.arange(12) < torch.tensor([12, 5, 1])[:, None]
    batch = batch._replace(mask=mask)
    with torch.no_grad():
        hidden, total, count = model(batch), 0.0, 0
        for row, length in enumerate((12, 5, 1)):
            for t in range(length + 1):
                outputs = model.head.linear(hidden[row, t])
                if spec is CHOICE:
                    total -= float(outputs.log_softmax(-1)[batch.targets[row]])
                    count += 1
                else:
                    total += float(((outputs.tanh() - model.tokens.scale_actions(batch.targets[row])) ** 2).sum())
                    count += 2
        assert float(model.loss(batch)) == pytest.approx(total / count, abs=1e-10)
        garbage = {name: getattr(batch, name).clone() for name in ("observations", "rewards", "next_observations")}
        for column in garbage.values():
            column[~mask] = 9.0
        assert float(model.loss(batch._replace(**garbage))) == pytest.approx(total / count, abs=1e-10)


@every_form
def test_gradients_reach_every_parameter(changes: dict) -> None:
    model = build(**changes)
    model.loss(queries()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_half_precision_is_close() -> None:
    model, batch = build(CHOICE).float(), make_queries(CHOICE, 3, 12)
    torch.testing.assert_close(model.loss(batch, torch.bfloat16), model.loss(batch), rtol=0.05, atol=0.05)


def test_what_makes_no_model_with_a_query_is_refused() -> None:
    with pytest.raises(DataError, match=r"^model.layout: expected s, not merged, for a model with a query, got 'sar'$"):
        recipe("dpt", layout="sar")
    with pytest.raises(DataError, match=r"^model.layout: .* got 's', merged$"):
        recipe("dpt", merged=True)
    with pytest.raises(DataError, match=r"^model.subgoal_steps: expected 0 for a model with a query, got 5$"):
        recipe("dpt", subgoal_steps=5)
    pictures = Spec((1, 8, 8), "discrete", 3, observation_dtype="uint8")
    with pytest.raises(DataError, match=r"^model.query: expected false with pictures, got true$"):
        PretrainedModel(recipe("dpt").model, pictures, make_stats(BOX))
    model, batch = build(), queries()
    with pytest.raises(DataError, match=r"^batch: targets: expected the optimal actions of queries, got none$"):
        model.loss(batch._replace(targets=torch.empty(0)))
    with pytest.raises(DataError, match=r"^train.final_weight: expected 0 for a model with a query, got 1.0$"):
        model.loss(batch, final_weight=1.0)
