"""The Hub of tests/hub, for what is tried from Python."""

from hub.conftest import client, client_environment, hub  # noqa: F401 (fixtures)
