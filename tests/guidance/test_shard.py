"""Models over several processes on this machine give the tokens of one process, or say in one line why they cannot.

All processes of one number are started once (tests/shard_cases.py); the tests read what they have printed.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import shard_cases
from ring import ring

from parm_mlx.distributed import Group
from parm_mlx.errors import ConfigError
from parm_mlx.guidance.shard import Shard

LIMIT = 300
REFUSED = {
    ("llama", "pipeline"): "mlx-lm's llama cannot be sharded as pipeline",
    ("gemma", "pipeline"): "mlx-lm's gemma cannot be sharded as pipeline",
    ("gemma", "tensor"): "mlx-lm's gemma cannot be sharded as tensor",
}
CASES = [(size, *case.rsplit(maxsplit=1)) for size, names in shard_cases.CASES.items() for case in names]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    shard_cases.write_models(folder)
    return folder


@pytest.fixture(scope="module")
def results(models: Path) -> Any:
    """What the processes of a number have found, by rank, once for all tests."""

    @cache
    def of(size: int) -> list[dict[str, Any]]:
        if size == 1:
            return [shard_cases.every_case(Group(), models)]
        environment = {**os.environ, **ring(models, size), "OPENBLAS_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        command = [sys.executable, "-P", shard_cases.__file__, str(models)]
        processes = [
            subprocess.Popen(command, env={**environment, "MLX_RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        try:
            printed = [process.communicate(timeout=LIMIT)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [json.loads(text) for text in printed]

    return of


def check(found: list[dict[str, Any]], alone: dict[str, Any], name: str, how: str) -> None:
    """Checks what all processes have found in a case: the tokens of one process, or a refusal that is expected."""
    first, *others = [each[f"{name} {how}"] for each in found]
    assert all(other == first for other in others)
    family, kind = name.split(maxsplit=1)
    reason = REFUSED.get((family, how))
    if kind == "one-pass" and how != "tensor":
        reason = f"--shard {how} and --guidance one-pass exclude each other"
    elif how == "apart" and len(found) > 2:
        reason = "--shard apart takes two processes"
    elif how == "apart" and kind == "shared":
        reason = "--shard apart would load it twice"
    if reason is not None:
        assert reason in first["refused"]
        assert "\n" not in first["refused"]
        return
    expected = alone[f"{name} alone"]["tokens"]
    for part, tokens in first["tokens"].items():
        assert tokens == expected[part][: len(tokens)], part
    assert {"batch", *(("sampled", "step", "chat") if len(found) == 2 else ())} <= first["tokens"].keys()


@pytest.mark.parametrize(("size", "name", "how"), CASES)
def test_several_processes_give_the_tokens_of_one(results: Any, size: int, name: str, how: str) -> None:
    check(results(size), results(1)[0], name, how)


@pytest.mark.parametrize("case", shard_cases.NOISY)
def test_processes_whose_logits_differ_take_the_same_tokens(results: Any, case: str) -> None:
    first, second = (each[case]["noisy"] for each in results(2))
    assert first == second
    without = results(2)[0][case]["tokens"]
    assert (first == without) == (not case.endswith("apart"))  # there, the noise is in the sums of logits
    assert {"step", "batch", "sampled", "chat"} <= first.keys()


def test_a_process_alone_is_told_how_to_start_several() -> None:
    with pytest.raises(ConfigError, match="this one is alone") as caught:
        Shard(Group(), "tensor")
    assert "mlx.launch -n 2" in str(caught.value.hint)


def test_only_three_ways_are_known() -> None:
    with pytest.raises(ConfigError, match="must be tensor, pipeline or apart"):
        Shard(Group(), "rows")  # type: ignore[arg-type]


class Pair(Group):
    """Two processes, of which this is one; an exchange would fail."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.size = rank, 2


@pytest.mark.parametrize("rank", [0, 1])
def test_the_numbers_of_other_ranks_count_zero_times(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.distributed, "all_sum", lambda own, group: own)
    shard = Shard(Pair(rank), "tensor")
    tokens, numbers = shard.agree_with(mx.array([7, 8]), mx.array([0.5, float("-inf")]))
    assert tokens.tolist() == ([7, 8] if rank == 0 else [0, 0])
    assert numbers.tolist() == ([0.5, float("-inf")] if rank == 0 else [0, 0])


def test_a_request_to_stop_takes_the_place_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.distributed, "all_sum", lambda own, group: own)
    shard = Shard(Pair(0), "tensor")
    stopped = shard.watch(lambda: True)
    assert shard.agree(mx.array([3, 4])).tolist() == [-2, -2]
    assert not stopped()  # before the token is taken
