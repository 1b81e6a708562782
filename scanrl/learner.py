"""`Learner`: one run while it goes on: network, optimiser, windows, random numbers, and its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from scanrl import randomness
from scanrl.batch import Batch
from scanrl.checkpoint import Checkpoint, prune, save_checkpoint
from scanrl.data import Dataset
from scanrl.data.histories import HistorySampler, iterate_histories, learning_curve
from scanrl.data.queries import QuerySampler, iterate_queries
from scanrl.data.windows import EpisodeSampler, WindowSampler, iterate_episodes, iterate_windows
from scanrl.envs import ENVS
from scanrl.envs.ids import base_id
from scanrl.evaluation import evaluate, library_versions
from scanrl.graphs import CudaGraph, ReplayedStep, graphs_wanted, leaves
from scanrl.in_context import held_out_tasks, score_streams, score_tasks
from scanrl.models.build import build_model
from scanrl.models.hybrid import HybridModel
from scanrl.nn import State, map_state, replace_rows
from scanrl.optimizer import adamw, learning_rate, load_optimizer, optimizer_tensors, set_learning_rate
from scanrl.policy import Policy
from scanrl.run import Run
from scanrl.settings import TrainConfig
from scanrl.stats import Stats
from scanrl.types import CorruptFile, DataError

__all__ = ["Diverged", "Learner"]

CHUNK = 64
"""Fewest steps at a time of a held-out episode: what shorter ones cost is calls."""
CONTEXTS = 128
"""Most contexts of held-out histories in a validation loss: histories are far longer than what a model learns from."""

LEARNER_EPISODES = 1000
"""Most episodes of the learner whose returns a checkpoint keeps."""

QUERIES = 1024
"""About how many held-out states a validation loss asks for the optimal action of."""


class Diverged(RuntimeError):
    """The loss or its gradient stopped being finite; the checkpoints hold the weights from before."""


class Learner:
    """Everything a run changes while it goes on. All of it is in a checkpoint, and nothing else decides.

    Args:
        run: the folder, which need not exist yet, and the settings.
        dataset: all episodes; those held out are chosen by the run's seed.
        stats: statistics of `dataset`.

    Attributes:
        step: updates made.
        saved: the step of the latest checkpoint written or restored; 0 if there is none.
        random: states of torch's generators as the last update left them; dropout draws from there.
        carried: with whole episodes, the state that each row of a batch takes to its next chunk; else empty.

    Raises:
        DataError: whole episodes were asked for, and the model has no memory to carry through them.
    """

    def __init__(self, run: Run, dataset: Dataset, stats: Stats) -> None:
        self.run, self.dataset = run, dataset
        self.settings: TrainConfig = run.config.train
        seed = self.settings.seed
        try:
            model = build_model(run.config.model, dataset.spec, stats, seed=seed)
        except DataError as error:
            raise DataError(f"{error} (recipe {run.config.recipe})") from None  # most settings are the recipe's own
        self.model = model.to(self.settings.device).train()
        held_out = self.settings.validation > 0 and len(dataset) > 1
        parts = dataset.split(self.settings.validation, seed) if held_out else (dataset, None)
        # Each part by itself: the held-out loss is to say how well the better episodes are imitated, not all of them.
        best = self.settings.top_fraction
        self.training = parts[0].share(self.settings.data_share, seed).best(best)
        self.held_out = None if parts[1] is None else parts[1].best(best)
        self.episodes = self.settings.sequences == "episodes"
        if self._with_goals and self.settings.sequences != "histories":
            wanted = f"expected histories for a model with sub-goals, got {self.settings.sequences}"
            raise DataError(f"train.sequences: {wanted}")
        if self._with_goals and self._half() is not None:
            raise DataError(
                f"train.precision: expected float32 for a model with sub-goals, got {self.settings.precision}"
            )
        if run.config.model.query != (self.settings.sequences == "queries"):
            wanted = "queries for" if run.config.model.query else "others than queries without"
            raise DataError(f"train.sequences: expected {wanted} a model with a query, got {self.settings.sequences}")
        self.sampler = self._sampler()
        self.remembers = bool(leaves(self.model.initial_state(1)))
        if self.episodes and not self.remembers:
            raise DataError("train.sequences: expected windows for a model without memory, got episodes")
        self._empty = self.model.training_state(1) if self.episodes else ()
        self.carried = self.model.training_state(self.settings.batch_size) if self.episodes else ()
        self.optimizer = adamw(self.model, self.settings)
        self.random = randomness.seeded(seed, self.settings.device)
        device = torch.device(self.settings.device)
        # Contexts of episodes differ in length.
        wanted = graphs_wanted(device) and self.settings.sequences not in ("histories", "queries")
        self._replayed = None
        if wanted:
            what = "the training update"
            self._replayed = ReplayedStep(self._learn, self.carried, what, CudaGraph(device), device)
            self.carried = self._replayed.state  # which every update writes over
        self.step = self.saved = 0
        imitated = self.settings.sequences == "histories" and dataset.histories is not None
        curve = learning_curve(dataset)[:LEARNER_EPISODES] if imitated else ()
        self._learner = [round(float(value), 6) for value in curve]  # what the policy can be compared with

    @property
    def _with_goals(self) -> bool:
        """Whether the model is also trained towards the valuable states ahead."""
        return self.run.config.model.subgoal_steps > 0

    @property
    def _tasks(self) -> int | None:
        """How many tasks its contexts are of; none where they are no contexts of several episodes."""
        if self.settings.sequences not in ("histories", "queries"):
            return None
        return 1 if self.dataset.tasks is None else len(set(self.dataset.tasks.tolist()))

    def _sampler(self) -> WindowSampler | EpisodeSampler | HistorySampler | QuerySampler:
        settings = self.settings
        if settings.sequences == "queries":
            sizes = (self.run.config.model.context, settings.context_episodes, settings.batch_size)
            return QuerySampler(self.training, *sizes, settings.seed)
        if settings.sequences == "histories":
            return HistorySampler(
                self.training,
                settings.context_episodes,
                settings.batch_size,
                settings.seed,
                order=settings.context_order,
                stride=settings.context_stride,
                goals=self._with_goals,
            )
        sampler = EpisodeSampler if self.episodes else WindowSampler
        return sampler(self.training, self.run.config.model.context, settings.batch_size, settings.seed)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            DataError: it is of other data or another network, or lacks what resuming needs.
            CorruptFile: the optimiser's moments fit another network.
        """
        recorded, found = checkpoint.about.get("fingerprint"), self.dataset.fingerprint
        if recorded != found:
            raise DataError(f"{self.run.config.data}: fingerprint: expected {str(recorded)[:12]}…, got {found[:12]}…")
        if checkpoint.config != self.run.config.model:
            raise DataError(f"{self.run.path / 'config.yaml'}: model: expected the checkpoint's, got another network")
        _check_resumable(checkpoint, self.settings.device)
        self.model.load_state_dict(checkpoint.model().state_dict())
        load_optimizer(self.optimizer, self.model, checkpoint)
        self.random = {name: checkpoint.optimizer[name] for name in randomness.names(self.settings.device)}
        try:
            self.sampler.load_state_dict(checkpoint.progress["sampler"])
        except ValueError as error:
            raise DataError(f"{checkpoint.path / 'train/state.json'}: {error}") from None
        for place, value in zip(leaves(self.carried), self._carried_of(checkpoint), strict=True):
            place.copy_(value)
        self.step = self.saved = checkpoint.step

    def update(self) -> tuple[float, float]:
        """One optimiser step; the loss before it and the gradient's norm before clipping.

        Dropout draws from torch's default generators, which start from `random` here, whoever drew from them since.
        """
        randomness.restore(self.random, self.settings.device)
        columns, rate = self.columns(), learning_rate(self.step, self.settings)
        if self._replayed is None:
            (loss, norm), after = self._gradients(self.carried, *(x.to(self.settings.device) for x in columns))
        else:
            set_learning_rate(self.optimizer, rate)
            loss, norm = self._replayed(*columns)
            after = self.carried
        value, size = torch.stack([loss, norm]).tolist()  # one wait for the device
        self.refuse_unless_finite(value, size)
        if self._replayed is None:
            set_learning_rate(self.optimizer, rate)
            self.optimizer.step()
        self.carried = after
        self.step += 1
        self.random = randomness.states(self.settings.device)
        return value, size

    def columns(self) -> tuple[Tensor, ...]:
        """The next batch; with whole episodes, behind it which of its rows start anew `(B,)`."""
        found = self.sampler.sample()
        return found if isinstance(found, Batch) else (*found[0], found[1])

    def _gradients(self, carried: State, *columns: Tensor) -> tuple[tuple[Tensor, Tensor], State]:
        """Clipped gradients in the parameters; the loss, and the norm before clipping; what is carried on."""
        if self.episodes:
            loss, after = self._loss_from(carried, Batch(*columns[:-1]), columns[-1])
        else:
            loss, after = self.loss(Batch(*columns)), ()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        return (loss.detach(), norm), after

    def _learn(self, carried: State, *columns: Tensor) -> tuple[tuple[Tensor, Tensor], State]:
        """A whole update as it is recorded. It cannot stop half way, so that a loss that is not finite shows after."""
        found = self._gradients(carried, *columns)
        self.optimizer.step()
        return found

    def loss(self, batch: Batch) -> Tensor:
        """What an update makes smaller, of a batch on the run's device; also of all seeds at once in `Stacked`."""
        return self.model.loss(batch, half=self._half(), final_weight=self.settings.final_weight)

    def _loss_from(self, carried: State, batch: Batch, first: Tensor) -> tuple[Tensor, State]:
        """The same with whole episodes, and the state after, through which no gradient flows."""
        loss, after = self.model.loss_from(replace_rows(carried, first, self._empty), batch, self._half())
        return loss, map_state(lambda new, old: new.detach().to(old.dtype), after, carried)

    def _half(self) -> torch.dtype | None:
        return torch.bfloat16 if self.settings.precision == "bfloat16" else None

    def refuse_unless_finite(self, loss: float, norm: float) -> None:
        """Raises `Diverged` for a loss or gradient of the next update that is not finite."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            problem = f"loss {loss}, gradient norm {norm}"
            raise Diverged(
                f"{self.run.path}: update {self.step + 1}: expected a finite loss and gradient, got {problem}"
            )

    def validate(self) -> dict[str, float]:
        """Mean loss over all held-out steps, each seen once in a window; and, where the model has a memory, with the
        state carried through whole episodes, which is what a policy with `context="recurrent"` sees. Of learning
        histories the mean over some contexts."""
        assert self.held_out is not None
        context, batch_size = self.run.config.model.context, 4 * self.settings.batch_size
        size = self.settings.context_episodes
        if self.settings.sequences == "queries":
            sets = iterate_queries(self.held_out, context, size, batch_size, count=QUERIES)
            return {"val/loss": self._mean_loss(sets)}
        if self.settings.sequences == "histories":
            chosen = self._choose()
            return {"val/loss": self._mean_loss(self._contexts(self.held_out)), **chosen}
        found = {"val/loss": self._mean_loss(iterate_windows(self.held_out, context, batch_size))}
        if self.remembers:
            chunk = max(context, CHUNK)
            rows = max(1, batch_size * context // chunk)
            found["val/loss_recurrent"] = self._mean_loss(iterate_episodes(self.held_out, chunk, rows), carry=True)
        return found

    def _contexts(self, dataset: Dataset) -> Iterator[Batch]:
        """Some contexts of histories, the same every time."""
        size, batch_size = self.settings.context_episodes, 4 * self.settings.batch_size
        return iterate_histories(dataset, size, batch_size, most=CONTEXTS, goals=self._with_goals)

    def _choose(self) -> dict[str, float]:
        """Lets a model of several distances between sub-goals act with the best one on held-out contexts (on some of
        training where none are held out); the losses by which it is told, none for any other model."""
        model = self.model
        if not isinstance(model, HybridModel) or len(model.choices) == 1:
            return {}
        contexts = self._contexts(self.training if self.held_out is None else self.held_out)
        model.eval()
        with torch.inference_mode():
            device, weight = self.settings.device, self.settings.final_weight
            told = [(model.choice_losses(batch.to(device), weight), batch.mask.sum(1)) for batch in contexts]
        model.train()
        losses, steps = torch.cat([x for x, _ in told], 1), torch.cat([x for _, x in told])
        means = (losses * steps.to(losses)).sum(1) / steps.sum()
        found = {f"val/loss_every_{c}": loss for c, loss in zip(model.choices, means.tolist(), strict=True)}
        return {**found, "val/subgoal_steps": model.choose(losses, steps)}

    def _mean_loss(self, batches: Iterable[Batch], *, carry: bool = False) -> float:
        """Over all valid steps; with `carry`, of the chunks of `iterate_episodes`."""
        total, count, state = 0.0, 0, None
        self.model.eval()
        with torch.inference_mode():
            for batch in batches:
                valid = int(batch.mask.sum())
                if carry and state is not None:
                    rows = len(batch.mask)
                    state = None if not batch.timesteps[0, 0] else map_state(lambda x, rows=rows: x[:rows], state)
                loss, after = self.model.loss_from(state, batch.to(self.settings.device))
                state = after if carry else None
                total += float(loss) * valid
                count += valid
        self.model.train()
        return total / max(count, 1)

    def evaluate(self, env: str, progress: Callable[[int], None]) -> dict[str, float]:
        """Metrics of the present policy in `env`; `progress` is called after every step, see `rollout`."""
        settings = self.run.config.eval
        if self.settings.sequences in ("histories", "queries") and (base_id(env) in ENVS or self._tasks == 1):
            return self._evaluate_in_context(env, progress)
        policy = Policy(self.model, context=settings.context, sample=settings.sample, seed=settings.seed)
        scores = evaluate(
            policy,
            env,
            episodes=settings.episodes,
            seed=settings.seed,
            targets=settings.targets or None,  # none: the best of the data, or no target where the model takes none
            num_envs=settings.num_envs,
            progress=progress,
            like=self.model.spec,
        )
        self.model.train()
        return scores.summary()

    def _evaluate_in_context(self, env: str, progress: Callable[[int], None]) -> dict[str, float]:
        """Return against episode, `episodes` of them: on `num_envs` tasks that no history is of, or in as many streams
        where the environment is a single task."""
        settings = self.run.config.eval
        policy = Policy(self.model, context=settings.context, sample=True, seed=settings.seed, forget="task")
        own = {"progress": progress, "like": self.model.spec}
        common = {"episodes": settings.episodes, "seed": settings.seed, **own}
        if base_id(env) in ENVS:
            tasks = held_out_tasks(env, settings.num_envs, fewer=True)
            scores, _ = score_tasks(policy, env, tasks, **common)
        else:
            scores, _ = score_streams(policy, env, settings.num_envs, **common)
        self.model.train()
        return scores.summary()

    def save(self) -> None:
        """Write a checkpoint of the last whole update. Earlier ones stay; see `prune`.

        Raises:
            Diverged: a weight is not finite; nothing was written.
            OSError: the disk refused; nothing is left of this checkpoint.
        """
        for name, tensor in self.model.state_dict().items():
            if not tensor.isfinite().all():
                raise Diverged(f"{self.run.path}: update {self.step}: expected finite weights, got others in {name}")
        self._choose()  # by these weights: they may never be validated again
        about = {
            "recipe": self.run.config.recipe,
            "sequences": self.settings.sequences,
            "tasks": self._tasks,
            "learner": self._learner,
            "data": self.run.config.data,
            "fingerprint": self.dataset.fingerprint,
            "env": self.run.config.env,
            "acting": self.run.config.eval.context,
            "versions": library_versions(),
        }
        carried = {f"carried.{i}": _packed(x) for i, x in enumerate(leaves(self.carried))}
        tensors = {**optimizer_tensors(self.optimizer, self.model), **self.random, **carried}
        save_checkpoint(
            self.run.path / "checkpoints", self.step, self.model, about, tensors, {"sampler": self.sampler.state_dict()}
        )
        self.saved = self.step

    def prune(self) -> None:
        """Remove the checkpoints that are not kept beside the latest."""
        prune(self.run.path, self.settings.keep, self.saved)

    def _carried_of(self, checkpoint: Checkpoint) -> list[Tensor]:
        """What its rows carried, in the order of `leaves`."""
        found = []
        for index, mine in enumerate(leaves(self.carried)):
            value = checkpoint.optimizer.get(f"carried.{index}")
            shape = None if value is None else tuple(value.shape)
            if value is None or shape != tuple(mine.shape):
                where = f"{checkpoint.path / 'train'}: carried state {index}"
                raise CorruptFile(f"{where}: expected shape {tuple(mine.shape)}, got {shape}")
            found.append(value)
        return found


def _packed(x: Tensor) -> Tensor:
    """A copy on the CPU that shares no memory, as files want it."""
    return x.detach().cpu().clone(memory_format=torch.contiguous_format)


def _check_resumable(checkpoint: Checkpoint, device: str) -> None:
    """A run must not go on with half of its state: it would differ, silently, from one that was not interrupted."""
    there = {
        "optimizer": any(name.startswith("exp_avg/") for name in checkpoint.optimizer),
        "random": all(name in checkpoint.optimizer for name in randomness.names(device)),
        "sampler": "sampler" in checkpoint.progress,
    }
    missing = [name for name, found in there.items() if not found]
    if missing:
        raise DataError(f"{checkpoint.path / 'train'}: expected the state of {', '.join(there)}, got no {missing[0]}")
