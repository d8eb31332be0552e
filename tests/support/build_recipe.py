"""A recipe that a tiny model builds in a second; settings that make any recipe nearly so."""

FAST = ("quantize.method=rtn", "verify.window=32", "verify.max_tokens=64")
RECIPE = """
description = "a test"
source = "{source}"
[quantize]
bits = 8
embedding_bits = 8
method = "rtn"
[export]
format = "{format}"
accuracy_level = 0
[verify]
max_kl = 0.05
window = 32
max_tokens = 64
"""
