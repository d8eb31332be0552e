"""`dsconv serve`: one artifact behind an HTTP interface in the shape of OpenAI's.

start        from a loaded model to a server that answers
app          routes, who may ask, errors
server       the socket, signals, the end
connections  how long a connection may take for what
engine       one thread that owns the scheduler
mailbox      from that thread to the event loop
choice       one text on its way: pieces, log-probabilities
completions  /v1/completions
chat         /v1/chat/completions
turns        messages of a request as the chat template takes them
sampling     settings that both of them take
fields       typed access to the body of a request
answers      responses: whole or as events, and readers that go away
texts        a folder: the words of both, and their tokens
problems     errors in OpenAI's shape
served       the model, its name, and the limits
metrics      counters for Prometheus
"""
