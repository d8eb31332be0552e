"""A model of lm-evaluation-harness: `python -m dsconv.lm_eval run --model dsconv --model_args
path=ARTIFACT --tasks …`, with every other option of `lm_eval run`.

Versions of lm-evaluation-harness that look for plugins find the model by its entry point.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

if __name__ == "lm_eval":
    raise ImportError(
        "Python looks for lm_eval in the folder of dsconv itself: start from another folder"
    )
try:
    # First the models, which register the names that come with the harness; in 0.4.13 they are
    # not registered any more once another model is.
    import lm_eval.models  # noqa: F401
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"lm-evaluation-harness is missing ({error}): pip install lm_eval"
    ) from error

from dsconv.errors import DsconvError
from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.harness.likelihood import Continuation, Score, score
from dsconv.runtime.harness.options import read_options
from dsconv.runtime.harness.settings import read_settings
from dsconv.runtime.harness.texts import Texts, logger
from dsconv.runtime.harness.writing import Task, cut, write
from dsconv.runtime.text.tokenizer import tokenizer_remarks

Window = tuple[tuple[str, str] | None, list[int], list[int]]  # text, context and continuation


@register_model("dsconv")
class DsconvLM(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """An artifact, or a checkpoint, in the runtime that `dsconv run` would choose.

    The arguments are the fields of `HarnessOptions`.
    """

    def __init__(
        self,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__()
        self._options = read_options(arguments, batch_size, device)
        loaded = self._options.load()
        self._loaded = loaded
        self._texts = Texts(loaded, self._options)
        for remark in tokenizer_remarks(loaded.side_files):
            logger.warning(remark)
        where = f"{loaded.runtime} on {loaded.provider}"
        logger.info(f"{self._options.path}: {where}; --device is not read, provider=NAME is")
        self._batch = open_batch(loaded, self._options.batch_options())

    @property
    def eot_token_id(self) -> int:
        return self._texts.end_id

    @property
    def prefix_token_id(self) -> int:
        return self._texts.prefix_id

    @property
    def max_length(self) -> int:
        context = self._batch.context_length
        return min(self._options.max_length or context, context)

    @property
    def max_gen_toks(self) -> int:
        return self._options.max_gen_toks

    @property
    def batch_size(self) -> int:
        return self._batch.max_sequences

    @property
    def tokenizer_name(self) -> str:
        return f"dsconv-{self._texts.fingerprint}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._texts.encode(string, add_special_tokens)

    def tok_decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._texts.tokenizer.decode(list(tokens), skip_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        if chat_template is False or chat_template is None:
            return None
        return self._texts.template(chat_template if isinstance(chat_template, str) else None)

    def apply_chat_template(
        self, chat_history: list[dict[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        return self._texts.render(chat_history, add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the results of the harness."""
        options = self._options
        return {
            "model_runtime": self._loaded.runtime,
            "model_provider": options.provider,
            "model_activations": options.batch_options().activations,
            "model_kv": options.cache_type,
        }

    def _loglikelihood_tokens(
        self, requests: Sequence[Window], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Score]:
        asked = [Continuation(context, tokens) for _, context, tokens in requests]
        most = max((len(item.context) + len(item.tokens) for item in asked), default=0)
        if most > self.max_length + 1:
            logger.warning(f"{most} tokens are cut from the left to {self.max_length + 1}")
        with tqdm(total=len(asked), desc="dsconv: loglikelihood", disable=disable_tqdm) as bar:

            def told(index: int, found: Score) -> None:
                bar.update()
                if requests[index][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[index][0], found)

            return score(self._batch, asked, self.max_length, told)

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        windows: list[Window] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for context, tokens in self._rolling_windows(request.args[0]):
                windows.append((None, context, tokens))
                owners.append(number)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm)
        for number, (logarithm, _) in zip(owners, found, strict=True):
            totals[number] += logarithm
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _rolling_windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        """As every model of the harness cuts long texts: each token is scored once."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return map(make_disjoint_window, windows)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        tasks = [self._task(*request.args) for request in requests]
        texts = [""] * len(tasks)
        with tqdm(total=len(tasks), desc="dsconv: generate", disable=disable_tqdm) as bar:

            def told(index: int, tokens: Sequence[int]) -> None:
                bar.update()
                texts[index] = self._judged(tokens, tasks[index])
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])

            write(self._batch, self._texts.tokenizer, tasks, self.max_length, told)
        return texts

    def _task(self, context: str, given: dict[str, Any]) -> Task:
        options = self._options
        read = partial(read_settings, loaded=self._loaded, seed=options.seed)
        settings = read(given, max_tokens=options.max_gen_toks)
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        return Task(tokens, settings.ending_at(self._texts.end_text))

    def _judged(self, tokens: Sequence[int], task: Task) -> str:
        """Without thoughts, where the user said what they end with."""
        mark = self._options.think_end_token
        if isinstance(mark, int) and mark in tokens:
            place = len(tokens) - 1 - list(reversed(tokens)).index(mark)
            tokens = tokens[place + 1 :]
        text = self._texts.tokenizer.decode(list(tokens))
        if isinstance(mark, int):
            return cut(text.lstrip(), task.settings.until, None)
        return cut(text, task.settings.until, mark)


def main() -> None:
    """`lm_eval`, which knows the model by now."""
    try:
        cli_evaluate()
    except DsconvError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
