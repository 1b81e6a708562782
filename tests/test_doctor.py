import json

from scanrl import doctor
from scanrl.cli import main


def test_what_is_found_is_plain_and_complete():
    found = doctor.diagnose()
    assert json.loads(json.dumps(found)) == found
    assert set(found) == {"device", "scan", "versions", "extras"}
    assert set(found["device"]) == {"name", "kind", "cores", "threads", "system", "python"}
    assert set(found["scan"]) == {"impl", "reason", "detail"}
    assert found["scan"]["impl"] in ("native", "reference", "gpu")
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
