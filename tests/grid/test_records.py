import json

import pytest

from scanrl.grid.records import Records
from scanrl.types import CorruptFile


def test_a_line_torn_by_a_kill_is_left_out_and_cut_off_by_the_next(tmp_path):
    records = Records(tmp_path / "rows.jsonl")
    records.append({"a": 1})
    whole = records.path.read_bytes()
    for torn in (b'{"b": 2', b'{"b": 2}', b"\x00\xff"):  # without its line end a line may be any part of one
        records.path.write_bytes(whole + torn)
        assert records.read() == [{"a": 1}]
        records.append({"c": 3})
        assert records.read() == [{"a": 1}, {"c": 3}]
    assert [json.loads(line) for line in records.path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_a_file_of_nothing_but_a_torn_line_is_begun_anew(tmp_path):
    records = Records(tmp_path / "rows.jsonl")
    assert records.read() == []
    records.path.write_bytes(b'{"b"')
    records.append({"a": 1})
    assert records.path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize("line", [b"no json\n", b"[1]\n", b"\xff\n"])
def test_damage_in_the_middle_is_reported_with_its_line(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n' + line + b'{"b": 1}\n')
    with pytest.raises(CorruptFile, match=r"rows.jsonl: line 2: expected a JSON object"):
        Records(tmp_path / "rows.jsonl").read()


def test_a_line_that_lacks_a_key_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 1}\n')
    with pytest.raises(CorruptFile, match=r"rows.jsonl: line 2: b: expected a value, got none"):
        Records(tmp_path / "rows.jsonl", ("a", "b")).read()


def test_a_line_is_on_the_disk_when_it_was_added(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append((tmp_path / "rows.jsonl").read_text()))
    Records(tmp_path / "rows.jsonl").append({"a": 1})
    assert flushed == ['{"a": 1}\n']
