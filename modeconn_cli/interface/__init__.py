"""modeconn from Python: what ``import modeconn_cli as mc`` offers. See docs/python.md."""
