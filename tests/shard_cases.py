"""What one of several processes computes for tests/guidance/test_shard.py; it prints its results as one JSON object.

    MLX_RANK=… MLX_HOSTFILE=… python tests/shard_cases.py FOLDER

Every case is a family of models and a way to divide them. Without MLX_RANK it is the reference: the same models in one
process. A process that is not rank 0 computes a part of the cases again with noise on its logits. tests/shard_table.py
runs all cases, with SmolLM2.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

import parm_mlx
from parm_mlx.distributed import Group, join
from parm_mlx.errors import ParmError
from parm_mlx.guidance.chat import Conversation
from parm_mlx.guidance.generate import generate_batch, stream
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load
from parm_mlx.guidance.prompts import Prompter
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shard import How, Shard
from parm_mlx.guidance.speculation import Drafting
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM
from parm_mlx.pblora import PBLoRAConfig, attach
from parm_mlx.pblora.adapter import adapted_layers, adapter_tensors, save_adapter

COMMON: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "ministral3": {
        "rope_parameters": {
            "rope_theta": 10000.0,
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 4096,
        },
        "layer_types": ["full_attention"] * 4,
        "sliding_window": None,
    },
    "gemma": {},
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HOWS: tuple[How, ...] = ("tensor", "pipeline", "apart")
ALPHAS = ((1.0, 0.0), (0.5, 0.5), None, (0.0, 1.0))
_NAMES = ("llama two", "llama shared", "llama one-pass", "qwen2 shared", "qwen3 two", "ministral3 two", "gemma two")
CASES: dict[int, list[str]] = {  # of the test suite, by number of processes; more of them than cores wait long
    2: [
        *(f"{name} tensor" for name in (*_NAMES, "bundled shared")),
        *(
            f"{name} pipeline"
            for name in ("llama two", "llama one-pass", "qwen2 shared", "ministral3 two", "gemma two")
        ),
        *(f"{name} apart" for name in ("llama two", "llama shared", "llama one-pass", "gemma two")),
    ],
    3: ["llama two tensor", "llama two apart"],
    4: ["qwen2 shared pipeline"],
}
QUESTIONS = ("How do I bake bread?", "What helps with walking a dog?", "Tell me about the sea.", "Why?")
TOKENS = 3
NOISY = ("llama two tensor", "llama two apart", "qwen2 shared pipeline")
NOISE = 5.0  # far more than rounding: without the exchange of tokens, processes would go apart


def write_models(folder: Path) -> None:
    """Writes a base, another one and an adapter of each family: random weights, the bundled tokenizer."""
    vocabulary = json.loads((BUNDLED_BASE / "config.json").read_text())["vocab_size"]
    for family, own in FAMILIES.items():
        settings = {"model_type": family, "vocab_size": vocabulary, **COMMON, **own}
        module = importlib.import_module(f"mlx_lm.models.{family}")
        for seed, name in enumerate(("base", "other")):
            mx.random.seed(seed)
            model = module.Model(module.ModelArgs.from_dict(settings))
            model.update(tree_map(lambda x: x + 0.1 * mx.random.normal(x.shape), model.parameters()))
            path = folder / family / name
            path.mkdir(parents=True)
            for file in BUNDLED_BASE.iterdir():
                if file.suffix != ".safetensors" and file.name != "config.json":
                    shutil.copy(file, path)
            (path / "config.json").write_text(json.dumps(settings))
            mx.save_safetensors(str(path / "model.safetensors"), dict(tree_flatten(model.parameters())))
        config = PBLoRAConfig(objectives=("warmth", "focus"), target_modules=TARGETS, base_model=str(path))
        attach(model, config)
        for layer in adapted_layers(model).values():
            for key in layer.tensors:
                layer[key] = 0.3 * mx.random.normal(layer[key].shape)
        (folder / family / "parm").mkdir()
        save_adapter(folder / family / "parm", config, adapter_tensors(model))


def cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The names and the arguments of ``load`` of every pair of models."""
    for family in FAMILIES:
        paths = {name: folder / family / name for name in ("base", "other", "parm")}
        yield f"{family} two", {"model": paths["other"], "parm": paths["parm"], "guide_model": paths["base"]}
        if family in ("llama", "qwen2"):
            shared = {"model": paths["base"], "parm": paths["parm"], "guide_model": paths["base"]}
            yield f"{family} shared", shared
            if family == "llama":
                yield f"{family} one-pass", {**shared, "guidance": "one-pass"}
                yield f"{family} twice", {**shared, "share": "off"}
    yield "bundled shared", {"model": BUNDLED_BASE, "parm": BUNDLED_PARM}
    yield "bundled two", {"model": BUNDLED_BASE, "parm": BUNDLED_PARM, "share": "off"}
    yield "smollm2 shared", {"model": "smollm2", "parm": "smollm2"}
    yield "smollm2 two", {"model": "smollm2", "parm": "smollm2", "share": "off"}


def noisy(part: Any) -> None:
    """Adds noise to the logits of a model, in place."""
    kind = type(part)

    def call(self: Any, *args: Any, **kwargs: Any) -> mx.array:
        logits: mx.array = kind.__call__(self, *args, **kwargs)
        return logits + NOISE * mx.random.normal(logits.shape)

    part.__class__ = type("Noisy", (kind,), {"__call__": call})


def results(model: GuidedModel, tokenizer: Any, drafts: bool, batches_only: bool = False) -> dict[str, Any]:
    """Tokens and texts of answers given in a batch, sampled, one by one, with drafts, and in a conversation."""
    prompter = Prompter(tokenizer, tokenizer, guide_template=model.guide.chat_template, limit=model.context_length)
    prompts = [prompter(question) for question in QUESTIONS]

    def answers(sampling: Sampling, count: int, **how: Any) -> list[list[int]]:
        pairs = zip(prompts, ALPHAS, strict=True)
        requests = [Request(prompt, alpha, sampling, i) for i, (prompt, alpha) in enumerate(pairs)][:count]
        found = generate_batch(model, tokenizer, requests, TOKENS, **how)
        return [answer.tokens for answer in sorted(found, key=lambda answer: answer.index)]

    sampled = Sampling(temp=0.9, top_p=0.95, seed=5)
    if batches_only:
        return {"batch": answers(Sampling(), 2)}
    found: dict[str, Any] = {"batch": answers(Sampling(), 4), "sampled": answers(sampled, 4)}
    request = Request(prompts[0], ALPHAS[0], sampled)
    found["step"] = "".join(piece.text for piece in stream(model, tokenizer, request, TOKENS))
    if drafts:
        how = [Drafting(None, 4, by_guide=by_guide) for by_guide in (True, False)]
        found["drafts"] = [answers(sampling, 2, drafting=each) for each in how for sampling in (Sampling(), sampled)]
    conversation = Conversation(model, tokenizer, prompter, (0.5, 0.5))
    chat = []
    for alpha, question in zip(ALPHAS[1:], QUESTIONS[1:], strict=True):
        conversation.alpha = alpha
        chat.append("".join(piece.text for piece in conversation.ask(question, sampled, TOKENS)))
    return found | {"chat": chat}


def every_case(group: Group, folder: Path, whole: bool = False) -> dict[str, Any]:
    """The results of the suite's cases for so many processes, by name, of one process those of two; or of all cases."""
    found: dict[str, Any] = {}
    wanted = CASES.get(group.size) or [f"{name} alone" for name in (*_NAMES, "bundled shared")]
    for name, arguments in cases(folder):
        for how in HOWS if group.size > 1 else ("alone",):
            if whole or f"{name} {how}" in wanted:
                found[f"{name} {how}"] = run(group, name, arguments, how, whole)
    return found


def run(group: Group, name: str, arguments: dict[str, Any], how: Any, whole: bool = False) -> dict[str, Any]:
    """The results of one case, without and with noise; or how it is refused.

    Args:
        group: The processes.
        name: Of the case.
        arguments: Of ``load``.
        how: The way to divide, or ``"alone"``.
        whole: Whether drafts are tried with all models, and all parts by more processes than two.
    """
    try:
        shard = Shard(group, how) if group.size > 1 else None
        model, tokenizer = load(**arguments, shard=shard)
    except ParmError as error:
        return {"refused": str(error)}
    drafts = how != "apart" and name in ("llama two", "qwen2 shared") and group.size < 3
    if whole:
        drafts = how != "apart" and not name.endswith("one-pass")
    found = results(model, tokenizer, drafts, group.size > 2 and not whole)
    if f"{name} {how}" in NOISY and group.size == 2:
        if not group.main:
            noisy(model)
            if how == "apart":
                noisy(model.guide)
        found = {"tokens": found, "noisy": results(model, tokenizer, drafts)}
    return found if "tokens" in found else {"tokens": found}


if __name__ == "__main__":
    assert parm_mlx
    print(json.dumps(every_case(join(), Path(sys.argv[1]), sys.argv[2:] == ["whole"])))
