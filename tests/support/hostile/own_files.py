"""Files that dsconv writes or defines: the manifest, the journal of a run, recipes."""

from __future__ import annotations

import random
import re
from pathlib import Path

from small_models import write_checkpoint

from dsconv.atomic import MANIFEST

from .mutations import damaged_bytes, mutate_text
from .subjects import SIZES, JsonFiles, quantized


def manifests(folder: Path) -> JsonFiles:
    model = quantized(write_checkpoint(folder / "m", **SIZES), folder / "q", bits=4)
    path = model / MANIFEST
    original = path.read_text()

    def drive() -> None:
        from dsconv.runtime.sessions.onnx import accuracy_level_of
        from dsconv.runtime.verify.findings.integrity import can_be_vouched_for, integrity_findings

        findings = integrity_findings(model)
        assert findings or path.read_text() == original, "a changed manifest must be noticed"
        can_be_vouched_for(model)
        accuracy_level_of(model)

    return JsonFiles(path, [original], drive)


def journals(folder: Path) -> JsonFiles:
    from dsconv.convert.quantize.journal import JOURNAL, Journal

    purpose = {"kind": "quantize", "options": {"bits": 4}, "source": {"a": "b" * 64}}
    records = [{"modules": ["a", "b"]}, {"modules": ["c"]}]
    (folder / "j").mkdir()
    with Journal(folder / "j", purpose) as journal:
        for record in records:
            journal.append(record, [])
    path = folder / "j" / JOURNAL

    def drive() -> None:
        with Journal(folder / "j", purpose) as journal:
            for record in journal.records:
                _ = [str(module) for module in record["modules"]]

    return JsonFiles(path, [path.read_text()], drive, lines=True)


class Recipes:
    """TOML: words, numbers and marks out of place, or the value of a key replaced."""

    PIECES = re.compile(r'"[^"\n]*"|[\w.+-]+|\s|.')

    def __init__(self, folder: Path) -> None:
        from importlib import resources

        from dsconv.runtime.build.recipe import recipe_names

        self.path = folder / "r.toml"
        names = recipe_names()
        texts = resources.files("dsconv.recipes")
        self.texts = [texts.joinpath(name + ".toml").read_text("utf-8") for name in names[::5]]

    def prepare(self, rng: random.Random) -> int:
        text = rng.choice(self.texts)
        if rng.random() < 0.2:
            data = damaged_bytes(rng, text.encode())
        else:
            data = mutate_text(rng, text, self.PIECES).encode("utf-8", "surrogatepass")
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.runtime.build.recipe import load_recipe

        load_recipe(str(self.path)).check()
