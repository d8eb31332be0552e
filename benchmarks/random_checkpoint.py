"""A checkpoint with random weights in the shape of a config.json, for measuring cost, not quality.

    python benchmarks/random_checkpoint.py CONFIG_FOLDER OUT

CONFIG_FOLDER holds config.json; whatever else it holds (tokenizer) is copied. Weights are normal
with deviation 0.02 in bfloat16, norms are 1; written in a stream, so any size fits.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.safetensors import DTYPES, PlannedTensor, SafetensorsWriter

CHUNK = 1 << 22


def main(config_folder: Path, output: Path) -> None:
    output.mkdir(parents=True)
    for path in config_folder.iterdir():
        shutil.copy(path, output / path.name)
    config = config_folder / "config.json"
    parameters = parameters_of(read_family(ConfigReader(read_json_object(config), str(config))))
    planned = [PlannedTensor(p.name, "BF16", p.shape) for p in parameters]
    random = np.random.default_rng(0)
    with SafetensorsWriter(output / "model.safetensors", planned) as writer:
        for parameter in parameters:
            norm = parameter.role is Role.VECTOR and parameter.name.endswith("weight")
            for start in range(0, parameter.size, CHUNK):
                count = min(CHUNK, parameter.size - start)
                values = np.float32(0.02) * random.standard_normal(count, np.float32)
                rows = np.ones(count) if norm else values
                writer.write(parameter.name, rows.astype(DTYPES["BF16"]))
    print(f"{sum(p.size for p in parameters):,} parameters in {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
