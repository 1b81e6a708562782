"""The study of sub-goals: how far Decision Mamba-Hybrid remembers, how often it should plan, and what each part gives.

    python -m results.subgoals run [--seeds 0-2] [--only 'tmaze-*/every-*']
    python -m results.subgoals page       # writes results/subgoals.md from results/subgoals.jsonl
    python -m results.subgoals plan       # what `run` would do

A run is `TASK/FORM`, e.g. `darkroom/adaptive`; `--only` takes such names with `*`, several of them. A run that has its
row is not made again.

FORM is `every-5`, `every-10` or `every-20` (environment steps between two sub-goals), `adaptive` (one network learns
the three at once, and the longest that held-out loss cannot tell from the best acts, `model.subgoal_choices`), or a
name from `ABLATIONS["dmh"]`.

`tmaze-L`: a corridor of `L` steps without the penalty, both tasks of it, their optimal episodes as a batch of two.
Lengths double up to `L`; each is trained on (AdamW, step size 3e-3, `train.final_weight` 1) until every action of both
episodes is the optimal one, looked at after every five updates, for at most 400 updates. What counts is the processor
time and the number of updates of all lengths together. There is no other data: `adaptive` chooses by the loss on the
same two episodes. Ablations plan every 10 steps.

`darkroom`: 9 x 9 cells, histories of 12 episodes of the learner `posterior` on the 65 training goals, `train` for a
fixed number of updates on contexts of 10 episodes, batches of 16, then 40 episodes of each of the 16 held-out goals
with sampled actions. Paces start from the recipe, in the T-mazes from the paper's form (`ABLATIONS["dmh"]["paper"]`);
ablations do everywhere, and plan every 5 steps.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if __package__ in (None, ""):  # run as a file: the repository is not yet on the path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from results.equal_time import provenance
from results.study import Study, command
from scanrl.models.ablations import ABLATIONS

if TYPE_CHECKING:
    from scanrl.batch import Batch
    from scanrl.models.hybrid import HybridModel

FAR = ("tmaze-500", "tmaze-5000", "tmaze-20000")
CHOICES: tuple[int, ...] = ABLATIONS["dmh"]["adaptive"]["subgoal_choices"]
PACES: dict[str, dict[str, Any]] = {f"every-{c}": {"subgoal_steps": c} for c in CHOICES}
PACES["adaptive"] = {"subgoal_choices": CHOICES}
EVERY = {"tmaze": 10, "darkroom": 5}  # of the ablations
UPDATES = 1000  # in the dark room
MOST, LOOK = 400, 5  # updates at one length of a T-maze; between two looks
RATE, CLIP = 3e-3, 1.0
TASKS, STEPS, BATCH = 65, 9600, 16  # of the histories: goals, steps for each; contexts of a batch
EPISODES, EVAL_SEED = 40, 1000


class Run(NamedTuple):
    """One run of the study."""

    task: str
    form: str
    seed: int
    updates: int

    @property
    def name(self) -> str:
        return f"{self.task}/{self.form}"


def planned(seeds: Iterable[int]) -> list[Run]:
    """All runs, the first seed of each before the second of any."""
    names = [(task, "every-20") for task in FAR]
    names += [(task, form) for task in ("tmaze-50", "tmaze-500", "darkroom") for form in PACES]
    names += [(task, form) for task in ("tmaze-50", "darkroom") for form in ABLATIONS["dmh"]]
    most = {task: UPDATES if task == "darkroom" else MOST for task, _ in names}
    return [Run(task, form, seed, most[task]) for seed in seeds for task, form in dict.fromkeys(names)]


def changes(run: Run) -> dict[str, Any]:
    """What a run changes of the recipe's model."""
    if run.form in PACES:
        return PACES[run.form] | (ABLATIONS["dmh"]["paper"] if run.task != "darkroom" else {})
    return {"subgoal_steps": EVERY[run.task.partition("-")[0]], **ABLATIONS["dmh"][run.form]}


def one_run(run: Run) -> dict[str, Any]:
    """What came out of a run, which is made in this process."""
    import torch

    torch.set_num_threads(1)
    found = _darkroom(run) if run.task == "darkroom" else _tmaze(run)
    return {"settings": changes(run), **found, **provenance()}


def curriculum(length: int) -> list[int]:
    """Lengths of corridors that double up to `length`, from at most 50 on."""
    lengths = [length]
    while lengths[0] > 50:
        lengths.insert(0, -(-lengths[0] // 2))
    return lengths


def maze(length: int) -> Batch:
    """The optimal episodes of both tasks, with the valuable states ahead."""
    from scanrl.data import Dataset
    from scanrl.data.histories import iterate_histories
    from scanrl.envs.tmaze import TMaze
    from scanrl.types import Spec, Trajectory

    family, tasks = TMaze(length=length), np.arange(2)
    states, seen, taken, earned = family.initial(tasks), [], [], []
    for step in range(family.horizon):
        actions = family.best(tasks, states)
        seen.append(family.observe(tasks, states))
        taken.append(actions)
        states, rewards, _ = family.move(tasks, states, actions, step)
        earned.append(rewards)
    observations, actions, rewards = (np.stack(column, 1) for column in (seen, taken, earned))
    ends = np.arange(family.horizon) == family.horizon - 1
    episodes = [Trajectory(observations[i], actions[i], rewards[i], np.zeros_like(ends), ends) for i in tasks]
    dataset = Dataset.from_trajectories(episodes, spec=Spec((2,), "discrete", 4)).with_histories(tasks, tasks)
    [batch] = iterate_histories(dataset, 1, 2, goals=True)
    return batch


def _tmaze(run: Run) -> dict[str, Any]:
    import torch

    from scanrl.models.build import build_model
    from scanrl.models.hybrid import HybridModel
    from scanrl.models.recipes import recipe
    from scanrl.stats import Stats
    from scanrl.types import Spec

    length = int(run.task.partition("-")[2])
    mazes = {steps: maze(steps) for steps in curriculum(length)}
    stats = Stats(np.zeros(2, np.float32), np.ones(2, np.float32), 1.0, None, None, length + 1, 1.0, 1.0)
    config = replace(recipe("dmh").model, context=length + 1, max_length=length + 1, **changes(run))
    began, spent = time.process_time(), {}
    model = build_model(config, Spec((2,), "discrete", 4), stats, seed=run.seed)
    assert isinstance(model, HybridModel)
    torch.manual_seed(run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4, fused=True)
    for steps, batch in mazes.items():
        spent[steps] = _until_right(model, optimizer, batch, run.updates)
        if spent[steps] is None:
            break
    return {
        "solved": None not in spent.values(),
        "updates_of_length": spent,
        "cpu_seconds": round(time.process_time() - began, 1),
        "chosen": model.steps,
    }


def _until_right(model: HybridModel, optimizer: Any, batch: Batch, most: int) -> int | None:
    """Updates until every action is right; `None` if that takes more than `most`."""
    import torch

    for count in range(0, most + 1, LOOK):
        if _all_right(model, batch):
            return count
        for _ in range(LOOK):
            optimizer.zero_grad()
            model.loss(batch, final_weight=1.0).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
    return None


def _all_right(model: HybridModel, batch: Batch) -> bool:
    import torch

    model.eval()
    with torch.inference_mode():
        if len(model.choices) > 1:
            model.choose(model.choice_losses(batch, final_weight=1.0))
        right = (model.actions(batch) == batch.actions) | ~batch.mask
    model.train()
    return bool(right.all())


def _darkroom(run: Run) -> dict[str, Any]:
    from scanrl.collecting import collect_histories
    from scanrl.in_context import held_out_tasks, score_tasks
    from scanrl.policy import Policy
    from scanrl.settings import run_config
    from scanrl.training import run_training

    env = "Darkroom-v0"
    histories = collect_histories(env, "posterior", tasks=TASKS, steps=STEPS, episodes=12, seed=run.seed)
    once = {"train.checkpoint_every": run.updates, "train.validate_every": run.updates, "eval.every": -1}
    wanted = {f"model.{name}": value for name, value in changes(run).items()}
    config = run_config("dmh", wanted, once, {"train.steps": run.updates, "train.batch_size": BATCH})
    config = replace(config, train=replace(config.train, seed=run.seed))
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trained = run_training(config, histories, out=Path(folder) / "run")
        spent, curves = time.process_time() - began, {}
        policy = Policy.load(trained.path, sample=True, seed=EVAL_SEED, forget="task")
        lines = [line for line in trained.metrics() if "val/loss" in line]
    model: Any = policy.model
    chosen = model.steps
    for steps in model.choices:
        model.act_every(steps)
        scores, _ = score_tasks(policy, env, held_out_tasks(env, 16), episodes=EPISODES, seed=EVAL_SEED)
        curves[steps] = [round(float(value), 3) for value in scores.curve]
    return {
        "validation_loss": lines[-1]["val/loss"],
        "losses": {name.rpartition("_")[2]: value for name, value in lines[-1].items() if "loss_every" in name},
        "cpu_seconds": round(spent, 1),
        "chosen": chosen,
        "curves": curves,
        "fingerprint": histories.fingerprint,
    }


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: how far it remembers, the paces, the ablations."""
    lines = [
        "# Sub-goals",
        "",
        "Protocol and command: `results/subgoals.py`; rows: `results/subgoals.jsonl`. Means over ",
    ]
    lines[-1] += "seeds, with the lowest and the highest of them. T-mazes count the seeds that solved them."
    for title, tasks, forms in (
        ("How far it remembers", FAR, ("every-20",)),
        ("How often it plans", ("tmaze-50", "tmaze-500", "darkroom"), tuple(PACES)),
        ("What each part gives", ("tmaze-50", "darkroom"), tuple(dict.fromkeys((*PACES, *ABLATIONS["dmh"])))),
    ):
        tables = []
        for kind, table in (("tmaze", _tmaze_table), ("darkroom", _darkroom_table)):
            there = [
                (t, f, group) for t in tasks for f in forms if t.startswith(kind) and (group := _group(rows, t, f))
            ]
            if there and not (title.startswith("What") and {f for _, f, _ in there} <= set(PACES)):
                tables += ["", *table(there)]
        lines += ["", f"## {title}", *tables] if tables else []
    return "\n".join(lines) + "\n"


def _group(rows: Sequence[dict[str, Any]], task: str, form: str) -> list[dict[str, Any]]:
    mine = [row for row in rows if (row["task"], row["form"]) == (task, form)]
    most = max((row["updates"] for row in mine), default=0)
    return [row for row in mine if row["updates"] == most]


Groups = Sequence[tuple[str, str, Sequence[dict[str, Any]]]]


def _tmaze_table(groups: Groups) -> list[str]:
    head = ("corridor", "form", "solved", "updates", "range", "CPU seconds", "slowest", "acts every")
    lines = _head(head)
    for task, form, rows in groups:
        done = [row for row in rows if row["solved"]]
        updates = [sum(row["updates_of_length"].values()) for row in done]
        seconds = [row["cpu_seconds"] for row in done]
        cells = [task.partition("-")[2], form, f"{len(done)} of {len(rows)}"]
        cells += [f"{np.mean(updates):.0f}", _range(updates, 0)] if done else ["-", "-"]
        cells += [f"{np.mean(seconds):.1f}", f"{max(seconds):.1f}"] if done else ["-", "-"]
        lines.append(_line([*cells, ", ".join(str(row["chosen"]) for row in rows)]))
    return lines


def _darkroom_table(groups: Groups) -> list[str]:
    shown = (1, 5, 10, 20, 40)
    head = (
        "form",
        *(f"episode {n}" for n in shown),
        "last ten",
        "range",
        "seeds",
        "updates",
        "CPU seconds",
        "acts every",
    )
    lines = _head(head)
    for _, form, rows in groups:
        kinds = [(form, lambda row: str(row["chosen"]))]
        if form == "adaptive":
            kinds += [(f"- the same network, every {c}", lambda row, c=c: str(c)) for c in CHOICES]
        for name, pick in kinds:
            curves = np.array([row["curves"][pick(row)] for row in rows])
            last = curves[:, -10:].mean(1)
            cells = [name, *(f"{curves[:, n - 1].mean():.1f}" for n in shown), f"{last.mean():.1f}"]
            cells += [_range(last, 1), str(len(rows)), str(rows[0]["updates"])]
            spent = f"{np.mean([row['cpu_seconds'] for row in rows]):.0f}"
            lines.append(_line([*cells, spent, ", ".join(pick(row) for row in rows)]))
    return lines


def _range(values: Sequence[float], digits: int) -> str:
    if len(values) == 1:
        return "1 seed"
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|---" * len(cells) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


STUDY = Study(Path(__file__), planned, one_run, page)

if __name__ == "__main__":
    command(STUDY, __doc__)
