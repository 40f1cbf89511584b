from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oldphoto.models import winograd
from oldphoto.models.winograd import Conv3x3, convolved, transformed, wins


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("images", "height", "width", "padding"),
    [(1, 30, 30, (0, 0)), (1, 31, 33, (1, 1)), (3, 9, 10, (0, 1)), (2, 50, 611, (0, 1)), (40, 3, 4, (0, 0))],
    ids=["whole tiles", "uneven", "several images", "wider than a block", "single tiles"],
)
def test_it_is_the_convolution(
    images: int, height: int, width: int, padding: tuple[int, int], threads: int, set_threads: Callable[[int], None]
) -> None:
    set_threads(threads)
    x, weight, bias = drawn(images, 5, height, width), drawn(7, 5, 3, 3), drawn(7)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), 1, padding)
    for laid in (x, x.to(memory_format=torch.channels_last)):
        made = convolved(laid, transformed(weight), bias, padding)
        assert made.shape == exact.shape
        assert float((made - exact).abs().max()) < 5e-5


def test_its_error_is_some_millionths_at_full_width() -> None:
    x, weight = drawn(1, 512, 20, 20), drawn(512, 512, 3, 3)
    exact = F.conv2d(x.double(), weight.double())
    error = convolved(x, transformed(weight), None, (0, 0)) - exact
    assert float(error.square().mean().sqrt() / exact.square().mean().sqrt()) < 3e-6


def test_a_map_that_is_the_same_everywhere_stays_exactly_so() -> None:
    x = drawn(1, 64, 1, 1).expand(1, 64, 30, 70)
    made = convolved(x, transformed(drawn(64, 64, 3, 3)), drawn(64), (0, 0))
    assert bool((made == made[:, :, :1, :1]).all())


def test_it_is_taken_for_wide_maps_of_some_size_without_gradients() -> None:
    x, weight = drawn(1, 64, 50, 50), drawn(64, 64, 3, 3)
    assert wins(x, weight, (0, 0))
    assert not wins(x[:, :, :10], weight, (0, 0))
    assert not wins(x.double(), weight, (0, 0))
    assert not wins(x, drawn(3, 64, 3, 3), (0, 0))
    assert not wins(x, drawn(64, 64, 1, 1), (0, 0))
    assert not wins(x, weight.requires_grad_(), (0, 0))
    with torch.no_grad():
        assert wins(x, weight, (0, 0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not wins(x, weight, (0, 0))


def test_the_layer_gives_the_same_either_way_and_learns() -> None:
    layer, x = Conv3x3(64, 64, padding=1), drawn(1, 64, 50, 50)
    direct = layer(x)
    direct.sum().backward()
    assert layer.weight.grad is not None
    with torch.inference_mode():
        assert wins(x, layer.weight, (1, 1))
        torch.testing.assert_close(layer(x), direct.detach(), atol=1e-5, rtol=0)


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    pool = winograd._workers(3)
    assert torch.get_num_threads() == before
    assert list(pool.map(lambda _: torch.get_num_threads(), range(9))) == [1] * 9
    # Who works beside this thread has workers of its own.
    with ThreadPoolExecutor(1) as other:
        assert other.submit(winograd._workers, 3).result() is not pool


@pytest.mark.parametrize("size", [(90, 400), (40, 48)])  # many blocks, and one
def test_the_number_of_threads_changes_no_value(size: tuple[int, int], set_threads: Callable[[int], None]) -> None:
    x = drawn(1, 64, *size).contiguous(memory_format=torch.channels_last)
    kernel = transformed(drawn(64, 64, 3, 3))
    made = []
    for threads in (1, 2, 3):
        set_threads(threads)
        made.append(convolved(x, kernel, None, (1, 1)))
    assert all(torch.equal(made[0], other) for other in made)
