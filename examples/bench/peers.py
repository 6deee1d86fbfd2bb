"""Speed of guided decoding beside the official formula in PyTorch, and beside mlx-lm without guidance.

    make bench-peers
    .venv-bench/bin/python examples/bench/peers.py --json --rounds 9

The same random weights everywhere, in base and guide alike: Llamas of hidden size 512 with 8 layers, vocabulary 8,000,
float32, PBLoRA r1 = r2 = 4 on q, k, v. official.py is the peer; it runs in a process of its own, so that no library
disturbs the other, and works only in its turns. "base" is mlx-lm's generation without guidance. First the tokens are
compared, then all take turns of a few tokens; times of other tokens are not worth comparing and end with exit code 1.

The sweep answers 4 prompts at 11 preferences: ours in one batch, the peer one α and one prompt after the other, as its
model has one α at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.diagnostics.bench import BASE, GUIDE, GUIDED, SHARED, BatchGeneration, ways
from parm_mlx.diagnostics.plan import Size
from parm_mlx.diagnostics.subjects import GUIDE_SEED, Subjects, random_llama, random_subjects
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.prefill import PrefixCaches
from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shared import weights_differ
from parm_mlx.machine import describe_machine, load_per_core
from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.timing import Generation, time_in_turns

import numpy as np  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

THREADS = 2
REST = 0.05
BUDGETS = {GUIDED: 1.1, SHARED: 2.0, "sweep": 10.0}
PROMPTS = 4
PEER = "official formula"


class Peer:
    """The process of official.py.

    Args:
        process: It, with pipes to its stdin and from its stdout.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def ask(self, command: dict[str, Any]) -> list[int]:
        """Sends a command, and waits for the tokens that answer it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("error: official.py ended early; its message is above")
        tokens: list[int] = json.loads(answer)["tokens"]
        return tokens


class PeerRun(Generation):
    """A generation of the peer, which has one at a time."""

    def __init__(self, peer: Peer, prompt: Sequence[int], alpha: Alpha) -> None:
        self._peer = peer
        self.sequences: list[list[int]] = [[]]
        peer.ask({"prompt": list(prompt), "alpha": list(alpha)})

    def read(self) -> None:
        """Reads the prompt, up to the first token."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes so many tokens."""
        self.sequences[0] += self._peer.ask({"decode": steps})
        return steps

    def close(self) -> None:
        """There is nothing to end."""


def on_the_same_weights(size: Size) -> Subjects:
    """Base and guide with equal weights in arrays of their own, so that two models, shared and peer choose alike."""
    subjects = random_subjects(size)
    base = random_llama(size, GUIDE_SEED)
    if difference := weights_differ(base, subjects.guided.guide.model):
        raise SystemExit(f"error: the base is not the guide's backbone: {difference}")
    return replace(subjects, guided=GuidedModel(base, subjects.guided.guide))


@contextmanager
def peer_of(subjects: Subjects, size: Size) -> Iterator[Peer]:
    """Starts the peer with the weights of our models."""
    guided = subjects.guided
    arguments = guided.base.args
    config = {
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "intermediate_size": arguments.intermediate_size,
        "num_attention_heads": arguments.num_attention_heads,
        "num_key_value_heads": arguments.num_key_value_heads,
        "rms_norm_eps": arguments.rms_norm_eps,
        "rope_theta": arguments.rope_theta,
        "vocab_size": size.vocabulary,
        "tie_word_embeddings": False,
        "scale": guided.guide.config.scale,
    }
    models = {"base": guided.base, "guide": guided.guide.model}
    named = ((part, *pair) for part, model in models.items() for pair in tree_flatten(model.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        weights, settings = Path(folder) / "weights.npz", Path(folder) / "config.json"
        np.savez(weights, **{f"{part}.{name}": np.array(value) for part, name, value in named})
        settings.write_text(json.dumps(config), encoding="utf-8")
        script = Path(__file__).parent / "official.py"
        command = [sys.executable, "-W", "ignore", str(script), str(weights), str(settings), str(THREADS)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            yield Peer(process)


def same_tokens(starts: dict[str, Callable[[], Generation]], tokens: int) -> dict[str, bool]:
    """Whether each generation chooses the tokens of the peer."""
    chosen = {}
    for name, start in starts.items():
        run = start()
        run.read()
        run.decode(tokens - 1)
        chosen[name] = run.sequences
        run.close()
    return {name: sequences == chosen[PEER] for name, sequences in chosen.items()}


def decode(subjects: Subjects, peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """Ms per token of each way, of the peer, and the ratios to the peer in each round."""
    prompts, alphas = subjects.prompts(1, options.prompt), subjects.alphas(1)
    compared = (BASE, GUIDE, GUIDED, SHARED)
    starts: dict[str, Callable[[], Generation]] = {
        name: partial(ways(subjects)[name][1], prompts, alphas) for name in compared
    }
    starts[PEER] = partial(PeerRun, peer, prompts[0], alphas[0])
    same = same_tokens({name: start for name, start in starts.items() if name not in (BASE, GUIDE)}, options.tokens)
    times: dict[str, list[float]] = {name: [] for name in starts}
    for _ in counted(options.rounds, "round"):
        samples = time_in_turns(starts, options.tokens, lambda: False, rest=REST)
        assert samples is not None
        for name, sample in samples.items():
            times[name].append(sample.decode / sample.tokens)
    return {
        name: {
            "ms_per_token": round(1000 * median(values), 3),
            "ms_per_token_spread": [round(1000 * bound, 3) for bound in (min(values), max(values))],
            "of_peer": round(median(p / v for p, v in zip(times[PEER], values, strict=True)), 3),
            "same_tokens": same.get(name),
            "budget": BUDGETS.get(name),
        }
        for name, values in times.items()
    }


def sweep(subjects: Subjects, peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for every prompt at every α: ours at once, thrice, before, amid and after the peer's one by one."""
    prompts, alphas = subjects.prompts(PROMPTS, options.prompt), simplex_grid(2, 0.1)
    pairs = [(prompt, alpha) for alpha in alphas for prompt in prompts]
    model = subjects.shared
    assert model is not None

    def ours() -> tuple[float, list[list[int]]]:
        began = time.perf_counter()
        requests = [Request(PromptTokens(prompt, prompt), alpha, Sampling()) for prompt, alpha in pairs]
        unread, caches = zip(*PrefixCaches(model, requests)(requests), strict=True)
        run = BatchGeneration(model, unread, list(caches))
        run.read()
        decoded = run.decode(options.sweep_tokens - 1)
        seconds = time.perf_counter() - began
        assert decoded == len(pairs) * (options.sweep_tokens - 1), "every answer is generated"
        run.close()
        return seconds, run.sequences

    def theirs(part: Sequence[tuple[list[int], Alpha]]) -> tuple[float, list[list[int]]]:
        began, sequences = time.perf_counter(), []
        for prompt, alpha in part:
            run = PeerRun(peer, prompt, alpha)
            run.decode(options.sweep_tokens)
            sequences += run.sequences
        return time.perf_counter() - began, sequences

    half = len(pairs) // 2
    parts = [ours(), theirs(pairs[:half]), ours(), theirs(pairs[half:]), ours()]
    own, other = [seconds for seconds, _ in parts[::2]], parts[1][0] + parts[3][0]
    chosen, expected = parts[0][1], parts[1][1] + parts[3][1]
    return {
        "answers": len(pairs),
        "tokens": options.sweep_tokens,
        "seconds": round(median(own), 2),
        "seconds_spread": [round(min(own), 2), round(max(own), 2)],
        "peer_seconds": round(other, 2),
        "of_peer": round(other / median(own), 2),
        "same_answers": sum(a == b for a, b in zip(chosen, expected, strict=True)),
        "budget": BUDGETS["sweep"],
    }


def counted(rounds: int, what: str) -> Iterator[int]:
    """Counts on stderr."""
    for number in range(1, rounds + 1):
        print(f"{what} {number} of {rounds}", file=sys.stderr)
        yield number


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Guided decoding beside the official formula in PyTorch.")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--prompt", type=int, default=64, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=64, help="decoded tokens in a round")
    parser.add_argument("--sweep-tokens", type=int, default=64, help="decoded tokens of each answer of the sweep")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    size = Size(options.hidden, options.layers, options.vocabulary)
    subjects, load = on_the_same_weights(size), load_per_core()
    with peer_of(subjects, size) as peer:
        rows, swept = decode(subjects, peer, options), sweep(subjects, peer, options)
    machine = (
        f"{describe_machine('torch', 'transformers')}, torch on {THREADS} threads, load per core before {load:.2f}"
    )
    others = [name for name, row in rows.items() if row["same_tokens"] is False]
    if options.json:
        print(json.dumps({"settings": vars(options), "decode": rows, "sweep": swept, "machine": machine}))
    else:
        show(rows, swept)
        print(machine, file=sys.stderr)
    if others or swept["same_answers"] < swept["answers"]:
        sys.exit(f"error: other tokens than the peer's: {', '.join(others) or 'in the sweep'}; times do not compare")


def show(rows: dict[str, Any], swept: dict[str, Any]) -> None:
    """Prints the figures."""
    for name, row in rows.items():
        low, high = row["ms_per_token_spread"]
        same = {None: "", True: "  the same tokens", False: "  OTHER TOKENS"}[row["same_tokens"]]
        budget = f" (budget {row['budget']})" if row["budget"] else ""
        print(
            f"{name:<17}{row['ms_per_token']:8.2f} ms/token [{low:.2f} – {high:.2f}]  "
            f"{row['of_peer']:.2f} times the speed of the {PEER}{budget}{same}"
        )
    low, high = swept["seconds_spread"]
    print(
        f"{swept['answers']} answers of {swept['tokens']} tokens: {swept['seconds']:.1f} s [{low:.1f} – {high:.1f}] in "
        f"one batch, {swept['peer_seconds']:.1f} s one by one: {swept['of_peer']:.1f} times (budget "
        f"{swept['budget']:g}); {swept['same_answers']} answers are the same"
    )


if __name__ == "__main__":
    main()
