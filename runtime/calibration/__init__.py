"""Text to calibrate on.

file_text     the tokens of a file, or of parts all over a large one
text_windows  files, or the model itself, as windows of tokens
writing_rate  how long that takes, for plan
self_written  what the model writes, from calibration_prompts.jsonl and calibration_texts.jsonl
"""
