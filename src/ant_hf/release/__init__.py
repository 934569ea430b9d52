"""A run becomes a release, and a release a Hub repository; or neither.

In: a run's `final/` with its results. Out: `release/`, then one commit on the Hub that was read back.

Read `build.py` first: it gathers the records, has them judged, and makes the card. `verify.py` asks the gate,
about a release or anyone's model, and `gate.py` is its process, which knows nothing but the files; `files.py`
says what may lie in a release. `gguf.py` makes the folder of its GGUF files, for a repository of their own.
`publish.py` is all that talks to the Hub.
"""
