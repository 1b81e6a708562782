"""Our interquartile mean and stratified bootstrap against rliable's numbers (tools/rliable_oracle.py made them)."""

import json
from pathlib import Path

import numpy as np
import pytest

from scanrl import intervals
from scanrl.intervals import interquartile_mean, mean, stratified_bootstrap

CASES = json.loads(Path(__file__).with_name("rliable.json").read_text())["cases"]
STATISTICS = {"iqm": interquartile_mean, "mean": mean}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_statistics_are_those_of_rliable(name, statistic):
    found = STATISTICS[statistic](np.array(CASES[name]["scores"]).ravel())
    assert float(found) == pytest.approx(CASES[name][statistic], rel=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_resampling_is_that_of_rliable(name, statistic, monkeypatch):
    # rliable takes plain percentiles; what is left between the two is the luck of the draw.
    monkeypatch.setattr(intervals, "_expanded_tail", lambda tail, runs, tasks: tail)
    scores = np.array(CASES[name]["scores"])
    found = stratified_bootstrap(scores, statistic=STATISTICS[statistic], resamples=20_000)
    expected = CASES[name][f"{statistic}_interval"]
    width = expected[1] - expected[0]
    np.testing.assert_allclose(found, expected, atol=0.025 * width)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("statistic", STATISTICS)
def test_our_percentiles_are_wider_as_they_have_to_be_for_few_runs(name, statistic):
    scores = np.array(CASES[name]["scores"])
    low, high = stratified_bootstrap(scores, statistic=STATISTICS[statistic])
    expected = CASES[name][f"{statistic}_interval"]
    assert low < expected[0] < expected[1] < high
    assert 1.0 < (high - low) / (expected[1] - expected[0]) < 1.3
