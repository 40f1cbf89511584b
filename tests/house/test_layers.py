"""The direction of imports, held by reading the source: a module imports from below it, never from above."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "oldphoto"

# Folders are floors, from the bottom up: a module imports from lower rows, and from its own folder.
LAYERS = [
    {"errors"},
    {"arrays", "machine", "options"},
    {"files", "weights"},
    {"models"},
    {"stages"},
    {"pipeline"},
    {"records"},
    {"bench", "doctor", "restorer", "runs", "training"},
    {"cli"},
    {"__main__"},
]
RANK = {folder: rank for rank, layer in enumerate(LAYERS) for folder in layer}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    """`files.png` for oldphoto/files/png.py, `models` for oldphoto/models/__init__.py, "" for oldphoto/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def floor(module: str) -> str:
    """`files` for files.png: the folder of a module, or the module that lies in none."""
    return module.split(".")[0]


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
                path = PACKAGE.parent / module.replace(".", "/") / alias.name
                is_module = path.is_dir() or path.with_suffix(".py").is_file()
                yield (f"{module}.{alias.name}" if is_module else module), node


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
    named = {floor(module_name(path)) for path in sources()} - {""}
    assert named == set(RANK), "give the new folder a row in LAYERS"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_point_down(path: Path) -> None:
    module = module_name(path)
    if not module:  # the package's own file names what it re-exports
        return
    for imported in own_imports(path):
        inside = floor(imported) == floor(module)
        assert inside or RANK[floor(imported)] < RANK[floor(module)], f"{module} imports {imported}"


def test_no_circle_inside_a_folder() -> None:
    waiting = {
        module_name(path): {name for name in own_imports(path) if floor(name) == floor(module_name(path))}
        for path in sources()
    }
    while ready := {module for module, needed in waiting.items() if not needed & waiting.keys()}:
        waiting = {module: needed for module, needed in waiting.items() if module not in ready}
    assert not waiting, "these import one another in a circle"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_training_and_the_command_import_training(path: Path) -> None:
    module = module_name(path)
    if module.startswith("training"):
        return
    uses = [name for name in own_imports(path) if name.startswith("training")]
    if floor(module) == "cli":
        eager = [name for node in at_import_time(ast.parse(path.read_text())) for name, _ in imports_of(node)]
        assert not [name for name in eager if name.startswith("oldphoto.training.")]  # the names of stages are light
    else:
        assert not uses


def imports_of(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imports(node)


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_the_command_prints(path: Path) -> None:
    if floor(module_name(path)) == "cli":
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    printing = ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write")
    assert not [f"line {call.lineno}" for call in calls if ast.unparse(call.func) in printing]
    assert not [name for name, _ in imports(ast.parse(path.read_text())) if name.split(".")[0] in ("rich", "typer")]


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_weights_speaks_to_the_network(path: Path) -> None:
    network = ("huggingface_hub", "urllib.request", "http.client", "socket", "httpx", "requests")
    named = [name for name, _ in imports(ast.parse(path.read_text())) if name.startswith(network)]
    assert not named or floor(module_name(path)) == "weights"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_only_training_imports_torchvision(path: Path) -> None:
    # On a CPU-only torch the wheel of torchvision fails at import: inference must not depend on it.
    named = [name for name, _ in imports(ast.parse(path.read_text())) if name.split(".")[0] == "torchvision"]
    assert not named or module_name(path).startswith("training")


KNOW_NO_TORCH = [
    *("errors.py", "options.py", "arrays.py", "files/image.py", "runs/batch.py", "records/report.py"),
    *(
        path.relative_to(PACKAGE).as_posix()
        for path in sources()
        if floor(module_name(path)) in ("cli", "stages", "weights")
    ),
]


@pytest.mark.parametrize("name", KNOW_NO_TORCH)
def test_what_is_asked_before_any_work_knows_no_torch(name: str) -> None:
    eager = [found for node in at_import_time(ast.parse((PACKAGE / name).read_text())) for found, _ in imports_of(node)]
    assert not [found for found in eager if found.split(".")[0] == "torch" or found.startswith("oldphoto.models")]


def test_asking_which_networks_a_photo_needs_loads_no_torch() -> None:
    script = """
import sys
from oldphoto import Options
from oldphoto.stages import needed_nets
assert needed_nets("compact", Options(), False)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


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
from oldphoto.models.loading import PUBLISHED, _empty, load_compact, load_strictly
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
