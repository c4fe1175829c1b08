"""Words in every script: a text comes in, its words come out, folded so that equal words are equal texts.

A word is a run of letters, marks (vowel signs) and digits; in scripts that write no spaces each letter with its marks
is one, for nothing tells where words end. Knows nothing of metrics.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import regex

ASCII_WORDS = re.compile(r"[a-z0-9]+")
# Han, the Japanese syllables and the scripts of South East Asia write no spaces. Katakana, which spells foreign words,
# and Hangul stand in runs of their own, so that what is attached in another script is another word.
LETTERWISE = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Tham}\p{Javanese}\p{Balinese}\p{Tibetan}"
KATAKANA = r"\p{Katakana}ー"
WORDS = regex.compile(
    rf"[[{LETTERWISE}]&&[\p{{L}}\p{{N}}]]\p{{M}}*"
    rf"|[{KATAKANA}][{KATAKANA}\p{{M}}]*"
    r"|\p{Hangul}[\p{Hangul}\p{M}]*"
    rf"|[[\p{{L}}\p{{N}}]--[{LETTERWISE}{KATAKANA}\p{{Hangul}}]]"
    rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{LETTERWISE}{KATAKANA}\p{{Hangul}}]]*",
    regex.V1,
)
HANGUL = regex.compile(r"\p{Hangul}+")
IGNORED = regex.compile(  # what does not print, and the marks that Arabic and Hebrew may leave out
    r"\p{Cf}|[\p{Script=Arabic}\u064B-\u065F\u0670&&\p{Mn}]|\u0640|[\p{Hebrew}&&\p{Mn}]|(?<=i)\u0307", regex.V1
)
DIGITS = regex.compile(r"[\p{Nd}--0-9]", regex.V1)


def words(text: str) -> list[str]:
    """The words of a text in order: case, punctuation, white space, digits of other scripts and Unicode form folded."""
    if text.isascii():
        return ASCII_WORDS.findall(text.lower())
    return WORDS.findall(_folded(unicodedata.normalize("NFKC", text)))


def word_spans(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, word) of each word where it stands in the text as it is."""
    for match in WORDS.finditer(text):
        yield match.start(), match.end(), _folded(unicodedata.normalize("NFKC", match.group()))


def is_hangul(word: str) -> bool:
    """Whether a word is Korean: particles may follow it without a space."""
    return HANGUL.fullmatch(word) is not None


def _folded(text: str) -> str:
    folded = DIGITS.sub(lambda match: str(unicodedata.decimal(match.group())), text.casefold())
    return unicodedata.normalize("NFC", IGNORED.sub("", folded))
