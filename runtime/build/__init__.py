"""From a recipe to a folder with an artifact and its verdict: `dsconv build`.

recipe       what a recipe may say
toml_schema  a TOML table into a dataclass, every key checked
source       where the model lies
steps        what is done after the pull, an object each
build        the walk over the steps
state        what was done before, and need not be done again
verdict      the verify step: the recipe's limits, verdict.json and the report
model_card   README.md of the folder
report       what to tell of a build
"""
