"""Several learners that differ in their seed as one model: parameters side by side, one forward, one optimiser step.

It is made for where the launch of a kernel costs more than what it computes, as with small models on a GPU. On a CPU
stacks of five seeds take 1.2 to 1.4 times as long as the seeds in turn (`python -m benchmarks.seeds`): what layers hand
to each other no longer stays in the cache and is copied into stacks and out of them, and launches cost next to nothing.
So on a CPU seeds take turns, and so they do with dropout, whose random numbers cannot come from five generators in one
call, with whole episodes, whose states stay with their rows, and with learning histories, whose batches differ in
length; each then equals its solo run bit for bit. Stacked, a seed equals its solo run up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from scanrl.batch import Batch
from scanrl.graphs import CudaGraph, Replayed, graphs_wanted
from scanrl.learner import Learner
from scanrl.optimizer import learning_rate, set_learning_rate

__all__ = ["Stacked", "stacking_pays"]


def stacking_pays(learners: Sequence[Learner]) -> bool:
    """Whether these are faster as one model than in turn, and equal to what they are in turn."""
    first = learners[0]
    alike = first.run.config.model.dropout == 0 and first.settings.sequences == "windows"
    return len(learners) > 1 and first.settings.device != "cpu" and alike


class Stacked:
    """Learners at the same step, from now on updated together only.

    Their parameters and moments become views into stacks `(S, ...)` of all S of them, so that whatever reads a learner
    (a checkpoint, the validation loss, an evaluation) finds its own as before.

    Args:
        learners: of equal settings but for the seed, with no dropout.
    """

    def __init__(self, learners: Sequence[Learner]) -> None:
        self.learners = learners
        self.rows: dict[Tensor, list[Tensor]] = {}  # of every stack, the learners' own parameters
        groups = []
        for parts in zip(*(one.optimizer.param_groups for one in learners), strict=True):
            same = zip(*(group["params"] for group in parts), strict=True)
            groups.append({**parts[0], "params": [self._stack(parameters) for parameters in same]})
        self.optimizer = torch.optim.AdamW(groups, fused=True)  # the rest is in the groups
        self._take_moments()
        stacks = {id(rows[0]): stack for stack, rows in self.rows.items()}
        self.parameters = {f"model.{n}": stacks[id(p)] for n, p in learners[0].model.named_parameters()}
        self._loss = _Loss(learners[0])
        device = torch.device(learners[0].settings.device)
        wanted = graphs_wanted(device)
        self._replayed = Replayed(self._learn, "the update of the seeds", CudaGraph(device), device) if wanted else None

    def update(self) -> list[tuple[float, float]]:
        """What `Learner.update` does, for all of them at once."""
        first = self.learners[0]
        columns = [torch.stack(column) for column in zip(*(one.columns() for one in self.learners), strict=True)]
        rate, fresh = learning_rate(first.step, first.settings), not self.optimizer.state
        if self._replayed is None:
            found = self._gradients(*(column.to(first.settings.device) for column in columns))
        else:
            set_learning_rate(self.optimizer, rate)
            found = self._replayed(*columns)
        values = torch.stack(found).T.tolist()
        for one, (loss, norm) in zip(self.learners, values, strict=True):
            one.refuse_unless_finite(loss, norm)
        if self._replayed is None:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        if fresh:
            self._share_moments()
        for one in self.learners:
            one.step += 1
        return [(loss, norm) for loss, norm in values]

    def _learn(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """A whole update as it is recorded."""
        found = self._gradients(*columns)
        self.optimizer.step()
        return found

    def _gradients(self, *columns: Tensor) -> tuple[Tensor, Tensor]:
        """Clipped gradients, from columns `(S, B, ...)`, in the parameters; losses and norms before clipping `(S,)`."""
        losses = vmap(self._one_loss)(self.parameters, columns)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # the seeds share nothing, so that each gradient is of one loss alone
        return losses.detach(), self._clip(self.learners[0].settings.clip_norm)

    def _one_loss(self, parameters: dict[str, Tensor], columns: tuple[Tensor, ...]) -> Tensor:
        return functional_call(self._loss, parameters, (Batch(*columns),))

    def _clip(self, largest: float) -> Tensor:
        """Clip every learner's gradient by itself; the norms before `(S,)`."""
        for stack, rows in self.rows.items():
            for index, row in enumerate(rows):
                row.grad = None if stack.grad is None else stack.grad[index]
        return torch.stack([nn.utils.clip_grad_norm_(one.model.parameters(), largest) for one in self.learners])

    def _stack(self, parameters: Sequence[Tensor]) -> Tensor:
        """One parameter of all learners `(S, ...)`, whose rows are theirs from now on."""
        stack = torch.stack([parameter.detach() for parameter in parameters])
        for parameter, row in zip(parameters, stack, strict=True):
            parameter.data = row
        self.rows[stack.requires_grad_(parameters[0].requires_grad)] = list(parameters)
        return stack

    def _take_moments(self) -> None:
        """The learners' moments as they are, if they were resumed."""
        for stack, rows in self.rows.items():
            states = [one.optimizer.state.get(row, {}) for one, row in zip(self.learners, rows, strict=True)]
            if states[0]:
                moments = {k: torch.stack([state[k] for state in states]) for k in states[0] if k != "step"}
                self.optimizer.state[stack] = {"step": states[0]["step"].clone(), **moments}
        self._share_moments()

    def _share_moments(self) -> None:
        for stack, state in self.optimizer.state.items():
            for index, (one, row) in enumerate(zip(self.learners, self.rows[stack], strict=True)):
                one.optimizer.state[row] = {k: v if k == "step" else v[index] for k, v in state.items()}


class _Loss(nn.Module):
    """A learner's loss as a forward, which is what `functional_call` calls."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.model, self.learner = learner.model, learner

    def forward(self, batch: Batch) -> Tensor:
        return self.learner.loss(batch)
