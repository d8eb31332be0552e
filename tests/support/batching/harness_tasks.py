"""Tasks for lm-evaluation-harness out of files on this machine: no hub is asked."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

GSM8K = """\
task: local_gsm8k
dataset_path: json
dataset_kwargs: {data_files: {train: TRAIN, test: TEST}}
output_type: generate_until
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
fewshot_config: {sampler: first_n}
num_fewshot: 5
generation_kwargs:
  {until: ["Question:", "</s>", "<|im_end|>"], do_sample: false, max_gen_toks: MOST}
metric_list:
  - {metric: exact_match, regexes_to_ignore: [",", "\\\\$", "(?s).*#### ", "\\\\.$"]}
filter_list:
  - name: flexible-extract
    filter:
      - {function: regex, group_select: -1, regex_pattern: "(-?[$0-9.,]{2,})|(-?[0-9]+)"}
      - {function: take_first}
"""
CHOICES = """\
task: local_choices
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{begin}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """\
task: local_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: TEST}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _write_task(folder: Path, text: str, **words: object) -> None:
    for word, value in words.items():
        text = text.replace(word.upper(), str(value))
    name = text.partition("\n")[0].partition(": ")[2]
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def write_gsm8k(folder: Path, source: Path, questions: int, most: int = 256) -> None:
    """The task `local_gsm8k`: five shots, the same for every question.

    source: the folder of test_0000_0199.jsonl and train_calib_256.jsonl.
    """
    found = {}
    for split, name in (("train", "train_calib_256.jsonl"), ("test", "test_0000_0199.jsonl")):
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines[:questions]]
        found[split] = _write_rows(folder / f"gsm8k_{split}.jsonl", rows)
    _write_task(folder, GSM8K, **found, most=most)


def write_choices(folder: Path, sentences: Sequence[str], questions: int, before: int = 0) -> None:
    """The task `local_choices`: how does a sentence go on, after `before` whole ones? Endings of
    other ones are wrong."""
    draw = random.Random(0)
    halves = [_halves(sentence) for sentence in sentences]
    rows = []
    for number in range(before, before + questions):
        begin, right = halves[number]
        begin = " ".join([*sentences[number - before : number], begin])
        others = draw.sample([end for i, (_, end) in enumerate(halves) if i != number], 3)
        answer = draw.randrange(4)
        choices = [*others[:answer], right, *others[answer:]]
        rows.append({"begin": begin, "choices": choices, "answer": answer})
    _write_task(folder, CHOICES, test=_write_rows(folder / "choices.jsonl", rows))


def _halves(sentence: str) -> tuple[str, str]:
    words = sentence.split()
    return " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])


def write_rolling(folder: Path, texts: Sequence[str]) -> None:
    """The task `local_rolling`: how likely are these texts?"""
    rows = [{"text": text} for text in texts]
    _write_task(folder, ROLLING, test=_write_rows(folder / "rolling.jsonl", rows))
