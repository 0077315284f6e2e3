"""Plain text: every token is learned. There is no answer to compare, so the likelihood is the measure."""

from tunery.tasks import _next_token

FORM = "tokens"
Options, renderer, loss = _next_token.Options, _next_token.renderer, _next_token.loss
SUMMARY = "continue pretraining on plain text"
ROWS: tuple[str, ...] = ("text",)
ANSWERS = False
