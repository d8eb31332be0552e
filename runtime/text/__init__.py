"""Texts and tokens.

tokenizer         text to tokens and back
tokenizer_keys    every key of tokenizer_config.json, and what becomes of it
added_tokens      tokens that tokenizer.json lacks
tokenizer_file    tokenizer.json, opened with limits
chat_template     conversations to text, by the model's template
template_sandbox  where the template runs
bounded_call      a process of its own, with an end to time and memory
stop_texts        where words that the user names end a text
prompt_source     where a prompt comes from
token_range       tokens that the embedding has no row for
thinking          thoughts and answer told apart
text_file         text that the user gives
json_structure    where the values of a JSON text lie
rows              what a text file is by its content, and where its rows lie
row_forms         a row of a data set to text or a conversation
turns             turns of a conversation, as data sets write them
row_rendering     rows by the chat template, in batches
documents         the documents of a file with rows; what was skipped
measured_text     the beginning of a file, for models to be compared on
"""
