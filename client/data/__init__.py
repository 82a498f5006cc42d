"""From files to batches: one file (pixels), the archive (nih), the decoded cache, and batches.

Never here: a model, a loss, or anything that leaves the site.
"""
