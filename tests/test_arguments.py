"""Arguments that can't be: one error names the argument, what came and what was expected."""

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn import nn


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nn.Linear(True, 3), ValueError, "in_features is True, expected a positive integer"),
        (lambda: nn.Linear("2", 3), ValueError, "in_features is '2'"),
        (lambda: nn.Linear(2, 3, rng="a"), TypeError, "rng is 'a', expected a seed"),
        (lambda: nn.Linear(2, 3, rng=-1), TypeError, "rng is -1, expected a seed"),
        (lambda: nn.Linear(2, 3)(None), TypeError, "x is a NoneType, expected an array or a tensor"),
        (lambda: nn.Linear(2, 3)("abc"), TypeError, "x is a str, expected an array or a tensor"),
        (lambda: nn.Conv2d(3, 4, 3.0), ValueError, "kernel_size is 3.0, expected an integer of at least 1"),
        (lambda: nn.Conv2d(3, 4, 3, padding="same"), ValueError, "padding is 'same'"),
        (lambda: nn.Flatten()(1.0), ValueError, r"x has shape \(\), expected rows"),
        (lambda: nn.Dropout("a"), ValueError, "p is 'a', expected a probability"),
        (lambda: nn.Dropout(np.nan), ValueError, "p is nan"),
        (lambda: nn.BatchNorm(2, eps=0), ValueError, "eps is 0, expected a finite number above 0"),
        (lambda: nn.BatchNorm(2, eps="a"), ValueError, "eps is 'a'"),
        (lambda: nn.BatchNorm(2, form="open"), ValueError, "form is 'open', expected"),
        (lambda: nn.BatchNorm(2, channel_axis=1.5), ValueError, "channel_axis is 1.5, expected an integer"),
        (lambda: nn.BatchNorm(2, momentum="a"), ValueError, "momentum is 'a', expected a weight"),
        (lambda: nn.LayerNorm(2.0), ValueError, "normalized_shape is 2.0"),
        (lambda: nn.LayerNorm(None), ValueError, "normalized_shape is None"),
        (lambda: nn.LayerNorm(()), ValueError, r"normalized_shape is \(\), expected the length"),
        (lambda: nn.LayerNorm(2, eps=-1.0), ValueError, "eps is -1.0"),
        (lambda: nn.ReLU()(None), TypeError, "x is a NoneType, expected an array or a tensor"),
        (lambda: nn.Sigmoid()("a"), TypeError, "x is a str, expected an array or a tensor"),
        (lambda: nn.ReLU().load_state_dict(None), TypeError, "state is a NoneType, expected arrays by name"),
        (lambda: nn.cross_entropy(None, [0]), TypeError, "logits is a NoneType"),
        (lambda: nn.cross_entropy(1.0, 0), ValueError, "labels have shape"),
        (lambda: ag.save("a.npz", [1.0]), TypeError, "state is a list, expected arrays by name"),
        (lambda: ag.data.batches([1, 2], [1, 2], 1, rng="a"), TypeError, "rng is 'a'"),
        (lambda: ag.save(None, {}), TypeError, "path is a NoneType, expected a string or a pathlib.Path"),
        (lambda: ag.load(3), TypeError, "path is a int, expected a string or a pathlib.Path"),
        (lambda: ag.save("a.npz", {"w": [[1], [1, 2]]}), ValueError, r"state\['w'\] has rows of unlike lengths"),
        (lambda: ag.rational_batch("ab"), ValueError, "shape is 'ab', expected a sequence of lengths"),
        (lambda: ag.gradcheck(ag.exp, [np.ones(2)], eps=0), ValueError, "eps is 0, expected a finite number above 0"),
        (lambda: ag.gradcheck(ag.exp, [np.ones(2)], rtol=np.nan), ValueError, "rtol is nan, expected a finite"),
        (lambda: ag.gradcheck(ag.exp, [np.ones(2)], atol="a"), ValueError, "atol is 'a', expected a finite"),
        (lambda: ag.page(ag.tensor(1.0)).save("a.svg"), ValueError, "path 'a.svg' ends in '.svg', expected .html"),
        (lambda: ag.page(ag.tensor(1.0)).save(None), TypeError, "path is a NoneType"),
    ],
)
def test_one_error_names_the_argument_what_came_and_what_was_expected(tmp_path, monkeypatch, call, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_is_missing_is_named_as_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"path can't be written: No such file or directory: 'no/a.npz'"):
        ag.save("no/a.npz", {})


def test_numpys_numbers_are_numbers():
    assert nn.Linear(np.int64(2), np.int32(3)).in_features == 2
    assert nn.BatchNorm(2, eps=np.float32(0.1), momentum=np.float64(0.5)).eps == np.float32(0.1)
    assert nn.Dropout(np.float32(0.25)).p == 0.25
