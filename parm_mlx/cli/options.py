"""Options that several commands share, with mlx-lm's names."""

from typing import Annotated, Literal

import typer

from parm_mlx.ranges import DRAFT_TOKENS, MAX_TOKENS, SEED, TEMP, TOP_K

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Base model: directory or hub id.",
        show_default="--guide-model, or the backbone of --parm; without --parm the bundled model",
    ),
]
Parms = Annotated[
    list[str] | None,
    typer.Option(
        "--parm",
        metavar="<str>",
        help="PARM adapter: directory or hub id; several with one objective each guide together (GenARM).",
        show_default="the bundled one",
    ),
]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model", help="Base model: directory or hub id.", show_default="--guide-model, or the backbone of --parm"
    ),
]
OwnParms = Annotated[
    list[str] | None,
    typer.Option(
        "--parm",
        metavar="<str>",
        help="PARM adapter: directory or hub id; several with one objective each guide together.",
        show_default="random models",
    ),
]
GuideModel = Annotated[
    str | None,
    typer.Option("--guide-model", help="Backbone of the PARM.", show_default="what the adapter records"),
]
Alpha = Annotated[
    str | None,
    typer.Option("--alpha", help='Preference: "0.7,0.3", or by name "warmth=0.7,focus=0.3".', show_default="all equal"),
]
Alphas = Annotated[
    list[str] | None,
    typer.Option(
        "--alpha",
        metavar="<str>",
        help='Preference: "0.7,0.3", or by name "warmth=0.7,focus=0.3"; may be given several times.',
        show_default="all equal",
    ),
]
Beta = Annotated[
    str,
    typer.Option(
        "--beta",
        metavar="NUMBER",
        help="β of guided decoding; smaller means a stronger guide. Several adapters may have one each: 0.5,1.",
    ),
]
Share = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        "--share",
        help="Compute base and guide in one forward pass: auto where they stand on the same weights, on insists.",
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="Smaller model of the base's vocabulary that drafts tokens to be checked."),
]
OwnDraftModel = Annotated[
    str | None,
    typer.Option("--draft-model", help="Draft model to measure, beside models of your own.", show_default="none"),
]
SelfSpeculation = Annotated[
    bool, typer.Option("--self-speculation", help="The base drafts tokens, and the guide checks several at once.")
]
NumDraftTokens = Annotated[
    int | None,
    typer.Option(
        "--num-draft-tokens",
        min=DRAFT_TOKENS.low,
        max=DRAFT_TOKENS.high,
        help="Tokens drafted at a time.",
        show_default="3",
    ),
]
Temp = Annotated[
    float,
    typer.Option("--temp", min=0, max=TEMP.high, help="Sampling temperature; 0 takes the likeliest token."),
]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling; 0 turns it off.")]
TopK = Annotated[
    int, typer.Option("--top-k", min=0, max=TOP_K.high, help="Sample from the k likeliest tokens; 0 turns it off.")
]
MinP = Annotated[
    float, typer.Option("--min-p", min=0, max=1, help="Drop tokens below this share of the likeliest; 0: off.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, max=MAX_TOKENS.high, help="Longest answer, in tokens.")]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=SEED.high, help="Seed of the sampling; the same seed, the same answer.")
]
ChatTemplate = Annotated[
    Literal["beaver", "alpaca", "hh", "plain"] | None,
    typer.Option(
        "--chat-template",
        help="Built-in chat template of the base.",
        show_default="the tokenizer's own, or what the adapter records",
    ),
]
TrainedTemplate = Annotated[
    Literal["beaver", "alpaca", "hh", "plain"] | None,
    typer.Option("--chat-template", help="Built-in chat template to train with.", show_default="the tokenizer's own"),
]
AllowSpecial = Annotated[
    bool,
    typer.Option(
        "--allow-special",
        help="Read control tokens that are written out in prompts as tokens, not as text.",
    ),
]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="System message put before the prompt.")]
