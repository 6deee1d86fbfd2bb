"""What every test may use: the fixtures made by the official code, and a command line that runs in this process."""

import atexit
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["NO_COLOR"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # two processes run the tests
os.environ["PARM_MLX_SETTINGS"] = ""  # not those of whoever runs the tests
os.environ.setdefault("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib"))  # its list of fonts takes seconds
# Numbers are pinned in float32; the cores of newer cards round its products to TF32, unless they are told not to.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="parm-mlx-tests-")  # what tests measure is nobody's

import pytest

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)

from parm_mlx import machine, named  # isort: skip
from parm_mlx.files import NAMED  # isort: skip

import mlx.core as mx  # isort: skip

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
machine.keep_freed_memory()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with Ctrl-C ignored

# Expected numbers and equal tokens are pinned on the CPU, also on a Mac; PARM_MLX_TEST_DEVICE=gpu tests Metal or CUDA.
DEVICE = os.environ.get("PARM_MLX_TEST_DEVICE", "cpu")
if DEVICE not in ("cpu", "gpu"):
    raise pytest.UsageError(f"PARM_MLX_TEST_DEVICE is cpu or gpu, not {DEVICE}")
HAS_GPU = mx.is_available(mx.gpu)
mx.set_default_device(mx.gpu if DEVICE == "gpu" and HAS_GPU else mx.cpu)

OFFICIAL = Path(__file__).parent / "fixtures" / "official"
REWARDS = Path(__file__).parent / "fixtures" / "rewards"
REPOSITORY = Path(__file__).parent.parent
LONG = ["Thank you for asking, it is a pleasure.", "Of course! Here is a long and polite answer.", "Let me explain it."]
SHORT = ["No.", "Yes.", "Maybe."]


LONG_FILES = (  # begun first, so that two processes end at the same time
    *("test_distributed.py", "test_families.py", "test_evaluate.py", "test_killed_runs.py", "test_terminal.py"),
    *("test_process.py", "test_clients.py", "test_resume.py"),
    *("test_precious_files.py", "test_outputs.py", "test_chat.py", "test_plots.py", "test_sample.py", "test_data.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, and skips all on a GPU that is not there."""
    if DEVICE == "gpu" and not HAS_GPU:
        for item in items:
            item.add_marker(pytest.mark.skip(reason="PARM_MLX_TEST_DEVICE=gpu, but MLX has no GPU here"))
    items.sort(key=lambda item: LONG_FILES.index(name) if (name := item.path.name) in LONG_FILES else len(LONG_FILES))


@pytest.fixture(autouse=True)
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched in the process of the tests: they name their models."""

    def refused(what: str) -> Path:
        if what == "adapter":
            return named.MODELS / "smollm2-parm"
        pytest.fail("a test would fetch a model: name the bundled one")

    monkeypatch.setitem(NAMED, "smollm2", refused)


@pytest.fixture(scope="session", autouse=True)
def few_measurements() -> Iterator[None]:
    """Evaluations measure the cost of a token with few tokens: their times are not looked at."""
    from parm_mlx.evaluation import cost

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cost, "TOKENS", 2)
        patched.setattr(cost, "ROUNDS", 1)
        yield


@pytest.fixture(scope="session")
def official() -> Path:
    """The folder of models, adapters and expected numbers produced by the official code (see method.md's table)."""
    return OFFICIAL


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the clone."""
    return REPOSITORY


@pytest.fixture
def reward_source(official: Path, tmp_path: Path) -> "Callable[..., Path]":
    """A copy of a reward model in transformers' format with its tokenizer: ``reward_source("llama-1", "its-name")``."""

    def copy(kind: str, name: str | None = None) -> Path:
        folder = Path(shutil.copytree(REWARDS / kind, tmp_path / (name or kind)))
        for file in (official / "arm_base").glob("*token*"):
            shutil.copy(file, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def reward_scores() -> "dict[str, Any]":
    """Conversations and the outputs that transformers computed for them, by reward model."""
    content: dict[str, Any] = json.loads((REWARDS / "expected.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., "tuple[int, str, str]"]:
    """Runs ``parm-mlx`` in this process: ``run_cli("convert", …) -> (exit code, stdout, stderr)``."""
    from parm_mlx.cli import console
    from parm_mlx.cli.main import run

    def run_captured(*arguments: object) -> "tuple[int, str, str]":
        console.stderr.cache_clear()
        console.stdout.cache_clear()
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run_captured


@pytest.fixture(scope="session")
def official_parm(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official adapter in this package's format, its objectives named harmless and helpful."""
    import mlx.core as mx

    from parm_mlx.pblora import PBLoRAConfig, save_adapter

    path = tmp_path_factory.mktemp("official_parm")
    names = {"pblora_A": "a", "pblora_B": "b", "pblora_W1": "w1", "pblora_W2": "w2"}
    tensors = {}
    for name, tensor in mx.load(str(official / "parm_k2" / "adapter_model.safetensors")).items():
        layer, _, kind = name.removeprefix("base_model.model.model.").rpartition(".")
        tensors[f"{layer}.{names[kind]}"] = tensor
    config = PBLoRAConfig(objectives=("harmless", "helpful"), base_model=str((official / "arm_base").resolve()))
    save_adapter(path, config, tensors)
    return path


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows (objects, or lines as they are) to a file in the test's folder."""

    def write(rows: Iterable[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """24 pairs on 12 prompts: ``long`` prefers one response, ``short`` the other."""
    pairs = []
    for i in range(24):
        responses = [LONG[i % 3], SHORT[(i // 3) % 3]]
        long = i % 2
        pairs.append(
            {
                "prompt": f"Question number {i % 12}?",
                "responses": responses[::-1] if long else responses,
                "preferred": {"long": long, "short": 1 - long},
            }
        )
    return pairs
