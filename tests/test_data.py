"""The packaged digits and mini-batches."""

from importlib.resources import files

import numpy as np
import pytest

import autograd_bn as ag


def test_digits_have_the_promised_shapes_types_and_range():
    images, labels = ag.data.load_digits()
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.float32
    assert labels.shape == (1797,)
    assert labels.dtype == np.int64
    assert (images.min(), images.max()) == (0, 1)
    # The counts that the data set's own description gives.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_equal_another_copy_of_the_data_set():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = ag.data.load_digits()
    theirs = datasets.load_digits()
    np.testing.assert_array_equal(images, theirs.images / 16)
    np.testing.assert_array_equal(labels, theirs.target)


def test_digits_are_new_arrays_at_every_call():
    images, labels = ag.data.load_digits()
    images[:] = 7
    labels[:] = 7
    again, again_labels = ag.data.load_digits()
    assert again.max() == 1
    assert again_labels[0] == 0


def test_digits_are_small_and_carry_their_attribution():
    room = files("autograd_bn.nn")
    assert len((room / "digits.npz").read_bytes()) < 100_000
    text = (room / "digits.txt").read_text(encoding="utf-8")
    for part in ("Alpaydin", "Kaynak", "10.24432/C50P49", "CC BY 4.0"):
        assert part in text


def test_batches_cover_every_row_once_in_a_seeded_order():
    x, y = np.arange(20).reshape(10, 2), np.arange(10)
    one, two = (list(ag.data.batches(x, y, 3, rng=5)) for _ in range(2))
    assert [len(rows) for rows, _ in one] == [3, 3, 3, 1]
    seen = np.concatenate([labels for _, labels in one])
    assert sorted(seen.tolist()) == list(range(10))
    assert seen.tolist() != list(range(10))
    for (rows, labels), (same_rows, same_labels) in zip(one, two, strict=True):
        np.testing.assert_array_equal(rows, x[labels])
        np.testing.assert_array_equal(rows, same_rows)
        np.testing.assert_array_equal(labels, same_labels)


def test_a_generator_gives_a_new_order_at_every_pass():
    rng = np.random.default_rng(0)
    x = np.arange(100)
    first, second = (next(iter(ag.data.batches(x, x, 100, rng)))[1] for _ in range(2))
    assert first.tolist() != second.tolist()


def test_without_a_generator_batches_come_in_order_as_views():
    x = np.arange(5)
    found = [rows for rows, _ in ag.data.batches(x, x, 2)]
    assert [rows.tolist() for rows in found] == [[0, 1], [2, 3], [4]]
    assert np.shares_memory(found[0], x)


def test_the_last_batch_is_left_out_on_demand_unless_it_is_a_full_one():
    def sizes(rows, size):
        return [len(x) for x, _ in ag.data.batches(np.zeros(rows), np.zeros(rows), size, rng=0, drop_last=True)]

    assert sizes(7, 3) == [3, 3]
    assert sizes(6, 3) == [3, 3]
    assert sizes(2, 3) == []


def test_no_rows_give_no_batches():
    assert list(ag.data.batches(np.zeros((0, 3)), np.zeros(0), 4, rng=0)) == []


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_bad_size_is_named_at_the_call(size):
    with pytest.raises(ValueError, match="size is"):
        ag.data.batches(np.zeros(3), np.zeros(3), size)


def test_rows_that_do_not_match_are_named_with_both_shapes():
    with pytest.raises(ValueError, match=r"x of shape \(3, 2\) and y of shape \(4,\)"):
        ag.data.batches(np.zeros((3, 2)), np.zeros(4), 2)
