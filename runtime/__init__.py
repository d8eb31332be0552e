"""Artifacts run here: sessions, answers, verdicts, measurements, and the commands.

sessions          a model loaded, one file per runtime
native            the engine in C++
batches           many sequences over the same weights, one file per runtime
text              text to tokens and back
generate          from a prompt to its answer
scheduling        who of many requests is served next
harness           what evaluation harnesses ask of a model
serve             one artifact for many clients, over HTTP
prompts           a file of prompts, answered many at a time
calibration       text to calibrate on
verify            an artifact against its original
report            a verdict shown
bench             speed and memory side by side
doctor            what works on this machine
build             the whole way from one recipe
demo              the whole way on a small model
commands          the command line, a file per command
command_line      what every command has: help, completion, exit codes
quantize_request  what a user asks of a quantization, each choice declared once
option_fields     fields of what may be asked: default, help, limits; how many threads
quantize          what `dsconv quantize` does
plan              what it will need of this machine
export            what `dsconv export` does: the table of exporters
model_paths       what a user names: a model, which is pulled first, and an output
console           what people see: progress, sizes, lines on stderr
memory            peak memory of this process, and how much the machine has
"""
