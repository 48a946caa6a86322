import numpy as np
import pytest
import torch
from gymnasium import spaces

from fbrl.encoders import SYMBOLS, CellEncoder, MiniGridEncoder, MissionEncoder, is_minigrid_space

V, D_CELL, FEATURES = 3, 5, 7


def symbols(shape=(V, V, 3), high=(10, 5, 2), low=0):
    return spaces.Box(np.full(shape, low), np.broadcast_to(np.array(high), shape), dtype=np.uint8)


SPACE = spaces.Dict(
    {
        "image": symbols(),
        "direction": spaces.Discrete(4),
        "mission": spaces.Box(0, 9, (6,), np.int64),
        "vector": spaces.Box(-1, 1, (2,)),
    }
)


def random_image(n):
    return torch.stack([torch.randint(size, (n, V, V)) for size in SYMBOLS], dim=-1)


def random_observation(n):
    """As ``preprocess_obs`` leaves it: floats, the direction as one of four."""
    return {
        "image": random_image(n).float(),
        "direction": torch.eye(4)[torch.randint(4, (n,))],
        "mission": torch.randint(1, 10, (n, 6)).float(),
        "vector": torch.rand(n, 2),
    }


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (SPACE, True),
        (spaces.Dict({"image": symbols((7, 7, 3))}), True),
        (spaces.Dict({"image": symbols((7, 5, 3))}), True),
        (spaces.Dict({"image": symbols(high=(255, 255, 255))}), False),  # a picture
        (spaces.Dict({"image": symbols(high=(10, 5, 3))}), True),  # the agent is shown, and the direction it faces
        (spaces.Dict({"image": symbols(high=(13, 6, 2))}), True),  # with objects and a colour of the task's own
        (spaces.Dict({"image": symbols(high=(10, 5, 4))}), False),
        (spaces.Dict({"image": symbols(high=(9, 5, 2))}), False),
        (spaces.Dict({"image": symbols(low=1)}), False),
        (spaces.Dict({"image": symbols((V, V, 6), high=(10, 5, 2, 10, 5, 2))}), False),  # two stacked frames
        (spaces.Dict({"image": symbols((V, 3))}), False),
        (spaces.Dict({"image": spaces.Discrete(3)}), False),
        (spaces.Dict({"view": symbols()}), False),
        (symbols(), False),
    ],
)
def test_is_minigrid_space(space, expected):
    assert is_minigrid_space(space) is expected


def test_a_cell_is_the_sum_of_its_three_vectors():
    """With tables that hold 100 x object, 10 x colour and 1 x state, a cell reads like the number of its symbols."""
    encoder = CellEncoder((V, V, 3), 1, V * V)
    with torch.no_grad():
        for table, unit in zip(encoder.tables, (100.0, 10.0, 1.0), strict=True):
            table.copy_(unit * torch.arange(len(table)).unsqueeze(1))
        encoder.where.weight.copy_(torch.eye(V * V))
        encoder.where.bias.zero_()
        encoder.anywhere.weight.zero_()
    image = random_image(4)
    image[0, 0, 0] = torch.tensor([10, 5, 2])
    expected = (image * torch.tensor([100, 10, 1])).sum(dim=-1).flatten(1).float()
    assert expected[0, 0] == 1052
    torch.testing.assert_close(encoder(image), expected, rtol=0, atol=0)


def test_things_are_also_read_wherever_they_are():
    """Through ``anywhere``, a cell adds the same to the features in every place."""
    encoder = CellEncoder((V, V, 3), D_CELL, FEATURES)
    image = random_image(1).repeat(2, 1, 1, 1)
    image[1] = image[0].flip(0, 1)
    assert not torch.equal(image[0], image[1])
    assert not torch.allclose(*encoder(image))
    with torch.no_grad():
        encoder.where.weight.zero_()
    torch.testing.assert_close(*encoder(image))
    image[1, 0, 0] = torch.tensor([(int(image[1, 0, 0, 0]) + 1) % 11, 0, 0])
    assert not torch.allclose(*encoder(image))


def test_the_background_is_quiet_at_first():
    objects, colours, states = CellEncoder((V, V, 3), 1000, FEATURES).tables
    for table, size in ((objects[:4], 0.1), (objects[4:], 1.0), (colours, 0.1), (states, 0.1)):
        torch.testing.assert_close(table.std().item(), size, rtol=0.1, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.float32, torch.bfloat16])
def test_a_cell_of_any_dtype(dtype):
    encoder = CellEncoder((V, V, 3), D_CELL, FEATURES)
    image = random_image(4)
    image[0] = torch.tensor([10, 5, 2])
    torch.testing.assert_close(encoder(image.to(dtype)), encoder(image), rtol=0, atol=0)


def test_every_triple_has_features_of_its_own():
    encoder = CellEncoder((1, 1, 3), D_CELL, FEATURES)
    image = torch.cartesian_prod(*(torch.arange(size) for size in SYMBOLS)).view(-1, 1, 1, 3)
    assert len(encoder(image).unique(dim=0)) == 11 * 6 * 3


def test_where_a_symbol_stands_matters():
    encoder = CellEncoder((V, V, 3), D_CELL, FEATURES)
    image = torch.zeros(2, V, V, 3, dtype=torch.int64)
    image[0, 0, 1, 0] = image[1, 1, 0, 0] = 5
    first, second = encoder(image)
    assert not torch.allclose(first, second)


def test_padding_of_the_mission_has_no_effect():
    encoder = MissionEncoder(10, D_CELL, FEATURES)
    words = torch.randint(1, 10, (4, 3))
    padded = torch.cat([words, torch.zeros(4, 2, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(encoder(padded), encoder(words), rtol=0, atol=1e-6)


def test_the_order_of_the_mission_matters():
    encoder = MissionEncoder(10, D_CELL, FEATURES)
    assert not torch.allclose(encoder(torch.tensor([[1, 2, 3]])), encoder(torch.tensor([[3, 2, 1]])))


def test_an_empty_mission_is_read():
    assert MissionEncoder(10, D_CELL, FEATURES)(torch.zeros(2, 4)).isfinite().all()


def test_features_are_the_relu_of_the_sum_over_the_keys():
    encoder = MiniGridEncoder(SPACE, FEATURES, D_CELL)
    observation = random_observation(4)
    expected = sum(encoder.encoders[key](observation[key]) for key in SPACE.spaces).relu()
    features = encoder(observation)
    assert features.shape == (4, encoder.features_dim) == (4, FEATURES)
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("key", SPACE.spaces)
def test_every_key_is_used(key):
    encoder = MiniGridEncoder(SPACE, 64, D_CELL)
    observation, other = random_observation(1), random_observation(1)
    while torch.equal(other[key], observation[key]):
        other = random_observation(1)
    assert not torch.equal(encoder(observation | {key: other[key]}), encoder(observation))


def test_every_parameter_has_a_gradient():
    encoder = MiniGridEncoder(SPACE, FEATURES, D_CELL)
    encoder(random_observation(64)).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.count_nonzero() > 0, name


def test_stays_on_the_device_of_its_input():
    encoder = MiniGridEncoder(SPACE, FEATURES, D_CELL).to("meta")
    observation = {key: value.to("meta") for key, value in random_observation(4).items()}
    features = encoder(observation)
    assert features.device.type == "meta"
    assert features.shape == (4, FEATURES)


@pytest.mark.parametrize("space", [spaces.Dict({"image": symbols(high=(255, 255, 255))}), symbols()])
def test_refuses_a_picture(space):
    with pytest.raises(ValueError, match=r"MiniGridEncoder needs a Dict space whose 'image' is .* got "):
        MiniGridEncoder(space)
