"""What every stage needs and none is about: files, disk, locks, console, plots, pages, hardware.

Nothing here knows of models or text. `files.py` first: an artefact is written whole or not at all, carries
the sha256 of what it was made from, and is checked before it is used. `names.py` has the names of files
that more than one stage knows.
"""
