"""The tables of models on the committed page are what the recipes and the committed rows give."""

from __future__ import annotations

import pytest

from results import models_page
from results.models_page import (
    BUDGET,
    PAGE,
    PUBLISHED,
    PUBLISHED_VARIANTS,
    departures,
    parts,
    recipes_table,
    variants_table,
    write_page,
)
from scanrl.models.ablations import ABLATIONS
from scanrl.models.recipes import RECIPES, Recipe, recipe
from scanrl.nn import ModelConfig
from scanrl.presets import preset, presets
from tests.grid.grids import row


def test_the_committed_page_is_what_the_recipes_give() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == write_page(page), "run: python results/models_page.py"


def test_the_text_around_the_tables_stays() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "\nFor all of them:\n" in write_page(page.replace("\nFor all:\n", "\nFor all of them:\n"))
    with pytest.raises(ValueError, match=r"models.md: expected the marks <!-- recipes"):
        write_page(page.replace("<!-- /recipes -->", ""))


def test_published_scores_belong_to_recipes_and_variants() -> None:
    assert set(PUBLISHED) <= set(RECIPES)
    protocols = {name.split("/")[0] for name in presets()}
    assert set(PUBLISHED) - protocols == {"bc10", "ad", "ad-mamba", "dmh"}  # no preset holds a protocol for these
    assert {(name, variant) for name, variants in ABLATIONS.items() for variant in variants} >= set(PUBLISHED_VARIANTS)


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in presets()} & set(PUBLISHED)))
def test_published_scores_are_those_of_the_presets(name: str) -> None:
    tasks = ("hopper-medium", "hopper-medium-replay")
    for task, text in zip(tasks, PUBLISHED[name].scores.split("; "), strict=True):
        printed = [(n.score, n.spread) for n in preset(f"{name}/{task}").published]
        score, _, spread = text.partition(" ± ")
        assert (float(score), float(spread) if spread else None) in printed


def test_a_recipe_is_told_by_what_is_not_the_default() -> None:
    model = ModelConfig(pattern="mamba*2", width=32, share_norms=True, reference_extras=True)
    assert parts(model) == "`mamba*2`; width 32, context 8, share_norms true"
    assert parts(recipe("dmm-dc").model) == "`(modal_conv mamba)*3`; width 64, context 64, inner_mixer modal_conv"


def test_departures_are_what_the_docstring_says() -> None:
    def one() -> Recipe:
        """A paper.

        Departures: those above; width 3 as `dmm_dc`, and
        more.

        Reference: Somebody.
        """
        return recipe("bc")

    assert departures(one) == "Width 3 as `dmm-dc`, and more."
    one.__doc__ = "Departures: those above."
    assert departures(one) == "-"
    assert all(departures(build) for build in RECIPES.values())


def test_our_scores_are_the_last_checkpoints_of_the_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("dm", seed=seed, scores=((0.0,), (score,)), budget=BUDGET) for seed, score in enumerate((40.0, 60.0))]
    rows += [row("dm", task="walker", scores=((0.0,), (7.0,)), budget=BUDGET), row("dc", budget="120 CPU s")]
    monkeypatch.setattr(models_page, "read_rows", lambda _: rows)
    found = {line.split(" |")[0].strip("| `"): line.split(" | ")[4] for line in recipes_table().splitlines()[2:]}
    assert list(found) == list(RECIPES)
    assert found["dm"] == "hopper 50.0 (-77 to 177, 2 seeds); walker 7.0 (1 seed)"
    assert found["dc"] == "-"


def test_scores_of_variants_stand_beside_those_without_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"dmm26": 40.0, "dmm26+mamba2": 50.0, "ds4+s4d-real": 9.0}
    rows = [row(name, scores=((0.0,), (score,)), budget=BUDGET) for name, score in scores.items()]
    rows += [row("dmm26", seed=1, scores=((0.0,), (90.0,)), budget=BUDGET)]  # no seed of the variant
    rows += [row("ds4+s4d-real", seed=2, scores=((0.0,), (9.0,)), budget=BUDGET), row("ds4", budget=BUDGET)]
    rows += [row("dmm-dc+gelu", budget="120 CPU s")]
    monkeypatch.setattr(models_page, "read_rows", lambda _: rows)
    found = {line.split(" |")[0].strip("| "): line.split(" | ")[3] for line in variants_table().splitlines()[2:]}
    assert found["dmm26: `mamba2`"] == "hopper 50.0 (1 seed; without 40.0)"
    assert found["ds4: `s4d-real`"] == "hopper 9.0 (9 to 9, 2 seeds)"  # one of them was not run without
    assert found["dmm-dc: `gelu`"] == "-"


def test_what_is_claimed_is_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("dt", seed=seed, scores=((0.0,), (score,)), budget=BUDGET) for seed, score in enumerate((40.0, 60.0))]
    rows += [row("dt", task="walker", scores=((0.0,), (7.0,)), budget=BUDGET)]
    rows += [row("dmm-c", seed=seed, scores=((0.0,), (score,)), budget=BUDGET) for seed, score in ((1, 50.0), (2, 0.0))]
    rows += [row("dmm-c", task="walker", scores=((0.0,), (10.0,)), budget=BUDGET)]
    monkeypatch.setattr(models_page, "read_rows", lambda _: rows)
    lines = [line.strip("| ").split(" | ") for line in models_page.comparison_table().splitlines()]
    assert [line[0] for line in lines[2:]] == [f"`{name}`" for name in models_page.CLAIMED]
    assert lines[0][:2] == ["less `dt`", "less `dm`"]  # above an empty cell
    # 50 - 60 and 10 - 7: two pairs, whose interval is Student's.
    assert lines[2][1:3] == ["-3.5 (-86 to 79; 1 of 2)", "-"]
