"""Text of others, made fit to be shown: in one line, without control characters."""

import unicodedata


def one_line(error: BaseException, limit: int = 400) -> str:
    """What another library's error says, in one line of at most about `limit` characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[:limit] + " ..."


def visible(text: str, encoding: str = "utf-8") -> str:
    """The text with each character that controls, hides, or does not fit the encoding escaped."""
    shown = "".join(
        # Cc: escape, newline; Cf: right-to-left overrides; Zl, Zp: line separators; Cs: surrogates.
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs")
        else character
        for character in text
    )
    return shown.encode(encoding, errors="backslashreplace").decode(encoding)
