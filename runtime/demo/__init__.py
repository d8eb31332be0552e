"""The whole pipeline on a small real model, without a network.

run     import, quantize, export, answer and verify, for int4 and int8
model   where the package with the model lies
"""
