"""`analyse`: what the scans of a trained model do, and what its size and that of the data are worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from scanrl.console import print_json, print_table
from scanrl.types import DataError
from scanrl.verbs.options import Folders, RunPath, check

if TYPE_CHECKING:
    import numpy as np

    from scanrl.batch import Batch
    from scanrl.data import Dataset
    from scanrl.models.decision import DecisionModel

__all__ = ["analyse_activations", "analyse_eigenvalues", "analyse_scaling"]


def analyse_eigenvalues(
    run: RunPath, data: str | None = None, windows: int = 64, out: Path | None = None, json: bool = False
) -> int:
    """Show the eigenvalues of every scan and how many environment steps its states remember.

    Args:
        run: a run folder (its latest checkpoint) or a checkpoint folder.
        data: the episodes that step sizes are averaged over; by default those the run was trained on.
        windows: windows of them.
        out: where to draw the histograms, an SVG file; by default eigenvalues.svg in the run folder, or here.
        json: print one JSON object with all values instead of a table.
    """
    check("analyse eigenvalues", 1, windows=windows)
    model, dataset = _read(run, data)
    from scanrl.analysis import draw_spectra, full_windows, spectra

    found = spectra(model, full_windows(dataset, model.config.context, windows))
    file = out or _beside(run, "eigenvalues.svg")
    file.write_text(draw_spectra(found, model.config.context), encoding="utf-8")
    if json:
        return print_json([{k: v if isinstance(v, str) else v.tolist() for k, v in s._asdict().items()} for s in found])
    import numpy as np

    head = ("scan", "|a| from", "to", "step size, mean", "memory in steps, median", "longest tenth from", "longest")
    rows = []
    for s in found:
        size, tenth = np.abs(s.eigenvalues), np.quantile(s.memory, 0.9)
        values = (size.min(), size.max(), s.step_sizes.mean(), np.median(s.memory), tenth, s.memory.max())
        rows.append((s.name, *(f"{value:.3g}" for value in values)))
    print_table(head, rows, right=range(1, len(head)))
    print(f"drawn: {file}")
    return 0


def analyse_activations(
    run: RunPath,
    data: str | None = None,
    episode: int = 0,
    start: int = 0,
    steps: int | None = None,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Show which steps of an episode the scans write into their states, and which are left at the end.

    Args:
        run: a run folder (its latest checkpoint) or a checkpoint folder.
        data: where the episode is; by default in what the run was trained on.
        episode: its number, from 0.
        start: its first step that is read, from an empty state.
        steps: how many are read; by default as many as the windows of the training had.
        out: where to draw the maps, an SVG file; by default activations.svg in the run folder, or here.
        json: print one JSON object with all values instead of a table.
    """
    model, dataset = _read(run, data)
    batch = _window(dataset, episode, start, model.config.context if steps is None else steps)
    from scanrl.analysis import activations, draw_activations
    from scanrl.analysis.scans import scans

    found, config = activations(model, batch), model.config
    left_out = [name for name in scans(model, batch) if name not in {a.name for a in found}]
    names = [config.layout] if config.merged else list(config.layout)
    file = out or _beside(run, "activations.svg")
    file.write_text(draw_activations(found, names, start), encoding="utf-8")
    if json:
        return print_json(
            [{k: v if isinstance(v, str) else v[0].tolist() for k, v in a._asdict().items()} for a in found]
        )
    rows = [
        (a.name, name, *(f"{x[0, :, i].mean():.3g}" for x in (a.kept, a.written, a.left)))
        for a in found
        for i, name in enumerate(names)
    ]
    print_table(("scan", "token", "state kept", "written", "left at the end"), rows, right=(2, 3, 4))
    print(f"means over {batch.mask.shape[1]} steps of episode {episode} from step {start}; drawn: {file}")
    if left_out:
        print(f"left out, since they do not read every step once: {', '.join(left_out)}")
    return 0


def analyse_scaling(folders: Folders, out: Path | None = None, json: bool = False) -> int:
    """Show what width, depth and the amount of data are worth, from the runs of grids that differ in them.

    Args:
        folders: folders that `scanrl bench run` filled (docs/analysis.md describes such a grid).
        out: where to draw the curves, an SVG file; by default scaling.svg in the first folder.
        json: print one JSON object with all values instead of a table.
    """
    if not folders:
        raise DataError("analyse scaling: expected DIR, got none")
    import numpy as np

    from scanrl.grid.scaling import draw_scaling, scaling
    from scanrl.grid.schedule import read_rows

    found = scaling([row for folder in folders for row in read_rows(folder)])
    file = out or folders[0] / "scaling.svg"
    file.write_text(draw_scaling(found), encoding="utf-8")
    if json:
        absent = {"losses", "scores"}  # JSON has no NaN
        told = ({**s._asdict(), **{k: np.where(np.isnan(v := getattr(s, k)), None, v) for k in absent}} for s in found)
        return print_json([{k: v if isinstance(v, str) else v.tolist() for k, v in one.items()} for one in told])
    for one in found:
        print(f"\n{one.recipe}, {one.task}, {one.budget}, {one.context}: {one.axis} ({one.others})")
        counts = (~np.isnan(one.scores)).sum(1)
        columns = (one.sizes, one.parameters, one.losses, one.scores, counts)
        rows = [
            (f"{size:g}", f"{parameters:,}", _spread(losses, ".4f"), _spread(scores, ".1f"), str(runs))
            for size, parameters, losses, scores, runs in zip(*columns, strict=True)
        ]
        print_table((one.axis, "parameters", "held-out loss", one.unit, "runs"), rows, right=range(5))
    print(f"\nmeans over runs, and their range; drawn: {file}")
    return 0


def _spread(values: np.ndarray, form: str) -> str:
    """Mean and range of those that are there."""
    there = values[values == values]
    if not there.size:
        return "-"
    ends = f" ({there.min():{form}} to {there.max():{form}})" if there.size > 1 else ""
    return f"{there.mean():{form}}{ends}"


def _beside(run: Path, name: str) -> Path:
    """In the folder of a run; in the present one for a checkpoint, whose folder holds what its manifest lists."""
    return run / name if (run / "config.yaml").is_file() else Path(name)


def _read(run: Path, data: str | None) -> tuple[DecisionModel, Dataset]:
    """The model of a run, and the episodes."""
    from scanrl.checkpoint import load_checkpoint
    from scanrl.data import load
    from scanrl.run import open_run
    from scanrl.training import data_source

    checkpoint = load_checkpoint(run)
    if data is None:
        if not (run / "config.yaml").is_file():
            raise DataError(f"{run}: data: expected --data for a checkpoint without its run folder, got none")
        data = data_source(open_run(run))
    dataset = load(data)
    difference = checkpoint.spec.difference(dataset.spec, recorded=True)
    if difference is not None:
        raise DataError(f"{dataset.name}: {difference} (from {run})")
    return checkpoint.model(), dataset


def _window(dataset: Dataset, episode: int, start: int, steps: int) -> Batch:
    """Some steps of one episode, as one row."""
    if not 0 <= episode < len(dataset):
        raise DataError(f"analyse activations: --episode: expected 0 to {len(dataset) - 1}, got {episode}")
    length = int(dataset.lengths[episode])
    if not 0 <= start < length:
        raise DataError(f"analyse activations: --start: expected 0 to {length - 1}, got {start}")
    check("analyse activations", 1, steps=steps)
    from scanrl.batch import Batch
    from scanrl.data.windows import iterate_episodes

    end = min(start + steps, length)
    batch = next(iterate_episodes(dataset.select([episode]), end, 1))
    # Images that a step sees several of stand before the first step: more columns than steps.
    return Batch(*(x[:, start : end + x.shape[1] - batch.mask.shape[1]] if x.numel() else x for x in batch))
