"""From a model to what runs: checkpoints are opened, quantized and exported here.

files        what strangers' files hold, read with limits
families     what a network is, one file for each family
checkpoint   a model on disk: its tensors, how they lie, what they were made from
hub          the only part that talks to the network
forward      a family run in torch
quantize     the schemes of quant/ driven over a checkpoint
formats      what is written for each reader, a folder each
targets      where a model can run, and what it takes there
inspect      what is in a model, an artifact, or any other file

open                 any string that names a model -> a checkpoint
config_only          a model of which only config.json is known
streamed_checkpoint  a model of the hub whose shards come and go
"""
