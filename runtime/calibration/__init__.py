"""Text to calibrate on.

text_windows  files, or the model itself, as windows of tokens
self_written  what the model writes, from calibration_prompts.jsonl and calibration_texts.jsonl
"""
