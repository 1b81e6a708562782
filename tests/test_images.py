"""Pictures: stored once as bytes, stacked when sampled, encoded, and stacked again by the policy when it acts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scanrl.data import Dataset, check, load, read_store, write_store
from scanrl.data.rows import Rows
from scanrl.data.windows import WindowSampler, iterate_windows
from scanrl.kernels import native
from scanrl.models.decision import DecisionModel
from scanrl.models.hybrid import HybridModel
from scanrl.nn import ModelConfig
from scanrl.nn.encoders import stacked_images, stacked_shape
from scanrl.policy import Policy
from scanrl.rollout import RandomActor, environment_spec, rollout
from scanrl.stats import Stats
from scanrl.types import DataError, Spec
from tests.conftest import BOX
from tests.spaces_cases import COLOUR, COLOUR_FIRST, IMAGE, SEVERAL, Sampled

ATARI = ModelConfig(
    pattern="modal_conv mamba",
    width=16,
    context=4,
    token_norm=False,
    token_activation="tanh",
    time_embedding=True,
    pixels="unit",
)
PICTURES = Spec((36, 36), "discrete", 3, observation_dtype="uint8", frame_stack=3)


def pictures(spec: Spec = PICTURES, episodes: int = 3, steps: int = 6, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    n = episodes * steps
    ids = np.repeat(np.arange(episodes), steps)
    return Dataset.from_arrays(
        observations=rng.integers(1, 256, (n, *spec.observation_shape), dtype=np.uint8),
        actions=rng.integers(0, 3, n),
        rewards=rng.normal(size=n),
        terminations=np.zeros(n, bool),
        episode_ids=ids,
        spec=spec,
        name="pictures",
    )


def model_of(data: Dataset, **changes: object) -> DecisionModel:
    return DecisionModel(replace(ATARI, **changes), data.spec, Stats.fit(data)).eval()


def stacks(data: Dataset, episode: int) -> np.ndarray:
    """`(T, k, *O)`: the definition, one step at a time."""
    seen = data[episode].observations
    k = data.spec.frame_stack
    black = np.zeros_like(seen[0])
    return np.stack(
        [[seen[t - k + 1 + i] if t - k + 1 + i >= 0 else black for i in range(k)] for t in range(len(seen))]
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_sampled_images_stack_as_the_definition_says(k):
    data = pictures(replace(PICTURES, frame_stack=k))
    for batch in iterate_windows(data, 4, 2):
        assert batch.observations.dtype == torch.uint8
        assert batch.observations.shape[1] == 4 + k - 1
    episode = 0
    for batch in iterate_windows(data, 4, 1):  # two windows to an episode of six steps
        start = int(batch.timesteps[0, 0])
        found = stacked_images(batch.observations, batch.mask.shape, data.spec)[batch.mask[0]]
        np.testing.assert_array_equal(found.numpy(), stacks(data, episode)[start : start + 4])
        episode += start > 0
    assert episode == len(data)


def test_what_is_not_of_the_episode_is_black():
    data = pictures()
    first, last = list(iterate_windows(data, 4, 1))[2:4]  # the second episode
    assert (first.observations[0, :2] == 0).all()
    assert (first.observations[0, 2:] > 0).all()
    assert (last.observations[0, -2:] == 0).all()
    assert (last.observations[0, :-2] > 0).all()


@pytest.mark.parametrize("space", [COLOUR, COLOUR_FIRST], ids=["last", "first"])
def test_channels_may_come_last_or_first(space):
    spec = environment_spec(Sampled(space, SEVERAL, stack=2))
    assert (spec.observation_dtype, spec.frame_stack) == ("uint8", 2)
    assert stacked_shape(spec) == (6, 36, 40)
    seen = torch.randint(0, 256, (1, 3, *space.shape), dtype=torch.uint8)  # two steps of two images
    found = stacked_images(seen, torch.Size([1, 2]), spec)
    first = seen if space is COLOUR_FIRST else seen.movedim(-1, 2)
    torch.testing.assert_close(found, torch.cat([first[:, :2].flatten(1, 2), first[:, 1:].flatten(1, 2)]))


def test_the_encoder_has_the_shape_of_the_papers():
    model = DecisionModel(
        replace(ATARI, width=128), Spec((84, 84), "discrete", 6, observation_dtype="uint8", frame_stack=4), stats()
    )
    encoder = model.tokens.embeddings["observation"]
    sizes = [tuple(p.shape) for p in encoder.parameters() if p.ndim > 1]
    assert sizes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (128, 3136)]
    with torch.inference_mode():
        token = model.tokens.embed("s", torch.full((2, 4, 84, 84), 255, dtype=torch.uint8), torch.zeros(2).long())
        same = torch.tanh(encoder(torch.ones(2, 4, 84, 84))) + model.tokens.time(torch.zeros(2).long())
    torch.testing.assert_close(token, same)  # pixels reach it as 0 to 1


def stats() -> Stats:
    return Stats.fit(pictures())


def test_statistics_are_a_mean_picture_and_one_deviation():
    data = pictures()
    found = Stats.fit(data)
    np.testing.assert_allclose(found.observation_mean, data.observations.mean(0), rtol=1e-6)
    around = data.observations - data.observations.mean(0)
    np.testing.assert_allclose(found.observation_std, np.sqrt((around**2).mean()), rtol=1e-6)
    assert Stats.from_json(found.to_json()) == found


def test_statistics_of_long_recordings_look_at_a_sample():
    looked: list[int] = []

    class Watched(Rows):
        def __getitem__(self, key):
            looked.append(key)
            return super().__getitem__(key)

    data = pictures(episodes=1, steps=3000)
    data.observations = Watched(data.observations, np.arange(3000))  # type: ignore[assignment]
    Stats.fit(data)
    assert (len(looked), looked[0], looked[-1]) == (1024, 0, 2999)


@pytest.mark.parametrize("space", [IMAGE, COLOUR, COLOUR_FIRST], ids=["grey", "last", "first"])
def test_the_mean_picture_lies_under_every_stacked_one(space):
    spec = Spec(space.shape, "discrete", 3, observation_dtype="uint8", frame_stack=2)
    data = pictures(spec)
    tokens = model_of(data, pixels="standardised").tokens
    mean = np.rint(Stats.fit(data).observation_mean).astype(np.uint8)
    seen = torch.from_numpy(np.stack([mean, mean]))[None]
    read: list[torch.Tensor] = []
    tokens.embeddings["observation"].register_forward_pre_hook(lambda _, values: read.append(values[0]))
    tokens.embed("s", seen, torch.zeros(1, dtype=torch.int64))
    tokens.embed("s", seen + 50, torch.zeros(1, dtype=torch.int64))
    deviation = float(Stats.fit(data).observation_std)
    assert read[0].abs().max() <= 0.51 / deviation
    torch.testing.assert_close(read[1] - read[0], torch.full_like(read[0], 50 / deviation))


def test_what_moves_in_front_of_a_still_picture_is_learned():
    """Unit pixels hide it: all images look alike to a fresh encoder."""
    rng = np.random.default_rng(0)
    place = rng.integers(0, 2, 64)
    seen = np.full((64, 36, 36), 180, np.uint8)
    for image, at in zip(seen, place, strict=True):
        image[10:13, 8 + 12 * at : 11 + 12 * at] = 200
    spec = Spec((36, 36), "discrete", 2, observation_dtype="uint8")
    data = Dataset.from_arrays(
        observations=seen,
        actions=place,
        rewards=np.zeros(64),
        terminations=np.arange(64) == 63,
        spec=spec,
        name="still",
    )
    losses = {}
    for pixels in ("standardised", "unit"):
        # Without a time table, which could tell the images by their numbers.
        changes = {"layout": "s", "pattern": "mlp", "context": 64, "time_embedding": False}
        model = model_of(data, pixels=pixels, **changes).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        batch = next(iterate_windows(data, 64, 1))
        for _ in range(40):
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
        losses[pixels] = float(loss.detach())
    assert losses["standardised"] < losses["unit"] / 2


@pytest.mark.parametrize("context", ["recurrent", 6])
@pytest.mark.parametrize("pattern", ["modal_conv mamba", "attention mlp"])
def test_acting_on_images_is_the_training_forward(context, pattern):
    data = pictures()
    model = model_of(data, context=6, pattern=pattern)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.tokens.time.weight)  # it starts at zero; a trained one tells steps apart
    batch = next(iterate_windows(data, 6, len(data)))
    with torch.inference_mode():
        hidden, _ = model(batch)
        expected = model.head.outputs(hidden).argmax(-1).numpy()
    policy = Policy(model, context=context)
    chosen: list[np.ndarray] = []

    def recorded(outputs, generator=None):  # what the recording did; the choice it would have made is kept
        chosen.append(outputs.argmax(-1).numpy())
        return torch.from_numpy(np.array([episode.actions[len(chosen) - 1] for episode in data]))

    object.__setattr__(model.head, "choose", recorded)
    for t in range(6):
        rewards = np.array([episode.rewards[t - 1] if t else 0.0 for episode in data])
        wanted = data.returns if t == 0 else None
        policy.act(np.stack([e.observations[t] for e in data]), rewards, t == 0, target_return=wanted)
    np.testing.assert_array_equal(np.stack(chosen, 1), expected)
    assert len(np.unique(expected)) > 1


def test_a_row_that_starts_over_has_forgotten_its_images():
    data = pictures()
    policy = Policy(model_of(data))
    seen = data.observations
    policy.act(seen[:2])
    policy.act(seen[2:4], first=[False, True])
    assert (policy._images[1, :2] == 0).all()
    np.testing.assert_array_equal(policy._images[0, 1:], [seen[0], seen[2]])
    np.testing.assert_array_equal(policy._images[1, 2], seen[3])


def test_a_refused_image_changes_no_stream():
    data = pictures()
    policy = Policy(model_of(data))
    policy.act(data.observations[0])
    before = policy._images
    with pytest.raises(DataError, match=r"^act: observations: expected images of uint8, 0 to 255, got float64$"):
        policy.act(data.observations[1] / 255)
    assert policy._images is before


def test_policies_on_images_step_in_torch_and_say_why():
    if native.extension()[0] is None:
        pytest.skip("no native step here at all")
    choice = Policy(model_of(pictures())).step_choice()
    assert (choice.impl, choice.reason) == ("reference", "images have no native step")


def test_tokens_with_a_tanh_step_in_torch_and_say_why():
    if native.extension()[0] is None:
        pytest.skip("no native step here at all")
    model = DecisionModel(ATARI, BOX, stats_of(BOX))
    assert Policy(model).step_choice().reason == "tokens without a norm, or with a tanh, have no native step"


def stats_of(spec: Spec) -> Stats:
    from tests.conftest import make_stats

    return make_stats(spec)


def test_images_stay_bytes_on_disk_and_are_mapped(tmp_path):
    data = pictures()
    again = load(f"store:{write_store(data, tmp_path / 'store')}")
    assert (tmp_path / "store" / "observations.npy").stat().st_size < data.observations.size + 200
    assert isinstance(again.observations, np.memmap)
    assert again.spec == data.spec
    assert again.fingerprint == data.fingerprint
    assert check(again) == []


def test_parts_of_a_dataset_of_images_read_the_same_file(tmp_path):
    data = read_store(write_store(pictures(episodes=5), tmp_path / "store"))
    train, held_out = data.split(0.4, 1)
    assert isinstance(train.observations, Rows)
    assert np.shares_memory(train.observations._array, data.observations)
    again = train.select([2, 0])
    whole = pictures(episodes=5)
    kept = [i for i in range(5) if any((whole[i].rewards == e.rewards).all() for e in train)]
    np.testing.assert_array_equal(again[0].observations, whole[kept[2]].observations)
    assert np.shares_memory(again.observations._array, data.observations)  # not a list of a list
    batch = next(iterate_windows(again, 6, 2))
    np.testing.assert_array_equal(batch.observations[1, 2:].numpy(), whole[kept[0]].observations)
    assert read_store(write_store(again, tmp_path / "again")).fingerprint == again.fingerprint
    assert len(held_out) == 2


def test_images_recorded_without_a_spec_stay_bytes():
    data = pictures()
    found = Dataset.from_arrays(**data.columns, name="x")
    assert (found.spec.observation_dtype, found.observations.dtype) == ("uint8", np.uint8)
    flat = Dataset.from_arrays(**{**data.columns, "observations": data.observations[:, 0]}, name="x")
    assert flat.observations.dtype == np.float32  # a vector of bytes is a vector


def test_training_on_images_learns_them():
    data = pictures(replace(PICTURES, frame_stack=2), episodes=2)
    model = model_of(data, context=6).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    batch = next(iterate_windows(data, 6, 2))
    for _ in range(60):
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.parameters())
    assert loss < 0.1


def test_rollouts_record_images_as_bytes():
    def make():
        return Sampled(IMAGE, SEVERAL, stack=2)

    spec = environment_spec(make())
    played = rollout(RandomActor(spec), make, episodes=2)
    assert played[0].observations.dtype == np.uint8
    data = Dataset.from_trajectories(played, spec=spec)
    policy = Policy(DecisionModel(ATARI, spec, Stats.fit(data)))
    assert rollout(policy, make, episodes=2)[1].observations.shape == (7, 36, 36)


def test_the_sampler_of_images_continues_where_it_was():
    one, other = (WindowSampler(pictures(), 4, 2, seed) for seed in (0, 1))
    one.sample()
    other.load_state_dict(one.state_dict())
    for mine, theirs in zip(one.sample(), other.sample(), strict=True):
        assert torch.equal(mine, theirs)


def test_images_too_small_for_the_encoder_are_refused():
    with pytest.raises(DataError, match=r"^model.encoder: atari: expected images of at least 36 by 36, got 35 by 40$"):
        DecisionModel(ATARI, replace(PICTURES, observation_shape=(35, 40)), stats())


def test_numbers_do_not_fit_a_model_of_images():
    shown = Spec((36, 36), "discrete", 3)
    assert PICTURES.difference(shown) == "observation_dtype: expected uint8, got float32"
    assert PICTURES.difference(replace(PICTURES, frame_stack=1)) is None  # the policy stacks by itself


def test_what_looks_at_single_pixels_is_refused():
    changes = {"layout": "sRa", "returns": "predicted", "state_weight": 1.0}
    with pytest.raises(DataError, match=r"^model.state_weight: expected 0 with pictures, got 1$"):
        model_of(pictures(), **changes)
    with pytest.raises(DataError, match=r"^model.subgoal_steps: expected 0 with pictures, got 4$"):
        HybridModel(replace(ATARI, layout="sar", subgoal_steps=4), PICTURES, stats())


def test_returns_are_predicted_from_pictures():
    data = pictures()
    model = model_of(data, layout="sRa", returns="predicted", state_weight=0.0)
    assert torch.isfinite(model.loss(next(iterate_windows(data, 4, 3))))
    for context in ("recurrent", 4):
        assert Policy(model, context=context).act(data.observations[:2]).shape == (2,)
