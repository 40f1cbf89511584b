"""Translation on a CUDA card: photos of one size batched, at each precision, against the card's own matrix product.

python benchmarks/cuda.py [--peak-tflops TFLOPS] [--seconds 40]
Published width has random weights: speed does not depend on them. Lines are printed as they come, the most telling
first; what the time is too short for is left out, and a line that fails says so.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from oldphoto import weights
from oldphoto.bench import photo
from oldphoto.models.loading import PUBLISHED, build, load_compact, placed
from oldphoto.models.mapping import Mapping
from oldphoto.models.tensors import to_tensor
from oldphoto.models.translating import TranslationNets, translate_photo, translate_whole
from oldphoto.models.vae import Vae

# (height, width) of a photo of 1 megapixel in whole cells.
SIZE = (864, 1152)
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass(frozen=True)
class Subject:
    """Networks to measure, on the CPU and on the card."""

    name: str
    on_cpu: TranslationNets
    on_cuda: TranslationNets


def main() -> None:
    """All lines, within the time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-tflops", type=float, help="of the card; measured by 8192^3 products if left out")
    parser.add_argument("--seconds", type=float, default=40.0, help="no new line is begun after these")
    choices = parser.parse_args()
    ends = time.perf_counter() + choices.seconds
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}", flush=True)
    peaks: dict[str, float] = {}

    def line(title: str, work: Callable[[], str]) -> None:
        if time.perf_counter() > ends:
            print(f"{title}: left out, out of time", flush=True)
            return
        try:
            print(f"{title}: {work()}", flush=True)
        except Exception as error:
            print(f"{title}: FAILED: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        torch.cuda.empty_cache()

    def peak_of(mode: str) -> str:
        measured = product_tflops(mode)
        peaks[mode] = choices.peak_tflops or measured
        return f"{measured:.1f} TFLOP/s measured in a product of 8192 x 8192 x 8192"

    for mode in DTYPES:
        line(f"peak {mode}", lambda mode=mode: peak_of(mode))  # type: ignore[misc]  # mypy and lambda defaults
    subjects: list[Subject] = []
    for make in (published, compact):
        line(f"load {make.__name__}", lambda make=make: (subjects.append(make()), "done")[1])  # type: ignore[misc,func-returns-value]  # as above
    for subject in subjects:
        for mode in DTYPES:
            line(f"check {subject.name} {mode}", lambda s=subject, m=mode: agreement(s, m))  # type: ignore[misc]  # as above
    for subject in subjects:
        per_pixel = flops_per_pixel(subject.on_cuda)
        print(f"{subject.name}: {per_pixel / 2e6:.3f} million multiply-adds a pixel", flush=True)
        for tuned, count, mode in [
            *((False, count, mode) for count in (1, 4, 8) for mode in DTYPES),
            *((True, 4, mode) for mode in DTYPES),
        ]:
            title = f"speed {subject.name} {mode} batch {count}{' cudnn.benchmark' if tuned else ''}"
            line(
                title,
                lambda s=subject, m=mode, n=count, t=tuned, f=per_pixel: speed(s.on_cuda, m, n, t, f, peaks.get(m)),  # type: ignore[misc]  # as above
            )
    for subject in subjects:
        line(f"whole photo of 12 MP {subject.name} fp16", lambda s=subject: large(s.on_cuda))  # type: ignore[misc]  # as above


@contextmanager
def precision(mode: str) -> Iterator[None]:
    """As Models.inference has it, TF32 off but for "tf32"."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = mode == "tf32"
    half = torch.bfloat16 if mode == "bf16" else torch.float16
    with torch.inference_mode(), torch.autocast("cuda", half, enabled=mode in ("bf16", "fp16")):
        yield


def product_tflops(mode: str) -> float:
    """Of a matrix product, the best of three."""
    with precision(mode):
        a, b = (torch.randn(8192, 8192, device=CUDA, dtype=DTYPES[mode]) for _ in range(2))
        a @ b
        return max(2 * 8192**3 / seconds(lambda: a @ b) / 1e12 for _ in range(3))


def seconds(work: Callable[[], object]) -> float:
    """Time of work on the card."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def published() -> Subject:
    """Plain mode at the published width, random weights."""
    torch.manual_seed(1)
    nets = [build(PUBLISHED[name]).eval().requires_grad_(False) for name in ("old_vae", "mapping", "clean_vae")]
    return _subject("published", nets)


def compact() -> Subject:
    """The weights in the package."""
    files = weights.resolve("compact", lambda name: ["old_vae", "mapping", "clean_vae"], offline=True).files
    return _subject("compact", [load_compact(files[name]) for name in ("old_vae", "mapping", "clean_vae")])


def _subject(name: str, nets: list[torch.nn.Module]) -> Subject:
    def on(device: torch.device) -> TranslationNets:
        old, mapping, clean = (_copy(net, device) for net in nets)
        assert isinstance(old, Vae)
        assert isinstance(mapping, Mapping)
        assert isinstance(clean, Vae)
        return TranslationNets(old, mapping, clean)

    return Subject(name, on(CPU), on(CUDA))


def _copy(net: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    fresh = build(net.config).eval().requires_grad_(False)  # type: ignore[arg-type]  # our networks have a config
    fresh.load_state_dict(net.state_dict())
    return placed(fresh, device)


def agreement(subject: Subject, mode: str) -> str:
    """The largest difference from the CPU at fp32, in levels of 255, and the PSNR, on a small photo."""
    x = to_tensor(photo(0.05)[0])[..., :192, :256].contiguous()
    with torch.inference_mode():
        expected = translate_whole(x, None, subject.on_cpu)
    with precision(mode):
        made = translate_whole(x.to(CUDA), None, subject.on_cuda).float().cpu()
    apart = (made - expected) * 127.5
    error = float(apart.square().mean())
    psnr = math.inf if error == 0 else 10 * math.log10(255.0**2 / error)
    return f"at most {float(apart.abs().max()):.4f} levels of 255 from the CPU at fp32, PSNR {psnr:.1f} dB"


def flops_per_pixel(nets: TranslationNets) -> float:
    """Floating-point operations, a multiply-add being two."""
    x = torch.zeros(1, 3, 128, 128, device=CUDA)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        translate_whole(x, None, nets)
    return float(counter.get_total_flops()) / (128 * 128)


def speed(nets: TranslationNets, mode: str, count: int, tuned: bool, per_pixel: float, peak: float | None) -> str:
    """Megapixels per second of a batch, the best of two after one to warm up."""
    torch.backends.cudnn.benchmark = tuned
    one = to_tensor(photo(1.0)[0])[..., : SIZE[0], : SIZE[1]]
    x = one.expand(count, -1, -1, -1).contiguous().to(CUDA)
    with precision(mode):

        def work() -> Tensor:
            return translate_whole(x, None, nets)

        work()
        torch.cuda.reset_peak_memory_stats()
        best = min(seconds(work) for _ in range(2))
    torch.backends.cudnn.benchmark = False
    pixels = count * math.prod(x.shape[2:])
    reached = per_pixel * pixels / best / 1e12
    share = f" = {reached / peak:.0%} of {peak:.0f}" if peak else ""
    memory = torch.cuda.max_memory_allocated() / 1e9
    return f"{pixels / best / 1e6:8.2f} MP/s  {reached:6.1f} TFLOP/s{share}  peak {memory:.2f} GB"


def large(nets: TranslationNets) -> str:
    """From pixels to pixels, as the pipeline does it."""
    pixels = photo(12.0)[0]
    torch.cuda.reset_peak_memory_stats()
    with precision("fp16"):
        plans = []
        took = seconds(lambda: plans.append(translate_photo(pixels, None, nets, CUDA, 64 * 10**9).plan))
    memory = torch.cuda.max_memory_allocated() / 1e9
    return f"{plans[0].way}  {pixels.size / 3e6 / took:.2f} MP/s  peak {memory:.2f} GB"


if __name__ == "__main__":
    main()
