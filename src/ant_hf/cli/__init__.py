"""The command line: parse, call the library, print. No logic.

`main.py` lists the commands and turns mistakes into one message; `train.py`, `models.py` and
`release.py` hold the commands by what they are about, `options.py` what they share, `tables.py` what they
print. The library is imported inside the commands, so that `--help` answers without loading torch.
"""
