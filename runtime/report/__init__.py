"""A verdict for people and for CI systems.

page                one HTML file that needs nothing else
terminal            the same in short
figures             its figures in words, for both
plots               SVG pictures of the page
axis                where the ticks of a picture lie
junit               JUnit XML
github_annotations  annotations and a summary for GitHub Actions
"""
