"""Every type of number that a GGUF file may name: `enum ggml_type` of ggml.h.

llama.cpp dropped some; they are named here, so that a refusal can say what they were.
"""

from __future__ import annotations

from collections.abc import Mapping

# number in the file -> name, elements of a block, bytes of a block
TYPES: Mapping[int, tuple[str, int, int]] = {
    **{0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8)},
    **{24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8)},
    **{2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24)},
    **{8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110)},
    **{12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210)},
    **{15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74)},
    **{18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18)},
    **{21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136)},
    **{29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66)},
    **{39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18)},
}
# number -> name, why there is no reading it
UNREADABLE: Mapping[int, tuple[str, str]] = {
    **{4: ("Q4_2", "dropped by llama.cpp in 2023"), 5: ("Q4_3", "dropped by llama.cpp in 2023")},
    9: ("Q8_1", "llama.cpp rounds activations to it and reads no weights of it"),
    **{
        number: (name, "dropped by llama.cpp in 2024, which repacks plain types itself now")
        for number, name in (
            *((31, "Q4_0_4_4"), (32, "Q4_0_4_8"), (33, "Q4_0_8_8")),
            *((36, "IQ4_NL_4_4"), (37, "IQ4_NL_4_8"), (38, "IQ4_NL_8_8")),
        )
    },
}


def type_name(kind: int) -> str:
    """The type's name, or what stands in the file where it has none."""
    if kind in TYPES:
        return TYPES[kind][0]
    return UNREADABLE[kind][0] if kind in UNREADABLE else f"number {kind}"


def why_unreadable(kind: int) -> str:
    return UNREADABLE[kind][1] if kind in UNREADABLE else "newer than this dsconv, or damaged"
