"""The direction of imports, held by reading the source: a module imports from below it, never from above."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "oldphoto"

# From the bottom up. A module imports from lower rows only; the modules of `training` may import one another.
LAYERS = [
    {"errors"},
    {"memory", "options", "colour", "decoders", "exif", "flight", "threads"},
    {"photo"},
    {"heif", "jpeg2000", "netpbm", "plugins", "png", "tiff"},
    {"models.winograd"},
    {"models.blocks", "image", "manifest", "provenance", "tensors", "weights"},
    {"compare"},
    {"report"},
    {
        *("models.estimator", "models.face_finder", "models.landmarks", "models.scratch_unet", "models.vae"),
        *("models.mapping", "models.rrdb", "models.spade", "models.srvgg"),
    },
    {"loading", "streaming"},
    {"finder"},
    {"faces"},
    {"blending", "restraint", "scratches", "tone", "translation"},
    {"pipeline", "planning"},
    {
        "batch",
        "bench",
        "doctor",
        "premis",
        "signing",
        "training.ageing",
        "training.degrade",
        "training.data",
        "training.losses",
        "training.evaluate",
        "training.grain",
        "training.lettering",
        "training.pairs",
    },
    {"arrivals", "cluster", "training.base"},
    {"training.face_finder", "training.landmarks", "training.repair"},
    {"training.enhancement"},
    {"training.estimators"},
    {"training.stages"},
    {"training.train"},
    {"cli"},
    {"__main__"},
]
RANK = {module: rank for rank, layer in enumerate(LAYERS) for module in layer}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """`image` for oldphoto/image.py, `models` for oldphoto/models/__init__.py, "" for oldphoto/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every absolute name imported anywhere in the source, inside functions and TYPE_CHECKING blocks too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside the package are absolute"
            module = node.module or ""
            for alias in node.names:
                # `from oldphoto import weights` names a module, `from oldphoto.weights import obtain` something in one.
                path = PACKAGE.parent / module.replace(".", "/") / f"{alias.name}.py"
                yield (f"{module}.{alias.name}" if path.is_file() else module), node


def at_import_time(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not function bodies, not TYPE_CHECKING blocks."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def own_imports(path: Path) -> Iterator[str]:
    for name, _ in imports(ast.parse(path.read_text())):
        if name.startswith("oldphoto."):
            yield name.removeprefix("oldphoto.")


def test_every_module_has_its_layer() -> None:
    named = {module_name(path) for path in sources()} - {"", "models", "training"}
    assert named <= set(RANK), "give the new module a row in LAYERS"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    if module in ("", "models", "training"):  # a package's own file may name what it re-exports
        return
    for imported in own_imports(path):
        siblings = module.startswith("training.") and imported.startswith("training.")
        assert siblings or RANK[imported] < RANK[module], f"{module} imports {imported}"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_training_and_the_command_import_training(path: Path) -> None:
    module = module_name(path)
    if module.startswith("training"):
        return
    uses = [name for name in own_imports(path) if name.startswith("training")]
    if module == "cli":
        eager = [name for node in at_import_time(ast.parse(path.read_text())) for name, _ in imports_of(node)]
        assert not [name for name in eager if name.startswith("oldphoto.training")]
    else:
        assert not uses


def imports_of(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imports(node)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_the_command_prints(path: Path) -> None:
    if module_name(path) == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    printing = ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write")
    assert not [f"line {call.lineno}" for call in calls if ast.unparse(call.func) in printing]
    assert not [name for name, _ in imports(ast.parse(path.read_text())) if name.split(".")[0] in ("rich", "typer")]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_weights_speaks_to_the_network(path: Path) -> None:
    network = ("huggingface_hub", "urllib.request", "http.client", "socket", "httpx", "requests")
    named = [name for name, _ in imports(ast.parse(path.read_text())) if name.startswith(network)]
    assert not named or module_name(path) == "weights"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_training_imports_torchvision(path: Path) -> None:
    # On a CPU-only torch the wheel of torchvision fails at import: inference must not depend on it.
    named = [name for name, _ in imports(ast.parse(path.read_text())) if name.split(".")[0] == "torchvision"]
    assert not named or module_name(path).startswith("training")


def test_image_and_weights_know_no_torch() -> None:
    for name in ("errors", "options", "image", "weights", "batch", "cli"):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        eager = [found for node in at_import_time(tree) for found, _ in imports_of(node)]
        assert not [found for found in eager if found.split(".")[0] == "torch"], name


HEAVY = ("torch", "torchvision", "cv2", "dlib", "huggingface_hub", "numpy", "PIL")


@pytest.mark.parametrize(
    "code",
    [
        "import oldphoto",
        "import oldphoto; oldphoto.Options, oldphoto.ExitCode, dir(oldphoto)",
        "import runpy; sys.argv = ['oldphoto', '--help']; runpy.run_module('oldphoto', run_name='__main__')",
        "import runpy; sys.argv = ['oldphoto', 'restore', '--help']; runpy.run_module('oldphoto', run_name='__main__')",
        "import runpy; sys.argv = ['oldphoto', '--version']; runpy.run_module('oldphoto', run_name='__main__')",
    ],
    ids=["import", "light names", "help", "restore help", "version"],
)
def test_starting_loads_nothing_heavy(code: str) -> None:
    script = f"""
import json, sys
try:
    {code}
except SystemExit as end:
    assert not end.code
finally:
    print()
    print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_building_networks_does_not_load_torchs_compiler() -> None:
    """Some arithmetic on tensors without data does, unasked: a second of every start."""
    script = """
import json, sys
from oldphoto import weights
from oldphoto.loading import PUBLISHED, _empty, load_compact, load_strictly
for file in weights.read_lock():
    if file.set == "compact":
        load_compact(weights.obtain(file))
state = {k: v.new_empty(v.shape, device="cpu") for k, v in _empty(PUBLISHED["scratch_unet"]).state_dict().items()}
load_strictly(_empty(PUBLISHED["scratch_unet"]), state, weights.lock_path())
for config in PUBLISHED.values():
    _empty(config)
print(json.dumps([name for name in ("torch._dynamo", "sympy") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
