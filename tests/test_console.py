import re

import pytest

from scanrl.console import TrainingBar


@pytest.mark.parametrize(("losses", "expected"), [((0.5,), "loss 0.5000 "), ((0.5, 0.7), "loss 0.6000 ± 0.1000 ")])
def test_the_bar_shows_the_loss_and_the_spread_over_several_runs(capsys, monkeypatch, losses, expected):
    monkeypatch.setenv("COLUMNS", "150")
    with TrainingBar(10, 0, "dmm-dc", True) as bar:
        bar.advance(4, losses)
    said = capsys.readouterr().err
    assert expected in said
    assert re.search(r"dmm-dc .* 4/10 ", said)
    with TrainingBar(10, 0, "dmm-dc", False) as bar:
        bar.advance(4, losses)
        bar.note("evaluating")
    assert capsys.readouterr().err == ""
