"""What people look at: terminal tables, Markdown, HTML pages, charts, pictures, and the summary that they are made of.

Nothing is measured here.
"""
