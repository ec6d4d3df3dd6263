"""Every result format of the field: its sample, made after the published schema, gives the values computed by hand."""

from pathlib import Path

import pytest

from sweetspot.table import read as table
from sweetspot.table.formats import Format, all_formats


@pytest.mark.parametrize("form", all_formats(), ids=lambda form: form.name)
def test_the_sample_gives_its_right_values(tmp_path: Path, form: Format) -> None:
    path = tmp_path / form.sample["file"]
    path.write_text(form.sample["content"])
    rows = table.read([path], form.sample.get("map"), form.sample.get("set"))
    (row,) = rows.frame.to_dicts()
    for name, right in form.sample["right"].items():
        assert row[name] == (right if isinstance(right, str) else pytest.approx(right, rel=1e-4)), name
    assert rows.notes[:2] == [f"{path} is of {form.name}", form.says]
    assert not rows.doubts
