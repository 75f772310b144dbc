import torch
from torch import nn

from engine.average import WeightAverage


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).double()


def test_average_is_the_recursion_written_out() -> None:
    """Running statistics too; the first update takes the weights as they are."""
    torch.manual_seed(0)
    model = network()
    average = WeightAverage(model, 0.3)
    values = []
    for _ in range(8):
        model(torch.randn(2, 3, 4, 4, dtype=torch.float64))
        with torch.no_grad():
            model[0].weight.normal_()
        average.update()
        values.append((model[0].weight.detach().clone(), model[1].running_mean.clone()))
    expected = values[0]
    for n, present in enumerate(values[1:], 2):
        decay = min(0.3, (n - 1) / (n + 9))
        expected = tuple(decay * e + (1 - decay) * v for e, v in zip(expected, present, strict=True))
    own = {name: t.clone() for name, t in model.state_dict().items()}
    with average.in_place():
        torch.testing.assert_close((model[0].weight.detach(), model[1].running_mean), expected)
    assert all(torch.equal(t, own[name]) for name, t in model.state_dict().items())


def test_average_follows_weights_that_are_loaded() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    other = network()
    model.load_state_dict(other.state_dict())
    average.update()
    again = WeightAverage(network(), 0.9)
    again.restore(average.state())
    assert all(torch.equal(a, b) for a, b in zip(again.average, average.average, strict=True))
    assert again.updates == 1
    with average.in_place():
        assert torch.equal(model[0].weight, other[0].weight)
