"""Chat templates: render conversations to tokens, with variables that the user gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, meta

from softh_probe.errors import InputError, abbreviated

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Parameters of `apply_chat_template` that a template reads as variables.
_VARIABLES = {"tools", "documents", "add_generation_prompt"}


def check_template_kwargs(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> None:
    """Check that a tokenizer's chat template reads variables of these names; templates ignore all others.

    Raises:
        InputError: there is no chat template, or it never reads a variable of that name.
    """
    if not kwargs:
        return
    try:
        template = tokenizer.get_chat_template(tools=kwargs.get("tools"))
    except ValueError as error:
        raise InputError(
            "chat_template_kwargs: the tokenizer has no chat template that could read them; leave them out, or name a "
            "chat model's tokenizer by --tokenizer"
        ) from error
    ours = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _VARIABLES | {"messages"}
    read = _variables(template) - ours
    if unread := sorted(kwargs.keys() - read):
        raise InputError(
            f"chat_template_kwargs: the chat template reads no variable {abbreviated(unread)}; it reads "
            f"{abbreviated(sorted(read), 12) or 'none'}"
        )


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], kwargs: Mapping[str, Any], number: int
) -> list[int]:
    """Give the token ids of a conversation; the template writes the special tokens itself.

    Args:
        tokenizer: the model's tokenizer.
        messages: messages with role and content.
        kwargs: variables of the template.
        number: number of the document, for errors.

    Raises:
        InputError: the tokenizer has no chat template, or the template does not take this conversation.
    """
    if getattr(tokenizer, "chat_template", "") is None:
        raise InputError(
            f"tokenizer: it has no chat template, but document {number} is a conversation; take a chat model's "
            "tokenizer or a text_column of plain text"
        )
    try:
        ids = tokenizer.apply_chat_template(messages, return_dict=False, tokenizer_kwargs={"verbose": False}, **kwargs)
    except Exception as error:  # a template is a program of the tokenizer's author and may raise anything
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"tokenizer: its chat template does not take document {number}: {why}") from error
    return cast(list[int], ids)


def _variables(template: str) -> set[str]:
    """List the variables that a template reads and does not only set itself."""
    # The private function knows the extensions that templates may use.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        environment = _compile_jinja_template(template).environment
        return meta.find_undeclared_variables(environment.parse(template))
    except TemplateError as error:
        raise InputError(f"tokenizer: its chat template cannot be read: {error}") from error
