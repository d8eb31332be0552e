"""Do an artifact's tokenizer and chat template mean what the source's mean?

Files are compared by content, not by bytes: by another writer of JSON the same tokenizer looks
different. Every finding names the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsconv.convert.checkpoint.checkpoint import GENERATION_CONFIG
from dsconv.errors import DsconvError
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.tokenizer import SPECIAL_TOKENS, TextTokenizer, read_side_file
from dsconv.runtime.text.tokenizer_file import TOKENIZER
from dsconv.runtime.verify.verdict import Finding

SETTINGS = "tokenizer_config.json"
CURE = "copy the file from the model that the artifact was made from, or export again"
IGNORED_SECTIONS = ("version", "truncation", "padding")  # undone when the tokenizer is opened
# Settings that change ids; absent is the same as what stands here.
FLAGS: Mapping[str, object] = {
    "add_bos_token": None,
    "add_eos_token": None,
    "add_prefix_space": None,
    "legacy": None,
}
PROBES = (
    "The quick brown fox jumps over 13 lazy dogs.\n\n\tdef f(x):\n        return x**2 + 1\n",
    "  naïve café, Straße, 東京, 你好，世界, здравствуй 🙂👩‍🚀 \u00a0 x²≤√2",
    "1234567890 3.14159 0xFF <think> a</think> don't WE'LL I'm",
)
TALK = (
    Message("user", "What is 2 + 2?"),
    Message("assistant", "<think>\nTwo and two.\n</think>\n\n4"),
    Message("user", "And 3 + 3?"),
)

SideFiles = Mapping[str, bytes]


def tokenizer_findings(
    artifact: SideFiles,
    reference: SideFiles,
    artifact_config: Mapping[str, Any],
    reference_config: Mapping[str, Any],
    rebuilt: bool = False,
) -> tuple[Finding, ...]:
    """Compare the side files (name -> bytes) and config.json of two models.

    rebuilt: the artifact's format keeps the tokenizer in a form of its own (GGUF): what the two do
    is compared, not what their files say.

    A reference without a tokenizer has nothing to say: then nothing is found.
    """
    if TOKENIZER not in reference:
        return ()
    if TOKENIZER not in artifact:
        return (Finding(TOKENIZER, "missing", CURE),)
    found: list[Finding] = []
    try:
        if not rebuilt:
            found += _file_findings(artifact, reference)
        found += _template_findings(artifact, reference)
        mine = TextTokenizer(artifact, artifact_config)
    except DsconvError as error:
        return (*found, Finding(error.message.partition(":")[0], error.message, CURE))
    theirs = TextTokenizer(reference, reference_config)
    found += _token_findings(mine, theirs)
    found += _bos_findings(artifact, reference, mine, theirs)
    if not found:
        found += _probe_findings(mine, theirs)
    return tuple(found)


def _file_findings(artifact: SideFiles, reference: SideFiles) -> Iterator[Finding]:
    if artifact.get(TOKENIZER) != reference[TOKENIZER]:
        mine = read_side_file(artifact, TOKENIZER).data
        theirs = read_side_file(reference, TOKENIZER).data
        for section in sorted({*mine, *theirs} - {*IGNORED_SECTIONS}):
            if _plain(mine.get(section)) != _plain(theirs.get(section)):
                difference = _difference(mine.get(section), theirs.get(section))
                yield Finding(TOKENIZER, f"{section}: {difference}", CURE)
    settings, expected = read_side_file(artifact, SETTINGS), read_side_file(reference, SETTINGS)
    for key, neutral in FLAGS.items():
        left, right = settings.data.get(key, neutral), expected.data.get(key, neutral)
        if left != right:
            yield Finding(SETTINGS, f"{key} is {left!r}, the source has {right!r}", CURE)


def _plain(section: Any) -> Any:
    """Merges are written as "a b" or as ["a", "b"]."""
    if isinstance(section, dict) and isinstance(section.get("merges"), list):
        merges = [" ".join(m) if isinstance(m, list) else m for m in section["merges"]]
        return {**section, "merges": merges}
    return section


def _difference(mine: Any, theirs: Any) -> str:
    """In words, of two sections that differ."""
    mine, theirs = _plain(mine), _plain(theirs)
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        if isinstance(mine, list) and isinstance(theirs, list):
            return _list_difference("entry", mine, theirs)
        return "differs from the source's"
    key = next(key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key))
    left, right = mine.get(key), theirs.get(key)
    if isinstance(left, list) and isinstance(right, list):
        return _list_difference(key.rstrip("s"), left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        words = [word for word in {**left, **right} if left.get(word) != right.get(word)]
        return f"{key}: {len(words)} entries differ from the source's, the first is {words[0]!r}"
    return f"{key} is {str(left)[:80]}, the source has {str(right)[:80]}"


def _list_difference(what: str, mine: list[Any], theirs: list[Any]) -> str:
    pairs = zip(mine, theirs, strict=False)
    shorter = min(len(mine), len(theirs))
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    there = f"{str(theirs[index])[:60]!r}" if index < len(theirs) else "nothing"
    here = f"{str(mine[index])[:60]!r}" if index < len(mine) else "nothing"
    counts = f"{len(mine)} of them, the source has {len(theirs)}"
    return f"{what} {index + 1} is {here}, the source has {there} ({counts})"


def _template_findings(artifact: SideFiles, reference: SideFiles) -> Iterator[Finding]:
    mine, theirs = chat_template(artifact), chat_template(reference)
    if mine is None and theirs is None:
        return
    place = _template_file(artifact if mine is not None else reference)
    if mine is None or theirs is None:
        whose = "the artifact has none" if mine is None else "the source has none"
        yield Finding(place, f"chat template: {whose}", CURE)
    elif mine.strip() != theirs.strip():
        left, right = _rendered(artifact, mine), _rendered(reference, theirs)
        if left == right:
            example = "renders the probes alike"
        else:
            example = f"renders …{left[-40:]!r}, the source's …{right[-40:]!r}"
        yield Finding(place, f"chat template: not the source's, {example}", CURE)


def _template_file(side_files: SideFiles) -> str:
    names = ("chat_template.jinja", "chat_template.json", SETTINGS)
    return next((name for name in names if name in side_files), SETTINGS)


def _rendered(side_files: SideFiles, template: str) -> str:
    """The probe conversation; what the template says instead, where it refuses."""
    try:
        tokens = TextTokenizer(side_files).special_tokens
        return render_chat(template, TALK, tokens)
    except DsconvError as error:
        return error.message


def _token_findings(mine: TextTokenizer, theirs: TextTokenizer) -> Iterator[Finding]:
    for key in SPECIAL_TOKENS:
        left, right = mine.special_tokens.get(key), theirs.special_tokens.get(key)
        if left != right:
            yield Finding(SETTINGS, f"{key} is {left!r}, the source has {right!r}", CURE)
    if set(mine.stop_ids) != set(theirs.stop_ids):
        message = f"ends texts at {list(mine.stop_ids)}, the source at {list(theirs.stop_ids)}"
        yield Finding(GENERATION_CONFIG, message, CURE)


def _bos_findings(
    artifact: SideFiles, reference: SideFiles, mine: TextTokenizer, theirs: TextTokenizer
) -> Iterator[Finding]:
    """How many BOS begin a conversation, as the template and the tokenizer write them."""
    counts = [
        _leading_bos(side_files, tokenizer)
        for side_files, tokenizer in ((artifact, mine), (reference, theirs))
    ]
    if counts[0] != counts[1]:
        message = f"a conversation begins with {counts[0]} BOS, the source's with {counts[1]}"
        yield Finding(_template_file(artifact), message, CURE)


def _leading_bos(side_files: SideFiles, tokenizer: TextTokenizer) -> int:
    template = chat_template(side_files)
    if template is None or tokenizer.bos_id is None:
        return 0
    ids = tokenizer.encode(_rendered(side_files, template))
    return next((i for i, token in enumerate(ids) if token != tokenizer.bos_id), len(ids))


def _probe_findings(mine: TextTokenizer, theirs: TextTokenizer) -> Iterator[Finding]:
    """Whatever the comparison of the files has overlooked."""
    for text in PROBES:
        if mine.encode_prompt(text) != theirs.encode_prompt(text):
            yield Finding(TOKENIZER, f"gives other ids than the source's for {text[:30]!r}", CURE)
            return
