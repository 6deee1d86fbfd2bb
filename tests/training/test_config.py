from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from parm_mlx.errors import ConfigError
from parm_mlx.training.config import TrainConfig

NEEDED = {"model": "m", "data": "d", "out": "o"}


def make(**values: Any) -> TrainConfig:
    return TrainConfig(**(NEEDED | values))


def test_defaults_are_the_papers() -> None:
    config = make()
    assert (config.r1, config.r2, config.lora_alpha, config.dropout) == (4, 4, 8.0, 0.05)
    assert (config.learning_rate, config.weight_decay, config.warmup) == (None, 0.05, 20)
    assert (config.betas(2), config.dirichlet, config.epochs) == ((0.01, 0.01), 0.5, 2.0)


def test_text_is_read_as_what_it_means() -> None:
    """PyYAML reads 5e-4 (no dot) as text, and a command line gives nothing but text."""
    config = make(learning_rate="5e-4", iters="20", beta_objective="0.1, 0.2", objectives="a,b", target_modules=["x"])
    assert (config.learning_rate, config.iters, config.beta_objective) == (5e-4, 20, (0.1, 0.2))
    assert (config.objectives, config.target_modules) == (("a", "b"), ("x",))
    assert make(learning_rate="auto").learning_rate is None


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": ""}, "model is missing"),
        ({"out": None}, "out is missing"),
        ({"iters": 0}, "iters must be a whole number from 1 to 1000000000, got 0"),
        ({"iters": 2.5}, "iters must be a whole number"),
        ({"batch_size": "many"}, "batch_size must be a whole number from 1 to 4096, got 'many'"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number from 1e-12 to 1000, got nan"),
        ({"learning_rate": 0}, "learning_rate must be a number from"),
        ({"learning_rate": 1e-300}, "learning_rate must be a number from"),
        ({"learning_rate": "1e300"}, "learning_rate must be a number from"),
        ({"weight_decay": float("inf")}, "weight_decay must be a number from 0 to 1000, got inf"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a number from 1e-06 to 1e+06, got 1000"),
        ({"r1": 10**6}, "r1 must be a whole number from 0 to 65536, got 1000000"),
        ({"batch_size": 1000, "grad_accumulation_steps": 100}, "must be at most 65536, got 100000"),
        ({"seed": 2**64}, "seed must be a whole number from 0 to 18446744073709551615, got 18446744073709551616"),
        ({"epochs": -1}, "epochs must be a number from"),
        ({"dropout": 1.0}, "dropout must be a number from 0 up to but below 1, got 1.0"),
        ({"val_batches": -2}, "val_batches must be a whole number from -1 to"),
        ({"max_seq_length": 1}, "max_seq_length must be a whole number from 2 to"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"r2": 0}, "r2 must be a whole number from 1"),
        ({"dirichlet": 0}, "dirichlet must be a number from"),
        ({"beta_objective": "0.1,0"}, "beta_objective must be a number from"),
        ({"beta_objective": []}, "beta_objective must hold one value or more"),
        ({"alpha_per": "step"}, "alpha_per must be 'example' or 'batch'"),
        ({"scalarization": "max"}, "scalarization must be 'linear' or 'tchebycheff'"),
        ({"smoothing": 0}, "smoothing must be a number from"),
        ({"save": "best", "val_batches": 0}, "save is 'best', but val_batches is 0"),
        ({"nll_weight": -1}, "nll_weight must be a number from 0"),
        (
            {"adapter": "lora", "w2_learning_rate": 1e-3},
            "w2_learning_rate is for adapter 'pblora' or 'moslora', and that is 'lora'",
        ),
        ({"smoothing": 0.1}, "smoothing is for scalarization 'tchebycheff', and that is 'linear'"),
        ({"scalarization": "tchebycheff", "alpha_per": "example"}, "one alpha per step, but alpha_per is 'example'"),
        ({"objectives": "a,a"}, "objective 'a' is named twice"),
        ({"target_modules": "q_proj,"}, "target_modules must hold one value or more"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**values)
    assert reason in str(caught.value)


def test_seeds_are_taken_digit_for_digit() -> None:
    assert [make(seed=seed).seed for seed in (2**53 + 1, str(2**64 - 1))] == [2**53 + 1, 2**64 - 1]


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data is missing; .*warmup .*; dropout"):
        make(data="", warmup=-1, dropout=2)


def test_every_setting_is_read() -> None:
    config = make()
    assert all(getattr(config, setting.name) is not None or setting.default is None for setting in fields(config))


def test_what_the_scalarization_decides() -> None:
    assert (make().scalarization, make().alpha_per, make().smoothing) == ("linear", "example", None)
    smooth = make(scalarization="tchebycheff")
    assert (smooth.alpha_per, smooth.smoothing) == ("batch", 0.1)
    assert make(scalarization="tchebycheff", smoothing="0.5", alpha_per="batch").smoothing == 0.5


def test_steps() -> None:
    assert make(iters=7).steps(100) == 7
    assert make(epochs=1.5, batch_size=4).steps(10) == 4  # 15 pairs in batches of 4
    assert make(epochs=0.01).steps(1) == 1


def test_one_beta_serves_all_objectives() -> None:
    assert make(beta_objective=0.5).betas(3) == (0.5, 0.5, 0.5)
    with pytest.raises(ConfigError, match="beta_objective has 2 numbers, not 1 or 3"):
        make(beta_objective=[0.1, 0.2]).betas(3)


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "train.yaml"
    lines = ["model: m", "data: d", "out: o", "batch-size: 4", "learning_rate: 1e-4", "iters: 50", "objectives: [a, b]"]
    path.write_text("\n".join([*lines, "seed:"]))
    return path


def test_flags_override_the_file(yaml_file: Path) -> None:
    config = TrainConfig.from_sources(yaml_file, {"out": "other", "batch_size": 2})
    assert (config.out, config.batch_size, config.learning_rate) == ("other", 2, 1e-4)
    assert (config.iters, config.objectives, config.seed) == (50, ("a", "b"), 0)


def test_epochs_on_the_command_line_take_the_place_of_iters_in_the_file(yaml_file: Path) -> None:
    config = TrainConfig.from_sources(yaml_file, {"epochs": 1.0})
    assert (config.iters, config.epochs) == (None, 1.0)
    with pytest.raises(ConfigError, match="iters and epochs are both given"):
        TrainConfig.from_sources(None, {"iters": 1, "epochs": 1.0})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("learnig_rate: 1\nfoo: 2\n", "unknown setting(s) 'learnig_rate' (did you mean 'learning_rate'?), 'foo'"),
        ("- a\n", "must hold 'name: value' lines"),
        ("a: [1\nb: 2\n", "is not valid YAML, line 2"),
        ("seed: 2024-13-45\n", "is not valid YAML"),
        ("iters: 1\nepochs: 1\n", "iters and epochs are both given"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_sources(path, NEEDED)
    assert reason in str(caught.value)
    assert "train.yaml" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is missing"):
        TrainConfig.from_sources(tmp_path / "nothing.yaml", NEEDED)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        TrainConfig.from_sources(tmp_path / "latin.yaml", NEEDED)
    (tmp_path / "empty.yaml").touch()
    assert TrainConfig.from_sources(tmp_path / "empty.yaml", NEEDED) == make()
