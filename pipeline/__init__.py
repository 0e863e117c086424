"""Array in, array out: from raw files to proposals, their quality and pictures of them.

discovery    the search for scans              formats      what a file is, what its header says
ingest       reading, standardising            volumes      grids of voxels, resampling
hierarchies  supervoxels, trees of regions     proposals    the choice of regions, atoms
quality      overlap with labelled structures  report       HTML pages and pictures
exchange     masks from other tools
compute      GPU or CPU threads, slabs

Nothing heavy is imported here. errors.py draws the tree of errors, toml_settings.py reads settings.
"""
