"""Texts of requests and answers, and the tokens that they are made of.

template_process  conversations to text, by the model's template
template_worker   where the template runs
tool_calls        calls of tools in a text
token_texts       a token's text, and its log-probability
token_places      where in a text its tokens begin
"""
