"""The native step of a policy against the torch step, for everything a model can be made of.

Both are given the same steps, with streams that restart at random, and the torch step's actions as the last ones.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanrl.batch import Batch
from scanrl.kernels import native
from scanrl.kernels.native_step import HEADER
from scanrl.models.decision import DecisionModel
from scanrl.models.recipes import recipe
from scanrl.nn import HEADS, MIXERS, Mixer, ModelConfig
from scanrl.nn.config import InnerMixer
from scanrl.policy import Forget, Policy
from scanrl.streams import CarriedStreams, NativeStreams, Step, Streams, begin, step_choice
from scanrl.types import DataError, Spec
from tests.conftest import BOX, CHOICE, SEQUENCE_RECIPES, make_stats

extension, why = native.extension()
pytestmark = pytest.mark.skipif(extension is None, reason=why)

TOLERANCE = 1e-6  # of the largest action, or of 1, the range of the heads
INNER: tuple[InnerMixer, ...] = ("conv4", "none", "conv", "modal_conv", "dense", "modal_linear")
IN_TORCH = ("mamba2", "s4d", "gloma", "gloma_shifted")  # mixers without a native form
NATIVE = [name for name in MIXERS if name not in IN_TORCH]
MODELS = {name: recipe(name).model for name in SEQUENCE_RECIPES}
NATIVE_RECIPES = [
    name for name, m in MODELS.items() if not re.search("mamba2|s4d|gloma", m.pattern) and m.returns == "given"
]
EVERYTHING = " ".join(NATIVE)
SMALL = ModelConfig(
    EVERYTHING, width=12, context=4, heads=2, window=5, state_size=3, mlp_ratio=2, time_embedding=True, max_length=9
)


@pytest.fixture(autouse=True)
def automatic(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced from outside."""
    monkeypatch.delenv("SCANRL_SCAN", raising=False)


def model_of(config: ModelConfig, spec: Spec = BOX, noise: float = 0.1) -> DecisionModel:
    """Weights with which every token matters to the action."""
    model = DecisionModel(config, spec, make_stats(spec), seed=1)
    with torch.no_grad():
        g = torch.Generator().manual_seed(2)
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=g))
    return model.eval()


def native_streams(model: DecisionModel, count: int) -> NativeStreams:
    return NativeStreams(model, count, None, model.lower())


def steps(spec: Spec, streams: int, length: int, restarts: float = 0.1, seed: int = 0, forget: Forget = "episode"):
    """Made-up steps; send the actions to be told as the last ones, or they are made up as well."""
    rng = np.random.default_rng(seed)
    kind = np.float32 if spec.action_kind == "continuous" else np.int64
    action, timestep = np.zeros((streams, *spec.action_shape), kind), np.zeros(streams, np.int64)
    return_to_go = np.zeros(streams)
    for t in range(length):
        begins = (rng.random(streams) < restarts) | (t == 0)
        first = begins if forget == "episode" else np.full(streams, t == 0)
        reward = np.where(first, 0, rng.normal(size=streams)).astype(np.float32)
        now, wanted = np.where(begins, 0, timestep + 1), np.where(begins, 25.0, return_to_go - reward)
        seen = rng.normal(size=(streams, *spec.observation_shape)).astype(np.float32)
        sent = yield Step(action, timestep, return_to_go, reward, first, seen, now, wanted)
        action = rng.integers(0, 2, action.shape).astype(kind) if sent is None else sent
        timestep, return_to_go = now, wanted


def play(truth: Streams, others: list[Streams], spec: Spec, streams: int, length: int, **options) -> np.ndarray:
    """What all of them did `(1 + others, length, B, ...)`."""
    source, done = steps(spec, streams, length, **options), []
    x = next(source)
    while True:
        done.append([truth.step(x), *(other.step(x) for other in others)])
        try:
            x = source.send(done[-1][0])
        except StopIteration:
            return np.array(done).swapaxes(0, 1)


def compare(model: DecisionModel, streams: int = 3, length: int = 40, tolerance: float = TOLERANCE, **options) -> None:
    expected, found = play(
        CarriedStreams(model, streams, None), [native_streams(model, streams)], model.spec, streams, length, **options
    )
    assert found.dtype == expected.dtype
    if model.spec.action_kind == "discrete":
        assert np.array_equal(found, expected)
    else:
        assert_close(found, expected, tolerance)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert np.abs(found - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", NATIVE_RECIPES)
def test_every_recipe_as_it_is(name: str) -> None:
    spec = Spec((11,), "continuous", 3, (-1.0,) * 3, (1.0,) * 3)
    compare(model_of(recipe(name).model, spec, noise=0.01), streams=2, length=60)


@pytest.mark.parametrize("name", NATIVE_RECIPES)
def test_every_recipe_small_in_every_instruction_set(isa: str, name: str) -> None:
    compare(model_of(replace(recipe(name).model, width=16, context=4, state_size=4)), streams=5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "sRa", "returns": "predicted"}, "predicts its return"),
        ({"pattern": "attention", "hide_returns": True}, "hides returns"),
    ],
)
def test_what_has_no_native_step_is_stepped_in_torch_as_a_whole_with_a_reason(changes: dict, reason: str) -> None:
    model = model_of(replace(SMALL, **changes))
    choice = step_choice(model)
    assert (choice.impl, reason in choice.reason) == ("reference", True)
    assert isinstance(begin(model, 2, "recurrent"), CarriedStreams)
    with pytest.raises(RuntimeError, match=reason):
        begin(model, 2, "recurrent", impl="native")


@pytest.mark.parametrize("layout", ["Rsa", "sar", "sa", "s", "Rs", "sRa", "Rsar", "saRr"])
@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("merged", [False, True], ids=["separate", "merged"])
@pytest.mark.parametrize("forget", ["episode", "task"])
def test_every_mixer_in_every_layout(layout: str, spec: Spec, merged: bool, forget: Forget) -> None:
    compare(model_of(replace(SMALL, layout=layout, merged=merged), spec), forget=forget, length=25)


@pytest.mark.parametrize("merged", [False, True], ids=["separate", "merged"])
def test_every_mixer_over_episodes_in_every_instruction_set(isa: str, merged: bool) -> None:
    config = replace(SMALL, layout="sar", merged=merged, time_embedding=False)
    compare(model_of(config), streams=17, forget="task")
    compare(model_of(replace(config, time_embedding=True)), streams=2, forget="task")


def test_a_merged_token_takes_no_tail_where_a_stream_starts_and_the_mark_where_an_episode_does() -> None:
    model = model_of(ModelConfig("mlp", layout="sar", merged=True, width=12))
    streams, x = native_streams(model, 2), next(steps(BOX, 2, 1))

    def act(first: bool, timestep: int, action: float, reward: float) -> np.ndarray:
        rows = {"first": np.full(2, first), "timestep": np.full(2, timestep), "reward": np.full(2, reward, np.float32)}
        found = streams.step(x._replace(last_action=np.full((2, 2), action, np.float32), **rows))
        assert found is not None
        return found

    started = act(True, 0, 0.5, 1.0)
    assert np.array_equal(started, act(True, 0, -0.5, 9.0))
    going = act(False, 1, 0.5, 1.0)
    assert not np.array_equal(going, act(False, 1, -0.5, 1.0))
    assert not np.array_equal(going, act(False, 1, 0.5, 9.0))
    assert np.array_equal(going, act(False, 7, 0.5, 1.0))
    assert not np.array_equal(going, act(False, 0, 0.5, 1.0))
    assert not np.array_equal(started, act(True, 1, 0.5, 1.0))


@pytest.mark.parametrize("mixer", NATIVE)
@pytest.mark.parametrize("residual", ["pre", "post", "none"])
def test_every_mixer_with_every_residual(isa: str, mixer: str, residual: str) -> None:
    compare(model_of(replace(SMALL, pattern=f"{mixer}:{residual} mlp {mixer}:{residual}")))


@pytest.mark.parametrize("inner", INNER)
def test_every_mixer_inside_mamba(isa: str, inner: InnerMixer) -> None:
    compare(model_of(replace(SMALL, pattern="mamba mlp mamba", inner_mixer=inner)))


@pytest.mark.parametrize("head", HEADS)
def test_every_head(head: str) -> None:
    spec = BOX if HEADS[head].kind == "continuous" else CHOICE
    compare(model_of(replace(SMALL, head=head), spec))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_every_activation(isa: str, activation: str) -> None:
    compare(model_of(replace(SMALL, activation=activation)))


@pytest.mark.parametrize("streams", [1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 33, 70])
def test_any_number_of_streams(isa: str, streams: int) -> None:
    compare(model_of(SMALL), streams=streams, length=12)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(1, 40),
    heads=st.integers(1, 3),
    states=st.integers(1, 20),
    window=st.integers(1, 9),
    context=st.integers(1, 6),
    expand=st.integers(1, 3),
    layout=st.sampled_from(["Rsa", "sar", "s"]),
    inner=st.sampled_from(INNER),
    observations=st.integers(1, 35),
    actions=st.integers(1, 20),
    share=st.booleans(),
)
def test_any_shape(
    width: int,
    heads: int,
    states: int,
    window: int,
    context: int,
    expand: int,
    layout: str,
    inner: InnerMixer,
    observations: int,
    actions: int,
    share: bool,
) -> None:
    config = ModelConfig(
        f"({EVERYTHING})*2",
        layout=layout,
        width=width * heads,
        heads=heads,
        state_size=states,
        window=window,
        context=context,
        expand=expand,
        inner_mixer=inner,
        share_norms=share,
        mlp_ratio=1,
    )
    spec = Spec((observations,), "continuous", actions, (-1.0,) * actions, (1.0,) * actions)
    # A LayerNorm over two or three entries that are nearly equal multiplies what was rounded before it.
    compare(model_of(config, spec, noise=0.02), streams=3, length=10, tolerance=1e-5)


def test_observations_of_any_rank() -> None:
    compare(model_of(SMALL, Spec((3, 2, 4), "continuous", 2, (-1.0, -1.0), (1.0, 1.0))))


@pytest.mark.parametrize("name", ["dm", "dmm-dc", "dmm-dl", "dt"])
def test_thousands_of_steps_equal_the_training_forward(name: str) -> None:
    model = model_of(replace(recipe(name).model, width=16, context=4, state_size=4))
    streams, state = native_streams(model, 2), None
    source = list(steps(BOX, 2, 6001, restarts=0.0))
    found = np.array([streams.step(x) for x in source[:-1]])
    for start in range(0, 6000, 500):  # the forward's own state from chunk to chunk
        here, then = source[start : start + 500], source[start + 1 : start + 501]
        columns = (
            [x.observation for x in here],
            [x.last_action for x in then],
            [x.reward for x in then],
            [x.return_to_go.astype(np.float32) for x in here],
            [x.timestep for x in here],
            np.ones((500, 2), bool),
        )
        batch = Batch(*(torch.from_numpy(np.array(c).swapaxes(0, 1)) for c in columns))
        with torch.inference_mode():
            hidden, state = model(batch, state)
            expected = model.tokens.unscale_actions(model.head.act(hidden))
        assert_close(found[start : start + 500], expected.numpy().swapaxes(0, 1))


def test_a_state_that_forgets_almost_nothing_stays_exact_for_20000_steps(isa: str) -> None:
    config = ModelConfig("mamba", layout="s", width=6, context=4, state_size=3, inner_mixer="none")
    model = model_of(config)
    with torch.no_grad():
        rates = model.stack.mixers[0].A_log  # type: ignore[union-attr]
        rates.copy_(torch.tensor([1e-8, 1e-5, 1e-2]).log().expand_as(rates))  # type: ignore[arg-type]
    streams, x = native_streams(model, 1), next(steps(BOX, 1, 1))  # a constant input is always rounded to one side
    for t in range(20_000):
        streams.step(x._replace(first=np.array([t == 0])))
    lanes, blocks = native.isa().lanes, -(-12 // native.isa().lanes)
    kept = (
        streams._native.state[HEADER:][: blocks * 3 * 2 * lanes].reshape(blocks, 3, 2, lanes).astype(np.float64).sum(2)
    )
    found = kept.transpose(0, 2, 1).reshape(-1, 3)[:12]  # (E, N)
    with torch.inference_mode():
        exact = copy.deepcopy(model).double()
        token = exact.tokens.embed("s", torch.from_numpy(x.observation).double(), torch.zeros(1, dtype=torch.int64))
        expected = exact.stack(token[:, None].expand(1, 20_000, 6), exact.initial_state(1))[1][0].h[0].numpy()
    for n in range(3):
        assert np.linalg.norm(found[:, n] - expected[:, n]) <= 1e-5 * np.linalg.norm(expected[:, n])


def test_with_large_weights_it_is_as_accurate_as_torch() -> None:
    # Here rounding alone moves actions by more than the tolerance, so both are held to float64.
    model = model_of(recipe("dm").model, BOX, noise=0.1)
    exact = CarriedStreams(copy.deepcopy(model).double(), 2, None)
    others: list[Streams] = [native_streams(model, 2), CarriedStreams(model, 2, None)]
    truth, found, expected = play(_Wide(exact), others, BOX, 2, 60)
    error = [float(np.sqrt(((x - truth) ** 2).mean())) for x in (found, expected)]
    assert error[0] <= 2 * error[1]


class _Wide(Streams):
    """A float64 model told what the others are told."""

    def __init__(self, streams: Streams) -> None:
        self.streams = streams

    def step(self, x: Step) -> np.ndarray:
        wide = {n: v.astype(np.float64) for n, v in x._asdict().items() if v.dtype == np.float32}
        return np.asarray(self.streams.step(x._replace(**wide)), np.float32)

    def copy(self, generator: torch.Generator | None) -> Streams:
        raise NotImplementedError

    def state_bytes(self) -> int:
        raise NotImplementedError


def column(x: Step, rows: slice) -> Step:
    return Step(*(values[rows] for values in x))


def test_a_stream_gets_the_same_bits_whatever_is_beside_it(isa: str) -> None:
    model = model_of(SMALL)
    many, few = native_streams(model, 40), native_streams(model, 7)
    for x in steps(BOX, 40, 15):
        x = Step(*map(np.ascontiguousarray, x))
        assert np.array_equal(many.step(x)[20:27], few.step(column(x, slice(20, 27))))


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    from scanrl.kernels import native_step

    model = model_of(SMALL)
    monkeypatch.setattr(native_step, "_LARGE", 0)
    several = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(native, "threads", lambda threads=threads: threads)
        several.append(native_streams(model, 19))
    first, *others = play(several[0], several[1:], BOX, 19, 12)
    assert all(np.array_equal(other, first) for other in others)


def test_a_broken_stream_harms_no_other_and_recovers_when_it_restarts(isa: str) -> None:
    model = model_of(SMALL)
    broken, whole = native_streams(model, 5), native_streams(model, 5)
    for t, x in enumerate(steps(BOX, 5, 20, restarts=0.0)):
        bad = x._replace(observation=x.observation.copy(), first=x.first.copy())
        good = x._replace(first=x.first.copy())
        if t == 5:
            bad.observation[2] = 3e38  # which the network turns into NaN
        if t == 12:
            bad.first[2] = good.first[2] = True
        a, b = broken.step(bad), whole.step(good)
        others = [0, 1, 3, 4]
        assert np.array_equal(a[others], b[others])
        assert np.isnan(a[2]).all() if 5 <= t < 12 else np.array_equal(a[2], b[2])


@pytest.mark.parametrize("layout", ["s", "Rsa", "saRr"])
def test_a_step_can_be_taken_back_without_a_copy_of_the_rings(isa: str, layout: str) -> None:
    model = model_of(replace(SMALL, layout=layout))
    tried, steady = native_streams(model, 3), native_streams(model, 3)
    wrong = np.random.default_rng(1)
    for t, x in enumerate(steps(BOX, 3, 30, restarts=0.05)):
        take_back = tried._native.undo()
        size = 1e38 if t % 3 == 0 else 1.0  # which the network turns into NaN
        tried.step(x._replace(observation=(size * wrong.normal(size=(3, 5))).astype(np.float32)))
        take_back()
        assert np.array_equal(tried.step(x), steady.step(x))


def test_drawing_that_fails_leaves_the_streams_where_they_were() -> None:
    model = model_of(replace(SMALL, layout="sar"), CHOICE)
    policy, other = (Policy(model, sample=True, forget="task") for _ in range(2))
    x = np.random.default_rng(0).normal(size=(12, 2, 5)).astype(np.float32)
    for t, seen in enumerate(x):
        if t in (3, 9):
            with pytest.raises(RuntimeError):  # torch's, of probabilities that are no numbers
                policy.act(np.full((2, 5), 3e38, np.float32), t % 2)
        assert np.array_equal(policy.act(seen, t % 2), other.act(seen, t % 2))


def test_streams_left_out_of_a_step_stay_as_they_are(isa: str) -> None:
    model = model_of(SMALL)
    few, alone = (native_streams(model, count)._native for count in (20, 20))
    only = np.arange(20) % 3 == 0
    for x in steps(BOX, 20, 8):
        values = x.return_to_go.astype(np.float32), x.observation, x.last_action, x.reward
        given = np.where(only[:, None], x.observation, 1e9).astype(np.float32)
        found = few(x.first, x.last_timestep, x.timestep, values[0], given, *values[2:], only=only)
        expected = alone(x.first, x.last_timestep, x.timestep, *values)
        assert np.array_equal(found[only], expected[only])
    assert not few.state.reshape(20, -1)[~only].any()
    assert not few.rings.reshape(20, -1)[~only].any()


def test_a_copy_goes_on_by_itself() -> None:
    model, source = model_of(SMALL), list(steps(BOX, 2, 14))
    streams, others = native_streams(model, 2), []
    for x in source[:7]:
        streams.step(x)
    others = [streams.copy(None), streams.copy(None)]
    expected = [streams.step(x) for x in source[7:]]
    for other in others:
        assert all(np.array_equal(other.step(x), y) for x, y in zip(source[7:], expected, strict=True))


def test_no_streams_at_all_are_no_special_case() -> None:
    model = model_of(SMALL)
    assert Policy(model).act(np.zeros((0, 5), np.float32)).shape == (0, 2)


def update_with(optimizer: str, model: DecisionModel) -> None:
    make = {
        "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
        "foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1),
    }[optimizer]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    make(list(model.parameters())).step()


@pytest.mark.parametrize("how", ["fused", "foreach", "sgd", "load_state_dict"])
def test_weights_that_changed_are_taken_up_at_the_next_step_with_the_state_kept(how: str) -> None:
    model = model_of(SMALL)
    streams, truth = native_streams(model, 2), CarriedStreams(model, 2, None)
    seen = []
    for t, x in enumerate(steps(BOX, 2, 12)):
        if t == 6:
            before = model.head.linear.weight.detach().clone()
            if how == "load_state_dict":
                model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()})
            else:
                update_with(how, model)
            assert not torch.equal(before, model.head.linear.weight)
        seen.append((streams.step(x), truth.step(x)))
    found, expected = map(np.array, zip(*seen, strict=True))
    assert_close(found, expected)


def test_reset_reads_all_weights_again() -> None:
    model = model_of(SMALL)
    policy = Policy(model)
    before = policy.act(np.ones(5))
    model.head.linear.weight.data[1, 5] += 5.0  # one entry, behind the back of torch's version counters
    policy.reset()
    after = policy.act(np.ones(5))
    assert not np.array_equal(after, before)
    assert np.array_equal(after, Policy(model).act(np.ones(5)))


class Unknown(Mixer):
    """A mixer that knows no native step."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, x, state=None):
        return 2 * x, ()

    def step(self, x, state):
        return 2 * x, ()

    def initial_state(self, batch):
        return ()


def test_one_module_without_a_native_step_makes_the_whole_policy_step_in_torch(monkeypatch) -> None:
    monkeypatch.setitem(MIXERS, "unknown", Unknown)
    policy = Policy(model_of(replace(SMALL, pattern="mamba unknown")))
    choice = policy.step_choice()
    assert (choice.impl, choice.reason) == ("reference", "Unknown has no native step")
    policy.act(np.zeros(5))
    assert isinstance(policy._streams, CarriedStreams)


@pytest.mark.parametrize("mixer", IN_TORCH)
def test_mixers_without_a_native_step_say_so(mixer: str) -> None:
    model = model_of(replace(SMALL, pattern=f"mamba {mixer}", head_size=4))
    name = type(model.stack.mixers[1]).__name__
    assert step_choice(model)[:2] == ("reference", f"{name} has no native step")
    with pytest.raises(RuntimeError, match=f"native step was asked for, but: {name} has no"):
        begun(Policy(model, impl="native"))


def test_a_mixer_shared_by_all_layers_keeps_a_state_for_each() -> None:
    compare(model_of(replace(SMALL, pattern="(dense mamba)*3", frozen_shared_mixer=True)))


def test_the_scan_may_take_another_nonlinearity(isa: str) -> None:
    compare(model_of(replace(SMALL, pattern="mamba mlp mamba", inner_activation="gelu")))


def test_a_forced_step_is_taken_or_refused() -> None:
    model = model_of(SMALL)
    assert isinstance(begun(Policy(model, impl="reference")), CarriedStreams)
    assert Policy(model, impl="reference").step_choice().impl == "reference"
    assert isinstance(begun(Policy(model, impl="native")), NativeStreams)
    with pytest.raises(RuntimeError, match=r"native step was asked for, but: .* is torch.float64 on cpu"):
        begun(Policy(copy.deepcopy(model).double(), impl="native"))
    with pytest.raises(DataError, match="impl: expected one of native, reference, got 'fast'"):
        Policy(model, impl="fast")  # type: ignore[arg-type]


def test_the_choice_names_what_stands_in_the_way(monkeypatch) -> None:
    model = model_of(SMALL)
    assert step_choice(model).impl == "native"
    assert "recomputes the last 4 steps" in Policy(model, context=4).step_choice().reason
    wide = step_choice(copy.deepcopy(model).double())
    assert wide.impl == "reference"
    assert "torch.float64 on cpu; the native step takes float32 on the CPU" in wide.reason
    monkeypatch.setenv("SCANRL_SCAN", "reference")
    from scanrl.kernels import choice

    choice._forced.cache_clear()
    assert step_choice(model)[:2] == ("reference", "forced by SCANRL_SCAN")
    assert isinstance(begun(Policy(model)), CarriedStreams)


def test_without_the_extension_the_policy_steps_in_torch(without_extension) -> None:
    policy = Policy(model_of(SMALL))
    assert "the C extension is not available" in policy.step_choice().reason
    with pytest.warns(RuntimeWarning, match="references run instead"):
        assert isinstance(begun(policy), CarriedStreams)


def begun(policy: Policy) -> Streams | None:
    policy.act(np.zeros(5))
    return policy._streams


def test_the_extension_refuses_arrays_that_are_too_small() -> None:
    streams = native_streams(model_of(SMALL), 3)
    x = next(steps(BOX, 3, 1))
    run = streams._native
    with pytest.raises(ValueError, match="last: expected at least 24 bytes, got 16"):
        run(x.first, x.last_timestep[:2], x.timestep)
    with pytest.raises(ValueError, match="now: expected at least 24 bytes, got 8"):
        run(x.first, x.last_timestep, x.timestep[:1])
    with pytest.raises(ValueError, match="only: expected at least 3 bytes, got 2"):
        run(x.first, x.last_timestep, x.timestep, only=x.first[:2])
    with pytest.raises(ValueError, match="state: expected at least"):
        run(np.zeros(99, bool), np.zeros(99, np.int64), np.zeros(99, np.int64))
    with pytest.raises(ValueError, match="rings: expected at least"):
        native.module().step(*run._fixed[:-1], np.zeros(1, np.float32), x.first)
    with pytest.raises(ValueError, match="places: expected 1 to 4, got 9"):
        native.module().step(*run._integers[:3], 9, *run._integers[4:])
    with pytest.raises(TypeError, match="too few arguments"):
        native.module().step(*run._integers)
