"""One answer on its way to the terminal: the thought before it dimmed, then the answer, in whole words."""

from typing import TYPE_CHECKING

from parm_mlx.cli import console

if TYPE_CHECKING:
    from parm_mlx.guidance.generate import Answer, Piece


def say(answer: "Answer", indent: str = "") -> None:
    """Prints a whole answer without what was thought before it, and a mark where it was cut off."""
    if answer.reasoning:
        words = len(answer.reasoning.split())
        console.note(
            f"{indent}[a thought of {words} word{'s' * (words != 1)}{'' if answer.text else ', and no answer'}]"
        )
    out = console.writer(indent)
    out.feed(answer.text.strip() + (console.CUT if answer.finish_reason == "length" else ""))
    out.close()


class Reply:
    """Prints an answer piece by piece. A thought is shown on a terminal only.

    Attributes:
        text: The answer so far, without white space before it.
    """

    def __init__(self, indent: str = "") -> None:
        self._indent = indent
        self._thought, self._answer = console.thought_writer(indent), console.writer(indent)
        self._thinking = self._thought_of = False
        self.text = ""

    def feed(self, piece: "Piece") -> None:
        """Prints more."""
        if piece.is_thought:
            self._thinking = self._thought_of = True
            self._thought.feed(piece.text)
            return
        text = piece.text if self.text else piece.text.lstrip()
        if text:
            self._end_thought()
            self.text += text
            self._answer.feed(text)

    def cut(self) -> None:
        """Marks that the answer ends at the limit."""
        self._end_thought()
        self._answer.feed(console.CUT)

    def close(self) -> None:
        """Ends the last line."""
        self._end_thought()
        if self.text:
            self._answer.close()
        elif self._thought_of:
            console.note("a thought, and no answer")

    def _end_thought(self) -> None:
        if self._thinking:
            self._thought.close()
            self._thinking = False
