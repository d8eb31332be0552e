"""A file of prompts: answers to all of them, many at a time.

rows          what a row asks
row_settings  how it wants its answer
answer        the answers, in the order in which they are done
output        the file of answers, which a killed run goes on with
run           from file to file
"""
