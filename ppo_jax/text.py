"""Text fit to be shown: that of others, without control characters, and what is to be typed."""

import shlex
import sys
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


def install_hint(package: str, extra: str) -> str:
    """The command that gives this Python a package, alone or with all of an extra of ppo-jax,
    which itself is on no index."""
    python = shlex.quote(sys.executable)
    return f"{python} -m pip install {package} (or -e '.[{extra}]' in the repository)"
