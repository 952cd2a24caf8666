"""Our networks against the same networks of other libraries: same weights, same pictures, same numbers.

Both get the same random weights, drawn here, with statistics and scales of the normalizations that matter. Dropout is not
switched off: both networks start from the same random state before each forward pass, so that it has to stand in the same
places and drop the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5  # of the largest value of the tensor compared


def on_meta(builder: Callable[..., nn.Module], **kwargs: Any) -> nn.Module:
    """Build a network without memory: shapes and names alone."""
    with torch.device("meta"):
        return builder(**kwargs)


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def compare(name: str, ours: nn.Module, theirs: nn.Module, size: tuple[int, int], channels: int = 3) -> None:
    """State dict, outputs, gradients of pictures and of all parameters, and running statistics, in both modes, in float32.

    Args:
        name: what messages call the network.
        ours: built on the meta device; gets copies of the other's weights, by name.
        theirs: built on the meta device; gets random weights.
        size: (H, W) of the pictures.
        channels: C of the pictures.

    Raises:
        AssertionError: if the names or shapes of the weights differ, or any tensor by more than `TOLERANCE` of its
            largest value.
    """
    generator = torch.Generator().manual_seed(sum(name.encode()))
    theirs = theirs.to_empty(device="cpu")
    randomize(theirs, generator)
    state = {key: tensor.clone() for key, tensor in theirs.state_dict().items()}
    assert list(ours.state_dict()) == list(state), name
    ours.load_state_dict(state, strict=True, assign=True)
    for parameter in ours.parameters():
        parameter.requires_grad_()
    for training in (False, True):
        images = torch.randn(2, channels, *size, generator=generator)
        ours.train(training).zero_grad()
        theirs.train(training).zero_grad()
        a, b = images.clone().requires_grad_(), images.clone().requires_grad_()
        torch.manual_seed(1)
        found = outputs(ours(a))
        torch.manual_seed(1)
        expected = outputs(theirs(b))
        assert len(found) == len(expected), f"{name}: {len(found)} outputs, expected {len(expected)}"
        weights = [torch.randn(one.shape, generator=generator) for one in expected]
        torch.autograd.backward(found, weights)
        torch.autograd.backward(expected, weights)
        mode = "training" if training else "evaluation"
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{name}, output {i} in {mode}")
        assert_close(a.grad, b.grad, f"{name}, gradient of the pictures in {mode}")
        given = dict(theirs.named_parameters())
        largest = max(float(p.grad.abs().max()) for p in given.values() if p.grad is not None)
        for key, parameter in ours.named_parameters():
            assert_close(parameter.grad, given[key].grad, f"{name}, gradient of {key} in {mode}", least=1e-3 * largest)
    for key, buffer in ours.named_buffers():
        assert_close(buffer, theirs.get_buffer(key), f"{name}, {key} after training")


def outputs(output: Any) -> Sequence[Tensor]:
    """Logits, then those of auxiliary heads, of our networks and of torchvision's."""
    if isinstance(output, Tensor):
        return (output,)
    flat = [one for part in output for one in (part if isinstance(part, tuple) else (part,))]
    return tuple(one for one in flat if one is not None)


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Weights that keep the size of activations, biases, and statistics and scales of batch norm that are not 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.2, 0.9, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.num_batches_tracked.zero_()


def assert_close(found: Tensor | None, expected: Tensor | None, what: str, least: float = 0.0) -> None:
    """The largest difference is at most `TOLERANCE` of the largest value, or of `least` where that is more."""
    assert found is not None, f"{what}: missing in ours"
    assert expected is not None, f"{what}: missing in the oracle"
    assert found.shape == expected.shape, f"{what}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
    assert bool(expected.isfinite().all()), f"{what}: the oracle's values are not finite"
    scale = max(float(expected.detach().abs().max()), least)
    difference = float((found - expected).detach().abs().max())
    assert difference <= TOLERANCE * scale, f"{what}: differs by {difference:.1e}; the largest value is {scale:.1e}"
