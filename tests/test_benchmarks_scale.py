"""The benchmark's files are data files without repeats, and each stage measures what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import scale
from mmcoref.data import records
from mmcoref.data.file import read_records
from mmcoref.data.split import cluster_ids
from mmcoref.tools.audit import audit_file


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scale") / "60.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scale, "DISTINCT", 25)
        scale.write_file(made, 60)
        scale.save_tokenizer(str(made.with_name("tokenizer")))
    return made


def test_no_two_records_repeat_each_other(file: Path) -> None:
    read = read_records(str(file)).records
    assert len(read) == 60
    assert cluster_ids(read) == list(range(60))
    report = audit_file(str(file))
    assert report.form == "JSON list of strings"
    assert report.audit is not None
    found = {finding.name: finding.total for finding in report.audit.findings}
    assert (found["repeated_record"], found["repeated_dialogue"], found["same_options"]) == (0, 0, 0)


@pytest.mark.parametrize("small", [0, 10**9])
def test_every_stage_is_measured(small: int, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "SMALL", small)
    monkeypatch.setenv("MMCOREF_CACHE", str(tmp_path / "cache"))
    rows: dict[int, dict[str, Any]] = {60: {}, 600: {}}
    for stage in scale.STAGES:
        rows[60][stage] = found = scale._measured(stage, str(file), str(file.with_name("tokenizer")))
        assert found["records"] == 60
        assert found["seconds"] > 0
        assert found["own_megabytes"] >= 0
        rows[600][stage] = {**found, "cpu_seconds": 20 * found["cpu_seconds"]}
    del rows[600]["start"]
    console = Console(width=200, record=True)
    console.print(scale.table(rows))
    text = console.export_text()
    assert text.count(" 1.00 |") == len(scale.STAGES)
    assert text.count(" 2.00 |") == len(scale.STAGES) - 1  # twenty times the time for ten times the records
