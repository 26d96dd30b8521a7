"""What conversations, and prompts with their completions, become: tokens, some to be predicted."""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from matta_cli.errors import MattaError, said
from matta_cli.models.tokenizer import around

# the columns of both kinds of rows; messages may have other names, as ShareGPT's have
MESSAGES, PAIR = ("messages",), ("prompt", "completion")
TALKS = (MESSAGES, ("conversations",), ("conversation",))
_UNLEARNED = ("train", "training", "loss")  # of a turn, where Axolotl or ms-swift says no
# of a turn, what is read or no part of what is said; tool calls are looked for by themselves
_READ = {*_UNLEARNED, "role", "content", "weight", "tool_calls", "tool_call_id", "from", "value"}
_ROLES = ("system", "user", "assistant")  # also with a capital
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}  # ShareGPT's words

# Templates that write the day's date would make other tokens each day; Llama's own default.
_DATE = datetime.date(2024, 7, 26)

Span = tuple[int, int]  # of characters
Encoded = tuple[list[int], list[bool]]  # tokens, and which of them are to be predicted


class Left(Exception):
    """A row that is left out, with what is wrong with it: ``without messages``, say."""


class Chat:
    """A tokenizer's way from the rows of ``columns`` to tokens.

    everything: whether prompts are to be predicted, too. Conversations are rendered by the chat
    template that lies in the tokenizer's folder, in transformers' sandbox. Raises ``MattaError``
    where there is none, and the columns hold messages.
    """

    def __init__(self, tokenizer: Any, columns: Sequence[str], everything: bool, name: str) -> None:
        self.tokenizer, self.columns, self.everything = tokenizer, tuple(columns), everything
        self.name = name
        if not getattr(tokenizer, "is_fast", False):
            cannot = "cannot tell which characters a token is of, as conversations need"
            raise MattaError(f"The tokenizer {cannot}: convert again with a fast one.")
        try:
            self.template: str = tokenizer.get_chat_template()
        except ValueError:  # there is none, or several without one that is the default
            self.template = ""
        if not self.template and self.columns != PAIR:
            raise self._no_template()
        # by HF's tags a template says itself what the assistant's part is
        self.tagged = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.template))
        self.dated = _dated(self.template)
        self.ended = 0  # rows whose completion brings its own end
        self.unwritten: Counter[str] = Counter()  # turns with what the template leaves out, by key
        begin, end = around(tokenizer)
        eos = tokenizer.eos_token_id
        self.begin, self.end = begin, end or ([] if eos is None else [eos])

    def identity(self) -> list[Any]:
        """What makes other tokens of the same rows."""
        return [self.columns, self.everything, self.dated, self.begin, self.end]

    def encoded(self, values: Sequence[Any], where: str) -> Encoded:
        """The tokens of a row's values. ``where``: the row, for people.

        Raises ``Left`` for a row that is left out, ``MattaError`` for one of another kind.
        """
        if self.columns != PAIR:
            return self._conversation(self._messages(values[0], self.columns[0], where), where)
        prompt, completion = values
        if prompt is None or completion in (None, "", []):
            raise Left("without a prompt or a completion")
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._strings(prompt, completion)
        if isinstance(prompt, str) or isinstance(completion, str):
            kinds = ["messages" if isinstance(v, list) else _kind(v) for v in values]
            both = f"'prompt' and 'completion' hold {' and '.join(kinds)}"
            raise self._wrong(f"{both} in {where}: give both as text, or both as messages")
        if not self.template:
            raise self._no_template()
        before = self._messages(prompt, "prompt", where)
        whole = before + self._messages(completion, "completion", where)
        return self._conversation(whole, where, len(before))

    def _strings(self, prompt: str, completion: str) -> Encoded:
        """Both as one text, which begins and ends as documents do."""
        if not completion.strip():
            raise Left("without a prompt or a completion")
        whole = prompt + completion
        ids, predicted = self._tokens(whole, [(len(prompt), len(whole))])
        self.ended += bool(self.end) and ids[-len(self.end) :] == self.end
        learned = [self.everything] * len(self.begin) + predicted + [True] * len(self.end)
        return [*self.begin, *ids, *self.end], learned

    def _conversation(self, messages: list[Any], where: str, prompt: int = 0) -> Encoded:
        """Messages, the first ``prompt`` of which are not to be predicted, whoever says them.

        Nor are turns of weight 0, as OpenAI's files mark them.
        """
        self._look(messages)
        if self.everything:
            whole = self._rendered(messages)
            return self._tokens(whole, [(0, len(whole))])
        # what begins a conversation answers nothing: it is prompt
        first = max(prompt, 1)
        turns = [k for k in range(first, len(messages)) if messages[k]["role"] == "assistant"]
        if not turns:
            roles = ", ".join(dict.fromkeys(str(message["role"]) for message in messages))
            raise Left(f"without an assistant's turn that answers something (its roles: {roles})")
        if any(not _says(messages[k]) for k in turns):
            raise Left("with an assistant's turn that is empty")
        weighed = [k for k in turns if messages[k].get("weight", 1)]
        if not weighed:
            raise Left("whose assistant's turns all have weight 0")
        if self.tagged:
            ids, predicted = self._by_tags(messages)
            without = [(k, k + 1) for k in turns if k not in weighed]
            left = [(self._tagged(messages[:a]), self._tagged(messages[:b])) for a, b in without]
            left.append((0, self._tagged(messages[:prompt])))
            seen = accumulate(predicted, initial=0)
            pairs = zip(predicted, seen, strict=False)
            return ids, [own and not any(a <= k < b for a, b in left) for own, k in pairs]
        whole, spans = self._rendered(messages), []
        for k in weighed:
            start = self._prefix(messages[:k], whole, True, where)
            end = self._end(messages[: k + 1], whole, start, where)
            if any(name not in whole[start:end] for name in _called(messages[k])):
                raise Left("whose tool calls the chat template does not write")
            spans.append((start, end))
        return self._tokens(whole, spans)

    def _look(self, messages: list[Any]) -> None:
        """Count the turns that say more than the template writes: thoughts, images and the like."""
        empty: tuple[Any, ...] = (None, "", [], {})
        every = ((k, v) for own in messages for k, v in own.items() if k not in _READ)
        more = [(k, v) for k, v in every if v not in empty]
        if not more:
            return
        whole = self._rendered(messages)
        for key, value in more:
            text = value.strip() if isinstance(value, str) else ""
            written = text in whole if text else re.search(rf"\b{re.escape(key)}\b", self.template)
            self.unwritten[key] += not written

    def _end(self, messages: list[Any], whole: str, start: int, where: str) -> int:
        """Where in ``whole`` the last of these messages ends, which begins at ``start``.

        Templates of thinking models write thoughts (or that there are none) in the last turn alone:
        it is not how the whole goes on, but what is said, and what follows it, stands there.
        """
        if said := str(messages[-1]["content"]).strip():
            _, found, behind = self._rendered(messages).rpartition(said)
            there = start + len(whole[start:]) - len(whole[start:].lstrip())
            if found and whole.startswith(said + behind, there):
                return there + len(said + behind)
        return self._prefix(messages, whole, False, where)

    def _by_tags(self, messages: list[Any]) -> Encoded:
        """What the template's own tags say is the assistant's."""
        try:
            made = self.tokenizer.apply_chat_template(
                messages,
                chat_template=self.dated,
                tokenize=True,
                return_dict=True,
                return_assistant_tokens_mask=True,
            )
        except Exception as error:  # a template may fail in any way
            raise Left(f"that the chat template refuses ({_sentence(error)})") from None
        return list(made["input_ids"]), [bool(own) for own in made["assistant_masks"]]

    def _tagged(self, messages: list[Any]) -> int:
        """How many tokens of these messages are the assistant's, by the template's tags."""
        own = any(message["role"] == "assistant" for message in messages)
        return sum(self._by_tags(messages)[1]) if own else 0

    def _prefix(self, messages: list[Any], whole: str, opened: bool, where: str) -> int:
        """How many characters of ``whole`` these first messages are.

        opened: with what opens the assistant's turn. Raises ``MattaError`` where they are not how
        the whole begins, so that nobody knows which part is the assistant's.
        """
        text = self._rendered(messages, opened) if messages else ""
        if whole.startswith(text):
            return len(text)
        marks = "does not mark what the assistant says ({% generation %})"
        other = f"makes other text of the first {len(messages)} messages of {where} alone than "
        other += "where the rest follows"
        hint = "pass --train-on all, or give each turn a row of its own, as prompt and completion"
        raise MattaError(f"{self.name!r}: the chat template {marks}, and {other}: {hint}.")

    def _rendered(self, messages: list[Any], opened: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.dated, tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # a template may fail in any way
            raise Left(f"that the chat template refuses ({_sentence(error)})") from None
        return str(text)

    def _tokens(self, text: str, spans: Sequence[Span]) -> Encoded:
        """A text's tokens; those to be predicted hold a character of one of the spans, or more."""
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        predicted, number, last = [], 0, 0
        for start, end in made["offset_mapping"]:
            # byte-level tokenizers leave blanks out of what they say that a token is of
            start = start if start < end else min(last, start)
            while number < len(spans) and start >= spans[number][1]:
                number += 1
            inside = number < len(spans) and end > spans[number][0]
            predicted.append(self.everything or inside)
            last = end
        return list(made["input_ids"]), predicted

    def _messages(self, value: Any, column: str, where: str) -> list[dict[str, Any]]:
        """Messages without what is None in them, as Parquet fills all of one shape."""
        if value is None or value == []:
            raise Left("without messages")
        if not isinstance(value, list):
            raise self._wrong(f"{column!r} holds {_kind(value)} in {where}, not a list of messages")
        found = []
        for message in value:
            message = _renamed(message if isinstance(message, dict) else {})
            if not isinstance(message["role"], str):
                shape = "an object with a role and a content"
                raise self._wrong(f"{column!r} holds a message in {where} that is not {shape}")
            content = message.get("content")
            if content is None and message["role"] != "assistant":
                raise Left("with a message without content")
            if content is not None and not isinstance(content, str):
                holds = f"{column!r} holds a message in {where} whose content is {_kind(content)}"
                raise self._wrong(f"{holds}, not text")
            if message.get("weight") not in (None, 0, 1):
                holds = f"{column!r} holds a message in {where} of weight {message['weight']!r}"
                raise self._wrong(f"{holds}: only 0 (not to be learned) and 1 are known")
            kept = {name: own for name, own in message.items() if own is not None}
            found.append({"content": "", **kept})
        return found

    def _wrong(self, sentence: str) -> MattaError:
        return MattaError(f"{self.name!r}: {sentence}.")

    def _no_template(self) -> MattaError:
        several = getattr(self.tokenizer, "chat_template", None)
        if isinstance(several, dict) and several:
            named = ", ".join(sorted(several))
            which = f"has several chat templates ({named}), and none is called default"
            do = "put the one to take in a file chat_template.jinja beside it"
            holds = f"{self.name!r} holds messages, but the model's tokenizer"
            return MattaError(f"{holds} {which}: {do}.")
        lacks = "but the model's tokenizer has no chat template"
        hint = "take a tokenizer that has one (convert with --tokenizer)"
        instead = "or give prompts and completions as text, in columns 'prompt' and 'completion'"
        return MattaError(f"{self.name!r} holds messages, {lacks}: {hint}, {instead}.")


def _renamed(message: dict[str, Any]) -> dict[str, Any]:
    """A message by the names that templates know, its parts put together where all are text."""
    named: dict[str, Any] = {"role": None, **message}
    if named["role"] is None and "from" in named:
        named |= {"role": named.pop("from"), "content": named.pop("value", None)}
    if isinstance(named["role"], str):
        role = named["role"].strip().lower()
        named["role"] = _SPEAKERS.get(role, role if role in _ROLES else named["role"])
    if any(named.get(mark) is False for mark in _UNLEARNED):
        named["weight"] = 0
    parts = named.get("content")
    if isinstance(parts, list) and parts:
        texts = [part.get("text") for part in parts if isinstance(part, dict)]
        if len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
            named["content"] = "".join(map(str, texts))
    return named


def _says(message: dict[str, Any]) -> bool:
    """Whether an assistant's turn says, or calls, anything."""
    return bool(str(message.get("content", "")).strip() or message.get("tool_calls"))


def _called(message: dict[str, Any]) -> list[str]:
    """The names of the tools that a turn calls."""
    calls = message.get("tool_calls")
    functions = [
        call.get("function", call)
        for call in (calls if isinstance(calls, list) else [])
        if isinstance(call, dict)
    ]
    return [str(own["name"]) for own in functions if isinstance(own, dict) and own.get("name")]


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else "no text")


def _sentence(error: Exception) -> str:
    return said(error).strip().rstrip(".")


def _dated(template: str) -> str | None:
    """A template that writes the same date whenever it runs; None: the tokenizer's own."""
    if "strftime_now" not in template:
        return None
    formats = set(re.findall(r"strftime_now\(\s*[\"']([^\"']*)[\"']", template))
    known = {form: _DATE.strftime(form) for form in sorted(formats)}
    macro = f"{{{{ {known!r}.get(format, {str(_DATE)!r}) }}}}"
    return f"{{%- macro strftime_now(format) -%}}{macro}{{%- endmacro -%}}{template}"
