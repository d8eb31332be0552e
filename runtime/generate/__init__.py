"""From a prompt to an answer.

answer           template, tokens, generation, text as it comes
written_text     the text as it comes, thoughts and answer apart
chat             several turns, and what of them stays in the cache
generate         the loop, and what it took
settings         how to choose tokens: what each setting may be
model_settings   the same as the model's generation_config.json has it
generation_keys  every key of that file, and what becomes of it
sampling         which token comes next
past             what the text so far does to that
filters          which tokens stay in before one is drawn
draft            tokens guessed by a smaller model
drafted_text     one such text
drafted_batch    the same for many sequences
batch_guesser    guesses for several texts at once
draft_length     how many of them pay
pass_costs       what passes over one token and over several take
right_guesses    how often guesses are right, by their kind
speculation      tokens guessed ahead from the text so far
timed            what `bench` times
"""
