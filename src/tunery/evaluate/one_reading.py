"""Everything that is asked of a row in one reading: how likely given answers are, and what the model answers by itself.

A prompt, the right answer and every label are one prefix tree, so the prompt is computed once. What the model would say is known in the
tree as far as it is one of the given answers, its end included; only from where it says something else is it asked token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tunery.infer.batches import check_prompt
from tunery.tasks import Task
from tunery.tasks._next_token import loss as cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tunery.infer._answering import Answer
    from tunery.infer._reading import Read, Reader, Wanted
    from tunery.train.packs import TokenRow


def able(model: PreTrainedModel, task: Task, given: Sequence[Sequence[TokenRow]], prompts: Sequence[list[int]], new_tokens: int) -> bool:
    """Whether `ask` gives what computing row by row gives; if not, likelihoods, labels and answers are each computed their own way."""
    from tunery.infer import _reading

    longest = max([len(p) + new_tokens for p in prompts] + [len(s.tokens) for row in given for s in row])
    return task.loss is cross_entropy and _reading.able(model, longest)


def ask(
    model: PreTrainedModel,
    given: Sequence[Sequence[TokenRow]],
    prompts: Sequence[list[int]],
    new_tokens: int,
    context: int,
    stop_ids: tuple[int, ...],
    on_progress: Callable[[int, int], None],
) -> tuple[list[np.ndarray], list[list[int]]]:
    """For each row the nats of each of its given sequences, summed as its weights say; and the greedy answer to its prompt.

    An answer is without the stop token, of at most `new_tokens`, and ends where the `context` does. Raises InputError for a prompt that
    leaves no room.
    """
    import torch

    from tunery.infer._answering import go_on, greedy
    from tunery.infer._reading import Reader, Wanted, together
    from tunery.infer._shared_attention import seen_by

    for n, prompt in enumerate(prompts):
        check_prompt(prompt, context, f"prompt {n + 1}: ")
    nats: list[Any] = [None] * len(prompts)
    said: list[list[int]] = [[] for _ in prompts]
    arrays = [np.array(p) for p in prompts]
    done = 0
    with seen_by(model), torch.inference_mode():
        reader = Reader(model)
        for numbers in together(arrays, new_tokens):
            rows = [Wanted(arrays[n], np.array([len(prompts[n]) - 1])) for n in numbers]
            owned = []
            for n in numbers:
                owned.append(range(len(rows), len(rows) + len(given[n])))
                rows += [Wanted(s.tokens[: places[-1] + 1], places) for s in given[n] for places in [_predicting(s)]]
            read = reader.read(rows)
            best, losses = _scores(reader, read, [s for n in numbers for s in given[n]], len(numbers))
            answers = []
            for k, n in enumerate(numbers):
                nats[n] = np.array([losses[row - len(numbers)] for row in owned[k]])
                limit = min(new_tokens, context - len(prompts[n]))
                answers.append(_known([k, *owned[k]], rows, [best[read.at[row]] for row in (k, *owned[k])], limit, stop_ids))
            go_on(reader, read, answers, greedy, stop_ids)
            for n, answer in zip(numbers, answers, strict=True):
                said[n] = answer.tokens
            done += len(numbers)
            on_progress(done, len(prompts))
    return nats, said


def _predicting(sequence: TokenRow) -> np.ndarray:
    """The places whose outputs predict what is learned; of a sequence from which nothing is, some place."""
    learned = np.flatnonzero(sequence.weights[1:])
    return learned if len(learned) else np.array([len(sequence.tokens) - 1])


def _scores(reader: Reader, read: Read, sequences: Sequence[TokenRow], first: int) -> tuple[np.ndarray, list[float]]:
    """(U,) the likeliest next token at each state that was read, and each sequence's nats. The sequences were rows `first` and on."""
    import torch

    weights = [s.weights[1:][np.flatnonzero(s.weights[1:])] for s in sequences]
    targets = np.concatenate([np.empty(0, np.int64), *(s.tokens[1:][np.flatnonzero(s.weights[1:])] for s in sequences)])
    places = np.concatenate([np.empty(0, np.int64), *(at[: len(w)] for at, w in zip(read.at[first:], weights, strict=True))])
    best = np.empty(len(read.hidden), np.int64)
    nats = np.empty(len(places))
    for part, logits in reader.logits(read.hidden):
        best[part] = logits.argmax(-1).cpu().numpy()
        asked = np.flatnonzero((part.start <= places) & (places < part.stop))
        row, target = (torch.from_numpy(x[asked].astype(np.int64)).to(logits.device) for x in (places - part.start, targets))
        nats[asked] = (logits.logsumexp(-1)[row] - logits[row, target]).cpu().numpy()
    ends = np.cumsum([len(w) for w in weights])[:-1]
    return best, [float((part * w).sum()) for part, w in zip(np.split(nats, ends), weights, strict=True)]


def _known(numbers: Sequence[int], rows: Sequence[Wanted], best: Sequence[np.ndarray], limit: int, stop_ids: tuple[int, ...]) -> Answer:
    """The greedy answer to the prompt, the first of the rows `numbers`, as far as the tree of all of them tells it.

    best: for each of these rows the likeliest next token at each of its wanted positions.
    """
    from tunery.infer._answering import Answer

    prompt = rows[numbers[0]].tokens
    token, row, answer = int(best[0][-1]), numbers[0], []
    while token not in stop_ids:
        answer.append(token)
        length = len(prompt) + len(answer)
        if len(answer) == limit:
            break
        for n, likeliest in zip(numbers[1:], best[1:], strict=True):
            at = np.flatnonzero(rows[n].positions == length - 1)
            if len(at) and np.array_equal(rows[n].tokens[:length], [*prompt, *answer]):
                token, row = int(likeliest[at[0]]), n
                break
        else:
            return Answer(row, length - 1, answer, limit)
    return Answer(row, len(prompt), answer, len(answer))  # it has ended
