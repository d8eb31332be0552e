"""Texts and tokens.

tokenizer         text to tokens and back
tokenizer_file    tokenizer.json, opened with limits
chat_template     conversations to text, by the model's template
template_sandbox  where the template runs
bounded_call      a process of its own, with an end to time and memory
stop_texts        where words that the user names end a text
prompt_source     where a prompt comes from
thinking          thoughts and answer told apart
text_file         text that the user gives
"""
