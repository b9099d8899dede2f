"""Opens a tokenizer file, and checks it first: on a broken one the `tokenizers` library panics or takes all memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from infid_engines.documents import parse_json
from infid_engines.errors import EngineFolderError

LENGTH = 77
_TRIED = ("", "word " * LENGTH)


def open_tokenizer(path: Path) -> Tokenizer:
    """Open a tokenizer that turns every text into 77 ids.

    Raises:
        EngineFolderError: the file is missing, broken, or does not always return 77 ids.
    """
    again = "Build the engine folder again."
    try:
        content = path.read_bytes()
        document = parse_json(content)
        _check_length(document)
        _check_template(document)
        tokenizer = Tokenizer.from_str(content.decode())
        lengths = [len(tokenizer.encode(text).ids) for text in _TRIED]
    except BaseException as error:
        # the library raises a bare Exception, and a BaseException when its Rust code panics
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise EngineFolderError(f"{path} cannot be read ({error}).", fix=again) from error
    if lengths != [LENGTH, LENGTH]:
        raise EngineFolderError(f"{path} returns {lengths[0]} to {lengths[1]} ids, not always {LENGTH}.", fix=again)
    return tokenizer


def _check_length(document: Any) -> None:
    """Reject any other length before encoding: the library would try to pad to 2**40 ids.

    Raises:
        ValueError: the length is not 77, or the fields are missing.
    """
    try:
        found = (
            document["padding"]["strategy"],
            document["truncation"]["max_length"],
            document["truncation"]["stride"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError("it neither pads nor truncates") from error
    if found != ({"Fixed": LENGTH}, LENGTH, 0):
        raise ValueError(f"it pads to {str(found[0])[:40]} and truncates to {str(found[1])[:40]}, not {LENGTH}")


def _check_template(document: Any) -> None:
    """Reject a template that uses an undefined token, on which the library panics with every text.

    Raises:
        ValueError: a token is undefined (the message names it), or there is no such template.
    """
    try:
        template = document["post_processor"]
        pieces = [*template["single"], *template["pair"]]
        used = {piece["SpecialToken"]["id"] for piece in pieces if "SpecialToken" in piece}
        undefined = sorted(used - set(template["special_tokens"]))
    except (KeyError, TypeError) as error:
        raise ValueError("it has no template of start and end tokens") from error
    if undefined:
        raise ValueError(f"its template uses {undefined[0]!r}, which it does not define")
