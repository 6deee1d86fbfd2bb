"""Every kind of adapter in the same trainer."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import parm_mlx
from parm_mlx.pblora import read_adapter
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.progress import Progress
from parm_mlx.training.run import train

Settings = Callable[..., TrainConfig]


class Listener(Progress):
    """Remembers notes, and interrupts after a step."""

    def __init__(self, interrupt: int = 0) -> None:
        self.notes: list[str] = []
        self._interrupt = interrupt

    def note(self, message: str) -> None:
        self.notes.append(message)

    def advance(self, step: int) -> None:
        if step == self._interrupt:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def settings(official: Path, tmp_path: Path, write_rows: Callable[..., Path], rows: list[dict[str, Any]]) -> Settings:
    data = write_rows(rows)

    def make(out: str, **others: Any) -> TrainConfig:
        common = {"model": str(official / "arm_base"), "data": str(data), "out": str(tmp_path / out), "iters": 3}
        return TrainConfig(**(common | {"batch_size": 4, "warmup": 1, "val_batches": 0, "r1": 2, "r2": 2} | others))

    return make


@pytest.mark.parametrize(
    ("kind", "ranks", "size"),
    [
        ("lora", (4, 0), "lora of rank 4, 2,560 trainable numbers"),
        ("svd-lora", (2, 2), "svd-lora of rank 4, 2,578 trainable numbers"),
        ("moslora", (0, 4), "moslora of rank 4, 2,848 trainable numbers"),
    ],
)
def test_a_run_trains_every_tensor_and_resumes_bit_for_bit(
    settings: Settings, kind: str, ranks: tuple[int, int], size: str
) -> None:
    """q, k and v of two layers, hidden 64, keys and values 32: 2 · 4 · (128 + 96 + 96) = 2,560 numbers in A and B.

    The cores add 6 · 3 for SVD-LoRA, 6 · (16 + 2 · 16) = 288 for MoSLoRA and 6 · (4 + 2 · 4) = 72 for PBLoRA.
    """
    listener = Listener()
    whole = train(settings("whole", adapter=kind), progress=listener)
    assert f"3 steps; {size} (pblora of rank 4: 2,632) in 6 layers" in listener.notes
    config, tensors = read_adapter(whole.out)
    assert (config.kind, config.r1, config.r2, config.scale) == (kind, *ranks, 2.0)
    for name, tensor in tensors.items():
        start = {"sigma": 1.0, "factor": 1.0, "b": 0.0}.get(name.rpartition(".")[2])
        assert start is None or mx.all(mx.abs(tensor - start).max() > 0).item(), name

    stopped = train(settings("out", adapter=kind), progress=Listener(interrupt=2))
    assert (stopped.steps, stopped.interrupted) == (2, True)
    resumed = train(settings("out", adapter=kind), resume=True)
    assert (resumed.out / "adapters.safetensors").read_bytes() == (whole.out / "adapters.safetensors").read_bytes()


def test_two_models_of_one_objective_guide_together(settings: Settings, official: Path) -> None:
    listener = Listener()
    parms = [
        train(settings(name, adapter="lora", objectives=name), progress=listener).out for name in ("long", "short")
    ]
    assert "labels of short are not used" in listener.notes
    model, tokenizer = parm_mlx.load(official / "base_lm", parms, alpha="short=1")
    assert model.objectives == ("long", "short")
    assert model.guide.alpha == (0.0, 1.0)
    backbones = [guide.model.model.embed_tokens.weight for guide in model.guide.guides]
    assert backbones[0] is backbones[1], "one backbone is held once"
    ids = mx.array([tokenizer.encode("Hello there")])
    short, _ = parm_mlx.load(official / "base_lm", parms[1])
    assert mx.allclose(model(ids), short(ids), atol=1e-4)
