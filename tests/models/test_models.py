"""The networks at toy widths: shapes, gradients, bad configs, and maths against plain formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oldphoto.models import scratch_unet
from oldphoto.models.blocks import Conv1x1, Doubling, Reflection, moments, normalise, resized
from oldphoto.models.estimator import Estimator, EstimatorConfig
from oldphoto.models.face_finder import FaceFinderConfig
from oldphoto.models.landmarks import LandmarkNet, LandmarkNetConfig, means
from oldphoto.models.loading import Config, build
from oldphoto.models.mapping import Mapping, MappingConfig, NonLocal, PatchScale
from oldphoto.models.rrdb import RRDBConfig, RRDBNet
from oldphoto.models.scratch_unet import BlurPool, ScratchUnet, ScratchUnetConfig
from oldphoto.models.spade import FaceGenerator, FaceGeneratorConfig
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact
from oldphoto.models.vae import Original, Vae, VaeConfig

TINY = MappingConfig(latent_channels=4, channels=(6, 8), blocks=2, context_blocks=1)


def test_vae_shapes() -> None:
    vae = Vae(VaeConfig(width=4, latent_channels=6, blocks=1))
    latent = vae.encode(torch.zeros(2, 3, 32, 48))
    assert latent.shape == (2, 6, 8, 12)
    assert vae.decode(latent).shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    "config",
    [
        VaeConfig(width=4, latent_channels=4, blocks=1),
        VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", mask_input=True, refine=4),
        TINY,
        replace(TINY, context="non_local"),
        replace(TINY, norm="none"),
        replace(TINY, context="patches"),
        ScratchUnetConfig(width=2),
        FaceFinderConfig((2, 3, 4), depth=2),
        FaceGeneratorConfig(width=2, steering=4),
        FaceGeneratorConfig(width=2, steering=4, residual=True),
        LandmarkNetConfig(width=2, size=64),
        EstimatorConfig(figures=5, answers=2, width=6),
        SRVGGConfig(features=4, convolutions=2, base="bilinear"),
        RRDBConfig(features=4, blocks=1, growth=2),
    ],
    ids=str,
)
def test_every_parameter_gets_a_gradient(config: Config) -> None:
    torch.manual_seed(0)
    net = build(config)
    mask = torch.zeros(2, 1, 64, 64)
    mask[..., 8:40, 8:40] = 1.0
    out: Tensor
    match net:
        case Vae():
            photo = torch.rand(2, 3, 64, 64)
            source = Original(photo, 1.0 - photo, mask)
            out = net.decode(net.encode(photo, mask if net.config.mask_input else None), source)
        case Mapping():
            out = net(torch.rand(2, 4, 16, 16), mask)
        case FaceGenerator() | SRVGGNetCompact() | RRDBNet():
            out = net(torch.rand(2, 3, 64, 64))
        case Estimator():
            out = net(torch.randn(64, 5))
        case _:
            out = net(torch.rand(2, 1, 64, 64))
    out.square().mean().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    # A bias right before an instance norm has no effect, hence a gradient of rounding errors; None would mean unused.
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "bad",
    [
        lambda: VaeConfig(width=0),
        lambda: MappingConfig(channels=()),
        lambda: replace(TINY, context="patches", blocks=1),
        lambda: MappingConfig(context="elsewhere"),  # type: ignore[arg-type]  # what the test is about
        lambda: ScratchUnetConfig(width=0),
        lambda: FaceGeneratorConfig(steering=0),
        lambda: LandmarkNetConfig(size=100),
        lambda: EstimatorConfig(figures=0, answers=1),
        lambda: EstimatorConfig(figures=3, answers=1, width=1),
        lambda: SRVGGConfig(features=0),
        lambda: SRVGGConfig(base="bicubic"),  # type: ignore[arg-type]  # what the test is about
        lambda: RRDBConfig(blocks=0),
    ],
)
def test_bad_configs_are_refused(bad: Callable[[], Config]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        bad()


def test_an_estimator_takes_no_figure_for_more_than_it_has_seen() -> None:
    """Figures count as multiples of their usual spread; further out than training went they count no further."""
    net = Estimator(EstimatorConfig(figures=2, answers=1)).eval()
    net.usual.copy_(torch.tensor([10.0, -3.0]))
    net.spread.copy_(torch.tensor([2.0, 0.5]))
    far, farther = net(torch.tensor([[10.0 + 2.0 * 4.0, -3.0], [1e9, -3.0]]))
    near = net(torch.tensor([[12.0, -3.0]]))
    assert torch.equal(far, farther)
    assert not torch.equal(near[0], far)
    by_hand = nn.functional.leaky_relu(net.first(torch.tensor([[1.0, 0.0]])), 0.2)
    by_hand = net.last(nn.functional.leaky_relu(net.second(by_hand), 0.2))
    assert torch.allclose(near, by_hand, atol=1e-6)


def test_normalise_in_place_equals_torch() -> None:
    x = torch.randn(2, 3, 7, 9, generator=torch.Generator().manual_seed(1)) * 3 + 1
    expected = F.instance_norm(x, eps=1e-5)
    with torch.inference_mode():
        assert torch.allclose(normalise(x.clone(), "instance"), expected, atol=1e-5)


@pytest.mark.parametrize("dense", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pixels", [1, 3])
def test_the_reflection_for_cuda_is_torch_s(dense: torch.memory_format, pixels: int) -> None:
    x = torch.randn(2, 3, 8, 10, dtype=torch.double).contiguous(memory_format=dense).requires_grad_()
    mine = Reflection.apply(x, pixels)  # type: ignore[no-untyped-call]  # untyped in torch
    assert torch.equal(mine, F.pad(x, (pixels,) * 4, mode="reflect"))
    assert mine.is_contiguous(memory_format=dense)
    assert torch.autograd.gradcheck(lambda y: Reflection.apply(y, pixels), (x,))  # type: ignore[no-untyped-call]


def test_the_detector_in_bands_with_folded_norms_equals_its_layers_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    net = ScratchUnet(ScratchUnetConfig(width=4)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for figures in (module.running_mean, module.running_var, module.weight, module.bias):
                assert figures is not None
                nn.init.uniform_(figures, 0.5, 1.5)
    x = torch.rand(1, 1, 112, 48) * 2.0 - 1.0
    plain = net(x).detach()
    monkeypatch.setattr(scratch_unet, "BAND", 16)
    with torch.inference_mode():
        assert torch.allclose(net(x), plain, atol=1e-5 * float(plain.abs().max()))
        monkeypatch.setattr(scratch_unet, "REACH", 2)  # which can fail
        assert not torch.allclose(net(x), plain, atol=1e-3 * float(plain.abs().max()))


def test_a_refining_decoder_mixes_photo_and_painting_and_never_shuts_one_out() -> None:
    vae = Vae(VaeConfig(width=4, latent_channels=4, blocks=1, norm="none", refine=4))
    latent, filled, seen = torch.randn(1, 4, 8, 8), torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    painted = vae.decode(latent)
    assert float(painted.detach().abs().max()) <= 1.0
    refine = vae.decoder.refine
    assert refine is not None
    bias = torch.zeros(5)
    for kept, share in ((-100.0, 0.018), (0.0, 0.5), (100.0, 0.982)):
        for believed, seen_share in ((-100.0, 0.018), (100.0, 0.982)):
            bias[3], bias[4] = kept, believed
            refine.load_state_dict(
                {**refine.state_dict(), "last.weight": torch.zeros_like(refine.last.weight), "last.bias": bias}
            )
            photo = seen_share * seen + (1.0 - seen_share) * filled
            mixed = share * photo + (1.0 - share) * painted
            assert torch.allclose(vae.decode(latent, Original(filled, seen, seen[:, :1])), mixed, atol=1e-3)


def test_a_published_decoder_paints_the_whole_picture() -> None:
    vae = Vae(VaeConfig(width=4, latent_channels=4, blocks=1))
    latent = torch.randn(1, 4, 8, 8) * 9
    photo = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        painted = vae.decode(latent)
        assert torch.equal(vae.decode(latent, Original(photo, photo, photo[:, :1])), painted)
    assert float(painted.abs().max()) <= 1.0


def test_attention_equals_the_full_matrix() -> None:
    """Against the N x N formula of the paper."""
    torch.manual_seed(3)
    block = NonLocal(replace(TINY, context="non_local"))
    x, keep = torch.randn(2, 8, 5, 6), (torch.rand(2, 1, 5, 6) > 0.4).float()
    q, k, v = (m(x).flatten(2).transpose(1, 2) for m in (block.query, block.key, block.value))
    rows = torch.softmax(q @ k.transpose(1, 2), dim=2) * keep.flatten(2)
    rows = rows / rows.sum(dim=2, keepdim=True).clamp_min(1e-12)
    expected = (rows @ v).transpose(1, 2).reshape(2, 8, 5, 6)
    assert torch.allclose(block.attend(x, keep), expected, atol=1e-5)


def test_attention_ignores_damaged_keys() -> None:
    torch.manual_seed(4)
    block = NonLocal(replace(TINY, context="non_local"))
    x, keep = torch.randn(1, 8, 6, 6), torch.ones(1, 1, 6, 6)
    keep[..., 2:4, 2:4] = 0.0
    changed = x + torch.where(keep == 0, 5.0, 0.0)
    before, after = block.attend(x, keep), block.attend(changed, keep)
    sound = keep.bool().expand_as(before)
    assert torch.allclose(before[sound], after[sound], atol=1e-5)


def test_attention_of_a_photo_damaged_all_over_is_zero() -> None:
    block = NonLocal(replace(TINY, context="non_local"))
    assert not block.attend(torch.randn(1, 8, 4, 4), torch.zeros(1, 1, 4, 4)).any()


def test_patch_attention_copies_the_most_alike_patch() -> None:
    scale = PatchScale(1, 2, replace(TINY, context="patches"))
    x = torch.tensor([[3.0, 1.0, 1.0, 3.0], [1.0, 1.0, 1.0, 1.0], [9.0, 3.0, 0.0, 0.0], [3.0, 3.0, 5.0, 5.0]])
    damaged = torch.zeros(1, 1, 4, 4)
    damaged[..., :2, :2] = 1.0
    out = scale.compose(x[None, None], damaged)
    # Row-major patches: 1 is the mirror image, 2 is exactly three times patch 0, 3 has another shape.
    assert torch.equal(out[0, 0, :2, :2], x[2:, :2])
    assert torch.equal(out[0, 0, 2:], x[2:])


def test_patch_attention_without_a_sound_patch_changes_nothing() -> None:
    scale = PatchScale(1, 2, replace(TINY, context="patches"))
    x = torch.randn(1, 1, 4, 4)
    assert torch.equal(scale.compose(x, torch.ones(1, 1, 4, 4)), x)


def test_blur_pool_equals_opencv() -> None:
    import cv2

    x = np.random.default_rng(0).random((16, 12)).astype(np.float32)
    ours = BlurPool(1)(torch.from_numpy(x)[None, None])[0, 0].numpy()
    blurred = cv2.GaussianBlur(x, (3, 3), 0, borderType=cv2.BORDER_REFLECT_101)  # sigma 0 is the binomial kernel
    assert np.allclose(ours, blurred[::2, ::2], atol=1e-6)


def test_face_generator_refuses_odd_sizes() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        FaceGenerator(FaceGeneratorConfig(width=2, steering=2))(torch.zeros(1, 3, 48, 48))


@pytest.mark.parametrize("residual", [False, True])
def test_large_maps_of_faces_are_made_one_face_at_a_time(residual: bool) -> None:
    torch.manual_seed(3)
    generator = FaceGenerator(FaceGeneratorConfig(width=2, steering=4, residual=residual)).eval()
    faces = torch.rand(3, 3, 64, 64) * 2.0 - 1.0
    met: list[tuple[int, int]] = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _module, _given, made: met.append((len(made), made.shape[-1])))
    with torch.inference_mode():
        made = generator(faces)
        assert met == [(3, 2), (3, 4), (3, 4), (3, 8)] + 3 * [(1, 16), (1, 32), (1, 64)]
        for face, together in zip(faces, made, strict=True):
            assert torch.allclose(generator(face[None])[0], together, atol=1e-6)


def test_build_makes_each_kind() -> None:
    kinds = {type(build(c)) for c in (VaeConfig(4, 4, 1), TINY, ScratchUnetConfig(2), FaceGeneratorConfig(2, 2))}
    assert len(kinds) == 4
    assert all(issubclass(k, nn.Module) for k in kinds)


def test_a_map_of_a_round_blob_has_its_mean_where_the_blob_is() -> None:
    # Fractions of a cell: probabilities of a normal distribution about (21.3, 40.6), in pixels of a crop of 64.
    place = torch.tensor([21.3, 40.6])
    middles = 2.0 * torch.arange(32) + 0.5  # of the cells, in pixels
    across, down = (-((middles - at) / 4.0).square() / 2.0 for at in place)
    maps = F.log_softmax((down[:, None] + across).flatten(), dim=0).view(1, 1, 32, 32)
    assert torch.allclose(means(maps)[0, 0], place, atol=0.01)


def test_landmarks_do_not_depend_on_brightness_and_contrast() -> None:
    torch.manual_seed(0)
    net = LandmarkNet(LandmarkNetConfig(width=4, size=64)).eval()
    crops = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(net(crops), net(0.2 + 0.3 * crops), atol=0.2)
        with pytest.raises(ValueError, match="96 x 96"):
            LandmarkNet(LandmarkNetConfig(width=4))(crops)


@pytest.mark.parametrize("laid", [torch.contiguous_format, torch.channels_last])
def test_moments_are_mean_and_variance_of_the_whole_map(laid: torch.memory_format) -> None:
    x = (torch.randn(2, 5, 600, 301) + 7.0).to(memory_format=laid)  # more values than are taken at once
    mean, variance = moments(x)
    torch.testing.assert_close(mean.double(), x.double().mean(dim=(2, 3), keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        variance.double(), x.double().var(dim=(2, 3), correction=0, keepdim=True), atol=1e-5, rtol=0
    )
    assert moments(x.half())[1].dtype == torch.float32


def test_a_map_that_is_the_same_everywhere_has_no_variance() -> None:
    x = torch.randn(1, 5, 1, 1).expand(1, 5, 37, 41)
    mean, variance = moments(x)
    assert bool((mean == x).all())
    assert not bool(variance.any())


def test_resizing_is_bilinear_whatever_the_number_of_threads(set_threads: Callable[[int], None]) -> None:
    x = torch.rand(2, 3, 133, 211)
    made = []
    for threads in (1, 2, 5):
        set_threads(threads)
        made.append(resized(x, (266, 420)))
    assert all(torch.equal(made[0], other) for other in made)
    expected = F.interpolate(x, size=(266, 420), mode="bilinear", align_corners=False)
    torch.testing.assert_close(made[0], expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("conv", [Conv1x1(32, 5), Conv1x1(96, 64), Doubling(64, 64), Doubling(8, 3)], ids=str)
@pytest.mark.parametrize("size", [(6, 7), (33, 64), (200, 160)])
@pytest.mark.parametrize("laid", [torch.contiguous_format, torch.channels_last])
def test_convolutions_are_the_same_whatever_the_number_of_threads(
    conv: Conv1x1 | Doubling, size: tuple[int, int], laid: torch.memory_format, set_threads: Callable[[int], None]
) -> None:
    x = torch.randn(2, conv.in_channels, *size, generator=torch.manual_seed(0)).contiguous(memory_format=laid)
    made = []
    for threads in (1, 2, 3):
        set_threads(threads)
        with torch.inference_mode():
            made.append(conv(x))
    assert all(torch.equal(made[0], other) for other in made)
    torch.testing.assert_close(made[0], conv(x), atol=1e-5, rtol=0.0)
