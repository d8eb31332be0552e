"""Who is served next: requests join a batch, get tokens, and leave.

request    what is asked for, and what came of it
scheduler  the passes
prefixes   beginnings of texts that are kept for others to come
run_all    some requests to their end
"""
