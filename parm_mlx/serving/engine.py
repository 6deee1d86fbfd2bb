"""The engine: one thread that owns MLX and answers requests of different preferences in one continuous batch.

Every answer is a row of mlx-lm's batch, with its α and 1/β in the prompt cache; the base alone is the row with
strength 0. In turn, the engine takes a token for every row, and reads a piece of one prompt that waits to join.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import mlx.core as mx

from parm_mlx.errors import first_line
from parm_mlx.guidance.explain import explaining
from parm_mlx.guidance.generate import batch_generator, not_finite, sampling_of
from parm_mlx.guidance.guide import Cache
from parm_mlx.guidance.prefill import CachedTokens, evaluate
from parm_mlx.guidance.sampling import NOT_FINITE
from parm_mlx.guidance.session import Session
from parm_mlx.guidance.shard import Shard
from parm_mlx.serving.answering import Answering
from parm_mlx.serving.errors import BusyError, ClosedError
from parm_mlx.serving.events import Ask, Kind
from parm_mlx.serving.kept import KeptPrompts
from parm_mlx.serving.reader import PromptReader
from parm_mlx.serving.settings import MIB, ServerOptions

FAILURES = 3  # of the whole batch, one after the other, after which the engine gives up
LATELY = 5.0  # seconds
IDLE = 5.0  # seconds without work after which spare memory is given back


class Engine:
    """Answers requests in a thread of its own.

    Attributes:
        session: The models, once :meth:`start` has returned.
        counts: What happened so far, by name, for reports.
    """

    session: Session

    def __init__(self, load: Callable[[], Session], options: ServerOptions) -> None:
        self._load, self._options = load, options
        self._changed = threading.Condition()
        self._waiting: deque[Answering] = deque()
        self._running: dict[int, Answering] = {}
        self._explaining: deque[Answering] = deque()
        self._closing, self._draining = False, True
        self._dead: str | None = None
        self._failures = self._numbered = 0
        self._shard: Shard | None = None
        self._progressed = monotonic()
        self.counts = {"requests": 0, "failed": 0, "cancelled": 0, "prompt_tokens": 0, "cached_tokens": 0, "tokens": 0}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Loads the models and begins to answer.

        Raises:
            ParmError: They cannot be loaded, or not be batched.
        """
        started, problem = threading.Event(), list[BaseException]()
        self._begin = (started, problem)
        self._thread.start()
        started.wait()
        if problem:
            raise problem[0]

    def submit(self, asks: list[Ask]) -> list[Answering]:
        """Queues answers, all or none.

        Raises:
            BusyError: There is no room for them in the queue.
            ClosedError: The engine has ended, or is about to.
        """
        with self._changed:
            if self._dead or self._closing:
                raise ClosedError(self._dead or "the server is shutting down")
            idle = max(self._options.batch_size - self.active, 0)
            if len(self._waiting) + len(asks) > self._options.max_queue + idle:
                raise BusyError
            deadline = monotonic() + self._options.timeout
            queued = [Answering(ask, self.session.tokenizer, deadline) for ask in asks]
            self._waiting.extend(queued)
            self.counts["requests"] += len(asks)
            self._changed.notify()
        return queued

    def close(self, drain: bool = True) -> None:
        """Ends the thread, after the answers that have been asked for or, without ``drain``, at once."""
        with self._changed:
            self._closing, self._draining = True, drain
            self._changed.notify()
        self._thread.join(timeout=None if drain else 10)

    @property
    def active(self) -> int:
        """Answers that are read or generated."""
        return len(self._reader.answers) + len(self._running) + len(self._explaining)

    @property
    def queued(self) -> int:
        """Answers that wait."""
        return len(self._waiting)

    @property
    def cached_bytes(self) -> int:
        """Bytes of kept prompts and answers."""
        return self._kept.nbytes

    @property
    def problem(self) -> str | None:
        """Why no answers come; None where all is well."""
        if self._dead:
            return self._dead
        stalled = monotonic() - self._progressed
        if (self.active or self._waiting) and stalled > self._options.stall_timeout:
            return f"no step has ended for {stalled:.0f} seconds"
        return None

    @property
    def steps_lately(self) -> bool:
        """True if there are answers on their way, and a step of theirs has ended within a few seconds."""
        return bool(self.active) and monotonic() - self._progressed < LATELY

    def give_up(self, reason: str) -> None:
        """Fails every answer, from another thread: that of the engine hangs."""
        self._dead = reason
        self.abandon(reason)

    def abandon(self, reason: str) -> None:
        """Fails every answer that was asked for, from another thread."""
        for answering in [*self._waiting, *self._reader.answers, *self._running.values(), *self._explaining]:
            answering.fail(reason)
            answering.cancel()

    def _run(self) -> None:
        try:
            self._work()
        finally:
            mx.clear_streams()  # a thread that MLX still tidies up must not outlive the program

    def _work(self) -> None:
        started, problem = self._begin
        try:
            self._prepare()
        except BaseException as error:
            problem.append(error)
            return
        finally:
            started.set()
        try:
            while not self._dead and not self._serves():
                with suppress(Exception):
                    self._generator.close()
                self._reset()
        except BaseException as error:
            self._dead = f"the engine has ended: {type(error).__name__}"
            self._fail_all(self._dead)
            raise
        finally:
            with suppress(Exception):
                self._generator.close()

    def _serves(self) -> bool:
        """Answers until the end; returns False where a step has failed, with it all answers that it was for."""
        try:
            self._serve()
        except Exception as error:
            if self._shard is not None:
                raise  # the processes are not at the same place any more
            self._failures += 1
            self._fail_all(f"the engine failed: {type(error).__name__}: {first_line(error)}")
            if self._failures >= FAILURES:
                self._dead = f"the engine failed {FAILURES} times: {first_line(error)}"
                self._fail_all(self._dead)
            return False
        return True

    def _prepare(self) -> None:
        self.session = self._load()
        self._shard = self.session.model.shard
        self._guided = bool(self.session.objectives)
        self._reset()

    def _reset(self) -> None:
        self._kept = KeptPrompts(self._options.prompt_cache_size * MIB, self.session.model)
        self._reader = PromptReader(self.session.model, self._kept)
        self._generator = batch_generator(
            self.session.model,
            self._guided,
            stop_tokens=[[token] for token in self.session.tokenizer.eos_token_ids],
            completion_batch_size=self._options.batch_size,
            prefill_batch_size=self._options.batch_size,
        )

    def _fail_all(self, message: str) -> None:
        failed = [*self._reader.answers, *self._running.values(), *self._explaining]
        failed += self._waiting if self._dead else ()
        self._reader.answers.clear()
        self._explaining.clear()
        self._running.clear()
        if self._dead:
            self._waiting.clear()
        for answering in failed:
            self._fail(answering, message)

    def _fail(self, answering: Answering, message: str, kind: Kind = "server") -> None:
        self.counts["failed"] += 1
        answering.fail(message, kind)

    def _serve(self) -> None:
        while True:
            with self._changed:
                idle = monotonic()
                while not (self._waiting or self.active):
                    if self._closing:
                        return
                    if idle and monotonic() - idle > IDLE:
                        mx.clear_cache()
                        idle = 0
                    self._changed.wait(1)
                    self._progressed = monotonic()
                if self._closing and not self._draining:
                    break
            self._begin_turn()
            self._take_turn()
            self._progressed = monotonic()
        self._dead = "the server is shutting down"
        self._fail_all(self._dead)

    def _begin_turn(self) -> None:
        self._drop()
        self._admit()

    def _take_turn(self) -> None:
        self._read()
        self._step()
        self._explain()

    def _drop(self) -> set[int]:
        """Ends what nobody waits for, and what has taken too long; returns the numbers of those under way."""
        now = monotonic()

        def leaves(answering: Answering) -> bool:
            if not answering.cancelled and now < answering.deadline:
                return False
            if answering.cancelled:
                self.counts["cancelled"] += 1
                answering.fail("cancelled")
            else:
                self._fail(answering, f"the answer took longer than {self._options.timeout:g} seconds", "timeout")
            return True

        with self._changed:
            self._waiting = deque(each for each in self._waiting if not leaves(each))
        return self._remove(leaves)

    def _remove(self, leaves: Callable[[Answering], bool]) -> set[int]:
        """Removes answers under way; returns their numbers."""
        before = self._under_way()
        self._reader.answers = deque(each for each in self._reader.answers if not leaves(each))
        self._explaining = deque(each for each in self._explaining if not leaves(each))
        uids = [uid for uid, answering in self._running.items() if leaves(answering)]
        if uids:
            self._generator.remove(uids)
            for uid in uids:
                del self._running[uid]
        return before - self._under_way()

    def _under_way(self) -> set[int]:
        return {each.number for each in (*self._reader.answers, *self._explaining, *self._running.values())}

    def _admit(self) -> list[Answering]:
        """Begins with the answers that there is room for, and numbers them."""
        admitted = []
        while self._waiting and self.active < self._options.batch_size:
            with self._changed:
                answering = self._waiting.popleft()
                self._reader.answers.append(answering)
            self._numbered += 1
            answering.number = self._numbered
            admitted.append(answering)
            self.counts["prompt_tokens"] += len(answering.ask.request.prompt.base)
        return admitted

    def _read(self) -> None:
        """Reads a piece of one prompt, or short ones together; answers whose prompts are read join the batch."""
        reader = self._reader
        several = reader.due()
        for answering in several:
            try:
                whole = len(several) > 1
                if not whole and not reader.read_piece(answering):
                    continue
                self._join(answering, reader.hand_over(answering, whole))
            except Exception as error:
                if self._shard is not None:
                    raise  # the other processes may have succeeded
                self._fail(answering, f"the answer could not begin: {type(error).__name__}: {first_line(error)}")
            reader.answers.remove(answering)

    def _join(self, answering: Answering, cache: Cache) -> None:
        request, model = answering.request, self.session.model
        (uid,) = self._generator.insert(
            [answering.joined_with],
            max_tokens=[answering.room],
            caches=[cache],
            samplers=[sampling_of(model, request).sampler(request.seed_offset)],
            logits_processors=[answering.processors(model)],
        )
        self._running[uid] = answering
        if not answering.tokens:
            self.counts["cached_tokens"] += answering.cached

    def _step(self) -> None:
        if not self._running:
            return
        for response in self._generator.next_generated():
            answering = self._running[response.uid]
            reason, token = response.finish_reason, response.token
            if token == NOT_FINITE:
                self._leave(response)
                request = answering.request
                error = not_finite(self.session.model, request.prompt, request.alpha, answering.tokens)
                self._fail(answering, str(error))
            elif answering.failure is not None and self._shard is None:
                self._leave(response)
                self._fail(answering, first_line(answering.failure), "request")
            else:
                if answering.failure is not None and not answering.ended:  # the others learn of it at the next turn
                    self._fail(answering, first_line(answering.failure), "request")
                    answering.cancel()
                self.counts["tokens"] += 1
                if reason != "stop" and answering.take(token, response.logprobs):
                    reason = "stop"
                if answering.thought_is_over(response.finish_reason == "stop"):
                    self._continue_after_thought(answering, response)
                elif reason is not None:
                    self._keep_answer(answering, response)
                    self._finish(answering, reason)
        self._failures = 0

    def _leave(self, response: Any) -> tuple[Cache | None, list[int]]:
        """Takes a row out of the batch; returns its prompt cache and the tokens that this has read in the batch."""
        del self._running[response.uid]
        if response.finish_reason is not None:
            return response.prompt_cache, response.all_tokens
        (left,) = self._generator.remove([response.uid], return_prompt_caches=True).values()
        return left  # type: ignore[no-any-return]

    def _continue_after_thought(self, answering: Answering, response: Any) -> None:
        self._leave(response)
        if answering.room <= 0:
            self._finish(answering, "length")
        else:
            self._reader.answers.appendleft(answering)

    def _finish(self, answering: Answering, reason: str) -> None:
        answering.reason, request = reason, answering.request
        if not answering.ask.options.explain or request.alpha is None:
            answering.finish()
            return
        said, kept = answering.tokens[len(request.thought) :], self._kept.before(answering.request)
        answering.explaining = explaining(
            self.session.model, request, said, answering.ask.options.explain == "parts", kept
        )
        self._explaining.append(answering)

    def _explain(self) -> None:
        """Reads a piece of an answer once more, to tell why it says what it says; the last one ends it."""
        if not self._explaining:
            return
        answering = self._explaining[0]
        assert answering.explaining is not None
        try:
            answering.reasons += next(answering.explaining)
            self._explaining.rotate(-1)
            return
        except StopIteration:
            answering.finish()
        except Exception as error:
            self._fail(answering, f"the answer could not be explained: {type(error).__name__}: {first_line(error)}")
        self._explaining.popleft()

    def _keep_answer(self, answering: Answering, response: Any) -> None:
        """Keeps a finished answer and its prompt for the turn that follows."""
        (cache, tokens), request = self._leave(response), answering.request
        if cache is None:
            return
        evaluate(cache)
        base, guide = self.session.model.split_cache(cache) if self._guided else (cache, [])
        said = tokens[len(answering.joined_with) :]
        read = CachedTokens(base, [*request.prompt.base, *said])
        self._kept.keep(read, CachedTokens(guide, request.prompt.after(said).guide), request)
