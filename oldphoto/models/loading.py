"""Weight file + config -> an eval() network. Strict: every key and every shape, or an error that names them.

Files are safetensors in this project's own key names, or the published pickles, read with weights_only=True and renamed
by one pure function per network. Spectral norm is folded into the weights as they are read.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oldphoto.errors import WeightsCorruptError
from oldphoto.models.colour_net import ColourNet, ColourNetConfig
from oldphoto.models.damage_net import DamageNet, DamageNetConfig
from oldphoto.models.deoldify import DeOldify, DeOldifyConfig
from oldphoto.models.estimator import Estimator, EstimatorConfig
from oldphoto.models.face_finder import FaceFinder, FaceFinderConfig
from oldphoto.models.landmarks import LandmarkNet, LandmarkNetConfig
from oldphoto.models.mapping import Mapping as LatentMapping
from oldphoto.models.mapping import MappingConfig
from oldphoto.models.rrdb import RRDBConfig, RRDBNet
from oldphoto.models.scratch_unet import ScratchUnet, ScratchUnetConfig
from oldphoto.models.spade import FaceGenerator, FaceGeneratorConfig
from oldphoto.models.srvgg import SRVGGConfig, SRVGGNetCompact
from oldphoto.models.tone_net import ToneNet, ToneNetConfig
from oldphoto.models.vae import Vae, VaeConfig
from oldphoto.models.winograd import wide

Config = (
    VaeConfig
    | MappingConfig
    | ScratchUnetConfig
    | DamageNetConfig
    | ColourNetConfig
    | DeOldifyConfig
    | FaceGeneratorConfig
    | FaceFinderConfig
    | LandmarkNetConfig
    | EstimatorConfig
    | ToneNetConfig
    | SRVGGConfig
    | RRDBConfig
)
Net = TypeVar("Net", bound=nn.Module)

PUBLISHED: dict[str, Config] = {
    "scratch_unet": ScratchUnetConfig(),
    "old_vae": VaeConfig(),
    "clean_vae": VaeConfig(),
    "clean_vae_scratch": VaeConfig(),
    "mapping": MappingConfig(),
    "mapping_scratch": MappingConfig(context="non_local"),
    "mapping_patch_attention": MappingConfig(context="patches", blocks=2),
    "face_generator_256": FaceGeneratorConfig(),
    "face_generator_512": FaceGeneratorConfig(),
    "rebuilder": SRVGGConfig(),
    "rebuilder_wdn": SRVGGConfig(),
    "rebuilder_large": RRDBConfig(),
    "deoldify_artistic": DeOldifyConfig(),
}


def build(config: Config) -> nn.Module:
    """The network a config describes, with fresh weights."""
    match config:
        case VaeConfig():
            return Vae(config)
        case MappingConfig():
            return LatentMapping(config)
        case ScratchUnetConfig():
            return ScratchUnet(config)
        case DamageNetConfig():
            return DamageNet(config)
        case ColourNetConfig():
            return ColourNet(config)
        case DeOldifyConfig():
            return DeOldify(config)
        case SRVGGConfig():
            return SRVGGNetCompact(config)
        case FaceGeneratorConfig():
            return FaceGenerator(config)
        case FaceFinderConfig():
            return FaceFinder(config)
        case LandmarkNetConfig():
            return LandmarkNet(config)
        case EstimatorConfig():
            return Estimator(config)
        case ToneNetConfig():
            return ToneNet(config)
        case RRDBConfig():
            return RRDBNet(config)


COUNTER = ".num_batches_tracked"

Rename = Callable[[str], str]
_RESIDUAL = {".conv_block.1.": ".conv1.", ".conv_block.5.": ".conv2."}


def _rename(key: str, heads: dict[str, str], parts: dict[str, str]) -> str:
    """Replace the one matching head and every matching inner part of a dotted key; a key no head matches stays."""
    for theirs, ours in heads.items():
        if key.startswith(theirs):
            key = ours + key[len(theirs) :]
            break
    for theirs, ours in parts.items():
        key = key.replace(theirs, ours)
    return key


_VAE = {
    **{"encoder.1.": "encoder.stem.", "encoder.4.": "encoder.down.0.", "encoder.7.": "encoder.down.1."},
    **{f"encoder.{10 + i}.": f"encoder.blocks.{i}." for i in range(4)},
    **{f"decoder.{i}.conv_block": f"decoder.blocks.{i}.conv_block" for i in range(4)},
    **{"decoder.4.": "decoder.up.0.", "decoder.7.": "decoder.up.1.", "decoder.11.": "decoder.head."},
}
_MAPPING = {
    **{f"model.{3 * i}.": f"enter.{i}." for i in range(4)},
    **{f"model.{12 + i}.": f"blocks.{i}." for i in range(6)},
    **{f"model.{18 + 3 * i}.": f"leave.{i}." for i in range(4)},
}
_MAPPING_SCRATCH = {
    **{f"before_NL.{3 * i}.": f"enter.{i}." for i in range(4)},
    **{"NL.theta.": "non_local.query.", "NL.phi.": "non_local.key.", "NL.g.": "non_local.value."},
    **{"NL.W.": "non_local.out.", "NL.res_block.": "non_local.blocks."},
    **{f"after_NL.{i}.conv_block": f"blocks.{i}.conv_block" for i in range(6)},
    **{f"after_NL.{6 + 3 * i}.": f"leave.{i}." for i in range(4)},
}
_MAPPING_PATCHES = {
    **{f"before_NL.{3 * i}.": f"enter.{i}." for i in range(4)},
    **{f"before_NL.{12 + i}.": f"patches.before.{i}." for i in range(2)},
    **{f"NL_scale_{1 + i}.F_Combine.": f"patches.scales.{i}.combine." for i in range(3)},
    **{f"NL_scale_{1 + i}.res_block.0.": f"patches.scales.{i}.block." for i in range(3)},
    **{f"res_block_{1 + i}.": f"patches.between.{i}." for i in range(2)},
    **{f"after_NL.{i}.conv_block": f"blocks.{i}.conv_block" for i in range(2)},
    **{f"after_NL.{2 + 3 * i}.": f"leave.{i}." for i in range(4)},
}
_SCRATCH_UNET = {
    **{"first.1.": "first.", "last.1.": "last."},
    **{f"down_sample.{i}.": f"down.{i}.sample." for i in range(4)},
    **{f"down_path.{i}.": f"down.{i}." for i in range(4)},
    **{f"up_path.{i}.up.2.": f"up.{i}.up." for i in range(4)},
    **{f"up_path.{i}.conv_block.": f"up.{i}." for i in range(4)},
}
_SCRATCH_UNET_PARTS = {
    **{".sample.1.": ".before.conv.", ".sample.2.": ".before.norm.", ".sample.4.": ".pool."},
    **{
        ".block.1.": ".conv1.conv.",
        ".block.2.": ".conv1.norm.",
        ".block.5.": ".conv2.conv.",
        ".block.6.": ".conv2.norm.",
    },
}
_FACE = {
    **{"fc.": "start.", "conv_img.": "last.", "head_0.": "blocks.0."},
    **{"G_middle_0.": "blocks.1.", "G_middle_1.": "blocks.2."},
    **{f"up_{i}.": f"blocks.{3 + i}." for i in range(4)},
}
_FACE_PARTS = {
    **{".conv_0.": ".conv1.", ".conv_1.": ".conv2.", ".conv_s.": ".shortcut."},
    **{".norm_0.": ".norm1.", ".norm_1.": ".norm2.", ".norm_s.": ".shortcut_norm.", ".param_free_norm.": ".norm."},
    **{".mlp_shared.0.": ".shared.", ".mlp_gamma.": ".gamma.", ".mlp_beta.": ".beta."},
}


def rename_vae(key: str) -> str:
    """Published key of a VAE -> ours."""
    return _rename(key, _VAE, _RESIDUAL)


def rename_mapping(key: str) -> str:
    """Published key of the plain mapping -> ours."""
    return _rename(key, _MAPPING, _RESIDUAL)


def rename_mapping_scratch(key: str) -> str:
    """Published key of the mapping with the non-local block -> ours."""
    return _rename(key, _MAPPING_SCRATCH, _RESIDUAL)


def rename_mapping_patch_attention(key: str) -> str:
    """Published key of the mapping with patch attention -> ours."""
    return _rename(key, _MAPPING_PATCHES, _RESIDUAL)


def rename_scratch_unet(key: str) -> str:
    """Published key of the scratch U-Net -> ours."""
    return _rename(key, _SCRATCH_UNET, _SCRATCH_UNET_PARTS)


def rename_face_generator(key: str) -> str:
    """Published key of the face generator -> ours."""
    return _rename(key, _FACE, _FACE_PARTS)


RENAMES: dict[str, Rename] = {
    "scratch_unet": rename_scratch_unet,
    "old_vae": rename_vae,
    "clean_vae": rename_vae,
    "clean_vae_scratch": rename_vae,
    "mapping": rename_mapping,
    "mapping_scratch": rename_mapping_scratch,
    "mapping_patch_attention": rename_mapping_patch_attention,
    "face_generator_256": rename_face_generator,
    "face_generator_512": rename_face_generator,
}
# In these files the state dict lies beside or below something else.
WITHIN = {
    "scratch_unet": "model_state",  # beside an optimizer's state
    "rebuilder": "params",
    "rebuilder_wdn": "params",
    "rebuilder_large": "params_ema",
    "deoldify_artistic": "model",  # beside an optimiser's state
}


def fold_spectral_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each `weight_orig`, `weight_u`, `weight_v` by the weight they stand for: weight_orig / (u . W v).

    W is weight_orig as [out, rest]. The stored u and v are used as they are: recomputing sigma changes the network.
    """
    folded = dict(state)
    for key in [k for k in state if k.endswith(".weight_orig")]:
        stem = key.removesuffix("_orig")
        weight, u, v = (folded.pop(f"{stem}_{name}") for name in ("orig", "u", "v"))
        sigma = torch.dot(u, torch.mv(weight.flatten(1), v))
        folded[stem] = weight / sigma
    return folded


def fold_weight_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each `weight_g`, `weight_v` by the weight they stand for: v brought to the length g, row by row."""
    folded = dict(state)
    for key in [k for k in state if k.endswith(".weight_g")]:
        stem = key.removesuffix("_g")
        length, direction = folded.pop(key), folded.pop(f"{stem}_v")
        folded[stem] = length * direction / direction.flatten(1).norm(dim=1).view(length.shape)
    return folded


def published_state(net: str, path: Path) -> dict[str, Tensor]:
    """Read a published pickle (zip or the older format) and return its tensors under our key names.

    Never runs code from the file: what `weights_only=True` refuses is a WeightsCorruptError.
    """
    try:
        with torch.serialization.safe_globals([slice]):  # of a learning rate beside the weights; it does nothing
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise WeightsCorruptError(f"{path}: not a loadable checkpoint ({error})", _AGAIN) from error
    if net in WITHIN and isinstance(state, dict):
        state = state.get(WITHIN[net])
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsCorruptError(f"{path}: holds no state dict of tensors", _AGAIN)
    rename = RENAMES.get(net)
    try:
        return {
            rename(key) if rename else key: value for key, value in fold_weight_norm(fold_spectral_norm(state)).items()
        }
    except KeyError as error:
        raise WeightsCorruptError(f"{path}: a norm of its weights lacks {error}", _AGAIN) from error


_AGAIN = "run `oldphoto weights verify`, then `oldphoto weights download`"


def load_strictly(net: Net, state: Mapping[str, Tensor], path: Path) -> Net:
    """Put state into net, all keys and all shapes, and switch it to eval().

    Batch-norm step counters, which have no effect at inference, are left out of account. Raises WeightsCorruptError
    naming the file, the missing and unknown keys, and the shapes that differ.
    """
    state = {k: v for k, v in state.items() if not k.endswith(COUNTER)}
    everything = net.state_dict()
    counters = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in everything.items() if k.endswith(COUNTER)}
    own = {k: v for k, v in everything.items() if k not in counters}
    wrong = [
        *(f"missing {k}" for k in own if k not in state),
        *(f"unknown {k}" for k in state if k not in own),
        *(
            f"{k} is {tuple(state[k].shape)}, not {tuple(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise WeightsCorruptError(f"{path}: {'; '.join(wrong[:3])}{more}", "the file belongs to another network or set")
    net.load_state_dict({k: state[k].to(v.dtype) for k, v in own.items()} | counters, assign=True)
    return net.eval().requires_grad_(False)


def load_published(net: str, path: Path) -> nn.Module:
    """The published network `net` from its checkpoint at `path`."""
    return load_strictly(_empty(PUBLISHED[net]), published_state(net, path), path)


def load_blended(path: Path, other: Path, share: float) -> nn.Module:
    """The published rebuilding network, its weights mixed with those of its sister that takes less noise away.

    share: of the weights at `path`, 0 to 1; the rest are those at `other`. Raises ValueError outside of that.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"a share of {share:g}: it goes from 0 to 1")
    strong, weak = load_published("rebuilder", path), load_published("rebuilder_wdn", other)
    with torch.no_grad():
        for ours, theirs in zip(strong.parameters(), weak.parameters(), strict=True):
            ours.mul_(share).add_(theirs, alpha=1.0 - share)
    return strong


def load_compact(path: Path) -> nn.Module:
    """A network of the compact set; its config lies in the file, as JSON in the metadata entry `config`."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        config = config_from_json(metadata["config"])
        state = {k: v.float() for k, v in load_file(path).items()}
    except (OSError, KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise WeightsCorruptError(f"{path}: not a weight file of the compact set ({error})", _AGAIN) from error
    return load_strictly(_empty(config), state, path)


def save_compact(network: nn.Module, path: Path) -> None:
    """Write a network of ours as float16 safetensors with its config."""
    config = network.config
    assert isinstance(config, Config)
    state = {
        k: (v.half() if v.is_floating_point() else v).contiguous()
        for k, v in network.state_dict().items()
        if not k.endswith(COUNTER)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    save_file(state, temporary, metadata={"config": config_to_json(config)})
    temporary.replace(path)


def config_to_json(config: Config) -> str:
    """{"kind": class name, field: value, ...}."""
    return json.dumps({"kind": type(config).__name__, **asdict(config)}, sort_keys=True)


def config_from_json(text: str) -> Config:
    """Inverse of config_to_json. Raises ValueError, KeyError or TypeError on anything else."""
    fields: dict[str, Any] = json.loads(text)
    kinds = {k.__name__: k for k in get_args(Config)}
    kind: Callable[..., Config] = kinds[fields.pop("kind")]
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def placed(net: Net, device: torch.device) -> Net:
    """The network on a device, its weights channels-last, which convolutions on CPU and GPU run fastest in.

    But not those of wide kernels on the CPU: they are transformed whenever they are used, and stay where the file is
    mapped, which saves as much memory as they take.
    """
    net = net.to(device)
    for weight in net.parameters():
        if weight.dim() == 4 and not (device.type == "cpu" and wide(weight)):
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return net


def _empty(config: Config) -> nn.Module:
    """A network without the time it takes to draw random weights: every value is loaded or it is an error."""
    with torch.device("meta"):
        return build(config)
