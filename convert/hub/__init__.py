"""The only package that talks to the network: models of the Hugging Face hub and of ModelScope.

model_name     what a user may write for a model
name_checks    which names, hashes and commits of an endpoint may become part of a path
listing        the files of a model at one commit
endpoint       is the address in a variable one?
catalogue      who lists them: hugging_face, modelscope
listing_cache  listings of an earlier day, for when no endpoint answers
file_choice    which of the files are worth fetching, which GGUF model of several
client         HTTP with resumable bodies: redirects, tokens
retry          when to try again, and how long to wait before
download       many files and ranges at once, hashed while they arrive
file_writer    what has arrived of one file, put on the disk in order
transfer       one file of them: what has come of it, and its hash
range_request  one body of them
hashes         of what has arrived: sha256, or git's sha1 of a blob
stores         where files lie: the hub's own cache, or a plain folder
messages       what is said when an endpoint refuses or does not answer
pull           all of it together
"""
