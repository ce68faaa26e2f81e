"""The benchmark that takes the gain of pairwise terms apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_run import write_run

from deepcrf_ext.records.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_rows_of_one_unary_and_what_is_changed_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from crf_gain import draw, measure

    run = write_run(tmp_path / "run", tmp_path / "data", potentials=None)
    state = load_checkpoint(run / "last.pt")
    save_checkpoint(run / "last.pt", {**state, "class_weights": [1e30] * 8 + [1.0] * 3})
    (run / "metrics.jsonl").write_text('{"kind": "val", "step": 7}\n{"kind": "train"}\n')
    measure(run, tmp_path / "record.json", before=(run,), flip=True, commands=("train",))
    record = json.loads((tmp_path / "record.json").read_text())
    rows = record["splits"]["val"]["rows"]
    assert list(rows)[:5] == ["unary", "pairwise-1", "pairwise-2", "1unary+2pair", "full"]
    assert set(rows) > {
        "unary + surrounding",
        "unary + above_below",
        "unary + dense CRF",
        "1unary+2pair, weights fitted to val",
        "1unary+2pair, weights of 1",
        "unary, balance undone",
        "full, several views",
    }
    assert set(rows["unary"]["gains"].values()) <= {0.0, None}
    # The weights of the model are 1, and it is its own start.
    for same, row in (
        ("1unary+2pair, weights of 1", "1unary+2pair"),
        ("unary, before the relations", "unary"),
    ):
        assert rows[same]["scores"] == rows[row]["scores"]
    nll = record["relation_weights"]["val_nll_at_nodes"]
    assert nll["after"] < nll["before"]
    assert record["relation_weights"]["fitted"] != record["relation_weights"]["trained"]
    # The classes that counted most get fewer pixels.
    predicted = [
        sum(sum(line[:8]) for line in rows[row]["scores"]["confusion"])
        for row in ("unary, balance undone", "unary")
    ]
    assert predicted[0] < predicted[1]
    assert [len(training["validation"]) for training in record["training"]] == [1, 1]
    assert record["training"][0]["config"]["data"]["root"] == "data"
    assert record["commands"][0] == "train"
    draw(tmp_path / "record.json", tmp_path / "gain.png", "val")
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")
    assert "val: 3 images" in capsys.readouterr().out


def test_balance_is_undone_by_the_weights() -> None:
    from crf_gain import without_balance

    from deepcrf_ext.config import ModelConfig
    from deepcrf_ext.models import DeepCRF

    model = DeepCRF(ModelConfig(widths=(4,), convs=(1,), pooled_blocks=1, hidden=4), 3).eval()
    plain = without_balance(model, [1.0, 2.0, 0.5])
    image = torch.rand(1, 3, 16, 16) * 255
    expected = model.marginals(model.energies(image), "unary-3scales")
    marginals = plain.marginals(plain.energies(image), "unary-3scales")
    weighted = marginals * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(weighted / weighted.sum(1, keepdim=True), expected)
