import json

from scanrl import doctor
from scanrl.cli import main
from scanrl.models.recipes import RECIPES
from scanrl.nn.attention import Attention
from scanrl.nn.mixer import Mixer


def test_what_is_found_is_plain_and_complete():
    found = doctor.diagnose()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"device", "scan", "step", "versions", "extras"}
    assert set(found["device"]) == {"name", "kind", "cores", "threads", "system", "python"}
    assert set(found["scan"]) == {"impl", "reason", "detail"}
    assert found["scan"]["impl"] in ("native", "reference", "gpu")
    assert set(found["step"]) == set(RECIPES)
    assert {step["impl"] for step in found["step"].values()} <= {"native", "reference"}
    assert set(found["extras"]) == set(doctor.EXTRAS)
    assert found["versions"]["torch"]


def test_the_command_prints_one_json_object(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == doctor.diagnose()


def test_the_table_says_how_to_get_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for extra in doctor.EXTRAS:
        assert f"missing: pip install 'scanrl[{extra}]'" in said
    assert doctor.diagnose()["scan"]["reason"] in said


def test_recipes_that_do_not_step_natively_are_named_with_the_reason(capsys, monkeypatch):
    before = {name for name, step in doctor.diagnose()["step"].items() if step["impl"] != "native"}
    monkeypatch.delattr(Attention, "lower")  # as a mixer that was written without one
    found = doctor.diagnose()
    assert Attention.lower is Mixer.lower
    assert main(["doctor"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    if found["scan"]["impl"] == "native":
        assert found["step"]["dt"]["reason"] == "Attention has no native step"
        attending = {name for name, build in RECIPES.items() if "attention" in build().model.pattern}
        assert {name for name, step in found["step"].items() if step["impl"] != "native"} == before | attending
        assert found["step"]["mambadm"]["reason"] == "GLoMa has no native step"
        assert found["step"]["ds4"]["reason"] == "S4D has no native step"
        assert found["step"]["ad-mamba"]["impl"] == "native"
        assert "dt in torch: Attention has no native step" in said
    else:
        assert f"in torch: {found['scan']['reason']}" in said
