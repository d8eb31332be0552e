"""Where a model can run. A target is a row.

table           all rows: onnx_targets, vendor_targets
target          the shape of a row
choice          from a row to the options of an export
lint            is a graph what a target takes?
lint_rules      the rules that the lists of a row cannot say, by name
operators       what providers have
graph_view      what a check needs to know of a graph
"""
