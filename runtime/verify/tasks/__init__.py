"""Tasks: questions with one right answer.

run         a task of an artifact and its reference
questions   the rows of a file
choices     questions with answers to choose from
answers     the answer that a text ends up with, and is it right
boxes       what stands in the last box
ask         every question, many at a time
majority    the answer that most samples give
statistics  shares, differences, and how sure they are
"""
