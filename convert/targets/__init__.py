"""Where a model can run. A target is a row.

table           all rows: onnx_targets, vendor_targets
target          the shape of a row
choice          from a row to the options of an export
lint            is a graph what a target takes? checks: rules that lists cannot say
operators       what providers have
graph_view      what a check needs to know of a graph
"""
