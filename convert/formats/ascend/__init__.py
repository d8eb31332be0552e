"""AscendV1, what Huawei's software reads.

export       the folder
description  what its description says, written and read
"""
