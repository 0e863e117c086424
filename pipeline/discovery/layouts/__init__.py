"""Layouts: folder structures of known kinds of data sets; one module and one row of `table` for each.

Takes: the image files and tables below a folder. Gives: scans with their labels, modality, split and case. A
layout takes the files that it understands; what is left is paired by name (`pairing`).
"""
