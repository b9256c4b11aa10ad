"""What a record, a claim or a run folder of somebody else must not be able to do."""

import csv
import json

import pandas as pd
import pytest
from PIL import Image

from bench import csv_cells
from bench.records import write_csv
from bench.report.load import UnusableFile, load_runs
from bench.report.page import claims_of

ATTACKS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1"]


@pytest.mark.parametrize("text", ATTACKS)
def test_text_that_a_spreadsheet_would_run_is_quoted(text, tmp_path):
    write_csv(tmp_path / "a.csv", ["name"], [[text]])
    with open(tmp_path / "a.csv", newline="") as file:
        assert list(csv.reader(file))[1] == [f"'{text}"]
    frame = csv_cells.table(pd.DataFrame({"name": [text], text: [1.0]}))
    assert frame["name"].tolist() == [f"'{text}"]
    assert list(frame.columns) == ["name", f"'{text}"]


@pytest.mark.parametrize("value", [-1.5, "-1.5", "+3e-4", "-inf", "a=b", "", None, -7, True])
def test_numbers_and_other_text_are_left_alone(value):
    assert csv_cells.cell(value) is value
    frame = pd.DataFrame({"value": [value]})
    pd.testing.assert_frame_equal(csv_cells.table(frame), frame)


@pytest.mark.parametrize("name", ["../secret.png", "{root}/secret.png", "figures/link.png"])
def test_a_claims_figure_comes_from_its_own_folder(name, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "link.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (2, 2)).save(run / "figures" / "own.png")
    claims = [
        {"claim": "a", "verdict": "reproduced", "value": 1.0, "figure": figure}
        for figure in (name.format(root=tmp_path), "figures/own.png")
    ]
    (run / "verify.json").write_text(json.dumps({"claims": claims}))
    with pytest.warns(UnusableFile, match="is not in"):
        refused, own = claims_of(load_runs([run]))
    assert refused["image"] is None
    assert own["image"] is not None
