"""A GGUF file converted by parm-mlx beside llama.cpp itself: token ids, greedy answers, probabilities, every number.

    .venv/bin/python examples/bench/llama_cpp.py SmolLM2-135M-Instruct.Q4_1.gguf

llama.cpp (the package xllamacpp) is installed into .venv-llama on first use and works in a process of its own. It
answers twice: with the file as it is, and with its numbers in float32, where it does not round activations to 8 bits.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize
from numpy.typing import NDArray

import parm_mlx  # noqa: F401  (loads OpenBLAS, so it must come before MLX)
from parm_mlx.convert.gguf import unpack
from parm_mlx.mlxlm import load_weights_and_tokenizer, make_prompt_cache

VENV = Path(__file__).parents[2] / ".venv-llama"
PACKAGE = "xllamacpp==2026.10.11549"
QUESTIONS = ("What is the capital of France?", "Name three fruits.", "How do I bake bread?")
TOKENS, LIKELIEST = 24, 10
TEXTS = """Hello, world! It's 2024; we've 12,345.67 € & 3½ cups — "don't" they'll I'M YOU'RE
  leading spaces   and   runs of   spaces\ttabs\t\ttwo
naïve façade Ελληνικά Русский текст 中文字符 日本語テキスト 한국어 العربية עברית हिन्दी ไทย
😀👩‍👩‍👧‍👦🇫🇷 e\u0301 combining é ﬁ ligature ½ ² Ⅷ ٣٤٥
<|im_start|>user, a token<|im_end|> <|endoftext|>
def f(x):\n    return x**2  # code 0x1F4A9 1e-10\n\n
end ... --- === >>> <<< /*-+*/ \\\\ \\n http://example.com/a?b=c&d=e#f user@mail.org
ZWJ\u200dZWNJ\u200c nbsp\u00a0thin\u2009ideographic\u3000space
0 00 000 0000 00000 1 12 123 1234 12345 1234567890
'quoted' ''double'' 's 'S 'LL 're 'RE n't
a\r\nb\r\n"""

LLAMA = f"""
import json, os, sys, urllib.request
import xllamacpp as x

def post(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {{"Content-Type": "application/json"}})
    return json.load(urllib.request.urlopen(request))

parameters = x.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.warmup = 1024, 1, False
parameters.cache_type_k = parameters.cache_type_v = x.ggml_type.GGML_TYPE_F32
server = x.Server(parameters)
url = server.listening_address
STEPS = "completion_probabilities"
asked = json.load(open(sys.argv[2]))
cut = {{"add_special": True, "parse_special": True}}
ids = [post("/tokenize", {{"content": text, **cut}})["tokens"] for text in asked["texts"]]
how = {{"n_predict": {TOKENS}, "temperature": 0, "n_probs": {LIKELIEST}, "cache_prompt": False}}
answers = [post("/completion", {{"prompt": prompt, **how}}) for prompt in asked["prompts"]]
steps = [
    [[step["id"], [[top["id"], top["logprob"]] for top in step["top_logprobs"]]] for step in answer[STEPS]]
    for answer in answers
]
json.dump({{"ids": ids, "answers": steps}}, open(sys.argv[3], "w"))
os._exit(0)
"""


def llama_cpp(file: Path, asked: Path, folder: Path) -> dict[str, Any]:
    """Ids of the texts, and for each prompt the steps of an answer: token, ids and log-probabilities."""
    python = VENV / "bin" / "python"
    if not python.exists():
        print(f"installing {PACKAGE} into {VENV.name}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    done = subprocess.run([python, "-c", LLAMA, file, asked, folder / "llama.json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"llama.cpp has failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads((folder / "llama.json").read_text())
    return result


def in_float32(file: Path, out: Path) -> None:
    """Writes the same file with all numbers in float32."""
    reader = GGUFReader(file)
    writer = GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def numbers(folder: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of a converted model in float32, quantised ones as quant · scale + bias."""
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    found = {}
    for name, array in loaded.items():
        stem, _, kind = name.rpartition(".")
        scales = loaded.get(f"{stem}.scales")
        if kind in ("scales", "biases"):
            continue
        if scales is None:
            found[name] = np.array(array.astype(mx.float32))
            continue
        packed = np.array(array).view(np.uint8)
        four = array.shape[1] * 8 == scales.shape[1] * 32
        quants = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1) if four else packed
        scale, bias = (
            np.repeat(np.array(a.astype(mx.float32)), 32, axis=1) for a in (scales, loaded[f"{stem}.biases"])
        )
        found[name] = quants.astype(np.float32) * scale + bias
    return found


def compare(model: Any, tokenizer: Any, asked: dict[str, Any], theirs: dict[str, Any]) -> tuple[int, int, float]:
    """The numbers of texts with the same ids and of equal answers, and the largest difference of probabilities."""
    same_ids = sum(tokenizer.encode(text) == ids for text, ids in zip(asked["texts"], theirs["ids"], strict=True))
    same_answers, worst = 0, 0.0
    for prompt, steps in zip(asked["prompts"], theirs["answers"], strict=True):
        cache, tokens, agreed = make_prompt_cache(model), tokenizer.encode(prompt), True
        for chosen, likeliest in steps:
            logits = model(mx.array([tokens]), cache=cache)[0, -1].astype(mx.float32)
            probabilities = np.array(mx.softmax(logits))
            agreed &= int(probabilities.argmax()) == chosen
            worst = max(worst, *(abs(float(probabilities[i]) - float(np.exp(logprob))) for i, logprob in likeliest))
            tokens = [chosen]
        same_answers += agreed
    return same_ids, same_answers, worst


def main() -> None:
    """Reads the command line, compares and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file")
    file = parser.parse_args().file
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ours").mkdir()
        (folder / "plain").mkdir()
        unpack(file, folder / "ours")
        in_float32(file, folder / "plain.gguf")
        unpack(folder / "plain.gguf", folder / "plain")
        ours, plain = numbers(folder / "ours"), numbers(folder / "plain")
        same = sum(np.array_equal(ours[tensor], plain[tensor]) for tensor in plain)
        print(f"tensors: {same} of {len(plain)} hold the same numbers as the file in float32")
        model, tokenizer = load_weights_and_tokenizer(folder / "ours")
        chats = ([{"role": "user", "content": question}] for question in QUESTIONS)
        prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
        asked = {"texts": [TEXTS, *TEXTS.split("\n"), "", " ", "\n\n\n"], "prompts": [*prompts, "Once upon a time"]}
        (folder / "asked.json").write_text(json.dumps(asked))
        for what, path in (("float32", folder / "plain.gguf"), ("the file", file)):
            theirs = llama_cpp(path, folder / "asked.json", folder)
            ids, answers, worst = compare(model, tokenizer, asked, theirs)
            count = sum(map(len, theirs["ids"]))
            print(
                f"llama.cpp on {what}: ids of {ids} of {len(asked['texts'])} texts ({count} tokens) and {answers} of "
                f"{len(asked['prompts'])} greedy answers are the same; probabilities differ by {worst:.4f} at most"
            )


if __name__ == "__main__":
    main()
