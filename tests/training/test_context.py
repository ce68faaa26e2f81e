"""Context is really learnt: pairwise potentials tell look-alikes apart that the unary confuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepcrf_ext.config import DataConfig, ModelConfig, RelationConfig, TrainConfig
from deepcrf_ext.data import open_dataset
from deepcrf_ext.data.scenes import Scenes
from deepcrf_ext.evaluation.evaluation import evaluate
from deepcrf_ext.evaluation.regions import Scores
from deepcrf_ext.models import Variant
from deepcrf_ext.training.interrupt import StopRequest
from deepcrf_ext.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

# A unary sees about a third of the image's height at one scale: too little to find the hills below
# the sky. The dilated boxes of its relations reach 36 and 76 pixels with few edges.
MODEL = ModelConfig(
    widths=(12, 24),
    convs=(1, 1),
    pooled_blocks=2,
    head_widths=(24,),
    scales=(1.0,),
    hidden=24,
    pairwise_hidden=48,
    relations={
        "surrounding": RelationConfig("surrounding", 0.8, 0.8, step=3),
        "above_below": RelationConfig("above_below", 0.5, 0.8, step=2),
    },
    potentials=("unary", "surrounding", "above_below"),
    iterations=3,
)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scores]:
    """On images that training has not seen, after about 40 seconds of it."""
    config = TrainConfig(
        DataConfig(crop=None, scale_range=None),
        MODEL,
        epochs=6,
        warm_start=0.67,
        validate_every=6,
        seed=0,
        amp=False,
        device="cpu",
    )
    train, val, test = (open_dataset("scenes", None, name) for name in ("train", "val", "test"))
    trainer = Trainer(config, train, val)
    folder: Path = tmp_path_factory.mktemp("run")
    assert trainer.fit(folder, StopRequest())
    rows = {"unary": Variant("unary"), "crf": trainer.model.default_variant()}
    return evaluate(trainer.model.eval(), test, rows, amp=False).scores


def told_apart(scores: Scores, *pairs: tuple[str, str]) -> float:
    """Of the pixels of a pair that are labelled as one of the two, the share labelled right."""
    right = both = 0
    for pair in pairs:
        index = [Scenes.classes.index(name) for name in pair]
        confusion = np.asarray(scores.confusion)[np.ix_(index, index)]
        right += int(confusion.trace())
        both += int(confusion.sum())
    return right / both


def test_context_tells_sky_from_water(scores: dict[str, Scores]) -> None:
    """They look the same, but one has hills below it and the other ground.

    The horizon is tilted, and in some pictures further off than the relations reach.
    """
    unary, crf = (told_apart(scores[row], ("sky", "water")) for row in ("unary", "crf"))
    assert unary < 0.78
    assert crf > 0.8
    assert 1 - crf < 0.7 * (1 - unary)


def test_context_improves_the_look_alikes_and_the_whole(scores: dict[str, Scores]) -> None:
    unary, crf = (told_apart(scores[row], *Scenes.look_alikes) for row in ("unary", "crf"))
    assert crf > unary + 0.08
    assert scores["crf"].pixel_accuracy > scores["unary"].pixel_accuracy + 0.05
    assert scores["crf"].mean_iou > scores["unary"].mean_iou + 0.03
