"""The store writes whole files or none, and reads only what is whole."""

from __future__ import annotations

import json
import os

import pytest

from peftprune.errors import UsageError
from peftprune.files import read_jsonl, write_atomically, write_json, write_jsonl
from peftprune.study import store
from peftprune.study.store import ArmFolder, StudyFolder, config_hash
from tests.helpers import make_arm
from tests.stored import empty_result


def test_the_hash_does_not_depend_on_the_order_of_keys():
    assert config_hash({"a": 1, "b": {"c": 2, "d": 3}}) == config_hash({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize("other", [{"a": 2}, {"a": "1"}, {"a": 1, "b": None}, {"b": 1}, {"a": [1]}])
def test_the_hash_depends_on_everything_else(other):
    assert config_hash({"a": 1}) != config_hash(other)


def test_the_hash_is_the_same_on_every_machine():
    assert config_hash({"a": 1}) == "015abd7f5c"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"old")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, b"new, but cut off")
    assert path.read_bytes() == b"old"


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "file"
    for data in (b"first, which is longer", b"second"):
        write_atomically(path, data)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_data_is_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    write_atomically(tmp_path / "file", b"x")
    assert calls == ["sync", "rename"]


def test_json_lines_round_trip(tmp_path):
    rows = [{"step": 1}, {"text": "line\nbreak and \u2028 and é"}, []]
    write_jsonl(tmp_path / "rows", rows)
    assert read_jsonl(tmp_path / "rows") == rows
    write_jsonl(tmp_path / "rows", [])
    assert read_jsonl(tmp_path / "rows") == []


# --- arms ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def arm(tmp_path):
    study = StudyFolder(tmp_path / "study")
    study.prepare()
    return study.arm("lorpa:r64", 3, "0123456789")


def test_a_finished_arm_is_read_back(arm):
    assert arm.result() is None
    result = {"schema": store.SCHEMA, "value": 1.5, **empty_result()}
    write_json(arm.path / "result.json", result)
    assert arm.result() == result


@pytest.mark.parametrize(
    "content",
    [b"", b'{"schema": 1, "val', b"[1, 2]", b'{"value": 1}', b'{"schema": 999}', b'{"schema": 1}', b"\xff\xfe"],
)
def test_a_torn_or_foreign_result_is_no_result(arm, content):
    write_atomically(arm.path / "result.json", content)
    assert arm.result() is None


def test_labels_become_safe_folder_names(tmp_path):
    study = StudyFolder(tmp_path)
    folder = study.arm("lorpa:r64/../x y", 3, "0123456789").path
    assert folder.parent == tmp_path / "arms"
    assert folder.name.endswith("-s3-0123456789")
    assert study.arm("a", 1, "d").path != study.arm("a", 2, "d").path != study.arm("b", 2, "d").path


@pytest.mark.parametrize(
    ("error", "message"),
    [(UsageError.of("field", 1, "is bad", "Fix it"), "field: 1 is bad. Fix it"), (KeyError("x"), "KeyError: 'x'")],
)
def test_failures_are_kept_with_their_traceback_and_can_be_forgotten(arm, error, message):
    try:
        raise error
    except Exception as caught:
        arm.record_error(caught, "lorpa:r64", 3)
    kept = arm.error()
    assert (kept["label"], kept["seed"], kept["error"]) == ("lorpa:r64", 3, message)
    assert "raise error" in kept["traceback"]
    arm.clear_error()
    arm.clear_error()
    assert arm.error() is None


def test_an_arm_reads_its_logs(arm):
    logged = [{"step": 5, "loss": 1.0}]
    trace = [{"step": 0, "phase": "train", "reason": "", "scores": {}, "sites": {}}]
    write_jsonl(arm.path / "history.jsonl", logged)
    write_jsonl(arm.path / "allocation.jsonl", trace)
    assert (arm.history(), arm.allocation()) == (logged, trace)


def test_equal_paths_are_equal_arms(tmp_path):
    assert ArmFolder(tmp_path) == ArmFolder(tmp_path)


# --- studies -------------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match=r"^output_dir: '.*file/study' cannot be written \(.+\)\. Name a folder"):
        StudyFolder(tmp_path / "file" / "study").prepare()


def test_preparing_leaves_only_the_folder_for_arms(tmp_path):
    study = StudyFolder(tmp_path / "a" / "b")
    study.prepare()
    study.prepare()
    assert [p.name for p in study.path.iterdir()] == ["arms"]


def test_the_request_round_trips(tmp_path):
    study = StudyFolder(tmp_path)
    request = {**dict.fromkeys(store._STUDY, 1), "methods": ["lora"]}
    study.write_request(request)
    assert study.read_request() == {"schema": store.STUDY_SCHEMA, **request}
    assert json.loads((tmp_path / "study.json").read_text())["methods"] == ["lora"]


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^output_dir: .* holds no study\.json\. Name a folder"):
        StudyFolder(tmp_path).read_request()


@pytest.mark.parametrize("content", ["{", '{"schema": 999}', '{"schema": 2}'])
def test_a_damaged_study_is_refused(tmp_path, content):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UsageError, match=r"holds no readable study\.json: .*Run the same compare again"):
        StudyFolder(tmp_path).read_request()


def test_options_that_joined_later_leave_the_identity_of_arms_that_do_not_use_them(tiny_bert, tmp_path):
    options = make_arm("lorpa", tmp_path, tiny_bert).config["options"]
    assert set(options) == {"initial_rank", "dense_share", "form", "scaling", "rewind"}
    staged = make_arm("lorpa(stage_shares='0.4_0.4')", tmp_path, tiny_bert).config["options"]
    assert staged == options | {"stage_shares": "0.4_0.4"}
