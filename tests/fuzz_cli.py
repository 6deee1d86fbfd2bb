"""Calls every command with every option, with good and hostile values, and looks at how each call ends.

    python tests/fuzz_cli.py --calls 1000 --seed 0

The calls run in this process, each in an empty folder, on the tiny models of the fixtures and on the bundled pair. A
call may end with exit 0, 1, 2 or 130. A traceback, an error that was not foreseen, any other exit code and a call that
takes longer than a minute are failures. So is a run in which less than 40 % of the calls end with exit 0, or an option
is given less than 3 times.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TOKENIZERS_PARALLELISM": "false"}

from typer.main import get_command

from parm_mlx.cli import console
from parm_mlx.cli.app import app
from parm_mlx.cli.main import run
from parm_mlx.named import BUNDLED_BASE, BUNDLED_PARM

FIXTURES = Path(__file__).parent / "fixtures"
ARM, PEFT = FIXTURES / "official" / "arm_base", FIXTURES / "official" / "parm_k2"
SECONDS = 60
GONE = "!"  # in place of the value of an option that is taken away
CODES = {0, 1, 2, 130}

HOSTILE = [
    *("", " ", ",", "=", "a=", "=1", "nan", "inf", "-inf", "1e400", "-1e400", "9" * 400, "9" * 5000, "-1", "1.5"),
    *("\udcff", "\x1b[31m", "\u202e", "日本", "%s", "{}", "[]", "null", "../..", ".", "./~x", "~nosuchuser/x"),
    *("1e-320", "/dev/null", "x" * 300, "missing", "folder", "bytes.bin", "deep.json", "odd.yaml"),
    *("none:such", "json:dumps", "owner/name"),
]


@dataclass(frozen=True)
class Recipe:
    """How a command is called so that it is quick and ends well. Everything is text with spaces between.

    Attributes:
        command: Its name.
        arguments: What stands first: SOURCE, DATA, runs.
        base: The options of every call; one that is drawn takes its place.
        good: Good values of options, with ``|`` between; switches need none.
        needs: What a drawn option brings along, or takes away: ``!--grid``.
    """

    command: str
    arguments: str = ""
    base: str = ""
    good: str = ""
    needs: dict[str, str] = field(default_factory=dict)


CHOICE = """--temp=0|0.5|100 --top-p=0|0.9|1 --top-k=0|1|2048|2147483647 --min-p=0|0.5|1 --max-tokens=1|4 """
SAMPLING = CHOICE + "--seed=0|7|18446744073709551615 "
MODELS = """--model={base}|bundled --parm={parm}|bundled --guide-model={base} --beta=1|0.5|1e-6|1e6 --share=auto|off
    --guidance=exact|one-pass --across=auto|off --across-candidates=1|100 --across-tolerance=0|0.1|1
    --dequantize=auto|off --kv-bits=4|8 --max-kv-size=16|1000 --enable-thinking=on|off
    --chat-template=hh|plain|alpaca|beaver --system-prompt=Short. --draft-model={base}
    --speculation=auto|guide|base|off --num-draft-tokens=1|4 --shard=tensor|pipeline|apart """
ALPHA = "--alpha=1,0|0.3,0.7|warmth=1|2,2 "
NEEDS = {"--model": "--parm={parm}", "--guide-model": "--parm={parm}", "--num-draft-tokens": "!--speculation"}
NEEDS |= {"--draft-model": "!--speculation"}
NEEDS |= {"--guidance": "!--share !--speculation"}
NEEDS |= {"--max-kv-size": "!--kv-bits !--draft-model !--speculation !--num-draft-tokens"}
LOADED = "--parm={parm} !--hidden !--layers !--vocabulary"
QUANTIZED = "--quantize --q-group-size=32"
TRAIN = "--model={arm} --data={pairs} --iters=1 --batch-size=2 --val-batches=1 --warmup=0 --out="
EVALUATE = "--model=bundled --prompts={prompts} --limit=1 --grid=1 --max-tokens=2 --bootstrap=5 --out="

RECIPES = (
    Recipe(
        "demo",
        "",
        "--model=bundled --prompt=Hi --max-tokens=3 --alpha=1,0",
        "--model=bundled " + ALPHA + "--beta=2 --prompt=Why? --temp=0|0.5 --seed=0|7 --max-tokens=4",
    ),
    Recipe("chat", "", "--model=bundled --max-tokens=3", SAMPLING + MODELS + ALPHA, NEEDS),
    Recipe(
        "generate",
        "",
        "--model=bundled --prompt=Hi --max-tokens=3",
        SAMPLING + MODELS + ALPHA + "--prompt=Why?|- --prompts={prompts}",
        NEEDS | {"--prompts": "!--prompt"},
    ),
    Recipe(  # an address that is not this machine's ends every call before it serves
        "serve",
        "",
        "--model=bundled --host=192.0.2.1 --api-key=k",
        CHOICE
        + ALPHA
        + """--model=bundled --parm=bundled --guide-model={base} --beta=1|2 --share=auto|off --dequantize=auto|off
        --across=auto|off --across-candidates=1|100 --across-tolerance=0|1
        --guidance=exact|one-pass --chat-template=hh|plain --allow-special --steer-thinking --open
        --system-prompt=Short. --enable-thinking=on|off --host=192.0.2.1|192.0.2.2 --port=0|8080|65535 --api-key=k
        --allow-origin=http://localhost:3000 --allow-host=my.mac|* --batch-size=1|64 --max-queue=1|1000
        --prompt-cache-size=0|64 --max-prompt-tokens=16|1000 --timeout=1|600 --stall-timeout=1|600 --log=none|requests
        --name=mine --shard=tensor|pipeline|apart""",
        {},
    ),
    Recipe(
        "evaluate",
        "",
        EVALUATE + "out",
        SAMPLING
        + MODELS
        + """--out=deep/out --prompts={prompts} --limit=1|2 --grid=1|0.5|even --alphas={alphas} --num-samples=1|2
        --bootstrap=1|20 --reward=warmth=warmth --batch-size=1|64 --normalize=none|unguided --reference=-2,-2""",
        NEEDS | {"--alphas": "!--grid", "--num-samples": "--temp=1"},
    ),
    Recipe(
        "evaluate", "--compare {a} {b}", "--out=out --bootstrap=5", "--normalize=none --reference=-3,-3 --bootstrap=1"
    ),
    Recipe(
        "train",
        "",
        TRAIN + "out",
        """--model={arm} --data={pairs} --out=deep/out --config={settings} --start-from={adapter} --iters=1|2
        --epochs=0.1 --batch-size=1|2 --grad-accumulation-steps=1|2 --learning-rate=1e-12|5e-4|auto --warmup=0|5
        --weight-decay=0|1 --max-seq-length=64|1024 --chat-template=hh|plain --objectives=warmth,focus|focus,warmth
        --beta-objective=0.1|0.1,0.2 --nll-weight=0|0.2 --w2-learning-rate=1e-3
        --gamma=0|1 --dirichlet=0.5|1 --alpha-per=batch|example --alpha-among=all|agreeing --seed=0|7
        --scalarization=linear|tchebycheff --smoothing=0.1 --adapter=pblora|lora|svd-lora|moslora --r1=0|2 --r2=1|3
        --lora-alpha=1|16 --dropout=0|0.5 --target-modules=q_proj,v_proj --steps-per-report=1 --steps-per-eval=1
        --steps-per-save=1 --keep-checkpoints=1 --save=last|best --val-batches=0|-1|1 --project-name=x
        --reward=warmth=warmth""",
        {"--epochs": "!--iters", "--smoothing": "--scalarization=tchebycheff"},
    ),
    Recipe(
        "convert",
        "{arm}",
        "--out=out",
        "--out=deep/out --q-bits=4|8 --q-group-size=32 --q-mode=affine --dtype=float16|bfloat16|float32 --to=mlx",
        dict.fromkeys(("--quantize", "--q-bits", "--q-group-size", "--q-mode"), QUANTIZED),
    ),
    Recipe(
        "convert",
        "{peft}",
        "--out=out",
        "--objectives=harmless,helpful --guide-model={arm} --to=mlx --chat-template=hh",
    ),
    Recipe("convert", "{cost}", "--out=out"),
    Recipe(
        "refine",
        "",
        "--parm=bundled --prompts={pairs} --max-tokens=2 --iters=1 --out=out",
        """--parm=bundled --prompts={pairs} --limit=4|5 --max-tokens=1|3 --iters=1|2 --batch-size=1|3
        --learning-rate=1e-4 --hold=0|2 --guide-model={base} --seed=0|7 --out=deep/out""",
    ),
    Recipe(
        "fuse",
        "",
        "--parm={parm} --alpha=1,0 --out=out",
        ALPHA + "--parm={parm} --guide-model={base} --guided --beta=0.5|2",
        {"--beta": "--guided"},
    ),
    Recipe(
        "bench",
        "",
        "--batch=1 --prompt=4 --tokens=2 --rounds=1 --hidden=64 --layers=1 --vocabulary=64",
        """--batch=1|1,2 --prompt=4|4,8 --tokens=2 --rounds=1 --hidden=64 --layers=1 --vocabulary=64 --bits=4|8
        --model={base} --parm={parm} --guide-model={base} --beta=1 --draft-model={base} --num-draft-tokens=2
        --dequantize=off --plot=speed.svg|speed.png""",
        dict.fromkeys(("--model", "--parm", "--guide-model", "--draft-model", "--dequantize"), LOADED),
    ),
    Recipe("doctor"),
    Recipe("doctor", "", "--shard=tensor", "--shard=pipeline|apart --model=bundled --parm=bundled"),
    Recipe(
        "data sample",
        "",
        "--model={base} --prompts={prompts} --reward=warmth=warmth --max-tokens=24 --even-length=1 --out=out",
        SAMPLING
        + """--model=bundled --magpie=2 --num-samples=2|3 --system-prompt=none|Short. --chat-template=plain
        --out=deep/out --reward=focus=focus --min-margin=0|0.1sd|warmth=0 --even-length=1|0.5 --trim=on|off
        --pairs=best|conflict|all --batch-size=1|8""",
        {"--magpie": "!--prompts", "--temp": "--system-prompt=none"},
    ),
    Recipe(
        "data inspect",
        "{pairs}",
        "",
        "--model={arm} --max-seq-length=64 --chat-template=hh --objectives=warmth|focus,warmth",
    ),
    Recipe(
        "data prepare",
        "{pairs}",
        "--out=out",
        "--out=deep --seed=3 --objectives=warmth,focus --valid-share=0|0.3 --test-share=0|0.3",
    ),
    Recipe(
        "data relabel",
        "{pairs}",
        "--out=new.jsonl --reward=warmth=warmth",
        "--out=deep/new.jsonl --reward=brevity=builtin:brevity --min-margin=0|0.5|warmth=1",
    ),
)


class Inputs:
    """What the calls read, in a folder.

    Args:
        root: The folder; it is filled.
    """

    def __init__(self, root: Path) -> None:
        made = ("pairs", "prompts", "alphas", "settings", "cost", "adapter", "a", "b")
        self.places = {"base": BUNDLED_BASE, "parm": BUNDLED_PARM, "arm": ARM, "peft": PEFT}
        self.places |= {name: root / name for name in made}
        self.places["pairs"] = root / "pairs.jsonl"
        self.places["prompts"] = root / "prompts.txt"
        rows = [
            {
                "prompt": f"Question {i}?",
                "responses": ["Yes, of course.", "No."],
                "preferred": {"warmth": 0, "focus": 1},
            }
            for i in range(12)
        ]
        self.places["pairs"].write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.places["prompts"].write_text("How do I bake bread?\nWhat is a good walk?\n")
        self.places["alphas"].write_text("1,0\n0.5,0.5\n")
        self.places["settings"].write_text("warmup: 0\nlearning-rate: 1e-3\n")
        shutil.copytree(FIXTURES / "rewards" / "beaver-cost", self.places["cost"])
        for file in ARM.glob("*token*"):
            shutil.copy(file, self.places["cost"])
        for command in (f"evaluate {EVALUATE}{{a}}", f"evaluate {EVALUATE}{{b}}", f"train {TRAIN}{{adapter}}"):
            code, text = call(self.words(command))
            assert code == 0, text

    def words(self, text: str) -> list[str]:
        """The words of a text, with the places that it names."""
        return [word.format(**self.places) for word in text.split()]

    def options(self, text: str) -> dict[str, str | None]:
        """Options by name; None for switches."""
        pairs = (word.partition("=") for word in self.words(text))
        return {name.lstrip("!"): GONE if name[0] == "!" else value if sign else None for name, sign, value in pairs}


class TooLongError(BaseException):
    """A call has taken too long."""


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TooLongError


def call(arguments: list[str]) -> tuple[int | str, str]:
    """The exit code of a call, or what it ended with, and all that it printed."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    console.stderr.cache_clear()
    console.stdout.cache_clear()
    stdin, sys.stdin = sys.stdin, io.StringIO("hello\n/alpha 0,1\n/compare 1,0 0,1\n/alpha x\n/reset\nbye\n")
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code: int | str = run(arguments)
    except TooLongError:
        code = f"more than {SECONDS} seconds"
    except (Exception, SystemExit):
        code = traceback.format_exc()
    finally:
        signal.alarm(0)
        sys.stdin = stdin
    return code, out.buffer.getvalue().decode()


def commands() -> dict[str, dict[str, bool]]:
    """The options of every command, and which of them are switches."""
    group: Any = get_command(app)
    found = dict(group.commands)
    found |= {f"data {name}": command for name, command in found.pop("data").commands.items()}
    return {
        name: {
            flag: param.is_flag
            for param in command.params
            if param.param_type_name == "option"
            for flag in [*param.opts, *param.secondary_opts]
            if flag.startswith("--") and flag != "--help"
        }
        for name, command in found.items()
    }


def draw(rng: random.Random, inputs: Inputs, known: dict[str, dict[str, bool]], used: Counter[str]) -> list[str]:
    """A command line: commands with many options more often, options that have been given least often first."""
    recipe = rng.choices(
        RECIPES, [5 if recipe.command == "doctor" else 10 + len(known[recipe.command]) for recipe in RECIPES]
    )[0]
    switches = [flag for flag, is_switch in known[recipe.command].items() if is_switch]
    good = {flag: (values or "").split("|") for flag, values in inputs.options(recipe.good).items()}
    hostile = rng.random() < 0.4
    flags = [flag for flag in known[recipe.command] if hostile or flag in good or flag in switches]
    flags = rng.sample(flags, len(flags))
    flags.sort(key=lambda flag: used[f"{recipe.command} {flag}"])
    options = inputs.options(recipe.base)
    for flag in flags[: rng.choice((1, 2))]:
        value = None if flag in switches else rng.choice(HOSTILE if hostile else good[flag])
        options |= inputs.options(recipe.needs.get(flag, "")) | {flag: value}
    arguments = inputs.words(recipe.arguments)
    if hostile and arguments and rng.random() < 0.3:
        arguments[-1] = rng.choice(HOSTILE)
    given = {flag: value for flag, value in options.items() if value != GONE}
    used.update(f"{recipe.command} {flag}" for flag in [*arguments, *given])
    line = [flag if value is None else f"{flag}={value}" for flag, value in given.items()]
    return [*recipe.command.split(), *arguments, *line]


def problem(code: int | str, text: str) -> str | None:
    """What is wrong with the end of a call."""
    if isinstance(code, str):
        return code
    if code not in CODES:
        return f"exit {code}"
    return next((sign for sign in ("Traceback", "not foreseen") if sign in text), None)


@contextlib.contextmanager
def sandbox(root: Path) -> Iterator[None]:
    """An empty working folder, with a few things to stumble over."""
    folder = root / "call"
    (folder / "folder").mkdir(parents=True)
    (folder / "bytes.bin").write_bytes(bytes(range(256)))
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "odd.yaml").write_text("seed: 1e999\nmodel: [a]\n3: x\n")
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(root)
        shutil.rmtree(folder)


def fuzz(calls: int, seed: int) -> int:
    """Makes the calls; prints a summary and returns the number of failures."""
    known = commands()
    rng, codes, used = random.Random(seed), Counter[int | str](), Counter[str]()
    failures = 0
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["HOME"] = place
        inputs, began = Inputs(root), time.monotonic()
        for number in range(calls):
            line = draw(rng, inputs, known, used)
            with sandbox(root):
                code, text = call(line)
            codes[code if isinstance(code, int) else "none"] += 1
            if wrong := problem(code, text):
                failures += 1
                print(f"call {number} of seed {seed}: {wrong}\n  {line!r}\n  {text[-1500:]}\n", flush=True)
        seconds = time.monotonic() - began
    print("\n".join(f"{count:5} {option}" for option, count in sorted(used.items()) if " --" in option))
    print(f"{calls} calls of seed {seed} in {seconds:.0f} s, by exit code: {dict(codes.most_common())}")
    rare = [f"{command} {flag}" for command, flags in known.items() for flag in flags if used[f"{command} {flag}"] < 3]
    if rare and calls >= 1000:
        failures += 1
        print(f"given less than 3 times: {', '.join(rare)}")
    if codes[0] < 0.4 * calls:
        failures += 1
        print(f"only {codes[0]} calls ended with exit 0")
    print(f"{failures} failures")
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Calls every command with good and hostile values.")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(min(fuzz(given.calls, given.seed), 1))
