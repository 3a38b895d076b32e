import numpy as np
import pytest
import torch

from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.evaluation.canaries import CANARIES, Linear, specimens, weights
from patchguard.evaluation.checks import QUICK, CheckContext, run_checks
from patchguard.evaluation.metrics import image_metrics

QUICK_CANARIES = [name for name, (_, check) in CANARIES.items() if check in QUICK]


def test_the_linear_detector_knows_its_worst_case() -> None:
    linear = Linear(weights((8, 8)))
    test = specimens(weights((8, 8)), each=3)
    images, labels = test.images, torch.from_numpy(test.labels)
    images[:, :, 0] = 0.0
    (attacked,) = PGD(image_score, steps=10)(linear, images, labels, test.coverage(), eps=[4 / 255])
    found = linear(attacked).score
    torch.testing.assert_close(
        found, linear.worst_scores(images, labels, 4 / 255), atol=1e-4, rtol=0
    )


def test_specimens_are_8_bit_images_that_a_linear_detector_tells_apart() -> None:
    test = specimens(weights())
    levels = 255 * test.images
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    with torch.no_grad():
        scores = Linear(weights())(test.images).score.numpy()
    assert image_metrics(scores, test.labels).auroc == 1.0
    assert test.masks is not None
    assert [bool(mask.any()) for mask in test.masks] == test.labels.tolist()


def test_specimens_need_not_be_squares() -> None:
    test = specimens(weights((8, 20)), each=2)
    assert test.masks is not None
    defect = np.zeros((8, 20), dtype=bool)
    defect[2:6, 5:15] = True
    np.testing.assert_array_equal(test.masks[-1], defect)
    torch.testing.assert_close(test.coverage()[-1], torch.from_numpy(test.masks[-1]).float())
    assert test.coverage().shape == test.images[:, 0].shape


@pytest.mark.parametrize("name", QUICK_CANARIES)
def test_every_canary_is_flagged_in_a_quick_run(name: str) -> None:
    kind, flagged_by = CANARIES[name]
    context = CheckContext(kind(weights()), specimens(weights()))
    (check,) = run_checks(context, only={flagged_by})
    assert check.status in ("WARN", "FAIL")
