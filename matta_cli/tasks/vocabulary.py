"""What models that read text must share: their tokens; rows beyond those are left out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from matta_cli.errors import MattaError
from matta_cli.models.tokenizer import around, same_tokens, spare_tokens, tokenizer_of
from matta_cli.tasks.task import Task, raw

# where only one tokenizer is there: matrices are padded to a multiple of this, by less than that
_MULTIPLE, _PADDING = 8, 1024


def common(
    task: Task, theirs: int, ours: int, folder: Path | None, home: Path | None, instead: str = ""
) -> int:
    """How many tokens a Teacher and a model share: of vocabularies of these sizes.

    folder, home: where the tokenizers of the Teacher and of the model lie. What is assumed goes
    into the task's notes. instead: what else can be done, where the tokens differ. Raises
    ``MattaError`` where they do.
    """
    given = task.recipe.convert.tokenizer
    own, other = tokenizer_of(home, given), tokenizer_of(folder)
    if own is not None and other is not None:
        if not same_tokens(own, other, whole=not task.tokens):
            names = f"its tokenizer ({folder}) is another one than the model's"
            what = "the same numbers are other tokens to it, so it cannot read what the model reads"
            do = "take a Teacher of the same tokenizer"
            raise MattaError(f"{names} ({home or given}): {what}; {do}{instead}.")
        if task.tokens:
            task.notes += _framed(other, own)
    elif other is None:
        task.notes.append(
            "The Teacher brings no tokenizer: its tokens are assumed to be the model's."
        )
    if theirs == ours:
        return ours
    there = [
        len(tokenizer) - len(spare_tokens(tokenizer, rows))
        for tokenizer, rows in ((own, ours), (other, theirs))
        if tokenizer is not None
    ]
    least = min(there, default=0)
    padding = abs(theirs - ours) < _PADDING and max(theirs, ours) % _MULTIPLE == 0
    padded = len(there) == 2 or padding
    if not there or not padded or min(theirs, ours) < least:
        numbers = f"The Teacher has {theirs:,} tokens in its vocabulary, the model {ours:,}"
        raise MattaError(f"{numbers}: they must be the same to distil.")
    shared = min(theirs, ours, least)
    sizes = f"{theirs:,} rows in the Teacher, {ours:,} in the model"
    task.notes.append(
        f"The tokenizer has {least:,} tokens ({sizes}): the first {shared:,} are used."
    )
    return shared


def _framed(theirs: Any, ours: Any) -> list[str]:
    """A sentence where a Teacher's texts begin, or end, with other tokens than the model's."""
    notes = []
    for does, at in (("begins", 0), ("ends", 1)):
        tokens = [around(own)[at] or [own.eos_token_id] * at for own in (theirs, ours)]
        if tokens[0] != tokens[1]:
            both = [ours.decode(own) if own and None not in own else "nothing" for own in tokens]
            tokenizer = f"The Teacher's tokenizer {does} a text with {both[0]}"
            ours_does = f"the model's with {both[1]}"
            notes.append(f"{tokenizer}, {ours_does}: the Teacher reads texts as the model does.")
    return notes


def narrowed(model: Any, outputs: int) -> nn.Module:
    """A language model that gives the logits of its first tokens alone; it shares its weights."""
    found = copy.copy(model)
    found._modules = dict(model._modules)
    found.config = copy.deepcopy(model.config)
    found.config.vocab_size, found.config.tie_word_embeddings = outputs, False
    names = [name for name, child in model._modules.items() if child is _head(model)]
    if not names:
        return _First(model, found.config, outputs)
    old: Any = model._modules[names[0]]
    head = nn.Linear(old.in_features, outputs, bias=old.bias is not None, device="meta")
    head.weight = nn.Parameter(old.weight.detach()[:outputs], requires_grad=False)
    if old.bias is not None:
        head.bias = nn.Parameter(old.bias.detach()[:outputs], requires_grad=False)
    found._modules[names[0]] = head.train(model.training)
    return found


def _head(model: Any) -> nn.Linear | None:
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head if type(head) is nn.Linear else None


class _First(nn.Module):
    """A model whose first logits alone are used."""

    def __init__(self, model: nn.Module, config: Any, outputs: int) -> None:
        super().__init__()
        self.model, self.config, self.outputs = model, config, outputs

    def forward(self, **inputs: Any) -> Tensor:
        """Logits [..., outputs]."""
        return raw(self.model(**inputs))[..., : self.outputs]
