"""One environment step of a policy, compared with the training forward before it is timed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from scanrl.batch import Batch
from scanrl.bench.equality import require_equal
from scanrl.policy import Policy

__all__ = ["acting_step", "require_equal_acting"]


def require_equal_acting(policy: Policy, streams: int, steps: int = 12) -> None:
    """Acts on random observations and compares with the training forward on the same history.

    Raises:
        Differs: by more than 1e-4 of the largest action.
    """
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(steps, streams, *policy.spec.observation_shape)).astype(np.float32)
    policy.reset(streams)
    acted = np.stack([policy.act(x, 1.0) for x in seen], 1)
    batch = Batch(
        observations=torch.from_numpy(seen).transpose(0, 1),
        actions=torch.from_numpy(acted),
        rewards=torch.ones(streams, steps),
        returns_to_go=((policy.target_return or 0.0) - torch.arange(steps)).float().expand(streams, steps),
        timesteps=torch.arange(steps).expand(streams, steps),
        mask=torch.ones(streams, steps, dtype=torch.bool),
    )
    with torch.inference_mode():
        expected = policy.model.actions(batch)
    require_equal(f"acting, context {policy.context}", [batch.actions], [expected], 1e-4)


def acting_step(policy: Policy, streams: int, warm: int = 0) -> Callable[[], None]:
    """A function that makes one environment step of so many streams, `warm` steps into an episode."""
    policy.reset(streams)
    seen, earned = np.zeros((streams, *policy.spec.observation_shape), np.float32), np.ones(streams, np.float32)

    def step() -> None:
        policy.act(seen, earned)

    for _ in range(warm):
        step()
    return step
