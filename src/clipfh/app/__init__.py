"""The search page: a dataset's photos found by a photo, by a description, or by both.

`search` and `loading` know no page; `page` and `appearance` are all that knows Gradio. Training, measuring and building
an index do not belong here.
"""
