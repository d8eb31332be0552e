"""From a prompt to an answer.

answer       template, tokens, generation, text as it comes
generate     the loop, and what it took
sampling     which token comes next
speculation  tokens guessed ahead from the text so far
timed        what `bench` times
"""
