"""What the experiments share: adapters trained once, sweeps that go on where they were, and pages made of results.

Everything that is expensive is kept in a work folder (``build/experiments``) and made once, whichever experiment
needs it first: an experiment that was stopped goes on with the same command. What a page is made of, answers with
their scores and other facts, goes into ``answers/NAME.tar.xz``; with ``--stored`` the page is made of that alone.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
import archive
import yaml
from PIL import Image
from rich.console import Console

from parm_mlx.answers.store import RunFolder, read_run
from parm_mlx.answers.sweep import Sweep, answer_all, plan, score_all
from parm_mlx.drawing import STYLES
from parm_mlx.evaluation.evaluate import evaluate
from parm_mlx.evaluation.report.plots import draw
from parm_mlx.evaluation.summary import Run
from parm_mlx.fingerprint import directory_digest
from parm_mlx.guidance.loading import load_with_tokenizers
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.policy import PolicyModel
from parm_mlx.guidance.prompts import Prompt, Prompter, content_id
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.machine import describe_machine, keep_freed_memory
from parm_mlx.preference import Alpha, simplex_grid
from parm_mlx.rewards.registry import load_rewards
from parm_mlx.training.progress import ConsoleProgress
from parm_mlx.training.run import train

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "bundled"))

import make_parm  # noqa: E402
import measure  # noqa: E402

BASE = make_parm.MODELS / "base"
LARGEST_PICTURE = 100_000  # bytes
WIDTH = 1100  # of pictures in pixels
TRAINING, ANSWERING = "training-", "answering-"  # kept times, by adapter and by sweep


@dataclass
class Experiment:
    """One experiment: its settings, and where its pieces are kept.

    Attributes:
        name: Of its script, its YAML file and its page.
        settings: Its YAML file over settings.yaml.
        work: Where adapters and sweeps are kept.
        out: Where the page goes.
        quick: Only adapters are trained.
        stored: Nothing is made: ``work`` holds what an earlier run of the experiment has kept.
        used: What the page is made of, relative to ``work``.
    """

    name: str
    settings: dict[str, Any]
    work: Path
    out: Path
    quick: bool = False
    stored: bool = False
    used: set[Path] = field(default_factory=set)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the trainings."""
        return list(self.settings["seeds"])

    def pairs(self) -> Path:
        """The preference pairs of the bundled world, sampled once."""
        work = self.work.parent / "bundled"
        make_parm.ensure_pairs(BASE, work, self.settings["pair_prompts"])
        return work / "pairs.jsonl"

    def adapter(self, name: str, seed: int, *, base: Path = BASE, data: Path | None = None, **others: Any) -> Path:
        """An adapter trained with these settings, unless it is there already.

        Args:
            name: What it is called.
            seed: Of its training.
            base: Its backbone.
            data: Its pairs.
            others: Settings that differ from the shared ones.
        """
        out = self.work / "adapters" / f"{name}-{seed}"
        if not self.stored:
            settings = {**self.settings["train"], "seed": seed, **others}
            config = make_parm.settings(base, data or self.pairs(), out, **settings)
            with self.clock(TRAINING + out.name, fresh=not out.exists()):
                train(config, resume=True, force=True, progress=ConsoleProgress(Console(stderr=True)))
        self.used |= self.times(TRAINING + out.name)
        return out

    @contextmanager
    def clock(self, name: str, fresh: bool) -> Iterator[None]:
        """Keeps how long the block takes, where it makes something afresh."""
        began = time.perf_counter()
        yield
        if fresh:
            found = {"seconds": time.perf_counter() - began, "machine": describe_machine()}
            self._write_fact(name, found)

    def times(self, name: str) -> set[Path]:
        """The file of a time that was kept, if there is one."""
        return {Path("facts", f"{name}.json")} if (self.work / "facts" / f"{name}.json").exists() else set()

    def made(self, path: Path, make: Callable[[], object]) -> Path:
        """A file or folder that ``make`` writes, unless it is there already."""
        if not (self.stored or path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            make()
        return path

    def fact(self, name: str, measure: Callable[[], Any]) -> Any:
        """A JSON value that the page shows beside answers, measured once and kept with them."""
        file = self.work / "facts" / f"{name}.json"
        if not file.exists():
            if self.stored:
                raise SystemExit(f"error: the kept answers of {self.name} have no fact {name!r}; run it again")
            self._write_fact(name, measure())
        self.used.add(file.relative_to(self.work))
        return json.loads(file.read_text(encoding="utf-8"))

    def _write_fact(self, name: str, value: Any) -> None:
        file = self.work / "facts" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")

    def run(
        self,
        name: str,
        parms: Sequence[Path],
        *,
        base: Path = BASE,
        alphas: Sequence[Alpha] | None = None,
        rewards: Mapping[str, str] | None = None,
        beta: float = 1.0,
        alone: bool = False,
    ) -> Run:
        """The answers of a guided model to held-out questions at every α, with their scores.

        Args:
            name: What the sweep is called.
            parms: Adapters that guide.
            base: The base.
            alphas: Preferences; the grid of the settings by default.
            rewards: SPEC by name; built-in scorers with the names of the objectives by default.
            beta: β of guided decoding.
            alone: Whether the guide answers by itself, without the base.
        """
        folder = self.work / "runs" / name
        if not self.stored:
            self._answer(name, folder, parms, base, alphas, rewards, beta, alone)
        return self._kept(name, "sweep")

    def real(
        self,
        name: str,
        *,
        model: str = "smollm2",
        parm: str = "smollm2",
        questions: str | None = None,
        beta: float = 1.0,
    ) -> Run:
        """A model that a PARM guides on held-out questions, by ``parm-mlx evaluate``, as ``real`` of the settings says.

        Args:
            name: What the sweep is called.
            model: Name or folder of the base.
            parm: Name of the PARM.
            questions: Name of the PARM that was not trained on the questions; the same by default.
            beta: β of guided decoding.
        """
        settings, folder = self.settings["real"], self.work / "runs" / name
        if not self.stored:
            asked = held_out_prompts(questions or parm)[: settings["questions"]]
            with self.clock(ANSWERING + name, fresh=not folder.exists()):
                evaluate(
                    out=folder,
                    model=model,
                    parm=parm,
                    prompts=[[{"role": "user", "content": question}] for question in asked],
                    grid=settings["grid"],
                    beta=beta,
                    sampling=Sampling(temp=settings["temp"]),
                    max_tokens=settings["max_tokens"],
                    note=print,
                )
        return self._kept(name, "real")

    def _kept(self, name: str, kind: str) -> Run:
        """Keeps a sweep and its time with the page, and reads it, if it was made with these settings of its kind."""
        folder = self.work / "runs" / name
        identity, results, scores = read_run(folder)
        was, now = identity["settings"], self.settings[kind]
        was = {"questions": len({result.id for result in results.values()}), **was}
        if changed := [key for key in now if key != "bootstrap" and was.get(key, now[key]) != now[key]]:
            raise SystemExit(f"error: {name} was made with other settings ({', '.join(changed)}); run it again")
        self.keep(folder)
        self.used |= self.times(ANSWERING + name)
        return Run(name, tuple(identity["objectives"]), identity["rewards"], list(results.values()), scores)

    def keep(self, folder: Path) -> None:
        """Keeps the answers of a run with the page."""
        self.used |= {folder.relative_to(self.work) / file for file in archive.RUN_FILES}

    def _answer(
        self,
        name: str,
        path: Path,
        parms: Sequence[Path],
        base: Path,
        alphas: Sequence[Alpha] | None,
        rewards: Mapping[str, str] | None,
        beta: float,
        alone: bool,
    ) -> None:
        """Answers and scores what is missing in the folder of a sweep."""
        sweep = self.settings["sweep"]
        backbone = BASE if base != BASE else None
        model, tokenizer, guide_tokenizer = load_with_tokenizers(base, list(parms), backbone, beta=beta)
        if alone:
            model = PolicyModel(model.base, model.guide)
        prompter = Prompter(tokenizer, guide_tokenizer)
        questions = measure.held_out_questions(sweep["questions"])
        prompts = [Prompt(content_id(question.text), question.text) for question in questions]
        alphas = alphas or simplex_grid(len(model.objectives), sweep["grid"])
        specs = dict(rewards or {objective: f"builtin:{objective}" for objective in model.objectives})
        settings = {**sweep, "alphas": alphas, "adapter": [directory_digest(parm) for parm in parms], "base": base.name}
        settings |= ({"alone": True} if alone else {}) | ({"beta": beta} if beta != 1 else {})
        folder = RunFolder(path, {"objectives": model.objectives, "settings": settings})
        answers = Sweep(model, tokenizer, prompter, Sampling(temp=sweep["temp"]), sweep["max_tokens"])
        with folder.locked():
            began = time.perf_counter()
            with self.clock(ANSWERING + name, fresh=not folder.results()):
                results, fresh = answer_all(folder, answers, plan(prompts, alphas, [0]))
            if fresh:
                print(f"{name}: {len(fresh)} answers in {time.perf_counter() - began:.0f} s", flush=True)
            folder.set_rewards(specs)
            loaded = load_rewards([f"{reward}={spec}" for reward, spec in specs.items()])
            score_all(folder, results, loaded)

    def picture(self, summary: Mapping[str, Any]) -> None:
        """Draws a run or a comparison as NAME.svg or, where that is a large file, as NAME.png."""
        self.out.mkdir(parents=True, exist_ok=True)
        vector, pixels = (self.out / f"{self.name}.{kind}" for kind in ("svg", "png"))
        vector.unlink(missing_ok=True)
        pixels.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            draw(summary, Path(folder))
            drawn = Path(folder) / "pareto.svg"
            if drawn.stat().st_size <= LARGEST_PICTURE:
                shutil.copy(drawn, vector)
                return
            with Image.open(Path(folder) / "pareto.png") as image:
                small = image.convert("RGB").resize((WIDTH, round(image.height * WIDTH / image.width)), Image.LANCZOS)
            small.quantize(64).save(pixels, optimize=True)

    def dots(self, values: Mapping[str, Sequence[float]], label: str) -> None:
        """Draws numbers by group as NAME.svg: a dot each, a bar at their mean."""
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(7, 0.7 + 0.36 * len(values)), layout="constrained")
        for place, numbers in enumerate(values.values()):
            axes.plot(numbers, [place] * len(numbers), "o", color=STYLES[0][0], alpha=0.7, ms=6)
            axes.plot([statistics.mean(numbers)] * 2, [place - 0.3, place + 0.3], "-", color="black", lw=2)
        axes.set_yticks(range(len(values)), list(values))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        self.save(figure)

    def save(self, figure: Any) -> None:
        """Writes a figure as NAME.svg, the same bytes for the same figure."""
        import matplotlib as mpl
        import matplotlib.pyplot as plt

        self.out.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": self.name}):
            figure.savefig(self.out / f"{self.name}.svg", metadata={"Date": None})
        plt.close(figure)

    def publish(self, results: Mapping[str, Any], **parts: str) -> None:
        """Writes NAME.json, NAME.md (templates/NAME.md with its {parts} filled in), and what they are made of."""
        self.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (self.out / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")
        template = (HERE / "templates" / f"{self.name}.md").read_text(encoding="utf-8")
        (picture,) = (file for kind in ("svg", "png") if (file := self.out / f"{self.name}.{kind}").exists())
        parts |= {"picture": picture.name}
        parts |= {"command": f"python examples/experiments/{self.name}.py", "settings": self.described()}
        page = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], template) + self.effort()
        (self.out / f"{self.name}.md").write_text(page, encoding="utf-8")
        if not self.stored:
            archive.pack(self.work, self.used, archive.of(self.name, self.out))

    def effort(self) -> str:
        """How long training and answering took, and where, as far as it was kept; a line of its own."""
        sentence, machines = [], set()
        for kind, verb in ((TRAINING, "Training"), (ANSWERING, "answering")):
            files = [self.work / file for file in sorted(self.used) if file.name.startswith(kind)]
            found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
            machines |= {each["machine"] for each in found}
            if found:
                sentence.append(f"{verb} took {sum(each['seconds'] for each in found) / 60:.0f} minutes")
        if not sentence:
            return ""
        where = "; ".join(sorted(machines))
        text = f"{' and '.join(sentence)}, beside other work ({where})."
        return f"\n{text[0].upper()}{text[1:]}\n"

    def described(self) -> str:
        """The settings in a sentence."""
        train, sweep = self.settings["train"], self.settings["sweep"]
        return (
            f"Bundled world; {len(self.seeds)} seeds of training. Training: {train['iters']} steps of "
            f"{train['batch_size']} pairs, learning rate {train['learning_rate']:g}. Sweep: {sweep['questions']} "
            f"held-out questions, temperature {sweep['temp']:g}, at most {sweep['max_tokens']} tokens."
        )


def load_settings(name: str) -> dict[str, Any]:
    """settings.yaml, overridden by NAME.yaml."""
    settings: dict[str, Any] = yaml.safe_load((HERE / "settings.yaml").read_text(encoding="utf-8"))
    own = yaml.safe_load((HERE / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    for key, value in own.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    return settings


def begin(name: str, doc: str | None) -> Experiment:
    """Reads the command line of an experiment."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "experiments", help="adapters and sweeps")
    parser.add_argument("--out", type=Path, default=HERE, help="where the page goes")
    parser.add_argument("--seeds", type=int, choices=range(1, 6), help="number of seeds")
    parser.add_argument("--iters", type=int, help="steps of each training")
    parser.add_argument("--questions", type=int, help="questions of each sweep")
    parser.add_argument("--pairs", type=int, help="questions to sample pairs for, where there are none yet")
    parser.add_argument("--train-only", action="store_true", help="train the adapters, and leave the rest for later")
    parser.add_argument(
        "--stored", action="store_true", help="make the page of the answers kept in answers/NAME.tar.xz"
    )
    args = parser.parse_args()
    settings = load_settings(name)
    if args.seeds:
        settings["seeds"] = list(range(args.seeds))
    if args.iters:
        settings["train"]["iters"] = args.iters
    if args.pairs:
        settings["pair_prompts"] = args.pairs
    if args.questions:
        settings["sweep"]["questions"] = args.questions
    keep_freed_memory()
    if args.stored:
        return Experiment(name, settings, archive.unpack(archive.of(name)), args.out, stored=True)
    args.work.mkdir(parents=True, exist_ok=True)
    return Experiment(name, settings, args.work, args.out, quick=args.train_only)


def checkout(repository: str, commit: str, folder: Path) -> None:
    """Clones a repository at a commit."""
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", repository, str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)


def fixed(summary: Mapping[str, Any]) -> dict[str, str]:
    """What a page says of scale and reference point."""
    point = ", ".join(f"{value:g}" for value in summary["reference_point"].values())
    return {"normalization": summary["normalization"]["text"], "reference": f"({point})"}


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
