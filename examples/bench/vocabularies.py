"""What guidance across vocabularies leaves out at its defaults, and what it costs.

    python examples/bench/vocabularies.py --model smollm2 --parm bundled
    python examples/bench/vocabularies.py --model bundled --parm smollm2 --beta 1,0.3
    python examples/bench/vocabularies.py --model bundled --parm smollm2 --texts 0

Twenty texts that are hard for tokenizers (emoji, code, Chinese, Arabic, digits, spaces, control tokens as text) are
read token by token, each as the beginning of an answer. At every token the guided distribution is compared with that of
a search of ten times the rows (four times as many, two and a half times as often), twice the candidates and a tenth of
the tolerance. The table has the mean and the largest total variation, ½ Σ |p − q|, by text; the line after it the
passes and rows of the guide, and the time, for each token of these texts.

The last line is about answers as they are generated, greedily, to three questions: the time of a token, of a pass of
the base and of one of the guide, in turns, and of bookkeeping, which is what is left of a token without refinement when
neither model computes. The first answer is not counted: tables are made once for every way in which a text cuts tokens.
"""

import argparse
import json
import time
from statistics import fmean
from typing import Any

import parm_mlx  # loads OpenBLAS, so it must come before MLX
from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.refinement import AcrossCount, Refinement
from parm_mlx.machine import describe_machine, keep_freed_memory
from parm_mlx.mlxlm import make_prompt_cache

import mlx.core as mx  # isort: skip

TEXTS = {
    "prose": "When I was young, my grandmother kept a garden behind the house, and every summer we picked beans there.",
    "advice": "Take a deep breath. You've got this! First write down what worries you, then choose one small step.",
    "code": "def mean(xs):\n    total = 0\n    for x in xs:\n        total += x\n    return total / max(len(xs), 1)\n",
    "C": "for (int i = 0; i < n; ++i) {\n\tif (a[i] != b[i]) return -1;  /* differs */\n}\n",
    "JSON": '{"name": "beta", "values": [1.25, -3e-4, null], "nested": {"ok": true}}',
    "addresses": "See https://example.org/a/b?c=1&d=%20x#top or write to someone@example.org (10.0.0.1:8080).",
    "digits": "3.14159265358979 and 1,000,000,007 and 2024-02-29T23:59:60Z",
    "sums": "17 × 23 = 391; 1/7 ≈ 0.142857; √2 ≈ 1.41421; 2^10 = 1024.",
    "spaces": "one  two   three    four\n\n\n     five\t\tsix          seven",
    "emoji": "Great job! 🎉🎉 👩‍🚀 You did it 😀😅 🇩🇪 🏳️‍🌈 see you soon 👋🏽",
    "Chinese": "今天天气很好，我们一起去公园散步吧。明天也许会下雨。",
    "Japanese": "昨日は友達と映画を見ました。とても面白かったです。",
    "Arabic": "مرحبا، كيف حالك اليوم؟ أتمنى لك يوما سعيدا.",
    "Hindi": "नमस्ते, आप कैसे हैं? आज मौसम अच्छा है।",
    "Russian": "Сегодня хорошая погода, и мы пойдём гулять в парк.",
    "Spanish": "¿Qué tal? Mañana iré al mercado a comprar piñas, jamón y un poco de queso manchego.",
    "German": "Die Straßenbahnhaltestelle liegt gegenüber der Fußgängerzone; überprüfen Sie bitte Größe und Maß.",
    "control": "The token <|im_start|> begins a message and <|im_end|> ends it; </s> and <|endoftext|> are text here.",
    "shouting": "WHY IS EVERYTHING IN CAPITALS? tHiS iS wOrSe. ReAlLy!!! ...hmm???",
    "table": "| name | size |\n|------|-----:|\n| a    |  1.0 |\n| bb   | 22.5 |\n",
}


def tokens_of(model: AcrossModel, prompt: list[int], answer: list[int]) -> tuple[list[mx.array], list[float]]:
    """The log-probabilities (V,) before each token of an answer, and the seconds that each took."""
    cache = model.make_cache()
    if len(prompt) > 1:
        mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    found, seconds = [], []
    for token in [prompt[-1], *answer[:-1]]:
        start = time.perf_counter()
        logits = model(mx.array([[token]]), cache=cache)[0, -1]
        logits = logits - mx.logsumexp(logits)
        mx.eval(logits)
        seconds.append(time.perf_counter() - start)
        found.append(logits)
    return found, seconds


class Timed:
    """A model whose results are there when it returns, and the seconds that it has taken."""

    def __init__(self, model: Any) -> None:
        self.model, self.seconds = model, 0.0

    def __call__(self, *inputs: Any, **named: Any) -> mx.array:
        """What the model gives."""
        start = time.perf_counter()
        found: mx.array = self.model(*inputs, **named)
        mx.eval(found)
        self.seconds += time.perf_counter() - start
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def answered(model: Any, prompt: list[int], tokens: int) -> dict[str, list[float]]:
    """The seconds of each token of a greedy answer, and of what it is made of."""
    guide = model.guide
    base, inner = model.base, guide.guide
    cache, alone = model.make_cache(), (make_prompt_cache(base), inner.make_cache())
    mx.eval(model(mx.array([prompt[:-1]]), cache=cache))
    for part, own in zip((base, inner), alone, strict=True):
        mx.eval(part(mx.array([[ANY] * len(prompt)]), cache=own))
    answer, seconds = [prompt[-1]], {name: [] for name in ("token", "base", "guide", "bookkeeping")}
    for _ in range(tokens):
        symbol = mx.array([answer[-1:]])
        start = time.perf_counter()
        answer.append(int(model(symbol, cache=cache)[0, -1].argmax().item()))
        seconds["token"].append(time.perf_counter() - start)
        for name, part, own in zip(("base", "guide"), (base, inner), alone, strict=True):
            start = time.perf_counter()
            mx.eval(part(mx.array([[ANY]]), cache=own))
            seconds[name].append(time.perf_counter() - start)
    seconds["bookkeeping"] = bookkeeping(model, prompt[:-1], answer[:-1])
    return seconds


def bookkeeping(model: Any, prompt: list[int], answer: list[int]) -> list[float]:
    """The seconds of each token, without refinement, in which neither model computes."""
    guide = model.guide
    base, inner, how, count = model.base, guide.guide, guide._how, guide.count
    models = model.base, guide.guide = Timed(base), Timed(inner)
    guide._how, guide.count = Refinement(rounds=0), AcrossCount()
    cache = model.make_cache()
    mx.eval(model(mx.array([prompt]), cache=cache))
    seconds = []
    for token in answer:
        for each in models:
            each.seconds = 0.0
        start = time.perf_counter()
        mx.eval(model(mx.array([[token]]), cache=cache))
        seconds.append(time.perf_counter() - start - sum(each.seconds for each in models))
    model.base, guide.guide, guide._how, guide.count = base, inner, how, count
    return seconds


def measured(options: argparse.Namespace, beta: float) -> dict[str, Any]:
    """Everything at one β."""
    default = Refinement(
        **{name: value for name, value in vars(options).items() if value is not None and name in KNOBS}
    )
    rounds = 5 * default.rounds // 2
    larger = Refinement(2 * default.candidates, 4 * default.rows, rounds, default.tolerance / 10, default.share / 10)
    model, tokenizer = parm_mlx.load(options.model, options.parm, alpha=options.alpha, beta=beta)
    assert isinstance(model, AcrossModel), "these models have the same tokens"
    assert isinstance(model.guide, AcrossGuide), "these models have the same tokens under other ids"
    guide = model.guide
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Go on."}], **PROMPTED)
    rows, counts, times = {}, AcrossCount(), []
    for name, text in list(TEXTS.items())[: options.texts]:
        answer = tokenizer.encode(text, add_special_tokens=False)[: options.tokens]
        guide._how, guide.count = default, counts
        ours, seconds = tokens_of(model, prompt, answer)
        guide._how, guide.count = larger, AcrossCount()
        theirs, _ = tokens_of(model, prompt, answer)
        variation = [float(0.5 * mx.abs(mx.exp(p) - mx.exp(q)).sum()) for p, q in zip(ours, theirs, strict=True)]
        rows[name] = {"tokens": len(answer), "mean": fmean(variation), "most": max(variation)}
        times += seconds
        print(f"β {beta}  {name:10} {rows[name]['mean']:.4f} {rows[name]['most']:.3f}", flush=True)
    found: dict[str, Any] = {"beta": beta, "texts": rows}
    if rows:
        every = sum(row["tokens"] for row in rows.values())
        found["mean"] = sum(row["mean"] * row["tokens"] for row in rows.values()) / every
        found |= {"ms_per_token": 1000 * fmean(times), **counts.summary()}
    guide._how, guide.count = default, AcrossCount()
    answers = [
        answered(model, tokenizer.apply_chat_template([{"role": "user", "content": question}], **PROMPTED), ANSWERED)
        for question in QUESTIONS
    ]
    each = {name: [s for answer in answers[1:] for s in answer[name]] for name in answers[0]}
    cost = {name: 1000 * fmean(seconds) for name, seconds in each.items()}
    return found | {"answers_ms": cost, "of_both_passes": cost["token"] / (cost["base"] + cost["guide"])}


QUESTIONS = ["How do I bake bread?", "How do I cook rice?", "What should I do when I am sad?"]
ANSWERED = 40  # tokens of an answer
ANY = 1  # a token that both models have: what it is makes no difference to the time
PROMPTED = {"add_generation_prompt": True}
KNOBS = ("candidates", "rows", "rounds", "tolerance", "share")


def main() -> None:
    """Prints a line for each text, then what holds for all, or all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--parm", default="bundled")
    parser.add_argument("--alpha", default=None)
    parser.add_argument("--beta", default="1")
    parser.add_argument("--tokens", type=int, default=40, help="most tokens of a text")
    parser.add_argument("--texts", type=int, default=len(TEXTS), help="how many of them are read")
    for name in KNOBS:
        parser.add_argument(f"--{name}", type=float if name in ("tolerance", "share") else int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    found = [measured(options, float(beta)) for beta in options.beta.split(",")]
    if options.json:
        print(json.dumps({"machine": describe_machine(), "found": found}, indent=2))
    for each in found:
        if each["texts"]:
            print(
                f"β {each['beta']}: mean total variation {each['mean']:.4f}; for each token "
                f"{each['across_passes_per_token']:.2f} passes and {each['across_rows_per_token']:.2f} rows of the "
                f"guide, {each['ms_per_token']:.0f} ms"
            )
        cost = each["answers_ms"]
        print(
            f"answers: {cost['token']:.1f} ms a token, {each['of_both_passes']:.2f} times a pass of the base "
            f"({cost['base']:.1f}) and one of the guide ({cost['guide']:.1f}); bookkeeping {cost['bookkeeping']:.1f} ms"
        )


if __name__ == "__main__":
    main()
