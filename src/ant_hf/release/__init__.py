"""A run becomes a release, and a release a Hub repository; or neither.

In: a run's `final/` with its results. Out: `release/`, then one commit on the Hub that was read back.

Read `build.py` first: it gathers the records, runs `gate.py` on the reloaded files in a process of its own,
and makes the card. `verify.py` runs the same gate on anyone's model; `preflight.py` and `publish.py` talk to
the Hub.
"""
