"""Where the heart is: by a network that is known, a threshold, so that only the way is tested."""

import dataclasses

import numpy as np
import pytest
from threshold_anatomy import Threshold, heart

from ldm_morph_jax.data.windows import Window
from ldm_morph_jax.files.errors import ImageError
from ldm_morph_jax.files.movies import cine_from_arrays
from ldm_morph_jax.ops.segments import levels_of
from ldm_morph_jax.registering.anatomy import Anatomy
from ldm_morph_jax.registering.finding import (
    anatomy_found,
    find_heart,
    is_whole_beat,
    known_or_found,
    look,
)
from ldm_morph_jax.registering.segmenting import locate, locate_in_stack, segment

WHOLE = dataclasses.replace(Threshold(), window=Window(48, 0.0))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def found_in(model, frames, spacing, **options):
    return find_heart(model, look(model, frames, spacing), "cine.nii", **options)


@pytest.mark.parametrize("model", [Threshold(), WHOLE])
def test_a_heart_off_the_centre_is_found_on_the_image_s_own_grid(model):
    image, labels = heart()
    [found] = segment(model, [image], (1.5, 1.0))
    assert found.found and found.confidence > 0.8
    assert found.probabilities.shape == (100, 160, 3)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=1e-5)
    assert dice(found.labels == 1, labels == 1) > 0.93
    assert dice(found.labels == 2, labels == 2) > 0.8
    if model.window.spacing_mm:  # its window went there
        np.testing.assert_allclose(locate(model, [image], (1.5, 1.0)), (40, 110), atol=2)


def test_where_there_is_none_no_label_is_given():
    noise = np.random.default_rng(0).random((64, 64)) > 0.96
    [found] = segment(Threshold(), [noise], (2.0, 2.0))
    assert not found.found
    assert not found.labels.any()
    with pytest.raises(ImageError, match=r"cine\.nii: .* finds no heart in frame 0"):
        found_in(Threshold(), noise[None], (2.0, 2.0))


def test_an_image_unlike_those_of_training_shows_no_heart():
    image, _ = heart()
    strict = dataclasses.replace(Threshold(), largest_distance=0.9)
    [found] = segment(strict, [image], (1.5, 1.0))
    assert found.confidence > 0.8 and found.distance == 1 and not found.found
    assert not found.labels.any()
    with pytest.raises(ImageError, match=r"training images 1\.00, expected at most 0\.90"):
        found_in(strict, image[None], (1.5, 1.0))


def test_images_of_a_series_have_one_shape():
    with pytest.raises(ValueError, match="expected one shape"):
        segment(Threshold(), [np.zeros((8, 8)), np.zeros((8, 9))])


def beat(radii):
    return np.stack([heart(radius)[0] for radius in radii])


def test_end_diastole_and_end_systole_of_a_cine():
    radii = [14, 15, 16, 14, 12, 10, 9, 10, 12, 13, 14]
    found = found_in(Threshold(), beat(radii), (1.5, 1.0))
    assert (found.end_diastole, found.end_systole) == (2, 6)
    assert found.reference == 2
    assert not found.doubts
    told = found.summary(1.5)
    assert told["fractional_area_change"] == pytest.approx(1 - (9 / 16) ** 2, abs=0.05)
    assert told["cavity_area_mm2"][2] == pytest.approx(np.pi * 16**2, rel=0.06)
    assert "cavity_area_px" in found.summary(None)
    anatomy = anatomy_found(Threshold(), found, Anatomy("sax"))
    assert isinstance(anatomy, Anatomy) and set(anatomy.contours) == {"endo", "epi"}
    distance = np.linalg.norm((anatomy.contours["endo"] - (40, 110)) * (1.5, 1.0), axis=1)
    np.testing.assert_allclose(distance, 16, atol=1.2)


def test_one_frame_that_is_taken_for_something_else_is_no_end_systole():
    radii = [16, 15, 13, 3, 11, 10, 9, 9, 10, 13]
    assert found_in(Threshold(), beat(radii), (1.5, 1.0)).end_systole in (6, 7)


def test_a_cavity_elsewhere_does_not_count():
    """Such as a right ventricle that is taken for a cavity when it is small."""
    radii, others = [16, 14, 11, 9, 11, 14], [0, 0, 10, 14, 10, 0]
    frames = beat(radii)
    for frame, radius in zip(frames, others, strict=True):
        if radius:
            np.maximum(frame, heart(radius, centre=(75, 60), wall=2)[0], out=frame)
    alone = found_in(Threshold(), beat(radii), (1.5, 1.0))
    found = found_in(Threshold(), frames, (1.5, 1.0))
    assert (found.end_diastole, found.end_systole) == (0, 3)
    np.testing.assert_allclose(found.areas, alone.areas, rtol=0.05)


def test_what_is_doubtful_is_said():
    still = found_in(Threshold(), beat([12] * 8), (1.5, 1.0))
    assert any("is this a whole beat?" in doubt for doubt in still.doubts)
    two_beats = [16, 12, 9, 12, 16, 15.9, 12, 9, 12, 15, 14, 13]
    found = found_in(Threshold(), beat(two_beats), (1.5, 1.0))
    assert any("end-diastole may be frame" in doubt for doubt in found.doubts)


@pytest.mark.parametrize(
    ("areas", "whole"),
    [
        ([10, 9, 6, 5, 7, 9, 10], True),
        ([7, 9, 10, 8, 5, 6, 7], True),  # begins anywhere
        ([10, 9, 7, 6, 5], False),  # systole alone
        ([10, 8, 5, 6, 7], False),
        ([10], False),
    ],
)
def test_a_whole_beat_ends_as_it_began(areas, whole):
    assert is_whole_beat(np.array(areas, float)) == whole


def test_the_view_is_the_network_s_and_doubted_where_another_is_told():
    cine = cine_from_arrays(beat([16, 12, 9, 12, 15]), spacing=(1.5, 1.0))
    found = known_or_found(cine, Threshold()).anatomy
    assert (found.view, found.view_by, found.notes) == ("sax", "network", ())
    apical = dataclasses.replace(Threshold(), view="apical")
    found = known_or_found(cine, apical, view="sax").anatomy
    assert (found.view, found.view_by) == ("sax", "user")
    assert "finds hearts in views that are apical" in found.notes[0]


def test_the_reference_frame_that_was_asked_for():
    frames = beat([16, 12, 9, 12])
    found = found_in(Threshold(), frames, (1.5, 1.0), reference=2)
    assert found.reference == 2
    assert (found.labels == 1).sum() == pytest.approx(np.pi * 9**2 / 1.5, rel=0.15)
    with pytest.raises(ImageError, match="has no frame 4; its frames are 0 to 3"):
        known_or_found(cine_from_arrays(frames, spacing=(1.5, 1.0)), Threshold(), reference=4)


def test_only_the_largest_cavity_and_what_touches_it_is_the_heart():
    image, labels = heart(16)
    other, _ = heart(5, centre=(75, 30), wall=3)
    found = found_in(Threshold(), np.maximum(image, other)[None], (1.5, 1.0))
    assert dice(found.labels > 0, labels > 0) > 0.93
    assert not found.labels[60:, :60].any()


def volumes(radii, depths=(0.8, 1.0, 0.9, 0.6)):
    """A cine of volumes `[T, S, H, W]`; the last slice shows a large bright disc far off."""
    slices = [beat([r * depth for r in radii]) for depth in depths]
    off, _ = heart(18, centre=(75, 45), wall=2)
    return np.stack([*slices, np.broadcast_to(off, slices[0].shape)], axis=1)


def test_the_slices_of_a_volume_have_one_heart():
    """By itself, the disc of the last slice is a heart."""
    frames = volumes([16, 14])
    np.testing.assert_allclose(locate_in_stack(Threshold(), frames, (1.5, 1.0)), (40, 110), atol=2)
    [alone] = segment(Threshold(), [frames[0, 4]], (1.5, 1.0))
    assert (alone.labels == 1).any()
    speck, _ = heart(4, centre=(52, 135), wall=2)
    frames[0, 3] = np.maximum(frames[0, 3], speck)
    seen = look(Threshold(), frames, (1.5, 1.0))
    assert seen.labels[0, 3, 52, 135] == 1
    labels = find_heart(Threshold(), seen, "cine.nii").labels
    for one, depth in zip(labels, (0.8, 1.0, 0.9, 0.6), strict=False):
        assert dice(one == 1, heart(16 * depth)[1] == 1) > 0.9
    assert labels[3, 52, 135] == 0 and not (labels[4] == 1).any()


def test_end_diastole_and_end_systole_of_volumes():
    radii = [14, 15, 16, 14, 12, 10, 9, 10, 12, 13, 14]
    frames = volumes(radii)
    found = found_in(Threshold(), frames, (1.5, 1.0))
    assert (found.end_diastole, found.end_systole, found.reference) == (2, 6, 2)
    assert found.labels.shape == frames.shape[1:] and not (found.labels[4] == 1).any()
    area = sum(np.pi * (16 * depth) ** 2 for depth in (0.8, 1.0, 0.9, 0.6)) / 1.5
    assert found.areas[2] == pytest.approx(area, rel=0.06)
    assert found.confidence.shape == (11,) and found.confidence.min() > 0.8 and not found.doubts
    cine = cine_from_arrays(frames, spacing=(8.0, 1.5, 1.0))
    known = known_or_found(cine, Threshold())
    assert known.reference == 2 and known.anatomy.view_by == "network"
    np.testing.assert_array_equal(known.anatomy.cavity, found.labels == 1)
    assert known.anatomy.levels == tuple(levels_of(found.labels, 1, 2))
    with pytest.raises(ImageError, match="a volume is a stack of short-axis slices"):
        known_or_found(cine, Threshold(), view="apical")


def test_volumes_without_a_heart_are_refused():
    noise = np.random.default_rng(0).random((2, 4, 64, 64)) > 0.96
    with pytest.raises(ImageError, match=r"cine\.nii: .* finds no heart in frame 0"):
        found_in(Threshold(), noise, (2.0, 2.0))
