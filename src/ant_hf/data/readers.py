"""Where the reader of JSON lines used to be."""

from ant_hf.utils.files import read_json_rows as read_json_rows
