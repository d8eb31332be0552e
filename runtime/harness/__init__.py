"""What an evaluation harness asks of a model: log-likelihoods and texts, many at once.

options     what a user says about the model and how it runs
texts       text to tokens and back, chats, where a text begins and ends
likelihood  how likely continuations are
settings    how a task wants its texts to be written
writing     texts until they end
"""
