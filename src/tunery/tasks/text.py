"""Plain text: every token is learned. There is no answer to compare, so the likelihood is the measure."""

from tunery.tasks._next_token import loss as loss

SUMMARY = "continue pretraining on plain text"
ROWS = ("text",)
ANSWERS = False
