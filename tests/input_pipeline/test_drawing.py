"""The generated pedestrians: pure, told apart by identity, fine in their detail."""

import numpy as np
import pytest
from PIL import Image

from crossres_jax.metrics import evaluate_single_shot
from input_pipeline.datasets.drawing import camera_of, draw_pedestrian, identity_of

_SIZE = {"height": 64, "width": 32}


def _draw(seed=0, pid=0, camid=0, shot=0, *, height=64, width=32):
    return draw_pedestrian(seed, pid, camid, shot, height=height, width=width)


def _restored(image, scale):
    """Down-samples by `scale` and brings back to the old size."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((width // scale, height // scale), 3)
    return np.asarray(small.resize((width, height), 3))


def _lost(image, scale):
    difference = image.astype(float) - _restored(image, scale)
    return (difference**2).mean()


def test_same_arguments_give_the_same_bytes():
    assert _draw(3, 5, 1, 2).tobytes() == _draw(3, 5, 1, 2).tobytes()


def test_order_of_drawing_changes_nothing():
    numbers = [
        (pid, camid, shot) for pid in range(3) for camid in (0, 1) for shot in (0, 1)
    ]
    forward = {key: _draw(0, *key).tobytes() for key in numbers}
    # Who and where are remembered between calls; a fresh start must not differ.
    identity_of.cache_clear()
    camera_of.cache_clear()
    backward = {key: _draw(0, *key).tobytes() for key in reversed(numbers)}
    assert forward == backward


@pytest.mark.parametrize(("height", "width"), [(64, 32), (96, 48), (128, 64), (37, 20)])
def test_size_and_type_are_as_asked(height, width):
    image = _draw(height=height, width=width)
    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8


def test_every_size_shows_the_same_picture():
    for pid in range(4):
        large = Image.fromarray(_draw(pid=pid, height=128, width=64))
        reduced = np.asarray(large.resize((32, 64), Image.Resampling.BOX), float)
        # In levels of 255. The noise of the sensor alone makes 3.7; another pose, 33.
        assert np.abs(reduced - _draw(pid=pid)).mean() < 6
        assert np.abs(reduced - _draw(pid=pid, shot=1)).mean() > 20


def test_every_number_changes_the_picture():
    pictures = [
        _draw(0, 0, 0, 0),
        _draw(1, 0, 0, 0),
        _draw(0, 1, 0, 0),
        _draw(0, 0, 1, 0),
        _draw(0, 0, 0, 1),
    ]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_swapped_numbers_are_other_pictures():
    assert _draw(0, 1, 2, 3).tobytes() != _draw(0, 2, 1, 3).tobytes()
    assert _draw(0, 1, 2, 3).tobytes() != _draw(0, 1, 3, 2).tobytes()


def test_people_differ_from_each_other_and_between_seeds():
    here = [identity_of(0, pid) for pid in range(200)]
    there = [identity_of(1, pid) for pid in range(200)]
    assert len(set(here + there)) == 400


def test_people_share_few_coarse_colours():
    people = [identity_of(0, pid) for pid in range(200)]
    coarse = {(person.shirt.colour, person.lower_colour) for person in people}
    assert len(coarse) <= 40  # so five people or more to a pair of colours


def _colours(image):
    """Mean colour of eight bands of the middle, free of the camera's light."""
    image = image.astype(float)
    image = (image - image.mean((0, 1))) / image.std((0, 1))
    middle = image[:, image.shape[1] // 3 : -(image.shape[1] // 3)]
    return np.concatenate([band.mean((0, 1)) for band in np.array_split(middle, 8)])


def test_a_person_is_more_like_themselves_than_like_others_across_cameras():
    people, shots = range(20), range(2)
    queries = [_colours(_draw(0, pid, 0, shot)) for pid in people for shot in shots]
    gallery = [_colours(_draw(0, pid, 1, shot)) for pid in people for shot in shots]
    between = np.array(queries)[:, None] - np.array(gallery)  # (Q, G, D)
    distance = np.linalg.norm(between, axis=-1)
    pids = np.repeat(people, len(shots))
    same = pids[:, None] == pids[None, :]
    assert distance[same].mean() < 0.9 * distance[~same].mean()


def test_detail_is_lost_by_downsampling_more_at_larger_scales():
    images = [_draw(pid=pid, height=128, width=64) for pid in range(12)]
    lost = [np.mean([_lost(image, scale) for image in images]) for scale in (2, 3, 4)]
    assert lost[0] < lost[1] < lost[2]
    assert lost[2] > 1.5 * lost[0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"height": 0}, "height and width must be positive, got 0×32"),
        ({"width": -1}, "height and width must be positive, got 64×-1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"pid": -2}, "pid must be at least 0, got -2"),
        ({"camid": -3}, "camid must be at least 0, got -3"),
        ({"shot": -4}, "shot must be at least 0, got -4"),
    ],
)
def test_bad_arguments_are_named(numbers, message):
    with pytest.raises(ValueError, match=message):
        _draw(**numbers)


def test_any_camera_and_any_shot_can_be_drawn():
    for number in range(150):
        assert _draw(number, number, number, number, height=16, width=8).std() > 0


def test_raw_pixels_find_few_of_the_low_resolution_queries():
    pids = np.arange(160)

    def pixels(camid, scale_of):
        images = [_draw(0, p, camid, 0) for p in pids]
        restored = [
            _restored(x, scale_of(p)) for p, x in zip(pids, images, strict=True)
        ]
        return np.stack(restored).reshape(len(pids), -1).astype(np.float32) / 255

    query = pixels(0, lambda pid: 2 + pid % 3)
    gallery = np.concatenate([pixels(camid, lambda pid: 1) for camid in (1, 2)])
    squares = (query**2).sum(1)[:, None] + (gallery**2).sum(1) - 2 * query @ gallery.T
    scores = evaluate_single_shot(squares, pids, np.tile(pids, 2))
    assert 1 / 160 < scores.cmc[0] < 0.2
