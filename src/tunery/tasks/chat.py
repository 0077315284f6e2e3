"""Conversations: every assistant turn is learned, the last one is what evaluation asks for."""

from tunery.tasks._next_token import loss as loss

SUMMARY = "learn the assistant's turns of conversations, or completions of prompts"
ROWS = ("chat", "completion")
ANSWERS = True
