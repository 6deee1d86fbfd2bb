"""Writes questions of the training side of the bundled world, which `data sample` and `refine` read.

python examples/bundled/questions.py 400 > questions.jsonl
"""

import json
import sys

import parm_mlx  # noqa: F401  (loads the fast BLAS before mlx)

# isort: split
from make_parm import training_prompts


def main() -> None:
    """Prints so many of them, each of one turn, one JSON object a line."""
    count = int(sys.argv[1])
    alone = [prompt for prompt in training_prompts(2 * count) if len(prompt) == 1]
    for prompt in alone[:count]:
        print(json.dumps({"prompt": prompt[0]["content"]}))


if __name__ == "__main__":
    main()
