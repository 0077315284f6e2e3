"""Conversations: every assistant turn is learned, the last one is what evaluation asks for."""

from tunery.tasks import _next_token

FORM = "tokens"
Options, renderer, loss = _next_token.Options, _next_token.renderer, _next_token.loss
SUMMARY = "learn the assistant's turns of conversations, or completions of prompts"
ROWS: tuple[str, ...] = ("chat", "completion")
ANSWERS = True
