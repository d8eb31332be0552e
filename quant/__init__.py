"""Pure functions on arrays: what a scheme is, and how weights are rounded to it.

schemes     what every scheme offers
labels      the table of schemes and their words
integer     integer codes, a scale per group
scale_min   a scale and a minimum per group
int8_rows   int8 by rows, inputs int8 too
scales      the scales of least error
gptq        column by column, later columns correct earlier ones
smoothing   loud channels moved from inputs to weights
allocation  bits per matrix by a knapsack
packing     codes in bytes
recoding    codes of one scheme in another, where nothing changes
sqnr        signal-to-noise ratios
"""
