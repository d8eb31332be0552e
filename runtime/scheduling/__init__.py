"""Who is served next: requests join a batch, get tokens, and leave.

request     what is asked for, and what came of it
scheduler   the passes
passes      who gets how many tokens of one
job         a request on its way
cache       sequences for requests, and beginnings that are kept for others to come
beginnings  what is in the cache, found by how it begins
run_all     some requests to their end
"""
