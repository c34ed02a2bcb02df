"""`Module` and `Sequential`: what they find below them, and their state."""

import re

import numpy as np
import pytest

import autograd_bn as ag
from autograd_bn import nn


class Net(nn.Module):
    def __init__(self):
        self.first = nn.Linear(4, 3, rng=0)
        self.rest = [nn.BatchNorm(3), nn.Sequential(nn.Sigmoid(), nn.Linear(3, 2, bias=False, rng=1))]
        self.shift = ag.tensor(1.0, requires_grad=True)
        self.constant = ag.tensor(1.0)
        self.hidden = None

    def forward(self, x):
        self.hidden = self.first(x)
        x = self.hidden
        for layer in self.rest:
            x = layer(x)
        return x + self.shift


NAMES = ["first.weight", "first.bias", "rest.0.gamma", "rest.0.beta", "rest.1.1.weight"]
BUFFERS = ["rest.0.running_mean", "rest.0.running_var", "rest.0.num_batches_tracked"]


def rows(n=6):
    return np.random.default_rng(3).normal(size=(n, 4)).astype("float32")


def test_parameters_are_found_by_name_through_lists_and_nesting():
    net = Net()
    net(rows())  # leaves an activation in an attribute, which is no parameter
    assert [name for name, _ in net.named_parameters()] == ["shift", *NAMES]
    assert [id(p) for p in net.parameters()] == [id(p) for _, p in net.named_parameters()]


def test_a_frozen_parameter_stays_one_and_a_removed_one_goes():
    net = Net()
    net.first.weight.requires_grad = False
    net.first.bias = None
    assert "first.weight" in dict(net.named_parameters())
    assert "first.bias" not in net.state_dict()
    net(rows()).sum().backward()
    assert net.first.weight.grad is None


def test_a_shared_layer_is_trained_once_and_saved_under_both_names():
    layer = nn.Linear(3, 3, rng=0)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    assert [name for name, _ in net.named_parameters()] == ["0.weight", "0.bias"]
    assert set(net.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert len(list(net.modules())) == 3
    assert [path for path, _ in net.named_modules()] == ["", "0", "1"]
    paths = []
    with net.watching(lambda path, *_: paths.append(path)):
        net(np.ones((1, 3), "float32"))
    assert paths == ["0", "1", "0", ""]


def test_train_and_eval_reach_every_module_and_return_the_net():
    net = Net()
    assert net.eval() is net
    assert not any(module.training for module in net.modules())
    assert net.train() is net
    assert all(module.training for module in net.modules())


def test_zero_grad_forgets_every_gradient():
    net = Net()
    net(rows()).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_state_is_a_copy_that_another_net_can_take():
    net, other = Net(), Net()
    net(rows())
    state = net.state_dict()
    assert set(state) == {"shift", *NAMES, *BUFFERS}
    before = {name: array.copy() for name, array in state.items()}
    for p in net.parameters():
        p.assign(p.data + 1)
    net(rows())
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])
    weight = other.first.weight
    other.load_state_dict(state)
    assert other.first.weight is weight  # an optimiser keeps its parameters
    for name, array in other.state_dict().items():
        np.testing.assert_array_equal(array, state[name])
        assert array.dtype == state[name].dtype
    for array in state.values():
        array[...] = 99
    assert not any((array == 99).any() for array in other.state_dict().values())


def test_what_does_not_match_is_all_listed_and_nothing_changes():
    net = Net()
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()}
    del state["first.bias"], state["rest.0.running_var"]
    state["extra"] = np.zeros(2)
    state["rest.0.gamma"] = np.ones(7)
    state["rest.1.1.weight"] = state["rest.1.1.weight"] + 1j
    with pytest.raises(ValueError) as caught:
        net.load_state_dict(state)
    for part in (
        "missing first.bias",
        "missing rest.0.running_var",
        "unexpected extra",
        "rest.0.gamma has shape (7,), expected (3,)",
        "rest.1.1.weight has dtype complex64",
    ):
        assert part in str(caught.value)
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("0.weight", 1e300, r"0\.weight has 1e\+300, which is too large for float32"),
        ("0.bias", -1e39, r"0\.bias has -1e\+39, which is too large for float32"),
        ("1.running_mean", np.longdouble("1e400"), r"1\.running_mean has 1e\+400, which is too large for float64"),
        ("1.num_batches_tracked", np.uint64(2**63), r"num_batches_tracked has 9223372036854775808, .* int64"),
    ],
)
def test_a_number_that_is_too_large_for_its_place_is_named_and_nothing_changes(name, value, message):
    net = nn.Sequential(nn.Linear(2, 2, rng=0), nn.BatchNorm(2))
    before = net.state_dict()
    moved = {key: array + 1 for key, array in before.items()}
    with pytest.raises(ValueError, match=message):
        net.load_state_dict(moved | {name: np.full_like(before[name], value, np.asarray(value).dtype)})
    for key, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[key])
    net.load_state_dict({**before, "0.bias": [np.inf, np.nan], "1.running_mean": np.float32([0, np.inf])})
    np.testing.assert_array_equal(net[0].bias.data, [np.inf, np.nan])


def test_a_read_only_parameter_is_listed_before_anything_changes():
    net = nn.Sequential(nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=0))
    frozen = np.ones((2, 2), "float32")
    frozen.flags.writeable = False
    net[1].weight = ag.as_tensor(frozen, requires_grad=True)
    before = net.state_dict()
    with pytest.raises(ValueError, match=r"1\.weight is read-only"):
        net.load_state_dict({name: array + 1 for name, array in before.items()})
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_summary_has_a_line_for_every_pass_and_changes_nothing():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm(2), nn.Dropout(0.5, rng=0)), nn.Flatten())
    net[0].eval()
    before, modes = net.state_dict(), [module.training for module in net.modules()]
    head, _, *lines = net.summary(np.ones((1, 5, 5, 1))).splitlines()
    assert [
        [line[:8].strip(), line[8:20].strip(), line[20:35].strip(), line[35:].strip()] for line in (head, *lines)
    ] == [
        ["module", "kind", "result", "parameters"],
        ["0", "Conv2d", "1 x 3 x 3 x 2", "20"],
        ["1.0", "BatchNorm", "1 x 3 x 3 x 2", "4"],
        ["1.1", "Dropout", "1 x 3 x 3 x 2", "0"],
        ["1", "Sequential", "1 x 3 x 3 x 2", "4"],
        ["2", "Flatten", "1 x 18", "0"],
        ["", "Sequential", "1 x 18", "24"],
    ]
    assert [module.training for module in net.modules()] == modes
    for name, array in net.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    with pytest.raises(ValueError, match="expected"):
        net.summary(np.ones((1, 5)))
    assert [module.training for module in net.modules()] == modes


def test_watching_tells_every_pass_and_leaves_a_forward_of_the_users_own():
    net, seen = Net(), []
    net.first.forward = lambda x: x @ np.ones((4, 3))
    own = net.first.forward
    with net.watching(lambda path, module, args, result: seen.append((path, args[0].shape, result.shape))):
        net(rows())
    assert seen[0] == ("first", (6, 4), (6, 3))
    assert [path for path, *_ in seen] == ["first", "rest.0", "rest.1.0", "rest.1.1", "rest.1", ""]
    assert net.first.forward is own
    net(rows())
    assert len(seen) == 6


def test_loading_is_counted_as_an_overwrite():
    net = Net()
    loss = net(rows()).sum()
    net.load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match="overwritten"):
        loss.backward()


def test_sequential_is_a_sequence_of_modules_only():
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    assert len(net) == 2
    assert isinstance(net[1], nn.ReLU)
    assert [type(layer) for layer in net] == [nn.Flatten, nn.ReLU]
    with pytest.raises(TypeError, match=r"layers\[1\]"):
        nn.Sequential(nn.ReLU(), ag.relu)


def test_a_module_elsewhere_is_not_watched():
    seen = []
    with nn.ReLU().watching(lambda *about: seen.append(about)):
        nn.Tanh()(np.ones(2))
    assert not seen


def test_a_notebook_shows_each_module_with_its_own_parameters():
    html = nn.Sequential(nn.Linear(4, 3), nn.ReLU())._repr_html_()
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)[1:]
    assert [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows] == [
        ["", "Sequential()", ""],
        ["0", "Linear(4, 3)", "15"],
        ["1", "ReLU()", ""],
    ]


def test_repr_shows_the_tree_with_its_settings():
    assert repr(Net()) == (
        "Net(\n"
        "  (first): Linear(4, 3)\n"
        "  (rest.0): BatchNorm(3, channel_axis=-1, eps=1e-05, momentum=0.1)\n"
        "  (rest.1): Sequential(\n"
        "    (0): Sigmoid()\n"
        "    (1): Linear(3, 2, bias=False)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Conv2d(1, 2, 3, bias=False)) == (
        "Conv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), padding=(0, 0), bias=False)"
    )
    assert repr(nn.Dropout(0.25)) == "Dropout(p=0.25)"
    assert repr(nn.LayerNorm((2, 3))) == "LayerNorm((2, 3), eps=1e-05)"


def test_a_module_without_forward_says_so():
    class Empty(nn.Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty has no forward"):
        Empty()(1.0)


@pytest.mark.parametrize("name", ["functional", "BatchNorm1d", "BatchNorm2d", "CrossEntropyLoss", "ModuleList"])
def test_pytorchs_words_name_ours(name):
    with pytest.raises(AttributeError, match=f"no attribute '{name}': write "):
        getattr(nn, name)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = nn.nothing


def test_an_error_inside_a_sequential_names_the_layers_path():
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2))))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^layer 1\.1\.0, Linear: x has shape \(5, 3\), expected 2 features"):
            net(np.ones((5, 4)))
    with pytest.raises(ValueError, match=r"^layer 0, Linear: x has shape \(5, 3\)"):
        net(np.ones((5, 3)))


def test_a_batch_of_one_in_a_model_names_eval():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm(3))
    with pytest.raises(
        ValueError, match=r"layer 1, BatchNorm: .*\(1, 3\), one value per feature.*call model\.eval\(\)"
    ):
        net(np.ones((1, 4)))
    assert not net[1].num_batches_tracked
    assert net.eval()(np.ones((1, 4))).shape == (1, 3)
    with pytest.raises(ValueError, match="one value per feature"):
        nn.BatchNorm(3, track_running_stats=False).eval()(np.ones((1, 3)))


def test_what_is_not_a_state_or_parameters_is_named(tmp_path):
    net = nn.Linear(2, 2)
    with pytest.raises(TypeError, match=r"state is a Linear, expected arrays by name: a model's state_dict\(\)"):
        ag.save(tmp_path / "net.npz", net)
    with pytest.raises(TypeError, match=r"params is a Linear, expected its parameters\(\)"):
        ag.optim.SGD(net, 0.1)
    with pytest.raises(TypeError, match="batches has no argument shuffle: give rng"):
        ag.data.batches(np.ones(3), np.ones(3), 1, shuffle=True)
    with pytest.raises(ValueError, match="momentum is 'a', expected a weight"):
        nn.BatchNorm(3, momentum="a")


def test_a_model_of_pytorch_is_told_apart(tmp_path):
    torch = pytest.importorskip("torch")

    class Mine(torch.nn.Linear):
        pass

    for given in (torch.nn.ReLU(), Mine(2, 2), torch.ones(3)):
        with pytest.raises(
            TypeError, match=f"outputs is a {type(given).__name__} of PyTorch, expected a tensor or model"
        ):
            ag.render(given, tmp_path / "net.svg")


def test_modules_may_refer_to_each_other():
    one, two = nn.Linear(2, 2, rng=0), nn.Linear(2, 2, rng=1)
    one.other, two.other, two.itself = two, one, two
    assert [path for path, _ in one.named_modules()] == ["", "other"]
    assert set(one.state_dict()) == {"weight", "bias", "other.weight", "other.bias"}
    one.load_state_dict(one.eval().state_dict())
    assert not two.training
    assert "..." in repr(one)
    assert one.summary(np.ones((1, 2))).count("Linear") == 1
