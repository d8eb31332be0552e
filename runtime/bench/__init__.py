"""Speed, memory and load time of artifacts and of other runtimes, side by side.

subject       what is measured, and what its process answers
bench         rounds over all subjects, and what is made of them
batches       which artifact can hold how many sequences at once
process       this end of a worker: a process per subject
worker        the other end: holds a model and times it on request
machine       read bandwidth, and how much of the machine others use meanwhile
weight_bytes  what a decode step must read of the weights
report        the figures with their spread, as JSON
against       artifacts beside peers, whose models are made on request
peers         the runtimes to compare with
"""
