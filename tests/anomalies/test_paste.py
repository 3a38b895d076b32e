import numpy as np
import pytest
from scipy import ndimage

from patchguard.anomalies.noise import perlin
from patchguard.anomalies.paste import make_pseudo_anomaly, sample_rng, usable_foreground
from patchguard.config import AnomalyConfig
from patchguard.errors import PatchGuardError

SIZE = 96
PUBLISHED = AnomalyConfig(shapes=["rectangle"], blends=["opaque"], count_max=1)


def disc(size=SIZE, radius=0.35):
    rows, cols = np.mgrid[:size, :size] / (size - 1) - 0.5
    return np.hypot(rows, cols) < radius


def textured(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    grey = 0.5 + 0.3 * perlin(size, size, size / 8, rng)
    return (grey[..., None] * np.array([1.0, 0.8, 0.6])).astype(np.float32)


def flat(value):
    return np.full((SIZE, SIZE, 3), value, dtype=np.float32)


def bar():
    """A thin diagonal object, on which few rectangles fit."""
    rows, cols = np.mgrid[:SIZE, :SIZE]
    return np.abs(rows - cols) < 5


def spot():
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[40:42, 40:42] = True
    return mask


FOREGROUNDS = {
    "disc": disc(),
    "bar": bar(),
    "full": np.ones((SIZE, SIZE), dtype=bool),
    "empty": np.zeros((SIZE, SIZE), dtype=bool),
    "tiny": spot(),
}


@pytest.mark.parametrize("config", [AnomalyConfig(), PUBLISHED], ids=["default", "published"])
@pytest.mark.parametrize("foreground", FOREGROUNDS.values(), ids=FOREGROUNDS)
def test_only_the_mask_changes_and_it_lies_on_the_foreground(foreground, config):
    image = textured()
    before, allowed = image.copy(), usable_foreground(foreground)
    for index in range(60):
        anomaly, mask = make_pseudo_anomaly(image, foreground, sample_rng(0, 0, index), config)
        assert mask.any()
        assert mask.dtype == bool
        assert anomaly.dtype == np.float32
        assert anomaly.min() >= 0
        assert anomaly.max() <= 1
        assert not (mask & ~allowed).any()
        np.testing.assert_array_equal(anomaly[~mask], image[~mask])
    np.testing.assert_array_equal(image, before)


def test_foreground_grows_slightly_and_falls_back_to_the_whole_image():
    grown = usable_foreground(disc())
    assert (grown >= disc()).all()
    # 2 % of 96 px is 2 px.
    assert (grown <= ndimage.binary_dilation(disc(), np.ones((3, 3)), iterations=2)).all()
    assert usable_foreground(FOREGROUNDS["empty"]).all()
    assert usable_foreground(FOREGROUNDS["tiny"]).all()


def plate_with_holes():
    """A flat plate, and where its four dark square holes are."""
    holes = np.zeros((SIZE, SIZE), dtype=bool)
    for row in (20, 60):
        for col in (24, 64):
            holes[row : row + 9, col : col + 9] = True
    return np.where(holes[..., None], np.float32(0.1), flat(0.7)), holes


REMOVING = AnomalyConfig(removals=1.0, count_max=1, contrast_floor=0.1)


def test_removals_close_holes_and_change_nothing_else():
    plate, holes = plate_with_holes()
    closed = 0
    for index in range(60):
        anomaly, mask = make_pseudo_anomaly(
            plate, FOREGROUNDS["full"], sample_rng(0, 0, index), REMOVING
        )
        changed = (anomaly != plate).any(axis=2)
        if not (changed & holes).any():
            # Nothing to remove in any of the tries: shaded instead.
            continue
        if changed[~holes].any():
            # More hole than plate around the target: the hole grows.
            continue
        closed += 1
        np.testing.assert_allclose(anomaly[mask], 0.7, atol=1e-6)
        # The average over 3 x 3 pixels, by which change is judged, reaches one pixel further.
        assert not (mask & ~ndimage.binary_dilation(holes, np.ones((3, 3)))).any()
    assert closed > 20


def test_where_nothing_can_be_removed_the_image_is_shaded():
    anomaly, mask = make_pseudo_anomaly(
        flat(0.7), FOREGROUNDS["full"], sample_rng(0, 0, 0), REMOVING
    )
    assert mask.any()
    assert (anomaly[mask] < 0.7).all()


@pytest.mark.parametrize("image", [textured(), flat(0), flat(1), flat(0.5)])
@pytest.mark.parametrize("floor", [0.05, 0.3, 0.5])
def test_change_is_visible(image, floor):
    config = AnomalyConfig(contrast_floor=floor)
    for index in range(40):
        anomaly, mask = make_pseudo_anomaly(image, disc(), sample_rng(1, 0, index), config)
        assert np.abs(anomaly - image)[mask].mean() >= floor - 1e-6


def test_checkerboard_of_black_and_white_reaches_the_highest_floor():
    rows, cols = np.mgrid[:SIZE, :SIZE]
    image = np.repeat(((rows + cols) % 2).astype(np.float32)[..., None], 3, axis=2)
    config = AnomalyConfig(contrast_floor=0.5, count_max=1)
    for index in range(20):
        anomaly, mask = make_pseudo_anomaly(image, disc(), sample_rng(1, 0, index), config)
        assert np.abs(anomaly - image)[mask].mean() >= 0.5 - 1e-6


def test_sizes_follow_the_foreground():
    spans = {}
    for radius in (0.15, 0.45):
        foreground = disc(radius=radius)
        side = np.sqrt(usable_foreground(foreground).sum())
        longest = []
        for index in range(150):
            _, mask = make_pseudo_anomaly(
                textured(), foreground, sample_rng(2, 0, index), PUBLISHED
            )
            rows, cols = np.nonzero(mask)
            extent = np.hypot(np.ptp(rows) + 1, np.ptp(cols) + 1)
            longest.append(extent)
            assert mask.sum() <= (PUBLISHED.side_max * side + 2) ** 2
            assert extent <= np.sqrt(2) * np.hypot(*[PUBLISHED.side_max * side + 2] * 2)
            assert mask.sum() >= 4
        spans[radius] = np.median(longest)
    assert 2 < spans[0.45] / spans[0.15] < 4


def test_fixed_sides_give_that_area_whatever_the_rotation():
    config = AnomalyConfig(
        shapes=["rectangle"], blends=["opaque"], count_max=1, side_min=0.25, side_max=0.25
    )
    # Targets stay inside the disc, so that the rotated square is never clipped.
    foreground = disc(radius=0.2)
    foreground[[0, -1]] = foreground[:, [0, -1]] = False
    side = round(0.25 * np.sqrt(usable_foreground(foreground).sum()))
    areas = [
        make_pseudo_anomaly(textured(), foreground, sample_rng(3, 0, index), config)[1].sum()
        for index in range(60)
    ]
    assert abs(np.median(areas) - side**2) <= 2 * side
    assert max(areas) <= side**2 + 4 * side


def tightest_fill(mask):
    """Share of the tightest rotated rectangle around the mask that the mask fills."""
    points = np.argwhere(mask) - np.argwhere(mask).mean(axis=0)
    angles = np.deg2rad(np.arange(90))
    boxes = []
    for angle in angles:
        turned = points @ np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        boxes.append(np.prod(np.ptp(turned, axis=0) + 1))
    return len(points) / min(boxes)


def test_published_setting_pastes_one_rotated_rectangle():
    config = AnomalyConfig(
        shapes=["rectangle"], blends=["opaque"], count_max=1, side_min=0.2, side_max=0.35
    )
    fills = []
    for index in range(60):
        _, mask = make_pseudo_anomaly(
            textured(), FOREGROUNDS["full"], sample_rng(4, 0, index), config
        )
        assert ndimage.label(mask)[1] == 1
        if not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
            fills.append(tightest_fill(mask))
    assert len(fills) > 20
    assert min(fills) > 0.85


def test_shapes_differ():
    fill = {}
    for shape in ("rectangle", "ellipse", "irregular", "line"):
        config = AnomalyConfig(
            shapes=[shape], blends=["opaque"], count_max=1, side_min=0.3, side_max=0.4
        )
        masks = [
            make_pseudo_anomaly(textured(), FOREGROUNDS["full"], sample_rng(5, 0, index), config)[1]
            for index in range(20)
        ]
        fill[shape] = np.median([tightest_fill(mask) for mask in masks])
    assert fill["rectangle"] > 0.85 > fill["ellipse"] > fill["irregular"] > fill["line"]


def edge_to_core_change(blend):
    """How much less the outermost pixels of an ellipse change than the innermost."""
    config = AnomalyConfig(
        shapes=["ellipse"], blends=[blend], count_max=1, side_min=0.3, side_max=0.4
    )
    edges, cores = [], []
    for index in range(60):
        anomaly, mask = make_pseudo_anomaly(
            flat(0.5), FOREGROUNDS["full"], sample_rng(6, 0, index), config
        )
        depth = ndimage.distance_transform_edt(mask)
        change = np.abs(anomaly - 0.5).mean(axis=2)
        edges.append(change[mask & (depth < 1.5)].mean())
        cores.append(change[depth > 0.7 * depth.max()].mean())
    return np.sum(edges) / np.sum(cores)


def test_soft_patches_fade_at_the_outline_and_others_do_not():
    assert edge_to_core_change("soft") < 0.6
    assert edge_to_core_change("opaque") > 0.8
    assert edge_to_core_change("transparent") > 0.8


def test_number_of_patches():
    config = AnomalyConfig(shapes=["ellipse"], count_max=3, side_max=0.15)
    patches = [
        ndimage.label(
            make_pseudo_anomaly(textured(), FOREGROUNDS["full"], sample_rng(7, 0, index), config)[1]
        )[1]
        for index in range(100)
    ]
    assert set(patches) == {1, 2, 3}


def test_grey_images_stay_grey():
    image = np.repeat(textured()[..., :1], 3, axis=2)
    for index in range(60):
        anomaly, _ = make_pseudo_anomaly(image, disc(), sample_rng(8, 0, index), AnomalyConfig())
        assert np.ptp(anomaly, axis=2).max() < 1e-5


def test_a_sample_depends_on_its_triple_alone():
    def make(triple):
        return make_pseudo_anomaly(textured(), disc(), sample_rng(*triple), AnomalyConfig())

    triples = [(s, e, i) for s in range(2) for e in range(2) for i in range(3)]
    forwards = {triple: make(triple) for triple in triples}
    backwards = {triple: make(triple) for triple in reversed(triples)}
    for triple in triples:
        for first, second in zip(forwards[triple], backwards[triple], strict=True):
            np.testing.assert_array_equal(first, second)
    distinct = {anomaly.tobytes() for anomaly, _ in forwards.values()}
    assert len(distinct) == len(triples)


def test_non_square_and_very_small_images():
    for shape in ((7, 200), (200, 7), (3, 3), (1, 1)):
        image = np.random.default_rng(0).random((*shape, 3), dtype=np.float32)
        config = AnomalyConfig(side_max=1.0)
        for index in range(20):
            _, mask = make_pseudo_anomaly(
                image, np.ones(shape, dtype=bool), sample_rng(9, 0, index), config
            )
            assert mask.any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"shapes": []}, "shapes"),
        ({"blends": []}, "blends"),
        ({"side_min": 0.6}, "side_max is 0.5.*side_min = 0.6"),
        ({"side_min": 0.0}, "side_min"),
        ({"copies": 1.5}, "copies"),
        ({"removals": -0.1}, "removals"),
        ({"count_max": 0}, "count_max"),
        ({"contrast_floor": 0.6}, "contrast_floor"),
    ],
)
def test_impossible_settings_are_named(settings, named):
    with pytest.raises(PatchGuardError, match=rf"data\.anomalies\.{named}"):
        AnomalyConfig(**settings)


@pytest.mark.parametrize("copies", [0.0, 1.0])
def test_copies_and_only_they_are_pieces_of_the_image(copies):
    image = textured()
    config = AnomalyConfig(
        shapes=["rectangle"], blends=["opaque"], count_max=1, contrast_floor=0.0, copies=copies
    )
    for index in range(10):
        rng = sample_rng(0, 0, index)
        anomaly, mask = make_pseudo_anomaly(image, FOREGROUNDS["full"], rng, config)
        (top, left), (bottom, right) = np.argwhere(mask).min(0), np.argwhere(mask).max(0) + 1
        pasted = anomaly[top:bottom, left:right]
        pieces = np.lib.stride_tricks.sliding_window_view(image, pasted.shape)[:, :, 0]
        nearest = np.abs(pieces - pasted).max(axis=(2, 3, 4)).min()
        assert (nearest < 1e-5) == bool(copies)
