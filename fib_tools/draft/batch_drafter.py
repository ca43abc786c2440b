"""Drafts as a Message Batch: a whole generation for half the price, within minutes or, at worst, a day.

The batch's name is on the disk before anything waits for it, so that a killed run finds it again and pays once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fib_tools.draft.drafter import Answers
from fib_tools.draft.question import make_body
from fib_tools.draft.run_folder import RunFolder
from fib_tools.errors import SourceError
from fib_tools.host.env import redact
from fib_tools.host.files import read_limited, write_atomically
from fib_tools.llm.budget import afford_output
from fib_tools.llm.reply import read_message
from fib_tools.llm.statuses import explain_status
from fib_tools.model.base import Model, read_strict
from fib_tools.model.canonical import canonical_bytes, content_hash, load_json

if TYPE_CHECKING:
    from anthropic import Anthropic
    from anthropic.types.messages import MessageBatch

__all__ = ["BatchDrafter"]

_FILE = "batch.json"
_LIMIT = 1 << 20
_ATTEMPTS = 6
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 60.0
_WHERE = "Message Batches API"


class _Pending(Model):
    """A batch that was sent."""

    batch: str
    questions: str
    """The hash of what it asks."""


class BatchDrafter:
    """Asks for all drafts of a generation at once."""

    def __init__(self, client: Anthropic, *, tell: Callable[[str], None]) -> None:
        self._client = client.with_options(max_retries=_ATTEMPTS - 1)
        self._tell = tell

    def draft(self, questions: Sequence[str], folder: RunFolder, usd: float) -> Iterator[Answers]:
        """Answer the questions, each for its part of the money; what one of them fails with comes after all answers.

        Raises:
            BudgetSpentError: a part does not pay for a useful answer.
            SourceError: the service is unreachable, or could not answer all; the run can be resumed.
            RequestError: it refuses the key, the model or the request.
        """
        import anthropic

        hint = f"go on later with: fib optimize {folder.plan.target.definition.name} --resume {folder.plan.run}"
        try:
            batch = self._find(questions, folder) or self._send(questions, folder, usd)
            yield from self._collect(self._wait(batch), folder, todo=hint)
        except anthropic.APIStatusError as error:
            raise explain_status(error.status_code, error.message, where=_WHERE, todo=hint) from error
        except anthropic.AnthropicError as error:
            raise SourceError(f"the connection broke: {redact(str(error))}", where=_WHERE, todo=hint) from error

    def _find(self, questions: Sequence[str], folder: RunFolder) -> MessageBatch | None:
        """Find the batch of these questions that a killed run sent."""
        path = folder.path / _FILE
        if not path.is_file():
            return None
        pending = read_strict(_Pending, load_json(read_limited(path, _LIMIT), where=str(path)), where=str(path))
        if pending.questions != content_hash(list(questions)):
            return None
        self._tell(f"going on with the batch {pending.batch}")
        return self._client.messages.batches.retrieve(pending.batch)

    def _send(self, questions: Sequence[str], folder: RunFolder, usd: float) -> MessageBatch:
        requests: list[Any] = []
        for number, question in enumerate(questions):
            body = make_body(folder.plan, question)
            allowed = afford_output(body, folder.plan.price, usd=usd / len(questions))
            requests.append({"custom_id": f"q{number}", "params": {**body, "max_tokens": allowed}})
        batch = self._client.messages.batches.create(requests=requests)
        pending = _Pending(batch=batch.id, questions=content_hash(list(questions)))
        write_atomically(folder.path / _FILE, canonical_bytes(pending))
        return batch

    def _wait(self, batch: MessageBatch) -> MessageBatch:
        wait = _FIRST_WAIT
        while batch.processing_status != "ended":
            counts = batch.request_counts
            done = counts.succeeded + counts.errored + counts.expired + counts.canceled
            self._tell(f"batch {batch.id}: {done} of {done + counts.processing} answered")
            time.sleep(wait)
            wait = min(_LONGEST_WAIT, 1.5 * wait)
            batch = self._client.messages.batches.retrieve(batch.id)
        return batch

    def _collect(self, batch: MessageBatch, folder: RunFolder, *, todo: str) -> Iterator[Answers]:
        """Give all answers together, also those before the connection broke."""
        from anthropic import AnthropicError

        answers: Answers = []
        failed: list[str] = []
        broken: AnthropicError | None = None
        try:
            for each in self._client.messages.batches.results(batch.id):
                if each.result.type == "succeeded":
                    answers.append((int(each.custom_id[1:]), read_message(each.result.message)))
                else:
                    failed.append(_describe(each.result.to_dict()))
        except AnthropicError as error:
            broken = error
        yield answers
        if broken is not None:
            raise broken
        (folder.path / _FILE).unlink(missing_ok=True)
        if failed:
            raise SourceError(f"{len(failed)} answers of the batch failed: {failed[0]}", where=_WHERE, todo=todo)


def _describe(result: Mapping[str, Any]) -> str:
    said = result.get("error", {}).get("error", {}).get("message", "") if result.get("type") == "errored" else ""
    return redact(f"{result.get('type')}: {said}" if said else str(result.get("type")))
